// pool_stress.cpp: everything under csrc/ but the bindings, driven hard without Python, for the sanitizers.
//
//   pool_stress ENGINE [SECONDS [SEED [CHECK]]]     all checks (or one) on the fake engine, SECONDS in all, default 20
//   pool_stress --refusals LACKS_ACT WRONG_SCREEN WRONG_STATE     engines that must be refused
//   pool_stress --race ENGINE, --overread, --overflow, --leak     a fault that a sanitizer must report
//
// Every check plays rounds until its share of the time is spent, prints how many things it compared, and stops the
// program at the first that differs (exit code 1). A round is decided by SEED and its number, so it can be repeated.

#include <dlfcn.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <functional>
#include <limits>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "atari/engine.hpp"
#include "atari/frame_ops.hpp"
#include "pool/env_pool.hpp"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/lsan_interface.h>
#endif

namespace fastrl {
namespace {

using Clock = std::chrono::steady_clock;
using Random = std::mt19937_64;
using EnginePtr = std::shared_ptr<const Engine>;
using ThrowAtFrame = void (*)(int);

struct Failed : std::runtime_error {
  using std::runtime_error::runtime_error;
};

void require(bool holds, const std::string& what) {
  if (!holds) throw Failed(what);
}

double seconds_since(Clock::time_point began) { return std::chrono::duration<double>(Clock::now() - began).count(); }

int between(Random& random, int least, int most) { return std::uniform_int_distribution<int>(least, most)(random); }
bool one_in(Random& random, int n) { return between(random, 1, n) == 1; }

template <typename T>
const T& one_of(Random& random, const std::vector<T>& values) {
  return values[static_cast<std::size_t>(between(random, 0, static_cast<int>(values.size()) - 1))];
}

std::size_t index(int value) { return static_cast<std::size_t>(value); }

std::uint64_t mixed(std::uint64_t value) {  // splitmix64
  value += 0x9E3779B97F4A7C15U;
  value = (value ^ (value >> 30U)) * 0xBF58476D1CE4E5B9U;
  value = (value ^ (value >> 27U)) * 0x94D049BB133111EBU;
  return value ^ (value >> 31U);
}

// Copies first: the sanitizers watch memcpy, but not the hash inside the C++ library.
std::uint64_t hash_of(std::span<const std::uint8_t> bytes) {
  std::string copy(bytes.size(), '\0');
  std::memcpy(copy.data(), bytes.data(), bytes.size());
  return std::hash<std::string>{}(copy);
}

void* load_engine(const char* file) {
  void* module = dlopen(file, RTLD_NOW | RTLD_LOCAL);
  require(module != nullptr, std::string("dlopen: ") + (module == nullptr ? dlerror() : ""));
  return module;
}

// ---- What is played

std::shared_ptr<const PixelTable> make_pixel_table(unsigned variant) {
  auto table = std::make_shared<PixelTable>();
  for (std::size_t a = 0; a < PixelTable::kColours; ++a) {
    table->single[a] = static_cast<std::uint8_t>(mixed(a + 1000 * variant) >> 8U);
  }
  for (std::size_t a = 0; a < PixelTable::kColours; ++a) {
    for (std::size_t b = 0; b < PixelTable::kColours; ++b) {
      table->pair[a * PixelTable::kColours + b] = std::max(table->single[a], table->single[b]);
    }
  }
  return table;
}

std::shared_ptr<const PixelTable> pixel_table(std::size_t variant) {
  static const std::array tables{make_pixel_table(0), make_pixel_table(1), make_pixel_table(2)};
  return tables.at(variant);
}

EmulatorOptions emulator_options(float sticky) { return {"toy.bin", 0, sticky, 0, -1, -1}; }

AtariRules random_rules(Random& random) {
  const float sticky = one_in(random, 2) ? 0.25F : 0.0F;
  AtariRules rules{};
  rules.game = "toy";
  rules.emulator = emulator_options(sticky);
  rules.trust_states = !one_in(random, 5);
  rules.screen_rows = 210;
  rules.actions = {0, 1, 3, 4};
  rules.frame_skip = between(random, 1, 4);
  rules.stack = between(random, 1, 4);
  rules.pooling = static_cast<Pooling>(between(random, 0, 3));
  rules.noop_min = 1;
  rules.noop_max = one_of(random, std::vector{0, 1, 12, 12});
  rules.fire_at_reset = one_in(random, 2);
  rules.life_loss_ends_episode = one_in(random, 2);
  rules.life_loss_seen_every_frame = rules.life_loss_ends_episode && one_in(random, 2);
  rules.clip_reward = one_in(random, 2);
  rules.pad_with_first_frame = one_in(random, 2);
  rules.fingerprint = "toy-rules";
  rules.planes = {pixel_table(0)};
  rules.grey_weights = {0.25, 0.5, 0.25, 0.5};
  rules.cpu_path = one_of(random, available_cpu_paths());
  if (one_in(random, 4)) {
    rules.emulator.rom = "tall.bin";
    rules.screen_rows = 250;
  }
  if (one_in(random, 2)) rules.emulator.max_frames_per_game = between(random, 40, 300);
  if (one_in(random, 3)) rules.emulator.mode = 1;
  if (one_in(random, 3)) rules.planes = {pixel_table(0), pixel_table(1), pixel_table(2)};
  return rules;
}

// What may differ between two pools that must give the same results.
AtariRules same_rules_elsewhere(Random& random, const EnginePtr& engine, AtariRules rules) {
  rules.cpu_path = one_of(random, available_cpu_paths());
  const bool may_jump = rules.emulator.sticky_probability == 0.0F && rules.emulator.mode < 0 && rules.noop_max > 0;
  if (may_jump && one_in(random, 2)) {
    Emulator console(engine);
    console.load_rom({rules.emulator.rom, 0, 0.0F, 0, -1, -1});
    rules.starts = make_cached_starts(console, rules.noop_max);
  }
  return rules;
}

PoolOptions options_of(int num_envs, int threads, int batch_size, Autoreset autoreset) {
  const int spin_us = num_envs % 2 == 0 ? 0 : 100;
  return {num_envs, threads, batch_size, autoreset, true, spin_us, -1, -1};
}

EnvSeed seed_of(int env) {
  const auto word = [env](std::uint64_t n) { return mixed(static_cast<std::uint64_t>(env) * 16 + n); };
  return {static_cast<std::uint32_t>(word(0)), {word(1), word(2), word(3), word(4) | 1U, 0, 0}};
}

std::vector<EnvPool::Reset> seeded_resets(int num_envs) {
  std::vector<EnvPool::Reset> resets;
  for (int env = 0; env < num_envs; ++env) resets.push_back({env, seed_of(env), std::nullopt});
  return resets;
}

// The action that leads to an env's result of this number.
std::int64_t action_of(int env, int result) {
  return static_cast<std::int64_t>(mixed(static_cast<std::uint64_t>(env) << 32U | static_cast<unsigned>(result)) % 4U);
}

std::vector<int> all_envs(const EnvPool& pool) {
  std::vector<int> envs(index(pool.options().num_envs));
  for (std::size_t i = 0; i < envs.size(); ++i) envs[i] = static_cast<int>(i);
  return envs;
}

const std::function<void()> kKeepWaiting = [] {};
constexpr double kForEver = -1;

// ---- Results

std::uint64_t hash_of(const EnvReport& report) {
  ByteWriter out;
  out.put(report.reward);
  out.put(report.terminated);
  out.put(report.truncated);
  out.put(report.lives);
  out.put(report.frame_number);
  out.put(report.episode_frame_number);
  out.put(report.game_ended);
  out.put(report.game_return);
  out.put(report.game_frames);
  out.put(report.game_steps);
  return std::hash<std::string>{}(out.take());
}

std::uint64_t hash_of(const Batch& batch, std::size_t place, std::size_t stack_bytes) {
  std::uint64_t hash = mixed(hash_of(batch.report[place]));
  const auto stack_at = [&](const std::uint8_t* stacks) {
    return std::span(stacks + place * stack_bytes, stack_bytes);
  };
  if (stack_bytes > 0) hash = mixed(hash ^ hash_of(stack_at(batch.obs)));
  if (batch.has_final[place] != 0) {
    hash = mixed(hash ^ hash_of(batch.final_report[place]));
    if (stack_bytes > 0) hash = mixed(hash ^ hash_of(stack_at(batch.final_obs.data())));
  }
  return hash;
}

using Trace = std::vector<std::vector<std::uint64_t>>;  // of each env, its results' hashes

// ---- A sink that checks how it is called

class CheckingSink : public FrameSink {
 public:
  struct Entry {
    FrameRecord record;
    std::uint64_t frame;
  };

