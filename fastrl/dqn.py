"""Deep Q-networks (Mnih et al. 2015, "Human-level control through deep reinforcement learning").

With Q the online network, T the target network, and a transition (s, a, r, s', d) drawn from the replay, where d is the
discount of s' (gamma, 0 after a true end):

    y = r + d max_a' T(s', a')               (double: T(s', argmax_a' Q(s', a')); n steps: r is their discounted sum)
    minimise H(Q(s, a) - y),                 H(x) = x^2/2 up to |x| = 1, linear beyond: its slope is the clipped error

once every `update_every_steps` steps; T becomes Q every `target_every_steps` steps; actions are epsilon-greedy.

Differences from the paper, each with its reason:
- `num_envs` games are played side by side (the paper: one), so that emulators and network keep all cores busy. The
  number of updates to a step is exactly the paper's. Updates that are due are made while the games take their step, so
  an action was chosen by the network of up to `num_envs` steps ago.
- Where DeepMind's published code and its table differ, `nature` follows the code: the target network is refreshed every
  10,000 steps (the table: updates), gradients are summed over the batch, epsilon falls after the warm-up.
- The first convolution has no padding (the code pads by 1; the feature map is 20 x 20 either way), as in the table.
- The best network is the one that evaluates best over 30 games (the paper: over 125,000 steps).
"""

from __future__ import annotations

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
from fastrl.engine.protocol import DEFAULT_STACK
from fastrl.engine.recorded_envs import RecordedAtari, RecordedEnvs, RecordedGymnasium, evaluation_protocol, is_atari
from fastrl.learn.acting import Answers
from fastrl.learn.feeding import make_feeder
from fastrl.learn.flat import FlatNetwork, clip_norm
from fastrl.learn.graphs import Captured
from fastrl.learn.networks import build, described, named_factory, require_answer, under
from fastrl.learn.optimisers import FlatAdam, FlatCentredRMSProp, FlatOptimiser
from fastrl.learn.passes import pass_of
from fastrl.learn.schedules import linear
from fastrl.runs import command_line, seeds
from fastrl.runs.actor_processes import ActorProcesses
from fastrl.runs.command_line import Presets, Trainer
from fastrl.runs.norms import gradient_norms, histograms_of, parameter_norm
from fastrl.runs.opening import envs_seed, opened, refill, refusal_of_choices
from fastrl.runs.options import (
    AtariReward,
    RunOptions,
    require_atari_reward,
    require_layers,
    require_number,
    require_room_for_a_batch,
    require_whole,
    resolved,
)
from fastrl.runs.session import Resumed, Session
from fastrl.runs.traps import Traps
from fastrl.runs.trial import small_replay


