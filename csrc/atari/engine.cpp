#include "atari/engine.hpp"

#include <dlfcn.h>

#include <algorithm>
#include <cstring>
#include <mutex>
#include <new>
#include <stdexcept>

namespace fastrl {

// A member function is called as a free function whose first parameter is the object, and a returned class comes
// back through a hidden pointer: both follow from the Itanium C++ ABI on x86-64 and AArch64 Linux.
struct EngineFunctions {
  void (*construct)(void*);
  void (*destroy)(void*);
  void (*set_int)(void*, const std::string&, int);
  void (*set_bool)(void*, const std::string&, bool);
  void (*set_float)(void*, const std::string&, float);
  void (*load_rom)(void*, std::filesystem::path);
  void (*set_mode)(void*, unsigned);
  void (*set_difficulty)(void*, unsigned);
  void (*reset_game)(void*);
  int (*act)(void*, int, float);
  bool (*game_over)(const void*, bool);
  bool (*truncated)(const void*);
  int (*lives)(void*);
  const void* (*screen)(const void*);
  const std::uint8_t* (*ram)(const void*);
  void (*screen_rgb)(const void*, std::vector<unsigned char>&);
  void (*screen_grey)(const void*, std::vector<unsigned char>&);
  std::vector<int> (*minimal_actions)(const void*);
  std::vector<int> (*legal_actions)(const void*);
  std::vector<unsigned> (*modes)(const void*);
  std::vector<unsigned> (*difficulties)(const void*);
  int (*frame_number)(const void*);
  int (*episode_frame_number)(const void*);
  void (*restore)(void*, const void* state);
  void (*state_from_string)(void* state, const std::string&);
  std::string (*state_to_string)(void* state);
  void (*set_log_mode)(int);
  void* clone_state;  // returns a class we cannot name; see Emulator::save
};

namespace {

constexpr int kLogErrorsOnly = 2;
constexpr std::byte kGuard{0xA5};

struct Binding {
  const char* name;
  void (*store)(EngineFunctions&, void*);
};

template <auto Member>
void store(EngineFunctions& functions, void* address) {
  auto& slot = functions.*Member;
  static_assert(sizeof(slot) == sizeof(address));
  std::memcpy(&slot, &address, sizeof(address));
}

#define STR "RKNSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEE"
#define BYTES "ERSt6vectorIhSaIhEE"
using F = EngineFunctions;
const Binding kBindings[] = {
    {"_ZN3ale12ALEInterfaceC1Ev", store<&F::construct>},
    {"_ZN3ale12ALEInterfaceD1Ev", store<&F::destroy>},
    {"_ZN3ale12ALEInterface6setIntE" STR "i", store<&F::set_int>},
    {"_ZN3ale12ALEInterface7setBoolE" STR "b", store<&F::set_bool>},
    {"_ZN3ale12ALEInterface8setFloatE" STR "f", store<&F::set_float>},
    {"_ZN3ale12ALEInterface7loadROMENSt10filesystem7__cxx114pathE", store<&F::load_rom>},
    {"_ZN3ale12ALEInterface7setModeEj", store<&F::set_mode>},
    {"_ZN3ale12ALEInterface13setDifficultyEj", store<&F::set_difficulty>},
    {"_ZN3ale12ALEInterface10reset_gameEv", store<&F::reset_game>},
    {"_ZN3ale12ALEInterface3actENS_6ActionEf", store<&F::act>},
    {"_ZNK3ale12ALEInterface9game_overEb", store<&F::game_over>},
    {"_ZNK3ale12ALEInterface14game_truncatedEv", store<&F::truncated>},
    {"_ZN3ale12ALEInterface5livesEv", store<&F::lives>},
    {"_ZNK3ale12ALEInterface9getScreenEv", store<&F::screen>},
    {"_ZNK3ale12ALEInterface6getRAMEv", store<&F::ram>},
    {"_ZNK3ale12ALEInterface12getScreenRGB" BYTES, store<&F::screen_rgb>},
    {"_ZNK3ale12ALEInterface18getScreenGrayscale" BYTES, store<&F::screen_grey>},
    {"_ZNK3ale12ALEInterface19getMinimalActionSetEv", store<&F::minimal_actions>},
    {"_ZNK3ale12ALEInterface17getLegalActionSetEv", store<&F::legal_actions>},
    {"_ZNK3ale12ALEInterface17getAvailableModesEv", store<&F::modes>},
    {"_ZNK3ale12ALEInterface24getAvailableDifficultiesEv", store<&F::difficulties>},
    {"_ZNK3ale12ALEInterface14getFrameNumberEv", store<&F::frame_number>},
    {"_ZNK3ale12ALEInterface21getEpisodeFrameNumberEv", store<&F::episode_frame_number>},
    {"_ZN3ale12ALEInterface10cloneStateEb", store<&F::clone_state>},
    {"_ZN3ale12ALEInterface12restoreStateERKNS_8ALEStateE", store<&F::restore>},
    {"_ZN3ale8ALEStateC1E" STR, store<&F::state_from_string>},
    {"_ZN3ale8ALEState9serializeB5cxx11Ev", store<&F::state_to_string>},
    {"_ZN3ale6Logger7setModeENS0_4modeE", store<&F::set_log_mode>},
};
#undef STR
#undef BYTES

// Constructing an emulator registers things that the engine shares between instances. Loading a cartridge does not:
// the engine's own vector env does it from many threads, and it takes 90 ms, so here it is done so too.
std::mutex& construct_mutex() {
  static std::mutex mutex;
  return mutex;
}

template <typename T>
T read_at(const void* object, std::size_t offset) {
  T value;
  std::memcpy(&value, static_cast<const std::byte*>(object) + offset, sizeof(value));
  return value;
}

[[noreturn]] void refuse_layout(const char* what) {
  throw std::runtime_error(std::string("engine self-check: ") + what +
                           " is not laid out as expected; this ale-py does not fit this fastrl");
}

}  // namespace

Engine::Engine() : functions_(std::make_unique<EngineFunctions>()) {}
Engine::~Engine() = default;

const std::vector<std::string>& Engine::symbol_names() {
  static const std::vector<std::string> names = [] {
    std::vector<std::string> all;
    for (const Binding& binding : kBindings) all.emplace_back(binding.name);
    return all;
  }();
  return names;
}

std::shared_ptr<const Engine> Engine::open(const std::string& module_file, EngineLayout layout) {
  // RTLD_NOLOAD: the interpreter has loaded it; a second copy would have its own statics.
  void* module = dlopen(module_file.c_str(), RTLD_NOW | RTLD_NOLOAD);
  if (module == nullptr) {
    throw std::runtime_error("engine: '" + module_file + "' is not loaded in this process; import ale_py first");
  }
  std::shared_ptr<Engine> engine(new Engine());
  for (const Binding& binding : kBindings) {
    void* address = dlsym(module, binding.name);
    if (address == nullptr) {
      throw std::runtime_error("engine: '" + module_file + "' lacks the function " + binding.name);
    }
    binding.store(*engine->functions_, address);
  }
  engine->layout_ = layout;
  engine->functions_->set_log_mode(kLogErrorsOnly);  // it would greet on the console otherwise
  return engine;
}

// ---- EmulatorState

EmulatorState::EmulatorState(std::shared_ptr<const Engine> engine) : engine_(std::move(engine)) {
  std::fill(std::begin(storage_), std::end(storage_), kGuard);
}

EmulatorState::EmulatorState(std::shared_ptr<const Engine> engine, std::string_view serialised)
    : EmulatorState(std::move(engine)) {
  engine_->functions_->state_from_string(storage_, std::string(serialised));
  check_text();
}

EmulatorState::~EmulatorState() {
  if (!owns_text_) return;
  // The class's destructor is inline and not exported; its only member that owns memory is this string.
  using Text = std::string;
  std::launder(reinterpret_cast<Text*>(storage_ + engine_->layout_.state_text))->~Text();
}

std::string EmulatorState::to_string() const { return engine_->functions_->state_to_string(storage_); }

// The serialised form holds the string behind six numbers and a length, so a wrong offset is noticed without
// following a wrong pointer. Once per engine: the layout cannot change while the module is loaded.
void EmulatorState::check_text() {
  if (!engine_->state_layout_checked_) {
    constexpr std::size_t kTextAt = 6 * 4 + 4;
    constexpr std::size_t kBehindText = 2 * 4;
    const std::size_t offset = engine_->layout_.state_text;
    if (offset + sizeof(std::string) > kBytes) refuse_layout("ALEState");
    const bool guard_intact =
        std::all_of(std::begin(storage_) + kBytes / 2, std::end(storage_), [](std::byte b) { return b == kGuard; });
    const std::string serialised = to_string();
    const auto text_data = read_at<const char*>(storage_, offset);
    const auto text_size = read_at<std::size_t>(storage_, offset + sizeof(char*));
    if (!guard_intact || serialised.size() < kTextAt + kBehindText ||
        text_size != serialised.size() - kTextAt - kBehindText ||
        reinterpret_cast<std::uintptr_t>(text_data) <= text_size ||
        std::memcmp(text_data, serialised.data() + kTextAt, text_size) != 0) {
      refuse_layout("ALEState");
    }
    engine_->state_layout_checked_ = true;
  }
  owns_text_ = true;
}

// ---- Emulator

Emulator::Emulator(std::shared_ptr<const Engine> engine)
    : engine_(std::move(engine)), storage_(std::make_unique<std::byte[]>(kBytes)) {
  const EngineFunctions& functions = *engine_->functions_;
  act_ = functions.act;
  reset_game_ = functions.reset_game;
  game_over_ = functions.game_over;
  truncated_ = functions.truncated;
  lives_ = functions.lives;
  std::fill_n(storage_.get(), kBytes, kGuard);
  const std::lock_guard lock(construct_mutex());
  functions.construct(self());
}

Emulator::~Emulator() {
  const std::lock_guard lock(construct_mutex());
  engine_->functions_->destroy(self());
}

void Emulator::load_rom(const EmulatorOptions& options) {
  const EngineFunctions& functions = *engine_->functions_;
  functions.set_float(self(), "repeat_action_probability", options.sticky_probability);
  functions.set_int(self(), "max_num_frames_per_episode", options.max_frames_per_game);
  functions.set_bool(self(), "sound_obs", false);
  functions.set_int(self(), "random_seed", static_cast<int>(options.seed));
  functions.load_rom(self(), options.rom);
  if (options.mode >= 0) functions.set_mode(self(), static_cast<unsigned>(options.mode));
  if (options.difficulty >= 0) functions.set_difficulty(self(), static_cast<unsigned>(options.difficulty));
  find_screen();
}

// Loading a cartridge makes a new screen; between loads its pixels stay in one place.
void Emulator::find_screen() {
  const EngineLayout& layout = engine_->layout_;
  const void* screen = engine_->functions_->screen(self());
  rows_ = read_at<int>(screen, layout.screen_rows);
  columns_ = read_at<int>(screen, layout.screen_columns);
  // libstdc++'s vector is begin, end, end of storage.
  const auto begin = read_at<std::uint8_t*>(screen, layout.screen_pixels);
  const auto end = read_at<std::uint8_t*>(screen, layout.screen_pixels + sizeof(void*));
  const auto count = reinterpret_cast<std::uintptr_t>(end) - reinterpret_cast<std::uintptr_t>(begin);
  const bool plausible = rows_ >= 100 && rows_ <= 320 && columns_ == 160;
  if (!plausible || begin == nullptr || count != static_cast<std::size_t>(rows_) * static_cast<std::size_t>(columns_)) {
    refuse_layout("ALEScreen");
  }
  pixels_ = begin;
  pixel_count_ = count;
}

int Emulator::frame_number() const { return engine_->functions_->frame_number(self()); }
int Emulator::episode_frame_number() const { return engine_->functions_->episode_frame_number(self()); }

void Emulator::set_screen(std::span<const std::uint8_t> pixels) {
  if (pixels.size() != pixel_count_) throw std::logic_error("engine: a screen of another size was put back");
  std::copy(pixels.begin(), pixels.end(), pixels_);
}

std::span<const std::uint8_t> Emulator::ram() const { return {engine_->functions_->ram(self()), 128}; }

std::vector<int> Emulator::minimal_actions() const { return engine_->functions_->minimal_actions(self()); }
std::vector<int> Emulator::legal_actions() const { return engine_->functions_->legal_actions(self()); }

std::vector<unsigned> Emulator::modes() const { return engine_->functions_->modes(self()); }
std::vector<unsigned> Emulator::difficulties() const { return engine_->functions_->difficulties(self()); }

// Asks the engine to translate a screen that shows every colour once, then puts the real screen back.
template <typename Read>
std::vector<std::uint8_t> Emulator::with_palette_on_screen(Read read) {
  constexpr std::size_t kColours = 256;
  const std::vector<std::uint8_t> kept(pixels_, pixels_ + kColours);
  for (std::size_t i = 0; i < kColours; ++i) pixels_[i] = static_cast<std::uint8_t>(i);
  std::vector<unsigned char> translated;
  read(self(), translated);
  std::copy(kept.begin(), kept.end(), pixels_);
  translated.resize(translated.size() / pixel_count_ * kColours);
  return translated;
}

std::vector<std::uint8_t> Emulator::palette_rgb() { return with_palette_on_screen(engine_->functions_->screen_rgb); }
std::vector<std::uint8_t> Emulator::palette_grey() { return with_palette_on_screen(engine_->functions_->screen_grey); }

std::unique_ptr<EmulatorState> Emulator::save() {
  std::unique_ptr<EmulatorState> state(new EmulatorState(engine_));
  // A function that returns a class by value receives the address for it; this type stands in for that class:
  // as big or bigger, and like it not trivially copyable, so that the hidden address is used.
  struct Returned {
    std::byte bytes[EmulatorState::kBytes];
    ~Returned() {}
  };
  using CloneState = Returned (*)(void*, bool);
  CloneState clone;
  std::memcpy(&clone, &engine_->functions_->clone_state, sizeof(clone));
  new (state->storage_) Returned(clone(self(), true));
  state->check_text();
  return state;
}

void Emulator::restore(const EmulatorState& state) { engine_->functions_->restore(self(), state.storage_); }

bool Emulator::guard_intact() const {
  return std::all_of(storage_.get() + kGuardFrom, storage_.get() + kBytes, [](std::byte b) { return b == kGuard; });
}

}  // namespace fastrl
