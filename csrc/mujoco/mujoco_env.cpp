#include "mujoco/mujoco_env.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

#include "mujoco/numpy_sum.hpp"

namespace fastrl::mujoco {

namespace {

constexpr std::size_t kContactForces = 6;  // numbers a body
constexpr double kVelocityLimit = 10;      // of the observations of Hopper and Walker2d
constexpr double kPendulumAngleLimit = 0.2;

constexpr Term kHalfCheetahTerms[] = {
    {"x_position", true}, {"x_velocity", false}, {"reward_forward", false}, {"reward_ctrl", false}};
constexpr Term kHopperTerms[] = {{"x_position", true},   {"z_distance_from_origin", true},
                                 {"x_velocity", false},  {"reward_forward", false},
                                 {"reward_ctrl", false}, {"reward_survive", false}};
constexpr Term kAntTerms[] = {{"x_position", true},   {"y_position", true},      {"distance_from_origin", true},
                              {"x_velocity", false},  {"y_velocity", false},     {"reward_forward", false},
                              {"reward_ctrl", false}, {"reward_contact", false}, {"reward_survive", false}};
constexpr Term kSwimmerTerms[] = {{"x_position", true},  {"y_position", true},  {"distance_from_origin", true},
                                  {"x_velocity", false}, {"y_velocity", false}, {"reward_forward", false},
                                  {"reward_ctrl", false}};
constexpr Term kInvertedPendulumTerms[] = {{"reward_survive", false}};

bool strictly_inside(const Range& range, double value) { return range.low < value && value < range.high; }

}  // namespace

std::span<const Term> terms_of(Task task) {
  switch (task) {
    case Task::kHalfCheetah:
      return kHalfCheetahTerms;
    case Task::kHopper:
    case Task::kWalker2d:
      return kHopperTerms;
    case Task::kAnt:
      return kAntTerms;
    case Task::kSwimmer:
      return kSwimmerTerms;
    case Task::kInvertedPendulum:
      return kInvertedPendulumTerms;
  }
  throw std::invalid_argument("task: " + std::to_string(static_cast<int>(task)) + " is unknown");
}

std::size_t obs_size(const TaskRules& rules) {
  const Sizes& sizes = rules.sizes;
  return sizes.nq - rules.skipped_positions + sizes.nv +
         (rules.contact_in_obs ? kContactForces * (sizes.nbody - 1) : 0);
}

void require_playable(const TaskRules& rules) {
  const Sizes& sizes = rules.sizes;
  if (sizes.nq < 2 || sizes.nq < rules.skipped_positions || sizes.nbody <= rules.main_body) {
    throw std::invalid_argument("task: a model of " + std::to_string(sizes.nq) + " positions and " +
                                std::to_string(sizes.nbody) + " bodies does not fit it");
  }
  if (sizes.nu > kNumpyBlock || sizes.nbody * kContactForces > kNumpyBlock) {
    throw std::invalid_argument("task: a model of " + std::to_string(sizes.nu) + " actuators and " +
                                std::to_string(sizes.nbody) + " bodies is larger than its sums are written for");
  }
}

MujocoEnv::MujocoEnv(std::shared_ptr<const Library> library, const Model* model, const EnvMemory& memory,
                     const TaskRules& rules)
    : library_(std::move(library)), model_(model), memory_(memory), rules_(rules) {}

void MujocoEnv::reset(const double* qpos, const double* qvel, double* obs, double* terms) noexcept {
  library_->start(model_, memory_, rules_.sizes, qpos, qvel);
  observe(obs);
  std::fill_n(terms, terms_of(rules_.task).size(), 0.0);
  switch (rules_.task) {
    case Task::kHalfCheetah:
      terms[0] = memory_.qpos[0];
      break;
    case Task::kHopper:
    case Task::kWalker2d:
      terms[0] = memory_.qpos[0];
      terms[1] = memory_.qpos[1] - rules_.start_z;
      break;
    case Task::kAnt:
    case Task::kSwimmer:
      terms[0] = memory_.qpos[0];
      terms[1] = memory_.qpos[1];
      terms[2] = distance_from_origin();
      break;
    case Task::kInvertedPendulum:
      break;
  }
}

template <typename Action>
Outcome MujocoEnv::step(const Action* action, double* obs, double* terms) noexcept {
  const double x_before = place()[0];
  const double y_before = place()[1];
  for (std::size_t i = 0; i < rules_.sizes.nu; ++i) memory_.ctrl[i] = static_cast<double>(action[i]);
  for (int frame = 0; frame < rules_.frame_skip; ++frame) library_->step(model_, memory_.data);
  // Gymnasium does this after every step of every task. It changes nothing but the forces that only Ant looks at.
  if (rules_.task == Task::kAnt) library_->rne_post_constraint(model_, memory_.data);
  observe(obs);

  const double* qpos = memory_.qpos;
  const double x_velocity = (place()[0] - x_before) / rules_.step_s;
  const double y_velocity = (place()[1] - y_before) / rules_.step_s;
  const double forward = rules_.forward_reward_weight * x_velocity;
  // Of the action's type. What is added to it below is double, as it is in numpy.
  const Action ctrl_cost = control_cost(action);
  switch (rules_.task) {
    case Task::kHalfCheetah: {
      const double values[] = {qpos[0], x_velocity, forward, -ctrl_cost};
      std::ranges::copy(values, terms);
      return {forward - ctrl_cost, false};
    }
    case Task::kHopper:
    case Task::kWalker2d: {
      const bool healthy = is_healthy();
      const double survive = healthy ? rules_.healthy_reward : 0.0;
      const double values[] = {qpos[0], qpos[1] - rules_.start_z, x_velocity, forward, -ctrl_cost, survive};
      std::ranges::copy(values, terms);
      return {(forward + survive) - ctrl_cost, !healthy && rules_.terminate_when_unhealthy};
    }
    case Task::kAnt: {
      const bool healthy = is_healthy();
      const double survive = healthy ? rules_.healthy_reward : 0.0;
      const double contact = contact_cost();
      const double values[] = {qpos[0],  qpos[1], distance_from_origin(), x_velocity, y_velocity, forward, -ctrl_cost,
                               -contact, survive};
      std::ranges::copy(values, terms);
      return {(forward + survive) - (ctrl_cost + contact), !healthy && rules_.terminate_when_unhealthy};
    }
    case Task::kSwimmer: {
      const double values[] = {qpos[0], qpos[1], distance_from_origin(), x_velocity, y_velocity, forward, -ctrl_cost};
      std::ranges::copy(values, terms);
      return {forward - ctrl_cost, false};
    }
    case Task::kInvertedPendulum: {
      const bool healthy = is_healthy();
      terms[0] = healthy ? 1.0 : 0.0;
      return {terms[0], !healthy};
    }
  }
  return {};
}

template Outcome MujocoEnv::step(const float*, double*, double*) noexcept;
template Outcome MujocoEnv::step(const double*, double*, double*) noexcept;

template <typename Action>
Action MujocoEnv::control_cost(const Action* action) const {
  const auto sum = sum_of_squares<Action>(rules_.sizes.nu, [&](std::size_t i) { return action[i]; });
  return static_cast<Action>(rules_.ctrl_cost_weight) * sum;
}

double MujocoEnv::clipped_contact(std::size_t i) const {
  return std::clamp(memory_.cfrc_ext[i], rules_.contact_force.low, rules_.contact_force.high);
}

double MujocoEnv::contact_cost() const {
  const auto sum =
      sum_of_squares<double>(rules_.sizes.nbody * kContactForces, [&](std::size_t i) { return clipped_contact(i); });
  return rules_.contact_cost_weight * sum;
}

double MujocoEnv::distance_from_origin() const {
  const double x = memory_.qpos[0];
  const double y = memory_.qpos[1];
  return std::sqrt(rules_.fused_norm ? std::fma(y, y, x * x) : x * x + y * y);
}

bool MujocoEnv::is_finite() const {
  const auto finite = [](double value) { return std::isfinite(value); };
  return std::all_of(memory_.qpos, memory_.qpos + rules_.sizes.nq, finite) &&
         std::all_of(memory_.qvel, memory_.qvel + rules_.sizes.nv, finite);
}

bool MujocoEnv::is_healthy() const {
  const double* qpos = memory_.qpos;
  const double* qvel = memory_.qvel;
  switch (rules_.task) {
    case Task::kHopper: {
      const auto inside = [this](double value) { return strictly_inside(rules_.healthy_state, value); };
      return std::all_of(qpos + 2, qpos + rules_.sizes.nq, inside) &&
             std::all_of(qvel, qvel + rules_.sizes.nv, inside) && strictly_inside(rules_.healthy_z, qpos[1]) &&
             strictly_inside(rules_.healthy_angle, qpos[2]);
    }
    case Task::kWalker2d:
      return strictly_inside(rules_.healthy_z, qpos[1]) && strictly_inside(rules_.healthy_angle, qpos[2]);
    case Task::kAnt:
      return is_finite() && rules_.healthy_z.low <= qpos[2] && qpos[2] <= rules_.healthy_z.high;
    case Task::kInvertedPendulum:
      return is_finite() && !(std::abs(qpos[1]) > kPendulumAngleLimit);
    case Task::kHalfCheetah:
    case Task::kSwimmer:
      break;
  }
  return true;
}

const double* MujocoEnv::place() const {
  // Of the last frame but one: MuJoCo moves bodies at the beginning of a frame. Gymnasium's Ant looks there too.
  return rules_.task == Task::kAnt ? memory_.xpos + 3 * rules_.main_body : memory_.qpos;
}

void MujocoEnv::observe(double* obs) const {
  const Sizes& sizes = rules_.sizes;
  obs = std::copy(memory_.qpos + rules_.skipped_positions, memory_.qpos + sizes.nq, obs);
  const bool limited = rules_.task == Task::kHopper || rules_.task == Task::kWalker2d;
  for (std::size_t i = 0; i < sizes.nv; ++i) {
    *obs++ = limited ? std::clamp(memory_.qvel[i], -kVelocityLimit, kVelocityLimit) : memory_.qvel[i];
  }
  if (!rules_.contact_in_obs) return;
  for (std::size_t i = kContactForces; i < kContactForces * sizes.nbody; ++i) *obs++ = clipped_contact(i);
}

}  // namespace fastrl::mujoco
