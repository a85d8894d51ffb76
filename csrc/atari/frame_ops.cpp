#include "atari/frame_ops.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace fastrl {
namespace frame_ops_detail {

using Pixels = const std::uint8_t*;

namespace {

constexpr std::size_t kWidth = kScreenWidth, kSide = kObsSide;
static_assert(kMaxScreenHeight <= RowSet::kRows);

// ---- Weights, as cv2 computes them: in double, then rounded to float.

struct Tap {
  std::size_t target;
  std::size_t source;
  float weight;
};

// cv2's computeResizeAreaTab: which source cells each target cell covers, and by how much.
std::vector<Tap> area_taps(int source_size, int target_size) {
  const double scale = static_cast<double>(source_size) / target_size;
  constexpr double kNothing = 1e-3;  // cv2 ignores a smaller overlap
  std::vector<Tap> taps;
  for (int target = 0; target < target_size; ++target) {
    const double begin = target * scale;
    const double end = begin + scale;
    const double covered = std::min(scale, source_size - begin);
    const int last = std::min(static_cast<int>(std::floor(end)), source_size - 1);
    const int first = std::min(static_cast<int>(std::ceil(begin)), last);
    const auto add = [&](int source, double overlap) {
      taps.push_back(
          {static_cast<std::size_t>(target), static_cast<std::size_t>(source), static_cast<float>(overlap / covered)});
    };
    if (first - begin > kNothing) add(first - 1, first - begin);
    for (int source = first; source < last; ++source) add(source, 1.0);
    if (end - last > kNothing) add(last, std::min(std::min(end - last, 1.0), covered));
  }
  return taps;
}

}  // namespace

// Output column d is the weighted sum of the source columns first[d] .. first[d] + 2, added in this order.
// Unused weights are 0: adding 0 * x to a sum does not change it, since nothing here is negative.
struct ColumnTaps {
  alignas(64) std::array<std::array<float, ReducedRow::kColumns>, 3> weights{};
  std::array<std::size_t, ReducedRow::kColumns> first{};

  // For each 8 (16) outputs: a shuffle that takes each one's first source column, from a window that begins at the
  // first one's, to the lowest byte of its lane. A window one column later gives their second source columns.
  // What lands in the other bytes must become 0: by bit 7 in shuffle8, by the user's mask in shuffle16.
  alignas(32) std::array<std::array<std::uint8_t, 32>, ReducedRow::kColumns / 8> shuffle8{};
  alignas(64) std::array<std::array<std::uint8_t, 64>, ReducedRow::kColumns / 16> shuffle16{};

