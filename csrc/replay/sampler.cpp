#include "replay/sampler.hpp"

#include <algorithm>
#include <cmath>
#include <string>

namespace fastrl {

namespace {

constexpr int kLookAfter = 1000;  // draws without a transition, until it is looked whether there is any

[[noreturn]] void nothing(const std::string& why) { throw NothingToSample("sample: " + why); }

[[noreturn]] void overtaken() {
  throw Overtaken(
      "sample: the writers came round all lanes while a batch was drawn; the capacity is too small for how "
      "long this thread was held up");
}

}  // namespace

Sampler::Sampler(std::shared_ptr<const Ring> ring, std::uint64_t seed, std::optional<PriorityOptions> priorities)
    : ring_(std::move(ring)), seed_(seed), options_(priorities) {}

std::vector<std::uint64_t> Sampler::ends() const {
  std::vector<std::uint64_t> found(ring_->shape().lanes);
  for (std::uint64_t lane = 0; lane < found.size(); ++lane) found[lane] = ring_->published(lane);
  return found;
}

TransitionOut Sampler::row(const TransitionReader& reader, const BatchOut& out, std::uint64_t at) const noexcept {
  const RingShape& shape = ring_->shape();
  return {out.observations + at * reader.observations_per_row() * shape.obs_bytes,
          out.actions + at * shape.action_bytes, out.rewards + at, out.discounts + at};
}

void Sampler::sample(const TransitionRules& rules, const std::vector<std::uint64_t>& ends, double beta,
                     const BatchOut& out) {
  const TransitionReader reader(*ring_, rules);
  if (options_) {
    sample_by_priority(reader, follow(rules, ends), ends, beta, out);
  } else {
    sample_uniform(reader, ends, out);
  }
  ++batch_;
}

void Sampler::sample_uniform(const TransitionReader& reader, const std::vector<std::uint64_t>& ends,
                             const BatchOut& out) {
  const std::uint64_t slots = ring_->shape().slots;
  std::vector<std::uint64_t> before(ends.size() + 1);  // steps in the windows of the lanes before
  for (std::size_t lane = 0; lane < ends.size(); ++lane) {
    before[lane + 1] = before[lane] + window_until(ends[lane], slots).size();
  }
  const std::uint64_t all = before.back();
  if (all == 0) nothing("the replay is empty; write transitions first");
  for (std::uint64_t at = 0; at < out.count; ++at) {
    RowRandom random(seed_, batch_, static_cast<std::uint32_t>(at));
    for (int tries = 1;; ++tries) {
      const std::uint64_t drawn = random.below(all);
      const auto above = std::upper_bound(before.begin(), before.end(), drawn);
      const auto lane = static_cast<std::uint64_t>(above - before.begin()) - 1;
      const Window window = window_until(ends[lane], slots);
      const std::uint64_t step = window.first + (drawn - before[lane]);
      const Verdict verdict = reader.take(lane, step, window, row(reader, out, at));
      if (verdict == Verdict::kTaken) {
        out.indices[2 * at] = static_cast<std::int64_t>(lane);
        out.indices[2 * at + 1] = static_cast<std::int64_t>(step);
        out.weights[at] = 1;
        break;
      }
      if (verdict == Verdict::kOverwritten) ++race_rejects_;
      if (tries % kLookAfter != 0) continue;
      require_any(reader, ends, all);
    }
  }
}

// Throws if there is nothing to draw, and says which of the two reasons it has.
void Sampler::require_any(const TransitionReader& reader, const std::vector<std::uint64_t>& ends,
                          std::uint64_t all) const {
  bool overwritten = false;
  for (std::uint64_t lane = 0; lane < ends.size(); ++lane) {
    const Window window = window_until(ends[lane], ring_->shape().slots);
    for (std::uint64_t step = window.first; step < window.end; ++step) {
      const Verdict verdict = reader.judge(lane, step, window);
      if (verdict == Verdict::kTaken) return;
      overwritten = overwritten || verdict == Verdict::kOverwritten;
    }
  }
  if (overwritten) overtaken();
  nothing("none of the " + std::to_string(all) + " observations begins a whole transition yet");
}

Priorities& Sampler::follow(const TransitionRules& rules, const std::vector<std::uint64_t>& ends) {
  if (!options_) throw std::logic_error("priorities: this replay was made without them");
  if (!priorities_) {
    priorities_.emplace(*ring_, rules, options_->alpha);
    rules_ = rules;
  }
  if (rules.n_step != rules_.n_step) {
    throw std::invalid_argument("sample: n_step " + std::to_string(rules.n_step) +
                                ", but the priorities of this replay are of transitions of n_step " +
                                std::to_string(rules_.n_step) + "; make another replay for it");
  }
  priorities_->follow(ends);
  return *priorities_;
}

void Sampler::restore(const TransitionRules& rules, const Priorities::State& state) {
  if (!options_) throw std::logic_error("load: priorities were saved, but this replay was made without them");
  priorities_.emplace(*ring_, rules, options_->alpha);
  rules_ = rules;
  priorities_->restore(state);
}

void Sampler::sample_by_priority(const TransitionReader& reader, Priorities& priorities,
                                 const std::vector<std::uint64_t>& ends, double beta, const BatchOut& out) {
  if (priorities.count() == 0) nothing("no whole transition has been written yet");
  const std::uint64_t slots = ring_->shape().slots;
  const auto total = static_cast<double>(priorities.total());
  const auto count = static_cast<double>(priorities.count());
  double largest = 0;
  std::vector<double> weights(out.count);
  for (std::uint64_t at = 0; at < out.count; ++at) {
    RowRandom random(seed_, batch_, static_cast<std::uint32_t>(at));
    for (int lost = 0;;) {
      const Drawn drawn = priorities.find(random.below(priorities.total()));
      const Window window = window_until(ends[drawn.lane], slots);
      if (reader.take(drawn.lane, drawn.step, window, row(reader, out, at)) != Verdict::kTaken) {
        ++race_rejects_;
        if (++lost == kLookAfter) overtaken();  // the weights do not change meanwhile: it may be that all are lost
        continue;
      }
      out.indices[2 * at] = static_cast<std::int64_t>(drawn.lane);
      out.indices[2 * at + 1] = static_cast<std::int64_t>(drawn.step);
      weights[at] = std::pow(count * static_cast<double>(priorities.weight(drawn)) / total, -beta);
      largest = std::max(largest, weights[at]);
      break;
    }
  }
  for (std::uint64_t at = 0; at < out.count; ++at) out.weights[at] = static_cast<float>(weights[at] / largest);
}

std::uint64_t Sampler::update(const std::int64_t* indices, const double* priorities, std::uint64_t count) {
  if (!priorities_) throw std::logic_error("update_priorities: nothing was sampled by priority yet");
  std::uint64_t known = 0;
  for (std::uint64_t i = 0; i < count; ++i) {
    const Drawn drawn{static_cast<std::uint64_t>(indices[2 * i]), static_cast<std::uint64_t>(indices[2 * i + 1])};
    if (priorities_->update(drawn, priorities[i])) ++known;
  }
  stale_updates_ += count - known;
  return known;
}

}  // namespace fastrl
