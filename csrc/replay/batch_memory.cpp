#include "replay/batch_memory.hpp"

#include <algorithm>
#include <iterator>
#include <new>

namespace fastrl {

namespace {

constexpr std::uint64_t kArrayAlignment = 64;  // a cache line

// Where each array of a batch begins in its block.
struct Offsets {
  std::uint64_t rows, actions, rewards, discounts, weights, indices, end;
};

Offsets offsets_of(const BatchForm& form) noexcept {
  std::uint64_t at = 0;
  const auto next = [&](std::uint64_t row_bytes) {
    const std::uint64_t begin = at;
    at += (form.count * row_bytes + kArrayAlignment - 1) / kArrayAlignment * kArrayAlignment;
    return begin;
  };
  Offsets offsets{};
  offsets.rows = next(form.observation_bytes + form.places * sizeof(std::int64_t));
  offsets.actions = next(form.action_bytes);
  offsets.rewards = next(sizeof(float));
  offsets.discounts = next(sizeof(float));
  offsets.weights = next(sizeof(float));
  offsets.indices = next(2 * sizeof(std::int64_t));
  offsets.end = at;
  return offsets;
}

}  // namespace

std::uint64_t BatchForm::bytes() const noexcept { return offsets_of(*this).end; }

Block new_block(std::size_t bytes) {
  constexpr std::align_val_t kAlignment{kArrayAlignment};
  void* const data = ::operator new(bytes, kAlignment);
  return {static_cast<std::byte*>(data), {data, [](void* memory) { ::operator delete(memory, kAlignment); }}};
}

BatchOut BatchMemory::out() const noexcept {
  const Offsets offsets = offsets_of(form_);
  return {form_.count,
          form_.places == 0 ? at<std::uint8_t>(offsets.rows) : nullptr,
          form_.places != 0 ? at<std::int64_t>(offsets.rows) : nullptr,
          at<std::uint8_t>(offsets.actions),
          at<float>(offsets.rewards),
          at<float>(offsets.discounts),
          at<float>(offsets.weights),
          at<std::int64_t>(offsets.indices)};
}

BatchBank::BatchBank(Allocate allocate) : allocate_(std::move(allocate)) { idle_.reserve(kMostIdle + 1); }

std::shared_ptr<BatchMemory> BatchBank::lend(const BatchForm& form) {
  std::unique_ptr<BatchMemory> memory;
  {
    const std::lock_guard lock(mutex_);
    // The one that came back last: it may still be in a cache.
    const auto found =
        std::find_if(idle_.rbegin(), idle_.rend(), [&](const auto& idle) { return idle->form() == form; });
    if (found != idle_.rend()) {
      memory = std::move(*found);
      idle_.erase(std::next(found).base());
    }
  }
  if (!memory) memory = std::make_unique<BatchMemory>(form, allocate_(form.bytes()));
  return {memory.release(), [bank = shared_from_this()](BatchMemory* returned) { bank->take_back(returned); }};
}

std::size_t BatchBank::idle() const {
  const std::lock_guard lock(mutex_);
  return idle_.size();
}

void BatchBank::take_back(BatchMemory* returned) noexcept {
  std::unique_ptr<BatchMemory> freed(returned);
  // Only if free: in a forked child the lock may be held for ever by a thread that is not there.
  const std::unique_lock lock(mutex_, std::try_to_lock);
  if (!lock) return;
  idle_.push_back(std::move(freed));
  if (idle_.size() <= kMostIdle) return;
  freed = std::move(idle_.front());  // and frees it without the lock
  idle_.erase(idle_.begin());
}

}  // namespace fastrl
