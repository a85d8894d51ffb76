"""Many MuJoCo envs of one task stepped on all cores, behind gymnasium's vector API."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from fastrl.engine import native
from fastrl.engine.mujoco_library import bound_library
from fastrl.engine.mujoco_tasks import Doubles, make_task
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
from fastrl.engine.rules import whole_number
from fastrl.engine.seeding import fresh_seed, spread_seed

# What an env needs beside the model's buffers: the part of its arena that the tasks touch. Together 86 kB
# (InvertedPendulum-v5) to 492 kB (Ant-v5) measured; buffers that are never touched count here, and not there.
_TOUCHED_BYTES = 100_000

# Starts that are drawn ahead for each env, so that C++ can reset it and Python need not draw after every reset.
_STARTS_EACH = 64

# Terms whose type is not float64 in Gymnasium's infos: the control cost has the actions' type.
_CTRL_TERM = "reward_ctrl"
_WHOLE_TERMS = {"InvertedPendulum-v5": ("reward_survive",)}

_FLOAT32, _FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)

_STATE_FORMAT = b"fastrl-mujoco-"
_DIGEST_BYTES = 16

Flags = npt.NDArray[np.bool_]
Results = tuple[Doubles, Doubles, Flags, Flags, dict[str, Any]]


def _state_mark() -> bytes:
    """What a state begins with: its layout has as many starts as are drawn ahead."""
    return _STATE_FORMAT + f"2-{_STARTS_EACH}\n".encode()


class MujocoPool(VectorEnv[Any, Any, Any]):
    """MuJoCo tasks stepped by C++ threads, equal to the bit with Gymnasium's environments.

    Args:
        env_id: ``HalfCheetah-v5``, ``Hopper-v5``, ``Walker2d-v5``, ``Ant-v5``, ``Swimmer-v5`` or
            ``InvertedPendulum-v5``.
        num_envs: envs side by side.
        threads: that step them, the caller's among them; None: as many as this process may use cores.
        seed: of the first reset, if that is given none. Env i gets ``seed + i``.
        autoreset: "next_step", "same_step" or "disabled", with gymnasium's meanings.
        max_episode_steps: when an episode is truncated; None: the task's own limit.
        settings: of Gymnasium's environment, by its own names: ``ctrl_cost_weight``, ``healthy_z_range``,
            ``frame_skip``, ... Those not given are as the installed Gymnasium has them.

    Example:
        >>> pool = MujocoPool("HalfCheetah-v5", num_envs=4)
        >>> obs, info = pool.reset(seed=0)
        >>> obs, reward, terminated, truncated, info = pool.step(pool.action_space.sample())
        >>> obs.shape, obs.dtype
        ((4, 17), dtype('float64'))
        >>> pool.close()

    ``info`` is what gymnasium's ``SyncVectorEnv`` gives, masks and types included. Actions outside of the action space
    are not refused: as in Gymnasium, MuJoCo limits the forces and the reward counts what was asked for.

    A pool is for one thread at a time.
    """

    metadata: dict[str, Any] = {"render_modes": [], "autoreset_mode": None}  # noqa: RUF012

    @foreign_calls()
    def __init__(
        self,
        env_id: str,
        num_envs: int = 1,
        *,
        threads: int | None = None,
        seed: int | Sequence[int] | None = 0,
        autoreset: str | AutoresetMode = "next_step",
        max_episode_steps: int | None = None,
        **settings: Any,
    ) -> None:
        self.closed = True  # until everything below has worked
        self.num_envs = whole_number("num_envs", num_envs, 1, 65_536)
        self.threads = resolved_threads("MujocoPool", threads, self.num_envs)
        self._autoreset_mode = resolved_autoreset(autoreset)
        # Of the next reset that is given none.
        self._seeds_due: list[int | None] | None = spread_seed(seed, self.num_envs)
        self.task = make_task(env_id, max_episode_steps, settings)
        self.spec = dataclasses.replace(gymnasium.spec(env_id), max_episode_steps=self.task.max_episode_steps)
        self._term_names = [name for name, _ in self.task.terms]
        self._mask_names = [f"_{name}" for name in self._term_names]
        self._whole_terms = _WHOLE_TERMS.get(env_id, ())
        self.metadata = {**type(self).metadata, "autoreset_mode": self._autoreset_mode}
        self._make_spaces()
        self._make_native()
        self._generators: list[np.random.Generator | None] = [None] * self.num_envs
        self._everywhere = np.ones(self.num_envs, dtype=np.bool_)
        self._reset_envs = np.zeros(self.num_envs, dtype=np.bool_)
        self._all_were_reset = False
        self.closed = False
        close_at_exit(self)

    def _make_spaces(self) -> None:
        prototype = self.task.prototype
        self.single_observation_space = prototype.observation_space
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.single_action_space: spaces.Box = prototype.action_space
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._actions_shape = (self.num_envs, *self.single_action_space.shape)

    def _make_native(self) -> None:
        import mujoco

        bound = bound_library()
        model, rules = self.task.prototype.model, self.task.rules
        require_memory(self.num_envs, int(model.nbuffer) + _TOUCHED_BYTES)
        self._data = [mujoco.MjData(model) for _ in range(self.num_envs)]
        n, obs_numbers, terms = self.num_envs, native.core.mujoco_obs_size(rules), len(self.task.terms)
        self._obs = np.zeros((n, obs_numbers))
        self._reward = np.zeros(n)
        self._terms = np.zeros((terms, n))
        self._final_obs = np.zeros((n, obs_numbers))
        self._final_terms = np.zeros((terms, n))
        self._ends = np.zeros((2, n), dtype=np.bool_)  # terminated, truncated
        self._was_reset = np.zeros(n, dtype=np.bool_)
        self._episode_over = np.zeros(n, dtype=np.bool_)
        self._elapsed_steps = np.zeros(n, dtype=np.int64)
        self._next_start = np.full(n, _STARTS_EACH, dtype=np.int64)  # all used up: none is drawn yet
        self._start_qpos = np.zeros((n, _STARTS_EACH, rules["nq"]))
        self._start_qvel = np.zeros((n, _STARTS_EACH, rules["nv"]))
        self._pool = native.core.MujocoPool(
            bound,
            rules,
            model._address,
            [env_memory(data) for data in self._data],
            {
                "obs": self._obs,
                "reward": self._reward,
                "terminated": self._ends[0],
                "truncated": self._ends[1],
                "terms": self._terms,
                "final_obs": self._final_obs,
                "final_terms": self._final_terms,
                "was_reset": self._was_reset,
                "episode_over": self._episode_over,
                "elapsed_steps": self._elapsed_steps,
                "next_start": self._next_start,
                "start_qpos": self._start_qpos,
                "start_qvel": self._start_qvel,
            },
            task_name=self.task.env_id,
            autoreset=NATIVE_AUTORESET[self._autoreset_mode],
            starts_each=_STARTS_EACH,
            threads=self.threads,
            spin_us=spin_us(self.threads),
            keep=(model, self._data),
        )

    # ---- gymnasium's calls

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Doubles, dict[str, Any]]:
        """Start new episodes and return their first observations.

        Args:
            seed: one number (env i gets ``seed + i``) or one an env. Without: the first reset takes the
                constructor's, later ones go on with the generators.
            options: ``{"reset_mask": bool array}`` resets these envs only; the others keep their last observation.
        """
        self._require_open("reset")
        if options is not None and not isinstance(options, dict):
            raise TypeError(f"reset: options {options!r} is not a dict such as {{'reset_mask': ...}}")
        unknown = sorted(set(options or {}) - {"reset_mask"})
        if unknown:
            raise ValueError(f"reset: options {unknown} are unknown; known: ['reset_mask']")
        mask = checked_reset_mask((options or {}).get("reset_mask"), self.num_envs)
        seeds = spread_seed(seed, self.num_envs)
        if not mask.all() and not self._reset_envs[~mask].all():
            raise RuntimeError(
                f"reset: envs {np.flatnonzero(~mask & ~self._reset_envs).tolist()} are left out of reset_mask but "
                f"have never been reset; reset all envs once before"
            )
        self._pool.require_here("reset")
        if isinstance(seed, (int, np.integer)):
            super().reset(seed=int(seed))
        if self._seeds_due is not None:
            seeds = [due if own is None else own for own, due in zip(seeds, self._seeds_due, strict=True)]
        for env in np.flatnonzero(mask):
            own = seeds[env]
            # An env that has no generator yet and is given no seed gets fresh entropy, as gymnasium's do.
            if own is None and self._generators[env] is None:
                own = fresh_seed()
            if own is not None:
                self._generators[env], _ = seeding.np_random(own)
                self._next_start[env] = _STARTS_EACH
        self._draw_starts(mask)
        self._pool.reset(mask)
        self._reset_envs |= mask
        self._all_were_reset = bool(self._reset_envs.all())
        self._seeds_due = None
        return self._obs.copy(), self._reset_info(mask)

    def step(self, actions: Any) -> Results:
        """Step every env and wait for all of them.

        Args:
            actions: a row of numbers an env. Float32 and float64 are taken as they are, as in Gymnasium: the control
                cost is computed in the actions' own type.
        """
        self._require_open("step")
        if not self._all_were_reset:
            self._require_reset("step")
        checked = self._checked_actions(actions)
        if self._pool.starts_used_up():
            self._draw_starts(self._reset_envs)
        resets = self._pool.step(checked)
        ends = self._ends.copy()
        return self._obs.copy(), self._reward.copy(), ends[0], ends[1], self._step_info(resets, checked.dtype)

    def close_extras(self, **_: Any) -> None:
        """End the worker threads. Called by ``close()``, when the pool is collected, and when Python exits."""
        if hasattr(self, "_pool"):
            self._pool.close()

    # ---- beyond gymnasium's calls

    def observations(self) -> Doubles:
        """The last observation of every env again."""
        self._require_reset("observations")
        return self._obs.copy()

    def save_state(self, env_ids: Any = None) -> list[bytes]:
        """Everything that decides how each env goes on: physics, episode, generator. Bytes, an env each.

        >>> pool = MujocoPool("Hopper-v5", num_envs=2)
        >>> _ = pool.reset()
        >>> states = pool.save_state()
        >>> pool.load_state(states)  # in this process or another, in this or another env of a pool with equal settings
        """
        self._require_reset("save_state")
        return [self._saved(env) for env in self._checked_env_ids("save_state", env_ids)]

    def load_state(self, states: Sequence[bytes], env_ids: Any = None) -> None:
        """Continue from states that :meth:`save_state` gave. :meth:`observations` then returns their observations.

        Raises:
            ValueError: a state is damaged, or was saved under another task, setting or mujoco. Nothing was loaded.
        """
        self._require_open("load_state")
        self._pool.require_here("load_state")
        envs = self._checked_env_ids("load_state", env_ids)
        if not isinstance(states, (list, tuple)):
            raise TypeError(f"load_state: {type(states).__name__} is not the list of states that save_state returned")
        if len(states) != len(envs):
            raise ValueError(f"load_state: got {len(states)} states for {len(envs)} envs")
        read = [self._read_state(env, state) for env, state in zip(envs, states, strict=True)]
        for env, (header, numbers) in zip(envs, read, strict=True):
            self._load(env, header, numbers)
        self._all_were_reset = bool(self._reset_envs.all())
        if self._all_were_reset:
            self._seeds_due = None

    # ---- starts and states

    def _draw_starts(self, envs: Flags) -> None:
        """Have a start ready for each of ``envs``, so that C++ can reset it at any moment."""
        for env in np.flatnonzero(envs & (self._next_start == _STARTS_EACH)):
            generator = self._generators[env]
            assert generator is not None
            self._start_qpos[env], self._start_qvel[env] = self.task.draw_starts(generator, _STARTS_EACH)
            self._next_start[env] = 0

    def _numbers_of(self, env: int) -> dict[str, npt.NDArray[np.float64]]:
        """What a state keeps of one env, as arrays to read and to write; the physics are beside it."""
        return {
            "main_body": self._data[env].xpos[self.task.rules["main_body"]],  # from where the next step is measured
            "obs": self._obs[env],
            "start_qpos": self._start_qpos[env].reshape(-1),  # drawn already, so the generator has gone past them
            "start_qvel": self._start_qvel[env].reshape(-1),
        }

    def _rules_text(self) -> str:
        import mujoco

        rules = {**self.task.rules, "reset_noise_scale": self.task.settings["reset_noise_scale"]}
        return f"{self.task.env_id} {sorted(rules.items())} mujoco {mujoco.mj_versionString()}"

    def _physics_numbers(self) -> tuple[int, int]:
        """Which parts of MuJoCo's state decide how it goes on, and how many numbers they are."""
        import mujoco

        parts = int(mujoco.mjtState.mjSTATE_INTEGRATION)
        return parts, int(mujoco.mj_stateSize(self.task.prototype.model, parts))

    @foreign_calls()
    def _saved(self, env: int) -> bytes:
        import mujoco

        parts, size = self._physics_numbers()
        physics = np.zeros(size)
        mujoco.mj_getState(self.task.prototype.model, self._data[env], physics, parts)
        generator = self._generators[env]
        assert generator is not None
        header = {
            "rules": self._rules_text(),
            "elapsed_steps": int(self._elapsed_steps[env]),
            "episode_over": bool(self._episode_over[env]),
            "next_start": int(self._next_start[env]),
            "generator": generator.bit_generator.state,
        }
        numbers = np.concatenate([physics, *self._numbers_of(env).values()])
        body = json.dumps(header).encode() + b"\n" + numbers.tobytes()
        return _state_mark() + hashlib.blake2b(body, digest_size=_DIGEST_BYTES).digest() + body

    @foreign_calls()
    def _read_state(self, env: int, state: bytes) -> tuple[dict[str, Any], Doubles]:
        where = f"load_state: env {env} ({self.task.env_id})"
        if not isinstance(state, bytes):
            raise TypeError(f"load_state: the state for env {env} is {type(state).__name__}, not bytes")
        mark = _state_mark()
        if state.startswith(_STATE_FORMAT) and not state.startswith(mark):
            raise ValueError(f"{where}: the state was saved by a version of fastrl that keeps other things of an env")
        begin = len(mark) + _DIGEST_BYTES
        body = state[begin:]
        digest = hashlib.blake2b(body, digest_size=_DIGEST_BYTES).digest()
        if not state.startswith(mark) or state[len(mark) : begin] != digest:
            raise ValueError(f"{where}: the state is damaged, or not one that save_state of a MujocoPool returned")
        text, _, raw = body.partition(b"\n")
        header: dict[str, Any] = json.loads(text)
        if header["rules"] != self._rules_text():
            raise ValueError(
                f"{where}: the state was saved under other rules:\n  saved: {header['rules']}\n  this pool: "
                f"{self._rules_text()}\nmake a pool with equal settings"
            )
        return header, np.frombuffer(raw)

    @foreign_calls()
    def _load(self, env: int, header: dict[str, Any], numbers: Doubles) -> None:
        import mujoco

        parts, size = self._physics_numbers()
        mujoco.mj_setState(self.task.prototype.model, self._data[env], numbers[:size], parts)
        rest = numbers[size:]
        for target in self._numbers_of(env).values():
            target[:], rest = rest[: target.size], rest[target.size :]
        self._elapsed_steps[env] = header["elapsed_steps"]
        self._episode_over[env] = header["episode_over"]
        self._next_start[env] = header["next_start"]
        generator = np.random.Generator(np.random.PCG64(0))
        generator.bit_generator.state = header["generator"]
        self._generators[env] = generator
        self._reset_envs[env] = True

    # ---- infos, as gymnasium's vector envs put them together

    def _columns(self, terms: Doubles, actions_dtype: Any) -> dict[str, npt.NDArray[Any]]:
        columns: dict[str, npt.NDArray[Any]] = dict(zip(self._term_names, terms.copy(), strict=True))
        if actions_dtype is not _FLOAT64 and _CTRL_TERM in columns:
            columns[_CTRL_TERM] = columns[_CTRL_TERM].astype(actions_dtype)
        for name in self._whole_terms:
            columns[name] = columns[name].astype(np.int64)
        return columns

    def _reset_info(self, mask: Flags) -> dict[str, Any]:
        info: dict[str, Any] = {}
        terms = np.where(mask, self._terms, 0.0)
        for k, (name, at_reset) in enumerate(self.task.terms):
            if at_reset:
                info[name], info[f"_{name}"] = terms[k], mask.copy()
        return info

    def _step_info(self, resets: int, actions_dtype: Any) -> dict[str, Any]:
        info: dict[str, Any] = self._columns(self._terms, actions_dtype)
        everywhere = self._everywhere.copy()
        if not resets:
            info.update(dict.fromkeys(self._mask_names, everywhere))
            return info
        columns = info
        stepped = ~self._was_reset
        info = {}
        if self._autoreset_mode == AutoresetMode.SAME_STEP:
            info = self._final_info(~stepped, actions_dtype)
        for name, at_reset in self.task.terms:
            if at_reset or resets < self.num_envs:  # what no env tells is left out
                info[name], info[f"_{name}"] = columns[name], everywhere if at_reset else stepped
        return info

    def _final_info(self, ended: Flags, actions_dtype: Any) -> dict[str, Any]:
        final_obs = np.full(self.num_envs, None, dtype=object)
        for env in np.flatnonzero(ended):
            final_obs[env] = self._final_obs[env].copy()
        final: dict[str, Any] = {}
        for name, column in self._columns(np.where(ended, self._final_terms, 0.0), actions_dtype).items():
            final[name], final[f"_{name}"] = column, ended
        return {"final_obs": final_obs, "_final_obs": ended, "final_info": final, "_final_info": ended}

    # ---- checks

    def _require_open(self, operation: str) -> None:
        if self.closed:
            native.core.rest_if_python_ends()
            raise RuntimeError(f"{operation}: the pool is closed; make a new one")

    def _require_reset(self, operation: str) -> None:
        self._require_open(operation)
        self._pool.require_here(operation)
        if not self._reset_envs.all():
            raise RuntimeError(
                f"{operation}: envs {np.flatnonzero(~self._reset_envs).tolist()} have not been reset; "
                f"call reset() first"
            )

    def _checked_actions(self, actions: Any) -> npt.NDArray[Any]:
        if (
            type(actions) is np.ndarray
            and actions.shape == self._actions_shape
            and (actions.dtype is _FLOAT32 or actions.dtype is _FLOAT64)
            and actions.flags.c_contiguous
        ):
            return actions
        try:
            given = np.asarray(actions)
        except (ValueError, TypeError, RuntimeError) as error:
            raise ValueError(f"step: actions are not a row of numbers for each env ({error})") from None
        if given.shape != self._actions_shape:
            raise ValueError(
                f"step: actions have shape {given.shape}, expected {self._actions_shape}: a row of "
                f"{self._actions_shape[1]} numbers for each env"
            )
        if given.dtype.kind in "iu":  # whole numbers lose nothing, and their squares are whole
            given = given.astype(np.float64)
        native_dtype = given.dtype.newbyteorder("=")
        if native_dtype not in (_FLOAT32, _FLOAT64):
            raise TypeError(f"step: actions are {given.dtype}; expected float32 or float64")
        return np.ascontiguousarray(given, dtype=native_dtype)

    def _checked_env_ids(self, operation: str, env_ids: Any) -> list[int]:
        if env_ids is None:
            return list(range(self.num_envs))
        if not isinstance(env_ids, (list, tuple, np.ndarray)) or len(env_ids) == 0:
            raise TypeError(f"{operation}: env_ids {env_ids!r} is not a list of whole numbers")
        ids = [whole_number(f"{operation}: env id", env, 0, self.num_envs - 1) for env in env_ids]
        twice = [env for env in ids if ids.count(env) > 1]
        if twice:
            raise ValueError(f"{operation}: env id {twice[0]} is given twice in {ids}")
        return ids


def env_memory(data: Any) -> dict[str, Any]:
    """Where one env's MjData and its arrays lie, for C++."""
    return {
        "data": data._address,
        "qpos": data.qpos,
        "qvel": data.qvel,
        "ctrl": data.ctrl,
        "xpos": data.xpos,
        "cfrc_ext": data.cfrc_ext,
    }
