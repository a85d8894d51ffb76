"""metrics.csv and its events: what a kill, a full disk and a resume leave of them."""

from __future__ import annotations

import errno
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastrl.runs.game_statistics import GameStatistics
from fastrl.runs.metrics import MetricsLog, read_metrics

ROOT = Path(__file__).parents[1]


def row(steps: int, **more: float | None) -> dict[str, float | int | None]:
    return {"frames": 4 * steps, "steps": steps, "updates": steps // 4, "wall_s": steps / 100, **more}


def run_python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"},
    )


def scalars_of(directory: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(directory), size_guidance={"scalars": 0, "histograms": 0})
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


# ---- metrics.csv


def test_numbers_come_back_as_they_were(tmp_path: Path) -> None:
    values = [0.1, 1 / 3, 1e-300, -0.0, math.inf, -math.inf, math.nan, float(np.float32(0.1)), 2**53 + 1.0]
    log = MetricsLog(tmp_path / "metrics.csv", None)
    for i, value in enumerate(values):
        log.write(row(i, loss=value, games=np.int64(i)))
    log.write(row(9, loss=None))
    log.close()

    columns = read_metrics(tmp_path / "metrics.csv")

    assert list(columns) == ["frames", "steps", "updates", "wall_s", "loss", "games"]
    assert columns["steps"].dtype == np.int64
    np.testing.assert_array_equal(columns["loss"], [*values, math.nan])
    assert math.copysign(1, columns["loss"][3]) == -1
    assert ",nan," in (tmp_path / "metrics.csv").read_text()
    assert ",-inf," in (tmp_path / "metrics.csv").read_text()


def test_columns_may_appear_later_and_stay_away(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.csv", None)
    log.write(row(1))
    log.write(row(2, q_mean=0.5))
    log.write({"loss": 2.0, **row(3)})  # order of a row does not matter
    log.write(row(4))

    assert (tmp_path / "metrics.csv").read_text().splitlines() == [
        "frames,steps,updates,wall_s,q_mean,loss",
        "4,1,0,0.01,,",
        "8,2,0,0.02,0.5,",
        "12,3,0,0.03,,2.0",
        "16,4,1,0.04,,",
    ]
    assert (tmp_path / "metrics.csv").stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["metrics.csv"]


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"frames": 1, "steps": 1, "updates": 0}, "without wall_s"),
        (row(1, **{"a,b": 1.0}), "column 'a,b'"),
        (row(1, loss="high"), "column loss has 'high'; a number or None"),  # type: ignore[arg-type]
        ({**row(1), "steps": 1.5}, "column steps has 1.5; a whole number"),
    ],
)
def test_bad_rows_are_refused_by_name(tmp_path: Path, bad: dict[str, Any], said: str) -> None:
    log = MetricsLog(tmp_path / "metrics.csv", None)

    with pytest.raises(ValueError, match=said):
        log.write(bad)
    log.write(row(1))
    assert read_metrics(tmp_path / "metrics.csv")["steps"].tolist() == [1]


def test_a_run_that_exists_is_not_overwritten(tmp_path: Path) -> None:
    MetricsLog(tmp_path / "metrics.csv", None).write(row(1))

    with pytest.raises(FileExistsError, match="another name"):
        MetricsLog(tmp_path / "metrics.csv", None)


