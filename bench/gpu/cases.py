"""What is timed: ours, the same of Stable-Baselines3, and what nothing can be faster than. Each rate is of a window."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from breakout import ENV, NETWORK, batch_of
from subjects import (
    ACTION,
    OBS,
    SIZES,
    ddpg_learner,
    dqn_config,
    group_config,
    replay_of_frames,
    replay_of_numbers,
)

from fastrl import a3c, async_q, dqn
from fastrl.engine.played_envs import played_envs
from fastrl.learn.feeding import CopyFeeder, MirrorFeeder
from fastrl.runs import asynchronous
from fastrl.runs.metrics import read_metrics

_TO_END_S = 1.5  # for a training's last checkpoint
_ASKED_AGAIN_S = 0.2
_SOME_CALLS = 20  # that are not timed: graphs are captured in them


@dataclass
class Turn:
    """What a case is given: where it runs, and until when, by time.monotonic(); and what else it has to say."""

    device: str
    ends_at: float
    shares: dict[str, float] = field(default_factory=dict)  # of the time, by stage

    @property
    def left_s(self) -> float:
        return self.ends_at - time.monotonic()

    @property
    def window_s(self) -> float:
        return max(0.1, min(SIZES[self.device].window_s, 0.8 * self.left_s))


class TooShort(Exception):
    """A case cannot be timed in the time that it has."""


Rates = Mapping[str, float]


@dataclass(frozen=True)
class Case:
    """A row of the table. ``limit`` is computed from the rates that were found before, None where they are missing."""

    name: str
    unit: str
    rate: Callable[[Turn], float]
    peer: str | None = None
    limit: Callable[[Rates], float | None] = lambda rates: None


# ---- rates


def calls_per_s(call: Callable[[], Any], turn: Turn) -> float:
    """Of something that the device may still be at when it returns."""
    done_by = time.monotonic() + turn.left_s / 2
    for _ in range(_SOME_CALLS):
        call()
        if time.monotonic() > done_by:
            break
    _synchronize(turn)
    began, calls = time.monotonic(), 0
    end = began + turn.window_s
    while time.monotonic() < end:
        call()
        calls += 1
    _synchronize(turn)
    return calls / (time.monotonic() - began)


def _synchronize(turn: Turn) -> None:
    if turn.device == "cuda":
        torch.cuda.synchronize()


def learning_rows(metrics: Path) -> dict[str, Any]:
    """Of a training's log, those in which something was learned, without the first: capturing is in it."""
    rows = read_metrics(metrics)
    began = np.flatnonzero(rows["updates"] > 0)
    return {name: column[began[0] :] if len(began) else column[:0] for name, column in rows.items()}


def spanned_s(rows: Mapping[str, Any]) -> float:
    return float(rows["wall_s"][-1] - rows["wall_s"][0]) if len(rows["wall_s"]) else 0.0


def training_rate(train: Callable[[Any], Any], config: Callable[[Path], Any], turn: Turn) -> float:
    """Steps a second of a whole training, from its first update on until the window is over.

    It is ended as any training can be, by SIGTERM, which is sent until it has gone: the first may come too early.
    """
    over, ours = threading.Event(), threading.Event()
    with tempfile.TemporaryDirectory() as folder:
        metrics = Path(folder) / "timed" / "metrics.csv"

        def has_enough() -> bool:
            with contextlib.suppress(Exception):  # not there yet, or a line is being written
                return spanned_s(learning_rows(metrics)) >= turn.window_s
            return False

        window_over = turn.ends_at - _TO_END_S

        def end_it() -> None:
            while not over.wait(_ASKED_AGAIN_S):
                if ours.is_set() or time.monotonic() > window_over or has_enough():
                    ours.set()
                    os.kill(os.getpid(), signal.SIGTERM)

        before = signal.signal(signal.SIGTERM, lambda *_: None)
        ending = threading.Thread(target=end_it, daemon=True)
        ending.start()
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                session = train(config(Path(folder)))
        finally:
            over.set()
            ending.join()
            signal.signal(signal.SIGTERM, before)
        if session.exit_code and not ours.is_set():
            raise SystemExit(session.exit_code)  # somebody else's signal is meant for all of us
        rows = learning_rows(metrics) if metrics.exists() else {"wall_s": []}
        if len(rows["wall_s"]) < 2 or spanned_s(rows) <= 0:
            raise TooShort(
                "its time was over before its log had two rows to compare; give more --minutes, or --only some"
            )
        turn.shares |= {name[6:]: float(rows[name][1:].mean()) for name in rows if name.startswith("share/")}
        return float(rows["steps"][-1] - rows["steps"][0]) / spanned_s(rows)


