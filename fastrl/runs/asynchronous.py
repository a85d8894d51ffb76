"""What A3C and asynchronous Q share and their paper does not mention: one worker here, many in processes, or on a GPU.

A worker plays a round and applies its gradient to shared parameters. One worker alone is deterministic and runs in the
trainer's process; several run in processes, and the trainer counts, logs, saves, and replaces those that die. On a GPU
they are groups of games of the trainer's process, which goes from one to the next.
docs/asynchronous.md says what may be lost, and what is deterministic.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from fastrl.engine.budget import usable_cores
from fastrl.engine.played_envs import PlayedEnvs, played_envs
from fastrl.engine.protocol import DEFAULT_PROTOCOL
from fastrl.engine.recorded_envs import Game, evaluation_protocol, is_atari
from fastrl.engine.shared_memory import SharedMemoryHandle
from fastrl.learn.flat import FlatNetwork
from fastrl.learn.hogwild import SharedHandle, SharedParameters
from fastrl.learn.networks import build, described, named_factory, require_answer
from fastrl.learn.schedules import linear
from fastrl.runs import command_line, seeds
from fastrl.runs.async_worker import ProcessWorker
from fastrl.runs.device_groups import GroupWorker
from fastrl.runs.norms import gradient_norms, histograms_of
from fastrl.runs.opening import opened, refusal_of_choices
from fastrl.runs.options import (
    AtariReward,
    RunOptions,
    require_atari_reward,
    require_layers,
    require_number,
    require_whole,
    resolved,
)
from fastrl.runs.run_dir import as_json
from fastrl.runs.session import Resumed, Session
from fastrl.runs.traps import NonFiniteLoss
from fastrl.runs.workers import RUN, Board, Boundary, Line, WorkerGroup, as_text, from_text

_LISTEN_S = 0.05
_IDLE_S = 0.005
# A round comes to its end when a pause is wished for, so that only a worker that is stuck needs longer.
_PAUSE_WITHIN_S = 60.0
_LAST_PAUSE_WITHIN_S = 2.5  # when told to stop: all is to be over in five seconds


@dataclass(frozen=True, kw_only=True)
class AsyncOptions(RunOptions):
    """Options of how the work is shared out, and of the optimiser that the workers share."""

    device: Literal["auto", "cpu", "cuda"] = "auto"  # that learns; auto: the CPU. On cuda workers are groups of games
    deterministic: bool | None = None  # equal seeds, equal bits; default: where one worker does it all, on a CPU
    threads: int | None = None  # that emulate, where one worker does it all; default: the usable cores
    torch_threads: int | None = None  # that learn, where one worker does it all; default: the cores. Changes bits
    protocol: str = DEFAULT_PROTOCOL  # the rules of an Atari game, see `fastrl protocols`
    reward: AtariReward | None = None  # of an Atari game; sign and clipped agree; default: the protocol's
    steps: int = 80_000_000  # of all workers together
    workers: int = 16  # processes, with a thread each
    envs_per_worker: int = 1  # games of each
    sync: bool = False  # one worker with all games: deterministic
    discount: float = 0.99  # gamma
    network: str = "a3c"  # a3c (16-32-256), nature (32-64-64-512), mlp, or module:function of your own
    hidden_units: tuple[int, ...] = (64, 64)  # of an mlp
    learning_rate: float = 0.0007  # at first
    learning_rate_steps: int = 80_000_000  # until the rate is 0; 0: it stays
    rmsprop_decay: float = 0.99  # of the average of squared gradients, which all workers share
    rmsprop_epsilon: float = 0.1  # added to that average, under the root
    rmsprop_first_squares: float = 0.0  # that their average begins at: 0 as PyTorch has it, 1 as TensorFlow
    max_gradient_norm: float = 40.0  # of a round's gradient; 0: not clipped

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        super().__post_init__()
        for name, least in (("steps", 1), ("workers", 1), ("envs_per_worker", 1), ("learning_rate_steps", 0)):
            require_whole(self, name, least)
        for name, most in (
            ("discount", 1), ("learning_rate", 1e3), ("rmsprop_decay", 1), ("rmsprop_epsilon", 1e3),
            ("rmsprop_first_squares", 1e9), ("max_gradient_norm", math.inf),
        ):  # fmt: skip
            require_number(self, name, 0, most)
        require_layers(self, "hidden_units")
        if self.rmsprop_epsilon == 0:
            raise ValueError(
                "rmsprop_epsilon: 0 would divide 0 by 0 for a weight that has had no gradient yet; give a small "
                "number, such as 1e-8"
            )
        if self.deterministic and not self.alone:
            raise ValueError(f"deterministic: {self.unrepeatable()}")

    def require_one_game_for_whole_episodes(self, name: str) -> None:
        """Raise if rounds are whole episodes (option ``name`` is 0) of several games, which end at different times."""
        if getattr(self, name) == 0 and self.games_per_worker > 1:
            together = "--no-sync, --envs-per-worker 1" if self.sync else "--envs-per-worker 1"
            raise ValueError(
                f"{name}: 0 stands for whole episodes, which are learned from one game at a time, and a worker would "
                f"have {self.games_per_worker} games; give {together}, or {name} of at least 1"
            )

    def unrepeatable(self) -> str | None:
        """Why equal seeds do not give equal bits with these options; None: they do."""
        if self.alone:
            return None
        return (
            f"{self.workers} workers apply their gradients in the order in which they come, which no seed decides; "
            f"--workers 1 and --sync are deterministic"
        )

    @property
    def wanted_device(self) -> str:
        """With processes a GPU would be idle most of the time, so that it is used only where it is asked for."""
        return "cpu" if self.device == "auto" else self.device

    @property
    def alone(self) -> bool:
        """Whether one worker does it all, within the trainer's process, deterministically."""
        return self.sync or self.workers == 1

    @property
    def games_per_worker(self) -> int:
        """One worker alone plays the games of all."""
        return self.envs_per_worker * (self.workers if self.alone else 1)

    def learning_rate_at(self, steps: int) -> float:
        """The rate after so many steps of all workers."""
        if not self.learning_rate_steps:
            return self.learning_rate
        return linear(steps, self.learning_rate, 0.0, self.learning_rate_steps)


