#include "replay/priorities.hpp"

#include <algorithm>
#include <cmath>

namespace fastrl {

Priorities::Priorities(const Ring& ring, const TransitionRules& rules, double alpha)
    : reader_(ring, rules),
      shape_(ring.shape()),
      alpha_(alpha),
      tree_(shape_.lanes * shape_.slots),
      lanes_(shape_.lanes) {}

void Priorities::set(std::uint64_t lane, std::uint64_t step, std::uint64_t weight) noexcept {
  const std::uint64_t place = leaf({lane, step});
  const bool was = tree_.weight(place) > 0;
  tree_.set(place, weight);
  if (was) --count_;
  if (weight > 0) ++count_;
}

void Priorities::follow(const std::vector<std::uint64_t>& ends) {
  for (std::uint64_t lane = 0; lane < shape_.lanes; ++lane) {
    Lane& known = lanes_[lane];
    const Window window = window_until(ends[lane], shape_.slots);
    // Of a later step the first stack begins no earlier, so steps leave in order.
    while (known.first < known.entered && !reader_.begins_in(lane, known.first, window)) set(lane, known.first++, 0);
    known.first = std::max(known.first, window.first);
    known.entered = std::max(known.entered, known.first);
    for (; known.entered + 1 < window.end; ++known.entered) {
      const Verdict verdict = reader_.judge(lane, known.entered, window);
      if (verdict == Verdict::kNotYet) break;
      set(lane, known.entered, verdict == Verdict::kTaken ? largest_ : 0);
    }
    known.end = window.end;
  }
}

Drawn Priorities::find(std::uint64_t at) const noexcept {
  const std::uint64_t place = tree_.find(at);
  const std::uint64_t lane = place / shape_.slots;
  const std::uint64_t newest = lanes_[lane].end - 1;
  const std::uint64_t slot = place % shape_.slots;
  return {lane, newest - (newest + shape_.slots - slot) % shape_.slots};
}

bool Priorities::update(const Drawn& drawn, double priority) noexcept {
  const Lane& known = lanes_[drawn.lane];
  if (drawn.step < known.first || drawn.step >= known.entered || weight(drawn) == 0) return false;
  const double scaled = std::nearbyint(std::pow(priority, alpha_) * kUnit);
  const double bounded = std::clamp(scaled, 1.0, static_cast<double>(kMostWeight));
  const auto weight = static_cast<std::uint64_t>(bounded);
  set(drawn.lane, drawn.step, weight);
  largest_ = std::max(largest_, weight);
  return true;
}

std::vector<std::uint64_t> Priorities::weights(std::uint64_t lane, std::uint64_t first, std::uint64_t end) const {
  std::vector<std::uint64_t> found;
  for (std::uint64_t step = first; step < end; ++step) found.push_back(tree_.weight(leaf({lane, step})));
  return found;
}

void Priorities::restore(std::uint64_t lane, std::uint64_t first, const std::vector<std::uint64_t>& weights) {
  for (std::size_t i = 0; i < weights.size(); ++i) {
    if (tree_.weight(leaf({lane, first + i})) > 0) set(lane, first + i, weights[i]);
  }
}

}  // namespace fastrl
