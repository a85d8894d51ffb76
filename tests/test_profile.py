"""The profile of a training: stages alone, all together, the bottleneck by name, settings that trainers take."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from made_up_trial import TRIED
from tiny_training import TINY, TINY_PONG, config_of, preset

from fastrl import _training_profile, a3c, async_q, ddpg, dqn, profile
from fastrl._training_profile import (
    ceilings,
    dqn_stages,
    find_settings,
    round_line,
    round_of,
    settled,
    side_by_side,
    table_for,
    together_lines,
)
from fastrl.engine.budget import usable_cores
from fastrl.engine.files import write_json
from fastrl.engine.played_envs import played_envs
from fastrl.learn import networks
from fastrl.runs import asynchronous, command_line, sweep
from fastrl.runs.asynchronous import Recipe
from fastrl.runs.ceilings import Alone, Stage, ceiling, synchronised, transferring
from fastrl.runs.session import torch_threads
from fastrl.runs.stage_table import StageTable, legend
from fastrl.runs.sweep import ROUNDS, Pace, Settings, Tried, fastest, forecast, settings_to_try, try_in_turn
from fastrl.runs.tables import read_columns
from fastrl.runs.trial import Trial, TrialFailed
from fastrl.runs.tuned import tuned_line, with_tuned, write_tuned
from fastrl.runs.worker_rounds import WorkerRounds

HERE = {"cpu": "Some CPU", "usable_cores": 2, "gpu": None}


@pytest.mark.alone
def test_a_ceiling_is_told_in_steps_of_the_run() -> None:
    found = ceiling(Stage("sleep", "", lambda: time.sleep(0.01), steps=4), 0.25)

    assert 4 / 0.02 < found <= 4 / 0.01


def test_of_a_part_only_its_own_seconds_count() -> None:
    assert ceiling(Stage("part", "", lambda: None, 4, lambda: 0.01), 0.01) == pytest.approx(400)


def test_on_a_gpu_a_stage_is_over_when_the_device_is_through(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: done.append("waited"))

    def task() -> str:
        done.append("told")
        return "batch"

    assert synchronised(task, torch.device("cuda"))() == "batch"
    assert done == ["told", "waited"]
    assert synchronised(task, torch.device("cpu"))() == "batch"
    assert done == ["told", "waited", "told"]
    assert synchronised(lambda drawn: drawn + 1, torch.device("cuda"))(1) == 2


@pytest.mark.alone
def test_drawing_is_no_part_of_a_transfer() -> None:
    """It is brought anew each time, and only that counts."""
    brought: list[int] = []
    drawn = iter(range(1000))

    def draw() -> int:
        time.sleep(0.02)
        return next(drawn)

    def bring(batch: int) -> None:
        time.sleep(0.01)
        brought.append(batch)

    assert 4 / 0.016 < ceiling(transferring(draw, bring, "", steps=4), 0.3) <= 4 / 0.01
    assert brought == list(range(len(brought)))


def test_a_row_says_what_a_stage_alone_would_allow() -> None:
    lines = StageTable(frames_per_step=4, updates_per_step=0.25).picture({"learn": 10_000, "act": 1_000, "log": 0.02})

    assert lines[0].split() == ["stage", "frames/s", "steps/s", "updates/s", "us", "a", "step"]
    assert lines[1].split()[:5] == ["learn", "400", "100", "25.0", "10,000"]
    assert lines[2].split()[:5] == ["act", "4,000", "1,000", "250", "1,000"]
    assert lines[3].split()[:5] == ["log", "200,000,000", "50,000,000", "12,500,000", "0.0200"]


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("updates_per_step", [0.0, 0.25, None])
def test_the_longest_bar_is_the_slowest_stage_and_ends_the_table(width: int, updates_per_step: float | None) -> None:
    table = StageTable(4, updates_per_step, width)
    lines = [*table.picture({"learn": 1e4, "act": 1e3, "log": 1e-6}), table.together(20.0, 4.0, 5.0)]

    bars = [line.count("#") for line in lines]
    assert bars == [0, table.bar_width, round(table.bar_width / 10), 1, 0]
    assert len(lines[1]) == width
    assert max(map(len, lines)) == width
    # Numbers end where the names of their columns do.
    name = "us a step"
    ends = {len(line.split("  #")[0]) for line in lines[1:]}
    assert ends == {lines[0].index(name) + len(name)}


def test_where_nothing_is_updated_nothing_is_told_of_updates_and_what_is_unknown_is_not_guessed() -> None:
    rows = {"emulate": 100.0}
    assert "updates" not in StageTable(4, 0.0).picture(rows)[0]
    assert StageTable(4, None).picture(rows)[1].split()[:4] == ["emulate", "40,000", "10,000", "-"]
    assert StageTable(4, None).together(100.0, 4.0, 0.5).split() == ["together", "400", "100", "0.500", "10,000"]
    assert StageTable(4, 0.25).picture({"act": 0.0})[1].split() == ["act", "-", "-", "-", "0.00"]


def test_long_meanings_go_on_below_where_they_began() -> None:
    assert legend({"learn": "a " * 40}, 40)[1].startswith(" " * 16 + "a a")
    assert max(map(len, legend({"learn": "a " * 40}, 40))) <= 40


@pytest.mark.parametrize(
    ("trainer", "name", "changes", "frames", "updates"),
    [
        (dqn.TRAINER, "nature", {}, 4, 1 / 4),
        (dqn.TRAINER, "classic", {}, 1, 1 / 2),
        (ddpg.TRAINER, "fast", {}, 1, 1),
        (a3c.TRAINER, "paper", {"t_max": 5, "envs_per_worker": 2}, 4, 1 / 10),
        (a3c.TRAINER, "classic", {"t_max": 0, "workers": 1}, 1, None),
    ],
)
def test_frames_and_updates_are_told_by_the_rules_of_the_run(
    trainer: command_line.Trainer, name: str, changes: dict[str, Any], frames: int, updates: float | None
) -> None:
    table = table_for(settled(preset(trainer, name, **changes)))

    assert (table.frames_per_step, table.updates_per_step) == (frames, updates)


STAGES = ("act", "emulate", "learn", "log", "record", "sample", "transfer")


def flags(**settings: Any) -> list[str]:
    return [
        f"--{'' if value is not False else 'no-'}{name.replace('_', '-')}"
        + ("" if isinstance(value, bool) else f"={value}")
        for name, value in settings.items()
    ]


def test_a_training_is_profiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(_training_profile, "try_out", lambda *asked: TRIED)  # tests/test_plan.py tries real ones
    waited = Counter[str]()

    def counted(task: Any, device: torch.device) -> Any:
        def whole(*given: Any) -> Any:
            waited[getattr(task, "__name__", "")] += 1
            return task(*given)

        return whole

    monkeypatch.setattr(_training_profile, "synchronised", counted)
    monkeypatch.setenv("COLUMNS", "70")
    settings = {**TINY_PONG, "num_envs": 2, "batch": 8, "runs": tmp_path}
    profile.main(["--algo", "dqn", "--seconds=0.05", "--no-sweep", *flags(**settings)])
    said = capsys.readouterr().out.splitlines()

    table = [line.split() for line in said if line[:2] == "  " and line[2:3] != " "]
    rows = {row[0]: row for row in reversed(table)}  # the first of a name: its meaning comes later
    assert set(rows) == {"stage", *STAGES, "preprocess", "together"}
    for stage in STAGES:
        frames, steps, updates = (float(cell.replace(",", "")) for cell in rows[stage][1:4])
        assert frames == pytest.approx(4 * steps, rel=0.01)
        assert updates == pytest.approx(steps / 4, rel=0.01)
    assert rows["together"][1:] == ["1,000", "250", "62.5", "4,000"]
    assert any(line.startswith("the bottleneck is ") for line in said)
    assert max(map(len, said)) == 80  # a narrower terminal breaks lines; a table has no narrower form
    assert not list(tmp_path.iterdir())
    assert set(waited) == {"bring", "<lambda>"}  # batches and updates are what a GPU is merely told to bring and make


def test_games_alone_are_profiled(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    profile.main(["--env", "PongNoFrameskip-v4", "--steps", "100", "--seconds", "0.01", "--envs", "1"])
    said = capsys.readouterr().out.splitlines()

    headings = [line for line in said if line.startswith("  stage")]
    assert [line.split() for line in headings] == [["stage", "frames/s", "steps/s", "us", "a", "step"]] * 2
    rows = [line.split() for line in said if line.startswith("  emulate ")]
    assert all(float(row[1].replace(",", "")) > 3 * float(row[2].replace(",", "")) for row in rows[:2])
    assert rows[2] == ["emulate", "act():", "the", "engine", "itself"]
    assert max(map(len, said)) <= 80
    steps, frames = (int(number.replace(",", "")) for number in re.findall(r"([\d,]+) (?:steps|frames)/s", said[-1]))
    assert frames == pytest.approx(4 * steps, abs=2)


def test_bytes_that_become_floats_are_transfer_not_sampling(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pause_s = 0.02
    convert = networks.Scaled.forward

    def slowly(*given: Any) -> torch.Tensor:
        time.sleep(pause_s)
        return convert(*given)

    monkeypatch.setattr(networks.Scaled, "forward", slowly)
    config = settled(preset(dqn.TRAINER, "fast", **{**TINY_PONG, "num_envs": 2, "batch": 8}, double=True, device="cpu"))
    found = ceilings(dqn.TRAINER, config, 0.02)

    assert found["transfer"].steps_per_s <= 4 / (3 * pause_s)  # obs, and next_obs by both networks
    assert found["sample"].steps_per_s > 4 / pause_s
    assert found["transfer"].part_of == "learn"
    assert found["learn"].steps_per_s < found["transfer"].steps_per_s


def test_draws_go_on_when_a_fast_machine_has_played_the_replay_over() -> None:
    capacity = 600
    tiny = {**TINY_PONG, "num_envs": 2, "batch": 8, "replay_capacity": capacity}
    with dqn_stages(settled(preset(dqn.TRAINER, "fast", **tiny, device="cpu"))) as stages:
        tasks = {stage.name: stage.task for stage in stages}
        for _ in range(capacity):  # twice as many as two lanes hold
            tasks["emulate"]()
        tasks["sample"]()


def pendulum(runs: Path) -> Any:
    small = {"actor_hidden_units": (16,), "critic_hidden_units": (16,), "batch": 16, "steps": 200, "warm_up_steps": 50}
    return preset(ddpg.TRAINER, "fast", **TINY, **small, env="Pendulum-v1", log_every_steps=50, runs=runs, name="live")


@pytest.mark.parametrize(
    ("trainer", "config_of"), [(dqn.TRAINER, lambda runs: config_of(runs, "live")), (ddpg.TRAINER, pendulum)]
)
def test_a_live_run_tells_its_transfers_too(
    trainer: command_line.Trainer, config_of: Callable[[Path], Any], tmp_path: Path
) -> None:
    trainer.train(config_of(tmp_path))
    rows = read_columns(tmp_path / "live" / "metrics.csv")
    learning = rows["updates"] > 0

    for stage in ("act", "sample", "transfer", "learn"):
        assert (rows[f"share/{stage}"][learning] > 0).all()
    assert (rows["share/transfer"] < rows["share/learn"])[learning].all()


WORKERS_DO = {"act", "emulate", "learn", "transfer"}


@pytest.mark.parametrize(
    ("trainer", "name", "settings", "stages"),
    [
        (
            ddpg.TRAINER,
            "fast",
            {"env": "Pendulum-v1", "actor_hidden_units": (8,), "critic_hidden_units": (8,)},
            set(STAGES),
        ),
        (a3c.TRAINER, "paper", {"env": "CartPole-v1", "network": "mlp", "workers": 2}, WORKERS_DO | {"log"}),
        (a3c.TRAINER, "classic", {"t_max": 0, "workers": 1}, WORKERS_DO | {"log"}),
        (async_q.TRAINER, "paper", {"env": "CartPole-v1", "network": "mlp", "workers": 2}, WORKERS_DO | {"log"}),
        (async_q.TRAINER, "classic", {"n_step": 3}, WORKERS_DO | {"log"}),
    ],
)
def test_every_learner_has_its_stages(
    trainer: command_line.Trainer, name: str, settings: dict[str, Any], stages: set[str]
) -> None:
    found = ceilings(trainer, preset(trainer, name, **settings, device="cpu", torch_threads=1), 0.02)

    assert set(found) == stages
    rates = [alone.steps_per_s for alone in found.values()]
    assert rates == sorted(rates)
    assert min(rates) > 0


def rounds_on_cartpole(recipe: Recipe, trainer: command_line.Trainer) -> WorkerRounds:
    config = preset(trainer, "classic", workers=1, envs_per_worker=2, device="cpu")
    envs = played_envs("CartPole-v1", 2)
    try:
        return WorkerRounds(recipe, settled(config), envs)
    finally:
        envs.close()  # that they are not asked again is the point


@pytest.mark.parametrize("module", [a3c, async_q])
@pytest.mark.parametrize("slow", ["acting", "learning"])
def test_a_round_is_parted_where_acting_ends(module: Any, slow: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = rounds_on_cartpole(module.RECIPE, module.TRAINER)
    worker: Any = rounds.worker
    owner, name = {"acting": (worker.way, "forward"), "learning": (worker, "apply")}[slow]
    own = getattr(owner, name)

    with torch_threads(1):
        rounds.play()  # what torch does once takes a while
    steps = rounds.envs.asked
    pause_s = 0.4 / steps if slow == "acting" else 0.4

    def slowly(*given: Any, **named: Any) -> Any:
        time.sleep(pause_s)
        return own(*given, **named)

    monkeypatch.setattr(owner, name, slowly)
    with torch_threads(1):
        rounds.play()

    assert 2 * steps == worker.config.steps_per_round
    took_s = {"acting": 2 * steps * rounds.acting_s, "learning": 2 * steps * rounds.learning_s}
    assert took_s.pop(slow) >= 0.4
    assert 0 < min(took_s.values()) < 0.4


@pytest.mark.parametrize("module", [a3c, async_q])
def test_groups_on_a_device_have_rounds_too(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asynchronous, "_in_groups", lambda config: True)  # which learn on the CPU here
    rounds = rounds_on_cartpole(module.RECIPE, module.TRAINER)
    assert isinstance(rounds.worker, module.Group)
    for _ in range(2):
        rounds.play()
        assert 2 * rounds.envs.asked == rounds.worker.steps_of_a_round
        assert rounds.acting_s > 0
        assert rounds.learning_s > 0


def test_no_more_workers_act_at_once_than_there_are_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_training_profile, "usable_cores", lambda: 4)
    config = settled(preset(a3c.TRAINER, "paper"))
    assert config.device == "cpu"  # also where there is a GPU: it has to be asked for

    assert side_by_side(dataclasses.replace(config, workers=16)) == (4, 4)
    assert side_by_side(dataclasses.replace(config, workers=3)) == (3, 3)
    assert side_by_side(dataclasses.replace(config, workers=16, sync=True)) == (1, 1)


def test_the_bottleneck_of_workers_is_the_longest_part_of_their_rounds() -> None:
    config = settled(preset(a3c.TRAINER, "paper", workers=2))
    rates = {"learn": 250.0, "act": 500.0, "emulate": 1000.0, "log": 1e6}
    found = {"transfer": Alone(1.0, "", "act"), **{name: Alone(rate, "") for name, rate in rates.items()}}
    made_of = round_of(config, found)
    assert made_of is not None
    assert made_of.steps_per_s == pytest.approx(1000 / 7)
    assert "learn 57%, act 29%, emulate 14%; 2 workers on " in round_line(config, made_of)
    trial = dataclasses.replace(TRIED, steps_per_s=100.0, shares={"wait for workers": 0.97, "log": 0.02, "other": 0.01})
    said = together_lines(trial, found, made_of)
    assert said == [
        "the trainer's wall time: waits for its workers 97%; log 2%, other 1%",
        "the bottleneck is learn: 57% of a worker's round; rounds by themselves could do 143 steps/s, of which the "
        "whole reaches 70%",
    ]
    slow_log = {**found, "log": Alone(50.0, "")}
    assert "bottleneck is log: alone it could do 50 steps/s" in together_lines(trial, slow_log, made_of)[-1]


def test_what_is_a_part_of_another_stage_is_no_bottleneck_of_its_own() -> None:
    found = {"preprocess": Alone(90.0, "", "emulate"), "emulate": Alone(100.0, ""), "learn": Alone(200.0, "")}
    assert round_of(settled(preset(dqn.TRAINER, "fast")), found) is None
    assert "the bottleneck is emulate: alone it could do 100 steps/s" in together_lines(TRIED, found, None)[-1]


def test_whoever_ends_it_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextlib.contextmanager
    def stages(config: Any) -> Iterator[list[Stage]]:
        yield [Stage("wait", "", lambda: time.sleep(0.01), 1)]

    monkeypatch.setitem(_training_profile._STAGES, "dqn", stages)  # what a forked process can do
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    child = os.fork()
    if child == 0:
        code: Any = 99
        try:
            profile.main(["--algo", "dqn", "--preset", "classic", "--no-tensorboard", "--seconds", "60"])
        except SystemExit as end:
            code = end.code
        finally:
            os._exit(code)
    try:
        patience = time.monotonic() + 60
        while not list(tmp_path.glob("fastrl-profile-*")) and time.monotonic() < patience:
            time.sleep(0.01)
    finally:
        os.kill(child, signal.SIGTERM)
        _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 128 + signal.SIGTERM
    assert not list(tmp_path.iterdir())


def test_settings_are_tried_in_turn_and_those_that_fail_once() -> None:
    asked: list[int] = []

    def try_one(settings: Settings) -> float:
        asked.append(settings["threads"])
        if settings["threads"] == 3:
            raise TrialFailed("no")
        return 90.0 + 10 * settings["threads"] + len(asked)

    said: list[str] = []
    found = try_in_turn(try_one, [{"threads": 1}, {"threads": 2}, {"threads": 3}], said.append)
    assert asked == [1, 2, 3, 2, 1, 1, 2]
    assert [one.failure for one in found] == [None, None, "no"]
    assert found[0].speed == 105
    assert "failed: no" in said[-1]
    assert fastest(found, {"threads": 1}).settings == {"threads": 2}
    with pytest.raises(TrialFailed, match="none of these settings"):
        fastest(found[2:], {"threads": 1})


def speeds(of: dict[int, list[float]], said: list[str] | None = None, **limits: Any) -> tuple[list[int], list[Tried]]:
    """Which threads were tried, and what came of it, where these would be their speeds; the first are the run's own."""
    asked: list[int] = []

    def try_one(settings: Settings) -> float:
        asked.append(settings["threads"])
        return of[settings["threads"]][asked.count(settings["threads"]) - 1]

    say = (said if said is not None else []).append
    return asked, try_in_turn(try_one, [{"threads": threads} for threads in of], say, **limits)


