"""Reading the tables of a run: complete ones, live ones, and those that a crash left."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fastrl.runs.metrics import read_metrics
from fastrl.runs.tables import read_columns, thin_metrics, without_redone

HEADER = "frames,steps,updates,wall_s,loss\n"


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return tmp_path / "metrics.csv"


def test_columns_by_name_and_nan_where_nothing_was_measured(table: Path) -> None:
    table.write_text(HEADER + "400,100,0,1.5,\n800,200,25,3.0,0.25\n")

    columns = read_columns(table)

    assert list(columns) == ["frames", "steps", "updates", "wall_s", "loss"]
    np.testing.assert_array_equal(columns["frames"], [400, 800])
    np.testing.assert_array_equal(columns["loss"], [np.nan, 0.25])


def test_line_ends_of_pythons_csv_module(table: Path) -> None:
    table.write_bytes((HEADER + "400,100,0,1.5,\n800,200,25,3.0,0.25\n").replace("\n", "\r\n").encode())

    np.testing.assert_array_equal(read_columns(table)["loss"], [np.nan, 0.25])


@pytest.mark.parametrize("cut", range(1, len("800,200,25,3.0,0.25\n")))
def test_a_cut_last_line_is_left_out_wherever_it_was_cut(table: Path, cut: int) -> None:
    """Also where only digits are missing: 0.2 is not 0.25."""
    table.write_text(HEADER + "400,100,0,1.5,\n" + "800,200,25,3.0,0.25\n"[:cut])

    np.testing.assert_array_equal(read_columns(table)["steps"], [100])


def test_a_table_without_rows_has_empty_columns(table: Path) -> None:
    table.write_text(HEADER)

    assert {name: len(values) for name, values in read_columns(table).items()} == dict.fromkeys(
        ["frames", "steps", "updates", "wall_s", "loss"], 0
    )


def test_rows_that_a_resumed_run_did_again_count_once(table: Path) -> None:
    table.write_text("steps,loss\n100,1\n200,2\n300,3\n400,4\n300,30\n400,40\n500,50\n450,45\n")

    columns = without_redone(read_columns(table))

    np.testing.assert_array_equal(columns["steps"], [100, 200, 300, 400, 450])
    np.testing.assert_array_equal(columns["loss"], [1, 2, 30, 40, 45])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (HEADER + "1,2,3\n4,5,6,7,8\n", r"line 2 of .*metrics\.csv has 3 cells where its first line names 5 columns"),
        (HEADER + "1,2,3,4,5\n1,2,x,7,8\n", "line 3 of .* has 'x' under updates"),
        (HEADER + "\0\0\0\0\0\n", "zero bytes"),
        ("", "no complete line"),
        ("frames,steps", "no complete line"),
        ("frames,frames\n1,2\n", "a name twice"),
    ],
)
def test_damage_is_named(table: Path, content: str, message: str) -> None:
    table.write_text(content)

    with pytest.raises(ValueError, match=message):
        read_columns(table)


def test_what_is_no_text_is_named(table: Path) -> None:
    table.write_bytes(b"\x89PNG\r\n\xff\xfe")

    with pytest.raises(ValueError, match="is not text"):
        read_columns(table)


def test_thinning_keeps_whole_rows_evenly_and_both_ends(table: Path) -> None:
    lines = [f"{4 * i},{i},0,{i / 7},{'' if i % 2 else i}\n" for i in range(1, 10_001)]
    table.write_text(HEADER + "".join(lines))

    assert thin_metrics(table, rows=100) == 100

    kept = table.read_text().splitlines(keepends=True)
    assert kept[0] == HEADER
    assert kept[1] == lines[0]
    assert kept[-1] == lines[-1]
    assert set(kept[1:]) <= set(lines)
    gaps = np.diff(read_columns(table)["steps"])
    assert gaps.max() - gaps.min() <= 1
    assert list(table.parent.iterdir()) == [table]


def test_thinning_a_short_table_or_into_another_file_changes_nothing(table: Path) -> None:
    content = HEADER + "400,100,0,1.5,\n800,200,25,3.0,0.25\n"
    table.write_text(content)
    small = table.with_name("small.csv")

    assert thin_metrics(table, to=small) == 2
    assert small.read_text() == table.read_text() == content

    with pytest.raises(ValueError, match="rows is 1, expected at least 2"):
        thin_metrics(table, rows=1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (HEADER + "1,2,3\n4,5,6,7,8\n", r"line 2 of .*metrics\.csv has 3 cells where its first line names 5 columns"),
        (HEADER + "1,2,3,4,5\n1,2,x,7,8\n", "line 3 of .* has 'x' under updates"),
        (HEADER + "1,2,3,4,5\n\0\0\0\0\n", "line 3 is no row of 5 numbers: .* has zero bytes"),
    ],
)
def test_a_reader_of_metrics_tells_damage_in_the_same_words(table: Path, content: str, message: str) -> None:
    table.write_text(content)

    for read in (read_columns, read_metrics):
        with pytest.raises(ValueError, match=message):
            read(table)


def test_a_reader_of_metrics_reads_what_other_programs_save(table: Path) -> None:
    """A spreadsheet puts a mark before the first name, and returns before line feeds."""
    table.write_bytes(b"\xef\xbb\xbf" + (HEADER + '400,100,0,1.5,"0.25"\n').replace("\n", "\r\n").encode())

    for read in (read_columns, read_metrics):
        assert {name: values.tolist() for name, values in read(table).items()} == {
            "frames": [400], "steps": [100], "updates": [0], "wall_s": [1.5], "loss": [0.25],
        }  # fmt: skip


def test_a_reader_of_metrics_refuses_counts_that_are_not_whole(table: Path) -> None:
    table.write_text(HEADER + "400,100.5,0,1.5,\n")

    assert read_columns(table)["steps"].tolist() == [100.5]
    with pytest.raises(ValueError, match=r"has '100\.5' under steps, where only a whole number is allowed"):
        read_metrics(table)
