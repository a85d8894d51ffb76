"""What a configuration refuses, in the words of the one place that checks it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from fastrl import a3c, async_q, ddpg, dqn
from fastrl.__main__ import commands, named_command
from fastrl.learn import processor
from fastrl.runs import command_line, options

LAYERS = [
    (dqn.Config, "hidden_units"),
    (a3c.Config, "hidden_units"),
    (async_q.Config, "hidden_units"),
    (ddpg.Config, "actor_hidden_units"),
    (ddpg.Config, "critic_hidden_units"),
]


@pytest.mark.parametrize(("config", "name"), LAYERS)
@pytest.mark.parametrize("units", [(64, 0), (64.5,), (True,), ("64",), 64, None])
def test_hidden_layers_have_whole_numbers_of_units(config: Any, name: str, units: Any) -> None:
    with pytest.raises(ValueError, match=f"{name}: .* are not whole numbers from 1 on, one for each layer"):
        config(**{name: units})


def help_of(trainer: command_line.Trainer, capsys: pytest.CaptureFixture[str]) -> str:
    """All in one line, without the frame."""
    with pytest.raises(SystemExit):
        command_line.parse(trainer, ["--help"])
    return " ".join(capsys.readouterr().out.replace("│", " ").split())


@pytest.mark.parametrize(
    ("trainer", "default"),
    [
        (dqn.TRAINER, "nature for Atari games, classic for other envs"),
        (a3c.TRAINER, "paper for Atari games, classic for other envs"),
        (async_q.TRAINER, "paper for Atari games, classic for other envs"),
        (ddpg.TRAINER, "fast"),
    ],
)
def test_help_says_which_preset_is_taken_where_none_is_named(
    trainer: command_line.Trainer, default: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert f"--preset PRESET {', '.join(trainer.presets)} (default: {default})" in help_of(trainer, capsys)


@pytest.mark.parametrize("name", commands())
def test_every_command_is_found_by_its_name(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["fastrl", name, "--help"])
    with pytest.raises(SystemExit) as ended:
        named_command()

    assert ended.value.code in (None, 0)
    assert f"usage: fastrl {name}" in capsys.readouterr().out


def test_help_offers_no_precision_that_is_always_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--precision {auto,fp32,bf16}" in help_of(dqn.TRAINER, capsys)
    assert "--precision {fp32} bf16 gains nothing" in help_of(ddpg.TRAINER, capsys)
    with pytest.raises(SystemExit):
        command_line.parse(ddpg.TRAINER, ["--precision", "bf16"])


CPUINFO = {
    "Zen 5": ("processor\t: 0\nflags\t\t: fpu sse avx512f avx512_bf16 rdpid\n", "bf16"),
    "ARM": ("processor\t: 0\nFeatures\t: fp asimd bf16 i8mm\n", "bf16"),
    "older": ("processor\t: 0\nmodel name\t: avx512_bf16\nflags\t\t: fpu sse avx2 avx512_bf16x\n", "fp32"),
}


@pytest.mark.parametrize(("text", "expected"), CPUINFO.values(), ids=CPUINFO)
def test_the_precision_is_what_the_processor_gains_by(
    text: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(text)
    monkeypatch.setattr(options, "multiplies_bf16", lambda: processor.multiplies_bf16(cpuinfo))
    automatic = {"device": "cpu", "precision": "auto"}
    for gains, unasked in ((dqn.Config(device="cpu"), expected), (a3c.Config(), "fp32"), (async_q.Config(), "fp32")):
        assert options.resolved(gains).precision == unasked
        assert options.resolved(dataclasses.replace(gains, **automatic)).precision == expected
        assert options.resolved(dataclasses.replace(gains, device="cpu", precision="bf16")).precision == "bf16"
    for other in (dqn.Config(network="mlp", env="CartPole-v1"), dqn.Config(network="own:network")):
        assert options.resolved(dataclasses.replace(other, **automatic)).precision == "fp32"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert options.resolved(dqn.Config(device="cuda")).precision == "fp32"  # where bf16 was never tried


def test_what_the_machine_decided_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "multiplies_bf16", lambda: True)
    said = options.told(options.resolved(dqn.Config(device="cpu")))
    assert said.startswith("learns on the CPU, products in bf16; equal seeds give equal bits (")
    said = options.told(options.resolved(dqn.Config(device="cpu", precision="fp32", actor_processes=2)))
    assert said.startswith("learns on the CPU, products in fp32; equal seeds do not give equal bits (")


def test_without_a_description_of_the_processor_nothing_is_assumed(tmp_path: Path) -> None:
    assert not processor.multiplies_bf16(tmp_path / "missing")


def test_a_preset_is_told_with_what_was_given_instead() -> None:
    lines = command_line.preset_lines(dqn.TRAINER, command_line.with_preset(dqn.TRAINER, "fast"))
    assert "  n_step = 3 (default 1)" in lines
    config, _ = command_line.parse(dqn.TRAINER, ["--preset", "fast", "--n-step", "5", "--batch", "64"])
    lines = command_line.preset_lines(dqn.TRAINER, config)

    assert "  n_step = 3 (default 1; 5 was given instead)" in lines
    assert not any("batch" in line for line in lines)  # no value of the preset's


def test_no_preset_is_told_of_an_env_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="neither an Atari game nor an env of Gymnasium; did you mean 'pong'"):
        command_line.main(dqn.TRAINER, ["--env", "PnogNoFrameskip-v4"])
    assert capsys.readouterr().out == ""


def test_rounds_of_one_step_q_are_no_option_of_n_step_q() -> None:
    assert async_q.Config(n_step=1, round_steps=20).steps_per_round == 20
    with pytest.raises(ValueError, match=r"round_steps: 20 is for one-step Q; with n_step 5 a round has 5 steps"):
        async_q.Config(n_step=5, round_steps=20)


@pytest.mark.parametrize(("config", "name"), LAYERS)
def test_hidden_layers_can_be_few_or_many(config: Any, name: str) -> None:
    for units in ((8,), (8, 16, 8)):
        assert getattr(config(**{name: units}), name) == units


def test_several_seeds_do_not_go_on_with_one_run() -> None:
    with pytest.raises(ValueError, match="leave out --seeds and resume each run by itself"):
        command_line.parse(ddpg.TRAINER, ["--seeds", "0-1", "--resume", "runs/one"])


@pytest.mark.parametrize(("steps", "told"), [(20, True), (21, False)])
def test_a_run_that_ends_with_its_warm_up_says_that_it_learns_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], steps: int, told: bool
) -> None:
    ddpg.train(
        ddpg.Config(
            env="Pendulum-v1", steps=steps, warm_up_steps=20, batch=2, replay_capacity=100, evaluate_every_steps=0,
            tensorboard=False, torch_threads=1, runs=tmp_path,
        )
    )  # fmt: skip
    assert ("nothing will be learned: the run's 20 steps end before" in capsys.readouterr().out) is told
