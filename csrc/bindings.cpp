// bindings.cpp: the only file that knows pybind11. Converts, checks what only Python could get wrong, releases the
// interpreter's lock around every wait, and registers; the work is elsewhere.

#include <cxxabi.h>
#include <pybind11/functional.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <pybind11/stl/filesystem.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <thread>
#include <utility>

#include "atari/engine.hpp"
#include "atari/frame_ops.hpp"
#include "atari/numpy_random.hpp"
#include "mujoco/mujoco_pool.hpp"
#include "pool/env_pool.hpp"
#include "replay/prefetcher.hpp"
#include "replay/ring_sink.hpp"
#include "replay/sampler.hpp"

namespace py = pybind11;
using namespace py::literals;

namespace fastrl {
namespace {

// Takes the interpreter's lock (by `take`), unless Python is ending: then it never comes back. Python ends a thread
// that asks for the lock too late by pthread_exit, which unwinds its stack; that must not reach a destructor or a
// function that throws nothing, where it would end the whole process by SIGABRT. What the thread holds stays untouched.
template <typename Take>
void take_or_rest(const Take& take) {
  try {
    take();
  } catch (abi::__forced_unwind&) {
    while (true) pause();  // until the process is gone
  }
}

// Without the interpreter's lock while it lives. As py::gil_scoped_release, but safe in a daemon thread at Python's
// end.
class Unlocked {
 public:
  Unlocked() : state_(PyEval_SaveThread()) {}
  Unlocked(const Unlocked&) = delete;
  Unlocked& operator=(const Unlocked&) = delete;
  ~Unlocked() {
    take_or_rest([this] { PyEval_RestoreThread(state_); });
  }

 private:
  PyThreadState* state_;
};

// Something with threads. It belongs to the process that made it: in a forked child its threads do not exist.
template <typename T>
class Threaded {
 public:
  explicit Threaded(std::unique_ptr<T> made) : made_(std::move(made)), owner_(getpid()) {}
  Threaded(const Threaded&) = delete;
  Threaded& operator=(const Threaded&) = delete;
  ~Threaded() {
    if (!made_here()) {
      static_cast<void>(made_.release());  // joining threads that a fork left behind would wait for ever
      return;
    }
    const Unlocked released;
    made_.reset();
  }

  bool made_here() const { return getpid() == owner_; }
  pid_t owner() const { return owner_; }
  T& operator*() const { return *made_; }
  T* operator->() const { return made_.get(); }

 private:
  std::unique_ptr<T> made_;
  pid_t owner_;
};

using Bytes = py::array_t<std::uint8_t, py::array::c_style>;
using Longs = py::array_t<std::int64_t, py::array::c_style>;
using Words = py::array_t<std::uint64_t, py::array::c_style>;
using Floats = py::array_t<float, py::array::c_style>;
using Doubles = py::array_t<double, py::array::c_style>;

std::span<const std::uint8_t> span_of(const Bytes& array) {
  return {array.data(), static_cast<std::size_t>(array.size())};
}

Bytes copy_of(std::span<const std::uint8_t> bytes, std::vector<py::ssize_t> shape) {
  Bytes array(std::move(shape));
  std::copy(bytes.begin(), bytes.end(), array.mutable_data());
  return array;
}

CpuPath cpu_path_named(const std::string& name) {
  for (const CpuPath path : available_cpu_paths()) {
    if (name == cpu_path_name(path)) return path;
  }
  std::string offered;
  for (const CpuPath path : available_cpu_paths()) offered += std::string(" ") + cpu_path_name(path);
  throw std::invalid_argument("cpu_path: '" + name + "' is not among what this processor can run:" + offered);
}

// From tables of all 256 colours, or of the 128 even ones.
std::shared_ptr<const PixelTable> pixel_table(const Bytes& single, const Bytes& pair) {
  auto table = std::make_shared<PixelTable>();
  const auto colours = static_cast<std::size_t>(single.size());
  if ((colours != PixelTable::kColours && colours != PixelTable::kAllColours) ||
      static_cast<std::size_t>(pair.size()) != colours * colours) {
    throw std::invalid_argument("pixel table: expected 128 and 128 x 128 bytes, or 256 and 256 x 256, got " +
                                std::to_string(single.size()) + " and " + std::to_string(pair.size()));
  }
  const std::size_t step = colours / PixelTable::kColours;
  for (std::size_t i = 0; i < PixelTable::kColours; ++i) {
    table->single[i] = single.data()[i * step];
    for (std::size_t j = 0; j < PixelTable::kColours; ++j) {
      table->pair[i * PixelTable::kColours + j] = pair.data()[i * step * colours + j * step];
    }
  }
  if (colours == PixelTable::kAllColours) table->pair_all.assign(pair.data(), pair.data() + pair.size());
  return table;
}

// ---- The emulator alone: for the self-check, palettes and measurements

void register_engine(py::module_& m) {
  py::class_<Engine, std::shared_ptr<Engine>>(m, "Engine");
  m.def(
      "open_engine",
      [](const std::string& file, std::size_t screen_rows, std::size_t screen_columns, std::size_t screen_pixels,
         std::size_t state_text) {
        return std::const_pointer_cast<Engine>(
            Engine::open(file, {screen_rows, screen_columns, screen_pixels, state_text}));
      },
      "module_file"_a, py::kw_only(), "screen_rows"_a = EngineLayout{}.screen_rows,
      "screen_columns"_a = EngineLayout{}.screen_columns, "screen_pixels"_a = EngineLayout{}.screen_pixels,
      "state_text"_a = EngineLayout{}.state_text);
  m.def("engine_symbols", &Engine::symbol_names);

  py::class_<Emulator>(m, "Emulator")
      .def(py::init([](std::shared_ptr<Engine> engine) { return std::make_unique<Emulator>(std::move(engine)); }))
      .def(
          "load_rom",
          [](Emulator& self, const std::filesystem::path& rom, std::uint32_t seed, float sticky_probability,
             int max_frames_per_game) { self.load_rom({rom, seed, sticky_probability, max_frames_per_game, -1, -1}); },
          "rom"_a, "seed"_a, "sticky_probability"_a, "max_frames_per_game"_a)
      .def("reset_game", &Emulator::reset_game)
      .def("act", &Emulator::act, "action"_a)
      .def(
          "act_many",
          [](Emulator& self, const std::vector<int>& actions) {
            const Unlocked released;
            std::int64_t reward = 0;
            for (const int action : actions) {
              reward += self.act(action);
              if (self.game_over() || self.truncated()) self.reset_game();
            }
            return reward;
          },
          "actions"_a)
      .def(
          "replay",
          [](Emulator& self, const std::string& calls) {
            const Unlocked released;
            for (const char call : calls) {
              const auto code = static_cast<std::uint8_t>(call);
              if (code == SavableEmulator::kResetCall) {
                self.reset_game();
              } else {
                self.act(code);
              }
            }
          },
          "calls"_a)
      .def("game_over", &Emulator::game_over)
      .def("truncated", &Emulator::truncated)
      .def("lives", &Emulator::lives)
      .def("frame_number", &Emulator::frame_number)
      .def("episode_frame_number", &Emulator::episode_frame_number)
      .def("minimal_actions", &Emulator::minimal_actions)
      .def("legal_actions", &Emulator::legal_actions)
      .def_property_readonly("rows", &Emulator::rows)
      .def("modes", &Emulator::modes)
      .def("difficulties", &Emulator::difficulties)
      .def("screen", [](const Emulator& self) { return copy_of(self.screen(), {self.rows(), self.columns()}); })
      .def("ram", [](const Emulator& self) { return copy_of(self.ram(), {128}); })
      .def("palette_rgb", [](Emulator& self) { return copy_of(self.palette_rgb(), {256, 3}); })
      .def("palette_grey", [](Emulator& self) { return copy_of(self.palette_grey(), {256}); })
      .def("save", [](Emulator& self) { return py::bytes(self.save()->to_string()); })
      .def("restore",
           [](Emulator& self, const std::string& state) { self.restore(EmulatorState(self.engine(), state)); })
      .def("guard_intact", &Emulator::guard_intact);
}

// Made once a game, shared by its pools. Empty: every reset is emulated.
struct BoundStarts {
  std::shared_ptr<const CachedStarts> starts;
};

// ---- Pixel functions and numbers: for tests and measurements

void register_parts(py::module_& m) {
  py::class_<BoundStarts>(m, "CachedStarts")
      .def(py::init<>())
      .def(py::init(
               [](Emulator& console, int most_noops) { return BoundStarts{make_cached_starts(console, most_noops)}; }),
           "console"_a, "most_noops"_a)
      .def("__len__", [](const BoundStarts& self) { return self.starts ? self.starts->size() : 0; });
  m.def("available_cpu_paths", [] {
    std::vector<std::string> names;
    for (const CpuPath path : available_cpu_paths()) names.emplace_back(cpu_path_name(path));
    return names;
  });
  m.def("best_cpu_path", [] { return std::string(cpu_path_name(best_cpu_path())); });

  struct BoundReducer {
    PlaneReducer reducer;
    int height;
    const std::uint8_t* screen(const Bytes& array) const {
      if (array.size() != static_cast<py::ssize_t>(height) * kScreenWidth) {
        throw std::invalid_argument("PlaneReducer: expected a screen of " + std::to_string(height) + " x 160 bytes");
      }
      return array.data();
    }
  };
  py::class_<BoundReducer>(m, "PlaneReducer")
      .def(py::init([](const Bytes& single, const Bytes& pair, int height, const std::string& cpu_path) {
             return BoundReducer{PlaneReducer(pixel_table(single, pair), height, cpu_path_named(cpu_path)), height};
           }),
           "single"_a, "pair"_a, "height"_a, "cpu_path"_a)
      .def("load", [](BoundReducer& self, const Bytes& screen) { self.reducer.load(self.screen(screen)); })
      .def("load_pair", [](BoundReducer& self, const Bytes& older,
                           const Bytes& newer) { self.reducer.load_pair(self.screen(older), self.screen(newer)); })
      .def("join_max", [](BoundReducer& self, const Bytes& screen) { self.reducer.join_max(self.screen(screen)); })
      .def("reduce",
           [](BoundReducer& self) {
             Bytes out({kObsSide, kObsSide});
             self.reducer.reduce(out.mutable_data());
             return out;
           })
      .def("plane", [](const BoundReducer& self) { return copy_of(self.reducer.plane(), {self.height, kScreenWidth}); })
      .def("set_plane", [](BoundReducer& self, const Bytes& plane) {
        self.screen(plane);
        self.reducer.set_plane(span_of(plane));
      });

  py::class_<NumpyRandom>(m, "NumpyRandom")
      .def(py::init([](std::uint64_t state_high, std::uint64_t state_low, std::uint64_t increment_high,
                       std::uint64_t increment_low, std::uint32_t has_uint32, std::uint32_t uinteger) {
        return NumpyRandom({state_high, state_low, increment_high, increment_low, has_uint32, uinteger});
      }))
      .def("integers", &NumpyRandom::integers, "first"_a, "last"_a);
}

// ---- Sinks

// Keeps what a pool wrote, for tests and for whoever wants to see how a sink is called.
class RecordingSink final : public FrameSink {
 public:
  struct Entry {
    FrameRecord record;
    std::vector<std::uint8_t> frame;
  };
  explicit RecordingSink(int num_envs) : open_(static_cast<std::size_t>(num_envs)), log_(open_.size()) {}

