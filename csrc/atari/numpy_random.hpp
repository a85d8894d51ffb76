// numpy_random.hpp: numpy.random.Generator(PCG64).integers for small ranges, to the bit.
//
// The reference wrappers draw their no-op counts from gymnasium's generator, which is this one. Drawing the same
// numbers natively makes a pool equal to them without handing over a schedule. Seeding stays in Python (SeedSequence).
#pragma once

#include <cstdint>
#include <stdexcept>

namespace fastrl {

class NumpyRandom {
 public:
  struct State {
    std::uint64_t state_high, state_low;
    std::uint64_t increment_high, increment_low;
    std::uint32_t has_uint32;  // half of the last 64-bit draw is kept for the next 32-bit one
    std::uint32_t uinteger;
    bool operator==(const State&) const = default;
  };

  NumpyRandom() = default;
  explicit NumpyRandom(const State& s)
      : state_(wide(s.state_high, s.state_low)),
        increment_(wide(s.increment_high, s.increment_low)),
        has_uint32_(s.has_uint32),
        uinteger_(s.uinteger) {}

  State state() const { return {high(state_), low(state_), high(increment_), low(increment_), has_uint32_, uinteger_}; }

  // integers(first, last + 1): uniform on [first, last], both below 2^31.
  int integers(int first, int last) {
    if (last < first) throw std::invalid_argument("integers: the range is empty");
    const auto range = static_cast<std::uint32_t>(last - first);
    if (range == 0) return first;  // numpy draws nothing here
    const std::uint32_t size = range + 1;
    std::uint64_t scaled = std::uint64_t{next32()} * size;
    if (static_cast<std::uint32_t>(scaled) < size) {
      const std::uint32_t threshold = (UINT32_MAX - range) % size;
      while (static_cast<std::uint32_t>(scaled) < threshold) scaled = std::uint64_t{next32()} * size;
    }
    return first + static_cast<int>(scaled >> 32U);
  }

 private:
  __extension__ using Wide = unsigned __int128;

  static Wide wide(std::uint64_t high, std::uint64_t low) { return (Wide{high} << 64U) | low; }
  static std::uint64_t high(Wide value) { return static_cast<std::uint64_t>(value >> 64U); }
  static std::uint64_t low(Wide value) { return static_cast<std::uint64_t>(value); }

  std::uint64_t next64() {
    state_ = state_ * wide(0x2360ED051FC65DA4U, 0x4385DF649FCCF645U) + increment_;
    const std::uint64_t folded = high(state_) ^ low(state_);
    const auto turn = static_cast<unsigned>(high(state_) >> 58U);
    return (folded >> turn) | (folded << ((64U - turn) & 63U));
  }

  std::uint32_t next32() {
    if (has_uint32_ != 0) {
      has_uint32_ = 0;
      return uinteger_;
    }
    const std::uint64_t drawn = next64();
    has_uint32_ = 1;
    uinteger_ = static_cast<std::uint32_t>(drawn >> 32U);
    return static_cast<std::uint32_t>(drawn);
  }

  Wide state_ = 0;
  Wide increment_ = 0;
  std::uint32_t has_uint32_ = 0;
  std::uint32_t uinteger_ = 0;
};

}  // namespace fastrl
