// Pure pixel functions: Atari screens become one 84x84 plane of bytes.
//
// A screen is height x 160 bytes, each an ALE colour (even, 0..254). A PixelTable says which byte a colour, or two
// pooled colours, become; the plane of those bytes is then reduced exactly as
//     cv2.resize(plane, (84, 84), interpolation=cv2.INTER_AREA)
// does it, to the byte, on every CPU. Most rows of a screen are the same as one step before, so a PlaneReducer
// remembers its last screen and redoes only the rows that differ. The memo is exact: it never changes a result.

#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

namespace fastrl {

inline constexpr int kScreenWidth = 160;
inline constexpr int kObsSide = 84;
inline constexpr int kObsBytes = kObsSide * kObsSide;

// Below 84 rows cv2's INTER_AREA is another algorithm; up to 3 * 84 an output row covers at most four source rows.
inline constexpr int kMinScreenHeight = kObsSide;
inline constexpr int kMaxScreenHeight = 3 * kObsSide;

// The instructions a reducer uses. All give the same bytes.
enum class CpuPath { kPortable, kAvx2, kAvx512 };

std::vector<CpuPath> available_cpu_paths();  // what this CPU can run, best last
CpuPath best_cpu_path();
const char* cpu_path_name(CpuPath path);  // "portable", "avx2", "avx512vbmi"

// What byte a pixel becomes. Colours are even, and the tables are indexed by colour / 2, but for one case: where a PAL
// game draws a frame with an odd number of lines, the engine shows it without colours by making them odd. Rows with odd
// colours are looked up in the large tables, or, where there are none, as the even colours below.
struct PixelTable {
  static constexpr std::size_t kColours = 128;
  static constexpr std::size_t kAllColours = 256;

  alignas(64) std::array<std::uint8_t, kColours> single;  // from one frame
  std::array<std::uint8_t, kColours * kColours> pair;     // from frames a and b: pair[(a / 2) * 128 + b / 2]
  std::vector<std::uint8_t> pair_all;                     // empty, or all colours: pair_all[a * 256 + b]

  // Throws std::invalid_argument unless pooling a colour with itself changes nothing: pair[c, c] == single[c].
  static void validate(const PixelTable& table);
};

namespace frame_ops_detail {

struct Kernels;     // the functions of one CpuPath
struct ColumnTaps;  // how 160 columns become 84

class RowSet {
 public:
  static constexpr std::size_t kRows = 256;
  void insert(std::size_t row) noexcept { words_[row / 64] |= std::uint64_t{1} << (row % 64); }
  void erase(std::size_t row) noexcept { words_[row / 64] &= ~(std::uint64_t{1} << (row % 64)); }
  void clear() noexcept { words_ = {}; }
  void insert_all(const RowSet& other) noexcept {
    for (std::size_t w = 0; w < words_.size(); ++w) words_[w] |= other.words_[w];
  }
  template <typename Visit>
  void for_each(Visit&& visit) const {
    for (std::size_t w = 0; w < words_.size(); ++w) {
      for (std::uint64_t left = words_[w]; left != 0; left &= left - 1) {
        visit(w * 64 + static_cast<std::size_t>(std::countr_zero(left)));
      }
    }
  }

 private:
  std::array<std::uint64_t, kRows / 64> words_{};
};

// One plane row reduced to 84 columns, padded to whole vectors.
struct alignas(64) ReducedRow {
  static constexpr std::size_t kColumns = 96;
  std::array<float, kColumns> columns;
};

// An output row is the weighted sum of the source rows first .. first + 3, added in this order; unused weights are 0.
struct RowTaps {
  static constexpr std::size_t kTaps = 4;
  std::size_t first;
  std::array<float, kTaps> weights;
};

// The output rows first .. last that a source row is part of.
struct OutputRows {
  std::size_t first;
  std::size_t last;
};

}  // namespace frame_ops_detail

inline void prefetch_lines(std::span<const std::uint8_t> bytes) noexcept {
  for (std::size_t at = 0; at < bytes.size(); at += 64) __builtin_prefetch(bytes.data() + at, 1, 2);
}

// Turns screens into 84x84 planes. The plane is black until something is loaded. For one thread at a time.
class PlaneReducer {
 public:
  // Throws std::invalid_argument if the table is not valid, the height is outside
  // [kMinScreenHeight, kMaxScreenHeight] or this CPU cannot run the path.
  PlaneReducer(std::shared_ptr<const PixelTable> table, int height, CpuPath path);

  // Screens are height * 160 bytes at any address; nothing beyond them is read. An odd byte counts as the even one
  // below.
  void load(const std::uint8_t* screen) noexcept;                         // plane = single[screen]
  void load_pair(const std::uint8_t* a, const std::uint8_t* b) noexcept;  // plane = pair[a, b]
  void join_max(const std::uint8_t* screen) noexcept;                     // plane = max(plane, single[screen])

  // Writes 84 * 84 bytes, row major, at any address.
  void reduce(std::uint8_t* out) noexcept;

  // Asks for what the next load and reduce will touch, in two parts, 0 and 1: with many envs in turn it has left the
  // caches, and comes back while the emulator computes.
  void prefetch(int part) const noexcept;

  // height * 160 bytes, all that a saved state must hold: the rest is a memo.
  std::span<const std::uint8_t> plane() const noexcept;
  void set_plane(std::span<const std::uint8_t> plane);  // throws std::invalid_argument on another size

 private:
  std::uint8_t* plane_row(std::size_t row) noexcept { return plane_.data() + row * kScreenWidth; }
  void replace_row(std::size_t row, const std::uint8_t* bytes) noexcept;

  std::shared_ptr<const PixelTable> table_;
  const frame_ops_detail::Kernels* kernels_;
  const frame_ops_detail::ColumnTaps* column_taps_;
  std::size_t height_;
  std::vector<frame_ops_detail::RowTaps> row_taps_;        // of each output row
  std::vector<frame_ops_detail::OutputRows> output_rows_;  // of each source row

  std::vector<std::uint8_t> plane_;  // one row longer than the screen, since vector loads read past a row
  std::vector<std::uint8_t> seen_;   // each plane row is single[seen row], except
  frame_ops_detail::RowSet unseen_;  // these, of two screens or from set_plane

  std::vector<frame_ops_detail::ReducedRow> reduced_;  // of each plane row, except
  frame_ops_detail::RowSet dirty_;                     // these, changed since the last reduce
  frame_ops_detail::RowSet recent_;               // rows that the last reduce read; what moves stays near for a while
  std::array<std::uint8_t, kObsBytes> output_{};  // of the last reduce
};

}  // namespace fastrl
