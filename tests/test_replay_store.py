"""A replay on disk: what is loaded goes on as what was saved; only new slots are written; damage is always found."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from replay_oracle import GUARD_STEPS

import fastrl
from fastrl.engine import replay_store
from fastrl.engine.replay_store import DamagedReplay


def new_replay(**changes: Any) -> fastrl.Replay:
    arguments: dict[str, Any] = {"capacity": 120, "lanes": 2, "obs_shape": (5,), "obs_dtype": "float32"}
    return fastrl.Replay(**{**arguments, "_least_spare_steps": GUARD_STEPS, "seed": 3, **changes})


def play(made: fastrl.Replay, steps: int, seed: int, continue_episodes: bool = False) -> None:
    rng = np.random.default_rng(seed)
    for lane in range(made.lanes):
        with made.writer(lane, continue_episodes) as writer:
            for _ in range(steps + lane):
                obs = np.full(5, writer.next_step + 1000 * lane, np.float32)
                if not writer.episode_is_open:
                    writer.start(obs)
                else:
                    end = rng.random() < 0.1
                    writer.append(int(rng.integers(5)), float(rng.normal()), obs, bool(end), False)


def drawn(made: fastrl.Replay, n_step: int = 2) -> list[list[Any]]:
    found = []
    for _ in range(5):
        batch = made.sample(16, n_step)
        if made.alpha is not None:
            made.update_priorities(batch.index, np.abs(batch.obs[:, -1, 0]) + 0.1)
        found.append([array.tolist() for array in batch])
    return found


@pytest.mark.parametrize("alpha", [None, 0.6])
@pytest.mark.parametrize("steps", [20, 75])
def test_what_is_loaded_goes_on_as_what_was_saved(tmp_path: Path, alpha: float | None, steps: int) -> None:
    made = new_replay(alpha=alpha)
    play(made, steps, seed=1)
    drawn(made)
    made.save(tmp_path)
    again = new_replay(alpha=alpha)
    again.load(tmp_path)

    assert again.boundary() == made.boundary()
    for turn in range(3):  # also where episodes go on across the save
        assert drawn(made) == drawn(again)
        play(made, 9, seed=turn, continue_episodes=True)
        play(again, 9, seed=turn, continue_episodes=True)


def test_episodes_of_envs_that_were_not_restored_are_broken_off(tmp_path: Path) -> None:
    made = new_replay(lanes=1, capacity=60)
    with made.writer(0) as writer:
        writer.start(np.zeros(5, np.float32))
        writer.append(0, 0.0, np.ones(5, np.float32), False, False)
    made.save(tmp_path)
    again = new_replay(lanes=1, capacity=60)
    again.load(tmp_path)
    with again.writer(0) as writer:
        assert not writer.episode_is_open
        writer.start(np.full(5, 7, np.float32))
    assert {step for _, step in again.sample(32).index.tolist()} == {0}


def test_only_new_slots_are_written(tmp_path: Path) -> None:
    made = new_replay()
    play(made, 30, seed=1)
    made.save(tmp_path)
    first = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("slots-*")}
    play(made, 4, seed=2, continue_episodes=True)
    manifest = replay_store.read_manifest(made.save(tmp_path))

    assert len(manifest["files"]) == 2
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in first} == first
    assert [(run["lane"], run["end"] - run["first"]) for run in manifest["files"][1]["runs"]] == [(0, 4), (1, 5)]


def test_a_save_without_news_writes_no_slots(tmp_path: Path) -> None:
    made = new_replay()
    play(made, 30, seed=1)
    made.save(tmp_path)
    made.save(tmp_path)
    assert len(list(tmp_path.glob("slots-*"))) == 1
    again = new_replay()
    again.load(tmp_path)
    assert drawn(again) == drawn(made)


def test_the_disk_that_a_store_takes_is_bounded(tmp_path: Path) -> None:
    made = new_replay()
    most = 0
    for turn in range(40):
        play(made, 10, seed=turn, continue_episodes=True)
        made.save(tmp_path, keep=2)
        most = max(most, sum(path.stat().st_size for path in tmp_path.glob("slots-*")))
        assert len(list(tmp_path.glob("replay-*.json"))) <= 2
    # The ring, and what two saves have beyond it: a file stays while one of its slots is needed.
    slot = 8 * made._ring.slot_words
    assert most <= made.capacity * slot + 3 * (21 * slot + 100)
    again = new_replay()
    again.load(tmp_path)
    assert drawn(again) == drawn(made)


def test_an_older_save_can_be_loaded_as_long_as_it_is_kept(tmp_path: Path) -> None:
    made = new_replay()
    play(made, 20, seed=1)
    older = made.save(tmp_path, keep=2)
    expected = drawn(made)
    play(made, 60, seed=2, continue_episodes=True)
    made.save(tmp_path, keep=2)

    again = new_replay()
    again.load(older)
    assert drawn(again) == expected


def test_a_damaged_save_keeps_no_whole_one_from_its_place(tmp_path: Path) -> None:
    made = new_replay()
    saves = []
    for turn in range(3):
        play(made, 20, seed=turn, continue_episodes=True)
        saves.append((made.save(tmp_path, keep=2), drawn(made)))
        if turn == 1:
            saves[1][0].write_text("{")
    (first, as_first), _, (last, as_last) = saves
    for path, expected in ((first, as_first), (last, as_last)):
        again = new_replay()
        again.load(path)
        assert drawn(again) == expected


def test_large_stores_are_split_into_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay_store, "_FILE_BYTES", 2000)
    made = new_replay()
    play(made, 55, seed=1)
    made.save(tmp_path)
    assert len(list(tmp_path.glob("slots-*"))) >= 4
    assert max(path.stat().st_size for path in tmp_path.glob("slots-*")) < 2100
    again = new_replay()
    again.load(tmp_path)
    assert drawn(again) == drawn(made)


def lane_steps(writer: Any, steps: int, value: float) -> None:
    """Steps whose observations all are ``value``."""
    obs = np.full(5, value, np.float32)
    for _ in range(steps):
        if writer.episode_is_open:
            writer.append(0, 0.0, obs, False, False)
        else:
            writer.start(obs)


def one_lane(**changes: Any) -> fastrl.Replay:
    return new_replay(**{"lanes": 1, "capacity": 1000, "stack": 1, **changes})


def require_loads_as(made: fastrl.Replay, saved: Path) -> None:
    again = new_replay(lanes=made.lanes, capacity=made.capacity, stack=made.stack)
    again.load(saved)
    assert again.digest() == made.digest()


def test_a_replay_that_goes_on_from_a_save_stays_the_same_to_the_bit(tmp_path: Path) -> None:
    """Slots that hold no step of the save, and what an older step left in them, are to leave no trace."""
    made, again = one_lane(capacity=100), one_lane(capacity=100)
    with made.writer(0) as writer:
        writer.start(np.zeros(5, np.float32))
        for _ in range(250):
            writer.append(3, 0.0, np.ones(5, np.float32), False, False)
        again.load(made.save(tmp_path))
    for replay in (made, again):
        with replay.writer(0) as writer:
            for step in range(12):
                writer.start(np.full(5, step, np.float32))
    assert again.digest() == made.digest()


def test_a_damaged_save_tells_of_the_one_before_it(tmp_path: Path) -> None:
    made = one_lane()
    with made.writer(0) as writer:
        lane_steps(writer, 50, 1.0)
        older = made.save(tmp_path)
        lane_steps(writer, 50, 2.0)
        newer = made.save(tmp_path)
    newer.write_bytes(newer.read_bytes()[:-1])
    with pytest.raises(fastrl.DamagedReplay, match=f"an older save may be whole: load it by its name, {older}"):
        one_lane().load(tmp_path)
    one_lane().load(older)


def test_files_of_another_replay_are_never_taken_for_its_own(tmp_path: Path) -> None:
    other, made = one_lane(), one_lane()
    with other.writer(0) as writer:
        lane_steps(writer, 300, 1.0)
    other.save(tmp_path)
    before = sorted(path.name for path in tmp_path.iterdir())
    with made.writer(0) as writer:
        lane_steps(writer, 600, 2.0)
    with pytest.raises(
        ValueError, match=r"holds another replay \(replay-00000000.json.*use an empty directory, or load"
    ):
        made.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    require_loads_as(other, tmp_path)
    require_loads_as(made, made.save(tmp_path / "mine"))


def test_steps_that_were_given_up_are_not_taken_for_those_made_instead(tmp_path: Path) -> None:
    made = one_lane()
    with made.writer(0) as writer:
        lane_steps(writer, 300, 1.0)
        older = made.save(tmp_path, keep=5)
        lane_steps(writer, 100, 7777.0)
        made.save(tmp_path, keep=5)
    again = one_lane()
    again.load(older)
    with again.writer(0, continue_episode=True) as writer:
        lane_steps(writer, 200, 3.0)
        manifest = replay_store.read_manifest(again.save(tmp_path, keep=5))
        assert [run["first"] for file in manifest["files"] for run in file["runs"]] == [0, 300]  # the older file stays
        require_loads_as(again, tmp_path)
        third = one_lane()
        third.load(tmp_path)
        lane_steps(writer, 10, 4.0)
        require_loads_as(again, again.save(tmp_path, keep=5))
    with third.writer(0, continue_episode=True) as writer:
        lane_steps(writer, 20, 5.0)
    require_loads_as(third, third.save(tmp_path, keep=5))
    with made.writer(0, continue_episode=True) as writer:  # the first one goes on too
        lane_steps(writer, 5, 7.0)
    require_loads_as(made, made.save(tmp_path, keep=5))
    require_loads_as(third, sorted(tmp_path.glob("replay-*"))[-2])


def test_attached_processes_and_owners_save_the_same_replay(tmp_path: Path) -> None:
    made = one_lane()
    with made.writer(0) as writer:
        lane_steps(writer, 30, 1.0)
        made.save(tmp_path)
        attached = fastrl.Replay.attach(made.handle())
        lane_steps(writer, 30, 2.0)
    attached.save(tmp_path)
    require_loads_as(made, tmp_path)


def test_a_save_without_a_history_can_be_loaded_and_then_added_to(tmp_path: Path) -> None:
    made = one_lane()
    with made.writer(0) as writer:
        lane_steps(writer, 30, 1.0)
    path = made.save(tmp_path)
    manifest = replay_store.read_manifest(path)
    del manifest["history"], manifest["ancestors"], manifest["files"][0]["history"]
    rewrite(path, manifest)
    with pytest.raises(ValueError, match="holds another replay"):
        made.save(tmp_path)
    again = one_lane()
    again.load(tmp_path)
    with again.writer(0, continue_episode=True) as writer:
        lane_steps(writer, 30, 2.0)
    assert len(replay_store.read_manifest(again.save(tmp_path))["files"]) == 2
    require_loads_as(again, tmp_path)


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("how", ["lost", "cut"])
def test_a_file_that_was_lost_is_written_again(tmp_path: Path, which: int, how: str) -> None:
    made = one_lane()
    with made.writer(0) as writer:
        for turn in range(3):
            lane_steps(writer, 100, float(turn))
            if turn < 2:
                made.save(tmp_path)
    lost = sorted(tmp_path.glob("slots-*"))[which]
    if how == "lost":
        lost.unlink()
    else:
        lost.write_bytes(lost.read_bytes()[:-9])
    require_loads_as(made, made.save(tmp_path))


def test_lanes_that_advance_unevenly_take_no_more_and_more_disk(tmp_path: Path) -> None:
    made = new_replay(capacity=1000)
    with made.writer(0) as slow, made.writer(1) as fast:
        for turn in range(60):
            lane_steps(slow, 1, -1.0)
            lane_steps(fast, 500, float(turn))
            made.save(tmp_path, keep=2)
            # What replay_store.py promises: twice the ring for each save.
            taken = sum(path.stat().st_size for path in tmp_path.glob("slots-*"))
            assert taken <= 2 * 2 * made.capacity * 8 * made._ring.slot_words
    require_loads_as(made, tmp_path)


def test_saves_and_loads_take_little_memory_beside_the_ring(tmp_path: Path) -> None:
    script = """
