"""Asynchronous one-step and n-step Q-learning and Sarsa (Mnih et al. 2016, "Asynchronous methods for deep RL").

Each worker copies the shared parameters Q, plays t_max steps epsilon-greedily, and applies the gradient of

    sum over t of   (R_t - Q(s_t, a_t))^2

to the shared parameters, without a lock, by an RMSProp whose squares all workers share. With T the target network
(the shared Q of up to `target_every_frames` ago), and 0 beyond an end:

    one step:  R_t = r_t + gamma max_a T(s_{t+1}, a)
    Sarsa:     R_t = r_t + gamma T(s_{t+1}, a_{t+1})
    n steps:   R_t = r_t + gamma R_{t+1}, back from max_a T(s, a) of the state after the round's last step

Every game explores by its own final epsilon, drawn from {0.1, 0.01, 0.5} with probabilities {0.4, 0.3, 0.3}.

Differences from the paper, each with its reason:
- Workers are processes, not threads; they may play several games at once; rounds go on through the end of an episode:
  as for fastrl.a3c, with the same reasons.
- One-step workers act on a copy of the shared parameters made at the start of a round of 5 steps (the paper: on the
  shared ones themselves), so that a round's gradient is of one set of parameters.
- Where an episode was cut (a time limit) what follows is the best action's value in the state in which it was cut, for
  Sarsa too: no action was chosen there.
- What the paper leaves out (rate, epsilon of RMSProp, clipping) follows its authors' e-mails on A3C.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastrl._command import run
from fastrl.engine.played_envs import Played
from fastrl.engine.recorded_envs import Game
from fastrl.learn.flat import FlatNetwork
from fastrl.learn.schedules import linear
from fastrl.runs import command_line, seeds
from fastrl.runs.async_worker import AsyncWorker, ProcessWorker
from fastrl.runs.asynchronous import AsyncOptions, Recipe
from fastrl.runs.command_line import Presets, Trainer
from fastrl.runs.device_groups import GroupWorker
from fastrl.runs.options import require_number, require_whole

_ROUND_STEPS = 5


@dataclass(frozen=True, kw_only=True)
class Config(AsyncOptions):
    """Every hyper-parameter. The defaults are those of preset `paper`."""

    preset: str = "paper"  # where the values come from that are not given
    protocol: str = "nature"  # the rules of an Atari game, see `fastrl protocols`
    steps: int = 80_000_000  # of all workers together; 80M steps are 320M frames
    workers: int = 16  # processes (paper: 16 threads)
    envs_per_worker: int = 1  # games of each (paper: 1)
    sync: bool = False  # one worker with all games: deterministic
    n_step: int = 5  # 1: one-step Q; more: n-step Q, which is also the round's length; 0: whole episodes
    round_steps: int = _ROUND_STEPS  # steps of a round of one-step Q (paper: I_AsyncUpdate)
    sarsa: bool = False  # the action that was taken next, instead of the best; for n_step 1
    target_every_frames: int = 40_000  # from one refresh of the target network to the next (paper)
    discount: float = 0.99  # gamma, a step (paper)
    epsilon_first: float = 1.0  # how often an action is random at first (paper)
    epsilon_finals: tuple[float, ...] = (0.1, 0.01, 0.5)  # what it falls to, drawn for each game (paper)
    epsilon_final_probabilities: tuple[float, ...] = (0.4, 0.3, 0.3)  # of each of them (paper)
    epsilon_frames: int = 4_000_000  # that it falls over (paper)
    network: str = "a3c"  # a3c (16-32-256), nature (32-64-64-512), mlp, or module:function of your own
    dueling: bool = False  # a value and advantages (Wang et al. 2016)
    learning_rate: float = 0.0007  # at first (e-mails of the authors, on A3C)
    learning_rate_steps: int = 80_000_000  # until the rate is 0 (e-mails: the whole training); 0: it stays
    rmsprop_decay: float = 0.99  # of the squared gradients' average, which workers share (paper)
    rmsprop_epsilon: float = 0.1  # added to it, under the root (e-mails on A3C)
    max_gradient_norm: float = 40.0  # of a round's gradient (e-mails on A3C); 0: not clipped

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        super().__post_init__()
        for name, least in (
            ("n_step", 0), ("round_steps", 1), ("target_every_frames", 1), ("epsilon_frames", 0),
        ):  # fmt: skip
            require_whole(self, name, least)
        require_number(self, "epsilon_first", 0, 1)
        finals, probabilities = self.epsilon_finals, self.epsilon_final_probabilities
        if not finals or len(finals) != len(probabilities) or abs(sum(probabilities) - 1) > 1e-9:
            raise ValueError(
                f"epsilon_final_probabilities: {probabilities} are not one for each of epsilon_finals {finals}, with "
                f"the sum 1"
            )
        for name, values in (("epsilon_finals", finals), ("epsilon_final_probabilities", probabilities)):
            for value in values:
                if not 0 <= value <= 1:
                    raise ValueError(f"{name}: {value} is outside [0, 1]")
        if self.n_step != 1 and self.round_steps != _ROUND_STEPS:
            raise ValueError(
                f"round_steps: {self.round_steps} is for one-step Q; with n_step {self.n_step} a round has "
                f"{'an episode' if self.n_step == 0 else f'{self.n_step} steps'}; leave it out, or give --n-step 1"
            )
        if self.sarsa and self.n_step != 1:
            raise ValueError(f"sarsa: is one-step here, but n_step is {self.n_step}; give --n-step 1")
        self.require_one_game_for_whole_episodes("n_step")

    @property
    def steps_per_round(self) -> int:
        """Of all games of a worker; 0: an episode's."""
        return (self.round_steps if self.n_step == 1 else self.n_step) * self.games_per_worker


