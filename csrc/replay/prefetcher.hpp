// prefetcher.hpp: a thread that draws the next batches while the learner does something else.
//
// It does what it is asked for, one thing after the other: draw this batch up to these ends, give these priorities. So
// what is drawn does not depend on timing: a batch knows the priorities that were given before it was asked for, and no
// later ones. Whoever uses the sampler beside it drains it first, and then is in the same order. Whoever waits for what
// the thread has not begun, because no core was free for it, does it himself, in the same order.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <thread>
#include <variant>
#include <vector>

#include "replay/sampler.hpp"

namespace fastrl {

struct PrefetcherClosed : std::logic_error {
  using std::logic_error::logic_error;
};

class Prefetcher {
 public:
  using OnWait = std::function<void()>;  // called about every 50 ms of a wait; may throw to give it up

  explicit Prefetcher(std::shared_ptr<Sampler> sampler);
  Prefetcher(const Prefetcher&) = delete;  // owns a thread that knows its address
  Prefetcher& operator=(const Prefetcher&) = delete;
  ~Prefetcher() { close(); }

  struct Draw {
    TransitionRules rules;
    Ends ends;
    double beta;
    std::shared_ptr<BatchMemory> memory;
  };
  struct Update {
    std::vector<std::int64_t> indices;
    std::vector<double> priorities;
  };
  // Both return at once.
  void ask(Draw draw);
  void ask(Update update);

  // The oldest batch that was asked for and not taken yet; null if it is not there after `most`. Throws what its
  // drawing threw, or what an update before it threw; then it counts as taken.
  std::shared_ptr<BatchMemory> take(std::chrono::nanoseconds most, const OnWait& on_wait);
  std::size_t asked_and_not_taken() const;

  // Waits until everything that was asked for is done. False if it is not after `most`.
  bool drain(std::chrono::nanoseconds most, const OnWait& on_wait);

  // Ends the thread, also in the middle of a batch. Priorities that were given are not lost, batches are. Waiting calls
  // throw PrefetcherClosed, and all later ones.
  void close() noexcept;

 private:
  struct Done {
    std::shared_ptr<BatchMemory> memory;
    std::exception_ptr problem;
  };
  using Task = std::variant<Draw, Update>;
  void work() noexcept;
  // Does the oldest task, unlocked meanwhile. False if it was given up; then it is the oldest one still.
  bool do_next(std::unique_lock<std::mutex>& lock, const std::function<bool()>& given_up) noexcept;
  std::exception_ptr apply(const Update& update) noexcept;
  void require_open(const char* operation) const;
  bool wait(std::unique_lock<std::mutex>& lock, std::chrono::nanoseconds most, const OnWait& on_wait,
            const char* operation, const std::function<bool()>& ready);

  const std::shared_ptr<Sampler> sampler_;
  mutable std::mutex mutex_;
  std::condition_variable work_there_;
  std::condition_variable done_there_;  // or was given up
  std::deque<Task> asked_;
  std::deque<Done> drawn_;             // oldest first
  std::exception_ptr update_problem_;  // of an update, for the next batch
  std::size_t not_taken_ = 0;
  bool busy_ = false;
  std::atomic<bool> stop_ = false;
  std::mutex join_mutex_;
  std::thread thread_;
};

}  // namespace fastrl
