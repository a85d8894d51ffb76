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
- Updates that are due are made before the envs take their step, from what was there before it: the first one comes a
  round of steps after the warm-up.
- Where the paper leaves it open: the actor's last layer is not normalised; the critic's L2 is on weights, not on biases
  nor on what normalisation scales by; targets normalise by running means which follow as their weights do.
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
from fastrl.learn.acting import Answers
from fastrl.learn.feeding import bring
from fastrl.learn.flat import FlatNetwork
from fastrl.learn.graphs import Captured
from fastrl.learn.networks import build, under
from fastrl.learn.noise import Gaussian, Noise, OrnsteinUhlenbeck
from fastrl.learn.optimisers import FlatAdam
from fastrl.learn.passes import pass_of
from fastrl.runs import command_line, seeds
from fastrl.runs.command_line import Presets, Trainer
from fastrl.runs.norms import gradient_norms, histograms_of, parameter_norm
from fastrl.runs.opening import envs_seed, opened, refill
from fastrl.runs.options import (
    RunOptions,
    require_layers,
    require_number,
    require_room_for_a_batch,
    require_whole,
    resolved,
)
from fastrl.runs.session import Resumed, Session
from fastrl.runs.traps import Traps
from fastrl.runs.trial import small_replay

# Every so many updates are looked at for the log, and at most so many of these are kept until it is written.
_LOOK_EVERY_UPDATES = 10
_MOST_LOOKS = 2_000


@dataclass(frozen=True, kw_only=True)
class Config(RunOptions):
    """Every hyper-parameter. The defaults are those of preset `fast`."""

    preset: str = "fast"  # where the values come from that are not given
    env: str = "HalfCheetah-v5"  # an id of Gymnasium with a Box of actions
    steps: int = 1_000_000  # of all envs together
    precision: Literal["fp32"] = "fp32"  # bf16 gains nothing with networks this small
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
    batch_norm: bool = False  # of observations and hidden layers, the critic's up to the action (paper: yes)
    final_uniform: float = 0.003  # bounds of the last layers' first weights (paper)
    actor_learning_rate: float = 0.001
    critic_learning_rate: float = 0.001
    critic_weight_decay: float = 0.0  # L2 of the critic's weights, not of its biases (paper: 0.01)
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
        require_room_for_a_batch(self)
        for name, most in (
            ("discount", 1), ("tau", 1), ("final_uniform", 1e3), ("actor_learning_rate", 1e3),
            ("critic_learning_rate", 1e3), ("critic_weight_decay", 1e3), ("noise_sigma", 1e3), ("noise_theta", 1),
            ("evaluation_epsilon", 0),
        ):  # fmt: skip
            require_number(self, name, 0, most)
        for name in ("actor_hidden_units", "critic_hidden_units"):
            require_layers(self, name)
        if self.precision != "fp32":
            raise ValueError(f"precision: {self.precision!r} gains nothing with networks this small; ddpg has fp32")
        if self.batch_norm and self.batch < 2:
            raise ValueError(f"batch: {self.batch} has no spread to normalise by; give at least 2, or no --batch-norm")
        if self.critic_action_layer >= len(self.critic_hidden_units):
            raise ValueError(
                f"critic_action_layer: {self.critic_action_layer} is not one of the critic's "
                f"{len(self.critic_hidden_units)} hidden layers; 0 is the first"
            )


