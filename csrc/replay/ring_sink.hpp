// ring_sink.hpp: a pool's frames, written into a ring by the threads that emulated them. Env i writes lane first + i.
#pragma once

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "pool/frame_sink.hpp"
#include "replay/ring.hpp"
#include "replay/transitions.hpp"

namespace fastrl {

class RingSink final : public FrameSink {
 public:
  // `continue_episodes`: of envs that are restored as the ring was. `padding`: of stacks that are drawn from the ring.
  RingSink(const std::shared_ptr<const Ring>& ring, std::uint64_t first_lane, std::uint64_t lanes, Padding padding,
           bool continue_episodes)
      : stack_(ring->shape().stack), padding_(padding), continue_episodes_(continue_episodes) {
    for (std::uint64_t lane = first_lane; lane < first_lane + lanes; ++lane) {
      writers_.push_back(std::make_unique<LaneWriter>(ring, lane, continue_episodes));
    }
  }

  int num_envs() const noexcept override { return static_cast<int>(writers_.size()); }
  void begin(int env) noexcept override { writer(env).begin(); }
  void put(int env, std::span<const std::uint8_t> frame) noexcept override { writer(env).put(frame.data()); }
  void commit(const FrameRecord& record) noexcept override {
    const std::int64_t action = record.action;
    writer(record.env)
        .commit(record.starts_episode, &action, static_cast<float>(record.reward), record.terminated, record.truncated);
  }

  // Only as long as the lane is as it was found: the pool's states were saved then. Later, its episode is another one.
  bool continues(int env) const noexcept override {
    const LaneWriter& lane = writer(env);
    return continue_episodes_ && lane.next_step() > 0 && lane.bytes_stored() == 0;
  }

  const LaneWriter& writer(int env) const noexcept { return *writers_[static_cast<std::size_t>(env)]; }

 private:
  LaneWriter& writer(int env) noexcept { return *writers_[static_cast<std::size_t>(env)]; }

  void require_usable(const StackRules& rules) const override {
    if (!writers_.front()->usable_here()) {
      throw std::logic_error(
          "sink: it was made by the process that this one was forked from, which may be writing; attach to the replay "
          "and make one here");
    }
    if (static_cast<std::uint64_t>(rules.stack) != stack_) {
      throw std::invalid_argument("sink: the pool stacks " + std::to_string(rules.stack) + " frames, the replay " +
                                  std::to_string(stack_) + "; make both with the same stack");
    }
    const auto padded = rules.pad_with_first_frame ? Padding::kFirstObs : Padding::kZeros;
    if (stack_ > 1 && padded != padding_) {
      const auto name = [](Padding padding) { return padding == Padding::kZeros ? "'zeros'" : "'first_frame'"; };
      throw std::invalid_argument(std::string("sink: the pool's protocol pads stacks with ") + name(padded) +
                                  ", the replay with " + name(padding_) +
                                  "; make the replay with padding=" + name(padded));
    }
  }

  std::uint64_t stack_;
  Padding padding_;
  bool continue_episodes_;
  std::vector<std::unique_ptr<LaneWriter>> writers_;
};

}  // namespace fastrl
