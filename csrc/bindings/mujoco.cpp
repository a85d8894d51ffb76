// mujoco.cpp: MuJoCo's library and the pool of its tasks.

#include <atomic>
#include <chrono>

#include "bindings/common.hpp"
#include "mujoco/mujoco_pool.hpp"
#include "pool/env_pool.hpp"  // PoolClosed

namespace fastrl {
namespace {

const void* address_of(std::uintptr_t address) { return reinterpret_cast<const void*>(address); }
mujoco::Data* data_at(std::uintptr_t address) { return reinterpret_cast<mujoco::Data*>(address); }

template <auto kFunction>
void call(const mujoco::Library& library, std::uintptr_t model, std::uintptr_t data) {
  (library.*kFunction)(address_of(model), data_at(data));
}

mujoco::Range range_from(const py::handle& given) {
  const auto [low, high] = given.cast<std::pair<double, double>>();
  return {low, high};
}

mujoco::Sizes sizes_from(const py::dict& d) {
  return {d["nq"].cast<std::size_t>(), d["nv"].cast<std::size_t>(), d["nu"].cast<std::size_t>(),
          d["nbody"].cast<std::size_t>()};
}

mujoco::TaskRules task_rules_from(const py::dict& d) {
  mujoco::TaskRules rules{};
  rules.task = static_cast<mujoco::Task>(d["task"].cast<int>());
  rules.sizes = sizes_from(d);
  rules.frame_skip = d["frame_skip"].cast<int>();
  rules.max_episode_steps = d["max_episode_steps"].cast<int>();
  rules.step_s = d["step_s"].cast<double>();
  rules.start_z = d["start_z"].cast<double>();
  rules.forward_reward_weight = d["forward_reward_weight"].cast<double>();
  rules.ctrl_cost_weight = d["ctrl_cost_weight"].cast<double>();
  rules.contact_cost_weight = d["contact_cost_weight"].cast<double>();
  rules.healthy_reward = d["healthy_reward"].cast<double>();
  rules.terminate_when_unhealthy = d["terminate_when_unhealthy"].cast<bool>();
  rules.healthy_state = range_from(d["healthy_state_range"]);
  rules.healthy_z = range_from(d["healthy_z_range"]);
  rules.healthy_angle = range_from(d["healthy_angle_range"]);
  rules.contact_force = range_from(d["contact_force_range"]);
  rules.skipped_positions = d["skipped_positions"].cast<std::size_t>();
  rules.contact_in_obs = d["contact_in_obs"].cast<bool>();
  rules.main_body = d["main_body"].cast<std::size_t>();
  rules.fused_norm = d["fused_norm"].cast<bool>();
  return rules;
}

// Where an array lies, if it has the type and the size that C++ will assume.
template <typename T>
T* memory_of(const py::dict& arrays, const char* name, std::size_t size) {
  const py::object given = arrays[name];
  if (!py::isinstance<py::array_t<T, py::array::c_style>>(given)) {
    throw std::invalid_argument(std::string("mujoco: '") + name + "' is not a C-contiguous array of the right type");
  }
  auto array = py::reinterpret_borrow<py::array>(given);
  if (static_cast<std::size_t>(array.size()) < size) {
    throw std::invalid_argument(std::string("mujoco: '") + name + "' has " + std::to_string(array.size()) +
                                " numbers, expected " + std::to_string(size));
  }
  return static_cast<T*>(array.mutable_data());
}

mujoco::EnvMemory env_memory_from(const py::dict& d, const mujoco::Sizes& sizes) {
  return {data_at(d["data"].cast<std::uintptr_t>()),     memory_of<double>(d, "qpos", sizes.nq),
          memory_of<double>(d, "qvel", sizes.nv),        memory_of<double>(d, "ctrl", sizes.nu),
          memory_of<double>(d, "xpos", 3 * sizes.nbody), memory_of<double>(d, "cfrc_ext", 6 * sizes.nbody)};
}

// A pool with what keeps its memory alive. For one call at a time.
class MujocoHandle {
 public:
  MujocoHandle(std::unique_ptr<mujoco::MujocoPool> pool, py::dict arrays, py::object keep)
      : keep_(std::move(keep)), arrays_(std::move(arrays)), pool_(std::move(pool)) {}

