// frame_sink.hpp: where a pool writes frames when somebody wants them where they are needed (the replay ring).
//
// The thread that emulated calls begin, put and commit, in this order, once for every frame an env produces: the first
// frame of an episode, and the frame that follows each step, the last one of an episode included. Calls for one env
// never overlap; calls for different envs do. A sink must not wait for a reader and must not throw there.
//
// One pool at a time: a pool claims its sink before its first call and releases it after its last.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>

namespace fastrl {

struct FrameRecord {
  int env;
  bool starts_episode;  // the frame opens an episode: action, reward and flags say nothing
  int action;           // that led to this frame
  double reward;        // as the protocol gives it to the learner
  bool terminated;
  bool truncated;
};

// How a pool makes observations of its frames.
struct StackRules {
  int stack;
  bool pad_with_first_frame;
};

class FrameSink {
 public:
  FrameSink() = default;
  FrameSink(const FrameSink&) = delete;
  FrameSink& operator=(const FrameSink&) = delete;
  virtual ~FrameSink() = default;

  // Throws where another pool has it, or the sink cannot be used for such a pool or in this process.
  void claim(const StackRules& rules) {
    require_usable(rules);
    if (claimed_.exchange(true)) {
      throw std::logic_error(
          "sink: another pool writes into it, and frames of two games would be one episode; close() that pool first, "
          "or make a sink for each");
    }
  }
  void release() noexcept { claimed_ = false; }

  virtual int num_envs() const noexcept = 0;  // a pool of another size refuses the sink
  // Whether the frame that follows a restored state of this env follows what the sink has of it.
  virtual bool continues(int) const noexcept { return true; }
  virtual void begin(int env) noexcept = 0;
  virtual void put(int env, std::span<const std::uint8_t> frame) noexcept = 0;
  virtual void commit(const FrameRecord& record) noexcept = 0;

 private:
  virtual void require_usable(const StackRules&) const {}

  std::atomic<bool> claimed_ = false;
};

// A pool's sink, claimed; released with the object or before.
class ClaimedSink {
 public:
  ClaimedSink(std::shared_ptr<FrameSink> sink, int num_envs, const StackRules& rules) : sink_(std::move(sink)) {
    if (!sink_) return;
    if (sink_->num_envs() != num_envs) {
      throw std::invalid_argument("sink: it is for " + std::to_string(sink_->num_envs()) + " envs, the pool has " +
                                  std::to_string(num_envs) + "; make both for the same number");
    }
    sink_->claim(rules);
    claimed_ = true;
  }
  ClaimedSink(const ClaimedSink&) = delete;  // released once
  ClaimedSink& operator=(const ClaimedSink&) = delete;
  ~ClaimedSink() { release(); }

  // Nobody calls the sink any more.
  void release() noexcept {
    if (claimed_.exchange(false)) sink_->release();
  }

  explicit operator bool() const noexcept { return sink_ != nullptr; }
  FrameSink* operator->() const noexcept { return sink_.get(); }

 private:
  std::shared_ptr<FrameSink> sink_;
  std::atomic<bool> claimed_ = false;
};

}  // namespace fastrl
