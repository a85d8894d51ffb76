"""DDPG's rule by hand-worked numbers and beside plain torch, its mistakes by name, and whole runs equal to the bit."""

from __future__ import annotations

import dataclasses
import functools
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import golden_updates
import numpy as np
import pytest
import small_envs
import tiny_training
import torch
import torch.nn.functional as F
from torch import nn

from fastrl import ddpg
from fastrl.engine.replay import Batch
from fastrl.learn.networks import build
from fastrl.learn.noise import Gaussian, OrnsteinUhlenbeck
from fastrl.learn.optimisers import FlatAdam
from fastrl.runs import command_line
from fastrl.runs.metrics import read_metrics
from fastrl.runs.options import resolved
from fastrl.runs.session import Session
from fastrl.runs.traps import NonFiniteLoss, Traps

OBS, ACTION = 5, 2

TINY: dict[str, Any] = {
    **tiny_training.TINY,
    "env": "Pendulum-v1",
    "steps": 400,
    "warm_up_steps": 100,
    "replay_capacity": 1_000,
    "batch": 16,
    "actor_hidden_units": (16, 16),
    "critic_hidden_units": (16, 16),
    "log_every_steps": 100,
}
preset = functools.partial(tiny_training.preset, ddpg.TRAINER)


@pytest.fixture(autouse=True)
def one_thread_and_a_digest(digest_at_end: None) -> None:
    torch.set_num_threads(1)


def learner_of(config: ddpg.Config, obs: int = OBS, action: int = ACTION) -> ddpg.Learner:
    shared = {
        "obs_shape": [1, obs],
        "action_size": action,
        "batch_norm": config.batch_norm,
        "final_uniform": config.final_uniform,
    }
    return ddpg.Learner(
        resolved(config),
        {**shared, "kind": "actor", "hidden_units": list(config.actor_hidden_units)},
        {
            **shared,
            "kind": "critic",
            "hidden_units": list(config.critic_hidden_units),
            "action_layer": config.critic_action_layer,
        },
    )


def batch_of(generator: np.random.Generator, rows: int) -> Batch:
    seen = generator.standard_normal((rows, 2, OBS)).astype(np.float32)
    return Batch(
        obs=seen[:, :1],
        action=generator.uniform(-1, 1, (rows, ACTION)).astype(np.float32),
        reward=generator.standard_normal(rows).astype(np.float32),
        discount=generator.choice(np.float32([0, 0.99]), rows, p=[0.2, 0.8]),
        next_obs=seen[:, 1:],
        index=np.zeros((rows, 2), np.int64),
        weight=np.ones(rows, np.float32),
    )


# ---- the rule


def require_targets(targets: Callable[..., torch.Tensor]) -> None:
    """Worked by hand: one transition goes on, one ended truly, one was cut, which is to go on."""
    reward = torch.tensor([1.0, -1.0, 0.5])
    discount = torch.tensor([0.9, 0.0, 0.9])
    # 1 + 0.9 * 2; -1, whatever comes after the end; 0.5 + 0.9 * -3.
    found = targets(reward, discount, torch.tensor([2.0, 5.0, -3.0]))
    assert found.tolist() == pytest.approx([2.8, -1.0, -2.2])


def flipped_discount(reward: Any, discount: Any, next_values: Any) -> Any:
    return reward + (1 - discount) * next_values


def bootstraps_always(reward: Any, discount: Any, next_values: Any) -> Any:
    return reward + 0.9 * next_values


def test_targets_are_as_worked_by_hand() -> None:
    require_targets(ddpg.targets)


@pytest.mark.parametrize("mistake", [flipped_discount, bootstraps_always])
def test_the_test_of_targets_finds_a_planted_mistake(mistake: Callable[..., torch.Tensor]) -> None:
    with pytest.raises(AssertionError):
        require_targets(mistake)


class Plain:
    """The paper's update in plain torch and float64: a tensor a parameter, torch's Adam, a loop for the targets."""

    def __init__(self, learner: ddpg.Learner) -> None:
        self.config = learner.config

        def copied(flat: Any, kind: str) -> nn.Module:
            network = build(describe(learner.config, kind))
            network.load_state_dict(flat.network.state_dict())
            return network.double()

        self.actor, self.critic = copied(learner.actor, "actor"), copied(learner.critic, "critic")
        # As the paper begins: the targets are the networks.
        self.target_actor, self.target_critic = copied(learner.actor, "actor"), copied(learner.critic, "critic")
        self.target_actor.eval()
        self.target_critic.eval()
        weights = [p for p in self.critic.parameters() if p.ndim > 1]
        others = [p for p in self.critic.parameters() if p.ndim == 1]
        decay = learner.config.critic_weight_decay
        self.critic_adam = torch.optim.Adam(
            [{"params": weights, "weight_decay": decay}, {"params": others}], learner.config.critic_learning_rate
        )
        self.actor_adam = torch.optim.Adam(self.actor.parameters(), learner.config.actor_learning_rate)

    def update(self, drawn: Batch) -> None:
        obs, action, reward, discount, next_obs = (
            torch.from_numpy(np.array(a)).double()
            for a in (drawn.obs, drawn.action, drawn.reward, drawn.discount, drawn.next_obs)
        )
        with torch.no_grad():
            y = reward + discount * self.target_critic(next_obs, self.target_actor(next_obs))
        self.critic_adam.zero_grad()
        ((self.critic(obs, action) - y) ** 2).mean().backward()
        self.critic_slopes = [p.grad.clone() for p in self.critic.parameters() if p.grad is not None]
        self.critic_adam.step()
        self.actor_adam.zero_grad()
        (-self.critic(obs, self.actor(obs))).mean().backward()
        self.actor_slopes = [p.grad.clone() for p in self.actor.parameters() if p.grad is not None]
        self.actor_adam.step()
        tau = self.config.tau
        for target, network in ((self.target_actor, self.actor), (self.target_critic, self.critic)):
            for theirs, ours in zip(numbers(target), numbers(network), strict=True):
                theirs.data.copy_((1 - tau) * theirs.data + tau * ours.data)


