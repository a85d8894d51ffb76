"""Checkpoints: killed, cut, flipped and out of space, the newest whole one is always found again."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_run
import torch
from file_faults import Faults
from nursery import Child, Nursery
from small_run import STEPS_A_TURN, a_run, require_tidy, require_whole, tensors_of

from fastrl.engine import files
from fastrl.engine.files import DamagedFile
from fastrl.engine.saved_replays import check_saved_replay
from fastrl.runs import checkpoint
from fastrl.runs.checkpoint import CheckpointStore, UnknownFormat
from fastrl.runs.session import resume


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    made = Nursery()
    yield made
    made.close()


# ---- C1: killed


def kill_everywhere(nursery: Nursery, tmp_path: Path, most: int = 10_000) -> int:
    """Kill a save before each of its changes in turn; returns how many there are."""

    def started(at: int) -> Child:
        runs = tmp_path / str(at)
        runs.mkdir()
        return nursery.start("small_run:save_and_die", str(runs), at, output=tmp_path / f"{at}.log")

    following = started(1)
    for at in range(1, most):
        child, following = following, started(at + 1)  # which saves while this one is judged
        runs = tmp_path / str(at)
        code = child.wait()
        found = require_whole(runs)
        if code == 0:
            assert found.checkpoint.steps == 4 * STEPS_A_TURN
            assert following.wait() == 0
            return at - 1
        assert code == -9, child.said()
        store = CheckpointStore(runs / "run" / "checkpoints")
        assert found.checkpoint.steps in (3 * STEPS_A_TURN, 4 * STEPS_A_TURN)
        assert store.steps_saved()[0] == found.checkpoint.steps  # what has a name is whole
        best = store.load_best()
        assert best is not None
        assert torch.equal(best.tensors["w"], tensors_of(best.state["turn"])["w"])
        with a_run(runs, found) as run:
            assert run.take_turn()
            assert run.take_turn()
        require_tidy(runs)
        shutil.rmtree(runs)
    raise AssertionError("a save has no end")


def test_a_save_killed_before_any_of_its_changes_leaves_a_whole_checkpoint(nursery: Nursery, tmp_path: Path) -> None:
    count = kill_everywhere(nursery, tmp_path)
    print(f"C1: killed before each of {count} changes: 0 unloadable")
    assert count > 25


def test_the_same_steps_saved_again_never_leave_none(tmp_path: Path) -> None:
    """As a run does that is resumed and stopped at once: with one checkpoint kept there is no other to go back to."""
    count = 0
    for at in range(1, 30):
        store = CheckpointStore(tmp_path / str(at), keep=1)
        store.save(7, tensors_of(1), {"life": 1})
        faults = Faults(at, "EIO")
        try:
            with faults.active():
                store.save(7, tensors_of(2), {"life": 2})
        except OSError:
            count += 1
        found = store.load(note=pytest.fail)
        assert found is not None
        assert torch.equal(found.tensors["w"], tensors_of(found.state["life"])["w"])
    assert count >= 8


def test_what_was_written_before_its_name_is_what_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted mistake that the enumeration above is to catch: a JSON that comes before its tensors."""
    store = CheckpointStore(tmp_path)
    store.save(1, tensors_of(1), {})
    monkeypatch.setattr(checkpoint, "write_private", lambda path, content: None)
    store.save(2, tensors_of(2), {})
    notes: list[str] = []
    found = store.load(notes.append)
    assert found is not None
    assert found.steps == 1
    assert "ckpt-000000000002-" in notes[0]


# ---- C2: no space, no disk


