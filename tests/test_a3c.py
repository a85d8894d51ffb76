"""A3C's rule by hand-worked numbers, its rounds with scripted games, and whole runs, alone and with workers."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import golden_updates
import numpy as np
import pytest
import small_envs  # noqa: F401  registers them
import tiny_training
import torch
from scripted_envs import ScriptedEnvs, played, random_games, rows, two_games

from fastrl import a3c
from fastrl.learn.flat import FlatNetwork, clip_norm
from fastrl.learn.hogwild import SharedParameters, SharedRMSProp
from fastrl.learn.networks import build, named_factory
from fastrl.learn.passes import Traced
from fastrl.runs.asynchronous import make_envs
from fastrl.runs.checkpoint import CheckpointStore
from fastrl.runs.session import Session
from fastrl.runs.traps import NonFiniteLoss

TINY: dict[str, Any] = {
    **tiny_training.TINY_PONG,
    "workers": 2,
    "sync": True,
    "steps": 400,
    "log_every_steps": 100,
}
preset = functools.partial(tiny_training.preset, a3c.TRAINER)
pytestmark = pytest.mark.usefixtures("digest_at_end")


# ---- the rule


def require_returns(returns: Callable[..., torch.Tensor]) -> None:
    """Worked by hand with gamma 0.5: three games; the first goes on, the second ends, the third is cut."""
    reward = torch.tensor([[1.0, 1.0, 1.0], [2.0, 2.0, 2.0], [0.0, 0.0, 0.0], [-1.0, -1.0, -1.0]])
    going_on = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0], [1.0, 1.0, 1.0], [1.0, 1.0, 1.0]])
    cut = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 6.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    last = torch.tensor([8.0, 8.0, 4.0])
    # Back from the end: -1 + 4 = 3, 0 + 1.5, 2 + 0.75, 1 + 1.375; at the end 2 and 1 + 1; at the cut 2 + 3 and 1 + 2.5.
    expected = [[2.375, 2.0, 3.5], [2.75, 2.0, 5.0], [1.5, 1.5, 0.5], [3.0, 3.0, 1.0]]
    assert returns(reward, going_on, last, 0.5, cut).tolist() == expected


def test_returns_are_as_worked_by_hand() -> None:
    require_returns(a3c.returns)


def through_ends(reward: Any, going_on: Any, last: Any, discount: float, cut: Any) -> Any:
    return a3c.returns(reward, torch.ones_like(going_on), last, discount, cut)


def nothing_after_a_cut(reward: Any, going_on: Any, last: Any, discount: float, cut: Any) -> Any:
    return a3c.returns(reward, going_on, last, discount)


def one_reward_late(reward: Any, going_on: Any, last: Any, discount: float, cut: Any) -> Any:
    return a3c.returns(torch.cat([reward[1:], last[None]]), going_on, last, discount, cut)


def value_not_discounted(reward: Any, going_on: Any, last: Any, discount: float, cut: Any) -> Any:
    return a3c.returns(reward, going_on, last / discount, discount, cut)


@pytest.mark.parametrize("mistake", [through_ends, nothing_after_a_cut, one_reward_late, value_not_discounted])
def test_the_test_of_returns_finds_a_planted_mistake(mistake: Callable[..., torch.Tensor]) -> None:
    with pytest.raises(AssertionError):
        require_returns(mistake)


def require_gradient(losses: Callable[..., tuple[torch.Tensor, torch.Tensor, torch.Tensor]]) -> None:
    """Worked by hand: probabilities 1/4 and 3/4, the second action, R = 2, V = 0.5."""
    logits = torch.tensor([[0.0, math.log(3)]], dtype=torch.float64, requires_grad=True)
    values = torch.tensor([0.5], dtype=torch.float64, requires_grad=True)
    target = torch.tensor([2.0], dtype=torch.float64)
    policy, value, entropy = losses(logits, values, torch.tensor([1]), target)

    h = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert policy.tolist() == pytest.approx([-math.log(0.75) * 1.5])
    assert value.tolist() == pytest.approx([1.125])
    assert entropy.tolist() == pytest.approx([h])

    (policy + 0.5 * value - 0.1 * entropy).sum().backward()
    assert logits.grad is not None
    assert values.grad is not None
    # d(-log pi_1 * 1.5)/dz = 1.5 (p - onehot); dH/dz = -p (log p + H).
    slope = [1.5 * 0.25, 1.5 * (0.75 - 1)]
    spread = [0.1 * p * (math.log(p) + h) for p in (0.25, 0.75)]
    assert logits.grad[0].tolist() == pytest.approx([slope[0] + spread[0], slope[1] + spread[1]])
    assert values.grad.tolist() == pytest.approx([0.5 * (0.5 - 2)])  # none of it from the policy's loss


def test_losses_and_their_slopes_are_as_worked_by_hand() -> None:
    require_gradient(a3c.losses)


def flipped_entropy(*given: Any) -> Any:
    policy, value, entropy = a3c.losses(*given)
    return policy, value, -entropy


def flipped_advantage(*given: Any) -> Any:
    policy, value, entropy = a3c.losses(*given)
    return -policy, value, entropy


def value_learns_from_the_policy(logits: Any, values: Any, actions: Any, target: Any) -> Any:
    _, value, entropy = a3c.losses(logits, values, actions, target)
    return -torch.log_softmax(logits, -1)[0, actions] * (target - values), value, entropy


@pytest.mark.parametrize("mistake", [flipped_entropy, flipped_advantage, value_learns_from_the_policy])
def test_the_test_of_losses_finds_a_planted_mistake(mistake: Callable[..., Any]) -> None:
    with pytest.raises(AssertionError):
        require_gradient(mistake)


def test_actions_are_drawn_by_their_probabilities_one_number_a_row() -> None:
    logits = torch.log(torch.tensor([[0.2, 0.0, 0.5, 0.3]])).expand(20_000, 4)
    drawn = a3c.sample(logits, np.random.default_rng(3))
    frequency = np.bincount(drawn, minlength=4) / 20_000

    assert frequency[1] == 0
    np.testing.assert_allclose(frequency, [0.2, 0, 0.5, 0.3], atol=0.015)
    used, same = np.random.default_rng(3), np.random.default_rng(3)
    assert a3c.sample(logits[:7], used).tolist() == drawn[:7].tolist()
    same.random(7)
    assert used.random() == same.random()


# ---- a round


class Given(torch.nn.Module):
    """What a test wants to see for each observation, which is a row's number: logits and a value."""

    def __init__(self, description: dict[str, Any]) -> None:
        super().__init__()
        self.logits = torch.nn.Parameter(torch.zeros(20, description["num_actions"]))
        self.values = torch.nn.Parameter(torch.arange(20.0))

    def forward(self, obs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        row = obs.flatten(1)[:, 0].long()
        return self.logits[row], self.values[row]


def given(description: dict[str, Any]) -> torch.nn.Module:
    return Given(description)


GIVEN = {"kind": "actor_critic", "factory": "test_a3c:given", "torso": "own", "obs_shape": [1, 1], "num_actions": 2}


def a_worker(config: a3c.Config, envs: Any, network: dict[str, Any] = GIVEN) -> a3c.Worker:
    config = dataclasses.replace(config, network=network.get("factory", config.network))
    first = FlatNetwork(build(network, [1], named_factory(config.network))).values
    shared = SharedParameters(first.numel(), 1)
    shared.values.copy_(first)
    worker = a3c.Worker(config, network, shared, 0, envs, "test")
    worker.start(None)
    return worker


def test_a_round_moves_the_values_as_worked_by_hand() -> None:
    config = preset(
        "paper", workers=1, envs_per_worker=2, t_max=3, discount=0.5, learning_rate=0.1, learning_rate_steps=1000,
        rmsprop_decay=0.0, rmsprop_epsilon=1e-12, entropy_weight=0.0, value_weight=2.0, max_gradient_norm=0.0,
    )  # fmt: skip
    envs = two_games()
    worker = a_worker(config, envs)
    seen: list[torch.Tensor] = []
    apply = worker.optimiser.apply
    worker.optimiser.apply = lambda gradient, rate: (seen.append(gradient.clone()), apply(gradient, rate))  # type: ignore[func-returns-value, assignment, method-assign, return-value]

    steps, games, sums = worker.round(500)

    # V(s) = s. Returns back from V(7) = 7 and V(8) = 8: 1 + 3.5, 0, 1 + 0; -1 + 4, 1 + 9/2, 0 + 5.5/2.
    target = {1: 1.0, 2: 0.0, 3: 4.5, 4: 2.75, 5: 5.5, 6: 3.0}
    value_slope = seen[0][-20:]
    for state in range(20):
        # Halved squares, times w = 2; the mean over two games, not over steps.
        expected = (state - target[state]) * 2 / 2 if state in target else 0
        assert value_slope[state].item() == pytest.approx(expected)
    assert (steps, games) == (6, [])
    # Decay 0 makes each step the rate times the sign: half of 0.1, halfway through.
    moved = worker.shared.values[-20:] - torch.arange(20.0)
    signs = [0, 0 if target[1] == 1 else 1, -1, 1, -1, 1, -1, *[0] * 13]
    np.testing.assert_allclose(moved.numpy(), 0.05 * np.array(signs), atol=1e-6)
    logits = torch.zeros(20, 2)
    for step, actions in enumerate(envs.actions):
        for env, action in enumerate(actions):
            state = [(1, 4), (2, 5), (3, 6)][step][env]
            advantage = target[state] - state
            logits[state] = advantage / 2 * (torch.tensor([0.5, 0.5]) - torch.eye(2)[action])
    np.testing.assert_allclose(seen[0][:40].view(20, 2).numpy(), logits.numpy(), atol=1e-6)
    assert sums[1] == pytest.approx(np.mean([(s - t) ** 2 / 2 for s, t in target.items()]))
    assert sums[2] == pytest.approx(math.log(2))
    assert sums[4] == pytest.approx(3.5)


def test_the_gradient_is_clipped_and_what_is_not_finite_is_not_applied() -> None:
    config = preset("paper", workers=1, envs_per_worker=2, t_max=3, max_gradient_norm=0.5)
    worker = a_worker(config, two_games())
    norms: list[float] = []
    worker.optimiser.apply = lambda gradient, rate: norms.append(float(gradient.norm()))  # type: ignore[method-assign]
    told = worker.round(0)[2][3]
    assert told > 0.5  # what it was
    assert norms == pytest.approx([0.5])

    worker = a_worker(config, two_games())
    worker.shared.values[-20] = float("nan")
    worker.envs.steps[0].obs[:] = 0  # type: ignore[union-attr]
    with pytest.raises(NonFiniteLoss, match="the gradient is nan after 0 steps"):
        worker.round(0)
    assert worker.shared.applied() == 0


def test_whole_episodes_end_a_round_and_so_does_a_wished_pause() -> None:
    config = preset("paper", workers=1, t_max=0)
    steps = [played(rows(2), [1]), played(rows(3), [0], terminated=[0]), played(rows(4), [0])]
    assert a_worker(config, ScriptedEnvs(rows(1), steps, 2)).round(0)[0] == 2
    hurried = a_worker(config, ScriptedEnvs(rows(1), steps, 2))
    hurried.hurried = lambda: True
    assert hurried.round(0)[0] == 1


def test_whole_episodes_are_of_one_game_at_a_time() -> None:
    with pytest.raises(ValueError, match=r"t_max: 0 stands for .* would have 2 games; give --envs-per-worker 1, or"):
        preset("paper", workers=1, envs_per_worker=2, t_max=0)
    with pytest.raises(ValueError, match=r"would have 3 games; give --no-sync, --envs-per-worker 1, or t_max of at"):
        preset("paper", workers=3, sync=True, t_max=0)
    assert preset("paper", workers=3, t_max=0).steps_per_round == 0


def test_a_network_of_the_users_own_is_asked_as_it_is() -> None:
    config = preset("paper", workers=1, envs_per_worker=2)
    network = {
        "kind": "actor_critic", "factory": "own_network:from_our_actor_critic", "torso": "own", "obs_shape": [1, 4],
        "hidden_units": [5], "num_actions": 3,
    }  # fmt: skip
    worker = a_worker(config, random_games(3, 2, (1, 4), 3, seed=0), network)
    obs = torch.randn(6, 1, 4)
    logits, values = worker.local.network(obs)

    assert torch.equal(worker.way.look(obs), torch.cat([logits, values[:, None]], 1))
    assert float(values.detach().mean()) > 900


@pytest.mark.parametrize("envs", [1, 2])
def test_a_round_is_learned_from_alike_by_hand_and_by_autograd(envs: int) -> None:
    moved = []
    for traced in (True, False):
        config = preset("paper", workers=1, envs_per_worker=envs)
        network = {"kind": "actor_critic", "torso": "a3c", "obs_shape": [4, 84, 84], "num_actions": 6}
        worker = a_worker(config, random_games(10, envs, (4, 84, 84), 6, seed=5), network)
        if traced:  # as a user's own network
            worker.way = Traced(worker.local)
        began = worker.shared.values.clone()
        worker.round(0)
        worker.round(5)
        moved.append(worker.shared.values - began)
    assert float((moved[0] - moved[1]).norm() / moved[0].norm()) < 1e-4


def movement(config: a3c.Config) -> np.ndarray:
    network = {"kind": "actor_critic", "torso": "a3c", "obs_shape": [4, 84, 84], "num_actions": 6}
    envs = random_games(golden_updates.UPDATES * config.t_max, config.envs_per_worker, (4, 84, 84), 6, seed=1)
    return golden_updates.movement_by_rounds(a_worker(config, envs, network))


# Small rates: what rounding differs between processors then stays small over a hundred updates.
GOLDEN_CONFIGS = {
    "paper": {"workers": 1, "envs_per_worker": 2, "learning_rate": 2e-5, "learning_rate_steps": 4000},
    "a2c": {"workers": 1, "envs_per_worker": 8, "t_max": 2, "network": "a3c", "learning_rate": 1e-6},
}


@pytest.mark.parametrize("name", GOLDEN_CONFIGS)
def test_a_hundred_updates_move_the_weights_as_they_always_did(name: str) -> None:
    config = preset(name, **GOLDEN_CONFIGS[name])
    golden_updates.require_golden("a3c", name, movement, config, "learning_rate")


# ---- settings


def test_the_rate_falls_to_nothing_in_paper_and_stays_in_a2c() -> None:
    paper, a2c = preset("paper"), preset("a2c")

    assert paper.learning_rate_at(0) == 0.0007
    assert paper.learning_rate_at(20_000_000) == pytest.approx(0.000525)
    assert paper.learning_rate_at(90_000_000) == 0
    assert a2c.learning_rate_at(9_000_000) == 0.0007


def sizes_of(weights: list[torch.Tensor]) -> list[tuple[float, float]]:
    """The least and the largest factor by which each matrix changes a vector's length."""
    values = [torch.linalg.svdvals(weight.detach().flatten(1)) for weight in weights]
    return [(float(each.min()), float(each.max())) for each in values]


def first_checkpoint(config: a3c.Config) -> dict[str, torch.Tensor]:
    """The tensors of a run whose rate is 0."""
    saved = CheckpointStore(a3c.train(config).run.path / "checkpoints").load(print)
    assert saved is not None
    return saved.tensors


def test_the_first_weights_of_a2c_are_as_those_of_stable_baselines3(tmp_path: Path) -> None:
    from gymnasium import spaces
    from stable_baselines3.common.policies import ActorCriticCnnPolicy

    box, discrete = spaces.Box(0, 255, (4, 84, 84), np.uint8), spaces.Discrete(6)
    theirs = ActorCriticCnnPolicy(box, discrete, lambda _: 0.0)
    expected = [layer.weight for layer in theirs.modules() if isinstance(layer, (torch.nn.Conv2d, torch.nn.Linear))]
    tiny = {**tiny_training.TINY_PONG, "network": "nature", "steps": 5, "envs_per_worker": 1, "workers": 1}
    config = preset("a2c", **{**tiny, "runs": tmp_path, "name": "run", "learning_rate": 0.0})
    ours = {name: tensor for name, tensor in first_checkpoint(config).items() if name.startswith("policy.")}
    weights = [tensor for name, tensor in ours.items() if name.endswith("weight")]
    for each in (weights, expected):
        each.sort(key=torch.Tensor.numel)
    assert [weight.shape for weight in weights] == [weight.shape for weight in expected]
    np.testing.assert_allclose(sizes_of(weights), sizes_of(expected), rtol=1e-3)
    assert not any(tensor.any() for name, tensor in ours.items() if name.endswith("bias"))

    plain = first_checkpoint(dataclasses.replace(config, name="plain", orthogonal=False))
    assert all(tensor.any() for name, tensor in plain.items() if name.endswith("bias"))


def test_the_optimiser_of_a2c_is_that_of_stable_baselines3_for_gradients_five_times_as_long(tmp_path: Path) -> None:
    """Their loss is the mean over the five steps of a round, ours the sum."""
    from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike

    tiny = {**tiny_training.TINY_PONG, "steps": 5, "envs_per_worker": 1, "workers": 1}
    config = preset("a2c", **{**tiny, "runs": tmp_path, "name": "run", "learning_rate": 0.0})
    squares = first_checkpoint(config)["shared.squares"]
    assert squares.min() == pytest.approx(25 * 0.99, rel=1e-3)  # a round's gradient is small beside it

    rate = preset("a2c").learning_rate
    parameter = torch.nn.Parameter(torch.zeros(1000))
    theirs = RMSpropTFLike([parameter], lr=rate, alpha=0.99, eps=1e-5)
    moved = []
    for epsilon in (config.rmsprop_epsilon, 1e-5):  # the second is a mistake, to be seen
        shared = SharedParameters(1000, 1)
        shared.squares.fill_(config.rmsprop_first_squares)
        moved.append((shared, SharedRMSProp(shared, 0, config.rmsprop_decay, epsilon)))
    generator = torch.Generator().manual_seed(0)
    for _ in range(2_000):  # so many that the first squares are forgotten
        gradient = torch.randn(1000, generator=generator)
        parameter.grad = gradient.clone()
        torch.nn.utils.clip_grad_norm_([parameter], 0.5)
        theirs.step()
        five = 5 * gradient
        clip_norm(five, config.max_gradient_norm)
        for _, ours in moved:
            ours.apply(five, rate)
    expected = parameter.detach()
    right, wrong = (float((shared.values - expected).norm() / expected.norm()) for shared, _ in moved)
    assert right < 1e-4
    assert wrong > 1e-2


@pytest.mark.parametrize("name", a3c.PRESETS)
def test_presets_are_whole_configurations(name: str) -> None:
    tiny_training.require_whole_configuration(preset(name), name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"workers": 0}, "workers: 0 is not a whole number"),
        ({"t_max": -1}, "t_max: -1 is not a whole number"),
        ({"entropy_weight": -0.1}, "entropy_weight: -0.1 is outside"),
        ({"rmsprop_epsilon": 0}, "rmsprop_epsilon: 0 would divide 0 by 0"),
        ({"rmsprop_decay": 1.5}, "rmsprop_decay: 1.5 is outside"),
        ({"rmsprop_first_squares": -1}, "rmsprop_first_squares: -1 is outside"),
        ({"max_gradient_norm": float("nan")}, "max_gradient_norm: nan is outside"),
        ({"workers": 4, "deterministic": True}, "deterministic: 4 workers apply their gradients in the order"),
    ],
)
def test_what_cannot_be_meant_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        preset("paper", **change)


