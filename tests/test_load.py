"""`fastrl.load`: the right weights, plain answers, and no code run on the way."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import tiny_runs
import torch

import fastrl
from fastrl.engine.files import DamagedFile
from fastrl.learn.networks import QNetwork
from fastrl.runs import checkpoint, trained
from fastrl.runs.checkpoint import CheckpointStore
from fastrl.runs.groups import read_run
from fastrl.runs.run_dir import NotARun


@pytest.fixture
def pong(tmp_path: Path) -> Path:
    return tiny_runs.copy_of(tiny_runs.pong(), tmp_path / "pong")


@pytest.fixture
def cart(tmp_path: Path) -> Path:
    return tiny_runs.copy_of(tiny_runs.cart(), tmp_path / "cart")


def quiet(_: str) -> None:
    pass


# What it does


def test_it_acts_as_the_networks_tensors_say_in_batches_and_alone() -> None:
    policy = fastrl.load(tiny_runs.pong(), note=quiet)
    pool = policy.make_env(3)
    obs, _ = pool.reset(seed=1)
    for _ in range(20):
        obs, *_ = pool.step(pool.action_space.sample())
    pool.close()
    saved = checkpoint.read(policy.checkpoint.path)
    network = QNetwork(saved.state["policy"]["network"])
    network.load_state_dict({k.removeprefix("online."): v for k, v in saved.tensors.items() if k.startswith("online.")})
    with torch.inference_mode():
        values = network(torch.from_numpy(obs)).numpy()

    together, alone = policy.act(obs), [policy.act(one) for one in obs]

    np.testing.assert_allclose(policy.values(obs), values, rtol=1e-4, atol=1e-5)
    assert together.tolist() == values.argmax(1).tolist() == alone
    assert together.shape == (3,)
    assert np.ndim(alone[0]) == 0


def test_two_lines_play_an_env_of_gymnasium_alone_and_as_a_vector() -> None:
    policy = fastrl.load(tiny_runs.cart(), note=quiet)
    env = gymnasium.make("CartPole-v1")
    obs, _ = env.reset(seed=0)
    vector = policy.make_env(1)
    batch, _ = vector.reset(seed=0)

    obs, *_ = env.step(policy.act(obs))
    batch, *_ = vector.step(policy.act(batch))

    assert np.array_equal(obs, batch[0])
    assert policy.act(batch).shape == (1,)
    vector.close()


def test_actions_begin_where_the_envs_do(cart: Path) -> None:
    plain = fastrl.load(cart, note=quiet)
    tiny_runs.save_again(cart, 400, first_action=5)

    assert fastrl.load(cart, note=quiet).act(np.zeros(4)) == plain.act(np.zeros(4)) + 5


def test_epsilon_makes_as_many_actions_random_as_it_says() -> None:
    policy = fastrl.load(tiny_runs.cart(), note=quiet)
    obs = np.zeros((4000, 4))
    greedy = policy.act(obs)

    half = policy.act(obs, 0.5, np.random.default_rng(0))

    assert len(set(greedy.tolist())) == 1
    assert np.mean(half != greedy) == pytest.approx(0.25, abs=0.03)
    assert np.array_equal(half, policy.act(obs, 0.5, np.random.default_rng(0)))


def test_its_envs_have_the_rules_of_training_or_those_of_measuring(tmp_path: Path) -> None:
    policy = fastrl.load(tiny_runs.pong(), note=quiet)
    stored = json.loads((tiny_runs.pong() / "config.json").read_text())["rules_fingerprint"]
    training, measuring = policy.make_env(), policy.make_env(2, **policy.evaluation_rules)

    assert training.rules_fingerprint == stored
    (tmp_path / "config.json").write_text((tiny_runs.pong() / "config.json").read_text())
    (tmp_path / "metrics.csv").write_text("frames,steps,updates,wall_s\n")
    assert read_run(tmp_path).setting["rules"] == stored  # a report groups runs by them
    assert (training.protocol.reward, training.protocol.life_loss) == ("sign", "ends_episode")
    assert (measuring.protocol.reward, measuring.protocol.life_loss, measuring.num_envs) == ("raw", "ignored", 2)
    training.close()
    measuring.close()


# Which checkpoint


def test_best_is_the_evaluated_one_and_until_there_is_one_the_latest_which_is_said(cart: Path) -> None:
    said: list[str] = []

    before = fastrl.load(cart, note=said.append)
    tiny_runs.save_again(cart, 200, best=True, scale=2.0)
    best, latest = fastrl.load(cart, note=said.append), fastrl.load(cart, "latest", note=said.append)

    assert (before.kind, before.steps) == ("latest", 300)
    assert (best.kind, best.steps) == ("best", 200)
    assert (latest.kind, latest.steps) == ("latest", 300)
    assert said == [f"{cart} has no evaluated checkpoint yet; using the latest, of 300 steps"]
    assert not np.allclose(best.values(np.ones(4)), latest.values(np.ones(4)))


def test_a_checkpoint_is_chosen_by_steps_or_by_file(cart: Path) -> None:
    path = tiny_runs.save_again(cart, 1200, scale=2.0)
    tiny_runs.save_again(cart, 1300, scale=3.0)

    by_steps = [fastrl.load(cart, which, note=quiet) for which in (1200, "1200", "1,200", "1_200")]
    by_file = [fastrl.load(cart, which, note=quiet) for which in (path, str(path), path.with_suffix(".safetensors"))]

    assert [policy.steps for policy in by_steps + by_file] == [1200] * 7


@pytest.mark.parametrize(
    ("which", "said"),
    [
        (
            "bset",
            r"checkpoint: 'bset' is neither a file nor one of .*did you mean 'best'\?; there are best, latest, 300",
        ),
        ("77", "has none of 77 steps; there are 300"),
    ],
)
def test_a_checkpoint_that_is_not_there_is_refused_with_those_that_are(which: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        fastrl.load(tiny_runs.cart(), which)


def test_a_checkpoint_of_another_game_is_refused(cart: Path, pong: Path) -> None:
    (other,) = (pong / "checkpoints").glob("*.json")

    with pytest.raises(ValueError, match=r"is of 'PongNoFrameskip-v4', .* is of 'CartPole-v1'"):
        fastrl.load(cart, other)


def test_a_damaged_newest_checkpoint_falls_back_and_says_so(cart: Path) -> None:
    damage_me = tiny_runs.save_again(cart, 400)
    tiny_runs.damage(damage_me)
    said: list[str] = []

    policy = fastrl.load(cart, "latest", note=said.append)

    assert policy.steps == 300
    assert [("400" in text, "damaged" in text) for text in said] == [(True, True)]


def test_a_damaged_best_checkpoint_is_refused(cart: Path) -> None:
    tiny_runs.damage(tiny_runs.save_again(cart, 200, best=True))

    with pytest.raises(DamagedFile, match="checksum"):
        fastrl.load(cart)


def test_a_checkpoint_that_a_live_run_deletes_under_the_reader_is_looked_for_again(
    cart: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = json.loads((cart / "config.json").read_text())
    (cart / "config.json").write_text(json.dumps({**config, "finished": False}))
    newer = tiny_runs.save_again(cart, 400)
    real, calls = CheckpointStore.load, []

    def rotated(store: CheckpointStore, note: object) -> object:
        calls.append(1)
        if len(calls) == 1:
            raise DamagedFile("gone")
        return real(store, note)  # type: ignore[arg-type]

    monkeypatch.setattr(CheckpointStore, "load", rotated)

    assert fastrl.load(cart, "latest").checkpoint.path == newer
    assert len(calls) == 2


def test_what_is_no_run_is_refused(cart: Path, tmp_path: Path) -> None:
    with pytest.raises(NotARun, match="is not a directory"):
        fastrl.load(tmp_path / "nothing")
    with pytest.raises(NotARun, match=r"has no config.json, so it is not a run of fastrl"):
        fastrl.load(tmp_path)
    for path in (cart / "checkpoints").iterdir():
        path.unlink()
    with pytest.raises(NotARun, match="has no checkpoint yet"):
        fastrl.load(cart)


# What it is given


@pytest.mark.parametrize(
    ("obs", "error", "said"),
    [
        (np.zeros((84, 84), np.uint8), ValueError, r"shape \(84, 84\); .* has \(4, 84, 84\), or \(n, 4, 84, 84\)"),
        (np.zeros((2, 3, 4, 84, 84), np.uint8), ValueError, "observations have shape"),
        (np.zeros((2, 84, 84, 4), np.uint8), ValueError, "observations have shape"),
        (np.zeros((4, 84, 84), np.float32), TypeError, "are float32; this network takes the pool's bytes"),
    ],
)
def test_observations_of_another_kind_are_refused(obs: np.ndarray, error: type[Exception], said: str) -> None:
    policy = fastrl.load(tiny_runs.pong(), note=quiet)

    with pytest.raises(error, match=said):
        policy.act(obs)


def test_vectors_of_another_kind_are_refused() -> None:
    policy = fastrl.load(tiny_runs.cart(), note=quiet)

    with pytest.raises(ValueError, match=r"shape \(5,\); CartPole-v1 has \(4,\), or \(n, 4\)"):
        policy.act(np.zeros(5))
    with pytest.raises(TypeError, match="expected numbers"):
        policy.act(np.array(["a", "b", "c", "d"]))
    for epsilon in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="is outside"):
            policy.act(np.zeros(4), epsilon, np.random.default_rng(0))
    with pytest.raises(ValueError, match="needs a generator"):
        policy.act(np.zeros(4), 0.1)


def test_a_device_that_is_absent_is_refused() -> None:
    with pytest.raises(ValueError, match=r"device: 'warp' cannot be used here .*; use cpu"):
        fastrl.load(tiny_runs.cart(), device="warp", note=quiet)


# No code is run


def test_a_users_own_network_is_imported_only_when_it_is_named_again(
    cart: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "users_network.py").write_text(
        "from fastrl.learn.networks import QNetwork\n"
        "def make(description):\n"
        "    return QNetwork({**description, 'torso': 'mlp'})\n"
        "def other(description):\n"
        "    return QNetwork({**description, 'torso': 'mlp', 'hidden_units': [3]})\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    described = checkpoint.read(next((cart / "checkpoints").glob("*.json"))).state["policy"]["network"]
    expected = fastrl.load(cart, note=quiet).values(np.ones(4))
    tiny_runs.save_again(cart, 400, network={**described, "torso": "own", "factory": "users_network:make"})

    with pytest.raises(ValueError, match=r"loading a run never runs code .* network='users_network:make'"):
        fastrl.load(cart, note=quiet)
    assert "users_network" not in sys.modules

    by_name = fastrl.load(cart, network="users_network:make", note=quiet)
    import users_network  # type: ignore[import-not-found]

    given = fastrl.load(cart, network=users_network.make, note=quiet)
    assert np.array_equal(by_name.values(np.ones(4)), expected)
    assert np.array_equal(given.values(np.ones(4)), expected)
    with pytest.raises(ValueError, match=r"do not fit into the network .*size mismatch"):
        fastrl.load(cart, network=users_network.other, note=quiet)
    with pytest.raises(ValueError, match="was trained with fastrl's 'mlp'; leave it out"):
        fastrl.load(tiny_runs.cart(), network=users_network.make, note=quiet)
    monkeypatch.delitem(sys.modules, "users_network")


def test_an_env_that_imports_a_module_is_made_only_when_it_is_named_again(cart: Path) -> None:
    config = json.loads((cart / "config.json").read_text())
    config["config"]["env"] = "users_module:Env-v0"
    (cart / "config.json").write_text(json.dumps(config))
    tiny_runs.save_again(cart, 400, env="users_module:Env-v0")
    policy = fastrl.load(cart, note=quiet)

    assert policy.act(np.zeros(4)) in (0, 1)  # acting needs no env
    with pytest.raises(ValueError, match=r"imports a module, .* say it again"):
        policy.make_env()
    with pytest.raises(ValueError, match=r"env 'Other-v0' was given, but .* was trained in 'users_module:Env-v0'"):
        fastrl.load(cart, env="Other-v0", note=quiet)
    with pytest.raises(ModuleNotFoundError):
        fastrl.load(cart, env="users_module:Env-v0", note=quiet).make_env()


def test_a_policy_of_a_kind_that_this_version_does_not_know_is_refused(cart: Path) -> None:
    tiny_runs.save_again(cart, 400, acts="dreams")

    with pytest.raises(ValueError, match="acts 'dreams' is unknown"):
        fastrl.load(cart, note=quiet)


def test_fastrl_offers_load_without_importing_torch_for_it() -> None:
    assert fastrl.load is trained.load
    with pytest.raises(AttributeError, match="has no attribute 'laod'"):
        fastrl.laod  # noqa: B018
