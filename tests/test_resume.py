"""A run that was stopped, killed or ended goes on as if nothing had happened, or says why it does not."""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from nursery import Nursery
from small_run import STEPS_A_TURN, a_run, require_whole
from tiny_training import (
    STEPS,
    WARM_UP,
    config_of,
    cut_back,
    digest_of,
    flags_of,
    processes_with,
    require_resumable,
    rows,
    soon_s,
    start,
    trained,
    wait_for_a_checkpoint,
)

from fastrl import dqn
from fastrl.learn import optimisers
from fastrl.runs import command_line, seeds, session
from fastrl.runs.checkpoint import CheckpointStore
from fastrl.runs.run_dir import NotARun, RunDir
from fastrl.runs.session import resume


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    made = Nursery()
    yield made
    made.close()


class Whole:
    """An undisturbed run, its digest, and the steps it has checkpoints of."""

    def __init__(self, runs: Path, seed: int, prioritised: bool) -> None:
        self.random = random.Random(seed)
        every = 4 * self.random.randint(17, 24)  # the first before the warm-up ends
        assert every < WARM_UP
        self.config = config_of(
            runs, "whole", prioritised=prioritised, checkpoint_every_steps=every, keep_checkpoints=100
        )
        self.digest = trained(self.config)
        self.run = runs / "whole"
        self.saved = sorted(CheckpointStore(self.run / "checkpoints").steps_saved())

    def resumed(self, steps: int, **changes: Any) -> tuple[str, Path]:
        """The digest of going on from ``steps``, and where."""
        name = f"from-{steps}-{self.random.random()}"
        copy = cut_back(self.run, steps, name)
        settings = {**self.config.__dict__, "name": name, "checkpoint_every_steps": None, **changes}
        return trained(dqn.Config(**settings), resume_run=copy), copy


@pytest.fixture(scope="module", params=[False, True], ids=["uniform", "prioritised"])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, session_seed: int) -> Whole:
    return Whole(tmp_path_factory.mktemp("whole"), session_seed, request.param)


# ---- C5: bit by bit


def test_a_run_goes_on_bit_by_bit_from_any_checkpoint(whole: Whole) -> None:
    before_warm_up, *later, end = whole.saved
    assert (before_warm_up < WARM_UP, end) == (True, STEPS)
    chosen = [before_warm_up, *sorted(whole.random.sample(later, 2))]
    for steps in chosen:
        digest, run = whole.resumed(steps)
        assert digest == whole.digest, f"resumed at {steps}"
        assert rows(run) == rows(whole.run), f"resumed at {steps}"
        shutil.rmtree(run)
    print(f"C5: resumed at {chosen} of {STEPS} steps: {len(chosen)}/{len(chosen)} identical")


@pytest.mark.parametrize("whole", [False], ids=["uniform"], indirect=True)
def test_neither_threads_nor_checkpoints_change_a_bit(whole: Whole, tmp_path: Path) -> None:
    changes = {"runs": tmp_path, "threads": 2, "checkpoint_every_steps": None, "log_every_steps": 40}
    assert trained(dqn.Config(**{**whole.config.__dict__, **changes})) == whole.digest


@pytest.mark.parametrize("whole", [False], ids=["uniform"], indirect=True)
def test_a_finished_run_that_is_given_more_steps_is_the_longer_run(whole: Whole, tmp_path: Path) -> None:
    config = dqn.Config(**{**whole.config.__dict__, "runs": tmp_path, "steps": 160, "checkpoint_every_steps": None})
    trained(config)
    assert RunDir.open(tmp_path / "whole").finished
    longer = dqn.Config(**{**config.__dict__, "steps": STEPS})
    assert trained(longer, resume_run=tmp_path / "whole") == whole.digest
    assert RunDir.open(tmp_path / "whole").config["steps"] == STEPS


