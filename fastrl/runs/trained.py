"""What a run has learned, as something to act with: ``fastrl.load(run).act(obs)``.

Loading runs no code that a run names: neither a network nor an env of the user's own is imported unless the user says
so.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from fastrl.engine.atari_pool import AtariPool
from fastrl.engine.files import DamagedFile
from fastrl.engine.games import nearest
from fastrl.engine.recorded_envs import make_gymnasium
from fastrl.learn.networks import user_factory
from fastrl.learn.policies import Policy
from fastrl.runs import checkpoint as checkpoints
from fastrl.runs.checkpoint import BEST, Checkpoint, CheckpointStore
from fastrl.runs.run_dir import NotARun, RunDir

Factory = Callable[[dict[str, Any]], nn.Module]

# Which of a protocol's rules measuring replaces; training had the protocol's own.
_ONLY_MEASURED = ("life_loss", "reward", "max_frames")
_TRIES = 5  # a live run deletes old checkpoints while they are read


class TrainedPolicy:
    """A trained network and the env that it was trained for. Made by :func:`load`.

    Args:
        policy: the network.
        found: the checkpoint that it is of.
        run: the run that has it.
        kind: how the checkpoint was found: "best", "latest", ...
        env: the env's id, said again by the user.
    """

    def __init__(self, policy: Policy, found: Checkpoint, run: RunDir, kind: str, env: str | None = None) -> None:
        self.policy, self.checkpoint, self.run, self.kind = policy, found, run, kind
        description = policy.description
        self.env_id = str(description["env"])
        if env is not None and env != self.env_id:
            raise ValueError(f"load: env '{env}' was given, but {run.path} was trained in '{self.env_id}'")
        self._env_was_said = env is not None
        # Arguments for an AtariPool that measure: whole games in their own score. None: not an Atari game.
        self.evaluation_rules: dict[str, Any] | None = description["evaluation_rules"]
        self._first_action = int(description.get("first_action", 0))
        # What a user hands in: an env of Gymnasium shows vectors, where the network has seen stacks of one.
        self.obs_shape: tuple[int, ...] = policy.obs_shape if self.is_atari else policy.obs_shape[1:]

    @property
    def is_atari(self) -> bool:
        """Whether it plays in a pool."""
        return self.evaluation_rules is not None

    @property
    def num_actions(self) -> int:
        """How many actions it chooses among."""
        return self.policy.num_actions

    @property
    def steps(self) -> int:
        """After how many steps of training its weights were saved."""
        return self.checkpoint.steps

    def describe(self) -> str:
        """Which weights these are, in words."""
        return f"{self.run.path}, {self.kind} checkpoint, of {self.steps:,} steps"

    def stacks(self, obs: npt.ArrayLike) -> npt.NDArray[Any]:
        """Observations as the network takes them, (n, stack, ...).

        Args:
            obs: (n, *obs_shape), or one of obs_shape.
        """
        given = np.asarray(obs)
        if given.shape[-len(self.obs_shape) :] != self.obs_shape or given.ndim > len(self.obs_shape) + 1:
            raise ValueError(
                f"act: observations have shape {given.shape}; {self.env_id} has {self.obs_shape}, or (n, "
                f"{', '.join(map(str, self.obs_shape))}) for n of them"
            )
        if self.is_atari:
            if given.dtype != np.uint8:
                raise TypeError(
                    f"act: observations are {given.dtype}; this network takes the pool's bytes (uint8, 0 to 255) as "
                    f"they are, not scaled"
                )
        elif given.dtype.kind not in "fiub":
            raise TypeError(f"act: observations are {given.dtype}, expected numbers")
        else:
            given = given.astype(np.float32)[..., None, :]
        return given.reshape(-1, *self.policy.obs_shape)

    def act(self, obs: npt.ArrayLike, epsilon: float = 0.0, generator: np.random.Generator | None = None) -> Any:
        """An action for each observation, an array; for a single observation a single number.

        Args:
            obs: (n, *obs_shape), or one of obs_shape.
            epsilon: how often to act at random; needs a ``generator``.
            generator: of what is random.
        """
        chosen = self.policy.choose(self.values(obs), epsilon, generator) + self._first_action
        return chosen[0] if np.ndim(obs) == len(self.obs_shape) else chosen

    def values(self, obs: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """The value of each action in each observation, (n, num_actions)."""
        return self.policy.values(self.stacks(obs))

    def require_env(self) -> None:
        """Raise if to make the env would import a module that only the run names."""
        if ":" in self.env_id and not self._env_was_said:
            raise ValueError(
                f"env: '{self.env_id}' of {self.run.path} imports a module, and loading a run never runs code by "
                f"itself; if you trust it, say it again (--env {self.env_id}, or env='{self.env_id}')"
            )

    def make_env(self, num_envs: int = 1, **changes: Any) -> Any:
        """Envs with the rules that it was trained under.

        Args:
            num_envs: side by side.
            changes: arguments of :class:`AtariPool` in place of those rules, or of a Gymnasium env's own.
                ``**policy.evaluation_rules`` gives whole games in their own score.
        """
        self.require_env()
        if self.evaluation_rules is None:
            return make_gymnasium(self.env_id, num_envs, **changes)
        rules = {name: rule for name, rule in self.evaluation_rules.items() if name not in _ONLY_MEASURED}
        return AtariPool(self.env_id, num_envs, **{"autoreset": "same_step", **rules, **changes})


def load(
    run: str | os.PathLike[str],
    checkpoint: str | int | os.PathLike[str] = "best",
    device: str = "cpu",
    network: str | Factory | None = None,
    *,
    env: str | None = None,
    note: Callable[[str], None] = print,
) -> TrainedPolicy:
    """What a run has learned. Runs no code that the run names.

    Args:
        run: its directory; a live run's too.
        checkpoint: "best" by the run's own evaluations (before the first of them: the latest, which ``note`` is told),
            "latest", a number of steps, or the JSON file of a checkpoint.
        device: where the network runs.
        network: makes the network of a run that was trained with the user's own: that function, or its
            ``module:function``, which is imported.
        env: the env's id again, where that imports a module (``module:Id-v0``).
        note: is told what was chosen in place of what was asked for.

    Raises:
        NotARun: there is no run, or it has saved nothing yet.
        DamagedFile: the checkpoint is not what was saved.
        ValueError: it cannot be used so; the message says how.

    Example::

        policy = fastrl.load("runs/pong")
        action = policy.act(obs)
    """
    opened = RunDir.open(run)
    found, kind = find_checkpoint(opened, checkpoint, note)
    try:
        description = dict(found.state["policy"])
        described = dict(description["network"])
        trained_env = description["env"]
    except (KeyError, TypeError, ValueError):
        raise DamagedFile(f"{found.path}: does not say what policy it is of") from None
    if trained_env != opened.config.get("env"):
        raise ValueError(f"checkpoint: {found.path} is of '{trained_env}', {run} is of '{opened.config.get('env')}'")
    require_device(device)
    factory = _factory(described, network, opened)
    try:
        policy = Policy(description, found.tensors, device, factory)
    except RuntimeError as error:  # torch's, in many lines
        reason = " ".join(str(error).split())
        raise ValueError(f"network: the tensors of {found.path} do not fit into the network ({reason})") from None
    except KeyError as error:
        raise DamagedFile(f"{found.path}: its policy has no {error}") from None
    return TrainedPolicy(policy, found, opened, kind, env)


def _factory(described: dict[str, Any], network: str | Factory | None, run: RunDir) -> Factory | None:
    stored = described.get("factory")
    if network is None and stored:
        raise ValueError(
            f"network: {run.path} was trained with a network of your own, '{stored}', and loading a run never runs "
            f"code by itself; if you trust it, say it again (--network {stored}, or network='{stored}')"
        )
    if network is not None and not stored:
        raise ValueError(f"network: {run.path} was trained with fastrl's '{described.get('torso')}'; leave it out")
    return user_factory(network) if isinstance(network, str) else network


def require_device(device: str) -> None:
    """Raise unless torch can use ``device`` here."""
    try:
        torch.zeros((), device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device: '{device}' cannot be used here ({str(error).splitlines()[0]}); use cpu") from None


def find_checkpoint(
    run: RunDir, which: str | int | os.PathLike[str], note: Callable[[str], None] = print
) -> tuple[Checkpoint, str]:
    """The checkpoint that is asked for, and what it is. See :func:`load`."""
    for left in reversed(range(1 if run.finished else _TRIES)):
        notes: list[str] = []
        try:
            found = _find_checkpoint(run, which, notes.append)
        except DamagedFile:
            if not left:
                raise
            time.sleep(0.1)  # it may be on its way out, or in
            continue
        for text in notes:
            note(text)
        return found
    raise AssertionError("unreachable")


def _find_checkpoint(
    run: RunDir, which: str | int | os.PathLike[str], note: Callable[[str], None]
) -> tuple[Checkpoint, str]:
    store = CheckpointStore(run.checkpoints)
    asked = os.fspath(which) if not isinstance(which, int) else str(which)
    if asked == "best":
        best = store.load_best()
        if best is not None:
            return best, "best"
    if asked in ("best", "latest"):
        latest = store.load(note)
        if latest is None:
            raise NotARun(f"run: {run.path} has no checkpoint yet; it saves one when it ends and every few minutes")
        if asked == "best":
            note(f"{run.path} has no evaluated checkpoint yet; using the latest, of {latest.steps:,} steps")
        return latest, "latest"
    if re.fullmatch(r"[0-9][0-9_,]*", asked):
        return _of_steps(store, int(re.sub("[_,]", "", asked)), run), "chosen"
    path = Path(asked).with_suffix(".json")
    if not path.is_file():
        known = ", ".join(["best", "latest", *map(str, store.steps_saved())])
        hint = nearest(asked, ["best", "latest"])
        raise ValueError(f"checkpoint: '{asked}' is neither a file nor one of {run.path}{hint}; there are {known}")
    return checkpoints.read(path), str(path)


def _of_steps(store: CheckpointStore, steps: int, run: RunDir) -> Checkpoint:
    # The rotation's and the best one; of evaluations under way too, as long as they are there.
    stores = (store, CheckpointStore(run.path / "evaluations"))
    for path in (where.path_of(steps, kind) for where in stores for kind in ("ckpt", BEST)):
        if path.is_file():
            return checkpoints.read(path)
    known = ", ".join(f"{at:,}" for at in sorted({*store.steps_saved(), *store.steps_saved(BEST)}, reverse=True))
    raise ValueError(f"checkpoint: {run.path} has none of {steps:,} steps; there are {known or 'none at all'}")
