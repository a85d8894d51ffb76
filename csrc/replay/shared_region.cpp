#include "replay/shared_region.hpp"

#include <fcntl.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <mutex>
#include <string>
#include <utility>

namespace fastrl {

namespace {

constexpr const char* kName = "fastrl-ring";  // shown in /proc, opens nothing
constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;

std::string reason(int error) { return std::strerror(error); }

// ---- What a fork must undo. A lock lives as long as any copy of its descriptor, and a fork copies all.

constexpr std::size_t kMostLocks = 65'536;
std::atomic<std::uint64_t> forks = 0;
std::mutex locks_mutex;
std::array<int, kMostLocks> lock_descriptors;  // the first lock_count are open
std::size_t lock_count = 0;

void before_fork() { locks_mutex.lock(); }
void after_fork_in_parent() { locks_mutex.unlock(); }
void after_fork_in_child() {
  for (std::size_t i = 0; i < lock_count; ++i) close(lock_descriptors[i]);
  lock_count = 0;
  ++forks;
  locks_mutex.unlock();
}

void watch_forks() {
  static const int registered = pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
  if (registered != 0) throw std::runtime_error("replay: forks cannot be watched (" + reason(registered) + ")");
}

}  // namespace

std::uint64_t fork_generation() noexcept { return forks; }

// ---- Mapping

Mapping::Mapping(Mapping&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}

Mapping& Mapping::operator=(Mapping&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

Mapping::~Mapping() {
  if (data_ != nullptr) munmap(data_, bytes_);
}

namespace {

constexpr std::size_t kSmallPage = 4096;
#ifndef MADV_COLLAPSE
constexpr int MADV_COLLAPSE = 25;  // Linux 6.1; the C library's headers may be older
#endif

// Of one entry in the level above the last of a page table; 0 where the kernel does not tell, or it is too large to be
// of use.
std::size_t huge_page_bytes() {
  static const std::size_t found = [] {
    constexpr std::size_t kMost = std::size_t{32} << 20;
    std::ifstream file("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size");
    std::size_t bytes = 0;
    file >> bytes;
    return file && bytes > kSmallPage && bytes <= kMost && std::has_single_bit(bytes) ? bytes : 0;
  }();
  return found;
}

// At an address where huge pages of the file are huge pages of the mapping too.
void* map_aligned(int descriptor, std::size_t offset, std::size_t bytes, int protection) {
  const std::size_t huge = huge_page_bytes();
  if (huge != 0 && bytes >= huge) {
    const std::size_t room = bytes + huge;
    void* const reserved = mmap(nullptr, room, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (reserved != MAP_FAILED) {
      auto* const begin = static_cast<std::byte*>(reserved);
      const std::size_t skipped = (offset - reinterpret_cast<std::uintptr_t>(begin)) % huge;
      std::byte* const wanted = begin + skipped;
      const std::size_t mapped = (bytes + kSmallPage - 1) / kSmallPage * kSmallPage;
      if (mmap(wanted, bytes, protection, MAP_SHARED | MAP_FIXED, descriptor, static_cast<off_t>(offset)) == wanted) {
        if (skipped > 0) munmap(begin, skipped);
        if (room - skipped > mapped) munmap(wanted + mapped, room - skipped - mapped);
        return wanted;
      }
      munmap(reserved, room);
    }
  }
  return mmap(nullptr, bytes, protection, MAP_SHARED, descriptor, static_cast<off_t>(offset));
}

Mapping map(int descriptor, std::size_t offset, std::size_t bytes, int protection) {
  void* const data = map_aligned(descriptor, offset, bytes, protection);
  if (data == MAP_FAILED) {
    const int error = errno;
    throw RegionTooLarge("replay: " + std::to_string(bytes) + " bytes of address space could not be had (" +
                         reason(error) + "); ask for less, or raise the limit (ulimit -v)");
  }
  Mapping mapping(static_cast<std::byte*>(data), bytes);
  // The pages are there; this only spares their first users a fault each. Older kernels cannot.
#if defined(MADV_POPULATE_READ) && defined(MADV_POPULATE_WRITE)
  madvise(data, bytes, (protection & PROT_WRITE) != 0 ? MADV_POPULATE_WRITE : MADV_POPULATE_READ);
#endif
  return mapping;
}

// Has the kernel put huge pages into the file, which is empty yet, as far as it can and will: a sample reads at random,
// and looking up addresses is a good part of what it waits for. That needs no setting of the machine's, other than
// huge pages by themselves, and no more memory, since the last part of the file is left to small pages.
void gather_huge_pages(int descriptor, std::size_t bytes) {
  const std::size_t huge = huge_page_bytes();
  if (huge == 0 || bytes < huge || ftruncate(descriptor, static_cast<off_t>(bytes)) != 0) return;
  const std::size_t whole = bytes / huge * huge;
  void* const data = map_aligned(descriptor, 0, whole, PROT_READ | PROT_WRITE);
  if (data == MAP_FAILED) return;
  const Mapping mapping(static_cast<std::byte*>(data), whole);
  for (std::size_t at = 0; at < whole; at += huge) {
    // It gathers what is there, and fills up with zeros. Where nothing is, it does not begin.
    if (fallocate(descriptor, 0, static_cast<off_t>(at), kSmallPage) != 0) return;
    if (madvise(mapping.data() + at, huge, MADV_COLLAPSE) != 0 && errno != EAGAIN && errno != EBUSY) return;
  }
}

}  // namespace

// ---- SharedRegion

SharedRegion::SharedRegion(int descriptor, std::size_t bytes, Access access)
    : descriptor_(descriptor), bytes_(bytes), access_(access) {
  watch_forks();
  struct stat status{};
  if (fstat(descriptor, &status) == 0) inode_ = status.st_ino;
}

SharedRegion::~SharedRegion() { close(descriptor_); }

std::shared_ptr<SharedRegion> SharedRegion::create(std::size_t bytes) {
  if (const long page = sysconf(_SC_PAGESIZE); page != static_cast<long>(kSmallPage)) {
    throw std::runtime_error("replay: this machine has pages of " + std::to_string(page) +
                             " bytes; the replay is made for 4,096, so use a kernel that has those");
  }
  const int descriptor = memfd_create(kName, MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (descriptor < 0) {
    const int error = errno;
    throw RegionTooLarge("replay: no shared memory can be made (" + reason(error) + ")");
  }
  const std::shared_ptr<SharedRegion> region(new SharedRegion(descriptor, bytes, Access::kReadWrite));
  if (fchmod(descriptor, 0600) != 0) throw RegionTooLarge("replay: its memory cannot be made private");
  gather_huge_pages(descriptor, bytes);
  // Not ftruncate alone: that promises pages which are not there, and their first use would be a signal.
  // In parts, since a signal may undo the part that it comes into.
  constexpr std::size_t kPart = 64 << 20;
  int failed = 0;
  for (std::size_t at = 0; at < bytes && failed == 0; at += kPart) {
    const std::size_t part = std::min(kPart, bytes - at);
    do {
      failed = fallocate(descriptor, 0, static_cast<off_t>(at), static_cast<off_t>(part)) == 0 ? 0 : errno;
    } while (failed == EINTR);
  }
  if (failed != 0) {
    throw RegionTooLarge("replay: " + std::to_string(bytes) + " bytes of shared memory could not be had (" +
                         reason(failed) + "); ask for a smaller capacity");
  }
  if (fcntl(descriptor, F_ADD_SEALS, kSeals) != 0) throw RegionTooLarge("replay: its memory cannot be sealed");
  region->read_only_ = map(descriptor, 0, bytes, PROT_READ);
  return region;
}

std::shared_ptr<SharedRegion> SharedRegion::attach(const RegionAddress& address, Access access) {
  const std::string path = "/proc/" + std::to_string(address.pid) + "/fd/" + std::to_string(address.descriptor);
  // The descriptor may be anything by now: a pipe must not make this wait, nor a terminal become this process's own.
  const int mode = access == Access::kReadOnly ? O_RDONLY : O_RDWR;
  const int descriptor = open(path.c_str(), mode | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
  if (descriptor < 0) {
    const int error = errno;
    if (error == EMFILE || error == ENFILE) {
      throw std::runtime_error("attach: no file descriptor is left to open the replay with (" + reason(error) +
                               "); close some, or raise their limit (ulimit -n)");
    }
    throw RegionGone("attach: the replay of process " + std::to_string(address.pid) + " cannot be opened (" +
                     reason(error) + "): has it ended, let go of its replay, or does it belong to another user?");
  }
  const std::shared_ptr<SharedRegion> region(new SharedRegion(descriptor, address.bytes, access));
  struct stat status{};
  const bool same = fstat(descriptor, &status) == 0 && S_ISREG(status.st_mode) && status.st_ino == address.inode &&
                    static_cast<std::uint64_t>(status.st_size) == address.bytes &&
                    (fcntl(descriptor, F_GET_SEALS) & kSeals) == kSeals;
  if (!same) {
    throw RegionGone("attach: descriptor " + std::to_string(address.descriptor) + " of process " +
                     std::to_string(address.pid) + " is no longer the replay that the handle was made for");
  }
  region->read_only_ = map(descriptor, 0, address.bytes, PROT_READ);
  return region;
}

RegionAddress SharedRegion::address() const noexcept { return {getpid(), descriptor_, inode_, bytes_}; }

Mapping SharedRegion::map_writable(std::size_t offset, std::size_t bytes) const {
#ifdef FASTRL_ONE_MAPPING
  // A thread sanitizer tells memory by its address; with two views it would see no race between them.
  static_cast<void>(bytes);
  mprotect(const_cast<std::byte*>(data()), bytes_, PROT_READ | PROT_WRITE);
  return {const_cast<std::byte*>(data()) + offset, 0};
#else
  return map(descriptor_, offset, bytes, PROT_READ | PROT_WRITE);
#endif
}

// ---- RegionLock

RegionLock::RegionLock(int descriptor) : descriptor_(descriptor), generation_(fork_generation()) {}

namespace {

struct flock bytes_to_lock(std::uint64_t first, std::uint64_t count) {
  struct flock wanted{};
  wanted.l_type = F_WRLCK;
  wanted.l_whence = SEEK_SET;
  wanted.l_start = static_cast<off_t>(first);
  wanted.l_len = static_cast<off_t>(count);
  return wanted;
}

}  // namespace

bool RegionLock::is_taken(const SharedRegion& region, std::uint64_t first, std::uint64_t count) {
  struct flock found = bytes_to_lock(first, count);
  return fcntl(region.descriptor(), F_OFD_GETLK, &found) == 0 && found.l_type != F_UNLCK;
}

std::optional<RegionLock> RegionLock::try_take(const SharedRegion& region, std::uint64_t first, std::uint64_t count) {
  if (region.access() == Access::kReadOnly) {
    throw std::logic_error("writer: this process only observes the replay; attach to it in order to write");
  }
  // An open file of its own: the lock belongs to it, not to the process, so two owners in one process exclude each
  // other.
  const std::string path = "/proc/self/fd/" + std::to_string(region.descriptor());
  const std::lock_guard guard(locks_mutex);  // so that no fork comes between opening and noting it
  if (lock_count == kMostLocks) throw std::runtime_error("replay: too many lanes are being written by this process");
  const int descriptor = open(path.c_str(), O_RDWR | O_CLOEXEC);
  if (descriptor < 0) {
    const int error = errno;
    rlimit limit{};
    getrlimit(RLIMIT_NOFILE, &limit);
    throw std::runtime_error("replay: the lock of lane " + std::to_string(first) + " cannot be opened (" +
                             reason(error) +
                             "): each lane that is written takes a descriptor, of which this process may have " +
                             std::to_string(limit.rlim_cur) + "; raise that (ulimit -n) or write fewer lanes");
  }
  struct flock wanted = bytes_to_lock(first, count);
  if (fcntl(descriptor, F_OFD_SETLK, &wanted) != 0) {
    const int error = errno;
    close(descriptor);
    if (error == EAGAIN || error == EACCES) return std::nullopt;
    throw std::runtime_error("replay: a lane cannot be locked (" + reason(error) + ")");
  }
  lock_descriptors[lock_count++] = descriptor;
  return RegionLock(descriptor);
}

RegionLock::RegionLock(RegionLock&& other) noexcept
    : descriptor_(std::exchange(other.descriptor_, -1)), generation_(other.generation_) {}

RegionLock& RegionLock::operator=(RegionLock&& other) noexcept {
  std::swap(descriptor_, other.descriptor_);
  std::swap(generation_, other.generation_);
  return *this;
}

RegionLock::~RegionLock() { release(); }

bool RegionLock::held_here() const noexcept { return descriptor_ >= 0 && generation_ == fork_generation(); }

void RegionLock::release() noexcept {
  if (!held_here()) return;  // a forked child has closed it already
  const std::lock_guard guard(locks_mutex);
  const auto end = lock_descriptors.begin() + static_cast<std::ptrdiff_t>(lock_count);
  const auto mine = std::find(lock_descriptors.begin(), end, descriptor_);
  if (mine != end) {
    *mine = lock_descriptors[lock_count - 1];
    --lock_count;
  }
  close(descriptor_);
  descriptor_ = -1;
}

}  // namespace fastrl
