"""Steps a second of a whole DDPG training on the CPU, beside Stable-Baselines3's, and where the time goes.

Both train HalfCheetah-v5 with Stable-Baselines3's settings (batch 256, an update a step, Adam 1e-3, tau 0.005, Gaussian
noise 0.1), two layers of 256 in both networks, and as many threads of torch. Each starts anew every round; its set-up
and its warm-up are not counted.

The limit is what the update's matrix products alone take: five forward passes, and backward passes of critic, actor,
and through the critic to its action, by what multiplies for us (fastrl/learn/products.py), with the same threads.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from apart import apart
from contest import in_threads
from training import NOTHING_BESIDE, WARM_UP_STEPS, Ours, compare, sb3_seconds

from fastrl import ddpg
from fastrl.engine.budget import usable_cores
from fastrl.engine.replay import Batch
from fastrl.learn.products import affine, slope_of_given, write_slope_of_weight
from fastrl.runs import command_line
from fastrl.runs.options import resolved
from fastrl.runs.session import Session

ENV = "HalfCheetah-v5"
OBS, ACTION, BATCH, UNITS = 17, 6, 256, 256
SHARED = {"obs_shape": [1, OBS], "action_size": ACTION, "batch_norm": False, "final_uniform": 0.003}
ACTOR = {**SHARED, "kind": "actor", "hidden_units": [UNITS, UNITS]}
CRITIC = {**SHARED, "kind": "critic", "hidden_units": [UNITS, UNITS], "action_layer": 0}


def config_of(steps: int, threads: int, runs: Path) -> ddpg.Config:
    preset: ddpg.Config = command_line.with_preset(ddpg.TRAINER, "fast")
    return dataclasses.replace(
        preset,
        env=ENV,
        steps=WARM_UP_STEPS + steps,
        warm_up_steps=WARM_UP_STEPS,
        replay_capacity=100_000,
        log_every_steps=min(WARM_UP_STEPS, steps),
        **NOTHING_BESIDE,
        torch_threads=threads,
        runs=runs,
    )


def ours(steps: int, threads: int) -> Ours:
    def train(runs: Path) -> Session:
        session = ddpg.train(config_of(steps, threads, runs))
        assert session.updates == steps
        return session

    return Ours(steps, train)


def sb3(steps: int, threads: int) -> Callable[[], float]:
    from stable_baselines3 import DDPG
    from stable_baselines3.common.noise import NormalActionNoise

    def run() -> float:
        torch.set_num_threads(threads)
        model = DDPG(
            "MlpPolicy",
            ENV,
            buffer_size=100_000,
            learning_starts=WARM_UP_STEPS,
            learning_rate=1e-3,
            batch_size=BATCH,
            tau=0.005,
            gamma=0.99,
            train_freq=1,
            gradient_steps=1,
            action_noise=NormalActionNoise(np.zeros(ACTION), np.full(ACTION, 0.1)),
            policy_kwargs={"net_arch": [UNITS, UNITS]},
            device="cpu",
        )
        seconds = sb3_seconds(model, steps)
        assert model._n_updates == steps
        return seconds

    return run


class PlainLearner:
    """DDPG's update as tutorials write it: modules, torch's Adam as it comes, a loop over the targets' parameters."""

    def __init__(self, learner: ddpg.Learner) -> None:
        self.actor, self.critic = copied(learner.actor.network), copied(learner.critic.network)
        self.target_actor, self.target_critic = copied(self.actor), copied(self.critic)
        self.actor_adam = torch.optim.Adam(self.actor.parameters(), 1e-3)
        self.critic_adam = torch.optim.Adam(self.critic.parameters(), 1e-3)

    def update(self, drawn: Batch) -> float:
        obs, action, reward, discount, next_obs = (
            torch.from_numpy(np.ascontiguousarray(array))
            for array in (drawn.obs, drawn.action, drawn.reward, drawn.discount, drawn.next_obs)
        )
        with torch.no_grad():
            target = reward + discount * self.target_critic(next_obs, self.target_actor(next_obs))
        critic_loss = F.mse_loss(self.critic(obs, action), target)
        self.critic_adam.zero_grad()
        critic_loss.backward()
        self.critic_adam.step()
        actor_loss = -self.critic(obs, self.actor(obs)).mean()
        self.actor_adam.zero_grad()
        actor_loss.backward()
        self.actor_adam.step()
        with torch.no_grad():
            for network, target_of in ((self.actor, self.target_actor), (self.critic, self.target_critic)):
                for ours, theirs in zip(network.parameters(), target_of.parameters(), strict=True):
                    theirs.mul_(0.995).add_(ours, alpha=0.005)
        return critic_loss.item()