  ColumnTaps() {
    std::array<std::size_t, kSide> count{};
    for (const Tap& tap : area_taps(kScreenWidth, kObsSide)) {
      if (count[tap.target] == 0) first[tap.target] = tap.source;
      weights.at(count[tap.target]++)[tap.target] = tap.weight;
    }
    std::fill(first.begin() + kSide, first.end(), first[kSide - 1]);
    for (std::size_t d = 0; d < first.size(); ++d) {
      if (d % 8 == 0) shuffle8[d / 8].fill(0x80);
      shuffle8[d / 8][d % 8 * 4] = static_cast<std::uint8_t>(first[d] - first[d / 8 * 8]);
      shuffle16[d / 16][d % 16 * 4] = static_cast<std::uint8_t>(first[d] - first[d / 16 * 16]);
    }
  }
};

// ---- What a CpuPath must do. Rows are 160 bytes; a plane row is followed by another 160 that may be read.

// What loading a row from two screens has found.
struct RowUpdate {
  bool from_one;  // both screens have the same row
  bool changed;   // the plane row is not what it was
};

struct Kernels {
  // The rows in which the screens a, b and seen are not all equal.
  RowSet (*differing_rows)(Pixels a, Pixels b, Pixels seen, std::size_t height);
  // plane_row = pair[a, b]
  RowUpdate (*load_row)(const PixelTable& table, Pixels a, Pixels b, std::uint8_t* plane_row);
  // A plane row to 84 columns.
  void (*reduce_row)(const ColumnTaps& taps, Pixels plane_row, ReducedRow& out);
  // Reduced rows to 84 bytes.
  void (*blend_rows)(const RowTaps& taps, const ReducedRow* rows, std::uint8_t* out);
};

namespace {

// ---- Portable. Those named *_inline are also compiled into the other paths, for their instructions.

#define FASTRL_INLINE [[gnu::always_inline]] inline

// What pooling this colour with each other one gives.
FASTRL_INLINE Pixels pair_row(const PixelTable& table, std::uint8_t colour) {
  return &table.pair[(colour / 2) * PixelTable::kColours];
}

FASTRL_INLINE std::uint64_t load_word(Pixels from) {
  std::uint64_t word;
  std::memcpy(&word, from, sizeof word);
  return word;
}

FASTRL_INLINE RowSet differing_rows_inline(Pixels a, Pixels b, Pixels seen, std::size_t height) {
  RowSet rows;
  for (std::size_t row = 0; row < height; ++row) {
    std::uint64_t difference = 0;
    for (std::size_t i = row * kWidth; i < (row + 1) * kWidth; i += 8) {
      const std::uint64_t word = load_word(seen + i);
      difference |= (word ^ load_word(a + i)) | (word ^ load_word(b + i));
    }
    if (difference != 0) rows.insert(row);
  }
  return rows;
}

FASTRL_INLINE void blend_rows_inline(const RowTaps& taps, const ReducedRow* rows, std::uint8_t* out) {
  const float* const row0 = rows[taps.first].columns.data();
  const float* const row1 = rows[taps.first + 1].columns.data();
  const float* const row2 = rows[taps.first + 2].columns.data();
  const float* const row3 = rows[taps.first + 3].columns.data();
  // Adding 1.5 * 2^23 leaves no bits for a fraction: the sum is rounded to an integer, ties to even, as cvRound does.
  constexpr float kRounder = 12582912.0F;
  std::array<std::uint8_t, ReducedRow::kColumns> bytes;
  for (std::size_t d = 0; d < ReducedRow::kColumns; ++d) {
    float sum = taps.weights[0] * row0[d];
    sum += taps.weights[1] * row1[d];
    sum += taps.weights[2] * row2[d];
    sum += taps.weights[3] * row3[d];
    bytes[d] = static_cast<std::uint8_t>(std::bit_cast<std::uint32_t>(sum + kRounder));
  }
  std::memcpy(out, bytes.data(), kSide);
}

RowSet differing_rows_portable(Pixels a, Pixels b, Pixels seen, std::size_t height) {
  return differing_rows_inline(a, b, seen, height);
}

// Any row, by one lookup a pixel in the table of all colours.
RowUpdate load_odd_row(const PixelTable& table, Pixels a, Pixels b, std::uint8_t* plane_row) {
  unsigned any_change = 0;
  for (std::size_t i = 0; i < kWidth; ++i) {
    const std::uint8_t byte = table.pair_all[a[i] * PixelTable::kAllColours + b[i]];
    any_change |= static_cast<unsigned>(byte ^ plane_row[i]);
    plane_row[i] = byte;
  }
  return {.from_one = std::memcmp(a, b, kWidth) == 0, .changed = any_change != 0};
}

FASTRL_INLINE bool has_odd_colours(const PixelTable& table, Pixels a, Pixels b) {
  if (table.pair_all.empty()) return false;
  std::uint64_t bits = 0;
  for (std::size_t i = 0; i < kWidth; i += 8) bits |= load_word(a + i) | load_word(b + i);
  return (bits & 0x0101'0101'0101'0101U) != 0;
}

RowUpdate load_row_portable(const PixelTable& table, Pixels a, Pixels b, std::uint8_t* plane_row) {
  if (has_odd_colours(table, a, b)) return load_odd_row(table, a, b, plane_row);
  const bool from_one = std::memcmp(a, b, kWidth) == 0;
  unsigned any_change = 0;
  for (std::size_t i = 0; i < kWidth; ++i) {
    const std::uint8_t byte = from_one ? table.single[a[i] / 2] : pair_row(table, a[i])[b[i] / 2];
    any_change |= static_cast<unsigned>(byte ^ plane_row[i]);
    plane_row[i] = byte;
  }
  return {.from_one = from_one, .changed = any_change != 0};
}

void reduce_row_portable(const ColumnTaps& taps, Pixels plane_row, ReducedRow& out) {
  std::array<float, kWidth + 1> source;
  for (std::size_t i = 0; i < source.size(); ++i) source[i] = static_cast<float>(plane_row[i]);
  for (std::size_t d = 0; d < ReducedRow::kColumns; ++d) {
    const float* const from = &source[taps.first[d]];
    float sum = from[0] * taps.weights[0][d];
    sum += from[1] * taps.weights[1][d];
    sum += from[2] * taps.weights[2][d];
    out.columns[d] = sum;
  }
}

void blend_rows_portable(const RowTaps& taps, const ReducedRow* rows, std::uint8_t* out) {
  blend_rows_inline(taps, rows, out);
}

constexpr Kernels kPortable{differing_rows_portable, load_row_portable, reduce_row_portable, blend_rows_portable};

#if defined(__x86_64__)

// ---- AVX2. No fma in the target: cv2 rounds products before it adds them.

#define FASTRL_AVX2 [[gnu::target("avx2")]]

FASTRL_AVX2 RowSet differing_rows_avx2(Pixels a, Pixels b, Pixels seen, std::size_t height) {
  return differing_rows_inline(a, b, seen, height);
}

FASTRL_AVX2 FASTRL_INLINE __m256i load_avx2(Pixels from) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
}

FASTRL_AVX2 FASTRL_INLINE __m256i fill_avx2(std::uint8_t byte) { return _mm256_set1_epi8(static_cast<char>(byte)); }

FASTRL_AVX2 FASTRL_INLINE std::uint32_t byte_mask_avx2(__m256i bytes) {
  return static_cast<std::uint32_t>(_mm256_movemask_epi8(bytes));
}

// pshufb looks up 16 entries by the low four bits of an index and gives 0 for a negative one. Block k of the table is
// stored as its difference (xor) to block k - 1. Index - 16 k is negative for all k > index / 16, so the blocks that
// answer are 0 .. index / 16, and together they give the entry in block index / 16.
struct Avx2Table {
  __m256i blocks[8];
};

FASTRL_AVX2 FASTRL_INLINE Avx2Table make_avx2_table(Pixels bytes) {
  Avx2Table table;
  __m128i previous = _mm_setzero_si128();
  for (std::size_t k = 0; k < 8; ++k) {
    const __m128i block = _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes + 16 * k));
    table.blocks[k] = _mm256_broadcastsi128_si256(_mm_xor_si128(block, previous));
    previous = block;
  }
  return table;
}

