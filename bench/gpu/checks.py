"""Whether a device does what the CPU does, path by path. Each check says what it found, or raises AssertionError.

With the device "cpu" the same code runs, so that a machine without a GPU sees that the checks themselves work.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from breakout import ENV, NETWORK, batch_of
from subjects import ACTION, GROUPS, OBS, SIZES, ddpg_learner, dqn_config, group_config, replay_of_frames

import fastrl
from fastrl import ddpg, dqn
from fastrl.engine.played_envs import played_envs
from fastrl.learn.acting import Answers
from fastrl.learn.feeding import CopyFeeder, HostFeeder, MirrorFeeder, bring
from fastrl.learn.flat import FlatNetwork
from fastrl.learn.hogwild import SharedParameters
from fastrl.learn.networks import build
from fastrl.runs.device_groups import GroupWorker
from fastrl.runs.stages import StageClock

_MOST_APART = 0.02  # of the way that weights went; sums are rounded in other orders
_BATCHES_AT_A_TIME = 10


def _exact_products() -> None:
    """Tensor cores round fp32 to ten bits, which is no mistake and would hide one."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


def _require_near(apart: float, what: str, most: float = _MOST_APART) -> str:
    if not apart <= most:
        raise AssertionError(f"{what} are {apart:.2e} of their way apart, at most {most:.2g} is rounding")
    return f"{what} at most {apart:.1e} of their way apart"


# ---- DQN's updates


def _moved(preset: str, device: str, updates: int, **changes: Any) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """The online network after so many updates on batches that are the same everywhere; and the last errors."""
    learner = dqn.Learner(dqn_config(preset, device, **changes), NETWORK)
    generator = np.random.default_rng(0)
    place: dict[str, torch.Tensor] = {}
    for _ in range(updates):
        drawn = batch_of(generator)
        drawn["weight"] = torch.from_numpy(generator.uniform(0.2, 1, 32).astype(np.float32))
        drawn["discount"] = torch.from_numpy(generator.choice(np.float32([0, 0.99, 0.97]), 32))
        for name, tensor in drawn.items():
            bring(place, name, tensor.to(device), learner.device)
        learner.update(place)
    return {name: p.detach().cpu() for name, p in learner.online.named_parameters()}, learner.errors.cpu()


def _apart(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], began: dict[str, torch.Tensor]) -> float:
    """The layer that is farthest, as a part of the way that it went."""
    return max(
        float((ours[name] - theirs[name]).norm() / (theirs[name] - began[name]).norm().clamp_min(1e-12))
        for name in ours
    )


def captured_updates(device: str) -> str:
    """Most of them replayed graphs: nature's, double Q, and n steps weighted by priority with its errors."""
    _exact_products()
    updates, worst = SIZES[device].updates, 0.0
    changed: tuple[tuple[str, dict[str, Any]], ...] = (
        ("nature", {}),
        ("fast", {"network": "nature", "double": True, "n_step": 1}),
        ("fast", {"network": "nature", "prioritised": True, "n_step": 3}),
    )
    for preset, changes in changed:
        began, _ = _moved(preset, "cpu", 0, **changes)
        (ours, our_errors), (theirs, errors) = (_moved(preset, each, updates, **changes) for each in (device, "cpu"))
        worst = max(worst, _apart(ours, theirs, began), float((our_errors - errors).norm() / errors.norm()))
    return _require_near(worst, f"weights and errors after {updates} updates")


def bf16_updates(device: str) -> str:
    """No farther from fp32 than the CPU's bf16 is, twice over."""
    _exact_products()
    updates = SIZES[device].updates
    began, _ = _moved("nature", "cpu", 0)
    exact, _ = _moved("nature", "cpu", updates)
    ours, theirs = (_apart(_moved("nature", d, updates, precision="bf16")[0], exact, began) for d in (device, "cpu"))
    most = 2 * theirs + _MOST_APART
    return _require_near(ours, f"weights in bf16 and in fp32 after {updates} updates", most) + f" (CPU: {theirs:.1e})"


def no_waiting(device: str) -> str:
    """Updates after the first ones never wait for the GPU."""
    learner = dqn.Learner(dqn_config("nature", device), NETWORK)
    drawn = batch_of(np.random.default_rng(0), device)
    for _ in range(8 if device == "cuda" else 1):
        learner.update(drawn)
    if device != "cuda":
        return "a CPU has nothing to wait for"
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(4):
            learner.update(drawn)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return "4 updates without a synchronising call"


