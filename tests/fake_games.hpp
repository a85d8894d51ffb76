// fake_games.hpp: a pool that plays the toy console of fake_engine.cpp, for drivers that count what it does meanwhile.
#pragma once

#include <algorithm>
#include <memory>
#include <optional>
#include <vector>

#include "pool/env_pool.hpp"

namespace fastrl {

inline AtariRules fake_rules(const char* rom) {
  auto table = std::make_shared<PixelTable>();
  for (std::size_t a = 0; a < 128; ++a) {
    table->single[a] = static_cast<std::uint8_t>(2 * a);
    for (std::size_t b = 0; b < 128; ++b) table->pair[a * 128 + b] = static_cast<std::uint8_t>(2 * std::max(a, b));
  }
  AtariRules rules{};
  rules.game = "fake";
  rules.emulator = {rom, 0, 0.0F, 0, -1, -1};  // the fake takes any file
  rules.screen_rows = 210;
  rules.actions = {0, 1, 3, 4};
  rules.trust_states = true;
  rules.frame_skip = 4;
  rules.stack = 4;
  rules.pooling = Pooling::kMaxAndSkip;
  rules.life_loss_ends_episode = true;
  rules.fingerprint = "fake";
  rules.planes = {table};
  rules.cpu_path = best_cpu_path();
  return rules;
}

// Begins games in all envs of a pool; then every env takes the same action in every step.
class FakeGames {
 public:
  explicit FakeGames(EnvPool& pool) : pool_(pool), actions_(static_cast<std::size_t>(pool.options().num_envs), 1) {
    std::vector<EnvPool::Reset> resets;
    for (int env = 0; env < pool.options().num_envs; ++env) {
      resets.push_back({env, EnvSeed{static_cast<std::uint32_t>(env), {0, 1, 0, 1, 0, 0}}, std::nullopt});
      envs_.push_back(env);
    }
    pool_.send_resets(std::move(resets), nullptr);
    pool_.recv(-1, [] {});
  }

  void step() {
    pool_.send_actions(envs_, actions_, nullptr);
    pool_.recv(-1, [] {});
  }

 private:
  EnvPool& pool_;
  std::vector<int> envs_;
  std::vector<std::int64_t> actions_;
};

}  // namespace fastrl
