// fake_engine.cpp: a toy console behind the very symbols that csrc/atari/engine.cpp looks up in ale-py's module.
//
// The sanitizers see only code that they compiled. ale-py is not such code and needs Python, so the drivers that run
// under them play this game instead. It is written from engine.cpp's list of symbols and shares no line with ALE.
//
// It keeps the habits of the real engine that csrc/ relies on or has to work around:
//   1. Every frame rolls twice for sticky actions, once a player.
//   2. A state holds neither the screen nor the action that sticks.
//   3. Restoring is exact only into a console that was reset and has acted since, and only of a state that was saved
//      two frames after a reset or later, and not at game over. Anything else goes on differently.
//   4. Making and ending consoles touches what all consoles share, without a lock.
//
// Variants that must be refused, for the tests of the self-check:
//   FAKE_LACKS_ACT      a symbol is missing
//   FAKE_WRONG_SCREEN   ALEScreen begins with another member
//   FAKE_WRONG_STATE    ALEState begins with another member
//   FAKE_WRONG_REWARD   every frame scores

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <memory>
#include <random>
#include <sstream>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#ifdef FAKE_LACKS_ACT
#define act act_under_another_name
#endif

namespace ale {

enum Action : int { kNoop = 0, kFire = 1, kRight = 3, kLeft = 4, kActions = 18 };

class Logger {
 public:
  enum mode : int { kInfo, kWarning, kError };
  static void setMode(mode wanted);
};

struct ALERAM {
  std::array<unsigned char, 128> bytes{};
};

struct ALEScreen {
#ifdef FAKE_WRONG_SCREEN
  std::vector<unsigned char> pixels;
  int rows = 0;
  int columns = 0;
#else
  int rows = 0;
  int columns = 0;
  std::vector<unsigned char> pixels;
#endif
};

class ALEState {
 public:
  explicit ALEState(const std::string& serialised);
  std::string serialize();

 private:
  friend class ALEInterface;
  ALEState() = default;

  struct Numbers {
    int frame_number;
    int episode_frame_number;
    int mode;
    int difficulty;
    int exact;  // 0: saved at a moment that cannot be restored
    int rows;
  };
  struct NumbersBehind {
    int lives;
    int score;
  };
#ifdef FAKE_WRONG_STATE
  std::string text_;
  Numbers numbers_{};
#else
  Numbers numbers_{};
  std::string text_;  // the toy, then the generator of sticky actions in words
#endif
  NumbersBehind behind_{};
};

struct Console;

class ALEInterface {
 public:
  ALEInterface();
  ALEInterface(const ALEInterface&) = delete;
  ALEInterface& operator=(const ALEInterface&) = delete;
  ~ALEInterface();

  void setInt(const std::string& key, int value);
  void setBool(const std::string& key, bool value);
  void setFloat(const std::string& key, float value);
  void loadROM(std::filesystem::path rom);
  void setMode(unsigned mode);
  void setDifficulty(unsigned difficulty);
  void reset_game();
  int act(Action action, float paddle_strength);
  bool game_over(bool with_truncation) const;
  bool game_truncated() const;
  int lives();
  const ALEScreen& getScreen() const;
  const ALERAM& getRAM() const;
  void getScreenRGB(std::vector<unsigned char>& out) const;
  void getScreenGrayscale(std::vector<unsigned char>& out) const;
  std::vector<Action> getMinimalActionSet() const;
  std::vector<Action> getLegalActionSet() const;
  std::vector<unsigned> getAvailableModes() const;
  std::vector<unsigned> getAvailableDifficulties() const;
  int getFrameNumber() const;
  int getEpisodeFrameNumber() const;
  ALEState cloneState(bool include_random);
  void restoreState(const ALEState& state);