# ---- whole runs


def run(tmp_path: Path, name: str, /, resume: str | None = None, **changes: Any) -> Session:
    config = preset("paper", **{**TINY, "runs": tmp_path, "name": name, **changes})
    return a3c.train(config, resume_run=tmp_path / resume if resume else None)


@pytest.mark.parametrize("alone", [{"workers": 1, "sync": False}, {"envs_per_worker": 2}], ids=["one worker", "sync"])
def test_equal_seeds_give_equal_runs_however_they_are_cut(
    tmp_path: Path, alone: dict[str, Any], session_seed: int
) -> None:
    whole = run(tmp_path, "whole", **alone)
    again = run(tmp_path, "again", threads=2, **alone)
    cut = int(np.random.default_rng(session_seed).integers(1, 20)) * 20
    run(tmp_path, "cut", **{**alone, "steps": cut})
    resumed = run(tmp_path, "cut", resume="cut", **alone)
    other = run(tmp_path, "other", seed=1, **{**alone, "steps": 100})

    assert whole.final_digest == again.final_digest
    assert whole.final_digest == resumed.final_digest, f"cut at {cut} steps"
    assert other.final_digest != run(tmp_path, "short", **{**alone, "steps": 100}).final_digest
    assert whole.steps == 400
    assert whole.updates == 400 / (5 * whole.policy["network"].get("envs", 1) * (1 if alone.get("workers") else 4))
    assert whole.run.description["config"]["deterministic"] is True


