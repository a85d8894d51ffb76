#include "mujoco/library.hpp"

#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <stdexcept>

namespace fastrl::mujoco {

const char* const kStepSymbol = "mj_step";

namespace {

template <typename Function>
void bind(void* module, const std::string& module_file, const char* name, Function& function) {
  void* address = dlsym(module, name);
  if (address == nullptr) {
    throw std::runtime_error("mujoco library: '" + module_file + "' and what it loads have no " + name);
  }
  static_assert(sizeof(function) == sizeof(address));
  std::memcpy(&function, &address, sizeof(address));
}

// The time at which the timers were stopped: a real one, so that whoever is timed over it is timed wrongly by little.
std::atomic<double> stopped_at = 0;
double stopped_clock() { return stopped_at; }

}  // namespace

std::shared_ptr<const Library> Library::open(const std::string& module_file, bool own_clock,
                                             const std::string& step_symbol) {
  // RTLD_NOLOAD: the interpreter has loaded it; a second copy would have its own statics.
  void* module = dlopen(module_file.c_str(), RTLD_NOW | RTLD_NOLOAD);
  if (module == nullptr) {
    throw std::runtime_error("mujoco library: '" + module_file +
                             "' is not loaded in this process; import mujoco first");
  }
  std::shared_ptr<Library> library(new Library());
  // A look-up through the module also searches the libraries that it was linked with.
  bind(module, module_file, step_symbol.c_str(), library->step);
  bind(module, module_file, "mj_forward", library->forward);
  bind(module, module_file, "mj_resetData", library->reset_data);
  bind(module, module_file, "mj_rnePostConstraint", library->rne_post_constraint);
  bind(module, module_file, "mj_version", library->version);
  if (own_clock) {
    library->clock_ = static_cast<double (**)()>(dlsym(module, "mjcb_time"));
    if (library->clock_ != nullptr) library->package_clock_ = *library->clock_;
  }
  return library;
}

PausedTimers::PausedTimers(const Library& library) : library_(library) {
  if (library_.package_clock_ == nullptr) return;
  const std::lock_guard lock(library_.pause_mutex_);
  if (library_.pauses_++ > 0) return;
  const std::atomic_ref clock(*library_.clock_);
  if (clock != library_.package_clock_) return;  // somebody has put another there
  stopped_at = library_.package_clock_();
  clock = stopped_clock;
}

PausedTimers::~PausedTimers() {
  if (library_.package_clock_ == nullptr) return;
  const std::lock_guard lock(library_.pause_mutex_);
  if (--library_.pauses_ > 0) return;
  const std::atomic_ref clock(*library_.clock_);
  if (clock == stopped_clock) clock = library_.package_clock_;
}

void Library::start(const Model* model, const EnvMemory& env, const Sizes& sizes, const double* qpos,
                    const double* qvel) const {
  reset_data(model, env.data);
  std::copy_n(qpos, sizes.nq, env.qpos);
  std::copy_n(qvel, sizes.nv, env.qvel);
  forward(model, env.data);
}

void Library::repeat(const Model* model, const Sizes& sizes, const std::vector<EnvMemory>& envs,
                     const std::vector<RecordedCalls>& calls, int frame_skip) const {
  const PausedTimers paused(*this);
  const std::size_t steps = calls.empty() ? 0 : calls.front().is_reset.size();
  for (std::size_t i = 0; i < steps; ++i) {
    for (std::size_t k = 0; k < envs.size(); ++k) {
      const EnvMemory& env = envs[k];
      const RecordedCalls& made = calls[k];
      if (made.is_reset[i] != 0) {
        start(model, env, sizes, &made.qpos[i * sizes.nq], &made.qvel[i * sizes.nv]);
        continue;
      }
      std::copy_n(&made.ctrl[i * sizes.nu], sizes.nu, env.ctrl);
      for (int frame = 0; frame < frame_skip; ++frame) step(model, env.data);
    }
  }
}

}  // namespace fastrl::mujoco
