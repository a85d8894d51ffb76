"""What a save does when it is killed, or the disk is full, at any of its calls: the driver behind test_replay_store.py.

    python tests/save_faults.py kill          killed at every call, and in the middle of every write
    python tests/save_faults.py full          every call that can fail fails once, as if the disk were full
    python tests/save_faults.py disk PATH     PATH lies on a small disk, which a save fills
    python tests/save_faults.py limit         files may not become as large as a save's

Each attempt is a process of its own, beside a directory with two saves. Afterwards the directory must load as what was
saved before or as the new one, whole; and the next save must work.
"""

from __future__ import annotations

import errno
import hashlib
import os
import resource
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import fastrl
from fastrl.engine import replay_store

GUARD_STEPS = 8
replay_store._FILE_BYTES = 2000  # so that a save has several files


def new_replay() -> fastrl.Replay:
    return fastrl.Replay(120, 2, (5,), "float32", alpha=0.6, seed=3, _least_spare_steps=GUARD_STEPS)


def play(made: fastrl.Replay, steps: int) -> None:
    for lane in range(made.lanes):
        with made.writer(lane, continue_episode=True) as writer:
            for _ in range(steps):
                obs = np.full(5, writer.next_step + 1000 * lane, np.float32)
                if not writer.episode_is_open:
                    writer.start(obs)
                else:
                    writer.append(writer.next_step % 3, float(writer.next_step), obs, writer.next_step % 11 == 0, False)
    made.update_priorities(made.sample(16).index, np.arange(16) + 1.0)


def state(made: fastrl.Replay) -> str:
    """A digest of what it holds and draws next."""
    digest = hashlib.sha256(str(made.boundary()).encode())
    for _ in range(3):
        for array in made.sample(32):
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def loaded(directory: Path) -> fastrl.Replay:
    made = new_replay()
    made.load(directory)
    return made


class Calls:
    """Every call of a save that the file system sees, counted; at number ``at`` something happens."""

    def __init__(self, at: int, happens: Callable[[str], None], names: tuple[str, ...]) -> None:
        self.at = at
        self.happens = happens
        self.names = names
        self.count = 0
        for name in ("open", "fsync", "rename", "unlink", "mkdir"):
            setattr(os, name, self.counted(name, getattr(os, name)))
        opened = os.fdopen

        def fdopen(descriptor: int, mode: str) -> Any:
            return (
                CountedFile(self, opened(descriptor, mode, buffering=0)) if mode == "wb" else opened(descriptor, mode)
            )

        os.fdopen = fdopen

    def counted(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **more: Any) -> Any:
            self.pass_by(name)
            return call(*args, **more)

        return run

    def pass_by(self, name: str) -> None:
        if name not in self.names:
            return
        if self.count == self.at:
            self.count += 1
            self.happens(name)
        self.count += 1


