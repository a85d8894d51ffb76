"""Steps a second of a whole DQN training on the CPU, beside Stable-Baselines3's, and where the time goes.

Both train Breakout with the network of the paper, batch 32, one update for every four steps, Adam, the same rules of
the game and as many threads of torch. Each starts anew every round; its set-up and its warm-up are not counted. A
CleanRL checkout is timed as well if FASTRL_BENCH_CLEANRL names it and it runs with the gymnasium that is installed.

The limit is what the updates' multiplications alone take, at the rate of large products with the same threads
(bench/matrix_rate.py). "our update" is a reference: our updates on one batch that never changes, without a
trainer around them; what is left to it is what acting, emulating and sampling cost the learner.
"""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matrix_rate
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from apart import apart, environment
from breakout import BATCH, ENV, NETWORK, batch_of
from nearness import check_near
from training import NOTHING_BESIDE, WARM_UP_STEPS, Ours, compare, sb3_seconds

from fastrl import dqn
from fastrl.engine.budget import usable_cores
from fastrl.runs import command_line
from fastrl.runs.options import resolved


def config_of(steps: int, num_envs: int, precision: str, runs: Path) -> dqn.Config:
    preset: dqn.Config = command_line.with_preset(dqn.TRAINER, "sb3")
    return dataclasses.replace(
        preset,
        env=ENV,
        steps=WARM_UP_STEPS + steps,
        num_envs=num_envs,
        replay_capacity=10_000,
        warm_up_steps=WARM_UP_STEPS,
        log_every_steps=min(WARM_UP_STEPS, steps),
        **NOTHING_BESIDE,
        precision=precision,
        torch_threads=usable_cores(),
        runs=runs,
    )


def sb3(steps: int) -> Callable[[], float]:
    from stable_baselines3 import DQN
    from stable_baselines3.common.env_util import make_atari_env
    from stable_baselines3.common.vec_env import VecFrameStack

    def run() -> float:
        torch.set_num_threads(usable_cores())
        env = VecFrameStack(make_atari_env(ENV, n_envs=1, seed=0), 4)
        model = DQN(
            "CnnPolicy",
            env,
            buffer_size=10_000,
            learning_starts=WARM_UP_STEPS,
            learning_rate=1e-4,
            batch_size=32,
            train_freq=4,
            gradient_steps=1,
            target_update_interval=1_000,
            exploration_fraction=0.1,
            exploration_final_eps=0.01,
            max_grad_norm=10,
            device="cpu",
        )
        seconds = sb3_seconds(model, steps)
        env.close()
        return seconds

    return run


def cleanrl(checkout: str, steps: int) -> Callable[[], float]:
    """CleanRL's own script, whose last line of speed counts from its start: with a warm-up of one step, all of it."""

    def run() -> float:
        command = [
            sys.executable, f"{checkout}/cleanrl/dqn_atari.py", "--env-id", ENV, "--total-timesteps", str(steps),
            "--learning-starts", "40", "--buffer-size", "10000", "--no-cuda",
        ]  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            told = subprocess.run(
                command, capture_output=True, text=True, cwd=folder, check=True, env=environment()
            ).stdout
        return steps / float(re.findall(r"SPS: (\d+)", told)[-1])

    return run


def multiplications(updates: int, precision: str) -> Callable[[], None]:
    """The limit: two forward passes, of either network, and one back."""
    heads = NETWORK["num_actions"]
    each = 2 * matrix_rate.forward(BATCH, heads) + matrix_rate.backward(BATCH, heads)
    multiply = matrix_rate.multiplying(updates * each, precision)

    def run() -> None:
        torch.set_num_threads(usable_cores())
        multiply()

    return run


def our_updates(updates: int, precision: str) -> Callable[[], None]:
    """Without a trainer."""
    torch.set_num_threads(usable_cores())
    learner = dqn.Learner(resolved(config_of(4, 1, precision, Path())), NETWORK)
    drawn = batch_of(np.random.default_rng(0))
    learner.update(drawn)

    def run() -> None:
        torch.set_num_threads(usable_cores())
        for _ in range(updates):
            learner.update(drawn)

    return run


def check_answer(precision: str) -> None:
    """Three updates have the gradient of Stable-Baselines3's formula in plain fp32, and move weights as Adam does."""
    learner = dqn.Learner(resolved(config_of(4, 1, precision, Path())), NETWORK)
    plain = {name: p.detach().clone().requires_grad_() for name, p in learner.online.named_parameters()}
    frozen = {name: p.detach().clone() for name, p in plain.items()}
    optimiser = torch.optim.Adam(plain.values(), 1e-4, eps=1e-8, fused=False)
    generator = np.random.default_rng(1)
    call = torch.func.functional_call
    for _ in range(3):
        drawn = batch_of(generator)
        with torch.no_grad():
            target = drawn["reward"] + 0.99 * call(learner.online, frozen, drawn["next_obs"]).max(1).values
        values = call(learner.online, plain, drawn["obs"]).gather(1, drawn["action"][:, None]).squeeze(1)
        optimiser.zero_grad()
        F.smooth_l1_loss(values, target).backward()
        torch.nn.utils.clip_grad_norm_(plain.values(), 10)
        learner.update(drawn)
        ours = {name: p.grad.clone() for name, p in learner.online.named_parameters()}
        check_near(ours.values(), [p.grad for p in plain.values()], precision)
        if precision == "bf16":  # Adam makes a whole step of a gradient of rounding: it is given the same
            for name, parameter in plain.items():
                parameter.grad = ours[name]
        optimiser.step()
    for name, parameter in learner.online.named_parameters():
        torch.testing.assert_close(parameter, plain[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("num_envs", "precision"), [(8, "fp32"), (8, "bf16"), (1, "fp32")])
def test_training_steps(contest: Any, quick: bool, num_envs: int, precision: str) -> None:
    if quick and num_envs == 1:
        pytest.skip("--quick times 8 envs: one env is the same code")
    steps, rounds = (40, 1) if quick else (600, 5)
    check_answer(precision)
    matrix_rate.check_count()
    envs = "1 env" if num_envs == 1 else f"{num_envs} envs"
    match = contest(f"dqn breakout, {envs}, {precision}", "steps/s", steps, limit="matrix rate")
    others: dict[str, Callable[[], Any]] = {
        "matrix rate": multiplications(steps // 4, precision),
        "our update": our_updates(steps // 4, precision),
        **match.peers({"SB3": apart(sb3)}, steps),
    }
    checkout = os.environ.get("FASTRL_BENCH_CLEANRL")
    if checkout:
        others |= match.peers({"CleanRL": cleanrl}, checkout, steps)
    ours = Ours(steps, lambda runs: dqn.train(config_of(steps, num_envs, precision, runs)))
    compare(match, ours, others, rounds)
