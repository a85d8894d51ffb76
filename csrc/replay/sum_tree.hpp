// sum_tree.hpp: whole-number weights, their exact sum, and the leaf in which a number below the sum falls.
//
// Whole numbers, so that sums never drift: the root is the sum of the leaves to the last bit, a leaf of weight 0 is
// never found, and a tree that is built again from its leaves is the same tree.
#pragma once

#include <bit>
#include <cstdint>
#include <vector>

namespace fastrl {

class SumTree {
 public:
  explicit SumTree(std::uint64_t leaves) : first_leaf_(std::bit_ceil(leaves)), sums_(2 * first_leaf_) {}

  std::uint64_t total() const noexcept { return sums_[1]; }
  std::uint64_t weight(std::uint64_t leaf) const noexcept { return sums_[first_leaf_ + leaf]; }

  // The caller sees to it that the total stays below 2^64.
  void set(std::uint64_t leaf, std::uint64_t weight) noexcept {
    std::uint64_t node = first_leaf_ + leaf;
    const std::uint64_t change = weight - sums_[node];  // modulo 2^64, as all sums are
    if (change == 0) return;
    for (; node > 0; node /= 2) sums_[node] += change;
  }

  // The leaf whose weights before it sum up to at most `at` < total().
  std::uint64_t find(std::uint64_t at) const noexcept {
    std::uint64_t node = 1;
    while (node < first_leaf_) {
      node *= 2;
      if (at >= sums_[node]) at -= sums_[node++];
    }
    return node - first_leaf_;
  }

 private:
  std::uint64_t first_leaf_;
  std::vector<std::uint64_t> sums_;  // node i has children 2i and 2i + 1; the root is 1
};

}  // namespace fastrl