  int num_envs() const noexcept override { return static_cast<int>(log_.size()); }
  void begin(int env) noexcept override { open_[static_cast<std::size_t>(env)].clear(); }
  void put(int env, std::span<const std::uint8_t> frame) noexcept override {
    open_[static_cast<std::size_t>(env)].assign(frame.begin(), frame.end());
  }
  void commit(const FrameRecord& record) noexcept override {
    const auto env = static_cast<std::size_t>(record.env);
    log_[env].push_back({record, open_[env]});
  }
  py::list entries(int env) const {
    py::list list;
    if (env < 0 || env >= num_envs()) {
      throw std::out_of_range("entries: env " + std::to_string(env) + " is outside [0, " + std::to_string(num_envs()) +
                              ")");
    }
    for (const Entry& entry : log_[static_cast<std::size_t>(env)]) {
      const FrameRecord& r = entry.record;
      list.append(py::make_tuple(copy_of(entry.frame, {kObsSide, kObsSide}), r.starts_episode, r.action, r.reward,
                                 r.terminated, r.truncated));
    }
    return list;
  }

 private:
  std::vector<std::vector<std::uint8_t>> open_;
  std::vector<std::vector<Entry>> log_;
};

void register_sinks(py::module_& m) {
  py::class_<FrameSink, std::shared_ptr<FrameSink>>(m, "FrameSink");
  py::class_<RecordingSink, FrameSink, std::shared_ptr<RecordingSink>>(m, "RecordingSink")
      .def(py::init<int>(), "num_envs"_a)
      .def("entries", &RecordingSink::entries, "env"_a);
}

// ---- The pool

class PoolHandle {
 public:
  explicit PoolHandle(std::unique_ptr<EnvPool> pool) : pool_(std::move(pool)) {}

  bool made_here() const { return pool_.made_here(); }
  EnvPool& get(const char* operation) const {
    if (!made_here()) {
      throw PoolClosed(std::string(operation) + ": this pool was made by process " + std::to_string(pool_.owner()) +
                       " and its threads are not in this forked process; make a pool here");
    }
    return *pool_;
  }
  std::atomic<bool> in_use = false;
  std::atomic<std::thread::id> user;  // whose call is in progress, where in_use
  // The caller's buffer that workers may still write to. Noted here and not in Python, where an interrupt could come
  // between sending and noting; above the pool, so that it outlives its threads.
  py::object out = py::none();

 private:
  Threaded<EnvPool> pool_;
};

// One caller at a time: two threads stepping one pool would each get some of the other's results.
class SoleUse {
 public:
  SoleUse(PoolHandle& handle, const char* operation) : handle_(handle) {
    if (handle_.in_use.exchange(true)) {
      if (handle_.user.load() == std::this_thread::get_id()) {
        throw std::logic_error(std::string(operation) +
                               ": this thread is inside a call of this pool already: a signal handler cannot use it");
      }
      throw std::logic_error(std::string(operation) +
                             ": another thread is inside a call of this pool; use one pool a "
                             "thread, or take turns");
    }
    handle_.user = std::this_thread::get_id();
  }
  SoleUse(const SoleUse&) = delete;
  SoleUse& operator=(const SoleUse&) = delete;
  ~SoleUse() {
    handle_.user = std::thread::id();
    handle_.in_use = false;
  }

