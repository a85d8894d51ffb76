// savable_emulator.hpp: an emulator whose state can be saved exactly at any moment.
//
// The engine's own save and restore are exact only in part of a game: not in the first frames after a reset, not at
// game over, and without the screen and without the action that a sticky joystick repeats. This class adds what is
// missing: it keeps the last exact state (the anchor) and a tape of every call made since, so any moment is the
// anchor plus a short replay. A tape is cut by taking a new anchor about every kFramesPerAnchor frames.
//
// Guarantees
//   1. load(save()) continues with the same screens, rewards, lives and flags as if nothing had happened, in this or
//      another process with the same ale-py.
//   2. save() changes nothing.
// One thread at a time.
#pragma once

#include <memory>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "atari/byte_stream.hpp"
#include "atari/engine.hpp"

namespace fastrl {

// A moment to jump to instead of emulating towards it: the console and its last two screens. Valid for every
// instance of the same game and options whose resets do not depend on what was played (cached_resets.json).
struct CachedStart {
  std::unique_ptr<EmulatorState> state;
  std::vector<std::uint8_t> screen;
  std::vector<std::uint8_t> screen_before;
  int score;           // of the no-ops: some games take points off from their first frame on
  int episode_frames;  // the no-ops, and the frames that some games' resets play
};

class SavableEmulator {
 public:
  // `trust_states`: false in the few games where the engine's restore is not always exact (INEXACT_RESTORES); there
  // the tape goes back to the cartridge's loading, however long that is.
  SavableEmulator(std::shared_ptr<const Engine> engine, EmulatorOptions options, bool trust_states);

  void load_rom(std::uint32_t seed);
  void reset_game();
  int act(int action);
  bool game_over() const { return emulator_.game_over(); }
  bool truncated() const { return emulator_.truncated(); }
  int lives() { return emulator_.lives(); }
  std::int64_t frame_number() const { return frames_before_ + emulator_.frame_number(); }
  std::int64_t episode_frame_number() const { return emulator_.episode_frame_number(); }
  std::span<const std::uint8_t> screen() const { return emulator_.screen(); }
  Emulator& raw() { return emulator_; }
  // Every call of the engine that follows is also written here, one byte each; a jump as the calls it stands for.
  void log_calls(std::vector<std::uint8_t>* log) { call_log_ = log; }
  static constexpr std::uint8_t kResetCall = 0xFF;

  // The engine's restore needs a target that has been reset and has acted since.
  bool can_jump() const { return loaded_ && frames_since_reset_ > 0 && options_.sticky_probability == 0.0F; }
  // Equals reset_game() and `noops` no-ops, for starts that were saved so.
  void jump_to(const CachedStart& start, int noops);

  void save(ByteWriter& out);
  void load(ByteReader& in);
  // What it shows, remembers (RAM) and counts, and nothing of how it came here: equal of two that played the same,
  // however often they were saved and loaded. What save() writes is not, since its anchor may lie anywhere, nor is the
  // engine's state, which counts cycles that a jump leaves out.
  void identify(ByteWriter& out);

 private:
  // One byte a call. Where states are trusted a tape holds about kFramesPerAnchor calls and what a reset adds to them.
  static constexpr std::size_t kFramesPerAnchor = 1024;
  // The engine's states are exact from two frames after a reset on; some more are waited for, but not so many that
  // short games never get an anchor.
  std::int64_t frames_before_exact() const;

  bool exact_now() const;
  void note_call(std::uint8_t call);
  void take_anchor();
  void follow_stick(int action);
  void check_generator(std::string_view state) const;

  EmulatorOptions options_;
  bool trust_states_;
  Emulator emulator_;
  bool loaded_ = false;
  std::int64_t frames_before_ = 0;       // what frame_number() lost by jumping
  std::int64_t frames_since_reset_ = 0;  // calls of act since reset_game
  std::mt19937 stick_random_;            // the engine's generator, followed draw by draw
  int stuck_action_ = 0;                 // what a sticky joystick would repeat

  std::unique_ptr<EmulatorState> anchor_;  // none: the anchor is load_rom(options_.seed)
  std::string anchor_extras_;              // the members above as they were at the anchor
  std::vector<std::uint8_t> tape_;
  std::vector<std::uint8_t>* call_log_ = nullptr;
};

}  // namespace fastrl
