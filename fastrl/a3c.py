"""Asynchronous advantage actor-critic (Mnih et al. 2016, "Asynchronous methods for deep reinforcement learning").

Each worker copies the shared parameters, plays t_max steps with the policy pi, and with R_t = r_t + gamma R_{t+1} back
from the last step (R = V(s) there, 0 after an end) applies the gradient of

    sum over t of   -log pi(a_t | s_t) (R_t - V(s_t))  +  w/2 (R_t - V(s_t))^2  -  beta H(pi(. | s_t))

(the advantage is a constant in the first term) to the shared parameters, without a lock, by an RMSProp whose squares
all workers share.

Differences from the paper, each with its reason:
- Workers are processes, not threads: Python's threads take turns. Parameters lie in memory that they share.
- A worker may play several games at once (`envs_per_worker`); gradients are then the mean over games.
- Rounds go on through the end of an episode instead of stopping there, so that all have t_max steps.
- What the paper leaves out follows its authors' e-mails: rate 7e-4 falling to 0, epsilon 0.1 under the root, the
  value's gradient halved, one RMSProp for both losses, gradients clipped to a norm of 40.
- `--sync` is A2C: one worker with all games, one update a round; deterministic.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from fastrl._command import run
from fastrl.engine.played_envs import Played, PlayedEnvs, played_envs
from fastrl.engine.recorded_envs import Game, evaluation_protocol, is_atari
from fastrl.learn.hogwild import FlatNetwork, SharedHandle, SharedParameters, SharedRMSProp, clip_norm
from fastrl.learn.networks import build
from fastrl.learn.schedules import linear
from fastrl.runs import command_line, seeds, workers
from fastrl.runs.command_line import Presets, Trainer
from fastrl.runs.options import RunOptions, require_number, require_whole, resolved
from fastrl.runs.run_dir import as_json
from fastrl.runs.session import Resumed, Session, resume, torch_threads
from fastrl.runs.workers import Board, Boundary, Line, WorkerGroup


@dataclass(frozen=True, kw_only=True)
class Config(RunOptions):
    """Every hyper-parameter. The defaults are those of preset `paper`."""

    preset: str = "paper"  # where the values come from that are not given
    protocol: str = "nature"  # the rules of an Atari game, see `fastrl protocols`
    steps: int = 80_000_000  # of all workers together; 80M steps are 320M frames (e-mail: "1 day")
    workers: int = 16  # processes (paper: 16 threads)
    envs_per_worker: int = 1  # games of each (paper: 1)
    sync: bool = False  # A2C: one worker with all games
    t_max: int = 5  # steps of a round (paper); 0: whole episodes, Monte-Carlo returns
    discount: float = 0.99  # gamma (paper)
    entropy_weight: float = 0.01  # beta (paper)
    value_weight: float = 0.5  # w (e-mail: the value's gradient is halved)
    network: str = "a3c"  # a3c (16-32-256), nature (32-64-64-512), mlp, or module:function of your own
    hidden_units: tuple[int, ...] = (64, 64)  # of an mlp
    learning_rate: float = 0.0007  # at first (e-mail)
    learning_rate_steps: int = 80_000_000  # until it is 0 (e-mail: the whole training); 0: it stays
    rmsprop_decay: float = 0.99  # (paper)
    rmsprop_epsilon: float = 0.1  # under the root (e-mail)
    max_gradient_norm: float = 40.0  # (e-mail); 0: not clipped
    evaluation_epsilon: float = 0.0  # the policy is random enough by itself

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        super().__post_init__()
        for name, least in (
            ("steps", 1), ("workers", 1), ("envs_per_worker", 1), ("t_max", 0), ("learning_rate_steps", 0),
        ):  # fmt: skip
            require_whole(self, name, least)
        for name, most in (
            ("discount", 1), ("entropy_weight", 1e3), ("value_weight", 1e3), ("learning_rate", 1e3),
            ("rmsprop_decay", 1), ("rmsprop_epsilon", 1e3), ("max_gradient_norm", math.inf),
        ):  # fmt: skip
            require_number(self, name, 0, most)

    @property
    def solo(self) -> bool:
        """Whether one worker does it all, within the trainer's process, deterministically."""
        return self.sync or self.workers == 1


