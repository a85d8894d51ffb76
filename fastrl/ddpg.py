"""Deep deterministic policy gradient (Lillicrap et al. 2016, "Continuous control with deep reinforcement learning").

With the actor m, the critic Q, their slowly following targets m' and Q', and transitions (s, a, r, s', d) drawn from
the replay, where d is the discount of s' (gamma, 0 after a true end, gamma after a cut):

    critic:  minimise (Q(s, a) - y)^2,  y = r + d Q'(s', m'(s'))
    actor:   maximise Q(s, m(s))
    targets: w' <- w' + tau (w - w')

once for every step. Actions are m(s) plus noise, within bounds.

Differences from the paper, each with its reason:
- Actions are in [-1, 1] for the networks and the replay, and are scaled to the env's own bounds, so that every
  dimension weighs the same; noise is scaled with them.
- `fast` has the settings of later work (Fujimoto et al. 2018's own DDPG): larger batches, Gaussian noise, no
  normalisation, a random warm-up.
- The paper's pixels are not here: vectors of numbers only.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from gymnasium import spaces
from torch import Tensor, nn

from fastrl._command import run
from fastrl.engine.batches import Batch
from fastrl.engine.recorded_envs import RecordedGymnasium, is_atari
from fastrl.learn.graphs import Captured
from fastrl.learn.hogwild import FlatNetwork
from fastrl.learn.networks import build
from fastrl.learn.noise import Gaussian, Noise, OrnsteinUhlenbeck
from fastrl.learn.optimisers import load_state_tensors, state_tensors
from fastrl.runs import command_line, seeds
from fastrl.runs.command_line import Presets, Trainer
from fastrl.runs.options import RunOptions, require_number, require_whole, resolved
from fastrl.runs.session import Resumed, Session, resume, torch_threads
from fastrl.runs.traps import Traps


@dataclass(frozen=True, kw_only=True)
class Config(RunOptions):
    """Every hyper-parameter. The defaults are those of preset `fast`."""

    preset: str = "fast"  # where the values come from that are not given
    env: str = "HalfCheetah-v5"  # an id of Gymnasium with a Box of actions
    steps: int = 1_000_000  # of all envs together
    num_envs: int = 1  # side by side
    replay_capacity: int = 1_000_000  # transitions (paper)
    batch: int = 256  # transitions an update (Fujimoto et al.)
    warm_up_steps: int = 10_000  # uniformly random, before the first update
    update_every_steps: int = 1  # steps to an update (paper: 1)
    discount: float = 0.99  # gamma (paper)
    tau: float = 0.005  # of the way that targets go towards the networks, an update (Fujimoto et al.)
    actor_hidden_units: tuple[int, ...] = (256, 256)
    critic_hidden_units: tuple[int, ...] = (256, 256)
    critic_action_layer: int = 0  # of the critic, at which the action enters; 0: the first
    batch_norm: bool = False  # of inputs and layers (paper)
    final_uniform: float = 0.003  # bounds of the last layers' first weights (paper)
    actor_learning_rate: float = 0.001
    critic_learning_rate: float = 0.001
    critic_weight_decay: float = 0.0  # L2
    noise: Literal["gaussian", "ou"] = "gaussian"  # ou: Ornstein-Uhlenbeck
    noise_sigma: float = 0.1  # of half the range of actions
    noise_theta: float = 0.15  # of ou (paper)
    critic_only: bool = False  # random actions, the actor stays: to see a critic learn on its own
    evaluate_every_steps: int = 10_000  # in a process of its own; 0: never
    evaluation_episodes: int = 10  # without noise
    evaluation_epsilon: float = 0.0  # always

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        super().__post_init__()
        for name, least in (
            ("steps", 1), ("num_envs", 1), ("replay_capacity", 1), ("batch", 1), ("warm_up_steps", 0),
            ("update_every_steps", 1), ("critic_action_layer", 0),
        ):  # fmt: skip
            require_whole(self, name, least)
        for name, most in (
            ("discount", 1), ("tau", 1), ("final_uniform", 1e3), ("actor_learning_rate", 1e3),
            ("critic_learning_rate", 1e3), ("critic_weight_decay", 1e3), ("noise_sigma", 1e3), ("noise_theta", 1),
            ("evaluation_epsilon", 0),
        ):  # fmt: skip
            require_number(self, name, 0, most)
        if self.critic_action_layer >= len(self.critic_hidden_units):
            raise ValueError(
                f"critic_action_layer: {self.critic_action_layer} is not one of the critic's "
                f"{len(self.critic_hidden_units)} hidden layers; 0 is the first"
            )


PRESETS: Presets = {
    # The settings of TD3's authors for their own DDPG, with the two layers of 256 that most use today.
    "fast": {},
    # Every detail of Lillicrap et al. 2016, supplement 7.
    "paper": {
        "steps": 2_500_000,
        "batch": 64,
        "warm_up_steps": 0,
        "tau": 0.001,
        "actor_hidden_units": (400, 300),
        "critic_hidden_units": (400, 300),
        "critic_action_layer": 1,
        "batch_norm": True,
        "actor_learning_rate": 0.0001,
        "critic_learning_rate": 0.001,
        "critic_weight_decay": 0.01,
        "noise": "ou",
        "noise_sigma": 0.2,
    },
}


# ---- the update rule


def targets(reward: Tensor, discount: Tensor, next_values: Tensor) -> Tensor:
    """What Q(s, a) is drawn towards.

    >>> targets(torch.tensor([1.0, 1.0]), torch.tensor([0.5, 0.0]), torch.tensor([4.0, 4.0]))
    tensor([3., 1.])
    """
    return reward + discount * next_values


class Learner:
    """The networks and what moves them.

    Args:
        config: the hyper-parameters.
        actor: its description, for :func:`fastrl.learn.networks.build`.
        critic: its description.
    """

    def __init__(self, config: Config, actor: dict[str, Any], critic: dict[str, Any]) -> None:
        self.config = config
        self.device = torch.device(config.device)

        def made(description: dict[str, Any], name: str) -> FlatNetwork:
            return FlatNetwork(build(description, [seeds.whole(config.seed, name)]).to(self.device))

        self.actor, self.critic = made(actor, "actor"), made(critic, "critic")
        self.target_actor, self.target_critic = made(actor, "actor"), made(critic, "critic")
        for target in (self.target_actor, self.target_critic):
            target.network.requires_grad_(False).eval()
        self.optimisers = {
            "actor": self._adam(self.actor, config.actor_learning_rate, 0.0),
            "critic": self._adam(self.critic, config.critic_learning_rate, config.critic_weight_decay),
        }
        self.updates = 0
        self.batch: dict[str, Tensor] = {}
        # Since the last row: critic loss, actor loss, mean, mean square, least and most of Q, updates.
        self.sums = torch.zeros(7, dtype=torch.float64, device=self.device)
        self._reset_sums()
        self.loss = torch.zeros((), device=self.device)  # of the last update's critic
        self._step = Captured(self._update_from_batch, self.device)

    def _adam(self, flat: FlatNetwork, rate: float, decay: float) -> torch.optim.Adam:
        # One vector instead of many tensors: the same numbers, a fraction of the calls.
        vector = nn.Parameter(flat.values)
        vector.grad = flat.gradient
        return torch.optim.Adam([vector], rate, weight_decay=decay, fused=True, capturable=self.device.type == "cuda")

    def actions(self, obs: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """The actor's, without noise."""
        self.actor.network.eval()
        with torch.no_grad():
            found: npt.NDArray[np.float32] = self.actor.network(torch.from_numpy(obs).to(self.device)).cpu().numpy()
        return found

    def update(self, drawn: Batch) -> None:
        """One step of critic, actor and targets."""
        given = {
            "obs": drawn.obs, "action": drawn.action, "reward": drawn.reward, "discount": drawn.discount,
            "next_obs": drawn.next_obs,
        }  # fmt: skip
        for name, array in given.items():
            fresh = torch.from_numpy(array)
            if self.device.type == "cpu":
                self.batch[name] = fresh
            elif name in self.batch:
                self.batch[name].copy_(fresh, non_blocking=True)
            else:
                self.batch[name] = fresh.to(self.device)
        self.actor.network.train()
        self.critic.network.train()
        self._step()
        self.updates += 1

    def _update_from_batch(self) -> None:
        batch = self.batch
        with torch.no_grad():
            next_values = self.target_critic.network(batch["next_obs"], self.target_actor.network(batch["next_obs"]))
            target = targets(batch["reward"], batch["discount"], next_values)
        values = self.critic.network(batch["obs"], batch["action"])
        critic_loss = F.mse_loss(values, target)
        self.critic.gradient.zero_()
        critic_loss.backward()  # type: ignore[no-untyped-call]
        self.optimisers["critic"].step()
        actor_loss = torch.zeros_like(critic_loss)
        if not self.config.critic_only:
            actor_loss = -self.critic.network(batch["obs"], self.actor.network(batch["obs"])).mean()
            self.actor.gradient.zero_()
            # Only the actor is moved by this: the critic's parameters need no gradient of it.
            actor_loss.backward(inputs=list(self.actor.network.parameters()))
            self.optimisers["actor"].step()
        with torch.no_grad():
            follow(self.target_actor, self.actor, self.config.tau)
            follow(self.target_critic, self.critic, self.config.tau)
            self.loss.copy_(critic_loss)
            self.sums[:4] += torch.stack([critic_loss, actor_loss, values.mean(), values.square().mean()]).double()
            self.sums[4] = torch.minimum(self.sums[4], values.min().double())
            self.sums[5] = torch.maximum(self.sums[5], values.max().double())
            self.sums[6] += 1

    def _reset_sums(self) -> None:
        self.sums.zero_()
        self.sums[4], self.sums[5] = float("inf"), float("-inf")

    def statistics(self) -> dict[str, float | None]:
        """Since the last call."""
        critic_loss, actor_loss, mean, square, least, most, count = self.sums.tolist()
        self._reset_sums()
        if count == 0:
            return dict.fromkeys(("critic_loss", "actor_loss", "q_mean", "q_std", "q_min", "q_max"))
        return {
            "critic_loss": critic_loss / count,
            "actor_loss": actor_loss / count,
            "q_mean": mean / count,
            "q_std": max(0.0, square / count - (mean / count) ** 2) ** 0.5,
            "q_min": least,
            "q_max": most,
            "grad_norm/actor": float(self.actor.gradient.norm()),
            "grad_norm/critic": float(self.critic.gradient.norm()),
            "param_norm": float(torch.cat([self.actor.values, self.critic.values]).norm()),
        }

    def _parts(self) -> dict[str, FlatNetwork]:
        return {
            "actor": self.actor,
            "critic": self.critic,
            "target_actor": self.target_actor,
            "target_critic": self.target_critic,
        }

    def tensors(self) -> dict[str, Tensor]:
        """All that it is."""
        found = {
            f"{part}.{name}": tensor
            for part, flat in self._parts().items()
            for name, tensor in flat.network.state_dict().items()
        }
        for name, optimiser in self.optimisers.items():
            vector = optimiser.param_groups[0]["params"][0]
            found |= {f"optimiser.{name}.{k}": v for k, v in state_tensors(optimiser, {vector: "all"}).items()}
        return {**found, "sums": self.sums}

    def load(self, tensors: dict[str, Tensor], updates: int) -> None:
        """Become what :meth:`tensors` gave."""

        def under(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        for part, flat in self._parts().items():
            flat.network.load_state_dict(under(f"{part}."))
        for name, optimiser in self.optimisers.items():
            vector = optimiser.param_groups[0]["params"][0]
            load_state_tensors(optimiser, {vector: "all"}, under(f"optimiser.{name}."))
        self.sums.copy_(tensors["sums"])
        self.updates = updates


@torch.no_grad()
def follow(target: FlatNetwork, network: FlatNetwork, tau: float) -> None:
    """Let ``target`` go ``tau`` of the way to ``network``; the statistics of normalisation too."""
    target.values.lerp_(network.values, tau)
    for theirs, ours in zip(target.network.buffers(), network.network.buffers(), strict=True):
        if theirs.is_floating_point():
            theirs.lerp_(ours, tau)
        else:
            theirs.copy_(ours)


# ---- training


def make_envs(config: Config, resumed: Resumed | None) -> RecordedGymnasium:
    """The envs, and the replay that they are recorded in."""
    if is_atari(config.env):
        raise ValueError(f"env: {config.env} is an Atari game, whose actions are buttons; fastrl dqn and a3c train it")
    envs = RecordedGymnasium(
        config.env,
        config.num_envs,
        config.replay_capacity,
        seed=seeds.whole(config.seed, "envs"),
        replay_seed=seeds.whole(config.seed, "replay"),
        resume_replay=resumed.replay_save if resumed else None,
    )
    if not isinstance(envs.action_space, spaces.Box):
        raise ValueError(f"env: {config.env} has actions {envs.action_space}; DDPG needs a Box of numbers")
    return envs


def make_noise(config: Config, dimensions: int) -> Noise:
    """What makes actions explore."""
    if config.noise == "ou":
        return OrnsteinUhlenbeck(config.num_envs, dimensions, config.noise_theta, config.noise_sigma)
    return Gaussian(config.num_envs, dimensions, config.noise_sigma)


def train(
    config: Config,
    *,
    resume_run: Path | None = None,
    without_replay: bool = False,
    accept_changed_bits: bool = False,
) -> Session:
    """Train to the end, or until told to stop."""
    config = resolved(config)
    resumed = None
    if resume_run is not None:
        resumed = resume(resume_run, without_replay=without_replay, accept_changed_bits=accept_changed_bits)
    envs = make_envs(config, resumed)
    try:
        with torch_threads(config.torch_threads or 1):
            return _train(config, envs, resumed)
    finally:
        envs.close()


def describe_networks(config: Config, envs: RecordedGymnasium) -> tuple[dict[str, Any], dict[str, Any]]:
    """Actor and critic."""
    shared = {
        "obs_shape": [1, *envs.obs_shape],
        "action_size": int(np.prod(envs.action_space.shape)),
        "batch_norm": config.batch_norm,
        "final_uniform": config.final_uniform,
    }
    actor = {**shared, "kind": "actor", "hidden_units": list(config.actor_hidden_units)}
    critic = {
        **shared,
        "kind": "critic",
        "hidden_units": list(config.critic_hidden_units),
        "action_layer": config.critic_action_layer,
    }
    return actor, critic


def updates_due(config: Config, steps: int) -> int:
    """How many updates belong to so many steps."""
    return max(0, steps - config.warm_up_steps) // config.update_every_steps


def act(
    config: Config,
    envs: RecordedGymnasium,
    learner: Learner,
    noise: Noise,
    exploration: np.random.Generator,
    steps: int,
) -> npt.NDArray[np.float32]:
    """An action in [-1, 1] for each env."""
    shape = (config.num_envs, *envs.action_space.shape)
    if steps < config.warm_up_steps or config.critic_only:
        return exploration.uniform(-1, 1, shape).astype(np.float32)
    chosen = learner.actions(envs.stacks()) + noise.draw(exploration)
    return chosen.clip(-1, 1).astype(np.float32).reshape(shape)


def _train(config: Config, envs: RecordedGymnasium, resumed: Resumed | None) -> Session:
    actor, critic = describe_networks(config, envs)
    learner = Learner(config, actor, critic)
    policy = {
        "env": config.env,
        "network": actor,
        "prefix": "actor.",
        "acts": "continuous",
        "low": envs.action_space.low.ravel().tolist(),
        "high": envs.action_space.high.ravel().tolist(),
        "evaluation_rules": None,
    }
    exploration = seeds.generator(config.seed, "exploration")
    noise = make_noise(config, actor["action_size"])
    facts = {"replay_capacity": envs.replay.capacity}
    with Session("ddpg", config, envs, resumed=resumed, policy=policy, facts=facts) as session:
        traps = Traps(nn.ModuleDict({"actor": learner.actor.network, "critic": learner.critic.network}), session.note)
        if resumed:
            learner.load(resumed.checkpoint.tensors, session.updates)
            seeds.restore_generator(exploration, resumed.state["exploration"])
            noise.load(resumed.state["noise"])
            traps.load(resumed.state["traps"])
        envs.start(resumed.env_states if resumed else None)

        def state() -> dict[str, Any]:
            traps.check(learner.updates, learner.loss)  # no checkpoint is made of lost weights
            return {
                "exploration": seeds.generator_state(exploration),
                "noise": noise.state(),
                "traps": traps.state(),
            }

        while session.running():
            boundary = envs.replay.boundary()
            with session.clock("act"):
                actions = act(config, envs, learner, noise, exploration, session.steps)
            envs.send(actions)
            due = updates_due(config, session.steps + envs.num_envs)
            while session.updates < due:
                if not any(boundary):
                    session.updates += 1  # nothing to learn from yet: the first update has no transition
                    continue
                with session.clock("sample"):
                    drawn = envs.replay.sample(config.batch, 1, config.discount, boundary=boundary)
                with session.clock("learn"):
                    learner.update(drawn)
                    traps.after_update(learner.updates, learner.loss)
                session.updates += 1
            with session.clock("step envs"):
                games = envs.receive()
            noise.ended([game.env for game in games])
            session.stepped(envs.num_envs, games)
            if session.crossed(config.log_every_steps, envs.num_envs):
                session.log({**learner.statistics(), "noise": config.noise_sigma})
            if session.crossed(config.evaluate_every_steps, envs.num_envs) and session.steps < config.steps:
                session.evaluate(learner.tensors())
            if session.checkpoint_due(envs.num_envs):
                session.checkpoint(learner.tensors(), state())
        session.finish(learner.tensors(), state())
    return session


TRAINER = Trainer("ddpg", Config, PRESETS, train, lambda env: "fast")


def main() -> None:
    """The command."""
    command_line.main(TRAINER)


if __name__ == "__main__":
    run(main)
