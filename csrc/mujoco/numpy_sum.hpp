// numpy_sum.hpp: sums in the order in which numpy adds, so that rewards are equal to the last bit.
#pragma once

#include <cstddef>

namespace fastrl::mujoco {

constexpr std::size_t kNumpyBlock = 128;  // beyond this numpy splits the array; nothing here is that long

// np.sum(np.square(values)) of `count` <= kNumpyBlock contiguous numbers, each from at(i), in the type T.
template <typename T, typename At>
T sum_of_squares(std::size_t count, At at) {
  const auto square = [&](std::size_t i) -> T {
    const T value = at(i);
    return value * value;
  };
  if (count < 8) {
    T sum = 0;
    for (std::size_t i = 0; i < count; ++i) sum += square(i);
    return sum;
  }
  T part[8];
  for (std::size_t k = 0; k < 8; ++k) part[k] = square(k);
  std::size_t i = 8;
  for (; i + 8 <= count; i += 8) {
    for (std::size_t k = 0; k < 8; ++k) part[k] += square(i + k);
  }
  T sum = ((part[0] + part[1]) + (part[2] + part[3])) + ((part[4] + part[5]) + (part[6] + part[7]));
  for (; i < count; ++i) sum += square(i);
  return sum;
}

}  // namespace fastrl::mujoco