@dataclass(frozen=True)
class Recipe:
    """One asynchronous algorithm.

    Args:
        algorithm: its module in fastrl, which has this recipe as ``RECIPE``.
        config_class: its configuration.
        worker: plays its rounds on a CPU.
        group: plays its rounds on a GPU.
        kind: of its network, see :func:`fastrl.learn.networks.build`.
        acts: how its policy acts when it is measured.
        copies: further vectors of parameters that workers share.
    """

    algorithm: str
    config_class: type[AsyncOptions]
    worker: type[ProcessWorker]
    group: type[GroupWorker]
    kind: str
    acts: str
    copies: int = 0

    def train(
        self,
        config: Any,
        *,
        resume_run: Path | None = None,
        without_replay: bool = False,
        accept_changed_bits: bool = False,
    ) -> Session:
        """Train to the end, or until told to stop."""
        config = placed(config)
        in_groups = _in_groups(config)
        if in_groups and not config.steps_per_round:
            raise ValueError(
                "device: rounds of whole episodes have no length that a GPU could be prepared for; use --device cpu"
            )
        num_envs = config.games_per_worker if config.alone or in_groups else 1
        threads = emulating_threads(config) if in_groups else config.threads

        def first_envs(config: Any, resumed: Resumed | None) -> PlayedEnvs:
            return make_envs(config, num_envs, _stream(0, 0), threads, resumed.checkpoint.steps if resumed else 0)

        with opened(config, first_envs, resume_run, without_replay, accept_changed_bits) as (envs, resumed):
            return _Run(self, config, envs, resumed).train()

    def first_worker(self, config: Any, envs: PlayedEnvs) -> ProcessWorker | GroupWorker:
        """The first worker of a new run, which plays in ``envs``: for whoever measures its rounds."""
        run = _Run(self, config, envs, None)
        if _in_groups(config):
            return self.group(config, run.network, run.shared, 0, envs, _stream(0, 0), run.device)
        return self.worker(config, run.network, run.shared, 0, envs, _stream(0, 0))


