"""The replay's promises at length: `python tests/soak_ring.py --output tests/ring_soak_results.md`, half an hour.

Each row of docs/reliability.md that size makes stronger, R1 to R10, on an otherwise quiet machine. The logic is that of
the tests: the drivers of tests/CMakeLists.txt (built here first, unless ``--drivers`` says where they are), the model,
and what the Python tests call. Ends with exit code 1 if a row does not hold; the others are run all the same. R11 is
the presets tsan and asan. ``--quick`` is a trial of every row.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from exact_draws import Writers, draw_while_written, figure
from played_games import compare_with_what_was_acted_on, described
from versions import as_table, versions

from fastrl.runs.run_dir import commit, machine

ROOT = Path(__file__).parents[1]
DRIVERS = ROOT / "build" / "plain" / "tests"  # where the preset builds them
LONGEST_S = 3600  # of one part beside what it was asked to take: then it hangs

GAMES = ("breakout", "pong", "seaquest", "space_invaders", "ms_pacman", "qbert")
PROTOCOLS = ("nature", "sb3", "gymnasium", "dopamine")
AUTORESETS = ("next_step", "same_step")
ROWS_OF_A_BATCH = 2000


@dataclass(frozen=True)
class Sizes:
    """How much of each; the defaults are what the promises were made with."""

    torture_minutes: float = 10
    kills: int = 10_000
    games: int = len(GAMES)
    game_steps: int = 1500  # of each of four envs, in every game, protocol and way to reset
    sums: int = 10_000_000
    draws: int = 10_000_000  # uniformly, and as many by priority
    seeds: int = 20
    lifecycles: int = 1000
    races: int = 1000
    racers: int = 8
    whole_model: bool = True


QUICK = Sizes(
    torture_minutes=0.05,
    kills=50,
    games=1,
    game_steps=50,
    sums=100_000,
    draws=200_000,
    seeds=2,
    lifecycles=12,
    races=8,
    whole_model=False,
)


class Failed(Exception):
    """What a program said that found its row broken."""


@dataclass(frozen=True)
class Soak:
    """Runs the parts of rows."""

    sizes: Sizes
    seed: int
    drivers: Path

    def said(self, *command: str, longest_s: float = LONGEST_S) -> str:
        """All that a program printed."""
        with tempfile.TemporaryDirectory() as directory:  # pytest and the model leave nothing behind
            environment = {**os.environ, "TMPDIR": directory}
            try:
                result = subprocess.run(
                    command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=longest_s
                )
            except subprocess.TimeoutExpired as late:
                raise Failed(f"not done after {late.timeout:.0f} s") from late
        if result.returncode != 0:
            lines = (result.stdout + result.stderr).strip().splitlines() or [f"ended with {result.returncode}"]
            raise Failed(next((line for line in lines if line.startswith(("FAILED", "E  "))), lines[-1]))
        return result.stdout.strip()

    def driver(self, *arguments: object, name: str = "ring_stress", longest_s: float = LONGEST_S) -> str:
        return self.said(str(self.drivers / name), *map(str, arguments), longest_s=longest_s).splitlines()[-1]

    def torture(self) -> str:
        seconds = self.sizes.torture_minutes * 60
        return self.driver("torture", seconds, self.seed, longest_s=2 * seconds + LONGEST_S)

    def crashpoints(self) -> str:
        return self.driver("crashpoints", name="ring_crashpoints")

    def kills(self) -> str:
        return self.driver("kills", self.sizes.kills, self.seed)

    def model(self) -> str:
        full = ["--full"] if self.sizes.whole_model else []
        return self.said(sys.executable, "tests/ring_model.py", *full).splitlines()[-1]

    def games(self) -> str:
        transitions = ends = games = 0
        names = GAMES[: self.sizes.games]
        cells = [(game, protocol, way) for game in names for protocol in PROTOCOLS for way in AUTORESETS]
        for number, (game, protocol, way) in enumerate(cells):
            steps = self.sizes.game_steps
            played = compare_with_what_was_acted_on(
                game, protocol, way, steps, look_every=min(steps, 250), seed=self.seed + number
            )
            transitions += len(played.transitions)
            ends += played.ends
            games += played.games
        return described(transitions, ends, games)

    def sums(self) -> str:
        return self.driver("exact", self.sizes.sums, self.seed)

    def draws(self, prioritised: bool) -> str:
        batches = max(1, self.sizes.draws // (self.sizes.seeds * ROWS_OF_A_BATCH))
        with Writers() as writers:
            results = [
                draw_while_written(writers, self.seed + number, batches, prioritised, ROWS_OF_A_BATCH)
                for number in range(self.sizes.seeds)
            ]
        return figure(results, "by priority" if prioritised else "uniform")

    def no_leak(self) -> str:
        return self.driver("no_leak", self.sizes.lifecycles)

    def lane_races(self) -> str:
        return self.driver("lane_races", self.sizes.races, self.sizes.racers)

    def tests(self, row: str) -> str:
        """What the tests of a row, which are at full length already, print."""
        found = self.said(
            *(sys.executable, "-m", "pytest", "-q", "-rP", "-k", f"{row.lower()}_"),
            "tests/test_replay_promises.py",
        )
        figures = re.findall(rf"^{row}: (.*)$", found, re.MULTILINE)
        if not figures:
            raise Failed("no figure was printed")
        return "; ".join(figures)

    def parts(self) -> Iterator[tuple[str, str, Callable[[], str]]]:
        """The row, what is run, and that."""
        sizes = self.sizes
        yield "R1", f"`ring_stress torture`, {sizes.torture_minutes:g} minutes", self.torture
        yield "R2", "`ring_crashpoints crashpoints`", self.crashpoints
        yield "R2", f"`ring_stress kills {sizes.kills}`", self.kills
        yield "R3", f"`ring_model.py{' --full' if sizes.whole_model else ''}`", self.model
        cells = f"{len(GAMES[: sizes.games])} games x {len(PROTOCOLS)} protocols x {len(AUTORESETS)} ways to reset"
        yield "R4", f"`played_games`, {cells} x {sizes.game_steps} steps of 4 envs", self.games
        yield "R5", f"`ring_stress exact {sizes.sums}`", self.sums
        yield "R5", "`exact_draws`, two writers", lambda: self.draws(prioritised=False)
        yield "R5", "`exact_draws`, two writers, changing priorities", lambda: self.draws(prioritised=True)
        yield "R6", "`test_replay_promises.py`", lambda: self.tests("R6")
        yield "R7", f"`ring_stress no_leak {sizes.lifecycles}`", self.no_leak
        yield "R8", f"`ring_stress lane_races {sizes.races} {sizes.racers}`", self.lane_races
        yield "R9", "`test_replay_promises.py`", lambda: self.tests("R9")
        yield "R10", "`test_replay_promises.py`", lambda: self.tests("R10")


def build() -> None:
    """The drivers, as the preset `plain` has them."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for command in (
        ["cmake", "--preset", "plain"],
        ["cmake", "--build", "--preset", "plain", "--target", "ring_stress", "ring_crashpoints"],
    ):
        subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)


