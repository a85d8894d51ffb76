"""`fastrl report`: which runs belong together, what the table says of them, and that the picture shows it."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_examples import write_run

from fastrl import report
from fastrl.runs import plots
from fastrl.runs.curves import Curve
from fastrl.runs.groups import find_runs, grouped, read_run
from fastrl.runs.score_table import Row, across_games, as_csv, as_markdown, summarise


def run_command(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> None:
    monkeypatch.setattr(sys, "argv", ["fastrl report", *map(str, arguments)])
    report.main()


def write_evaluations(run: Path, rows: list[tuple[float, float, float, int]]) -> None:
    """Replace a run's evaluations by (steps, mean, std, episodes)."""
    lines = [f"{4 * steps},{steps},{episodes},{mean},{std}" for steps, mean, std, episodes in rows]
    (run / "evaluations.csv").write_text("\n".join(["frames,steps,episodes,mean,std", *lines]) + "\n")


def rows_of(folder: Path, convention: str = "57") -> list[Row]:
    groups, _ = grouped(find_runs([folder]))
    return [summarise(group, convention) for group in groups]


# Which runs belong together


def test_runs_that_differ_only_in_seed_and_name_are_one_group(tmp_path: Path) -> None:
    for seed in (3, 1, 2):
        write_run(tmp_path / f"a{seed}", seed=seed)
    write_run(tmp_path / "b", seed=1, config={"learning_rate": 0.001})
    write_run(tmp_path / "c", seed=1, rules="sb3")
    write_run(tmp_path / "d", seed=1, algorithm="a3c")
    write_run(tmp_path / "e", seed=1, env="BreakoutNoFrameskip-v4")

    groups, notes = grouped(find_runs([tmp_path]))

    assert notes == []
    assert [(g.env[:4], [(r.seed, r.path.name) for r in g.runs]) for g in groups] == [
        ("Brea", [(1, "e")]),
        ("Pong", [(1, "d")]),
        ("Pong", [(1, "a1"), (2, "a2"), (3, "a3")]),
        ("Pong", [(1, "c")]),
        ("Pong", [(1, "b")]),
    ]
    assert [g.label for g in groups] == [
        "dqn",
        "a3c",
        "dqn (learning_rate=0.00025, protocol=nature)",
        "dqn (learning_rate=0.00025, protocol=sb3)",
        "dqn (learning_rate=0.001, protocol=nature)",
    ]


def test_how_a_run_was_kept_and_on_how_many_cores_makes_no_group(tmp_path: Path) -> None:
    write_run(tmp_path / "a", seed=1, config={"threads": 2, "steps": 5000, "runs": "runs", "device": "cpu"})
    write_run(tmp_path / "b", seed=2, config={"threads": 16, "steps": 100, "runs": "/x", "device": "cpu"})
    write_run(tmp_path / "c", seed=3, config={"threads": 16, "steps": 100, "runs": "/x", "device": "cuda"})

    groups, _ = grouped(find_runs([tmp_path]))

    assert [(g.label, len(g.runs)) for g in groups] == [("dqn (device=cpu)", 2), ("dqn (device=cuda)", 1)]


def test_the_name_of_the_protocol_may_stand_in_the_config_alone(tmp_path: Path) -> None:
    write_run(tmp_path / "a", rules=None, config={"protocol": "sb3"})
    write_run(tmp_path / "b", rules=None, config={"protocol": "nature"})
    write_run(tmp_path / "c", rules=None, config={"protocol": "nature"}, env="CartPole-v1")

    assert [(row.env[:4], row.protocol, row.group) for row in rows_of(tmp_path)] == [
        ("Cart", None, "dqn"),  # it has no Atari rules
        ("Pong", "nature", "dqn (protocol=nature)"),
        ("Pong", "sb3", "dqn (protocol=sb3)"),
    ]


def test_one_changed_rule_of_a_protocol_is_another_group(tmp_path: Path) -> None:
    for name, sticky in (("a", 0.0), ("b", 0.25)):
        config = write_run(tmp_path / name) / "config.json"
        stored = json.loads(config.read_text())
        stored["rules_fingerprint"] = f"pong/nature/{sticky}"
        config.write_text(json.dumps(stored))

    groups, _ = grouped(find_runs([tmp_path]))

    assert [g.label for g in groups] == ["dqn (rules=pong/nature/0.0)", "dqn (rules=pong/nature/0.25)"]