 private:
  PoolHandle& handle_;
};

void let_signals_through() {
  std::optional<py::gil_scoped_acquire> acquired;
  take_or_rest([&] { acquired.emplace(); });
  if (PyErr_CheckSignals() != 0) throw py::error_already_set();
}

template <typename T, typename Get>
py::array_t<T> column(const std::vector<EnvReport>& reports, Get get) {
  py::array_t<T> array(static_cast<py::ssize_t>(reports.size()));
  T* out = array.mutable_data();
  for (const EnvReport& report : reports) *out++ = get(report);
  return array;
}

py::dict columns(const std::vector<EnvReport>& reports) {
  py::dict d;
  d["reward"] = column<double>(reports, [](const EnvReport& r) { return r.reward; });
  d["terminated"] = column<bool>(reports, [](const EnvReport& r) { return r.terminated; });
  d["truncated"] = column<bool>(reports, [](const EnvReport& r) { return r.truncated; });
  d["lives"] = column<std::int64_t>(reports, [](const EnvReport& r) { return r.lives; });
  d["frame_number"] = column<std::int64_t>(reports, [](const EnvReport& r) { return r.frame_number; });
  d["episode_frame_number"] = column<std::int64_t>(reports, [](const EnvReport& r) { return r.episode_frame_number; });
  // Most steps end no game; then the columns that tell of it are left out.
  if (std::any_of(reports.begin(), reports.end(), [](const EnvReport& r) { return r.game_ended; })) {
    d["game_ended"] = column<bool>(reports, [](const EnvReport& r) { return r.game_ended; });
    d["game_return"] = column<double>(reports, [](const EnvReport& r) { return r.game_return; });
    d["game_frames"] = column<std::int64_t>(reports, [](const EnvReport& r) { return r.game_frames; });
    d["game_steps"] = column<std::int64_t>(reports, [](const EnvReport& r) { return r.game_steps; });
  }
  return d;
}

// Shows the batch's own memory; the batch goes back to its pool when the array is gone.
py::object view_of(const std::shared_ptr<Batch>& batch, std::vector<std::uint8_t>& memory, py::ssize_t stack) {
  if (memory.empty()) return py::none();
  const auto size = static_cast<py::ssize_t>(batch->env.size());
  py::capsule keep(new std::shared_ptr<Batch>(batch), [](void* p) { delete static_cast<std::shared_ptr<Batch>*>(p); });
  return Bytes({size, stack, py::ssize_t{kObsSide}, py::ssize_t{kObsSide}}, memory.data(), keep);
}

// `out`: what the caller knows the batch's memory as, where it is not the batch's own.
py::dict to_python(const EnvPool& pool, const std::shared_ptr<Batch>& batch, const py::object& out) {
  const py::ssize_t stack = pool.rules().stack;
  py::dict d = columns(batch->report);
  const bool own = batch->obs == batch->own_obs.data();
  d["obs"] = own ? view_of(batch, batch->own_obs, stack) : out;
  d["env_id"] = py::array_t<int>(static_cast<py::ssize_t>(batch->env.size()), batch->env.data());
  const bool any_final = std::any_of(batch->has_final.begin(), batch->has_final.end(), [](auto v) { return v != 0; });
  d["final"] = py::none();
  if (any_final) {
    py::dict final_columns = columns(batch->final_report);
    final_columns["mask"] = py::array_t<bool>(static_cast<py::ssize_t>(batch->has_final.size()),
                                              reinterpret_cast<const bool*>(batch->has_final.data()));
    final_columns["obs"] = view_of(batch, batch->final_obs, stack);
    d["final"] = final_columns;
  }
  return d;
}

std::uint8_t* caller_buffer(const EnvPool& pool, const std::optional<Bytes>& out) {
  if (!out) return nullptr;
  const auto needed = static_cast<py::ssize_t>(pool.stack_bytes()) * pool.options().num_envs;
  if (out->size() != needed || !out->writeable()) {
    throw std::invalid_argument("out: expected a writable C-contiguous uint8 array of " + std::to_string(needed) +
                                " bytes, got " + std::to_string(out->size()) +
                                (out->writeable() ? "" : ", not writable"));
  }
  return const_cast<std::uint8_t*>(out->data());
}

using SeedTuple = std::tuple<std::uint32_t, std::uint64_t, std::uint64_t, std::uint64_t, std::uint64_t>;
using ResetTuple = std::tuple<int, std::optional<SeedTuple>, std::optional<std::vector<int>>>;

EnvPool::Reset reset_from(const ResetTuple& given) {
  const auto& [env, seed, noops] = given;
  EnvPool::Reset reset{env, std::nullopt, noops};
  if (seed) {
    const auto& [emulator, state_high, state_low, increment_high, increment_low] = *seed;
    reset.seed = EnvSeed{emulator, {state_high, state_low, increment_high, increment_low, 0, 0}};
  }
  return reset;
}

EnvPool::Players players(bool caller_plays) {
  return caller_plays ? EnvPool::Players::kCallerToo : EnvPool::Players::kWorkers;
}

AtariRules rules_from(const py::dict& d) {
  AtariRules rules{};  // assigned one by one: gcc 12 destroys a member twice when an initialiser list throws
  rules.game = d["game"].cast<std::string>();
  rules.emulator.rom = d["rom"].cast<std::string>();
  rules.emulator.sticky_probability = d["sticky"].cast<float>();
  rules.emulator.max_frames_per_game = d["max_frames"].cast<int>();
  rules.emulator.mode = d["mode"].cast<int>();
  rules.emulator.difficulty = d["difficulty"].cast<int>();
  rules.trust_states = d["trust_states"].cast<bool>();
  rules.screen_rows = d["screen_rows"].cast<int>();
  rules.actions = d["actions"].cast<std::vector<int>>();
  rules.frame_skip = d["frame_skip"].cast<int>();
  rules.stack = d["stack"].cast<int>();
  rules.pooling = static_cast<Pooling>(d["pooling"].cast<int>());
  rules.noop_min = d["noop_min"].cast<int>();
  rules.noop_max = d["noop_max"].cast<int>();
  rules.fire_at_reset = d["fire_at_reset"].cast<bool>();
  rules.life_loss_ends_episode = d["life_loss_ends_episode"].cast<bool>();
  rules.life_loss_seen_every_frame = d["life_loss_seen_every_frame"].cast<bool>();
  rules.clip_reward = d["clip_reward"].cast<bool>();
  rules.pad_with_first_frame = d["pad_with_first_frame"].cast<bool>();
  rules.starts = d["starts"].cast<BoundStarts>().starts;
  rules.fingerprint = d["fingerprint"].cast<std::string>();
  rules.grey_weights = d["grey_weights"].cast<std::array<double, 4>>();
  rules.cpu_path = cpu_path_named(d["cpu_path"].cast<std::string>());
  for (const auto& [single, pair] : d["planes"].cast<std::vector<std::pair<Bytes, Bytes>>>()) {
    rules.planes.push_back(pixel_table(single, pair));
  }
  return rules;
}

// Plays envs in turn on the calling thread, steps and autoresets as a pool would, and says where the time went.
py::dict time_stages(std::shared_ptr<Engine> engine, const py::dict& rules, std::uint32_t seed,
                     const std::vector<int>& actions, int num_envs, bool stamped) {
  const AtariRules converted = rules_from(rules);
  StageClock clock;
  std::chrono::nanoseconds whole{};
  std::int64_t frames = 0;
  {
    const Unlocked released;
    std::vector<std::unique_ptr<AtariEnv>> envs;
    for (int i = 0; i < num_envs; ++i) {
      const std::uint32_t own_seed = seed + static_cast<std::uint32_t>(i);
      envs.push_back(std::make_unique<AtariEnv>(engine, converted));
      envs.back()->reset(EnvSeed{own_seed, {0, own_seed, 0, 1, 0, 0}});
    }
    std::vector<std::uint8_t> out(static_cast<std::size_t>(converted.stack) * kObsBytes);
    for (const auto& env : envs) {
      if (stamped) env->set_clock(&clock);
      frames -= env->report().frame_number;
    }
    auto next = envs.begin();
    const auto began = std::chrono::steady_clock::now();
    for (const int action : actions) {
      AtariEnv& env = **next;
      if (++next == envs.end()) next = envs.begin();
      if (env.episode_is_over()) {
        env.reset(std::nullopt);
      } else {
        env.step(action);
      }
      env.write_stack(out.data());
    }
    whole = std::chrono::steady_clock::now() - began;
    for (const auto& env : envs) frames += env->report().frame_number;
  }
  py::dict d;
  for (std::size_t i = 0; i < clock.nanoseconds.size(); ++i) {
    d[kStageNames[i]] = py::make_tuple(clock.nanoseconds[i], clock.stamps[i]);
  }
  d["whole"] = py::make_tuple(whole.count(), static_cast<std::int64_t>(actions.size()));
  d["frames"] = frames;
  return d;
}

// The calls of the engine that an env makes while it plays, an action or a reset a byte: what a bare loop must do for
// the same games. One string for each row of actions.
std::vector<py::bytes> record_calls(std::shared_ptr<Engine> engine, const py::dict& rules, const SeedTuple& seed,
                                    const std::vector<std::vector<int>>& actions) {
  AtariEnv env(std::move(engine), rules_from(rules));
  std::vector<std::uint8_t> log;
  env.log_calls(&log);
  env.reset(reset_from({0, seed, std::nullopt}).seed);
  std::vector<py::bytes> chunks;
  for (const std::vector<int>& row : actions) {
    for (const int action : row) {
      if (env.episode_is_over()) {
        env.reset(std::nullopt);
      } else {
        env.step(action);
      }
    }
    chunks.emplace_back(reinterpret_cast<const char*>(log.data()), log.size());
    log.clear();
  }
  return chunks;
}

void register_pool(py::module_& m) {
  m.def("record_calls", record_calls, "engine"_a, "rules"_a, "seed"_a, "actions"_a);
  m.def("time_stages", time_stages, "engine"_a, "rules"_a, "seed"_a, "actions"_a, "num_envs"_a, "stamped"_a);
  py::class_<PoolHandle>(m, "EnvPool")
      .def(py::init([](std::shared_ptr<Engine> engine, const py::dict& rules, int num_envs, int threads, int batch_size,
                       int autoreset, bool write_stacks, std::shared_ptr<FrameSink> sink, int spin_us, int fail_env,
                       int fail_step) {
             const AtariRules converted = rules_from(rules);
             const PoolOptions options{num_envs,     threads, batch_size, static_cast<Autoreset>(autoreset),
                                       write_stacks, spin_us, fail_env,   fail_step};
             std::unique_ptr<EnvPool> pool;
             {
               const Unlocked released;
               pool = std::make_unique<EnvPool>(std::move(engine), converted, options, std::move(sink));
             }
             return std::make_unique<PoolHandle>(std::move(pool));
           }),
           "engine"_a, "rules"_a, py::kw_only(), "num_envs"_a, "threads"_a, "batch_size"_a, "autoreset"_a,
           "write_stacks"_a, "sink"_a.none(true), "spin_us"_a, "fail_env"_a, "fail_step"_a)
      .def(
          "send_resets",
          [](PoolHandle& handle, const std::vector<ResetTuple>& resets, const std::optional<Bytes>& out,
             const py::object& shown_as, bool caller_plays) {
            EnvPool& pool = handle.get("reset");
            const SoleUse use(handle, "reset");
            std::vector<EnvPool::Reset> converted;
            for (const ResetTuple& reset : resets) converted.push_back(reset_from(reset));
            pool.send_resets(std::move(converted), caller_buffer(pool, out), players(caller_plays));
            if (out) handle.out = shown_as;
          },
          "resets"_a, "out"_a.noconvert().none(true), "shown_as"_a, "caller_plays"_a)
      .def(
          "send_actions",
          [](PoolHandle& handle, const py::array_t<int, py::array::c_style>& envs, const Longs& actions,
             const std::optional<Bytes>& out, const py::object& shown_as, const std::string& operation,
             bool caller_plays) {
            EnvPool& pool = handle.get(operation.c_str());
            const SoleUse use(handle, operation.c_str());
            if (envs.size() != actions.size()) throw std::invalid_argument(operation + ": one action for each env id");
            const auto size = static_cast<std::size_t>(envs.size());
            pool.send_actions({envs.data(), size}, {actions.data(), size}, caller_buffer(pool, out), operation.c_str(),
                              players(caller_plays));
            if (out) handle.out = shown_as;
          },
          "envs"_a, "actions"_a, "out"_a.noconvert().none(true), "shown_as"_a, "operation"_a, "caller_plays"_a)
      .def(
          "recv",
          [](PoolHandle& handle, double timeout_s, const std::string& operation) {
            EnvPool& pool = handle.get(operation.c_str());
            const SoleUse use(handle, operation.c_str());
            {
              const Unlocked released;
              pool.wait_for_batch(timeout_s, let_signals_through, operation.c_str());
            }
            // What interrupts here leaves the batch to the next recv; later it would be lost. (With the interpreter's
            // lock, which is held from here on anyway: where other threads compute, taking it can cost 5 ms.)
            let_signals_through();
            const auto batch = pool.take_batch(operation.c_str());
            return to_python(pool, batch, std::exchange(handle.out, py::none()));
          },
          "timeout_s"_a, "operation"_a)
      .def(
          "discard_in_flight",
          [](PoolHandle& handle, bool resets_only) {
            EnvPool& pool = handle.get("reset");
            const SoleUse use(handle, "reset");
            {
              const Unlocked released;
              pool.discard_in_flight(let_signals_through, resets_only);
            }
            handle.out = py::none();
          },
          "resets_only"_a)
      .def(
          "gather",
          [](PoolHandle& handle, const std::optional<Bytes>& out, const py::object& shown_as,
             const std::string& operation) {
            EnvPool& pool = handle.get(operation.c_str());
            const SoleUse use(handle, operation.c_str());
            const auto batch = pool.gather(caller_buffer(pool, out), operation.c_str());
            return to_python(pool, batch, shown_as);
          },
          "out"_a.noconvert().none(true), "shown_as"_a, "operation"_a)
      .def(
          "save_env",
          [](PoolHandle& handle, int env) {
            EnvPool& pool = handle.get("save_state");
            const SoleUse use(handle, "save_state");
            return py::bytes(pool.save_env(env));
          },
          "env"_a)
      .def(
          "load_env",
          [](PoolHandle& handle, int env, const std::string& state) {
            EnvPool& pool = handle.get("load_state");
            const SoleUse use(handle, "load_state");
            const Unlocked released;
            pool.load_env(env, state);
          },
          "env"_a, "state"_a)
      .def(
          "screen",
          [](PoolHandle& handle, int env) {
            EnvPool& pool = handle.get("screens");
            const SoleUse use(handle, "screens");
            AtariEnv& shown = pool.idle_env(env, "screens");
            return copy_of(shown.screen(), {pool.rules().screen_rows, kScreenWidth});
          },
          "env"_a)
      .def(
          "in_flight",
          [](PoolHandle& handle, const std::string& operation) {
            const EnvPool& pool = handle.get(operation.c_str());
            pool.require_alive(operation.c_str());
            return pool.in_flight();
          },
          "operation"_a)
      .def(
          "never_reset",
          [](PoolHandle& handle, const std::string& operation) { return handle.get(operation.c_str()).never_reset(); },
          "operation"_a)
      .def("close", [](PoolHandle& handle) {
        if (!handle.made_here()) return;  // nothing of it is in this process to close
        EnvPool& pool = handle.get("close");
        {
          const Unlocked released;
          pool.close();
          // A thread inside a call comes out of it now, and needs the interpreter for that: where Python is about to
          // end, it must not be found inside. (Not waited for: this very thread, in a signal handler.)
          const auto began = std::chrono::steady_clock::now();
          while (handle.in_use && handle.user.load() != std::this_thread::get_id() &&
                 std::chrono::steady_clock::now() - began < std::chrono::seconds(5)) {
            std::this_thread::sleep_for(std::chrono::milliseconds(1));
          }
        }
        if (!handle.in_use) handle.out = py::none();  // else a caller who plays may still be writing to it
      });
}

// ---- The replay

RingShape shape_from(const py::dict& d) {
  RingShape shape{};
  shape.lanes = d["lanes"].cast<std::uint64_t>();
  shape.slots = d["slots"].cast<std::uint64_t>();
  shape.stack = d["stack"].cast<std::uint64_t>();
  shape.obs_bytes = d["obs_bytes"].cast<std::uint64_t>();
  shape.action_bytes = d["action_bytes"].cast<std::uint64_t>();
  return shape;
}

void require_lane(const Ring& ring, std::uint64_t lane, const char* operation) {
  if (lane >= ring.shape().lanes) {
    throw py::index_error(std::string(operation) + ": lane " + std::to_string(lane) + " is outside [0, " +
                          std::to_string(ring.shape().lanes) + ")");
  }
}

std::string shape_text(const py::array& array) {
  return py::str(array.dtype()).cast<std::string>() + " of shape " + py::str(array.attr("shape")).cast<std::string>();
}

// What was saved goes back into a ring that nobody has written to: all of its lanes are held, or none is touched.
class RingRestorer {
 public:
  explicit RingRestorer(const std::shared_ptr<Ring>& ring) : ring_(ring) {
    for (std::uint64_t lane = 0; lane < ring->shape().lanes; ++lane) {
      writers_.push_back(std::make_unique<LaneWriter>(ring, lane));
      if (writers_.back()->next_step() != 0) {
        throw std::logic_error("load: lane " + std::to_string(lane) + " has been written to; load into a new replay");
      }
    }
  }