@dataclass(frozen=True, kw_only=True)
class Config(RunOptions):
    """Every hyper-parameter. The defaults are those of preset `nature`."""

    preset: str = "nature"  # where the values come from that are not given
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # of the networks' products; auto: bf16 where a CPU gains by it
    protocol: str = "nature"  # the rules of an Atari game, see `fastrl protocols`
    reward: AtariReward | None = None  # of an Atari game; sign and clipped agree; default: the protocol's
    steps: int = 50_000_000  # of all games together; 50M steps are 200M frames (the paper's text)
    num_envs: int = 16  # games side by side (the paper: 1)
    replay_capacity: int | Literal["auto"] = 1_000_000  # transitions (table: "replay memory size")
    actor_processes: int = 0  # that emulate in the learner's stead; 0: its own threads do
    replay_device: Literal["auto", "cpu", "cuda"] = "auto"  # cuda: observations on the GPU too; auto: if it has room
    batch: int = 32  # transitions an update (table)
    warm_up_steps: int = 50_000  # at random before the first update (table: "replay start size")
    update_every_steps: int = 4  # steps to an update (table: "update frequency")
    target_every_steps: int = 10_000  # steps from one refresh of the target network to the next (published code)
    discount: float = 0.99  # gamma (table)
    n_step: int = 1  # steps that a return sums before it bootstraps
    network: str = "nature"  # nature, a3c, mlp, or module:function of your own
    hidden_units: tuple[int, ...] = (120, 84)  # of an mlp (CleanRL's dqn.py)
    centred: bool = False  # each stack of frames less its mean: first filters live on. A network of your own sees bytes
    double: bool = False  # double Q-learning (van Hasselt et al. 2016)
    dueling: bool = False  # a value and advantages (Wang et al. 2016)
    prioritised: bool = False  # replay by priority (Schaul et al. 2016)
    priority_alpha: float = 0.6  # their exponent (Schaul et al., proportional)
    priority_beta: float = 0.4  # of the importance weights at first (Schaul et al.)
    priority_beta_steps: int = 50_000_000  # until it is 1 (Schaul et al.: the whole training)
    loss: Literal["huber", "mse"] = "huber"  # huber: the slope is the error clipped to [-1, 1] (text)
    gradient: Literal["sum", "mean"] = "sum"  # over the batch (published code: sum)
    optimiser: Literal["rmsprop", "adam"] = "rmsprop"  # rmsprop: centred, as published
    learning_rate: float = 0.00025  # (table)
    rmsprop_decay: float = 0.95  # of both moments (table: "gradient momentum", "squared gradient momentum")
    optimiser_epsilon: float = 0.01  # under the root for rmsprop (table: "min squared gradient")
    max_gradient_norm: float = 0.0  # 0: not clipped
    epsilon_first: float = 1.0  # (table)
    epsilon_last: float = 0.1  # (table)
    epsilon_steps: int = 1_000_000  # that it falls over (table)
    epsilon_begins_after_warm_up: bool = True  # (published code)

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        super().__post_init__()
        for name, least in (
            ("steps", 1), ("num_envs", 1), ("actor_processes", 0), ("batch", 1), ("warm_up_steps", 0),
            ("update_every_steps", 1), ("target_every_steps", 1), ("n_step", 1), ("epsilon_steps", 0),
            ("priority_beta_steps", 0),
        ):  # fmt: skip
            require_whole(self, name, least)
        if self.replay_capacity != "auto":
            require_whole(self, "replay_capacity", 1)
            require_room_for_a_batch(self)
        for name, most in (
            ("discount", 1), ("priority_alpha", 1), ("priority_beta", 1), ("learning_rate", 1e3),
            ("rmsprop_decay", 1), ("max_gradient_norm", math.inf),
            ("epsilon_first", 1), ("epsilon_last", 1),
        ):  # fmt: skip
            require_number(self, name, 0, most)
        # With 0 a number whose slope was always 0 would become 0/0.
        require_number(self, "optimiser_epsilon", 1e-30, 1e3)
        require_layers(self, "hidden_units")
        if self.target_every_steps % self.update_every_steps:
            raise ValueError(
                f"target_every_steps: {self.target_every_steps} is no multiple of update_every_steps "
                f"{self.update_every_steps}; the target network is refreshed between updates"
            )

    def unrepeatable(self) -> str | None:
        """Why equal seeds do not give equal bits with these options; None: they do."""
        if self.actor_processes:
            return "with --actor-processes the death of one changes a run"
        return None


