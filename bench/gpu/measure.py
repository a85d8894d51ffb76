"""GPU paths against the CPU's, then their speed beside Stable-Baselines3; one table, and the same as JSON.

Everything is checked before it is timed. A check that fails is in the table, and ends the script with exit code 1.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import statistics
import sys
import tempfile
import time
import traceback
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from breakout import ENV, NETWORK, batch_of

import fastrl
from fastrl import a3c, ddpg, dqn
from fastrl.engine.budget import usable_cores
from fastrl.engine.played_envs import played_envs
from fastrl.learn.feeding import CopyFeeder, bring
from fastrl.learn.flat import FlatNetwork
from fastrl.learn.hogwild import SharedParameters
from fastrl.learn.networks import build
from fastrl.runs import command_line
from fastrl.runs.metrics import read_metrics
from fastrl.runs.options import resolved
from fastrl.runs.stages import StageClock


def config_of(preset: str, device: str, **changes: Any) -> dqn.Config:
    base: dqn.Config = command_line.with_preset(dqn.TRAINER, preset)
    plain = {"env": ENV, "device": device, "evaluate_every_steps": 0, "tensorboard": False}
    return dataclasses.replace(
        base, **{**plain, "checkpoint_every_minutes": 0.0, "checkpoint_replay": False, **changes}
    )


# ---- checks


def moved(preset: str, device: str, updates: int, **changes: Any) -> dict[str, torch.Tensor]:
    """The online network after so many updates on batches that are the same everywhere."""
    learner = dqn.Learner(resolved(config_of(preset, device, **changes)), NETWORK)
    generator = np.random.default_rng(0)
    place: dict[str, torch.Tensor] = {}
    for _ in range(updates):
        for name, tensor in batch_of(generator, device).items():
            bring(place, name, tensor, learner.device)
        learner.update(place)
    return {name: p.detach().cpu() for name, p in learner.online.named_parameters()}


def check_captured_updates() -> str:
    """Twenty updates, seventeen of them replayed graphs, move the weights as the CPU's do."""
    worst = 0.0
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    for preset, changes in (("nature", {}), ("fast", {"n_step": 1, "double": True, "dueling": True})):
        began = moved(preset, "cpu", 0, **changes)
        ours, theirs = (moved(preset, device, 20, **changes) for device in ("cuda", "cpu"))
        for name, tensor in ours.items():
            distance = (tensor - theirs[name]).norm() / (theirs[name] - began[name]).norm().clamp_min(1e-12)
            worst = max(worst, float(distance))
    if worst > 0.02:
        raise AssertionError(f"weights are {worst:.2e} of their way apart after 20 updates")
    return f"weights at most {worst:.1e} of their way apart after 20 updates"


def check_no_waiting() -> str:
    """Updates after the first ones never wait for the GPU."""
    learner = dqn.Learner(resolved(config_of("nature", "cuda")), NETWORK)
    drawn = batch_of(np.random.default_rng(0), "cuda")
    for _ in range(8):
        learner.update(drawn)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(4):
            learner.update(drawn)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return "4 updates without a synchronising call"


def check_batches_are_not_refilled_mid_copy() -> str:
    """With the GPU held up, batches are drawn on and on; what arrives on the device is what was drawn."""
    config = resolved(config_of("nature", "cuda", replay_capacity=20_000, num_envs=4, warm_up_steps=2_000))
    envs = dqn.make_envs(config, None)
    try:
        envs.start()
        while len(envs.replay) < 4_000:
            envs.send(np.zeros(4, np.int64))
            envs.receive()
        boundary = envs.replay.boundary()
        twin = fastrl.Replay.attach(envs.replay.handle())  # draws the same transitions in the same order
        feeder = CopyFeeder(envs.replay, 32, 1, 0.99, torch.device("cuda"))
        sums, expected = [], []
        for round_number in range(200):
            if round_number % 10 == 0:
                torch.cuda._sleep(20_000_000)
            feeder.ask(boundary, 1, 0.4)
            sums.append(feeder.take().tensors["obs"].long().sum())
            expected.append(int(twin.sample(32, 1, 0.99, boundary=boundary).obs.astype(np.int64).sum()))
        feeder.close()
        differ = sum(int(found.item()) != wanted for found, wanted in zip(sums, expected, strict=True))
        if differ:
            raise AssertionError(f"{differ} of 200 batches differ")
    finally:
        envs.close()
    return "200 batches: 0 differ"


