"""Steps a second of A2C beside Stable-Baselines3's, and of A3C over its workers, on the CPU.

Both train Breakout with the network of the paper, 16 games, rounds of 5 steps, fp32, the same rules of the game and as
many threads of torch. What is timed are whole rounds (act, emulate, learn), again and again with the same learner;
set-up is not. Stable-Baselines3 is timed with its games one after the other in its process, and, when not --quick, with
a process each. The limit is what a round cannot do without: the engine's calls for as many steps, in as many threads,
and then the multiplications of its network, at the rate of torch's own large products.

Scaling over workers is of whole trainings as the log has them, the first row (start-up) left out. One worker alone is
in the trainer's process, so that two may gain more or less than twice.
"""

from __future__ import annotations

import dataclasses
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import matrix_rate
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from apart import apart
from contest import side_by_side
from nearness import check_near

from fastrl import a3c
from fastrl.engine.budget import usable_cores
from fastrl.engine.played_envs import Played
from fastrl.engine.stage_times import BareEngine, play_in_turn
from fastrl.learn.flat import FlatNetwork
from fastrl.learn.hogwild import SharedParameters
from fastrl.learn.networks import build
from fastrl.runs import command_line
from fastrl.runs.asynchronous import make_envs
from fastrl.runs.metrics import read_metrics

ENV = "BreakoutNoFrameskip-v4"
GAMES, T_MAX = 16, 5
NETWORK: dict[str, Any] = {"kind": "actor_critic", "torso": "nature", "obs_shape": [4, 84, 84], "num_actions": 4}


def config_of(**changes: Any) -> a3c.Config:
    preset: a3c.Config = command_line.with_preset(a3c.TRAINER, "a2c")
    return dataclasses.replace(preset, **{"env": ENV, "workers": GAMES, "torch_threads": usable_cores(), **changes})


def worker_of(kind: type[a3c.Worker], config: a3c.Config, network: dict[str, Any], games: int) -> a3c.Worker:
    envs = make_envs(config, games, "bench", usable_cores())
    first = FlatNetwork(build(network, [0])).values
    shared = SharedParameters(first.numel(), 1)
    shared.values.copy_(first)
    shared.squares.fill_(config.rmsprop_first_squares)
    worker = kind(config, network, shared, 0, envs, "bench")
    worker.start(None)
    return worker


def ours(rounds: int, precision: str) -> Callable[[], None]:
    worker = worker_of(a3c.Worker, config_of(precision=precision), NETWORK, GAMES)

    def run() -> None:
        torch.set_num_threads(usable_cores())
        for _ in range(rounds):
            assert worker.round(0)[0] == GAMES * T_MAX

    return run


def sb3(rounds: int, *, processes: bool) -> Callable[[], None]:
    from stable_baselines3 import A2C
    from stable_baselines3.common.env_util import make_atari_env
    from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecFrameStack

    def one_game() -> gymnasium.Env[Any, Any]:
        import ale_py  # in a process of its own nobody else does, and without it the game is unknown

        gymnasium.register_envs(ale_py)
        return gymnasium.make(ENV)

    kind = SubprocVecEnv if processes else DummyVecEnv
    env = VecFrameStack(make_atari_env(one_game, n_envs=GAMES, seed=0, vec_env_cls=kind), 4)
    model = A2C("CnnPolicy", env, n_steps=T_MAX, ent_coef=0.01, vf_coef=0.25, device="cpu", seed=0)

    def run() -> None:
        torch.set_num_threads(usable_cores())
        done = model.num_timesteps
        model.learn(rounds * GAMES * T_MAX, log_interval=10**9, reset_num_timesteps=False)
        assert model.num_timesteps - done == rounds * GAMES * T_MAX

    return run


