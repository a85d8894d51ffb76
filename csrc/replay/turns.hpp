// turns.hpp: a lock that is waited for with open ears.
//
// Who waits is asked now and then whether to give up, so that a timeout or Ctrl-C comes through however long the one
// inside takes. And it knows who is inside: a signal's handler runs in the very thread that it interrupted, which would
// wait for itself for ever.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>

namespace fastrl {

struct Cancelled : std::runtime_error {
  using std::runtime_error::runtime_error;
};

class Turns {
 public:
  class Turn {
   public:
    // Waits for it. Throws Cancelled soon after `given_up` says so, and logic_error if this thread has it already.
    Turn(Turns& turns, const char* operation, const std::function<bool()>& given_up) : turns_(turns) {
      turns.begin(operation, given_up);
    }
    Turn(const Turn&) = delete;
    Turn& operator=(const Turn&) = delete;
    ~Turn() { turns_.end(); }

   private:
    Turns& turns_;
  };

  // Whether this thread has it.
  bool mine() const noexcept { return owner_.load() == std::this_thread::get_id(); }

 private:
  void begin(const char* operation, const std::function<bool()>& given_up) {
    constexpr std::chrono::milliseconds kSlice(50);
    if (mine()) {
      throw std::logic_error(std::string(operation) +
                             ": this thread is inside a draw from the replay, which a signal's handler interrupted; "
                             "let the handler note what it wants, and do it after the draw");
    }
    std::unique_lock lock(mutex_);
    while (taken_) {
      free_.wait_for(lock, kSlice);
      if (!taken_) break;
      lock.unlock();  // whoever is asked may take the interpreter's lock; never both at once
      if (given_up && given_up()) throw Cancelled(std::string(operation) + ": given up");
      lock.lock();
    }
    taken_ = true;
    owner_ = std::this_thread::get_id();
  }

  void end() noexcept {
    {
      const std::lock_guard lock(mutex_);
      taken_ = false;
      owner_ = std::thread::id();
    }
    free_.notify_one();
  }

  std::mutex mutex_;
  std::condition_variable free_;
  bool taken_ = false;
  std::atomic<std::thread::id> owner_{};
};

}  // namespace fastrl
