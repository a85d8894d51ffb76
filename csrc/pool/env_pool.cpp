#include "pool/env_pool.hpp"

#include <pthread.h>

#include <algorithm>
#include <chrono>

namespace fastrl {

namespace {

constexpr auto kWaitSlice = std::chrono::milliseconds(50);  // how long Ctrl-C may go unnoticed
constexpr std::size_t kSpareBatches = 4;

// Looks at `hint` for a while; whether it came true.
bool watch(const std::atomic<bool>& hint, std::chrono::microseconds limit) {
  const auto began = std::chrono::steady_clock::now();
  while (!hint) {
    for (int i = 0; i < 64; ++i) {
#if defined(__x86_64__)
      __builtin_ia32_pause();
#else
      asm volatile("yield");
#endif
    }
    if (std::chrono::steady_clock::now() - began > limit) return false;
  }
  return true;
}

std::string list_of(std::span<const int> values) {
  std::string text;
  for (const int value : values) text += (text.empty() ? "" : ", ") + std::to_string(value);
  return text;
}

}  // namespace

Batch::Batch(int size, std::size_t stack_bytes, bool with_final)
    : obs(nullptr),
      own_obs(static_cast<std::size_t>(size) * stack_bytes),
      final_obs(with_final ? static_cast<std::size_t>(size) * stack_bytes : 0),
      has_final(static_cast<std::size_t>(size)),
      env(static_cast<std::size_t>(size)),
      report(static_cast<std::size_t>(size)),
      final_report(static_cast<std::size_t>(with_final ? size : 0)) {}

// A batch goes back here when the last array that shows it is gone, so a loop that drops its observations allocates
// nothing after the first steps.
struct EnvPool::BatchBank : std::enable_shared_from_this<EnvPool::BatchBank> {
  std::mutex mutex;
  std::vector<std::unique_ptr<Batch>> spare;

  std::shared_ptr<Batch> lend(int size, std::size_t stack_bytes, bool with_final) {
    std::unique_ptr<Batch> batch;
    {
      const std::lock_guard lock(mutex);
      if (!spare.empty()) {
        batch = std::move(spare.back());
        spare.pop_back();
      }
    }
    if (!batch) batch = std::make_unique<Batch>(size, stack_bytes, with_final);
    batch->claimed = 0;
    batch->written = 0;
    std::fill(batch->has_final.begin(), batch->has_final.end(), std::uint8_t{0});
    return {batch.release(), [bank = shared_from_this()](Batch* returned) { bank->take_back(returned); }};
  }