# ---- ours


def games_alone(turn: Turn) -> float:
    """Of as many games as a training has, played at random."""
    envs = played_envs(ENV, 32, protocol="nature", seed=0)
    try:
        envs.start()
        generator = np.random.default_rng(0)

        def step() -> None:
            envs.send(generator.integers(envs.num_actions, size=32))
            envs.receive()

        return 32 * calls_per_s(step, turn)
    finally:
        envs.close()


def updates_alone(precision: str) -> Callable[[Turn], float]:
    """Captured updates on one batch that lies on the device."""

    def rate(turn: Turn) -> float:
        learner = dqn.Learner(dqn_config("nature", turn.device, precision=precision), NETWORK)
        drawn = batch_of(np.random.default_rng(0), turn.device)
        return calls_per_s(lambda: learner.update(drawn), turn)

    return rate


def drawn_updates(way: Any, alpha: float | None = None, n_step: int = 1) -> Callable[[Turn], float]:
    """Batches are drawn, brought and learned from; priorities go back where there are some."""

    def rate(turn: Turn) -> float:
        changes = {"prioritised": alpha is not None, "n_step": n_step}
        learner = dqn.Learner(dqn_config("nature", turn.device, **changes), NETWORK)
        replay = replay_of_frames(SIZES[turn.device].replay_capacity, alpha)
        feeder = way(replay, 32, n_step, 0.99, torch.device(turn.device))
        boundary = replay.boundary()

        def update() -> None:  # as a training of 32 games has them: eight after a step of all
            feeder.ask(boundary, 8, 0.4)
            for _ in range(8):
                fed = feeder.transfer(feeder.draw())
                learner.update(fed.tensors)
                if alpha is not None:
                    feeder.update_priorities(fed.index, learner.errors.cpu().numpy() + dqn.PRIORITY_OF_NO_ERROR)

        try:
            return 8 * calls_per_s(update, turn)
        finally:
            feeder.close()

    return rate


def acting(turn: Turn) -> float:
    """Sixteen observations to the device, and the answers back."""
    learner = dqn.Learner(dqn_config("nature", turn.device), NETWORK)
    obs = np.random.default_rng(0).integers(0, 256, (16, 4, 84, 84), np.uint8)
    return calls_per_s(lambda: learner.values(obs), turn)


def training_of_dqn(**changes: Any) -> Callable[[Turn], float]:
    def rate(turn: Turn) -> float:
        sizes = SIZES[turn.device]

        def config(runs: Path) -> Any:
            return dqn_config(
                "nature", turn.device, runs=runs, name="timed", warm_up_steps=sizes.warm_up_steps,
                replay_capacity=sizes.replay_capacity, log_every_steps=sizes.log_every_steps, **changes,
            )  # fmt: skip

        return training_rate(dqn.train, config, turn)

    return rate


def training_of_groups(algorithm: Any, games: int, **changes: Any) -> Callable[[Turn], float]:
    """In four groups."""

    def rate(turn: Turn) -> float:
        def config(runs: Path) -> Any:
            return group_config(
                algorithm, turn.device, runs=runs, name="timed", workers=4, envs_per_worker=games,
                log_every_steps=4 * SIZES[turn.device].log_every_steps, **changes,
            )  # fmt: skip

        in_groups = asynchronous._in_groups
        asynchronous._in_groups = lambda config: True  # on a CPU they would be processes
        try:
            return training_rate(algorithm.train, config, turn)
        finally:
            asynchronous._in_groups = in_groups

    return rate


