// ring_stress.cpp: what csrc/replay promises between threads and processes, tried by racing and by killing.
//
//   ring_stress torture SECONDS [SEED]     writers, samplers and a prefetcher race on rings so small that they meet
//   ring_stress crashpoints                the writer is killed at each of its steps, in every slot
//   ring_stress kills COUNT [SEED]         it is killed at any time, while others read
//   ring_stress lane_races COUNT [RACERS]  processes want the same lane at once, four unless said
//   ring_stress no_leak COUNT              what is left when the processes of a ring have ended or were killed
//   ring_stress exact UPDATES [SEED]       sums of priorities, and which number below the sum finds whom
//
// Each prints one line, and ends with exit code 1 at the first thing that differs. What a writer writes is a function
// of the seed, the lane and the step (Script), so a reader knows what it must see without asking the writer. With a
// mistake planted (FASTRL_MUTANT) this program must fail: tests/CMakeLists.txt has one of it for each.

#include <dirent.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <deque>
#include <exception>
#include <fstream>
#include <functional>
#include <iterator>
#include <memory>
#include <new>
#include <random>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include "replay/prefetcher.hpp"
#include "replay/priorities.hpp"
#include "replay/ring.hpp"
#include "replay/sampler.hpp"
#include "replay/sum_tree.hpp"
#include "replay/transitions.hpp"