def check_mirror() -> str:
    """Batches gathered on the device equal the host's, bit by bit."""
    from fastrl.engine.mirror import Mirror

    def filled() -> fastrl.Replay:
        made = fastrl.Replay(4_000, lanes=2, seed=3)
        frames = np.random.default_rng(0).integers(0, 256, (512, 84, 84), np.uint8)
        for lane in range(2):
            with made.writer(lane) as writer:
                writer.start(frames[0])
                for step in range(3_000):
                    writer.append(step % 4, 1.0, frames[step % 512], step % 97 == 96, False)
                    if step % 97 == 96:
                        writer.start(frames[step % 512])
        return made

    host, source = filled(), filled()
    mirror = Mirror(source, "cuda")
    mirror.upload()
    for _ in range(50):
        expected = host.sample(32, 1, 0.99)
        obs, next_obs = mirror.gather(mirror.draw(32, 1, 0.99))
        if not (
            np.array_equal(obs.cpu().numpy(), expected.obs)
            and np.array_equal(next_obs.cpu().numpy(), expected.next_obs)
        ):
            raise AssertionError("a gathered batch is not the host's")
    return "50 batches: bit-equal"


def check_groups_learn_what_workers_learn() -> str:
    """A3C: ten rounds of a group on the device, seven of them replayed graphs, beside those of a worker on the CPU."""
    config = dataclasses.replace(
        command_line.with_preset(a3c.TRAINER, "paper"), env=ENV, workers=1, envs_per_worker=8, learning_rate_steps=0
    )
    network = {"kind": "actor_critic", "torso": "a3c", "obs_shape": [4, 84, 84], "num_actions": 4}
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    first = FlatNetwork(build(network, [1])).values
    moved, games = [], []
    for device, kind in (("cpu", a3c.Worker), ("cuda", a3c.Group)):
        shared = SharedParameters(first.numel(), 1, device=torch.device(device))
        shared.values.copy_(first)
        envs = played_envs(ENV, 8, protocol=config.protocol, seed=3)
        worker = kind(config, network, shared, 0, envs, "check", torch.device(device))
        worker.start(None)
        for number in range(10):
            if isinstance(worker, a3c.Group):
                worker.turn(StageClock(), 40 * number)
                while worker.under_way:
                    worker.turn(StageClock(), 40 * number, begin=False)
                worker.wait()
            else:
                worker.round(40 * number)
        moved.append(shared.values.cpu() - first)
        games.append(worker.state()["envs"])
        envs.close()
    distance = float((moved[0] - moved[1]).norm() / moved[0].norm())
    if games[0] != games[1]:
        raise AssertionError(f"the games differ; values are {distance:.2e} of their way apart")
    if distance > 0.02:
        raise AssertionError(f"values are {distance:.2e} of their way apart after 10 rounds")
    return f"the same games; values {distance:.1e} of their way apart after 10 rounds"


def ddpg_learner(device: str) -> tuple[ddpg.Learner, Any]:
    """A learner of HalfCheetah's shape, and a batch for it."""
    config = resolved(dataclasses.replace(command_line.with_preset(ddpg.TRAINER, "fast"), device=device))
    shared = {"obs_shape": [1, 17], "action_size": 6, "final_uniform": config.final_uniform}
    actor = {"kind": "actor", "hidden_units": list(config.actor_hidden_units), **shared}
    critic = {"kind": "critic", "hidden_units": list(config.critic_hidden_units), "action_layer": 0, **shared}
    generator = np.random.default_rng(0)

    def rows(*shape: int) -> Any:
        return generator.standard_normal((config.batch, *shape)).astype(np.float32)

    drawn = types.SimpleNamespace(obs=rows(1, 17), next_obs=rows(1, 17), action=rows(6).clip(-1, 1), reward=rows())
    drawn.discount = np.full(config.batch, config.discount, np.float32)
    return ddpg.Learner(config, actor, critic), drawn


def check_ddpg_updates() -> str:
    """Twenty updates move the actor and the critic as the CPU's do."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    ways = []
    for device in ("cpu", "cuda"):
        learner, drawn = ddpg_learner(device)
        began = [flat.values.cpu().clone() for flat in (learner.actor, learner.critic)]
        for _ in range(20):
            learner.update(drawn)
        ways.append([flat.values.cpu() - b for flat, b in zip((learner.actor, learner.critic), began, strict=True)])
    worst = max(float((ours - theirs).norm() / theirs.norm()) for theirs, ours in zip(*ways, strict=True))
    if worst > 0.02:
        raise AssertionError(f"weights are {worst:.2e} of their way apart after 20 updates")
    return f"weights at most {worst:.1e} of their way apart after 20 updates"


CHECKS: dict[str, Callable[[], str]] = {
    "captured updates equal the CPU's": check_captured_updates,
    "updates do not wait": check_no_waiting,
    "batches arrive whole": check_batches_are_not_refilled_mid_copy,
    "mirror equals the host": check_mirror,
    "A3C's groups learn as its workers": check_groups_learn_what_workers_learn,
    "DDPG's updates equal the CPU's": check_ddpg_updates,
}


# ---- speed


def our_steps_per_s(preset: str, steps: int, **changes: Any) -> tuple[float, dict[str, float]]:
    """Of a whole training, without its warm-up; and the stages' shares."""
    warm_up = 4_000
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        config = config_of(
            preset,
            "cuda",
            steps=warm_up + steps,
            warm_up_steps=warm_up,
            replay_capacity=100_000,
            log_every_steps=warm_up,
            runs=Path(folder),
            **changes,
        )
        rows = read_metrics(dqn.train(config).run.metrics_file)
    learning = rows["updates"] > 0
    shares = {name: float(rows[name][learning].mean()) for name in rows if name.startswith("share/")}
    return float(statistics.median(rows["steps_per_s"][learning][1:])), shares


