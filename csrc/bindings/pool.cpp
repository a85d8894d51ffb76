// pool.cpp: the Atari pool, sinks, and what is measured of its envs.

#include "pool/env_pool.hpp"

#include <chrono>

#include "bindings/atari.hpp"

namespace fastrl {
namespace {

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
  OneCaller caller;
  // The caller's buffer that workers may still write to. Noted here and not in Python, where an interrupt could come
  // between sending and noting; above the pool, so that it outlives its threads.
  py::object out = py::none();

 private:
  Threaded<EnvPool> pool_;
};

using SoleUse = OneCaller::Call;

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

}  // namespace

void register_pool(py::module_& m) {
  py::class_<FrameSink, std::shared_ptr<FrameSink>>(m, "FrameSink");
  py::class_<RecordingSink, FrameSink, std::shared_ptr<RecordingSink>>(m, "RecordingSink")
      .def(py::init<int>(), "num_envs"_a)
      .def("entries", &RecordingSink::entries, "env"_a);
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
            const SoleUse use(handle.caller, "reset");
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
            const SoleUse use(handle.caller, operation.c_str());
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
            const SoleUse use(handle.caller, operation.c_str());
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
            const SoleUse use(handle.caller, "reset");
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
            const SoleUse use(handle.caller, operation.c_str());
            const auto batch = pool.gather(caller_buffer(pool, out), operation.c_str());
            return to_python(pool, batch, shown_as);
          },
          "out"_a.noconvert().none(true), "shown_as"_a, "operation"_a)
      .def(
          "save_env",
          [](PoolHandle& handle, int env) {
            EnvPool& pool = handle.get("save_state");
            const SoleUse use(handle.caller, "save_state");
            return py::bytes(pool.save_env(env));
          },
          "env"_a)
      .def(
          "identify_env",
          [](PoolHandle& handle, int env) {
            EnvPool& pool = handle.get("state_digest");
            const SoleUse use(handle.caller, "state_digest");
            return py::bytes(pool.identify_env(env));
          },
          "env"_a)
      .def(
          "load_env",
          [](PoolHandle& handle, int env, const std::string& state) {
            EnvPool& pool = handle.get("load_state");
            const SoleUse use(handle.caller, "load_state");
            const Unlocked released;
            pool.load_env(env, state);
          },
          "env"_a, "state"_a)
      .def(
          "screen",
          [](PoolHandle& handle, int env) {
            EnvPool& pool = handle.get("screens");
            const SoleUse use(handle.caller, "screens");
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
          handle.caller.wait_until_left();
        }
        if (!handle.caller.inside()) handle.out = py::none();  // else a caller who plays may still be writing to it
      });
}

}  // namespace fastrl