PRESETS: Presets = {
    # Mnih et al. 2016, and what its authors wrote in e-mails about the values that it leaves out.
    "paper": {},
    # Stable-Baselines3's A2C with the Atari values of its zoo. Its loss is a mean over steps, ours a sum over t_max of
    # them, so that its rate of 7e-4 and its epsilon are stated for gradients five times smaller.
    "a2c": {
        "protocol": "sb3",
        "steps": 10_000_000,
        "sync": True,
        "network": "nature",
        "value_weight": 0.5,
        "learning_rate_steps": 0,
        "rmsprop_epsilon": 2.5e-4,
        "max_gradient_norm": 2.5,
    },
    # For a handful of numbers as observation (CartPole-v1).
    "classic": {
        "env": "CartPole-v1",
        "steps": 200_000,
        "workers": 8,
        "sync": True,
        "t_max": 8,
        "network": "mlp",
        "entropy_weight": 0.001,
        "learning_rate_steps": 0,
        "learning_rate": 0.002,
        "rmsprop_epsilon": 1e-4,
        "max_gradient_norm": 4.0,
        "torch_threads": 1,
        "evaluate_every_steps": 50_000,
    },
}


# ---- the update rule


def returns(reward: Tensor, going_on: Tensor, last: Tensor, discount: float, cut: Tensor | None = None) -> Tensor:
    """R_t of every step, back from the last.

    Args:
        reward: (steps, envs).
        going_on: (steps, envs), 1 where the episode goes on after the step, else 0.
        last: (envs,), the value of the state after the last step.
        discount: gamma.
        cut: (steps, envs), the value of the state in which an episode was cut after the step; 0 elsewhere.

    >>> one = torch.ones(3, 1)
    >>> returns(one, torch.tensor([[1.0], [0.0], [1.0]]), torch.tensor([8.0]), 0.5).squeeze(1).tolist()
    [1.5, 1.0, 5.0]
    """
    found = torch.empty_like(reward)
    following = last
    for step in range(len(reward) - 1, -1, -1):
        beyond = following * going_on[step]
        if cut is not None:
            beyond = beyond + cut[step]
        following = reward[step] + discount * beyond
        found[step] = following
    return found