def test_variants_train(tmp_path: Path) -> None:
    for name, changes in {
        "bf16": {"precision": "bf16", "network": "nature"},
        "own": {"network": "own_network:tiny_actor_critic"},
    }.items():
        session = run(tmp_path, name, **{"steps": 100, **changes})
        table = (tmp_path / name / "metrics.csv").read_text().splitlines()
        row = dict(zip(table[0].split(","), table[1].split(","), strict=True))
        assert session.updates == 10
        assert all(math.isfinite(float(row[c])) for c in ("policy_loss", "value_loss", "entropy", "param_norm"))


def test_cartpole_is_learned_in_seconds(tmp_path: Path) -> None:
    session = a3c.train(
        preset("classic", runs=tmp_path, name="cartpole", steps=50_000, evaluate_every_steps=0, tensorboard=False)
    )

    # A random policy gets 22.
    assert session.games.mean_return is not None
    assert session.games.mean_return > 100
    assert session.run.finished


def test_what_cannot_be_trained_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="neither an Atari game nor an env of Gymnasium"):
        run(tmp_path, "a", env="BreakotNoFrameskip-v4")
    with pytest.raises(ValueError, match="has actions Box"):
        run(tmp_path, "b", env="Pendulum-v1", network="mlp")
    with pytest.raises(ValueError, match=r"network: own_network:normed has buffers \(running_mean"):
        run(tmp_path, "c", network="own_network:normed")
    with pytest.raises(ValueError, match=r"says \(\(2, 6\), \(2, 1\)\) of .* and should say \(\(2, 6\), \(2,\)\)"):
        run(tmp_path, "c", network="own_network:values_in_a_column")
    with pytest.raises(ValueError, match=r"says \(2, 6\) of .* each action's logit and, beside it, one value"):
        run(tmp_path, "c", network="own_network:tiny")
    with pytest.raises(ValueError, match="device: 'cuda' was asked for, but torch finds no GPU here"):
        run(tmp_path, "d", device="cuda")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("what", ["reward", "observation", "overflow"])