namespace fastrl {
namespace {

using Random = std::mt19937_64;

struct Failed : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// `what` is a function, so that a message that is not needed costs nothing.
template <typename What>
void require(bool holds, const What& what) {
  if (holds) return;
  if constexpr (std::is_invocable_v<What>) {
    throw Failed(what());
  } else {
    throw Failed(what);
  }
}

std::uint64_t below(Random& random, std::uint64_t n) { return random() % n; }
bool one_in(Random& random, std::uint64_t n) { return below(random, n) == 0; }

std::uint64_t mixed(std::uint64_t value) {  // splitmix64
  value += 0x9E3779B97F4A7C15U;
  value = (value ^ (value >> 30U)) * 0xBF58476D1CE4E5B9U;
  value = (value ^ (value >> 27U)) * 0x94D049BB133111EBU;
  return value ^ (value >> 31U);
}

std::int64_t now_ns() {  // the same clock in all processes; may be called where nothing else may
  timespec time{};
  clock_gettime(CLOCK_MONOTONIC, &time);
  return std::int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec;
}

double ms(std::int64_t ns) { return static_cast<double>(ns) / 1e6; }

void pause_for(std::int64_t ns) {
  timespec time{ns / 1'000'000'000, ns % 1'000'000'000};
  nanosleep(&time, nullptr);
}

template <typename Predicate>
void wait_until(const Predicate& holds, const char* what) {
  const std::int64_t began = now_ns();
  while (!holds()) {
    require(now_ns() - began < 10'000'000'000, [&] { return std::string("waited 10 s until ") + what; });
    pause_for(10'000);  // those we wait for may need the processor
  }
}

std::string place_of(std::uint64_t lane, std::uint64_t step) {
  return "lane " + std::to_string(lane) + ", step " + std::to_string(step);
}

// ---- Processes

// Memory that forked children share with us.
template <typename T>
class SharedPage {
 public:
  SharedPage() {
    void* const memory = mmap(nullptr, sizeof(T), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    require(memory != MAP_FAILED, "mmap failed");
    value_ = new (memory) T();
  }
  SharedPage(const SharedPage&) = delete;  // owns a mapping
  SharedPage& operator=(const SharedPage&) = delete;
  ~SharedPage() { munmap(value_, sizeof(T)); }

  T* operator->() const { return value_; }
  T& operator*() const { return *value_; }

 private:
  T* value_;
};

// A forked process that runs `work`, and is killed with this object.
class Child {
 public:
  template <typename Work>
  explicit Child(const Work& work) {
    const pid_t parent = getpid();
    pid_ = fork();
    require(pid_ >= 0, "fork failed");
    if (pid_ > 0) return;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(1);
    try {
      work();
    } catch (const std::exception& error) {
      const std::string text = std::string("a child: ") + error.what() + "\n";
      static_cast<void>(!write(STDERR_FILENO, text.data(), text.size()));
      _exit(1);
    }
    _exit(0);
  }
  Child(Child&& other) noexcept : pid_(std::exchange(other.pid_, -1)) {}
  Child& operator=(Child&&) = delete;
  ~Child() {
    if (pid_ < 0) return;
    kill();
    waitpid(pid_, nullptr, 0);
  }

  void kill() const { ::kill(pid_, SIGKILL); }

  int wait() {  // its status, as waitpid gives it
    int status = 0;
    require(waitpid(pid_, &status, 0) == pid_, "waitpid failed");
    pid_ = -1;
    return status;
  }
  void wait_for_success() { require(wait() == 0, "a child failed"); }
  void wait_for_kill() {
    const int status = wait();
    require(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL, "a child ended before it was killed");
  }

 private:
  pid_t pid_;
};

// ---- What is written

// Where a lane went to another writer. One thread adds, any may look.
class Takeovers {
 public:
  explicit Takeovers(std::size_t most) : steps_(most) {}

  void add(std::uint64_t step) {
    steps_.at(count_).store(step);
    ++count_;
  }
  bool contains(std::uint64_t step) const {
    for (std::size_t i = count_; i > 0; --i) {  // they grow
      const std::uint64_t taken = steps_[i - 1];
      if (taken <= step) return taken == step;
    }
    return false;
  }

 private:
  std::vector<std::atomic<std::uint64_t>> steps_;
  std::atomic<std::size_t> count_ = 0;
};

// Every step of every lane.
class Script {
 public:
  explicit Script(std::uint64_t seed, const std::vector<std::unique_ptr<Takeovers>>* takeovers = nullptr)
      : seed_(mixed(seed)), takeovers_(takeovers) {}

  bool breaks_off(std::uint64_t lane, std::uint64_t step) const { return number(kBreak, lane, step) % 24 == 0; }

  bool starts(std::uint64_t lane, std::uint64_t step) const {
    if (step == 0 || breaks_off(lane, step)) return true;
    if (takeovers_ != nullptr && (*takeovers_)[lane]->contains(step)) return true;
    return ends(lane, step - 1);
  }
  bool terminates(std::uint64_t lane, std::uint64_t step) const { return (ending(lane, step) & 1U) != 0; }
  bool truncates(std::uint64_t lane, std::uint64_t step) const { return (ending(lane, step) & 2U) != 0; }
  bool ends(std::uint64_t lane, std::uint64_t step) const {  // no first step does
    return ending(lane, step) != 0 && !starts(lane, step);
  }

  float reward(std::uint64_t lane, std::uint64_t step) const {
    return static_cast<float>(number(kReward, lane, step) % 2001) - 1000;
  }
  void action(std::uint64_t lane, std::uint64_t step, std::vector<std::uint8_t>& bytes) const {
    const std::uint64_t start = number(kAction, lane, step);
    for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::uint8_t>((start + 37 * i) >> 8U);
  }
  // Word i of an observation. In the same place two steps never have the same word.
  static std::uint64_t word(std::uint64_t key, std::uint64_t i) { return key + i * 0xD6E8FEB86659FD93U; }
  std::uint64_t key(std::uint64_t lane, std::uint64_t step) const { return number(kObservation, lane, step); }

 private:
  enum Kind : std::uint64_t { kObservation, kReward, kAction, kEnding, kLength, kBreak };

  std::uint64_t number(Kind kind, std::uint64_t lane, std::uint64_t step) const {
    return mixed(seed_ + (lane * 8 + kind) * 0xA0761D6478BD642FU + step * 0xE7037ED1A0B428DBU);
  }
  // As a writer would have it if the step is not a first one: 1 terminated, 2 truncated, 3 both.
  unsigned ending(std::uint64_t lane, std::uint64_t step) const {
    constexpr std::array<std::uint64_t, 3> kLengths{3, 8, 60};
    const std::uint64_t length = kLengths[number(kLength, lane, step / 64) % kLengths.size()];
    const std::uint64_t drawn = number(kEnding, lane, step);
    return drawn % length == 0 ? 1 + static_cast<unsigned>((drawn >> 32U) % 3) : 0;
  }

  std::uint64_t seed_;
  const std::vector<std::unique_ptr<Takeovers>>* takeovers_;
};

// One owner of one lane, who does what the script says.
class ScriptedWriter {
 public:
  ScriptedWriter(const std::shared_ptr<const Ring>& ring, std::uint64_t lane, const Script& script)
      : writer_(ring, lane),
        lane_(lane),
        script_(script),
        observation_(lane::words_for(ring->shape().obs_bytes)),
        action_(ring->shape().action_bytes) {}

  // An episode that the writer says is open is gone on with: whether it is, is for the readers to check.
  void write() {
    const std::uint64_t step = writer_.next_step();
    const bool first = !writer_.episode_is_open() || script_.breaks_off(lane_, step);
    const std::uint64_t key = script_.key(lane_, step);
    for (std::size_t i = 0; i < observation_.size(); ++i) observation_[i] = Script::word(key, i);
    script_.action(lane_, step, action_);
    const bool terminated = !first && script_.terminates(lane_, step);
    const bool truncated = !first && script_.truncates(lane_, step);
    writer_.begin();
    writer_.put(observation_.data());
    writer_.commit(first, action_.data(), script_.reward(lane_, step), terminated, truncated);
  }
  std::uint64_t next_step() const { return writer_.next_step(); }
  bool episode_is_open() const { return writer_.episode_is_open(); }

 private:
  LaneWriter writer_;
  std::uint64_t lane_;
  Script script_;
  std::vector<std::uint64_t> observation_;
  std::vector<std::uint8_t> action_;
};

// ---- What must be read

constexpr double kGamma = 0.5;  // sums of the script's rewards are exact

constexpr std::array<TransitionRules, 4> kRules{{{1, kGamma, Padding::kZeros},
                                                 {1, kGamma, Padding::kFirstObs},
                                                 {3, kGamma, Padding::kZeros},
                                                 {3, kGamma, Padding::kFirstObs}}};

// Everything that is still in the ring, and the slot that is being written.
Window whole_ring(std::uint64_t end, std::uint64_t slots) { return {end > slots ? end - slots : 0, end}; }

// Compares what a ring gives with what the script says. For one thread.
class Checker {
 public:
  Checker(const Ring& ring, const Script& script) : ring_(ring), shape_(ring.shape()), script_(script) {
    for (const TransitionRules& rules : kRules) readers_.emplace_back(ring, rules);
    observations_.resize(2 * shape_.stack * shape_.obs_bytes);
    action_.resize(shape_.action_bytes);
    expected_action_.resize(shape_.action_bytes);
  }

  Verdict take(std::size_t rules, std::uint64_t lane, std::uint64_t step, const Window& window) {
    float reward = 0;
    float discount = 0;
    const std::int64_t began = now_ns();
    const Verdict verdict =
        readers_[rules].take(lane, step, window, {observations_.data(), nullptr, action_.data(), &reward, &discount});
    longest_take_ = std::max(longest_take_, now_ns() - began);
    // The fence keeps this look at the lane behind what was read above.
    std::atomic_thread_fence(std::memory_order_seq_cst);
    const std::uint64_t reserve = lane::load_word(ring_.lane(lane).cursor->reserve);
    const Expected expected = expect(kRules[rules], lane, step, window);
    if (verdict == Verdict::kTaken) {
      require(expected.verdict == Verdict::kTaken,
              [&] { return "took what is no transition: " + place_of(lane, step); });
      check_row(kRules[rules], lane, step, expected, observations_.data(), action_.data(), reward, discount);
      return verdict;
    }
    if (verdict == Verdict::kOverwritten) {
      ++rejects_;
      const std::uint64_t oldest = expected.verdict == Verdict::kTaken ? expected.oldest : step;
      require(reserve > oldest + shape_.slots, [&] { return "published, but not whole: " + place_of(lane, step); });
    } else if (reserve <= step + shape_.slots) {  // else it may have looked at another step's slot
      require(verdict == expected.verdict, [&] {
        return "verdict " + std::to_string(static_cast<int>(verdict)) + " instead of " +
               std::to_string(static_cast<int>(expected.verdict)) + ": " + place_of(lane, step);
      });
    }
    return verdict;
  }

  void take_stack(std::uint64_t lane, std::uint64_t step) {
    const std::size_t rules = step % kRules.size();
    if (readers_[rules].take_stack(lane, step, observations_.data())) {
      check_stack(kRules[rules].padding, lane, step, observations_.data());
    } else {
      ++rejects_;
    }
  }

  void check_batch(std::size_t rules, const std::vector<std::uint64_t>& ends, const BatchOut& batch) {
    const std::uint64_t row_bytes = readers_[rules].observations_per_row() * shape_.obs_bytes;
    for (std::uint64_t at = 0; at < batch.count; ++at) {
      const auto lane = static_cast<std::uint64_t>(batch.indices[2 * at]);
      const auto step = static_cast<std::uint64_t>(batch.indices[2 * at + 1]);
      const Expected expected = expect(kRules[rules], lane, step, window_until(ends.at(lane), shape_.slots));
      require(expected.verdict == Verdict::kTaken, [&] { return "sampled no transition: " + place_of(lane, step); });
      check_row(kRules[rules], lane, step, expected, batch.observations + at * row_bytes,
                batch.actions + at * shape_.action_bytes, batch.rewards[at], batch.discounts[at]);
    }
  }

  // Every transition and every stack of a lane.
  void check_all(std::uint64_t lane) {
    const std::uint64_t end = ring_.published(lane);
    for (const Window& window : {whole_ring(end, shape_.slots), window_until(end, shape_.slots)}) {
      for (std::uint64_t step = window.first; step < window.end; ++step) {
        for (std::size_t rules = 0; rules < kRules.size(); ++rules) take(rules, lane, step, window);
        take_stack(lane, step);
      }
    }
  }

  std::uint64_t stacks() const { return stacks_; }
  std::uint64_t rejects() const { return rejects_; }
  std::int64_t longest_take() const { return longest_take_; }

 private:
  struct Expected {
    Verdict verdict;
    std::uint64_t oldest;
    std::uint64_t end;
    double reward;
    double discount;
  };

  // Observations of the same episode before this one, in its stack.
  std::uint64_t reach(std::uint64_t lane, std::uint64_t step) const {
    std::uint64_t back = 0;
    while (back < shape_.stack - 1 && !script_.starts(lane, step - back)) ++back;
    return back;
  }

  Expected expect(const TransitionRules& rules, std::uint64_t lane, std::uint64_t step, const Window& window) const {
    Expected expected{Verdict::kIneligible, step - reach(lane, step), step, 0, 1};
    if (script_.ends(lane, step) || expected.oldest < window.first) return expected;
    while (true) {
      ++expected.end;
      if (expected.end >= window.end) {
        expected.verdict = Verdict::kNotYet;
        return expected;
      }
      if (script_.starts(lane, expected.end)) return expected;
      expected.reward += expected.discount * static_cast<double>(script_.reward(lane, expected.end));
      expected.discount *= rules.gamma;
      const bool ends = script_.ends(lane, expected.end);
      if (ends && script_.terminates(lane, expected.end)) expected.discount = 0;
      if (ends || expected.end == step + rules.n_step) break;
    }
    expected.verdict = Verdict::kTaken;
    return expected;
  }

  bool holds(const std::uint8_t* bytes, std::uint64_t key) const {
    std::uint64_t differing = 0;
    std::uint64_t i = 0;
    for (; (i + 1) * lane::kWord <= shape_.obs_bytes; ++i) {
      std::uint64_t word = 0;
      std::memcpy(&word, bytes + i * lane::kWord, lane::kWord);
      differing |= word ^ Script::word(key, i);
    }
    const std::uint64_t last = Script::word(key, i);
    return differing == 0 && std::memcmp(bytes + i * lane::kWord, &last, shape_.obs_bytes % lane::kWord) == 0;
  }

  void check_observation(std::uint64_t lane, std::uint64_t step, const std::uint8_t* bytes) const {
    require(holds(bytes, script_.key(lane, step)), [&] { return "torn: the observation of " + place_of(lane, step); });
  }

  void check_stack(Padding padding, std::uint64_t lane, std::uint64_t newest, const std::uint8_t* bytes) {
    const std::uint64_t back = reach(lane, newest);
    const std::uint64_t missing = shape_.stack - 1 - back;
    const std::uint8_t* const oldest = bytes + missing * shape_.obs_bytes;
    for (std::uint64_t i = 0; i <= back; ++i) {
      check_observation(lane, newest - back + i, oldest + i * shape_.obs_bytes);
    }
    for (std::uint64_t i = 0; i < missing; ++i) {
      const std::uint8_t* const pad = bytes + i * shape_.obs_bytes;
      const bool right = padding == Padding::kZeros
                             ? std::all_of(pad, pad + shape_.obs_bytes, [](std::uint8_t byte) { return byte == 0; })
                             : std::memcmp(pad, oldest, shape_.obs_bytes) == 0;
      require(right, [&] { return "the padding before " + place_of(lane, newest - back) + " differs"; });
    }
    ++stacks_;
  }

  void check_row(const TransitionRules& rules, std::uint64_t lane, std::uint64_t step, const Expected& expected,
                 const std::uint8_t* observations, const std::uint8_t* action, float reward, float discount) {
    check_stack(rules.padding, lane, step, observations);
    if (rules.n_step > 1) {
      check_stack(rules.padding, lane, expected.end, observations + shape_.stack * shape_.obs_bytes);
    } else {
      check_observation(lane, expected.end, observations + shape_.stack * shape_.obs_bytes);
      ++stacks_;  // all but its newest are the first one's
    }
    script_.action(lane, step + 1, expected_action_);
    require(std::equal(expected_action_.begin(), expected_action_.end(), action),
            [&] { return "the action differs: " + place_of(lane, step); });
    require(reward == static_cast<float>(expected.reward) && discount == static_cast<float>(expected.discount),
            [&] { return "the reward or the discount differs: " + place_of(lane, step); });
  }

  const Ring& ring_;
  RingShape shape_;
  Script script_;
  std::vector<TransitionReader> readers_;
  std::vector<std::uint8_t> observations_;
  std::vector<std::uint8_t> action_;
  std::vector<std::uint8_t> expected_action_;
  std::uint64_t stacks_ = 0;
  std::uint64_t rejects_ = 0;
  std::int64_t longest_take_ = 0;
};

// A random look at a random lane, mostly where the writer will be next.
void look_anywhere(Checker& checker, const Ring& ring, Random& random) {
  const std::uint64_t slots = ring.shape().slots;
  const std::uint64_t lane = below(random, ring.shape().lanes);
  const std::uint64_t end = ring.published(lane);
  if (end == 0) {
    sched_yield();
    return;
  }
  const Window window = one_in(random, 4) ? window_until(end, slots) : whole_ring(end, slots);
  std::uint64_t step = window.first + below(random, window.size());
  if (one_in(random, 2)) step = std::min(window.first + below(random, 6), end - 1);
  if (one_in(random, 8)) step = end - 1 - below(random, std::min<std::uint64_t>(4, window.size()));
  if (one_in(random, 64)) sched_yield();  // long enough to be lapped
  if (one_in(random, 8)) return checker.take_stack(lane, step);
  checker.take(below(random, kRules.size()), lane, step, window);
}

// ---- torture

constexpr std::uint64_t kStack = 4;

struct Tally {
  std::uint64_t stacks = 0;
  std::uint64_t rejects = 0;
  std::uint64_t batches = 0;
  std::uint64_t prefetched = 0;  // of them
};

template <typename Stop>
void write_until(const std::shared_ptr<const Ring>& ring, const std::vector<std::uint64_t>& lanes, const Script& script,
                 Random random, const Stop& stop) {
  std::vector<ScriptedWriter> writers;
  writers.reserve(lanes.size());
  for (const std::uint64_t lane : lanes) writers.emplace_back(ring, lane, script);
  while (!stop()) {
    ScriptedWriter& writer = writers[below(random, writers.size())];
    for (std::uint64_t left = 1 + below(random, 8); left > 0; --left) writer.write();
  }
}

template <typename Stop>
Tally sample_until(const std::shared_ptr<const Ring>& ring, const Script& script, Random random, const Stop& stop) {
  constexpr std::uint64_t kRows = 16;
  const RingShape& shape = ring->shape();
  Checker checker(*ring, script);
  const bool by_priority = one_in(random, 2);
  Sampler sampler(ring, random(), by_priority ? std::optional(PriorityOptions{0.6}) : std::nullopt);
  const std::size_t rules_of_priorities = below(random, kRules.size());
  std::vector<std::uint8_t> observations(kRows * 2 * shape.stack * shape.obs_bytes);
  std::vector<std::uint8_t> actions(kRows * shape.action_bytes);
  std::array<float, kRows> rewards{};
  std::array<float, kRows> discounts{};
  std::array<float, kRows> weights{};
  std::array<std::int64_t, 2 * kRows> indices{};
  const BatchOut batch{kRows,          observations.data(), nullptr,        actions.data(),
                       rewards.data(), discounts.data(),    weights.data(), indices.data()};
  Tally tally;
  while (!stop()) {
    if (!one_in(random, 64)) {
      look_anywhere(checker, *ring, random);
      continue;
    }
    const std::size_t rules = by_priority ? rules_of_priorities : below(random, kRules.size());
    const std::vector<std::uint64_t> ends = sampler.ends();
    try {
      sampler.sample(kRules[rules], Ends{ends, true}, 0.4, batch);
    } catch (const NothingToSample&) {
      continue;  // nothing was written yet
    } catch (const Overtaken&) {
      continue;  // all of so small a ring was overwritten before the batch was full
    }
    if (by_priority) {
      std::array<double, kRows> priorities{};
      for (double& priority : priorities) priority = static_cast<double>(below(random, 1000)) / 100;
      sampler.update(indices.data(), priorities.data(), kRows);
    }
    checker.check_batch(rules, ends, batch);
    ++tally.batches;
  }
  tally.stacks = checker.stacks();
  tally.rejects = checker.rejects() + sampler.race_rejects();
  return tally;
}

// Batches that another thread draws; some are held for a while and looked at when newer ones have been drawn.
template <typename Stop>
Tally prefetch_until(const std::shared_ptr<const Ring>& ring, const Script& script, Random random, const Stop& stop) {
  constexpr std::uint64_t kRows = 8;
  constexpr std::size_t kMostHeld = 4;
  const RingShape& shape = ring->shape();
  Checker checker(*ring, script);
  const bool by_priority = one_in(random, 2);
  const auto sampler =
      std::make_shared<Sampler>(ring, random(), by_priority ? std::optional(PriorityOptions{0.6}) : std::nullopt);
  const auto bank = std::make_shared<BatchBank>();
  struct Asked {
    std::size_t rules;
    std::vector<std::uint64_t> ends;
    std::shared_ptr<BatchMemory> memory;
  };
  Tally tally;
  std::unique_ptr<Prefetcher> prefetcher;
  std::deque<Asked> asked;
  std::deque<Asked> held;
  const auto look_at_oldest = [&] {
    checker.check_batch(held.front().rules, held.front().ends, held.front().memory->out());
    held.pop_front();
  };
  const std::size_t rules_of_priorities = below(random, kRules.size());
  constexpr std::chrono::seconds kPatience{60};  // under a sanitizer, beside as many threads as cores
  while (!stop()) {
    if (!prefetcher || one_in(random, 512)) {  // also with batches under way
      prefetcher = std::make_unique<Prefetcher>(sampler);
      asked.clear();
    }
    while (asked.size() < 3) {
      const std::size_t rules = by_priority ? rules_of_priorities : below(random, kRules.size());
      const std::uint64_t rows = TransitionReader(*ring, kRules[rules]).observations_per_row();
      asked.push_back({rules, sampler->ends(), nullptr});
      prefetcher->ask(Prefetcher::Draw{kRules[rules], Ends{asked.back().ends, true}, 0.4,
                                       bank->lend({kRows, rows * shape.obs_bytes, 0, shape.action_bytes})});
    }
    if (one_in(random, 16)) require(prefetcher->drain(kPatience, [] {}), "not done in a minute");
    held.push_back(std::move(asked.front()));
    asked.pop_front();
    try {
      held.back().memory = prefetcher->take(kPatience, [] {});
      require(held.back().memory != nullptr, "no batch in a minute");
    } catch (const NothingToSample&) {
      held.pop_back();
      continue;
    } catch (const Overtaken&) {
      held.pop_back();
      continue;
    }
    const BatchOut batch = held.back().memory->out();
    if (by_priority) {
      std::vector<double> priorities(kRows);
      // None is so small that, in a window which is being overwritten, only it can still be drawn and hardly ever is.
      for (double& priority : priorities) priority = static_cast<double>(1 + below(random, 1000)) / 100;
      prefetcher->ask(Prefetcher::Update{{batch.indices, batch.indices + 2 * kRows}, std::move(priorities)});
    }
    ++tally.batches;
    while (held.size() > below(random, kMostHeld)) look_at_oldest();
  }
  while (!held.empty()) look_at_oldest();
  tally.stacks = checker.stacks();
  tally.rejects = checker.rejects() + sampler->race_rejects();
  return tally;
}

// Runs each of `works` on a thread for a while; what one of them throws ends them all.
void run_for(double seconds, const std::atomic<bool>& stop, const std::function<void()>& end_all,
             const std::vector<std::function<void()>>& works) {
  std::vector<std::exception_ptr> errors(works.size());
  std::vector<std::thread> threads;
  for (std::size_t i = 0; i < works.size(); ++i) {
    threads.emplace_back([&, i] {
      try {
        works[i]();
      } catch (...) {
        errors[i] = std::current_exception();
        end_all();
      }
    });
  }
  const std::int64_t began = now_ns();
  while (!stop && static_cast<double>(now_ns() - began) < seconds * 1e9) pause_for(5'000'000);
  end_all();
  for (std::thread& thread : threads) thread.join();
  for (const std::exception_ptr& error : errors) {
    if (error) std::rethrow_exception(error);
  }
}

Tally torture_round(Random random, double seconds, bool processes) {
  constexpr std::array<std::uint64_t, 4> kObsBytes{7056, 7056, 21168, 1003};
  constexpr std::array<std::uint64_t, 3> kActionBytes{1, 8, 13};
  const RingShape shape{4, 24 + below(random, 17), kStack, kObsBytes[below(random, kObsBytes.size())],
                        kActionBytes[below(random, kActionBytes.size())]};
  const std::shared_ptr<const Ring> ring = Ring::create(shape);
  const Script script(random());
  const SharedPage<std::atomic<bool>> stop_flag;
  std::atomic<bool>& stop = *stop_flag;
  const auto stopped = [&stop] { return stop.load(); };
  std::vector<Child> children;
  std::vector<std::function<void()>> works;
  for (const std::vector<std::uint64_t>& lanes : {std::vector<std::uint64_t>{0, 1}, std::vector<std::uint64_t>{2, 3}}) {
    const Random own(random());
    if (processes) {
      const RegionAddress address = ring->region().address();
      children.emplace_back([&] { write_until(Ring::attach(address, shape), lanes, script, own, stopped); });
    } else {
      works.emplace_back([&, lanes, own] { write_until(ring, lanes, script, own, stopped); });
    }
  }
  std::array<Tally, 3> tallies;
  for (Tally& tally : tallies) {
    works.emplace_back([&, own = Random(random())] {
      tally = &tally == &tallies.back() ? prefetch_until(ring, script, own, stopped)
                                        : sample_until(ring, script, own, stopped);
    });
  }
  run_for(seconds, stop, [&stop] { stop = true; }, works);
  for (Child& child : children) child.wait_for_success();
  Tally all;
  for (const Tally& one : tallies) {
    all.stacks += one.stacks;
    all.rejects += one.rejects;
    all.batches += one.batches;
  }
  all.prefetched = tallies.back().batches;
  return all;
}

void torture(double seconds, std::uint64_t seed) {
#if defined(__SANITIZE_THREAD__)
  constexpr bool kProcesses = false;  // it sees one process
#else
  constexpr bool kProcesses = true;
#endif
  const auto rounds = static_cast<std::uint64_t>(std::max(2.0, seconds / 0.5));
  Tally all;
  for (std::uint64_t round = 0; round < rounds; ++round) {
    try {
      const Tally one = torture_round(Random(mixed(seed) ^ round), seconds / static_cast<double>(rounds),
                                      kProcesses && round % 2 == 1);
      all.stacks += one.stacks;
      all.rejects += one.rejects;
      all.batches += one.batches;
      all.prefetched += one.prefetched;
    } catch (const Failed& error) {
      throw Failed("seed " + std::to_string(seed) + ", round " + std::to_string(round) + ": " + error.what());
    }
  }
  require(all.stacks > 0 && all.batches > all.prefetched && all.prefetched > 0, "nothing was read");
  require(all.rejects > 0, "never raced: nothing was overwritten while it was read");
  std::printf(
      "0 torn in %llu stacks (<3/M = %.1e), %llu overwritten rejects, %llu batches (%llu prefetched), %llu rounds, "
      "seed %llu\n",
      static_cast<unsigned long long>(all.stacks), 3 / static_cast<double>(all.stacks),
      static_cast<unsigned long long>(all.rejects), static_cast<unsigned long long>(all.batches),
      static_cast<unsigned long long>(all.prefetched), static_cast<unsigned long long>(rounds),
      static_cast<unsigned long long>(seed));
}

std::vector<std::unique_ptr<Takeovers>> takeovers_of(std::uint64_t lanes, std::size_t most) {
  std::vector<std::unique_ptr<Takeovers>> all;
  for (std::uint64_t lane = 0; lane < lanes; ++lane) all.push_back(std::make_unique<Takeovers>(most));
  return all;
}

// ---- crashpoints

#ifdef FASTRL_CRASHPOINTS
std::atomic<int> armed_place = -1;
std::atomic<std::int64_t>* death_time = nullptr;

void check_heir(const std::shared_ptr<const Ring>& ring, Checker& checker, ScriptedWriter& heir, std::uint64_t head,
                std::uint64_t steps) {
  require(heir.next_step() == head, "the heir does not begin where the published steps end");
  require(!heir.episode_is_open(), "the heir goes on with the dead one's episode");
  for (std::uint64_t i = 0; i < steps; ++i) heir.write();
  if (steps > 0 && head > 0) {
    const auto view = ring->lane(0);
    const lane::SlotMeta last = lane::load_meta(view.meta(head - 1));
    const lane::SlotMeta first = lane::load_meta(view.meta(head));
    require(first.first() && first.episode != last.episode, "the heir's first slot begins no episode");
    const Window window = whole_ring(ring->published(0), ring->shape().slots);
    for (const TransitionRules& rules : kRules) {
      require(TransitionReader(*ring, rules).judge(0, head - 1, window) == Verdict::kIneligible,
              "the dead episode's last step is eligible");
    }
  }
  checker.check_all(0);
}

void crashpoints() {
  constexpr int kPlaces = 14;
  constexpr std::uint64_t kSlots = 16;
  const RingShape shape{1, kSlots, kStack, 7056, 1};
  const SharedPage<std::atomic<std::int64_t>> died_at;
  std::int64_t longest_takeover = 0;
  std::uint64_t kills = 0;
  std::uint64_t stacks = 0;
  for (int place = 0; place < kPlaces; ++place) {
    const std::shared_ptr<const Ring> ring = Ring::create(shape);
    const RegionAddress address = ring->region().address();
    const auto takeovers = takeovers_of(1, 8 * kSlots);
    const Script script(static_cast<std::uint64_t>(place), &takeovers);
    Checker checker(*ring, script);
    for (std::uint64_t i = 0; i < 2 * kSlots; ++i) {  // from an empty lane on, and again over what is there
      const std::uint64_t began = ring->published(0);
      std::uint64_t crash_step = began;
      while (crash_step % kSlots != i % kSlots) ++crash_step;
      takeovers[0]->add(began);
      *died_at = 0;
      Child writer([&] {
        ScriptedWriter scripted(Ring::attach(address, shape), 0, script);
        death_time = &*died_at;
        while (scripted.next_step() < crash_step) scripted.write();
        armed_place = place;
        scripted.write();
      });
      const auto where = [&] {
        return "place " + std::to_string(place) + ", step " + std::to_string(crash_step) + ": ";
      };
      try {
        wait_until([&] { return died_at->load() != 0; }, "the writer died");
        std::unique_ptr<ScriptedWriter> heir;
        wait_until(
            [&] {
              try {
                heir = std::make_unique<ScriptedWriter>(ring, 0, script);
              } catch (const LaneBusy&) {
              }
              return heir != nullptr;
            },
            "the lane was free");
        longest_takeover = std::max(longest_takeover, now_ns() - died_at->load());
        writer.wait_for_kill();
        const std::uint64_t head = crash_step + (place == kPlaces - 1 ? 1 : 0);
        takeovers[0]->add(head);
        check_heir(ring, checker, *heir, head, mixed(kills) % 4);
      } catch (const Failed& error) {
        throw Failed(where() + error.what());
      }
      ++kills;
    }
    stacks += checker.stacks();
  }
  std::printf("%llu kills at %d points x %llu slots: 0 torn in %llu stacks, longest takeover %.3f ms\n",
              static_cast<unsigned long long>(kills), kPlaces, static_cast<unsigned long long>(kSlots),
              static_cast<unsigned long long>(stacks), ms(longest_takeover));
}
#else
void crashpoints() { throw Failed("this was built without crash points"); }
#endif

// ---- kills

void kills(std::uint64_t count, std::uint64_t seed) {
  constexpr std::uint64_t kLanes = 2;
  struct Progress {
    std::array<std::atomic<std::uint64_t>, kLanes> done;
  };
  Random random(mixed(seed));
  const RingShape shape{kLanes, 32, kStack, 7056, 1};
  const std::shared_ptr<const Ring> ring = Ring::create(shape);
  const RegionAddress address = ring->region().address();
  const auto takeovers = takeovers_of(kLanes, count);
  const Script script(seed, &takeovers);
  const SharedPage<Progress> progress;
  std::uint64_t writing = 0;  // how many were killed after they had written something
  std::atomic<bool> stop = false;
  std::uint64_t stacks = 0;
  std::uint64_t rejects = 0;
  std::int64_t longest_take = 0;
  const auto read = [&] {
    Random own(mixed(seed + 1));
    Checker checker(*ring, script);
    while (!stop) look_anywhere(checker, *ring, own);
    stacks = checker.stacks();
    rejects = checker.rejects();
    longest_take = checker.longest_take();
  };
  const auto kill_all = [&] {
    for (std::uint64_t i = 0; i < count && !stop; ++i) {
      std::array<std::uint64_t, kLanes> before{};
      for (std::uint64_t lane = 0; lane < kLanes; ++lane) {
        before[lane] = ring->published(lane);
        progress->done[lane] = before[lane];
        takeovers[lane]->add(before[lane]);
      }
      const Random own(random());
      Child writer([&] {
        const std::shared_ptr<const Ring> attached = Ring::attach(address, shape);
        Random choice = own;
        std::array<ScriptedWriter, kLanes> writers{ScriptedWriter(attached, 0, script),
                                                   ScriptedWriter(attached, 1, script)};
        while (true) {
          const std::uint64_t lane = below(choice, kLanes);
          writers[lane].write();
          progress->done[lane] = writers[lane].next_step();
        }
      });
      const bool while_starting = one_in(random, 4);
      if (!while_starting) wait_until([&] { return stop || ring->published(0) > before[0]; }, "the writer wrote");
      pause_for(static_cast<std::int64_t>(below(random, while_starting ? 1'000'000 : 3'000'000)));
      writer.kill();
      writer.wait_for_kill();
      bool wrote = false;
      for (std::uint64_t lane = 0; lane < kLanes; ++lane) {
        const std::uint64_t head = ring->published(lane);
        const std::uint64_t done = progress->done[lane];
        // Killed between publishing and telling us, it has published one more than it told.
        require(head == done || head == done + 1, [&] { return "steps were lost: " + place_of(lane, done); });
        require(!ring->has_writer(lane), "a dead writer holds its lane");
        wrote = wrote || head > before[lane];
      }
      if (wrote) ++writing;
    }
    stop = true;
  };
  std::exception_ptr error;
  std::thread reader([&] {
    try {
      read();
    } catch (...) {
      error = std::current_exception();
      stop = true;
    }
  });
  std::exception_ptr other_error;
  try {
    kill_all();
  } catch (...) {
    other_error = std::current_exception();
    stop = true;
  }
  reader.join();
  if (error) std::rethrow_exception(error);
  if (other_error) std::rethrow_exception(other_error);
  require(stacks > 0 && 2 * writing > count, "too few were killed while they wrote");
  std::printf(
      "%llu kills (%llu of them of one that had written): 0 torn in %llu stacks, %llu overwritten rejects, "
      "longest take %.3f ms\n",
      static_cast<unsigned long long>(count), static_cast<unsigned long long>(writing),
      static_cast<unsigned long long>(stacks), static_cast<unsigned long long>(rejects), ms(longest_take));
}

// ---- lane_races

struct RaceBoard {
  std::atomic<std::size_t> ready = 0;
  std::atomic<int> heat = -1;  // which may run
  std::array<std::atomic<std::size_t>, 2> winners = {};
  std::array<std::atomic<std::size_t>, 2> losers = {};
  std::array<std::atomic<std::size_t>, 2> winner = {};
  std::atomic<std::uint64_t> heir_first = 0;
  std::atomic<std::int64_t> heir_time = 0;
};

void race_for_lane(RaceBoard& board, std::size_t me, const RegionAddress& address, const RingShape& shape,
                   const Script& script) {
  const std::shared_ptr<const Ring> ring = Ring::attach(address, shape);
  const auto win = [&](std::size_t heat) {
    try {
      ScriptedWriter writer(ring, 0, script);
      if (heat == 1) {
        board.heir_first = writer.next_step();
        board.heir_time = now_ns();
      }
      board.winner[heat] = me;
      ++board.winners[heat];
      while (true) writer.write();
    } catch (const LaneBusy&) {
    }
  };
  ++board.ready;
  while (board.heat < 0) sched_yield();
  win(0);
  ++board.losers[0];
  while (board.heat < 1) sched_yield();
  while (board.winners[1] == 0) {
    win(1);
    pause_for(10'000);
  }
  ++board.losers[1];
  while (true) pause_for(1'000'000'000);
}

void lane_races(std::uint64_t count, std::uint64_t racing) {
  require(racing >= 2, "a race is of two at least");
  Random random(1);
  const RingShape shape{1, 32, kStack, 7056, 1};
  std::int64_t longest_takeover = 0;
  for (std::uint64_t round = 0; round < count; ++round) {
    const std::shared_ptr<const Ring> ring = Ring::create(shape);
    const RegionAddress address = ring->region().address();
    const auto takeovers = takeovers_of(1, 1);
    const Script script(round, &takeovers);
    const SharedPage<RaceBoard> board;
    std::vector<Child> racers;
    for (std::size_t me = 0; me < racing; ++me) {
      racers.emplace_back([&, me] { race_for_lane(*board, me, address, shape, script); });
    }
    const auto all_know = [&](std::size_t heat) { return board->winners[heat] + board->losers[heat] == racing - heat; };
    wait_until([&] { return board->ready == racing; }, "all were ready");
    board->heat = 0;
    wait_until([&] { return all_know(0); }, "all had tried");
    require(board->winners[0] == 1, "the first race had not one winner");
    board->heat = 1;  // they try while the owner lives
    pause_for(static_cast<std::int64_t>(below(random, 300'000)));
    require(board->winners[1] == 0, "the lane had two owners");
    const std::int64_t killed_at = now_ns();
    racers[board->winner[0]].kill();
    wait_until([&] { return all_know(1); }, "one had the dead one's lane");
    require(board->winners[1] == 1, "the second race had not one winner");
    require(board->heir_time >= killed_at, "the lane had two owners");
    longest_takeover = std::max(longest_takeover, board->heir_time - killed_at);
    const std::uint64_t heir_first = board->heir_first;
    wait_until([&] { return ring->published(0) > heir_first + 4; }, "the heir had written");
    racers.clear();
    takeovers[0]->add(heir_first);
    Checker(*ring, script).check_all(0);
  }
  std::printf(
      "%llu races of %llu processes, the owner killed in each: exactly 1 winner each time, longest takeover "
      "%.3f ms\n",
      static_cast<unsigned long long>(count), static_cast<unsigned long long>(racing), ms(longest_takeover));
}

// ---- no_leak

std::set<std::string> names_in(const char* folder) {
  std::set<std::string> names;
  const std::unique_ptr<DIR, int (*)(DIR*)> opened(opendir(folder), closedir);
  require(opened != nullptr, [&] { return std::string(folder) + " cannot be listed"; });
  while (const dirent* const entry = readdir(opened.get())) names.insert(entry->d_name);
  return names;
}

std::int64_t shared_memory_bytes() {
  std::ifstream file("/proc/meminfo");
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with("Shmem:")) return std::stoll(line.substr(6)) * 1024;
  }
  throw Failed("/proc/meminfo does not say Shmem");
}

void check_segment(const Ring& ring) {
  const int descriptor = ring.region().descriptor();
  struct stat status{};
  require(fstat(descriptor, &status) == 0, "fstat failed");
  require((status.st_mode & 07777U) == 0600, "the segment's mode is not 0600");
  require(status.st_nlink == 0, "the segment has a name");
  for (const std::uint64_t bytes : {std::uint64_t{0}, ring.region().bytes() / 2, 2 * ring.region().bytes()}) {
    errno = 0;
    require(ftruncate(descriptor, static_cast<off_t>(bytes)) == -1 && errno == EPERM, "the segment can be resized");
  }
}

void write_lap(ScriptedWriter& writer, std::uint64_t slots) {
  for (std::uint64_t i = 0; i < slots + 3; ++i) writer.write();
}

void refuse_other_user(const Ring& ring) {
  const RegionAddress address = ring.region().address();
  const RingShape shape = ring.shape();
  Child([&] {
    constexpr uid_t kNobody = 65534;
    require(setresuid(kNobody, kNobody, kNobody) == 0, "setresuid failed");
    try {
      Ring::attach(address, shape);
    } catch (const RegionGone&) {
      return;
    }
    throw Failed("another user can attach");
  }).wait_for_success();
}

// Rings of `shape` that live and die in each of three ways; how many of them were killed with all who had them.
std::uint64_t lifecycles(const RingShape& shape, std::uint64_t count) {
  const Script script(1);
  std::uint64_t killed = 0;
  for (std::uint64_t i = 0; i < count; ++i) {
    if (i % 3 < 2) {  // ours: ends as it should, or before its writer is killed
      std::shared_ptr<const Ring> ring = Ring::create(shape);
      check_segment(*ring);
      if (i == 0 && geteuid() == 0) refuse_other_user(*ring);
      const RegionAddress address = ring->region().address();
      const SharedPage<std::atomic<bool>> written;
      Child writer([&] {
        const std::shared_ptr<const Ring> attached = Ring::attach(address, shape);
        check_segment(*attached);
        ScriptedWriter scripted(attached, i % 2, script);
        write_lap(scripted, shape.slots);
        *written = true;
        while (i % 3 == 1) scripted.write();
      });
      wait_until([&] { return written->load(); }, "a lap was written");
      if (i % 3 == 0) {
        writer.wait_for_success();
      } else {
        ring.reset();
        writer.kill();
        writer.wait_for_kill();
      }
    } else {  // somebody else's, and all who have it are killed
      struct Board {
        std::atomic<pid_t> grandchild = 0;
        std::atomic<bool> written = false;
      };
      const SharedPage<Board> board;
      Child owner([&] {
        const std::shared_ptr<const Ring> ring = Ring::create(shape);
        const RegionAddress address = ring->region().address();
        ScriptedWriter scripted(ring, 0, script);
        const pid_t grandchild = fork();
        require(grandchild >= 0, "fork failed");
        if (grandchild > 0) {
          board->grandchild = grandchild;
          while (true) scripted.write();
        }
        ScriptedWriter own(Ring::attach(address, shape), 1, script);
        write_lap(own, shape.slots);
        board->written = true;
        while (true) own.write();
      });
      wait_until([&] { return board->grandchild != 0 && board->written; }, "both had written");
      owner.kill();
      owner.wait_for_kill();
      ::kill(board->grandchild, SIGKILL);
      require(waitpid(board->grandchild, nullptr, 0) == board->grandchild, "waitpid failed");
      ++killed;
    }
  }
  return killed;
}

void no_leak(std::uint64_t count) {
  // When its parent is killed, a grandchild becomes ours, and can be waited for.
  require(prctl(PR_SET_CHILD_SUBREAPER, 1) == 0, "prctl failed");
  const RingShape shape{2, 1000, kStack, 7056, 1};  // 14 MB
  const auto ring_bytes = static_cast<std::int64_t>(shape.region_bytes());
  const auto names = names_in("/dev/shm");
  const std::size_t descriptors = names_in("/proc/self/fd").size();
  // The figure is the whole machine's: what another program takes meanwhile comes once, a leak comes every time.
  constexpr int kAttempts = 3;
  for (int attempt = 1;; ++attempt) {
    const std::int64_t bytes_before = shared_memory_bytes();
    const std::uint64_t killed = lifecycles(shape, count);
    require(names_in("/dev/shm") == names, "the names in /dev/shm have changed");
    require(names_in("/proc/self/fd").size() == descriptors, "descriptors were left open");
    std::ifstream maps("/proc/self/maps");
    const std::string mapped((std::istreambuf_iterator<char>(maps)), std::istreambuf_iterator<char>());
    require(mapped.find("fastrl-ring") == std::string::npos, "a segment is still mapped");
    require(waitpid(-1, nullptr, WNOHANG) == -1 && errno == ECHILD, "a process is left");  // orphans would be ours
    // Others use shared memory too; one ring that was left would be more than they may.
    const auto left = [&] { return shared_memory_bytes() - bytes_before; };
    const std::int64_t began = now_ns();
    while (left() > ring_bytes / 2 && now_ns() - began < 5'000'000'000) pause_for(50'000'000);
    if (left() > ring_bytes / 2 && attempt < kAttempts) continue;
    require(left() <= ring_bytes / 2, [&] { return std::to_string(left()) + " bytes of shared memory were left"; });
    std::printf("%lld bytes left after %llu lifecycles of %lld bytes, %llu of them ended by kill -9 of every process\n",
                static_cast<long long>(std::max<std::int64_t>(left(), 0)), static_cast<unsigned long long>(count),
                static_cast<long long>(ring_bytes), static_cast<unsigned long long>(killed));
    return;
  }
}

// ---- exact

// Which leaf each number below the sum finds: each leaf as often as its weight says, in order.
void enumerate_small_trees(Random& random, std::uint64_t rounds) {
  for (std::uint64_t round = 0; round < rounds; ++round) {
    const std::uint64_t leaves = 1 + round % 40;
    SumTree tree(leaves);
    for (std::uint64_t i = 0; i < 3 * leaves; ++i) {
      const std::uint64_t leaf = below(random, leaves);
      tree.set(leaf, below(random, 6));
    }
    std::uint64_t at = 0;
    for (std::uint64_t leaf = 0; leaf < leaves; ++leaf) {
      for (std::uint64_t i = 0; i < tree.weight(leaf); ++i, ++at) {
        require(tree.find(at) == leaf, [&] { return "number " + std::to_string(at) + " finds another leaf"; });
      }
    }
    require(tree.total() == at, "the root is not the sum of the leaves");
  }
}

void require_no_drift(Random& random, std::uint64_t updates) {
  constexpr std::uint64_t kLeaves = 100'000;
  SumTree tree(kLeaves);
  std::vector<std::uint64_t> weights(kLeaves);
  std::uint64_t look = 1;
  for (std::uint64_t i = 1; i <= updates; ++i) {
    const std::uint64_t leaf = below(random, kLeaves);
    // Some leave; of the others no two sizes are alike, as a sum of floats would like them least.
    weights[leaf] = one_in(random, 8) ? 0 : 1 + (random() >> (21 + below(random, 43)));
    tree.set(leaf, weights[leaf]);
    if (i != look && i != updates) continue;
    look += 1 + updates / 64;
    std::uint64_t sum = 0;
    for (const std::uint64_t weight : weights) sum += weight;
    require(tree.total() == sum, [&] { return "root error after " + std::to_string(i) + " updates"; });
  }
}

// Priorities of a ring that is written on: who may be drawn, the sum, and who is found where.
struct Followed {
  std::uint64_t rings = 0;
  std::uint64_t updates = 0;
  std::uint64_t stale = 0;
};

void follow_ring(Random random, Followed& followed) {
  const RingShape shape{2, 24 + below(random, 17), kStack, 16, 1};
  const std::shared_ptr<const Ring> ring = Ring::create(shape);
  const Script script(random());
  std::array<ScriptedWriter, 2> writers{ScriptedWriter(ring, 0, script), ScriptedWriter(ring, 1, script)};
  const TransitionRules& rules = kRules[below(random, kRules.size())];
  const TransitionReader reader(*ring, rules);
  Priorities priorities(*ring, rules, 1);
  std::vector<std::uint64_t> ends(shape.lanes);
  const auto can_be_drawn = [&](std::uint64_t lane, std::uint64_t step) {
    const Window window = window_until(ends[lane], shape.slots);
    return step >= window.first && step < window.end && reader.judge(lane, step, window) == Verdict::kTaken;
  };
  for (int round = 0; round < 200; ++round) {
    for (std::uint64_t left = below(random, 20); left > 0; --left) writers[below(random, 2)].write();
    for (std::uint64_t lane = 0; lane < shape.lanes; ++lane) ends[lane] = ring->published(lane);
    priorities.follow(ends);
    std::vector<std::uint64_t> weights(shape.lanes * shape.slots);
    std::uint64_t count = 0;
    for (std::uint64_t lane = 0; lane < shape.lanes; ++lane) {
      const Window kept = whole_ring(ends[lane], shape.slots);
      for (std::uint64_t step = kept.first; step < kept.end; ++step) {
        const std::uint64_t weight = priorities.weight({lane, step});
        require((weight > 0) == can_be_drawn(lane, step),
                [&] { return "only what is eligible has a weight, but: " + place_of(lane, step); });
        weights[lane * shape.slots + step % shape.slots] = weight;
        count += weight > 0 ? 1 : 0;
      }
    }
    std::uint64_t before = 0;
    for (std::uint64_t place = 0; place < weights.size(); ++place) {
      if (weights[place] == 0) continue;
      for (const std::uint64_t at : {before, before + weights[place] - 1}) {  // what lies between finds the same
        const Drawn found = priorities.find(at);
        require(found.lane * shape.slots + found.step % shape.slots == place && can_be_drawn(found.lane, found.step),
                [&] { return "number " + std::to_string(at) + " finds " + place_of(found.lane, found.step); });
      }
      before += weights[place];
    }
    require(priorities.total() == before && priorities.count() == count, "the root is not the sum of the leaves");
    for (std::uint64_t left = below(random, 30); left > 0; --left) {
      const std::uint64_t lane = below(random, shape.lanes);
      // Also of a step that is not there yet, and of one whose slot has become another's.
      const std::uint64_t step = whole_ring(ends[lane], 2 * shape.slots).first + below(random, 2 * shape.slots + 8);
      const bool known = priorities.update({lane, step}, static_cast<double>(below(random, 1000)) / 100);
      require(known == can_be_drawn(lane, step),
              [&] { return "an update of " + place_of(lane, step) + " was judged wrongly"; });
      ++followed.updates;
      followed.stale += known ? 0 : 1;
    }
  }
  ++followed.rings;
}

void exact(std::uint64_t updates, std::uint64_t seed) {
  constexpr std::uint64_t kTrees = 4000;
  Random random(mixed(seed));
  enumerate_small_trees(random, kTrees);
  require_no_drift(random, updates);
  Followed followed;
  for (int ring = 0; ring < 20; ++ring) follow_ring(Random(random()), followed);
  require(followed.stale > 0 && followed.stale < followed.updates, "nothing was stale, or everything");
  std::printf(
      "root error 0 after %llu updates; every number below the sums of %llu trees finds its leaf; in %llu rings 0 "
      "zero-weight draws, %llu stale updates dropped of %llu\n",
      static_cast<unsigned long long>(updates), static_cast<unsigned long long>(kTrees),
      static_cast<unsigned long long>(followed.rings), static_cast<unsigned long long>(followed.stale),
      static_cast<unsigned long long>(followed.updates));
}

void run(const std::vector<std::string>& arguments) {
  const char* const usage =
      "usage: ring_stress torture SECONDS [SEED] | crashpoints | kills COUNT [SEED] | lane_races COUNT [RACERS] | "
      "no_leak COUNT | exact UPDATES [SEED]";
  require(!arguments.empty(), usage);
  const std::string& what = arguments[0];
  if (what == "crashpoints") return crashpoints();
  require(arguments.size() > 1, usage);
  const std::uint64_t seed = arguments.size() > 2 ? std::stoull(arguments[2]) : 1;
  if (what == "torture") return torture(std::stod(arguments[1]), seed);
  const std::uint64_t count = std::stoull(arguments[1]);
  if (what == "kills") return kills(count, seed);
  if (what == "lane_races") return lane_races(count, arguments.size() > 2 ? std::stoull(arguments[2]) : 4);
  if (what == "no_leak") return no_leak(count);
  if (what == "exact") return exact(count, seed);
  throw Failed(usage);
}

}  // namespace
}  // namespace fastrl

#ifdef FASTRL_CRASHPOINTS
void fastrl_crashpoint(int place) noexcept {
  if (place != fastrl::armed_place) return;
  fastrl::death_time->store(fastrl::now_ns());
  kill(getpid(), SIGKILL);
}
#endif

int main(int argc, char** argv) {
  try {
    fastrl::run({argv + 1, argv + argc});
  } catch (const std::exception& error) {
    std::printf("FAILED: %s\n", error.what());
    return 1;
  }
  return 0;
}
