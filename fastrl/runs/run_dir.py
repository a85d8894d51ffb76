"""A run's directory: its configuration, and where everything else of it lies."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import fcntl
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from fastrl.engine.budget import usable_cores
from fastrl.engine.files import DamagedFile, forget_leftovers, read_regular, sync_directory, write_private
from fastrl.engine.native import PACKAGE_DIR, __version__, build_info

FORMAT = 1
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,120}")
_NO_LETTER, _LETTERS_OF_ENV = re.compile(r"[^A-Za-z0-9._+-]"), 70
_MOST_BYTES = 4_000_000  # of a config.json
_PARTS = {"algorithm": str, "config": dict, "versions": dict, "machine": dict, "finished": bool}
# The runs that this process trains: (device, inode) of the directory, and a descriptor that holds the kernel's lock.
_held: dict[tuple[int, int], int] = {}


class NotARun(ValueError):
    """A directory that holds no run, or one that this version cannot read: which, and why."""


class RunBusy(ValueError):
    """A run that another process trains now."""


class RunDir:
    """One run on disk: ``config.json``, ``metrics.csv``, ``evaluations.csv``, ``tensorboard/``, ``checkpoints/``.

    >>> import tempfile
    >>> run = RunDir.create(Path(tempfile.mkdtemp()), "demo", "dqn", {"env": "pong", "seed": 0})
    >>> RunDir.open(run.path).config["env"]
    'pong'
    """

    def __init__(self, path: Path, description: dict[str, Any]) -> None:
        self.path = path
        self.description = description

    @classmethod
    def create(
        cls, runs_directory: Path, name: str | None, algorithm: str, config: dict[str, Any], **more: Any
    ) -> RunDir:
        """Make the directory of a new run.

        Args:
            runs_directory: where runs lie.
            name: None: from env, seed and time.
            algorithm: the module in fastrl that trains it.
            config: every value that was resolved.
            more: further facts for config.json.

        Raises:
            FileExistsError: there is a run of that name.
        """
        if name is None:
            game = _NO_LETTER.sub("-", str(config["env"]))[:_LETTERS_OF_ENV]
            now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
            name = f"{algorithm}-{game}-s{config['seed']}-{now}"
        if not _NAME.fullmatch(name):
            raise ValueError(f"name: {name!r} is not a plain directory name of letters, digits, '.', '_', '+' and '-'")
        path = runs_directory / name
        try:
            runs_directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(
                f"runs: {runs_directory} is no directory and cannot be made ({error.strerror}); give another --runs"
            ) from None
        try:
            path.mkdir(mode=0o755)
        except FileExistsError:
            raise FileExistsError(
                f"name: {path} exists already; continue it with --resume {path}, or give another --name"
            ) from None
        sync_directory(runs_directory)
        run = cls(
            path,
            {
                "format": FORMAT,
                "algorithm": algorithm,
                "config": config,
                "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
                "versions": versions(),
                "machine": machine(),
                "commit": commit(),
                **more,
                "finished": False,
            },
        )
        run.write()
        return run

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> RunDir:
        """An existing run.

        Raises:
            NotARun: there is none, or one of a format that this version does not read.
        """
        directory = Path(path)
        if not directory.is_dir():
            raise NotARun(f"run: {directory} is not a directory; a run's directory holds config.json")
        if not (directory / "config.json").exists():
            raise NotARun(f"run: {directory} has no config.json, so it is not a run of fastrl")
        try:
            description = json.loads(read_regular(directory / "config.json", _MOST_BYTES))
        except (DamagedFile, ValueError, RecursionError) as error:
            raise NotARun(f"run: {directory}/config.json cannot be read ({error})") from None
        if not isinstance(description, dict):
            raise NotARun(f"run: {directory}/config.json holds {type(description).__name__}, not an object")
        if description.get("format") != FORMAT:
            raise NotARun(
                f"run: {directory} has format {description.get('format')!r}, this version of fastrl reads {FORMAT}"
            )
        for name, kind in _PARTS.items():
            if not isinstance(description.get(name), kind):
                raise NotARun(f"run: {directory}/config.json has no {name}, or not as a {kind.__name__}")
        return cls(directory, description)

    def hold(self) -> None:
        """Be the only process that trains this run, until :meth:`release` or the process ends, however it does.

        Raises:
            RunBusy: another one does.
        """
        descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        found = os.fstat(descriptor)
        key = (found.st_dev, found.st_ino)
        if key in _held:
            os.close(descriptor)
            return
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise RunBusy(f"run: another process trains {self.path} now; wait until it has ended, or stop it") from None
        except OSError:
            pass  # some network file systems have no locks
        _held[key] = descriptor
        forget_leftovers(self.path)  # of the process that was killed, now that it is sure that none is at work

    def release(self) -> None:
        """Let others train this run."""
        with contextlib.suppress(OSError):  # it may be deleted by now
            found = os.stat(self.path)
            descriptor = _held.pop((found.st_dev, found.st_ino), None)
            if descriptor is not None:
                os.close(descriptor)

    def write(self) -> None:
        """Write config.json again."""
        write_private(self.path / "config.json", json.dumps(self.description, indent=1).encode() + b"\n")

    def update(self, **facts: Any) -> None:
        """Change facts of config.json, on disk too."""
        self.description |= facts
        self.write()

    @property
    def name(self) -> str:
        """The directory's name."""
        return self.path.name

    @property
    def algorithm(self) -> str:
        """The module in fastrl that trains it."""
        return str(self.description["algorithm"])

    @property
    def config(self) -> dict[str, Any]:
        """Every value of its configuration."""
        return dict(self.description["config"])

    @property
    def finished(self) -> bool:
        """Whether it has made all its steps."""
        return bool(self.description["finished"])

    @property
    def metrics_file(self) -> Path:
        """A row each log interval."""
        return self.path / "metrics.csv"

    @property
    def evaluations_file(self) -> Path:
        """A row each evaluation."""
        return self.path / "evaluations.csv"

    @property
    def checkpoints(self) -> Path:
        """For :class:`fastrl.runs.checkpoint.CheckpointStore`."""
        return self.path / "checkpoints"


def versions() -> dict[str, str]:
    """Of everything that changes results."""
    import gymnasium
    import numpy
    import torch

    return {
        "fastrl": __version__,
        "source_hash": str(build_info()["source_hash"]),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": numpy.__version__,
        "gymnasium": gymnasium.__version__,
        "ale_py": str(build_info()["ale_py"]),
        "mujoco": importlib.metadata.version("mujoco"),
    }


def machine() -> dict[str, Any]:
    """What the run runs on; no names of hosts or users."""
    import torch

    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    return {"cpu": model, "usable_cores": usable_cores(), "gpu": gpu}


def commit() -> str | None:
    """Of the source tree that is imported; None for an installed package."""
    if not (PACKAGE_DIR.parent / ".git").exists():
        return None
    try:
        found = subprocess.run(
            ["git", "-C", str(PACKAGE_DIR.parent), "rev-parse", "--short=12", "HEAD"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None


def as_json(config: Any) -> dict[str, Any]:
    """A dataclass of plain values as JSON has it."""
    found: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config), default=os.fspath))
    return found
