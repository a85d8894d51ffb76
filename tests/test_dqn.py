"""DQN's rule by hand-worked numbers, its schedules and ratios, and whole runs that are equal to the bit."""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import golden_updates
import numpy as np
import pytest
import small_envs  # noqa: F401  (its envs are named here)
import tiny_training
import torch
import torch.nn.functional as F

from fastrl import dqn
from fastrl.learn.flat import clip_norm
from fastrl.learn.optimisers import FlatAdam, FlatCentredRMSProp
from fastrl.runs.checkpoint import CheckpointStore
from fastrl.runs.options import resolved
from fastrl.runs.session import Session

TINY: dict[str, Any] = {
    **tiny_training.TINY_PONG,
    "num_envs": 4,
    "replay_capacity": 600,
    "warm_up_steps": 100,
    "batch": 8,
    "target_every_steps": 80,
    "steps": 400,
    "log_every_steps": 200,
}
preset = functools.partial(tiny_training.preset, dqn.TRAINER)
pytestmark = pytest.mark.usefixtures("digest_at_end")


# ---- the rule


def require_targets(targets: Callable[..., torch.Tensor]) -> None:
    """Worked by hand: one transition goes on, one ended, one looked three steps ahead."""
    reward = torch.tensor([1.0, -1.0, 0.5])
    discount = torch.tensor([0.9, 0.0, 0.729])
    next_values = torch.tensor([[2.0, 3.0], [5.0, 7.0], [-1.0, -2.0]])
    # 1 + 0.9 * 3; -1, whatever comes after the end; 0.5 + 0.729 * -1.
    assert targets(reward, discount, next_values).tolist() == pytest.approx([3.7, -1.0, -0.229])
    # Double: the choice is the online network's, the value the target network's: 1 + 0.9 * 2; -1; 0.5 - 0.729 * 2.
    choice = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    assert targets(reward, discount, next_values, choice).tolist() == pytest.approx([2.8, -1.0, -0.958])


def test_targets_are_as_worked_by_hand() -> None:
    require_targets(dqn.targets)


def flipped_discount(reward: Any, discount: Any, next_values: Any, choice: Any = None) -> Any:
    return dqn.targets(reward, 1 - discount, next_values, choice)


def own_choice_only(reward: Any, discount: Any, next_values: Any, choice: Any = None) -> Any:
    return dqn.targets(reward, discount, next_values)


def value_of_the_chooser(reward: Any, discount: Any, next_values: Any, choice: Any = None) -> Any:
    return dqn.targets(reward, discount, next_values if choice is None else choice)


@pytest.mark.parametrize("mistake", [flipped_discount, own_choice_only, value_of_the_chooser])
def test_the_test_of_targets_finds_a_planted_mistake(mistake: Callable[..., torch.Tensor]) -> None:
    with pytest.raises(AssertionError):
        require_targets(mistake)


def test_the_loss_is_quadratic_near_and_linear_far_and_weighted() -> None:
    values, target = torch.tensor([0.0, 0.0, 0.0]), torch.tensor([0.5, -3.0, 1.0])
    weight = torch.tensor([1.0, 0.5, 2.0])

    # 0.125; 3 - 0.5 = 2.5, halved; 0.5, doubled.
    assert dqn.td_loss(preset("nature"), values, target, weight).item() == pytest.approx(0.125 + 1.25 + 1.0)
    assert dqn.td_loss(preset("fast"), values, target, weight).item() == pytest.approx((0.125 + 1.25 + 1.0) / 3)
    # mse: 0.25; 9, halved; 1, doubled; their mean.
    assert dqn.td_loss(preset("cleanrl"), values, target, weight).item() == pytest.approx((0.25 + 4.5 + 2.0) / 3)


def test_the_slope_of_the_loss_is_the_clipped_error() -> None:
    values = torch.tensor([0.3, -4.0, 2.5], requires_grad=True)

    dqn.td_loss(preset("nature"), values, torch.zeros(3), torch.ones(3)).backward()

    assert values.grad is not None
    assert values.grad.tolist() == pytest.approx([0.3, -1.0, 1.0])