def test_an_env_that_gives_no_number_is_named(tmp_path: Path, what: str) -> None:
    with pytest.raises(ValueError, match=rf"step: test/SpoiltChoice-{what}-v0 gave env 0 an? (reward|observation) of"):
        run(tmp_path, "spoilt", env=f"test/SpoiltChoice-{what}-v0", network="mlp")


def test_an_env_that_raises_is_named_below_its_traceback(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="out of order") as raised:
        run(tmp_path, "raises", env="test/SpoiltChoice-error-v0", network="mlp")
    assert raised.value.__notes__ == ["(raised by test/SpoiltChoice-error-v0, an env that fastrl only steps)"]


def test_games_are_saved_as_bytes_beside_small_states(tmp_path: Path) -> None:
    session = run(tmp_path, "run", steps=40)
    saved = session.store.load(print)
    assert saved is not None
    assert [worker["state"]["envs"] for worker in saved.state["trainer"]["workers"]] == [2]
    assert {"env.0", "env.1"} <= saved.tensors.keys()
    assert len(json.dumps(saved.state)) < 20_000


def test_envs_that_cannot_be_saved_go_on_with_other_episodes() -> None:
    def first(env: str, steps_before: int) -> np.ndarray:
        envs = make_envs(preset("paper", env=env), 1, "x", 1, steps_before)
        shown = envs.start().copy()
        envs.close()
        return shown

    assert np.array_equal(first("CartPole-v1", 0), first("CartPole-v1", 0))
    assert not np.array_equal(first("CartPole-v1", 0), first("CartPole-v1", 70))
    assert np.array_equal(first("PongNoFrameskip-v4", 0), first("PongNoFrameskip-v4", 70))  # is loaded