  template <typename Work>
  auto use(const char* operation, Work work) {
    require_here(operation);
    const OneCaller::Call call(caller_, operation);
    if (closed_) throw PoolClosed(std::string(operation) + ": the pool is closed; make a new one");
    const Unlocked released;
    return work(*pool_);
  }

  void require_here(const char* operation) const {
    if (pool_.made_here()) return;
    throw std::logic_error(std::string(operation) + ": this pool was made by process " + std::to_string(pool_.owner()) +
                           " and its threads are not in this forked process; make a pool here");
  }

  void close() {
    if (!pool_.made_here()) return;  // nothing of it is in this process to close
    const Unlocked released;
    closed_ = true;
    pool_->close();
    caller_.wait_until_left();
  }

  bool starts_used_up() const { return pool_->starts_used_up(); }

  template <typename Action>
  int step(const py::array_t<Action, py::array::c_style>& actions) {
    const auto size = static_cast<std::size_t>(actions.size());
    const std::size_t expected = static_cast<std::size_t>(pool_->num_envs()) * pool_->rules().sizes.nu;
    if (size != expected) {
      throw std::invalid_argument("step: actions have " + std::to_string(size) + " numbers, expected " +
                                  std::to_string(expected));
    }
    return use("step",
               [given = std::span(actions.data(), size)](mujoco::MujocoPool& pool) { return pool.step(given); });
  }

  void reset(const py::array_t<bool, py::array::c_style>& chosen) {
    if (chosen.size() != pool_->num_envs()) throw std::invalid_argument("reset: one flag for each env");
    use("reset", [given = std::span(chosen.data(), static_cast<std::size_t>(chosen.size()))](mujoco::MujocoPool& pool) {
      pool.reset(given);
    });
  }

