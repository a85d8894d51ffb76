#include "replay/prefetcher.hpp"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <string>
#include <utility>

namespace fastrl {

namespace {

constexpr std::chrono::nanoseconds kWaitSlice = std::chrono::milliseconds(50);  // how long Ctrl-C may go unnoticed

}  // namespace

Prefetcher::Prefetcher(std::shared_ptr<Sampler> sampler) : sampler_(std::move(sampler)), thread_([this] { work(); }) {
  pthread_setname_np(thread_.native_handle(), "fastrl-prefetch");
}

void Prefetcher::close() noexcept {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  work_there_.notify_all();
  done_there_.notify_all();
  const std::lock_guard closing(join_mutex_);  // a second closer waits for the first
  if (thread_.joinable()) thread_.join();
  std::unique_lock lock(mutex_);
  done_there_.wait(lock, [this] { return !busy_; });  // somebody who helps gives up now
  const std::deque<Task> left = std::exchange(asked_, {});
  lock.unlock();  // to free pinned memory takes the interpreter's lock; never both at once
  for (const Task& task : left) {
    if (const Update* const update = std::get_if<Update>(&task)) apply(*update);
  }
}

std::exception_ptr Prefetcher::apply(const Update& update) noexcept {
  try {
    sampler_->update(update.indices.data(), update.priorities.data(), update.priorities.size());
  } catch (...) {
    return std::current_exception();
  }
  return nullptr;
}

void Prefetcher::require_open(const char* operation) const {
  if (stop_) throw PrefetcherClosed(std::string(operation) + ": the prefetcher is closed; make another one");
}

void Prefetcher::ask(Draw draw) {
  {
    const std::lock_guard lock(mutex_);
    require_open("request");
    asked_.emplace_back(std::move(draw));
    ++not_taken_;
  }
  work_there_.notify_one();
}

void Prefetcher::ask(Update update) {
  {
    const std::lock_guard lock(mutex_);
    require_open("update_priorities");
    asked_.emplace_back(std::move(update));
  }
  work_there_.notify_one();
}

std::size_t Prefetcher::asked_and_not_taken() const {
  const std::lock_guard lock(mutex_);
  return not_taken_;
}

void Prefetcher::work() noexcept {
  // Where no core is free, waking it must not take the asker's: that is who wants to go on.
  const sched_param no_priority{};
  static_cast<void>(pthread_setschedparam(pthread_self(), SCHED_BATCH, &no_priority));
  std::unique_lock lock(mutex_);
  while (true) {
    work_there_.wait(lock, [this] { return stop_ || (!asked_.empty() && !busy_); });
    if (stop_) return;
    do_next(lock, [this] { return stop_.load(); });
  }
}

bool Prefetcher::do_next(std::unique_lock<std::mutex>& lock, const std::function<bool()>& given_up) noexcept {
  Task task = std::move(asked_.front());
  asked_.pop_front();
  busy_ = true;
  lock.unlock();
  bool finished = true;
  std::exception_ptr problem;
  try {
    if (const Draw* const draw = std::get_if<Draw>(&task)) {
      sampler_->sample(draw->rules, draw->ends, draw->beta, draw->memory->out(), given_up);
    } else {
      const Update& update = std::get<Update>(task);
      sampler_->update(update.indices.data(), update.priorities.data(), update.priorities.size(), given_up);
    }
  } catch (const Cancelled&) {
    finished = false;
  } catch (...) {
    problem = std::current_exception();
  }
  lock.lock();
  busy_ = false;
  if (!finished) {
    asked_.push_front(std::move(task));
  } else if (Draw* const draw = std::get_if<Draw>(&task)) {
    // The memory stays with it, also where nothing was drawn: this may be the thread, which must not be the one that
    // frees it, since pinned memory is freed by Python.
    drawn_.push_back({std::move(draw->memory), std::exchange(update_problem_, nullptr)});
    if (problem) drawn_.back().problem = problem;
  } else if (problem) {
    update_problem_ = problem;
  }
  done_there_.notify_all();
  if (!asked_.empty()) work_there_.notify_one();
  return finished;
}

bool Prefetcher::wait(std::unique_lock<std::mutex>& lock, std::chrono::nanoseconds most, const OnWait& on_wait,
                      const char* operation, const std::function<bool()>& ready) {
  using Clock = std::chrono::steady_clock;
  const auto began = Clock::now();
  bool helps = true;
  while (true) {
    require_open(operation);
    if (ready()) return true;
    const auto left = std::min<std::chrono::nanoseconds>(most - (Clock::now() - began), kWaitSlice);
    if (left <= left.zero()) return false;
    if (helps && !busy_ && !asked_.empty()) {
      // What takes longer than a slice is left to the thread: signals must be looked at, which the sampler cannot.
      helps = do_next(lock, [this, until = Clock::now() + left] { return stop_ || Clock::now() >= until; });
      continue;
    }
    done_there_.wait_for(lock, left);
    if (ready() || stop_) continue;
    lock.unlock();  // on_wait takes the interpreter's lock; never both at once
    on_wait();
    lock.lock();
  }
}

std::shared_ptr<BatchMemory> Prefetcher::take(std::chrono::nanoseconds most, const OnWait& on_wait) {
  Done done;
  {
    std::unique_lock lock(mutex_);
    require_open("take");
    if (not_taken_ == 0) throw std::logic_error("take: no batch was asked for; call request() first");
    if (!wait(lock, most, on_wait, "take", [this] { return !drawn_.empty(); })) return nullptr;
    done = std::move(drawn_.front());
    drawn_.pop_front();
    --not_taken_;
  }
  if (done.problem) std::rethrow_exception(done.problem);
  return std::move(done.memory);
}

bool Prefetcher::drain(std::chrono::nanoseconds most, const OnWait& on_wait) {
  std::unique_lock lock(mutex_);
  return wait(lock, most, on_wait, "drain", [this] { return asked_.empty() && !busy_; });
}

}  // namespace fastrl