def test_what_is_plainly_slower_is_not_tried_again() -> None:
    said: list[str] = []
    minute = iter(range(0, 6000, 60))
    of: dict[int, list[float]] = {1: [100, 101, 99], 2: [69], 3: [71, 60], 4: [90, 95, 92]}
    asked, found = speeds(of, said, now=lambda: float(next(minute)))
    assert asked == [1, 2, 3, 4, 4, 3, 1, 1, 4]  # what is below 70 is plainly slower
    assert [one.given_up for one in found] == [False, True, True, False]
    # Each look at the clock is a minute later: one before each trial, one after the round.
    assert said[0] == "  round 1 of 3 is over after 5m00s; 3 of 4 go on, for about 7m30s"
    assert ["plainly slower" in line for line in said[3:]] == [False, True, True, False]


def test_the_runs_own_is_tried_to_the_end_however_slow_it_is() -> None:
    asked, found = speeds({1: [10, 10, 10], 2: [100, 100, 100]})
    assert asked == [1, 2, 2, 1, 1, 2]
    assert fastest(found, {"threads": 1}).settings == {"threads": 2}


def test_a_sweep_ends_where_only_the_runs_own_is_left() -> None:
    said: list[str] = []
    asked, found = speeds({1: [100], 2: [50], 3: [20]}, said)
    assert asked == [1, 2, 3]
    assert "no other is left" in said[1]
    assert fastest(found, {"threads": 1}).settings == {"threads": 1}


