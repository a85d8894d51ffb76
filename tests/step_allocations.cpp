// step_allocations.cpp: counts the allocations of the pool's workers while they step. There must be none.
//
// Usage: step_allocations FAKE_ENGINE. Not run under a sanitizer: it replaces operator new.

#include <dlfcn.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <new>

#include "fake_games.hpp"

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
  AtariRules rules = fake_rules(argv[0]);
  rules.noop_min = 1;
  rules.noop_max = 30;
  constexpr int kEnvs = 4;
  EnvPool pool(Engine::open(argv[1]), rules, {kEnvs, 2, kEnvs, Autoreset::kNextStep, true, 0, -1, -1}, nullptr);
  FakeGames games(pool);
  long steps = 0;
  // An anchor, which does allocate, is due every 1,024 frames; 200 steps of 4 frames stay below it.
  for (int step = 0; step < 200; ++step) {
    counting = step >= 20;
    games.step();
    steps += counting ? kEnvs : 0;
  }
  counting = false;
  std::printf("%ld steps of workers, %ld allocations\n", steps, in_workers.load());
  return in_workers == 0 ? 0 : 1;
}