def batch_of(generator: np.random.Generator, rows: int) -> dict[str, torch.Tensor]:
    frames = torch.from_numpy(generator.integers(0, 256, (rows, 5, 84, 84), dtype=np.uint8))
    return {
        "obs": frames[:, :4],
        "action": torch.from_numpy(generator.integers(6, size=rows)),
        "reward": torch.from_numpy(generator.choice(np.array([-1, 0, 1], np.float32), rows)),
        "discount": torch.from_numpy(generator.choice(np.array([0, 0.99], np.float32), rows, p=[0.1, 0.9])),
        "next_obs": frames[:, 1:],
        "weight": torch.ones(rows),
    }


def learner_of(config: dqn.Config, actions: int = 6) -> dqn.Learner:
    network = {"kind": "q", "torso": "a3c", "obs_shape": [4, 84, 84], "num_actions": actions, "dueling": config.dueling}
    return dqn.Learner(resolved(config), network)


def test_the_target_network_begins_equal_and_changes_only_when_it_is_refreshed() -> None:
    learner = learner_of(preset("fast", batch=4, target_every_steps=12))
    generator = np.random.default_rng(0)
    began = [p.clone() for p in learner.target.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(began, learner.online.parameters(), strict=True))

    for update in range(1, 7):  # 12 steps are 3 updates
        learner.update(batch_of(generator, 4))
        refreshed = all(
            torch.equal(a, b) for a, b in zip(learner.target.parameters(), learner.online.parameters(), strict=True)
        )
        assert refreshed == (update % 3 == 0)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_learner_goes_on_from_its_tensors_to_the_bit(precision: str) -> None:
    config = preset("fast", batch=8, target_every_steps=8, precision=precision)
    batches = [batch_of(np.random.default_rng(n), 8) for n in range(5)]
    saved, undisturbed = learner_of(config), learner_of(config)
    for batch in batches[:3]:
        saved.update(batch)
        undisturbed.update(batch)
    other = learner_of(config)
    other.update(batches[4])  # it has copies of other weights by now

    other.load({name: tensor.clone() for name, tensor in saved.tensors().items()}, saved.updates)

    for batch in batches[3:]:
        other.update(batch)
        undisturbed.update(batch)
    assert all(torch.equal(tensor, other.tensors()[name]) for name, tensor in undisturbed.tensors().items())


def test_a_network_that_is_its_own_target_is_found_out() -> None:
    learner = learner_of(preset("fast", batch=4, target_every_steps=12))
    learner.target = learner.online  # the planted mistake

    learner.update(batch_of(np.random.default_rng(0), 4))

    unsynced = learner_of(preset("fast", batch=4, target_every_steps=12))
    unsynced.update(batch_of(np.random.default_rng(0), 4))
    assert all(torch.equal(a, b) for a, b in zip(unsynced.target.parameters(), build_like(unsynced), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(learner.target.parameters(), build_like(unsynced), strict=True))


def build_like(learner: dqn.Learner) -> list[torch.Tensor]:
    fresh = learner_of(learner.config)
    return list(fresh.online.parameters())


def test_rmsprop_is_the_published_code_in_float64() -> None:
    torch.manual_seed(0)
    weight = torch.randn(50, dtype=torch.float64)
    ours, given = weight.clone(), torch.empty_like(weight)
    optimiser = FlatCentredRMSProp(ours, given, learning_rate=0.00025, decay=0.95, epsilon=0.01)
    mean, square = np.zeros(50), np.zeros(50)
    expected = weight.numpy().copy()
    for _ in range(20):
        gradient = torch.randn(50, dtype=torch.float64)
        given.copy_(gradient)
        optimiser.step()
        g = gradient.numpy()
        mean = 0.95 * mean + 0.05 * g
        square = 0.95 * square + 0.05 * g * g
        expected -= 0.00025 * g / np.sqrt(square - mean * mean + 0.01)

    np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-13)


@pytest.mark.parametrize(("most", "factor"), [(0.0, 1.0), (6.0, 1.0), (2.5, 0.5)])
def test_a_gradient_is_shortened_to_the_norm_that_is_allowed(most: float, factor: float) -> None:
    gradient = torch.tensor([3.0, 4.0])

    norm = clip_norm(gradient, most)

    assert norm.item() == 5.0
    assert gradient.tolist() == pytest.approx([3.0 * factor, 4.0 * factor], rel=1e-6)


