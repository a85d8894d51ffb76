// atari.hpp: what the bindings of the pool need of those of a game.
#pragma once

#include "atari/atari_env.hpp"
#include "bindings/common.hpp"

namespace fastrl {

AtariRules rules_from(const py::dict& d);

}  // namespace fastrl