PRESETS: Presets = {
    # Mnih et al. 2015, Extended Data Table 1, and DeepMind's published code where they differ (see above).
    "nature": {},
    # The task as in protocol sb3, with what makes a single game learn in an hour on two cores; no single paper. n steps
    # and the optimiser's epsilon as in Rainbow (Hessel et al. 2018), A3C's network (twice the updates a second),
    # exploration that ends early. Centred, since at this rate 1 to 4 of 16 filters of Pong's first layer outlived the
    # first 6,000 updates (five runs, of which one learned nothing at all); centred, all 16 do.
    "fast": {
        "protocol": "sb3",
        "steps": 10_000_000,
        "num_envs": 8,
        "torch_threads": 1,  # of a network this small; the games take the other cores, or other seeds do
        "network": "a3c",
        "centred": True,
        "replay_capacity": 200_000,
        "warm_up_steps": 10_000,
        "target_every_steps": 2_000,
        "n_step": 3,
        "optimiser": "adam",
        "gradient": "mean",
        "learning_rate": 0.00025,
        "optimiser_epsilon": 0.00015,
        "max_gradient_norm": 10.0,
        "epsilon_last": 0.01,
        "epsilon_steps": 100_000,
        "evaluate_every_steps": 200_000,
        "evaluation_epsilon": 0.01,
    },
    # Stable-Baselines3's DQN with the Atari values of its zoo.
    "sb3": {
        "protocol": "sb3",
        "steps": 10_000_000,
        "num_envs": 1,
        "replay_capacity": 100_000,
        "warm_up_steps": 100_000,
        "target_every_steps": 1_000,
        "optimiser": "adam",
        "gradient": "mean",
        "learning_rate": 0.0001,
        "optimiser_epsilon": 1e-8,
        "max_gradient_norm": 10.0,
        "epsilon_last": 0.01,
        "epsilon_begins_after_warm_up": False,
    },
    # CleanRL's dqn_atari.py.
    "cleanrl": {
        "protocol": "cleanrl",
        "steps": 10_000_000,
        "num_envs": 1,
        "warm_up_steps": 80_000,
        "target_every_steps": 1_000,
        "loss": "mse",
        "optimiser": "adam",
        "gradient": "mean",
        "learning_rate": 0.0001,
        "optimiser_epsilon": 1e-8,
        "epsilon_last": 0.01,
        "epsilon_begins_after_warm_up": False,
    },
    # For a handful of numbers as observation (CartPole-v1). Near Stable-Baselines3's zoo (network, batch, target,
    # exploration), but with returns of several steps and a smaller rate, which learn it in half the steps here.
    "classic": {
        "env": "CartPole-v1",
        "steps": 25_000,
        "num_envs": 1,
        "replay_capacity": 100_000,
        "batch": 64,
        "warm_up_steps": 1_000,
        "update_every_steps": 2,
        "target_every_steps": 256,
        "n_step": 5,
        "torch_threads": 1,
        "network": "mlp",
        "hidden_units": (256, 256),
        "optimiser": "adam",
        "gradient": "mean",
        "learning_rate": 0.001,
        "optimiser_epsilon": 1e-8,
        "max_gradient_norm": 10.0,
        "epsilon_last": 0.04,
        "epsilon_steps": 8_000,
        "epsilon_begins_after_warm_up": False,
        "evaluate_every_steps": 5_000,
        "evaluation_epsilon": 0.0,
        "log_every_steps": 1_000,
    },
}


# Added to every error, so that none is never drawn again (Schaul et al. 2016: "a small positive constant").
PRIORITY_OF_NO_ERROR = 1e-6

# ---- the update rule


def targets(reward: Tensor, discount: Tensor, next_values: Tensor, next_choice: Tensor | None = None) -> Tensor:
    """What Q(s, a) is drawn towards.

    Args:
        reward: (batch,), of n steps.
        discount: (batch,), of the state after them; 0 where there is none.
        next_values: (batch, actions), of the target network in that state.
        next_choice: (batch, actions), whose best action counts; None: the target network's own.

    >>> targets(torch.tensor([1.0]), torch.tensor([0.5]), torch.tensor([[2.0, 4.0]]))
    tensor([3.])
    """
    best = (next_values if next_choice is None else next_choice).argmax(1, keepdim=True)
    return reward + discount * next_values.gather(1, best).squeeze(1)