def placed(config: Any) -> Any:
    """``config`` with everything that the machine decides filled in."""
    return resolved(dataclasses.replace(config, device=config.wanted_device))


def _in_groups(config: Any) -> bool:
    """Whether workers are groups of games of this process, with a GPU to learn on."""
    return bool(config.device == "cuda")


def emulating_threads(config: Any) -> int | None:
    """That emulate for one worker; None: the usable cores."""
    if not _in_groups(config):
        return config.threads if config.alone else 1
    # A little more than a group's share, for those of a group that learns rest.
    groups = 1 if config.alone else config.workers
    return max(1, math.ceil((config.threads or usable_cores()) / max(1, groups - 1)))


def _stream(worker: int, life: int) -> str:
    return f"worker {worker} life {life}"


def make_envs(config: Any, num_envs: int, stream: str, threads: int | None, steps_before: int = 0) -> PlayedEnvs:
    """The games of one worker.

    Args:
        config: of the run.
        num_envs: how many.
        stream: the worker's name among random numbers.
        threads: that emulate.
        steps_before: of the run. Envs that cannot be saved begin anew then, with other episodes than the run's first.
    """
    require_atari_reward(config)
    later = f" from step {steps_before}" if steps_before and not is_atari(config.env) else ""
    envs = played_envs(
        config.env,
        num_envs,
        protocol=config.protocol,
        threads=threads,
        seed=seeds.whole(config.seed, f"envs {stream}{later}"),
        reward=config.reward,
    )
    refusal = refusal_of_choices(envs.action_space)
    if refusal is not None:
        envs.close()
        raise ValueError(f"env: {config.env} has actions {envs.action_space}; {refusal}")
    return envs


def work(order: dict[str, Any], board: Board, line: Line) -> None:
    """A worker process, see :mod:`fastrl.runs.workers`."""
    torch.set_num_threads(1)
    recipe: Recipe = importlib.import_module(f"fastrl.{order['algorithm']}").RECIPE
    config: Any = command_line.from_stored(recipe.config_class, order["config"])
    index, stream = int(order["worker"]), _stream(order["worker"], order["life"])
    memory = SharedMemoryHandle(**order["shared"].pop("memory"))
    shared = SharedParameters.attach(SharedHandle(memory=memory, **order["shared"]))
    envs = make_envs(config, config.envs_per_worker, stream, 1, int(order["steps_before"]))
    worker = recipe.worker(config, order["network"], shared, index, envs, stream)
    worker.hurried = lambda: board.wish != RUN
    if index == 0:
        worker.watch(lambda text: line.send({"note": text}))
    worker.start(order["state"])
    boundary = Boundary(board, line)
    while boundary.go_on(worker.state):
        before = board.total_steps()
        if before >= config.steps:  # the trainer will see it in a moment
            time.sleep(_IDLE_S)
            continue
        steps, games, sums = worker.round(before)
        board.sums[index] += [1.0, *sums]
        board.steps[index] += steps
        if games:
            line.send({"games": [dataclasses.asdict(game) for game in games]})


@dataclass
class _RemoteGames:
    """What the session wants to know of games that it does not hold itself: they are in the workers' states."""

    frames_per_step: int
    saved: bool  # whether they can be saved
    replay: None = None
    states: list[bytes] = dataclasses.field(default_factory=list)  # of the games of all workers, when they paused

    def save_state(self) -> list[bytes] | None:
        """As they were when the workers told; handed over, since they are some megabytes."""
        states, self.states = self.states, []
        return states if self.saved else None

    def state_digest(self) -> list[str] | None:
        """Digests are among the workers' states."""
        return [] if self.saved else None