def test_rewards_are_as_asked_for(tmp_path: Path) -> None:
    def largest(reward: Any) -> float:
        envs = make_envs(preset("paper", env="SpaceInvadersNoFrameskip-v4", reward=reward), 4, "x", 1)
        envs.start()
        actions = np.arange(400 * 4).reshape(400, 4) // 7 % envs.num_actions
        most = max(float(envs.step(row).reward.max()) for row in actions)
        envs.close()
        return most

    assert [largest(reward) for reward in (None, "sign", "clipped")] == [1, 1, 1]
    assert largest("raw") >= 5
    with pytest.raises(ValueError, match="reward: 'raw' is a rule of Atari games, and CartPole-v1 is none; leave it"):
        run(tmp_path, "cartpole", env="CartPole-v1", network="mlp", reward="raw")


def test_verify_resume_says_that_many_workers_have_nothing_to_prove(capsys: Any) -> None:
    with pytest.raises(SystemExit) as ended:
        a3c.main(["--workers", "2", "--verify-resume", "100"])
    assert "verify-resume: there is nothing to prove: 2 workers apply their gradients in the order" in str(ended.value)
    with pytest.raises(SystemExit) as ended:
        a3c.main(["--workers", "1", "--t-max", "0", "--verify-resume", "100"])
    assert "verify-resume: rounds of whole episodes end nobody knows when" in str(ended.value)
    with pytest.raises(SystemExit) as ended:
        a3c.main(["--workers", "1", "--verify-resume", "-5"])
    assert "verify-resume: -5 is outside [1, ...]" in str(ended.value)
    assert preset("paper").steps_per_round == 5
    assert preset("classic").steps_per_round == 8 * 8