class CountedFile:
    """A file whose writes come in two halves, so that something can happen between them."""

    def __init__(self, calls: Calls, file: Any) -> None:
        self.calls = calls
        self.file = file

    def write(self, part: Any) -> None:
        part = memoryview(part).cast("B")
        for half in (part[: len(part) // 2], part[len(part) // 2 :]):
            self.calls.pass_by("write")
            self.file.write(half)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def __enter__(self) -> CountedFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()


def attempt(directory: Path, prepare: Callable[[], Calls | None]) -> tuple[int, str]:
    """A child that goes on from the newest save and saves again; its status, and what it said."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        said = "saved"
        code = 1
        try:
            made = loaded(directory)
            play(made, 30)
            calls = prepare()
            try:
                made.save(directory)
            except OSError as error:
                said = f"{type(error).__name__} {error.errno} {error}"
            if calls is not None and calls.count <= calls.at:
                said = "no more calls"
            code = 0
        except BaseException as error:
            said = f"unexpected {type(error).__name__}: {error}"
        os.write(writer, said.encode())
        os._exit(code)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        said = file.read().decode()
    return os.waitpid(child, 0)[1], said


def require(holds: bool, what: str) -> None:
    if not holds:
        print(f"FAILED: {what}")
        sys.exit(1)


class Scene:
    """A directory with two saves, and what it must load as before and after the next one."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        made = new_replay()
        for _ in range(2):
            play(made, 30)
            made.save(directory / "before")
        shutil.copytree(directory / "before", directory / "after")
        status, said = attempt(directory / "after", lambda: None)
        require((status, said) == (0, "saved"), f"an ordinary save: {said}")
        self.old, self.new = (state(loaded(directory / name)) for name in ("before", "after"))
        require(self.old != self.new, "both saves are alike")

    def copy(self) -> Path:
        found = self.directory / "tried"
        shutil.rmtree(found, ignore_errors=True)
        shutil.copytree(self.directory / "before", found)
        return found

    def check(self, tried: Path, where: str) -> str:
        try:
            found = state(loaded(tried))
        except Exception as error:
            require(False, f"{where}: nothing can be loaded ({error})")
        require(found in (self.old, self.new), f"{where}: neither the old save nor the new one")
        status, said = attempt(tried, lambda: None)
        require((status, said) == (0, "saved"), f"{where}: the next save: {said}")
        loaded(tried)
        left = [path.name for path in tried.glob(".*")]
        require(not left, f"{where}: {left} were left")
        named = {
            file["name"] for path in replay_store.manifests(tried) for file in replay_store.read_manifest(path)["files"]
        }
        require({path.name for path in tried.glob("slots-*")} == named, f"{where}: files were left that nothing names")
        return "old" if found == self.old else "new"


def kill(_: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def full(_: str) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def killed_at_every_call(scene: Scene) -> str:
    found: list[str] = []
    while True:
        at, tried = len(found), scene.copy()
        status, said = attempt(
            tried, lambda at=at: Calls(at, kill, ("open", "write", "fsync", "rename", "unlink", "mkdir"))
        )
        if status == 0:
            require(said == "no more calls", f"call {at}: {said}")
            break
        require(os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, f"call {at}: status {status}, {said}")
        found.append(scene.check(tried, f"killed at call {at}"))
    require("old" in found and "new" in found, f"{found}")
    return (
        f"{len(found)} calls: 0 unloadable, {found.count('old')} times the old save, {found.count('new')} the new one"
    )


def full_at_every_call(scene: Scene) -> str:
    found: list[str] = []
    while True:
        at, tried = len(found), scene.copy()
        status, said = attempt(tried, lambda at=at: Calls(at, full, ("open", "write", "fsync", "rename")))
        require(status == 0, f"call {at}: status {status}, {said}")
        if said == "no more calls":
            break
        require_clear(said, errno.ENOSPC, f"call {at}")
        found.append(scene.check(tried, f"full at call {at}"))
    return f"{len(found)} calls: 0 lost, {len(found)} clear errors, {found.count('old')} times the old save"


def require_clear(said: str, number: int, where: str) -> None:
    clear = said.startswith(f"OSError {number} ") and "save: " in said and "earlier saves are whole" in said
    require(clear, f"{where}: {said}")


def files_limited(scene: Scene) -> str:
    tried = scene.copy()

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1500, resource.RLIM_INFINITY))

    status, said = attempt(tried, limit)
    require(status == 0, f"status {status}")
    require_clear(said, errno.EFBIG, "RLIMIT_FSIZE")
    require(scene.check(tried, "RLIMIT_FSIZE") == "old", "a save that failed is there")
    return "1 limit: 0 lost, 1 clear error"


def disk_filled(scene: Scene) -> str:
    """The small disk is filled until so many pages are left, from none to more than a save needs."""
    found = []
    page = 4096
    for pages in range(14):
        tried = scene.copy()
        usage = os.statvfs(tried)
        filler = tried.parent / "filler"
        filler.write_bytes(b"x" * max(0, usage.f_bavail * usage.f_bsize - pages * page))
        status, said = attempt(tried, lambda: None)
        filler.unlink()
        require(status == 0, f"{pages} pages left: status {status}")
        if said != "saved":
            require_clear(said, errno.ENOSPC, f"{pages} pages left")
        found.append(scene.check(tried, f"{pages} pages left"))
        require(
            (found[-1] == "new") == (said == "saved"), f"{pages} pages left: {said}, but found the {found[-1]} save"
        )
    require("old" in found and "new" in found, f"{found}")
    return f"{len(found)} fillings: 0 lost, {found.count('old')} clear errors"


def main() -> None:
    what = sys.argv[1]
    made = {"kill": killed_at_every_call, "full": full_at_every_call, "limit": files_limited, "disk": disk_filled}[what]
    with tempfile.TemporaryDirectory(dir=sys.argv[2] if len(sys.argv) > 2 else None) as directory:
        print(made(Scene(Path(directory))))


if __name__ == "__main__":
    main()