 private:
  py::object keep_;
  py::dict arrays_;
  OneCaller caller_;
  std::atomic<bool> closed_ = false;
  Threaded<mujoco::MujocoPool> pool_;
};

std::unique_ptr<MujocoHandle> make_pool(const std::shared_ptr<mujoco::Library>& library, const py::dict& rules,
                                        std::uintptr_t model, const std::vector<py::dict>& envs, const py::dict& arrays,
                                        const std::string& task_name, int autoreset, int starts_each, int threads,
                                        int spin_us, const py::object& keep) {
  const mujoco::TaskRules converted = task_rules_from(rules);
  const mujoco::Sizes& sizes = converted.sizes;
  std::vector<mujoco::EnvMemory> memories;
  for (const py::dict& env : envs) memories.push_back(env_memory_from(env, sizes));
  const std::size_t count = envs.size();
  const std::size_t obs = count * obs_size(converted);
  const std::size_t terms = count * terms_of(converted.task).size();
  const std::size_t starts = count * static_cast<std::size_t>(starts_each);
  const mujoco::PoolMemory memory{memory_of<double>(arrays, "obs", obs),
                                  memory_of<double>(arrays, "reward", count),
                                  memory_of<bool>(arrays, "terminated", count),
                                  memory_of<bool>(arrays, "truncated", count),
                                  memory_of<double>(arrays, "terms", terms),
                                  memory_of<double>(arrays, "final_obs", obs),
                                  memory_of<double>(arrays, "final_terms", terms),
                                  memory_of<bool>(arrays, "was_reset", count),
                                  memory_of<bool>(arrays, "episode_over", count),
                                  memory_of<std::int64_t>(arrays, "elapsed_steps", count),
                                  starts_each,
                                  memory_of<std::int64_t>(arrays, "next_start", count),
                                  memory_of<double>(arrays, "start_qpos", starts * sizes.nq),
                                  memory_of<double>(arrays, "start_qvel", starts * sizes.nv)};
  auto pool = std::make_unique<mujoco::MujocoPool>(library, address_of(model), memories, converted,
                                                   static_cast<mujoco::Autoreset>(autoreset), memory, task_name,
                                                   threads, std::chrono::microseconds(spin_us));
  return std::make_unique<MujocoHandle>(std::move(pool), arrays, keep);
}

// The calls of some envs again, for measurements: what is done is envs x steps, what with an env each.
void repeat_calls(const mujoco::Library& library, std::uintptr_t model, const std::vector<py::dict>& envs,
                  const py::dict& sizes, const py::array_t<bool, py::array::c_style>& is_reset, const Doubles& ctrl,
                  const Doubles& qpos, const Doubles& qvel, int frame_skip) {
  const mujoco::Sizes converted = sizes_from(sizes);
  if (envs.empty() || static_cast<std::size_t>(is_reset.size()) % envs.size() != 0) {
    throw std::invalid_argument("mujoco_step_loop: is_reset has " + std::to_string(is_reset.size()) +
                                " flags, expected as many steps for each of " + std::to_string(envs.size()) + " envs");
  }
  const std::size_t steps = static_cast<std::size_t>(is_reset.size()) / envs.size();
  std::vector<mujoco::EnvMemory> memories;
  std::vector<mujoco::RecordedCalls> calls;
  for (std::size_t env = 0; env < envs.size(); ++env) {
    const auto numbers = [&](const char* name, const Doubles& array, std::size_t each) {
      if (static_cast<std::size_t>(array.size()) != envs.size() * steps * each) {
        throw std::invalid_argument(std::string("mujoco_step_loop: ") + name + " has " + std::to_string(array.size()) +
                                    " numbers, expected " + std::to_string(envs.size() * steps * each));
      }
      const double* first = array.data() + env * steps * each;
      return std::vector<double>(first, first + steps * each);
    };
    const bool* resets = is_reset.data() + env * steps;
    memories.push_back(env_memory_from(envs[env], converted));
    calls.push_back({{resets, resets + steps},
                     numbers("ctrl", ctrl, converted.nu),
                     numbers("qpos", qpos, converted.nq),
                     numbers("qvel", qvel, converted.nv)});
  }
  const Unlocked released;
  library.repeat(address_of(model), converted, memories, calls, frame_skip);
}

}  // namespace

void register_mujoco(py::module_& m) {
  py::class_<mujoco::Library, std::shared_ptr<mujoco::Library>>(m, "MujocoLibrary")
      .def("step", &call<&mujoco::Library::step>, "model"_a, "data"_a)
      .def("forward", &call<&mujoco::Library::forward>, "model"_a, "data"_a)
      .def("reset_data", &call<&mujoco::Library::reset_data>, "model"_a, "data"_a)
      .def("rne_post_constraint", &call<&mujoco::Library::rne_post_constraint>, "model"_a, "data"_a)
      .def("version", [](const mujoco::Library& self) { return self.version(); });
  m.def(
      "open_mujoco",
      [](const std::string& file, bool own_clock, const std::string& step_symbol) {
        return std::const_pointer_cast<mujoco::Library>(mujoco::Library::open(file, own_clock, step_symbol));
      },
      "module_file"_a, py::kw_only(), "own_clock"_a, "step_symbol"_a = mujoco::kStepSymbol);
  m.def("mujoco_terms", [](int task) {
    std::vector<std::pair<std::string, bool>> terms;
    for (const mujoco::Term& term : terms_of(static_cast<mujoco::Task>(task))) {
      terms.emplace_back(term.name, term.at_reset);
    }
    return terms;
  });
  m.def("mujoco_obs_size", [](const py::dict& rules) { return obs_size(task_rules_from(rules)); }, "rules"_a);
  m.def("mujoco_step_loop", repeat_calls, "library"_a, "model"_a, "envs"_a, "sizes"_a, py::kw_only(), "is_reset"_a,
        "ctrl"_a, "qpos"_a, "qvel"_a, "frame_skip"_a);
  py::class_<MujocoHandle>(m, "MujocoPool")
      .def(py::init(&make_pool), "library"_a, "rules"_a, "model"_a, "envs"_a, "arrays"_a, py::kw_only(), "task_name"_a,
           "autoreset"_a, "starts_each"_a, "threads"_a, "spin_us"_a, "keep"_a)
      .def("step", &MujocoHandle::step<float>, "actions"_a.noconvert())
      .def("step", &MujocoHandle::step<double>, "actions"_a.noconvert())
      .def("reset", &MujocoHandle::reset, "chosen"_a.noconvert())
      .def("starts_used_up", &MujocoHandle::starts_used_up)
      .def("require_here", &MujocoHandle::require_here, "operation"_a)
      .def("close", &MujocoHandle::close);
}

}  // namespace fastrl