def numbers(network: nn.Module) -> list[torch.Tensor]:
    return [*network.parameters(), *(b for b in network.buffers() if b.is_floating_point())]


def describe(config: ddpg.Config, kind: str) -> dict[str, Any]:
    return {
        "kind": kind,
        "obs_shape": [1, OBS],
        "action_size": ACTION,
        "batch_norm": config.batch_norm,
        "final_uniform": config.final_uniform,
        "hidden_units": list(config.actor_hidden_units if kind == "actor" else config.critic_hidden_units),
        "action_layer": config.critic_action_layer,
    }


def small(name: str, **changes: Any) -> ddpg.Config:
    """A preset with large final weights, so that no slope is lost in rounding, and targets that move visibly."""
    return preset(name, batch=32, final_uniform=0.3, tau=0.05, actor_learning_rate=1e-3, **changes)


def require_updates(learner: ddpg.Learner, updates: int = 3) -> None:
    """So many updates have the slopes, and move every network, as plain torch in float64 has and moves them."""
    plain = Plain(learner)
    pairs = [
        (learner.actor.network, plain.actor),
        (learner.critic.network, plain.critic),
        (learner.target_actor.network, plain.target_actor),
        (learner.target_critic.network, plain.target_critic),
    ]
    began = [[n.detach().clone() for n in numbers(theirs)] for _, theirs in pairs]
    generator = np.random.default_rng(5)
    for _ in range(updates):
        drawn = batch_of(generator, learner.config.batch)
        learner.update(drawn)
        plain.update(drawn)
        for parameter, slope in zip(learner.critic.network.parameters(), plain.critic_slopes, strict=True):
            if not learner.config.critic_weight_decay or parameter.ndim == 1:  # else torch's Adam adds the penalty
                close(parameter.grad, slope, 1e-3)
        for parameter, slope in zip(learner.actor.network.parameters(), plain.actor_slopes, strict=True):
            close(parameter.grad, slope, 1e-3)
    for (ours, theirs), first in zip(pairs, began, strict=True):
        for mine, expected, at_first in zip(numbers(ours), numbers(theirs), first, strict=True):
            close(mine.detach() - at_first, expected.detach() - at_first, 0.01)


def close(found: torch.Tensor | None, expected: torch.Tensor, most: float) -> None:
    """Within the share ``most`` of its length. Single numbers may be further off: Adam makes small slopes large."""
    assert found is not None
    rounding = 1e-8 * math.sqrt(expected.numel())  # where the answer is 0
    assert (found - expected).norm().item() <= most * expected.norm().item() + rounding


@pytest.mark.parametrize("name", ["fast", "paper"])
def test_updates_are_those_of_plain_torch(name: str) -> None:
    require_updates(learner_of(small(name)))