@pytest.mark.parametrize(("minutes", "tried"), [(0.5, [1]), (1.5, [1, 2]), (3.5, [1, 2, 3]), (4.5, [1, 2, 3, 3])])
def test_no_trial_begins_when_the_time_is_over(minutes: float, tried: list[int]) -> None:
    minute = iter(range(100))  # each look at the clock is one later: at the begin, before each trial, after a round
    said: list[str] = []
    same: dict[int, list[float]] = {threads: [100.0] * ROUNDS for threads in (1, 2, 3)}
    asked, found = speeds(same, said, until=minutes, now=lambda: float(next(minute)) - 1)
    assert asked == tried
    assert any("the time is over" in line for line in said)
    untried = [one for one in found if not one.speeds]
    assert all("not tried" in str(one.failure) for one in untried)
    assert len(untried) == 3 - len(set(asked))
    assert fastest(found, {"threads": 1}).settings == {"threads": 1}


@pytest.mark.parametrize(("slowest_of_the_best", "kept"), [(104.0, 1), (105.0, 1), (106.0, 2)])
def test_what_is_no_faster_beyond_noise_does_not_replace_the_runs_own(slowest_of_the_best: float, kept: int) -> None:
    own = Tried({"threads": 1}, [90.0, 100.0, 105.0])
    other = Tried({"threads": 2}, [slowest_of_the_best, 120.0, 130.0])
    assert fastest([own, other], own.settings).settings == {"threads": kept}
    assert fastest([other], own.settings) is other