  // The slots of steps from `first` on, which follow those that the lane has. False if they are not those.
  bool put(std::uint64_t lane, std::uint64_t first, const Words& slots) {
    if (lane >= writers_.size()) throw py::index_error("load: lane " + std::to_string(lane) + " is not held");
    if (slots.ndim() != 2 || static_cast<std::uint64_t>(slots.shape(1)) != ring_->slot_words()) return false;
    const std::uint64_t* const from = slots.data();
    const auto count = static_cast<std::uint64_t>(slots.shape(0));
    const Unlocked released;
    return writers_[lane]->restore(first, count, from);
  }

  void close() { writers_.clear(); }

 private:
  std::shared_ptr<Ring> ring_;
  std::vector<std::unique_ptr<LaneWriter>> writers_;
};

// A lane as Python writes it: looks at what it is given before anything is announced.
class BoundWriter {
 public:
  using Discrete = std::pair<std::int64_t, std::int64_t>;  // the first action and how many there are

  BoundWriter(const std::shared_ptr<Ring>& ring, std::uint64_t lane, py::array obs_like, py::array action_like,
              bool continue_episode, std::optional<Discrete> discrete)
      : lane_(lane), obs_like_(std::move(obs_like)), action_like_(std::move(action_like)), discrete_(discrete) {
    action_is_float_ = action_like_.dtype().kind() == 'f';
    if (discrete_ && (action_like_.size() != 1 || !py::isinstance<py::array_t<std::int64_t>>(action_like_))) {
      throw std::invalid_argument("writer: discrete actions are one int64 each");
    }
    require_lane(*ring, lane, "writer");
    writer_ = std::make_unique<LaneWriter>(ring, lane, continue_episode);
  }

  void start(const py::object& obs) {
    open("start");
    const py::array given = checked("start", "obs", obs, obs_like_);
    LaneWriter& writer = open("start");  // converting runs any Python, which may have closed it
    writer.begin();
    writer.put(given.data());
    writer.commit(true, nullptr, 0, false, false);
  }

  void append(const py::object& action, double reward, const py::object& next_obs, bool terminated, bool truncated) {
    open_episode();
    const py::array obs = checked("append", "next_obs", next_obs, obs_like_);
    const py::array act = checked("append", "action", action, action_like_);
    check_action(act);
    if (!std::isfinite(static_cast<float>(reward))) {
      throw std::invalid_argument("append: reward " + py::str(py::float_(reward)).cast<std::string>() +
                                  " is not a finite number of at most 3.4e38, which a float32 holds; scale or clip it");
    }
    LaneWriter& writer = open_episode();  // converting runs any Python, which may have closed it
    writer.begin();
    writer.put(obs.data());
    writer.commit(false, act.data(), static_cast<float>(reward), terminated, truncated);
  }

  void close() { writer_.reset(); }
  std::uint64_t next_step() { return open("next_step").next_step(); }
  bool episode_is_open() { return open("episode_is_open").episode_is_open(); }

 private:
  LaneWriter& open(const char* operation) {
    if (!writer_) throw std::logic_error(std::string(operation) + ": the writer is closed; ask for another one");
    if (!writer_->usable_here()) {
      throw std::logic_error(std::string(operation) +
                             ": the writer was made by the process that this one was forked "
                             "from; attach to the replay and make one here");
    }
    return *writer_;
  }

  LaneWriter& open_episode() {
    LaneWriter& writer = open("append");
    if (!writer.episode_is_open()) {
      throw std::logic_error("append: no episode is open in lane " + std::to_string(lane_) +
                             "; call start(obs) with its first observation");
    }
    return writer;
  }

  // The array itself where it is right; numbers, lists and other types are converted if no value is lost by it.
  static py::array checked(const char* operation, const char* name, const py::object& given, const py::array& like) {
    py::array array = py::isinstance<py::array>(given) ? py::reinterpret_borrow<py::array>(given) : py::array(given);
    const auto same_shape = [&] {
      return array.ndim() == like.ndim() && std::equal(array.shape(), array.shape() + array.ndim(), like.shape());
    };
    if (array.dtype().is(like.dtype()) && same_shape() && (array.flags() & py::array::c_style) != 0) return array;
    const std::string_view numbers = like.dtype().kind() == 'f' ? "biuf" : "biu";
    if (!same_shape() || numbers.find(array.dtype().kind()) == std::string_view::npos) {
      const std::string message =
          std::string(operation) + ": " + name + " is " + shape_text(array) + ", expected " + shape_text(like);
      if (same_shape()) throw py::type_error(message);
      throw std::invalid_argument(message);
    }
    const py::module_ numpy = py::module_::import("numpy");
    if (!numpy.attr("can_cast")(array.dtype(), like.dtype(), "safe").cast<bool>()) {
      require_values_fit(numpy, operation, name, array, like);
    }
    return array.attr("astype")(like.dtype(), "order"_a = "C");
  }

  // Numbers are rounded to a narrower type of floats, but none becomes infinite; whole numbers stay what they are.
  static void require_values_fit(const py::module_& numpy, const char* operation, const char* name,
                                 const py::array& array, const py::array& like) {
    py::object least = py::int_(0);
    py::object most = py::int_(1);  // of a bool
    if (like.dtype().kind() != 'b') {
      const py::object info = numpy.attr(like.dtype().kind() == 'f' ? "finfo" : "iinfo")(like.dtype());
      const py::object number = py::module_::import("builtins").attr(like.dtype().kind() == 'f' ? "float" : "int");
      least = number(info.attr("min"));
      most = number(info.attr("max"));
    }
    // As Python's own numbers, which are of any size: no type of numpy holds both -1 and 2**64 - 1.
    const py::object lowest = numpy.attr("nanmin")(array, "initial"_a = 0, "where"_a = numpy.attr("isfinite")(array));
    const py::object highest = numpy.attr("nanmax")(array, "initial"_a = 0, "where"_a = numpy.attr("isfinite")(array));
    for (const py::object& found : {lowest.attr("item")(), highest.attr("item")()}) {
      if (found >= least && found <= most) continue;
      throw std::invalid_argument(std::string(operation) + ": " + name + " has the value " +
                                  py::str(found).cast<std::string>() + ", but the replay's " +
                                  py::str(like.dtype()).cast<std::string>() + " holds " +
                                  py::str(least).cast<std::string>() + " to " + py::str(most).cast<std::string>() +
                                  "; scale it, or make the replay with a type that holds it");
    }
  }

  // What is known of actions besides their type; the copy is right already.
  void check_action(const py::array& action) const {
    if (discrete_) {
      const auto value = *static_cast<const std::int64_t*>(action.data());
      if (value >= discrete_->first && value - discrete_->first < discrete_->second) return;
      throw std::invalid_argument(
          "append: action " + std::to_string(value) + " is outside [" + std::to_string(discrete_->first) + ", " +
          std::to_string(discrete_->first + discrete_->second) + "), the Discrete space that the replay was made with");
    }
    if (!action_is_float_) return;
    const auto all_finite = [&]<class T>(const T* values) {
      return std::all_of(values, values + action.size(), [](T value) { return std::isfinite(value); });
    };
    const bool finite = action.itemsize() == sizeof(float) ? all_finite(static_cast<const float*>(action.data()))
                        : action.itemsize() == sizeof(double)
                            ? all_finite(static_cast<const double*>(action.data()))
                            : py::module_::import("numpy").attr("isfinite")(action).attr("all")().cast<bool>();
    if (!finite) {
      throw std::invalid_argument("append: action " + py::str(action).cast<std::string>() +
                                  " has a value that is not a finite number; did the policy diverge?");
    }
  }

