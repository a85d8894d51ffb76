#include "replay/sampler.hpp"

#include <algorithm>
#include <cmath>
#include <string>

#include "replay/stalls.hpp"

namespace fastrl {

namespace {

constexpr int kLookAfter = 1000;      // draws without a transition, until it is looked whether there is any
constexpr int kMostLost = 20'000;     // draws of one row that were overwritten, until that is a fault of the moment
constexpr int kOvertakenTries = 100;  // batches whose windows were overtaken, until that is a fault

[[noreturn]] void nothing(const Ring& ring, const std::string& why) {
  throw NothingToSample("sample: " + why + stalls_in_message(ring));
}

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

struct Sampler::Task {
  const TransitionReader& reader;
  const RingShape& shape;
  const std::vector<std::uint64_t>& ends;
  double beta;
  const BatchOut& out;
  const std::function<bool()>& given_up;
  std::uint64_t seed;
  std::uint64_t batch;

  Window window(std::uint64_t lane) const noexcept { return window_until(ends[lane], shape.slots); }

  TransitionOut row(std::uint64_t at) const noexcept {
    const std::uint64_t first = at * reader.observations_per_row();
    const bool copied = out.observations != nullptr;
    return {copied ? out.observations + first * shape.obs_bytes : nullptr, copied ? nullptr : out.places + first,
            out.actions + at * shape.action_bytes, out.rewards + at, out.discounts + at};
  }

  void took(std::uint64_t at, const Drawn& drawn) const noexcept {
    out.indices[2 * at] = static_cast<std::int64_t>(drawn.lane);
    out.indices[2 * at + 1] = static_cast<std::int64_t>(drawn.step);
  }

  void go_on() const {
    if (given_up && given_up()) throw Cancelled("sample: given up");
  }

  struct Row {
    RowRandom random;     // what it is drawn with
    std::uintptr_t next;  // where the observations of the next one lie, or 0
  };

  // What `draw` will find for the next row is fetched from memory meanwhile.
  template <typename Draw>
  Row begin_row(std::uint64_t at, const Draw& draw) const {
    go_on();
    if (at + 1 == out.count) return {random_of(at), 0};
    RowRandom next = random_of(at + 1);
    const Drawn expected = draw(next);
    return {random_of(at), reader.expect(expected.lane, expected.step, row(at + 1))};
  }