 private:
  std::unique_ptr<Console> console_;
};

// ---- The toy: a ball, a paddle, a wall of bricks, and something that flickers

namespace {

constexpr int kColumns = 160;
constexpr int kWallTop = 57;
constexpr int kWallRows = 3;
constexpr int kBrickHeight = 6;
constexpr int kBrickWidth = 10;
constexpr int kPaddleFromBottom = 20;
constexpr int kPaddleWidth = 24;
constexpr int kFramesOfDying = 12;  // the game stands at 0 lives before it is over
constexpr int kFramesBeforeLaunch = 60;

// All that decides how the game goes on, but for the sticky joystick. No padding: its bytes are saved.
struct Toy {
  std::int32_t lives = 3;
  std::int32_t score = 0;
  std::int32_t paddle = 60;
  std::int32_t ball_x = 0;
  std::int32_t ball_y = 0;
  std::int32_t ball_dx = 0;
  std::int32_t ball_dy = 0;  // 0: not launched
  std::int32_t waited = 0;
  std::int32_t dying = 0;
  std::uint32_t noise = 1;
  std::array<std::uint32_t, kWallRows> bricks{0xFFFF, 0xFFFF, 0xFFFF};
};
static_assert(std::is_trivially_copyable_v<Toy> && sizeof(Toy) == 13 * 4);

std::uint32_t next_noise(Toy& toy) {
  toy.noise = toy.noise * 1664525U + 1013904223U;
  return toy.noise >> 16U;
}

void launch(Toy& toy) {
  toy.ball_x = toy.paddle + kPaddleWidth / 2;
  toy.ball_y = 110;
  toy.ball_dx = static_cast<int>(next_noise(toy) % 5U) - 2;
  toy.ball_dy = 3;
  toy.waited = 0;
}

int hit_brick(Toy& toy) {
  const int row = (toy.ball_y - kWallTop) / kBrickHeight;
  if (toy.ball_y < kWallTop || row >= kWallRows) return 0;
  std::uint32_t& bricks = toy.bricks[static_cast<std::size_t>(row)];
  const std::uint32_t brick = 1U << static_cast<unsigned>(toy.ball_x / kBrickWidth);
  if ((bricks & brick) == 0) return 0;
  bricks &= ~brick;
  toy.ball_dy = -toy.ball_dy;
  return 7 - 3 * row;
}

int play_frame(Toy& toy, int action, int mode, int floor) {
  if (toy.lives == 0) {
    ++toy.dying;
    return 0;
  }
  if (action == kRight) toy.paddle = std::min(toy.paddle + 4, kColumns - kPaddleWidth);
  if (action == kLeft) toy.paddle = std::max(toy.paddle - 4, 0);
  if (toy.ball_dy == 0) {
    if (action == kFire || ++toy.waited >= kFramesBeforeLaunch) launch(toy);
    return 0;
  }
  toy.ball_x += toy.ball_dx;
  toy.ball_y += toy.ball_dy + (toy.ball_dy > 0 ? mode : -mode);
  if (toy.ball_x < 0 || toy.ball_x > kColumns - 4) {
    toy.ball_dx = -toy.ball_dx;
    toy.ball_x = std::clamp(toy.ball_x, 0, kColumns - 4);
  }
  if (toy.ball_y < 20) {
    toy.ball_dy = 3;
    toy.ball_y = 20;
  }
  int reward = hit_brick(toy);
  if (toy.ball_y >= floor) {
    const bool caught = toy.ball_x >= toy.paddle - 4 && toy.ball_x < toy.paddle + kPaddleWidth;
    if (caught) {
      toy.ball_dy = -3;
      toy.ball_dx = static_cast<int>(next_noise(toy) % 5U) - 2;
      toy.ball_y = floor - 3;
    } else {
      toy.ball_dy = 0;
      --toy.lives;
      reward -= 2;
    }
  }
  toy.score += reward;
  return reward;
}

class Painter {
 public:
  explicit Painter(ALEScreen& screen) : screen_(screen) {}

  void block(int x, int y, int width, int height, int colour) {
    for (int row = std::max(y, 0); row < std::min(y + height, screen_.rows); ++row) {
      const int begin = std::max(x, 0);
      const int end = std::min(x + width, kColumns);
      if (begin >= end) return;
      const auto at = screen_.pixels.begin() + row * kColumns;
      std::fill(at + begin, at + end, static_cast<unsigned char>(colour & 0xFE));
    }
  }