def unavoidable(rounds: int, precision: str) -> Callable[[], None]:
    """The limit: the engine's calls, then the multiplications of acting, of the last value and of the way back."""
    actions = np.random.default_rng(0).integers(NETWORK["num_actions"], size=(GAMES, rounds * T_MAX, 1)).tolist()
    engines = [BareEngine(ENV, "sb3", game, rows) for game, rows in enumerate(actions)]
    heads = NETWORK["num_actions"] + 1
    each = (T_MAX + 1) * matrix_rate.forward(GAMES, heads) + matrix_rate.backward(GAMES * T_MAX, heads)
    multiply = matrix_rate.multiplying(each, precision)

    def run() -> None:
        torch.set_num_threads(usable_cores())
        for _ in range(rounds):
            side_by_side(lambda share: play_in_turn(engines[share], T_MAX), usable_cores())
            multiply()

    return run


class Remembering(a3c.Worker):
    """Keeps what a round saw, did and got."""

    def look(self, obs: Sequence[torch.Tensor], actions: Sequence[np.ndarray]) -> None:
        self.seen, self.chosen = [each.clone() for each in obs], np.stack(actions)

    def _targets(self, played: list[Played]) -> torch.Tensor:
        self.played, self.last_obs = played, torch.from_numpy(self.obs.copy())
        return super()._targets(played)


def check_round(config: a3c.Config, network: dict[str, Any], games: int) -> None:
    """The gradient of a round, and where it moves the weights, are autograd's of A3C's formula, in plain fp32."""
    worker = worker_of(Remembering, config, network, games)
    plain = build(network, [0])  # the worker's first weights
    before, squares = worker.shared.values.clone(), worker.shared.squares.clone()
    assert worker.round(0)[0] == games * config.t_max

    rewards = torch.from_numpy(np.stack([one.reward for one in worker.played]))
    going_on = torch.from_numpy(np.stack([~(one.terminated | one.truncated) for one in worker.played])).float()
    logits, values = plain(torch.cat(worker.seen))
    logits, values = logits.view(*rewards.shape, -1), values.view(rewards.shape)
    with torch.no_grad():
        following = plain(worker.last_obs)[1]
    loss = torch.zeros(())
    for step in reversed(range(config.t_max)):
        following = rewards[step] + config.discount * going_on[step] * following
        policy = torch.distributions.Categorical(logits=logits[step])
        advantage = following - values[step]
        gain = policy.log_prob(torch.from_numpy(worker.chosen[step])) * advantage.detach()
        gain = gain + config.entropy_weight * policy.entropy()
        loss = loss + (config.value_weight * 0.5 * advantage.square() - gain).mean()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(plain.parameters(), config.max_gradient_norm)
    ours = [parameter.grad for parameter in worker.local.network.parameters()]
    check_near(ours, [parameter.grad for parameter in plain.parameters()], config.precision)

    slope, decay = worker.local.gradient, config.rmsprop_decay
    step = slope / (decay * squares + (1 - decay) * slope.square() + config.rmsprop_epsilon).sqrt()
    moved = before - config.learning_rate_at(0) * step
    torch.testing.assert_close(worker.shared.values, moved, rtol=1e-5, atol=1e-7)
    worker.envs.close()