class _Run:
    """One run of a recipe, in the trainer's process."""

    def __init__(self, recipe: Recipe, config: Any, envs: PlayedEnvs, resumed: Resumed | None) -> None:
        self.recipe, self.config, self.envs, self.resumed = recipe, config, envs, resumed
        self.network = described(
            recipe.kind,
            config.network,
            envs.obs_shape,
            config.hidden_units,
            envs.num_actions,
            dueling=getattr(config, "dueling", False),
            orthogonal=getattr(config, "orthogonal", False),
        )
        built = build(self.network, [seeds.whole(config.seed, "network")], named_factory(config.network))
        if list(built.buffers()):
            raise ValueError(
                f"network: {config.network} has buffers ({', '.join(name for name, _ in built.named_buffers())}), such "
                f"as statistics of a normalisation; workers share parameters only, so use layers without buffers"
            )
        self.model = FlatNetwork(built)
        if self.model.values.dtype != torch.float32:
            raise ValueError(
                f"network: {config.network} has parameters of {self.model.values.dtype}; what workers share is float32"
            )
        if ":" in config.network:
            require_answer(self.network, built, envs.obs_dtype)
        self.device = torch.device(config.device)
        self.shared = SharedParameters(
            self.model.values.numel(), 1 if config.alone else config.workers, recipe.copies, self.device
        )
        for vector in (self.shared.values, *self.shared.further):
            vector.copy_(self.model.values)
        self.shared.squares.fill_(config.rmsprop_first_squares)
        self.saved: dict[str, Any] | None = None
        self.games = _RemoteGames(envs.frames_per_step, saved=is_atari(config.env))
        if resumed is not None:
            self.saved = resumed.state
            if len(self.saved["workers"]) != self.shared.workers:
                raise ValueError(
                    f"resume: the run has {len(self.saved['workers'])} workers and cannot go on with "
                    f"{self.shared.workers}; resume it with as many, or start a new run"
                )
            for name, vector in self._vectors().items():
                vector.copy_(resumed.checkpoint.tensors[name])
            self.shared.set_counts(self.saved["counts"])
            self._give_back_games(resumed.env_states or [])
        self.sums = np.zeros(1 + len(recipe.worker.sums))
        self._told_sums, self._told_counts = self.sums.copy(), self.shared.counts()

    def _vectors(self) -> dict[str, Tensor]:
        copies = {f"shared.copy{i}": vector for i, vector in enumerate(self.shared.further)}
        return {"shared.values": self.shared.values, "shared.squares": self.shared.squares, **copies}

    def tensors(self) -> dict[str, Tensor]:
        """All that is shared, and the network for whoever wants to act."""
        self.model.values.copy_(self.shared.values)
        policy = {f"policy.{name}": tensor for name, tensor in self.model.network.state_dict().items()}
        return {**{name: vector.cpu() for name, vector in self._vectors().items()}, **policy}

    def state(self, workers: list[dict[str, Any]]) -> dict[str, Any]:
        """What is saved beside the tensors.

        Raises:
            NonFiniteLoss: they are lost, and no checkpoint is to be made of them.
        """
        if not math.isfinite(float(self.shared.values.sum())):
            raise NonFiniteLoss(
                "train: parameters are not finite any more; the last checkpoint is from before. Resume from it, or "
                "start anew with a smaller learning rate"
            )
        return {"workers": self._take_games(workers), "counts": self.shared.counts(), "sums": self._unlogged()}

    def _take_games(self, workers: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Games are saved as bytes beside the tensors; what is left of the workers' states is small and plain."""
        self.games.states = []
        left = []
        for worker in workers:
            state = worker["state"]
            if state is not None and state["envs"] is not None:
                self.games.states += [from_text(text) for text in state["envs"]]
                state = {**state, "envs": len(state["envs"])}
            left.append({**worker, "state": state})
        return left

    def _give_back_games(self, games: list[bytes]) -> None:
        assert self.saved is not None
        remaining = iter(games)
        for worker in self.saved["workers"]:
            state = worker["state"]
            if state is not None and isinstance(state["envs"], int):
                state["envs"] = [as_text(next(remaining)) for _ in range(state["envs"])]

    def _unlogged(self) -> list[float]:
        return [float(value) for value in self.sums - self._told_sums]

    def row(self, steps: int) -> dict[str, float | None]:
        """What a row of the log says: means over the rounds since the last one."""
        counts = self.shared.counts()
        new, applied = self.sums - self._told_sums, counts["done"] - self._told_counts["done"]
        names = self.recipe.worker.sums
        means = (new[1:] / new[0]).tolist() if new[0] > 0 else [None] * len(names)
        row: dict[str, float | None] = dict(zip(names, means, strict=True))
        for name in ("lag", "overlaps"):
            row[f"{name}_mean"] = (counts[name] - self._told_counts[name]) / applied if applied else None
        self._told_sums, self._told_counts = self.sums.copy(), counts
        norm = float(self.shared.values.norm())
        return {**row, "param_norm": norm, "learning_rate": self.config.learning_rate_at(steps)}

    def train(self) -> Session:
        config, recipe = self.config, self.recipe
        rules = evaluation_protocol(config.protocol) if is_atari(config.env) else None
        policy = {
            "env": config.env,
            "network": self.network,
            "prefix": "policy.",
            "acts": recipe.acts,
            "first_action": self.envs.first_action,
            "evaluation_rules": rules,
        }
        facts: Mapping[str, Any] = {"rules_fingerprint": self.envs.rules_fingerprint}
        if self.saved is not None:
            self.sums += self.saved["sums"]
        with Session(recipe.algorithm, config, self.games, resumed=self.resumed, policy=policy, facts=facts) as session:
            way = self._grouped if _in_groups(config) else self._alone if config.alone else self._together
            states = way(session)
            session.finish(self.tensors(), self.state(states))
        return session

    def _after(
        self, session: Session, steps: int, more: Callable[[], Mapping[str, float]], histograms: Callable[[], Any]
    ) -> None:
        """What follows steps, whoever took them. ``more`` is for the log."""
        if session.crossed(self.config.log_every_steps, steps):
            session.log({**self.row(session.steps), **more()}, histograms() if self.config.histograms else None)
        if session.evaluation_due(steps):
            session.evaluate(self.tensors())

    def _alone(self, session: Session) -> list[dict[str, Any]]:
        config = self.config
        if config.workers > 1:
            session.note(
                f"sync: one worker learns from the {config.games_per_worker} games of all; --no-sync has "
                f"{config.workers} processes that do not wait for each other"
            )
        worker = self.recipe.worker(config, self.network, self.shared, 0, self.envs, _stream(0, 0))
        worker.watch(session.note)
        worker.start(self.saved["workers"][0]["state"] if self.saved else None)
        if not config.steps_per_round:  # an episode may have no end; one that ends soon leaves the run what it is
            worker.hurried = lambda: session.stop_wished(_LAST_PAUSE_WITHIN_S)

        def state() -> list[dict[str, Any]]:
            return [{"life": 0, "state": worker.state()}]

        def norms() -> dict[str, float]:
            return {f"grad_norm/{layer}": norm for layer, norm in gradient_norms(worker.local.network).items()}

        while session.running():
            with session.clock("round"):
                steps, games, new = worker.round(session.steps)
            self.sums += [1.0, *new]
            session.updates += 1
            session.stepped(steps, games)
            self._after(session, steps, norms, lambda: histograms_of(worker.local.network))
            if session.checkpoint_due(steps):
                session.checkpoint(self.tensors(), self.state(state()))
        return state()

    def _grouped(self, session: Session) -> list[dict[str, Any]]:
        """Groups of games in this process: while those of one play, it looks after the others."""
        config, groups, others = self.config, list[GroupWorker](), list[PlayedEnvs]()
        saved = self.saved["workers"] if self.saved else [{"state": None}] * self.shared.workers
        before, begun = self.sums.copy(), session.steps

        def turn(group: GroupWorker, begin: bool = True) -> int:
            nonlocal begun
            steps, games = group.turn(session.clock, session.steps, begin and begun < config.steps)
            if group.at == 0:
                begun += group.steps_of_a_round
            for each in groups:
                each.count_done()
            session.updates += steps > 0
            session.stepped(steps, games)
            return steps

        def settle() -> int:
            """Bring the rounds under way to their ends; how many steps that took."""
            steps = 0
            for group in groups:
                while group.under_way:
                    steps += turn(group, begin=False)
            return steps

        def norms() -> dict[str, float]:
            return {f"grad_norm/{layer}": norm for layer, norm in gradient_norms(groups[0].local.network).items()}

        def states() -> list[dict[str, Any]]:
            return [{"life": 0, "state": group.state()} for group in groups]

        try:
            for index in range(self.shared.workers):
                stream, envs = _stream(index, 0), self.envs
                if index:
                    threads = emulating_threads(config)
                    envs = make_envs(config, config.games_per_worker, stream, threads, session.steps)
                    others.append(envs)
                groups.append(self.recipe.group(config, self.network, self.shared, index, envs, stream, self.device))
                if index == 0:
                    groups[0].watch(session.note)
                groups[-1].start(saved[index]["state"])
            running = True
            while running:
                running = session.running()
                steps = sum(turn(group) for group in groups) if running else settle()
                due = session.evaluation_due(steps) or session.checkpoint_due(steps)
                if due:
                    steps += settle()
                if due or not running or session.crossed(config.log_every_steps, steps):
                    self.sums = before + sum(group.summed() for group in groups)
                self._after(session, steps, norms, lambda: histograms_of(groups[0].local.network))
                if running and session.checkpoint_due(steps):
                    session.checkpoint(self.tensors(), self.state(states()))
            return states()
        finally:
            for envs in others:
                envs.close()

    def _together(self, session: Session) -> list[dict[str, Any]]:
        """Workers play and learn in their processes; this one counts, logs and saves."""
        config = self.config
        self.envs.close()  # they were made to know what they are like
        board = Board(config.workers, len(self.sums))
        board.steps[0] = session.steps
        before = self.sums.copy()
        order = {
            "algorithm": self.recipe.algorithm,
            "config": as_json(config),
            "network": self.network,
            "steps_before": session.steps,
            "shared": dataclasses.asdict(self.shared.handle()),
        }
        states = self.saved["workers"] if self.saved else [{"life": 0, "state": None}] * config.workers
        ended: list[Game] = []

        def heard(index: int, message: dict[str, Any]) -> None:
            ended.extend(Game(**game) for game in message["games"])

        def count() -> int:
            """Take over what the board says; how many steps are new."""
            steps = board.total_steps() - session.steps
            self.sums = before + board.sums.sum(0)
            session.updates = self.shared.applied()
            games, ended[:] = list(ended), []
            session.stepped(steps, games)
            return steps

        def deaths() -> dict[str, float]:
            return {"worker_deaths": group.deaths}

        def weights() -> dict[str, Any]:
            """Gradients are the workers' own."""
            self.model.values.copy_(self.shared.values)
            found = histograms_of(self.model.network)
            return {name: values for name, values in found.items() if name.startswith("weights/")}

        if config.workers > usable_cores():
            session.note(
                f"{config.workers} workers on {usable_cores()} usable cores: they take turns, which learns as well but "
                f"not faster than --workers {usable_cores()} would"
            )
        group = WorkerGroup(
            __name__,
            [{**order, **state} for state in states],
            board,
            heard=heard,
            died=self.shared.forget_unfinished,
            note=session.note,
        )
        try:
            steps = 0
            while session.running():
                with session.clock("wait for workers"):
                    group.poll(_LISTEN_S)
                steps += count()  # on top of what a pause brought
                self._after(session, steps, deaths, weights)
                due, steps = session.checkpoint_due(steps), 0
                if due:
                    with session.clock("checkpoint"):
                        paused = group.pause(_PAUSE_WITHIN_S, session.stop_wished, _LAST_PAUSE_WITHIN_S)
                        steps = count()
                        session.checkpoint(self.tensors(), self.state(paused))
                        del paused  # some megabytes
                        group.go_on()
            paused = group.pause(_PAUSE_WITHIN_S, session.stop_wished, _LAST_PAUSE_WITHIN_S)
            self._after(session, steps + count(), deaths, weights)
            return paused
        finally:
            group.stop()