# ---- worker processes


NEW = shlex.split(
    "--env PongNoFrameskip-v4 --workers 2 --threads 1 --evaluate-every-steps 0 --log-every-steps 100 "
    "--checkpoint-every-minutes 0 --checkpoint-every-steps 300 --no-tensorboard --name run"
)


class Trainer:
    """A trainer as a user starts it."""

    def __init__(self, runs: Path, *more: str) -> None:
        self.path, self.said = runs / "run", runs / "said.txt"
        self.file = open(self.said, "a")  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, "-m", "fastrl.a3c", *(() if "--resume" in more else NEW), *more],
            stdout=self.file, stderr=subprocess.STDOUT, cwd=runs, env=self.env(),
        )  # fmt: skip

    @staticmethod
    def env() -> dict[str, str]:
        here = Path(__file__).parent
        return {**os.environ, "PYTHONPATH": f"{here}:{here.parent}:{os.environ.get('PYTHONPATH', '')}"}

    def workers(self) -> list[int]:
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == self.process.pid:
                found.append(int(stat.parent.name))
        return sorted(found)

    def rows(self) -> list[dict[str, str]]:
        file = self.path / "metrics.csv"
        text = file.read_text() if file.exists() else ""
        lines = text[: text.rfind("\n") + 1].splitlines()  # the last line may be half written
        return [dict(zip(lines[0].split(","), line.split(","), strict=True)) for line in lines[1:]]

    def until(self, condition: Callable[[], Any]) -> None:
        end = time.monotonic() + 90
        while not condition():
            assert self.process.poll() is None, self.said.read_text()
            if time.monotonic() > end:
                self.process.kill()
                pytest.fail(self.said.read_text())
            time.sleep(0.05)

    def ended(self) -> int:
        try:
            return self.process.wait(90)
        finally:
            self.process.kill()
            self.file.close()