def ddpg_updates(turn: Turn) -> float:
    """Batches of 256 are drawn, brought and learned from."""
    learner, replay = ddpg_learner(turn.device), replay_of_numbers(20_000)
    config = learner.config
    return calls_per_s(lambda: learner.update(replay.sample(config.batch, 1, config.discount)), turn)


# ---- Stable-Baselines3's


class NotThere(Exception):
    """A peer is not installed."""


def _require_peer() -> None:
    """It and what its Atari wrappers need, which say an AssertionError where OpenCV is missing."""
    for module in ("stable_baselines3", "cv2"):
        try:
            __import__(module)
        except ImportError as error:
            raise NotThere(f"{module} is not there ({error}); bench/gpu/wheels.sh fetches it") from None


def _sb3_games(count: int) -> Any:
    import ale_py
    from stable_baselines3.common.env_util import make_atari_env
    from stable_baselines3.common.vec_env import VecFrameStack

    gymnasium.register_envs(ale_py)
    return VecFrameStack(make_atari_env(ENV, n_envs=count, seed=0), 4)


def _sb3_dqn(turn: Turn, games: int = 1, learning_starts: int = 1_000) -> Any:
    from stable_baselines3 import DQN

    return DQN(
        "CnnPolicy", _sb3_games(games), buffer_size=10_000, learning_starts=learning_starts, learning_rate=1e-4,
        batch_size=32, train_freq=4, gradient_steps=1, target_update_interval=1_000, max_grad_norm=10,
        device=turn.device,
    )  # fmt: skip


def _sb3_training(model: Any, warm_up_steps: int, turn: Turn) -> float:
    from stable_baselines3.common.callbacks import BaseCallback

    class Stopwatch(BaseCallback):
        began = end = 0.0
        first = 0

        def _on_step(self) -> bool:
            now = time.monotonic()
            if not self.end and self.num_timesteps > warm_up_steps:
                self.began, self.first, self.end = now, self.num_timesteps, now + turn.window_s
            return now < min(self.end or turn.ends_at, turn.ends_at)

    watch = Stopwatch()
    model.learn(10**9, callback=watch)
    if not watch.end or model.num_timesteps <= watch.first:
        raise TooShort("its time was over before its warm-up was; give more --minutes, or --only some")
    rate = (model.num_timesteps - watch.first) / (time.monotonic() - watch.began)
    model.env.close()
    return float(rate)


def sb3_dqn(turn: Turn) -> float:
    warm_up = SIZES[turn.device].warm_up_steps // 4
    return _sb3_training(_sb3_dqn(turn, learning_starts=warm_up), warm_up, turn)


def sb3_a2c(turn: Turn) -> float:
    from stable_baselines3 import A2C

    model = A2C("CnnPolicy", _sb3_games(16), n_steps=5, ent_coef=0.01, vf_coef=0.25, device=turn.device)
    return _sb3_training(model, 160, turn)


def _sb3_updates(model: Any, filled: int, turn: Turn) -> float:
    model.learn(filled)  # its learning starts later
    batch = model.batch_size
    return 10 * calls_per_s(lambda: model.train(gradient_steps=10, batch_size=batch), turn)


def sb3_dqn_updates(turn: Turn) -> float:
    return _sb3_updates(_sb3_dqn(turn, learning_starts=10**9), 200, turn)


def sb3_acting(turn: Turn) -> float:
    model = _sb3_dqn(turn)
    obs = np.random.default_rng(0).integers(0, 256, (16, 4, 84, 84), np.uint8)
    return calls_per_s(lambda: model.policy.predict(obs, deterministic=True), turn)


