// ring.cpp: the replay's memory: writing lanes, looking at them, saving and restoring them.

#include "replay/ring.hpp"

#include <cmath>
#include <cstring>
#include <limits>
#include <string_view>

#include "atari/frame_ops.hpp"
#include "bindings/common.hpp"
#include "replay/ring_sink.hpp"
#include "replay/sampler.hpp"
#include "replay/stalls.hpp"

namespace fastrl {
namespace {

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

  ~RingRestorer() { close(); }
  RingRestorer(const RingRestorer&) = delete;
  RingRestorer& operator=(const RingRestorer&) = delete;

  void close() noexcept {
    for (const std::unique_ptr<LaneWriter>& writer : writers_) writer->leave_unsigned();
    writers_.clear();
  }

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

  void append(const py::object& action, const py::object& reward_given, const py::object& next_obs,
              const py::object& terminated_given, const py::object& truncated_given) {
    open_episode();
    const double reward = reward_from(reward_given);
    const bool terminated = flag_from("terminated", terminated_given);
    const bool truncated = flag_from("truncated", truncated_given);
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

  static double reward_from(const py::object& given) {
    const double reward = PyFloat_AsDouble(given.ptr());  // also what has __float__, as numbers of numpy
    if (reward == -1.0 && PyErr_Occurred() != nullptr) {
      const bool too_large = PyErr_ExceptionMatches(PyExc_OverflowError) != 0;  // a whole number of any size
      PyErr_Clear();
      if (too_large) return std::numeric_limits<double>::infinity();
      throw py::type_error("append: reward " + py::repr(given).cast<std::string>() + " is not a number");
    }
    return reward;
  }

  static bool flag_from(const char* name, const py::object& given) {
    if (given.ptr() == Py_True) return true;
    if (given.ptr() == Py_False) return false;
    py::detail::make_caster<bool> caster;
    if (caster.load(given, false)) return static_cast<bool>(caster);  // numpy's
    if (PyIndex_Check(given.ptr()) != 0) {
      const Py_ssize_t number = PyNumber_AsSsize_t(given.ptr(), nullptr);  // the largest for larger ones
      PyErr_Clear();                                                       // an array of several, then the number is -1
      if (number == 0 || number == 1) return number == 1;
    }
    throw py::type_error(std::string("append: ") + name + " " + py::repr(given).cast<std::string>() +
                         " is not True or False");
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
      const auto [first, count] = *discrete_;
      const std::int64_t last = first + (count - 1);
      if (value >= first && value <= last) return;
      throw std::invalid_argument("append: action " + std::to_string(value) + " is outside [" + std::to_string(first) +
                                  ", " + std::to_string(last) + "], the Discrete space that the replay was made with");
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

}  // namespace

void register_ring(py::module_& m) {
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
          "lane_status",
          [](const Ring& self, std::uint64_t lane) {
            require_lane(self, lane, "lane_status");
            const LaneStatus status = lane_status(self, lane);
            return py::make_tuple(status.written, status.writer_pid, status.silent_s);
          },
          "lane"_a)
      .def("stalls", &stalls, "after_s"_a)
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
            const TransitionReader reader(self, {1, 1, static_cast<Padding>(padding)});
            constexpr int kMostTries = 100'000;
            const Unlocked released;
            for (std::uint64_t lane = 0; lane < shape.lanes; ++lane) {
              std::uint64_t end = self.published(lane);
              if (end == 0) {
                throw NothingToSample("stacks: lane " + std::to_string(lane) + " has no observation yet" +
                                      stalls_in_message(self));
              }
              for (int tries = 1; !reader.take_stack(lane, end - 1, to + lane * stack_bytes); ++tries) {
                // Its writer came round meanwhile; or there is none, and what is there was never whole.
                if (tries == kMostTries) {
                  throw Overtaken("stacks: the newest observation of lane " + std::to_string(lane) +
                                  " was never whole; if a load into this replay failed, make another one");
                }
                end = self.published(lane);
              }
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
}

}  // namespace fastrl
