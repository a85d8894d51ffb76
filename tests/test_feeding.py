"""The three ways of a batch to a learner bring the same transitions in the same order; a CPU plays the GPU's part."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import fastrl
from fastrl.learn.acting import Answers
from fastrl.learn.feeding import CopyFeeder, HostFeeder, MirrorFeeder, make_feeder

CPU = torch.device("cpu")


def filled(**changes: Any) -> fastrl.Replay:
    """Lanes that have come round, with ends and cuts in them."""
    made = fastrl.Replay(400, lanes=2, obs_shape=(6, 6), seed=5, **changes)
    generator = np.random.default_rng(0)
    for lane in range(2):
        with made.writer(lane) as writer:
            writer.start(generator.integers(0, 256, (6, 6), np.uint8))
            for step in range(500):
                over = step % 37 == 36
                frame = generator.integers(0, 256, (6, 6), np.uint8)
                writer.append(step % 4, float(step), frame, terminated=over and step % 2 == 0, truncated=over)
                if over:
                    writer.start(frame)
    return made


def contents(fed: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in fed.tensors.items()}


@pytest.mark.parametrize("alpha", [None, 0.6], ids=["uniform", "prioritised"])
@pytest.mark.parametrize("n_step", [1, 3])
@pytest.mark.parametrize("way", [CopyFeeder, MirrorFeeder])
def test_every_way_brings_what_the_host_draws(way: Any, n_step: int, alpha: float | None) -> None:
    host_replay, other_replay = filled(alpha=alpha), filled(alpha=alpha)
    host = HostFeeder(host_replay, 8, n_step, 0.9)
    other = way(other_replay, 8, n_step, 0.9, CPU)
    for _ in range(6):
        host.ask(host_replay.boundary(), 3, 0.5)
        other.ask(other_replay.boundary(), 3, 0.5)
        for _ in range(3):
            expected, found = (feeder.transfer(feeder.draw()) for feeder in (host, other))
            assert np.array_equal(expected.index, found.index)
            for name, tensor in contents(expected).items():
                assert torch.equal(tensor, found.tensors[name]), name
            if alpha is not None:
                priority = np.arange(1.0, 9.0)
                host.update_priorities(expected.index, priority)
                other.update_priorities(found.index, priority)
    other.close()


@pytest.mark.parametrize("way", [CopyFeeder, MirrorFeeder])
def test_a_gpu_finds_its_batches_always_in_the_same_tensors(way: Any) -> None:
    made = filled()
    feeder = way(made, 8, 1, 0.9, CPU)
    feeder.ask(made.boundary(), 2, 0.4)
    first = {name: tensor.data_ptr() for name, tensor in feeder.transfer(feeder.draw()).tensors.items()}
    second = {name: tensor.data_ptr() for name, tensor in feeder.transfer(feeder.draw()).tensors.items()}
    feeder.close()

    assert first == second


def test_a_mirror_is_refused_where_nothing_learns_on_a_gpu() -> None:
    with pytest.raises(ValueError, match="this run learns on the CPU"):
        make_feeder(filled(), 8, 1, 0.9, CPU, "cuda")


def test_answers_by_way_of_places_that_stay_are_the_same_ones() -> None:
    network = torch.nn.Linear(3, 2)
    direct, staged = (Answers(network, torch.device("cpu"), staged=staged) for staged in (False, True))
    kept = []
    for seed in range(3):
        obs = np.random.default_rng(seed).random((4, 3), np.float32)
        kept.append((direct(obs), staged(obs)))
        with torch.no_grad():
            network.weight.add_(1)  # weights are those of the call
    for expected, found in kept:
        np.testing.assert_array_equal(found, expected)
    assert not np.array_equal(kept[0][1], kept[1][1])
