"""How good a trained policy is: full games, true scores, the rules of its protocol."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch

from fastrl._command import require_output, run
from fastrl.engine.files import write_private
from fastrl.engine.games import find_game
from fastrl.engine.protocol import Protocol
from fastrl.engine.recorded_envs import is_atari
from fastrl.engine.rules import whole_number
from fastrl.runs import scores
from fastrl.runs.evaluation import Act, Evaluation, epsilon_greedy, evaluate, make_envs, normalised
from fastrl.runs.statistics import stratified_bootstrap
from fastrl.runs.subject import Subject, add_options, find_subject

FORMAT = 1


def act_of(chosen: Subject) -> Act | None:
    """Its choice of actions; None: at random."""
    if chosen.trained is None:
        return None
    return epsilon_greedy(chosen.trained.policy, chosen.epsilon, chosen.seed)


def rules_played(chosen: Subject) -> tuple[list[str], dict[str, Any]]:
    """By which rules it is measured: for people, and for a file."""
    envs = make_envs(chosen.env, chosen.rules, 1, 0, 1)
    try:
        chosen.require_actions(envs.single_action_space)
        if chosen.rules is None:
            limit = envs.spec.max_episode_steps if envs.spec is not None else None
            lines = [f"rules: Gymnasium's {chosen.env}, {f'cut after {limit:,} steps' if limit else 'never cut'}"]
            return lines, {"env": chosen.env, "max_episode_steps": limit}
        rules: Protocol = envs.protocol
        changes = [f"{name} {now} instead of {named}" for name, (named, now) in envs.rule_changes().items()]
        lines = [
            f"rules: protocol {rules.name}, sticky actions {rules.sticky:g}, full games, true scores, cut after "
            f"{rules.max_frames:,} frames ({rules.max_frames / 60 / 60:g} minutes)",
            f"       changed for measuring: {', '.join(changes) or 'nothing'}; fingerprint {envs.rules_fingerprint}",
        ]
        return lines, {**dataclasses.asdict(rules), "fingerprint": envs.rules_fingerprint}
    finally:
        envs.close()


def described(
    played: Evaluation, env: str, max_frames: int | None, convention: str
) -> tuple[list[str], dict[str, Any]]:
    """What came out: for people, and for a file."""
    summary = played.summary()
    interval = stratified_bootstrap([[score] for score in played.returns], np.mean)
    told = "" if interval is None else f", 95% interval {interval[0]:.2f} to {interval[1]:.2f} (bootstrap over games)"
    lines = [
        f"return: mean {summary['mean']:.2f}{told}",
        f"        median {summary['median']:.2f}, std {summary['std']:.2f}, "
        f"min {summary['min']:.2f}, max {summary['max']:.2f}",
        f"length: mean {summary['length_mean']:,.1f} steps",
    ]
    hns = normalised(env, summary["mean"], convention)
    found: dict[str, Any] = {**summary, "interval_95": interval, "hns": hns, "hns_convention": convention}
    if hns is not None:
        reference = scores.reference(find_game(env).name, convention)
        assert reference is not None
        found |= {"hns_random": reference.random, "hns_human": reference.human, "hns_source": scores.source(convention)}
        lines.append(
            f"human-normalised: {hns:.3f} (random {reference.random:g}, human {reference.human:g}"
            + (f", DQN {reference.dqn:g}" if reference.dqn is not None else "")
            + ")"
        )
        lines.append(f"        these from {scores.source(convention)}")
        if convention == "57" and max_frames == 18_000:
            lines.append("        those are of games of up to 30 minutes; --human nature has those of up to 5, as here")
    elif is_atari(env):
        lines.append(f"human-normalised: unknown, convention {convention} has no scores of {find_game(env).name}")
    return lines, found


class Progress:
    """One line that says how far it is, where somebody looks."""

    def __init__(self) -> None:
        self._shown = sys.stdout.isatty()
        self._began_s, self._next_s = time.perf_counter(), 0.0

    def __call__(self, ended: int, of: int) -> None:
        """After every step."""
        now = time.perf_counter() - self._began_s
        if self._shown and now >= self._next_s:
            self._next_s = now + 0.2
            print(f"\r{ended} of {of} games over, {now:.0f} s", end="", flush=True)

    def close(self) -> None:
        """Remove it."""
        if self._shown:
            print("\r\x1b[K", end="", flush=True)


def run_command(arguments: argparse.Namespace) -> None:
    """Check, play, tell."""
    whole_number("--episodes", arguments.episodes, 1, 1_000_000)
    output: Path | None = arguments.output
    require_output(output)
    # Threads would change the order of sums, so which one of two actions of nearly equal value is the better one.
    torch.set_num_threads(1)
    chosen = find_subject(arguments, "evaluate")
    acting = "" if chosen.trained is None else f", epsilon {chosen.epsilon:g}"
    print(f"{chosen.words}: {arguments.episodes} games{acting}, seed {arguments.seed}")
    lines, rules = rules_played(chosen)
    print("\n".join(lines), flush=True)
    began = time.perf_counter()
    progress = Progress()
    try:
        played = evaluate(
            act_of(chosen),
            chosen.env,
            chosen.rules,
            episodes=arguments.episodes,
            seed=chosen.seed,
            threads=arguments.threads,
            watch=progress,
        )
    finally:
        progress.close()
    seconds = time.perf_counter() - began
    lines, found = described(played, chosen.env, rules.get("max_frames"), arguments.human)
    print("\n".join(lines))
    print(f"{sum(played.lengths):,} steps in {seconds:.1f} s")
    if output is not None:
        everything = {
            "format": FORMAT,
            "policy": arguments.policy,
            "run": None if chosen.trained is None else str(chosen.trained.run.path),
            "checkpoint": None if chosen.trained is None else chosen.trained.kind,
            "checkpoint_steps": None if chosen.trained is None else chosen.trained.steps,
            "env": chosen.env,
            "epsilon": None if chosen.trained is None else chosen.epsilon,
            "seed": arguments.seed,
            "rules": rules,
            **found,
            "returns": played.returns,
            "lengths_steps": played.lengths,
        }
        write_private(output, json.dumps(everything, indent=1).encode() + b"\n")
        print(f"written: {output}")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="fastrl evaluate", description=__doc__)
    add_options(parser)
    parser.add_argument("--episodes", type=int, default=30, help="full games (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="that emulate; results do not depend on it")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="everything that was found, each game too")
    parser.add_argument(
        "--human", choices=scores.CONVENTIONS, default="57", help="whose random and human scores (default: %(default)s)"
    )
    try:
        run_command(parser.parse_args(arguments))
    except KeyboardInterrupt:
        sys.exit(130)
    except (ValueError, TypeError, OSError, MemoryError, ImportError, gymnasium.error.Error) as error:
        sys.exit(f"fastrl evaluate: {error}")


if __name__ == "__main__":
    run(main)