def targets_not_copied(learner: ddpg.Learner, _: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(1)
    for target in (learner.target_actor, learner.target_critic):
        target.values.copy_(torch.randn(target.values.shape, generator=generator) * 0.1)


def discount_flipped(_: ddpg.Learner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ddpg, "targets", flipped_discount)


def polyak_the_wrong_way_round(_: ddpg.Learner, monkeypatch: pytest.MonkeyPatch) -> None:
    right = ddpg.follow
    monkeypatch.setattr(ddpg, "follow", lambda targets, networks, tau: right(targets, networks, 1 - tau))


def networks_follow_their_targets(_: ddpg.Learner, monkeypatch: pytest.MonkeyPatch) -> None:
    right = ddpg.follow
    monkeypatch.setattr(ddpg, "follow", lambda targets, networks, tau: right(networks, targets, tau))


def actor_loss_of_the_wrong_sign(_: ddpg.Learner, monkeypatch: pytest.MonkeyPatch) -> None:
    right = ddpg.actor_slope
    monkeypatch.setattr(ddpg, "actor_slope", lambda values: -right(values))


def gradient_leaks_into_the_critic(learner: ddpg.Learner, _: pytest.MonkeyPatch) -> None:
    critic: Any = learner.critic_pass
    right = critic.slope_of_action

    def leaking(slope: torch.Tensor) -> torch.Tensor:
        found, before = right(slope), learner.critic.gradient.clone()
        critic.forward(learner.batch["obs"], learner.actor_pass.forward(learner.batch["obs"]))
        critic.backward(slope)
        learner.critic.gradient += before
        return found

    critic.slope_of_action = leaking


def values_are_drawn_away_from_targets(_: ddpg.Learner, monkeypatch: pytest.MonkeyPatch) -> None:
    right = ddpg.critic_slope
    monkeypatch.setattr(ddpg, "critic_slope", lambda values, target: right(target, values))


def targets_are_the_networks_themselves(learner: ddpg.Learner, _: pytest.MonkeyPatch) -> None:
    learner.target_actor_pass, learner.target_critic_pass = learner.actor_pass, learner.critic_pass


def bootstrap_from_the_taken_action(learner: ddpg.Learner, _: pytest.MonkeyPatch) -> None:
    learner.target_actor_pass.look = lambda obs: learner.batch["action"]  # type: ignore[method-assign]


MISTAKES = [
    targets_not_copied,
    discount_flipped,
    polyak_the_wrong_way_round,
    networks_follow_their_targets,
    actor_loss_of_the_wrong_sign,
    gradient_leaks_into_the_critic,
    values_are_drawn_away_from_targets,
    targets_are_the_networks_themselves,
    bootstrap_from_the_taken_action,
]


@pytest.mark.parametrize("name", ["fast", "paper"])
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_an_update_is_found(mistake: Callable[..., None], name: str, monkeypatch: Any) -> None:
    learner = learner_of(small(name))
    mistake(learner, monkeypatch)

    with pytest.raises(AssertionError):
        require_updates(learner)


def acts_as_it_learns(learner: ddpg.Learner) -> None:
    learner._normalise_by_batch = lambda on: learner.networks.train(True)  # type: ignore[method-assign]


def learns_as_it_acts(learner: ddpg.Learner) -> None:
    learner._normalise_by_batch = lambda on: learner.networks.train(False)  # type: ignore[method-assign]


def require_modes(learner: ddpg.Learner) -> None:
    """Learning normalises by the batch, acting and targets by running means, whatever is acted on beside."""
    require_updates(learner)
    obs = np.random.default_rng(0).standard_normal((3, 1, OBS)).astype(np.float32)
    before = [n.clone() for n in numbers(learner.actor.network)]
    together = learner.actions(obs)
    alone = np.concatenate([learner.actions(obs[i : i + 1]) for i in range(3)])
    np.testing.assert_allclose(alone, together, atol=1e-6)
    assert all(torch.equal(a, b) for a, b in zip(before, numbers(learner.actor.network), strict=True))
    assert not learner.target_actor.network.training
    assert not learner.target_critic.network.training


def test_normalisation_is_by_the_batch_while_learning_and_by_running_means_while_acting() -> None:
    require_modes(learner_of(small("paper")))


@pytest.mark.parametrize("mistake", [acts_as_it_learns, learns_as_it_acts])
def test_normalisation_of_the_wrong_kind_is_found(mistake: Callable[[ddpg.Learner], None]) -> None:
    learner = learner_of(small("paper"))
    mistake(learner)

    with pytest.raises((AssertionError, ValueError)):
        require_modes(learner)


# ---- targets, optimiser


def test_targets_begin_equal_to_the_networks_in_memory_of_their_own() -> None:
    for name in ("fast", "paper"):
        learner = learner_of(preset(name, batch=8))
        for target, network in (
            (learner.target_actor, learner.actor),
            (learner.target_critic, learner.critic),
        ):
            assert torch.equal(target.values, network.values)
            assert target.values.data_ptr() != network.values.data_ptr()
        assert not torch.equal(learner.actor.values[:50], learner.critic.values[:50])  # each its own stream


def test_polyak_averaging_is_exact() -> None:
    generator = torch.Generator().manual_seed(0)
    target, network = (torch.randn(20_000, generator=generator) for _ in range(2))
    expected = target.double() + np.float64(np.float32(0.001)) * (network.double() - target.double())

    ddpg.follow([target], [network], 0.001)

    # Half a unit in the last place for each of the two roundings, of the product and of the sum.
    unit = torch.finfo(torch.float32).eps * torch.maximum(target.abs(), network.abs()).double()
    assert ((target.double() - expected).abs() <= unit).all()
    ddpg.follow([target], [network], 1.0)
    assert torch.equal(target, network)


def test_running_means_follow_as_weights_do() -> None:
    learner = learner_of(preset("paper", batch=32, tau=0.1))
    generator = np.random.default_rng(0)
    expected = [b.clone().double() for b in numbers(learner.target_critic.network)]
    for _ in range(5):
        learner.update(batch_of(generator, 32))
        for mine, network in zip(expected, numbers(learner.critic.network), strict=True):
            mine += 0.1 * (network.detach().double() - mine)

    for mine, target in zip(expected, numbers(learner.target_critic.network), strict=True):
        np.testing.assert_allclose(target.detach(), mine.detach(), rtol=1e-5, atol=1e-7)
    assert any("running_mean" in name for name in learner.tensors() if name.startswith("target_critic."))


def test_the_flat_adam_is_torchs_to_the_bit_and_goes_on_from_its_tensors() -> None:
    generator = torch.Generator().manual_seed(0)
    ours, gradient = torch.randn(3_000, generator=generator), torch.zeros(3_000)
    theirs = nn.Parameter(ours.clone())
    optimiser, mine = torch.optim.Adam([theirs], 0.003, fused=True), FlatAdam(ours, gradient, 0.003)
    for step in range(20):
        gradient.copy_(torch.randn(3_000, generator=generator))
        theirs.grad = gradient.clone()
        optimiser.step()
        mine.step()
        assert torch.equal(ours, theirs)
        if step == 9:
            again = FlatAdam(ours, gradient, 0.003)
            again.load({name: tensor.clone() for name, tensor in mine.tensors().items()})
            mine = again


# ---- first weights


@pytest.mark.parametrize("name", ["fast", "paper"])
def test_first_weights_have_the_papers_bounds(name: str) -> None:
    learner = learner_of(preset(name, batch=8), obs=30, action=7)
    for network in (learner.actor.network, learner.critic.network):
        linear = [m for m in network.modules() if isinstance(m, nn.Linear)]
        for layer in linear:
            most = 0.003 if layer is linear[-1] else 1 / math.sqrt(layer.in_features)
            for parameter in layer.parameters():
                assert parameter.abs().max() <= most
                if parameter.numel() > 100:
                    assert parameter.abs().max() > 0.97 * most
                    assert parameter.std().item() == pytest.approx(most / math.sqrt(3), rel=0.12)


def test_the_papers_networks_have_its_layers() -> None:
    learner = learner_of(preset("paper"), obs=17, action=6)
    actor, critic = learner.actor.network, learner.critic.network

    def shapes(part: nn.Module) -> list[Any]:
        return [
            tuple(m.weight.shape) if isinstance(m, nn.Linear) else type(m).__name__
            for m in part.modules()
            if not isinstance(m, (nn.Sequential, nn.Flatten))
        ]

    assert shapes(actor.layers) == [
        "BatchNorm1d", (400, 17), "BatchNorm1d", "ReLU", (300, 400), "BatchNorm1d", "ReLU", (6, 300), "Tanh",
    ]  # fmt: skip
    # The action enters at the second layer; what comes before it is normalised.
    assert shapes(critic.before) == ["BatchNorm1d", (400, 17), "BatchNorm1d", "ReLU"]
    assert shapes(critic.after) == [(300, 406), "ReLU", (1, 300)]


def test_the_penalty_is_on_the_critics_weights_alone() -> None:
    """Without rewards and values, the penalty is all that moves anything."""
    learner = learner_of(preset("paper", batch=8, batch_norm=False, final_uniform=0.0, critic_learning_rate=0.01))
    drawn = dataclasses.replace(batch_of(np.random.default_rng(0), 8), reward=np.zeros(8, np.float32))
    began = {name: p.detach().clone() for name, p in learner.networks.named_parameters()}

    learner.update(drawn)

    for name, parameter in learner.networks.named_parameters():
        moved = not torch.equal(parameter, began[name])
        final = name in ("critic.after.2.weight", "critic.after.2.bias")  # zero: nothing to decay
        assert moved == (name.startswith("critic.") and name.endswith("weight") and not final), name


# ---- critic only


def test_a_critic_learns_on_its_own_and_the_actor_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    impatient = functools.partial(Traps, check_every_updates=10, zero_gradient_checks=3)
    monkeypatch.setattr(ddpg, "Traps", impatient)
    session = run(
        tmp_path, "critic", critic_only=True, steps=1_000, batch=64, discount=0.5, critic_hidden_units=(64, 64)
    )
    rows = read_metrics(session.run.metrics_file)
    fresh = build(session.policy["network"], [ddpg.seeds.whole(0, "actor")])
    saved = session.store.load(print).tensors

    for name, parameter in fresh.state_dict().items():
        assert torch.equal(saved[f"actor.{name}"], parameter)
    losses = rows["critic_loss_mean"]
    assert np.nanmean(losses[-3:]) < 0.2 * losses[1]  # the first row is of the warm-up
    for name in ("mean", "std", "min", "max"):
        assert np.isnan(rows[f"actor_loss_{name}"]).all()  # as in the warm-up: nothing was measured
    told = capsys.readouterr().out
    assert "TRAP" not in told  # an actor that is to stay is no failure
    assert "critic_only" not in told  # nothing is evaluated here


@pytest.mark.parametrize("alone", [True, False])
def test_evaluations_of_an_actor_that_stays_are_said_to_mean_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], alone: bool
) -> None:
    run(tmp_path, "run", steps=120, critic_only=alone, evaluate_every_steps=1_000, evaluation_episodes=1)

    told = capsys.readouterr().out
    assert told.count("critic_only: every evaluation is of the actor as it began") == alone
    assert "evaluation at 120 steps" in told