@pytest.mark.parametrize("whole", [False], ids=["uniform"], indirect=True)
@pytest.mark.parametrize("what", ["exploration", "optimiser", "replay draws", "games"])
def test_what_is_not_restored_is_noticed(whole: Whole, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted mistakes."""
    if what == "exploration":
        monkeypatch.setattr(seeds, "restore_generator", lambda *_: None)
    elif what == "optimiser":
        monkeypatch.setattr(optimisers.FlatOptimiser, "load", lambda *_: None)
    elif what == "replay draws":
        load = dqn.RecordedAtari.start

        def start_and_draw(self: Any, states: Any = None) -> None:
            load(self, states)
            if states is not None:
                self.replay.sample(1, n_step=3)

        monkeypatch.setattr(dqn.RecordedAtari, "start", start_and_draw)
    else:
        monkeypatch.setattr(session.GameStatistics, "load", lambda self, state: self.add(1.0, 4, 1))
    assert whole.resumed(whole.saved[-2])[0] != whole.digest


def test_another_seed_is_another_run(tmp_path: Path) -> None:
    short = {"steps": 40, "warm_up_steps": 20}
    digests = [trained(config_of(tmp_path, f"s{n}", seed=seed, **short)) for n, seed in enumerate((0, 0, 1))]
    assert digests[0] == digests[1] != digests[2]


def killed_and_resumed(nursery: Nursery, runs: Path, name: str, rng: random.Random, kills: int, **changes: Any) -> str:
    """The digest of a run that was killed at random moments."""
    config = config_of(runs, name, checkpoint_every_steps=4 * rng.randint(5, 15), **changes)
    log, run = runs / f"{name}.log", runs / name
    child = start(nursery, config, log)
    done = 0
    while done < kills:
        wait_for_a_checkpoint(child, run)
        time.sleep(rng.random() * 1.5)
        child.kill()
        if child.wait() == 0:
            break
        done += 1
        require_resumable(run)
        child = start(nursery, config, log, resume_run=run)
    assert child.wait() == 0, child.said()
    return digest_of(run)


def test_killed_for_real_at_random_moments(nursery: Nursery, whole: Whole, tmp_path: Path, session_seed: int) -> None:
    rng = random.Random(session_seed)
    kills = 1 if whole.config.prioritised else 2
    settings = {"prioritised": whole.config.prioritised}
    assert killed_and_resumed(nursery, tmp_path, "killed", rng, kills, **settings) == whole.digest
    assert rows(tmp_path / "killed") == rows(whole.run)


# ---- T4, T6


def test_a_loss_that_is_no_number_ends_the_run_and_keeps_the_checkpoint_from_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tmp_path, "run", steps=200, checkpoint_every_steps=60)
    right, calls = dqn.td_loss, []

    def wrong_at_last(*arguments: Any) -> torch.Tensor:
        calls.append(1)
        return right(*arguments) * (float("nan") if len(calls) == 12 else 1.0)

    monkeypatch.setattr(dqn, "td_loss", wrong_at_last)
    with pytest.raises(SystemExit) as ended:
        command_line.main(dqn.TRAINER, flags_of(config))
    assert "the loss is nan at update 12" in str(ended.value.code)
    assert isinstance(ended.value.code, str)  # so the exit code is 1
    found = require_resumable(tmp_path / "run")
    assert found.checkpoint.steps == 120
    assert all(tensor.isfinite().all() for tensor in found.checkpoint.tensors.values())
    monkeypatch.undo()
    assert dqn.train(config, resume_run=tmp_path / "run").steps == 200


def test_no_checkpoint_is_made_of_weights_that_are_no_numbers(tmp_path: Path) -> None:
    with a_run(tmp_path) as run:
        assert run.take_turn()
        run.session.stepped(4, [])
        with pytest.raises(session.NonFiniteLoss, match="w is not finite after update 1"):
            run.session.checkpoint({"w": torch.tensor([1.0, float("inf")])}, {})
    assert require_whole(tmp_path).checkpoint.steps == STEPS_A_TURN


_SIGNALS = (3, 2)  # to each of two runs side by side; tests/kills.py sends more


def test_signals_end_a_training_soon_with_a_checkpoint_and_nothing_left(
    nursery: Nursery, tmp_path: Path, session_seed: int
) -> None:
    def signalled(number: int) -> float:
        return slowest_end(nursery, tmp_path / f"run{number}", random.Random(session_seed + number), _SIGNALS[number])

    with ThreadPoolExecutor() as both:
        slowest = max(both.map(signalled, range(len(_SIGNALS))))
    print(f"T6: {sum(_SIGNALS)} signals: at most {slowest:.2f} s, checkpoints whole, nothing left")
    assert slowest < soon_s()


def slowest_end(nursery: Nursery, run: Path, rng: random.Random, signals: int) -> float:
    """How long the slowest took of the ends of a run that is signalled and resumed so often, in s."""
    slowest = 0.0
    flags = flags_of(config_of(run.parent, run.name, steps=10_000_000, evaluate_every_steps=40))
    for turn in range(signals):
        child = nursery.start("nursery:train", flags, output=run.with_suffix(".log"))
        began = CheckpointStore(run / "checkpoints").steps_saved()
        size = (run / "metrics.csv").stat().st_size if turn else 0
        patience = time.monotonic() + 60
        while not (run / "metrics.csv").exists() or (run / "metrics.csv").stat().st_size == size:
            time.sleep(0.01)
            assert time.monotonic() < patience, child.said()
        time.sleep(rng.random())
        number, code = rng.choice([(signal.SIGINT, 130), (signal.SIGTERM, 143)])
        sent = time.monotonic()
        child.kill(number)
        assert child.wait(20) == code, child.said()
        slowest = max(slowest, time.monotonic() - sent)
        assert child.processes() == []
        assert processes_with(str(run)) == []
        found = require_resumable(run)
        assert found.checkpoint.steps > (began[0] if began else 0)
        # The first life had a process that evaluates; the others go without, whose start takes seconds.
        flags = ["--resume", str(run), "--evaluate-every-steps", "0"]
        for path in (run / "evaluations").glob("*"):
            path.unlink()
    return slowest


# ---- what is refused


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a few turns; copied before it is changed."""
    runs = tmp_path_factory.mktemp("stopped")
    with a_run(runs) as run:
        for _ in range(3):
            run.take_turn()
    return runs


def changed(stopped: Path, tmp_path: Path, **facts: Any) -> Path:
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    run = RunDir.open(tmp_path / "run")
    run.update(**{name: {**run.description[name], **f} if isinstance(f, dict) else f for name, f in facts.items()})
    return run.path


def refused(match: str, path: Path, **how: bool) -> None:
    with pytest.raises(ValueError, match=match):
        resume(path, **{"without_replay": False, "accept_changed_bits": False, **how})


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    refused("is not a directory", tmp_path / "absent")
    refused("has no config.json, so it is not a run of fastrl", tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    refused(r"has format None, this version of fastrl reads 1", tmp_path)
    (tmp_path / "config.json").write_text('{"format": 1, "algorithm": "dqn"}')
    refused("config.json has no config, or not as a dict", tmp_path)
    (tmp_path / "config.json").write_text("[" * 100_000)
    refused("config.json cannot be read", tmp_path)


def test_a_run_without_a_checkpoint_is_refused(stopped: Path, tmp_path: Path) -> None:
    run = changed(stopped, tmp_path)
    shutil.rmtree(run / "checkpoints")
    refused("has no checkpoint yet; start it again under another name", run)


def test_a_run_of_another_algorithm_is_refused(stopped: Path, tmp_path: Path) -> None:
    run = changed(stopped, tmp_path, algorithm="ddpg")
    with pytest.raises(NotARun, match=r"is a run of ddpg; go on with it by python -m fastrl.ddpg"):
        command_line.parse(dqn.TRAINER, ["--resume", str(run)])
    found = resume(run, without_replay=False, accept_changed_bits=False)
    with pytest.raises(NotARun, match="is a run of ddpg, this is dqn"), a_run(tmp_path, found):
        pass


def test_settings_that_shape_learning_cannot_change(stopped: Path, tmp_path: Path) -> None:
    run = changed(stopped, tmp_path)
    found = resume(run, without_replay=False, accept_changed_bits=False)
    with (
        pytest.raises(NotARun, match=r"would become another run: learning_rate was 0.5 and is 0.25"),
        a_run(tmp_path, found, learning_rate=0.25),
    ):
        pass
    with a_run(tmp_path, found, steps=500, keep_checkpoints=7, log_every_steps=3) as again:
        assert again.session.config.keep_checkpoints == 7


def test_settings_changed_by_hand_are_noticed(stopped: Path, tmp_path: Path) -> None:
    run = changed(stopped, tmp_path, config={"learning_rate": 0.125})
    refused("is not what its checkpoint was made under: learning_rate was 0.5 and is 0.125", run)


def test_other_versions_are_refused_unless_accepted(stopped: Path, tmp_path: Path) -> None:
    run = changed(stopped, tmp_path, versions={"torch": "1.0", "mujoco": "1.0", "of_a_later_fastrl": "7"})
    refused("was trained under other versions .torch 1.0 -> .*--accept-changed-bits", run)
    found = resume(run, without_replay=False, accept_changed_bits=True)
    with a_run(tmp_path, found) as again:
        assert "torch 1.0 ->" in again.session._notes[0]
        assert "mujoco 1.0 ->" in again.session._notes[0]
        assert "of_a_later_fastrl 7 -> None" in again.session._notes[0]
    assert RunDir.open(run).description["versions"]["torch"] == torch.__version__


def test_other_rules_or_sizes_are_refused_unless_accepted(stopped: Path, tmp_path: Path) -> None:
    run = changed(stopped, tmp_path, lanes=3)
    found = resume(run, without_replay=False, accept_changed_bits=False)
    with pytest.raises(NotARun, match=r"lanes of .* was 3 and is 2 here"), a_run(tmp_path, found):
        pass


def test_a_checkpoint_without_a_replay_is_refused_and_says_what_helps(tmp_path: Path) -> None:
    with a_run(tmp_path, checkpoint_replay=False) as run:
        assert run.take_turn()
    assert not (tmp_path / "run" / "checkpoints" / "replay").exists()
    refused("has no replay; --resume-without-replay fills a new one", tmp_path / "run")
    found = resume(tmp_path / "run", without_replay=True, accept_changed_bits=False)
    assert (found.replay_save, found.env_states) == (None, None)


def test_one_process_trains_a_run(nursery: Nursery, tmp_path: Path) -> None:
    with a_run(tmp_path) as run:
        assert run.take_turn()
        child = nursery.start("small_run:go_on", str(tmp_path), output=tmp_path / "log")
        assert child.wait() == 0, child.said()
        assert "another process trains" in child.said()
    child = nursery.start("small_run:go_on", str(tmp_path), output=tmp_path / "log")
    assert child.wait() == 0
    assert "gone on at 20" in child.said()


def test_another_machine_is_said(stopped: Path, tmp_path: Path) -> None:
    run = changed(stopped, tmp_path, machine={"cpu": "Z80"})
    with a_run(tmp_path, resume(run, without_replay=False, accept_changed_bits=False)) as again:
        assert "bits may differ: cpu Z80 ->" in again.session._notes[0]


def test_a_session_that_cannot_begin_leaves_the_run_to_others(stopped: Path, tmp_path: Path) -> None:
    run = changed(stopped, tmp_path)
    (run / "metrics.csv").write_text("not,metrics\n")
    with pytest.raises(ValueError, match="begins with"), a_run(tmp_path, require_whole(tmp_path)):
        pass
    (run / "metrics.csv").unlink()
    with a_run(tmp_path, require_whole(tmp_path)) as again:
        assert again.take_turn()


def test_the_proof_of_resuming_is_refused_where_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="CartPole-v1 is an env of Gymnasium, whose state cannot be saved"):
        command_line.main(dqn.TRAINER, ["--preset", "classic", "--verify-resume", "100", "--runs", str(tmp_path)])