def losses(logits: Tensor, values: Tensor, actions: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Policy loss, half the squared error of the value, and entropy; each (batch,)."""
    log_probabilities = F.log_softmax(logits, dim=-1)
    entropy = -(log_probabilities.exp() * log_probabilities).sum(-1)
    advantage = target - values
    chosen = log_probabilities.gather(-1, actions.unsqueeze(-1)).squeeze(-1)
    return -chosen * advantage.detach(), 0.5 * advantage.square(), entropy


def sample(logits: Tensor, generator: np.random.Generator) -> npt.NDArray[np.int64]:
    """An action for each row, by the policy's probabilities and one random number a row."""
    cumulative = logits.detach().double().softmax(-1).cumsum(-1).cpu().numpy()
    drawn = generator.random(len(cumulative))[:, None] * cumulative[:, -1:]
    actions: npt.NDArray[np.int64] = (cumulative <= drawn).sum(1).clip(max=cumulative.shape[1] - 1)
    return actions


# Of each round, summed over rounds for the log.
SUMS = ("rounds", "policy_loss", "value_loss", "entropy", "grad_norm", "value_mean")


class Worker:
    """Plays rounds and applies their gradients.

    Args:
        config: the hyper-parameters.
        network: its description.
        shared: what it moves.
        index: which worker it is.
        envs: its games.
        stream: the name of its random numbers.
    """

    def __init__(
        self,
        config: Config,
        network: dict[str, Any],
        shared: SharedParameters,
        index: int,
        envs: PlayedEnvs,
        stream: str,
    ) -> None:
        self.config, self.envs = config, envs
        self.local = FlatNetwork(build(network))
        self.optimiser = SharedRMSProp(shared, index, config.rmsprop_decay, config.rmsprop_epsilon)
        self.generator = seeds.generator(config.seed, f"actions {stream}")
        self.obs: npt.NDArray[Any] = np.empty(0)

    def start(self, state: dict[str, Any] | None) -> None:
        """Begin, or go on from what :meth:`state` gave."""
        saved = state["envs"] if state else None
        self.obs = self.envs.start(None if saved is None else [workers.from_text(text) for text in saved])
        if state:
            seeds.restore_generator(self.generator, state["generator"])

    def state(self) -> dict[str, Any]:
        """Between rounds, all that it is beside the shared parameters."""
        saved = self.envs.save_state()
        return {
            "envs": None if saved is None else [workers.as_text(one) for one in saved],
            "generator": seeds.generator_state(self.generator),
        }

    def _autocast(self) -> Any:
        return torch.autocast("cpu", torch.bfloat16, enabled=self.config.precision == "bf16")

    def _forward(self, obs: npt.NDArray[Any]) -> tuple[Tensor, Tensor]:
        with self._autocast():
            logits, values = self.local.network(torch.from_numpy(obs))
        return logits.float(), values.float()

    def round(self, steps_before: int) -> tuple[int, list[Game], list[float]]:
        """Snapshot, play, apply.

        Args:
            steps_before: of all workers, for the learning rate.

        Returns:
            Steps taken, full games that ended, and a value for each of ``SUMS``.
        """
        config = self.config
        self.optimiser.snapshot(self.local.values)
        shown: list[tuple[Tensor, Tensor]] = []
        chosen: list[npt.NDArray[np.int64]] = []
        played: list[Played] = []
        games: list[Game] = []
        while not self._complete(played):
            logits, values = self._forward(self.obs)
            actions = sample(logits, self.generator)
            played.append(self.envs.step(actions))
            shown.append((logits, values))
            chosen.append(actions)
            games += played[-1].games
            self.obs = played[-1].obs
        target = self._targets(played)
        logits = torch.stack([logits for logits, _ in shown])
        values = torch.stack([values for _, values in shown])
        policy_loss, value_loss, entropy = losses(logits, values, torch.from_numpy(np.stack(chosen)), target)
        per_step = policy_loss + config.value_weight * value_loss - config.entropy_weight * entropy
        self.local.gradient.zero_()
        per_step.sum(0).mean().backward()  # type: ignore[no-untyped-call]
        norm = clip_norm(self.local.gradient, config.max_gradient_norm)
        if not math.isfinite(norm):
            raise FloatingPointError(f"the gradient is {norm} after {steps_before:,} steps")
        rate = config.learning_rate
        if config.learning_rate_steps:
            rate = linear(steps_before, config.learning_rate, 0.0, config.learning_rate_steps)
        self.optimiser.apply(self.local.gradient, rate)
        with torch.no_grad():
            sums = [1.0, float(policy_loss.mean()), float(value_loss.mean()), float(entropy.mean()), norm,
                    float(values.mean())]  # fmt: skip
        return len(played) * self.envs.num_envs, games, sums

    def _complete(self, played: list[Played]) -> bool:
        if self.config.t_max:
            return len(played) == self.config.t_max
        # Whole episodes: until the first game's ends. (With one game, Monte-Carlo returns.)
        return bool(played) and bool(played[-1].terminated[0] or played[-1].truncated[0])

    def _targets(self, played: list[Played]) -> Tensor:
        with torch.no_grad():
            last = self._forward(self.obs)[1]
            cut = None
            if any(one.cut_obs for one in played):
                cut = torch.zeros(len(played), self.envs.num_envs)
                for step, one in enumerate(played):
                    for env, obs in one.cut_obs.items():
                        cut[step, env] = self._forward(obs[None])[1][0]
        reward = torch.from_numpy(np.stack([one.reward for one in played]))
        over = np.stack([one.terminated | one.truncated for one in played])
        return returns(reward, torch.from_numpy(1 - over.astype(np.float32)), last, self.config.discount, cut)


def work(order: dict[str, Any], board: Board, line: Line) -> None:
    """A worker process, see :mod:`fastrl.runs.workers`."""
    torch.set_num_threads(1)
    config: Config = command_line.from_stored(Config, order["config"])
    index = int(order["worker"])
    shared = SharedParameters.attach(SharedHandle(**{**order["shared"], "memory": _memory(order["shared"]["memory"])}))
    stream = f"worker {index} life {order['life']}"
    envs = make_envs(config, config.envs_per_worker, stream, threads=1)
    worker = Worker(config, order["network"], shared, index, envs, stream)
    worker.start(order["state"])
    boundary = Boundary(board, line)
    while boundary.go_on(worker.state):
        steps, games, sums = worker.round(int(board.steps.sum()))
        board.sums[index] += sums
        board.steps[index] += steps
        if games:
            line.send({"games": [dataclasses.asdict(game) for game in games]})


def _memory(fields: dict[str, int]) -> Any:
    from fastrl.engine.shared_memory import SharedMemoryHandle

    return SharedMemoryHandle(**fields)


# ---- training


def make_envs(config: Config, num_envs: int, stream: str, threads: int | None) -> PlayedEnvs:
    """The games of one worker."""
    envs = played_envs(
        config.env,
        num_envs,
        protocol=config.protocol,
        threads=threads,
        seed=seeds.whole(config.seed, f"envs {stream}"),
    )
    if not envs.num_actions:
        raise ValueError(f"env: {config.env} has actions {envs.action_space}; A3C here chooses among a number of them")
    return envs


def describe_network(config: Config, envs: PlayedEnvs) -> dict[str, Any]:
    """What to build."""
    own = ":" in config.network
    return {
        "kind": "actor_critic",
        "torso": "own" if own else config.network,
        "factory": config.network if own else None,
        "obs_shape": list(envs.obs_shape),
        "hidden_units": list(config.hidden_units),
        "num_actions": envs.num_actions,
    }


@dataclass
class _Games:
    """What the session wants to know of games that it does not hold itself."""

    frames_per_step: int
    replay: None = None

    def save_state(self) -> None:
        """They are in the workers' states."""


def train(
    config: Config,
    *,
    resume_run: Path | None = None,
    without_replay: bool = False,
    accept_changed_bits: bool = False,
) -> Session:
    """Train to the end, or until told to stop."""
    config = resolved(config)
    if config.device != "cpu":
        raise ValueError("device: A3C learns on the CPU; use --device cpu")
    resumed = None
    if resume_run is not None:
        resumed = resume(resume_run, without_replay=without_replay, accept_changed_bits=accept_changed_bits)
    num_envs = config.workers * config.envs_per_worker if config.solo else 1
    envs = make_envs(config, num_envs, "worker 0 life 0", config.threads)
    try:
        with torch_threads(config.torch_threads or 1):
            return _train(config, envs, resumed)
    finally:
        envs.close()


def _train(config: Config, envs: PlayedEnvs, resumed: Resumed | None) -> Session:
    network = describe_network(config, envs)
    first = FlatNetwork(build(network, [seeds.whole(config.seed, "network")]))
    shared = SharedParameters(first.values.numel(), 1 if config.solo else config.workers)
    shared.values.copy_(first.values)
    rules = {"protocol": config.protocol, **evaluation_protocol(config.protocol)} if is_atari(config.env) else None
    policy = {"env": config.env, "network": network, "prefix": "policy.", "acts": "sample", "evaluation_rules": rules}
    facts = {"rules_fingerprint": envs.rules_fingerprint}
    saved = resumed.state if resumed else None
    if resumed and saved:
        shared.values.copy_(resumed.checkpoint.tensors["shared.values"])
        shared.squares.copy_(resumed.checkpoint.tensors["shared.squares"])
        shared.set_counts(saved["counts"])

    def tensors() -> dict[str, Tensor]:
        first.values.copy_(shared.values)
        return {
            "shared.values": shared.values,
            "shared.squares": shared.squares,
            **{f"policy.{name}": tensor for name, tensor in first.network.state_dict().items()},
        }

    games = _Games(envs.frames_per_step)
    with Session("a3c", config, games, resumed=resumed, policy=policy, facts=facts) as session:
        told = Told(config, shared)
        if config.solo:
            states = _alone(config, network, shared, envs, session, told, saved, tensors)
        else:
            envs.close()
            states = _together(config, network, shared, session, told, saved, tensors)
        session.finish(tensors(), {"workers": states, "counts": shared.counts()})
    return session


class Told:
    """What rows of the log say: means over the rounds since the last one."""

    def __init__(self, config: Config, shared: SharedParameters) -> None:
        self._config, self._shared = config, shared
        self._sums = np.zeros(len(SUMS))
        self._counts = shared.counts()

    def row(self, sums: npt.NDArray[np.float64], steps: int) -> dict[str, float | None]:
        """A row's values, from the sums over all rounds so far."""
        counts = self._shared.counts()
        new, applied = sums - self._sums, counts["done"] - self._counts["done"]
        row: dict[str, float | None] = dict.fromkeys(SUMS[1:])
        if new[0] > 0:
            row = dict(zip(SUMS[1:], new[1:] / new[0], strict=True))
        if applied:
            row |= {f"{name}_mean": (counts[name] - self._counts[name]) / applied for name in ("lag", "overlaps")}
        rate = self._config.learning_rate
        if self._config.learning_rate_steps:
            rate = linear(steps, rate, 0.0, self._config.learning_rate_steps)
        self._sums, self._counts = sums.copy(), counts
        return {**row, "learning_rate": rate}


def _alone(
    config: Config,
    network: dict[str, Any],
    shared: SharedParameters,
    envs: PlayedEnvs,
    session: Session,
    told: Told,
    saved: dict[str, Any] | None,
    tensors: Any,
) -> list[dict[str, Any]]:
    """The loop of one worker in this process."""
    worker = Worker(config, network, shared, 0, envs, "worker 0 life 0")
    worker.start(saved["workers"][0] if saved else None)
    sums = np.zeros(len(SUMS))
    while session.running():
        with session.clock("round"):
            steps, games, new = worker.round(session.steps)
        sums += new
        session.updates += 1
        session.stepped(steps, games)
        if session.crossed(config.log_every_steps, steps):
            session.log(told.row(sums, session.steps))
        if session.crossed(config.evaluate_every_steps, steps) and session.steps < config.steps:
            session.evaluate(tensors())
        if session.checkpoint_due(steps):
            session.checkpoint(tensors(), {"workers": [worker.state()], "counts": shared.counts()})
    return [worker.state()]


def _together(
    config: Config,
    network: dict[str, Any],
    shared: SharedParameters,
    session: Session,
    told: Told,
    saved: dict[str, Any] | None,
    tensors: Any,
) -> list[dict[str, Any]]:
    """The loop beside worker processes: they play and learn, this one counts, logs and saves."""
    board = Board(config.workers, len(SUMS))
    board.steps[0] = session.steps
    handle = dataclasses.asdict(shared.handle())
    orders = [
        {
            "config": as_json(config),
            "network": network,
            "shared": handle,
            "state": saved["workers"][index] if saved else None,
        }
        for index in range(config.workers)
    ]
    ended: list[Game] = []

    def heard(index: int, message: dict[str, Any]) -> None:
        ended.extend(Game(**game) for game in message["games"])

    group = WorkerGroup("fastrl.a3c", orders, board, heard=heard, died=shared.forget_unfinished, note=session.note)
    try:
        while session.running():
            with session.clock("wait for workers"):
                group.poll(0.05)
            steps = int(board.steps.sum()) - session.steps
            session.updates = shared.applied()
            games, ended[:] = list(ended), []
            session.stepped(steps, games)
            if session.crossed(config.log_every_steps, steps):
                session.log({**told.row(board.sums.sum(0), session.steps), "worker_deaths": group.deaths})
            if session.crossed(config.evaluate_every_steps, steps) and session.steps < config.steps:
                session.evaluate(tensors())
            if session.checkpoint_due(steps):
                with session.clock("checkpoint"):
                    states = group.pause()
                    session.stepped(int(board.steps.sum()) - session.steps, [])
                    session.checkpoint(tensors(), {"workers": states, "counts": shared.counts()})
                    group.go_on()
        states = group.pause()
        session.stepped(int(board.steps.sum()) - session.steps, ended)
        session.updates = shared.applied()
        return states
    finally:
        group.stop()


def default_preset(env: str | None) -> Literal["paper", "classic"]:
    """What trains ``env`` when no preset is named."""
    return "paper" if env is None or is_atari(env) else "classic"


TRAINER = Trainer("a3c", Config, PRESETS, train, default_preset)

if __name__ == "__main__":
    run(lambda: command_line.main(TRAINER))