def test_an_optimiser_refuses_the_state_of_another() -> None:
    adam, rmsprop = FlatAdam(torch.zeros(3), torch.zeros(3), 0.1), FlatCentredRMSProp(*torch.zeros(2, 3), 0.1, 0.9, 0.1)

    with pytest.raises(ValueError, match=r"has mean, square, and should have mean, square, updates"):
        adam.load(rmsprop.tensors())


def movement(config: dqn.Config) -> np.ndarray:
    learner, generator = learner_of(config), np.random.default_rng(1)
    return golden_updates.movement(learner.online, lambda: learner.update(batch_of(generator, 8)))


# Small rates: what rounding differs between processors then stays small over a hundred updates.
GOLDEN_CONFIGS = {
    "nature": {"precision": "fp32", "batch": 8, "target_every_steps": 40, "learning_rate": 2.5e-5},
    "fast": {
        "precision": "fp32",
        "batch": 8,
        "target_every_steps": 40,
        "learning_rate": 1e-5,
        "double": True,
        "dueling": True,
    },
}


@pytest.mark.parametrize("name", GOLDEN_CONFIGS)
def test_a_hundred_updates_move_the_weights_as_they_always_did(name: str) -> None:
    config = preset(name, **GOLDEN_CONFIGS[name])
    golden_updates.require_golden("dqn", name, movement, config, "learning_rate")


# ---- schedules and ratios


def test_epsilon_falls_after_the_warm_up_in_nature_and_at_once_in_sb3() -> None:
    nature, sb3 = preset("nature"), preset("sb3")

    assert dqn.epsilon_at(nature, 50_000) == 1.0
    assert dqn.epsilon_at(nature, 550_000) == pytest.approx(0.55)
    assert dqn.epsilon_at(nature, 5_000_000) == pytest.approx(0.1)
    assert dqn.epsilon_at(sb3, 500_000) == pytest.approx(0.505)


def test_there_is_exactly_one_update_for_every_four_steps_after_the_warm_up() -> None:
    config = preset("nature")

    assert [dqn.updates_due(config, steps) for steps in (0, 50_003, 50_004, 50_007, 50_008)] == [0, 0, 1, 1, 2]


@pytest.mark.parametrize("name", dqn.PRESETS)
def test_presets_are_whole_configurations(name: str) -> None:
    tiny_training.require_whole_configuration(preset(name), name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch": 0}, "batch: 0 is not a whole number"),
        ({"batch": 4000, "replay_capacity": 80}, "batch: 4,000 transitions are more than the replay holds; .* is 80"),
        ({"discount": 1.5}, "discount: 1.5 is outside"),
        ({"learning_rate": float("nan")}, "learning_rate: nan is outside"),
        ({"optimiser_epsilon": 0.0}, "optimiser_epsilon: 0.0 is outside"),
        ({"torch_threads": 100_000}, r"torch_threads: 100000 is not a whole number in \[1, 1024\]"),
        ({"target_every_steps": 1_001}, "no multiple of update_every_steps"),
        ({"evaluation_epsilon": -1}, "evaluation_epsilon: -1 is outside"),
        ({"seed": -1}, "seed: -1 is not"),
        ({"replay_capacity": 0}, "replay_capacity: 0"),
    ],
)
def test_what_cannot_be_meant_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        preset("nature", **change)


# ---- whole runs


def run(tmp_path: Path, name: str, base: str = "fast", /, **changes: Any) -> Session:
    return dqn.train(preset(base, **{**TINY, "runs": tmp_path, "name": name, **changes}))


def test_equal_seeds_give_equal_runs_whatever_the_threads(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "AtariPool: 4 threads on", RuntimeWarning)
        one, two, four = (run(tmp_path, f"threads{n}", threads=n).final_digest for n in (1, 2, 4))
    other = run(tmp_path, "other", seed=1).final_digest

    assert one == two == four
    assert other != one