def sb3_steps_per_s(steps: int) -> float:
    from stable_baselines3 import DQN
    from stable_baselines3.common.env_util import make_atari_env
    from stable_baselines3.common.vec_env import VecFrameStack

    warm_up = 1_000
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        env = VecFrameStack(make_atari_env(ENV, n_envs=1, seed=0), 4)
        model = DQN(
            "CnnPolicy", env, buffer_size=10_000, learning_starts=warm_up, learning_rate=1e-4, batch_size=32,
            train_freq=4, gradient_steps=1, target_update_interval=1_000, max_grad_norm=10, device="cuda",
        )  # fmt: skip
        model.learn(warm_up)
        began = time.perf_counter()
        model.learn(steps, reset_num_timesteps=False)
        seconds = time.perf_counter() - began
        env.close()
    return steps / seconds


def calls_per_s(update: Callable[[], Any], calls: int) -> float:
    """Of something that the GPU does, after twenty calls that are not timed."""
    for _ in range(20):
        update()
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(calls):
        update()
    torch.cuda.synchronize()
    return calls / (time.perf_counter() - began)


def updates_per_s(precision: str) -> float:
    """Captured updates alone, on one batch."""
    learner = dqn.Learner(resolved(config_of("nature", "cuda", precision=precision)), NETWORK)
    drawn = batch_of(np.random.default_rng(0), "cuda")
    return calls_per_s(lambda: learner.update(drawn), 2_000)


def ddpg_updates_per_s() -> float:
    """On one batch that is brought to the device each time."""
    learner, drawn = ddpg_learner("cuda")
    return calls_per_s(lambda: learner.update(drawn), 4_000)


def a3c_steps_per_s(groups: int, games: int, steps: int, **changes: Any) -> tuple[float, dict[str, float]]:
    """Of a whole training in groups; and the stages' shares."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        config = dataclasses.replace(
            command_line.with_preset(a3c.TRAINER, "paper"),
            env=ENV, device="cuda", workers=groups, envs_per_worker=games, steps=steps, log_every_steps=steps // 8,
            runs=Path(folder), evaluate_every_steps=0, tensorboard=False, checkpoint_every_minutes=0.0, **changes,
        )  # fmt: skip
        rows = read_metrics(a3c.train(config).run.metrics_file)
    shares = {name: float(rows[name][2:].mean()) for name in rows if name.startswith("share/")}
    return float(statistics.median(rows["steps_per_s"][2:])), shares


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=40_000)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("measure: torch finds no GPU")
    found: dict[str, Any] = {
        "gpu": torch.cuda.get_device_name(0),
        "cores": usable_cores(),
        "torch": torch.__version__,
        "fastrl": fastrl.build_info()["source_hash"],
        "checks": {},
        "speed": {},
    }
    failed = False

    def attempt(part: str, name: str, case: Callable[[], Any], may_lack: tuple[type[Exception], ...] = ()) -> None:
        nonlocal failed
        try:
            found[part][name] = case()
        except may_lack as error:
            found[part][name] = f"not run: {error}"
        except Exception as error:
            traceback.print_exc()
            failed = True
            found[part][name] = f"FAILED: {type(error).__name__}: {error}"
        print(f"{name:<36} {found[part][name]}", flush=True)
        (arguments.out / "gpu.json").write_text(json.dumps(found, indent=1))

    for name, check in CHECKS.items():
        attempt("checks", name, check)
    cases: dict[str, Callable[[], Any]] = {
        "updates alone, fp32 [updates/s]": lambda: updates_per_s("fp32"),
        "updates alone, bf16 [updates/s]": lambda: updates_per_s("bf16"),
        "nature, 16 envs [steps/s]": lambda: our_steps_per_s("nature", arguments.steps),
        "nature, 32 envs [steps/s]": lambda: our_steps_per_s("nature", arguments.steps, num_envs=32),
        "nature, 64 envs [steps/s]": lambda: our_steps_per_s("nature", arguments.steps, num_envs=64),
        "nature, 32 envs, bf16 [steps/s]": lambda: our_steps_per_s(
            "nature", arguments.steps, num_envs=32, precision="bf16"
        ),
        "Stable-Baselines3 [steps/s]": lambda: sb3_steps_per_s(2_000),
        "A3C, 4 groups of 16 games [steps/s]": lambda: a3c_steps_per_s(4, 16, 4 * arguments.steps),
        "A3C, 4 groups of 32, nature [steps/s]": lambda: a3c_steps_per_s(4, 32, 4 * arguments.steps, network="nature"),
        "DDPG, batch 256 [updates/s]": ddpg_updates_per_s,
    }
    for name, case in cases.items():
        attempt("speed", name, case, may_lack=(ImportError,))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