FASTRL_AVX2 FASTRL_INLINE __m256i look_up_avx2(const Avx2Table& table, __m256i colours) {
  __m256i index = _mm256_and_si256(_mm256_srli_epi16(colours, 1), _mm256_set1_epi8(0x7F));
  __m256i result = _mm256_shuffle_epi8(table.blocks[0], index);
  for (std::size_t k = 1; k < 8; ++k) {
    index = _mm256_sub_epi8(index, _mm256_set1_epi8(16));
    result = _mm256_xor_si256(result, _mm256_shuffle_epi8(table.blocks[k], index));
  }
  return result;
}

FASTRL_AVX2 RowUpdate load_row_avx2(const PixelTable& table, Pixels a, Pixels b, std::uint8_t* plane_row) {
  if (has_odd_colours(table, a, b)) return load_odd_row(table, a, b, plane_row);
  const Avx2Table single = make_avx2_table(table.single.data());
  std::uint32_t any_differing = 0;
  std::uint32_t any_change = 0;
  for (std::size_t i = 0; i < kWidth; i += 32) {
    const __m256i colours_a = load_avx2(a + i);
    const __m256i colours_b = load_avx2(b + i);
    __m256i bytes = look_up_avx2(single, colours_a);
    std::uint32_t differing = ~byte_mask_avx2(_mm256_cmpeq_epi8(colours_a, colours_b));
    any_differing |= differing;
    while (differing != 0) {  // once for each pair of colours
      const std::size_t at = i + static_cast<std::size_t>(std::countr_zero(differing));
      const __m256i here = _mm256_and_si256(_mm256_cmpeq_epi8(colours_a, fill_avx2(a[at])),
                                            _mm256_cmpeq_epi8(colours_b, fill_avx2(b[at])));
      bytes = _mm256_blendv_epi8(bytes, fill_avx2(pair_row(table, a[at])[b[at] / 2]), here);
      differing &= ~byte_mask_avx2(here);
    }
    any_change |= ~byte_mask_avx2(_mm256_cmpeq_epi8(bytes, load_avx2(plane_row + i)));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(plane_row + i), bytes);
  }
  return {.from_one = any_differing == 0, .changed = any_change != 0};
}

FASTRL_AVX2 FASTRL_INLINE __m256 product_avx2(Pixels window, __m256i shuffle, const float* weights) {
  const __m256i bytes = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(window)));
  const __m256 values = _mm256_cvtepi32_ps(_mm256_shuffle_epi8(bytes, shuffle));
  return _mm256_mul_ps(values, _mm256_load_ps(weights));
}

