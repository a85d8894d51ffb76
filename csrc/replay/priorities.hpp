// priorities.hpp: which transitions may be drawn, and with what weight (Schaul et al. 2015, proportional).
//
// It follows the ring at moments that its owner chooses; between them it does not change but by update(). A transition
// enters with the largest weight given so far, and leaves before its slots are overwritten.
#pragma once

#include <cstdint>
#include <vector>

#include "replay/sum_tree.hpp"
#include "replay/transitions.hpp"

namespace fastrl {

struct Drawn {
  std::uint64_t lane;
  std::uint64_t step;
};

class Priorities {
 public:
  // A weight is round(priority^alpha * 2^20), within 1 .. 2^43, or less where so many leaves could overflow the sum.
  static constexpr double kUnit = 1 << 20;
  static constexpr std::uint64_t kMostWeight = std::uint64_t{1} << 43;
  static constexpr std::uint64_t kMostSum = std::uint64_t{1} << 63;

  Priorities(const Ring& ring, const TransitionRules& rules, double alpha);

  // Where windows that would end at `ends` can end: not before those that were followed last, for what has left cannot
  // come back.
  std::vector<std::uint64_t> ends_from(std::vector<std::uint64_t> ends) const;

  // Lets in what became eligible in the windows that end at `ends`, and lets go what left them. Throws
  // std::invalid_argument if a window ends before it did.
  void follow(const std::vector<std::uint64_t>& ends);

  std::uint64_t total() const noexcept { return tree_.total(); }
  std::uint64_t count() const noexcept { return count_; }
  Drawn find(std::uint64_t at) const noexcept;
  std::uint64_t weight(const Drawn& drawn) const noexcept { return tree_.weight(leaf(drawn)); }

  // False, and nothing changes, if the transition is no longer, or never was, one that can be drawn.
  bool update(const Drawn& drawn, double priority) noexcept;

  // Everything that decides what is drawn next, for checkpoints.
  struct State {
    std::uint64_t largest;
    std::vector<std::uint64_t> first, entered, ends;  // of each lane
    std::vector<std::uint64_t> weights;               // of steps first .. entered - 1 of each lane in turn
  };
  State state() const;
  void restore(const State& state);  // throws std::invalid_argument on one of another ring

 private:
  struct Lane {
    std::uint64_t first = 0;    // steps before it have left
    std::uint64_t entered = 0;  // steps before it were judged
    std::uint64_t end = 0;      // of the window that was followed last
  };
  std::uint64_t leaf(const Drawn& drawn) const noexcept {
    return drawn.lane * shape_.slots + drawn.step % shape_.slots;
  }
  void set(std::uint64_t lane, std::uint64_t step, std::uint64_t weight) noexcept;

  TransitionReader reader_;
  RingShape shape_;
  double alpha_;
  SumTree tree_;
  std::uint64_t most_weight_;
  std::vector<Lane> lanes_;
  std::uint64_t count_ = 0;  // leaves above 0
  std::uint64_t largest_ = static_cast<std::uint64_t>(kUnit);
};

}  // namespace fastrl