def copied(network: torch.nn.Module) -> Any:
    """With memory of its own for each parameter."""
    made = copy.deepcopy(network)
    for parameter in made.parameters():
        parameter.data = parameter.data.clone()
        parameter.grad = None
    return made


def batch_of(generator: np.random.Generator) -> Batch:
    seen = generator.standard_normal((BATCH, 2, OBS)).astype(np.float32)
    return Batch(
        obs=seen[:, :1],
        action=generator.uniform(-1, 1, (BATCH, ACTION)).astype(np.float32),
        reward=generator.standard_normal(BATCH).astype(np.float32),
        discount=np.full(BATCH, 0.99, np.float32),
        next_obs=seen[:, 1:],
        index=np.zeros((BATCH, 2), np.int64),
        weight=np.ones(BATCH, np.float32),
    )


def learner_of(threads: int) -> ddpg.Learner:
    torch.set_num_threads(threads)
    return ddpg.Learner(resolved(config_of(1, threads, Path())), ACTOR, CRITIC)


def check_answer(threads: int) -> None:
    """From equal weights, on equal batches, our updates have the losses of the plain ones, and move what they move."""
    learner = learner_of(threads)
    plain = PlainLearner(learner)
    generator = np.random.default_rng(1)
    for _ in range(5):
        drawn = batch_of(generator)
        learner.update(drawn)
        assert learner.loss.item() == pytest.approx(plain.update(drawn), rel=1e-4)
    for mine, theirs in (
        (learner.actor, plain.actor),
        (learner.critic, plain.critic),
        (learner.target_actor, plain.target_actor),
        (learner.target_critic, plain.target_critic),
    ):
        for parameter, expected in zip(mine.network.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(parameter, expected, rtol=1e-2, atol=1e-4)


def matrix_products(updates: int, threads: int) -> Callable[[], None]:
    """The limit: as many multiplications as an update needs, and nothing else."""
    wide, weights, narrow, first = (torch.randn(s) for s in ((BATCH, UNITS), (UNITS, UNITS), (BATCH, 23), (UNITS, 23)))
    bias, of_weights, of_first = torch.zeros(UNITS), torch.empty(UNITS, UNITS), torch.empty(UNITS, 23)

    def run() -> None:
        torch.set_num_threads(threads)
        for _ in range(updates):
            for _ in range(5):  # forward
                affine(narrow, first, bias)
                affine(wide, weights, bias)
            for _ in range(2):  # backward with weights
                write_slope_of_weight(wide, wide, of_weights)
                slope_of_given(wide, weights)
                write_slope_of_weight(wide, narrow, of_first)
            slope_of_given(wide, weights)  # backward to the action
            slope_of_given(wide, first)

    return run


def threads_to_time() -> list[int]:
    return sorted({1, usable_cores()})


@pytest.mark.parametrize("threads", threads_to_time())
def test_training_steps(contest: Any, quick: bool, threads: int) -> None:
    steps, rounds = (50, 1) if quick else (400, 5)
    check_answer(threads)
    match = contest(f"ddpg halfcheetah, {in_threads(threads)}", "steps/s", steps, limit="products")
    others = {"products": matrix_products(steps, threads), **match.peers({"SB3": apart(sb3)}, steps, threads)}
    compare(match, ours(steps, threads), others, rounds)


@pytest.mark.parametrize("threads", threads_to_time())
def test_updates(contest: Any, quick: bool, threads: int) -> None:
    """Bare updates on one batch, beside the same in plain torch."""
    updates, rounds = (20, 2) if quick else (150, 9)
    check_answer(threads)
    learner = learner_of(threads)
    plain = PlainLearner(learner)
    drawn = batch_of(np.random.default_rng(0))

    def repeat(update: Callable[[Batch], Any]) -> Callable[[], None]:
        def run() -> None:
            torch.set_num_threads(threads)
            for _ in range(updates):
                update(drawn)

        return run

    made = contest(f"ddpg update, {in_threads(threads)}", "updates/s", updates, limit="products")
    others = {"products": matrix_products(updates, threads), "plain torch": repeat(plain.update)}
    made.run(repeat(learner.update), others, rounds)
