// ring_hooks.hpp: included before everything else (-include) where the replay is compiled for tests/ring_stress.cpp.
//
//   FASTRL_CRASHPOINTS     the writer can be killed at each of its steps
//   FASTRL_MUTANT=n        a mistake that the driver must find (csrc/replay/lane.hpp)
//   FASTRL_PLAIN_COPY      payloads are copied by memcpy, which the thread sanitizer must report
#pragma once

#ifdef FASTRL_CRASHPOINTS
void fastrl_crashpoint(int place) noexcept;
#define FASTRL_CRASHPOINT(place) ::fastrl_crashpoint(place)
#endif