@pytest.mark.parametrize(
    "changes",
    [
        {"prioritised": True, "n_step": 1},
        {"double": True, "dueling": True, "num_envs": 2},
        {"precision": "bf16", "optimiser": "rmsprop", "gradient": "sum", "optimiser_epsilon": 0.01},
    ],
    ids=["prioritised", "double dueling", "bf16 rmsprop"],
)
def test_every_variant_trains_and_repeats(tmp_path: Path, changes: dict[str, Any]) -> None:
    first = run(tmp_path, "a", **changes)
    second = run(tmp_path, "b", **changes)

    assert first.final_digest == second.final_digest
    assert first.updates == (400 - 100) // 4
    rows = (tmp_path / "a" / "metrics.csv").read_text().splitlines()
    assert len(rows) == 1 + 2
    assert all(math.isfinite(float(row.split(",")[rows[0].split(",").index("loss")])) for row in rows[1:])


def test_a_run_of_cartpole_learns_within_a_minute(tmp_path: Path) -> None:
    session = dqn.train(preset("classic", runs=tmp_path, name="cartpole", steps=5_000, tensorboard=False))

    best = session.store.load_best()
    assert best is not None
    # A random policy gets 22.
    assert best.state["evaluation"]["mean"] > 100
    assert session.run.finished


def test_what_was_drawn_is_what_the_games_showed(tmp_path: Path) -> None:
    """The last frame of a drawn observation is the one that its action answered: no stack is off by one."""
    session = run(tmp_path, "stacks", steps=400, warm_up_steps=400)
    replay = session.envs.replay
    batch = replay.sample(64, 1, 0.99)

    for row in range(64):
        assert np.array_equal(batch.obs[row, 1:], batch.next_obs[row, :-1]) or batch.discount[row] == 0


def test_a_network_of_the_users_own_is_trained_by_its_name(tmp_path: Path) -> None:
    session = run(tmp_path, "own", network="own_network:tiny", steps=200)

    assert "online.tiny.weight" in session.store.load(print).tensors


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["tiny", "from_ours", "tied"])
def test_a_users_own_network_learns_as_autograd_says(name: str, precision: str) -> None:
    config = preset(
        "classic", network=f"own_network:{name}", batch=8, precision=precision, max_gradient_norm=0.0, double=True
    )
    description = {"kind": "q", "torso": "own", "factory": config.network, "obs_shape": [1, 4], "num_actions": 3}
    learner = dqn.Learner(resolved(config), description)
    theirs = copy.deepcopy(learner.online)
    adam = torch.optim.Adam(theirs.parameters(), config.learning_rate, eps=config.optimiser_epsilon)
    generator = np.random.default_rng(5)
    for _ in range(5):
        batch = {
            "obs": torch.from_numpy(generator.standard_normal((8, 1, 4)).astype(np.float32)),
            "action": torch.from_numpy(generator.integers(3, size=8)),
            "reward": torch.from_numpy(generator.standard_normal(8).astype(np.float32)),
            "discount": torch.full((8,), 0.9),
            "next_obs": torch.from_numpy(generator.standard_normal((8, 1, 4)).astype(np.float32)),
            "weight": torch.ones(8),
        }
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            best = theirs(batch["next_obs"]).argmax(1, keepdim=True)
            after = learner.target(batch["next_obs"]).gather(1, best).squeeze(1).float()
            values = theirs(batch["obs"]).gather(1, batch["action"][:, None]).squeeze(1).float()
        adam.zero_grad()
        F.huber_loss(values, (batch["reward"] + batch["discount"] * after).detach()).backward()
        adam.step()
        learner.update(batch)
    far = 1e-5 if precision == "fp32" else 1e-2
    for mine, other in zip(learner.online.parameters(), theirs.parameters(), strict=True):
        away = float((mine.detach() - other.detach()).norm() / other.detach().norm())
        assert away < far


def test_a_network_that_normalises_acts_by_what_it_has_seen(tmp_path: Path) -> None:
    small = {"env": "CartPole-v1", "evaluate_every_steps": 0, "network": "own_network:normed_values"}
    session = run(tmp_path, "normed", "classic", steps=300, num_envs=1, warm_up_steps=100, **small)

    tensors = session.store.load(print).tensors  # type: ignore[union-attr]
    # Once an update: acting, which goes on in every step, leaves the statistics as they are.
    assert session.updates == 100
    assert int(tensors["online.norm.num_batches_tracked"]) == session.updates


