// batch_memory.hpp: memory that batches are written into, lent and used again.
//
// Memory that was just mapped costs a page fault every 4 KB, which for a batch of frames takes as long as the copying.
// So a batch's memory goes back to its bank when nobody holds it any more, and the next batch of the same form gets it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

namespace fastrl {

// Where a batch goes: arrays of `count` rows.
struct BatchOut {
  std::uint64_t count;
  std::uint8_t* observations;  // observations_per_row() x obs_bytes, or null:
  std::int64_t* places;        // then observations_per_row() places of a mirror (transitions.hpp)
  std::uint8_t* actions;       // action_bytes
  float* rewards;
  float* discounts;
  float* weights;         // importance weights, the largest of a batch is 1; uniform: all 1
  std::int64_t* indices;  // lane, step
};

// What one batch needs.
struct BatchForm {
  std::uint64_t count;
  std::uint64_t observation_bytes;  // of a row, or 0:
  std::uint64_t places;             // then of a row
  std::uint64_t action_bytes;

  std::uint64_t bytes() const noexcept;
  friend bool operator==(const BatchForm&, const BatchForm&) = default;
};

// Some bytes at a cache line, and who frees them.
struct Block {
  std::byte* data;
  std::shared_ptr<void> owner;
};
Block new_block(std::size_t bytes);

// One block with all the arrays of a batch, each at a cache line.
class BatchMemory {
 public:
  BatchMemory(const BatchForm& form, Block block) : form_(form), block_(std::move(block)) {}
  const BatchForm& form() const noexcept { return form_; }
  BatchOut out() const noexcept;

 private:
  template <typename T>
  T* at(std::uint64_t offset) const noexcept {
    return reinterpret_cast<T*>(block_.data + offset);
  }

  BatchForm form_;
  Block block_;
};

// What is lent goes back when its last holder lets go, also after the bank's owner did. For any thread.
class BatchBank : public std::enable_shared_from_this<BatchBank> {
 public:
  using Allocate = std::function<Block(std::size_t bytes)>;
  static constexpr std::size_t kMostIdle = 8;  // more, and the one that lay there longest is freed

  explicit BatchBank(Allocate allocate = new_block);

  std::shared_ptr<BatchMemory> lend(const BatchForm& form);
  std::size_t idle() const;

 private:
  void take_back(BatchMemory* returned) noexcept;

  Allocate allocate_;
  mutable std::mutex mutex_;
  std::vector<std::unique_ptr<BatchMemory>> idle_;  // of any form, in the order in which they came back
};

}  // namespace fastrl
