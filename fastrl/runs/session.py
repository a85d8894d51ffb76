"""A run under way: counts what was done, logs it, saves it, has it evaluated, and stops when told to."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import torch

from fastrl.engine.files import make_private_directory
from fastrl.engine.recorded_envs import Game
from fastrl.engine.replay import Replay
from fastrl.runs import checkpoint
from fastrl.runs.background_evaluation import BackgroundEvaluation
from fastrl.runs.checkpoint import Checkpoint, CheckpointStore
from fastrl.runs.console import Console
from fastrl.runs.core_waits import CoreWaits
from fastrl.runs.game_statistics import GameStatistics
from fastrl.runs.metrics import MetricsLog
from fastrl.runs.options import changed_settings, told
from fastrl.runs.process_memory import give_back_memory, memory_bytes
from fastrl.runs.run_dir import NotARun, RunDir, as_json, machine, versions
from fastrl.runs.stages import StageClock
from fastrl.runs.stop import StopSignals
from fastrl.runs.traps import NonFiniteLoss

# What changes the bits of a result: a run that is resumed under others is not the same run.
_BITS_DEPEND_ON = ("torch", "numpy", "ale_py")
# The replay keeps all its saves but those that CheckpointStore deletes, which knows the checkpoints that need them.
_ALL_SAVES = 1_000_000


class Recorded(Protocol):
    """What a session wants to know of the envs."""

    @property
    def frames_per_step(self) -> int:
        """Emulator frames of a step."""

    @property
    def replay(self) -> Replay | None:
        """Saved with the run, if there is one."""

    def save_state(self) -> list[bytes] | None:
        """The envs as they are; None: they cannot be saved, or the trainer's own state has them."""

    def state_digest(self) -> list[str] | None:
        """A hash of each env as it is, equal of those that were played alike; None where nothing can be saved."""


@dataclass
class Resumed:
    """A run that is to go on, and the checkpoint it goes on from."""

    run: RunDir
    checkpoint: Checkpoint
    replay_save: Path | None  # None: there is none, or it is filled again by acting
    changed_bits: bool = False  # other settings of the machine or versions were accepted

    @property
    def state(self) -> dict[str, Any]:
        """The checkpoint's, as it was given to :meth:`Session.checkpoint`."""
        found: dict[str, Any] = self.checkpoint.state["trainer"]
        return found

    @property
    def updates(self) -> int:
        """That were made before."""
        return int(self.checkpoint.state["session"]["updates"])

    @property
    def env_states(self) -> list[bytes] | None:
        """The envs as they were, if they could be saved and the replay that belongs to them, if any, is there."""
        count = self.checkpoint.state["env_states"]
        if count is None or (self.checkpoint.state["has_replay"] and self.replay_save is None):
            return None
        return [bytes(self.checkpoint.tensors[f"env.{i}"].numpy().tobytes()) for i in range(count)]


def resume(path: Path, *, without_replay: bool, accept_changed_bits: bool) -> Resumed:
    """Open a run to go on with it.

    Raises:
        RunBusy: somebody trains it now.
        NotARun: there is none, it has no checkpoint, or going on would silently change its bits.
        DamagedFile: no checkpoint of it is whole.
    """
    run = RunDir.open(path)
    run.hold()
    store = CheckpointStore(run.checkpoints)
    found = store.load(
        note=lambda text: print(f"resume: {text}; an earlier one is tried"), with_replay=not without_replay
    )
    if found is None:
        raise NotARun(f"resume: {path} has no checkpoint yet; start it again under another name")
    _require_parts(found)
    changes = changed_settings(found.state["config"], run.config)
    if changes:
        raise NotARun(
            f"resume: {path}/config.json is not what its checkpoint was made under: {'; '.join(changes)}. "
            "It was changed since, or damaged; put back what the checkpoint has"
        )
    changed = _differing(_BITS_DEPEND_ON, run.description["versions"], versions())
    if changed and not accept_changed_bits:
        raise NotARun(
            f"resume: {path} was trained under other versions ({', '.join(changed)}), so going on would not be "
            f"bit-exact; install those, or give --accept-changed-bits"
        )
    saved_replay = found.state["replay"] is not None
    if found.state["has_replay"] and not saved_replay and not without_replay:
        raise NotARun(
            f"resume: the checkpoint of {path} has no replay; --resume-without-replay fills a new one by acting first"
        )
    replay_save = store.replay_save(found) if saved_replay and not without_replay else None
    return Resumed(run, found, replay_save, accept_changed_bits)


