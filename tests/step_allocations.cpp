// step_allocations.cpp: counts the allocations of the pool's workers while they step. There must be none.
//
// Usage: step_allocations FAKE_ENGINE. Not run under a sanitizer: it replaces operator new.

#include <dlfcn.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <new>

#include "pool/env_pool.hpp"

namespace {

std::atomic<bool> counting = false;
std::atomic<long> in_workers = 0;
thread_local bool is_main = false;

void* allocate(std::size_t size) {
  if (counting && !is_main) ++in_workers;
  void* memory = std::malloc(size);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

}  // namespace

void* operator new(std::size_t size) { return allocate(size); }
void* operator new[](std::size_t size) { return allocate(size); }
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete[](void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::size_t) noexcept { std::free(memory); }

int main(int argc, char** argv) {
  using namespace fastrl;
  is_main = true;
  if (argc != 2 || dlopen(argv[1], RTLD_NOW | RTLD_GLOBAL) == nullptr) {
    std::fprintf(stderr, "usage: step_allocations FAKE_ENGINE\n");
    return 2;
  }
  auto table = std::make_shared<PixelTable>();
  for (std::size_t a = 0; a < 128; ++a) {
    table->single[a] = static_cast<std::uint8_t>(2 * a);
    for (std::size_t b = 0; b < 128; ++b) table->pair[a * 128 + b] = static_cast<std::uint8_t>(2 * std::max(a, b));
  }
  AtariRules rules{};
  rules.game = "fake";
  rules.emulator = {argv[0], 0, 0.0F, 0, -1, -1};  // the fake takes any file
  rules.screen_rows = 210;
  rules.actions = {0, 1, 3, 4};
  rules.trust_states = true;
  rules.frame_skip = 4;
  rules.stack = 4;
  rules.pooling = Pooling::kMaxAndSkip;
  rules.noop_min = 1;
  rules.noop_max = 30;
  rules.life_loss_ends_episode = true;
  rules.fingerprint = "fake";
  rules.planes = {table};
  rules.cpu_path = best_cpu_path();
  constexpr int kEnvs = 4;
  EnvPool pool(Engine::open(argv[1]), rules, {kEnvs, 2, kEnvs, Autoreset::kNextStep, true, 0, -1, -1}, nullptr);
  std::vector<EnvPool::Reset> resets;
  std::vector<int> envs;
  for (int env = 0; env < kEnvs; ++env) {
    resets.push_back({env, EnvSeed{static_cast<std::uint32_t>(env), {0, 1, 0, 1, 0, 0}}, std::nullopt});
    envs.push_back(env);
  }
  const std::vector<std::int64_t> actions(kEnvs, 1);
  const auto nothing = [] {};
  pool.send_resets(std::move(resets), nullptr);
  pool.recv(-1, nothing);
  long steps = 0;
  // An anchor, which does allocate, is due every 1,024 frames; 200 steps of 4 frames stay below it.
  for (int step = 0; step < 200; ++step) {
    counting = step >= 20;
    pool.send_actions(envs, actions, nullptr);
    pool.recv(-1, nothing);
    steps += counting ? kEnvs : 0;
  }
  counting = false;
  std::printf("%ld steps of workers, %ld allocations\n", steps, in_workers.load());
  return in_workers == 0 ? 0 : 1;
}
