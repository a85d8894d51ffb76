// mujoco_env.hpp: one MuJoCo task under the rules of Gymnasium's version 5.
//
// Observations, rewards, every term of them and ends are equal to the bit to what Gymnasium's environment computes
// from the same state and action; so arithmetic here follows numpy's, in its order and its types: an action of
// float32 has its cost computed in float32.
#pragma once

#include <memory>
#include <span>

#include "mujoco/library.hpp"

namespace fastrl::mujoco {

enum class Task : int { kHalfCheetah, kHopper, kWalker2d, kAnt, kSwimmer, kInvertedPendulum };

struct Term {
  const char* name;
  bool at_reset;  // whether a reset's info has it too
};
// What the info of a step has, in Gymnasium's order.
std::span<const Term> terms_of(Task task);

struct Range {
  double low;
  double high;
};

struct TaskRules {
  Task task;
  Sizes sizes;
  int frame_skip;
  int max_episode_steps;  // 0: no limit
  double step_s;          // simulated seconds of a step
  double start_z;         // of the model's own start
  double forward_reward_weight;
  double ctrl_cost_weight;
  double contact_cost_weight;
  double healthy_reward;
  bool terminate_when_unhealthy;
  Range healthy_state;
  Range healthy_z;
  Range healthy_angle;
  Range contact_force;
  std::size_t skipped_positions;  // left out of observations, at the front
  bool contact_in_obs;
  std::size_t main_body;
  bool fused_norm;  // whether numpy's dot product rounds once for each multiply-and-add, which its BLAS decides
};

std::size_t obs_size(const TaskRules& rules);
void require_playable(const TaskRules& rules);  // throws std::invalid_argument

// What a step was worth. Its terms go to `terms`, in the order of terms_of.
struct Outcome {
  double reward;
  bool terminated;
};

class MujocoEnv {
 public:
  MujocoEnv(std::shared_ptr<const Library> library, const Model* model, const EnvMemory& memory,
            const TaskRules& rules);

  void reset(const double* qpos, const double* qvel, double* obs, double* terms) noexcept;
  // Action: float or double, `nu` of them.
  template <typename Action>
  Outcome step(const Action* action, double* obs, double* terms) noexcept;

 private:
  template <typename Action>
  Action control_cost(const Action* action) const;
  double clipped_contact(std::size_t i) const;
  double contact_cost() const;
  double distance_from_origin() const;
  bool is_healthy() const;
  bool is_finite() const;
  void observe(double* obs) const;
  const double* place() const;  // what moves forward: x and y

  std::shared_ptr<const Library> library_;
  const Model* model_;
  EnvMemory memory_;
  const TaskRules& rules_;
};

}  // namespace fastrl::mujoco
