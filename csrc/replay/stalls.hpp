// stalls.hpp: who writes a lane and for how long it has been silent. For people to read; nothing waits or decides by
// it.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>

#include "replay/ring.hpp"

namespace fastrl {

struct LaneStatus {
  std::uint64_t published;                  // steps
  bool written;                             // whether it has a writer now
  std::optional<std::uint64_t> writer_pid;  // of that one, or of the last one
  std::optional<double> silent_s;           // since the newest step, or since the writer took the lane
};

LaneStatus lane_status(const Ring& ring, std::uint64_t lane);

// "12.3": for sentences.
std::string in_seconds(double value);

// A sentence for each lane that was silent for so long: its writer's process and state, its newest step and age. Lanes
// that never had a writer are not among them.
std::map<std::uint64_t, std::string> stalls(const Ring& ring, double after_s);

// The same behind an error's message: nothing, or "; " and the first few.
std::string stalls_in_message(const Ring& ring);

}  // namespace fastrl