@pytest.mark.parametrize("every", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize("fault", ["ENOSPC", "EIO"])
def test_a_disk_that_fails_at_any_moment_costs_only_that_save(tmp_path: Path, fault: str, every: bool) -> None:
    changing = ("open", "write", "fsync", "rename", "mkdir") + (("unlink",) if fault == "EIO" else ())
    failed = 0
    with a_run(tmp_path) as run:
        assert run.take_turn()
        for at in range(1, 1000):
            faults = Faults(at, fault, changing, every)
            before = run.session.store.steps_saved()[0]
            with faults.active():
                saved = run.take_turn()
                if every and not saved:  # and again, and again: what is kept must not be counted away
                    assert not any(run.take_turn() for _ in range(3))
            if len(faults.calls) < at:
                break
            if not saved:
                failed += 1
                assert f"failed ([Errno {getattr(__import__('errno'), fault)}]" in run.notes[-1]
                found = run.session.store.load(note=pytest.fail, with_replay=True)
                assert found is not None
                assert found.steps >= before
            assert run.take_turn(), run.notes[-1]
            require_tidy(tmp_path)
        else:
            raise AssertionError("a save has no end")
    require_whole(tmp_path)
    print(f"C2: {fault} at each of {at - 1} changes, {failed} saves failed: 0 lost, 0 crashes")
    assert failed > 10


def test_a_limit_on_the_size_of_files(nursery: Nursery, tmp_path: Path) -> None:
    child = nursery.start("small_run:save_until_the_limit", str(tmp_path), output=tmp_path / "log")
    assert child.wait() == 0, child.said()
    (tmp_path / "log").unlink()
    require_whole(tmp_path)
    require_tidy(tmp_path)


def test_a_disk_that_is_really_full(nursery: Nursery, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    child = nursery.start("small_run:save_on_a_small_disk", str(tmp_path / "disk"), output=tmp_path / "log")
    code = child.wait()
    if code == small_run.SKIPPED:
        pytest.skip("a tmpfs cannot be mounted without more rights; the other tests fake full disks")
    assert code == 0, child.said()
    print(f"C2: {child.said().strip()}: 0 lost")


def test_a_run_whose_last_save_fails_says_so_and_is_no_success(tmp_path: Path) -> None:
    with a_run(tmp_path) as run:
        assert run.take_turn()
        run.envs.play(99)
        run.session.stepped(STEPS_A_TURN, [])
        with Faults(1, "ENOSPC", ("write",), every=True).active():
            run.session.finish(tensors_of(2), {})
    assert run.session.exit_code == 1
    assert run.session.run.finished is False
    assert "the last 20 steps are not saved" in run.notes[-1]


# ---- C3: damaged


def two_checkpoints(tmp_path: Path) -> tuple[CheckpointStore, Path, Path]:
    store = CheckpointStore(tmp_path)
    generator = torch.Generator().manual_seed(0)
    for steps in (1, 2):
        store.save(steps, {"w": torch.rand(10_000, generator=generator), "n": torch.tensor(steps)}, {"steps": steps})
    return store, store.path_of(2), next(tmp_path.glob("ckpt-000000000002-*.safetensors"))


def outcome(store: CheckpointStore, damaged: Path, content: bytes) -> str:
    """What becomes of the newest checkpoint when one of its files has this content."""
    damaged.write_bytes(content)
    notes: list[str] = []
    found = store.load(notes.append)
    assert found is not None
    if found.steps == 2:
        assert int(found.tensors["n"]) == 2
        assert found.state == {"steps": 2}
        return "harmless"
    assert (found.steps, int(found.tensors["n"])) == (1, 1)
    assert len(notes) == 1
    assert str(damaged.parent) in notes[0]
    assert damaged.name in notes[0] or damaged.stem[:17] in notes[0]
    return "the one before is used"


def test_every_flipped_bit_is_found_and_the_checkpoint_before_is_used(tmp_path: Path) -> None:
    store, *damaged = two_checkpoints(tmp_path)
    rng = np.random.default_rng(0)
    outcomes: dict[str, int] = {}
    for path in damaged:
        content = path.read_bytes()
        wholly = path.suffix == ".json"
        places = range(8 * len(content)) if wholly else rng.choice(8 * len(content), 1500, replace=False)
        for place in places:
            changed = bytearray(content)
            changed[place // 8] ^= 1 << place % 8
            came = outcome(store, path, bytes(changed))
            outcomes[came] = outcomes.get(came, 0) + 1
        path.write_bytes(content)
    print(f"C3: flipped bits: {outcomes}")
    assert outcomes.get("harmless", 0) <= 8  # of the blanks in the line before the JSON
    assert sum(outcomes.values()) > 3000
    assert store.load(note=pytest.fail) is not None


def test_every_cut_is_found_and_the_checkpoint_before_is_used(tmp_path: Path) -> None:
    store, described, tensors = two_checkpoints(tmp_path)
    count = 0
    for path, sizes in (
        (described, range(len(described.read_bytes()))),
        (tensors, [*range(0, tensors.stat().st_size, 4096), tensors.stat().st_size - 1]),
    ):
        content = path.read_bytes()
        for size in sizes:
            assert outcome(store, path, content[:size]) == "the one before is used"
            count += 1
        assert outcome(store, path, content + b"\n") == "the one before is used"
        path.write_bytes(content)
    tensors.unlink()
    notes: list[str] = []
    found = store.load(notes.append)
    assert found is not None
    assert found.steps == 1
    print(f"C3: {count} cuts: all found")


@pytest.mark.parametrize("which", ["manifest", "slots"])
def test_a_damaged_replay_is_damage_too(tmp_path: Path, which: str) -> None:
    with a_run(tmp_path) as run:
        for _ in range(9):  # so many that the two kept saves share no file of slots
            assert run.take_turn()
    store = run.session.store
    newest = store.load(note=pytest.fail, with_replay=True)
    assert newest is not None
    manifest = store.replay_save(newest)
    last = json.loads(manifest.read_bytes().split(b"\n", 1)[1])["files"][-1]["name"]
    path = manifest if which == "manifest" else manifest.parent / last
    content = path.read_bytes()
    rng = np.random.default_rng(1)
    for place in rng.choice(8 * len(content), 300, replace=False):
        changed = bytearray(content)
        changed[place // 8] ^= 1 << int(place) % 8
        path.write_bytes(changed)
        with pytest.raises(DamagedFile):
            check_saved_replay(manifest)
    found = require_whole(tmp_path)
    assert found.checkpoint.steps == newest.steps - STEPS_A_TURN

    # The run goes on from the one before, and nothing of the history that is given up comes back.
    with a_run(tmp_path, found) as again:
        again.turn = 50
        assert again.take_turn()
    assert require_whole(tmp_path).checkpoint.steps == newest.steps
    require_tidy(tmp_path)


def test_where_only_the_replay_is_damaged_everywhere_it_says_what_helps(tmp_path: Path) -> None:
    with a_run(tmp_path) as run:
        run.take_turn()
    for path in (tmp_path / "run" / "checkpoints" / "replay").glob("slots-*"):
        path.unlink()
    with pytest.raises(
        DamagedFile,
        match=r"no checkpoint is whole \(1 damaged\); the one at 20 steps lacks only its replay: --resume",
    ):
        resume(tmp_path / "run", without_replay=False, accept_changed_bits=False)
    found = resume(tmp_path / "run", without_replay=True, accept_changed_bits=False)
    assert found.replay_save is None
    with a_run(tmp_path, found) as again:
        assert again.take_turn()
        assert again.take_turn()
    assert require_whole(tmp_path).replay_save == tmp_path / "run/checkpoints/replay-2/replay-00000001.json"
    require_tidy(tmp_path)


def test_a_replay_begun_anew_takes_nothing_of_the_one_before(tmp_path: Path) -> None:
    """Two histories in one store would be taken for one: the second has other steps of the same numbers."""
    with a_run(tmp_path) as run:
        for _ in range(4):
            run.take_turn()
    found = resume(tmp_path / "run", without_replay=True, accept_changed_bits=False)
    with a_run(tmp_path, found) as again:
        for turn in range(100, 106):  # beyond the steps that are saved of the one before
            again.envs.play(turn)
        again.take_turn()
        require_whole(tmp_path)
        again.take_turn()
    require_whole(tmp_path)
    require_tidy(tmp_path)


def test_steps_given_up_are_not_taken_for_those_made_again(tmp_path: Path) -> None:
    """Killed between the replay's save and the checkpoint's: the replay is ahead, and the next life steps otherwise."""
    with a_run(tmp_path) as run:
        run.take_turn()
        run.envs.play(1000)
        run.envs.replay.save(run.session._replay_directory, 100)
    found = require_whole(tmp_path)
    with a_run(tmp_path, found) as again:
        again.turn = 7
        assert again.take_turn()
        assert again.take_turn()
    require_whole(tmp_path)


def test_best_weights_that_are_damaged_do_not_stop_a_run(tmp_path: Path) -> None:
    with a_run(tmp_path) as run:
        run.take_turn()
        run.take_turn()
    next((tmp_path / "run" / "checkpoints").glob("best-*.safetensors")).write_bytes(b"")
    with pytest.raises(DamagedFile, match="best-000000000040-"):
        CheckpointStore(tmp_path / "run" / "checkpoints").load_best()
    with a_run(tmp_path, require_whole(tmp_path)) as again:
        assert again.take_turn()


def test_another_format_is_refused_and_no_older_one_taken_in_its_stead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, *_ = two_checkpoints(tmp_path)
    monkeypatch.setattr(checkpoint, "FORMAT", 99)
    store.save(3, tensors_of(3), {})
    monkeypatch.undo()
    with pytest.raises(UnknownFormat, match="has format 99, this version of fastrl reads 1"):
        store.load(note=pytest.fail)


# ---- C6: private, in order


def recorded(tmp_path: Path) -> tuple[list[tuple[str, str]], list[tuple[Any, ...]]]:
    """The changes that a save makes, and how it opened files."""
    opened: list[tuple[Any, ...]] = []
    real = os.open

    def watched(*arguments: Any, **more: Any) -> int:
        opened.append(arguments)
        return real(*arguments, **more)

    os.open = watched
    try:
        with a_run(tmp_path) as run:
            for _ in range(3):  # so that the fourth has something to delete
                run.take_turn()
            faults = Faults(0, "")
            with faults.active():
                run.take_turn()
    finally:
        os.open = real
    return faults.calls, opened


def test_files_are_synced_before_they_are_named_and_the_json_comes_last(tmp_path: Path) -> None:
    calls, opened = recorded(tmp_path)
    named = [(place, what) for place, (name, what) in enumerate(calls) if name == "rename"]
    for place, what in named:
        writes = [p for p, call in enumerate(calls) if call == ("write", what)]
        syncs = [p for p, call in enumerate(calls) if call == ("fsync", what)]
        if writes:  # the replay's store writes through a buffer that is not watched
            assert max(writes) < min(syncs)
        assert max(syncs) < place
        assert calls[place + 1] == ("fsync", calls[place + 1][1])
        assert calls[place + 1][1] in ("checkpoints", "replay", calls[place + 1][1])
        assert not calls[place + 1][1].endswith(".part")
    order = [what.split(".")[1].split("-")[0] + "." + what.split(".")[2] for _, what in named]
    assert order == ["slots.bin", "replay.json", "ckpt.safetensors", "ckpt.json", "best.safetensors", "best.json"]
    first_deleted = min(place for place, (name, _) in enumerate(calls) if name == "unlink")
    assert first_deleted > next(place for place, what in named if "ckpt" in what and ".json" in what)
    written = [
        (path, flags, mode) for path, flags, *mode in opened if flags & os.O_WRONLY and "checkpoints" in str(path)
    ]
    assert len(written) >= 8
    for path, flags, mode in written:
        assert flags & (os.O_EXCL | os.O_CREAT | os.O_NOFOLLOW) == os.O_EXCL | os.O_CREAT | os.O_NOFOLLOW
        assert mode == [0o600]
        assert Path(path).name.endswith(".part")
    print(f"C6: {len(named)} files, each synced before it is named, the JSON last")


def test_only_the_owner_may_read_whatever_the_umask(tmp_path: Path) -> None:
    previous = os.umask(0)
    try:
        with a_run(tmp_path) as run:
            assert run.take_turn()
            assert run.take_turn()
    finally:
        os.umask(previous)
    for path in (tmp_path / "run").rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path


def test_links_and_pipes_are_refused(tmp_path: Path) -> None:
    store, described, tensors = two_checkpoints(tmp_path / "store")
    for path in (described, tensors):
        elsewhere = tmp_path / path.name
        path.rename(elsewhere)
        path.symlink_to(elsewhere)
        with pytest.raises(DamagedFile, match="Too many levels of symbolic links"):
            checkpoint.read(described)
        path.unlink()
        os.mkfifo(path)
        with pytest.raises(DamagedFile, match="is no plain file"):
            checkpoint.read(described)
        path.unlink()
        elsewhere.rename(path)
    assert store.load(note=pytest.fail) is not None


def test_a_checkpoint_reaches_no_other_directory(tmp_path: Path) -> None:
    with a_run(tmp_path) as run:
        run.take_turn()
    described = run.session.store.path_of(STEPS_A_TURN)
    content = files.read_json(described)
    shutil.copytree(described.parent / "replay", tmp_path / "replay")
    tensors = tmp_path / content["tensors"]["file"]
    shutil.copy(described.parent / content["tensors"]["file"], tensors)
    for change, message in (
        ({"state": {**content["state"], "replay": "../../replay/replay-00000000.json"}}, "is no manifest's name"),
        ({"state": {**content["state"], "replay": str(tmp_path / "replay/replay-00000000.json")}}, "no manifest's"),
        ({"tensors": {**content["tensors"], "file": f"../../{tensors.name}"}}, "as its tensors"),
    ):
        files.write_json(described, {**content, **change})
        notes: list[str] = []
        with pytest.raises(DamagedFile):
            run.session.store.load(notes.append, with_replay=True)
        assert message in notes[0]
    files.write_json(described, content)
    require_whole(tmp_path)


def test_leftovers_of_a_process_with_the_same_number_are_in_nobodys_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a container the process that goes on has the number of the one that was killed."""
    monkeypatch.setattr(os, "rename", lambda *_: os._exit(0))
    pid = os.fork()
    if pid == 0:
        files.write_private(tmp_path / "x.json", b"half")
    os.waitpid(pid, 0)
    monkeypatch.undo()
    assert len(list(tmp_path.iterdir())) == 1
    monkeypatch.setattr(os, "getpid", lambda: pid)
    files.write_private(tmp_path / "x.json", b"whole")
    files.forget_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]