def check_against_sb3() -> None:
    """On the same rollout, our loss and its slopes are those of Stable-Baselines3's A2C, times the steps of a round."""
    from gymnasium import spaces
    from stable_baselines3.common.buffers import RolloutBuffer

    generator = np.random.default_rng(0)
    config = config_of()
    reward = generator.choice(np.float32([-1, 0, 1]), (T_MAX, GAMES))
    over = generator.random((T_MAX, GAMES)) < 0.2
    actions = generator.integers(4, size=(T_MAX, GAMES))
    logits = torch.from_numpy(generator.normal(size=(T_MAX, GAMES, 4)).astype(np.float32)).requires_grad_()
    values = torch.from_numpy(generator.normal(size=(T_MAX, GAMES)).astype(np.float32)).requires_grad_()
    last = torch.from_numpy(generator.normal(size=GAMES).astype(np.float32))

    box = spaces.Box(0, 1, (1,))
    buffer = RolloutBuffer(T_MAX, box, spaces.Discrete(4), "cpu", gae_lambda=1.0, gamma=0.99, n_envs=GAMES)
    began = np.zeros(GAMES)
    for step in range(T_MAX):
        shown, row = np.zeros((GAMES, 1)), values[step].detach()
        buffer.add(shown, actions[step][:, None], reward[step], began, row, torch.zeros(GAMES))
        began = over[step].astype(np.float64)
    buffer.compute_returns_and_advantage(last, over[-1].astype(np.float64))
    going_on = torch.from_numpy(1 - over.astype(np.float32))
    target = a3c.returns(torch.from_numpy(reward), going_on, last, config.discount)
    np.testing.assert_allclose(target.numpy(), buffer.returns, atol=1e-5)

    distribution = torch.distributions.Categorical(logits=logits)
    advantages = torch.from_numpy(buffer.advantages)
    policy_loss = -(advantages * distribution.log_prob(torch.from_numpy(actions))).mean()
    value_loss = F.mse_loss(torch.from_numpy(buffer.returns), values)
    theirs = policy_loss - 0.01 * distribution.entropy().mean() + 0.25 * value_loss
    policy, value, entropy = a3c.losses(logits, values, torch.from_numpy(actions), target)
    per_step = policy + config.value_weight * value - config.entropy_weight * entropy
    loss = per_step.sum(0).mean()
    torch.testing.assert_close(loss, T_MAX * theirs, rtol=1e-5, atol=1e-6)
    slopes = torch.autograd.grad(loss, (logits, values))
    for mine, other in zip(slopes, torch.autograd.grad(T_MAX * theirs, (logits, values)), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a2c_steps(contest: Any, quick: bool, precision: str) -> None:
    rounds, times = (2, 1) if quick else (15, 7)
    check_round(config_of(precision=precision), NETWORK, GAMES)
    matrix_rate.check_count()
    made = contest(
        f"a2c breakout, {GAMES} games, {precision}", "steps/s", rounds * GAMES * T_MAX, limit="act, matrix rate"
    )

    def in_one_process(rounds: int) -> Callable[[], None]:
        check_against_sb3()
        return apart(sb3)(rounds, processes=False)

    makers = {"SB3": in_one_process}
    if not quick:
        makers["SB3 processes"] = lambda rounds: apart(sb3)(rounds, processes=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the peer's
        others = {"act, matrix rate": unavoidable(rounds, precision), **made.peers(makers, rounds)}
        made.run(ours(rounds, precision), others, times)


def trained(workers: int, steps: int) -> Callable[[], float]:
    """Seconds for ``steps`` steps of a training of the paper's A3C, as its log has them."""

    def run() -> float:
        with tempfile.TemporaryDirectory() as folder:
            preset: a3c.Config = command_line.with_preset(a3c.TRAINER, "paper")
            session = a3c.train(
                dataclasses.replace(
                    preset, env=ENV, workers=workers, steps=2 * steps, log_every_steps=steps, evaluate_every_steps=0,
                    checkpoint_every_minutes=0.0, tensorboard=False, threads=1, torch_threads=1, runs=Path(folder),
                )
            )  # fmt: skip
            assert session.steps >= 2 * steps
            # Every round was applied; t_max steps of one game are the most that one has (a pause ends it sooner).
            assert session.updates * preset.t_max >= session.steps
            return float(steps / read_metrics(session.run.metrics_file)["steps_per_s"][-1])

    return run


def test_scaling_over_workers(contest: Any, quick: bool) -> None:
    steps, times = (300, 1) if quick else (2_500, 3)
    if usable_cores() < 2:
        pytest.skip("one core: workers would take turns")
    paper = dataclasses.replace(command_line.with_preset(a3c.TRAINER, "paper"), env=ENV, torch_threads=1)
    network = {**NETWORK, "torso": paper.network}
    check_round(paper, network, 1)
    made = contest("a3c breakout, 2 workers", "steps/s", steps)
    made.run(trained(2, steps), {"1 worker": trained(1, steps)}, times)
