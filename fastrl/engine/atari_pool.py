"""Many Atari games stepped on all cores, behind gymnasium's vector API."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from numbers import Real
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from fastrl.engine import native
from fastrl.engine.games import find_game, rom_md5, rom_path
from fastrl.engine.pools import (
    NATIVE_AUTORESET,
    checked_reset_mask,
    close_at_exit,
    foreign_calls,
    require_memory,
    resolved_autoreset,
    resolved_threads,
    spin_us,
)
from fastrl.engine.protocol import DEFAULT_PROTOCOL, DEFAULT_STACK, Protocol, differences
from fastrl.engine.protocol import protocol as named_protocol
from fastrl.engine.rules import NOOP_LIMIT, action_meanings, native_rules, resolved_protocol, whole_number
from fastrl.engine.seeding import env_seed, fresh_seed, spread_seed

# An emulator, its screens and what its state needs (1,098 to 1,173 kB measured, the stacks not counted).
_ENV_BYTES = 1_200_000

_INT64 = np.dtype(np.int64)
OBS_SIDE: int = native.core.obs_side

Results = tuple[Any, npt.NDArray[np.float64], npt.NDArray[np.bool_], npt.NDArray[np.bool_], dict[str, Any]]

_ALWAYS_TOLD = ("lives", "frame_number", "episode_frame_number")
_TOLD_OF_GAMES = ("game_return", "game_frames", "game_steps")


class AtariPool(VectorEnv[Any, Any, Any]):
    """Atari games stepped by C++ threads, exact to the byte with the wrappers that defined their protocol.

    Args:
        env_id: ``BreakoutNoFrameskip-v4`` (no sticky actions), ``ALE/Breakout-v5`` (sticky 0.25) or ``breakout``
            (as the protocol says); ``fastrl.games()`` has all names.
        num_envs: games played side by side.
        protocol: the rules, see ``fastrl protocols``.
        threads: worker threads; None: as many as this process may use cores.
        seed: of the first reset, if that is given none. Env i gets ``seed + i``.
        frame_skip, stack, noop_max, sticky, full_actions, max_frames, life_loss, reward: replace the protocol's own
            rule of that name where given. ``stack`` frames make an observation.
        autoreset: "next_step", "same_step" or "disabled", with gymnasium's meanings.
        batch_size: results that :meth:`recv` returns; fewer than ``num_envs`` lets learning overlap with stepping.
        mode, difficulty: of the game; None: its own default.
        render_mode: "rgb_array" makes :meth:`render` return the screens.
        cpu_path: of the pixel functions, for tests; None: the fastest this processor has. All give the same bytes.
        cached_resets: False emulates every reset; None jumps to saved starts in the games where that was proved
            exact (the result is the same).
        sink: a FrameSink, to which the emulating threads also hand every frame (the replay ring). It is this pool's
            alone until that is closed.
        stacks: False writes frames to the sink only, and observations are None.

    Example:
        >>> pool = AtariPool("pong", num_envs=4, protocol="nature")
        >>> obs, info = pool.reset(seed=0)
        >>> obs, reward, terminated, truncated, info = pool.step(pool.action_space.sample())
        >>> obs.shape, obs.dtype
        ((4, 4, 84, 84), dtype('uint8'))
        >>> pool.close()

    ``info`` has ``lives``, ``frame_number``, ``episode_frame_number``, and where a full game ended ``game_return``
    (the game's own score), ``game_frames`` and ``game_steps``, each with its mask under ``_name``, as gymnasium does.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 60, "autoreset_mode": None}  # noqa: RUF012

    @foreign_calls()
    def __init__(
        self,
        env_id: str,
        num_envs: int = 1,
        protocol: str | Protocol = DEFAULT_PROTOCOL,
        *,
        threads: int | None = None,
        seed: int | Sequence[int] | None = 0,
        frame_skip: int | None = None,
        stack: int = DEFAULT_STACK,
        noop_max: int | None = None,
        sticky: float | None = None,
        full_actions: bool | None = None,
        max_frames: int | None = None,
        life_loss: str | None = None,
        reward: str | None = None,
        autoreset: str | AutoresetMode = "next_step",
        batch_size: int | None = None,
        mode: int | None = None,
        difficulty: int | None = None,
        render_mode: str | None = None,
        cpu_path: str | None = None,
        cached_resets: bool | None = None,
        sink: Any = None,
        stacks: bool = True,
        _fail_at: tuple[int, int] | None = None,
    ) -> None:
        self.closed = True  # until everything below has worked
        self.num_envs = whole_number("num_envs", num_envs, 1, 65_536)
        self.game = find_game(env_id)
        self._named_protocol = named_protocol(protocol)
        self.protocol = resolved_protocol(
            protocol,
            self.game.sticky,
            frame_skip=frame_skip,
            noop_max=noop_max,
            sticky=sticky,
            full_actions=full_actions,
            max_frames=max_frames,
            life_loss=life_loss,
            reward=reward,
        )
        self.stack = whole_number("stack", stack, 1, 64)
        self.batch_size = (
            self.num_envs if batch_size is None else whole_number("batch_size", batch_size, 1, self.num_envs)
        )
        self.threads = resolved_threads("AtariPool", threads, self.num_envs)
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode: {render_mode!r} is not one of None, 'rgb_array'")
        self.render_mode = render_mode
        autoreset_mode = resolved_autoreset(autoreset)
        self.metadata = {**type(self).metadata, "autoreset_mode": autoreset_mode}
        # Of the next reset that is given none: the constructor's, and those of a reset whose results were not received.
        self._seeds_due: list[int | None] | None = spread_seed(seed, self.num_envs)
        if not isinstance(stacks, (bool, np.bool_)):
            raise TypeError(f"stacks: {stacks!r} is not True or False")
        self._write_stacks = bool(stacks)
        if sink is not None and not isinstance(sink, native.core.FrameSink):
            raise TypeError(f"sink: {type(sink).__name__} is not a FrameSink of fastrl's native part")
        if not stacks and sink is None:
            raise ValueError("stacks: False writes frames to a sink only, but no sink is given")

        require_memory(self.num_envs, _ENV_BYTES + self.stack * OBS_SIDE**2)
        rom = rom_path(self.game.name)
        md5 = rom_md5(rom)
        engine = native.engine()
        rules = native_rules(
            self.protocol, self.game.name, rom, md5, self.stack, mode, difficulty, cpu_path, cached_resets
        )
        self.action_meanings: list[str] = action_meanings(rules["actions"])
        self._palette = rules.pop("palette_rgb")
        self.rules_fingerprint: str = rules["fingerprint"]
        self._pool = native.core.EnvPool(
            engine,
            rules,
            num_envs=self.num_envs,
            threads=self.threads,
            batch_size=self.batch_size,
            autoreset=NATIVE_AUTORESET[autoreset_mode],
            write_stacks=self._write_stacks,
            sink=sink,
            spin_us=spin_us(self.threads),
            fail_env=_fail_at[0] if _fail_at else -1,
            fail_step=_fail_at[1] if _fail_at else -1,
        )
        self._all_envs = np.arange(self.num_envs, dtype=np.int32)
        self._all_envs.flags.writeable = False
        self._everywhere = np.ones(self.num_envs, dtype=np.bool_)
        self._everywhere.flags.writeable = False

        self.single_observation_space = spaces.Box(0, 255, (self.stack, OBS_SIDE, OBS_SIDE), np.uint8)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.num_actions = len(rules["actions"])
        self.single_action_space = spaces.Discrete(self.num_actions)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self.closed = False
        close_at_exit(self)

    # ---- gymnasium's calls

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
        out: Any = None,
    ) -> tuple[Any, dict[str, Any]]:
        """Start new episodes and return their first observations.

        Args:
            seed: one number (env i gets ``seed + i``) or one an env. A seed starts a new game from a freshly loaded
                cartridge, as gymnasium's env does. Without: the first reset takes the constructor's, later ones go on
                with the generators. An episode that ended by a life loss goes on with its game, as the protocol says;
                in the middle of an episode a new game starts.
            options: ``{"reset_mask": bool array}`` resets these envs only, the others keep their last observation
                and pending resets; ``{"noops": n | [n, ...] | [[n, ...], ...]}`` schedules the no-op counts of each
                env's next resets, autoresets included.
            out: a buffer for the observations, see :meth:`step`.
        """
        self._require_open("reset")
        if options is not None and not isinstance(options, dict):
            raise TypeError(f"reset: options {options!r} is not a dict such as {{'noops': 5}}")
        options = dict(options or {})
        mask = checked_reset_mask(options.pop("reset_mask", None), self.num_envs)
        noops = self._noop_schedule(options.pop("noops", None))
        if options:
            raise ValueError(f"reset: options {sorted(options)} are unknown; known: ['noops', 'reset_mask']")
        seeds = spread_seed(seed, self.num_envs)
        if isinstance(seed, (int, np.integer)):
            super().reset(seed=int(seed))
        if self._seeds_due is not None:
            seeds = [due if own is None else own for own, due in zip(seeds, self._seeds_due, strict=True)]
        # An env that has no generators yet and is given no seed gets fresh entropy, as gymnasium's do.
        never_reset = self._pool.never_reset("reset")
        for env in never_reset:
            seeds[env] = fresh_seed() if seeds[env] is None else seeds[env]
        left_out = [env for env in never_reset if not mask[env]]
        if left_out:
            raise RuntimeError(
                f"reset: envs {left_out} are left out of reset_mask but have never been reset; reset all envs once "
                f"before"
            )
        buffer = self._buffer(out)
        jobs = [
            (int(env), None if (s := seeds[env]) is None else env_seed(s), noops[env]) for env in np.flatnonzero(mask)
        ]
        everybody = bool(mask.all())
        whole = everybody and self.batch_size == self.num_envs
        # Noted before anything is sent: whenever this is interrupted from here on, the next reset gives them again.
        before = self._seeds_due
        still_due = before or [None] * self.num_envs
        self._seeds_due = [seeds[env] if mask[env] else still_due[env] for env in range(self.num_envs)]
        try:
            self._pool.discard_in_flight(not everybody)
            self._pool.send_resets(jobs, buffer if whole else None, out, True)
        except (ValueError, IndexError, TypeError, RuntimeError):  # refused, so nothing was sent
            self._seeds_due = before
            raise
        if whole:
            results = self._pool.recv(-1.0, "reset")
        else:
            self._pool.discard_in_flight(False)
            results = self._pool.gather(buffer, out, "reset")
        self._seeds_due = None
        return results["obs"], self._info(results, mask, self._all_envs.copy())

    def step(self, actions: Any, out: Any = None) -> Results:
        """Step every env and wait for all of them.

        Args:
            actions: one whole number an env.
            out: a C-contiguous uint8 buffer (num_envs, stack, 84, 84) that the observations are written into, for
                example pinned memory: a numpy array or a torch tensor in host memory. It is returned as the
                observations. Without it they are the caller's to keep, in memory that is used again only when
                nobody holds them.
        """
        self._require_open("step")
        if self.batch_size != self.num_envs:
            raise RuntimeError(
                f"step: this pool returns batches of {self.batch_size} of its {self.num_envs} envs; use "
                f"send() and recv()"
            )
        buffer = self._buffer(out)
        checked = self._checked_actions("step", actions, self._all_envs)
        self._pool.send_actions(self._all_envs, checked, buffer, out, "step", True)
        return self._results(self._pool.recv(-1.0, "step"))

    def send(self, actions: Any, env_ids: Any = None) -> None:
        """Hand actions to envs and return at once; :meth:`recv` brings the results.

        Args:
            actions: one whole number for each of ``env_ids``.
            env_ids: which envs, each at most once; None: all.
        """
        self._require_open("send")
        envs = self._all_envs if env_ids is None else self._checked_env_ids(env_ids)
        self._pool.send_actions(envs, self._checked_actions("send", actions, envs), None, None, "send", False)

    def recv(self, timeout_s: float | None = None, out: Any = None) -> Results:
        """Wait for ``batch_size`` results, in env order where that is all envs, else as they were finished.

        ``info["env_id"]`` says whose they are. ``out`` is a buffer of (batch_size, stack, 84, 84) that is copied into.

        Raises:
            TimeoutError: after ``timeout_s`` seconds; what was sent is still under way.
        """
        self._require_open("recv")
        buffer = self._buffer(out, self.batch_size)  # refused before a batch is taken
        if timeout_s is not None and not (isinstance(timeout_s, Real) and 0 <= timeout_s < float("inf")):
            raise ValueError(f"recv: timeout_s {timeout_s!r} is not a number of seconds from 0 on; None waits for ever")
        results = self._pool.recv(-1.0 if timeout_s is None else float(timeout_s), "recv")
        if out is not None:
            np.copyto(buffer, results["obs"])
            results["obs"] = out
        return self._results(results)

    def render(self) -> tuple[Any, ...] | None:
        """The screens of all envs, if the pool was made with ``render_mode="rgb_array"``."""
        return None if self.render_mode is None else tuple(self.screens())

    def close_extras(self, **_: Any) -> None:
        """End the worker threads. Called by ``close()``, when the pool is collected, and when Python exits."""
        if hasattr(self, "_pool"):
            self._pool.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "pickle: a pool cannot be copied, for its threads and consoles are in this process; make one with the same "
            "arguments there, and take the envs along with save_state() and load_state()"
        )

    # ---- beyond gymnasium's calls

    @property
    def in_flight(self) -> int:
        """How many envs were sent something whose results have not been received.

        After an interrupted :meth:`step`, say by Ctrl-C, it tells whether its results are still to be had by
        :meth:`recv`. (An interrupt that comes after the wait, while the results are handed to Python, is too late for
        that: then it is 0, and they are gone.)
        """
        self._require_open("in_flight")
        return int(self._pool.in_flight("in_flight"))

    def observations(self, out: Any = None) -> Any:
        """The last observation of every env again; nothing may be in flight."""
        self._require_idle("observations")
        buffer = self._buffer(out)
        return self._pool.gather(buffer, out, "observations")["obs"]

    def screens(self) -> npt.NDArray[np.uint8]:
        """The raw screen of every env as RGB, (num_envs, rows, 160, 3)."""
        self._require_idle("screens")
        return np.stack([self._palette[self._pool.screen(env)] for env in range(self.num_envs)])

    def save_state(self, env_ids: Any = None) -> list[bytes]:
        """Everything that decides how each env goes on: console, protocol state, generators. Bytes, an env each.

        >>> pool = AtariPool("pong", num_envs=2)
        >>> _ = pool.reset()
        >>> states = pool.save_state()
        >>> pool.load_state(states)  # in this process or another, in this or another env of a pool with equal rules
        """
        self._require_idle("save_state")
        envs = self._all_envs if env_ids is None else self._checked_env_ids(env_ids)
        return [self._pool.save_env(int(env)) for env in envs]

    def state_digest(self, env_ids: Any = None) -> list[str]:
        """A hash of each env's screen, RAM, counters and generators: equal of envs that played the same.

        What :meth:`save_state` returns also depends on when an env was saved and loaded before.

        >>> pool = AtariPool("pong", num_envs=1)
        >>> _ = pool.reset()
        >>> other = AtariPool("pong", num_envs=1)
        >>> other.load_state(pool.save_state())
        >>> other.state_digest() == pool.state_digest()
        True
        """
        self._require_idle("state_digest")
        envs = self._all_envs if env_ids is None else self._checked_env_ids(env_ids)
        return [hashlib.sha256(self._pool.identify_env(int(env))).hexdigest() for env in envs]

    def load_state(self, states: Sequence[bytes], env_ids: Any = None) -> None:
        """Continue from states that :meth:`save_state` gave. :meth:`observations` then returns their observations.

        With a replay's sink this is for going on with both: the replay loaded too, and its sink made with
        ``continue_episodes=True``, into which nothing was written yet.

        Raises:
            ValueError: a state is damaged, or was saved under other rules. The envs before it are loaded, it is not.
            RuntimeError: what follows would be written into an episode that it does not belong to.
        """
        self._require_idle("load_state")
        envs = self._all_envs if env_ids is None else self._checked_env_ids(env_ids)
        if not isinstance(states, (list, tuple)):
            raise TypeError(f"load_state: {type(states).__name__} is not the list of states that save_state returned")
        if len(states) != len(envs):
            raise ValueError(f"load_state: got {len(states)} states for {len(envs)} envs")
        found, times = np.unique(envs, return_counts=True)
        if (times > 1).any():
            raise ValueError(f"load_state: env id {found[times > 1][0]} is given twice in {envs.tolist()}")
        for env, state in zip(envs, states, strict=True):
            if not isinstance(state, bytes):
                raise TypeError(f"load_state: the state for env {env} is {type(state).__name__}, not bytes")
            try:
                self._pool.load_env(int(env), state)
            except ValueError as error:
                raise ValueError(f"load_state: env {env} ({self.game.name}): {error}") from None
        if not self._pool.never_reset("load_state"):
            self._seeds_due = None

    def rule_changes(self) -> dict[str, tuple[Any, Any]]:
        """Where this pool's rules differ from the named protocol they started from, with both values."""
        return differences(self._named_protocol, self.protocol)

    # ---- checks and shapes

    def _require_open(self, operation: str) -> None:
        if self.closed:
            native.core.rest_if_python_ends()
            raise RuntimeError(f"{operation}: the pool is closed; make a new one")

    def _require_idle(self, operation: str) -> None:
        self._require_open(operation)
        if self._pool.in_flight(operation):
            raise RuntimeError(
                f"{operation}: some envs were sent actions whose results have not been received; call recv() first"
            )
        if operation != "load_state" and (never_reset := self._pool.never_reset(operation)):
            raise RuntimeError(f"{operation}: envs {never_reset} have not been reset; call reset() first")

    def _noop_schedule(self, noops: Any) -> list[list[int] | None]:
        if noops is None:
            return [None] * self.num_envs
        if self.protocol.noop_max == 0:
            raise ValueError(
                f"reset: noops were scheduled, but protocol '{self.protocol.name}' takes none after a reset"
            )
        if isinstance(noops, (int, np.integer)):
            noops = [noops] * self.num_envs
        if not isinstance(noops, (list, tuple, np.ndarray)) or (isinstance(noops, np.ndarray) and noops.ndim == 0):
            raise TypeError(f"reset: noops {noops!r} is neither a count, one an env, nor a list of counts an env")
        if len(noops) != self.num_envs:
            raise ValueError(f"reset: noops for {len(noops)} envs given, the pool has {self.num_envs}")
        rows = [list(row) if isinstance(row, (Sequence, np.ndarray)) else [row] for row in noops]
        return [[whole_number("reset: noops", n, 0, NOOP_LIMIT) for n in row] for row in rows]

    def _checked_env_ids(self, env_ids: Any) -> npt.NDArray[np.int32]:
        try:
            ids = np.asarray(env_ids)
        except ValueError as error:
            raise ValueError(f"env_ids: not a list of whole numbers ({error})") from None
        if ids.ndim != 1 or ids.size == 0 or not np.issubdtype(ids.dtype, np.integer):
            raise ValueError(f"env_ids: expected a list of whole numbers, got shape {ids.shape} of {ids.dtype}")
        outside = ids[(ids < 0) | (ids >= self.num_envs)]
        if outside.size:
            raise IndexError(f"env_ids: env id {outside[0]} is outside [0, {self.num_envs})")
        return ids.astype(np.int32)

    def _checked_actions(self, operation: str, actions: Any, envs: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
        count = len(envs)
        if type(actions) is np.ndarray and actions.dtype == _INT64 and actions.shape == (count,):
            return actions
        try:
            given = np.asarray(actions)
        except ValueError as error:
            raise ValueError(f"{operation}: actions are not one whole number for each env ({error})") from None
        if given.shape != (count,):
            raise ValueError(f"{operation}: actions have shape {given.shape}, expected ({count},): one for each env")
        whole = given.dtype.kind in "iu"
        if not whole or (given.dtype == np.uint64 and given.max(initial=0) >= 2**63):
            # Whole numbers beyond int64: numpy makes objects or floats of them, and int64 would turn them negative.
            for env, action in zip(envs, actions, strict=True):
                if isinstance(action, (int, np.integer)) and not 0 <= action < self.num_actions:
                    raise ValueError(
                        f"{operation}: action {action} for env {env} ({self.game.name}) is outside "
                        f"[0, {self.num_actions})"
                    )
        if not whole:
            raise TypeError(f"{operation}: actions are {given.dtype}; expected whole numbers (int64, int32, ...)")
        return given.astype(np.int64, copy=False)

    def _buffer(self, out: Any, count: int | None = None) -> Any:
        if out is None:
            return None
        if not self._write_stacks:
            raise ValueError("out: this pool was made with stacks=False and has no observations to write")
        try:
            array = out if isinstance(out, np.ndarray) else out.numpy()  # a torch tensor in host memory
        except (AttributeError, TypeError, RuntimeError) as error:
            raise TypeError(
                f"out: {type(out).__name__} is neither a numpy array nor a torch tensor in host memory ({error})"
            ) from None
        shape = (self.num_envs if count is None else count, self.stack, OBS_SIDE, OBS_SIDE)
        if array.shape != shape or array.dtype != np.uint8:
            raise ValueError(f"out: expected a uint8 buffer of shape {shape}, got {array.dtype} of shape {array.shape}")
        if not array.flags.c_contiguous or not array.flags.writeable:
            raise ValueError("out: the buffer must be C-contiguous and writable")
        return array

    def _results(self, results: dict[str, Any]) -> Results:
        env_ids = results["env_id"]
        if self._seeds_due is not None:  # after a reset that was interrupted
            for env in env_ids:
                self._seeds_due[env] = None
        info = self._info(results, self._everywhere[: len(env_ids)], env_ids)
        return results["obs"], results["reward"], results["terminated"], results["truncated"], info

    def _info(self, results: dict[str, Any], mask: npt.NDArray[np.bool_], env_ids: Any) -> dict[str, Any]:
        info = {"env_id": env_ids, **_with_masks(results, _ALWAYS_TOLD, mask)}
        final = results["final"]
        if final is not None:
            shown = final["mask"]
            info["final_obs"] = np.full(len(shown), None, dtype=object)
            for place in np.flatnonzero(shown):
                info["final_obs"][place] = None if final["obs"] is None else final["obs"][place].copy()
            info["final_info"] = _with_masks(final, _ALWAYS_TOLD, shown)
            info["_final_obs"], info["_final_info"] = shown.copy(), shown.copy()
        # A game can end in a step, and also in the frames of a reset. Either is told of in this call's info.
        for told, where in ((results, mask), (final, None if final is None else final["mask"])):
            if told is None or "game_ended" not in told:
                continue
            ended = told["game_ended"] & where
            for key in _TOLD_OF_GAMES:
                values, known = info.get(key, np.zeros_like(told[key])), info.get(f"_{key}", np.zeros_like(ended))
                info[key], info[f"_{key}"] = np.where(ended, told[key], values), known | ended
        return info


def _with_masks(columns: dict[str, Any], keys: tuple[str, ...], mask: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """The named columns as gymnasium's infos have them: each with a mask of its own of the envs it speaks of."""
    info: dict[str, Any] = {}
    for key in keys:
        info[key] = columns[key]
        info[f"_{key}"] = mask.copy()
    return info
