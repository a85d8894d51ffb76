"""Plans: worked out rightly from what was tried, and true of a real run's memory, files and clock."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from made_up_trial import SHAPE, TRIED
from tiny_training import TINY_PONG, preset

from fastrl import a3c, dqn, plan
from fastrl.engine.ring_sizes import ring_bytes
from fastrl.runs import planning, process_memory, trial
from fastrl.runs.child_run import ChildRun

AVAILABLE = FREE = 20_000_000_000


# Of each kind a training of some seconds: with a replay, with evaluations beside it, of workers that are processes.
REAL: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "dqn": (dqn.TRAINER, "fast", {"steps": 4_500, "replay_capacity": 40_000, "warm_up_steps": 3_000}),
    "dqn with evaluations": (
        dqn.TRAINER,
        "classic",
        {
            "env": "CartPole-v1",
            "network": "mlp",
            "steps": 3_000,
            "evaluate_every_steps": 1_500,
            "evaluation_episodes": 30,
        },
    ),
    "a3c of two processes": (a3c.TRAINER, "fast", {"steps": 4_000, "workers": 2, "envs_per_worker": 4}),
}


def config(**changes: Any) -> dqn.Config:
    settled = {"replay_capacity": 80_000, "steps": 1_000_000, "warm_up_steps": 10_000, "num_envs": 8}
    return preset(dqn.TRAINER, "fast", **{**settled, **changes})  # type: ignore[no-any-return]


def parts(of: list[planning.Part]) -> dict[str, float]:
    return {part.name: part.amount for part in of}


def test_a_plan_is_worked_out_from_what_was_tried() -> None:
    found = planning.plan(config(), TRIED, AVAILABLE, FREE)

    assert parts(found.memory) == {
        "replay": ring_bytes(SHAPE, 10_000),
        "networks": 6_000_000,
        "optimiser": 12_000_000,
        "trainer": 282_000_000,
        "evaluation": 200_000_000,
    }
    # Five evaluations of 20 seconds, one core left of four: only the end waits, for the last of them.
    assert parts(found.time) == {"start and end": 5.0, "warm-up": 2.0, "learning": 990_000 / 250, "evaluations": 20.0}
    # Two checkpoints ten minutes apart, the older of which needs what the ring has lost since.
    between = int(600 * 1_000_000 / found.time_s)
    kept = 80_000 - 8 * (10_000 - (10_000 - planning.guard_steps())) + between
    assert parts(found.disk) == {
        "checkpoints": 40_000_000,
        "the best weights": 18_000_000,
        "metrics": 200 * 500.0,
        "saved replays": kept * 7_136,
    }
    assert found.fits
    assert found.replay_capacity == 80_000


@pytest.mark.parametrize(("others", "told"), [(0.0, False), (0.2, False), (0.9, True)])
def test_who_took_the_cores_meanwhile_is_told(others: float, told: bool) -> None:
    lines = plan.lines_of(planning.plan(config(), dataclasses.replace(TRIED, others_cores=others), AVAILABLE, FREE))
    assert any("other programs took 0.9 of 4 cores while it was tried" in line for line in lines) is told


@pytest.mark.parametrize("prioritised", [False, True])
def test_what_does_not_fit_is_told_with_what_does(prioritised: bool) -> None:
    def planned(capacity: int) -> planning.Plan:
        return planning.plan(config(replay_capacity=capacity, prioritised=prioritised), TRIED, AVAILABLE, FREE)

    found = planned(5_000_000)

    assert not found.fits
    assert found.most_capacity is not None
    assert planned(found.most_capacity).fits
    assert not planned(found.most_capacity + 8).fits
    assert plan.lines_of(found)[-1].endswith(f"--replay-capacity {found.most_capacity}")


@pytest.mark.parametrize(("replay", "room"), [(True, 3_000_000_000), (False, 1_000_000_000)])
def test_a_disk_that_is_too_small_is_told_with_what_fits(replay: bool, room: int) -> None:
    def planned(checkpoints: int, free: int = room) -> planning.Plan:
        wanted = config(keep_checkpoints=checkpoints, steps=10_000_000, checkpoint_replay=replay)
        return planning.plan(wanted, TRIED, AVAILABLE, free)

    found = planned(300)

    assert found.fits
    assert not found.fits_on_disk
    assert found.disk_bytes > sum(part.amount for part in found.disk)  # while one more is written
    assert 1 < found.most_checkpoints < 300
    assert planned(found.most_checkpoints).fits_on_disk
    assert not planned(found.most_checkpoints + 1).fits_on_disk
    assert plan.lines_of(found)[-1] == (
        f"it does not fit on the disk: --keep-checkpoints {found.most_checkpoints} does"
    )
    assert "not even one checkpoint does; make room" in plan.lines_of(planned(300, free=30_000_000))[-1]


def test_an_automatic_capacity_leaves_what_the_rest_takes() -> None:
    found = planning.plan(config(replay_capacity="auto"), TRIED, 8_000_000_000, FREE)

    assert found.replay_capacity is not None
    assert found.memory_bytes < 8_000_000_000 - 3_900_000_000
    assert found.replay_capacity > 480_000


@pytest.mark.parametrize(
    ("capacity", "available", "error", "message"),
    [
        ("auto", 4_000_000_000, MemoryError, "'auto' leaves 4 GB to the rest"),
        (100, AVAILABLE, ValueError, "100 is 13 for each of 8 lanes"),
        (10**20, AVAILABLE, ValueError, "capacity"),
    ],
)
def test_capacities_that_a_replay_refuses_are_refused(
    capacity: Any, available: int, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        planning.plan(config(replay_capacity=capacity), TRIED, available, FREE)


def test_short_runs_have_what_they_come_to() -> None:
    wanted = config(steps=5_000, evaluate_every_steps=0, checkpoint_replay=False)
    found = planning.plan(wanted, dataclasses.replace(TRIED, evaluation=None), AVAILABLE, FREE)

    assert parts(found.time) == {"start and end": 5.0, "warm-up": 1.0, "learning": 0.0}
    assert parts(found.disk) == {"checkpoints": 20_000_000, "metrics": 500.0}


@pytest.mark.parametrize(
    ("trainer", "wanted_cores", "workers_bytes", "every", "added_s", "why"),
    [
        (
            dqn.TRAINER,
            3.0,
            0,
            250_000,
            20,
            "4 of 20s, as measured (games of 800 steps); beside learning but for the end",
        ),
        # All threads wait for the one whose core is shared, up to the end of each evaluation.
        (dqn.TRAINER, 4.0, 0, 250_000, 4 * 20, "4 of 20s, as measured (games of 800 steps); learning wants 4.0 of 4"),
        (dqn.TRAINER, 3.5, 0, 250_000, 3 * 10 + 20, "learning wants 3.5 of 4 cores too"),
        # Of workers that do not wait for each other four cores bear it together.
        (a3c.TRAINER, 4.0, 10**8, 250_000, 3 * 5 + 20, "learning wants 4.0 of 4 cores too"),
        # More than can be done meanwhile: the end waits for all that are left. 4000 s and what the first waited for.
        (dqn.TRAINER, 1.0, 0, 1_000, 1_000 * 20 - 4_005 * 0.999, "1,000 of 20s"),
    ],
)
def test_evaluations_take_their_time(
    trainer: Any, wanted_cores: float, workers_bytes: int, every: int, added_s: float, why: str
) -> None:
    asked = {"steps": 1_000_000, "evaluate_every_steps": every}
    wanted = preset(trainer, "fast", **asked, **({"warm_up_steps": 0} if trainer is dqn.TRAINER else {}))
    tried = dataclasses.replace(
        TRIED, wanted_cores=wanted_cores, workers_bytes=workers_bytes, warm_up_steps_per_s=None, replay_shape=None
    )
    found = planning.plan(wanted, tried, AVAILABLE, FREE).time[-1]

    assert found.name == "evaluations"
    assert found.amount == pytest.approx(added_s)
    assert why in found.why


def test_an_evaluation_that_was_not_over_is_said_to_be_one() -> None:
    assert TRIED.evaluation is not None
    tried = dataclasses.replace(TRIED, evaluation=dataclasses.replace(TRIED.evaluation, game_steps=None))

    assert "4 of at least 20s, when the one that was measured was not over" in "\n".join(
        plan.lines_of(planning.plan(config(evaluate_every_steps=250_000), tried, AVAILABLE, FREE))
    )


def test_priorities_are_counted() -> None:
    with_them = planning.plan(config(prioritised=True), TRIED, AVAILABLE, FREE)

    assert parts(with_them.memory)["priorities"] == 2 * 8 * 2**17


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--algo", "dqm"], "--algo: 'dqm' is unknown; did you mean 'dqn'?"),
        (["--algo", "dqn", "--seconds", "0"], r"--seconds 0.0 is outside \(0, 3600\]"),
        (["--algo", "dqn", "--seeds", "0-3"], "one new run is looked at here"),
        (["--algo", "dqn", "--env", "Nothing-v0"], "'Nothing-v0' is neither an Atari game nor an env of Gymnasium"),
        (["--algo", "dqn", "--output", "/proc/x.json"], "nothing can be written where /proc/x.json is to be"),
    ],
)
def test_wrong_questions_are_refused(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=message):
        plan.main(arguments)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.alone
@pytest.mark.parametrize("which", REAL)
def test_a_plan_is_true_of_a_real_run(which: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Beside the process's own peak memory, its files and its clock: within 5 % and, of the time, 25 %.

    Memory is the most of the trainer, and the most of all that it started together.
    """
    trainer, named, asked = REAL[which]
    asked = {**TINY_PONG, "log_every_steps": 250, "tensorboard": True, "runs": tmp_path, **asked}
    wanted = preset(trainer, named, **asked)
    flags = [
        f"--{'' if value else 'no-'}{name.replace('_', '-')}"
        if isinstance(value, bool)
        else f"--{name.replace('_', '-')}={value}"
        for name, value in asked.items()
    ]
    output = tmp_path / "plan.json"
    for attempt in range(3):  # a machine that others use too has no steady speed
        with pytest.raises(SystemExit) as ended:
            plan.main(["--algo", trainer.algorithm, "--preset", named, *flags, "--seconds=2", f"--output={output}"])
        assert ended.value.code == 0
        assert "it fits" in capsys.readouterr().out
        found = json.loads(output.read_text())
        began = time.perf_counter()
        with ChildRun(trainer, dataclasses.replace(wanted, name=f"real{attempt}")) as child:
            peak = process_memory.PeakMemory(child.process.pid)
            while child.process.poll() is None:
                time.sleep(0.05)
                peak.look()
        took_s = time.perf_counter() - began
        assert child.process.returncode == 0
        # That a run says where its time goes costs less than a hundredth of it; but for CartPole's warm-up, whose
        # step of 50 us has as many stamps as any.
        shares, updates = (column(child.path / "metrics.csv", name) for name in ("stamps_share", "updates"))
        quick = wanted.env == "CartPole-v1"
        assert max(share for share, done in zip(shares, updates, strict=True) if done > 0 or not quick) < 0.01

        planned = {name: sum(part["amount"] for part in found[name]) for name in ("memory", "disk", "time")}
        on_disk = sum(path.stat().st_size for path in child.path.rglob("*") if path.is_file())
        memory = planned["memory"] / (peak.own_bytes + peak.descendants_bytes)
        print(
            f"planned / real: memory {memory:.3f}, disk {planned['disk'] / on_disk:.3f}, "
            f"time {planned['time'] / took_s:.2f}"
        )
        assert planned["disk"] / on_disk == pytest.approx(1, abs=0.05)
        assert memory == pytest.approx(1, abs=0.05)
        if planned["time"] / took_s == pytest.approx(1, abs=0.25):
            return
    pytest.fail(f"the time was planned as {planned['time']:.1f} s and was {took_s:.1f} s")


