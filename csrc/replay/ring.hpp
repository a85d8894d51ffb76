// ring.hpp: where everything lies in a replay's segment, and the two ways to hold it: Ring to read, LaneWriter to
// write.
//
//   header page | lane 0 | lane 1 | ...           lane = cursor | meta of every slot | payload of every slot
//
// A slot holds one observation, and of the step that led to it the action, the reward and whether it ended the episode.
// It is published when the observation is there and never changed. So the last observation of every episode has a slot,
// a transition is two neighbouring slots, and a stack is up to `stack` of them.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "replay/lane.hpp"
#include "replay/shared_region.hpp"

namespace fastrl {

struct LaneBusy : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// The system's clock that never goes back, the same in all processes. In steps of a few milliseconds: reading it costs
// a few nanoseconds then.
std::uint64_t coarse_now_ns() noexcept;

struct RingShape {
  std::uint64_t lanes;
  std::uint64_t slots;  // of each lane
  std::uint64_t stack;  // observations that are looked at together
  std::uint64_t obs_bytes;
  std::uint64_t action_bytes;

  std::uint64_t meta_words() const noexcept { return lane::kMetaWords + lane::words_for(action_bytes); }
  std::uint64_t payload_words() const noexcept;
  std::uint64_t lane_bytes() const noexcept;
  std::uint64_t region_bytes() const noexcept;
  std::uint64_t lane_offset(std::uint64_t lane) const noexcept;
};

// One lane's addresses in a mapping.
template <typename Word>  // std::uint64_t or const std::uint64_t
struct LaneView {
  using CursorType = std::conditional_t<std::is_const_v<Word>, const lane::Cursor, lane::Cursor>;
  CursorType* cursor;
  Word* metas;
  Word* payloads;
  std::uint64_t slots;
  std::uint64_t meta_words;
  std::uint64_t payload_words;

  Word* meta(std::uint64_t step) const noexcept { return metas + step % slots * meta_words; }
  Word* action(std::uint64_t step) const noexcept { return meta(step) + lane::kMetaWords; }
  Word* payload(std::uint64_t step) const noexcept { return payloads + step % slots * payload_words; }
};

class Ring {
 public:
  static std::shared_ptr<Ring> create(const RingShape& shape);
  static std::shared_ptr<Ring> attach(const RegionAddress& address, const RingShape& shape,
                                      Access access = Access::kReadWrite);

  const RingShape& shape() const noexcept { return shape_; }
  const SharedRegion& region() const noexcept { return *region_; }
  LaneView<const std::uint64_t> lane(std::uint64_t lane) const noexcept;

  std::uint64_t published(std::uint64_t lane) const noexcept { return lane::published(*this->lane(lane).cursor); }
  bool has_writer(std::uint64_t lane) const;

  // The observations of steps first .. end - 1, one behind the other; false if they are not all there.
  bool copy_observations(std::uint64_t lane, std::uint64_t first, std::uint64_t end, std::uint8_t* out) const noexcept;

  // Steps first .. end - 1 as they lie there, meta and payload of each, into `out`; false if they are not all there.
  std::uint64_t slot_words() const noexcept { return shape_.meta_words() + shape_.payload_words(); }
  bool copy_slots(std::uint64_t lane, std::uint64_t first, std::uint64_t end, std::uint64_t* out) const noexcept;

 private:
  Ring(std::shared_ptr<SharedRegion> region, const RingShape& shape);

  std::shared_ptr<SharedRegion> region_;
  RingShape shape_;
};

// The only writer of a lane. For one thread at a time; it may pass to another between two slots, never within one, and
// who passes it on orders memory (a pool's mutex does).
class LaneWriter {
 public:
  // Takes the lane over where its last writer left it, also in the middle of a slot. Throws LaneBusy.
  // `continue_episode`: the writer goes on with the episode that is there, whose env it has restored; else what it
  // writes is another one.
  LaneWriter(const std::shared_ptr<const Ring>& ring, std::uint64_t lane, bool continue_episode = false);

  // Slots that copy_slots gave, into a lane where nothing was written yet. False if they are not what it gives.
  bool restore(std::uint64_t first, std::uint64_t count, const std::uint64_t* slots) noexcept;

  // As if the lane had never had a writer: what was put there is somebody else's.
  void leave_unsigned() noexcept;

  // begin, put and commit make one slot. Throw nothing: who calls has looked at `episode_is_open`.
  void begin() noexcept { lane::announce(*view_.cursor, next_); }
  void put(const void* obs) noexcept;
  void commit(bool first, const void* action, float reward, bool terminated, bool truncated) noexcept;

  bool episode_is_open() const noexcept { return open_; }  // else the next slot must be a first one
  std::uint64_t next_step() const noexcept { return next_; }
  std::uint64_t bytes_stored() const noexcept { return bytes_stored_; }
  bool usable_here() const noexcept { return lock_.held_here(); }

 private:
  void adopt(const lane::SlotMeta& newest, bool continue_episode) noexcept;

  std::shared_ptr<const Ring> ring_;
  RegionLock lock_;
  Mapping mapping_;
  LaneView<std::uint64_t> view_{};
  std::vector<std::uint8_t> no_action_;
  std::uint64_t next_ = 0;
  std::uint32_t episode_ = 0;
  std::uint16_t age_ = 0;
  bool open_ = false;
  std::uint64_t bytes_stored_ = 0;
};

}  // namespace fastrl
