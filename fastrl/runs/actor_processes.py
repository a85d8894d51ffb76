"""Games in other processes, which write into lanes of the learner's replay. The network stays with the learner.

The learner puts actions into shared memory and says so; each process steps its games, whose frames its emulating
threads write straight into the ring, and tells which games ended. One that is killed, or stopped for two minutes, is
replaced: its lanes are taken over, and the episodes that were under way in them stay without an end. At most the step
that was under way is lost for each of its games; it counts as taken. What runs here is not deterministic, since a death
is not.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fastrl.engine.atari_pool import OBS_SIDE, AtariPool
from fastrl.engine.protocol import DEFAULT_STACK
from fastrl.engine.recorded_envs import Game
from fastrl.engine.replay import Replay, ReplayHandle
from fastrl.engine.shared_memory import SharedMemory, SharedMemoryHandle
from fastrl.runs import seeds
from fastrl.runs.workers import Board, Line, WorkerGroup

_LISTEN_S = 0.2
# Of a process that neither takes its step nor dies: until the user is told, and until another takes its place.
_TOLD_AFTER_S, _ENDED_AFTER_S = 20.0, 120.0
_LAST_STEP_S = 1.0  # what it has, once the run is to stop for as long: all is to be over in five seconds


class ActorProcesses:
    """What :class:`fastrl.engine.recorded_envs.RecordedAtari` is, with the games elsewhere.

    Args:
        env_id: which game.
        num_envs: in all.
        processes: that play them, each its part.
        capacity: of the replay.
        protocol: the rules.
        reward: instead of the protocol's own.
        threads: that emulate, of each process.
        seed: of the games.
        replay_seed: of what is drawn.
        alpha: of a prioritised replay.
        note: is told of deaths.
    """

    kind: Literal["atari"] = "atari"
    first_action = 0

    def __init__(
        self,
        env_id: str,
        num_envs: int,
        processes: int,
        capacity: int | Literal["auto"],
        *,
        protocol: str,
        reward: str | None = None,
        threads: int | None,
        seed: int,
        replay_seed: int,
        alpha: float | None,
        note: Callable[[str], None] = print,
    ) -> None:
        if not 1 <= processes <= num_envs:
            raise ValueError(f"actor_processes: {processes} is outside [1, {num_envs}], the number of envs")
        facts = AtariPool(env_id, 1, protocol, threads=1, reward=reward)
        self.num_envs = num_envs
        self.num_actions, self.frames_per_step = facts.num_actions, facts.protocol.frame_skip
        self.rules_fingerprint = facts.rules_fingerprint
        padding = facts.protocol.stack_padding
        facts.close()
        self.obs_shape: tuple[int, ...] = (OBS_SIDE, OBS_SIDE)
        self.replay = Replay(
            capacity,
            lanes=num_envs,
            obs_shape=self.obs_shape,
            stack=DEFAULT_STACK,
            seed=replay_seed,
            padding=padding,
            alpha=alpha,
        )
        shared = SharedMemory.create(8 * num_envs)
        self._shared, self._actions = shared, shared.array(0, (num_envs,), np.int64)
        bounds = np.linspace(0, num_envs, processes + 1).astype(int).tolist()
        handle = dataclasses.asdict(self.replay.handle())
        self._orders = [
            {
                "env": env_id,
                "protocol": protocol,
                "reward": reward,
                "threads": threads or 1,
                "seed": seed,
                "replay": handle,
                "actions": vars(shared.handle()),
                "first": first,
                "count": end - first,
                "envs": num_envs,
                "life": 0,
                "state": None,
            }
            for first, end in itertools.pairwise(bounds)
        ]
        self._board = Board(processes, 0)
        self._waiting_for = set(range(processes))  # to be ready, or to have taken the step
        self._silent_s: dict[int, float] = {}  # of those, how long we listened in vain
        self._games: list[Game] = []
        self._note = note
        self._group: WorkerGroup | None = None
        # Whether the run is to stop, for so many seconds already; its trainer knows.
        self.stop_wished: Callable[[float], bool] = lambda for_s: False

    @property
    def pids(self) -> list[int]:
        """Of the processes, in order."""
        return [] if self._group is None else self._group.pids

    @property
    def deaths(self) -> int:
        """Processes that were replaced."""
        return 0 if self._group is None else self._group.deaths

    def start(self, states: Sequence[bytes] | None = None) -> None:
        """Begin new games: those of a saved run are not restored here."""
        self._group = WorkerGroup(
            __name__, self._orders, self._board, heard=self._heard, died=self._died, note=self._note
        )
        self._wait()

    def stacks(self, out: npt.NDArray[Any] | None = None) -> npt.NDArray[Any]:
        """What each env's agent looks at, (num_envs, stack, *obs_shape)."""
        return self.replay.stacks(out)

    def send(self, actions: npt.NDArray[np.int64]) -> None:
        """Let all envs take a step, and return at once."""
        assert self._group is not None, "send: start() comes first"
        self._actions[:] = actions
        self._waiting_for = set(range(len(self._orders)))
        for index in range(len(self._orders)):
            self._group.tell(index, {"step": True})

    def receive(self) -> list[Game]:
        """Wait for the step to be done, and recorded. Tells which full games ended with it."""
        self._wait()
        games, self._games = self._games, []
        return games

    def _wait(self) -> None:
        assert self._group is not None
        self._silent_s = dict.fromkeys(self._waiting_for, 0.0)
        while self._waiting_for:
            began_s = time.monotonic()
            self._group.poll(_LISTEN_S)
            # No more than it listened: while this process was stopped itself, nobody was silent to it.
            listened_s = min(time.monotonic() - began_s, 2 * _LISTEN_S)
            last = self.stop_wished(_LAST_STEP_S)
            for index in list(self._waiting_for):
                before_s = self._silent_s[index]
                now_s = self._silent_s[index] = before_s + listened_s
                if before_s < _TOLD_AFTER_S <= now_s:
                    self._note(f"worker {index} is silent: {self._stall(index)}")
                if last and now_s >= _LAST_STEP_S:  # nobody will need its successor
                    self._note(f"worker {index} is silent, and is left behind: {self._stall(index)}")
                    self._waiting_for.discard(index)
                elif before_s < _ENDED_AFTER_S <= now_s:
                    self._note(f"worker {index} was silent for {_ENDED_AFTER_S:g} s, and is ended")
                    self._group.give_up(index)

    def _stall(self, index: int) -> str:
        """What the replay says of the first of its lanes."""
        first = int(self._orders[index]["first"])
        return f"lane {first}: {self.replay.stalls(0.0).get(first, 'it has not begun to write')}"

    def _heard(self, index: int, message: dict[str, Any]) -> None:
        # A new life tells that it is ready; the step that its predecessor was told is not asked of it.
        self._waiting_for.discard(index)
        self._games += [Game(**game) for game in message["games"]]

    def _died(self, index: int) -> None:
        self._waiting_for.add(index)  # until its successor is ready
        self._silent_s[index] = 0.0

    def save_state(self) -> list[bytes] | None:
        """None: a run that is resumed begins new episodes."""
        return None

    def state_digest(self) -> list[str] | None:
        """The same."""
        return None

    def close(self) -> None:
        """End the processes."""
        if self._group is not None:
            self._group.stop()


