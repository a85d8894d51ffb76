#include "mujoco/mujoco_pool.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>

namespace fastrl::mujoco {

namespace {

constexpr std::size_t kMostTerms = 16;

}  // namespace

MujocoPool::MujocoPool(std::shared_ptr<const Library> library, const Model* model, const std::vector<EnvMemory>& envs,
                       const TaskRules& rules, Autoreset autoreset, const PoolMemory& memory, std::string task_name,
                       int threads, std::chrono::microseconds spin)
    : rules_(rules),
      autoreset_(autoreset),
      memory_(memory),
      task_name_(std::move(task_name)),
      obs_size_(obs_size(rules)),
      num_terms_(terms_of(rules.task).size()),
      library_(library),
      workers_(threads, static_cast<int>(envs.size()), [this](int env) { play(env); }, spin) {
  require_playable(rules_);
  // The workers have nothing to take before the first run.
  envs_.reserve(envs.size());
  for (const EnvMemory& env : envs) envs_.emplace_back(library, model, env, rules_);
}

template <typename Action>
int MujocoPool::step(std::span<const Action> actions) {
  const std::size_t nu = rules_.sizes.nu;
  for (std::size_t i = 0; i < actions.size(); ++i) {
    if (!std::isfinite(actions[i])) {
      throw std::invalid_argument("step: number " + std::to_string(i % nu) + " of the action for env " +
                                  std::to_string(i / nu) + " (" + task_name_ + ") is " + std::to_string(actions[i]) +
                                  "; actions are finite numbers");
    }
  }
  if (autoreset_ == Autoreset::kDisabled) {
    const bool* over = std::find(memory_.episode_over, memory_.episode_over + envs_.size(), true);
    if (over != memory_.episode_over + envs_.size()) {
      throw std::logic_error("step: the episode of env " + std::to_string(over - memory_.episode_over) + " (" +
                             task_name_ +
                             ") is over and autoreset is disabled; call reset(options={\"reset_mask\": ...}) first");
    }
  }
  if constexpr (std::is_same_v<Action, float>) {
    float_actions_ = actions.data();
  } else {
    double_actions_ = actions.data();
  }
  run();
  float_actions_ = nullptr;
  double_actions_ = nullptr;
  return static_cast<int>(std::count(memory_.was_reset, memory_.was_reset + envs_.size(), true));
}

template int MujocoPool::step(std::span<const float>);
template int MujocoPool::step(std::span<const double>);

bool MujocoPool::starts_used_up() const {
  return std::any_of(memory_.next_start, memory_.next_start + envs_.size(),
                     [this](std::int64_t next) { return next >= memory_.starts_each; });
}

void MujocoPool::reset(std::span<const bool> chosen) {
  chosen_ = chosen.data();
  run();
  chosen_ = nullptr;
}

void MujocoPool::run() {
  const PausedTimers paused(*library_);
  workers_.run();
}

void MujocoPool::play(int env) {
  const auto place = static_cast<std::size_t>(env);
  if (chosen_ != nullptr) {
    memory_.was_reset[place] = chosen_[place];
    if (chosen_[place]) reset_env(place);
  } else if (float_actions_ != nullptr) {
    step_env(place, float_actions_ + place * rules_.sizes.nu);
  } else {
    step_env(place, double_actions_ + place * rules_.sizes.nu);
  }
}

template <typename Action>
void MujocoPool::step_env(std::size_t env, const Action* action) {
  if (memory_.episode_over[env] && autoreset_ == Autoreset::kNextStep) {
    memory_.was_reset[env] = true;
    reset_env(env);
    return;
  }
  double terms[kMostTerms];
  double* obs = memory_.obs + env * obs_size_;
  const Outcome outcome = envs_[env].step(action, obs, terms);
  const std::int64_t elapsed = ++memory_.elapsed_steps[env];
  const bool truncated = rules_.max_episode_steps > 0 && elapsed >= rules_.max_episode_steps;
  const bool over = outcome.terminated || truncated;
  if (over && autoreset_ == Autoreset::kSameStep) {
    std::copy_n(obs, obs_size_, memory_.final_obs + env * obs_size_);
    to_columns(terms, memory_.final_terms, env);
    reset_env(env);
  } else {
    to_columns(terms, memory_.terms, env);
    memory_.episode_over[env] = over;
  }
  memory_.was_reset[env] = over && autoreset_ == Autoreset::kSameStep;
  memory_.reward[env] = outcome.reward;
  memory_.terminated[env] = outcome.terminated;
  memory_.truncated[env] = truncated;
}

void MujocoPool::reset_env(std::size_t env) {
  const Sizes& sizes = rules_.sizes;
  double terms[kMostTerms];
  const std::size_t start =
      env * static_cast<std::size_t>(memory_.starts_each) + static_cast<std::size_t>(memory_.next_start[env]++);
  envs_[env].reset(memory_.start_qpos + start * sizes.nq, memory_.start_qvel + start * sizes.nv,
                   memory_.obs + env * obs_size_, terms);
  to_columns(terms, memory_.terms, env);
  memory_.reward[env] = 0.0;
  memory_.terminated[env] = false;
  memory_.truncated[env] = false;
  memory_.episode_over[env] = false;
  memory_.elapsed_steps[env] = 0;
}

void MujocoPool::to_columns(const double* terms, double* columns, std::size_t env) const {
  for (std::size_t k = 0; k < num_terms_; ++k) columns[k * envs_.size() + env] = terms[k];
}

}  // namespace fastrl::mujoco
