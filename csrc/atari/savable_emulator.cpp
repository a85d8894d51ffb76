#include "atari/savable_emulator.hpp"

#include <algorithm>
#include <sstream>

namespace fastrl {

SavableEmulator::SavableEmulator(std::shared_ptr<const Engine> engine, EmulatorOptions options, bool trust_states)
    : options_(std::move(options)), trust_states_(trust_states), emulator_(std::move(engine)) {
  tape_.reserve(2 * kFramesPerAnchor);
}

void SavableEmulator::load_rom(std::uint32_t seed) {
  options_.seed = seed;
  emulator_.load_rom(options_);
  loaded_ = true;
  frames_before_ = 0;
  frames_since_reset_ = 0;
  stick_random_.seed(seed);
  stuck_action_ = 0;
  anchor_.reset();
  anchor_extras_.clear();
  tape_.clear();
}

void SavableEmulator::reset_game() {
  emulator_.reset_game();
  frames_since_reset_ = 0;
  stuck_action_ = 0;
  note_call(kResetCall);
}

int SavableEmulator::act(int action) {
  if (tape_.size() >= kFramesPerAnchor && exact_now()) take_anchor();
  const int reward = emulator_.act(action);
  if (options_.sticky_probability > 0.0F) follow_stick(action);
  ++frames_since_reset_;
  note_call(static_cast<std::uint8_t>(action));
  return reward;
}

// The engine rolls for both players on every frame; ours is the first roll.
void SavableEmulator::follow_stick(int action) {
  const auto roll = [this] {
    return static_cast<double>(stick_random_()) / (static_cast<double>(std::mt19937::max()) + 1.0);
  };
  if (roll() >= static_cast<double>(options_.sticky_probability)) stuck_action_ = action;
  roll();
}

void SavableEmulator::jump_to(const CachedStart& start, int noops) {
  frames_before_ = frame_number() + start.episode_frames;
  emulator_.restore(*start.state);
  emulator_.set_screen(start.screen);
  frames_before_ -= emulator_.frame_number();
  frames_since_reset_ = noops;
  stuck_action_ = 0;
  note_call(kResetCall);
  for (int i = 0; i < noops; ++i) note_call(0);
}

void SavableEmulator::note_call(std::uint8_t call) {
  tape_.push_back(call);
  if (call_log_ != nullptr) call_log_->push_back(call);
}

std::int64_t SavableEmulator::frames_before_exact() const {
  constexpr std::int64_t kLeast = 4;
  constexpr std::int64_t kMost = 64;
  const int limit = options_.max_frames_per_game;
  return limit > 0 ? std::clamp<std::int64_t>(limit / 4, kLeast, kMost) : kMost;
}

bool SavableEmulator::exact_now() const {
  return trust_states_ && frames_since_reset_ >= frames_before_exact() && !emulator_.game_over() &&
         !emulator_.truncated();
}

void SavableEmulator::take_anchor() {
  anchor_ = emulator_.save();
  ByteWriter extras;
  extras.put(frames_before_);
  extras.put(frames_since_reset_);
  extras.put(stuck_action_);
  std::ostringstream random;
  random << stick_random_;
  extras.put_bytes(random.view());
  extras.put_bytes(emulator_.screen());
  anchor_extras_ = extras.take();
  tape_.clear();
}

// A state ends with the engine's generator in words, then two numbers. Ours must be the same, or a restored sticky
// joystick would repeat another action than the one that stuck.
void SavableEmulator::check_generator(std::string_view state) const {
  constexpr std::size_t kBehindGenerator = 2 * 4;
  ByteReader extras(anchor_extras_);
  extras.get<std::int64_t>();
  extras.get<std::int64_t>();
  extras.get<int>();
  const std::string_view ours = extras.get_bytes();
  const bool sticky = options_.sticky_probability > 0.0F;
  if (sticky && !state.substr(0, state.size() - kBehindGenerator).ends_with(ours)) {
    throw std::logic_error("the engine's generator of sticky actions is not the one that was followed");
  }
}

void SavableEmulator::save(ByteWriter& out) {
  if (!loaded_) throw std::logic_error("nothing to save before the first reset");
  if (!tape_.empty() && exact_now()) take_anchor();  // exact now, so the replay at load is empty
  out.put(options_.seed);
  out.put<std::uint8_t>(anchor_ != nullptr);
  if (anchor_ != nullptr) {
    const std::string state = anchor_->to_string();
    check_generator(state);
    out.put_bytes(state);
    out.put_bytes(anchor_extras_);
  }
  out.put_bytes(std::span<const std::uint8_t>(tape_));
}

void SavableEmulator::identify(ByteWriter& out) {
  if (!loaded_) throw std::logic_error("nothing to identify before the first reset");
  out.put(options_.seed);
  out.put<std::uint8_t>(emulator_.game_over());
  out.put<std::uint8_t>(emulator_.truncated());
  out.put(emulator_.lives());
  out.put(frame_number());
  out.put(emulator_.episode_frame_number());
  out.put(frames_since_reset_);
  out.put(stuck_action_);
  out.put_bytes(emulator_.screen());
  out.put_bytes(emulator_.ram());
  std::ostringstream random;
  if (options_.sticky_probability > 0.0F) random << stick_random_;
  out.put_bytes(random.view());
}

void SavableEmulator::load(ByteReader& in) {
  const auto seed = in.get<std::uint32_t>();
  const bool from_state = in.get<std::uint8_t>() != 0;
  if (!from_state || !loaded_) load_rom(seed);  // a state needs no fresh cartridge, and loading one is slow
  options_.seed = seed;
  if (from_state) {
    const std::string_view state = in.get_bytes();
    const std::string_view extras_bytes = in.get_bytes();
    ByteReader extras(extras_bytes);
    const auto frames_before = extras.get<std::int64_t>();
    const auto frames_since_reset = extras.get<std::int64_t>();
    const auto stuck_action = extras.get<int>();
    const std::string_view random = extras.get_bytes();
    const auto screen = extras.get_bytes(emulator_.screen().size());

    emulator_.reset_game();
    stuck_action_ = 0;  // as the engine has it now
    // The action that sticks is not part of the engine's state. Acting it until it surely took (the generator is
    // followed, so "surely" is known) puts it there; the console's state is replaced right after.
    do {
      emulator_.act(stuck_action);
      if (options_.sticky_probability > 0.0F) follow_stick(stuck_action);
    } while (options_.sticky_probability > 0.0F && stuck_action_ != stuck_action);
    anchor_ = std::make_unique<EmulatorState>(emulator_.engine(), state);
    anchor_extras_ = extras_bytes;
    tape_.clear();
    emulator_.restore(*anchor_);
    emulator_.set_screen(screen);
    std::istringstream{std::string(random)} >> stick_random_;
    frames_before_ = frames_before;
    frames_since_reset_ = frames_since_reset;
    stuck_action_ = stuck_action;
  }
  for (const char call : in.get_bytes()) {
    const auto code = static_cast<std::uint8_t>(call);
    if (code == kResetCall) {
      reset_game();
    } else {
      act(code);
    }
  }
}

}  // namespace fastrl
