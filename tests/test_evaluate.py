"""`fastrl evaluate`: which games count, that threads change nothing, that units are right, and what it refuses."""

from __future__ import annotations

import json
import signal
import warnings
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import small_envs
import tiny_runs

import fastrl
from fastrl import evaluate as command
from fastrl.engine.recorded_envs import evaluation_protocol
from fastrl.runs import evaluation
from fastrl.runs.evaluation import Evaluation, epsilon_greedy, evaluate

NATURE = {"protocol": "nature", **evaluation_protocol("nature")}


def quiet(_: str) -> None:
    pass


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """What the command says when it ends with an error."""
    with pytest.raises(SystemExit) as ended:
        command.main([str(argument) for argument in arguments])
    assert ended.value.code not in (0, None)
    return str(ended.value.code)


# Which games are counted


def games_of(seed: int, count: int) -> list[int]:
    """Lengths of the first games of one env alone."""
    env = gymnasium.make(small_envs.UNEVEN)
    lengths = []
    for number in range(count):
        env.reset(seed=seed if number == 0 else None)
        over, steps = False, 0
        while not over:
            _, _, over, _, _ = env.step(1)
            steps += 1
        lengths.append(steps)
    return lengths


@pytest.mark.parametrize(("episodes", "owed"), [(7, [1] * 7), (32, [1] * 32), (65, [3] * 21 + [2])])
def test_every_env_plays_its_own_number_of_games_however_short_others_are(episodes: int, owed: list[int]) -> None:
    played = evaluate(None, small_envs.UNEVEN, None, episodes=episodes, seed=100)

    expected = [length for env, count in enumerate(owed) for length in games_of(100 + env, count)]
    assert played.lengths == expected
    assert played.returns == [float(length) for length in expected]
    assert {1, 20} == set(expected)  # else the first games to end would have done as well


def test_a_policys_actions_begin_where_the_envs_do() -> None:
    taken = evaluate(lambda obs: np.arange(len(obs)) % 2, small_envs.UNEVEN, None, episodes=4, seed=0)

    assert len(taken.returns) == 4  # the env itself refuses action 0


def test_watching_is_told_how_many_games_are_over() -> None:
    told: list[tuple[int, int]] = []

    evaluate(None, small_envs.UNEVEN, None, episodes=5, seed=0, watch=lambda over, of: told.append((over, of)))

    assert told[-1] == (5, 5)
    assert [over for over, _ in told] == sorted(over for over, _ in told)


# The same games again


def test_threads_change_nothing_and_seeds_do() -> None:
    policy = fastrl.load(tiny_runs.pong(), note=quiet).policy
    rules = {"protocol": "sb3", **evaluation_protocol("sb3"), "max_frames": 500}

    def play(seed: int, threads: int) -> Evaluation:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # more threads than cores
            act = epsilon_greedy(policy, 0.3, seed)
            return evaluate(act, "PongNoFrameskip-v4", rules, episodes=3, seed=seed, threads=threads)

    one, two, other = play(1, 1), play(1, 2), play(2, 1)

    assert one == two
    assert one != other


# Units


def test_random_play_scores_what_was_published_and_not_what_a_life_or_a_clipped_reward_would_give() -> None:
    # A life of Breakout is worth about 0.3 at random, where a game is worth 1.7 (published); 1.3 here.
    breakout = evaluate(None, "breakout", NATURE, episodes=8, seed=0).summary()
    # Clipped, a game of Space Invaders is worth about 10 at random, where its own score is 148 (published).
    invaders = evaluate(None, "space_invaders", NATURE, episodes=3, seed=0).summary()

    assert 0.7 < breakout["mean"] < 2.5
    assert 80 < invaders["mean"] < 260


def test_a_game_is_cut_by_the_protocols_clock_and_counted_in_steps() -> None:
    played = evaluate(None, "pong", {**NATURE, "max_frames": 400}, episodes=2, seed=0)

    assert all(90 <= steps <= 100 for steps in played.lengths)  # no-ops at the start count as frames, not as steps