class _Numbers(gymnasium.Env[Any, Any]):
    """HalfCheetah's spaces, and nothing behind them."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (OBS,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (ACTION,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return np.zeros(OBS, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return np.ones(OBS, np.float32), 0.0, False, False, {}


def sb3_ddpg_updates(turn: Turn) -> float:
    from stable_baselines3 import DDPG

    ours = ddpg_learner("cpu").config
    model = DDPG(
        "MlpPolicy", _Numbers(), buffer_size=20_000, learning_starts=10**9, batch_size=ours.batch, tau=ours.tau,
        policy_kwargs={"net_arch": {"pi": list(ours.actor_hidden_units), "qf": list(ours.critic_hidden_units)}},
        device=turn.device,
    )  # fmt: skip
    return _sb3_updates(model, 1_000, turn)


def _quietly(rate: Callable[[Turn], float]) -> Callable[[Turn], float]:
    def run(turn: Turn) -> float:
        _require_peer()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return rate(turn)

    return run


PEERS: dict[str, Callable[[Turn], float]] = {
    "DQN": _quietly(sb3_dqn),
    "DQN's updates": _quietly(sb3_dqn_updates),
    "DQN's acting": _quietly(sb3_acting),
    "A2C": _quietly(sb3_a2c),
    "DDPG's updates": _quietly(sb3_ddpg_updates),
}

# ---- the table

GAMES_ALONE = "games alone, 32"
UPDATES = {"fp32": "update alone, fp32", "bf16": "update alone, bf16"}


def least_of(*names: str, times: int = 1) -> Callable[[Rates], float | None]:
    """The smaller of the games' rate and ``times`` that of the other names; None if one was not found."""

    def limit(rates: Rates) -> float | None:
        found = [rates.get(name, 0.0) * (1 if name == GAMES_ALONE else times) for name in names]
        return min(found) if all(found) else None

    return limit


def _dqn(name: str, **changes: Any) -> Case:
    precision = UPDATES[changes.get("precision", "fp32")]
    # An update belongs to four steps.
    return Case(f"DQN, {name}", "steps/s", training_of_dqn(**changes), "DQN", least_of(GAMES_ALONE, precision, times=4))


def _groups(name: str, *arguments: Any, peer: str | None = None, **changes: Any) -> Case:
    return Case(name, "steps/s", training_of_groups(*arguments, **changes), peer, least_of(GAMES_ALONE))


_of_updates = least_of(UPDATES["fp32"])
# The most important ones first: where time is short, the last ones are left out.
CASES: list[Case] = [
    Case(GAMES_ALONE, "steps/s", games_alone),
    Case(UPDATES["fp32"], "updates/s", updates_alone("fp32")),
    _dqn("32 games", num_envs=32),
    Case("draw by mirror, update", "updates/s", drawn_updates(MirrorFeeder), "DQN's updates", _of_updates),
    Case("draw by copies, update", "updates/s", drawn_updates(CopyFeeder), "DQN's updates", _of_updates),
    _groups("A3C, 4 groups of 16", a3c, 16, peer="A2C"),
    Case("acting, 16 games", "calls/s", acting, "DQN's acting"),
    Case("DDPG, draw and update", "updates/s", ddpg_updates, "DDPG's updates"),
    Case(UPDATES["bf16"], "updates/s", updates_alone("bf16")),
    _dqn("32 games, bf16", num_envs=32, precision="bf16"),
    _dqn("16 games", num_envs=16),
    _dqn("64 games", num_envs=64),
    _dqn("32 games, copies", num_envs=32, replay_device="cpu"),
    _dqn("32 games, prioritised, n 3", num_envs=32, prioritised=True, n_step=3),
    Case(
        "draw by mirror, update, prioritised, n 3", "updates/s", drawn_updates(MirrorFeeder, 0.6, 3), None, _of_updates
    ),
    Case("draw by copies, update, prioritised, n 3", "updates/s", drawn_updates(CopyFeeder, 0.6, 3), None, _of_updates),
    _groups("n-step Q, 4 groups of 16", async_q, 16),
    _groups("A3C, 4 groups of 32, nature", a3c, 32, peer="A2C", network="nature"),
]
