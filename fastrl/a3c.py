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

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from fastrl._command import run
from fastrl.engine.played_envs import Played
from fastrl.engine.recorded_envs import Game
from fastrl.learn.policies import drawn
from fastrl.runs import command_line
from fastrl.runs.async_worker import ProcessWorker
from fastrl.runs.asynchronous import AsyncOptions, Recipe
from fastrl.runs.command_line import Presets, Trainer
from fastrl.runs.device_groups import GroupWorker
from fastrl.runs.options import require_number, require_whole


@dataclass(frozen=True, kw_only=True)
class Config(AsyncOptions):
    """Every hyper-parameter. The defaults are those of preset `paper`."""

    preset: str = "paper"  # where the values come from that are not given
    protocol: str = "nature"  # the rules of an Atari game, see `fastrl protocols`
    steps: int = 80_000_000  # of all workers together; 80M steps are 320M frames (its authors' e-mails: "1 day")
    workers: int = 16  # processes (paper: 16 threads)
    envs_per_worker: int = 1  # games of each (paper: 1)
    sync: bool = False  # A2C: one worker with all games
    t_max: int = 5  # steps of a round (paper); 0: whole episodes, Monte-Carlo returns
    discount: float = 0.99  # gamma, a step (paper)
    entropy_weight: float = 0.01  # beta, of the policy's entropy in the loss (paper)
    value_weight: float = 0.5  # w, of the value's error in the loss (e-mails: its gradient is halved)
    network: str = "a3c"  # a3c (16-32-256), nature (32-64-64-512), mlp, or module:function of your own
    orthogonal: bool = False  # first weights; else torch's own. A network of your own makes its own
    learning_rate: float = 0.0007  # at first (e-mails)
    learning_rate_steps: int = 80_000_000  # until the rate is 0 (e-mails: the whole training); 0: it stays
    rmsprop_decay: float = 0.99  # of the squared gradients' average, which workers share (paper)
    rmsprop_epsilon: float = 0.1  # added to it, under the root (e-mails)
    max_gradient_norm: float = 40.0  # of a round's gradient (e-mails); 0: not clipped
    evaluation_epsilon: float = 0.0  # the policy is random enough by itself

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        super().__post_init__()
        require_whole(self, "t_max", 0)
        require_number(self, "entropy_weight", 0, 1e3)
        require_number(self, "value_weight", 0, 1e3)
        self.require_one_game_for_whole_episodes("t_max")

    @property
    def steps_per_round(self) -> int:
        """Of all games of a worker; 0: an episode's."""
        return self.t_max * self.games_per_worker


