#include "atari/atari_env.hpp"

#include <algorithm>

namespace fastrl {

namespace {

constexpr int kNoop = 0;  // the engine's code, and the first action of every action set
constexpr std::uint32_t kStateFormat = 1;
constexpr std::string_view kStateMagic = "fastrl-atari-env";

std::uint64_t checksum(std::string_view bytes) {  // FNV-1a
  std::uint64_t hash = 0xcbf29ce484222325U;
  for (const char byte : bytes) hash = (hash ^ static_cast<std::uint8_t>(byte)) * 0x100000001b3U;
  return hash;
}

}  // namespace

std::shared_ptr<const CachedStarts> make_cached_starts(Emulator& console, int most_noops) {
  auto starts = std::make_shared<CachedStarts>();
  console.reset_game();
  std::vector<std::uint8_t> before;
  int score = 0;
  for (int noops = 1; noops <= most_noops; ++noops) {
    before.assign(console.screen().begin(), console.screen().end());
    score += console.act(kNoop);
    if (console.game_over() || console.truncated()) break;
    if (noops < kLeastCachedNoops) continue;
    starts->push_back({console.save(),
                       {console.screen().begin(), console.screen().end()},
                       before,
                       score,
                       console.episode_frame_number()});
  }
  return starts;
}

AtariEnv::AtariEnv(std::shared_ptr<const Engine> engine, const AtariRules& rules)
    : rules_(rules), emulator_(std::move(engine), rules.emulator, rules.trust_states) {
  const auto pixels = static_cast<std::size_t>(rules_.screen_rows) * kScreenWidth;
  for (const auto& table : rules_.planes) reducers_.emplace_back(table, rules_.screen_rows, rules_.cpu_path);
  if (reducers_.size() > 1) channels_.resize(reducers_.size() * kObsBytes);
  older_.assign(pixels, 0);
  newer_.assign(pixels, 0);
  stack_.assign(static_cast<std::size_t>(rules_.stack) * kObsBytes, 0);
}

// ---- The layers, innermost first. Where a line looks odd, a reference wrapper does the same.

int AtariEnv::emulate(int engine_action) {
  const StageScope timed(clock_, Stage::kEmulate);
  const int reward = emulator_.act(engine_action);
  game_return_ += reward;
  return reward;
}

void AtariEnv::restart_emulator(const std::optional<EnvSeed>& seed) {
  const StageScope timed(clock_, Stage::kRestart);
  if (seed) {
    emulator_.load_rom(seed->emulator);
    noop_random_ = NumpyRandom(seed->noops);
  }
  emulator_.reset_game();
  game_return_ = 0;
  game_steps_ = 0;
  if (rules_.pooling == Pooling::kLastTwo) {
    copy_screen(newer_);
    older_ = newer_;
  }
}

int AtariEnv::draw_noops() {
  if (rules_.noop_max == 0) return 0;
  if (!noop_schedule_.empty()) {
    const int scheduled = noop_schedule_.front();
    noop_schedule_.pop_front();
    return scheduled;
  }
  return noop_random_.integers(rules_.noop_min, rules_.noop_max);
}

const CachedStart* AtariEnv::cached_start(int noops) const {
  const int place = noops - kLeastCachedNoops;
  if (rules_.starts == nullptr || !emulator_.can_jump() || place < 0 ||
      place >= static_cast<int>(rules_.starts->size())) {
    return nullptr;
  }
  const CachedStart& start = (*rules_.starts)[static_cast<std::size_t>(place)];
  const int limit = rules_.emulator.max_frames_per_game;
  const bool cut_short = limit > 0 && start.episode_frames >= limit;
  return cut_short ? nullptr : &start;
}

void AtariEnv::start_game(const std::optional<EnvSeed>& seed) {
  // The count is drawn after the emulator is reset and seeded; a jump skips that reset, and has no seed.
  const bool may_jump = !seed.has_value();
  std::optional<int> noops;
  if (may_jump) noops = draw_noops();
  const CachedStart* start = may_jump ? cached_start(*noops) : nullptr;
  if (start != nullptr) {
    const StageScope timed(clock_, Stage::kRestart);
    emulator_.jump_to(*start, *noops);
    game_return_ = start->score;
    game_steps_ = 0;
    if (rules_.pooling == Pooling::kLastTwo) {
      older_ = start->screen_before;
      newer_ = start->screen;
    }
  } else {
    restart_emulator(seed);
    if (!noops) noops = draw_noops();
    for (int i = 0; i < *noops; ++i) {
      emulate(kNoop);
      if (rules_.pooling == Pooling::kLastTwo) keep_newest();
      const Outcome outcome{0, emulator_.game_over(), emulator_.truncated()};
      if (outcome.done()) {
        end_of_game();
        restart_emulator(seed);
      }
    }
  }
  if (rules_.pooling == Pooling::kDopamine) std::fill(newer_.begin(), newer_.end(), std::uint8_t{0});
  shown_ = rules_.pooling == Pooling::kLastTwo && rules_.frame_skip > 1 ? Shown::kBothKept : Shown::kScreen;
  lives_ = emulator_.lives();
}

// What the end of a step touches, asked for in its last frames, a part a frame.
void AtariEnv::prefetch(int frames_left) const {
  switch (frames_left) {
    case 4:
      prefetch_lines(older_);
      break;
    case 3:
      prefetch_lines(newer_);
      break;
    case 2:
      for (const PlaneReducer& reducer : reducers_) reducer.prefetch(0);
      break;
    case 1:
      for (const PlaneReducer& reducer : reducers_) reducer.prefetch(1);
      prefetch_lines(stack_);
      break;
    default:
      break;
  }
}

AtariEnv::Outcome AtariEnv::act_frames(int action) {
  const int skip = rules_.frame_skip;
  const int code = rules_.actions[static_cast<std::size_t>(action)];
  Outcome outcome;
  int frame = 0;
  for (; frame < skip; ++frame) {
    prefetch(skip - frame);
    outcome.reward += emulate(code);
    outcome.terminated = emulator_.game_over();
    outcome.truncated = emulator_.truncated();
    if (outcome.done()) end_of_game();
    if (rules_.life_loss_seen_every_frame && rules_.life_loss_ends_episode) {
      const int lives = emulator_.lives();
      outcome.terminated = outcome.terminated || lives < lives_;
      lives_ = lives;
    }
    switch (rules_.pooling) {
      case Pooling::kMaxAndSkip:
      case Pooling::kDopamine:
        if (skip > 1 && frame == skip - 2) keep(older_);
        if (skip > 1 && frame == skip - 1) keep(newer_);
        break;
      case Pooling::kGymnasium:
        if (skip > 1 && frame == skip - 2 && !outcome.done()) keep(older_);
        if (skip > 1 && frame == skip - 1 && !outcome.done()) keep(newer_);
        break;
      case Pooling::kLastTwo:
        keep_newest();
        break;
    }
    if (outcome.done()) break;
  }
  // `frame` is now the index of the frame that cut the step short, or skip.
  switch (rules_.pooling) {
    case Pooling::kMaxAndSkip:
    case Pooling::kLastTwo:
      shown_ = skip > 1 ? Shown::kBothKept : Shown::kScreen;
      break;
    case Pooling::kDopamine:
      if (skip == 1) {
        shown_ = Shown::kScreen;
      } else {
        shown_ = frame >= skip - 2 ? Shown::kBothKept : Shown::kPlane;
      }
      break;
    case Pooling::kGymnasium:
      if (frame == skip) {
        shown_ = skip > 1 ? Shown::kBothKept : Shown::kScreen;
      } else {
        shown_ = skip > 1 && frame == skip - 1 ? Shown::kPlaneAndOlder : Shown::kPlane;
      }
      break;
  }
  return outcome;
}

AtariEnv::Outcome AtariEnv::act_with_lives(int action) {
  Outcome outcome = act_frames(action);
  game_is_over_ = outcome.done();
  if (go_on_after_life_loss()) {
    const int lives = emulator_.lives();
    // Some games stand at 0 lives for a few frames before they are over; only the end of the game counts then.
    if (lives > 0 && lives < lives_) outcome.terminated = true;
    lives_ = lives;
  }
  return outcome;
}

void AtariEnv::reset_with_lives(const std::optional<EnvSeed>& seed) {
  if (game_is_over_ || !go_on_after_life_loss()) {
    start_game(seed);
  } else if (act_frames(kNoop).done()) {
    start_game(seed);
  }
  lives_ = emulator_.lives();
}

// ---- The faces

void AtariEnv::schedule_noops(std::vector<int> counts) { noop_schedule_.assign(counts.begin(), counts.end()); }

void AtariEnv::reset(const std::optional<EnvSeed>& seed) {
  if (!seed && !was_reset_) throw std::logic_error("the first reset of an env needs a seed");
  report_.game_ended = false;
  // Only a reset that answers a life loss goes on with the game. The reference would also go on when it is reset in
  // the middle of an episode, and ignore a seed; here that starts a new game.
  if (seed || !episode_is_over_) game_is_over_ = true;
  reset_with_lives(seed);
  if (rules_.fire_at_reset) {
    if (act_with_lives(1).done()) reset_with_lives(seed);
    const bool over = act_with_lives(2).done();
    load_planes();  // what is shown is this step, even where it ends an episode
    if (over) {
      reset_with_lives(seed);
    }
  } else {
    load_planes();
  }
  push_frame(true);
  was_reset_ = true;
  episode_is_over_ = false;
  ++steps_taken_;
  fill_report(Outcome{});
}

void AtariEnv::step(int action) {
  report_.game_ended = false;
  ++game_steps_;
  const Outcome outcome = act_with_lives(action);
  load_planes();
  push_frame(false);
  episode_is_over_ = outcome.done();
  ++steps_taken_;
  fill_report(outcome);
}

void AtariEnv::end_of_game() {
  report_.game_ended = true;
  report_.game_return = game_return_;
  report_.game_frames = emulator_.episode_frame_number();
  report_.game_steps = game_steps_;
}

void AtariEnv::fill_report(const Outcome& outcome) {
  report_.reward = rules_.clip_reward ? std::clamp(outcome.reward, -1.0, 1.0) : outcome.reward;
  report_.terminated = outcome.terminated;
  report_.truncated = outcome.truncated;
  report_.lives = emulator_.lives();
  report_.frame_number = emulator_.frame_number();
  report_.episode_frame_number = emulator_.episode_frame_number();
}

// ---- Pixels

void AtariEnv::keep(std::vector<std::uint8_t>& where) {
  const StageScope timed(clock_, Stage::kKeepScreens);
  copy_screen(where);
}

void AtariEnv::copy_screen(std::vector<std::uint8_t>& where) {
  const auto screen = emulator_.screen();
  std::copy(screen.begin(), screen.end(), where.begin());
}

void AtariEnv::keep_newest() {
  std::swap(older_, newer_);
  keep(newer_);
}

void AtariEnv::load_planes() {
  const StageScope timed(clock_, Stage::kReduce);
  for (PlaneReducer& reducer : reducers_) {
    switch (shown_) {
      case Shown::kScreen:
        reducer.load(emulator_.screen().data());
        break;
      case Shown::kBothKept:
        reducer.load_pair(older_.data(), newer_.data());
        break;
      case Shown::kPlaneAndOlder:
        reducer.join_max(older_.data());
        break;
      case Shown::kPlane:
        break;
    }
  }
}

std::size_t AtariEnv::stack_offset(int place) const {
  return static_cast<std::size_t>((stack_begin_ + place) % rules_.stack) * kObsBytes;
}

void AtariEnv::push_frame(bool first) {
  const StageScope timed(clock_, Stage::kReduce);
  stack_begin_ = (stack_begin_ + 1) % rules_.stack;
  std::uint8_t* newest = stack_frame(rules_.stack - 1);
  if (reducers_.size() == 1) {
    reducers_[0].reduce(newest);
  } else {
    for (std::size_t i = 0; i < reducers_.size(); ++i) reducers_[i].reduce(channels_.data() + i * kObsBytes);
    const std::uint8_t* red = channels_.data();
    const std::uint8_t* green = red + kObsBytes;
    const std::uint8_t* blue = green + kObsBytes;
    const auto [wr, wg, wb, bias] = rules_.grey_weights;
    for (int i = 0; i < kObsBytes; ++i) {
      newest[i] = static_cast<std::uint8_t>(((red[i] * wr + green[i] * wg) + blue[i] * wb) + bias);
    }
  }
  if (!first) return;
  for (int place = 0; place < rules_.stack - 1; ++place) {
    if (rules_.pad_with_first_frame) {
      std::copy_n(newest, kObsBytes, stack_frame(place));
    } else {
      std::fill_n(stack_frame(place), kObsBytes, std::uint8_t{0});
    }
  }
}

void AtariEnv::write_stack(std::uint8_t* out) {
  const StageScope timed(clock_, Stage::kWriteStack);
  const auto wrap = static_cast<std::ptrdiff_t>(stack_begin_) * kObsBytes;
  out = std::copy(stack_.begin() + wrap, stack_.end(), out);
  std::copy(stack_.begin(), stack_.begin() + wrap, out);
}

// ---- Saved states

std::string AtariEnv::save() {
  if (!was_reset_) throw std::logic_error("nothing to save before the first reset");
  ByteWriter out;
  out.put_bytes(kStateMagic);
  out.put(kStateFormat);
  out.put_bytes(rules_.fingerprint);
  emulator_.save(out);
  save_own(out);
  std::string body = out.take();
  ByteWriter sum;
  sum.put(checksum(body));
  return body + sum.take();
}

std::string AtariEnv::identity() {
  if (!was_reset_) throw std::logic_error("nothing to identify before the first reset");
  ByteWriter out;
  out.put_bytes(rules_.fingerprint);
  emulator_.identify(out);
  save_own(out);
  return out.take();
}

void AtariEnv::save_own(ByteWriter& out) {
  out.put(noop_random_.state());
  out.put<std::uint64_t>(noop_schedule_.size());
  for (const int count : noop_schedule_) out.put(count);
  out.put<std::uint8_t>(episode_is_over_);
  out.put<std::uint8_t>(game_is_over_);
  out.put(lives_);
  out.put_bytes(std::span<const std::uint8_t>(older_));
  out.put_bytes(std::span<const std::uint8_t>(newer_));
  for (const PlaneReducer& reducer : reducers_) out.put_bytes(reducer.plane());
  std::vector<std::uint8_t> stack(stack_.size());
  write_stack(stack.data());
  out.put_bytes(std::span<const std::uint8_t>(stack));
  out.put(game_return_);
  out.put(game_steps_);
  out.put(steps_taken_);
  // Field by field: padding bytes would make equal states differ.
  out.put(report_.reward);
  out.put<std::uint8_t>(report_.terminated);
  out.put<std::uint8_t>(report_.truncated);
  out.put(report_.lives);
  out.put(report_.frame_number);
  out.put(report_.episode_frame_number);
  out.put<std::uint8_t>(report_.game_ended);
  out.put(report_.game_return);
  out.put(report_.game_frames);
  out.put(report_.game_steps);
}

void AtariEnv::load(std::string_view bytes) {
  constexpr std::size_t kSumBytes = sizeof(std::uint64_t);
  if (bytes.size() < kSumBytes) throw std::invalid_argument("the state is damaged: it is too short");
  const std::string_view body = bytes.substr(0, bytes.size() - kSumBytes);
  if (ByteReader(bytes.substr(body.size())).get<std::uint64_t>() != checksum(body)) {
    throw std::invalid_argument("the state is damaged: its checksum does not fit");
  }
  ByteReader in(body);
  if (in.get_bytes() != kStateMagic) throw std::invalid_argument("this is not the state of an Atari env");
  const auto format = in.get<std::uint32_t>();
  if (format != kStateFormat) {
    throw std::invalid_argument("the state has format " + std::to_string(format) + "; this fastrl reads format " +
                                std::to_string(kStateFormat));
  }
  const std::string_view fingerprint = in.get_bytes();
  if (fingerprint != rules_.fingerprint) {
    throw std::invalid_argument("the state was saved under other rules: " + std::string(fingerprint) +
                                "; this pool plays under " + rules_.fingerprint);
  }
  emulator_.load(in);
  noop_random_ = NumpyRandom(in.get<NumpyRandom::State>());
  noop_schedule_.resize(in.get<std::uint64_t>());
  for (int& count : noop_schedule_) count = in.get<int>();
  episode_is_over_ = in.get<std::uint8_t>() != 0;
  game_is_over_ = in.get<std::uint8_t>() != 0;
  lives_ = in.get<int>();
  const auto fill = [&in](std::vector<std::uint8_t>& where) {
    const auto part = in.get_bytes(where.size());
    std::copy(part.begin(), part.end(), where.begin());
  };
  fill(older_);
  fill(newer_);
  for (PlaneReducer& reducer : reducers_) reducer.set_plane(in.get_bytes(reducer.plane().size()));
  stack_begin_ = 0;
  fill(stack_);
  game_return_ = in.get<double>();
  game_steps_ = in.get<std::int64_t>();
  steps_taken_ = in.get<std::int64_t>();
  report_.reward = in.get<double>();
  report_.terminated = in.get<std::uint8_t>() != 0;
  report_.truncated = in.get<std::uint8_t>() != 0;
  report_.lives = in.get<int>();
  report_.frame_number = in.get<std::int64_t>();
  report_.episode_frame_number = in.get<std::int64_t>();
  report_.game_ended = in.get<std::uint8_t>() != 0;
  report_.game_return = in.get<double>();
  report_.game_frames = in.get<std::int64_t>();
  report_.game_steps = in.get<std::int64_t>();
  was_reset_ = true;
}

}  // namespace fastrl
