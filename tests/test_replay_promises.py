"""Rows R6, R9 and R10 of docs/reliability.md: memory that is short, ways to start processes, waits that end.

Each test prints its figure (pytest -rP).
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import platform
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from replay_processes import every_use, observation, own_and_wait, write_large_for_ever
from written_replay import GAMMA, small_replay

import fastrl
from fastrl.engine import budget

# ---- R6: too little memory is an exception, never a signal

SCENARIOS = {
    "no address space for the ring": """
        limit(resource.RLIMIT_AS, used() + 100_000_000)
        refused("address space", lambda: fastrl.Replay(30_000))
    """,
    "none for a writer's view of its lane": """
        made = fastrl.Replay(20_000, 1)
        limit(resource.RLIMIT_AS, used() + 50_000_000)
        refused("address space", lambda: made.writer(0))
        limit(resource.RLIMIT_AS, resource.RLIM_INFINITY)
        made.writer(0).start(np.zeros((84, 84), np.uint8))
    """,
    "none to attach": """
        made = fastrl.Replay(20_000, 1)
        limit(resource.RLIMIT_AS, used() + 50_000_000)
        refused("address space", lambda: fastrl.Replay.attach(made.handle()))
        refused("address space", lambda: fastrl.Replay.observe(made.handle()))
    """,
    "none for a batch": """
        made = filled()
        limit(resource.RLIMIT_AS, used() + 50_000_000)
        refused("no memory for 100,000 transitions", lambda: made.sample(100_000))
        refused("no memory for the batch", lambda: made.prefetch(100_000).request())
        made.sample(32)
    """,
    "none to save": """
        made = filled()
        limit(resource.RLIMIT_AS, used() + 4_000_000)
        refused("", lambda: made.save(directory))
        limit(resource.RLIMIT_AS, resource.RLIM_INFINITY)
        made.save(directory)
        fastrl.Replay(2000, 1).load(directory)
    """,
    "files may not be so large": """
        limit(resource.RLIMIT_FSIZE, 1_000_000)
        refused("bytes of shared memory could not be had", lambda: fastrl.Replay(2000, 1))
    """,
    "no descriptor left": """
        opened = []
        try:
            while True:
                opened.append(os.open("/dev/null", os.O_RDONLY))
        except OSError:
            pass
        refused("no shared memory can be made", lambda: fastrl.Replay(2000, 1))
    """,
    "the machine has less available": """
        replay.available_memory_bytes = lambda: 1_000_000_000
        refused("at most 129,368 fit", lambda: fastrl.Replay(1_000_000))
        refused("leaves 4 GB to the rest", lambda: fastrl.Replay("auto"))
    """,
    "a control group allows less": """
        from pathlib import Path
        group = Path(directory) / "group"
        group.mkdir()
        for name, text in (("memory.max", "300000000"), ("memory.current", "100000000"), ("memory.stat", "")):
            (group / name).write_text(text)
        membership = Path(directory) / "membership"
        membership.write_text("0::/group")
        replay.available_memory_bytes = lambda: budget.available_memory_bytes(Path(directory), membership)
        refused("0.2 GB are available", lambda: fastrl.Replay(1_000_000))
    """,
    "nobody could have so much": """
        refused("fit", lambda: fastrl.Replay(2**40))
        refused("", lambda: fastrl.Replay(2**40, obs_shape=(2**31,)))
    """,
}

PREAMBLE = """
import os, resource, sys
import numpy as np, fastrl
from fastrl.engine import budget, replay

directory = sys.argv[1]

def used():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")

def limit(what, most):
    resource.setrlimit(what, (most, resource.RLIM_INFINITY))

def filled():
    made = fastrl.Replay(2000, 1)
    with made.writer(0) as writer:
        writer.start(np.zeros((84, 84), np.uint8))
        for step in range(1000):
            writer.append(0, 0.0, np.zeros((84, 84), np.uint8), False, False)
    made.sample(32)
    return made

refusals = 0
def refused(message, call):
    global refusals
    try:
        call()
    except MemoryError as error:
        assert message in str(error), error
        refusals += 1
    else:
        raise AssertionError("it was allowed")