def test_workers_are_replaced_and_stopped_and_go_on(tmp_path: Path) -> None:
    trainer = Trainer(tmp_path, "--runs", str(tmp_path), "--steps", "1000000")
    trainer.until(trainer.rows)
    first = trainer.workers()
    assert len(first) == 2
    os.kill(first[1], signal.SIGKILL)
    trainer.until(lambda: trainer.rows()[-1]["worker_deaths"] == "1" and len(trainer.workers()) == 2)
    steps = int(trainer.rows()[-1]["steps"])
    trainer.until(lambda: int(trainer.rows()[-1]["steps"]) > steps + 200)
    workers = trainer.workers()
    trainer.process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    code = trainer.ended()
    took_s = time.monotonic() - began

    said = trainer.said.read_text()
    assert code == 143, said
    assert took_s < 5
    assert "worker 1 ended (signal 9); another takes its place, with new games" in said
    assert len(re.findall("workers on .* usable cores", said)) == (len(os.sched_getaffinity(0)) < 2)
    for pid in {*first, *workers}:
        assert not Path(f"/proc/{pid}").exists()
    saved = CheckpointStore(trainer.path / "checkpoints").load(print)
    assert saved is not None
    state = saved.state["trainer"]
    assert saved.steps == saved.state["session"]["steps"]
    assert state["counts"]["done"] == state["counts"]["begun"] == saved.state["session"]["updates"]
    # All rounds have five steps but those that a pause cut short.
    assert saved.steps / 5 <= state["counts"]["done"] <= saved.steps / 5 + 2 * 100
    assert state["workers"][0]["life"] == 0
    assert all(worker["state"] is not None for worker in state["workers"])

    more = Trainer(tmp_path, "--resume", str(trainer.path), "--steps", str(saved.steps + 300))
    assert more.ended() == 0, more.said.read_text()
    said = more.said.read_text()
    assert f"resumed at {saved.steps:,} steps" in said
    assert "no saved state" not in said
    last = CheckpointStore(trainer.path / "checkpoints").load(print)
    assert last is not None
    assert saved.steps + 300 <= last.steps <= saved.steps + 300 + 2 * 5
    steps_logged = [int(row["steps"]) for row in more.rows()]
    assert steps_logged == sorted(set(steps_logged))
    assert 0 < float(more.rows()[-1]["lag_mean"]) < 3
    assert json.loads((trainer.path / "config.json").read_text())["finished"]


