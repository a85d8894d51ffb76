// mujoco_pool.hpp: many envs of one task, stepped together on several threads.
//
// Guarantees
//   1. What an env does depends on its starts and its actions only: not on threads or timing.
//   2. Neither a step nor a reset touches Python or allocates.
// All memory that comes in or goes out belongs to the caller and must outlive the pool. One thread at a time may call
// step and reset; close may come from another.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "mujoco/mujoco_env.hpp"
#include "mujoco/workers.hpp"

namespace fastrl::mujoco {

enum class Autoreset : int { kNextStep = 0, kSameStep = 1, kDisabled = 2 };

// Arrays of num_envs rows each, or of one number an env; terms are columns: term k of env i is at [k * num_envs + i].
struct PoolMemory {
  double* obs;
  double* reward;
  bool* terminated;
  bool* truncated;
  double* terms;
  double* final_obs;  // with autoreset in the same step: what ended the episode
  double* final_terms;
  bool* was_reset;              // whether what is told is of a reset: also of an autoreset
  bool* episode_over;           // kept between steps, as is the next
  std::int64_t* elapsed_steps;  // of the episode
  // Where resets start: `starts_each` rows an env, used in turn. When all are used the caller must bring others and
  // set next_start to 0, before the next call.
  int starts_each;
  std::int64_t* next_start;
  const double* start_qpos;
  const double* start_qvel;
};

class MujocoPool {
 public:
  MujocoPool(std::shared_ptr<const Library> library, const Model* model, const std::vector<EnvMemory>& envs,
             const TaskRules& rules, Autoreset autoreset, const PoolMemory& memory, std::string task_name, int threads,
             std::chrono::microseconds spin);

  // `actions`: num_envs x nu, float or double. Returns how many envs were reset. Throws where an action is no finite
  // number or an episode is over and nobody resets it; then nothing was stepped.
  template <typename Action>
  int step(std::span<const Action> actions);
  // Those of which `chosen` is true.
  void reset(std::span<const bool> chosen);
  void close() noexcept { workers_.close(); }

  bool starts_used_up() const;  // of any env
  int num_envs() const { return static_cast<int>(envs_.size()); }
  const TaskRules& rules() const { return rules_; }

 private:
  void run();
  void play(int env);
  template <typename Action>
  void step_env(std::size_t env, const Action* action);
  void reset_env(std::size_t env);
  void to_columns(const double* terms, double* columns, std::size_t env) const;

  const TaskRules rules_;
  const Autoreset autoreset_;
  const PoolMemory memory_;
  const std::string task_name_;
  const std::size_t obs_size_;
  const std::size_t num_terms_;
  std::shared_ptr<const Library> library_;
  std::vector<MujocoEnv> envs_;

  // What the workers are doing; one of them is set.
  const float* float_actions_ = nullptr;
  const double* double_actions_ = nullptr;
  const bool* chosen_ = nullptr;
  Workers workers_;  // last: its threads use everything above
};

}  // namespace fastrl::mujoco
