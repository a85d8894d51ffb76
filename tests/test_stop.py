"""Signals that ask a run to stop, in real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from fastrl import _command
from fastrl.runs.stop import StopSignals

ROOT = Path(__file__).parents[1]
ALL = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
HANGS_S = 10.0

TRAIN = """
import sys, time
from fastrl.runs.stop import StopSignals
with StopSignals() as stop:
    print("training", flush=True)
    began = time.monotonic()
    while not stop.requested and time.monotonic() - began < 30:
        time.sleep(0.01)
    print(stop.reason, flush=True)
    if "linger" in sys.argv:
        time.sleep(30)
    print("saved", flush=True)
sys.exit(stop.exit_code)
"""


def start(*arguments: str, ignored: signal.Signals | None = None) -> subprocess.Popen[str]:

    def dispositions() -> None:  # not those that this process happens to have
        for number in ALL:
            signal.signal(number, signal.SIG_IGN if number == ignored else signal.SIG_DFL)

    child = subprocess.Popen(
        [sys.executable, "-c", TRAIN, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"},
        preexec_fn=dispositions,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "training\n"
    return child


def lingering_after(number: signal.Signals) -> subprocess.Popen[str]:
    """A child that has seen the signal and is slow to end."""
    child = start("linger")
    child.send_signal(number)
    assert child.stdout is not None
    assert child.stdout.readline().startswith(number.name)
    return child


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_the_loop_with_a_checkpoint_and_its_code(number: signal.Signals, code: int) -> None:
    child = start()
    child.send_signal(number)
    out, err = child.communicate(timeout=HANGS_S)

    assert child.returncode == code, err
    assert out.startswith(f"{number.name}: ends after this iteration")
    assert out.endswith("saved\n")


def test_a_second_ctrl_c_ends_at_once() -> None:
    child = lingering_after(signal.SIGINT)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=HANGS_S)

    assert "KeyboardInterrupt" in err
    assert "saved" not in out


def test_a_second_sigterm_changes_nothing() -> None:
    child = lingering_after(signal.SIGTERM)
    child.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(0.3)
    child.send_signal(signal.SIGINT)  # Ctrl-C after SIGTERM is meant
    _, err = child.communicate(timeout=HANGS_S)

    assert "KeyboardInterrupt" in err


def test_where_sigint_is_ignored_it_stays_so_and_sigterm_works() -> None:
    child = start(ignored=signal.SIGINT)
    child.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(0.3)
    child.send_signal(signal.SIGTERM)
    out, _ = child.communicate(timeout=HANGS_S)

    assert child.returncode == 143
    assert out.startswith("SIGTERM")


def test_sigterm_works_even_if_it_was_ignored() -> None:
    child = start(ignored=signal.SIGTERM)
    child.send_signal(signal.SIGTERM)
    child.communicate(timeout=HANGS_S)

    assert child.returncode == 143


def test_handlers_come_back_also_after_a_failure() -> None:
    before = [signal.getsignal(number) for number in ALL]
    stop = StopSignals()

    def fail() -> None:
        with stop:
            assert signal.getsignal(signal.SIGTERM) not in before
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert [signal.getsignal(number) for number in ALL] == before
    assert (stop.requested, stop.exit_code, stop.reason) == (False, 0, "")


def test_in_another_thread_it_is_inert_and_says_so() -> None:
    before, notes, requested = signal.getsignal(signal.SIGTERM), [], []

    def train() -> None:
        with StopSignals(notes.append) as stop:
            requested.append((stop.requested, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()

    assert requested == [(False, before)]
    assert len(notes) == 1
    assert "main thread" in notes[0]


def test_a_forked_child_ends_as_it_would_have_without() -> None:
    code = (
        "import os, signal, time\n"
        "from fastrl.runs.stop import StopSignals\n"
        "reader, writer = os.pipe()\n"
        "with StopSignals() as stop:\n"
        "    child = os.fork()\n"
        "    if not child:\n"
        "        os.write(writer, b'x')\n"
        "        time.sleep(30)\n"
        "        os._exit(7)\n"
        "    os.read(reader, 1)\n"  # a signal that comes while it forks is lost
        "    os.kill(child, signal.SIGTERM)\n"
        "    print(os.WTERMSIG(os.waitpid(child, 0)[1]), stop.requested)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=20,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"},
    )

    assert result.stdout.split() == ["15", "False"], result.stderr


def test_a_command_that_is_interrupted_ends_quietly() -> None:
    def pressed() -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as ended:
        _command.run(pressed)

    assert ended.value.code == 130