def labels_of(folder: Path, *configs: dict[str, Any]) -> list[str]:
    for i, config in enumerate(configs):
        write_run(folder / f"{i}", config=config)
    groups, _ = grouped(find_runs([folder]))
    return [group.label for group in groups]


def test_a_label_names_first_what_tells_the_groups_apart(tmp_path: Path) -> None:
    one = {"a": 0, "b": 0, "c": 0, "d": 0, "z": 0, "nested": {"e": 0}}
    other = {**one, "b": 1, "c": 1, "d": 1, "nested": {"e": 1}}

    assert labels_of(tmp_path, one, other, {**one, "z": 1}) == [
        "dqn (b=0, z=0, c=0, and 2 more)",
        "dqn (b=0, z=1, c=0, and 2 more)",
        "dqn (b=1, z=0, c=1, and 2 more)",
    ]


def test_what_tells_most_groups_apart_is_named_before_a_preset_and_that_before_the_rest(tmp_path: Path) -> None:
    fast = {"batch": 256, "hidden_units": [256, 256], "noise": 0.1, "preset": "fast"}
    paper = {"batch": 64, "hidden_units": [400, 300], "noise": 0.2, "preset": "paper"}

    assert labels_of(tmp_path, fast, paper, {**fast, "noise": 0.3}) == [
        "dqn (noise=0.1, preset=fast, batch=256, and 1 more)",
        "dqn (noise=0.2, preset=paper, batch=64, and 1 more)",
        "dqn (noise=0.3, preset=fast, batch=256, and 1 more)",
    ]


def test_a_label_names_as_many_settings_as_it_takes(tmp_path: Path) -> None:
    one = dict.fromkeys("bcdef", 0)

    found = labels_of(tmp_path, one, *({**one, name: 1} for name in one))

    assert "dqn (b=0, c=0, d=0, e=0, f=1)" in found
    assert len(set(found)) == 6
    assert not any("#" in label for label in found)


def test_groups_that_only_a_missing_setting_tells_apart_are_numbered(tmp_path: Path) -> None:
    assert labels_of(tmp_path, {"a": None}, {}) == ["dqn", "dqn #2"]


def test_the_same_seed_twice_is_no_second_sample(tmp_path: Path) -> None:
    write_run(tmp_path / "aborted", seed=1, frames=100_000)
    write_run(tmp_path / "whole", seed=1)
    write_run(tmp_path / "other", seed=2)

    groups, notes = grouped(find_runs([tmp_path]))

    assert [r.path.name for r in groups[0].runs] == ["whole", "other"]
    assert len(notes) == 1
    assert "aborted left out" in notes[0]


def test_folders_are_searched_and_a_run_named_twice_counts_once(tmp_path: Path) -> None:
    write_run(tmp_path / "results" / "pong" / "a")
    write_run(tmp_path / "results" / "b", seed=2)

    found = find_runs([tmp_path, tmp_path / "results" / "b"])

    assert [run.path.name for run in found] == ["b", "a"]


# What the table says


def test_the_table_against_numbers_worked_by_hand(tmp_path: Path) -> None:
    for seed, (mean, std) in enumerate([(10.0, 1.0), (14.0, 2.0), (16.0, 0.0), (100.0, 5.0)]):
        run = write_run(tmp_path / f"{seed}", seed=seed, frames=4000 * (seed + 1), frames_per_s=100)
        # The best is not the last; a row written late is not the last either.
        write_evaluations(run, [(300, 2 * mean, 1, 30), (1000, mean, std, 30), (500, 1.0, 1, 30)])

    (row,) = rows_of(tmp_path)

    assert (row.seeds, row.unfinished, row.measured, row.protocol) == (4, 0, "evaluation, 120 games", "nature")
    assert (row.frames_least, row.frames_most) == (4000, 4000)
    assert row.final_mean == pytest.approx(35.0)
    # Within: (1 + 4 + 0 + 25) / 4; between: (25^2 + 21^2 + 19^2 + 65^2) / 4.
    assert row.final_std == pytest.approx(np.sqrt(7.5 + (625 + 441 + 361 + 4225) / 4))
    assert row.final_iqm == pytest.approx(15.0)
    assert row.iqm_low == pytest.approx(10.0)
    assert row.iqm_high is not None
    assert 50 < row.iqm_high <= 100
    assert row.best == pytest.approx(70.0)
    assert row.human_normalised == pytest.approx((15.0 + 20.7) / (14.6 + 20.7))
    assert row.wall_hours == pytest.approx((40 + 80 + 120 + 160) / 4 / 3600)
    assert row.frames_per_s == pytest.approx(100.0)


