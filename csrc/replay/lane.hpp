// lane.hpp: how a slot is published and read. The only file that names a memory order.
//
// A lane is written by one thread at a time and read by any number, in any process, without a lock. Step s lies in slot
// s % slots. The writer announces s, writes the slot and publishes it; a reader takes only published steps, and looks
// after copying whether the slot of the oldest step it touched may have been announced again meanwhile. Then it throws
// the copy away.
//
//   writer of step s                          reader of steps oldest .. newest
//   reserve = s + 1           relaxed  (W1)   newest < head ?               acquire  (R1)
//   fence                     release  (W2)   copy the slots                relaxed  (R2)
//   write the slot            relaxed  (W3)   fence                         acquire  (R3)
//   head = s + 1              release  (W4)   reserve <= oldest + slots ?   relaxed  (R4)
//
// Why a copy that passes R4 is whole. Had R2 read a word of step j + slots for j >= oldest, the writer had stored
// reserve = j + slots + 1 before W2; the fences synchronise (W2 with R3), so R4 sees at least that, and refuses. Older
// than step j a word cannot be: R1 saw head > newest, which W4 released after them. reserve and head only grow.
// A writer that dies leaves reserve = head or head + 1; who takes the lane over writes step `head` again.
// tests/ring_model.py tries every behaviour that C++20 allows this protocol, deaths and hand-overs included.
//
// Between processes this rests on lock-free 64-bit atomics, and on a hand-over of a lane (a kernel lock, or the mutex
// of a pool) ordering memory. With vector copies (x86-64) also on the order that this processor keeps for every part of
// a wide load or store: loads after loads, stores after stores. In how many parts it makes them does not matter: a copy
// that mixes steps is one that R4 refuses. Elsewhere, and under sanitizers, the copies are loops of relaxed atomics.
#pragma once

#include <array>
#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>

// Tests kill the writer at each of these points, or plant a mistake there (tests/ring_stress.cpp).
#ifndef FASTRL_CRASHPOINT
#define FASTRL_CRASHPOINT(place)
#endif
#ifndef FASTRL_MUTANT
#define FASTRL_MUTANT 0
#endif

namespace fastrl::lane {

static_assert(std::atomic_ref<std::uint64_t>::is_always_lock_free, "processes can share only lock-free atomics");

enum Mutant : int {
  kNone,
  kNoAnnounce,
  kAnnounceAfterPayload,
  kPublishBeforePayload,
  kValidateAgainstHead,
  kValidateNewestOnly,
  kOffByOne,
  kNoValidation,
  kTakeoverContinuesEpisode,
  kTakeoverSkipsTornSlot,
  kIgnoreEpisodeStart,
  kNoEpisodeCheck,
  kMutants
};
inline constexpr int kMutant = FASTRL_MUTANT;

// The first line of a lane. Both counters are written by its writer only.
struct alignas(64) Cursor {
  std::uint64_t reserve;     // one more than the newest step that may be being written
  std::uint64_t head;        // one more than the newest published step
  std::uint64_t writer_pid;  // of the last writer, for messages only
  std::uint64_t heard_ns;    // when it published last, or took the lane; by coarse_now_ns(), for messages only
};

inline std::atomic_ref<std::uint64_t> shared(const std::uint64_t& word) noexcept {
  return std::atomic_ref<std::uint64_t>(
      const_cast<std::uint64_t&>(word));  // readers only load: their pages are read-only
}

inline std::uint64_t load_word(const std::uint64_t& word) noexcept {
  return shared(word).load(std::memory_order_relaxed);
}
inline void store_word(std::uint64_t& word, std::uint64_t value) noexcept {
  shared(word).store(value, std::memory_order_relaxed);
}

// ---- The writer's side

inline void announce(Cursor& cursor, std::uint64_t step) noexcept {
  FASTRL_CRASHPOINT(0);
  if constexpr (kMutant == kNoAnnounce || kMutant == kAnnounceAfterPayload) return;
  store_word(cursor.reserve, step + 1);
  FASTRL_CRASHPOINT(1);
  std::atomic_thread_fence(std::memory_order_release);
  FASTRL_CRASHPOINT(2);
  if constexpr (kMutant == kPublishBeforePayload) shared(cursor.head).store(step + 1, std::memory_order_release);
}

inline void publish(Cursor& cursor, std::uint64_t step) noexcept {
  if constexpr (kMutant == kAnnounceAfterPayload) store_word(cursor.reserve, step + 1);
  FASTRL_CRASHPOINT(12);
  if constexpr (kMutant != kPublishBeforePayload) shared(cursor.head).store(step + 1, std::memory_order_release);
  FASTRL_CRASHPOINT(13);
}

// ---- The reader's side

// Steps below it are published, and stay readable until the lane comes round to them.
inline std::uint64_t published(const Cursor& cursor) noexcept {
  return shared(cursor.head).load(std::memory_order_acquire);
}

// After everything was copied: whether no slot from step `oldest` on may have been overwritten meanwhile.
inline bool still_whole(const Cursor& cursor, std::uint64_t oldest, std::uint64_t newest,
                        std::uint64_t slots) noexcept {
  if constexpr (kMutant == kNoValidation) return true;
  std::atomic_thread_fence(std::memory_order_acquire);
  const std::uint64_t first = kMutant == kValidateNewestOnly ? newest : oldest;
  const std::uint64_t limit = first + slots + (kMutant == kOffByOne ? 1 : 0);
  return load_word(kMutant == kValidateAgainstHead ? cursor.head : cursor.reserve) <= limit;
}

inline constexpr std::size_t kWord = sizeof(std::uint64_t);
constexpr std::size_t words_for(std::size_t bytes) noexcept { return (bytes + kWord - 1) / kWord; }

// ---- What a slot says besides its payload, as words

enum Flag : std::uint8_t { kFirst = 1, kTerminated = 2, kTruncated = 4 };

struct SlotMeta {
  std::uint64_t step;
  std::uint32_t episode;
  std::uint16_t age;  // steps since the episode's first frame; saturates
  std::uint8_t flags;
  std::uint8_t zero;
  float reward;  // of the step that led here
  std::uint32_t zero_too;

  bool first() const noexcept { return (flags & kFirst) != 0; }
  bool terminated() const noexcept { return (flags & kTerminated) != 0; }
  bool truncated() const noexcept { return (flags & kTruncated) != 0; }
  bool last() const noexcept { return (flags & (kTerminated | kTruncated)) != 0; }
};
inline constexpr std::size_t kMetaWords = sizeof(SlotMeta) / kWord;
static_assert(sizeof(SlotMeta) == kMetaWords * kWord);

inline void store_meta(std::uint64_t* to, const SlotMeta& meta) noexcept {
  const auto words = std::bit_cast<std::array<std::uint64_t, kMetaWords>>(meta);
  for (std::size_t i = 0; i < kMetaWords; ++i) store_word(to[i], words[i]);
}

inline SlotMeta load_meta(const std::uint64_t* from) noexcept {
  std::array<std::uint64_t, kMetaWords> words;
  for (std::size_t i = 0; i < kMetaWords; ++i) words[i] = load_word(from[i]);
  return std::bit_cast<SlotMeta>(words);
}

}  // namespace fastrl::lane