FASTRL_AVX2 void reduce_row_avx2(const ColumnTaps& taps, Pixels plane_row, ReducedRow& out) {
  for (std::size_t d = 0; d < kSide; d += 8) {
    const Pixels window = plane_row + taps.first[d];
    const __m256i shuffle = load_avx2(taps.shuffle8[d / 8].data());
    __m256 sum = product_avx2(window, shuffle, &taps.weights[0][d]);
    sum = _mm256_add_ps(sum, product_avx2(window + 1, shuffle, &taps.weights[1][d]));
    sum = _mm256_add_ps(sum, product_avx2(window + 2, shuffle, &taps.weights[2][d]));
    _mm256_store_ps(&out.columns[d], sum);
  }
}

FASTRL_AVX2 void blend_rows_avx2(const RowTaps& taps, const ReducedRow* rows, std::uint8_t* out) {
  blend_rows_inline(taps, rows, out);
}

constexpr Kernels kAvx2{differing_rows_avx2, load_row_avx2, reduce_row_avx2, blend_rows_avx2};

// ---- AVX-512 with VBMI. Its target includes fma instructions: without -ffp-contract=off the compiler would use them.

#define FASTRL_AVX512 [[gnu::target("avx512f,avx512bw,avx512vl,avx512vbmi")]]

// Which of the bytes i .. i + 63 belong to a row. The others are neither read nor written.
FASTRL_AVX512 FASTRL_INLINE __mmask64 in_row(std::size_t i) {
  return i + 64 <= kWidth ? ~__mmask64{0} : (__mmask64{1} << (kWidth - i)) - 1;
}

FASTRL_AVX512 FASTRL_INLINE __m512i load_avx512(Pixels row, std::size_t i) {
  return _mm512_maskz_loadu_epi8(in_row(i), row + i);
}

FASTRL_AVX512 FASTRL_INLINE __m512i look_up_avx512(Pixels table, __m512i colours) {
  const __m512i low = _mm512_loadu_si512(table);
  const __m512i high = _mm512_loadu_si512(table + 64);
  // vpermi2b ignores bit 7, which the shift of 16-bit words may have filled from the neighbour.
  return _mm512_permutex2var_epi8(low, _mm512_srli_epi16(colours, 1), high);
}

FASTRL_AVX512 RowUpdate load_row_avx512(const PixelTable& table, Pixels a, Pixels b, std::uint8_t* plane_row) {
  if (has_odd_colours(table, a, b)) return load_odd_row(table, a, b, plane_row);
  std::uint64_t any_differing = 0;
  std::uint64_t any_change = 0;
  for (std::size_t i = 0; i < kWidth; i += 64) {
    const __m512i colours_a = load_avx512(a, i);
    const __m512i colours_b = load_avx512(b, i);
    __m512i bytes = look_up_avx512(table.single.data(), colours_a);
    std::uint64_t differing = _mm512_cmpneq_epi8_mask(colours_a, colours_b);
    any_differing |= differing;
    while (differing != 0) {  // once for each colour of a
      const std::uint8_t colour = a[i + static_cast<std::size_t>(std::countr_zero(differing))];
      const __mmask64 here = _mm512_cmpeq_epi8_mask(colours_a, _mm512_set1_epi8(static_cast<char>(colour)));
      bytes = _mm512_mask_mov_epi8(bytes, here, look_up_avx512(pair_row(table, colour), colours_b));
      differing &= ~here;
    }
    any_change |= _mm512_mask_cmpneq_epi8_mask(in_row(i), bytes, load_avx512(plane_row, i));
    _mm512_mask_storeu_epi8(plane_row + i, in_row(i), bytes);
  }
  return {.from_one = any_differing == 0, .changed = any_change != 0};
}

FASTRL_AVX512 FASTRL_INLINE __m512 product_avx512(Pixels window, __m512i shuffle, const float* weights) {
  constexpr __mmask64 kLowBytes = 0x1111'1111'1111'1111;
  const __m512i bytes = _mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(window)));
  const __m512i lanes = _mm512_maskz_permutexvar_epi8(kLowBytes, shuffle, bytes);
  // All lanes; without a mask gcc 12 warns of an uninitialised value inside the intrinsic.
  const __m512 values = _mm512_maskz_cvtepi32_ps(0xFFFF, lanes);
  return _mm512_mul_ps(values, _mm512_load_ps(weights));
}