  std::unique_ptr<LaneWriter> writer_;
  std::uint64_t lane_;
  py::array obs_like_;     // shape and type of an observation,
  py::array action_like_;  // and of an action
  std::optional<Discrete> discrete_;
  bool action_is_float_;
};

// What the batches of one size look like to Python.
struct ArrayForm {
  BatchForm form;
  std::vector<py::ssize_t> obs_shape;  // (batch, stack, ...)
  std::vector<py::ssize_t> obs_strides;
  py::ssize_t next_obs_offset;
  std::vector<py::ssize_t> places_shape;
  std::vector<py::ssize_t> action_shape;
  py::dtype obs_dtype;
  py::dtype action_dtype;
};

// `with_observations`: else a batch has places of a mirror instead.
ArrayForm array_form(const Ring& ring, std::uint64_t count, std::uint64_t n_step, bool with_observations,
                     const py::array& obs_like, const py::array& action_like) {
  const RingShape& shape = ring.shape();
  const std::uint64_t rows = TransitionReader(ring, {n_step, 1, Padding::kZeros}).observations_per_row();
  const auto obs_bytes = static_cast<py::ssize_t>(shape.obs_bytes);
  ArrayForm made{
      {count, with_observations ? rows * shape.obs_bytes : 0, with_observations ? 0 : rows, shape.action_bytes},
      {static_cast<py::ssize_t>(count), static_cast<py::ssize_t>(shape.stack)},
      {static_cast<py::ssize_t>(rows) * obs_bytes, obs_bytes},
      obs_bytes * (n_step == 1 ? 1 : static_cast<py::ssize_t>(shape.stack)),
      {static_cast<py::ssize_t>(count), static_cast<py::ssize_t>(rows)},
      {static_cast<py::ssize_t>(count)},
      obs_like.dtype(),
      action_like.dtype()};
  made.obs_shape.insert(made.obs_shape.end(), obs_like.shape(), obs_like.shape() + obs_like.ndim());
  made.obs_strides.insert(made.obs_strides.end(), obs_like.strides(), obs_like.strides() + obs_like.ndim());
  made.action_shape.insert(made.action_shape.end(), action_like.shape(), action_like.shape() + action_like.ndim());
  return made;
}

// Memory whose batch nobody holds any more, but which a copy to a device may still be reading.
struct Guarded {
  std::shared_ptr<BatchMemory> memory;
  std::vector<py::object> events;

  bool passed() {
    while (!events.empty() && py::cast<bool>(events.back().attr("query")())) events.pop_back();
    return events.empty();
  }
};

// Never destroyed: when Python ends, events cannot be asked any more, and what they guard must not be freed.
std::vector<Guarded>& guarded_memory() {
  static auto* const all = new std::vector<Guarded>();
  return *all;
}

void free_what_passed() {
  std::vector<Guarded> all = std::exchange(guarded_memory(), {});  // an event may do anything, also come back here
  std::exception_ptr problem;
  for (Guarded& one : all) {
    try {
      if (!problem && one.passed()) continue;
    } catch (...) {
      problem = std::current_exception();
    }
    guarded_memory().push_back(std::move(one));
  }
  if (problem) std::rethrow_exception(problem);
}

// What all the arrays of a batch hold. The memory goes back to its bank with the last of them.
class Loan {
 public:
  Loan(std::shared_ptr<const ArrayForm> form, std::shared_ptr<BatchMemory> memory)
      : form_(std::move(form)), memory_(std::move(memory)) {}
  Loan(const Loan&) = delete;  // goes back once
  Loan& operator=(const Loan&) = delete;
  ~Loan() {
    if (!events_.empty()) guarded_memory().push_back({std::move(memory_), std::move(events_)});
  }

  void guard(py::object event) {
    if (!py::hasattr(event, "query")) {
      throw py::type_error("guard: " + py::repr(event).cast<std::string>() +
                           " has no query(); give an event such as torch.cuda.Event, recorded after the copy");
    }
    events_.push_back(std::move(event));
  }

  const BatchMemory& memory() const noexcept { return *memory_; }

  // In the order of a batch's fields; the first is None or the places.
  static py::tuple arrays(const py::object& self) {
    const Loan& loan = self.cast<const Loan&>();
    const ArrayForm& form = *loan.form_;
    const BatchOut out = loan.memory_->out();
    const auto count = static_cast<py::ssize_t>(out.count);
    py::object obs = py::none();
    py::object next_obs = py::none();
    py::object places = py::none();
    if (out.observations != nullptr) {
      obs = py::array(form.obs_dtype, form.obs_shape, form.obs_strides, out.observations, self);
      next_obs =
          py::array(form.obs_dtype, form.obs_shape, form.obs_strides, out.observations + form.next_obs_offset, self);
    } else {
      places = Longs(form.places_shape, out.places, self);
    }
    return py::make_tuple(obs, py::array(form.action_dtype, form.action_shape, out.actions, self),
                          Floats(count, out.rewards, self), Floats(count, out.discounts, self), next_obs,
                          Longs({count, py::ssize_t{2}}, out.indices, self), Floats(count, out.weights, self), places);
  }

 private:
  std::shared_ptr<const ArrayForm> form_;
  std::shared_ptr<BatchMemory> memory_;
  std::vector<py::object> events_;
};

// Memory that Python allocates (pinned): an array of bytes.
BatchBank::Allocate allocated_by(py::function allocate) {
  return [allocate = std::move(allocate)](std::size_t bytes) {
    const auto array = allocate(bytes).cast<Bytes>();
    if (static_cast<std::size_t>(array.size()) != bytes || !array.writeable()) {
      throw std::invalid_argument("batch bank: expected a writable array of " + std::to_string(bytes) + " bytes");
    }
    auto* const data = reinterpret_cast<std::byte*>(const_cast<std::uint8_t*>(array.data()));
    return Block{data, {new py::object(array), [](void* owner) {
                          const py::gil_scoped_acquire acquired;  // a bank may be used without the interpreter's lock
                          delete static_cast<py::object*>(owner);
                        }}};
  };
}

TransitionRules transition_rules(std::uint64_t n_step, double gamma, int padding) {
  return {n_step, gamma, static_cast<Padding>(padding)};
}

Ends checked_ends(const Sampler& sampler, const std::optional<std::vector<std::uint64_t>>& ends) {
  std::vector<std::uint64_t> published = sampler.ends();
  if (!ends) return {std::move(published), false};
  if (ends->size() != published.size()) {
    throw std::invalid_argument("sample: the boundary is of " + std::to_string(ends->size()) +
                                " lanes, the replay has " + std::to_string(published.size()));
  }
  for (std::size_t lane = 0; lane < published.size(); ++lane) {
    if ((*ends)[lane] > published[lane]) {
      throw std::invalid_argument("sample: the boundary of lane " + std::to_string(lane) + " is step " +
                                  std::to_string((*ends)[lane]) + ", but only " + std::to_string(published[lane]) +
                                  " are published");
    }
  }
  return {*ends, true};
}

void check_priorities(const RingShape& shape, const Longs& indices, const Doubles& priorities) {
  for (py::ssize_t i = 0; i < priorities.size(); ++i) {
    const std::int64_t lane = indices.data()[2 * i];
    if (lane < 0 || static_cast<std::uint64_t>(lane) >= shape.lanes || indices.data()[2 * i + 1] < 0) {
      throw py::index_error("update_priorities: (lane " + std::to_string(lane) + ", step " +
                            std::to_string(indices.data()[2 * i + 1]) + ") is not an index that was sampled");
    }
    const double priority = priorities.data()[i];
    if (!std::isfinite(priority) || priority < 0) {
      throw std::invalid_argument("update_priorities: priority " + std::to_string(priority) +
                                  " is not a finite number from 0 on");
    }
  }
}

class PrefetchHandle {
 public:
  PrefetchHandle(std::shared_ptr<Sampler> sampler, std::shared_ptr<BatchBank> bank,
                 std::shared_ptr<const ArrayForm> form, const TransitionRules& rules)
      : sampler_(std::move(sampler)),
        bank_(std::move(bank)),
        form_(std::move(form)),
        rules_(rules),
        prefetcher_(std::make_unique<Prefetcher>(sampler_)) {}

  void request(const std::optional<std::vector<std::uint64_t>>& ends, double beta) {
    Prefetcher& prefetcher = get("request");
    free_what_passed();
    prefetcher.ask(Prefetcher::Draw{rules_, checked_ends(*sampler_, ends), beta, bank_->lend(form_->form)});
  }

  void update(const Longs& indices, const Doubles& priorities) {
    Prefetcher& prefetcher = get("update_priorities");
    check_priorities(sampler_->ring().shape(), indices, priorities);
    prefetcher.ask(Prefetcher::Update{{indices.data(), indices.data() + indices.size()},
                                      {priorities.data(), priorities.data() + priorities.size()}});
  }

  std::unique_ptr<Loan> take(double timeout_s) {
    Prefetcher& prefetcher = get("take");
    std::shared_ptr<BatchMemory> memory = prefetcher.take(std::chrono::nanoseconds(0), {});  // mostly it is there
    if (!memory) {
      const Inside inside(*this);
      memory = prefetcher.take(nanoseconds(timeout_s), let_signals_through);
    }
    if (!memory) throw WaitTimeout("take: no batch after " + std::to_string(timeout_s) + " s; take() again, later");
    return std::make_unique<Loan>(form_, std::move(memory));
  }

  void drain(const std::string& operation, double timeout_s) {
    Prefetcher& prefetcher = get(operation.c_str());
    const Inside inside(*this);
    if (!prefetcher.drain(nanoseconds(timeout_s), let_signals_through)) {
      throw WaitTimeout(operation + ": the prefetcher was not done after " + std::to_string(timeout_s) + " s");
    }
  }

  std::size_t asked_and_not_taken() { return get("pending").asked_and_not_taken(); }

  void close() {
    if (!prefetcher_.made_here()) return;  // nothing of it is in this process to close
    const Unlocked released;
    prefetcher_->close();
    // Threads inside a call come out of it now, and need the interpreter for that: where Python is about to end, they
    // must not be found inside. (Not this very thread, in a signal handler: hence an end to it.)
    const auto began = std::chrono::steady_clock::now();
    while (inside_ > 0 && std::chrono::steady_clock::now() - began < std::chrono::seconds(1)) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  }

 private:
  // A wait without the interpreter's lock; counted until it is had again.
  class Inside {
   public:
    explicit Inside(PrefetchHandle& handle) : handle_(handle) {
      ++handle_.inside_;
      released_.emplace();
    }
    Inside(const Inside&) = delete;
    Inside& operator=(const Inside&) = delete;
    ~Inside() {
      released_.reset();
      --handle_.inside_;
    }

   private:
    PrefetchHandle& handle_;
    std::optional<Unlocked> released_;
  };

  static std::chrono::nanoseconds nanoseconds(double seconds) {  // below 0: no end
    constexpr double kMostSeconds = 1e9;
    if (seconds < 0) seconds = kMostSeconds;
    return std::chrono::duration_cast<std::chrono::nanoseconds>(
        std::chrono::duration<double>(std::min(seconds, kMostSeconds)));
  }
  Prefetcher& get(const char* operation) const {
    if (!prefetcher_.made_here()) {
      throw PrefetcherClosed(std::string(operation) + ": this prefetcher was made by process " +
                             std::to_string(prefetcher_.owner()) +
                             " and its thread is not in this forked process; attach to the replay and make one here");
    }
    return *prefetcher_;
  }

