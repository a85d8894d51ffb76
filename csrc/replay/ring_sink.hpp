// ring_sink.hpp: a pool's frames, written into a ring by the threads that emulated them. Env i writes lane first + i.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "pool/frame_sink.hpp"
#include "replay/ring.hpp"

namespace fastrl {

class RingSink final : public FrameSink {
 public:
  // `continue_episodes`: of envs that were restored with the ring.
  RingSink(const std::shared_ptr<const Ring>& ring, std::uint64_t first_lane, std::uint64_t lanes,
           bool continue_episodes) {
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

  const LaneWriter& writer(int env) const noexcept { return *writers_[static_cast<std::size_t>(env)]; }

 private:
  LaneWriter& writer(int env) noexcept { return *writers_[static_cast<std::size_t>(env)]; }

  std::vector<std::unique_ptr<LaneWriter>> writers_;
};

}  // namespace fastrl
