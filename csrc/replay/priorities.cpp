#include "replay/priorities.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

namespace fastrl {

Priorities::Priorities(const Ring& ring, const TransitionRules& rules, double alpha)
    : reader_(ring, rules),
      shape_(ring.shape()),
      alpha_(alpha),
      tree_(shape_.lanes * shape_.slots),
      most_weight_(std::min(kMostWeight, kMostSum / (shape_.lanes * shape_.slots))),
      lanes_(shape_.lanes) {}

void Priorities::set(std::uint64_t lane, std::uint64_t step, std::uint64_t weight) noexcept {
  const std::uint64_t place = leaf({lane, step});
  const bool was = tree_.weight(place) > 0;
  tree_.set(place, weight);
  if (was) --count_;
  if (weight > 0) ++count_;
}

std::vector<std::uint64_t> Priorities::ends_from(std::vector<std::uint64_t> ends) const {
  for (std::uint64_t lane = 0; lane < shape_.lanes; ++lane) ends[lane] = std::max(ends[lane], lanes_[lane].end);
  return ends;
}

void Priorities::follow(const std::vector<std::uint64_t>& ends) {
  for (std::uint64_t lane = 0; lane < shape_.lanes; ++lane) {
    if (ends[lane] < lanes_[lane].end) {
      throw std::invalid_argument("sample: the boundary of lane " + std::to_string(lane) + " is step " +
                                  std::to_string(ends[lane]) + ", but priorities only go on, and a batch up to step " +
                                  std::to_string(lanes_[lane].end) + " was drawn; give that boundary or a later one");
    }
  }
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
  const double bounded = std::clamp(scaled, 1.0, static_cast<double>(most_weight_));
  const auto weight = static_cast<std::uint64_t>(bounded);
  set(drawn.lane, drawn.step, weight);
  largest_ = std::max(largest_, weight);
  return true;
}

Priorities::State Priorities::state() const {
  State state{largest_, {}, {}, {}, {}};
  for (std::uint64_t lane = 0; lane < lanes_.size(); ++lane) {
    const Lane& known = lanes_[lane];
    state.first.push_back(known.first);
    state.entered.push_back(known.entered);
    state.ends.push_back(known.end);
    for (std::uint64_t step = known.first; step < known.entered; ++step) {
      state.weights.push_back(tree_.weight(leaf({lane, step})));
    }
  }
  return state;
}

void Priorities::restore(const State& state) {
  const std::size_t lanes = lanes_.size();
  bool fits = state.first.size() == lanes && state.entered.size() == lanes && state.ends.size() == lanes;
  std::uint64_t steps = 0;
  for (std::size_t lane = 0; fits && lane < lanes; ++lane) {
    fits = state.first[lane] <= state.entered[lane] && state.entered[lane] <= state.ends[lane] &&
           state.entered[lane] - state.first[lane] <= shape_.slots;
    steps += state.entered[lane] - state.first[lane];
  }
  if (!fits || steps != state.weights.size()) {
    throw std::invalid_argument("load: the saved priorities are not of a replay of this shape");
  }
  largest_ = std::min(state.largest, most_weight_);
  auto weight = state.weights.begin();
  for (std::uint64_t lane = 0; lane < lanes; ++lane) {
    lanes_[lane] = {state.first[lane], state.entered[lane], state.ends[lane]};
    for (std::uint64_t step = state.first[lane]; step < state.entered[lane]; ++step) {
      set(lane, step, std::min(*weight++, most_weight_));
    }
  }
}

}  // namespace fastrl
