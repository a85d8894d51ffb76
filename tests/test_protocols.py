"""Protocols, env ids and cores: the small deciding parts in front of a pool."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fastrl
from fastrl import protocols
from fastrl._command import run
from fastrl.engine import budget, grey_tables
from fastrl.engine.games import find_game, playable_games, rom_md5, rom_path
from fastrl.engine.protocol import ALIASES, PROTOCOLS, differences


@pytest.mark.parametrize(
    ("env_id", "game", "sticky"),
    [
        ("BreakoutNoFrameskip-v4", "breakout", 0.0),
        ("BreakoutNoFrameskip-v0", "breakout", 0.25),
        ("ALE/Breakout-v5", "breakout", 0.25),
        ("breakout", "breakout", None),
        ("Breakout", "breakout", None),
        ("MsPacmanNoFrameskip-v4", "ms_pacman", 0.0),
        ("ms_pacman", "ms_pacman", None),
        ("fastrl/UpNDown-v0", "up_n_down", None),
        ("ALE/Hero-v5", "hero", 0.25),
    ],
)
def test_env_ids_say_their_game_and_stickiness(env_id: str, game: str, sticky: float | None) -> None:
    found = find_game(env_id)

    assert (found.name, found.sticky) == (game, sticky)


def test_every_game_that_gymnasium_registers_is_found_under_its_ids() -> None:
    import ale_py  # noqa: F401  registers its ids
    import gymnasium

    ids = [i for i in gymnasium.registry if i.startswith("ALE/") or i.endswith("NoFrameskip-v4")]

    assert len(ids) > 150
    assert {find_game(i).name for i in ids} <= set(playable_games())


def test_arguments_win_over_the_env_id_and_the_env_id_over_the_protocol() -> None:
    def sticky(env_id: str, **arguments: float) -> float:
        pool = fastrl.AtariPool(env_id, protocol="dopamine", **arguments)
        pool.close()
        return pool.protocol.sticky

    assert sticky("pong") == 0.25
    assert sticky("PongNoFrameskip-v4") == 0.0
    assert sticky("PongNoFrameskip-v4", sticky=0.1) == 0.1


def test_rule_changes_are_reported() -> None:
    pool = fastrl.AtariPool("pong", protocol="nature", frame_skip=2, max_frames=1000)

    assert pool.rule_changes() == {"frame_skip": (4, 2), "max_frames": (108_000, 1000)}
    pool.close()


def test_fingerprints_tell_rules_apart_and_ignore_names() -> None:
    prints = {p.fingerprint() for p in PROTOCOLS.values()}

    assert len(prints) == len(PROTOCOLS)
    assert fastrl.protocol("baselines").fingerprint() == fastrl.protocol("sb3").fingerprint()


def test_the_table_of_the_design_holds() -> None:
    assert set(PROTOCOLS) >= {"nature", "sb3", "cleanrl", "gymnasium", "dopamine", "machado"}
    assert ALIASES == {"baselines": "sb3"}
    assert differences(PROTOCOLS["dopamine"], PROTOCOLS["machado"]) == {"full_actions": (False, True)}
    assert PROTOCOLS["nature"].evaluation_max_frames == 18_000
    assert [PROTOCOLS[p].stack_padding for p in ("nature", "sb3", "cleanrl", "gymnasium", "dopamine")] == [
        "zeros",
        "zeros",
        "first_frame",
        "first_frame",
        "zeros",
    ]


def test_the_command_prints_a_diff_and_helps_with_typos() -> None:
    shown = protocols.describe(["nature", "sb3"])

    assert "fire_at_reset" in shown
    assert "frame_skip" not in shown
    assert protocols.describe(["sb3", "baselines"]) == "sb3 and baselines are the same rules"
    command = [sys.executable, "-m", "fastrl"]
    wrong = subprocess.run([*command, "protocols", "natur"], capture_output=True, text=True, check=False, cwd="/")
    assert wrong.returncode != 0
    assert "did you mean 'nature'" in wrong.stderr
    unknown = subprocess.run([*command, "protocol"], capture_output=True, text=True, check=False, cwd="/")
    assert "did you mean 'protocols'" in unknown.stderr


def test_all_games_are_listed_and_each_is_found() -> None:
    assert len(fastrl.games()) > 100
    assert {find_game(game).name for game in fastrl.games()} == set(fastrl.games())


@pytest.mark.parametrize("buffered", [True, False], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize(
    "command",
    ["fastrl", "fastrl protocols", "fastrl.protocols", "fastrl.protocols --help", "fastrl.profile --help"],
)
def test_a_command_ends_quietly_when_nobody_reads_on(command: str, buffered: bool) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    ended = subprocess.run(
        [sys.executable, *([] if buffered else ["-u"]), "-m", *command.split()],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        cwd="/",
        env=environment,
    )
    os.close(writing)

    assert ended.stderr == ""
    assert ended.returncode == 141 or "--help" in command  # argparse itself passes over what it cannot print


def test_another_broken_pipe_is_told() -> None:
    def breaks() -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        run(breaks)


def test_grey_tables_equal_cv2_and_exact_arithmetic() -> None:
    cv2 = pytest.importorskip("cv2")
    rgb = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)

    assert np.array_equal(grey_tables.cv2_grey(rgb), cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY))
    ties = np.array([[0, 0, 0], [0, 0, 250], [250, 250, 0], [100, 100, 150]])
    exact = [(299 * r + 587 * g + 114 * b) / 1000 for r, g, b in ties.tolist()]
    assert 28.5 in exact  # a real tie, which must round to even
    assert grey_tables.luminance(ties).tolist() == [round(x) for x in exact]


def test_an_unknown_grey_is_refused() -> None:
    palette = np.zeros((128, 3), dtype=np.uint8)
    with pytest.raises(ValueError, match="grey: 'green' is not one of"):
        grey_tables.pixel_tables("green", palette, palette[:, 0])


def test_roms_are_known_by_their_checksum() -> None:
    assert len(rom_md5(rom_path("pong"))) == 32
    assert rom_md5(rom_path("pong")) != rom_md5(rom_path("breakout"))


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "max 100000"}, math.inf),
        ({"cpu.max": "150000 100000"}, 1.5),
        ({"a/cpu.max": "50000 100000", "cpu.max": "400000 100000"}, 0.5),
        ({}, math.inf),
    ],
)
def test_control_group_quotas_are_honoured(tmp_path: Path, files: dict[str, str], expected: float) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    membership = tmp_path / "membership"
    membership.write_text("0::/a/b\n")

    assert budget.cgroup_quota_cores(tmp_path, membership) == expected


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8_000_000 * 1024),
        ({"memory.max": "max", "memory.current": "5", "memory.stat": ""}, 8_000_000 * 1024),
        ({"memory.max": "9000", "memory.current": "5000", "memory.stat": "inactive_file 300\nactive_file 20"}, 4320),
        (
            {"a/memory.max": "900", "a/memory.current": "1000", "a/memory.stat": "anon 3", "memory.max": "max"},
            0,
        ),
    ],
)
def test_memory_limits_of_control_groups_are_honoured(tmp_path: Path, files: dict[str, str], expected: int) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    membership = tmp_path / "membership"
    membership.write_text("0::/a/b\n")
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:       24000000 kB\nMemAvailable:    8000000 kB\n")

    assert budget.available_memory_bytes(tmp_path, membership, meminfo) == expected


def test_the_memory_of_this_machine_is_found() -> None:
    assert 100_000_000 < budget.available_memory_bytes() < 10**14


def test_usable_cores_are_at_least_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "cgroup_quota_cores", lambda: 0.2)

    assert budget.usable_cores() == 1
