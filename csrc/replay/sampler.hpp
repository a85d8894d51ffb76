// sampler.hpp: batches of transitions, drawn uniformly or by priority.
//
// Uniform: a step of all windows is drawn and, unless it begins an eligible transition, another one. Given what the
// windows hold, every eligible transition has the same probability, exactly. By priority: weight / sum of weights,
// exactly. What a batch holds depends on the seed, the number of the batch and the windows, and on nothing else, as
// long as no writer comes round by more than the guard while it is copied; such rows are drawn again, and counted.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <stdexcept>
#include <vector>

#include "replay/batch_memory.hpp"
#include "replay/counter_random.hpp"
#include "replay/priorities.hpp"
#include "replay/turns.hpp"

namespace fastrl {

struct NothingToSample : std::logic_error {
  using std::logic_error::logic_error;
};

// The writers came round the whole window while a batch was drawn from it: draw again from where they are now.
struct Overtaken : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct PriorityOptions {
  double alpha;
};

// Where the windows of a batch end, a step a lane.
struct Ends {
  std::vector<std::uint64_t> steps;
  bool fixed;  // else a batch whose windows were overtaken is drawn from where the writers are then
};

// For any number of threads, which take turns. Who waits for a turn asks `given_up` now and then, and throws Cancelled.
class Sampler {
 public:
  Sampler(std::shared_ptr<const Ring> ring, std::uint64_t seed, std::optional<PriorityOptions> priorities);

  // The published ends of all lanes, now.
  std::vector<std::uint64_t> ends() const;

  // The next batch, out of windows that end at `ends`. Throws NothingToSample and Overtaken; and Cancelled soon after
  // `given_up`, which is asked now and then, says so: the same batch is still the next one then. beta is the exponent
  // of the weights.
  void sample(const TransitionRules& rules, const Ends& ends, double beta, const BatchOut& out,
              const std::function<bool()>& given_up = {});

  // How many of these were still known, and changed.
  std::uint64_t update(const std::int64_t* indices, const double* priorities, std::uint64_t count,
                       const std::function<bool()>& given_up = {});

  const Ring& ring() const noexcept { return *ring_; }
  std::uint64_t batches() const noexcept { return batch_; }
  void set_batches(std::uint64_t number) noexcept { batch_ = number; }
  std::uint64_t race_rejects() const noexcept { return race_rejects_; }
  std::uint64_t stale_updates() const noexcept { return stale_updates_; }

  struct State {
    std::uint64_t n_step;  // of the transitions that the priorities are of
    Priorities::State priorities;
  };
  // None before a batch was drawn by priority. Also for who is inside a draw: what it has drawn so far changed nothing.
  std::optional<State> state(const std::function<bool()>& given_up = {}) const;
  void restore(const TransitionRules& rules, const Priorities::State& state);

 private:
  struct Task;  // what one call of sample() has to do
  void sample_uniform(const Task& task);
  void sample_by_priority(const Task& task, Priorities& priorities);
  Priorities& priorities_for(const TransitionRules& rules);
  void require_any(const Task& task) const;
  std::shared_ptr<const Ring> ring_;
  std::uint64_t seed_;
  std::optional<PriorityOptions> options_;
  mutable Turns turns_;  // for what is drawn and what decides it
  std::optional<Priorities> priorities_;
  TransitionRules rules_{};  // that the priorities were made for
  bool settled_ = false;     // something was drawn by these rules
  std::atomic<std::uint64_t> batch_ = 0;
  std::atomic<std::uint64_t> race_rejects_ = 0;
  std::atomic<std::uint64_t> stale_updates_ = 0;
};

}  // namespace fastrl
