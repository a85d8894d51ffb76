#include "replay/ring.hpp"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <ctime>
#include <limits>

#include "replay/payload.hpp"
#include "replay/stalls.hpp"

namespace fastrl {

namespace {

constexpr std::uint64_t kPage = 4096;
constexpr std::uint64_t kLine = 64;
constexpr std::uint64_t kMagic = 0x3130676e69725246;  // "FRring01"
constexpr std::size_t kHeaderWords = 6;

constexpr std::uint64_t round_up(std::uint64_t value, std::uint64_t step) { return (value + step - 1) / step * step; }

// Small payloads are packed; large ones begin at a cache line.
constexpr std::uint64_t kLargePayload = 512;

std::array<std::uint64_t, kHeaderWords> header_of(const RingShape& shape) {
  return {kMagic, shape.lanes, shape.slots, shape.stack, shape.obs_bytes, shape.action_bytes};
}

template <typename Word, typename Byte>
LaneView<Word> view_of(const RingShape& shape, Byte* base) {
  using Cursor = typename LaneView<Word>::CursorType;
  auto* const metas = reinterpret_cast<Word*>(base + sizeof(lane::Cursor));
  const std::uint64_t meta_bytes = round_up(shape.slots * shape.meta_words() * lane::kWord, kLine);
  auto* const payloads = reinterpret_cast<Word*>(base + sizeof(lane::Cursor) + meta_bytes);
  return {reinterpret_cast<Cursor*>(base), metas, payloads, shape.slots, shape.meta_words(), shape.payload_words()};
}

}  // namespace

std::uint64_t coarse_now_ns() noexcept {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
  return static_cast<std::uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<std::uint64_t>(now.tv_nsec);
}

std::uint64_t RingShape::payload_words() const noexcept {
  return round_up(obs_bytes, obs_bytes >= kLargePayload ? kLine : lane::kWord) / lane::kWord;
}

std::uint64_t RingShape::lane_bytes() const noexcept {
  const std::uint64_t metas = round_up(slots * meta_words() * lane::kWord, kLine);
  return round_up(sizeof(lane::Cursor) + metas + slots * payload_words() * lane::kWord, kPage);
}

std::uint64_t RingShape::lane_offset(std::uint64_t lane) const noexcept { return kPage + lane * lane_bytes(); }

// As many as there can be, where the number is larger than that: no such ring fits anywhere.
std::uint64_t RingShape::region_bytes() const noexcept {
  const double of_a_slot = static_cast<double>(meta_words() + payload_words()) * lane::kWord;
  const double about = of_a_slot * static_cast<double>(slots) * static_cast<double>(lanes);
  return about < 0x1p62 ? lane_offset(lanes) : std::numeric_limits<std::uint64_t>::max();
}

Ring::Ring(std::shared_ptr<SharedRegion> region, const RingShape& shape) : region_(std::move(region)), shape_(shape) {}

std::shared_ptr<Ring> Ring::create(const RingShape& shape) {
  std::shared_ptr<Ring> ring(new Ring(SharedRegion::create(shape.region_bytes()), shape));
  const Mapping header = ring->region_->map_writable(0, kPage);
  const auto words = header_of(shape);
  for (std::size_t i = 0; i < words.size(); ++i) {
    lane::store_word(reinterpret_cast<std::uint64_t*>(header.data())[i], words[i]);
  }
  return ring;
}

// Nothing that is read from the segment is used to compute an address: the shape comes with the handle, and must agree.
std::shared_ptr<Ring> Ring::attach(const RegionAddress& address, const RingShape& shape, Access access) {
  if (address.bytes != shape.region_bytes()) {
    throw RegionGone("attach: the handle is damaged: its shape needs " + std::to_string(shape.region_bytes()) +
                     " bytes, its segment has " + std::to_string(address.bytes));
  }
  std::shared_ptr<Ring> ring(new Ring(SharedRegion::attach(address, access), shape));
  const auto* const header = reinterpret_cast<const std::uint64_t*>(ring->region_->data());
  const auto expected = header_of(shape);
  for (std::size_t i = 0; i < expected.size(); ++i) {
    if (lane::load_word(header[i]) != expected[i]) {
      throw RegionGone("attach: the segment is no replay of the handle's shape (word " + std::to_string(i) +
                       " of its header differs)");
    }
  }
  return ring;
}

LaneView<const std::uint64_t> Ring::lane(std::uint64_t lane) const noexcept {
  return view_of<const std::uint64_t>(shape_, region_->data() + shape_.lane_offset(lane));
}

bool Ring::copy_slots(std::uint64_t lane, std::uint64_t first, std::uint64_t end, std::uint64_t* out) const noexcept {
  const LaneView<const std::uint64_t> view = this->lane(lane);
  if (end > lane::published(*view.cursor)) return false;
  for (std::uint64_t step = first; step < end; ++step) {
    lane::load_payload(out, view.meta(step), view.meta_words * lane::kWord);
    lane::load_payload(out + view.meta_words, view.payload(step), view.payload_words * lane::kWord);
    out += slot_words();
  }
  return first == end || lane::still_whole(*view.cursor, first, end - 1, shape_.slots);
}

bool Ring::copy_observations(std::uint64_t lane, std::uint64_t first, std::uint64_t end,
                             std::uint8_t* out) const noexcept {
  const LaneView<const std::uint64_t> view = this->lane(lane);
  if (end > lane::published(*view.cursor)) return false;
  for (std::uint64_t step = first; step < end; ++step, out += shape_.obs_bytes) {
    lane::load_payload(out, view.payload(step), shape_.obs_bytes);
  }
  return first == end || lane::still_whole(*view.cursor, first, end - 1, shape_.slots);
}

bool Ring::has_writer(std::uint64_t lane) const { return RegionLock::is_taken(*region_, lane, 1); }

namespace {

// Before the lane is mapped as a whole, which can take its time: whoever looks meanwhile is to find who has it.
void sign(const Ring& ring, std::uint64_t lane) {
  const Mapping page = ring.region().map_writable(ring.shape().lane_offset(lane), kPage);
  auto& cursor = *reinterpret_cast<lane::Cursor*>(page.data());
  lane::store_word(cursor.writer_pid, static_cast<std::uint64_t>(getpid()));
  lane::store_word(cursor.heard_ns, coarse_now_ns());
}

RegionLock lock_lane(const Ring& ring, std::uint64_t lane) {
  std::optional<RegionLock> lock = RegionLock::try_take(ring.region(), lane, 1);
  if (!lock) {
    const LaneStatus status = lane_status(ring, lane);
    throw LaneBusy(
        "writer: lane " + std::to_string(lane) + " has a writer (process " +
        std::to_string(status.writer_pid.value_or(0)) + ", silent for " + in_seconds(status.silent_s.value_or(0)) +
        " s); each lane has one at a time, and is free when that one is closed (a pool's: when sink and pool are "
        "gone) or its process has ended");
  }
  sign(ring, lane);
  return std::move(*lock);
}

}  // namespace

LaneWriter::LaneWriter(const std::shared_ptr<const Ring>& ring, std::uint64_t lane, bool continue_episode)
    : ring_(ring),
      lock_(lock_lane(*ring, lane)),
      mapping_(ring->region().map_writable(ring->shape().lane_offset(lane), ring->shape().lane_bytes())),
      view_(view_of<std::uint64_t>(ring->shape(), mapping_.data())),
      no_action_(ring->shape().action_bytes) {
  next_ = lane::published(*view_.cursor);
  if (next_ > 0) {
    adopt(lane::load_meta(view_.meta(next_ - 1)), continue_episode || lane::kMutant == lane::kTakeoverContinuesEpisode);
  }
  if constexpr (lane::kMutant == lane::kTakeoverSkipsTornSlot) {
    if (lane::load_word(view_.cursor->reserve) > next_) lane::publish(*view_.cursor, next_++);
  }
}

// The episode that is there may have been broken off with its writer. It is continued only by who knows that it was
// not.
void LaneWriter::adopt(const lane::SlotMeta& newest, bool continue_episode) noexcept {
  open_ = continue_episode && !newest.last();
  episode_ = newest.episode + (open_ ? 0 : 1);
  age_ = open_ ? newest.age : std::uint16_t{0};
}

void LaneWriter::leave_unsigned() noexcept {
  lane::store_word(view_.cursor->writer_pid, 0);
  lane::store_word(view_.cursor->heard_ns, 0);
}

bool LaneWriter::restore(std::uint64_t first, std::uint64_t count, const std::uint64_t* slots) noexcept {
  if (count == 0) return true;
  if (lane::load_meta(slots).step != first) return false;
  if (next_ == 0) {  // the steps before them are not there, and never asked for
    next_ = first;
    lane::store_word(view_.cursor->reserve, first);
    lane::publish(*view_.cursor, first - 1);
  }
  lane::SlotMeta newest{};
  for (std::uint64_t i = 0; i < count; ++i, ++next_, slots += ring_->slot_words()) {
    newest = lane::load_meta(slots);
    if (newest.step != next_ || next_ != first + i) return false;
    lane::announce(*view_.cursor, next_);
    lane::store_payload(view_.meta(next_), slots, view_.meta_words * lane::kWord);
    lane::store_payload(view_.payload(next_), slots + view_.meta_words, view_.payload_words * lane::kWord);
    lane::publish(*view_.cursor, next_);
  }
  adopt(newest, true);
  return true;
}

void LaneWriter::put(const void* obs) noexcept {
#ifdef FASTRL_CRASHPOINTS
  // In eight parts, so that a test can end the writer between them.
  const std::uint64_t words = lane::words_for(ring_->shape().obs_bytes);
  for (std::uint64_t part = 0; part < 8; ++part) {
    const std::uint64_t from = words * part / 8 * lane::kWord;
    const std::uint64_t to = std::min(words * (part + 1) / 8 * lane::kWord, ring_->shape().obs_bytes);
    lane::store_payload(view_.payload(next_) + from / lane::kWord, static_cast<const std::uint8_t*>(obs) + from,
                        to - from);
    FASTRL_CRASHPOINT(4 + static_cast<int>(part));
  }
#else
  lane::store_payload(view_.payload(next_), obs, ring_->shape().obs_bytes);
#endif
  bytes_stored_ += ring_->shape().obs_bytes;
}

void LaneWriter::commit(bool first, const void* action, float reward, bool terminated, bool truncated) noexcept {
  if (first) {
    if (open_) ++episode_;  // it was broken off; else the number was taken when the one before ended
    age_ = 0;
  } else if (age_ < std::numeric_limits<std::uint16_t>::max()) {
    ++age_;
  }
  const auto flags = static_cast<std::uint8_t>((first ? lane::kFirst : 0) | (terminated ? lane::kTerminated : 0) |
                                               (truncated ? lane::kTruncated : 0));
  lane::store_meta(view_.meta(next_), {next_, episode_, age_, flags, 0, first ? 0.0F : reward, 0});
  FASTRL_CRASHPOINT(3);
  // No action led to the first observation. What the slot's last step had is taken out, so that a replay that went on
  // from a save, and never had it, has the same bytes.
  lane::store_payload(view_.action(next_), first ? no_action_.data() : action, ring_->shape().action_bytes);
  lane::store_word(view_.cursor->heard_ns, coarse_now_ns());
  lane::publish(*view_.cursor, next_);
  ++next_;
  open_ = !(terminated || truncated);
  if (!open_) ++episode_;
}

}  // namespace fastrl