def test_looking_at_a_critic_that_learns_alone_leaves_a_normalised_actor_as_it_is(tmp_path: Path) -> None:
    digests = set()
    for every in (40, 120):
        changes: dict[str, Any] = {"critic_only": True, "steps": 240, "log_every_steps": every}
        session = run(tmp_path, f"every-{every}", "paper", **changes)
        digests.add(session.final_digest)
        saved = session.store.load(print).tensors
        fresh = build(session.policy["network"], [ddpg.seeds.whole(0, "actor")])
        for name, value in fresh.state_dict().items():
            assert torch.equal(saved[f"actor.{name}"], value), name
    assert len(digests) == 1


# ---- acting


class RememberedNoise(OrnsteinUhlenbeck):
    """Tells what was asked of it."""

    made: ClassVar[list[RememberedNoise]] = []

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.drawn: list[np.ndarray] = []
        self.forgotten: list[tuple[int, list[int]]] = []
        self.made.append(self)

    def draw(self, generator: np.random.Generator) -> np.ndarray:
        self.drawn.append(super().draw(generator))
        return self.drawn[-1]

    def ended(self, envs: list[int]) -> None:
        super().ended(envs)
        if envs:
            self.forgotten.append((len(self.drawn), list(envs)))


def require_noise_as_promised(noise: RememberedNoise) -> None:
    """Two envs with three dimensions each, whose episodes last 5, 7, 5, 7, ... steps."""
    assert {each.shape for each in noise.drawn} == {(2, 3)}
    columns = np.array(noise.drawn).reshape(len(noise.drawn), 6)
    assert np.abs(np.corrcoef(columns.T) - np.eye(6)).max() < 0.9
    ends = np.cumsum([5, 7] * 3).tolist()
    assert noise.forgotten[: len(ends)] == [(end, [0, 1]) for end in ends]