def test_the_human_normalised_score_is_of_the_convention_that_is_asked_for() -> None:
    played = Evaluation([14.6, 14.6], [1, 1])

    lines_57, found_57 = command.described(played, "PongNoFrameskip-v4", 108_000, "57")
    lines, found = command.described(played, "PongNoFrameskip-v4", 18_000, "nature")

    assert found_57["hns"] == pytest.approx(1.0)
    assert found["hns"] == pytest.approx((14.6 + 20.7) / (9.3 + 20.7))
    assert any("(random -20.7, human 9.3, DQN 18.9)" in line for line in lines)
    assert not any("--human nature" in line for line in lines_57)
    assert any("--human nature" in line for line in command.described(played, "pong", 18_000, "57")[0])


def test_the_interval_is_of_the_mean_over_games() -> None:
    _, found = command.described(Evaluation([0.0, 10.0] * 50, [1] * 100), small_envs.UNEVEN, None, "57")

    low, high = found["interval_95"]
    assert low == pytest.approx(5 - 1.96 * 0.5, abs=0.15)
    assert high == pytest.approx(5 + 1.96 * 0.5, abs=0.15)
    assert command.described(Evaluation([3.0], [1]), small_envs.UNEVEN, None, "57")[1]["interval_95"] is None


# The command