def test_a_resumed_run_has_the_rows_of_an_undisturbed_one(tmp_path: Path) -> None:
    def write(log: MetricsLog, first: int, last: int) -> None:
        for steps in range(first, last, 10):
            log.write(row(steps, loss=steps / 7, **({"q_mean": 1.5} if steps >= 50 else {})))
        log.close()

    write(MetricsLog(tmp_path / "whole.csv", tmp_path / "whole"), 10, 100)
    write(MetricsLog(tmp_path / "cut.csv", tmp_path / "cut"), 10, 80)
    with open(tmp_path / "cut.csv", "a") as file:
        file.write("320,80,2")  # the kernel died in the middle of a row
    (tmp_path / ".cut.csv.123.part").write_text("left by a process that was killed while rewriting")
    write(MetricsLog(tmp_path / "cut.csv", tmp_path / "cut", resume_at_steps=40), 50, 100)

    assert (tmp_path / "cut.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert scalars_of(tmp_path / "cut") == scalars_of(tmp_path / "whole")
    assert not (tmp_path / ".cut.csv.123.part").exists()


def test_resuming_where_no_whole_header_was_written_begins_anew(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("frames,st")

    log = MetricsLog(tmp_path / "metrics.csv", None, resume_at_steps=10)
    log.write(row(20))

    assert read_metrics(tmp_path / "metrics.csv")["steps"].tolist() == [20]


def test_damage_is_named_when_read_and_dropped_when_resumed(tmp_path: Path) -> None:
    path, notes = tmp_path / "metrics.csv", []
    log = MetricsLog(path, None)
    for steps in (1, 2, 3):
        log.write(row(steps))
    path.write_bytes(path.read_bytes().replace(b"8,2,0,0.02", b"\0" * 10))  # as some file systems after a loss of power

    with pytest.raises(ValueError, match="line 3 is no row of 4 numbers"):
        read_metrics(path)
    MetricsLog(path, None, resume_at_steps=9, note=notes.append)

    assert read_metrics(path)["steps"].tolist() == [1]
    assert "line 3" in notes[0]


def test_a_reader_leaves_out_a_last_line_that_is_not_whole(tmp_path: Path) -> None:
    MetricsLog(tmp_path / "metrics.csv", None).write(row(1))
    with open(tmp_path / "metrics.csv", "a") as file:
        file.write("8,2,0,0.0")

    assert read_metrics(tmp_path / "metrics.csv")["steps"].tolist() == [1]


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("epoch,loss\n1,2\n")

    with pytest.raises(ValueError, match="begins with 'epoch,loss'"):
        read_metrics(tmp_path / "metrics.csv")


# ---- kills


WRITE_FOR_EVER = """
import sys
from pathlib import Path
from fastrl.runs.metrics import MetricsLog
log = MetricsLog(Path(sys.argv[1]) / "metrics.csv", Path(sys.argv[1]) / "tensorboard")
steps = 0
while True:
    steps += 1
    log.write({"frames": 4 * steps, "steps": steps, "updates": 0, "wall_s": 0.5, f"c{steps // 20}": steps})
    sys.stdout.write(f"{steps}\\n")  # one write a line: what was told is in the file
    sys.stdout.flush()
"""


@pytest.mark.parametrize("after_rows", [1, 19, 60, 133])
def test_rows_survive_kill_9_in_the_middle_of_writing(tmp_path: Path, after_rows: int) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", WRITE_FOR_EVER, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"},
    )
    assert child.stdout is not None
    for line in child.stdout:
        if int(line) >= after_rows:
            break
    time.sleep(0.0007 * (after_rows % 5))
    child.send_signal(signal.SIGKILL)
    told = [int(line) for line in child.stdout.read().split("\n")[:-1]] or [after_rows]
    child.wait()
    child.stdout.close()

    steps = read_metrics(tmp_path / "metrics.csv")["steps"]
    assert steps.tolist() == list(range(1, len(steps) + 1))
    assert len(steps) in (told[-1], told[-1] + 1)

    at = int(steps[-1]) // 2
    log = MetricsLog(tmp_path / "metrics.csv", tmp_path / "tensorboard", resume_at_steps=at)
    log.write(row(at + 1))
    log.close()
    assert read_metrics(tmp_path / "metrics.csv")["steps"].tolist() == list(range(1, at + 2))
    assert [step for step, _ in scalars_of(tmp_path / "tensorboard")["frames"]] == list(range(1, at + 2))


# ---- full disks


FILL_UP = """
import resource, sys
from pathlib import Path
from fastrl.runs.metrics import MetricsLog
folder, notes = Path(sys.argv[1]), []
log = MetricsLog(folder / "metrics.csv", folder / "tensorboard", note=notes.append)
def write(steps, **more):
    log.write({"frames": 4 * steps, "steps": steps, "updates": 0, "wall_s": 0.5, **more})
write(1)
full = (folder / "metrics.csv").stat().st_size + 40  # room for two rows and a piece of the third
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (full, hard))
for steps in range(2, 30):
    write(steps)
assert (folder / "metrics.csv").stat().st_size <= full
assert (folder / "metrics.csv").read_bytes().endswith(b"\\n"), "half a row was left"
write(30, loss=1.0)  # has to rewrite the file, in vain
log.sync()
print(len(notes))
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
write(31)
log.close()
print(*notes, sep="\\n")
"""