PRESETS: Presets = {
    # Mnih et al. 2016, and what its authors wrote in e-mails about the values that it leaves out.
    "paper": {},
    # What learns Pong in 7.0 to 8.3 million steps (results/README.md): the optimiser of a2c, workers that do not
    # wait for each other, A3C's network, and games enough in each that its products are worth it. More cores: more
    # --workers.
    "fast": {
        "steps": 10_000_000,
        "workers": 2,
        "envs_per_worker": 16,
        "orthogonal": True,
        "learning_rate_steps": 0,
        "rmsprop_epsilon": 2.5e-4,
        "rmsprop_first_squares": 25.0,
        "max_gradient_norm": 2.5,
    },
    # Stable-Baselines3's A2C with the Atari values of its zoo. Its loss is a mean over steps, ours a sum over t_max of
    # them: its clip, and its epsilon and first squares, are stated for gradients five times smaller.
    "a2c": {
        "protocol": "sb3",
        "steps": 10_000_000,
        "sync": True,
        "network": "nature",
        "orthogonal": True,
        "value_weight": 0.5,
        "learning_rate_steps": 0,
        "rmsprop_epsilon": 2.5e-4,
        "rmsprop_first_squares": 25.0,
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
        "learning_rate_steps": 200_000,
        "learning_rate": 0.005,
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


def round_loss(
    config: Config, logits: Tensor, values: Tensor, actions: Tensor, target: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """What a round's gradient is of, and what is logged of it; all but ``logits`` are (steps, envs)."""
    policy_loss, value_loss, entropy = losses(logits, values, actions, target)
    per_step = policy_loss + config.value_weight * value_loss - config.entropy_weight * entropy
    found = {"policy_loss": policy_loss, "value_loss": value_loss, "entropy": entropy, "value_mean": values}
    return per_step.sum(0).mean(), {name: part.detach().mean() for name, part in found.items()}


def sample(logits: Tensor, generator: np.random.Generator) -> npt.NDArray[np.int64]:
    """An action for each row, by the policy's probabilities and one random number a row."""
    return drawn(logits.detach().double().softmax(-1).numpy(), generator)


class Worker(ProcessWorker):
    """Plays rounds and applies their gradients."""

    sums = ("policy_loss", "value_loss", "entropy", "grad_norm", "value_mean")

    def round(self, steps_before: int) -> tuple[int, list[Game], list[float]]:
        """Snapshot, play, apply."""
        config = self.config
        self.snapshot()
        seen: list[Tensor] = []
        said: list[Tensor] = []  # logits and, in the last column, values
        chosen: list[npt.NDArray[np.int64]] = []
        played: list[Played] = []
        games: list[Game] = []
        while not self.complete(played, config.t_max):
            seen.append(torch.from_numpy(self.obs))
            said.append(self.way.forward(seen[-1], further=bool(played)))
            chosen.append(sample(said[-1][:, :-1], self.generator))
            played.append(self.envs.step(chosen[-1]))
            games += played[-1].games
            self.obs = played[-1].obs
        target = self._targets(played)
        all_said = torch.cat(said).requires_grad_()
        by_step = all_said.view(*target.shape, -1)
        chosen_actions = torch.from_numpy(np.stack(chosen))
        loss, found = round_loss(config, by_step[..., :-1], by_step[..., -1], chosen_actions, target)
        norm = self.apply(torch.autograd.grad(loss, all_said)[0], steps_before)
        self.look(seen, chosen)
        means = dict(zip(found, torch.stack(list(found.values())).tolist(), strict=True)) | {"grad_norm": norm}
        return len(played) * self.envs.num_envs, games, [means[name] for name in self.sums]

    def _targets(self, played: list[Played]) -> Tensor:
        last = self._values(self.obs)
        cut = None
        if any(one.cut_obs for one in played):
            cut = torch.zeros(len(played), self.envs.num_envs)
            for step, one in enumerate(played):
                for env, obs in one.cut_obs.items():
                    cut[step, env] = self._values(obs[None])[0]
        reward = torch.from_numpy(np.stack([one.reward for one in played]))
        over = np.stack([one.terminated | one.truncated for one in played])
        return returns(reward, torch.from_numpy(1 - over.astype(np.float32)), last, self.config.discount, cut)

    def _values(self, obs: npt.NDArray[Any]) -> Tensor:
        return self.way.look(torch.from_numpy(obs))[:, -1]


class Group(GroupWorker):
    """The same on a GPU: all observations of a round are looked at once more when it is learned from."""

    sums = Worker.sums

    def _network(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        with self.autocast():
            logits, values = self.local.network(obs)
        return logits.float(), values.float()

    def answer(self, obs: Tensor) -> Tensor:
        """The policy's logits."""
        return self._network(obs)[0]

    def choose(self, said: Tensor) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Drawn by the policy's probabilities."""
        chosen = sample(said, self.generator)
        return chosen, chosen

    def value(self, obs: Tensor) -> Tensor:
        """V(s)."""
        return self._network(obs)[1]

    def losses(self) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss that :class:`Worker` has."""
        played = self.round
        with torch.no_grad():
            last = self._network(played.obs[self.length])[1]
            going_on = 1 - torch.maximum(played.terminated, played.cut)
            target = returns(played.reward, going_on, last, self.config.discount, played.cut_value)
        logits, values = self._network(played.obs[: self.length].flatten(0, 1))
        logits, values = logits.view(*target.shape, -1), values.view(target.shape)
        return round_loss(self.config, logits, values, played.actions[: self.length], target)


RECIPE = Recipe("a3c", Config, Worker, Group, kind="actor_critic", acts="sample")
train = RECIPE.train
TRAINER = Trainer("a3c", Config, PRESETS, train, atari_preset="paper", other_preset="classic")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    command_line.main(TRAINER, arguments)


if __name__ == "__main__":
    run(main)
