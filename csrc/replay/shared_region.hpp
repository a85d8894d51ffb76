// shared_region.hpp: a segment of memory that processes share, and locks that say who owns a part of it. The only file,
// with its .cpp, that makes memory calls of the operating system.
//
// Guarantees
//   1. Every byte is there once create() has returned: a lack of memory is an exception, never a signal later.
//   2. The segment has no name, is closed to other users, cannot be resized, and is gone with the last process that
//   maps
//      it, however that ends.
//   3. A lock is held by one holder at a time and freed by the kernel when its process dies.
//   4. After a fork the child holds no lock.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <stdexcept>

namespace fastrl {

struct RegionTooLarge : std::runtime_error {
  using std::runtime_error::runtime_error;
};
struct RegionGone : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Where another process finds a segment: as a descriptor of the process that made or attached it.
struct RegionAddress {
  std::int64_t pid;
  int descriptor;
  std::uint64_t inode;
  std::uint64_t bytes;
};

// Changes in the child of every fork. What belongs to one process remembers it.
std::uint64_t fork_generation() noexcept;

// Mapped pages; unmapped with the object.
class Mapping {
 public:
  Mapping() = default;
  Mapping(std::byte* data, std::size_t bytes) noexcept : data_(data), bytes_(bytes) {}
  Mapping(Mapping&& other) noexcept;
  Mapping& operator=(Mapping&& other) noexcept;
  ~Mapping();

  std::byte* data() const noexcept { return data_; }

 private:
  std::byte* data_ = nullptr;
  std::size_t bytes_ = 0;
};

enum class Access { kReadOnly, kReadWrite };

class SharedRegion {
 public:
  static std::shared_ptr<SharedRegion> create(std::size_t bytes);
  // Read-only, it cannot be mapped for writing, and no lock be taken on it.
  static std::shared_ptr<SharedRegion> attach(const RegionAddress& address, Access access);
  SharedRegion(const SharedRegion&) = delete;
  SharedRegion& operator=(const SharedRegion&) = delete;
  ~SharedRegion();

  const std::byte* data() const noexcept { return read_only_.data(); }
  std::size_t bytes() const noexcept { return bytes_; }
  RegionAddress address() const noexcept;
  int descriptor() const noexcept { return descriptor_; }
  Access access() const noexcept { return access_; }

  // A second view of a part, for its writer. `offset` is a multiple of the page size.
  Mapping map_writable(std::size_t offset, std::size_t bytes) const;

 private:
  SharedRegion(int descriptor, std::size_t bytes, Access access);

  int descriptor_;
  std::size_t bytes_;
  Access access_;
  std::uint64_t inode_ = 0;
  Mapping read_only_;
};

// Sole ownership of some bytes of a segment's file, which stand for what they number. Not the memory itself.
class RegionLock {
 public:
  // None if anybody, in this process or another, holds one of them.
  static std::optional<RegionLock> try_take(const SharedRegion& region, std::uint64_t first, std::uint64_t count);
  // Whether anybody holds one of them. Disturbs nobody who is about to.
  static bool is_taken(const SharedRegion& region, std::uint64_t first, std::uint64_t count);
  RegionLock(RegionLock&& other) noexcept;
  RegionLock& operator=(RegionLock&& other) noexcept;
  ~RegionLock();

  bool held_here() const noexcept;  // false in a forked child

 private:
  explicit RegionLock(int descriptor);
  void release() noexcept;

  int descriptor_;
  std::uint64_t generation_;
};

}  // namespace fastrl