  explicit CheckingSink(int num_envs) : lanes_(index(num_envs)) {}

  int num_envs() const noexcept override { return static_cast<int>(lanes_.size()); }
  void begin(int env) noexcept override { advance(env, Stage::kIdle, Stage::kBegun); }
  void put(int env, std::span<const std::uint8_t> frame) noexcept override {
    advance(env, Stage::kBegun, Stage::kPut);
    if (frame.size() != std::size_t{kObsBytes}) ++violations_;
    lanes_[index(env)].frame = hash_of(frame);
  }
  void commit(const FrameRecord& record) noexcept override {
    Lane& lane = lanes_[index(record.env)];
    lane.log.push_back({record, lane.frame});
    advance(record.env, Stage::kPut, Stage::kIdle);
  }

  // Not locked: a pool must have ordered these reads after the writes, and the thread sanitizer looks on.
  const std::vector<Entry>& log(int env) const { return lanes_[index(env)].log; }
  int violations() const { return violations_; }

 private:
  enum class Stage { kIdle, kBegun, kPut };
  struct Lane {
    std::atomic<Stage> stage = Stage::kIdle;
    std::uint64_t frame = 0;
    std::vector<Entry> log;
  };

  // Relaxed: a sink that synchronised the workers would hide a pool that does not.
  void advance(int env, Stage from, Stage to) {
    if (lanes_[index(env)].stage.exchange(to, std::memory_order_relaxed) != from) ++violations_;
  }

  std::vector<Lane> lanes_;
  std::atomic<int> violations_ = 0;
};

// Keeps workers busy for a while, so that something can happen while they are.
class SlowSink : public FrameSink {
 public:
  SlowSink(int num_envs, std::chrono::microseconds delay) : num_envs_(num_envs), delay_(delay) {}
  int num_envs() const noexcept override { return num_envs_; }
  void begin(int) noexcept override { std::this_thread::sleep_for(delay_); }
  void put(int, std::span<const std::uint8_t>) noexcept override {}
  void commit(const FrameRecord&) noexcept override {}

 private:
  int num_envs_;
  std::chrono::microseconds delay_;
};

// ---- A player: sends the actions that action_of says, in any order, and looks at what comes back

class Player {
 public:
  Player(EnvPool& pool, Random& random, const CheckingSink* sink = nullptr)
      : pool_(pool),
        random_(random),
        sink_(sink),
        trace_(index(pool.options().num_envs)),
        results_(trace_.size(), 0),
        who_(all_envs(pool)),
        logged_(trace_.size(), 0),
        in_flight_(trace_.size(), false) {
    if (whole() && one_in(random, 2)) own_buffer_.resize(trace_.size() * stack_bytes());
  }

  Player(const Player&) = delete;  // workers may be writing into its buffer
  Player& operator=(const Player&) = delete;
  ~Player() {
    if (!own_buffer_.empty() && pool_.in_flight() > 0) pool_.close();
  }

  // Env i of the pool goes on as env `as[i]` of another, which had received so many results.
  void continue_as(std::vector<int> as, const std::vector<int>& results) {
    for (std::size_t i = 0; i < as.size(); ++i) results_[i] = results[index(as[i])];
    who_ = std::move(as);
  }

  // Compares with a trace instead of recording one.
  void expect(const Trace& trace) { expected_ = &trace; }

  void reset_all() {
    call_began_ = Clock::now();
    pool_.send_resets(seeded_resets(pool_.options().num_envs), buffer(), any_players());
    in_flight_.assign(in_flight_.size(), true);
    receive_what_can_be();
  }

  // Until each env has `goal` results, or all that could still be asked for would not fill a batch.
  void play_until(int goal) {
    while (true) {
      std::vector<int> ready;
      for (const int env : all_envs(pool_)) {
        if (!in_flight_[index(env)] && results_[index(env)] < goal) ready.push_back(env);
      }
      if (ready.empty() && pool_.in_flight() < pool_.options().batch_size) return;
      std::shuffle(ready.begin(), ready.end(), random_);
      if (whole()) {
        if (one_in(random_, 4) && ready.size() > 1) {  // a batch may be sent in parts
          send(std::vector<int>(ready.begin() + 1, ready.end()));
          ready.resize(1);
        }
      } else if (!ready.empty()) {
        ready.resize(index(between(random_, 1, static_cast<int>(ready.size()))));
      }
      if (!ready.empty()) send(ready);
      receive_what_can_be();
    }
  }

  const std::vector<int>& results() const { return results_; }
  const Trace& trace() const { return trace_; }
  const std::vector<int>& ends() const { return ends_; }
  std::uint64_t compared() const { return compared_; }
  double seconds_in_call() const { return seconds_since(call_began_); }  // for whoever caught what it threw

 private:
  EnvPool::Players any_players() {
    return one_in(random_, 2) ? EnvPool::Players::kCallerToo : EnvPool::Players::kWorkers;
  }

  bool whole() const { return pool_.options().batch_size == pool_.options().num_envs; }
  std::size_t stack_bytes() const { return pool_.options().write_stacks ? pool_.stack_bytes() : 0; }

  // A batch that is sent in parts gets its buffer with the first: workers write into it from then on.
  std::uint8_t* buffer() { return own_buffer_.empty() || pool_.in_flight() > 0 ? nullptr : own_buffer_.data(); }

