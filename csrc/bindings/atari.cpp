// atari.cpp: one emulator and the pixel functions, for the self-check, palettes, tests and measurements.

#include "bindings/atari.hpp"

#include "atari/engine.hpp"
#include "atari/frame_ops.hpp"
#include "atari/numpy_random.hpp"

namespace fastrl {
namespace {

std::span<const std::uint8_t> span_of(const Bytes& array) {
  return {array.data(), static_cast<std::size_t>(array.size())};
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

// What an env asked of its engine, as record_calls() wrote it.
void make_calls(Emulator& console, const std::string& calls) {
  for (const char call : calls) {
    const auto code = static_cast<std::uint8_t>(call);
    if (code == SavableEmulator::kResetCall) {
      console.reset_game();
    } else {
      console.act(code);
    }
  }
}

// The calls of many envs in the order in which a pool makes them: `calls` has, for each step, those of every console.
void replay_in_turn(const std::vector<Emulator*>& consoles, const std::vector<std::vector<std::string>>& calls) {
  const Unlocked released;
  for (const std::vector<std::string>& step : calls) {
    for (std::size_t i = 0; i < consoles.size(); ++i) make_calls(*consoles[i], step.at(i));
  }
}

// Made once a game, shared by its pools. Empty: every reset is emulated.
struct BoundStarts {
  std::shared_ptr<const CachedStarts> starts;
};

}  // namespace

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
            make_calls(self, calls);
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

  m.def("replay_in_turn", replay_in_turn, "consoles"_a, "calls"_a);

  py::class_<NumpyRandom>(m, "NumpyRandom")
      .def(py::init([](std::uint64_t state_high, std::uint64_t state_low, std::uint64_t increment_high,
                       std::uint64_t increment_low, std::uint32_t has_uint32, std::uint32_t uinteger) {
        return NumpyRandom({state_high, state_low, increment_high, increment_low, has_uint32, uinteger});
      }))
      .def("integers", &NumpyRandom::integers, "first"_a, "last"_a);
}

}  // namespace fastrl