@pytest.mark.parametrize("mistake", ["", "not reset", "one for all dimensions"])
def test_a_training_explores_every_dimension_by_itself_and_forgets_with_each_episode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mistake: str
) -> None:
    monkeypatch.setattr(RememberedNoise, "made", [])
    monkeypatch.setattr(ddpg, "OrnsteinUhlenbeck", RememberedNoise)
    if mistake == "not reset":
        monkeypatch.setattr(RememberedNoise, "ended", lambda self, envs: None)
    if mistake == "one for all dimensions":
        make = ddpg.make_noise
        monkeypatch.setattr(ddpg, "make_noise", lambda config, dimensions: make(config, 1))
    run(tmp_path, "run", env="test/Counting-v0", num_envs=2, noise="ou", warm_up_steps=0, steps=100, batch=8)
    (noise,) = RememberedNoise.made
    if not mistake:
        require_noise_as_promised(noise)
        return
    with pytest.raises(AssertionError):
        require_noise_as_promised(noise)


class FixedLearner:
    """Says always the same."""

    def __init__(self, action: float, shape: tuple[int, int]) -> None:
        self._action = np.full(shape, action, np.float32)

    def actions(self, obs: Any) -> Any:
        return self._action.copy()


class Spaces:
    def __init__(self, *shape: int) -> None:
        self.action_space = type("Box", (), {"shape": shape})

    def stacks(self) -> None:
        return None


def test_noise_has_the_actions_shape_and_actions_stay_within_bounds() -> None:
    config = preset("fast", num_envs=4, warm_up_steps=0)
    generator = np.random.default_rng(0)
    noise = Gaussian(4, 6, 0.5)
    found = np.stack(
        [ddpg.act(config, Spaces(2, 3), FixedLearner(0.9, (4, 6)), noise, generator, 10) for _ in range(500)]  # type: ignore[arg-type]
    )

    assert found.shape == (500, 4, 2, 3)
    assert found.dtype == np.float32
    assert found.max() == 1
    assert found.min() >= -1
    flat = found.reshape(500, 24)
    assert np.abs(np.corrcoef(flat.T) - np.eye(24)).max() < 0.25


def test_the_warm_up_is_uniform_and_then_the_actor_acts() -> None:
    config = preset("fast", num_envs=2, warm_up_steps=100)
    generator = np.random.default_rng(0)
    noise = OrnsteinUhlenbeck(2, 3, 0.15, 0.0)
    learner: Any = FixedLearner(0.25, (2, 3))
    envs: Any = Spaces(3)
    early = np.stack([ddpg.act(config, envs, learner, noise, generator, 99) for _ in range(1_000)])

    assert early.std() == pytest.approx(2 / math.sqrt(12), rel=0.03)
    assert (ddpg.act(config, envs, learner, noise, generator, 100) == 0.25).all()


def test_actions_of_a_matrix_reach_their_env(tmp_path: Path) -> None:
    session = run(tmp_path, "matrix", env="test/Matrix-v0", steps=200)

    assert session.updates == 100


# ---- golden


def movement(config: ddpg.Config) -> np.ndarray:
    learner, generator = learner_of(config), np.random.default_rng(1)
    return golden_updates.movement(learner.networks, lambda: learner.update(batch_of(generator, config.batch)))


# Small rates: what rounding differs between processors then stays small over a hundred updates.
GOLDEN_CONFIGS = {
    "fast": {"batch": 16, "actor_learning_rate": 1e-5, "critic_learning_rate": 1e-5, "final_uniform": 0.3},
    "paper": {"batch": 16, "actor_learning_rate": 1e-5, "critic_learning_rate": 1e-5, "final_uniform": 0.3},
}


@pytest.mark.parametrize("name", GOLDEN_CONFIGS)
def test_a_hundred_updates_move_the_weights_as_they_always_did(name: str) -> None:
    config = preset(name, **GOLDEN_CONFIGS[name])
    golden_updates.require_golden("ddpg", name, movement, config, "actor_learning_rate", "critic_learning_rate")


# ---- configurations


@pytest.mark.parametrize("name", ddpg.PRESETS)
def test_presets_are_whole_configurations(name: str) -> None:
    tiny_training.require_whole_configuration(preset(name), name)