PRESETS: Presets = {
    # Mnih et al. 2016, and its authors' e-mails on A3C for what it leaves out.
    "paper": {},
    # What learns Pong on two cores (results/README.md), by one-step and n-step Q: one worker, which is deterministic,
    # with games enough that its products are worth it; a target that follows sooner; much exploration for a million
    # steps, for with epsilons that fell to 0.05 and less within 250,000 nothing was learned in as many.
    "fast": {
        "steps": 10_000_000,
        "workers": 1,
        "envs_per_worker": 8,
        "torch_threads": 1,  # of a network this small; the games take the other cores, or other seeds do
        "target_every_frames": 10_000,
        "epsilon_finals": (0.2, 0.1, 0.03),
        "learning_rate_steps": 0,
        "learning_rate": 0.00025,
        "rmsprop_epsilon": 1e-4,
        "rmsprop_first_squares": 25.0,
        "max_gradient_norm": 10.0,
        "evaluate_every_steps": 1_000_000,
        "evaluation_epsilon": 0.01,
    },
    # For a handful of numbers as observation (CartPole-v1).
    "classic": {
        "env": "CartPole-v1",
        "steps": 200_000,
        "workers": 8,
        "sync": True,
        "network": "mlp",
        "target_every_frames": 2_000,
        "epsilon_finals": (0.1, 0.01, 0.3),
        "epsilon_frames": 40_000,
        "learning_rate_steps": 0,
        "learning_rate": 0.001,
        "rmsprop_epsilon": 1e-4,
        "max_gradient_norm": 10.0,
        "torch_threads": 1,
        "evaluate_every_steps": 50_000,
        "evaluation_epsilon": 0.0,
    },
}


# ---- the update rule


def one_step_targets(reward: Tensor, going_on: Tensor, following: Tensor, discount: float) -> Tensor:
    """R_t of every step by itself; all arguments (steps, envs).

    Args:
        reward: of the step.
        going_on: 1 unless the episode ended with the step; cut ones go on, in the state in which they were cut.
        following: the target network's value of what follows.
        discount: gamma.

    >>> one_step_targets(torch.ones(2), torch.tensor([1.0, 0.0]), torch.tensor([4.0, 4.0]), 0.5).tolist()
    [3.0, 1.0]
    """
    return reward + discount * going_on * following


def n_step_targets(
    reward: Tensor, terminated: Tensor, cut_value: Tensor, cut: Tensor, last: Tensor, discount: float
) -> Tensor:
    """R_t of every step, back from the round's last.

    Args:
        reward: (steps, envs).
        terminated: (steps, envs), 1 where the episode ended with the step.
        cut_value: (steps, envs), the value of the state in which an episode was cut.
        cut: (steps, envs), 1 where one was cut.
        last: (envs,), the value of the state after the last step.
        discount: gamma.

    >>> zero = torch.zeros(3, 1)
    >>> end = torch.tensor([[0.0], [1.0], [0.0]])
    >>> n_step_targets(torch.ones(3, 1), end, zero, zero, torch.tensor([8.0]), 0.5).squeeze(1).tolist()
    [1.5, 1.0, 5.0]
    """
    found = torch.empty_like(reward)
    following = last
    for step in range(len(reward) - 1, -1, -1):
        beyond = torch.where(cut[step] > 0, cut_value[step], following) * (1 - terminated[step])
        following = reward[step] + discount * beyond
        found[step] = following
    return found


def final_epsilons(config: Config, stream: str, envs: int) -> npt.NDArray[np.float64]:
    """What each game's epsilon falls to."""
    generator = seeds.generator(config.seed, f"final epsilons {stream}")
    return generator.choice(np.array(config.epsilon_finals), envs, p=np.array(config.epsilon_final_probabilities))