  std::shared_ptr<Sampler> sampler_;
  std::shared_ptr<BatchBank> bank_;
  std::shared_ptr<const ArrayForm> form_;
  TransitionRules rules_;
  Threaded<Prefetcher> prefetcher_;
  std::atomic<int> inside_ = 0;
};

// Steps first .. end - 1 of a lane with all that their slots say; None if they are not all there any more.
py::object look_at(const Ring& ring, std::uint64_t lane, std::uint64_t first, std::uint64_t end,
                   const py::array& obs_like, const py::array& action_like) {
  require_lane(ring, lane, "look");
  const RingShape& shape = ring.shape();
  const auto count = static_cast<py::ssize_t>(end - first);
  std::vector<std::uint64_t> slots((end - first) * ring.slot_words());
  if (!ring.copy_slots(lane, first, end, slots.data())) return py::none();
  const auto rows_like = [&](const py::array& like) {
    std::vector<py::ssize_t> rows{count};
    rows.insert(rows.end(), like.shape(), like.shape() + like.ndim());
    return py::array(like.dtype(), rows);
  };
  py::array obs = rows_like(obs_like);
  py::array action = rows_like(action_like);
  auto* obs_to = static_cast<std::uint8_t*>(obs.mutable_data());
  auto* action_to = static_cast<std::uint8_t*>(action.mutable_data());
  std::vector<lane::SlotMeta> metas;
  for (const std::uint64_t* slot = slots.data(); slot != slots.data() + slots.size(); slot += ring.slot_words()) {
    metas.push_back(lane::load_meta(slot));
    std::memcpy(action_to, slot + lane::kMetaWords, shape.action_bytes);
    std::memcpy(obs_to, slot + shape.meta_words(), shape.obs_bytes);
    action_to += shape.action_bytes;
    obs_to += shape.obs_bytes;
  }
  const auto each = [&]<typename Get>(const Get& get) {
    py::array_t<decltype(get(metas[0]))> values(count);
    for (py::ssize_t i = 0; i < count; ++i) values.mutable_at(i) = get(metas[static_cast<std::size_t>(i)]);
    return values;
  };
  py::dict d;
  d["step"] = each([](const lane::SlotMeta& m) { return m.step; });
  d["obs"] = obs;
  d["action"] = action;
  d["reward"] = each([](const lane::SlotMeta& m) { return m.reward; });
  d["episode"] = each([](const lane::SlotMeta& m) { return m.episode; });
  d["first"] = each([](const lane::SlotMeta& m) { return m.first(); });
  d["terminated"] = each([](const lane::SlotMeta& m) { return m.terminated(); });
  d["truncated"] = each([](const lane::SlotMeta& m) { return m.truncated(); });
  return d;
}

// What any replay must do at least: copy runs of neighbouring frames. For measurements.
void copy_runs(const Bytes& frames, const Longs& starts, std::uint64_t run_bytes, std::uint64_t frame_bytes,
               Bytes out) {
  const auto count = static_cast<std::uint64_t>(starts.size());
  const auto size = static_cast<std::uint64_t>(frames.size());
  if (static_cast<std::uint64_t>(out.size()) != count * run_bytes) throw std::invalid_argument("copy_runs: out");
  std::uint8_t* to = out.mutable_data();
  for (std::uint64_t i = 0; i < count; ++i, to += run_bytes) {
    const std::uint64_t from = static_cast<std::uint64_t>(starts.data()[i]) * frame_bytes;
    if (from > size || size - from < run_bytes) throw std::out_of_range("copy_runs: starts");
    std::memcpy(to, frames.data() + from, run_bytes);
  }
}

void register_replay(py::module_& m) {
  m.def("copy_runs", copy_runs, "frames"_a.noconvert(), "starts"_a, "run_bytes"_a, "frame_bytes"_a,
        "out"_a.noconvert());
  py::register_exception<LaneBusy>(m, "LaneBusy", PyExc_RuntimeError);
  py::register_exception<NothingToSample>(m, "NothingToSample", PyExc_RuntimeError);
  m.def("ring_bytes", [](const py::dict& shape) { return shape_from(shape).region_bytes(); }, "shape"_a);
  m.attr("guard_steps") = kGuardSteps;

  py::class_<Ring, std::shared_ptr<Ring>>(m, "Ring")
      .def(py::init([](const py::dict& shape) {
             const RingShape converted = shape_from(shape);
             const Unlocked released;
             return Ring::create(converted);
           }),
           "shape"_a)
      .def_static(
          "attach",
          [](std::int64_t pid, int descriptor, std::uint64_t inode, std::uint64_t bytes, const py::dict& shape,
             bool read_only) {
            return Ring::attach({pid, descriptor, inode, bytes}, shape_from(shape),
                                read_only ? Access::kReadOnly : Access::kReadWrite);
          },
          "pid"_a, "descriptor"_a, "inode"_a, "bytes"_a, "shape"_a, "read_only"_a)
      .def("address",
           [](const Ring& self) {
             const RegionAddress address = self.region().address();
             return py::make_tuple(address.pid, address.descriptor, address.inode, address.bytes);
           })
      .def("published",
           [](const Ring& self) {
             std::vector<std::uint64_t> ends;
             for (std::uint64_t lane = 0; lane < self.shape().lanes; ++lane) ends.push_back(self.published(lane));
             return ends;
           })
      .def(
          "has_writer",
          [](const Ring& self, std::uint64_t lane) {
            require_lane(self, lane, "has_writer");
            return self.has_writer(lane);
          },
          "lane"_a)
      .def_property_readonly("slot_words", &Ring::slot_words)
      .def(
          "copy_slots",
          [](const Ring& self, std::uint64_t lane, std::uint64_t first, std::uint64_t end) {
            require_lane(self, lane, "copy_slots");
            py::array_t<std::uint64_t> slots(
                {static_cast<py::ssize_t>(end - first), static_cast<py::ssize_t>(self.slot_words())});
            std::uint64_t* const out = slots.mutable_data();
            bool whole = false;
            {
              const Unlocked released;
              whole = self.copy_slots(lane, first, end, out);
            }
            if (!whole) {
              throw Overtaken("save: steps " + std::to_string(first) + " to " + std::to_string(end) + " of lane " +
                              std::to_string(lane) + " were overwritten while they were saved; hold the writers");
            }
            return slots;
          },
          "lane"_a, "first"_a, "end"_a)
      .def(
          "copy_observations",
          [](const Ring& self, std::uint64_t lane, std::uint64_t first, std::uint64_t end, Bytes out) {
            require_lane(self, lane, "copy_observations");
            if (static_cast<std::uint64_t>(out.size()) != (end - first) * self.shape().obs_bytes || !out.writeable()) {
              throw std::invalid_argument("copy_observations: out must be writable and of " +
                                          std::to_string((end - first) * self.shape().obs_bytes) + " bytes");
            }
            std::uint8_t* const to = out.mutable_data();
            const Unlocked released;
            return self.copy_observations(lane, first, end, to);
          },
          "lane"_a, "first"_a, "end"_a, "out"_a.noconvert())
      .def("look", look_at, "lane"_a, "first"_a, "end"_a, "obs_like"_a, "action_like"_a)
      .def(
          "stacks",
          [](const Ring& self, py::array out, int padding) {
            const RingShape& shape = self.shape();
            const std::uint64_t stack_bytes = shape.stack * shape.obs_bytes;
            if (static_cast<std::uint64_t>(out.nbytes()) != shape.lanes * stack_bytes || !out.writeable() ||
                (out.flags() & py::array::c_style) == 0) {
              throw std::invalid_argument("stacks: out must be C-contiguous, writable and of " +
                                          std::to_string(shape.lanes * stack_bytes) + " bytes");
            }
            auto* const to = static_cast<std::uint8_t*>(out.mutable_data());
            const TransitionReader reader(self, transition_rules(1, 1, padding));
            const Unlocked released;
            for (std::uint64_t lane = 0; lane < shape.lanes; ++lane) {
              std::uint64_t end = self.published(lane);
              if (end == 0) throw NothingToSample("stacks: lane " + std::to_string(lane) + " has no observation yet");
              while (!reader.take_stack(lane, end - 1, to + lane * stack_bytes)) end = self.published(lane);
            }
          },
          "out"_a, "padding"_a);

  py::class_<RingRestorer>(m, "RingRestorer")
      .def(py::init<const std::shared_ptr<Ring>&>(), "ring"_a)
      .def("put", &RingRestorer::put, "lane"_a, "first"_a, "slots"_a.noconvert())
      .def("close", &RingRestorer::close);

  py::class_<BoundWriter>(m, "LaneWriter")
      .def(py::init<const std::shared_ptr<Ring>&, std::uint64_t, py::array, py::array, bool,
                    std::optional<BoundWriter::Discrete>>(),
           "ring"_a, "lane"_a, "obs_like"_a, "action_like"_a, "continue_episode"_a, "discrete"_a)
      .def("start", &BoundWriter::start, "obs"_a)
      .def("append", &BoundWriter::append, "action"_a, "reward"_a, "next_obs"_a, "terminated"_a, "truncated"_a)
      .def("close", &BoundWriter::close)
      .def_property_readonly("next_step", &BoundWriter::next_step)
      .def_property_readonly("episode_is_open", &BoundWriter::episode_is_open);

  py::class_<RingSink, FrameSink, std::shared_ptr<RingSink>>(m, "RingSink")
      .def(py::init([](const std::shared_ptr<Ring>& ring, std::uint64_t first_lane, std::uint64_t lanes, int padding,
                       bool continue_episodes) {
             if (ring->shape().obs_bytes != kObsBytes || ring->shape().action_bytes != sizeof(std::int64_t)) {
               throw std::invalid_argument("sink: a pool writes 84x84 bytes and discrete actions, the replay is for " +
                                           std::to_string(ring->shape().obs_bytes) + " and " +
                                           std::to_string(ring->shape().action_bytes) + " bytes");
             }
             return std::make_shared<RingSink>(ring, first_lane, lanes, static_cast<Padding>(padding),
                                               continue_episodes);
           }),
           "ring"_a, "first_lane"_a, "lanes"_a, "padding"_a, "continue_episodes"_a)
      .def("bytes_stored", [](const RingSink& self) {
        std::uint64_t sum = 0;
        for (int env = 0; env < self.num_envs(); ++env) sum += self.writer(env).bytes_stored();
        return sum;
      });

  py::class_<ArrayForm, std::shared_ptr<ArrayForm>>(m, "BatchForm")
      .def(py::init([](const Ring& ring, std::uint64_t count, std::uint64_t n_step, bool with_observations,
                       const py::array& obs_like, const py::array& action_like) {
             return std::make_shared<ArrayForm>(
                 array_form(ring, count, n_step, with_observations, obs_like, action_like));
           }),
           "ring"_a, "count"_a, "n_step"_a, "with_observations"_a, "obs_like"_a, "action_like"_a);

  py::class_<Loan>(m, "Loan")
      .def("arrays", [](const py::object& self) { return Loan::arrays(self); })
      .def("guard", &Loan::guard, "event"_a);

  py::class_<BatchBank, std::shared_ptr<BatchBank>>(m, "BatchBank")
      .def(py::init<>())
      .def(py::init(
               [](py::function allocate) { return std::make_shared<BatchBank>(allocated_by(std::move(allocate))); }),
           "allocate"_a)
      .def(
          "lend",
          [](BatchBank& self, const std::shared_ptr<ArrayForm>& form) {
            free_what_passed();
            return std::make_unique<Loan>(form, self.lend(form->form));
          },
          "form"_a)
      .def_property_readonly("idle", &BatchBank::idle);

  py::class_<Sampler, std::shared_ptr<Sampler>>(m, "Sampler")
      .def(py::init([](const std::shared_ptr<Ring>& ring, std::uint64_t seed, std::optional<double> alpha) {
             std::optional<PriorityOptions> options;
             if (alpha) options = PriorityOptions{*alpha};
             return std::make_shared<Sampler>(ring, seed, options);
           }),
           "ring"_a, "seed"_a, "alpha"_a.none(true))
      .def(
          "sample",
          [](Sampler& self, const Loan& loan, std::uint64_t n_step, double gamma, int padding,
             const std::optional<std::vector<std::uint64_t>>& ends, double beta) {
            const TransitionRules rules = transition_rules(n_step, gamma, padding);
            const RingShape& shape = self.ring().shape();
            const std::uint64_t rows = TransitionReader(self.ring(), rules).observations_per_row();
            const BatchForm& form = loan.memory().form();
            if ((form.places != rows && form.observation_bytes != rows * shape.obs_bytes) ||
                form.action_bytes != shape.action_bytes) {
              throw std::invalid_argument(
                  "out: the buffer is for another replay or another n_step; make it with "
                  "replay.buffer(batch, n_step)");
            }
            const Ends until = checked_ends(self, ends);
            const BatchOut out = loan.memory().out();
            auto asked = std::chrono::steady_clock::now();
            const auto given_up = [&asked] {  // never by itself, but a signal's handler may throw
              const auto now = std::chrono::steady_clock::now();
              if (now - asked < std::chrono::milliseconds(50)) return false;
              let_signals_through();
              asked = std::chrono::steady_clock::now();
              return false;
            };
            const Unlocked released;
            self.sample(rules, until, beta, out, given_up);
          },
          "loan"_a, "n_step"_a, "gamma"_a, "padding"_a, "ends"_a.none(true), "beta"_a)
      .def(
          "update",
          [](Sampler& self, const Longs& indices, const Doubles& priorities) {
            check_priorities(self.ring().shape(), indices, priorities);
            const Unlocked released;
            return self.update(indices.data(), priorities.data(), static_cast<std::uint64_t>(priorities.size()));
          },
          "indices"_a, "priorities"_a)
      .def_property("batches", &Sampler::batches, &Sampler::set_batches)
      .def("state",
           [](const Sampler& self) -> py::object {
             std::optional<Sampler::State> found;
             {
               const Unlocked
                   released;  // who samples holds the sampler, and asks for signals with the interpreter's lock
               found = self.state();
             }
             if (!found) return py::none();
             const Priorities::State& state = found->priorities;
             return py::make_tuple(
                 found->n_step, state.largest, state.first, state.entered, state.ends,
                 py::array_t<std::uint64_t>(static_cast<py::ssize_t>(state.weights.size()), state.weights.data()));
           })
      .def(
          "restore",
          [](Sampler& self, std::uint64_t n_step, double gamma, int padding, std::uint64_t largest,
             const std::vector<std::uint64_t>& first, const std::vector<std::uint64_t>& entered,
             const std::vector<std::uint64_t>& ends, const Words& weights) {
            const Priorities::State state{
                largest, first, entered, ends, {weights.data(), weights.data() + weights.size()}};
            const Unlocked released;  // as for `state`
            self.restore(transition_rules(n_step, gamma, padding), state);
          },
          "n_step"_a, "gamma"_a, "padding"_a, "largest"_a, "first"_a, "entered"_a, "ends"_a, "weights"_a)
      .def_property_readonly("race_rejects", &Sampler::race_rejects)
      .def_property_readonly("stale_updates", &Sampler::stale_updates);

  py::class_<PrefetchHandle>(m, "Prefetcher")
      .def(py::init([](const std::shared_ptr<Sampler>& sampler, const std::shared_ptr<BatchBank>& bank,
                       const std::shared_ptr<ArrayForm>& form, std::uint64_t n_step, double gamma, int padding) {
             return std::make_unique<PrefetchHandle>(sampler, bank, form, transition_rules(n_step, gamma, padding));
           }),
           "sampler"_a, "bank"_a, "form"_a, "n_step"_a, "gamma"_a, "padding"_a)
      .def("request", &PrefetchHandle::request, "ends"_a.none(true), "beta"_a)
      .def("update", &PrefetchHandle::update, "indices"_a, "priorities"_a)
      .def("take", &PrefetchHandle::take, "timeout_s"_a)
      .def("drain", &PrefetchHandle::drain, "operation"_a, "timeout_s"_a)
      .def("pending", &PrefetchHandle::asked_and_not_taken)
      .def("close", &PrefetchHandle::close);
}

// ---- MuJoCo

const void* address_of(std::uintptr_t address) { return reinterpret_cast<const void*>(address); }
mujoco::Data* data_at(std::uintptr_t address) { return reinterpret_cast<mujoco::Data*>(address); }

mujoco::Range range_from(const py::handle& given) {
  const auto [low, high] = given.cast<std::pair<double, double>>();
  return {low, high};
}

mujoco::Sizes sizes_from(const py::dict& d) {
  return {d["nq"].cast<std::size_t>(), d["nv"].cast<std::size_t>(), d["nu"].cast<std::size_t>(),
          d["nbody"].cast<std::size_t>()};
}

mujoco::TaskRules task_rules_from(const py::dict& d) {
  mujoco::TaskRules rules{};
  rules.task = static_cast<mujoco::Task>(d["task"].cast<int>());
  rules.sizes = sizes_from(d);
  rules.frame_skip = d["frame_skip"].cast<int>();
  rules.max_episode_steps = d["max_episode_steps"].cast<int>();
  rules.step_s = d["step_s"].cast<double>();
  rules.start_z = d["start_z"].cast<double>();
  rules.forward_reward_weight = d["forward_reward_weight"].cast<double>();
  rules.ctrl_cost_weight = d["ctrl_cost_weight"].cast<double>();
  rules.contact_cost_weight = d["contact_cost_weight"].cast<double>();
  rules.healthy_reward = d["healthy_reward"].cast<double>();
  rules.terminate_when_unhealthy = d["terminate_when_unhealthy"].cast<bool>();
  rules.healthy_state = range_from(d["healthy_state_range"]);
  rules.healthy_z = range_from(d["healthy_z_range"]);
  rules.healthy_angle = range_from(d["healthy_angle_range"]);
  rules.contact_force = range_from(d["contact_force_range"]);
  rules.skipped_positions = d["skipped_positions"].cast<std::size_t>();
  rules.contact_in_obs = d["contact_in_obs"].cast<bool>();
  rules.main_body = d["main_body"].cast<std::size_t>();
  rules.fused_norm = d["fused_norm"].cast<bool>();
  return rules;
}

// Where an array lies, if it has the type and the size that C++ will assume.
template <typename T>
T* memory_of(const py::dict& arrays, const char* name, std::size_t size) {
  const py::object given = arrays[name];
  if (!py::isinstance<py::array_t<T, py::array::c_style>>(given)) {
    throw std::invalid_argument(std::string("mujoco: '") + name + "' is not a C-contiguous array of the right type");
  }
  auto array = py::reinterpret_borrow<py::array>(given);
  if (static_cast<std::size_t>(array.size()) < size) {
    throw std::invalid_argument(std::string("mujoco: '") + name + "' has " + std::to_string(array.size()) +
                                " numbers, expected " + std::to_string(size));
  }
  return static_cast<T*>(array.mutable_data());
}

mujoco::EnvMemory env_memory_from(const py::dict& d, const mujoco::Sizes& sizes) {
  return {data_at(d["data"].cast<std::uintptr_t>()),     memory_of<double>(d, "qpos", sizes.nq),
          memory_of<double>(d, "qvel", sizes.nv),        memory_of<double>(d, "ctrl", sizes.nu),
          memory_of<double>(d, "xpos", 3 * sizes.nbody), memory_of<double>(d, "cfrc_ext", 6 * sizes.nbody)};
}

// A pool with what keeps its memory alive. For one call at a time.
class MujocoHandle {
 public:
  MujocoHandle(const std::shared_ptr<mujoco::Library>& library, const py::dict& rules, std::uintptr_t model,
               const std::vector<py::dict>& envs, const py::dict& arrays, const std::string& task_name, int autoreset,
               int starts_each, int threads, int spin_us, py::object keep)
      : keep_(std::move(keep)),
        arrays_(arrays),
        pool_(make(library, rules, model, envs, arrays, task_name, autoreset, starts_each, threads, spin_us)) {}