def test_the_papers_preset_has_the_papers_numbers() -> None:
    config = preset("paper")

    assert (config.actor_learning_rate, config.critic_learning_rate, config.critic_weight_decay) == (1e-4, 1e-3, 1e-2)
    assert (config.discount, config.tau, config.batch, config.replay_capacity) == (0.99, 0.001, 64, 1_000_000)
    assert (config.noise, config.noise_theta, config.noise_sigma) == ("ou", 0.15, 0.2)
    assert (config.actor_hidden_units, config.critic_hidden_units) == ((400, 300), (400, 300))
    assert (config.critic_action_layer, config.batch_norm, config.final_uniform) == (1, True, 0.003)
    assert (config.update_every_steps, config.warm_up_steps, config.num_envs) == (1, 0, 1)
    assert (config.evaluate_every_steps, config.evaluation_episodes, config.evaluation_epsilon) == (10_000, 10, 0.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch": 0}, "batch: 0 is not a whole number"),
        ({"batch": 4000, "replay_capacity": 80}, "batch: 4,000 transitions are more than the replay holds; .* is 80"),
        ({"discount": 1.5}, "discount: 1.5 is outside"),
        ({"tau": -0.1}, "tau: -0.1 is outside"),
        ({"tau": float("nan")}, "tau: nan is outside"),
        ({"noise_sigma": -1}, "noise_sigma: -1 is outside"),
        ({"noise_theta": 1.5}, "noise_theta: 1.5 is outside"),
        ({"actor_learning_rate": float("inf")}, "actor_learning_rate: inf is outside"),
        ({"critic_action_layer": 2}, "critic_action_layer: 2 is not one of the critic's 2 hidden layers"),
        ({"actor_hidden_units": (64, 0)}, r"actor_hidden_units: \(64, 0\) are not whole numbers from 1 on"),
        ({"critic_hidden_units": (64.5,)}, r"critic_hidden_units: \(64.5,\)"),
        ({"evaluation_epsilon": 0.1}, "evaluation_epsilon: 0.1 is outside"),
        ({"precision": "bf16"}, "precision: 'bf16'"),
        ({"batch_norm": True, "batch": 1}, "batch: 1 has no spread"),
        ({"replay_capacity": 0}, "replay_capacity: 0"),
        ({"update_every_steps": 0}, "update_every_steps: 0"),
        ({"num_envs": 0}, "num_envs: 0"),
    ],
)
def test_what_cannot_be_meant_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        preset("fast", **change)


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ("CartPole-v1", r"CartPole-v1 has actions Discrete\(2\); DDPG needs a Box of .*; fastrl dqn, a3c"),
        ("PongNoFrameskip-v4", "PongNoFrameskip-v4 is an Atari game, whose actions are buttons"),
        ("Pendulun-v1", "'Pendulun-v1' is neither an Atari game nor an env of Gymnasium"),
        ("test/Unbounded-v0", r"actions Box\(-inf.*; DDPG needs a Box of .* with bounds, which .*TransformAction"),
        ("test/Motionless-v0", r"actions Box\(.*\(0,\).*; DDPG needs a Box of one or more numbers.*TransformAction"),
        (
            "test/Switches-v0",
            r"actions MultiDiscrete\(\[2 3\]\); DDPG needs a Box of .*, which .*TransformAction",
        ),
        *((f"test/{name}-v0", "a vector of one or more numbers.*FlattenObs") for name in small_envs.NO_VECTORS),
    ],
)
def test_envs_that_cannot_be_learned_are_refused_with_a_remedy(tmp_path: Path, env: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(tmp_path, "refused", env=env)
    assert not list(tmp_path.iterdir())


def test_every_option_reaches_the_configuration() -> None:
    """Each is given another value than its default on the command line."""
    other: dict[str, Any] = {
        "device": "cpu", "precision": None, "noise": "ou", "env": "Pendulum-v1", "name": "x", "runs": "elsewhere",
        "evaluation_epsilon": None, "preset": None, "deterministic": True, "discount": 0.5, "tau": 0.5,
        "noise_theta": 0.5, "critic_action_layer": 1,
    }  # fmt: skip
    arguments, expected = [], {}
    for field in dataclasses.fields(ddpg.Config):
        default = getattr(ddpg.Config(), field.name)
        flag = "--" + field.name.replace("_", "-")
        if field.name in other:
            if other[field.name] is None:
                continue
            value = other[field.name]
        elif isinstance(default, bool):
            value = not default
        elif isinstance(default, tuple):
            value = (7, 8)
        else:
            value = 3 if default is None else default + 2
        if isinstance(value, bool):
            arguments.append(flag if value else "--no-" + flag[2:]) if default is not None else arguments.extend(
                [flag, "True"]
            )
        else:
            arguments += [flag, *map(str, value if isinstance(value, tuple) else [value])]
        expected[field.name] = Path(value) if field.name == "runs" else value

    config, _ = command_line.parse(ddpg.TRAINER, arguments)

    assert {name: getattr(config, name) for name in expected} == expected


# ---- whole runs


def run(tmp_path: Path, name: str, base: str = "fast", /, **changes: Any) -> Session:
    return ddpg.train(preset(base, **{**TINY, "runs": tmp_path, "name": name, **changes}))


@pytest.mark.parametrize(
    "changes",
    [{}, {"num_envs": 2, "noise": "ou", "noise_sigma": 0.2}, {"env": "test/Counting-v0", "num_envs": 3}],
    ids=["one env", "two envs ou", "three dimensions"],
)
def test_equal_seeds_give_equal_runs_and_others_other_ones(tmp_path: Path, changes: dict[str, Any]) -> None:
    first, second = (run(tmp_path, name, steps=240, **changes) for name in ("a", "b"))
    other = run(tmp_path, "c", steps=240, seed=1, **changes)

    assert first.final_digest == second.final_digest
    assert first.final_digest != other.final_digest


def test_seeds_change_networks_exploration_and_envs(tmp_path: Path) -> None:
    saved = [run(tmp_path, f"seed{seed}", seed=seed, steps=100).store.load(print) for seed in (0, 1)]

    assert not torch.equal(saved[0].tensors["actor.layers.1.weight"], saved[1].tensors["actor.layers.1.weight"])
    states = [s.state["trainer"]["exploration"] for s in saved]
    assert states[0] != states[1]
    envs = [ddpg.make_envs(preset("fast", **{**TINY, "seed": seed}), None) for seed in (0, 1)]
    for each in envs:
        each.start()
    assert not np.array_equal(envs[0].stacks(), envs[1].stacks())
    for each in envs:
        each.close()


def test_there_is_exactly_one_update_for_each_step_after_the_warm_up() -> None:
    config = preset("fast", num_envs=4, warm_up_steps=1_000)
    assert [ddpg.updates_due(config, steps) for steps in (0, 1_000, 1_004, 2_000)] == [0, 0, 4, 1_000]
    # Without one, the first round of steps is what there is to learn from.
    assert [ddpg.updates_due(preset("paper"), steps) for steps in (0, 1, 2, 10)] == [0, 0, 1, 9]
    every = preset("paper", update_every_steps=3)
    assert [ddpg.updates_due(every, steps) for steps in (1, 3, 4, 7)] == [0, 0, 1, 2]


@pytest.mark.parametrize("num_envs", [1, 3])
def test_the_papers_preset_begins_without_a_warm_up(tmp_path: Path, num_envs: int) -> None:
    small_networks = {"actor_hidden_units": (16, 16), "critic_hidden_units": (16, 16)}
    shared = {**TINY, **small_networks, "runs": tmp_path, "steps": 60, "num_envs": num_envs, "warm_up_steps": 0}
    session = ddpg.train(preset("paper", **{**shared, "name": "paper"}))

    assert session.updates == 60 - num_envs
    assert session.store.load(print).state["trainer"]["traps"]["updates"] == 60 - num_envs


def test_what_a_row_tells(tmp_path: Path) -> None:
    session = run(tmp_path, "rows", steps=500)
    rows = read_metrics(session.run.metrics_file)

    for name in ("critic_loss", "actor_loss", "q"):
        low, mean, high, std = (rows[f"{name}_{what}"][-1] for what in ("min", "mean", "max", "std"))
        assert low < mean < high
        assert 0 < std <= high - low
        assert math.isnan(rows[f"{name}_mean"][0])  # the warm-up
    for name in ("return", "length"):
        low, mean, high, std = (rows[f"{name}_{what}_100"][-1] for what in ("min", "mean", "max", "std"))
        assert low <= mean <= high
        assert std >= 0
    assert rows["updates"].tolist() == [0, 100, 200, 300, 400]
    assert {"grad_norm/actor.layers.1", "grad_norm/critic.after.0", "param_norm", "noise_sigma"} <= set(rows)


def test_the_test_procedure_has_no_noise_and_envs_of_its_own(tmp_path: Path) -> None:
    quiet = run(tmp_path, "a", steps=300, evaluate_every_steps=200, evaluation_episodes=2)
    rows = quiet.evaluation.rows
    without = run(tmp_path, "b", steps=300)

    assert [row["steps"] for row in rows] == [200, 300]
    assert all(row["episodes"] == 2 and row["epsilon"] == 0 and row["length_mean"] == 200 for row in rows)
    assert {"mean", "std", "min", "max"} <= rows[0].keys()
    assert quiet.final_digest == without.final_digest  # neither envs nor generators are the training's
    policy = quiet.policy
    assert policy["acts"] == "continuous"
    assert (policy["low"], policy["high"]) == ([-2.0], [2.0])


class Stop(Exception):
    """Raised where a run is to end without notice."""


def broken_and_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> tuple[Any, Any]:
    """What a run had when it ended at its 200th step, and what the one that went on from there began with."""
    base = "paper" if changes.pop("paper", False) else "fast"
    config = preset(base, **{**TINY, "steps": 400, "checkpoint_every_steps": 200, "runs": tmp_path, "name": "run"})
    config = dataclasses.replace(config, **changes)
    seen: dict[str, Any] = {}
    right_act = ddpg.act
    boundaries: list[Any] = []

    def watching(config: Any, envs: Any, learner: Any, noise: Any, exploration: Any, steps: int, *rest: Any) -> Any:
        if steps == 200:
            boundaries.append(envs.replay.boundary())
            seen["state"] = (
                {name: tensor.clone() for name, tensor in learner.tensors().items()},
                learner.updates,
                exploration.bit_generator.state,
                noise.state(),
                # Where the episode begins again there is one observation more, which is not to be drawn here.
                envs.replay.sample(64, 1, 0.9, boundary=boundaries[0]),
                envs.stacks().copy(),
            )
            raise Stop
        return right_act(config, envs, learner, noise, exploration, steps, *rest)

    monkeypatch.setattr(ddpg, "act", watching)
    with pytest.raises(Stop):
        ddpg.train(config)
    broken = seen.pop("state")
    with pytest.raises(Stop):
        ddpg.train(config, resume_run=tmp_path / "run")
    return broken, seen["state"]


@pytest.mark.parametrize("changes", [{}, {"paper": True, "num_envs": 2}], ids=["fast", "paper, two envs"])
def test_a_run_goes_on_with_the_learner_generator_and_replay_it_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    (tensors, updates, generator, noise, drawn, obs), resumed = broken_and_resumed(tmp_path, monkeypatch, **changes)

    assert tensors.keys() == resumed[0].keys()
    assert all(torch.equal(tensor, resumed[0][name]) for name, tensor in tensors.items())
    assert (updates, generator) == resumed[1:3]
    for mine, theirs in zip(drawn, resumed[4], strict=True):
        assert np.array_equal(mine, theirs)
    # The episodes that were under way begin again, elsewhere than the run began, and their noise with them.
    assert not np.array_equal(obs, resumed[5])
    envs = ddpg.make_envs(preset("fast", **{**TINY, "num_envs": changes.get("num_envs", 1)}), None)
    envs.start()
    assert not np.array_equal(envs.stacks(), resumed[5])
    envs.close()
    if changes:
        assert np.any(noise)
        assert not np.any(resumed[3])


@pytest.mark.parametrize("steps_before", [90, 210], ids=["in the warm-up", "later"])
def test_on_a_mujoco_task_a_run_goes_on_bit_by_bit_in_the_midst_of_episodes(tmp_path: Path, steps_before: int) -> None:
    task = {"env": "Hopper-v5", "num_envs": 3, "noise": "ou"}
    whole = run(tmp_path, "whole", steps=300, **task)
    assert whole.games.count > 6
    cut = run(tmp_path, "cut", steps=steps_before, **task)
    config = preset("fast", **{**TINY, **task, "runs": tmp_path, "name": "cut", "steps": 300})
    again = ddpg.train(config, resume_run=cut.run.path)
    assert again.final_digest == whole.final_digest


def test_going_on_without_a_replay_fills_one_first(tmp_path: Path) -> None:
    first = run(tmp_path, "run", steps=300, checkpoint_replay=False)
    config = preset("fast", **{**TINY, "runs": tmp_path, "name": "run", "steps": 400, "checkpoint_replay": False})
    session = ddpg.train(config, resume_run=first.run.path, without_replay=True)

    assert (session.steps, session.updates) == (400, 300)
    assert len(session.envs.replay) >= 100 + 100


def test_a_run_cannot_go_on_as_another(tmp_path: Path) -> None:
    path = run(tmp_path, "run", steps=120).run.path

    with pytest.raises(ValueError, match=r"tau was 0\.005 and cannot become 0\.1"):
        command_line.parse(ddpg.TRAINER, ["--resume", str(path), "--tau", "0.1"])


def test_numbers_that_grow_beyond_all_bounds_stop_the_run_and_leave_the_last_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteLoss, match="the loss is"):
        run(tmp_path, "run", critic_learning_rate=1e3, tau=1.0, checkpoint_every_steps=100, steps=2_000, discount=1.0,
            critic_hidden_units=(32, 32, 32, 32, 32, 32), actor_hidden_units=(4,))  # fmt: skip


