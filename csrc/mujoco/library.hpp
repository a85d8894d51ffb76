// library.hpp: MuJoCo's functions, from the library that lives inside the installed mujoco wheel.
//
// No source of MuJoCo is compiled, linked or included. Python has already loaded the wheel's library and makes the
// models and their data; this file looks C functions up by name and calls them on the addresses that Python hands
// over. So what is compiled here can never disagree with what runs. What is assumed is:
//   1. the names and signatures below (a missing name is refused);
//   2. that the addresses are of the same library's mjModel and mjData (engine/mujoco_library.py compares stepping
//      through Python with stepping through this file before first use).
#pragma once

#include <cstddef>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

namespace fastrl::mujoco {

using Model = void;  // mjModel and mjData, whose layout is nobody's business here
using Data = void;

// The calls that one env made, for the bare loop that measurements compare with.
struct RecordedCalls {
  std::vector<char> is_reset;  // one a step
  std::vector<double> ctrl;    // steps x nu
  std::vector<double> qpos;    // where a reset starts: steps x nq
  std::vector<double> qvel;    // steps x nv
};

// What of one mjData is read and written, as numpy's views name it.
struct EnvMemory {
  Data* data;
  double* qpos;
  double* qvel;
  double* ctrl;
  const double* xpos;      // bodies x 3
  const double* cfrc_ext;  // bodies x 6
};

struct Sizes {
  std::size_t nq;
  std::size_t nv;
  std::size_t nu;
  std::size_t nbody;
};

extern const char* const kStepSymbol;  // what step is bound to

// Opened once, never unloaded. The functions may run on several threads at a time on one model, each on its own data.
class Library {
 public:
  // `module_file` is an extension module of the mujoco package that is loaded in this process; its library is found
  // through it. `own_clock`: whether the clock that MuJoCo's timers read is the package's own, see PausedTimers.
  // `step_symbol` is another than
  // kStepSymbol only in tests, which bind a wrong function to see it refused. Throws std::runtime_error naming the
  // missing symbol.
  static std::shared_ptr<const Library> open(const std::string& module_file, bool own_clock,
                                             const std::string& step_symbol);

  void (*step)(const Model*, Data*);
  void (*forward)(const Model*, Data*);
  void (*reset_data)(const Model*, Data*);
  void (*rne_post_constraint)(const Model*, Data*);
  int (*version)();

  // A start as Gymnasium makes it.
  void start(const Model* model, const EnvMemory& env, const Sizes& sizes, const double* qpos,
             const double* qvel) const;
  // The recorded calls of several envs and nothing else, in the order in which a pool must make them: step by step.
  void repeat(const Model* model, const Sizes& sizes, const std::vector<EnvMemory>& envs,
              const std::vector<RecordedCalls>& calls, int frame_skip) const;

 private:
  friend class PausedTimers;
  Library() = default;

  double (**clock_)() = nullptr;         // what MuJoCo calls to know the time
  double (*package_clock_)() = nullptr;  // what the Python package has put there; null: never touched
  mutable std::mutex pause_mutex_;
  mutable int pauses_ = 0;
};

// While one lives, MuJoCo's timers stand still. The Python package lets MuJoCo read the clock at the beginning and the
// end of every stage of every step, which was up to a quarter of the time of small models, for statistics
// (MjData.timer) that nobody can see of a pool. A step that another thread takes meanwhile is only timed wrongly.
class PausedTimers {
 public:
  explicit PausedTimers(const Library& library);
  PausedTimers(const PausedTimers&) = delete;
  PausedTimers& operator=(const PausedTimers&) = delete;
  ~PausedTimers();

 private:
  const Library& library_;
};

}  // namespace fastrl::mujoco
