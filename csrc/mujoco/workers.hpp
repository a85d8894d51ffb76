// workers.hpp: threads that share the items of one job, with the caller among them.
//
// A step of an env takes 10 to 200 us and every batch waits for all of them, so all there is to share out is a counter.
// Whoever has nothing to do takes a part of what is left, several neighbours at first and single ones at the end:
// neighbours' results lie in the same cache lines. Guarantees: run() returns when every item is done, by whom does not
// matter; close() ends every thread, and a run() under way is then finished by its caller alone.
// run is for one thread at a time; close may come from another.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace fastrl::mujoco {

class Workers {
 public:
  // `job` is called with every number in [0, items), must not throw, and runs on `threads` threads, the caller of
  // run() being one. `spin`: how long who waits watches before it sleeps.
  Workers(int threads, int items, std::function<void(int)> job, std::chrono::microseconds spin);
  Workers(const Workers&) = delete;  // its threads know its address
  Workers& operator=(const Workers&) = delete;
  ~Workers();

  void run();
  void close() noexcept;

 private:
  void work();
  void take_items();
  template <typename Ready>
  bool watch(Ready ready) const;

  const int items_;
  const int shares_;  // into how many what is left is divided
  const std::function<void(int)> job_;
  const std::chrono::microseconds spin_;

  // Each on a cache line of its own, where its writers disturb nobody else.
  alignas(64) std::atomic<int> next_;      // the item that nobody has taken yet
  alignas(64) std::atomic<int> done_ = 0;  // items of this run
  alignas(64) std::atomic<unsigned> round_ = 0;
  std::atomic<int> sleepers_ = 0;
  std::atomic<bool> caller_sleeps_ = false;
  std::atomic<bool> stop_ = false;

  std::mutex mutex_;  // of those who sleep
  std::condition_variable work_there_;
  std::condition_variable all_done_;
  std::mutex join_mutex_;
  std::vector<std::thread> threads_;
};

}  // namespace fastrl::mujoco