def test_games_weigh_alike_in_the_mean_whatever_their_seed(tmp_path: Path) -> None:
    write_evaluations(write_run(tmp_path / "a", seed=1), [(100, 10.0, 0.0, 10)])
    write_evaluations(write_run(tmp_path / "b", seed=2), [(100, 20.0, 0.0, 30)])

    (row,) = rows_of(tmp_path)

    assert (row.final_mean, row.final_iqm) == (17.5, 15.0)


def test_the_human_convention_is_the_one_asked_for(tmp_path: Path) -> None:
    write_evaluations(write_run(tmp_path / "a"), [(100, 9.3, 1.0, 30)])

    assert rows_of(tmp_path, "nature")[0].human_normalised == pytest.approx(1.0)
    assert rows_of(tmp_path, "57")[0].human_normalised == pytest.approx(30.0 / 35.3)


def test_one_seed_has_no_interval(tmp_path: Path) -> None:
    write_run(tmp_path / "a")

    rows = rows_of(tmp_path)

    assert (rows[0].iqm_low, rows[0].iqm_high) == (None, None)
    assert "[one seed]" in as_markdown(rows)
    (line,) = csv.DictReader(as_csv(rows).splitlines())
    assert (line["iqm_low"], line["seeds"]) == ("", "1")
    assert float(line["final_iqm"]) == rows[0].final_iqm


def test_without_evaluations_of_all_seeds_training_is_reported_and_said(tmp_path: Path) -> None:
    """An evaluation of one seed and a training return of another are not averaged."""
    write_evaluations(write_run(tmp_path / "a", seed=1), [(100, 1000.0, 0.0, 30)])
    last = write_run(tmp_path / "b", seed=2, evaluations=0, finished=False) / "metrics.csv"
    expected = [float(text.splitlines()[-1].split(",")[4]) for text in (read(tmp_path / "a"), last.read_text())]

    (row,) = rows_of(tmp_path)

    assert row.measured == "training, last 100 games"
    assert row.final_mean == pytest.approx(np.mean(expected))
    assert row.final_std is None
    assert "2 (1 unfinished)" in as_markdown([row])


def read(run: Path) -> str:
    return (run / "metrics.csv").read_text()


def test_other_environments_have_no_human_score(tmp_path: Path) -> None:
    write_run(tmp_path / "a", env="CartPole-v1", rules=None, algorithm="vpg")

    (row,) = rows_of(tmp_path)

    assert (row.human_normalised, row.protocol) == (None, None)
    assert "nan" not in as_markdown([row]) + as_csv([row])


def test_scores_over_games_are_of_all_runs_and_games_together(tmp_path: Path) -> None:
    # Human-normalised: pong 0 and 1; freeway 0.5 and 10.
    for game, scores in (("pong", (-20.7, 14.6)), ("freeway", (14.8, 296.0))):
        for seed, score in enumerate(scores):
            write_evaluations(write_run(tmp_path / f"{game}{seed}", env=game, seed=seed), [(100, score, 0.0, 30)])

    groups, _ = grouped(find_runs([tmp_path]))
    (line,) = across_games(groups, [summarise(group) for group in groups])

    assert line.startswith("- dqn on 2 games, 2 seeds each: 0.750 [")

    write_run(tmp_path / "third", env="pong", seed=3)
    groups, _ = grouped(find_runs([tmp_path]))

    assert "different numbers of seeds" in across_games(groups, [summarise(group) for group in groups])[0]


# Runs that are not whole