def td_loss(config: Config, values: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """The loss of each Q(s, a), weighted, over the batch."""
    loss_of = F.huber_loss if config.loss == "huber" else F.mse_loss
    weighted = weight * loss_of(values, target, reduction="none")
    return weighted.sum() if config.gradient == "sum" else weighted.mean()


class Learner:
    """The networks and what moves them.

    Args:
        config: the hyper-parameters.
        network: its description, for :func:`fastrl.learn.networks.build`.
    """

    def __init__(self, config: Config, network: dict[str, Any]) -> None:
        self.config = config
        self.device = torch.device(config.device)
        entropy = [seeds.whole(config.seed, "network")]
        factory = named_factory(config.network)
        # Each network is one vector of numbers, which one call moves.
        self.flat, followed = (FlatNetwork(build(network, entropy, factory).to(self.device)) for _ in range(2))
        self.online, self.target = self.flat.network, followed.network
        self.target.requires_grad_(False)
        self._target_values = followed.values
        self._own = own = factory is not None
        self.online_pass, self.target_pass = (
            pass_of(flat, config.precision, own=own) for flat in (self.flat, followed)
        )
        numbers = (self.flat.values, self.flat.gradient, config.learning_rate)
        self.optimiser: FlatOptimiser
        if config.optimiser == "adam":
            self.optimiser = FlatAdam(*numbers, config.optimiser_epsilon)
        else:
            self.optimiser = FlatCentredRMSProp(*numbers, config.rmsprop_decay, config.optimiser_epsilon)
        self.updates = 0
        # Sums since the last row: loss, mean Q, norm of the gradient, updates.
        self.sums = torch.zeros(4, dtype=torch.float64, device=self.device)
        self.batch: dict[str, Tensor] = {}
        self.errors = torch.zeros(config.batch, device=self.device)
        self.loss = torch.zeros((), device=self.device)  # of the last update
        self._step = Captured(self._update_from_batch, self.device)
        self._answers = Answers(self._values, self.device)

    def values(self, obs: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Q of each action in each observation."""
        return self._answers(obs)

    def _values(self, obs: Tensor) -> Tensor:
        if self._own:  # may normalise by its batch while it learns; what an env is shown is no such batch
            self.online.eval()
        values = self.online_pass.look(obs)
        if self._own:
            self.online.train()
        return values

    def update(self, batch: dict[str, Tensor]) -> None:
        """One step of the optimiser, and the target network's refresh when it is due.

        Args:
            batch: on a GPU the same tensors every time, since the update is captured with them.
        """
        self.batch = batch
        self._step()
        self.updates += 1
        if self.updates % (self.config.target_every_steps // self.config.update_every_steps) == 0:
            self.refresh_target()

    @torch.no_grad()
    def _update_from_batch(self) -> None:
        batch = self.batch
        next_values = self.target_pass.look(batch["next_obs"])
        next_choice = self.online_pass.look(batch["next_obs"]) if self.config.double else None
        target = targets(batch["reward"], batch["discount"], next_values, next_choice)
        all_values = self.online_pass.forward(batch["obs"])
        with torch.enable_grad():
            all_values.requires_grad_()
            values = all_values.gather(1, batch["action"][:, None]).squeeze(1)
            loss = td_loss(self.config, values, target, batch["weight"])
        self.online_pass.backward(*torch.autograd.grad(loss, all_values))
        norm = clip_norm(self.flat.gradient, self.config.max_gradient_norm)
        self.optimiser.step()
        self.online_pass.weights_changed()
        self.errors.copy_((values - target).abs())
        self.loss.copy_(loss)
        self.sums += torch.stack([loss, values.mean(), norm, torch.ones_like(norm)]).double()

    def refresh_target(self) -> None:
        """The target network becomes the online one."""
        self._target_values.copy_(self.flat.values)
        self.target_pass.weights_changed()

    def statistics(self) -> dict[str, float | None]:
        """Means since the last call."""
        loss, q, norm, count = self.sums.tolist()
        self.sums.zero_()
        if count == 0:
            return dict.fromkeys(("loss", "q_mean", "grad_norm", "param_norm"))
        return {
            "loss": loss / count,
            "q_mean": q / count,
            "grad_norm": norm / count,
            "param_norm": parameter_norm(self.online),
            **{f"grad_norm/{layer}": size for layer, size in gradient_norms(self.online).items()},
        }

    def tensors(self) -> dict[str, Tensor]:
        """All that it is."""
        return {
            **{f"online.{name}": tensor for name, tensor in self.online.state_dict().items()},
            **{f"target.{name}": tensor for name, tensor in self.target.state_dict().items()},
            **{f"optimiser.{name}": tensor for name, tensor in self.optimiser.tensors().items()},
            "sums": self.sums,
        }

    def load(self, tensors: dict[str, Tensor], updates: int) -> None:
        """Become what :meth:`tensors` gave."""
        self.online.load_state_dict(under("online.", tensors))
        self.target.load_state_dict(under("target.", tensors))
        self.optimiser.load(under("optimiser.", tensors))
        for changed in (self.online_pass, self.target_pass):
            changed.weights_changed()
        self.sums.copy_(tensors["sums"])
        self.updates = updates


# ---- training


def make_envs(config: Config, resumed: Resumed | None) -> RecordedEnvs | ActorProcesses:
    """The games, and the replay that they are recorded in."""
    require_atari_reward(config)
    if config.actor_processes:
        return make_actor_processes(config, resumed)
    shared: dict[str, Any] = {
        "seed": envs_seed(config, resumed),
        "replay_seed": seeds.whole(config.seed, "replay"),
        "alpha": config.priority_alpha if config.prioritised else None,
        "resume_replay": resumed.replay_save if resumed else None,
    }
    if is_atari(config.env):
        return RecordedAtari(
            config.env,
            config.num_envs,
            config.replay_capacity,
            protocol=config.protocol,
            protocol_changes={"reward": config.reward},
            threads=config.threads,
            **shared,
        )
    return RecordedGymnasium(config.env, config.num_envs, config.replay_capacity, refusal=refusal_of_choices, **shared)


def make_actor_processes(config: Config, resumed: Resumed | None) -> ActorProcesses:
    """The games in processes of their own."""
    if config.deterministic:
        raise ValueError(f"actor_processes: {config.unrepeatable()}, so --deterministic refuses them")
    if not is_atari(config.env):
        raise ValueError(f"actor_processes: are for Atari games, {config.env} is none")
    if resumed is not None and resumed.replay_save is not None:
        raise ValueError("actor_processes: a run that has them goes on by --resume-without-replay")
    return ActorProcesses(
        config.env,
        config.num_envs,
        config.actor_processes,
        config.replay_capacity,
        protocol=config.protocol,
        reward=config.reward,
        threads=config.threads,
        seed=envs_seed(config, resumed),
        replay_seed=seeds.whole(config.seed, "replay"),
        alpha=config.priority_alpha if config.prioritised else None,
    )


def epsilon_at(config: Config, steps: int) -> float:
    """How often an action is random."""
    begin = config.warm_up_steps if config.epsilon_begins_after_warm_up else 0
    return linear(steps, config.epsilon_first, config.epsilon_last, config.epsilon_steps, begin)


def updates_due(config: Config, steps: int) -> int:
    """How many updates belong to so many steps."""
    return max(0, steps - config.warm_up_steps) // config.update_every_steps


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


def describe_network(config: Config, envs: RecordedEnvs | ActorProcesses) -> dict[str, Any]:
    """What to build."""
    stack = DEFAULT_STACK if envs.kind == "atari" else 1
    return described(
        "q",
        config.network,
        (stack, *envs.obs_shape),
        config.hidden_units,
        envs.num_actions,
        dueling=config.dueling,
        centred=config.centred,
    )


def act(
    envs: RecordedEnvs | ActorProcesses,
    learner: Learner,
    epsilon: float,
    exploration: np.random.Generator,
    traps: Traps | None = None,
) -> npt.NDArray[np.int64]:
    """An action for each env. As many random numbers are drawn whatever comes out."""
    random = exploration.random(envs.num_envs) < epsilon
    actions = exploration.integers(envs.num_actions, size=envs.num_envs)
    if random.all():
        return actions
    greedy = learner.values(envs.stacks()).argmax(1)
    if traps is not None:
        traps.saw_actions(greedy)
    return np.where(random, actions, greedy)


def _train(config: Config, envs: RecordedEnvs | ActorProcesses, resumed: Resumed | None) -> Session:
    network = describe_network(config, envs)
    learner = Learner(config, network)
    atari = envs.kind == "atari"
    rules = evaluation_protocol(config.protocol) if atari else None
    policy = {
        "env": config.env,
        "network": network,
        "prefix": "online.",
        "acts": "greedy",
        "first_action": envs.first_action,
        "evaluation_rules": rules,
    }
    facts = {"rules_fingerprint": envs.rules_fingerprint, "replay_capacity": envs.replay.capacity}
    envs.replay.require(config.batch, config.n_step)
    if ":" in config.network:
        require_answer(network, learner.online, envs.replay.obs_dtype)
    if resumed:
        learner.load(resumed.checkpoint.tensors, resumed.updates)
    exploration = seeds.generator(config.seed, "exploration")
    with Session("dqn", config, envs, resumed=resumed, policy=policy, facts=facts) as session:
        traps = Traps(learner.online, session.note)
        if isinstance(envs, ActorProcesses):
            envs.stop_wished = session.stop_wished
        if resumed:
            seeds.restore_generator(exploration, resumed.state["exploration"])
            traps.load(resumed.state["traps"])
        envs.start(resumed.env_states if resumed else None)
        feeder = make_feeder(
            envs.replay, config.batch, config.n_step, config.discount, learner.device, config.replay_device
        )
        if resumed and resumed.replay_save is None:

            def play() -> None:
                envs.send(act(envs, learner, epsilon_at(config, session.steps), exploration))
                envs.receive()

            refill(config, envs.replay, session, play)

        def state() -> dict[str, Any]:
            traps.check(learner.updates, learner.loss)  # no checkpoint is made of lost weights
            return {"exploration": seeds.generator_state(exploration), "traps": traps.state()}

        while session.running():
            boundary = envs.replay.boundary()
            with session.clock("act"):
                epsilon = epsilon_at(config, session.steps)
                actions = act(envs, learner, epsilon, exploration, traps)
            envs.send(actions)
            due = updates_due(config, session.steps + envs.num_envs) - session.updates
            if due:
                with session.clock("sample"):
                    beta = linear(session.steps, config.priority_beta, 1.0, config.priority_beta_steps)
                    feeder.ask(boundary, due, beta)
            for _ in range(due):
                with session.clock("sample"):
                    drawn = feeder.draw()
                with session.clock("transfer"):
                    fed = feeder.transfer(drawn)
                with session.clock("learn"):
                    learner.update(fed.tensors)
                    traps.after_update(learner.updates, learner.loss)
                if config.prioritised:
                    with session.clock("priorities"):
                        feeder.update_priorities(fed.index, learner.errors.cpu().numpy() + PRIORITY_OF_NO_ERROR)
                session.updates += 1
            with session.clock("emulate"):
                games = envs.receive()
            session.stepped(envs.num_envs, games)
            if session.crossed(config.log_every_steps, envs.num_envs):
                if learner.batch:
                    traps.inspect(lambda: learner.online(learner.batch["obs"]))
                session.log(
                    {**learner.statistics(), "epsilon": epsilon, "learning_rate": config.learning_rate},
                    histograms_of(learner.online) if config.histograms else None,
                )
            if session.evaluation_due(envs.num_envs):
                session.evaluate(learner.tensors())
            if session.checkpoint_due(envs.num_envs):
                session.checkpoint(learner.tensors(), state())
        session.finish(learner.tensors(), state())
        feeder.close()
    return session


def tried_as(config: Config) -> dict[str, Any]:
    """For a trial: as little as shows both phases, the second one as it is once exploration is over."""
    return {**small_replay(config), "epsilon_steps": 0, "epsilon_begins_after_warm_up": True}


TRAINER = Trainer("dqn", Config, PRESETS, train, atari_preset="nature", other_preset="classic", tried_as=tried_as)


def main() -> None:
    """The command."""
    command_line.main(TRAINER)


if __name__ == "__main__":
    run(main)
