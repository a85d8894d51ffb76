// transitions.hpp: one transition out of a ring: which steps are one, and copying it whole.
//
// Transition t of a lane goes from the stack at step t to the stack n steps later, or to the last one of the episode.
// It is eligible where step t does not end its episode, every step up to its end is published and of the same episode,
// and the oldest observation of its stack is still in the window. A stack never reaches before its episode's first
// observation; what is missing there is padded.
#pragma once

#include <cstdint>

#include "replay/ring.hpp"

namespace fastrl {

enum class Padding : int { kZeros = 0, kFirstObs = 1 };

// Steps first .. end - 1 of a lane, from which a reader takes.
struct Window {
  std::uint64_t first;
  std::uint64_t end;
  std::uint64_t size() const noexcept { return end - first; }
};

// How many steps of a full lane, counted from its oldest, a reader leaves alone: so far may its writer go on before
// what is being copied is lost and must be drawn again.
inline constexpr std::uint64_t kGuardSteps = 8;

// The window that ends at `end`: what does not depend on how far the writer has come since then.
inline Window window_until(std::uint64_t end, std::uint64_t slots) noexcept {
  const std::uint64_t kept = slots - kGuardSteps;
  return {end > kept ? end - kept : 0, end};
}

// What all transitions of a batch have in common.
struct TransitionRules {
  std::uint64_t n_step;
  double gamma;
  Padding padding;
};

// Where one transition goes. With n_step 1 both stacks are views of stack + 1 observations, else each has its own.
// Instead of the observations it can be told where they lie in a mirror of the ring: a table with a row for every slot
// of lane 0, of lane 1, ..., and a last row of zeros.
struct TransitionOut {
  std::uint8_t* observations;  // or null:
  std::int64_t* places;        // then rows of the table, as many as observations would be
  std::uint8_t* action;
  float* reward;
  float* discount;
};

enum class Verdict {
  kTaken,
  kIneligible,   // and will never be
  kNotYet,       // steps that it needs are not in the window
  kOverwritten,  // by a later step, before or while it was read. Of one that is, the others may be said too; never
                 // kTaken
};

class TransitionReader {
 public:
  TransitionReader(const Ring& ring, const TransitionRules& rules);

  // How many observations one transition writes.
  std::uint64_t observations_per_row() const noexcept {
    return rules_.n_step == 1 ? shape_.stack + 1 : 2 * shape_.stack;
  }

  // Copies transition `step` if it is eligible in `window`, which must contain it. Unless taken, `out` holds anything.
  // `next`: what `expect` said of the one that is taken after it. Its observations come from memory meanwhile.
  Verdict take(std::uint64_t lane, std::uint64_t step, const Window& window, const TransitionOut& out,
               std::uintptr_t next = 0) const noexcept;

  // Has the processor fetch what `take` into such an `out` will touch first, so that it need not wait for memory then.
  // Returns the address where the observations would begin, were none of them missing; 0 where none are copied.
  std::uintptr_t expect(std::uint64_t lane, std::uint64_t step, const TransitionOut& out) const noexcept;

  // The verdict without copying.
  Verdict judge(std::uint64_t lane, std::uint64_t step, const Window& window) const noexcept;

  // Whether the whole first stack of transition `step` lies in `window`.
  bool begins_in(std::uint64_t lane, std::uint64_t step, const Window& window) const noexcept;

  // The stack at `step`, for acting; false if it was overwritten meanwhile.
  bool take_stack(std::uint64_t lane, std::uint64_t step, std::uint8_t* out) const noexcept;

 private:
  struct Path {  // from a transition's stack to where it ends
    lane::SlotMeta from;
    std::uint64_t oldest;  // observation of its first stack
    std::uint64_t end;     // step of its second stack
    double reward;
    double discount;
  };
  Verdict follow(const LaneView<const std::uint64_t>& lane, std::uint64_t step, const Window& window,
                 Path& path) const noexcept;
  std::uint64_t reach(std::uint64_t age) const noexcept;  // observations before the newest in a stack of that age
  // One observation, while what lies at `next`, if that is not 0, is fetched.
  void copy_observation(const std::uint64_t* from, std::uintptr_t next, std::uint8_t* out) const noexcept;
  void copy_stack(const LaneView<const std::uint64_t>& lane, std::uint64_t newest, std::uint64_t age,
                  std::uintptr_t next, std::uint8_t* out) const noexcept;
  std::int64_t place(std::uint64_t lane, std::uint64_t step) const noexcept {
    return static_cast<std::int64_t>(lane * shape_.slots + step % shape_.slots);
  }
  void place_stack(std::uint64_t lane, std::uint64_t newest, std::uint64_t age, std::int64_t* out) const noexcept;

  const Ring& ring_;
  RingShape shape_;
  TransitionRules rules_;
};

}  // namespace fastrl
