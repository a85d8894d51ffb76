// frame_sink.hpp: where a pool writes frames when somebody wants them where they are needed (the replay ring).
//
// The thread that emulated calls begin, put and commit, in this order, once for every frame an env produces: the first
// frame of an episode, and the frame that follows each step, the last one of an episode included. Calls for one env
// never overlap; calls for different envs do. A sink must not wait for a reader and must not throw.
#pragma once

#include <cstdint>
#include <span>

namespace fastrl {

struct FrameRecord {
  int env;
  bool starts_episode;  // the frame opens an episode: action, reward and flags say nothing
  int action;           // that led to this frame
  double reward;        // as the protocol gives it to the learner
  bool terminated;
  bool truncated;
};

class FrameSink {
 public:
  virtual ~FrameSink() = default;
  virtual int num_envs() const noexcept = 0;  // a pool of another size refuses the sink
  virtual void begin(int env) noexcept = 0;
  virtual void put(int env, std::span<const std::uint8_t> frame) noexcept = 0;
  virtual void commit(const FrameRecord& record) noexcept = 0;
};

}  // namespace fastrl