PACE = Pace(seconds=2.0, learning_s=30.0, beside_s=10.0)


def test_envs_are_tried_by_default_and_kept_only_if_they_were_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seconds: list[float] = []

    def tried(trainer: command_line.Trainer, config: Any, for_s: float, **limits: float) -> Trial:
        seconds.append(for_s)
        own = (config.threads, config.torch_threads, config.num_envs) == (1, 1, 4)
        assert limits == ({} if own else {"rows_within_s": 90.0})  # the run's own must not fail for a busy moment
        assert config.evaluate_every_steps == 0
        return dataclasses.replace(TRIED, steps_per_s=100.0 + config.num_envs)

    monkeypatch.setattr(_training_profile, "try_out", tried)
    config = preset(dqn.TRAINER, "fast", env="PongNoFrameskip-v4", num_envs=4, threads=1, torch_threads=1)

    settings = find_settings(dqn.TRAINER, config, [], PACE, 3600.0)
    said = capsys.readouterr().out
    assert settings == {"threads": 1, "torch_threads": 1}  # all as fast as each other: the run's own
    assert "--num-envs 8 is faster; it shapes what is learned too, so that it is not kept" in " ".join(said.split())
    assert seconds == [2.0] * len(seconds)
    count = len(settings_to_try(config, []))
    assert len(seconds) == ROUNDS * (count + 3)
    foretold = f"sweep: {ROUNDS * count} trials of about 40 s (30 s of learning), then {ROUNDS * 3} with other"
    assert foretold in " ".join(said.split())

    settings = find_settings(dqn.TRAINER, config, [2, 8], PACE, 3600.0)
    assert settings["num_envs"] == 8
    assert "--num-envs shape what is learned" in " ".join(capsys.readouterr().out.split())

    seconds.clear()
    with pytest.raises(TrialFailed, match="none of these settings"):
        find_settings(dqn.TRAINER, config, [], PACE, -1.0)
    assert not seconds


