#include "mujoco/workers.hpp"

#include <pthread.h>

#include <algorithm>
#include <string>

namespace fastrl::mujoco {

namespace {

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#else
  asm volatile("yield");
#endif
}

}  // namespace

Workers::Workers(int threads, int items, std::function<void(int)> job, std::chrono::microseconds spin)
    : items_(items), shares_(2 * threads), job_(std::move(job)), spin_(spin), next_(items) {
  try {
    for (int i = 1; i < threads; ++i) {
      threads_.emplace_back([this] { work(); });
      const std::string name = "fastrl-mj-" + std::to_string(i);
      pthread_setname_np(threads_.back().native_handle(), name.substr(0, 15).c_str());
    }
  } catch (...) {
    close();
    throw;
  }
}

Workers::~Workers() { close(); }

void Workers::close() noexcept {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
    ++round_;
  }
  work_there_.notify_all();
  const std::lock_guard lock(join_mutex_);  // a second closer waits for the first
  for (std::thread& thread : threads_) {
    if (thread.joinable()) thread.join();
  }
}

// Whether `ready` came true while it was watched.
template <typename Ready>
bool Workers::watch(Ready ready) const {
  if (ready()) return true;
  const auto began = std::chrono::steady_clock::now();
  while (!ready()) {
    for (int i = 0; i < 32; ++i) pause();
    if (std::chrono::steady_clock::now() - began > spin_) return ready();
  }
  return true;
}

void Workers::run() {
  // In this order: a worker that is still looking for items of the last run may take the first of this one.
  done_ = 0;
  next_ = 0;
  if (!threads_.empty()) {
    ++round_;
    // Whoever is about to sleep counts itself first and looks at the round then, so one of the two is seen.
    if (sleepers_ > 0) {
      {
        const std::lock_guard lock(mutex_);
      }
      work_there_.notify_all();
    }
  }
  take_items();
  if (watch([this] { return done_ == items_; })) return;
  std::unique_lock lock(mutex_);
  caller_sleeps_ = true;
  all_done_.wait(lock, [this] { return done_ == items_; });
  caller_sleeps_ = false;
}

void Workers::take_items() {
  for (int first = next_; first < items_;) {
    const int end = first + std::max(1, (items_ - first) / shares_);
    if (!next_.compare_exchange_weak(first, end)) continue;
    for (int item = first; item < end; ++item) job_(item);
    if ((done_ += end - first) == items_ && caller_sleeps_) {
      {
        const std::lock_guard lock(mutex_);
      }
      all_done_.notify_one();
    }
    first = next_;
  }
}

void Workers::work() {
  unsigned seen = 0;
  while (!stop_) {
    if (!watch([&] { return round_ != seen; })) {
      std::unique_lock lock(mutex_);
      ++sleepers_;
      work_there_.wait(lock, [&] { return round_ != seen; });
      --sleepers_;
    }
    seen = round_;
    take_items();
  }
}

}  // namespace fastrl::mujoco
