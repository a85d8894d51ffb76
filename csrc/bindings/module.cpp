// module.cpp: the extension: how it was built, which exceptions become which of Python's, and its parts.

#include "atari/frame_ops.hpp"
#include "bindings/common.hpp"
#include "pool/env_pool.hpp"
#include "replay/prefetcher.hpp"
#include "replay/shared_region.hpp"

void fastrl::rest_if_python_ends() {
  if (!python_is_ending) return;
  bool is_daemon = false;
  take_or_rest(
      [&] { is_daemon = py::module_::import("threading").attr("current_thread")().attr("daemon").cast<bool>(); });
  if (!is_daemon) return;
  const Unlocked released;
  while (true) pause();  // until the process is gone
}

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
    } catch (const fastrl::PoolClosed& closed) {
      fastrl::rest_if_python_ends();
      PyErr_SetString(PyExc_RuntimeError, closed.what());
    } catch (const fastrl::PrefetcherClosed& closed) {
      fastrl::rest_if_python_ends();
      PyErr_SetString(PyExc_RuntimeError, closed.what());
    } catch (const fastrl::RegionTooLarge& too_large) {
      PyErr_SetString(PyExc_MemoryError, too_large.what());
    } catch (const fastrl::RegionGone& gone) {
      PyErr_SetString(PyExc_ConnectionError, gone.what());
    }
  });
  m.def("python_ends", [] { fastrl::python_is_ending = true; });
  m.def("rest_if_python_ends", &fastrl::rest_if_python_ends);
  fastrl::register_engine(m);
  fastrl::register_parts(m);
  fastrl::register_pool(m);
  fastrl::register_ring(m);
  fastrl::register_batches(m);
  fastrl::register_mujoco(m);
}