def test_how_long_a_sweep_will_take_is_told_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "usable_cores", lambda: 8)
    config = preset(dqn.TRAINER, "fast", env="PongNoFrameskip-v4", num_envs=4, threads=1, torch_threads=1)
    # 1, 4 and 8 threads of both kinds: 9 settings, 3 rounds; then 3 numbers of envs.
    assert "27 trials of about 40 s (30 s of learning), then 9 with other numbers of envs: about 24m00s, " in forecast(
        config, [], PACE, 3600.0
    )
    assert "54 trials of about 40 s (30 s of learning): 5m00s of the 36m00s it needs" in forecast(
        config, [4, 8], PACE, 300.0
    )


def test_threads_are_swept_only_where_they_do_something() -> None:
    cartpole = preset(dqn.TRAINER, "classic")
    mujoco = preset(ddpg.TRAINER, "fast", env="Hopper-v5")
    pong = preset(dqn.TRAINER, "fast", env="PongNoFrameskip-v4")
    for config, swept in ((cartpole, False), (mujoco, True), (pong, True)):
        assert all(("threads" in one) is swept for one in settings_to_try(config, []))
    own = {"threads": 7, "torch_threads": 5}
    assert settings_to_try(dataclasses.replace(pong, **own), [])[0] == own
    tried = settings_to_try(pong, [])
    assert len({json.dumps(one) for one in tried}) == len(tried)


