// batches.cpp: drawing batches, and how Python holds their memory.

#include <atomic>
#include <chrono>
#include <cmath>
#include <thread>

#include "bindings/common.hpp"
#include "pool/env_pool.hpp"  // WaitTimeout
#include "replay/prefetcher.hpp"
#include "replay/sampler.hpp"
#include "replay/transitions.hpp"

namespace fastrl {
namespace {

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
  bool told = false;  // that one of them failed

  bool passed() {
    while (!events.empty() && says_true(events.back())) events.pop_back();
    return events.empty();
  }

 private:
  static bool says_true(const py::object& event) {
    py::object said;
    take_or_rest([&] { said = event.attr("query")(); });
    try {
      return said.cast<bool>();
    } catch (const py::cast_error&) {
      throw py::type_error("guard: query() of " + text_of(event) + " returned " + text_of(said) +
                           ", expected True or False");
    }
  }
  static std::string text_of(const py::object& object) { return py::repr(object).cast<std::string>(); }
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
    } catch (const py::error_already_set& error) {
      // An event that fails is told of once, by the call that asked it, and spoils no other. Anything else is a
      // signal's handler, which is to be heard every time.
      if (!error.matches(PyExc_Exception) || !std::exchange(one.told, true)) problem = std::current_exception();
    } catch (const std::exception&) {
      if (!std::exchange(one.told, true)) problem = std::current_exception();
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

Ends checked_ends(const Sampler& sampler, const py::object& boundary, const char* operation) {
  std::vector<std::uint64_t> published = sampler.ends();
  if (boundary.is_none()) return {std::move(published), false};
  std::vector<std::uint64_t> ends;
  try {
    ends = boundary.cast<std::vector<std::uint64_t>>();
  } catch (const py::cast_error&) {
    throw py::type_error(std::string(operation) + ": boundary " + py::repr(boundary).cast<std::string>() +
                         " is not what replay.boundary() returns: a whole number of steps for each lane, from 0 on");
  }
  if (ends.size() != published.size()) {
    throw std::invalid_argument(std::string(operation) + ": the boundary is of " + std::to_string(ends.size()) +
                                " lanes, the replay has " + std::to_string(published.size()));
  }
  for (std::size_t lane = 0; lane < published.size(); ++lane) {
    if (ends[lane] > published[lane]) {
      throw std::invalid_argument(std::string(operation) + ": the boundary of lane " + std::to_string(lane) +
                                  " is step " + std::to_string(ends[lane]) + ", but only " +
                                  std::to_string(published[lane]) + " are published");
    }
  }
  return {std::move(ends), true};
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

// Never gives up by itself, but a signal's handler may throw: asked often, it looks for signals now and then.
std::function<bool()> listening() {
  return [asked = std::chrono::steady_clock::now()]() mutable {
    if (std::chrono::steady_clock::now() - asked < std::chrono::milliseconds(50)) return false;
    let_signals_through();
    asked = std::chrono::steady_clock::now();
    return false;
  };
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

  void request(const py::object& boundary, double beta) {
    Prefetcher& prefetcher = get("request");
    free_what_passed();
    prefetcher.ask(
        Prefetcher::Draw{rules_, checked_ends(*sampler_, boundary, "request"), beta, bank_->lend(form_->form)});
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

}  // namespace

void register_batches(py::module_& m) {
  py::class_<ArrayForm, std::shared_ptr<ArrayForm>>(m, "BatchForm")
      .def(py::init([](const Ring& ring, std::uint64_t count, std::uint64_t n_step, bool with_observations,
                       const py::array& obs_like, const py::array& action_like) {
             return std::make_shared<ArrayForm>(
                 array_form(ring, count, n_step, with_observations, obs_like, action_like));
           }),
           "ring"_a, "count"_a, "n_step"_a, "with_observations"_a, "obs_like"_a, "action_like"_a)
      .def_property_readonly("bytes", [](const ArrayForm& self) { return self.form.bytes(); });

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
             const py::object& boundary, double beta) {
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
            const Ends until = checked_ends(self, boundary, "sample");
            const BatchOut out = loan.memory().out();
            const Unlocked released;
            self.sample(rules, until, beta, out, listening());
          },
          "loan"_a, "n_step"_a, "gamma"_a, "padding"_a, "ends"_a.none(true), "beta"_a)
      .def(
          "update",
          [](Sampler& self, const Longs& indices, const Doubles& priorities) {
            check_priorities(self.ring().shape(), indices, priorities);
            const Unlocked released;
            return self.update(indices.data(), priorities.data(), static_cast<std::uint64_t>(priorities.size()),
                               listening());
          },
          "indices"_a, "priorities"_a)
      .def_property("batches", &Sampler::batches, &Sampler::set_batches)
      .def("state",
           [](const Sampler& self) -> py::object {
             std::optional<Sampler::State> found;
             {
               const Unlocked
                   released;  // who samples holds the sampler, and asks for signals with the interpreter's lock
               found = self.state(listening());
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

}  // namespace fastrl