def test_a_full_disk_is_said_once_and_no_row_is_lost(tmp_path: Path) -> None:
    result = run_python(FILL_UP, tmp_path)

    assert result.returncode == 0, result.stderr
    count, *notes = result.stdout.splitlines()
    assert int(count) == 2  # one for the csv, one for TensorBoard
    assert all("cannot be written" in note and "File too large" in note for note in notes[:2])
    assert [note.split(",")[0] for note in notes[2:]] == [
        "metrics: csv is written again",
        "metrics: TensorBoard is written again",
    ]
    columns = read_metrics(tmp_path / "metrics.csv")
    assert columns["steps"].tolist() == list(range(1, 32))
    assert columns["loss"][29] == 1.0
    assert [step for step, _ in scalars_of(tmp_path / "tensorboard")["steps"]] == list(range(1, 32))


def test_a_half_row_that_could_not_be_taken_back_is_taken_back_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, notes = MetricsLog(tmp_path / "metrics.csv", None, note=(notes := []).append), notes
    log.write(row(1))
    real = os.write

    def failing(descriptor: int, data: Any) -> int:
        if len(data) > 4:
            return real(descriptor, data[:4])
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    def no_truncate(descriptor: int, size: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", failing)
        patched.setattr(os, "ftruncate", no_truncate)
        log.write(row(2))
    assert not (tmp_path / "metrics.csv").read_text().endswith("\n")
    log.write(row(3))

    assert read_metrics(tmp_path / "metrics.csv")["steps"].tolist() == [1, 2, 3]
    assert "Input/output error" in notes[0]


# ---- TensorBoard


def test_events_have_the_same_numbers_and_histograms(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.csv", tmp_path / "tensorboard")
    log.write(row(100, loss=0.25, q_mean=None))
    log.histograms(100, {"weights/conv": np.array([0.0, 1.0, 1.0, 3.0, math.nan], np.float32), "empty": np.zeros(0)})
    log.close()

    found = scalars_of(tmp_path / "tensorboard")
    assert found == {
        "frames": [(100, 400.0)],
        "steps": [(100, 100.0)],
        "updates": [(100, 25.0)],
        "wall_s": [(100, 1.0)],
        "loss": [(100, 0.25)],
    }
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert events.Tags()["histograms"] == ["weights/conv"]
    histogram = events.Histograms("weights/conv")[0].histogram_value
    assert (histogram.min, histogram.max, histogram.num, histogram.sum) == (0.0, 3.0, 4, 5.0)
    assert sum(histogram.bucket) == 4
    assert len(histogram.bucket) == len(histogram.bucket_limit)


def test_without_tensorboard_there_is_the_csv_and_a_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard.summary.writer.record_writer", None)
    notes: list[str] = []

    log = MetricsLog(tmp_path / "metrics.csv", tmp_path / "tensorboard", note=notes.append)
    log.write(row(1))
    log.histograms(1, {"a": np.ones(3)})
    log.close()

    assert read_metrics(tmp_path / "metrics.csv")["steps"].tolist() == [1]
    assert len(notes) == 1
    assert "pip install tensorboard" in notes[0]


def test_writing_and_showing_numbers_imports_neither_torch_nor_tensorboard() -> None:
    code = (
        "import sys, fastrl.runs.metrics, fastrl.runs.console, fastrl.runs.stages, fastrl.runs.stop\n"
        "print([m for m in ('torch', 'tensorboard', 'rich') if m in sys.modules])"
    )

    assert run_python(code).stdout.strip() == "[]"


# ---- games


def test_game_statistics_are_those_of_the_last_games(session_seed: int) -> None:
    returns = np.random.default_rng(session_seed).normal(size=250).tolist()
    games = GameStatistics()
    assert games.mean_return is games.smoothed is games.mean_length_frames is None
    smoothed = returns[0]
    for i, value in enumerate(returns):
        games.add(value, frames=4 * i, steps=i)
        smoothed += 0.05 * (value - smoothed)

    assert games.count == 250
    assert games.mean_return == pytest.approx(np.mean(returns[-100:]))
    assert games.mean_length_steps == pytest.approx(np.mean(range(150, 250)))
    assert games.mean_length_frames == pytest.approx(4 * np.mean(range(150, 250)))
    assert games.smoothed == pytest.approx(smoothed)


def test_game_statistics_go_on_exactly() -> None:
    one, other = GameStatistics(window=5), GameStatistics(window=5)
    for i in range(12):
        one.add(i / 7, frames=i, steps=i)
    other.load(json.loads(json.dumps(one.state())))
    for i in range(3):
        one.add(i / 3, frames=i, steps=i)
        other.add(i / 3, frames=i, steps=i)

    assert one.state() == other.state()
    assert (one.mean_return, one.smoothed) == (other.mean_return, other.smoothed)
    with pytest.raises(ValueError, match="window 5"):
        GameStatistics(window=6).load(one.state())