import sys, threading
import numpy as np
import fastrl

def new():
    return fastrl.Replay(8000, 2, (84, 84), "uint8", seed=1)

def kb():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("RssAnon"))

def most_bytes(call):
    before, seen, done = kb(), [0], threading.Event()

    def watch():
        while not done.wait(0.001):
            seen.append(kb())

    thread = threading.Thread(target=watch)
    thread.start()
    call(sys.argv[1])
    done.set()
    thread.join()
    return (max(*seen, kb()) - before) * 1024

made = new()
frame = np.random.default_rng(0).integers(0, 255, (84, 84), np.uint8)
for lane in range(2):
    with made.writer(lane) as writer:
        writer.start(frame)
        for _ in range(3900):
            writer.append(0, 0.0, frame, False, False)
saving = most_bytes(made.save)
digest, ring = made.digest(), made.region_bytes
del made
again = new()
loading = most_bytes(again.load)
assert again.digest() == digest
print(ring, saving, loading)
"""
    result = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    ring, saving, loading = map(int, result.stdout.split())
    print(f"beside a ring of {ring / 1e6:.0f} MB a save took {saving / 1e6:.1f} MB, a load {loading / 1e6:.1f} MB")
    assert ring > 55_000_000
    assert max(saving, loading) < 20_000_000


def test_a_load_takes_all_lanes_or_none(tmp_path: Path) -> None:
    made = new_replay()
    play(made, 30, seed=1)
    made.save(tmp_path)
    again = new_replay()
    with again.writer(1), pytest.raises(fastrl.LaneBusy, match="lane 1 has a writer"):
        again.load(tmp_path)
    assert again.boundary() == [0, 0]
    again.load(tmp_path)
    assert again.digest() == made.digest()


def test_files_are_private(tmp_path: Path) -> None:
    os.umask(old := os.umask(0))
    previous = os.umask(0)
    try:
        made = new_replay()
        play(made, 20, seed=1)
        made.save(tmp_path / "store")
    finally:
        os.umask(previous)
    assert old == previous
    for path in (tmp_path / "store").iterdir():
        assert path.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "store").stat().st_mode & 0o777 == 0o700


# ---- damage


def saved(tmp_path: Path) -> tuple[Path, Path]:
    made = new_replay()
    play(made, 30, seed=1)
    manifest = made.save(tmp_path)
    return manifest, next(tmp_path.glob("slots-*"))


def require_refused(directory: Path) -> None:
    again = new_replay()
    with pytest.raises(DamagedReplay):
        again.load(directory)
    assert not any(again.boundary())


@pytest.mark.parametrize("which", [0, 1], ids=["manifest", "slots"])
def test_every_flipped_bit_is_found(tmp_path: Path, which: int) -> None:
    path = saved(tmp_path)[which]
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    for at in rng.choice(len(content), 150, replace=False):
        damaged = bytearray(content)
        damaged[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        require_refused(tmp_path)
    path.write_bytes(content)
    new_replay().load(tmp_path)


@pytest.mark.parametrize("which", [0, 1], ids=["manifest", "slots"])
def test_every_cut_is_found(tmp_path: Path, which: int) -> None:
    path = saved(tmp_path)[which]
    content = path.read_bytes()
    for size in np.random.default_rng(0).choice(len(content), 60, replace=False):
        path.write_bytes(content[:size])
        require_refused(tmp_path)
    path.write_bytes(content + b"x")
    require_refused(tmp_path)
    path.unlink()
    if which == 1:
        require_refused(tmp_path)


def test_a_manifest_reaches_no_other_directory(tmp_path: Path) -> None:
    path, slots = saved(tmp_path / "store")
    outside = tmp_path / "outside.bin"
    outside.write_bytes(slots.read_bytes())
    manifest = replay_store.read_manifest(path)
    manifest["files"][0]["name"] = "../outside.bin"
    rewrite(path, manifest)
    again = new_replay()
    with pytest.raises(DamagedReplay, match="no name of a file of slots"):
        again.load(path)
    slots.unlink()
    slots.symlink_to(outside)
    with pytest.raises(DamagedReplay):
        new_replay().load(path)


def rewrite(path: Path, manifest: dict[str, Any]) -> None:
    body = json.dumps(manifest).encode()
    path.write_bytes(json.dumps({"crc32": zlib.crc32(body), "bytes": len(body)}).encode() + b"\n" + body)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"capacity": 124}, "saved from a replay with shape"),
        ({"padding": "first_frame"}, "with padding zeros, this has first_frame"),
        ({"alpha": 0.5}, "with alpha None, this has 0.5"),
        ({"seed": 4}, "with seed 3, this has 4"),
        ({"obs_dtype": "int32"}, "obs_dtype <f4, this has <i4"),
        ({"action": spaces.Discrete(2)}, r"with discrete None, this has \[0, 2\]"),
    ],
)
def test_a_save_of_another_replay_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    saved(tmp_path)
    with pytest.raises(ValueError, match=message):
        new_replay(**changes).load(tmp_path)


def test_what_is_not_there_or_not_new_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="has no saved replay"):
        new_replay().load(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere is not there; give a directory"):
        new_replay().load(tmp_path / "nowhere")
    saved(tmp_path)
    used = new_replay()
    play(used, 3, seed=0)
    with pytest.raises(RuntimeError, match="has been written to; load into a new one"):
        used.load(tmp_path)


def without(name: str) -> Callable[[dict[str, Any]], object]:
    return lambda manifest: manifest.pop(name)


def with_priorities(**changes: Any) -> Callable[[dict[str, Any]], object]:
    return lambda manifest: manifest["priorities"].update(changes)


def packed(size: int) -> str:
    return base64.b64encode(zlib.compress(bytes(size))).decode()


@pytest.mark.parametrize(
    "change",
    [
        *(without(name) for name in ("windows", "files", "priorities", "batches", "slot_words")),
        lambda manifest: manifest.update(windows=manifest["windows"][:1]),
        lambda manifest: manifest.update(windows="windows"),
        lambda manifest: manifest.update(batches=-1),
        lambda manifest: manifest.update(batches="x"),
        lambda manifest: manifest["files"][0].update(name=None),
        lambda manifest: manifest["files"][0]["runs"][0].update(lane=7),
        with_priorities(n_step=0),
        with_priorities(n_step=-1),
        with_priorities(another=1),
        with_priorities(ends=[10**9, 10**9]),
        with_priorities(weights="eJ"),
        with_priorities(weights=packed(9)),
        lambda manifest: manifest["priorities"].update(weights=packed(100_000_000)),
    ],
)
def test_a_manifest_of_nonsense_is_refused_before_anything_is_taken(
    change: Callable[[dict[str, Any]], object], tmp_path: Path
) -> None:
    made = new_replay(alpha=0.5)
    play(made, 40, seed=0)
    made.sample(4)
    path = made.save(tmp_path)
    manifest = replay_store.read_manifest(path)
    whole = json.loads(json.dumps(manifest))
    change(manifest)
    rewrite(path, manifest)
    again = new_replay(alpha=0.5)
    tracemalloc.start()
    try:
        with pytest.raises(DamagedReplay):
            again.load(path)
        assert tracemalloc.get_traced_memory()[1] < 50_000_000
    finally:
        tracemalloc.stop()
    assert again.boundary() == [0, 0]
    rewrite(path, whole)
    again.load(path)
    assert np.array_equal(again.sample(8).index, made.sample(8).index)


@pytest.mark.parametrize("kept", [0.0, 0.5])
def test_a_file_that_changes_while_it_is_loaded_leaves_no_call_that_never_returns(
    kept: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, slots = saved(tmp_path)
    verify = replay_store.SlotStore.verify

    def verify_then_change(*given: Any) -> Any:
        found = verify(*given)
        content = slots.read_bytes()
        same = max(8, int(kept * len(content)))  # at least what says that it is a file of slots
        slots.write_bytes(content[:same] + b"\xff" * (len(content) - same))
        return found

    monkeypatch.setattr(replay_store.SlotStore, "verify", verify_then_change)
    again = new_replay()
    with pytest.raises(DamagedReplay, match="was changed while it was loaded"):
        again.load(tmp_path)
    if kept == 0:
        assert again.boundary() == [0, 0]  # nothing was published that is not there
        with pytest.raises(fastrl.NothingToSample, match="stacks: lane 0 has no observation yet"):
            again.stacks()
    else:
        assert min(again.boundary()) > 0
        assert len(again.stacks()) == 2  # what was published is whole


def test_a_newer_format_is_refused_by_its_number(tmp_path: Path) -> None:
    path, _ = saved(tmp_path)
    manifest = replay_store.read_manifest(path)
    manifest["format"] = 99
    rewrite(path, manifest)
    with pytest.raises(DamagedReplay, match="has format 99, this version of fastrl reads 1"):
        new_replay().load(tmp_path)


# ---- faults in the middle of a save (C1, C2)


def faults(*arguments: str, on: list[str] | None = None) -> str:
    command = [*(on or []), sys.executable, str(Path(__file__).with_name("save_faults.py")), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=200)
    print(result.stdout)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_a_save_that_is_killed_at_any_call_leaves_the_old_state_or_the_new_one() -> None:
    assert ": 0 unloadable" in faults("kill")


def test_a_disk_that_is_full_at_any_call_loses_nothing() -> None:
    assert ": 0 lost" in faults("full")


def test_files_that_may_not_grow_lose_nothing() -> None:
    assert ": 0 lost" in faults("limit")


def test_a_small_disk_that_fills_up_loses_nothing(tmp_path: Path) -> None:
    mounted = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs -o size=256k none "$0" && exec "$@"', str(tmp_path)]
    try:
        subprocess.run([*mounted, "true"], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("a tmpfs cannot be mounted without more rights; the other tests fake full disks")
    assert ": 0 lost" in faults("disk", str(tmp_path), on=mounted)