  void take_back(Batch* returned) {
    std::unique_ptr<Batch> batch(returned);
    // Only if free: in a forked child the lock may be held for ever by a thread that is not there.
    const std::unique_lock lock(mutex, std::try_to_lock);
    if (lock && spare.size() < kSpareBatches) spare.push_back(std::move(batch));
  }
};

EnvPool::EnvPool(std::shared_ptr<const Engine> engine, const AtariRules& rules, const PoolOptions& options,
                 std::shared_ptr<FrameSink> sink)
    : rules_(rules),
      options_(options),
      sink_(std::move(sink), options.num_envs, {rules.stack, rules.pad_with_first_frame}),
      bank_(std::make_shared<BatchBank>()) {
  slots_.resize(static_cast<std::size_t>(options_.num_envs));
  ready_.reserve(slots_.size());
  for (Slot& slot : slots_) slot.env = std::make_unique<AtariEnv>(engine, rules_);
  try {
    for (int i = 0; i < options_.threads; ++i) {
      threads_.emplace_back([this] { work(); });
      pthread_setname_np(threads_.back().native_handle(), ("fastrl-pool-" + std::to_string(i)).substr(0, 15).c_str());
    }
  } catch (...) {
    close();
    throw;
  }
}

EnvPool::~EnvPool() { close(); }

void EnvPool::close() noexcept {
  {
    const std::lock_guard lock(mutex_);
    closed_ = true;
    stop_ = true;
  }
  work_there_.notify_all();
  result_there_.notify_all();
  const std::lock_guard lock(join_mutex_);  // a second closer waits for the first
  for (std::thread& thread : threads_) {
    if (thread.joinable()) thread.join();
  }
  {
    std::unique_lock state(mutex_);  // a caller on another thread may be in the middle of an env's step
    result_there_.wait(state, [this] { return !caller_plays_; });
  }
  sink_.release();
}

int EnvPool::in_flight() const {
  const std::lock_guard lock(mutex_);
  return in_flight_;
}

std::vector<int> EnvPool::never_reset() const {
  const std::lock_guard lock(mutex_);
  std::vector<int> envs;
  for (int env = 0; env < options_.num_envs; ++env) {
    const Slot& slot = slots_[static_cast<std::size_t>(env)];
    if (slot.phase == Phase::kIdle && !slot.env->was_reset()) envs.push_back(env);
  }
  return envs;
}

void EnvPool::require_alive(const char* operation) const {
  const std::lock_guard lock(mutex_);
  require_open(operation);
}

// ---- Sending. Everything is checked before anything is queued.

void EnvPool::require_open(const char* operation) const {
  if (!failure_.empty()) {
    throw PoolClosed(std::string(operation) + ": the pool closed when an env failed (" + failure_ +
                     "); make a new one");
  }
  if (closed_) throw PoolClosed(std::string(operation) + ": the pool is closed; make a new one");
}

void EnvPool::require_idle(std::span<const int> envs, const char* operation) const {
  std::vector<bool> seen(slots_.size(), false);
  for (const int env : envs) {
    if (env < 0 || env >= options_.num_envs) {
      throw std::out_of_range(std::string(operation) + ": env id " + std::to_string(env) + " is outside [0, " +
                              std::to_string(options_.num_envs) + ")");
    }
    const auto place = static_cast<std::size_t>(env);
    if (seen[place]) {
      throw std::invalid_argument(std::string(operation) + ": env id " + std::to_string(env) + " is given twice in [" +
                                  list_of(envs) + "]; each env can be sent once");
    }
    seen[place] = true;
    if (slots_[place].phase != Phase::kIdle) {
      throw std::logic_error(std::string(operation) + ": env " + std::to_string(env) + " (" + rules_.game +
                             ") was sent before and its result has not been received; call recv() first");
    }
  }
}

void EnvPool::send_resets(std::vector<Reset> resets, std::uint8_t* out, Players players) {
  std::vector<int> envs;
  for (const Reset& reset : resets) envs.push_back(reset.env);
  {
    const std::lock_guard lock(mutex_);
    require_open("reset");
    require_idle(envs, "reset");
    for (Reset& reset : resets) {
      Slot& slot = slots_[static_cast<std::size_t>(reset.env)];
      slot.is_reset = true;
      slot.asked = true;
      slot.reset = std::move(reset);
    }
    start(envs, out, players);
  }
}

void EnvPool::send_actions(std::span<const int> envs, std::span<const std::int64_t> actions, std::uint8_t* out,
                           const char* operation, Players players) {
  {
    const std::lock_guard lock(mutex_);
    require_open(operation);
    require_idle(envs, operation);
    const auto count = static_cast<std::int64_t>(rules_.actions.size());
    for (std::size_t i = 0; i < envs.size(); ++i) {
      const Slot& slot = slots_[static_cast<std::size_t>(envs[i])];
      if (actions[i] < 0 || actions[i] >= count) {
        throw std::invalid_argument(std::string(operation) + ": action " + std::to_string(actions[i]) + " for env " +
                                    std::to_string(envs[i]) + " (" + rules_.game + ") is outside [0, " +
                                    std::to_string(count) + ")");
      }
      if (!slot.env->was_reset()) {
        throw std::logic_error(std::string(operation) + ": env " + std::to_string(envs[i]) + " (" + rules_.game +
                               ") has not been reset; call reset() first");
      }
      if (slot.env->episode_is_over() && options_.autoreset == Autoreset::kDisabled) {
        throw std::logic_error(std::string(operation) + ": the episode of env " + std::to_string(envs[i]) + " (" +
                               rules_.game +
                               ") is over and autoreset is disabled; call reset(options={\"reset_mask\": ...}) first");
      }
    }
    for (std::size_t i = 0; i < envs.size(); ++i) {
      Slot& slot = slots_[static_cast<std::size_t>(envs[i])];
      slot.is_reset = slot.env->episode_is_over();
      slot.asked = false;
      slot.action = static_cast<int>(actions[i]);
      slot.reset = Reset{envs[i], std::nullopt, std::nullopt};
    }
    start(envs, out, players);
  }
}

// With the lock held and everything checked.
void EnvPool::start(std::span<const int> envs, std::uint8_t* out, Players players) {
  if (out != nullptr && !whole_batches()) {
    throw std::invalid_argument("out: a buffer can be given only where batch_size equals num_envs");
  }
  if (out != nullptr && filling_) {
    throw std::invalid_argument("out: part of this batch was sent before, without this buffer; call recv() first");
  }
  if (!filling_) filling_ = fresh_batch();
  if (out != nullptr) filling_->obs = out;
  for (const int env : envs) {
    Slot& slot = slots_[static_cast<std::size_t>(env)];
    slot.phase = Phase::kSent;
    // Resets are the long jobs: begun first, they do not keep a batch waiting at its end.
    if (slot.is_reset) {
      queue_.push_front(env);
    } else {
      queue_.push_back(env);
    }
  }
  in_flight_ += static_cast<int>(envs.size());
  unfinished_ += static_cast<int>(envs.size());
  kept_for_caller_ = players == Players::kCallerToo ? 1 : 0;
  const int wanted = std::min(options_.threads - playing_, static_cast<int>(queue_.size())) - kept_for_caller_;
  work_seen_ = true;
  for (int i = 0; i < wanted; ++i) work_there_.notify_one();
}

std::shared_ptr<Batch> EnvPool::fresh_batch() {
  const std::size_t bytes = options_.write_stacks ? stack_bytes() : 0;
  auto batch = bank_->lend(options_.batch_size, bytes, options_.autoreset == Autoreset::kSameStep);
  batch->obs = batch->own_obs.data();
  return batch;
}

// ---- Working

void EnvPool::work() {
  std::unique_lock lock(mutex_);
  const auto there = [this] { return stop_ || (!queue_.empty() && playing_ + kept_for_caller_ < options_.threads); };
  while (true) {
    if (!there() && options_.spin_us > 0) {
      work_seen_ = false;
      lock.unlock();
      watch(work_seen_, std::chrono::microseconds(options_.spin_us));
      lock.lock();
    }
    work_there_.wait(lock, there);
    if (stop_) return;
    ++playing_;
    play_next(lock);
    --playing_;
  }
}

// The oldest job of the queue, on this thread. The lock is held at the beginning and at the end.
void EnvPool::play_next(std::unique_lock<std::mutex>& lock) {
  const int env = queue_.front();
  queue_.pop_front();
  Slot& slot = slots_[static_cast<std::size_t>(env)];
  std::shared_ptr<Batch> batch = filling_;
  int place = env;  // in whole batches; else whoever finishes takes the next place
  try {
    lock.unlock();
    play(env, slot);
    if (!whole_batches()) {
      lock.lock();
      batch = filling_;
      place = batch->claimed++;
      if (batch->claimed == options_.batch_size) filling_ = fresh_batch();
      lock.unlock();
    }
    write_result(env, slot, *batch, place);
    lock.lock();
  } catch (const std::exception& error) {
    if (!lock.owns_lock()) lock.lock();
    fail(env, slot, error.what());
    return;
  } catch (...) {
    if (!lock.owns_lock()) lock.lock();
    fail(env, slot, "an exception of unknown type");
    return;
  }
  slot.phase = Phase::kDone;
  --unfinished_;
  if (++batch->written == options_.batch_size) {
    if (filling_ == batch) filling_.reset();
    ready_.push_back(std::move(batch));
    result_seen_ = true;
    result_there_.notify_all();
  } else if (unfinished_ == 0) {
    result_seen_ = true;
    result_there_.notify_all();  // for discard_in_flight
  }
}

// The caller plays too, where a place among the players was kept for it.
void EnvPool::help(const std::function<void()>& on_wait, std::unique_lock<std::mutex>& lock) {
  if (kept_for_caller_ == 0) return;
  auto asked = std::chrono::steady_clock::now();
  try {
    while (!queue_.empty() && !stop_) {
      caller_plays_ = true;
      play_next(lock);
      caller_plays_ = false;
      if (closed_) result_there_.notify_all();  // close() waits for this
      const auto now = std::chrono::steady_clock::now();
      if (now - asked < kWaitSlice) continue;
      asked = now;
      lock.unlock();
      on_wait();
      lock.lock();
    }
  } catch (...) {  // what is left is for the workers
    if (!lock.owns_lock()) lock.lock();
    kept_for_caller_ = 0;
    work_there_.notify_all();
    throw;
  }
  kept_for_caller_ = 0;
  // Its core is free, so it may as well watch for the last of the others. (A caller that does not play may be on a core
  // that a worker needs.)
  if (unfinished_ > 0 && options_.spin_us > 0) {
    result_seen_ = false;
    lock.unlock();
    watch(result_seen_, std::chrono::microseconds(options_.spin_us));
    lock.lock();
  }
}

void EnvPool::play(int env, Slot& slot) {
  AtariEnv& played = *slot.env;
  if (env == options_.fail_env && played.steps_taken() == options_.fail_step) {
    throw std::runtime_error("a failure that a test asked for");
  }
  if (slot.is_reset) {
    if (slot.reset.noops) played.schedule_noops(*slot.reset.noops);
    played.reset(slot.reset.seed);
    to_sink(env, played, true, 0);
    return;
  }
  played.step(slot.action);
  to_sink(env, played, false, slot.action);
}

void EnvPool::write_result(int env, Slot& slot, Batch& batch, int place) {
  const auto at = static_cast<std::size_t>(place);
  AtariEnv& played = *slot.env;
  const EnvReport ended = played.report();
  if (played.episode_is_over() && !slot.is_reset && options_.autoreset == Autoreset::kSameStep) {
    if (options_.write_stacks) played.write_stack(batch.final_obs.data() + at * stack_bytes());
    batch.has_final[at] = 1;
    batch.final_report[at] = ended;
    played.reset(std::nullopt);
    to_sink(env, played, true, 0);
    batch.report[at] = played.report();
    // The step's own reward and flags go with the observation that the reset produced.
    batch.report[at].reward = ended.reward;
    batch.report[at].terminated = ended.terminated;
    batch.report[at].truncated = ended.truncated;
  } else {
    batch.report[at] = ended;
  }
  batch.env[at] = env;
  if (options_.write_stacks) played.write_stack(batch.obs + at * stack_bytes());
}

void EnvPool::to_sink(int env, const AtariEnv& played, bool starts_episode, int action) {
  if (!sink_) return;
  sink_->begin(env);
  sink_->put(env, {played.frame(), static_cast<std::size_t>(kObsBytes)});
  const EnvReport& report = played.report();
  sink_->commit({env, starts_episode, action, report.reward, report.terminated, report.truncated});
}

// With the lock held. The pool stops: half of it alive would be harder to understand than none.
void EnvPool::fail(int env, const Slot& slot, const char* what) {
  const std::int64_t step = slot.env->steps_taken();
  if (failure_.empty()) {
    failure_ = "env " + std::to_string(env) + " (" + rules_.game + "), step " + std::to_string(step) +
               (slot.is_reset ? ", reset: " : ", action " + std::to_string(slot.action) + ": ") + what;
  }
  stop_ = true;
  work_there_.notify_all();
  result_there_.notify_all();
}

// ---- Receiving

void EnvPool::wait_until(const std::function<bool()>& ready, const char* operation, double timeout_s,
                         const std::function<void()>& on_wait, std::unique_lock<std::mutex>& lock) {
  const auto began = std::chrono::steady_clock::now();
  while (true) {
    std::chrono::duration<double> slice = kWaitSlice;
    if (timeout_s >= 0) {
      const std::chrono::duration<double> waited = std::chrono::steady_clock::now() - began;
      slice = std::clamp(std::chrono::duration<double>(timeout_s) - waited, std::chrono::duration<double>(0), slice);
    }
    const bool woken = result_there_.wait_for(lock, slice, [&] { return closed_ || !failure_.empty() || ready(); });
    if (!failure_.empty()) throw EnvFailure(std::string(operation) + ": " + failure_);
    if (closed_) throw PoolClosed(std::string(operation) + ": the pool was closed while this waited");
    if (woken) return;
    lock.unlock();  // on_wait takes the interpreter's lock; never both at once
    on_wait();
    lock.lock();
    const std::chrono::duration<double> waited = std::chrono::steady_clock::now() - began;
    if (timeout_s >= 0 && waited.count() >= timeout_s && !ready()) {
      throw WaitTimeout(std::string(operation) + ": no result within " + std::to_string(timeout_s) +
                        " s; what was sent is still under way, so recv() can be called again");
    }
  }
}

void EnvPool::wait_for_batch(double timeout_s, const std::function<void()>& on_wait, const char* operation) {
  std::unique_lock lock(mutex_);
  if (!failure_.empty() && !closed_) throw EnvFailure(std::string(operation) + ": " + failure_);
  require_open(operation);
  if (in_flight_ == 0)
    throw std::logic_error(std::string(operation) + ": nothing was sent; call send() or reset() first");
  if (in_flight_ < options_.batch_size) {
    throw std::logic_error(std::string(operation) + ": " + std::to_string(in_flight_) +
                           " envs were sent, but a batch needs " + std::to_string(options_.batch_size) + "; send more");
  }
  if (timeout_s < 0) {
    help(on_wait, lock);
  } else if (kept_for_caller_ > 0) {  // a step that was interrupted; who plays cannot watch the time
    kept_for_caller_ = 0;
    work_seen_ = true;
    work_there_.notify_all();
  }
  wait_until([this] { return !ready_.empty(); }, operation, timeout_s, on_wait, lock);
}

std::shared_ptr<Batch> EnvPool::recv(double timeout_s, const std::function<void()>& on_wait) {
  wait_for_batch(timeout_s, on_wait);
  on_wait();
  return take_batch();
}

std::shared_ptr<Batch> EnvPool::take_batch(const char* operation) {
  const std::lock_guard lock(mutex_);
  require_open(operation);  // it may have been closed since the wait
  if (ready_.empty()) throw std::logic_error(std::string(operation) + ": no batch is complete; wait for one first");
  std::shared_ptr<Batch> batch = std::move(ready_.front());
  ready_.erase(ready_.begin());
  in_flight_ -= options_.batch_size;
  for (const int env : batch->env) slots_[static_cast<std::size_t>(env)].phase = Phase::kIdle;
  return batch;
}

void EnvPool::discard_in_flight(const std::function<void()>& on_wait, bool resets_only) {
  std::unique_lock lock(mutex_);
  if (in_flight_ == 0) return;
  require_open("reset");
  for (std::size_t env = 0; resets_only && env < slots_.size(); ++env) {
    if (slots_[env].phase == Phase::kIdle || slots_[env].asked) continue;
    throw std::logic_error("reset: env " + std::to_string(env) + " (" + rules_.game +
                           ") was sent an action and its result has not been received; call recv() before a reset with "
                           "reset_mask");
  }
  help(on_wait, lock);
  wait_until([this] { return unfinished_ == 0; }, "reset", -1, on_wait, lock);
  ready_.clear();
  filling_.reset();
  in_flight_ = 0;
  for (Slot& slot : slots_) slot.phase = Phase::kIdle;
}

std::shared_ptr<Batch> EnvPool::gather(std::uint8_t* out, const char* operation) {
  const std::lock_guard lock(mutex_);
  require_open(operation);
  // Not from the bank: its batches have batch_size places.
  const auto batch = std::make_shared<Batch>(options_.num_envs, options_.write_stacks ? stack_bytes() : 0, false);
  batch->obs = out != nullptr ? out : batch->own_obs.data();
  for (int env = 0; env < options_.num_envs; ++env) {
    const auto at = static_cast<std::size_t>(env);
    batch->env[at] = env;
    batch->report[at] = slots_[at].env->report();
    if (options_.write_stacks) slots_[at].env->write_stack(batch->obs + at * stack_bytes());
  }
  return batch;
}

// ---- One env at rest

AtariEnv& EnvPool::idle_env(int env, const char* operation) {
  const std::lock_guard lock(mutex_);
  require_open(operation);
  require_idle(std::span(&env, 1), operation);
  return *slots_[static_cast<std::size_t>(env)].env;
}

std::string EnvPool::save_env(int env) { return idle_env(env, "save_state").save(); }

std::string EnvPool::identify_env(int env) { return idle_env(env, "state_digest").identity(); }

void EnvPool::load_env(int env, std::string_view bytes) {
  AtariEnv& loaded = idle_env(env, "load_state");
  if (sink_ && !sink_->continues(env)) {
    throw std::logic_error("load_state: the sink would take what env " + std::to_string(env) +
                           " does next for the episode that was written into it; load states into a pool without a "
                           "sink, or load the replay that was saved with them and give a new pool its "
                           "sink(continue_episodes=True)");
  }
  loaded.load(bytes);
}

}  // namespace fastrl
