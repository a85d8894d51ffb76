"""Worker processes that are heard, paused, killed, stuck and replaced; none is ever left over."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fastrl.runs import workers
from fastrl.runs.workers import Board, WorkerFailed, WorkerGroup

SOON_S = 60.0  # on a machine that does other things as well


class Toy:
    """A group of toy workers, and what its trainer was told."""

    def __init__(self, orders: list[dict[str, Any]]) -> None:
        self.heard: list[tuple[int, dict[str, Any]]] = []
        self.died: list[int] = []
        self.notes: list[str] = []
        self.board = Board(len(orders), 2)
        self.group = WorkerGroup(
            "toy_worker",
            [{"life": 0, "state": None, "task": "count", **order} for order in orders],
            self.board,
            heard=lambda index, message: self.heard.append((index, message)),
            died=self.died.append,
            note=self.notes.append,
        )

    def until(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + SOON_S
        while not condition():
            assert time.monotonic() < end, (self.heard[-3:], self.notes, self.board.steps)
            self.group.poll(0.02)

    def hello(self) -> list[tuple[int, int, int]]:
        return [(index, *message["hello"]) for index, message in self.heard if "hello" in message]


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Toy]]:
    path = [str(Path(__file__).parent), str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))
    made: list[Toy] = []

    def start(*orders: dict[str, Any]) -> Toy:
        made.append(Toy(list(orders)))
        return made[-1]

    yield start
    pids = [pid for toy in made for pid in toy.group.pids]
    for toy in made:
        toy.group.stop()
    assert not [pid for pid in pids if alive(pid)]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_workers_count_pause_and_go_on(toys: Callable[..., Toy]) -> None:
    toy = toys({}, {"state": 100})
    toy.until(lambda: min(toy.board.steps) >= 5)
    for _ in range(5):
        paused = toy.group.pause(SOON_S)
        steps = toy.board.steps.tolist()
        time.sleep(0.02)
        assert toy.board.steps.tolist() == steps
        assert [one["life"] for one in paused] == [0, 0]
        assert [one["state"]["steps"] for one in paused] == [steps[0], 100 + steps[1]]
        assert toy.board.sums.tolist() == [[taken, 2.0 * taken] for taken in steps]
        toy.group.go_on()
        toy.until(lambda steps=steps: toy.board.total_steps() > sum(steps))

    assert sorted(toy.hello()) == [(0, 0, 0), (1, 0, 100)]
    assert toy.group.deaths == 0


def test_a_killed_worker_is_replaced_by_another_life(toys: Callable[..., Toy]) -> None:
    toy = toys({"state": 50}, {"state": 60})
    toy.until(lambda: min(toy.board.steps) >= 3)
    before = toy.board.steps.tolist()
    os.kill(toy.group.pids[1], signal.SIGKILL)
    toy.until(lambda: toy.board.steps[1] >= before[1] + 10 and len(toy.hello()) == 3)

    assert toy.hello()[2] == (1, 1, 0)  # its second life begins anew
    assert toy.died == [1]
    assert toy.group.deaths == 1
    assert toy.notes == ["worker 1 ended (signal 9); another takes its place, with new games"]


def test_a_worker_that_dies_at_a_pause_does_not_end_the_run(toys: Callable[..., Toy]) -> None:
    toy = toys({}, {})
    toy.until(lambda: min(toy.board.steps) >= 3)
    toy.group.pause(SOON_S)
    pid = toy.group.pids[0]
    os.kill(pid, signal.SIGKILL)  # after it told its state
    while alive(pid):
        time.sleep(0.005)
    toy.group.go_on()
    toy.until(lambda: len(toy.hello()) == 3)
    os.kill(toy.group.pids[1], signal.SIGKILL)  # before
    paused = toy.group.pause(SOON_S)

    assert [one["life"] for one in paused] == [1, 1]
    assert all(one["state"] is not None for one in paused)  # the successor of the second one has paused in its place
    assert toy.group.deaths == 2


def test_a_worker_that_hangs_is_ended_at_a_pause_and_replaced(toys: Callable[..., Toy]) -> None:
    toy = toys({}, {"task": "hang"})
    toy.until(lambda: toy.board.steps[1] == 3 and toy.board.steps[0] > 3)
    began = time.monotonic()
    paused = toy.group.pause(1.0)  # enough for the other one
    assert time.monotonic() - began < 5
    assert paused[0]["state"] is not None
    assert paused[1] == {"life": 1, "state": None}
    assert toy.died == [1]
    toy.group.go_on()
    toy.until(lambda: toy.board.steps[1] > 10)

    assert toy.notes[0] == "worker 1 did not pause within 1 s: ended, its games are lost"
    assert toy.hello()[-1] == (1, 1, 0)


def test_who_is_in_a_hurry_waits_less_for_a_worker_that_hangs(toys: Callable[..., Toy]) -> None:
    toy = toys({}, {"task": "hang"})
    toy.until(lambda: toy.board.steps[1] == 3 and toy.board.steps[0] > 3)
    began = time.monotonic()
    asked_from = began + 0.5
    paused = toy.group.pause(60.0, lambda: time.monotonic() > asked_from, 1.0)
    took_s = time.monotonic() - began

    assert 1.4 < took_s < 20
    assert [each["state"] is None for each in paused] == [False, True]
    assert toy.notes == ["worker 1 did not pause within 1 s: ended, its games are lost"]


def test_signals_that_reach_workers_too_are_the_trainers_affair(toys: Callable[..., Toy]) -> None:
    toy = toys({}, {})
    toy.until(lambda: min(toy.board.steps) >= 3)
    for pid in toy.group.pids:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            os.kill(pid, number)
    steps = max(toy.board.steps)
    toy.until(lambda: min(toy.board.steps) > steps + 3)

    assert (toy.died, toy.notes) == ([], [])


def test_a_worker_that_does_not_listen_is_ended(toys: Callable[..., Toy], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_SEND_WITHIN_S", 0.01)  # Python takes longer to start
    toy = toys({"ballast_of_order": "x" * 3_000_000})
    with pytest.raises(WorkerFailed, match=r"before its first round"):
        toy.until(lambda: False)

    assert toy.notes[0] == "worker 0 did not listen within 0.01 s"
    assert "ended (signal 9)" in toy.notes[1]


def test_an_error_of_a_worker_arrives_with_its_number(toys: Callable[..., Toy], capfd: Any) -> None:
    toy = toys({}, {"task": "fail"})

    with pytest.raises(WorkerFailed, match="worker 1: ValueError: three is too many"):
        toy.until(lambda: False)
    assert "Traceback" in capfd.readouterr().err  # where, for whoever looks into it


def test_workers_that_die_before_they_do_anything_end_the_run(toys: Callable[..., Toy]) -> None:
    toy = toys({"task": "die at once"})

    with pytest.raises(WorkerFailed, match=r"worker 0 ended \(signal 9\) before its first round, as did 4 before it"):
        toy.until(lambda: False)
    assert len(toy.notes) == 4


def test_a_worker_that_never_begins_ends_the_run_whatever_others_do(toys: Callable[..., Toy]) -> None:
    toy = toys({}, {"task": "die at once"})
    with pytest.raises(WorkerFailed, match=r"worker 1 ended \(signal 9\) before its first round"):
        toy.until(lambda: False)
    assert toy.board.steps[0] > 0


def test_early_deaths_now_and_then_do_not_end_a_run(toys: Callable[..., Toy]) -> None:
    toy = toys({"task": "die early in even lives"})
    toy.until(lambda: toy.group.deaths >= 11)  # six of them early

    assert toy.board.steps[0] == 3 * 5


def test_a_worker_whose_lives_are_all_short_ends_the_run(
    toys: Callable[..., Toy], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "_SHORT_LIVES", 6)
    toy = toys({}, {"task": "die soon"})
    with pytest.raises(WorkerFailed, match=r"worker 1 ended \(signal 9\) within 60 s of its beginning, as did 5 "):
        toy.until(lambda: False)

    assert toy.board.steps[1] == 3 * 6  # each got as far as a round, so these were no fruitless deaths


def test_a_long_life_between_short_ones_is_a_new_beginning(
    toys: Callable[..., Toy], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "_SHORT_LIVES", 2)
    monkeypatch.setattr(workers, "_SHORT_LIFE_S", 0.0)
    toy = toys({"task": "die soon"})
    toy.until(lambda: toy.group.deaths >= 3)


def test_more_than_a_socket_holds_is_said_while_nobody_listens(toys: Callable[..., Toy]) -> None:
    toy = toys({"talk": 100_000, "ballast": 3_000_000}, {"talk": 10, "state": 5, "padding": "y" * 2_000_000})
    toy.until(lambda: min(toy.board.steps) >= 2)
    time.sleep(0.1)  # workers wait in send()
    paused = toy.group.pause(SOON_S)

    assert len(paused[0]["state"]["ballast"]) == 3_000_000
    assert sum(1 for index, message in toy.heard if index == 0 and "said" in message) == toy.board.steps[0]
    toy.group.go_on()
    time.sleep(0.05)
    began = time.monotonic()
    toy.group.stop()  # while they wait in send() again
    assert time.monotonic() - began < 2


def test_no_worker_outlives_a_killed_trainer(toys: Callable[..., Toy]) -> None:
    code = (
        "import time\nfrom test_workers import Toy\ntoy = Toy([{}, {}])\ntoy.until(lambda: min(toy.board.steps) > 1)\n"
        "print(*toy.group.pids, flush=True)\ntime.sleep(1000)\n"
    )
    trainer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert trainer.stdout is not None
    pids = [int(pid) for pid in trainer.stdout.readline().split()]
    assert len(pids) == 2
    assert all(map(alive, pids))
    trainer.kill()
    trainer.communicate()
    end = time.monotonic() + 2
    while any(map(alive, pids)):
        assert time.monotonic() < end
        time.sleep(0.01)
