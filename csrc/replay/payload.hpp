// payload.hpp: copying observations into slots of a lane and out of them, for lane.hpp's protocol (its W3 and R2).
//
// `Shared` memory is whole words; the other side is any bytes. Whether a copy is whole is for the protocol to say: here
// it only has to be made of loads and stores that keep their order, as lane.hpp explains.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "replay/lane.hpp"

#if defined(FASTRL_PORTABLE_COPY) || !defined(__x86_64__)
#define FASTRL_VECTOR_COPY 0
#else
#define FASTRL_VECTOR_COPY 1
#endif

// Tests count the payloads that go into lanes and out of them (tests/path_copies.cpp).
#ifndef FASTRL_COPIED
#define FASTRL_COPIED(into_lane, bytes)
#endif

namespace fastrl::lane {

#if FASTRL_VECTOR_COPY
// Wide where the processor can: pieces of 16 bytes fill its queues before they fill the bus.
#if defined(FASTRL_NARROW_COPY)
inline constexpr bool kWideCopies = false;
#else
inline const bool kWideCopies = __builtin_cpu_supports("avx") != 0;
#endif

// Multiples of 16 bytes, 64 at a time where there are as many; with each 64, those `ahead` bytes further on begin to
// come from memory. The compiler may not look inside, split or reorder it.
inline void copy_vectors(void* to, const void* from, std::size_t bytes, std::ptrdiff_t ahead) noexcept {
  auto* target = static_cast<std::uint8_t*>(to);
  const auto* source = static_cast<const std::uint8_t*>(from);
  std::size_t lines = bytes / 64;
  std::size_t rest = bytes % 64 / 16;
  if (lines > 0 && kWideCopies) {
    asm volatile(
        "1:\n\t"
        "prefetcht1 (%[source], %[ahead])\n\t"
        "vmovdqu (%[source]), %%ymm0\n\t"
        "vmovdqu 32(%[source]), %%ymm1\n\t"
        "vmovdqu %%ymm0, (%[target])\n\t"
        "vmovdqu %%ymm1, 32(%[target])\n\t"
        "add $64, %[source]\n\t"
        "add $64, %[target]\n\t"
        "dec %[lines]\n\t"
        "jnz 1b\n\t"
        "vzeroupper\n\t"
        : [source] "+r"(source), [target] "+r"(target), [lines] "+r"(lines)
        : [ahead] "r"(ahead)
        : "memory", "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10",
          "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");  // vzeroupper clears the upper halves of all
  } else if (lines > 0) {
    asm volatile(
        "1:\n\t"
        "prefetcht1 (%[source], %[ahead])\n\t"
        "movdqu (%[source]), %%xmm0\n\t"
        "movdqu 16(%[source]), %%xmm1\n\t"
        "movdqu 32(%[source]), %%xmm2\n\t"
        "movdqu 48(%[source]), %%xmm3\n\t"
        "movdqu %%xmm0, (%[target])\n\t"
        "movdqu %%xmm1, 16(%[target])\n\t"
        "movdqu %%xmm2, 32(%[target])\n\t"
        "movdqu %%xmm3, 48(%[target])\n\t"
        "add $64, %[source]\n\t"
        "add $64, %[target]\n\t"
        "dec %[lines]\n\t"
        "jnz 1b\n\t"
        : [source] "+r"(source), [target] "+r"(target), [lines] "+r"(lines)
        : [ahead] "r"(ahead)
        : "memory", "cc", "xmm0", "xmm1", "xmm2", "xmm3");
  }
  for (; rest > 0; --rest, source += 16, target += 16) {
    asm volatile("movdqu (%0), %%xmm0\n\tmovdqu %%xmm0, (%1)\n\t" : : "r"(source), "r"(target) : "memory", "xmm0");
  }
}
#endif

// Words of `to` beyond `bytes` are filled up with zeros.
inline void store_payload(std::uint64_t* to, const void* from, std::size_t bytes) noexcept {
  FASTRL_COPIED(true, bytes);
  const auto* source = static_cast<const std::uint8_t*>(from);
  std::size_t done = 0;
#if FASTRL_VECTOR_COPY
  done = bytes / 16 * 16;
  copy_vectors(to, source, done, 0);
#elif defined(FASTRL_PLAIN_COPY)
  std::memcpy(to, source, bytes);
  done = bytes;
#endif
  for (; done < bytes; done += kWord) {
    std::uint64_t word = 0;
    std::memcpy(&word, source + done, std::min(kWord, bytes - done));
    store_word(to[done / kWord], word);
  }
}

// `ahead`: how many bytes from here what will be read next lies, if it is known. It is only a hint: any number will do.
inline void load_payload(void* to, const std::uint64_t* from, std::size_t bytes, std::ptrdiff_t ahead = 0) noexcept {
  FASTRL_COPIED(false, bytes);
  auto* target = static_cast<std::uint8_t*>(to);
  std::size_t done = 0;
#if FASTRL_VECTOR_COPY
  done = bytes / 16 * 16;
  copy_vectors(target, from, done, ahead);
#elif defined(FASTRL_PLAIN_COPY)
  std::memcpy(target, from, bytes);
  done = bytes;
#endif
  const auto next = reinterpret_cast<std::uintptr_t>(from) + static_cast<std::uintptr_t>(ahead);
  for (; done < bytes; done += kWord) {
    if (done % 64 == 0) __builtin_prefetch(reinterpret_cast<const void*>(next + done), 0, 2);
    const std::uint64_t word = load_word(from[done / kWord]);
    std::memcpy(target + done, &word, std::min(kWord, bytes - done));
  }
}

}  // namespace fastrl::lane
