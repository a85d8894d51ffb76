"""The profile of a training: stages alone, all together, the bottleneck by name, settings that trainers take."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import pytest
from made_up_trial import TRIED
from tiny_training import TINY_PONG, preset

from fastrl import _training_profile, a3c, ddpg, dqn, profile
from fastrl._training_profile import ceilings, settings_to_try, stage_picture
from fastrl.engine.budget import usable_cores
from fastrl.engine.files import write_json
from fastrl.runs import command_line
from fastrl.runs.ceilings import Stage, ceiling
from fastrl.runs.trial import Trial
from fastrl.runs.tuned import tuned_line, with_tuned, write_tuned


@pytest.mark.alone
def test_a_ceiling_is_told_in_steps_of_the_run() -> None:
    found = ceiling(Stage("sleep", "", lambda: time.sleep(0.01), steps=4), 0.25)

    assert 4 / 0.02 < found <= 4 / 0.01


def test_the_longest_bar_is_the_slowest_stage() -> None:
    lines = stage_picture({"learn": (100.0, "updates"), "act": (1_000.0, "choices"), "log": (1e6, "rows")})

    assert [line.count("#") for line in lines] == [30, 3, 1]
    assert "10,000.0 us a step" in lines[0]


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
    settings = {**TINY_PONG, "num_envs": 2, "batch": 8, "runs": tmp_path}
    profile.main(["--algo", "dqn", "--seconds=0.05", "--no-sweep", *flags(**settings)])
    said = capsys.readouterr().out

    for stage in ("act", "emulate", "learn", "log", "preprocess", "record", "sample"):
        assert f"\n  {stage} " in said
    assert "together: 250 steps/s (1,000 frames/s, 62.5 updates/s)" in said
    assert "the bottleneck is " in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("trainer", "name", "settings", "stages"),
    [
        (
            ddpg.TRAINER,
            "fast",
            {"env": "Pendulum-v1", "actor_hidden_units": (8,), "critic_hidden_units": (8,)},
            {"act", "emulate", "learn", "log", "record", "sample"},
        ),
        (a3c.TRAINER, "paper", {"env": "CartPole-v1", "network": "mlp", "workers": 2}, {"emulate", "log"}),
    ],
)
def test_every_learner_has_its_stages(
    trainer: command_line.Trainer, name: str, settings: dict[str, Any], stages: set[str]
) -> None:
    found = ceilings(trainer, preset(trainer, name, **settings, device="cpu", torch_threads=1), 0.02)

    assert set(found) == stages
    assert list(found.values()) == sorted(found.values(), key=lambda one: one[0])
    assert all(rate > 0 for rate, _ in found.values())


def test_the_fastest_settings_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def tried(trainer: command_line.Trainer, config: Any, seconds: float) -> Trial:
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
    assert tuned_line(config, path) == "tuned by tuned.json: torch_threads 1, num_envs 4"
    other = dataclasses.replace(config, env="BreakoutNoFrameskip-v4")
    assert "that was measured with PongNoFrameskip-v4, and BreakoutNoFrameskip-v4 may be" in tuned_line(other, path)

    assert (config.threads, config.torch_threads, config.num_envs) == (2, 1, 4)
    assert config.preset == "nature"


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
    assert {settings.get("num_envs") for settings in tried} == {4, 8, None}
