#include "replay/stalls.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <fstream>
#include <iterator>

namespace fastrl {

namespace {

constexpr double kSilent = 2.0;      // seconds, until an error's message speaks of it
constexpr std::size_t kMessage = 3;  // lanes that it names

// As /proc tells it; nothing where there is no such process in our namespace.
std::string state_of(std::uint64_t pid) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/stat");
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  const std::size_t name_end = text.rfind(')');  // the name may contain anything
  if (name_end == std::string::npos || name_end + 2 >= text.size()) return "";
  switch (text[name_end + 2]) {
    case 'T':
      return ", which is stopped (SIGCONT lets it go on)";
    case 't':
      return ", which a debugger holds";
    default:
      return "";
  }
}

std::string sentence(const LaneStatus& status) {
  const std::string pid = std::to_string(*status.writer_pid);
  std::string text = status.written ? "its writer, process " + pid + state_of(*status.writer_pid) + ", "
                                    : "it has no writer now; the last one, process " + pid + ", ";
  if (status.published == 0) return text + "has published nothing for " + in_seconds(*status.silent_s) + " s";
  return text + "published the newest step, " + std::to_string(status.published - 1) + ", " +
         in_seconds(*status.silent_s) + " s ago";
}

}  // namespace

std::string in_seconds(double value) {
  const auto tenths = static_cast<std::uint64_t>(std::llround(std::max(0.0, value) * 10));
  return std::to_string(tenths / 10) + "." + std::to_string(tenths % 10);  // whatever the locale's point is
}

LaneStatus lane_status(const Ring& ring, std::uint64_t lane) {
  const lane::Cursor& cursor = *ring.lane(lane).cursor;
  LaneStatus status{ring.published(lane), ring.has_writer(lane), std::nullopt, std::nullopt};
  const std::uint64_t heard = lane::load_word(cursor.heard_ns);
  if (heard != 0) {
    status.writer_pid = lane::load_word(cursor.writer_pid);
    // Between this load and the clock a writer can publish: never less than no time.
    status.silent_s = std::max(0.0, static_cast<double>(static_cast<std::int64_t>(coarse_now_ns() - heard)) * 1e-9);
  }
  return status;
}

std::map<std::uint64_t, std::string> stalls(const Ring& ring, double after_s) {
  std::map<std::uint64_t, std::string> found;
  for (std::uint64_t lane = 0; lane < ring.shape().lanes; ++lane) {
    const LaneStatus status = lane_status(ring, lane);
    if (status.silent_s && *status.silent_s >= after_s) found[lane] = sentence(status);
  }
  return found;
}

std::string stalls_in_message(const Ring& ring) {
  const std::map<std::uint64_t, std::string> found = stalls(ring, kSilent);
  std::string text;
  std::size_t named = 0;
  for (const auto& [lane, sentence] : found) {
    if (++named > kMessage) break;
    text += "; lane " + std::to_string(lane) + ": " + sentence;
  }
  if (found.size() > kMessage) text += "; and " + std::to_string(found.size() - kMessage) + " lanes more";
  return text;
}

}  // namespace fastrl