# ---- acting


def acting(device: str) -> str:
    """By page-locked memory and a captured graph, before and after the weights moved."""
    _exact_products()
    generator = np.random.default_rng(0)
    frames = [generator.integers(0, 256, (16, 4, 84, 84), np.uint8) for _ in range(8)]
    numbers = [generator.standard_normal((4, 1, OBS)).astype(np.float32) for _ in range(8)]
    learners = {
        "Q": ([dqn.Learner(dqn_config("nature", each), NETWORK) for each in ("cpu", device)], frames, 1e-3),
        "Q in bf16": (
            [dqn.Learner(dqn_config("nature", each, precision="bf16"), NETWORK) for each in ("cpu", device)],
            frames,
            5e-2,
        ),
        "actions": ([ddpg_learner(each) for each in ("cpu", device)], numbers, 1e-3),
    }
    told = []
    for name, (pair, shown, most) in learners.items():
        worst = 0.0
        flats = [each.actor if isinstance(each, ddpg.Learner) else each.flat for each in pair]
        staged = Answers(flats[1].network, torch.device(device), staged=True)
        for number, obs in enumerate(shown):
            if number == 5:  # the graph is captured by now, and is to see it
                for flat in flats:
                    flat.values.mul_(1.1)
            asked = [each.actions if isinstance(each, ddpg.Learner) else each.values for each in pair]
            expected, found = (ask(obs) for ask in asked)
            worst = max(worst, float(np.abs(found - expected).max() / np.abs(expected).max()))
            if not name.endswith("bf16"):
                worst = max(worst, float(np.abs(staged(obs) - expected).max() / np.abs(expected).max()))
        if not worst <= most:
            raise AssertionError(f"{name} differ by {worst:.1e} of the largest, at most {most:g} is rounding")
        told.append(f"{name} {worst:.0e}")
    return f"8 calls, weights moved after 5; apart by, of the largest: {', '.join(told)}"


# ---- batches


def batches_arrive(device: str) -> str:
    """With the GPU held up, batches are drawn on and on; what arrives on the device is what was drawn."""
    count = SIZES[device].batches
    replay = replay_of_frames(4_000)
    twin = fastrl.Replay.attach(replay.handle())  # draws the same transitions in the same order
    boundary = replay.boundary()
    feeder = CopyFeeder(replay, 32, 1, 0.99, torch.device(device))
    sums, expected = [], []
    for number in range(count):
        if device == "cuda" and number % _BATCHES_AT_A_TIME == 0:
            torch.cuda._sleep(20_000_000)
        feeder.ask(boundary, 1, 0.4)
        sums.append(feeder.transfer(feeder.draw()).tensors["obs"].long().sum())
        expected.append(int(twin.sample(32, 1, 0.99, boundary=boundary).obs.astype(np.int64).sum()))
    feeder.close()
    differ = sum(int(found.item()) != wanted for found, wanted in zip(sums, expected, strict=True))
    if differ:
        raise AssertionError(f"{differ} of {count} batches differ")
    return f"{count} batches: 0 differ"


def feeders(device: str) -> str:
    """Copies and the mirror bring what the host draws, bit by bit: uniform and prioritised, of 1 and of 3 steps."""
    rounds = SIZES[device].batches // _BATCHES_AT_A_TIME
    for way in (CopyFeeder, MirrorFeeder):
        for alpha, n_step in ((None, 1), (None, 3), (0.6, 1), (0.6, 3)):
            replays = [replay_of_frames(1_000, alpha) for _ in range(2)]
            host = HostFeeder(replays[0], 32, n_step, 0.99)
            other = way(replays[1], 32, n_step, 0.99, torch.device(device))
            for number in range(rounds):
                for feeder, replay in zip((host, other), replays, strict=True):
                    feeder.ask(replay.boundary(), 3, 0.5)
                for _ in range(3):
                    expected, found = (feeder.transfer(feeder.draw()) for feeder in (host, other))
                    same = np.array_equal(expected.index, found.index) and all(
                        torch.equal(tensor, found.tensors[name].cpu()) for name, tensor in expected.tensors.items()
                    )
                    if not same:
                        raise AssertionError(f"{way.__name__}, alpha {alpha}, {n_step} steps: round {number} differs")
                    if alpha is not None:
                        priority = np.arange(1.0, 33.0) * (1 + number % 3)
                        host.update_priorities(expected.index, priority)
                        other.update_priorities(found.index, priority)
            other.close()
    return f"{2 * 4 * rounds * 3} batches: bit-equal"