def work(order: dict[str, Any], board: Board, line: Line) -> None:
    """One such process, see :mod:`fastrl.runs.workers`."""
    index, first, count = int(order["worker"]), int(order["first"]), int(order["count"])
    replay = Replay.attach(ReplayHandle.from_plain(order["replay"]))
    memory = SharedMemory.attach(SharedMemoryHandle(**order["actions"]))
    actions = memory.array(0, (int(order["envs"]),), np.int64)[first : first + count]
    pool = AtariPool(
        order["env"],
        count,
        order["protocol"],
        reward=order["reward"],
        threads=order["threads"],
        seed=seeds.whole(order["seed"], f"actor process {index} life {order['life']}"),
        autoreset="same_step",
        sink=replay.sink(first_lane=first, lanes=count),
        stacks=False,
    )
    pool.reset()
    line.send({"games": []})
    while True:
        for _ in line.received(1.0):
            info = pool.step(actions)[-1]
            board.steps[index] += count
            ended: list[int] = np.flatnonzero(info["_game_return"]).tolist() if "game_return" in info else []
            line.send(
                {
                    "games": [
                        {
                            "env": first + env,
                            "game_return": float(info["game_return"][env]),
                            "frames": int(info["game_frames"][env]),
                            "steps": int(info["game_steps"][env]),
                        }
                        for env in ended
                    ]
                }
            )