@pytest.mark.parametrize("changes", [{"dueling": True}, {"network": "own_network:from_ours"}, {"hidden_units": ()}])
def test_reduced_precision_trains_whatever_the_network_is(tmp_path: Path, changes: dict[str, Any]) -> None:
    small = {"env": "CartPole-v1", "network": "mlp", "steps": 300, "evaluate_every_steps": 0, "precision": "bf16"}

    assert run(tmp_path, "reduced", "classic", **{**small, **changes}).updates == 100


def test_what_layers_share_is_saved_and_goes_on(tmp_path: Path) -> None:
    small = {"env": "CartPole-v1", "evaluate_every_steps": 0, "network": "own_network:tied"}
    session = run(tmp_path, "tied", "classic", steps=200, **small)

    tensors = session.store.load(print).tensors  # type: ignore[union-attr]
    assert torch.equal(tensors["online.tiny.weight"], tensors["online.again.weight"])
    longer = dataclasses.replace(session.config, steps=300)
    assert dqn.train(longer, resume_run=session.run.path).steps == 300


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": "own_network:no_network"}, r"network: 'own_network:no_network' gave int, and should give a torch"),
        (
            {"network": "own_network:too_wide"},
            r"'own_network:too_wide' says \(2, 3\) of 2 observations of shape \(1, 4\), a",
        ),
        (
            {"network": "own_network:of_two_types"},
            r"its parameters are torch.float32, torch.float64, and should be of one",
        ),
        ({"hidden_units": (), "dueling": True}, r"a duelling one needs a hidden layer"),
        ({"n_step": 10**9}, r"n_step: 1000000000 is outside \[1, \d+\]"),
        ({"env": "PnogNoFrameskip-v4"}, r"nor an env of Gymnasium; did you mean 'pong'"),
    ],
)
def test_what_cannot_train_is_refused_before_anything_is_written(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        run(tmp_path, "refused", "classic", **{"env": "CartPole-v1", "network": "mlp", "steps": 300, **changes})
    assert not list(tmp_path.iterdir())


def test_a_resume_that_is_refused_has_changed_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = run(tmp_path, "whole", "classic", env="CartPole-v1", network="mlp", steps=200, evaluate_every_steps=0)
    before = {path: path.read_bytes() for path in session.run.path.rglob("*") if path.is_file()}

    fewer = dataclasses.replace(session.config, steps=100)
    with pytest.raises(ValueError, match=r"steps: 100 are fewer than the 200 that .*whole has behind it"):
        dqn.train(fewer, resume_run=session.run.path)
    monkeypatch.setattr(FlatAdam, "tensors", lambda self: {"momentum": self._mean})
    more = dataclasses.replace(session.config, steps=400)
    with pytest.raises(ValueError, match=r"its saved state has mean, square, updates, and should have momentum"):
        dqn.train(more, resume_run=session.run.path)

    assert {path: path.read_bytes() for path in session.run.path.rglob("*") if path.is_file()} == before


def test_runs_that_cannot_lie_there_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        OSError, match=r"runs: .*/file is no directory and cannot be made \(File exists\); give another"
    ):
        run(tmp_path / "file", "a", "classic", env="CartPole-v1", network="mlp")


def test_a_run_that_was_never_saved_does_not_offer_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(CheckpointStore, "save", full)

    session = run(tmp_path, "a", "classic", env="CartPole-v1", network="mlp", steps=200, evaluate_every_steps=0)

    said = capsys.readouterr().out
    assert session.exit_code == 1
    assert "training goes on, there is none yet" in said
    assert "nothing of these 200 steps is saved; make room and start again" in said


def test_unknown_envs_and_networks_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="neither an Atari game nor an env of Gymnasium; did you mean 'breakout'"):
        run(tmp_path, "a", env="BreakotNoFrameskip-v4")
    with pytest.raises(ValueError, match="'natur' is unknown; did you mean 'nature'"):
        run(tmp_path, "b", network="natur")
    for env in ("Pendulum-v1", "test/Switches-v0"):
        with pytest.raises(ValueError, match=f"{env} has actions .* to choose from .* is needed; .*TransformAction"):
            run(tmp_path, "c", env=env, network="mlp")
    assert not list(tmp_path.iterdir())
