// ring_hooks.hpp: included before everything else (-include) where the replay is compiled for tests/ring_stress.cpp.
//
//   FASTRL_CRASHPOINTS     the writer can be killed at each of its steps
//   FASTRL_MUTANT=n        a mistake that the driver must find (csrc/replay/lane.hpp)
//   FASTRL_PLAIN_COPY      payloads are copied by memcpy, which the thread sanitizer must report
//   FASTRL_COUNT_COPIES    payloads that are copied are counted (tests/path_copies.cpp)
#pragma once

#include <cstddef>

#ifdef FASTRL_CRASHPOINTS
void fastrl_crashpoint(int place) noexcept;
#define FASTRL_CRASHPOINT(place) ::fastrl_crashpoint(place)
#endif

#ifdef FASTRL_COUNT_COPIES
void fastrl_copied(bool into_lane, std::size_t bytes) noexcept;
#define FASTRL_COPIED(into_lane, bytes) ::fastrl_copied(into_lane, bytes)
#endif
