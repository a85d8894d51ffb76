// env_pool.hpp: worker threads that step many envs, and batches in which their results come back.
//
// Guarantees
//   1. What an env does depends on its seed and its actions only: not on threads, timing or the order of sends.
//   2. A failure in a worker is a result: whoever waits is woken at once and gets EnvFailure with env, game and step.
//   3. close() ends every thread; it waits for at most the steps under way. So does the destructor.
//   4. Worker threads never touch Python.
//   5. The sink is this pool's alone until close(), and nobody calls it afterwards.
// Not guaranteed: with batch_size < num_envs, which envs a batch holds depends on who finished first.
// send, recv and the other calls are for one thread at a time (the binding sees to it); close may come from another.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "atari/atari_env.hpp"
#include "pool/frame_sink.hpp"

namespace fastrl {

struct EnvFailure : std::runtime_error {
  using std::runtime_error::runtime_error;
};
struct PoolClosed : std::logic_error {
  using std::logic_error::logic_error;
};
struct WaitTimeout : std::runtime_error {
  using std::runtime_error::runtime_error;
};

enum class Autoreset : int { kNextStep = 0, kSameStep = 1, kDisabled = 2 };

struct PoolOptions {
  int num_envs;
  int threads;
  int batch_size;  // how many results a recv returns
  Autoreset autoreset;
  bool write_stacks;  // false: frames go to the sink only
  int spin_us;        // how long a waiting thread watches before it sleeps: waking one up can take as long
  int fail_env;       // tests: this env throws ...
  int fail_step;      // ... at its step of this number; -1: never
};

// The results of batch_size envs. Arrays are indexed by place; with batch_size == num_envs the place is the env.
struct Batch {
  Batch(int size, std::size_t stack_bytes, bool with_final);

  std::uint8_t* obs;  // own_obs, or the caller's buffer
  std::vector<std::uint8_t> own_obs;
  std::vector<std::uint8_t> final_obs;  // SAME_STEP only: the stack that ended the episode
  std::vector<std::uint8_t> has_final;
  std::vector<int> env;
  std::vector<EnvReport> report;
  std::vector<EnvReport> final_report;
  int claimed = 0;  // places given to finished envs, where they are given so
  int written = 0;  // places that hold results
};

class EnvPool {
 public:
  EnvPool(std::shared_ptr<const Engine> engine, const AtariRules& rules, const PoolOptions& options,
          std::shared_ptr<FrameSink> sink);
  EnvPool(const EnvPool&) = delete;  // owns threads that know its address
  EnvPool& operator=(const EnvPool&) = delete;
  ~EnvPool();

  struct Reset {
    int env;
    std::optional<EnvSeed> seed;
    std::optional<std::vector<int>> noops;
  };
  // Who plays what was sent. kWorkers: the workers, while the caller does something else. kCallerToo: one worker fewer,
  // and the caller within its next recv: nobody has to be woken for the first job, nor the caller after the last.
  enum class Players { kWorkers, kCallerToo };
  // Both return at once. `out`, where given, receives the stacks of this batch; only with batch_size == num_envs. It
  // must live until the batch is received or the pool is closed, also if recv throws: workers go on writing to it.
  void send_resets(std::vector<Reset> resets, std::uint8_t* out, Players players = Players::kWorkers);
  // `operation` begins the message of a refusal.
  void send_actions(std::span<const int> envs, std::span<const std::int64_t> actions, std::uint8_t* out,
                    const char* operation = "step", Players players = Players::kWorkers);

  // Waits for batch_size results. `on_wait` is called about every 50 ms and may throw to give up: what was under way
  // stays under way. timeout_s < 0 waits for ever.
  void wait_for_batch(double timeout_s, const std::function<void()>& on_wait, const char* operation = "recv");
  // The oldest complete batch; wait_for_batch has returned. Until this is called it stays there to be received.
  std::shared_ptr<Batch> take_batch(const char* operation = "recv");
  // Both, with on_wait once more in between.
  std::shared_ptr<Batch> recv(double timeout_s, const std::function<void()>& on_wait);

  // Waits for what was sent and throws the results away, so that every env is idle. `resets_only`: refuses where the
  // results of actions would be lost.
  void discard_in_flight(const std::function<void()>& on_wait, bool resets_only = false);
  // A batch of every env's last results; all must be idle. For a reset of some envs.
  std::shared_ptr<Batch> gather(std::uint8_t* out, const char* operation = "reset");

  void close() noexcept;
  int in_flight() const;                            // sent and not yet received
  std::vector<int> never_reset() const;             // envs that have neither been reset nor been sent a reset
  void require_alive(const char* operation) const;  // throws PoolClosed after close() or a failure

  // These need every env idle (nothing in flight) and say so otherwise.
  std::string save_env(int env);
  std::string identify_env(int env);
  void load_env(int env, std::string_view bytes);  // also needs a sink that what follows can be written into
  AtariEnv& idle_env(int env, const char* operation);

  const PoolOptions& options() const { return options_; }
  const AtariRules& rules() const { return rules_; }
  std::size_t stack_bytes() const { return static_cast<std::size_t>(rules_.stack) * kObsBytes; }

 private:
  enum class Phase { kIdle, kSent, kDone };
  struct Slot {
    std::unique_ptr<AtariEnv> env;
    Phase phase = Phase::kIdle;
    bool is_reset = false;  // what was sent
    bool asked = false;     // by send_resets, not by the end of an episode
    int action = 0;
    Reset reset;
  };

  void require_open(const char* operation) const;
  void require_idle(std::span<const int> envs, const char* operation) const;
  void start(std::span<const int> envs, std::uint8_t* out, Players players);
  void work();
  void play_next(std::unique_lock<std::mutex>& lock);
  void help(const std::function<void()>& on_wait, std::unique_lock<std::mutex>& lock);
  void play(int env, Slot& slot);
  void write_result(int env, Slot& slot, Batch& batch, int place);
  void to_sink(int env, const AtariEnv& played, bool starts_episode, int action);
  void fail(int env, const Slot& slot, const char* what);
  std::shared_ptr<Batch> fresh_batch();
  void wait_until(const std::function<bool()>& ready, const char* operation, double timeout_s,
                  const std::function<void()>& on_wait, std::unique_lock<std::mutex>& lock);
  bool whole_batches() const { return options_.batch_size == options_.num_envs; }

  AtariRules rules_;
  PoolOptions options_;
  ClaimedSink sink_;

  mutable std::mutex mutex_;
  std::condition_variable work_there_;
  std::condition_variable result_there_;
  std::vector<Slot> slots_;
  std::deque<int> queue_;
  std::shared_ptr<Batch> filling_;
  std::vector<std::shared_ptr<Batch>> ready_;  // oldest first; room for all is reserved, so workers allocate nothing
  struct BatchBank;
  std::shared_ptr<BatchBank> bank_;      // batches that nobody holds any more; outlives the pool with the last array
  int in_flight_ = 0;                    // sent, not yet received
  int unfinished_ = 0;                   // sent, not yet done by a worker
  int playing_ = 0;                      // workers that are playing
  int kept_for_caller_ = 0;              // 1: the caller is, or will be, one of the players
  bool caller_plays_ = false;            // at this moment
  std::atomic<bool> work_seen_ = false;  // hints for who watches without the lock: worth to take it and look
  std::atomic<bool> result_seen_ = false;
  bool closed_ = false;
  bool stop_ = false;
  std::string failure_;  // of the first worker that failed
  std::mutex join_mutex_;
  std::vector<std::thread> threads_;
};

}  // namespace fastrl