def test_it_tells_what_it_played_and_writes_it_down(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, out = tiny_runs.copy_of(tiny_runs.cart(), tmp_path / "cart"), tmp_path / "out.json"

    command.main([str(run), "--episodes", "8", "--seed", "3", "--output", str(out)])

    told = capsys.readouterr()
    written = json.loads(out.read_text())
    assert f"{run}, latest checkpoint, of 300 steps, in CartPole-v1: 8 games, epsilon 0, seed 3" in told.out
    assert "rules: Gymnasium's CartPole-v1, cut after 500 steps" in told.out
    assert f"return: mean {np.mean(written['returns']):.2f}, 95% interval" in told.out
    assert "no evaluated checkpoint yet; using the latest" in told.err
    assert (written["checkpoint"], written["checkpoint_steps"], written["epsilon"]) == ("latest", 300, 0.0)
    assert len(written["returns"]) == len(written["lengths_steps"]) == 8
    assert written["mean"] == pytest.approx(np.mean(written["returns"]))
    assert "\r" not in told.out  # progress is for terminals

    command.main([str(run), "--episodes", "8", "--seed", "3", "--output", str(out)])
    again = json.loads(out.read_text())
    command.main([str(run), "--episodes", "8", "--seed", "4", "--output", str(out)])
    other = json.loads(out.read_text())
    assert again == written
    assert other["returns"] != written["returns"]


def test_the_best_checkpoint_is_what_is_evaluated_by_the_runs_own_epsilon(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tiny_runs.copy_of(tiny_runs.cart(), tmp_path / "cart")
    description = json.loads((run / "config.json").read_text())
    description["config"]["evaluation_epsilon"] = 0.125
    (run / "config.json").write_text(json.dumps(description))
    tiny_runs.save_again(run, 200, best=True)

    command.main([str(run), "--episodes", "2"])
    own = capsys.readouterr()
    command.main([str(run), "--episodes", "2", "--epsilon", "0.5"])

    assert "best checkpoint, of 200 steps" in own.out
    assert "epsilon 0.125" in own.out
    assert own.err == ""
    assert "epsilon 0.5" in capsys.readouterr().out


def test_the_rules_of_an_atari_run_are_those_of_its_protocol_or_of_another(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rules: list[Any] = []

    def instead(act: Any, env: str, given: Any, **_: Any) -> Evaluation:
        rules.append(given)
        return Evaluation([1.0], [1])

    monkeypatch.setattr(command, "evaluate", instead)

    command.main([str(tiny_runs.pong()), "--episodes", "1"])
    own = capsys.readouterr().out
    command.main([str(tiny_runs.pong()), "--episodes", "1", "--protocol", "nature"])
    other = capsys.readouterr().out

    assert rules == [{"protocol": "sb3", **evaluation_protocol("sb3")}, NATURE]
    assert "protocol sb3, sticky actions 0, full games, true scores, cut after 108,000 frames (30 minutes)" in own
    assert "life_loss ignored instead of ends_episode, reward raw instead of sign" in own
    assert "protocol nature, sticky actions 0, full games, true scores, cut after 18,000 frames (5 minutes)" in other


def test_random_play_needs_no_run(capsys: pytest.CaptureFixture[str]) -> None:
    command.main(["--policy", "random", "--env", small_envs.UNEVEN, "--episodes", "6"])
    command.main(["--policy", "random", "--env", "Pendulum-v1", "--episodes", "1"])  # numbers as actions

    told = capsys.readouterr().out
    assert f"random play of {small_envs.UNEVEN}: 6 games, seed 0" in told
    assert "cut after 200 steps" in told


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "fastrl evaluate: RUN: give the directory of a run, or --policy random --env GAME"),
        (["--policy", "random"], "--env: random play needs a game"),
        (["--policy", "random", "--env", "Breakut"], "Did you mean: `Breakout`?"),
        (["--policy", "random", "--env", "CartPole-v1", "--protocol", "nature"], "is not an Atari game"),
        (["--policy", "random", "--env", "pong", "--protocol", "natur"], "did you mean 'nature'?"),
        (["--policy", "random", "--env", "pong", "--episodes", "0"], "--episodes: 0 is outside [1, 1000000]"),
        (["--policy", "random", "--env", "pong", "--seed", "-1"], "--seed: -1 is outside"),
        (["--policy", "random", "--env", "pong", "--epsilon", "nan"], "--epsilon: nan is outside [0, 1]"),
        (["--policy", "random", "--env", "pong", "--threads", "0"], "threads: 0 is outside"),
        (["--policy", "random", "--env", "pong", "--output", "no/folder/x.json"], "a file in a folder that is there"),
        (["no-such-run"], "run: no-such-run is not a directory"),
    ],
)
def test_bad_input_is_refused_before_anything_is_played(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in refusal(capsys, *arguments)


def test_a_protocol_with_other_actions_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    said = refusal(capsys, tiny_runs.pong(), "--protocol", "machado")

    assert "has 18 actions by these rules, the policy chooses among 6" in said


def test_a_policy_whose_actions_are_numbers_is_evaluated(capsys: pytest.CaptureFixture[str]) -> None:
    command.main([str(tiny_runs.pendulum()), "--episodes", "2"])

    assert "checkpoint, of 300 steps, in Pendulum-v1: 2 games, epsilon 0, seed 0" in capsys.readouterr().out


def test_foreign_and_damaged_runs_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text('{"format": 1, "lr": 0.1}')
    run = tiny_runs.copy_of(tiny_runs.cart(), tmp_path / "cart")
    for path in (run / "checkpoints").glob("*.json"):
        tiny_runs.damage(path)

    assert "config.json has no " in refusal(capsys, tmp_path)
    assert "no checkpoint is whole (1 damaged); restore one from a copy, or start a new run" in refusal(capsys, run)


def test_ctrl_c_ends_with_its_code_and_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out.json"
    real = evaluation.make_envs

    def interrupted(*arguments: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        return real(*arguments)

    monkeypatch.setattr(evaluation, "make_envs", interrupted)
    with pytest.raises(SystemExit) as ended:
        command.main(["--policy", "random", "--env", small_envs.UNEVEN, "--output", str(out)])

    assert ended.value.code == 130
    assert list(tmp_path.iterdir()) == []