  void send(const std::vector<int>& envs) {
    std::vector<std::int64_t> actions;
    for (const int env : envs) actions.push_back(action_of(who_[index(env)], results_[index(env)]));
    call_began_ = Clock::now();
    pool_.send_actions(envs, actions, buffer(), "step", any_players());
    for (const int env : envs) in_flight_[index(env)] = true;
  }

  void receive_what_can_be() {
    while (pool_.in_flight() >= pool_.options().batch_size) {
      call_began_ = Clock::now();
      const std::shared_ptr<Batch> batch = pool_.recv(kForEver, kKeepWaiting);
      for (std::size_t place = 0; place < batch->env.size(); ++place) look_at(*batch, place);
      if (!whole() && one_in(random_, 2)) return;  // send in between
    }
  }

  void look_at(const Batch& batch, std::size_t place) {
    const int env = batch.env[place];
    in_flight_[index(env)] = false;
    const std::uint64_t hash = hash_of(batch, place, stack_bytes());
    const auto number = index(results_[index(env)]++);
    const auto played = index(who_[index(env)]);
    if (expected_ != nullptr) {
      require(number < (*expected_)[played].size(), "more results than expected");
      require((*expected_)[played][number] == hash,
              "env " + std::to_string(played) + ", result " + std::to_string(number) + " differs");
      ++compared_;
    } else {
      require(trace_[played].size() == number, "a trace has a gap");
      trace_[played].push_back(hash);
      const bool ended = batch.report[place].terminated || batch.report[place].truncated;
      if (ended) ends_.push_back(static_cast<int>(number));
    }
    if (sink_ != nullptr) compare_with_sink(batch, place, env, static_cast<int>(number));
  }

  void compare_with_sink(const Batch& batch, std::size_t place, int env, int number) {
    const auto& log = sink_->log(env);
    const bool has_final = batch.has_final[place] != 0;
    std::size_t& logged = logged_[index(env)];
    logged += has_final ? 2 : 1;
    require(log.size() == logged, "the sink of env " + std::to_string(env) + " has missed or invented a frame");
    require(sink_->violations() == 0, "a sink was called out of order");
    const EnvReport& report = batch.report[place];
    const CheckingSink::Entry& newest = log.back();
    const CheckingSink::Entry& of_step = has_final ? log[log.size() - 2] : newest;
    if (has_final) {
      require(newest.record.starts_episode, "the frame after a reset does not start an episode");
      require(!of_step.record.starts_episode, "the last frame of an episode starts one");
      require_newest(batch.final_obs.data(), place, of_step);
    }
    if (of_step.record.starts_episode) {
      require(of_step.record.reward == 0 && !of_step.record.terminated && !of_step.record.truncated,
              "a frame that starts an episode has a reward or an end");
    } else {
      require(of_step.record.action == action_of(who_[index(env)], number), "the sink was told another action");
    }
    require(of_step.record.reward == report.reward && of_step.record.terminated == report.terminated &&
                of_step.record.truncated == report.truncated,
            "the sink was told another reward or end");
    require_newest(batch.obs, place, newest);
  }

  void require_newest(const std::uint8_t* stacks, std::size_t place, const CheckingSink::Entry& entry) const {
    if (stack_bytes() == 0) return;
    const std::uint8_t* const end = stacks + (place + 1) * stack_bytes();
    require(hash_of(std::span(end - kObsBytes, std::size_t{kObsBytes})) == entry.frame,
            "the sink's frame is not the newest of the stack");
  }

