#include "replay/transitions.hpp"

#include <algorithm>
#include <cstring>

#include "replay/payload.hpp"

namespace fastrl {

TransitionReader::TransitionReader(const Ring& ring, const TransitionRules& rules)
    : ring_(ring), shape_(ring.shape()), rules_(rules) {}

std::uint64_t TransitionReader::reach(std::uint64_t age) const noexcept {
  if constexpr (lane::kMutant == lane::kIgnoreEpisodeStart) return shape_.stack - 1;
  return std::min(age, shape_.stack - 1);
}

Verdict TransitionReader::follow(const LaneView<const std::uint64_t>& lane, std::uint64_t step, const Window& window,
                                 Path& path) const noexcept {
  path.from = lane::load_meta(lane.meta(step));
  if (path.from.step != step) return Verdict::kOverwritten;
  if (path.from.last()) return Verdict::kIneligible;
  const std::uint64_t back = reach(path.from.age);
  if (step < window.first + back) return Verdict::kIneligible;
  path.oldest = step - back;
  path.reward = 0;
  path.discount = 1;
  for (path.end = step + 1;; ++path.end) {
    if (path.end >= window.end) return Verdict::kNotYet;
    const lane::SlotMeta next = lane::load_meta(lane.meta(path.end));
    if (next.step != path.end) return Verdict::kOverwritten;
    // Broken off, by the end of its writer or by a reset in its middle.
    if (lane::kMutant != lane::kNoEpisodeCheck && next.episode != path.from.episode) return Verdict::kIneligible;
    path.reward += path.discount * static_cast<double>(next.reward);
    path.discount *= rules_.gamma;
    if (next.terminated()) path.discount = 0;  // also where it is truncated too
    if (next.last() || path.end - step == rules_.n_step) return Verdict::kTaken;
  }
}

void TransitionReader::copy_observation(const std::uint64_t* from, std::uintptr_t next,
                                        std::uint8_t* out) const noexcept {
  const auto ahead = static_cast<std::ptrdiff_t>(next == 0 ? 0 : next - reinterpret_cast<std::uintptr_t>(from));
  lane::load_payload(out, from, shape_.obs_bytes, ahead);
}

void TransitionReader::copy_stack(const LaneView<const std::uint64_t>& lane, std::uint64_t newest, std::uint64_t age,
                                  std::uintptr_t next, std::uint8_t* out) const noexcept {
  const std::uint64_t back = reach(age);
  const std::uint64_t missing = shape_.stack - 1 - back;
  for (std::uint64_t at = missing; at < shape_.stack; ++at) {
    const std::uint64_t step = newest - (shape_.stack - 1 - at);
    copy_observation(lane.payload(step), next == 0 ? 0 : next + at * lane.payload_words * lane::kWord,
                     out + at * shape_.obs_bytes);
  }
  const std::uint8_t* const first = out + missing * shape_.obs_bytes;
  for (std::uint64_t i = 0; i < missing; ++i) {
    if (rules_.padding == Padding::kZeros) {
      std::memset(out + i * shape_.obs_bytes, 0, shape_.obs_bytes);
    } else {
      std::memcpy(out + i * shape_.obs_bytes, first, shape_.obs_bytes);
    }
  }
}

void TransitionReader::place_stack(std::uint64_t lane, std::uint64_t newest, std::uint64_t age,
                                   std::int64_t* out) const noexcept {
  const std::uint64_t back = reach(age);
  const std::int64_t pad = rules_.padding == Padding::kZeros ? static_cast<std::int64_t>(shape_.lanes * shape_.slots)
                                                             : place(lane, newest - back);
  out = std::fill_n(out, shape_.stack - 1 - back, pad);
  for (std::uint64_t step = newest - back; step <= newest; ++step) *out++ = place(lane, step);
}

std::uintptr_t TransitionReader::expect(std::uint64_t lane, std::uint64_t step,
                                        const TransitionOut& out) const noexcept {
  const LaneView<const std::uint64_t> view = ring_.lane(lane);
  __builtin_prefetch(view.meta(step));
  __builtin_prefetch(view.meta(step + 1) + view.meta_words - 1);
  if (out.observations == nullptr) return 0;
  const std::uint64_t* const oldest = view.payload(step + view.slots - (shape_.stack - 1));
  __builtin_prefetch(oldest);
  return reinterpret_cast<std::uintptr_t>(oldest);
}

Verdict TransitionReader::judge(std::uint64_t lane, std::uint64_t step, const Window& window) const noexcept {
  Path path;
  return follow(ring_.lane(lane), step, window, path);
}

bool TransitionReader::begins_in(std::uint64_t lane, std::uint64_t step, const Window& window) const noexcept {
  const lane::SlotMeta meta = lane::load_meta(ring_.lane(lane).meta(step));
  return meta.step == step && step >= window.first + reach(meta.age);
}

Verdict TransitionReader::take(std::uint64_t lane, std::uint64_t step, const Window& window, const TransitionOut& out,
                               std::uintptr_t next) const noexcept {
  const LaneView<const std::uint64_t> view = ring_.lane(lane);
  Path path;
  const Verdict verdict = follow(view, step, window, path);
  if (verdict != Verdict::kTaken) return verdict;
  lane::load_payload(out.action, view.action(step + 1), shape_.action_bytes);
  const std::uint64_t end_age = path.from.age + (path.end - step);
  const std::uint64_t first_stack_bytes = shape_.stack * shape_.obs_bytes;
  // With n_step 1 the second stack shares all but its newest with the first. What is copied of it lies so much later:
  const std::uint64_t later = rules_.n_step == 1 ? shape_.stack : rules_.n_step;
  const std::uintptr_t next_end = next == 0 ? 0 : next + later * view.payload_words * lane::kWord;
  if (out.observations == nullptr) {
    place_stack(lane, step, path.from.age, out.places);
    if (rules_.n_step == 1) {
      out.places[shape_.stack] = place(lane, path.end);
    } else {
      place_stack(lane, path.end, end_age, out.places + shape_.stack);
    }
  } else {
    copy_stack(view, step, path.from.age, next, out.observations);
    if (rules_.n_step == 1) {
      copy_observation(view.payload(path.end), next_end, out.observations + first_stack_bytes);
    } else {
      copy_stack(view, path.end, end_age, next_end, out.observations + first_stack_bytes);
    }
  }
  *out.reward = static_cast<float>(path.reward);
  *out.discount = static_cast<float>(path.discount);
  return lane::still_whole(*view.cursor, path.oldest, path.end, shape_.slots) ? Verdict::kTaken : Verdict::kOverwritten;
}

bool TransitionReader::take_stack(std::uint64_t lane, std::uint64_t step, std::uint8_t* out) const noexcept {
  const LaneView<const std::uint64_t> view = ring_.lane(lane);
  const lane::SlotMeta meta = lane::load_meta(view.meta(step));
  if (meta.step != step) return false;
  const std::uint64_t back = reach(meta.age);
  if (step < back) return false;  // torn: no age is larger than the step
  copy_stack(view, step, meta.age, 0, out);
  return lane::still_whole(*view.cursor, step - back, step, shape_.slots);
}

}  // namespace fastrl