PRESETS: Presets = {
    # TD3's authors' own DDPG, with the two layers of 256 and the batch of 256 that they, and most, use today.
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


def critic_slope(values: Tensor, target: Tensor) -> Tensor:
    """Of the mean of (Q(s, a) - y)^2, for each Q(s, a)."""
    return (values - target).mul_(2 / len(values))


def actor_slope(values: Tensor) -> Tensor:
    """Of minus the mean of Q(s, m(s)), which the actor lowers, for each Q(s, m(s))."""
    return torch.full_like(values, -1 / len(values))


@torch.no_grad()
def follow(targets: list[Tensor], networks: list[Tensor], tau: float) -> None:
    """Let each tensor of ``targets`` go ``tau`` of the way to its own of ``networks``."""
    torch._foreach_lerp_(targets, networks, tau)


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

        # Each network is one vector of numbers, which one call moves. Targets begin as what they follow.
        self.actor, self.critic = made(actor, "actor"), made(critic, "critic")
        self.target_actor, self.target_critic = made(actor, "actor"), made(critic, "critic")
        for target in (self.target_actor, self.target_critic):
            target.network.requires_grad_(False).eval()
        self._targets = _numbers(self.target_actor) + _numbers(self.target_critic)
        self._followed = _numbers(self.actor) + _numbers(self.critic)
        self.optimisers = {
            "actor": FlatAdam(self.actor.values, self.actor.gradient, config.actor_learning_rate),
            "critic": FlatAdam(self.critic.values, self.critic.gradient, config.critic_learning_rate),
        }
        # Of each of the critic's numbers: its share in the L2 penalty's slope.
        self._decay = torch.cat(
            [
                torch.full((p.numel(),), config.critic_weight_decay * (p.ndim > 1))
                for p in self.critic.network.parameters()
            ]
        ).to(self.device)
        self.actor_pass, self.critic_pass = pass_of(self.actor), pass_of(self.critic)
        self.target_actor_pass, self.target_critic_pass = pass_of(self.target_actor), pass_of(self.target_critic)
        self.networks = nn.ModuleDict({"actor": self.actor.network, "critic": self.critic.network})
        self.updates = 0
        self.batch: dict[str, Tensor] = {}
        # Of the last update: the critic's loss; Q(s, a), y and Q(s, m(s)) of each transition.
        self.loss = torch.zeros((), device=self.device)
        self.seen = (torch.zeros(config.batch, device=self.device),) * 3
        # In one piece: small ones between an update's large temporary ones would keep memory from being used again.
        self._looks = torch.empty((_MOST_LOOKS, 3 * config.batch), device=self.device)
        self._look_count = 0  # since the last row of the log
        self._step = Captured(self._update_from_batch, self.device)
        self._answers = Answers(self.actor.network, self.device)

    def actions(self, obs: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """The actor's, without noise."""
        self._normalise_by_batch(False)
        return self._answers(obs)

    def transfer(self, drawn: Batch) -> None:
        """Bring a batch to where :meth:`learn` learns from."""
        for name in ("obs", "action", "reward", "discount", "next_obs"):
            fresh = torch.from_numpy(getattr(drawn, name))
            if self.device.type == "cpu":
                self.batch[name] = fresh
            else:
                bring(self.batch, name, fresh, self.device)

    def update(self, drawn: Batch) -> None:
        """One step of critic, actor and targets, from a batch that is on the host."""
        self.transfer(drawn)
        self.learn()

    def learn(self) -> None:
        """One step of critic, actor and targets, from the batch that was brought last."""
        self._normalise_by_batch(True)
        self._step()
        self.updates += 1
        if self.updates % _LOOK_EVERY_UPDATES == 0:
            torch.cat(self.seen, out=self._looks[self._look_count % _MOST_LOOKS])
            self._look_count += 1

    @torch.no_grad()
    def _update_from_batch(self) -> None:
        obs, action, next_obs = self.batch["obs"], self._taken(), self.batch["next_obs"]

        next_values = self.target_critic_pass.look(next_obs, self.target_actor_pass.look(next_obs))
        target = targets(self.batch["reward"], self.batch["discount"], next_values)
        values = self.critic_pass.forward(obs, action)
        self.critic_pass.backward(critic_slope(values, target))
        if self.config.critic_weight_decay:
            self.critic.gradient.addcmul_(self._decay, self.critic.values)
        self.optimisers["critic"].step()

        raised = torch.zeros_like(values)  # Q(s, m(s))
        if not self.config.critic_only:
            raised = self.critic_pass.forward(obs, self.actor_pass.forward(obs))
            # dQ/da through the critic as it is, then da/dw through the actor.
            self.actor_pass.backward(self.critic_pass.slope_of_action(actor_slope(raised)))
            self.optimisers["actor"].step()

        follow(self._targets, self._followed, self.config.tau)
        self.loss, self.seen = F.mse_loss(values, target), (values, target, raised)

    def _normalise_by_batch(self, on: bool) -> None:
        """By the batch while learning, whose means then follow; by the means of many batches while acting."""
        if self.config.batch_norm:
            self.networks.train(on)

    def look(self) -> None:
        """The networks that learn, on the last batch, for who watches their layers."""
        obs = self.batch["obs"]
        # Whoever watches takes back what a look does to running means, of networks that learn.
        action = self._taken() if self.config.critic_only else self.actor.network(obs)
        self.critic.network(obs, action)

    def _taken(self) -> Tensor:
        """The last batch's actions, a row each."""
        action = self.batch["action"]
        return action.reshape(len(action), -1)

    def statistics(self) -> dict[str, float | None]:
        """Of every tenth update since the last call, the newest two thousand of them."""
        looks = self._looked().double().cpu().numpy().reshape(-1, 3, self.config.batch)
        self._look_count = 0
        values, target, raised = looks.swapaxes(0, 1)
        actor_loss = -raised[: 0 if self.config.critic_only else None].mean(1)  # an actor that stays has none
        row = {
            **spread("critic_loss", np.square(values - target).mean(1)),
            **spread("actor_loss", actor_loss),
            **spread("q", values),
        }
        if self.updates:
            row |= {f"grad_norm/{layer}": size for layer, size in gradient_norms(self.networks).items()}
        return {**row, "param_norm": parameter_norm(self.networks)}

    def _parts(self) -> dict[str, nn.Module]:
        return {
            "actor": self.actor.network,
            "critic": self.critic.network,
            "target_actor": self.target_actor.network,
            "target_critic": self.target_critic.network,
        }

    def tensors(self) -> dict[str, Tensor]:
        """All that it is."""
        found = {
            f"{part}.{name}": tensor
            for part, network in self._parts().items()
            for name, tensor in network.state_dict().items()
        }
        for name, optimiser in self.optimisers.items():
            found |= {f"optimiser.{name}.{key}": tensor for key, tensor in optimiser.tensors().items()}
        return {**found, "looks": self._looked()}

    def _looked(self) -> Tensor:
        """The newest ones, oldest first."""
        if self._look_count <= _MOST_LOOKS:
            return self._looks[: self._look_count].clone()
        return self._looks.roll(-(self._look_count % _MOST_LOOKS), 0)

    def load(self, tensors: dict[str, Tensor], updates: int) -> None:
        """Become what :meth:`tensors` gave."""
        for part, network in self._parts().items():
            network.load_state_dict(under(f"{part}.", tensors))
        for name, optimiser in self.optimisers.items():
            optimiser.load(under(f"optimiser.{name}.", tensors))
        self._look_count = len(tensors["looks"])
        self._looks[: self._look_count] = tensors["looks"].to(self.device)
        self.updates = updates


def _numbers(flat: FlatNetwork) -> list[Tensor]:
    """Parameters, and the running means of normalisation."""
    return [flat.values, *(buffer for buffer in flat.network.buffers() if buffer.is_floating_point())]


def spread(name: str, values: npt.NDArray[np.float64]) -> dict[str, float | None]:
    """What is told of many numbers.

    >>> spread("q", np.array([1.0, 3.0]))
    {'q_mean': 2.0, 'q_std': 1.0, 'q_min': 1.0, 'q_max': 3.0}
    """
    if not values.size:
        return dict.fromkeys((f"{name}_mean", f"{name}_std", f"{name}_min", f"{name}_max"))
    return {
        f"{name}_mean": float(values.mean()),
        f"{name}_std": float(values.std()),
        f"{name}_min": float(values.min()),
        f"{name}_max": float(values.max()),
    }


# ---- training


def make_envs(config: Config, resumed: Resumed | None) -> RecordedGymnasium:
    """The envs, and the replay that they are recorded in."""
    if is_atari(config.env):
        raise ValueError(f"env: {config.env} is an Atari game, whose actions are buttons; fastrl dqn and a3c train it")
    return RecordedGymnasium(
        config.env,
        config.num_envs,
        config.replay_capacity,
        threads=config.threads,
        seed=envs_seed(config, resumed),
        replay_seed=seeds.whole(config.seed, "replay"),
        resume_replay=resumed.replay_save if resumed else None,
        refusal=refusal,
    )


def refusal(actions: spaces.Space[Any]) -> str | None:
    """What DDPG says of actions that it cannot learn; None if it can."""
    if isinstance(actions, spaces.Box) and actions.is_bounded() and np.prod(actions.shape):
        return None
    needed = "DDPG needs a Box of one or more numbers, each with bounds"
    if isinstance(actions, spaces.Discrete):
        return f"{needed}; fastrl dqn, a3c and async_q choose among a number of actions"
    return (
        f"{needed}, which gymnasium.wrappers.TransformAction can give the env (register the wrapped env under an id of "
        f"its own)"
    )


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
    with opened(config, make_envs, resume_run, without_replay, accept_changed_bits) as (envs, resumed):
        return _train(config, envs, resumed)


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
    """How many updates belong to so many steps. In the first round of steps there is nothing yet to learn from."""
    return max(0, steps - max(config.warm_up_steps, config.num_envs)) // config.update_every_steps


def act(
    config: Config,
    envs: RecordedGymnasium,
    learner: Learner,
    noise: Noise,
    exploration: np.random.Generator,
    steps: int,
    traps: Traps | None = None,
) -> npt.NDArray[np.float32]:
    """An action in [-1, 1] for each env."""
    shape = (config.num_envs, *envs.action_space.shape)
    if steps < config.warm_up_steps or config.critic_only:
        return exploration.uniform(-1, 1, shape).astype(np.float32)
    chosen = learner.actions(envs.stacks())
    if traps is not None:
        traps.saw_actions(chosen)
    return (chosen + noise.draw(exploration)).clip(-1, 1).astype(np.float32).reshape(shape)


def _train(config: Config, envs: RecordedGymnasium, resumed: Resumed | None) -> Session:
    actor, critic = describe_networks(config, envs)
    learner = Learner(config, actor, critic)
    policy = {
        "env": config.env,
        "network": actor,
        "prefix": "actor.",
        "acts": "continuous",
        "low": envs.action_space.low.tolist(),
        "high": envs.action_space.high.tolist(),
        "dtype": str(envs.action_space.dtype),
        "evaluation_rules": None,
    }
    exploration = seeds.generator(config.seed, "exploration")
    noise = make_noise(config, actor["action_size"])
    facts = {"replay_capacity": envs.replay.capacity}
    envs.replay.require(config.batch)
    if resumed:
        learner.load(resumed.checkpoint.tensors, resumed.updates)
    with Session("ddpg", config, envs, resumed=resumed, policy=policy, facts=facts) as session:
        # An actor that is to stay as it is has no gradient, which is no failure.
        traps = Traps(learner.critic.network if config.critic_only else learner.networks, session.note)
        if config.critic_only and config.evaluate_every_steps:
            session.note(
                "critic_only: every evaluation is of the actor as it began, and the best of them is so by chance; "
                "--evaluate-every-steps 0 leaves them out"
            )
        if resumed:
            seeds.restore_generator(exploration, resumed.state["exploration"])
            noise.load(resumed.state["noise"])
            traps.load(resumed.state["traps"])
            if resumed.env_states is None:
                noise.ended(list(range(config.num_envs)))  # the episodes that were under way begin again
        envs.start(resumed.env_states if resumed else None)
        if resumed and resumed.replay_save is None:

            def play() -> None:
                envs.send(act(config, envs, learner, noise, exploration, session.steps))
                noise.ended([game.env for game in envs.receive()])

            refill(config, envs.replay, session, play)
        buffer = envs.replay.buffer(config.batch)

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
                actions = act(config, envs, learner, noise, exploration, session.steps, traps)
            envs.send(actions)
            due = updates_due(config, session.steps + envs.num_envs)
            while session.updates < due:
                with session.clock("sample"):
                    drawn = envs.replay.sample(config.batch, 1, config.discount, buffer, boundary=boundary)
                with session.clock("transfer"):
                    learner.transfer(drawn)
                with session.clock("learn"):
                    learner.learn()
                    traps.after_update(learner.updates, learner.loss)
                session.updates += 1
            with session.clock("step envs"):
                games = envs.receive()
            noise.ended([game.env for game in games])
            session.stepped(envs.num_envs, games)
            if session.crossed(config.log_every_steps, envs.num_envs):
                if learner.batch:
                    traps.inspect(learner.look)
                session.log(
                    {
                        **session.games.spread(),
                        **learner.statistics(),
                        "noise_sigma": config.noise_sigma,
                        "learning_rate/actor": config.actor_learning_rate,
                        "learning_rate/critic": config.critic_learning_rate,
                    },
                    histograms_of(learner.networks) if config.histograms else None,
                )
            if session.evaluation_due(envs.num_envs):
                session.evaluate(learner.tensors())
            if session.checkpoint_due(envs.num_envs):
                session.checkpoint(learner.tensors(), state())
        session.finish(learner.tensors(), state())
    return session


TRAINER = Trainer("ddpg", Config, PRESETS, train, atari_preset="fast", other_preset="fast", tried_as=small_replay)


def main() -> None:
    """The command."""
    command_line.main(TRAINER)


if __name__ == "__main__":
    run(main)