"""


def test_r6_too_little_memory_is_an_exception(tmp_path: Path) -> None:
    refusals = 0
    for name, code in SCENARIOS.items():
        directory = tmp_path / name.replace(" ", "_")
        directory.mkdir()
        lines = "\n".join(line[8:] for line in code.splitlines())
        script = PREAMBLE + lines + "\nprint(refusals)"
        command = [sys.executable, "-c", script, str(directory)]
        result = subprocess.run(command, capture_output=True, text=True, cwd="/")
        assert result.returncode == 0, f"{name}: status {result.returncode}\n{result.stderr}"
        refusals += int(result.stdout)
    print(f"R6: {len(SCENARIOS)} scenarios: {refusals} exceptions, 0 signals")


def own_group_and_limit() -> Iterator[tuple[Path, str]]:
    """Where a control group with a limit on memory could be made: its directory, the name of its limit."""
    for group in budget._control_groups("memory", budget.CGROUP_ROOT, budget.MEMBERSHIP):
        yield group / f"fastrl-test-{os.getpid()}", "memory.limit_in_bytes"  # version 1
        yield group.parent / f"fastrl-test-{os.getpid()}", "memory.max"  # version 2: none below one with processes


@pytest.fixture
def control_group() -> Iterator[Path]:
    """A real one, which allows 400 MB."""
    obstacles = ["this process is in none"]
    for directory, limit in own_group_and_limit():
        try:
            directory.mkdir()
        except OSError as error:
            obstacles.append(str(error))
            continue
        try:
            # To write only what is there: elsewhere a file of that name could be made.
            with (directory / limit).open("r+") as file:
                file.write("400000000")
        except OSError as error:
            obstacles.append(str(error))
            directory.rmdir()
            continue
        yield directory
        directory.rmdir()
        return
    pytest.skip(f"no control group with a limit on memory can be made here: {obstacles[-1]}")


IN_A_GROUP = """
        with open(os.path.join(directory, "cgroup.procs"), "w") as file:
            file.write(str(os.getpid()))
        assert budget.available_memory_bytes() < 400_000_000
        try:
            fastrl.Replay(1_000_000)
        except MemoryError as error:
            most = int(str(error).split("at most ")[1].split(" ")[0].replace(",", ""))
        made = fastrl.Replay(most)
        for lane in range(made.lanes):  # all of it is touched: what was not really there would end this process now
            with made.writer(lane) as writer:
                writer.start(np.full((84, 84), lane, np.uint8))
                for step in range(most // made.lanes):
                    writer.append(0, 0.0, np.full((84, 84), step % 256, np.uint8), False, False)
        made.sample(32)
        refused("not even the least", lambda: fastrl.Replay(most))
        made.digest()
        made.save(sys.argv[2])
        del made
        try:
            fastrl.Replay(10**9, obs_shape=(4,), obs_dtype="float32", stack=1, alpha=0.6)
        except MemoryError as error:
            vectors = int(str(error).split("at most ")[1].split(" ")[0].replace(",", ""))
        made = fastrl.Replay(vectors, obs_shape=(4,), obs_dtype="float32", stack=1, alpha=0.6)
        with made.writer(0) as writer:
            writer.start(np.zeros(4, np.float32))
            for step in range(100):
                writer.append(0, 0.0, np.zeros(4, np.float32), False, False)
        made.sample(32)
        made.digest()
        print(most, vectors)
"""


def test_r6_under_a_real_control_group(control_group: Path, tmp_path: Path) -> None:
    script = PREAMBLE + "\n".join(line[8:] for line in IN_A_GROUP.splitlines())
    command = [sys.executable, "-c", script, str(control_group), str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, cwd="/")
    assert result.returncode == 0, f"status {result.returncode}\n{result.stderr}"
    most, vectors = (int(number) for number in result.stdout.split())
    assert 20_000 < most < 55_000  # 7 kB each, beside what Python takes
    assert 1_000_000 < vectors < 8_000_000
    print(
        f"R6: in a control group of 400 MB a ring of {most:,}, as many as it said, was filled, drawn from and saved, "
        f"and one of {vectors:,} vectors with priorities drawn from: 0 signals"
    )


def test_r6_this_machine_tells_how_much_memory_is_left() -> None:
    assert budget.available_memory_bytes() > 0  # by its own files; test_protocols.py has those of many others


# ---- R9: fork, spawn and forkserver

METHODS = ("fork", "spawn", "forkserver")


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_r9_every_way_to_start_a_process_works() -> None:
    """Another process writes, samples, prefetches, saves and observes; what was forked and not attached says so."""
    rows = []
    for method in METHODS:
        context = multiprocessing.get_context(method)
        made = small_replay(capacity=200, alpha=0.6)
        with made.writer(0) as writer:
            writer.start(observation(0, 0))
            for step in range(1, 30):
                writer.append(step % 5, step / 7, observation(0, step), False, False)
        here, there = context.Pipe()
        inherited = made if method == "fork" else None
        process = context.Process(target=every_use, args=(made.handle(), inherited, there), daemon=True)
        process.start()
        there.close()
        assert here.poll(60), method
        said = here.recv()
        process.join(20)
        assert process.exitcode == 0
        assert set(said.values()) == {"ok"}, said
        assert made.boundary() == [30, 30]
        assert {lane for lane, _ in made.sample(64, 1, GAMMA).index.tolist()} == {0, 1}
        rows.append(f"{method}: {', '.join(said)}")
    print(f"R9: Python {platform.python_version()}: " + "; ".join(rows))


# ---- R10: no wait outlives its time

LONGEST_S = 5.0


@contextlib.contextmanager
def another_process(work: Callable[..., None], *arguments: Any) -> Iterator[tuple[Any, Any]]:
    """A process and what it says first; killed at the end, stopped or not."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=work, args=(*arguments, there), daemon=True)
    process.start()
    there.close()
    try:
        assert here.poll(30)
        yield process, here.recv()
    finally:
        process.kill()
        process.join(10)


class Timed:
    """Calls that must end, whatever others are stopped or dead."""

    def __init__(self) -> None:
        self.states = 0
        self.calls = 0
        self.longest_s = 0.0

    def __call__(self, call: Callable[[], Any], *allowed: type[Exception]) -> None:
        began = time.monotonic()
        with contextlib.suppress(*allowed):
            call()
        took = time.monotonic() - began
        self.calls += 1
        self.longest_s = max(self.longest_s, took)
        assert took < LONGEST_S

    def figure(self) -> str:
        return f"{self.calls} calls: 0 hangs, longest {self.longest_s * 1e3:.0f} ms"

    def use_all(self, made: fastrl.Replay, directory: Path, written_lane: int) -> None:
        """Every call that reads, and the refusal of a lane."""
        self.states += 1
        self(lambda: made.sample(16, 1, GAMMA))
        self(lambda: made.sample(4, 3, GAMMA) if made.alpha is None else None)
        self(made.stacks)
        self(made.boundary)
        self(made.stats)
        self(lambda: made.writer(written_lane), fastrl.LaneBusy)
        self(lambda: made.save(directory), RuntimeError)  # the writers are to rest: it may say that they did not
        with fastrl.Replay.observe(made.handle()) as observer:
            self(observer.stacks)
            self(lambda: observer.newest(written_lane, 3))
        prefetcher = made.prefetch(8, gamma=GAMMA)
        self(prefetcher.request)
        self(lambda: prefetcher.take(timeout_s=LONGEST_S / 2))
        self(prefetcher.request)
        self(prefetcher.drain)
        self(prefetcher.close)


def names_the_stalled(made: fastrl.Replay, pid: int, stopped: bool) -> None:
    """A stall says which lane, which process, and for how long."""
    before = made.stats()
    assert before["writer_pids"] == [pid, os.getpid()]
    assert before["lanes_written"] == [stopped, False]
    time.sleep(0.05)
    silent_s = made.stats()["silent_s"][0]
    assert before["silent_s"][0] + 0.03 <= silent_s < LONGEST_S * 8
    newest = made.stats()["steps_published"][0] - 1
    state = "its writer, process {}, which is stopped" if stopped else "it has no writer now; the last one, process {},"
    said = made.stalls(0)[0]
    assert said.startswith(state.format(pid)), said
    assert f"published the newest step, {newest}, " in said
    assert made.stalls(3600) == {}
    with fastrl.Replay.observe(made.handle()) as observer:
        assert observer.stalls(0)[0].startswith(state.format(pid))
        assert observer.stats()["writer_pids"] == before["writer_pids"]


def test_r10_the_age_is_of_the_newest_step(tmp_path: Path) -> None:
    made = fastrl.Replay(300, 2, (4,), obs_dtype="float32", stack=1)
    assert made.stats()["writer_pids"] == made.stats()["silent_s"] == [None, None]
    zeros = np.zeros(4, np.float32)
    with made.writer(0) as writer:
        writer.start(zeros)
        time.sleep(1.0)
        told = made.stalls(0.9)
        writer.append(0, 0.0, zeros, False, False)
        silent_s = made.stats()["silent_s"][0]

        assert re.fullmatch(
            rf"its writer, process {os.getpid()}, published the newest step, 0, [1-9]\.[0-9] s ago", told[0]
        )
        assert silent_s < 0.9  # and not what has passed since the lane was taken
        assert made.stalls(0.9) == {}
    assert made.stalls(0)[0].startswith(f"it has no writer now; the last one, process {os.getpid()}, ")
    made.save(tmp_path)
    loaded = fastrl.Replay(300, 2, (4,), obs_dtype="float32", stack=1)
    loaded.load(tmp_path)
    assert loaded.stats()["steps_published"] == [2, 0]
    assert loaded.stalls(0) == {}  # whoever loaded it wrote nothing
    assert loaded.stats()["writer_pids"] == [None, None]


def test_r10_stopped_and_killed_writers_hold_nobody_up(tmp_path: Path) -> None:
    timed = Timed()
    # An observation of a megabyte: most stops are in the middle of a slot.
    made = fastrl.Replay(160, 2, (1024, 1024), stack=1)
    with made.writer(1) as writer:
        writer.start(np.zeros((1024, 1024), np.uint8))
        writer.append(0, 0.0, np.zeros((1024, 1024), np.uint8), False, False)
    rng = np.random.default_rng(0)
    for number in range(8):
        with another_process(write_large_for_ever, made.handle()) as (process, _):
            time.sleep(float(rng.uniform(0.001, 0.02)))
            kill = number % 4 == 3
            os.kill(process.pid, signal.SIGKILL if kill else signal.SIGSTOP)
            if kill:
                process.join(10)
            names_the_stalled(made, process.pid, stopped=not kill)
            timed.use_all(made, tmp_path, written_lane=0)
    with made.writer(0) as writer:
        writer.start(np.zeros((1024, 1024), np.uint8))
    print(
        f"R10: {timed.states} states of a writer, each named with lane, process and age, {timed.calls} calls: 0 hangs, "
        f"longest {timed.longest_s * 1e3:.0f} ms"
    )


@pytest.mark.parametrize("kill", [False, True], ids=["stopped", "killed"])
def test_r10_a_stopped_or_killed_owner_holds_nobody_up(tmp_path: Path, kill: bool) -> None:
    timed = Timed()
    with another_process(own_and_wait) as (process, handle):
        made = fastrl.Replay.attach(handle)
        with made.writer(1) as writer:
            writer.start(observation(1, 0))
        os.kill(process.pid, signal.SIGKILL if kill else signal.SIGSTOP)
        if kill:
            process.join(10)
        timed.use_all(made, tmp_path, written_lane=0)
        for step in range(300):  # writing goes on, too
            with made.writer(1) as writer:
                timed(lambda step=step, writer=writer: writer.start(observation(1, step)))
        if kill:
            with pytest.raises(ConnectionError):
                fastrl.Replay.attach(handle)
        else:
            timed(lambda: fastrl.Replay.attach(handle))
    print(
        f"R10: {timed.states} state of an owner, {timed.calls} calls: 0 hangs, longest {timed.longest_s * 1e3:.0f} ms"
    )
