"""A run without games and networks, whose every save is cheap and can be recognised again: for tests of checkpoints."""

from __future__ import annotations

import contextlib
import json
import os
import resource
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from file_faults import Faults
from replay_oracle import GUARD_STEPS

import fastrl
from fastrl.runs.checkpoint import CheckpointStore
from fastrl.runs.options import RunOptions
from fastrl.runs.session import Resumed, Session, resume

STEPS_A_TURN = 20
SKIPPED = 77


@dataclass(frozen=True, kw_only=True)
class Config(RunOptions):
    steps: int = 1_000_000
    learning_rate: float = 0.5


def config_of(runs: Path, **changes: Any) -> Config:
    fixed: dict[str, Any] = {
        "name": "run",
        "runs": runs,
        "env": "CartPole-v1",
        "tensorboard": False,
        "evaluate_every_steps": 0,
        "checkpoint_every_minutes": 0.0,
        "device": "cpu",
    }
    return Config(**{**fixed, **changes})


class Envs:
    """Two lanes of numbers, and states that say how often they played."""

    frames_per_step = 4
    num_envs = 2

    def __init__(self, resumed: Resumed | None = None) -> None:
        self.replay = fastrl.Replay(
            capacity=120,
            lanes=2,
            obs_shape=(5,),
            obs_dtype="float32",
            seed=3,
            alpha=0.6,
            _least_spare_steps=GUARD_STEPS,
        )
        if resumed is not None and resumed.replay_save is not None:
            self.replay.load(resumed.replay_save)

    def play(self, turn: int) -> None:
        rng = np.random.default_rng(turn)
        for lane in range(2):
            with self.replay.writer(lane, continue_episode=any(self.replay.boundary())) as writer:
                for _ in range(STEPS_A_TURN // 2):
                    obs = rng.normal(size=5).astype(np.float32)
                    if writer.episode_is_open:
                        writer.append(int(rng.integers(5)), 1.0, obs, bool(rng.random() < 0.1), False)
                    else:
                        writer.start(obs)
        self.replay.sample(4)

    def save_state(self) -> list[bytes]:
        return [f"{self.replay.boundary()}".encode()] * 2

    def state_digest(self) -> list[str]:
        return [f"{self.replay.boundary()}"] * 2


class Run:
    """A session and its envs."""

    def __init__(self, runs: Path, resumed: Resumed | None = None, **changes: Any) -> None:
        self.envs = Envs(resumed)
        self.session = Session(
            "dqn",
            config_of(runs, **changes),
            self.envs,
            resumed=resumed,
            policy={"prefix": "w"},
            facts={"lanes": 2},
        )
        self.notes: list[str] = []
        self.turn = self.session.steps // STEPS_A_TURN

    def take_turn(self) -> bool:
        """Play and save; whether there is a checkpoint of now."""
        self.turn += 1
        self.envs.play(self.turn)
        self.session.stepped(STEPS_A_TURN, [])
        self.session.updates += 1
        saved = self.session.checkpoint(
            tensors_of(self.turn), {"turn": self.turn, "replay_digest": self.envs.replay.digest()}
        )
        if self.turn % 2 == 0:
            with contextlib.suppress(OSError):
                self.session.store.save_best(self.session.steps, tensors_of(self.turn), {"turn": self.turn})
        return saved


@contextlib.contextmanager
def a_run(runs: Path, resumed: Resumed | None = None, **changes: Any) -> Iterator[Run]:
    run = Run(runs, resumed, **changes)
    with run.session as session:
        session.note = run.notes.append  # type: ignore[method-assign]
        yield run


def tensors_of(turn: int) -> dict[str, torch.Tensor]:
    return {"w": torch.full((40, 50), float(turn)), "count": torch.tensor(turn)}


def require_whole(runs: Path) -> Resumed:
    """What a run has left can be gone on with: its newest checkpoint, and the replay that belongs to it."""
    found = resume(runs / "run", without_replay=False, accept_changed_bits=False)
    turn = found.state["turn"]
    assert torch.equal(found.checkpoint.tensors["w"], tensors_of(turn)["w"])
    assert int(found.checkpoint.tensors["count"]) == turn
    again = Envs(found)
    assert again.replay.digest() == found.state["replay_digest"]
    assert found.env_states == again.save_state()
    return found


def require_tidy(runs: Path) -> None:
    """Nothing is there but what the checkpoints that are kept need."""
    store = CheckpointStore(runs / "run" / "checkpoints")
    described = [json.loads(path.read_bytes().split(b"\n", 1)[1]) for path in store.directory.glob("*.json")]
    expected = {path.name for path in store.directory.glob("*.json")} | {each["tensors"]["file"] for each in described}
    replays = {each["state"]["replay"] for each in described if each["state"].get("replay")}
    for name in replays:
        expected |= {name.partition("/")[0], name}
        manifest = json.loads((store.directory / name).read_bytes().split(b"\n", 1)[1])
        expected |= {f"{name.partition('/')[0]}/{file['name']}" for file in manifest["files"]}
    found = {str(path.relative_to(store.directory)) for path in store.directory.rglob("*")}
    assert found == expected
    assert len(store.steps_saved()) <= 2
    assert {path.name for path in (runs / "run").iterdir()} <= {"checkpoints", "config.json", "evaluations.csv"}


# ---- what children of the nursery do


def save_and_die(runs: str, at: int) -> None:
    """Save as a run does whose disk is in use, and be killed before the ``at``-th change of the fourth save."""
    with a_run(Path(runs)) as run:
        for _ in range(3):
            run.take_turn()
        faults = Faults(at, "kill")
        with faults.active():
            run.take_turn()
        print(len(faults.calls))


def go_on(runs: str) -> None:
    """Go on with the run, or say why not."""
    try:
        found = resume(Path(runs) / "run", without_replay=False, accept_changed_bits=False)
        print(f"gone on at {found.checkpoint.steps}")
    except ValueError as error:
        print(error)


def save_until_the_limit(runs: str) -> None:
    """A limit on the size of files: the save fails, the one before stays, the next one works."""
    with a_run(Path(runs)) as run:
        assert run.take_turn()
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        for limit in (1, 500, 2000, 5000):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
            assert not run.take_turn()
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
            assert "File too large" in " ".join(run.notes)
            assert run.session.store.steps_saved() == [STEPS_A_TURN]
        assert run.take_turn()


def save_on_a_small_disk(runs: str) -> None:
    """A disk of its own that is really full."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    own_mounts, private_and_below = 0x00020000, (1 << 18) | 0x4000
    if libc.unshare(own_mounts) or libc.mount(b"none", b"/", None, private_and_below, None):
        raise SystemExit(SKIPPED)
    if libc.mount(b"none", runs.encode(), b"tmpfs", 0, b"size=256k"):
        raise SystemExit(SKIPPED)
    filler = Path(runs) / "filler"
    with a_run(Path(runs)) as run:
        assert run.take_turn()
        failed = 0
        for left_free in range(0, 40_000, 4096):
            filler.write_bytes(b"x")
            free = os.statvfs(runs).f_bavail * os.statvfs(runs).f_frsize
            filler.write_bytes(bytes(max(0, free + 4096 - left_free)))
            before = run.session.store.steps_saved()
            if not run.take_turn():
                failed += 1
                assert run.session.store.steps_saved() == before
                assert "No space left" in run.notes[-1], run.notes
            filler.unlink()
            require_tidy(Path(runs))
        assert failed >= 3
        assert run.take_turn()
    require_whole(Path(runs))
    print(f"{failed} saves on a full disk")