def round_targets(
    config: Config, reward: Tensor, terminated: Tensor, cut: Tensor, cut_value: Tensor, after: Tensor, following: Tensor
) -> Tensor:
    """R_t of every step of a round.

    Args:
        config: says which kind of targets.
        reward: (steps, envs), as ``terminated``, ``cut`` and ``cut_value``.
        terminated: 1 where the episode ended with the step.
        cut: 1 where it was cut.
        cut_value: the value of the state in which it was.
        after: the target network's values of what follows: (steps, envs, actions) for one-step, (envs, actions) after
            the round for n-step.
        following: (steps, envs), the actions that were taken next, for Sarsa.
    """
    if config.n_step != 1:
        return n_step_targets(reward, terminated, cut_value, cut, after.max(-1).values, config.discount)
    values = after.gather(-1, following.unsqueeze(-1)).squeeze(-1) if config.sarsa else after.max(-1).values
    return one_step_targets(reward, 1 - terminated, torch.where(cut > 0, cut_value, values), config.discount)


def round_loss(values: Tensor, actions: Tensor, target: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """What a round's gradient is of, and what is logged of it."""
    taken = values.gather(-1, actions.unsqueeze(-1)).squeeze(-1)
    errors = (target - taken).square()
    return errors.sum(0).mean(), {"loss": errors.detach().mean(), "q_mean": values.detach().mean()}


class Explorer(AsyncWorker):
    """Has a target network, and acts at random as often as each game's epsilon says."""

    sums = ("loss", "q_mean", "epsilon", "grad_norm")

    def start(self, state: dict[str, Any] | None) -> None:
        """Begin, or go on from what :meth:`state` gave."""
        self.finals = final_epsilons(self.config, self.stream, self.envs.num_envs)
        self.target = self.empty_network()
        self.target_refresh = -1  # which one the copy is of
        # Sarsa has chosen its next action before the round ends.
        self.chosen: npt.NDArray[np.int64] | None = None
        super().start(state)
        if state and state["chosen"] is not None and state["envs"] is not None:  # new episodes need new choices
            self.chosen = np.array(state["chosen"], np.int64)

    def state(self) -> dict[str, Any]:
        """Between rounds, all that it is beside the shared parameters."""
        return {**super().state(), "chosen": None if self.chosen is None else self.chosen.tolist()}

    def epsilons(self, steps: int) -> npt.NDArray[np.float64]:
        """Of each game, after so many steps of all workers."""
        frames = steps * self.envs.frames_per_step
        over, first = self.config.epsilon_frames, self.config.epsilon_first
        return np.array([linear(frames, first, float(final), over) for final in self.finals])

    def explore(self, greedy: npt.NDArray[np.int64], epsilons: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
        """``greedy``, or at random."""
        random = self.generator.random(len(greedy)) < epsilons
        return np.where(random, self.generator.integers(self.envs.num_actions, size=len(greedy)), greedy)

    def refresh_target(self, steps: int) -> bool:
        """The worker that first comes past a multiple of the period copies; who comes at the same time does so too.

        Returns whether this worker's target network has changed.
        """
        shared = self.shared
        period = steps * self.envs.frames_per_step // self.config.target_every_frames
        if period > shared.refreshes:
            shared.refresh_copy()
            shared.refreshes = period
        refresh = shared.refreshes  # read first: a copy that is of a later one is made once more
        if refresh == self.target_refresh:
            return False
        shared.take_copy(self.target.values)
        self.target_refresh = refresh
        return True


class Worker(Explorer, ProcessWorker):
    """Plays rounds and applies their gradients."""

    def start(self, state: dict[str, Any] | None) -> None:
        """Begin, or go on from what :meth:`state` gave."""
        super().start(state)
        self.target_way = self.way_of(self.target)

    def round(self, steps_before: int) -> tuple[int, list[Game], list[float]]:
        """Snapshot, play, apply; and refresh the target network when it is due."""
        config = self.config
        if self.refresh_target(steps_before):
            self.target_way.weights_changed()
        self.snapshot()
        epsilons = self.epsilons(steps_before)
        seen: list[Tensor] = []
        said: list[Tensor] = []
        chosen: list[npt.NDArray[np.int64]] = []
        played: list[Played] = []
        games: list[Game] = []
        while not self.complete(played, config.round_steps if config.n_step == 1 else config.n_step):
            seen.append(torch.from_numpy(self.obs))
            said.append(self.way.forward(seen[-1], further=bool(played)))
            if self.chosen is None:
                self.chosen = self.explore(said[-1].argmax(1).numpy(), epsilons)
            chosen.append(self.chosen)
            self.chosen = None
            played.append(self.envs.step(chosen[-1]))
            games += played[-1].games
            self.obs = played[-1].obs
        if config.sarsa:
            self.chosen = self.explore(self.way.look(torch.from_numpy(self.obs)).argmax(1).numpy(), epsilons)
        target = self._targets(played, chosen)
        all_said = torch.cat(said).requires_grad_()
        values = all_said.view(*target.shape, -1)
        loss, found = round_loss(values, torch.from_numpy(np.stack(chosen)), target)
        norm = self.apply(torch.autograd.grad(loss, all_said)[0], steps_before)
        self.look(seen, list(values.detach().argmax(-1).numpy()))
        sums = {**{name: float(part) for name, part in found.items()}, "epsilon": epsilons.mean(), "grad_norm": norm}
        return len(played) * self.envs.num_envs, games, [float(sums[name]) for name in self.sums]

    def _targets(self, played: list[Played], chosen: list[npt.NDArray[np.int64]]) -> Tensor:
        config, envs = self.config, self.envs.num_envs
        reward = torch.from_numpy(np.stack([one.reward for one in played]))
        terminated = torch.from_numpy(np.stack([one.terminated for one in played]).astype(np.float32))
        cut = torch.zeros(len(played), envs)
        cut_value = torch.zeros(len(played), envs)
        look = self.target_way.look
        for step, one in enumerate(played):
            for env, obs in one.cut_obs.items():
                cut[step, env] = 1
                cut_value[step, env] = look(torch.from_numpy(obs[None])).max()
        if config.n_step != 1:
            after = look(torch.from_numpy(self.obs))
        else:  # all that follows in one batch
            after = look(torch.from_numpy(np.concatenate([one.obs for one in played])))
            after = after.view(len(played), envs, -1)
        following = torch.from_numpy(np.stack([*chosen[1:], chosen[-1] if self.chosen is None else self.chosen]))
        return round_targets(config, reward, terminated, cut, cut_value, after, following)


class Group(Explorer, GroupWorker):
    """The same on a GPU: all observations of a round are looked at once more when it is learned from."""

    def start(self, state: dict[str, Any] | None) -> None:
        """Begin, or go on from what :meth:`state` gave."""
        self._epsilons = np.empty(0)
        self._epsilon = torch.zeros((), device=self.device)
        super().start(state)

    def values_of(self, model: FlatNetwork, obs: Tensor) -> Tensor:
        """Of all actions, (envs, actions)."""
        with self.autocast():
            values: Tensor = model.network(obs)
        return values.float()

    def before_round(self, steps_before: int) -> None:
        """Refresh the target network when it is due."""
        self.refresh_target(steps_before)
        self._epsilons = self.epsilons(steps_before)
        self._epsilon.fill_(float(self._epsilons.mean()))

    def answer(self, obs: Tensor) -> Tensor:
        """Action values."""
        return self.values_of(self.local, obs)

    def choose(self, said: Tensor) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The best, or at random."""
        greedy = said.argmax(1).numpy()
        return self.explore(greedy, self._epsilons), greedy

    def value(self, obs: Tensor) -> Tensor:
        """Of the best action, as the target network says."""
        return self.values_of(self.target, obs).max()

    def actions_at(self, at: int) -> npt.NDArray[np.int64]:
        """Sarsa's first ones were chosen when the last round ended."""
        if self.chosen is None:
            return super().actions_at(at)
        self.wait()  # for the copy of the last round's actions
        chosen, self.chosen = self.chosen, None
        return chosen

    def after_round(self) -> None:
        """What Sarsa does next is part of what it learns from."""
        if self.config.sarsa:
            self.chosen = super().actions_at(self.length)
            self.round.actions_here[self.length] = self.chosen

    def losses(self) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss that :class:`Worker` has."""
        played, steps = self.round, self.length
        with torch.no_grad():
            if self.config.n_step == 1:
                after = self.values_of(self.target, played.obs[1:].flatten(0, 1)).view(steps, played.obs.shape[1], -1)
            else:
                after = self.values_of(self.target, played.obs[steps])
            target = round_targets(
                self.config, played.reward, played.terminated, played.cut, played.cut_value, after, played.actions[1:]
            )
        values = self.values_of(self.local, played.obs[:steps].flatten(0, 1)).view(*target.shape, -1)
        loss, found = round_loss(values, played.actions[:steps], target)
        return loss, {**found, "epsilon": self._epsilon}


RECIPE = Recipe("async_q", Config, Worker, Group, kind="q", acts="greedy", copies=1)
train = RECIPE.train
TRAINER = Trainer("async_q", Config, PRESETS, train, atari_preset="paper", other_preset="classic")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    command_line.main(TRAINER, arguments)


if __name__ == "__main__":
    run(main)