def test_a_live_run_is_read_to_its_last_complete_line(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", finished=False)
    whole = (run / "metrics.csv").read_text()
    before = read_run(run).last("steps")
    (run / "metrics.csv").write_text(whole[:-4])
    (run / "evaluations.csv").write_text((run / "evaluations.csv").read_text()[:-30])

    cut = read_run(run)

    assert 0 < cut.last("steps") < before
    assert cut.evaluations is not None
    assert len(cut.evaluations["steps"]) == 4


def spoil_config(run: Path, content: str) -> None:
    (run / "config.json").write_text(content)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda run: (run / "metrics.csv").write_text("a,b\n1,2\n"),
            r"has no column frames, steps, wall_s; it has a, b",
        ),
        (lambda run: (run / "metrics.csv").write_text("frames,steps,wall_s\n1,2\n3,4,5\n"), "line 2 of .* has 2 cells"),
        (lambda run: spoil_config(run, '{"format": 1, "algo'), r"config.json is damaged .* restore it"),
        (lambda run: spoil_config(run, '{"model_type": "bert"}'), "was not written by a fastrl trainer"),
        (lambda run: spoil_config(run, "[]"), "was not written by a fastrl trainer"),
        (
            lambda run: spoil_config(run, '{"format": 2, "algorithm": "dqn", "config": {}}'),
            "has format 2, this .* reads 1",
        ),
        (lambda run: spoil_config(run, '{"format": 1, "algorithm": "dqn", "config": {}}'), "names no env"),
    ],
)
def test_a_damaged_or_foreign_directory_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Any, message: str
) -> None:
    """Also inside a folder of good runs: a report without the runs that broke would look too good."""
    write_run(tmp_path / "good", seed=2)
    spoil(write_run(tmp_path / "run"))

    with pytest.raises(SystemExit, match=message) as error:
        run_command(monkeypatch, tmp_path, "--output", tmp_path / "out")

    assert str(error.value).startswith("fastrl report: ")
    assert str(tmp_path / "run") in str(error.value)
    assert not (tmp_path / "out").exists()


def test_what_is_no_folder_or_holds_no_run_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")

    for name, message in (("gone", "gone does not exist"), ("file", "file is a file"), ("empty", "empty holds no run")):
        with pytest.raises(SystemExit, match=message):
            run_command(monkeypatch, tmp_path / name)


def test_bad_options_are_refused_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path / "runs" / "a")
    (tmp_path / "file").write_text("precious")

    with pytest.raises(
        SystemExit, match=r"no run has 'return_mean'; did you mean 'return_mean_100'\?; there are frames"
    ):
        run_command(monkeypatch, tmp_path / "runs", "--metric", "return_mean", "--output", tmp_path / "out")
    with pytest.raises(SystemExit, match="file is a file, expected a folder"):
        run_command(monkeypatch, tmp_path / "runs", "--output", tmp_path / "file")
    with pytest.raises(SystemExit) as error:
        run_command(monkeypatch, tmp_path / "runs", "--x", "epochs")

    assert error.value.code == 2
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "file").read_text() == "precious"


def test_a_run_that_has_logged_nothing_yet_is_named_and_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "a")
    header = read(tmp_path / "a").splitlines(keepends=True)[0]
    (write_run(tmp_path / "fresh", seed=2, finished=False) / "metrics.csv").write_text(header)
    (write_run(tmp_path / "started", seed=4, finished=False) / "metrics.csv").unlink()
    (write_run(tmp_path / "short", seed=5) / "metrics.csv").unlink()  # finished, and too short for a row
    (write_run(tmp_path / "young", seed=3) / "metrics.csv").write_text(header + "4000,1000,0,1.0,,\n")

    run_command(monkeypatch, tmp_path, "--output", tmp_path / "out")

    errors = capsys.readouterr().err
    assert "fresh left out: it has logged nothing yet" in errors
    assert "started left out: it has logged nothing yet" in errors
    assert "short left out: it has logged nothing; its steps were fewer than log_every_steps" in errors
    assert "young has no value of return_mean_100 yet and is not drawn" in errors

    with pytest.raises(SystemExit, match="no run has logged anything yet"):
        run_command(monkeypatch, tmp_path / "fresh")


