// engine.hpp: the Atari emulator that lives inside the installed ale-py module.
//
// No source of ALE is compiled or linked. The interpreter has already loaded ale-py's extension module; this file
// looks its C++ functions up by name and calls them, so emulation runs with no Python and no interpreter lock.
// This is the only file (with its .cpp) that knows that module's binary interface. What it assumes of it is:
//   1. the mangled names listed in engine.cpp (a missing one is refused by name);
//   2. the offsets in EngineLayout (engine/native.py compares a played game with ale-py's own answers before first
//   use).
//
// An Emulator may be used by one thread at a time; different Emulators may run on different threads.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace fastrl {

// Where the engine's objects keep what we read. Tests pass wrong values to show that the self-check refuses them.
struct EngineLayout {
  std::size_t screen_rows = 0;     // ALEScreen: int rows
  std::size_t screen_columns = 4;  // ALEScreen: int columns
  std::size_t screen_pixels = 8;   // ALEScreen: std::vector<unsigned char>
  std::size_t state_text = 24;     // ALEState: std::string with the serialised console
};

struct EngineFunctions;  // the resolved symbols, engine.cpp

// The loaded module and its functions. Opened once, shared by every Emulator, never unloaded.
class Engine {
 public:
  // Throws std::runtime_error naming the missing symbol. `module_file` must already be loaded in this process.
  static std::shared_ptr<const Engine> open(const std::string& module_file, EngineLayout layout = {});

  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;
  ~Engine();

  static const std::vector<std::string>& symbol_names();

 private:
  friend class Emulator;
  friend class EmulatorState;
  Engine();

  std::unique_ptr<EngineFunctions> functions_;
  EngineLayout layout_;
  mutable std::atomic<bool> state_layout_checked_ = false;  // set by the first saved state that passed
};

// The console at one moment: everything but the screen and the action that sticks (see savable_emulator.hpp).
class EmulatorState {
 public:
  EmulatorState(std::shared_ptr<const Engine> engine, std::string_view serialised);  // from to_string()
  EmulatorState(const EmulatorState&) = delete;  // owns an object whose class we cannot name
  EmulatorState& operator=(const EmulatorState&) = delete;
  ~EmulatorState();

  std::string to_string() const;

 private:
  friend class Emulator;
  explicit EmulatorState(std::shared_ptr<const Engine> engine);
  void check_text();

  static constexpr std::size_t kBytes = 256;  // ALEState has 64; constructors must leave the rest untouched
  std::shared_ptr<const Engine> engine_;
  bool owns_text_ = false;  // only once check_text has seen that the string is where we think
  alignas(64) mutable std::byte storage_[kBytes];
};

struct EmulatorOptions {
  std::filesystem::path rom;
  std::uint32_t seed;
  float sticky_probability;
  int max_frames_per_game;  // 0: no limit
  int mode;                 // -1: the game's own default
  int difficulty;           // -1: the game's own default
};

class Emulator {
 public:
  explicit Emulator(std::shared_ptr<const Engine> engine);
  Emulator(const Emulator&) = delete;  // the engine's object must stay where it was constructed
  Emulator& operator=(const Emulator&) = delete;
  ~Emulator();

  // Loads the cartridge and seeds the generator of sticky actions. The engine ends the process when a file is
  // missing or not a game, so callers pass only files that ale-py itself lists.
  void load_rom(const EmulatorOptions& options);
  void reset_game() { reset_game_(self()); }
  int act(int action) { return act_(self(), action, 1.0F); }
  bool game_over() const { return game_over_(self(), false); }  // without the frame limit
  bool truncated() const { return truncated_(self()); }         // the frame limit
  int lives() { return lives_(self()); }
  int frame_number() const;          // since load_rom, unless a state was restored
  int episode_frame_number() const;  // since reset_game

  int rows() const { return rows_; }
  int columns() const { return columns_; }
  std::span<const std::uint8_t> screen() const { return {pixels_, pixel_count_}; }
  // restore() does not bring the screen back: whoever kept it puts it back with this.
  void set_screen(std::span<const std::uint8_t> pixels);
  std::span<const std::uint8_t> ram() const;

  std::vector<int> minimal_actions() const;
  std::vector<int> legal_actions() const;
  std::vector<unsigned> modes() const;
  std::vector<unsigned> difficulties() const;
  // The 256 colours, RGB, three bytes each, and ALE's own grey of each: what this game's display format shows. Odd ones
  // appear where a PAL game loses its colours.
  std::vector<std::uint8_t> palette_rgb();
  std::vector<std::uint8_t> palette_grey();

  std::unique_ptr<EmulatorState> save();
  void restore(const EmulatorState& state);

  const std::shared_ptr<const Engine>& engine() const { return engine_; }

  // How many bytes of our storage the engine's constructor wrote; the self-check refuses when the guard was reached.
  bool guard_intact() const;

 private:
  void* self() const { return storage_.get(); }
  void find_screen();
  template <typename Read>
  std::vector<std::uint8_t> with_palette_on_screen(Read read);

  static constexpr std::size_t kBytes = 4096;  // ALEInterface has 40
  static constexpr std::size_t kGuardFrom = 1024;
  std::shared_ptr<const Engine> engine_;
  std::unique_ptr<std::byte[]> storage_;
  int rows_ = 0;
  int columns_ = 0;
  std::uint8_t* pixels_ = nullptr;
  std::size_t pixel_count_ = 0;
  // The calls of the step path, without the second indirection.
  int (*act_)(void*, int, float);
  void (*reset_game_)(void*);
  bool (*game_over_)(const void*, bool);
  bool (*truncated_)(const void*);
  int (*lives_)(void*);
};

}  // namespace fastrl
