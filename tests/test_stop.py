"""Signals that ask a run to stop, in real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from fastrl import _command, _starting
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


# ---- before a command has begun


def importing(tmp_path: Path, slow: str, *arguments: str) -> subprocess.Popen[str]:
    """A process in which the package ``slow`` is being imported."""
    (tmp_path / f"{slow}.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(30)\n")
    child = subprocess.Popen(
        [sys.executable, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}:{os.environ.get('PYTHONPATH', '')}"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "importing\n"
    return child


@pytest.mark.parametrize("slow", ["gymnasium", "torch"])
@pytest.mark.parametrize("command", [["fastrl.ddpg", "--env", "Pendulum-v1"], ["fastrl", "dqn"]])
def test_ctrl_c_while_a_command_imports_ends_it_quietly(tmp_path: Path, slow: str, command: list[str]) -> None:
    child = importing(tmp_path, slow, "-m", *command)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=HANGS_S)

    assert (child.returncode, out, err) == (130, "", "")


@pytest.mark.parametrize("how", ["-c", "-m"])
def test_a_program_that_imports_fastrl_keeps_its_keyboard_interrupts(tmp_path: Path, how: str) -> None:
    code = "try:\n    import fastrl\nexcept KeyboardInterrupt:\n    print('mine', flush=True)\n"
    (tmp_path / "program").mkdir()
    (tmp_path / "program" / "__init__.py").write_text(code)
    (tmp_path / "program" / "__main__.py").write_text("")
    child = importing(tmp_path, "gymnasium", how, code if how == "-c" else "program")
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=HANGS_S)

    assert (child.returncode, out, err) == (0, "mine\n", "")


def test_where_sigint_is_ignored_it_stays_so_while_a_command_imports(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("import signal\nprint(signal.getsignal(signal.SIGINT), flush=True)\n")
    said = subprocess.run(
        [sys.executable, "-m", "fastrl.ddpg"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}:{os.environ.get('PYTHONPATH', '')}"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    ).stdout

    assert said.splitlines()[0] in ("1", "Handlers.SIG_IGN")


@pytest.mark.parametrize(
    ("arguments", "original", "expected"),
    [
        (["-m"], ["python", "-u", "-m", "fastrl.ddpg", "--env", "x"], True),
        (["-m"], ["python", "-m", "fastrl", "ddpg"], True),
        (["/env/bin/fastrl", "dqn"], ["/env/bin/python", "/env/bin/fastrl", "dqn"], True),
        (["-m"], ["python", "-m", "fastrl.runs.workers"], False),
        (["-m"], ["python", "-m", "mine.fastrl"], False),
        (["-m"], ["python", "-m", "pytest", "-m", "fastrl"], False),
        (["mine.py", "-m", "fastrl"], ["python", "mine.py", "-m", "fastrl"], False),
        (["/mine/fastrl"], ["/env/bin/python", "/mine/fastrl"], False),
        (["-c"], ["python", "-c", "import fastrl", "-m", "fastrl"], False),
        (["-m"], ["python", "-m"], False),
        ([""], ["python"], False),
        ([], ["host"], False),
    ],
)
def test_a_command_is_known_by_how_python_was_started(
    arguments: list[str], original: list[str], expected: bool
) -> None:
    assert _starting.is_command(arguments, original, "/env/bin/python") is expected


def test_a_command_that_runs_is_interrupted_as_any_program_and_ends_quietly() -> None:
    before, seen = signal.getsignal(signal.SIGINT), []

    def pressed() -> None:
        seen.append(signal.getsignal(signal.SIGINT))
        raise KeyboardInterrupt

    try:
        signal.signal(signal.SIGINT, _starting.leave)
        with pytest.raises(SystemExit) as ended:
            _command.run(pressed)
    finally:
        signal.signal(signal.SIGINT, before)

    assert ended.value.code == 130
    assert seen == [signal.default_int_handler]