 private:
  ALEScreen& screen_;
};

void draw(const Toy& toy, int frame, ALEScreen& screen) {
  Painter painter(screen);
  for (int y = 0; y < screen.rows; y += 30) painter.block(0, y, kColumns, 30, y / 4);
  painter.block(8, 4, std::clamp(toy.score, 0, 140), 8, 0x1C);
  painter.block(100, 4, 6 * toy.lives, 8, 0x46);
  for (int row = 0; row < kWallRows; ++row) {
    for (int brick = 0; brick < kColumns / kBrickWidth; ++brick) {
      const bool stands = (toy.bricks[static_cast<std::size_t>(row)] >> static_cast<unsigned>(brick) & 1U) != 0;
      if (!stands) continue;
      painter.block(brick * kBrickWidth, kWallTop + row * kBrickHeight, kBrickWidth - 1, kBrickHeight, 0x60 + 16 * row);
    }
  }
  if (frame % 2 == 1) painter.block(frame * 3 % kColumns, 130, 8, 5, 0xD8);  // seen in every other frame only
  if (toy.ball_dy != 0) painter.block(toy.ball_x, toy.ball_y, 4, 4, 0x0E);
  painter.block(toy.paddle, screen.rows - kPaddleFromBottom, kPaddleWidth, 4, 0xFE);
}

// Shared by all consoles and guarded by nobody: the thread sanitizer reports a bridge that does not take turns.
int consoles_alive = 0;
Logger::mode log_mode = Logger::kInfo;

// Counts down with every frame of any console; the frame at which it passes 0 throws. Negative: never.
std::atomic<int> frames_until_throw = -1;

}  // namespace

struct Console {
  Toy toy;
  ALEScreen screen;
  ALERAM ram;
  std::mt19937 stick;
  int stuck_action = kNoop;
  int stuck_action_of_other_player = kNoop;
  float sticky_probability = 0.25F;
  int max_frames = 0;
  int seed = 0;
  int mode = 0;
  int difficulty = 0;
  int frame_number = 0;
  int episode_frame_number = 0;
  int frames_since_reset = 0;

  bool over() const { return toy.lives == 0 && toy.dying >= kFramesOfDying; }
  bool truncated() const { return max_frames > 0 && episode_frame_number >= max_frames; }

  void roll(int action, int& stuck) {
    const double drawn = static_cast<double>(stick()) / (static_cast<double>(std::mt19937::max()) + 1.0);
    if (drawn >= static_cast<double>(sticky_probability)) stuck = action;
  }

  void show() {  // by the frames of this game only: what came before a reset must leave no trace
    draw(toy, episode_frame_number, screen);
    std::memcpy(ram.bytes.data(), &toy, sizeof(toy));
  }