# The command and its files


def test_the_command_writes_a_picture_and_one_table_in_two_forms(tmp_path: Path) -> None:
    for seed in range(3):
        write_run(tmp_path / "runs" / f"p{seed}", seed=seed)
    write_run(tmp_path / "runs" / "c", env="CartPole-v1", rules=None, algorithm="vpg", evaluations=0)

    result = subprocess.run(
        [sys.executable, "-m", "fastrl", "report", "runs", "--output", "out"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert (result.returncode, result.stderr) == (0, "")
    assert "written: out/report.png, out/report.md, out/report.csv" in result.stdout
    markdown = (tmp_path / "out" / "report.md").read_text()
    assert "![learning curves](report.png)" in markdown
    assert "Wang et al. 2016" in markdown
    table = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1
    assert len(table) == 4
    assert table[0] in result.stdout
    with open(tmp_path / "out" / "report.csv") as file:
        lines = list(csv.DictReader(file))
    assert [(line["group"], line["env"], line["seeds"]) for line in lines] == [
        ("vpg", "CartPole-v1", "1"),
        ("dqn", "PongNoFrameskip-v4", "3"),
    ]


def pixels(path: Path) -> np.ndarray:
    from matplotlib import image

    return (image.imread(path)[:, :, :3] * 255).round().astype(int)


def amount(picture: np.ndarray, colour: str) -> int:
    """How many pixels have exactly this colour."""
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return int((picture == wanted).all(axis=2).sum())


def test_each_group_is_drawn_in_its_own_colour_and_a_missing_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(2):
        write_run(tmp_path / "one" / f"{seed}", seed=seed)
        write_run(tmp_path / "two" / f"{seed}", seed=seed, algorithm="a3c", end=0.0)
    run_command(monkeypatch, tmp_path / "one", tmp_path / "two", "--output", tmp_path / "both")
    run_command(monkeypatch, tmp_path / "one", "--output", tmp_path / "alone")
    both, alone = pixels(tmp_path / "both" / "report.png"), pixels(tmp_path / "alone" / "report.png")

    assert min(both.shape[:2]) > 500
    first, second = plots._COLOURS[:2]
    assert amount(both, first) > 1000
    assert amount(both, second) > 1000
    assert amount(alone, second) == 0
    # A curve crosses the picture: its colour is in most of the columns between the axes.
    columns = (alone == [int(first[i : i + 2], 16) for i in (1, 3, 5)]).all(axis=2).any(axis=0)
    assert columns.mean() > 0.5


@pytest.mark.parametrize("x", plots.X_AXES)
def test_every_axis_and_metric_can_be_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, x: str) -> None:
    for seed in range(2):
        write_run(tmp_path / "runs" / f"{seed}", seed=seed, frames=40_000 * (seed + 1), rows=20)

    arguments = ("--x", x, "--metric", "loss", "--statistic", "mean", "--output", tmp_path / x)
    run_command(monkeypatch, tmp_path / "runs", *arguments)

    assert pixels(tmp_path / x / "report.png").std() > 10


def test_equal_runs_give_an_equal_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(3):
        write_run(tmp_path / "runs" / f"{seed}", seed=seed)

    for out in ("a", "b"):
        run_command(monkeypatch, tmp_path / "runs", "--output", tmp_path / out)

    for name in ("report.csv", "report.md", "report.png"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def figure_of(monkeypatch: pytest.MonkeyPatch, folder: Path, *arguments: str) -> Any:
    """What the command draws of the runs in a folder."""
    from matplotlib.figure import Figure

    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **_: drawn.append(figure))
    run_command(monkeypatch, folder, "--output", folder.parent / "out", *arguments)
    (figure,) = drawn
    return figure


def test_frames_are_what_only_atari_games_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path / "runs" / "pendulum", env="Pendulum-v1", rules=None, frames=30_000_000)
    write_run(tmp_path / "runs" / "pong", frames=30_000_000)

    for arguments, words in (
        ((), ["million agent steps", "million frames"]),
        (("--x", "frames"), ["million frames", "million frames"]),
        (("--x", "steps"), ["million agent steps", "million agent steps"]),
    ):
        figure = figure_of(monkeypatch, tmp_path / "runs", *arguments)
        assert [panel.get_title(loc="left")[:4] for panel in figure.axes] == ["Pend", "Pong"]
        assert [panel.get_xlabel() for panel in figure.axes] == words
    assert figure.axes[0].get_xlim()[1] == pytest.approx(7.5, rel=0.01)