def report(soak: Soak, rows: list[tuple[str, str, str, float]], broken: int) -> str:
    """What was run and what came out, in Markdown."""
    about = {**versions("numpy", "gymnasium", "ale-py"), "cpu": machine()["cpu"], "cores": machine()["usable_cores"]}
    about["commit"] = commit() or "?"  # of an installed package
    if about["commit"] != "?" and subprocess.run(["git", "diff", "--quiet", "HEAD"], cwd=ROOT).returncode != 0:
        about["commit"] += ", changed since"
    minutes = sum(row[-1] for row in rows) / 60
    lines = [
        "# The replay's promises at length",
        "",
        f"`python tests/soak_ring.py`, seed {soak.seed}: {len(rows)} parts in {minutes:.0f} minutes: "
        f"**{f'{broken} DO NOT HOLD' if broken else 'all hold'}**. What the rows promise is in docs/reliability.md.",
        "",
        as_table(about),
        "",
        "| row | what ran | figure | minutes |",
        "|---|---|---|---:|",
        *(f"| {row} | {ran} | {figure} | {seconds / 60:.1f} |" for row, ran, figure, seconds in rows),
        "",
    ]
    return "\n".join(lines)


def main() -> int:
    """The script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="", help="such as R1,R5; none: all")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="a little of each")
    parser.add_argument("--drivers", type=Path, help="a folder with ring_stress and ring_crashpoints; none: build them")
    parser.add_argument("--output", type=Path, help="a Markdown file for the figures")
    for size in dataclasses.fields(Sizes):
        if not isinstance(size.default, bool):
            flag = f"--{size.name.replace('_', '-')}"
            parser.add_argument(flag, type=type(size.default), help=f"{size.default:,} unless given")
    given = parser.parse_args()
    named = {key: value for key, value in vars(given).items() if value is not None}
    sizes = dataclasses.replace(
        QUICK if given.quick else Sizes(),
        **{size.name: named[size.name] for size in dataclasses.fields(Sizes) if size.name in named},
    )
    soak = Soak(sizes, given.seed, (given.drivers or DRIVERS).resolve())
    asked = set(given.rows.upper().split(",")) if given.rows else {row for row, _, _ in soak.parts()}
    if unknown := asked - {row for row, _, _ in soak.parts()}:
        parser.error(f"--rows: {', '.join(sorted(unknown))} are unknown; known: R1 to R10")
    if given.drivers is None:
        build()

    rows: list[tuple[str, str, str, float]] = []
    broken = 0
    for row, ran, measure in soak.parts():
        if row not in asked:
            continue
        began = time.monotonic()
        try:
            found = measure()
        except Exception as error:  # the other rows are run all the same
            found = f"FAILED: {error}" if isinstance(error, Failed) else f"FAILED: {type(error).__name__}: {error}"
            broken += 1
        rows.append((row, ran, found, time.monotonic() - began))
        print(f"{row}: {found}  ({rows[-1][-1]:.0f} s)", flush=True)
    if given.output:
        given.output.write_text(report(soak, rows, broken))
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
