"""MuJoCo's library inside the installed mujoco wheel: bound, and checked against its Python face before first use."""

from __future__ import annotations

import importlib.metadata
from functools import lru_cache
from typing import Any

import numpy as np

from fastrl.engine import native

# Older ones lack the state that save_state saves. pyproject.toml asks pip for the same.
SUPPORTED_MUJOCO = "mujoco >= 3.1"

# Contacts, a joint with a limit, an actuator: what the tasks are made of, in the smallest model.
_CHECK_MODEL = """
<mujoco>
  <option timestep="0.005"/>
  <worldbody>
    <geom type="plane" size="3 3 1"/>
    <body pos="0 0 0.25">
      <freejoint/>
      <geom type="box" size="0.1 0.1 0.1"/>
      <body pos="0.1 0 0.1">
        <joint name="elbow" type="hinge" axis="0 1 0" limited="true" range="-1 1" damping="0.1"/>
        <geom type="capsule" fromto="0 0 0 0.3 0 0" size="0.04"/>
      </body>
    </body>
  </worldbody>
  <actuator><motor joint="elbow" gear="3" ctrllimited="true" ctrlrange="-1 1"/></actuator>
</mujoco>
"""
_COMPARED = ("qpos", "qvel", "qacc", "qacc_warmstart", "xpos", "cfrc_ext")


def open_library(module_file: str | None, **symbols: str) -> Any:
    """Bind the library that the loaded module ``module_file`` uses, and step a model on it to see that it is right."""
    import mujoco

    try:
        require_addresses(mujoco)
        # A clock that somebody has set is theirs; the package's own is not seen from Python.
        library = native.core.open_mujoco(module_file, own_clock=mujoco.get_mjcb_time() is None, **symbols)
        check_library(library, mujoco)
    except RuntimeError as error:
        raise RuntimeError(
            f"{error}. Found mujoco {importlib.metadata.version('mujoco')} at {module_file}; fastrl "
            f"{native.__version__} supports {SUPPORTED_MUJOCO}, where the package hands out the addresses of its "
            f"structures: install one of these (`pip install '{SUPPORTED_MUJOCO}'`) or a fastrl that supports yours."
        ) from error
    return library


@lru_cache(maxsize=1)
def bound_library() -> Any:
    """The library, bound and checked once in a process."""
    import mujoco

    # Where it has no such part, the refusal names the package itself.
    return open_library(getattr(mujoco, "_functions", mujoco).__file__)


def require_addresses(mujoco: Any) -> None:
    """Refuse a Python package that does not say where its models and data lie, or has other numbers than doubles."""
    for name in ("MjModel", "MjData"):
        if not hasattr(getattr(mujoco, name, None), "_address"):
            raise RuntimeError(f"mujoco library: the package's {name} has no _address")
    if not hasattr(mujoco.mjtState, "mjSTATE_INTEGRATION"):
        raise RuntimeError(
            "mujoco library: the package has no mjSTATE_INTEGRATION, the state that decides how it goes on"
        )
    model = mujoco.MjModel.from_xml_string(_CHECK_MODEL)
    data = mujoco.MjData(model)
    for name in _COMPARED:
        view = getattr(data, name)
        again = getattr(data, name)
        if view.dtype != np.float64 or address(view) != address(again) or not view.flags.c_contiguous:
            raise RuntimeError(f"mujoco library: MjData.{name} is not one array of float64 that stays where it is")


def address(array: Any) -> int:
    """Where an array's first number lies."""
    return int(array.__array_interface__["data"][0])


def check_library(library: Any, mujoco: Any, frames: int = 120) -> None:
    """Step a model through mujoco's own Python face and through the bound functions; refuse any difference."""
    if library.version() != mujoco.mj_version():
        raise RuntimeError(
            f"mujoco library self-check: the bound library is version {library.version()}, Python's is "
            f"{mujoco.mj_version()}"
        )
    model = mujoco.MjModel.from_xml_string(_CHECK_MODEL)
    ours, theirs = mujoco.MjData(model), mujoco.MjData(model)
    controls = np.random.default_rng(0).uniform(-2, 2, size=(frames, model.nu))
    for frame, control in enumerate(controls):
        if frame == frames // 2:
            library.reset_data(model._address, ours._address)
            mujoco.mj_resetData(model, theirs)
            ours.qvel[0] = theirs.qvel[0] = 0.5
            library.forward(model._address, ours._address)
            mujoco.mj_forward(model, theirs)
        ours.ctrl[:] = theirs.ctrl[:] = control
        library.step(model._address, ours._address)
        mujoco.mj_step(model, theirs)
        library.rne_post_constraint(model._address, ours._address)
        mujoco.mj_rnePostConstraint(model, theirs)
        differing = [name for name in _COMPARED if getattr(ours, name).tobytes() != getattr(theirs, name).tobytes()]
        if differing or ours.time != theirs.time:
            raise RuntimeError(
                f"mujoco library self-check: frame {frame}: {', '.join(differing) or 'time'} after the bound functions "
                f"differs from what mujoco's Python face computes"
            )