def test_the_fastest_settings_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def tried(trainer: command_line.Trainer, config: Any, seconds: float, **limits: float) -> Trial:
        return dataclasses.replace(TRIED, steps_per_s=100.0 * config.workers - 10 * config.envs_per_worker)

    monkeypatch.setattr(_training_profile, "try_out", tried)
    kept = tmp_path / "tuned.json"
    asked = ["--env", "CartPole-v1", "--preset", "paper", "--network", "mlp", "--workers", "2"]
    options = ["--algo", "a3c", "--seconds", "0.02", "--sweep-envs", "1", "4", "--output", str(kept)]
    profile.main([*options, *asked])
    workers = max(2, 2 * usable_cores())
    assert f"fastest: --workers {workers} --envs-per-worker 1" in capsys.readouterr().out

    config, _ = command_line.parse(a3c.TRAINER, [*asked[:-2], "--tuned", str(kept)])
    assert (config.workers, config.envs_per_worker) == (workers, 1)


def test_tuned_settings_are_defaults_that_flags_replace(tmp_path: Path) -> None:
    path = tmp_path / "tuned.json"
    write_tuned(path, "dqn", "PongNoFrameskip-v4", {}, {"threads": 3, "torch_threads": 1, "num_envs": 4})
    config, _ = command_line.parse(dqn.TRAINER, ["--env", "PongNoFrameskip-v4", "--tuned", str(path), "--threads", "2"])
    assert tuned_line(config, path, HERE) == "tuned by tuned.json: torch_threads 1, num_envs 4"
    other = dataclasses.replace(config, env="BreakoutNoFrameskip-v4")
    assert "that was measured with PongNoFrameskip-v4, and BreakoutNoFrameskip-v4 may be" in tuned_line(
        other, path, HERE
    )

    assert (config.threads, config.torch_threads, config.num_envs) == (2, 1, 4)
    assert config.preset == "nature"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, ""),
        (
            {"usable_cores": 8},
            "; that was measured on another machine (usable cores 8; here: usable cores 2), which may",
        ),
        ({"cpu": "Z80", "gpu": "Voodoo"}, "machine (CPU Z80, GPU Voodoo; here: CPU Some CPU, GPU None), which may"),
    ],
)
def test_settings_of_another_machine_are_told_as_such(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    path = tmp_path / "tuned.json"
    write_tuned(path, "dqn", dqn.Config().env, {**HERE, **change}, {"threads": 3})
    line = tuned_line(dataclasses.replace(dqn.Config(), threads=3), path, HERE)

    assert line.startswith("tuned by tuned.json: threads 3")
    assert words in line
    assert ("another machine" in line) is bool(change)
    assert "\n" not in line


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"algorithm": "ddpg"}, "is for 'ddpg'"),
        ({"format": 9}, "format 9"),
        ({"settings": {"learning_rate": 3}}, "takes .*'num_envs', 'threads'"),
        ({"settings": 3}, "has settings 3"),
        (None, "cannot be opened"),
    ],
)
def test_other_files_are_refused(change: dict[str, Any] | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "tuned.json"
    if change is not None:
        write_json(path, {"format": 1, "algorithm": "dqn", "settings": {"threads": 1}, **change})
    with pytest.raises(ValueError, match=message):
        with_tuned(dqn.Config(), path, "dqn")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--algo", "dpg"], "'dpg' is unknown; did you mean 'ddpg'"),
        (["--algo", "dqn", "--seconds", "0"], r"--seconds 0.0 is outside \(0, 3,600\]"),
        (["--algo", "dqn", "--sweep-minutes", "0"], r"--sweep-minutes 0.0 is outside \(0, 10,080\]"),
        (["--algo", "dqn", "--resume", "x"], "is not a directory"),
        (["--algo", "dqn", "--seeds", "0-2"], "one new run is looked at here"),
        (["--algo", "dqn", "--no-sweep", "--output", "x"], "nothing is found then that --output could keep"),
        (["--algo", "dqn", "--output", "no/such/folder/x"], "is to be a file in a folder that is there"),
    ],
)
def test_wrong_questions_are_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        profile.main(arguments)


def test_settings_that_are_tried_are_those_that_a_file_may_have() -> None:
    tried = [
        *settings_to_try(preset(dqn.TRAINER, "fast"), [4, 8]),
        *settings_to_try(preset(ddpg.TRAINER, "fast"), []),
        *settings_to_try(preset(a3c.TRAINER, "paper"), []),
        *settings_to_try(preset(a3c.TRAINER, "a2c"), [1]),
    ]
    for settings in tried:
        assert json.dumps(settings)
        assert set(settings) <= {"threads", "torch_threads", "num_envs", "workers", "envs_per_worker"}
    assert {settings.get("num_envs") for settings in tried} == {4, 8, None}  # 8 is the run's own