  void reset() {
    toy = Toy{};
    stuck_action = kNoop;
    stuck_action_of_other_player = kNoop;
    episode_frame_number = 0;
    frames_since_reset = 0;
    show();
  }
};

void Logger::setMode(mode wanted) { log_mode = wanted; }

// ---- States

namespace {

template <typename T>
void append(std::string& text, const T& value) {
  text.append(reinterpret_cast<const char*>(&value), sizeof(value));
}

template <typename T>
T take(const std::string& text, std::size_t& at) {
  if (text.size() - at < sizeof(T)) throw std::runtime_error("fake engine: the state ends too early");
  T value;
  std::memcpy(&value, text.data() + at, sizeof(value));
  at += sizeof(value);
  return value;
}

}  // namespace

ALEState::ALEState(const std::string& serialised) {
  std::size_t at = 0;
  numbers_ = take<Numbers>(serialised, at);
  const auto length = static_cast<std::size_t>(take<int>(serialised, at));
  if (serialised.size() - at < length) throw std::runtime_error("fake engine: the state ends too early");
  text_ = serialised.substr(at, length);
  at += length;
  behind_ = take<NumbersBehind>(serialised, at);
}

std::string ALEState::serialize() {
  std::string serialised;
  append(serialised, numbers_);
  append(serialised, static_cast<int>(text_.size()));
  serialised += text_;
  append(serialised, behind_);
  return serialised;
}

ALEState ALEInterface::cloneState(bool include_random) {
  const Console& console = *console_;
  const bool exact = console.frames_since_reset >= 2 && !console.over();
  ALEState state;
  state.numbers_ = {console.frame_number, console.episode_frame_number, console.mode, console.difficulty,
                    exact ? 1 : 0,        console.screen.rows};
  append(state.text_, console.toy);
  if (include_random) {
    std::ostringstream words;
    words << console.stick;
    state.text_ += words.str();
  }
  state.behind_ = {console.toy.lives, console.toy.score};
  return state;
}

void ALEInterface::restoreState(const ALEState& state) {
  Console& console = *console_;
  const bool exact = state.numbers_.exact != 0 && console.frames_since_reset > 0;
  std::size_t at = 0;
  console.toy = take<Toy>(state.text_, at);
  if (at < state.text_.size()) std::istringstream{state.text_.substr(at)} >> console.stick;
  console.frame_number = state.numbers_.frame_number;
  console.episode_frame_number = state.numbers_.episode_frame_number;
  console.mode = state.numbers_.mode;
  console.difficulty = state.numbers_.difficulty;
  if (!exact) console.toy.paddle = (console.toy.paddle + 40) % (kColumns - kPaddleWidth);  // now another game
}

// ---- The console

ALEInterface::ALEInterface() : console_(std::make_unique<Console>()) { ++consoles_alive; }
ALEInterface::~ALEInterface() { --consoles_alive; }

void ALEInterface::setInt(const std::string& key, int value) {
  if (key == "random_seed") console_->seed = value;
  if (key == "max_num_frames_per_episode") console_->max_frames = value;
}

void ALEInterface::setBool(const std::string&, bool) {}

void ALEInterface::setFloat(const std::string& key, float value) {
  if (key == "repeat_action_probability") console_->sticky_probability = value;
}

// Reads no file: the name alone says how tall the screen is.
void ALEInterface::loadROM(std::filesystem::path rom) {
  Console& console = *console_;
  console.screen.rows = rom.stem() == "tall" ? 250 : 210;
  console.screen.columns = kColumns;
  console.screen.pixels =
      std::vector<unsigned char>(static_cast<std::size_t>(console.screen.rows) * std::size_t{kColumns});
  console.mode = 0;
  console.difficulty = 0;
  console.frame_number = 0;
  console.stick.seed(static_cast<unsigned>(console.seed));
  console.reset();
}

void ALEInterface::setMode(unsigned mode) {
  console_->mode = static_cast<int>(mode);
  console_->reset();
}

void ALEInterface::setDifficulty(unsigned difficulty) {
  console_->difficulty = static_cast<int>(difficulty);
  console_->reset();
}

void ALEInterface::reset_game() { console_->reset(); }

int ALEInterface::act(Action action, float) {
  Console& console = *console_;
  if (frames_until_throw.load(std::memory_order_relaxed) >= 0 &&
      frames_until_throw.fetch_sub(1, std::memory_order_relaxed) == 0) {
    throw std::runtime_error("fake engine: a failure that a test asked for");
  }
  console.roll(action, console.stuck_action);
  console.roll(kNoop, console.stuck_action_of_other_player);
  if (console.over() || console.truncated()) return 0;
  const int floor = console.screen.rows - kPaddleFromBottom - 4;
  const int reward = play_frame(console.toy, console.stuck_action, console.mode, floor);
  ++console.frame_number;
  ++console.episode_frame_number;
  ++console.frames_since_reset;
  console.show();
#ifdef FAKE_WRONG_REWARD
  return reward + 1;
#else
  return reward;
#endif
}

bool ALEInterface::game_over(bool with_truncation) const {
  return console_->over() || (with_truncation && console_->truncated());
}
bool ALEInterface::game_truncated() const { return console_->truncated(); }
int ALEInterface::lives() { return console_->toy.lives; }
const ALEScreen& ALEInterface::getScreen() const { return console_->screen; }
const ALERAM& ALEInterface::getRAM() const { return console_->ram; }
int ALEInterface::getFrameNumber() const { return console_->frame_number; }
int ALEInterface::getEpisodeFrameNumber() const { return console_->episode_frame_number; }

void ALEInterface::getScreenRGB(std::vector<unsigned char>& out) const {
  out.clear();
  for (const unsigned char colour : console_->screen.pixels) out.insert(out.end(), 3, colour);
}

void ALEInterface::getScreenGrayscale(std::vector<unsigned char>& out) const { out = console_->screen.pixels; }

std::vector<Action> ALEInterface::getMinimalActionSet() const { return {kNoop, kFire, kRight, kLeft}; }

std::vector<Action> ALEInterface::getLegalActionSet() const {
  std::vector<Action> all;
  for (int code = 0; code < kActions; ++code) all.push_back(static_cast<Action>(code));
  return all;
}

std::vector<unsigned> ALEInterface::getAvailableModes() const { return {0, 1}; }
std::vector<unsigned> ALEInterface::getAvailableDifficulties() const { return {0, 1}; }

}  // namespace ale

// For the drivers: the console that emulates the frame of this number from now on, whichever it is, throws.
extern "C" void fake_engine_throw_at_frame(int frame) { ale::frames_until_throw = frame; }