# ---- groups


def _moved_by(what: str, kind: str, device: str, rounds: int) -> tuple[torch.Tensor, Any]:
    """How far a "worker" or a "group" moves the parameters in so many rounds; and the games that it played."""
    algorithm, changes = GROUPS[kind]
    config = group_config(algorithm, device, workers=1, envs_per_worker=8, learning_rate_steps=0, **changes)
    recipe = algorithm.RECIPE
    network = {"kind": recipe.kind, "torso": "a3c", "obs_shape": [4, 84, 84], "num_actions": 4}
    first = FlatNetwork(build(network, [1])).values
    shared = SharedParameters(first.numel(), 1, recipe.copies, torch.device(device))
    for vector in (shared.values, *shared.further):
        vector.copy_(first)
    envs = played_envs(ENV, 8, protocol=config.protocol, seed=3)
    try:
        made = getattr(recipe, what)
        worker = made(config, network, shared, 0, envs, "check", torch.device(device))
        worker.start(None)
        for number in range(rounds):
            if isinstance(worker, GroupWorker):
                worker.turn(StageClock(), 40 * number)
                while worker.under_way:
                    worker.turn(StageClock(), 40 * number, begin=False)
                worker.wait()
            else:
                worker.round(40 * number)
        return shared.values.cpu() - first, worker.state()["envs_digest"]
    finally:
        envs.close()


def groups_of(kind: str) -> Callable[[str], str]:
    """Rounds of a group on the device, most of them replayed graphs, beside those of a worker on the CPU."""

    def check(device: str) -> str:
        _exact_products()
        rounds = SIZES[device].rounds
        (theirs, their_games), (ours, games) = (
            _moved_by(what, kind, where, rounds) for what, where in (("worker", "cpu"), ("group", device))
        )
        apart = float((theirs - ours).norm() / theirs.norm())
        if games != their_games:
            raise AssertionError(f"the games differ; values are {apart:.2e} of their way apart")
        return "the same games; " + _require_near(apart, f"values after {rounds} rounds")

    return check


# ---- DDPG


def ddpg_updates(device: str) -> str:
    """They move the actor and the critic as the CPU's do."""
    _exact_products()
    updates, ways = SIZES[device].updates, []
    for where in ("cpu", device):
        learner = ddpg_learner(where)
        flats = (learner.actor, learner.critic)
        began = [flat.values.cpu().clone() for flat in flats]
        generator = np.random.default_rng(0)
        for _ in range(updates):
            learner.update(numbers(generator, learner.config))
        ways.append([flat.values.cpu() - b for flat, b in zip(flats, began, strict=True)])
    worst = max(float((ours - theirs).norm() / theirs.norm()) for theirs, ours in zip(*ways, strict=True))
    return _require_near(worst, f"weights after {updates} updates")


def numbers(generator: np.random.Generator, config: ddpg.Config) -> Any:
    """A batch of HalfCheetah's shape."""

    def rows(*shape: int) -> Any:
        return generator.standard_normal((config.batch, *shape)).astype(np.float32)

    drawn = types.SimpleNamespace(
        obs=rows(1, OBS), next_obs=rows(1, OBS), action=rows(ACTION).clip(-1, 1), reward=rows()
    )
    drawn.discount = np.full(config.batch, config.discount, np.float32)
    return drawn


CHECKS: dict[str, Callable[[str], str]] = {
    "captured updates equal the CPU's": captured_updates,
    "updates in bf16 are as near": bf16_updates,
    "updates do not wait": no_waiting,
    "acting answers as the CPU does": acting,
    "batches arrive whole": batches_arrive,
    "copies and mirror equal the host": feeders,
    **{f"groups of {kind} learn as workers": groups_of(kind) for kind in GROUPS},
    "DDPG's updates equal the CPU's": ddpg_updates,
}