def test_a_reward_that_is_no_number_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="gave env 0 a reward of nan"):
        run(tmp_path, "run", env="test/Spoilt-reward-v0")


def test_a_run_learns_pendulum(tmp_path: Path) -> None:
    """Random play is at about -1,200, a pendulum that stands at about -150. Seeds 0 to 2 pass."""
    session = run(
        tmp_path, "run", steps=3_200, warm_up_steps=600, batch=128, discount=0.98, tau=0.02, replay_capacity=4_000,
        actor_learning_rate=0.002, critic_learning_rate=0.002,
        actor_hidden_units=(64, 64), critic_hidden_units=(64, 64), log_every_steps=200,
    )  # fmt: skip
    rows = read_metrics(session.run.metrics_file)
    returns = np.diff(rows["return_mean_100"] * rows["games"], prepend=0)  # of each episode, 200 steps long

    assert returns[:3].mean() < -900
    assert returns[-4:].mean() > -500


def test_histograms_and_events_are_written(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tensorboard's own
        session = run(tmp_path, "run", tensorboard=True, histograms=True, steps=200)

    assert any(session.run.path.glob("tensorboard/*"))


def test_q_is_what_the_critic_says_of_what_was_done() -> None:
    learner = learner_of(small("fast"))
    generator = np.random.default_rng(0)
    for _ in range(ddpg._LOOK_EVERY_UPDATES - 1):
        learner.update(batch_of(generator, 32))
    drawn = batch_of(generator, 32)
    with torch.no_grad():
        values = learner.critic.network(torch.from_numpy(drawn.obs), torch.from_numpy(drawn.action))
        after = learner.target_critic.network(
            torch.from_numpy(drawn.next_obs), learner.target_actor.network(torch.from_numpy(drawn.next_obs))
        )
        loss = F.mse_loss(values, torch.from_numpy(drawn.reward) + torch.from_numpy(drawn.discount) * after)
    learner.update(drawn)
    row = learner.statistics()

    assert row["q_mean"] == pytest.approx(values.mean().item(), rel=1e-4)
    assert row["q_std"] == pytest.approx(values.std(correction=0).item(), rel=1e-4)
    assert (row["q_min"], row["q_max"]) == pytest.approx((values.min().item(), values.max().item()), rel=1e-4)
    assert row["critic_loss_mean"] == pytest.approx(loss.item(), rel=1e-4)
    assert learner.statistics()["q_mean"] is None  # told once


def test_of_many_updates_the_newest_looks_are_kept_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ddpg, "_MOST_LOOKS", 4)
    learner, generator, seen = learner_of(small("fast")), np.random.default_rng(0), []
    for number in range(1, 7 * ddpg._LOOK_EVERY_UPDATES + 1):
        learner.update(batch_of(generator, 32))
        if number % ddpg._LOOK_EVERY_UPDATES == 0:
            seen.append(torch.cat(learner.seen))
        if number == 3 * ddpg._LOOK_EVERY_UPDATES:
            assert torch.equal(learner.tensors()["looks"], torch.stack(seen))
    kept = learner.tensors()
    assert torch.equal(kept["looks"], torch.stack(seen[-4:]))
    again = learner_of(small("fast"))
    again.load(kept, learner.updates)
    assert again.statistics()["q_mean"] == learner.statistics()["q_mean"]
