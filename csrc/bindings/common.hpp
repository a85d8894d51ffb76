// common.hpp: what the bindings of all parts share. They convert, check what only Python could get wrong, release the
// interpreter's lock around every wait, and register; the work is elsewhere.
#pragma once

#include <cxxabi.h>
#include <pybind11/functional.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <pybind11/stl/filesystem.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace py = pybind11;

namespace fastrl {

using namespace py::literals;

// In the order in which module.cpp calls them: what a signature names is registered before.
void register_engine(py::module_& m);
void register_parts(py::module_& m);
void register_pool(py::module_& m);
void register_ring(py::module_& m);
void register_batches(py::module_& m);
void register_mujoco(py::module_& m);

// Takes the interpreter's lock (by `take`), unless Python is ending: then it never comes back. Python ends a thread
// that asks for the lock too late by pthread_exit, which unwinds its stack; that must not reach a destructor or a
// function that throws nothing, where it would end the whole process by SIGABRT. What the thread holds stays untouched.
template <typename Take>
void take_or_rest(const Take& take) {
  try {
    take();
  } catch (abi::__forced_unwind&) {
    while (true) pause();  // until the process is gone
  }
}

// What is closed because Python is ending says nothing to a daemon thread that goes on using it: an exception would be
// printed by a thread that Python is about to stop, which can end the process by SIGABRT. Such a thread rests.
inline std::atomic<bool> python_is_ending = false;
void rest_if_python_ends();

// Without the interpreter's lock while it lives. As py::gil_scoped_release, but safe in a daemon thread at Python's
// end.
class Unlocked {
 public:
  Unlocked() : state_(PyEval_SaveThread()) {}
  Unlocked(const Unlocked&) = delete;
  Unlocked& operator=(const Unlocked&) = delete;
  ~Unlocked() {
    take_or_rest([this] { PyEval_RestoreThread(state_); });
  }

 private:
  PyThreadState* state_;
};

// Something with threads. It belongs to the process that made it: in a forked child its threads do not exist.
template <typename T>
class Threaded {
 public:
  explicit Threaded(std::unique_ptr<T> made) : made_(std::move(made)), owner_(getpid()) {}
  Threaded(const Threaded&) = delete;
  Threaded& operator=(const Threaded&) = delete;
  ~Threaded() {
    if (!made_here()) {
      static_cast<void>(made_.release());  // joining threads that a fork left behind would wait for ever
      return;
    }
    const Unlocked released;
    made_.reset();
  }

  bool made_here() const { return getpid() == owner_; }
  pid_t owner() const { return owner_; }
  T& operator*() const { return *made_; }
  T* operator->() const { return made_.get(); }

 private:
  std::unique_ptr<T> made_;
  pid_t owner_;
};

// For what one thread at a time may use, such as a pool: two would each get some of the other's results.
class OneCaller {
 public:
  class Call {
   public:
    Call(OneCaller& caller, const char* operation) : caller_(caller) {
      if (caller.inside_.exchange(true)) {
        throw std::logic_error(std::string(operation) +
                               (caller.is_this_thread()
                                    ? ": this thread is inside a call of this pool already: a signal handler cannot "
                                      "use it"
                                    : ": another thread is inside a call of this pool; use one pool a thread, or take "
                                      "turns"));
      }
      caller.thread_ = std::this_thread::get_id();
    }
    Call(const Call&) = delete;
    Call& operator=(const Call&) = delete;
    ~Call() {
      caller_.thread_ = std::thread::id();
      caller_.inside_ = false;
    }

   private:
    OneCaller& caller_;
  };

  bool inside() const { return inside_; }

  // After closing. A thread inside a call comes out of it now, and needs the interpreter for that: where Python is
  // about to end, it must not be found inside. (Not waited for: this very thread, in a signal handler.)
  void wait_until_left() const {
    const auto began = std::chrono::steady_clock::now();
    while (inside_ && !is_this_thread() && std::chrono::steady_clock::now() - began < std::chrono::seconds(5)) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  }

 private:
  bool is_this_thread() const { return thread_.load() == std::this_thread::get_id(); }

  std::atomic<bool> inside_ = false;
  std::atomic<std::thread::id> thread_;  // whose call it is
};

inline void let_signals_through() {
  std::optional<py::gil_scoped_acquire> acquired;
  take_or_rest([&] { acquired.emplace(); });
  if (PyErr_CheckSignals() != 0) throw py::error_already_set();
}

using Bytes = py::array_t<std::uint8_t, py::array::c_style>;
using Longs = py::array_t<std::int64_t, py::array::c_style>;
using Words = py::array_t<std::uint64_t, py::array::c_style>;
using Floats = py::array_t<float, py::array::c_style>;
using Doubles = py::array_t<double, py::array::c_style>;

inline Bytes copy_of(std::span<const std::uint8_t> bytes, std::vector<py::ssize_t> shape) {
  Bytes array(std::move(shape));
  std::copy(bytes.begin(), bytes.end(), array.mutable_data());
  return array;
}

}  // namespace fastrl