  template <typename Work>
  auto use(const char* operation, Work work) {
    require_here(operation);
    if (in_use_.exchange(true)) {
      throw std::logic_error(std::string(operation) +
                             ": another thread is inside a call of this pool; use one pool a thread, or take turns");
    }
    const std::unique_ptr<std::atomic<bool>, void (*)(std::atomic<bool>*)> leave(
        &in_use_, [](std::atomic<bool>* flag) { *flag = false; });
    const Unlocked released;
    return work(*pool_);
  }

  void require_here(const char* operation) const {
    if (pool_.made_here()) return;
    throw std::logic_error(std::string(operation) + ": this pool was made by process " + std::to_string(pool_.owner()) +
                           " and its threads are not in this forked process; make a pool here");
  }

  void close() {
    if (!pool_.made_here()) return;  // nothing of it is in this process to close
    const Unlocked released;
    pool_->close();
  }

  bool starts_used_up() const { return pool_->starts_used_up(); }

  template <typename Action>
  int step(const py::array_t<Action, py::array::c_style>& actions) {
    const auto size = static_cast<std::size_t>(actions.size());
    const std::size_t expected = static_cast<std::size_t>(pool_->num_envs()) * pool_->rules().sizes.nu;
    if (size != expected) {
      throw std::invalid_argument("step: actions have " + std::to_string(size) + " numbers, expected " +
                                  std::to_string(expected));
    }
    return use("step",
               [given = std::span(actions.data(), size)](mujoco::MujocoPool& pool) { return pool.step(given); });
  }

