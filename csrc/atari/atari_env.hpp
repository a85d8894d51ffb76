// atari_env.hpp: one game under one set of rules, as the reference wrappers play it, quirks included.
//
// A step repeats an action, pools the last two frames, reduces them to 84x84 and keeps the last few as a stack. What
// the wrappers do in layers (no-ops, fire, life loss, time limit, stack) is done here in one class, because the layers
// reach into each other: a reset after a life loss is a step, a fire at a reset can lose a life. The order of events is
// the references'; tests/parity.py compares every byte.
//
// One thread at a time. Nothing here allocates between two resets, but for an anchor every 1,024 frames.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "atari/frame_ops.hpp"
#include "atari/numpy_random.hpp"
#include "atari/savable_emulator.hpp"
#include "atari/stage_clock.hpp"

namespace fastrl {

// Which screens a step's observation is pooled from, and what is seen when a step is cut short.
enum class Pooling : int {
  kMaxAndSkip = 0,  // Stable-Baselines3, CleanRL: two kept screens; a step cut short shows older ones
  kGymnasium = 1,   // the pooled plane is kept and pooled into again
  kDopamine = 2,    // as above, but a screen is kept before the end of the game is looked at
  kLastTwo = 3,     // the last two emulated frames, always
};

// The starts after 2, 3, ... no-ops, made once a game and then only read: whether an env jumps never depends on timing.
using CachedStarts = std::vector<CachedStart>;
inline constexpr int kLeastCachedNoops = 2;  // the engine's states are exact from here on
// `console` has just loaded its cartridge, without sticky actions, mode or difficulty.
std::shared_ptr<const CachedStarts> make_cached_starts(Emulator& console, int most_noops);

// Everything that a protocol fixes. Python states the defaults (fastrl/engine/protocol.py); there are none here.
struct AtariRules {
  std::string game;  // for messages
  EmulatorOptions emulator;
  bool trust_states;  // see savable_emulator.hpp
  int screen_rows;
  std::vector<int> actions;  // the engine's code of each action
  int frame_skip;
  int stack;
  Pooling pooling;
  int noop_min;
  int noop_max;  // 0: no no-ops
  bool fire_at_reset;
  bool life_loss_ends_episode;
  bool life_loss_seen_every_frame;  // and its reset restarts the game; otherwise the game goes on
  bool clip_reward;
  bool pad_with_first_frame;                   // otherwise with zeros
  std::shared_ptr<const CachedStarts> starts;  // none: every reset is emulated
  std::string fingerprint;                     // of all rules and the cartridge; a state of another is refused
  // One plane of grey, or red, green and blue planes that become grey after the resize by these weights.
  std::vector<std::shared_ptr<const PixelTable>> planes;
  std::array<double, 4> grey_weights;  // red, green, blue, and what is added before the fraction is dropped
  CpuPath cpu_path;
};

// What one env reports of one step or reset.
struct EnvReport {
  double reward = 0;
  bool terminated = false;
  bool truncated = false;
  int lives = 0;
  std::int64_t frame_number = 0;
  std::int64_t episode_frame_number = 0;
  // A full game that ended since the last report, in the game's own score.
  bool game_ended = false;
  double game_return = 0;
  std::int64_t game_frames = 0;
  std::int64_t game_steps = 0;
};

// How an env is seeded: as gymnasium seeds the reference env. Computed in Python.
struct EnvSeed {
  std::uint32_t emulator;
  NumpyRandom::State noops;
};

class AtariEnv {
 public:
  AtariEnv(std::shared_ptr<const Engine> engine, const AtariRules& rules);

  // A seed loads the cartridge anew and restarts the game. Without one: the protocol's own reset, which after a life
  // loss may go on with the game.
  void reset(const std::optional<EnvSeed>& seed);
  // The no-op counts of the next resets, in order; then the generator takes over again.
  void schedule_noops(std::vector<int> counts);
  void step(int action);

  const EnvReport& report() const { return report_; }
  bool was_reset() const { return was_reset_; }
  bool episode_is_over() const { return episode_is_over_; }  // or none has begun: a reset comes next
  std::int64_t steps_taken() const { return steps_taken_; }  // since construction, resets included: for messages
  const std::uint8_t* frame() const { return stack_frame(rules_.stack - 1); }
  void write_stack(std::uint8_t* out);  // oldest first
  std::span<const std::uint8_t> screen() const { return emulator_.screen(); }

  std::string save();
  void load(std::string_view bytes);
  std::string identity();  // equal of two that played the same, see SavableEmulator::identify

  void set_clock(StageClock* clock) { clock_ = clock; }
  void log_calls(std::vector<std::uint8_t>* log) { emulator_.log_calls(log); }

 private:
  struct Outcome {  // of the frames of one action
    double reward = 0;
    bool terminated = false;
    bool truncated = false;
    bool done() const { return terminated || truncated; }
  };
  enum class Shown : int { kScreen = 0, kBothKept = 1, kPlane = 2, kPlaneAndOlder = 3 };

  // The layers of the references, innermost first.
  void restart_emulator(const std::optional<EnvSeed>& seed);
  void start_game(const std::optional<EnvSeed>& seed);
  int draw_noops();
  void save_own(ByteWriter& out);  // all but the emulator
  Outcome act_frames(int action);
  Outcome act_with_lives(int action);
  void reset_with_lives(const std::optional<EnvSeed>& seed);

  bool go_on_after_life_loss() const { return rules_.life_loss_ends_episode && !rules_.life_loss_seen_every_frame; }
  const CachedStart* cached_start(int noops) const;
  int emulate(int engine_action);
  void end_of_game();  // tells of it in the report
  void prefetch(int frames_left) const;
  void keep(std::vector<std::uint8_t>& where);
  void copy_screen(std::vector<std::uint8_t>& where);
  void keep_newest();
  void load_planes();
  void push_frame(bool first);
  void fill_report(const Outcome& outcome);
  std::uint8_t* stack_frame(int place) { return stack_.data() + stack_offset(place); }
  const std::uint8_t* stack_frame(int place) const { return stack_.data() + stack_offset(place); }
  std::size_t stack_offset(int place) const;

  AtariRules rules_;
  SavableEmulator emulator_;
  std::vector<PlaneReducer> reducers_;
  std::vector<std::uint8_t> channels_;  // reduced planes before they become grey, when there are three

  NumpyRandom noop_random_;
  std::deque<int> noop_schedule_;

  bool was_reset_ = false;
  bool episode_is_over_ = true;
  bool game_is_over_ = true;  // the next reset restarts the game
  int lives_ = 0;             // as the life-loss layer last saw them
  Shown shown_ = Shown::kScreen;
  std::vector<std::uint8_t> older_, newer_;  // the screens kept for pooling

  std::vector<std::uint8_t> stack_;  // a ring of frames
  int stack_begin_ = 0;              // where its oldest is

  double game_return_ = 0;
  std::int64_t game_steps_ = 0;
  std::int64_t steps_taken_ = 0;
  EnvReport report_;
  StageClock* clock_ = nullptr;
};

}  // namespace fastrl
