// path_copies.cpp: counts every copy of a frame on its way from the emulator through a lane to an acting stack and to a
// batch, and fails if there is one more than there must be.
//
// Usage: path_copies FAKE_ENGINE [--one-more]. The flag puts a sink between that copies once more, which must be found.
//
// Counted are, for everything at least as large as a frame (84x84):
//   into lanes, out of lanes     by a hook in lane.hpp, which all payloads pass
//   within the pool              calls of memcpy and memmove (std::copy is one), which the linker leads here
// Not counted: what the engine does inside its own module, and loops that compute something (the resize).

#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstring>
#include <stdexcept>
#include <string>

#include "fake_games.hpp"
#include "replay/ring_sink.hpp"
#include "replay/sampler.hpp"

namespace {

constexpr std::size_t kFrame = 84 * 84;
constexpr std::size_t kScreen = 210 * 160;

struct Counts {
  std::atomic<std::uint64_t> into_lanes = 0;
  std::atomic<std::uint64_t> out_of_lanes = 0;
  std::atomic<std::uint64_t> frames = 0;   // within the pool: copies of a frame
  std::atomic<std::uint64_t> screens = 0;  // ... of a screen
  std::atomic<std::uint64_t> others = 0;   // ... of anything else as large as a frame

  void clear() { into_lanes = out_of_lanes = frames = screens = others = 0; }
} counts;

void count_copy(std::size_t bytes) {
  if (bytes < kFrame) return;
  ++(bytes == kFrame ? counts.frames : bytes == kScreen ? counts.screens : counts.others);
}

}  // namespace

void fastrl_copied(bool into_lane, std::size_t bytes) noexcept {
  if (bytes >= kFrame) ++(into_lane ? counts.into_lanes : counts.out_of_lanes);
}

extern "C" {
void* __real_memcpy(void* to, const void* from, std::size_t bytes);
void* __real_memmove(void* to, const void* from, std::size_t bytes);
void* __wrap_memcpy(void* to, const void* from, std::size_t bytes) {
  count_copy(bytes);
  return __real_memcpy(to, from, bytes);
}
void* __wrap_memmove(void* to, const void* from, std::size_t bytes) {
  count_copy(bytes);
  return __real_memmove(to, from, bytes);
}
}

namespace fastrl {
namespace {

// The mistake that must be found.
class CopyingSink final : public FrameSink {
 public:
  explicit CopyingSink(std::shared_ptr<FrameSink> next) : next_(std::move(next)) {}
  int num_envs() const noexcept override { return next_->num_envs(); }
  void begin(int env) noexcept override { next_->begin(env); }
  void put(int env, std::span<const std::uint8_t> frame) noexcept override {
    const std::vector<std::uint8_t> copy(frame.begin(), frame.end());
    next_->put(env, copy);
  }
  void commit(const FrameRecord& record) noexcept override { next_->commit(record); }