  void reset(const py::array_t<bool, py::array::c_style>& chosen) {
    if (chosen.size() != pool_->num_envs()) throw std::invalid_argument("reset: one flag for each env");
    use("reset", [given = std::span(chosen.data(), static_cast<std::size_t>(chosen.size()))](mujoco::MujocoPool& pool) {
      pool.reset(given);
    });
  }

 private:
  static std::unique_ptr<mujoco::MujocoPool> make(const std::shared_ptr<mujoco::Library>& library,
                                                  const py::dict& rules, std::uintptr_t model,
                                                  const std::vector<py::dict>& envs, const py::dict& arrays,
                                                  const std::string& task_name, int autoreset, int starts_each,
                                                  int threads, int spin_us) {
    const mujoco::TaskRules converted = task_rules_from(rules);
    const mujoco::Sizes& sizes = converted.sizes;
    std::vector<mujoco::EnvMemory> memories;
    for (const py::dict& env : envs) memories.push_back(env_memory_from(env, sizes));
    const std::size_t count = envs.size();
    const std::size_t obs = count * obs_size(converted);
    const std::size_t terms = count * terms_of(converted.task).size();
    const std::size_t starts = count * static_cast<std::size_t>(starts_each);
    const mujoco::PoolMemory memory{memory_of<double>(arrays, "obs", obs),
                                    memory_of<double>(arrays, "reward", count),
                                    memory_of<bool>(arrays, "terminated", count),
                                    memory_of<bool>(arrays, "truncated", count),
                                    memory_of<double>(arrays, "terms", terms),
                                    memory_of<double>(arrays, "final_obs", obs),
                                    memory_of<double>(arrays, "final_terms", terms),
                                    memory_of<bool>(arrays, "was_reset", count),
                                    memory_of<bool>(arrays, "episode_over", count),
                                    memory_of<std::int64_t>(arrays, "elapsed_steps", count),
                                    starts_each,
                                    memory_of<std::int64_t>(arrays, "next_start", count),
                                    memory_of<double>(arrays, "start_qpos", starts * sizes.nq),
                                    memory_of<double>(arrays, "start_qvel", starts * sizes.nv)};
    return std::make_unique<mujoco::MujocoPool>(library, address_of(model), memories, converted,
                                                static_cast<mujoco::Autoreset>(autoreset), memory, task_name, threads,
                                                std::chrono::microseconds(spin_us));
  }

  py::object keep_;
  py::dict arrays_;
  std::atomic<bool> in_use_ = false;
  Threaded<mujoco::MujocoPool> pool_;
};

// The calls of some envs again, for measurements: what is done is envs x steps, what with an env each.
void repeat_calls(const mujoco::Library& library, std::uintptr_t model, const std::vector<py::dict>& envs,
                  const py::dict& sizes, const py::array_t<bool, py::array::c_style>& is_reset, const Doubles& ctrl,
                  const Doubles& qpos, const Doubles& qvel, int frame_skip) {
  const mujoco::Sizes converted = sizes_from(sizes);
  if (envs.empty() || static_cast<std::size_t>(is_reset.size()) % envs.size() != 0) {
    throw std::invalid_argument("mujoco_step_loop: is_reset has " + std::to_string(is_reset.size()) +
                                " flags, expected as many steps for each of " + std::to_string(envs.size()) + " envs");
  }
  const std::size_t steps = static_cast<std::size_t>(is_reset.size()) / envs.size();
  std::vector<mujoco::EnvMemory> memories;
  std::vector<mujoco::RecordedCalls> calls;
  for (std::size_t env = 0; env < envs.size(); ++env) {
    const auto numbers = [&](const char* name, const Doubles& array, std::size_t each) {
      if (static_cast<std::size_t>(array.size()) != envs.size() * steps * each) {
        throw std::invalid_argument(std::string("mujoco_step_loop: ") + name + " has " + std::to_string(array.size()) +
                                    " numbers, expected " + std::to_string(envs.size() * steps * each));
      }
      const double* first = array.data() + env * steps * each;
      return std::vector<double>(first, first + steps * each);
    };
    const bool* resets = is_reset.data() + env * steps;
    memories.push_back(env_memory_from(envs[env], converted));
    calls.push_back({{resets, resets + steps},
                     numbers("ctrl", ctrl, converted.nu),
                     numbers("qpos", qpos, converted.nq),
                     numbers("qvel", qvel, converted.nv)});
  }
  const Unlocked released;
  library.repeat(address_of(model), converted, memories, calls, frame_skip);
}

void register_mujoco(py::module_& m) {
  py::class_<mujoco::Library, std::shared_ptr<mujoco::Library>>(m, "MujocoLibrary")
      .def(
          "step",
          [](const mujoco::Library& self, std::uintptr_t model, std::uintptr_t data) {
            self.step(address_of(model), data_at(data));
          },
          "model"_a, "data"_a)
      .def(
          "forward",
          [](const mujoco::Library& self, std::uintptr_t model, std::uintptr_t data) {
            self.forward(address_of(model), data_at(data));
          },
          "model"_a, "data"_a)
      .def(
          "reset_data",
          [](const mujoco::Library& self, std::uintptr_t model, std::uintptr_t data) {
            self.reset_data(address_of(model), data_at(data));
          },
          "model"_a, "data"_a)
      .def(
          "rne_post_constraint",
          [](const mujoco::Library& self, std::uintptr_t model, std::uintptr_t data) {
            self.rne_post_constraint(address_of(model), data_at(data));
          },
          "model"_a, "data"_a)
      .def("version", [](const mujoco::Library& self) { return self.version(); });
  m.def(
      "open_mujoco",
      [](const std::string& file, bool own_clock, const std::string& step_symbol) {
        return std::const_pointer_cast<mujoco::Library>(mujoco::Library::open(file, own_clock, step_symbol));
      },
      "module_file"_a, py::kw_only(), "own_clock"_a, "step_symbol"_a = mujoco::kStepSymbol);
  m.def("mujoco_terms", [](int task) {
    std::vector<std::pair<std::string, bool>> terms;
    for (const mujoco::Term& term : terms_of(static_cast<mujoco::Task>(task))) {
      terms.emplace_back(term.name, term.at_reset);
    }
    return terms;
  });
  m.def("mujoco_obs_size", [](const py::dict& rules) { return obs_size(task_rules_from(rules)); }, "rules"_a);
  m.def("mujoco_step_loop", repeat_calls, "library"_a, "model"_a, "envs"_a, "sizes"_a, py::kw_only(), "is_reset"_a,
        "ctrl"_a, "qpos"_a, "qvel"_a, "frame_skip"_a);
  py::class_<MujocoHandle>(m, "MujocoPool")
      .def(
          py::init<const std::shared_ptr<mujoco::Library>&, const py::dict&, std::uintptr_t,
                   const std::vector<py::dict>&, const py::dict&, const std::string&, int, int, int, int, py::object>(),
          "library"_a, "rules"_a, "model"_a, "envs"_a, "arrays"_a, py::kw_only(), "task_name"_a, "autoreset"_a,
          "starts_each"_a, "threads"_a, "spin_us"_a, "keep"_a)
      .def("step", &MujocoHandle::step<float>, "actions"_a.noconvert())
      .def("step", &MujocoHandle::step<double>, "actions"_a.noconvert())
      .def("reset", &MujocoHandle::reset, "chosen"_a.noconvert())
      .def("starts_used_up", &MujocoHandle::starts_used_up)
      .def("require_here", &MujocoHandle::require_here, "operation"_a)
      .def("close", &MujocoHandle::close);
}

}  // namespace
}  // namespace fastrl

PYBIND11_MODULE(_core, m) {
  m.doc() = "The native part of fastrl. Use it through fastrl, not directly.";
  m.attr("version") = FASTRL_VERSION;
  m.attr("source_hash") = FASTRL_SOURCE_HASH;
  m.attr("compiler") = FASTRL_COMPILER;
  m.attr("compile_flags") = FASTRL_FLAGS;
  m.attr("build_type") = FASTRL_BUILD_TYPE;
  m.attr("obs_side") = fastrl::kObsSide;
  py::register_exception_translator([](std::exception_ptr error) {
    try {
      if (error) std::rethrow_exception(error);
    } catch (const fastrl::WaitTimeout& timeout) {
      PyErr_SetString(PyExc_TimeoutError, timeout.what());
    } catch (const fastrl::RegionTooLarge& too_large) {
      PyErr_SetString(PyExc_MemoryError, too_large.what());
    } catch (const fastrl::RegionGone& gone) {
      PyErr_SetString(PyExc_ConnectionError, gone.what());
    }
  });
  fastrl::register_engine(m);
  fastrl::register_parts(m);
  fastrl::register_sinks(m);
  fastrl::register_pool(m);
  fastrl::register_replay(m);
  fastrl::register_mujoco(m);
}
