"""Files made to harm whoever loads them: `python tests/hostile.py --inputs 100000`.

Every input has right checksums, so that it reaches what lies behind them. Loading may refuse it or take it; it may run
nothing, import nothing, reach no other directory, and need no more memory than its size explains. pytest runs a sample.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import pickle
import random
import resource
import struct
import sys
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import small_run
import torch

from fastrl.engine.files import DamagedFile
from fastrl.engine.saved_replays import check_saved_replay
from fastrl.runs import checkpoint
from fastrl.runs.checkpoint import CheckpointStore, UnknownFormat
from fastrl.runs.run_dir import NotARun, RunDir
from fastrl.runs.session import resume

FORBIDDEN = (
    "exec", "compile", "import", "marshal.loads", "pickle.find_class", "code.__new__", "function.__new__",
    "os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "subprocess.Popen", "ctypes.dlopen",
    "socket.connect", "urllib.Request", "shutil.rmtree",
)  # fmt: skip
MOST_EXTRA_MB = 150


class Bomb:
    """Whoever unpickles it says so."""

    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("EXECUTED",)


VALUES: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 2**31, 2**63, 10**30, 1.5, float("nan"), float("inf"), "", "x", "../../etc/passwd",
    "/etc/passwd", "replay/../../replay-00000001.json",
    "ckpt-000000000040-0000000000000000.safetensors", "\0", "a" * 5000,
    [], {}, [[]], {"a": {}}, [1, 2, 3], ["../x"], 10**15, -(10**15),
)  # fmt: skip


def mutate(content: Any, rng: random.Random) -> Any:
    """The same JSON with a value changed, removed or put elsewhere."""
    places: list[tuple[Any, Any]] = []

    def visit(node: Any) -> None:
        for key in node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
            places.append((node, key))
            visit(node[key])

    changed = json.loads(json.dumps(content))
    visit(changed)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        node, key = rng.choice(places)
        with contextlib.suppress(KeyError, IndexError):
            if rng.random() < 0.15:
                del node[key]
            elif rng.random() < 0.2:
                other, at = rng.choice(places)
                node[key] = json.loads(json.dumps(other[at]))
            else:
                node[key] = rng.choice(VALUES)
    return changed


def sealed(body: bytes) -> bytes:
    """JSON with the line that its checksum is in."""
    return json.dumps({"crc32": zlib.crc32(body), "bytes": len(body)}).encode() + b"\n" + body


def body_of(path: Path) -> Any:
    return json.loads(path.read_bytes().split(b"\n", 1)[1])


def odd_bodies() -> Iterator[bytes]:
    """JSON that is hard on its reader."""
    yield b"[" * 200_000
    yield b'{"a":' * 100_000
    yield b"[" * 100_000 + b"]" * 100_000
    yield b'{"format":' + b"9" * 100_000 + b"}"
    yield b'{"format":1e999999}'
    yield b'{"format":NaN}'
    yield b"\xff\xfe{}"
    yield b'{"format":1,"format":2}'
    yield b"[" + b"[]," * 300_000 + b"[]]"
    yield pickle.dumps(Bomb())
    yield b"null"
    yield b""


def odd_tensors(content: bytes, rng: random.Random) -> bytes:
    """safetensors whose header lies."""
    size = struct.unpack("<Q", content[:8])[0]
    header, data = json.loads(content[8 : 8 + size]), content[8 + size :]
    way = rng.randrange(8)
    if way == 0:
        return struct.pack("<Q", rng.choice((0, 1, 2**20, 10**8, 2**40, 2**63, 2**64 - 1))) + content[8:]
    if way == 1:
        text = json.dumps(mutate(header, rng)).encode()
        return struct.pack("<Q", len(text)) + text + data
    if way == 2:  # giant shapes, few bytes
        for each in header.values():
            if "shape" in each:
                each["shape"] = rng.choice(([2**40], [2**32, 2**32], [0, 2**63], [2**62, 4, 4], [-1]))
        text = json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + data
    if way == 3:
        return pickle.dumps(Bomb()) + content
    if way == 4:
        return content[: rng.randrange(len(content))]
    if way == 5:
        text = b"[" * 100_000
        return struct.pack("<Q", len(text)) + text + data
    if way == 6:
        header["__metadata__"] = {"x": "y" * 1_000_000}
        text = json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + data
    changed = bytearray(content)
    for _ in range(rng.randrange(1, 20)):
        changed[rng.randrange(min(len(changed), 400))] = rng.randrange(256)
    return bytes(changed)


def attack(runs: Path, inputs: int, seed: int) -> dict[str, int]:
    """Load so many hostile inputs in place of the parts of a run; returns how often what came of it."""
    rng = random.Random(seed)
    run = runs / "run"
    store = CheckpointStore(run / "checkpoints")
    found = small_run.require_whole(runs)
    described, manifest = found.checkpoint.path, found.replay_save
    assert manifest is not None
    tensors = next(described.parent.glob(f"{described.stem}-*.safetensors"))
    whole = {path: path.read_bytes() for path in (described, tensors, manifest, run / "config.json")}
    said, config = body_of(described), json.loads(whole[run / "config.json"])
    odd = list(odd_bodies())
    outcomes: dict[str, int] = {}
    for turn in range(inputs):
        for path, content in whole.items():
            path.write_bytes(content)
        kind = rng.choice(("json", "tensors", "manifest", "config")) if turn >= len(odd) else "odd"
        try:
            if kind == "odd":
                for path in (described, manifest):
                    path.write_bytes(sealed(odd[turn]))
                (run / "config.json").write_bytes(odd[turn])
                for load in (lambda: checkpoint.read(described), lambda: check_saved_replay(manifest)):
                    with contextlib.suppress(DamagedFile, UnknownFormat):
                        load()
                RunDir.open(run)
            elif kind == "json":
                described.write_bytes(sealed(json.dumps(mutate(said, rng)).encode()))
                opened = resume(run, without_replay=rng.random() < 0.5, accept_changed_bits=True)
                assert opened.replay_save is None or opened.replay_save.parent.parent == store.directory
                assert opened.env_states is None or len(opened.env_states) <= 2
            elif kind == "tensors":
                changed = odd_tensors(whole[tensors], rng)
                tensors.write_bytes(changed)
                sha256 = hashlib.sha256(changed).hexdigest()
                lies = said | {"tensors": said["tensors"] | {"bytes": len(changed), "sha256": sha256}}
                described.write_bytes(sealed(json.dumps(lies).encode()))
                checkpoint.read(described)
            elif kind == "manifest":
                manifest.write_bytes(sealed(json.dumps(mutate(body_of_bytes(whole[manifest]), rng)).encode()))
                check_saved_replay(manifest)
                small_run.Envs().replay.load(manifest)
            else:
                (run / "config.json").write_text(json.dumps(mutate(config, rng)))
                resume(run, without_replay=False, accept_changed_bits=True)
            outcome = "taken"
        except (DamagedFile, UnknownFormat, NotARun, ValueError) as error:
            outcome = "refused"
            if not str(error):
                raise
        outcomes[f"{kind} {outcome}"] = outcomes.get(f"{kind} {outcome}", 0) + 1
    for path, content in whole.items():
        path.write_bytes(content)
    small_run.require_whole(runs)
    return outcomes


def body_of_bytes(content: bytes) -> Any:
    return json.loads(content.split(b"\n", 1)[1])


def attacked(runs: str, inputs: int, seed: int) -> None:
    """In a process of its own: what is audited cannot be taken back."""
    torch.set_num_threads(1)
    with small_run.a_run(Path(runs)) as run:
        for _ in range(3):
            run.take_turn()
    before_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    with contextlib.redirect_stdout(None):
        attack(Path(runs), 200, seed)  # whatever is imported late is imported now
    happened: list[str] = []

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event in FORBIDDEN:
            happened.append(f"{event} {str(arguments)[:100]}")

    sys.addaudithook(watch)
    with contextlib.redirect_stdout(None):
        outcomes = attack(Path(runs), inputs, seed + 1)
    loaded = list(happened)
    happened.clear()
    with contextlib.suppress(Exception):
        pickle.loads(pickle.dumps(Bomb()))  # the watch works
    assert any(event.startswith("pickle.find_class") for event in happened), happened
    extra_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000 - before_mb
    print(f"C4: {sum(outcomes.values())} hostile inputs: {outcomes}; {len(loaded)} executions, {extra_mb:.0f} MB more")
    assert not loaded, loaded[:5]
    assert extra_mb < MOST_EXTRA_MB


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        attacked(directory, given.inputs, given.seed)