FASTRL_AVX512 void reduce_row_avx512(const ColumnTaps& taps, Pixels plane_row, ReducedRow& out) {
  for (std::size_t d = 0; d < kSide; d += 16) {
    const Pixels window = plane_row + taps.first[d];
    const __m512i shuffle = _mm512_load_si512(taps.shuffle16[d / 16].data());
    __m512 sum = product_avx512(window, shuffle, &taps.weights[0][d]);
    sum = _mm512_add_ps(sum, product_avx512(window + 1, shuffle, &taps.weights[1][d]));
    sum = _mm512_add_ps(sum, product_avx512(window + 2, shuffle, &taps.weights[2][d]));
    _mm512_store_ps(&out.columns[d], sum);
  }
}

FASTRL_AVX512 void blend_rows_avx512(const RowTaps& taps, const ReducedRow* rows, std::uint8_t* out) {
  blend_rows_inline(taps, rows, out);
}

// Comparing screens is bound by memory: wider vectors gain nothing there.
constexpr Kernels kAvx512{differing_rows_avx2, load_row_avx512, reduce_row_avx512, blend_rows_avx512};

#endif  // defined(__x86_64__)

const ColumnTaps& column_taps() {
  static const ColumnTaps taps;
  return taps;
}

const Kernels& kernels_of(CpuPath path) {
  const std::vector<CpuPath> available = available_cpu_paths();
  if (std::find(available.begin(), available.end(), path) == available.end()) {
    std::string names;
    for (const CpuPath each : available) names += std::string(names.empty() ? "" : ", ") + cpu_path_name(each);
    throw std::invalid_argument(std::string("PlaneReducer: this CPU cannot run the path ") + cpu_path_name(path) +
                                ", only " + names + "; choose one of these or leave the choice to best_cpu_path()");
  }
#if defined(__x86_64__)
  if (path == CpuPath::kAvx2) return kAvx2;
  if (path == CpuPath::kAvx512) return kAvx512;
#endif
  return kPortable;
}

}  // namespace
}  // namespace frame_ops_detail

using namespace frame_ops_detail;

std::vector<CpuPath> available_cpu_paths() {
  std::vector<CpuPath> paths{CpuPath::kPortable};
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2")) return paths;
  paths.push_back(CpuPath::kAvx2);
  const bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vbmi");
  if (has_avx512) paths.push_back(CpuPath::kAvx512);
#endif
  return paths;
}

CpuPath best_cpu_path() { return available_cpu_paths().back(); }

const char* cpu_path_name(CpuPath path) {
  constexpr std::array kNames{"portable", "avx2", "avx512vbmi"};
  return kNames.at(static_cast<std::size_t>(path));
}

void PixelTable::validate(const PixelTable& table) {
  for (std::size_t colour = 0; colour < kColours; ++colour) {
    const int alone = table.single[colour];
    const int pooled = table.pair[colour * kColours + colour];
    if (alone == pooled) continue;
    throw std::invalid_argument("PixelTable: colour " + std::to_string(2 * colour) + " pooled with itself gives " +
                                std::to_string(pooled) + ", alone it gives " + std::to_string(alone) +
                                "; both must be equal, so compute the two tables with the same formula");
  }
}

PlaneReducer::PlaneReducer(std::shared_ptr<const PixelTable> table, int height, CpuPath path)
    : table_(std::move(table)), kernels_(&kernels_of(path)), column_taps_(&column_taps()) {
  if (table_ == nullptr) throw std::invalid_argument("PlaneReducer: no pixel table was given");
  PixelTable::validate(*table_);
  if (height < kMinScreenHeight || height > kMaxScreenHeight) {
    throw std::invalid_argument("PlaneReducer: height " + std::to_string(height) + " is outside [" +
                                std::to_string(kMinScreenHeight) + ", " + std::to_string(kMaxScreenHeight) +
                                "]; give the number of rows of the emulator's screen");
  }
  height_ = static_cast<std::size_t>(height);
  plane_.resize((height_ + 1) * kScreenWidth);
  seen_.resize(height_ * kScreenWidth);
  reduced_.resize(height_ + RowTaps::kTaps);  // the last output row may name rows below the screen, with weight 0
  row_taps_.resize(kObsSide);
  output_rows_.resize(height_, {.first = kObsSide, .last = 0});
  std::array<std::size_t, kObsSide> count{};
  for (const Tap& tap : area_taps(height, kObsSide)) {
    RowTaps& taps = row_taps_[tap.target];
    if (count[tap.target] == 0) taps.first = tap.source;
    taps.weights.at(count[tap.target]++) = tap.weight;
    OutputRows& outputs = output_rows_[tap.source];
    outputs.first = std::min(outputs.first, tap.target);
    outputs.last = std::max(outputs.last, tap.target);
  }
  for (std::size_t row = 0; row < height_; ++row) {
    unseen_.insert(row);
    dirty_.insert(row);
  }
}

