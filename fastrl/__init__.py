"""fastrl: deep reinforcement learning with a native engine.

>>> import fastrl
>>> pool = fastrl.AtariPool("BreakoutNoFrameskip-v4", num_envs=8)
>>> obs, info = pool.reset(seed=1)
>>> obs.shape
(8, 4, 84, 84)

``fastrl.load("runs/pong").act(obs)`` uses what a run has learned.

Importing fastrl imports no torch and no mujoco; trainers, ``load`` and pools do, when they need them. It sets
GOMP_SPINCOUNT, unless somebody did, so that torch's idle threads leave their cores to the emulating ones.
"""

from typing import TYPE_CHECKING, Any

from fastrl.engine.atari_pool import AtariPool
from fastrl.engine.batches import Batch
from fastrl.engine.games import playable_games as games
from fastrl.engine.mujoco_pool import MujocoPool
from fastrl.engine.native import __version__, build_info
from fastrl.engine.observer import Observer
from fastrl.engine.openmp import let_idle_threads_sleep
from fastrl.engine.prefetch import Prefetcher
from fastrl.engine.protocol import Protocol, protocol
from fastrl.engine.registration import register
from fastrl.engine.replay import LaneBusy, NothingToSample, Replay, ReplayHandle, Writer
from fastrl.engine.replay_store import DamagedReplay

if TYPE_CHECKING:
    from fastrl.runs.trained import load

__all__ = [
    "AtariPool",
    "Batch",
    "DamagedReplay",
    "LaneBusy",
    "MujocoPool",
    "NothingToSample",
    "Observer",
    "Prefetcher",
    "Protocol",
    "Replay",
    "ReplayHandle",
    "Writer",
    "__version__",
    "build_info",
    "games",
    "load",
    "protocol",
]


def __getattr__(name: str) -> Any:
    if name == "load":
        from fastrl.runs.trained import load

        return load
    raise AttributeError(f"module 'fastrl' has no attribute '{name}'")


let_idle_threads_sleep()
register()
