// counter_random.hpp: random numbers that are a function of where they are used (Philox4x32-10, Salmon et al. 2011).
//
// A draw depends on seed and counter only: not on which thread draws, in which order, or how often another row was
// drawn again. To resume is to go on with the next counter.
#pragma once

#include <array>
#include <cstdint>

namespace fastrl {

inline std::array<std::uint32_t, 4> philox(std::uint64_t key, std::array<std::uint32_t, 4> counter) noexcept {
  auto low = static_cast<std::uint32_t>(key);
  auto high = static_cast<std::uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t a = std::uint64_t{0xD2511F53} * counter[0];
    const std::uint64_t b = std::uint64_t{0xCD9E8D57} * counter[2];
    counter = {static_cast<std::uint32_t>(b >> 32) ^ counter[1] ^ low, static_cast<std::uint32_t>(b),
               static_cast<std::uint32_t>(a >> 32) ^ counter[3] ^ high, static_cast<std::uint32_t>(a)};
    low += 0x9E3779B9;
    high += 0xBB67AE85;
  }
  return counter;
}

// The numbers of one row of one batch, as many as are asked for.
class RowRandom {
  __extension__ using Wide = unsigned __int128;

 public:
  RowRandom(std::uint64_t seed, std::uint64_t batch, std::uint32_t row) noexcept
      : seed_(seed), batch_(batch), row_(row) {}

  // Uniform in [0, below), exactly (Lemire 2019); below > 0.
  std::uint64_t below(std::uint64_t limit) noexcept {
    while (true) {
      const Wide product = static_cast<Wide>(next()) * limit;
      const auto low = static_cast<std::uint64_t>(product);
      if (low >= limit || low >= (0 - limit) % limit) return static_cast<std::uint64_t>(product >> 64);
    }
  }

 private:
  std::uint64_t next() noexcept {
    const auto words =
        philox(seed_, {static_cast<std::uint32_t>(batch_), static_cast<std::uint32_t>(batch_ >> 32), row_, used_++});
    return std::uint64_t{words[1]} << 32 | words[0];
  }

  std::uint64_t seed_;
  std::uint64_t batch_;
  std::uint32_t row_;
  std::uint32_t used_ = 0;
};

}  // namespace fastrl
