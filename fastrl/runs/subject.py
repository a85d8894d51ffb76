"""Who is to play what: the policy of a run or chance, by which rules, as a command line says it."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastrl.engine.recorded_envs import evaluation_protocol, is_atari
from fastrl.engine.rules import whole_number
from fastrl.runs import seeds
from fastrl.runs.trained import TrainedPolicy, load

RANDOM_PROTOCOL = "nature"  # that random play follows where nothing is said: that of the published scores


@dataclass(frozen=True)
class Subject:
    """What is evaluated, and by which rules."""

    words: str
    env: str
    rules: dict[str, Any] | None  # None: not an Atari game
    trained: TrainedPolicy | None  # None: random play
    epsilon: float  # how often a trained policy acts at random all the same
    seed: int  # of the games and of what is random

    def require_actions(self, space: Any) -> None:
        """Raise if the policy chooses among other actions than a game has, whose ``space`` they are."""
        actions = getattr(space, "n", 0)  # 0: numbers instead of choices
        if self.trained is not None and actions != self.trained.num_actions:
            raise ValueError(
                f"--protocol: {self.env} has {actions} actions by these rules, the policy chooses among "
                f"{self.trained.num_actions}; take a protocol with the same ones"
            )


def find_subject(arguments: argparse.Namespace, command: str) -> Subject:
    """What the command line asks for, of a command called ``command``."""
    whole_number("--seed", arguments.seed, 0, 2**63 - 1)
    if arguments.epsilon is not None and not 0 <= arguments.epsilon <= 1:
        raise ValueError(f"--epsilon: {arguments.epsilon} is outside [0, 1]; it is how often an action is random")
    random = arguments.policy == "random"
    trained = None
    if arguments.run is not None:
        trained = load(
            arguments.run,
            arguments.checkpoint,
            arguments.device,
            arguments.network,
            env=arguments.env,
            note=lambda text: print(f"fastrl {command}: {text}", file=sys.stderr),
        )
        trained.require_env()
        env, rules = trained.env_id, trained.evaluation_rules
    elif not random:
        raise ValueError("RUN: give the directory of a run, or --policy random --env GAME for random play")
    elif arguments.env is None:
        raise ValueError("--env: random play needs a game, --env PongNoFrameskip-v4 for example")
    else:
        env = arguments.env
        rules = evaluation_protocol(RANDOM_PROTOCOL) if is_atari(env) else None
    if arguments.protocol is not None:
        if rules is None:
            raise ValueError(f"--protocol: {env} is not an Atari game; its rules are its own")
        rules = {**rules, **evaluation_protocol(arguments.protocol)}
    seed = seeds.whole(arguments.seed, "evaluate")  # seeds next to each other are to share no games
    if random:
        return Subject(f"random play of {env}", env, rules, None, 1.0, seed)
    assert trained is not None
    epsilon = arguments.epsilon
    if epsilon is None:
        epsilon = float(trained.run.config.get("evaluation_epsilon", 0.05))
    return Subject(f"{trained.describe()}, in {env}", env, rules, trained, epsilon, seed)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Which policy, where: the options that all commands share which let one play."""
    parser.add_argument("run", nargs="?", type=Path, metavar="RUN", help="the directory of a run, live or finished")
    parser.add_argument(
        "--policy", choices=("trained", "random"), default="trained", help="random needs no run, but --env"
    )
    parser.add_argument("--env", help="the game of random play; with a run only where its env imports a module")
    parser.add_argument("--checkpoint", default="best", help="best, latest, a number of steps, or a file")
    parser.add_argument("--network", metavar="MODULE:FUNCTION", help="for a run with a network of your own: imports it")
    parser.add_argument("--device", default="cpu", help="where the network runs")
    parser.add_argument("--epsilon", type=float, help="how often an action is random (default: the run's own)")
    parser.add_argument("--seed", type=int, default=0, help="of the games and of random actions")
    parser.add_argument("--protocol", help="other rules than the run's (see fastrl protocols)")