def test_a_signal_ends_the_wait_for_the_last_evaluation(tmp_path: Path) -> None:
    few = ("--steps", "20", "--evaluate-every-steps", "1000000", "--evaluation-episodes", "1000")
    trainer = Trainer(tmp_path, "--runs", str(tmp_path), *few)
    trainer.until(lambda: list((trainer.path / "checkpoints").glob("*.json")))
    time.sleep(1)
    trainer.process.send_signal(signal.SIGTERM)
    code = trainer.ended()

    said = trainer.said.read_text()
    assert code == 143, said
    assert "all steps are done, but not their evaluations: those are made when the run is resumed" in said
    assert not json.loads((trainer.path / "config.json").read_text())["finished"]
    assert list(trainer.path.glob("evaluations/*.json")), "nothing is left to evaluate"


def test_a_worker_that_fails_ends_the_run_with_its_number(tmp_path: Path) -> None:
    trainer = Trainer(tmp_path, "--runs", str(tmp_path), "--steps", "1000000", "--network", "own_network:fails_later")
    code = trainer.ended()

    said = trainer.said.read_text()
    assert code == 1, said
    assert re.search(r"\nfastrl a3c: worker \d: NonFiniteLoss: train: the gradient is nan after", said)


def test_resuming_with_other_workers_is_refused(tmp_path: Path) -> None:
    run(tmp_path, "two", steps=20)
    with pytest.raises(SystemExit) as ended:
        a3c.main(["--resume", str(tmp_path / "two"), "--workers", "3"])
    assert "resume: workers was 2 and cannot become 3" in str(ended.value)