  EnvPool& pool_;
  Random& random_;
  const CheckingSink* sink_;
  const Trace* expected_ = nullptr;
  Trace trace_;
  std::vector<int> ends_;
  std::vector<int> results_;         // received, of each env
  std::vector<int> who_;             // whose actions each env gets
  std::vector<std::size_t> logged_;  // entries of the sink that belong to results received
  std::vector<bool> in_flight_;
  std::vector<std::uint8_t> own_buffer_;  // empty: batches bring their own memory
  std::uint64_t compared_ = 0;
  Clock::time_point call_began_;
};

// ---- Checks of the pool. Each plays one round and returns how many things it compared.

struct Round {
  std::string engine_file;
  EnginePtr engine;
  ThrowAtFrame throw_at_frame;
  Random random;
};

int random_batch_size(Random& random, int num_envs) {
  return one_in(random, 2) ? num_envs : between(random, 1, num_envs);
}

Autoreset random_autoreset(Random& random) { return one_in(random, 2) ? Autoreset::kSameStep : Autoreset::kNextStep; }

struct Recording {
  Trace trace;
  std::vector<int> ends;  // numbers of results that ended an env's episode
};

Recording single_thread_play(Round& round, const AtariRules& rules, int num_envs, Autoreset autoreset, int results) {
  EnvPool pool(round.engine, rules, options_of(num_envs, 1, num_envs, autoreset), nullptr);
  Player player(pool, round.random);
  player.reset_all();
  player.play_until(results);
  return {player.trace(), player.ends()};
}

// What an env does depends on its seed and its actions only; three pools at once share the engine meanwhile.
std::uint64_t schedule_independence(Round& round) {
  constexpr int kPools = 3;
  const int num_envs = between(round.random, 1, 7);
  const int results = between(round.random, 20, 90);
  const Autoreset autoreset = random_autoreset(round.random);
  const AtariRules rules = random_rules(round.random);
  const Trace expected = single_thread_play(round, rules, num_envs, autoreset, results).trace;
  std::vector<Random> randoms;
  for (int i = 0; i < kPools; ++i) randoms.emplace_back(round.random());
  std::vector<std::exception_ptr> errors(kPools);
  std::atomic<std::uint64_t> compared = 0;
  const auto play = [&](std::size_t number) {
    try {
      Random& random = randoms[number];
      const auto sink = one_in(random, 3) ? nullptr : std::make_shared<CheckingSink>(num_envs);
      PoolOptions options = options_of(num_envs, between(random, 1, 8), random_batch_size(random, num_envs), autoreset);
      EnvPool pool(round.engine, same_rules_elsewhere(random, round.engine, rules), options, sink);
      Player player(pool, random, sink.get());
      player.expect(expected);
      player.reset_all();
      player.play_until(results);
      compared += player.compared();
    } catch (...) {
      errors[number] = std::current_exception();
    }
  };
  std::vector<std::thread> threads;
  for (std::size_t i = 0; i < kPools; ++i) threads.emplace_back(play, i);
  for (std::thread& thread : threads) thread.join();
  for (const std::exception_ptr& error : errors) {
    if (error) std::rethrow_exception(error);
  }
  return compared;
}

// A pool that writes frames to its sink only gives the sink the same frames, and the same reports.
std::uint64_t sink_only(Round& round) {
  const int num_envs = between(round.random, 1, 6);
  const AtariRules rules = random_rules(round.random);
  PoolOptions options = options_of(num_envs, between(round.random, 1, 4), num_envs, random_autoreset(round.random));
  const auto play = [&](bool write_stacks) {
    options.write_stacks = write_stacks;
    const auto sink = std::make_shared<CheckingSink>(num_envs);
    EnvPool pool(round.engine, rules, options, sink);
    Player player(pool, round.random, sink.get());
    player.reset_all();
    player.play_until(40);
    return sink;
  };
  const auto with_stacks = play(true);
  const auto without = play(false);
  std::uint64_t compared = 0;
  for (int env = 0; env < num_envs; ++env) {
    const auto& expected = with_stacks->log(env);
    const auto& log = without->log(env);
    require(log.size() == expected.size(), "another number of frames without stacks");
    for (std::size_t i = 0; i < log.size(); ++i, ++compared) {
      require(log[i].frame == expected[i].frame, "another frame without stacks");
      require(log[i].record.reward == expected[i].record.reward, "another reward without stacks");
    }
  }
  return compared;
}

// A saved env goes on alike in its own pool and in another env of another pool; saving changes nothing.
std::uint64_t save_and_load(Round& round) {
  Random& random = round.random;
  const int num_envs = between(random, 1, 5);
  const Autoreset autoreset = random_autoreset(random);
  const AtariRules rules = random_rules(random);
  // Some rounds are long enough for the anchors that a state is kept by (savable_emulator.hpp).
  const int total = one_in(random, 2) ? between(random, 20, 90) : between(random, 250, 550);
  const auto [expected, ends] = single_thread_play(round, rules, num_envs, autoreset, total);
  // Saved where it is hardest, right after a reset or at the end of an episode, or anywhere.
  int saved_at = one_in(random, 3) ? 0 : between(random, 0, total - 10);
  if (!ends.empty() && one_in(random, 2)) saved_at = one_of(random, ends);

  const auto options = [&] { return options_of(num_envs, between(random, 1, 6), num_envs, autoreset); };
  EnvPool first(round.engine, same_rules_elsewhere(random, round.engine, rules), options(), nullptr);
  Player player(first, random);
  player.expect(expected);
  player.reset_all();
  player.play_until(saved_at + 1);
  const std::vector<int> results = player.results();
  std::vector<std::string> states;
  std::vector<std::uint64_t> screens;
  for (const int env : all_envs(first)) {
    states.push_back(first.save_env(env));
    screens.push_back(hash_of(first.idle_env(env, "screen").screen()));
  }
  player.play_until(total);

  EnvPool second(round.engine, same_rules_elsewhere(random, round.engine, rules), options(), nullptr);
  std::vector<int> as = all_envs(second);
  std::shuffle(as.begin(), as.end(), random);
  for (const int env : all_envs(second)) {
    const std::size_t saved = index(as[index(env)]);
    second.load_env(env, states[saved]);
    require(second.save_env(env) == states[saved], "a loaded env saves another state");
    require(hash_of(second.idle_env(env, "screen").screen()) == screens[saved], "a loaded env shows another screen");
  }
  Player elsewhere(second, random);
  elsewhere.continue_as(as, results);
  elsewhere.expect(expected);
  elsewhere.play_until(total);

  for (const int env : all_envs(first)) first.load_env(env, states[index(env)]);
  Player again(first, random);
  again.continue_as(all_envs(first), results);
  again.expect(expected);
  again.play_until(total);
  return player.compared() + elsewhere.compared() + again.compared();
}

// A state that is cut or changed is refused, and the env stays as it was.
std::uint64_t damaged_states(Round& round) {
  Random& random = round.random;
  EnvPool pool(round.engine, random_rules(random), options_of(1, 1, 1, Autoreset::kNextStep), nullptr);
  Player player(pool, random);
  player.reset_all();
  player.play_until(between(random, 1, 120));
  const std::string state = pool.save_env(0);
  std::uint64_t refused = 0;
  const auto refuse = [&](const std::string& damaged) {
    // An exactly sized copy: reading on beyond its end is seen by the address sanitizer.
    const std::vector<char> bytes(damaged.begin(), damaged.end());
    try {
      pool.load_env(0, {bytes.data(), bytes.size()});
    } catch (const std::invalid_argument&) {
      ++refused;
      return;
    }
    throw Failed("a damaged state was loaded");
  };
  const auto flipped = [&](std::size_t at) {
    std::string damaged = state;
    damaged[at] = static_cast<char>(damaged[at] ^ (1 << between(random, 0, 7)));
    return damaged;
  };
  for (std::size_t at = 0; at < 64; ++at) {
    refuse(state.substr(0, at));
    refuse(flipped(at));
  }
  for (int i = 0; i < 40; ++i) {
    const int last = static_cast<int>(state.size()) - 1;
    refuse(state.substr(0, index(between(random, 0, last))));
    refuse(flipped(index(between(random, 0, last))));
  }
  require(pool.save_env(0) == state, "a refused state has changed the env");
  return refused;
}

// A failure in a worker is a result: the receiver gets it within a second, and the pool still closes.
std::uint64_t failing_env(Round& round) {
  Random& random = round.random;
  const int num_envs = between(random, 1, 6);
  PoolOptions options =
      options_of(num_envs, between(random, 1, 8), random_batch_size(random, num_envs), Autoreset::kNextStep);
  options.fail_env = between(random, 0, num_envs - 1);
  options.fail_step = between(random, 0, 25);
  EnvPool pool(round.engine, random_rules(random), options, nullptr);
  Player player(pool, random);
  std::string message;
  try {
    player.reset_all();
    player.play_until(200);
  } catch (const EnvFailure& failure) {
    message = failure.what();
  } catch (const PoolClosed& closed) {  // a send may be the first to learn of it
    message = closed.what();
  }
  const std::string expected =
      "env " + std::to_string(options.fail_env) + " (toy), step " + std::to_string(options.fail_step);
  require(message.find(expected) != std::string::npos, "expected the failure of " + expected + ", got: " + message);
  require(player.seconds_in_call() < 1, "the failure took longer than a second to arrive");
  const auto refuses = [&pool](const std::function<void()>& call) {
    try {
      call();
    } catch (const EnvFailure&) {
      return true;
    } catch (const PoolClosed&) {
      return true;
    }
    return false;
  };
  require(refuses([&] { pool.recv(kForEver, kKeepWaiting); }), "recv goes on after a failure");
  require(refuses([&] { pool.send_resets(seeded_resets(num_envs), nullptr); }), "reset goes on after a failure");
  require(refuses([&] { pool.save_env(0); }), "save goes on after a failure");
  const auto closing = Clock::now();
  pool.close();
  require(seconds_since(closing) < 1, "closing after a failure took longer than a second");
  require(refuses([&] { pool.recv(kForEver, kKeepWaiting); }), "recv goes on after close");
  return 1;
}

// close() from another thread ends a recv at once, and waits itself for the steps under way only.
std::uint64_t close_while_receiving(Round& round) {
  Random& random = round.random;
  const int num_envs = between(random, 1, 6);
  const auto sink = std::make_shared<SlowSink>(num_envs, std::chrono::microseconds(between(random, 0, 30'000)));
  EnvPool pool(round.engine, random_rules(random),
               options_of(num_envs, between(random, 1, 8), random_batch_size(random, num_envs), Autoreset::kSameStep),
               sink);
  std::atomic<double> returned_after = -1;
  std::atomic<bool> was_told = false;
  Random random_of_receiver(random());
  Player player(pool, random_of_receiver);
  const auto began = Clock::now();
  std::thread receiver([&] {
    try {
      player.reset_all();
      player.play_until(1'000'000);
    } catch (const PoolClosed&) {
      was_told = true;
    }
    returned_after = seconds_since(began);
  });
  std::this_thread::sleep_for(std::chrono::microseconds(between(random, 0, 30'000)));
  pool.close();
  const double closed_after = seconds_since(began);
  receiver.join();
  require(was_told, "the receiver was not told that the pool closed");
  require(returned_after - closed_after < 1, "the receiver returned more than a second after close()");
  return 1;
}

// A pool may go at any moment.
std::uint64_t destroy_while_working(Round& round) {
  Random& random = round.random;
  const int num_envs = between(random, 1, 6);
  EnvPool pool(round.engine, random_rules(random),
               options_of(num_envs, between(random, 1, 8), random_batch_size(random, num_envs), Autoreset::kSameStep),
               std::make_shared<SlowSink>(num_envs, std::chrono::microseconds(between(random, 0, 300))));
  Player player(pool, random);
  player.reset_all();
  player.play_until(between(random, 0, 5));
  const std::vector<int> envs = all_envs(pool);
  if (pool.in_flight() == 0) pool.send_actions(envs, std::vector<std::int64_t>(envs.size(), 0), nullptr);
  std::this_thread::sleep_for(std::chrono::microseconds(between(random, 0, 2'000)));
  return 1;
}

// Batches may be kept, dropped by another thread, and looked at when the pool is gone.
std::uint64_t kept_batches(Round& round) {
  Random& random = round.random;
  const int num_envs = between(random, 1, 5);
  const int batch_size = random_batch_size(random, num_envs);
  struct Kept {
    std::shared_ptr<Batch> batch;
    std::vector<std::uint64_t> hashes;
  };
  std::vector<Kept> kept;
  std::vector<std::shared_ptr<Batch>> to_drop;
  std::mutex mutex;
  std::atomic<bool> done = false;
  std::thread dropper([&] {
    while (!done) {
      std::vector<std::shared_ptr<Batch>> dropped;
      {
        const std::lock_guard lock(mutex);
        dropped.swap(to_drop);
      }
      dropped.clear();
      std::this_thread::yield();
    }
  });
  std::size_t stack_bytes = 0;
  {
    EnvPool pool(round.engine, random_rules(random),
                 options_of(num_envs, between(random, 1, 8), batch_size, random_autoreset(random)), nullptr);
    stack_bytes = pool.stack_bytes();
    pool.send_resets(seeded_resets(num_envs), nullptr);
    for (int i = 0; i < 60; ++i) {
      std::shared_ptr<Batch> batch = pool.recv(kForEver, kKeepWaiting);
      const std::vector<int> envs = batch->env;
      if (one_in(random, 3)) {
        Kept one{batch, {}};
        for (std::size_t place = 0; place < envs.size(); ++place) {
          one.hashes.push_back(hash_of(*batch, place, stack_bytes));
        }
        kept.push_back(std::move(one));
      } else {
        const std::lock_guard lock(mutex);
        to_drop.push_back(std::move(batch));
      }
      pool.send_actions(envs, std::vector<std::int64_t>(envs.size(), between(random, 0, 3)), nullptr);
    }
  }
  done = true;
  dropper.join();
  std::uint64_t compared = 0;
  for (const Kept& one : kept) {
    for (std::size_t place = 0; place < one.hashes.size(); ++place, ++compared) {
      require(hash_of(*one.batch, place, stack_bytes) == one.hashes[place], "a kept batch has changed");
    }
  }
  return compared;
}

// Results may be thrown away, and gathered again; the envs go on as if they had been received.
std::uint64_t discard_and_gather(Round& round) {
  Random& random = round.random;
  constexpr int kSends = 40;
  const int num_envs = between(random, 1, 6);
  const AtariRules rules = random_rules(random);
  const Trace expected = single_thread_play(round, rules, num_envs, Autoreset::kNextStep, kSends + 1).trace;
  EnvPool pool(round.engine, rules,
               options_of(num_envs, between(random, 1, 8), random_batch_size(random, num_envs), Autoreset::kNextStep),
               nullptr);
  pool.send_resets(seeded_resets(num_envs), nullptr);
  std::vector<int> results(index(num_envs), 1);
  std::uint64_t compared = 0;
  for (int i = 0; i < kSends; ++i) {
    pool.discard_in_flight(kKeepWaiting);
    const std::shared_ptr<Batch> all = pool.gather(nullptr);
    std::vector<int> envs;
    std::vector<std::int64_t> actions;
    for (std::size_t env = 0; env < results.size(); ++env, ++compared) {
      require(hash_of(*all, env, pool.stack_bytes()) == expected[env][index(results[env] - 1)],
              "a gathered result differs");
      if (one_in(random, 2)) continue;
      envs.push_back(static_cast<int>(env));
      actions.push_back(action_of(static_cast<int>(env), results[env]++));
    }
    if (!envs.empty()) pool.send_actions(envs, actions, nullptr);
  }
  return compared;
}

// A wait that is given up loses nothing.
std::uint64_t interrupted_waits(Round& round) {
  Random& random = round.random;
  const int num_envs = between(random, 1, 3);
  const AtariRules rules = random_rules(random);
  const Trace expected = single_thread_play(round, rules, num_envs, Autoreset::kNextStep, 5).trace;
  EnvPool pool(round.engine, rules, options_of(num_envs, between(random, 1, 3), num_envs, Autoreset::kNextStep),
               std::make_shared<SlowSink>(num_envs, std::chrono::milliseconds(120)));
  struct Interrupt {};
  std::uint64_t given_up = 0;
  const auto give_up = [&] {
    try {
      pool.recv(0.01, kKeepWaiting);
    } catch (const WaitTimeout&) {
      ++given_up;
    }
  };
  pool.send_resets(seeded_resets(num_envs), nullptr);
  give_up();
  try {
    pool.discard_in_flight([] { throw Interrupt{}; });
  } catch (const Interrupt&) {
    ++given_up;
  }
  pool.discard_in_flight(kKeepWaiting);
  Player player(pool, random);
  player.expect(expected);
  player.continue_as(all_envs(pool), std::vector<int>(index(num_envs), 1));
  player.play_until(3);
  const auto send = [&](int result, EnvPool::Players players) {
    std::vector<std::int64_t> actions;
    for (const int env : all_envs(pool)) actions.push_back(action_of(env, result));
    pool.send_actions(all_envs(pool), actions, nullptr, "step", players);
  };
  const auto interrupt = [&] {
    try {
      pool.recv(kForEver, [] { throw Interrupt{}; });
      throw Failed("recv took a batch before it asked whether to go on");
    } catch (const Interrupt&) {
      ++given_up;
    }
  };
  const auto compare = [&](const Batch& batch, int result) {
    for (const int env : all_envs(pool)) {
      require(hash_of(batch, index(env), pool.stack_bytes()) == expected[index(env)][index(result)],
              "the batch after an interrupted wait differs");
    }
  };
  // A caller who plays and is interrupted leaves the rest to the workers, who may be asleep, or to its next recv.
  send(3, EnvPool::Players::kCallerToo);
  for (int i = between(random, 0, 2); i > 0; --i) interrupt();
  compare(*pool.recv(one_in(random, 2) ? kForEver : 60.0, kKeepWaiting), 3);
  // A batch that was complete when the wait was interrupted is left to the next recv.
  send(4, EnvPool::Players::kWorkers);  // nobody else plays meanwhile
  std::this_thread::sleep_for(std::chrono::milliseconds(120 * num_envs + 50));
  interrupt();
  compare(*pool.recv(kForEver, kKeepWaiting), 4);
  return given_up;
}

// What is not allowed is refused before anything is changed.
std::uint64_t misuse(Round& round) {
  Random& random = round.random;
  const AtariRules rules = random_rules(random);
  const int num_envs = 3;
  const int batch_size = random_batch_size(random, num_envs);
  const Trace expected = single_thread_play(round, rules, num_envs, Autoreset::kDisabled, 1).trace;
  EnvPool pool(round.engine, rules, options_of(num_envs, 2, batch_size, Autoreset::kDisabled), nullptr);
  std::uint64_t refused = 0;
  const auto refuse = [&refused](const char* what, const std::function<void()>& call) {
    try {
      call();
    } catch (const std::logic_error&) {  // also out_of_range and invalid_argument
      ++refused;
      return;
    }
    throw Failed(std::string("allowed: ") + what);
  };
  const auto act = [&pool](std::vector<int> envs, std::vector<std::int64_t> actions) {
    pool.send_actions(envs, actions, nullptr);
  };
  refuse("step before reset", [&] { act({0}, {0}); });
  refuse("save before reset", [&] { pool.save_env(0); });
  refuse("recv before send", [&] { pool.recv(kForEver, kKeepWaiting); });
  refuse("a batch that nobody waited for", [&] { pool.take_batch(); });
  require(pool.never_reset() == all_envs(pool), "an env is called reset that is not");
  refuse("reset of one env twice", [&] { pool.send_resets({{1, {}, {}}, {1, {}, {}}}, nullptr); });
  refuse("reset of an env that is not there", [&] { pool.send_resets({{num_envs, {}, {}}}, nullptr); });
  Player player(pool, random);
  player.expect(expected);
  pool.send_resets(seeded_resets(num_envs), nullptr);
  require(pool.never_reset().empty(), "an env that was sent a reset is called never reset");
  refuse("reset of an env under way", [&] { pool.send_resets({{0, {}, {}}}, nullptr); });
  refuse("save of an env under way", [&] { pool.save_env(0); });
  refuse("load of an env under way", [&] { pool.load_env(0, ""); });
  refuse("step of an env under way", [&] { act({2}, {0}); });
  pool.discard_in_flight(kKeepWaiting, true);
  require(pool.never_reset().empty(), "an env that was reset is called never reset");
  refuse("an action that is not there", [&] { act({0}, {4}); });
  refuse("an action that 32 bits would make one", [&] { act({0}, {std::int64_t{1} << 32}); });
  refuse("a negative action", [&] { act({0}, {-1}); });
  refuse("a negative env", [&] { act({-1}, {0}); });
  refuse("one env twice", [&] { act({0, 1, 0}, {0, 0, 0}); });
  const auto all = pool.gather(nullptr);
  for (std::size_t env = 0; env < all->env.size(); ++env) {
    require(hash_of(*all, env, pool.stack_bytes()) == expected[env][0], "a refused call has changed an env");
  }
  act({0}, {0});
  refuse("a masked reset that would lose a result", [&] { pool.discard_in_flight(kKeepWaiting, true); });
  pool.discard_in_flight(kKeepWaiting);
  pool.close();
  refuse("step after close", [&] { act({0}, {0}); });
  refuse("save after close", [&] { pool.save_env(0); });
  refuse("gather after close", [&] { pool.gather(nullptr); });
  return refused;
}

// An engine that throws in any frame, those of a reset that follows an episode in the same step included.
std::uint64_t throwing_engine(Round& round) {
  Random& random = round.random;
  const int num_envs = between(random, 1, 6);
  EnvPool pool(
      round.engine, random_rules(random),
      options_of(num_envs, between(random, 1, 8), random_batch_size(random, num_envs), random_autoreset(random)),
      nullptr);
  Player player(pool, random);
  player.reset_all();
  round.throw_at_frame(between(random, 0, 3'000));
  std::string message;
  try {
    player.play_until(1'000'000);
  } catch (const std::exception& error) {
    message = error.what();
  }
  pool.close();
  round.throw_at_frame(-1);
  require(message.find("fake engine: a failure that a test asked for") != std::string::npos,
          "expected the engine's failure, got: " + message);
  return 1;
}

// close() may come from any thread, so it may come from two.
std::uint64_t two_closers(Round& round) {
  Random& random = round.random;
  const int num_envs = between(random, 1, 4);
  EnvPool pool(round.engine, random_rules(random), options_of(num_envs, 8, num_envs, Autoreset::kSameStep), nullptr);
  pool.send_resets(seeded_resets(num_envs), nullptr);
  std::atomic<int> waiting = 2;
  const auto close = [&] {
    --waiting;
    while (waiting > 0) std::this_thread::yield();
    pool.close();
  };
  std::thread first(close);
  std::thread second(close);
  first.join();
  second.join();
  return 1;
}

// ---- Checks of the parts

// Bytes whose end (or begin) is the end of memory: one byte further is a fault, whatever instruction reads it. Masked
// vector loads need this, since the address sanitizer does not watch them.
class GuardedBytes {
 public:
  GuardedBytes(std::size_t size, bool guard_behind) : size_(size) {
    const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    const std::size_t usable = (size + page - 1) / page * page;
    mapped_ = usable + 2 * page;
    void* const memory = mmap(nullptr, mapped_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    require(memory != MAP_FAILED, "mmap failed");
    base_ = static_cast<std::uint8_t*>(memory);
    require(mprotect(base_ + page, usable, PROT_READ | PROT_WRITE) == 0, "mprotect failed");
    begin_ = guard_behind ? base_ + page + usable - size : base_ + page;
  }
  GuardedBytes(const GuardedBytes&) = delete;  // owns a mapping
  GuardedBytes& operator=(const GuardedBytes&) = delete;
  ~GuardedBytes() { munmap(base_, mapped_); }

  std::span<std::uint8_t> bytes() { return {begin_, size_}; }

 private:
  std::size_t size_;
  std::size_t mapped_;
  std::uint8_t* base_;
  std::uint8_t* begin_;
};

void draw_screen(Random& random, std::span<std::uint8_t> screen, std::span<const std::uint8_t> previous) {
  std::copy(previous.begin(), previous.end(), screen.begin());
  const int kind = between(random, 0, 3);
  if (kind == 0) {  // noise, odd bytes included
    for (std::uint8_t& pixel : screen) pixel = static_cast<std::uint8_t>(random());
  } else if (kind == 1) {  // few colours
    for (std::uint8_t& pixel : screen) pixel = static_cast<std::uint8_t>((random() & 3U) * 62);
  } else if (kind == 2) {  // some rows differ, as in a game
    const auto rows = static_cast<int>(screen.size()) / kScreenWidth;
    for (int i = between(random, 0, 12); i > 0; --i) {
      const auto at = index(between(random, 0, rows - 1) * kScreenWidth + between(random, 0, kScreenWidth - 9));
      std::fill_n(screen.begin() + static_cast<std::ptrdiff_t>(at), 8, static_cast<std::uint8_t>(random() & 0xFEU));
    }
  }  // else nothing differs
}

// Every instruction set gives the portable one's bytes, and touches no byte outside of what it was given.
std::uint64_t frame_paths(Round& round) {
  Random& random = round.random;
  const int height = one_in(random, 2) ? 210 : 250;
  const std::size_t pixels = index(height * kScreenWidth);
  const auto table = pixel_table(index(between(random, 0, 2)));
  std::vector<PlaneReducer> reducers;
  for (const CpuPath path : available_cpu_paths()) reducers.emplace_back(table, height, path);
  std::vector<std::uint8_t> older(pixels, 0);
  std::vector<std::uint8_t> newer(pixels, 0);
  std::uint64_t compared = 0;
  for (int i = 0; i < 40; ++i) {
    draw_screen(random, newer, older);
    const int operation = between(random, 0, 7);
    const bool guard_behind = one_in(random, 2);
    const bool on_heap = one_in(random, 2);
    std::vector<std::uint8_t> expected_plane;
    std::vector<std::uint8_t> expected_out;
    for (PlaneReducer& reducer : reducers) {
      // Blocks of exactly the size, made anew for each path: in front of a page that cannot be touched, or on the heap.
      GuardedBytes guarded_a(pixels, guard_behind);
      GuardedBytes guarded_b(pixels, guard_behind);
      GuardedBytes guarded_out(kObsBytes, guard_behind);
      std::vector<std::uint8_t> heap_a(older);
      std::vector<std::uint8_t> heap_b(newer);
      std::vector<std::uint8_t> heap_out(kObsBytes);
      std::copy(older.begin(), older.end(), guarded_a.bytes().begin());
      std::copy(newer.begin(), newer.end(), guarded_b.bytes().begin());
      const std::span<std::uint8_t> a = on_heap ? std::span(heap_a) : guarded_a.bytes();
      const std::span<std::uint8_t> b = on_heap ? std::span(heap_b) : guarded_b.bytes();
      const std::span<std::uint8_t> out = on_heap ? std::span(heap_out) : guarded_out.bytes();
      if (operation <= 3) reducer.load_pair(a.data(), b.data());
      if (operation == 4 || operation == 5) reducer.load(b.data());
      if (operation == 6) reducer.join_max(b.data());
      if (operation == 7) reducer.set_plane(b);
      reducer.reduce(out.data());
      if (expected_out.empty()) {
        expected_plane.assign(reducer.plane().begin(), reducer.plane().end());
        expected_out.assign(out.begin(), out.end());
        continue;
      }
      require(std::ranges::equal(reducer.plane(), expected_plane), "a plane differs from the portable one");
      require(std::ranges::equal(out, expected_out), "a reduced frame differs from the portable one");
      ++compared;
    }
    std::swap(older, newer);
  }
  return compared;
}

// What Python asks an emulator for.
std::uint64_t emulator_alone(Round& round) {
  Random& random = round.random;
  Emulator emulator(round.engine);
  EmulatorOptions options = emulator_options(0.0F);  // the action that sticks is not part of a state
  options.mode = 1;
  options.difficulty = 1;
  emulator.load_rom(options);
  emulator.reset_game();
  require(emulator.guard_intact(), "the engine wrote outside its object");
  require(emulator.minimal_actions() == std::vector<int>{0, 1, 3, 4}, "minimal actions differ");
  require(emulator.legal_actions().size() == 18, "legal actions differ");
  require(emulator.modes().size() == 2 && emulator.difficulties().size() == 2, "modes or difficulties differ");
  const std::vector<std::uint8_t> screen(emulator.screen().begin(), emulator.screen().end());
  const std::vector<std::uint8_t> grey = emulator.palette_grey();
  require(grey.size() == 256 && emulator.palette_rgb().size() == 3 * 256, "a palette has another size");
  for (std::size_t i = 0; i < grey.size(); ++i) require(grey[i] == i, "the palette differs");
  require(std::ranges::equal(emulator.screen(), screen), "reading the palette has changed the screen");
  for (int i = between(random, 2, 60); i > 0; --i) emulator.act(between(random, 0, 17));
  const auto play_on = [&emulator] {
    std::uint64_t hash = 0;
    for (int i = 0; i < 30; ++i) {
      hash = mixed(hash + static_cast<std::uint64_t>(emulator.act(i % 5)) + hash_of(emulator.screen()));
      hash = mixed(hash + hash_of(emulator.ram()));
    }
    return hash;
  };
  const auto state = emulator.save();
  const std::string text = state->to_string();
  const std::uint64_t expected = play_on();
  emulator.restore(*state);
  require(play_on() == expected, "a restored console plays another game");
  emulator.restore(EmulatorState(round.engine, text));
  require(emulator.save()->to_string() == text, "a state made from text has another text");
  require(play_on() == expected, "a console restored from text plays another game");
  return 3;
}

// The first states of an engine may be saved on several threads at once.
std::uint64_t first_saves(Round& round) {
  const EnginePtr unused_engine = Engine::open(round.engine_file);
  std::atomic<int> waiting = 2;
  const auto save = [&] {
    Emulator emulator(unused_engine);
    emulator.load_rom(emulator_options(0.0F));
    emulator.reset_game();
    emulator.act(0);
    waiting.fetch_sub(1, std::memory_order_relaxed);
    while (waiting.load(std::memory_order_relaxed) > 0) std::this_thread::yield();
    emulator.save();
  };
  std::thread first(save);
  std::thread second(save);
  first.join();
  second.join();
  return 2;
}

// ---- Running them

struct Check {
  const char* name;
  const char* counted;
  double share;  // of the time
  std::uint64_t (*play)(Round&);
};

constexpr Check kChecks[] = {
    {"emulator_alone", "comparisons", 0.02, emulator_alone},
    {"first_saves", "saves", 0.01, first_saves},
    {"frame_paths", "frames", 0.09, frame_paths},
    {"schedule_independence", "results", 0.30, schedule_independence},
    {"sink_only", "frames", 0.05, sink_only},
    {"save_and_load", "results", 0.20, save_and_load},
    {"damaged_states", "states refused", 0.03, damaged_states},
    {"discard_and_gather", "results", 0.05, discard_and_gather},
    {"kept_batches", "results", 0.05, kept_batches},
    {"interrupted_waits", "waits", 0.03, interrupted_waits},
    {"misuse", "calls refused", 0.02, misuse},
    {"failing_env", "failures", 0.03, failing_env},
    {"throwing_engine", "failures", 0.04, throwing_engine},
    {"close_while_receiving", "pools closed", 0.03, close_while_receiving},
    {"two_closers", "pools closed", 0.02, two_closers},
    {"destroy_while_working", "pools destroyed", 0.03, destroy_while_working},
};

void play_rounds(const Check& check, const std::string& engine_file, ThrowAtFrame throw_at_frame, double seconds,
                 std::uint64_t seed) {
  const EnginePtr engine = Engine::open(engine_file);
  const auto began = Clock::now();
  std::uint64_t count = 0;
  std::uint64_t rounds = 0;
  do {
    try {
      Round round{engine_file, engine, throw_at_frame, Random(mixed(seed) ^ rounds)};
      count += check.play(round);
    } catch (const std::exception& error) {
      throw Failed(std::string(check.name) + ", seed " + std::to_string(seed) + ", round " + std::to_string(rounds) +
                   ": " + error.what());
    }
    ++rounds;
  } while (seconds_since(began) < seconds * check.share);
  require(count > 0, std::string(check.name) + ": nothing was checked");
  std::printf("%-22s %10llu %-16s %6llu rounds %6.1f s\n", check.name, static_cast<unsigned long long>(count),
              check.counted, static_cast<unsigned long long>(rounds), seconds_since(began));
  std::fflush(stdout);
}

// ---- Engines that must be refused

void refuse(const char* what, const std::string& expected, const std::function<void()>& call) {
  std::string message = "nothing was thrown";
  try {
    call();
  } catch (const std::runtime_error& error) {
    message = error.what();
  }
  require(message.find(expected) != std::string::npos, std::string(what) + ": " + message);
  std::printf("refused: %s: %s\n", what, message.c_str());
}

void check_refusals(const char* lacks_act, const char* wrong_screen, const char* wrong_state) {
  refuse("a module that is not loaded", "is not loaded", [&] { Engine::open(lacks_act); });
  load_engine(lacks_act);
  refuse("a missing symbol", "lacks the function _ZN3ale12ALEInterface3actENS_6ActionEf",
         [&] { Engine::open(lacks_act); });
  load_engine(wrong_screen);
  refuse("another screen", "ALEScreen", [&] {
    Emulator emulator(Engine::open(wrong_screen));
    emulator.load_rom(emulator_options(0));
  });
  load_engine(wrong_state);
  const auto save = [&](EngineLayout layout) {
    Emulator emulator(Engine::open(wrong_state, layout));
    emulator.load_rom(emulator_options(0));
    emulator.reset_game();
    emulator.act(0);
    emulator.act(0);
    emulator.save();
  };
#if defined(__SANITIZE_ADDRESS__)
  __lsan_disable();  // of a refused state it is not known where its text is, so the text is given up
#endif
  for (const std::size_t offset : {8U, 16U, 24U, 32U, 40U, 240U}) {
    refuse("another state", "ALEState", [&] { save({.state_text = offset}); });
  }
#if defined(__SANITIZE_ADDRESS__)
  __lsan_enable();
#endif
  save({.state_text = 0});  // where it is in this engine: what was refused is the layout and nothing else
}

// ---- Faults: what a sanitizer that works must report

// Called by several workers, against what it promises: two of them add at once.
class RacingSink : public FrameSink {
 public:
  int num_envs() const noexcept override { return 16; }
  void begin(int) noexcept override { ++frames_; }
  void put(int, std::span<const std::uint8_t>) noexcept override { ++frames_; }
  void commit(const FrameRecord&) noexcept override { ++frames_; }

 private:
  int frames_ = 0;
};

void race(const EnginePtr& engine) {
  Random random(1);
  EnvPool pool(engine, random_rules(random), options_of(16, 4, 16, Autoreset::kSameStep),
               std::make_shared<RacingSink>());
  Player player(pool, random);
  player.reset_all();
  player.play_until(200);
}

void overread() {
  PlaneReducer reducer(pixel_table(0), 210, CpuPath::kPortable);
  const std::vector<std::uint8_t> one_row_short(209 * kScreenWidth);
  reducer.load(one_row_short.data());
}

void overflow() {
  volatile int most = std::numeric_limits<int>::max();
  most = most + 1;
}

void leak() {
  volatile auto* forgotten = new std::array<int, 1000>();
  forgotten = nullptr;
  static_cast<void>(forgotten);
}

void run(std::vector<std::string> arguments) {
  std::string what = "all";
  if (!arguments.empty() && arguments[0].starts_with("--")) {
    what = arguments[0].substr(2);
    arguments.erase(arguments.begin());
  }
  if (what == "refusals") {
    require(arguments.size() == 3, "--refusals needs three engines");
    check_refusals(arguments[0].c_str(), arguments[1].c_str(), arguments[2].c_str());
    return;
  }
  if (what == "overread") return overread();
  if (what == "overflow") return overflow();
  if (what == "leak") return leak();
  require(what == "all" || what == "race", "unknown: --" + what);
  require(!arguments.empty(), "usage: pool_stress ENGINE [SECONDS [SEED [CHECK]]]");
  void* const module = load_engine(arguments[0].c_str());
  if (what == "race") return race(Engine::open(arguments[0]));
  const auto throw_at_frame = reinterpret_cast<ThrowAtFrame>(dlsym(module, "fake_engine_throw_at_frame"));
  require(throw_at_frame != nullptr, "this is not the fake engine");
  const double seconds = arguments.size() > 1 ? std::stod(arguments[1]) : 20;
  const std::uint64_t seed = arguments.size() > 2 ? std::stoull(arguments[2]) : 1;
  const std::string only = arguments.size() > 3 ? arguments[3] : "";
  std::printf("%g s, seed %llu, pixel paths:", seconds, static_cast<unsigned long long>(seed));
  for (const CpuPath path : available_cpu_paths()) std::printf(" %s", cpu_path_name(path));
  std::printf("\n");
  bool any = false;
  for (Check check : kChecks) {
    if (!only.empty() && only != check.name) continue;
    if (!only.empty()) check.share = 1;
    any = true;
    play_rounds(check, arguments[0], throw_at_frame, seconds, seed);
  }
  require(any, "no check is called " + only);
}

}  // namespace
}  // namespace fastrl

int main(int argc, char** argv) {
  try {
    fastrl::run({argv + 1, argv + argc});
  } catch (const std::exception& error) {
    std::printf("FAILED: %s\n", error.what());
    return 1;
  }
  return 0;
}