def _differing(names: Iterable[str], before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return [f"{name} {before.get(name)} -> {now.get(name)}" for name in names if before.get(name) != now.get(name)]


def _require_parts(found: Checkpoint) -> None:
    """Raise unless a checkpoint has what :meth:`Session.checkpoint` puts into each: a whole one may be foreign."""
    state = found.state
    session, count = state.get("session"), state.get("env_states")
    whole = (
        {"env_states", "replay"} <= state.keys()
        and isinstance(session, dict)
        and all(type(session.get(name)) is int and session[name] >= 0 for name in ("steps", "updates"))
        and session["steps"] == found.steps
        and type(session.get("wall_s")) is float
        and isinstance(session.get("games"), dict)
        and all(isinstance(state.get(part), dict) for part in ("trainer", "config", "policy"))
        and isinstance(state.get("has_replay"), bool)
        and isinstance(state.get("replay"), (str, type(None)))
        and (count is None or (type(count) is int and 0 <= count <= len(found.tensors)))
        and all(f"env.{i}" in found.tensors for i in range(count or 0))
    )
    if not whole:
        raise NotARun(f"resume: {found.path} is whole, but has not what the checkpoint of a run has")


class Session:
    """A context in which a trainer's loop runs.

    Args:
        algorithm: the trainer's name.
        config: its resolved configuration, of :class:`RunOptions`.
        envs: that it acts in.
        resumed: what it goes on from; None: a new run.
        policy: what an evaluation needs to know besides the tensors.
        facts: further facts for config.json.
    """

    at_end: Callable[[], None] | None = None  # fastrl.runs.trial looks at the device then, while all is there
    digest_at_end = False  # fastrl.runs.verify sets it: hashing a full replay takes seconds

    def __init__(
        self,
        algorithm: str,
        config: Any,
        envs: Recorded,
        *,
        resumed: Resumed | None = None,
        policy: dict[str, Any],
        facts: Mapping[str, Any],
    ) -> None:
        self.config, self.envs, self.policy = config, envs, policy
        settings = as_json(config)
        self._notes: list[str] = []  # to be told when there is a console
        if resumed is None:
            self.run = RunDir.create(config.runs, config.name, algorithm, settings, **facts)
            self.run.hold()
        else:
            self.run = resumed.run
            self._go_on_with(resumed, algorithm, settings, facts)
        saved = None if resumed is None else resumed.checkpoint.state["session"]
        self.steps: int = saved["steps"] if saved else 0
        self.updates: int = saved["updates"] if saved else 0
        self._wall_before_s: float = saved["wall_s"] if saved else 0.0
        self.games = GameStatistics()
        if saved:
            self.games.load(saved["games"])
        self.final_digest: str | None = None
        self.exit_code = 0  # what the process should end with
        self.store = CheckpointStore(self.run.checkpoints, config.keep_checkpoints)
        self.clock = StageClock()
        self._stack = contextlib.ExitStack()
        self._saved_counts: tuple[int, int] | None = None  # steps and updates of this life's newest checkpoint
        self._resumed = resumed
        self._newest_steps = resumed.checkpoint.steps if resumed else -1  # of this run's history
        self._tidy_first = resumed is not None
        self._replay_directory = self.store.replay_directory(resumed.replay_save if resumed else None)

    def _go_on_with(self, resumed: Resumed, algorithm: str, settings: dict[str, Any], facts: Mapping[str, Any]) -> None:
        """Take over the run's description, or refuse what would make it another run."""
        before, path = self.run.description, self.run.path
        if self.run.algorithm != algorithm:
            raise NotARun(f"resume: {path} is a run of {self.run.algorithm}, this is {algorithm}")
        played = resumed.checkpoint.steps
        if settings["steps"] != self.run.config["steps"] and settings["steps"] < played:
            raise ValueError(
                f"steps: {settings['steps']:,} are fewer than the {played:,} that {path} has behind it; give more, or "
                f"leave out --steps"
            )
        if changes := changed_settings(self.run.config, settings):
            raise NotARun(
                f"resume: {path} would become another run: {'; '.join(changes)}; start a new run for that, or leave "
                "these settings as they were"
            )
        for name, fact in json.loads(json.dumps(facts)).items():
            if name in before and before[name] != fact and not resumed.changed_bits:
                raise NotARun(
                    f"resume: {name} of {path} was {before[name]!r} and is {fact!r} here, so going on would not be "
                    f"bit-exact; --accept-changed-bits goes on nevertheless"
                )
        here, now = machine(), versions()
        changed = [
            *_differing(before["versions"], before["versions"], now),
            *_differing(("cpu", "gpu"), before["machine"], here),
            *_differing(("device",), self.run.config, settings),
        ]
        if changed:
            self._notes.append(f"not the machine or versions of before, so bits may differ: {', '.join(changed)}")
        self.run.update(config=settings, versions=now, machine=here, **facts, finished=False)

    # ---- the run

    @property
    def frames(self) -> int:
        """Emulator frames, counted as papers do: each step has the protocol's frame skip of them."""
        return self.steps * self.envs.frames_per_step

    @property
    def wall_s(self) -> float:
        """Seconds of all the run's lives together."""
        return self._wall_before_s + time.perf_counter() - self._began_s

    def __enter__(self) -> Session:
        try:
            self._enter()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def _enter(self) -> None:
        config, enter = self.config, self._stack.enter_context
        self._stack.callback(self.run.release)
        title = f"{self.run.algorithm} {config.env} seed {config.seed}: {self.run.path}"
        self.console = Console(title, config.steps)
        self._stack.callback(self.console.close)
        self.console.note(told(config))
        # Before anything that is to be closed in order: a signal while it opens or closes ends nothing halfway.
        self._signals = enter(StopSignals(self.note))
        at = self.steps if self._resumed else None
        self.metrics = MetricsLog(
            self.run.metrics_file,
            self.run.path / "tensorboard" if config.tensorboard else None,
            resume_at_steps=at,
            note=self.note,
        )
        self._stack.callback(self.metrics.close)
        self.evaluation = BackgroundEvaluation(
            self.run,
            self.store,
            config.evaluation_episodes,
            config.evaluation_epsilon,
            config.seed,
            self.console,
            getattr(config, "network", ""),
        )
        self._stack.callback(self.evaluation.close)
        self.evaluation.resume(at)
        self._core_waits = CoreWaits(config.torch_threads, self.note)
        self._began_s = self._logged_s = self._saved_s = time.perf_counter()
        self._logged_steps, self._logged_updates = self.steps, self.updates
        self.clock.take()
        warm_up_steps = getattr(self.config, "warm_up_steps", 0)
        if self.config.steps <= warm_up_steps:
            self.note(
                f"nothing will be learned: the run's {self.config.steps:,} steps end before its warm-up of "
                f"{warm_up_steps:,} does; give more --steps or fewer --warm-up-steps"
            )
        if self._resumed:
            self.note(f"resumed at {self.steps:,} steps")
            if self._resumed.env_states is None:
                self.note("these envs have no saved state: the episodes that were under way begin again")
        for text in self._notes:
            self.note(text)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def note(self, text: str) -> None:
        """Tell the user something."""
        self.console.note(text)

    # ---- the loop

    def running(self) -> bool:
        """Whether another round is to be made: not all steps are done, and nobody asked to stop."""
        if self._signals.requested:
            self.note(self._signals.reason)
            self.exit_code = self._signals.exit_code
            return False
        return self.steps < int(self.config.steps)

    def stop_wished(self, for_s: float = 0.0) -> bool:
        """Whether somebody asked to stop, and that for so many seconds already: for what takes long within a round."""
        return self._signals.requested_for(for_s)

    def stepped(self, steps: int, games: Iterable[Game]) -> None:
        """Count what the envs did."""
        self.steps += steps
        for game in games:
            self.games.add(game.game_return, game.frames, game.steps)

    def crossed(self, every: int | None, steps: int) -> bool:
        """Whether a multiple of ``every`` was reached within the last ``steps`` steps."""
        return bool(every) and self.steps // every > (self.steps - steps) // every  # type: ignore[operator]

    def evaluation_due(self, steps: int) -> bool:
        """Whether it is time to evaluate. At the end :meth:`finish` does."""
        return self.crossed(self.config.evaluate_every_steps, steps) and self.steps < self.config.steps

    def checkpoint_due(self, steps: int) -> bool:
        """Whether it is time to save."""
        minutes = self.config.checkpoint_every_minutes
        by_clock = minutes > 0 and time.perf_counter() - self._saved_s >= minutes * 60
        return by_clock or self.crossed(self.config.checkpoint_every_steps, steps)

    # ---- saving and telling

    def log(self, values: Mapping[str, float | None], histograms: Mapping[str, Any] | None = None) -> None:
        """Write a row: the counts, the games, the speed, and ``values``."""
        now = time.perf_counter()
        span = max(1e-9, now - self._logged_s)
        times = self.clock.take()
        row: dict[str, float | None] = {
            "frames": self.frames,
            "steps": self.steps,
            "updates": self.updates,
            "wall_s": round(self.wall_s, 3),
            "games": self.games.count,
            "return_mean_100": self.games.mean_return,
            "return_smoothed": self.games.smoothed,
            "length_mean_100": self.games.mean_length_steps,
            **values,
            "replay_fill": None if self.envs.replay is None else len(self.envs.replay) / self.envs.replay.capacity,
            "memory_mb": _memory_mb(),
            "frames_per_s": (self.steps - self._logged_steps) * self.envs.frames_per_step / span,
            "steps_per_s": (self.steps - self._logged_steps) / span,
            "updates_per_s": (self.updates - self._logged_updates) / span,
            **{f"share/{name}": share for name, share in times.shares.items()},
            "stamps_share": times.own_share,
            "core_wait_share": self._core_waits.take(self._own_processes_beside()),
        }
        self._logged_s, self._logged_steps, self._logged_updates = now, self.steps, self.updates
        self.metrics.write(row)
        if histograms:
            self.metrics.histograms(self.steps, histograms)
        self.console.show(row, times.shares)
        self.evaluation.poll()

    def _own_processes_beside(self) -> bool:
        return self.evaluation.under_way or bool(getattr(self.config, "actor_processes", 0))

    def evaluate(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Have the policy among ``tensors`` evaluated while training goes on."""
        counts = {"frames": self.frames, "steps": self.steps, "updates": self.updates, "wall_s": round(self.wall_s, 3)}
        self.evaluation.submit(counts, tensors, self.policy)

    def checkpoint(self, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]) -> bool:
        """Save everything. On a full disk training goes on and the last checkpoint stays.

        Args:
            tensors: of the learner.
            state: of the learner; plain values.

        Returns:
            Whether there is a checkpoint of now.

        Raises:
            NonFiniteLoss: a number among ``tensors`` is none; the last checkpoint stays.
        """
        self._saved_s = time.perf_counter()
        if self._saved_counts == (self.steps, self.updates):
            return True
        saved = self._save(tensors, state)
        give_back_memory()
        return saved

    def _save(self, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]) -> bool:
        _require_finite(tensors, self.updates)
        self.metrics.sync()
        everything = dict(tensors)
        env_states = self.envs.save_state()
        for i, saved in enumerate(env_states or []):
            everything[f"env.{i}"] = torch.frombuffer(bytearray(saved), dtype=torch.uint8)
        try:
            if self._tidy_first:
                # A replay is saved by adding to its newest save: that is to be this life's, and none of the steps which
                # the run had made before it was killed, or before its newest checkpoint was damaged.
                self.store.forget_after(self._newest_steps)
                self.store.tidy()
                self._tidy_first = False
            replay = None
            if self.config.checkpoint_replay and self.envs.replay is not None:
                make_private_directory(self._replay_directory)
                saved_replay = self.envs.replay.save(self._replay_directory, _ALL_SAVES)
                replay = f"{self._replay_directory.name}/{saved_replay.name}"
            whole = {
                "session": {
                    "steps": self.steps,
                    "updates": self.updates,
                    "wall_s": self.wall_s,
                    "games": self.games.state(),
                },
                "config": as_json(self.config),
                "policy": self.policy,
                "trainer": dict(state),
                "env_states": None if env_states is None else len(env_states),
                "replay": replay,
                "has_replay": self.envs.replay is not None,
            }
            self.store.save(self.steps, everything, whole)
        except OSError as error:
            earlier = self.store.steps_saved()
            kept = f"the last whole checkpoint is at {earlier[0]:,} steps" if earlier else "there is none yet"
            self.note(f"checkpoint at {self.steps:,} steps failed ({error}); training goes on, {kept}")
            if not self._tidy_first and self.steps in self.store.steps_saved():
                self._newest_steps = self.steps  # whole, only what it replaces could not be deleted
            self._tidy_first = True
            with contextlib.suppress(OSError):
                self.store.tidy()  # what was written of this one takes space that the next one needs
            return False
        self._saved_counts, self._newest_steps = (self.steps, self.updates), self.steps
        return True

    def digest(self, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]) -> str:
        """A hash of all that decides how the run goes on. Two runs that agree in it are the same run."""
        return checkpoint.digest(
            tensors,
            {
                "steps": self.steps,
                "updates": self.updates,
                "games": self.games.state(),
                "trainer": _without_saved_envs(dict(state)),
                "envs": self.envs.state_digest(),
                "replay": None if self.envs.replay is None else self.envs.replay.digest(),
            },
        )

    def finish(self, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]) -> None:
        """Save at the end, stopped or done; if done, wait for the evaluations."""
        if self.at_end is not None:
            self.at_end()
        saved = self.checkpoint(tensors, state)
        if self.digest_at_end:
            self.final_digest = self.digest(tensors, state)
        if self.exit_code == 0:
            if self.config.evaluate_every_steps:
                self.evaluate(tensors)
            self._wait_for_evaluations()
        if not saved:
            # Not "finished", nor a success: what was learned since the last checkpoint is gone with this process.
            self.exit_code = self.exit_code or 1
            earlier = self.store.steps_saved()
            self.note(
                f"the last {self.steps - earlier[0]:,} steps are not saved; make room and go on with --resume "
                f"{self.run.path}"
                if earlier
                else f"nothing of these {self.steps:,} steps is saved; make room and start again"
            )
        elif self.exit_code == 0:
            try:
                self.run.update(finished=True)
            except OSError as error:
                self.note(f"config.json cannot be written ({error}), so it does not say that the run is finished")
            self.note(f"finished: {self.run.path}")
        else:
            self.note(f"stopped at {self.steps:,} steps; go on with --resume {self.run.path}")

    def _wait_for_evaluations(self) -> None:
        if not self.evaluation.wait(self.stop_wished):
            self.exit_code = self._signals.exit_code
            self.note("all steps are done, but not their evaluations: those are made when the run is resumed")


def _without_saved_envs(state: Any) -> Any:
    """A trainer's state with the digests of its envs alone: what is saved of them also tells when they were saved."""
    if isinstance(state, list):
        return [_without_saved_envs(one) for one in state]
    if not isinstance(state, dict):
        return state
    left_out = {"envs"} if state.get("envs_digest") else set()
    return {name: _without_saved_envs(one) for name, one in state.items() if name not in left_out}


def _require_finite(tensors: Mapping[str, torch.Tensor], updates: int) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise NonFiniteLoss(
                f"train: {name} is not finite after update {updates}, so no checkpoint is made of it; the last one is "
                "from before. Usually the learning rate is too high"
            )


def _memory_mb() -> float:
    """That this process takes now; where the kernel does not tell, the most that it ever took."""
    found = memory_bytes(os.getpid()) or 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return found / 1e6


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Run torch with so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
