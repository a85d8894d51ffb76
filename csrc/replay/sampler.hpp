// sampler.hpp: batches of transitions, drawn uniformly or by priority.
//
// Uniform: a step of all windows is drawn and, unless it begins an eligible transition, another one. Given what the
// windows hold, every eligible transition has the same probability, exactly. By priority: weight / sum of weights,
// exactly. What a batch holds depends on the seed, the number of the batch and the windows, and on nothing else, as
// long as no writer comes round by more than the guard while it is copied; such rows are drawn again, and counted.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <stdexcept>
#include <vector>

#include "replay/counter_random.hpp"
#include "replay/priorities.hpp"

namespace fastrl {

struct NothingToSample : std::logic_error {
  using std::logic_error::logic_error;
};

// The writers came round the whole window while a batch was drawn from it: draw again from where they are now.
struct Overtaken : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Where a batch goes: arrays of `count` rows.
struct BatchOut {
  std::uint64_t count;
  std::uint8_t* observations;  // observations_per_row() x obs_bytes
  std::uint8_t* actions;       // action_bytes
  float* rewards;
  float* discounts;
  float* weights;         // importance weights, the largest of a batch is 1; uniform: all 1
  std::int64_t* indices;  // lane, step
};

struct PriorityOptions {
  double alpha;
};

class Sampler {
 public:
  Sampler(std::shared_ptr<const Ring> ring, std::uint64_t seed, std::optional<PriorityOptions> priorities);

  // The published ends of all lanes, now.
  std::vector<std::uint64_t> ends() const;

  // The next batch, out of windows that end at `ends`. Throws NothingToSample and Overtaken. beta is the exponent of
  // the weights.
  void sample(const TransitionRules& rules, const std::vector<std::uint64_t>& ends, double beta, const BatchOut& out);

  // How many of these were still known, and changed.
  std::uint64_t update(const std::int64_t* indices, const double* priorities, std::uint64_t count);

  const Ring& ring() const noexcept { return *ring_; }
  std::uint64_t batches() const noexcept { return batch_; }
  void set_batches(std::uint64_t number) noexcept { batch_ = number; }
  std::uint64_t race_rejects() const noexcept { return race_rejects_; }
  std::uint64_t stale_updates() const noexcept { return stale_updates_; }
  // None before the first batch was drawn. `rules` as in that batch.
  Priorities* priorities() noexcept { return priorities_ ? &*priorities_ : nullptr; }
  Priorities& follow(const TransitionRules& rules, const std::vector<std::uint64_t>& ends);
  const TransitionRules& rules() const noexcept { return rules_; }  // that the priorities are made for
  void restore(const TransitionRules& rules, const Priorities::State& state);

 private:
  void sample_uniform(const TransitionReader& reader, const std::vector<std::uint64_t>& ends, const BatchOut& out);
  void sample_by_priority(const TransitionReader& reader, Priorities& priorities,
                          const std::vector<std::uint64_t>& ends, double beta, const BatchOut& out);
  void require_any(const TransitionReader& reader, const std::vector<std::uint64_t>& ends, std::uint64_t all) const;
  TransitionOut row(const TransitionReader& reader, const BatchOut& out, std::uint64_t at) const noexcept;

  std::shared_ptr<const Ring> ring_;
  std::uint64_t seed_;
  std::optional<PriorityOptions> options_;
  std::optional<Priorities> priorities_;
  TransitionRules rules_{};  // that the priorities were made for
  std::uint64_t batch_ = 0;
  std::atomic<std::uint64_t> race_rejects_ = 0;
  std::atomic<std::uint64_t> stale_updates_ = 0;
};

}  // namespace fastrl
