"""fastrl: deep reinforcement learning with a native engine.

>>> import fastrl
>>> pool = fastrl.AtariPool("BreakoutNoFrameskip-v4", num_envs=8)
>>> obs, info = pool.reset(seed=1)
>>> obs.shape
(8, 4, 84, 84)

Importing fastrl imports no torch and no mujoco; trainers and pools do, when they need it.
"""

from fastrl.engine.atari_pool import AtariPool
from fastrl.engine.mujoco_pool import MujocoPool
from fastrl.engine.native import __version__, build_info
from fastrl.engine.protocol import Protocol, protocol
from fastrl.engine.registration import register
from fastrl.engine.replay import Batch, LaneBusy, NothingToSample, Replay, ReplayHandle, Writer
from fastrl.engine.replay_store import DamagedReplay

__all__ = [
    "AtariPool",
    "Batch",
    "DamagedReplay",
    "LaneBusy",
    "MujocoPool",
    "NothingToSample",
    "Protocol",
    "Replay",
    "ReplayHandle",
    "Writer",
    "__version__",
    "build_info",
    "protocol",
]

register()