 private:
  std::shared_ptr<FrameSink> next_;
};

void expect(const char* what, std::uint64_t found, std::uint64_t expected) {
  if (found == expected) return;
  throw std::runtime_error(std::to_string(found) + " " + what + ", expected " + std::to_string(expected));
}

std::uint64_t published(const Ring& ring) {
  std::uint64_t sum = 0;
  for (std::uint64_t lane = 0; lane < ring.shape().lanes; ++lane) sum += ring.published(lane);
  return sum;
}

void run(const char* engine, const char* rom, bool one_more) {
  constexpr int kEnvs = 4;
  constexpr std::uint64_t kRows = 64;
  const RingShape shape{kEnvs, 512, 4, kFrame, 8};
  const std::shared_ptr<const Ring> ring = Ring::create(shape);
  const auto ring_sink = std::make_shared<RingSink>(ring, 0, kEnvs, Padding::kZeros, false);
  std::shared_ptr<FrameSink> sink = ring_sink;
  if (one_more) sink = std::make_shared<CopyingSink>(sink);
  EnvPool pool(Engine::open(engine), fake_rules(rom), {kEnvs, 2, kEnvs, Autoreset::kNextStep, false, 0, -1, -1}, sink);
  FakeGames games(pool);

  // The emulator to the lane: reduced into the env's own stack, which saved states need, and from there into the slot.
  counts.clear();
  const std::uint64_t before = published(*ring);
  constexpr int kSteps = 206;
  for (int step = 0; step < kSteps; ++step) games.step();
  const std::uint64_t steps = published(*ring) - before;
  expect("frames were published", steps, kEnvs * kSteps);
  expect("frames were copied into lanes", counts.into_lanes, steps);
  expect("frames were copied out of lanes", counts.out_of_lanes, 0);
  expect("frames were copied within the pool", counts.frames, steps);
  expect("copies of other sizes were made", counts.others, 0);
  const auto screens = static_cast<double>(counts.screens) / static_cast<double>(steps);
  if (screens > 2.01) throw std::runtime_error(std::to_string(screens) + " screens were copied a step, expected 2");

  // The lane to the acting stacks.
  counts.clear();
  const TransitionReader reader(*ring, {1, 0.99, Padding::kZeros});
  std::vector<std::uint8_t> stack(4 * kFrame);
  std::uint64_t shown = 0;
  for (std::uint64_t lane = 0; lane < kEnvs; ++lane) {
    const std::uint64_t newest = ring->published(lane) - 1;
    if (!reader.take_stack(lane, newest, stack.data())) throw std::runtime_error("a stack was overwritten");
    shown += std::min<std::uint64_t>(4, lane::load_meta(ring->lane(lane).meta(newest)).age + 1);
  }
  expect("frames were copied into lanes by acting", counts.into_lanes, 0);
  expect("frames were copied out of lanes for acting stacks", counts.out_of_lanes, shown);
  expect("copies besides were made for acting stacks", counts.frames + counts.screens + counts.others, 0);

  // The lane to a batch. The same batch as places says which observations are padding.
  Sampler sampler(ring, 1, std::nullopt);
  Sampler twin(ring, 1, std::nullopt);
  const auto bank = std::make_shared<BatchBank>();
  std::uint64_t frames_of_batches = 0;
  for (const std::uint64_t n_step : {std::uint64_t{1}, std::uint64_t{3}}) {
    const TransitionRules rules{n_step, 0.99, Padding::kZeros};
    const std::uint64_t rows = TransitionReader(*ring, rules).observations_per_row();
    const auto memory = bank->lend({kRows, rows * kFrame, 0, 8});
    const auto places = bank->lend({kRows, 0, rows, 8});
    counts.clear();
    twin.sample(rules, {twin.ends(), true}, 0.4, places->out());
    expect("frames were copied to draw places", counts.out_of_lanes, 0);
    sampler.sample(rules, {sampler.ends(), true}, 0.4, memory->out());
    const std::int64_t* const place = places->out().places;
    const auto padding = static_cast<std::int64_t>(shape.lanes * shape.slots);
    const auto real = static_cast<std::uint64_t>(
        std::count_if(place, place + kRows * rows, [&](std::int64_t one) { return one != padding; }));
    expect("frames were copied out of lanes for a batch", counts.out_of_lanes, real);
    expect("frames were copied into lanes by sampling", counts.into_lanes, 0);
    expect("copies besides were made for a batch", counts.frames + counts.screens + counts.others, 0);
    frames_of_batches += real;
  }
  std::printf(
      "%llu steps: 1 frame stored a step (%llu bytes in all), 1 copied before it and %.2f screens; %llu frames in "
      "acting stacks, %llu in batches, each copied once\n",
      static_cast<unsigned long long>(steps), static_cast<unsigned long long>(steps * kFrame), screens,
      static_cast<unsigned long long>(shown), static_cast<unsigned long long>(frames_of_batches));
}

}  // namespace
}  // namespace fastrl

int main(int argc, char** argv) {
  const bool one_more = argc == 3 && std::string(argv[2]) == "--one-more";
  if ((argc != 2 && !one_more) || dlopen(argv[1], RTLD_NOW | RTLD_GLOBAL) == nullptr) {
    std::fprintf(stderr, "usage: path_copies FAKE_ENGINE [--one-more]\n");
    return 2;
  }
  try {
    fastrl::run(argv[1], argv[0], one_more);
  } catch (const std::exception& error) {
    std::printf("FAILED: %s\n", error.what());
    return 1;
  }
  return 0;
}