void PlaneReducer::replace_row(std::size_t row, const std::uint8_t* bytes) noexcept {
  if (std::memcmp(plane_row(row), bytes, kScreenWidth) == 0) return;
  std::memcpy(plane_row(row), bytes, kScreenWidth);
  dirty_.insert(row);
  unseen_.insert(row);
}

void PlaneReducer::load(const std::uint8_t* screen) noexcept { load_pair(screen, screen); }

void PlaneReducer::load_pair(const std::uint8_t* a, const std::uint8_t* b) noexcept {
  RowSet rows = kernels_->differing_rows(a, b, seen_.data(), height_);
  rows.insert_all(unseen_);
  rows.for_each([&](std::size_t row) {
    const std::uint8_t* const row_a = a + row * kScreenWidth;
    const auto update = kernels_->load_row(*table_, row_a, b + row * kScreenWidth, plane_row(row));
    if (update.changed) dirty_.insert(row);
    if (update.from_one) {  // else seen_ has no place for the second one
      std::memcpy(&seen_[row * kScreenWidth], row_a, kScreenWidth);
      unseen_.erase(row);
    } else {
      unseen_.insert(row);
    }
  });
}

void PlaneReducer::join_max(const std::uint8_t* screen) noexcept {
  // Where the screen is what the plane was made of, the maximum is the plane.
  RowSet rows = kernels_->differing_rows(screen, screen, seen_.data(), height_);
  rows.insert_all(unseen_);
  rows.for_each([&](std::size_t row) {
    const std::uint8_t* const screen_row = screen + row * kScreenWidth;
    std::array<std::uint8_t, kScreenWidth> bytes{};
    kernels_->load_row(*table_, screen_row, screen_row, bytes.data());
    const std::uint8_t* const current = plane_row(row);
    for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = std::max(bytes[i], current[i]);
    replace_row(row, bytes.data());
  });
}

void PlaneReducer::reduce(std::uint8_t* out) noexcept {
  RowSet stale;  // rows of the output
  dirty_.for_each([&](std::size_t row) {
    kernels_->reduce_row(*column_taps_, plane_row(row), reduced_[row]);
    const OutputRows& outputs = output_rows_[row];
    for (std::size_t target = outputs.first; target <= outputs.last; ++target) stale.insert(target);
  });
  dirty_.clear();
  recent_.clear();
  stale.for_each([&](std::size_t target) {
    for (std::size_t tap = 0; tap < RowTaps::kTaps; ++tap) recent_.insert(row_taps_[target].first + tap);
    kernels_->blend_rows(row_taps_[target], reduced_.data(), &output_[target * kObsSide]);
  });
  std::memcpy(out, output_.data(), output_.size());
}

void PlaneReducer::prefetch(int part) const noexcept {
  if (part == 0) {
    prefetch_lines(seen_);
    return;
  }
  prefetch_lines(output_);
  recent_.for_each([&](std::size_t row) {
    prefetch_lines({plane_.data() + row * kScreenWidth, kScreenWidth});
    prefetch_lines({reinterpret_cast<const std::uint8_t*>(reduced_.data() + row), sizeof(ReducedRow)});
  });
}

std::span<const std::uint8_t> PlaneReducer::plane() const noexcept { return {plane_.data(), height_ * kScreenWidth}; }

void PlaneReducer::set_plane(std::span<const std::uint8_t> plane) {
  if (plane.size() != height_ * kScreenWidth) {
    throw std::invalid_argument("PlaneReducer::set_plane: " + std::to_string(plane.size()) + " bytes were given, " +
                                std::to_string(height_) + " rows of " + std::to_string(kScreenWidth) + " are " +
                                std::to_string(height_ * kScreenWidth) + "; give the plane of a screen of this height");
  }
  for (std::size_t row = 0; row < height_; ++row) {
    replace_row(row, plane.data() + row * kScreenWidth);
  }
}

}  // namespace fastrl
