// stage_clock.hpp: where the time of a step goes. Without a clock a stage costs one test of a pointer.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>

namespace fastrl {

enum class Stage : std::size_t { kEmulate, kRestart, kKeepScreens, kReduce, kWriteStack, kCount };
inline constexpr const char* kStageNames[] = {"emulate", "restart", "keep_screens", "reduce", "write_stack"};

struct StageClock {
  std::array<std::int64_t, static_cast<std::size_t>(Stage::kCount)> nanoseconds{};
  std::array<std::int64_t, static_cast<std::size_t>(Stage::kCount)> stamps{};
};

// Adds the time of its scope to a stage. Scopes do not nest, so that the stages add up to the whole.
class StageScope {
 public:
  StageScope(StageClock* clock, Stage stage) : clock_(clock), stage_(static_cast<std::size_t>(stage)) {
    if (clock_ != nullptr) began_ = std::chrono::steady_clock::now();
  }
  StageScope(const StageScope&) = delete;
  StageScope& operator=(const StageScope&) = delete;
  ~StageScope() {
    if (clock_ == nullptr) return;
    const std::chrono::nanoseconds spent = std::chrono::steady_clock::now() - began_;
    clock_->nanoseconds[stage_] += spent.count();
    ++clock_->stamps[stage_];
  }

 private:
  StageClock* clock_;
  std::size_t stage_;
  std::chrono::steady_clock::time_point began_;
};

}  // namespace fastrl