def test_memory_is_what_a_process_was_seen_to_take() -> None:
    """Known amounts, beside the kernel's own counters: memory of its own, and memory shared that is mapped twice."""
    own, shared = 60_000_000, 40_000_000
    code = (
        "import mmap, os, sys\nsys.stdin.readline()\n"
        f"own = b'x' * {own}\nfile = os.memfd_create('shared')\nos.ftruncate(file, {shared})\n"
        f"maps = [mmap.mmap(file, {shared}) for _ in range(2)]\n"
        f"for each in maps: each[:] = b'y' * {shared}\n"
        "print(flush=True)\nsys.stdin.readline()\n"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-S", "-c", code], text=True, **pipes) as process:  # type: ignore[call-overload]
        time.sleep(0.5)
        before, resident_before = process_memory.memory_bytes(process.pid), resident(process.pid)
        process.stdin.write("\n")
        process.stdin.flush()
        process.stdout.readline()
        took, resident_took = process_memory.memory_bytes(process.pid) - before, resident(process.pid) - resident_before
        process.stdin.write("\n")

    assert took == pytest.approx(own + shared, rel=0.03)
    assert resident_took == pytest.approx(own + 2 * shared, rel=0.03)  # which counts a page once a mapping


def resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("phase", ["training", "evaluating"])
def test_a_plan_that_is_told_to_end_leaves_nothing(tmp_path: Path, phase: str) -> None:
    command = ["-m", "fastrl.plan", "--algo", "dqn", "--env", "CartPole-v1", "--steps", "100000000"]
    command += ["--seconds", "600" if phase == "training" else "0.2", "--evaluation-episodes", "100000"]

    def there(planner: int) -> bool:
        if phase == "training":
            return bool(list(tmp_path.glob("runs/.plan-*/trial/metrics.csv")))
        return any(
            "fastrl.runs.background_evaluation" in command_line_of(pid) for pid in process_memory.processes(planner)
        )

    with subprocess.Popen([sys.executable, *command], cwd=tmp_path, stdout=subprocess.DEVNULL) as planning_process:
        try:
            patience = time.monotonic() + 60
            while not there(planning_process.pid):
                assert time.monotonic() < patience
                time.sleep(0.05)
            trained = process_memory.processes(planning_process.pid)
            planning_process.send_signal(signal.SIGTERM)
            assert planning_process.wait(60) == 128 + signal.SIGTERM
        finally:
            planning_process.kill()
    assert trained
    # What had only just been started is ended by the kernel, once the planner is gone.
    patience = time.monotonic() + 5
    while left := [pid for pid in trained if Path(f"/proc/{pid}").exists()]:
        assert time.monotonic() < patience, left
        time.sleep(0.01)
    assert not list(tmp_path.iterdir())


def command_line_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def column(path: Path, name: str) -> list[float]:
    with open(path, newline="") as file:
        return [float(row[name]) for row in csv.DictReader(file)]


def test_workers_of_other_processes_are_counted(tmp_path: Path) -> None:
    wanted = preset(a3c.TRAINER, "classic", workers=2, sync=False, runs=tmp_path / "runs", evaluate_every_steps=0)
    found = trial.try_out(a3c.TRAINER, wanted, 1.0)

    assert found.replay_shape is None
    assert found.workers_bytes > 50_000_000
    assert found.warm_up_steps_per_s is None
    assert not (tmp_path / "runs").exists()
    assert "its other processes" in parts(planning.plan(wanted, found, AVAILABLE, FREE).memory)


def test_what_was_freed_is_given_back() -> None:
    process_memory.give_back_memory()  # of the tests before: blocks are not to find it
    before = process_memory.memory_bytes(os.getpid())
    blocks = [bytes(100_000) for _ in range(600)]
    kept = blocks[::60]  # so that the C library finds no whole end of its memory to give back by itself
    kept.append(bytes(100_000))
    del blocks
    freed = process_memory.memory_bytes(os.getpid())
    process_memory.give_back_memory()
    given_back = process_memory.memory_bytes(os.getpid())

    assert freed - before > 40_000_000  # else there is nothing to see here
    assert given_back - before < 15_000_000
    assert len(kept) == 11