SETTINGS: dict[str, dict[str, Any]] = {
    "short": {"batch": 256},
    "medium": {"learning_rate": 0.00025},  # too long for two beside each other below one of two panels
    "long": {"actor_hidden_units": [256, 256], "actor_learning_rate": 0.0001, "critic_hidden_units": [400, 300]},
    "one word": {"network": "some_package_of_mine.some_module_of_it:" + "SomeLongNameOfAClass" * 4},
}


@pytest.mark.parametrize("environments", [1, 2])
@pytest.mark.parametrize("setting", SETTINGS)
def test_legends_of_any_length_leave_the_axes_their_room_and_run_into_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str, environments: int
) -> None:
    for env in ("Pendulum-v1", "HalfCheetah-v5")[:environments]:
        for i, config in enumerate(({}, SETTINGS[setting], {**SETTINGS[setting], "d": 1, "e": 2})):
            write_run(tmp_path / "runs" / f"{env}-{i}", env=env, rules=None, config=config, rows=20)

    figure = figure_of(monkeypatch, tmp_path / "runs")
    figure.draw_without_rendering()
    axes = [panel.get_window_extent() for panel in figure.axes]
    legends = [legend.get_window_extent() for legend in (panel.get_legend() for panel in figure.axes) if legend]
    assert len(axes) == len(legends) == environments
    for own, legend in zip(axes, legends, strict=True):
        assert own.width > 0.8 * figure.bbox.width / environments
        assert own.height > 0.5 * figure.bbox.height
        assert legend.y1 < own.y0
        assert legend.x1 < figure.bbox.x1
        assert legend.y0 > figure.bbox.y0
        assert not any(legend.overlaps(other) for other in axes + legends if other is not legend)


def panel_with(low: float, high: float, game: str) -> Any:
    from matplotlib.figure import Figure

    panel = Figure().add_subplot()
    panel.plot([0, 1], [low, high])
    plots._draw_references(panel, game, "57")
    return panel


def test_a_reference_far_above_the_curves_does_not_flatten_them() -> None:
    panel = panel_with(70.0, 3500.0, "seaquest")  # human 42054.7

    assert panel.get_ylim()[1] < 6000
    assert [text.get_text() for text in panel.texts] == ["random 68.4", "DQN (Nature) 5,286", "↑ human 42,054.7"]
    assert [round(line.get_ydata()[0], 1) for line in panel.lines[1:]] == [68.4, 5286]


def test_names_of_close_references_do_not_overlap() -> None:
    panel = panel_with(0.0, 30.0, "freeway")  # human 29.6, DQN 30.3

    heights = sorted(text.xy[1] for text in panel.texts)
    assert len(heights) == 3
    assert np.diff(heights).min() >= 0.05


def test_the_thick_line_is_broken_where_a_seed_ends() -> None:
    from matplotlib.figure import Figure

    panel = Figure().add_subplot()
    centre = np.array([0.0, 1.0, 2.0, -5.0, -4.0])
    curve = Curve(np.arange(5.0), centre, centre, centre, np.array([2, 2, 2, 1, 1]))
    plots._draw_centre(panel, curve, 1.0, "black", "-")

    assert [list(line.get_xdata()) for line in panel.lines] == [[0, 1, 2], [3, 4]]
    assert [line.get_linestyle() for line in panel.lines] == ["-", ":"]
    assert [(text.get_text(), text.xy) for text in panel.texts] == [("n=1", (3.0, -5.0))]


def test_a_game_outside_every_table_has_no_reference_lines() -> None:
    assert list(panel_with(0.0, 30.0, "adventure").texts) == []


def test_the_command_line_loads_neither_matplotlib_nor_torch() -> None:
    code = "import sys, fastrl.report; print([m for m in ('matplotlib', 'torch') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert result.stdout.strip() == "[]"