 private:
  RowRandom random_of(std::uint64_t at) const noexcept { return {seed, batch, static_cast<std::uint32_t>(at)}; }
};

void Sampler::sample(const TransitionRules& rules, const Ends& ends, double beta, const BatchOut& out,
                     const std::function<bool()>& given_up) {
  const Turns::Turn turn(turns_, "sample", given_up);
  const TransitionReader reader(*ring_, rules);
  std::vector<std::uint64_t> until = ends.steps;
  Priorities* const priorities = options_ ? &priorities_for(rules) : nullptr;
  for (int tries = 1;; ++tries) {
    if (priorities) {
      // Another thread, or a batch that was asked for earlier and drawn again, may have seen more already.
      if (!ends.fixed) until = priorities->ends_from(std::move(until));
      priorities->follow(until);
    }
    const Task task{reader, ring_->shape(), until, beta, out, given_up, seed_, batch_};
    try {
      if (priorities) {
        sample_by_priority(task, *priorities);
        settled_ = true;
      } else {
        sample_uniform(task);
      }
      ++batch_;
      return;
    } catch (const Overtaken&) {
      if (ends.fixed) {
        throw Overtaken(
            "sample: the writers came round all lanes since the boundary was taken; take a later one, or make the "
            "capacity larger");
      }
      if (tries == kOvertakenTries) throw;
      until = this->ends();  // what was lost was the moment, not the batch
    }
  }
}

void Sampler::sample_uniform(const Task& task) {
  std::vector<std::uint64_t> before(task.ends.size() + 1);  // steps in the windows of the lanes before
  for (std::size_t lane = 0; lane < task.ends.size(); ++lane)
    before[lane + 1] = before[lane] + task.window(lane).size();
  const std::uint64_t all = before.back();
  if (all == 0) require_any(task);
  const auto draw = [&](RowRandom& random) -> Drawn {
    const std::uint64_t drawn = random.below(all);
    const auto above = std::upper_bound(before.begin(), before.end(), drawn);
    const auto lane = static_cast<std::uint64_t>(above - before.begin()) - 1;
    return {lane, task.window(lane).first + (drawn - before[lane])};
  };
  for (std::uint64_t at = 0; at < task.out.count; ++at) {
    Task::Row row = task.begin_row(at, draw);
    for (int tries = 1, lost = 0;; ++tries) {
      const Drawn drawn = draw(row.random);
      const Verdict verdict = task.reader.take(drawn.lane, drawn.step, task.window(drawn.lane), task.row(at), row.next);
      if (verdict == Verdict::kTaken) {
        task.took(at, drawn);
        task.out.weights[at] = 1;
        break;
      }
      if (verdict == Verdict::kOverwritten) {
        ++race_rejects_;
        // In a ring of a few slots a step can look whole while the frames that its stack begins with never are.
        if (++lost == kMostLost) overtaken();
      }
      if (tries % kLookAfter != 0) continue;
      task.go_on();
      require_any(task);
    }
  }
}

// Throws if there is nothing to draw, and says for which reason.
void Sampler::require_any(const Task& task) const {
  bool overwritten = false;
  std::uint64_t all = 0;
  for (std::uint64_t lane = 0; lane < task.ends.size(); ++lane) {
    const Window window = task.window(lane);
    all += window.size();
    for (std::uint64_t step = window.first; step < window.end; ++step) {
      const Verdict verdict = task.reader.judge(lane, step, window);
      if (verdict == Verdict::kTaken) return;
      overwritten = overwritten || verdict == Verdict::kOverwritten;
    }
  }
  if (overwritten) overtaken();
  if (all == 0) {
    bool written = false;
    for (std::uint64_t lane = 0; lane < task.ends.size(); ++lane) written = written || ring_->published(lane) > 0;
    nothing(*ring_, written ? "nothing was written up to the boundary; take a later one"
                            : "the replay is empty; write transitions first");
  }
  nothing(*ring_, "none of the " + std::to_string(all) + " observations begins a whole transition yet");
}

Priorities& Sampler::priorities_for(const TransitionRules& rules) {
  if (!priorities_ || (rules.n_step != rules_.n_step && !settled_)) {
    priorities_.emplace(*ring_, rules, options_->alpha);
    rules_ = rules;
  }
  if (rules.n_step != rules_.n_step) {
    throw std::invalid_argument("sample: n_step " + std::to_string(rules.n_step) +
                                ", but the priorities of this replay are of transitions of n_step " +
                                std::to_string(rules_.n_step) + "; make another replay for it");
  }
  return *priorities_;
}

std::optional<Sampler::State> Sampler::state(const std::function<bool()>& given_up) const {
  if (!options_) return std::nullopt;
  std::optional<Turns::Turn> turn;
  if (!turns_.mine()) turn.emplace(turns_, "save", given_up);
  if (!priorities_) return std::nullopt;
  return State{rules_.n_step, priorities_->state()};
}

void Sampler::restore(const TransitionRules& rules, const Priorities::State& state) {
  const Turns::Turn turn(turns_, "load", {});
  if (!options_) throw std::logic_error("load: priorities were saved, but this replay was made without them");
  priorities_.emplace(*ring_, rules, options_->alpha);
  rules_ = rules;
  priorities_->restore(state);
  settled_ = true;
}

void Sampler::sample_by_priority(const Task& task, Priorities& priorities) {
  if (priorities.count() == 0) {
    require_any(task);
    overtaken();  // what there is now was not there when it was looked for
  }
  const auto total = static_cast<double>(priorities.total());
  const auto count = static_cast<double>(priorities.count());
  double largest = 0;
  std::vector<double> weights(task.out.count);
  const auto draw = [&](RowRandom& random) { return priorities.find(random.below(priorities.total())); };
  for (std::uint64_t at = 0; at < task.out.count; ++at) {
    Task::Row row = task.begin_row(at, draw);
    for (int lost = 0;;) {
      const Drawn drawn = draw(row.random);
      if (task.reader.take(drawn.lane, drawn.step, task.window(drawn.lane), task.row(at), row.next) !=
          Verdict::kTaken) {
        ++race_rejects_;
        if (++lost == kLookAfter) overtaken();  // the weights do not change meanwhile: it may be that all are lost
        continue;
      }
      task.took(at, drawn);
      weights[at] = std::pow(count * static_cast<double>(priorities.weight(drawn)) / total, -task.beta);
      largest = std::max(largest, weights[at]);
      break;
    }
  }
  for (std::uint64_t at = 0; at < task.out.count; ++at) {
    task.out.weights[at] = static_cast<float>(weights[at] / largest);
  }
}

std::uint64_t Sampler::update(const std::int64_t* indices, const double* priorities, std::uint64_t count,
                              const std::function<bool()>& given_up) {
  const Turns::Turn turn(turns_, "update_priorities", given_up);
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
