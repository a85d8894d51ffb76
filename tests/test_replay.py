"""The replay against a slow and obvious oracle, its exactness, its faults, and its joint with the pool."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exact_draws import Writers, chi_square, draw_while_written, figure, p_value
from gymnasium import spaces
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from played_games import compare_with_what_was_acted_on
from replay_oracle import GUARD_STEPS, OracleLane
from replay_processes import attached_writer, forked_use, observation, write_for_ever
from written_replay import GAMMA, Written, require_row, small_replay

import fastrl
from fastrl.engine import batches, native, replay

# ---- against the oracle


class ReplayMachine(RuleBasedStateMachine):
    """Anything that may be written, in any order, then everything that may be sampled."""

    @initialize(
        stack=st.integers(1, 4), padding=st.sampled_from(["zeros", "first_frame"]), alpha=st.sampled_from([None, 0.6])
    )
    def make(self, stack: int, padding: str, alpha: float | None) -> None:
        self.written = Written(stack=stack, padding=padding, alpha=alpha)
        self.n_step: int | None = None

    @rule(lane=st.integers(0, 1))
    def start(self, lane: int) -> None:
        self.written.start(lane)

    @rule(lane=st.integers(0, 1), steps=st.integers(1, 30), seed=st.integers(0, 99))
    def play(self, lane: int, steps: int, seed: int) -> None:
        self.written.play(lane, steps, seed)

    @rule(lane=st.integers(0, 1))
    def take_over(self, lane: int) -> None:
        self.written.take_over(lane)

    @precondition(lambda self: any(lane.open for lane in self.written.lanes))
    @rule(end=st.sampled_from([(True, False), (False, True), (True, True)]))
    def end_an_episode(self, end: tuple[bool, bool]) -> None:
        lane = next(number for number, lane in enumerate(self.written.lanes) if lane.open)
        self.written.append(lane, *end)

    @rule(n_step=st.integers(1, 4))
    def sample(self, n_step: int) -> None:
        made = self.written.replay
        if made.alpha is not None:  # priorities are of transitions of one length
            n_step = self.n_step = self.n_step or n_step
        expected = self.written.eligible(n_step)
        if not expected:
            with pytest.raises(fastrl.NothingToSample):
                made.sample(1, n_step, GAMMA)
            return
        batch = made.sample(40, n_step, GAMMA)
        for row, (lane, step) in enumerate(batch.index.tolist()):
            require_row(batch, row, expected[lane, step])


ReplayMachine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestReplayMachine = ReplayMachine.TestCase


@pytest.mark.parametrize("n_step", [1, 3])
@pytest.mark.parametrize("padding", ["zeros", "first_frame"])
def test_every_eligible_transition_is_drawn_and_no_other(n_step: int, padding: str) -> None:
    written = Written(padding=padding)
    written.play(0, 70, seed=1)
    written.take_over(0)
    written.play(0, 9, seed=2)
    written.play(1, 11, seed=3)

    expected = written.eligible(n_step)
    seen = set()
    for _ in range(40):
        batch = written.replay.sample(64, n_step, GAMMA)
        for row, (lane, step) in enumerate(batch.index.tolist()):
            require_row(batch, row, expected[lane, step])
            seen.add((lane, step))
    assert seen == set(expected)


def in_deviations(counts: Counter[Any], probabilities: dict[Any, float], draws: int) -> tuple[float, float]:
    """How far counts are from what was expected, in standard deviations of chi-square; and its p-value."""
    statistic = chi_square([counts[key] for key in probabilities], [draws * p for p in probabilities.values()])
    freedom = len(probabilities) - 1
    return (statistic - freedom) / np.sqrt(2 * freedom), p_value(statistic, freedom)


def test_r5_uniform_draws_are_uniform() -> None:
    written = Written()
    written.play(0, 60, seed=1)
    written.play(1, 13, seed=2)
    eligible = written.eligible()
    draws = 0
    counts: Counter[tuple[int, int]] = Counter()
    for _ in range(200):
        batch = written.replay.sample(1000, 1, GAMMA)
        counts.update(map(tuple, batch.index.tolist()))
        draws += 1000

    assert set(counts) == set(eligible)
    deviations, p = in_deviations(counts, dict.fromkeys(eligible, 1 / len(eligible)), draws)
    assert abs(deviations) < 5
    print(f"R5: {draws:,} uniform draws of {len(eligible)} transitions: p-value {p:.2g}")


def test_r5_draws_by_priority_have_exactly_their_probability() -> None:
    written = Written(alpha=0.6)
    written.play(0, 20, seed=1)
    written.play(1, 15, seed=2)
    made = written.replay
    index = np.array(sorted(written.eligible()), np.int64)
    made.sample(1, 1, GAMMA)  # from here on the replay follows
    priorities = np.random.default_rng(0).exponential(size=len(index))
    assert made.update_priorities(index, priorities) == len(index)

    weights = np.round(priorities**0.6 * 2**20)
    share = {tuple(key): w / weights.sum() for key, w in zip(index.tolist(), weights, strict=True)}
    counts: Counter[tuple[int, int]] = Counter()
    for _ in range(200):
        batch = made.sample(1000, 1, GAMMA, beta=0.4)
        keys = list(map(tuple, batch.index.tolist()))
        counts.update(keys)
        unscaled = np.array([(len(index) * share[key]) ** -0.4 for key in keys])
        np.testing.assert_allclose(batch.weight, unscaled / unscaled.max(), rtol=1e-5)
    deviations, p = in_deviations(counts, share, 200_000)
    assert abs(deviations) < 5
    print(f"R5: 200,000 draws by priority of {len(share)} transitions: p-value {p:.2g}")


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_r5_draws_are_exact_while_others_write() -> None:
    """The long version is `python tests/soak_ring.py --rows R5`."""
    with Writers() as writers:
        for kind, prioritised in (("uniform", False), ("by priority", True)):
            results = [draw_while_written(writers, seed, batches=25, prioritised=prioritised) for seed in range(4)]
            print("R5:", figure(results, kind))
        control = draw_while_written(writers, 0, batches=20, prioritised=False, wrong_by=0.4)
    with pytest.raises(AssertionError, match="are not as they should be"):
        figure([control], "that are not what is expected")


def every_window(symbols: int, length: int) -> Iterator[int]:
    """A sequence that has every window of so many symbols once: always the largest one that makes a new window."""
    window, seen = (0,) * length, set()
    while True:
        followers = ((*window[1:], symbol) for symbol in reversed(range(symbols)))
        window = next((one for one in followers if one not in seen), ())
        if not window:
            return
        seen.add(window)
        yield window[-1]


@pytest.mark.parametrize("alpha", [None, 1.0])
def test_r5_of_every_content_of_a_small_ring_exactly_what_is_whole_is_drawn(alpha: float | None) -> None:
    """Every order in which episodes can begin, go on, end and be broken off within the five steps that it shows."""
    made = small_replay(capacity=13, lanes=1, alpha=alpha)
    oracle = OracleLane()
    writer = made.writer(0)
    contents = drawn = 0
    for step, event in enumerate(every_window(4, 6)):
        obs = observation(0, step)
        name, arguments = "append", (0, 0.0, obs, event == 2, event == 3)
        if event == 0 or not oracle.open:
            name, arguments = "start", (obs,)
        for lane in (writer, oracle):
            getattr(lane, name)(*arguments)
        expected = oracle.eligible_steps(step + 1, made.capacity, made.stack, 1)
        contents += 1
        if not expected:
            with pytest.raises(fastrl.NothingToSample):
                made.sample(1, 1, GAMMA)
            continue
        index = made.sample(80, 1, GAMMA).index  # of four at most: missing one has a probability of e^-23
        assert sorted(set(index[:, 1].tolist())) == expected
        drawn += 80
    print(f"R5: {contents:,} contents of a ring of 13 slots: {drawn:,} draws, all of what is whole, of nothing else")


@pytest.mark.parametrize("capacity", [64, 1 << 22])
def test_the_largest_weight_of_every_slot_together_stays_below_the_sum_of_64_bits(capacity: int) -> None:
    made = small_replay(capacity=capacity, lanes=1, obs_shape=(1,), stack=1, alpha=1.0, _least_spare_steps=2)
    writer = made.writer(0)
    writer.start(np.zeros(1, np.float32))
    for step in range(4):
        writer.append(0, 0.0, np.full(1, step, np.float32), False, False)
    index = made.sample(1).index
    made.update_priorities(index, [1e300])
    largest = made._sampler.state()[1]

    assert largest == min(1 << 43, (1 << 63) // made._slots)
    assert largest * made._slots < 1 << 64
    drawn = made.sample(1)
    assert drawn.index.tolist() == index.tolist()  # all others together have a millionth of its weight


def test_a_priority_of_a_transition_that_is_gone_is_dropped_and_counted() -> None:
    written = Written(alpha=1.0)
    written.play(0, 20, seed=1)
    old = written.replay.sample(8, 1, GAMMA).index.copy()
    written.play(0, 40, seed=2)  # comes round: other transitions lie in the same slots
    written.replay.sample(1, 1, GAMMA)

    assert written.replay.update_priorities(old, np.full(8, 100.0)) == 0
    assert written.replay.stats()["stale_updates"] == 8
    assert (written.replay.sample(64, 1, GAMMA).weight == 1).all()


def test_a_new_transition_has_the_largest_priority_so_far() -> None:
    written = Written(alpha=1.0)
    written.start(0)
    written.append(0)
    written.replay.update_priorities(written.replay.sample(1, 1, GAMMA).index, [50.0])
    written.append(0)

    drawn = Counter(step for _, step in written.replay.sample(4000, 1, GAMMA).index.tolist())
    assert 0.45 < drawn[1] / 4000 < 0.55


def test_an_end_that_is_both_is_a_true_end() -> None:
    written = Written(lanes=1, capacity=24)
    written.start(0)
    written.append(0, terminated=True, truncated=True)
    assert written.replay.sample(1, 1, GAMMA).discount == [0.0]


# Mistakes that others made, by their issues: what R4 must not have.


def test_r4_the_last_observation_of_a_truncated_episode_is_its_own() -> None:
    # Others store a frame once and lose it (SB3 #934, CleanRL #460).
    written = Written(lanes=1, capacity=24)
    written.start(0)
    written.append(0)
    written.append(0, truncated=True)
    written.start(0)
    written.append(0)

    batch = written.replay.sample(64, 1, GAMMA)
    rows = [row for row, (_, step) in enumerate(batch.index.tolist()) if step == 1]
    assert rows
    for row in rows:
        assert batch.next_obs[row, -1, 1] == 2
        assert batch.discount[row] == np.float32(GAMMA)
    assert {step for _, step in batch.index.tolist()} == {0, 1, 3}  # not 2, which was the last


@pytest.mark.parametrize("ends", ["truncated", "terminated", "broken off", "taken over"])
def test_r4_a_stack_does_not_reach_into_the_episode_before(ends: str) -> None:
    # Others knew the ends that are true ones only (Dopamine #213).
    written = Written(lanes=1, capacity=24)
    written.start(0)
    for _ in range(3):
        written.append(0)
    if ends == "taken over":
        written.take_over(0)
    elif ends != "broken off":
        written.append(0, **{ends: True})
    first = len(written.lanes[0].slots)
    written.start(0)
    written.append(0)
    batch = written.replay.sample(64, 1, GAMMA)
    row = batch.index.tolist().index([0, first])
    assert batch.obs[row, :, 1].tolist() == [0, 0, 0, first]
    assert batch.next_obs[row, :, 1].tolist() == [0, 0, first, first + 1]
    assert batch.obs[row, :3].sum() == 0


@pytest.mark.parametrize("n_step", [1, 3])
@pytest.mark.parametrize("end", ["truncated", "terminated"])
def test_r4_an_end_adds_no_transition(end: str, n_step: int) -> None:
    # Others invent further terminal ones for the stack of the last frame (Dopamine #228).
    written = Written(lanes=1, capacity=48)
    begins = []
    for length in (1, 2, 5, 3):
        first = len(written.lanes[0].slots)
        begins += range(first, first + length)
        written.start(0)
        for step in range(length):
            written.append(0, **{end: step == length - 1})
    batch = written.replay.sample(400, n_step, GAMMA)
    ends_at = {first + length for first, length in ((0, 1), (2, 2), (5, 5), (11, 3))}
    assert sorted(set(batch.index[:, 1].tolist())) == begins  # as many as steps were played
    for (_, step), discount, shown in zip(batch.index.tolist(), batch.discount, batch.next_obs[:, -1, 1], strict=True):
        last = min(later for later in ends_at if later > step)
        assert shown == min(step + n_step, last)
        steps = int(shown) - step
        assert discount == np.float32(0.0 if end == "terminated" and shown == last else GAMMA**steps)


@pytest.mark.parametrize("n_step", [1, 3])
def test_r4_no_stack_has_the_oldest_and_the_newest_frames(n_step: int) -> None:
    # Others stack across the place where the next frame goes (Berkeley's homework #52).
    written = Written(lanes=1, capacity=24)
    written.start(0)
    for newest in range(1, 80):  # one long episode, over and over the same slots
        written.append(0)
        if newest < 4 + n_step:
            continue
        batch = written.replay.sample(60, n_step, GAMMA)
        steps = batch.index[:, 1]
        shown = np.concatenate([batch.obs[:, :, 1], batch.next_obs[:, -1:, 1]], axis=1)
        after = np.array([-3, -2, -1, 0, n_step])
        expected = steps[:, None] + after
        assert np.array_equal(shown, np.where(expected < 0, 0, expected))  # its first frame is padded with zeros
        assert steps.max() + n_step <= newest
        assert newest < 16 or steps.min() >= newest + 1 - 16 + 3  # the slots that are left alone, and the first stack


# ---- what is drawn depends on the seed and the steps, and on nothing else


def test_equal_seeds_draw_equally_and_others_do_not() -> None:
    drawn = []
    for seed in (1, 1, 2):
        written = Written(seed=seed)
        written.play(0, 40)
        drawn.append([written.replay.sample(32, 1, GAMMA).index.tolist() for _ in range(3)])
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2]
    assert drawn[0][0] != drawn[0][1]


def test_a_batch_that_does_not_fit_is_refused_before_it_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    made = fastrl.Replay(2_000, 1)
    monkeypatch.setattr(batches, "available_memory_bytes", lambda: 90_000_000)
    with pytest.raises(
        MemoryError, match=r"batch: 3,000 transitions take 105,\S+ bytes, but only 90,000,000 are avail"
    ):
        made.buffer(3_000)
    made.buffer(2_000)


@pytest.mark.parametrize("alpha", [None, 0.5])
def test_up_to_a_boundary_what_is_written_later_does_not_matter(alpha: float | None) -> None:
    drawn = []
    for later in (0, GUARD_STEPS):
        written = Written(alpha=alpha)
        written.play(0, 40, seed=1)
        written.play(1, 33, seed=2)
        boundary = written.replay.boundary()
        for _ in range(later):
            written.play(0, 1, seed=4)
        batch = written.replay.sample(32, 1, GAMMA, boundary=boundary)
        drawn.append([array.tolist() for array in batch])
        assert written.replay.stats()["race_rejects"] == 0
    assert drawn[0] == drawn[1]


def test_a_boundary_that_everything_was_written_over_since_is_told_as_such() -> None:
    written = Written()
    boundary = written.replay.boundary()
    for lane in range(2):
        written.play(lane, 20)
    old = written.replay.boundary()
    for lane in range(2):
        written.play(lane, 200)
    with pytest.raises(RuntimeError, match="since the boundary was taken; take a later one, or make the capa"):
        written.replay.sample(8, 1, GAMMA, boundary=old)
    with pytest.raises(fastrl.NothingToSample, match="nothing was written up to the boundary"):
        written.replay.sample(8, 1, GAMMA, boundary=boundary)
    written.replay.sample(8, 1, GAMMA)


def test_with_priorities_a_boundary_never_goes_back() -> None:
    written = Written(alpha=0.5)
    written.play(0, 20)
    early = written.replay.boundary()
    written.play(0, 20)
    late = written.replay.boundary()
    written.replay.sample(8, 1, GAMMA, boundary=late)
    with pytest.raises(ValueError, match=rf"lane 0 is step {early[0]}, but .* up to step {late[0]} was drawn; give"):
        written.replay.sample(8, 1, GAMMA, boundary=early)
    assert written.replay.stats()["race_rejects"] == 0
    written.replay.sample(8, 1, GAMMA, boundary=late)


@pytest.mark.parametrize("alpha", [None, 0.6])
def test_a_draw_that_found_nothing_settles_nothing(alpha: float | None) -> None:
    written = Written(alpha=alpha)
    for n_step in (3, 1):
        with pytest.raises(fastrl.NothingToSample, match="the replay is empty; write transitions first"):
            written.replay.sample(1, n_step, GAMMA)
    written.start(0)
    with pytest.raises(fastrl.NothingToSample, match="none of the 1 observations begins a whole transition yet"):
        written.replay.sample(1, 2, GAMMA)
    if alpha is None:  # once is enough to wait for
        time.sleep(2.1)
        silent = (
            rf"yet; lane 0: its writer, process {os.getpid()}, published the newest step, 0, 2\.[0-9] s ago; lane 1: "
        )
        with pytest.raises(fastrl.NothingToSample, match=silent):
            written.replay.sample(1, 2, GAMMA)
    written.play(0, 20)
    written.replay.sample(4, 1, GAMMA)


def test_threads_that_sample_by_priority_beside_a_writer_do_not_get_in_each_others_way() -> None:
    made = small_replay(capacity=400, lanes=1, alpha=0.6)
    errors: list[BaseException] = []
    stop = threading.Event()

    def draw() -> None:
        try:
            while not stop.is_set():
                made.sample(8, 1, GAMMA)
        except BaseException as error:
            errors.append(error)

    with made.writer(0) as writer:
        writer.start(observation(0, 0))
        for step in range(1, 100):
            writer.append(0, 0.0, observation(0, step), False, False)
        threads = [threading.Thread(target=draw) for _ in range(2)]
        for thread in threads:
            thread.start()
        end = time.monotonic() + 0.7
        for step in range(100, 10**9):
            writer.append(0, 0.0, observation(0, step), False, False)
            if time.monotonic() > end:
                break
        stop.set()
        for thread in threads:
            thread.join()
    assert not errors


def test_memory_of_a_replay_of_other_types_is_refused() -> None:
    floats = fastrl.Replay(200, 1, (2,), "float32", stack=1)
    whole = fastrl.Replay(200, 1, (2,), "int32", stack=1)
    for made in (floats, whole):
        with made.writer(0) as writer:
            writer.start(np.zeros(2, made.obs_dtype))
            writer.append(0, 0.0, np.ones(2, made.obs_dtype), True, False)
    with pytest.raises(ValueError, match="sample: out was made by a replay of other observations or actions"):
        floats.sample(1, out=whole.buffer(1))
    again = fastrl.Replay.attach(floats.handle())
    assert floats.sample(1, out=again.buffer(1)).next_obs.tolist() == [[[1.0, 1.0]]]


def test_what_cannot_fit_anywhere_is_refused_in_words() -> None:
    with pytest.raises(
        MemoryError,
        match=r"not even the least, 552, fit: they need 2.37e\+03 GB, and .* GB are left to Python and page tables; "
        r"use fewer lanes, or free memory$",
    ):
        fastrl.Replay(2**40, 8, obs_shape=(2**31, 2))
    with pytest.raises(ValueError, match=r"obs_shape: .* bytes an observation; at most 4,294,967,296 are possible"):
        fastrl.Replay(2**20, 1, obs_shape=(2**31, 2**13))
    with pytest.raises(TypeError, match=r"pickle: a replay lies in shared memory; send its handle\(\)"):
        pickle.dumps(small_replay())


def test_a_batch_is_the_callers_to_keep() -> None:
    written = Written()
    written.play(0, 30)
    kept = written.replay.sample(16, 1, GAMMA)
    before = [array.copy() for array in kept]
    for _ in range(5):
        written.replay.sample(16, 1, GAMMA)
    written.play(0, 60)
    for array, old in zip(kept, before, strict=True):
        np.testing.assert_array_equal(array, old)


def test_a_batch_can_be_written_into_memory_of_the_caller() -> None:
    written = Written()
    written.play(0, 30)
    buffer = written.replay.buffer(16, n_step=3)
    batch = written.replay.sample(16, 3, GAMMA, out=buffer)
    assert batch is buffer.batch
    first = batch.index.copy()
    written.replay.sample(16, 3, GAMMA, out=buffer)
    assert not np.array_equal(first, batch.index)


def test_both_stacks_of_one_step_share_their_memory() -> None:
    written = Written()
    written.play(0, 30)
    batch = written.replay.sample(4, 1, GAMMA)
    assert np.shares_memory(batch.obs, batch.next_obs)
    assert batch.obs.base is batch.next_obs.base


# ---- kinds of observations and actions


def test_continuous_actions_and_vectors() -> None:
    made = fastrl.Replay(200, 1, (17,), "float32", stack=1, action=spaces.Box(-1, 1, (6,)))
    rng = np.random.default_rng(0)
    obs = rng.normal(size=(60, 17)).astype(np.float32)
    actions = rng.normal(size=(60, 6)).astype(np.float32)
    with made.writer(0) as writer:
        writer.start(obs[0])
        for i in range(1, 60):
            writer.append(actions[i], i, obs[i], False, False)
    batch = made.sample(100)
    for row, (_, step) in enumerate(batch.index.tolist()):
        np.testing.assert_array_equal(batch.obs[row, 0], obs[step])
        np.testing.assert_array_equal(batch.next_obs[row, 0], obs[step + 1])
        np.testing.assert_array_equal(batch.action[row], actions[step + 1])


@pytest.mark.parametrize("size", [1, 7, 8, 15, 16, 17, 511, 512, 513, 7056])
def test_observations_of_any_size_come_back_whole(size: int) -> None:
    made = fastrl.Replay(80, 1, (size,), "uint8", stack=2, _least_spare_steps=GUARD_STEPS)
    rng = np.random.default_rng(size)
    obs = rng.integers(1, 256, (120, size), np.uint8)
    with made.writer(0) as writer:
        writer.start(obs[0])
        for i in range(1, 120):
            writer.append(i, 0.0, obs[i], False, False)
    batch = made.sample(64)
    for row, (_, step) in enumerate(batch.index.tolist()):
        np.testing.assert_array_equal(batch.obs[row], obs[step - 1 : step + 1])
        np.testing.assert_array_equal(batch.next_obs[row], obs[step : step + 2])
        assert batch.action[row] == step + 1


def test_a_transition_of_frames_takes_at_most_7200_bytes() -> None:
    shape = {"lanes": 8, "slots": 125_000, "stack": 4, "obs_bytes": 84 * 84, "action_bytes": 8}
    assert native.core.ring_bytes(shape) / 1_000_000 <= 7200


def test_a_writer_that_is_closed_while_it_converts_refuses() -> None:
    made = small_replay(lanes=1)
    writer = made.writer(0)
    like = np.zeros(made.obs_shape, made.obs_dtype)

    class Closing:
        def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
            writer.close()
            return like

    writer.start(like)
    with pytest.raises(RuntimeError, match="append: the writer is closed"):
        writer.append(0, 0.0, Closing(), terminated=False, truncated=False)
    writer = made.writer(0)
    with pytest.raises(RuntimeError, match="start: the writer is closed"):
        writer.start(Closing())
    assert made.boundary() == [1]


def test_ctrl_c_ends_a_long_sample_and_the_batch_is_the_next_one() -> None:
    made, same = (fastrl.Replay(100_000, 1, (1,), "float32", stack=1) for _ in range(2))
    like = np.zeros(1, np.float32)
    for one in (made, same):
        with one.writer(0) as writer:
            writer.start(like)
            for step in range(90_000):
                writer.append(step, 0.0, like, terminated=False, truncated=False)

    def interrupted(*_: object) -> None:
        raise InterruptedError

    def sample_with_a_timer() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        made.sample(100_000, n_step=80_000)

    before = signal.signal(signal.SIGALRM, interrupted)
    try:
        began = time.monotonic()
        with pytest.raises(InterruptedError):
            sample_with_a_timer()
        assert time.monotonic() - began < 2
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert np.array_equal(made.sample(64).index, same.sample(64).index)


# ---- joined to a pool


@pytest.mark.parametrize("protocol", ["sb3", "gymnasium"])
@pytest.mark.parametrize("autoreset", ["next_step", "same_step"])
def test_r4_a_pool_writes_what_it_shows(protocol: str, autoreset: str) -> None:
    """The long version is `python tests/soak_ring.py --rows R4`."""
    played = compare_with_what_was_acted_on("breakout", protocol, autoreset, steps=400)
    assert played.ends >= 8
    print("R4:", played)


def test_a_frame_is_stored_once() -> None:
    made = fastrl.Replay(2000, 2)
    sink = made.sink()
    pool = fastrl.AtariPool("pong", 2, sink=sink, stacks=False)
    pool.reset(seed=0)
    before = sink.bytes_stored()
    for _ in range(50):
        pool.step(np.zeros(2, np.int64))
    assert sink.bytes_stored() - before == 50 * 2 * 84 * 84
    pool.close()


def test_a_pool_of_another_size_is_refused() -> None:
    made = fastrl.Replay(2000, 2)
    with pytest.raises(ValueError, match="sink: it is for 2 envs, the pool has 3"):
        fastrl.AtariPool("pong", 3, sink=made.sink())


def test_a_replay_of_other_observations_is_no_sink() -> None:
    with pytest.raises(ValueError, match="a pool writes 84x84 bytes and discrete actions"):
        small_replay().sink()


def test_one_pool_at_a_time_writes_into_a_sink() -> None:
    made = fastrl.Replay(2000, 1)
    sink = made.sink()
    first = fastrl.AtariPool("pong", 1, sink=sink)
    first.reset(seed=0)
    for _ in range(5):
        first.step([0])
    with pytest.raises(RuntimeError, match="sink: another pool writes into it"):
        fastrl.AtariPool("breakout", 1, sink=sink)
    first.step([0])  # the claim is still its own
    first.close()

    second = fastrl.AtariPool("breakout", 1, sink=sink)
    shown, _ = second.reset(seed=0)
    assert np.array_equal(made.stacks(), shown)
    steps = fastrl.Replay.observe(made.handle()).newest(0, 8)
    assert steps.episode.tolist() == [0] * 7 + [1]
    assert steps.first.tolist() == [True] + [False] * 6 + [True]
    assert set(made.sample(200).index[:, 1].tolist()) == set(range(6))
    second.close()


def test_a_pool_that_could_not_be_made_leaves_its_sink_free() -> None:
    made = fastrl.Replay(2000, 1)
    sink = made.sink()
    with pytest.raises(ValueError, match="mode"):
        fastrl.AtariPool("pong", 1, sink=sink, mode=99)
    fastrl.AtariPool("pong", 1, sink=sink).close()


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_sink_is_of_the_process_that_made_it() -> None:
    made = fastrl.Replay(2000, 1)
    sink = made.sink()
    pool = fastrl.AtariPool("pong", 1, sink=sink)
    pool.reset(seed=0)
    for _ in range(10):
        pool.step([0])
    for closed in (False, True):
        child = os.fork()
        if child == 0:
            try:
                fastrl.AtariPool("breakout", 1, sink=sink).reset(seed=0)
            except RuntimeError as error:
                os._exit(0 if "sink: it was made by the process that this one was forked from" in str(error) else 1)
            os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        if not closed:
            pool.step([0])
            pool.close()
    assert made.boundary() == [12]


def test_a_pool_of_other_stacks_is_refused() -> None:
    with pytest.raises(ValueError, match="sink: the pool stacks 4 frames, the replay 3; make both"):
        fastrl.AtariPool("pong", 1, sink=fastrl.Replay(2000, 1, stack=3).sink())
    with pytest.raises(ValueError, match="pads stacks with 'first_frame', the replay with 'zeros'; make the replay"):
        fastrl.AtariPool("pong", 1, "cleanrl", sink=fastrl.Replay(2000, 1).sink())


def test_a_replay_of_other_types_is_no_sink() -> None:
    for changes in (
        {"obs_dtype": "int8"},
        {"obs_shape": (42, 168)},
        {"action": spaces.Box(-1, 1, (2,), np.float32)},
        {"action": spaces.Box(-1, 1, (), np.float64)},
    ):
        with pytest.raises(ValueError, match="sink: a pool writes 84x84 bytes and discrete actions"):
            fastrl.Replay(2000, 1, **changes).sink()


def test_states_are_loaded_only_where_the_lane_goes_on(tmp_path: Path) -> None:
    made = fastrl.Replay(2000, 2)
    pool = fastrl.AtariPool("pong", 2, sink=made.sink())
    pool.reset(seed=0)
    for _ in range(30):
        pool.step([2, 3])
    states = pool.save_state()
    with pytest.raises(RuntimeError, match="load_state: the sink would take what env 0 does next"):
        pool.load_state(states)
    made.save(tmp_path)
    expected = [pool.step([3, 2])[0].copy() for _ in range(3)]
    stored = made.digest()
    pool.close()

    loaded = fastrl.Replay(2000, 2)
    loaded.load(tmp_path)
    sink = loaded.sink(continue_episodes=True)
    went_on = fastrl.AtariPool("pong", 2, sink=sink)
    went_on.load_state(states)
    for obs in expected:
        assert np.array_equal(went_on.step([3, 2])[0], obs)
        assert np.array_equal(loaded.stacks(), obs)
    assert loaded.digest() == stored
    with pytest.raises(RuntimeError, match="load_state: the sink would take"):  # the lane has gone on since
        went_on.load_state(states)
    went_on.close()

    again = fastrl.AtariPool("pong", 2, sink=sink)
    with pytest.raises(RuntimeError, match="load_state: the sink would take"):
        again.load_state(states)
    again.close()
    fresh = fastrl.AtariPool("pong", 2, sink=fastrl.Replay(2000, 2).sink(continue_episodes=True))
    with pytest.raises(RuntimeError, match="load_state: the sink would take"):  # nothing to go on with
        fresh.load_state(states)
    fresh.close()


# ---- other processes


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_another_process_writes_a_lane(method: str) -> None:
    context = multiprocessing.get_context(method)
    made = small_replay(capacity=200)
    writer = made.writer(0)
    here, there = context.Pipe()
    process = context.Process(daemon=True, target=attached_writer, args=(made.handle(), there))
    process.start()
    there.close()  # so that the end of the other process ends the wait

    assert "lane 0 has a writer" in here.recv()
    assert here.recv() == "done"
    batch = made.sample(64, 1, GAMMA)
    for row, (lane, step) in enumerate(batch.index.tolist()):
        assert lane == 1
        np.testing.assert_array_equal(batch.obs[row, -1], observation(1, step))
        np.testing.assert_array_equal(batch.next_obs[row, -1], observation(1, step + 1))
    here.send("go")
    process.join(10)
    assert process.exitcode == 0
    writer.close()


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_what_was_forked_says_so() -> None:
    made = small_replay()
    writer = made.writer(0)
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    process = context.Process(daemon=True, target=forked_use, args=(made, writer, there))
    process.start()
    there.close()  # so that the end of the other process ends the wait
    problems = here.recv()
    process.join(10)

    assert all("forked" in problem for problem in problems), problems
    writer.start(observation(0, 0))  # the fork has not taken the lane away
    with pytest.raises(fastrl.LaneBusy):
        made.writer(0)


def test_a_killed_writer_loses_its_lane_and_harms_nobody() -> None:
    made = small_replay(capacity=4000)
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(daemon=True, target=write_for_ever, args=(made.handle(), there))
    process.start()
    there.close()  # so that the end of the other process ends the wait
    here.recv()
    with pytest.raises(fastrl.LaneBusy, match=rf"lane 0 has a writer \(process {process.pid}, silent for [0-9.]+ s\)"):
        made.writer(0)
    while made.boundary()[0] < 500:
        time.sleep(0.001)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join(10)

    writer = made.writer(0)
    died_at = writer.next_step
    writer.start(observation(0, died_at))
    writer.append(1, 0.5, observation(0, died_at + 1), False, False)
    seen = set()
    for _ in range(10):  # of at most 2,000: missing one has a probability of e^-20
        batch = made.sample(4000, 1, GAMMA)
        steps = batch.index[:, 1]
        seen.update(steps.tolist())
        for shown, expected in ((batch.obs, steps), (batch.next_obs, steps + 1)):
            assert np.array_equal(shown[:, -1, 1], expected)
            assert np.array_equal(shown[:, -1, 2], expected + 0.5)
    assert died_at in seen
    assert died_at - 1 not in seen  # its episode has no successor


def test_a_handle_of_a_dead_or_foreign_replay_is_refused() -> None:
    made = small_replay()
    handle = pickle.loads(pickle.dumps(made.handle()))
    assert fastrl.Replay.attach(handle).capacity == made.capacity
    del made
    with pytest.raises(ConnectionError, match=r"cannot be opened|no longer the replay"):
        fastrl.Replay.attach(handle)
    other = small_replay(obs_shape=(4,))
    damaged = pickle.loads(pickle.dumps(other.handle()))
    object.__setattr__(damaged, "obs_shape", (300,))
    with pytest.raises(ConnectionError, match="the handle is damaged"):
        fastrl.Replay.attach(damaged)
    with pytest.raises(TypeError, match="attach: str is not what"):
        fastrl.Replay.attach("replay")  # type: ignore[arg-type]


def test_a_handle_comes_back_whole_from_plain_values() -> None:
    made = fastrl.Replay(100, 1, (2, 3), "float32", stack=1, action=spaces.Discrete(3, start=5), alpha=0.6)
    plain = json.loads(json.dumps(dataclasses.asdict(made.handle())))
    assert replay.ReplayHandle.from_plain(plain) == made.handle()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("pid", "1"),
        ("pid", -1),
        ("descriptor", None),
        ("descriptor", 2**40),
        ("inode", -3),
        ("region_bytes", 1.5),
        ("lanes", 0),
        ("slots", 2**63),
        ("stack", "4"),
        ("obs_shape", (-1,)),
        ("obs_shape", (2**20, 2**20)),
        ("obs_dtype", "U3"),
        ("obs_dtype", None),
        ("action_shape", 3.5),
        ("action_shape", (2**31, 2**31, 2**31)),
        ("action_dtype", "nothing"),
        ("padding", ["zeros"]),
        ("seed", -1),
        ("alpha", "high"),
        ("discrete", 4),
        ("discrete", (0, "4")),
        ("discrete", (0, 2**70)),
        ("history", "mine"),
    ],
)
def test_a_handle_that_was_tampered_with_is_refused_by_what_is_wrong_with_it(field: str, value: Any) -> None:
    made = small_replay()
    handle = made.handle()
    object.__setattr__(handle, field, value)
    with pytest.raises((TypeError, ValueError), match=f"^attach: {field}"):
        fastrl.Replay.attach(handle)


# ---- bad input


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"capacity": 10}, ValueError, "capacity: 10 is 5 for each of 2 lanes; each needs at least 13"),
        ({"capacity": 0}, ValueError, r"capacity: 0 is outside \[1"),
        ({"capacity": "all"}, ValueError, "capacity: 'all' is neither a number of transitions nor 'auto'"),
        ({"capacity": 10**12}, MemoryError, r"capacity: 1,000,000,000,000 transitions need .* at most [0-9,]+ fit"),
        ({"lanes": 0}, ValueError, "lanes: 0 is outside"),
        ({"lanes": 1.5}, TypeError, "lanes: 1.5 is not a whole number"),
        ({"obs_shape": (84, 0)}, ValueError, "obs_shape: 0 is outside"),
        ({"obs_shape": ()}, ValueError, r"obs_shape: \(\) is empty"),
        ({"obs_shape": 84}, TypeError, "obs_shape: 84 is not a tuple"),
        ({"obs_dtype": "object"}, TypeError, "obs_dtype: object is not a type of numbers"),
        ({"obs_dtype": "nonsense"}, TypeError, "obs_dtype: 'nonsense' is not a type of numbers"),
        ({"stack": 0}, ValueError, "stack: 0 is outside"),
        ({"action": 6}, TypeError, "action: 6 is not a Discrete, Box"),
        ({"seed": -1}, ValueError, "seed: -1 is outside"),
        ({"padding": "ones"}, ValueError, "padding: 'ones' is not one of 'zeros', 'first_frame'"),
        ({"alpha": 2.0}, ValueError, r"alpha: 2.0 is outside \[0, 1\]"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        small_replay(**arguments)


def test_the_automatic_capacity_leaves_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "available_memory_bytes", lambda: 4_100_000_000)
    made = fastrl.Replay("auto", lanes=4)
    assert 90_000_000 < made.region_bytes < 100_100_000
    monkeypatch.setattr(replay, "available_memory_bytes", lambda: 3_000_000_000)
    with pytest.raises(MemoryError, match=r"'auto' leaves 4 GB to the rest, but only 3\.0 GB are available"):
        fastrl.Replay("auto", lanes=4)


def test_the_largest_capacity_that_fits_is_named_rightly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "available_memory_bytes", lambda: 115_200_000)
    with pytest.raises(MemoryError, match=r"at most ([0-9,]+) fit") as refusal:
        fastrl.Replay(1_000_000, lanes=4)
    most = int(str(refusal.value).split("at most ")[1].split(" ")[0].replace(",", ""))
    assert 6_900 < most < 7_010
    assert fastrl.Replay(most - 4, lanes=4).region_bytes <= 50_000_000


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda r: r.sample(4), fastrl.NothingToSample, "the replay is empty; write transitions first"),
        (lambda r: r.stacks(), fastrl.NothingToSample, "stacks: lane 0 has no observation yet"),
        (lambda r: r.stalls(-1), ValueError, r"stalls: after_s -1 is not a number of seconds from 0 on"),
        (lambda r: r.stalls(True), ValueError, "stalls: after_s True is not a number"),
        (lambda r: r.stalls(10**400), ValueError, "stalls: after_s 1000000000.* is not a number of seconds"),
        (lambda r: r.sample(0), ValueError, "batch: 0 is outside"),
        (lambda r: r.sample(4, n_step=0), ValueError, "n_step: 0 is outside"),
        (
            lambda r: r.sample(4, n_step=1000),
            ValueError,
            r"n_step: 1000 is outside \[1, 12\]; more need a larger capacity",
        ),
        (lambda r: r.mirror("tpu!"), ValueError, "mirror: 'tpu!' is no device that torch knows"),
        (lambda r: r.sample(4, gamma=1.5), ValueError, "gamma 1.5 is outside"),
        (lambda r: r.sample(4, beta=-1), ValueError, "beta -1 is outside"),
        (lambda r: r.sample(4, out=r.buffer(5)), ValueError, r"out must be what replay.buffer\(4, 1\) made"),
        (lambda r: r.sample(4, boundary=[0]), ValueError, "the boundary is of 1 lanes, the replay has 2"),
        (lambda r: r.sample(4, boundary=[0, 9]), ValueError, "lane 1 is step 9, but only 0 are published"),
        (lambda r: r.writer(2), ValueError, r"writer: lane: 2 is outside \[0, 1\]"),
        (lambda r: r.update_priorities(np.zeros((1, 2), np.int64), [1.0]), RuntimeError, "draws uniformly"),
        (lambda r: r.stacks(np.zeros(3)), ValueError, "stacks: out must be a float32 array of shape"),
    ],
)
def test_wrong_calls_are_refused(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(small_replay())


def test_an_out_of_another_replay_is_refused() -> None:
    written = Written()
    written.play(0, 20)
    foreign = small_replay(stack=2).buffer(4)
    with pytest.raises(ValueError, match="the buffer is for another replay"):
        written.replay.sample(4, out=foreign)


@pytest.mark.parametrize(
    ("index", "priority", "error", "message"),
    [
        ([[0, 1]], [np.nan], ValueError, "priority nan is not a finite number"),
        ([[0, 1]], [-1.0], ValueError, "priority -1.0* is not a finite number from 0 on"),
        ([[5, 1]], [1.0], IndexError, r"\(lane 5, step 1\) is not an index that was sampled"),
        ([[0, -1]], [1.0], IndexError, "step -1"),
        ([[0, 1]], [1.0, 2.0], ValueError, r"1 transitions, but priorities of shape \(2,\)"),
        ([0, 1], [1.0], ValueError, r"must be a batch's \(batch, 2\) int64 array"),
    ],
)
def test_wrong_priorities_are_refused(index: Any, priority: Any, error: type[Exception], message: str) -> None:
    written = Written(alpha=0.5)
    written.play(0, 20)
    written.replay.sample(1)
    with pytest.raises(error, match=message):
        written.replay.update_priorities(np.array(index, np.int64), priority)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda w: w.append(0, 0.0, observation(0, 1), False, False), RuntimeError, "no episode is open in lane 0"),
        (lambda w: w.start(np.zeros(4, np.float32)), ValueError, r"obs is float32 of shape \(4,\), expected .*\(3,\)"),
        (lambda w: w.start(np.zeros(3, complex)), TypeError, "obs is complex128"),
        (
            lambda w: (w.start(observation(0, 0)), w.append(0.5, 0.0, observation(0, 1), False, False)),
            TypeError,
            "action",
        ),
        (
            lambda w: (w.start(observation(0, 0)), w.append(0, float("nan"), observation(0, 1), False, False)),
            ValueError,
            "reward nan",
        ),
        (lambda w: (w.close(), w.start(observation(0, 0))), RuntimeError, "start: the writer is closed"),
    ],
)
def test_wrong_steps_are_refused_before_anything_is_written(call: Any, error: type[Exception], message: str) -> None:
    made = small_replay()
    writer = made.writer(0)
    with pytest.raises(error, match=message):
        call(writer)
    assert made.boundary()[0] <= 1


def test_numbers_and_lists_are_taken_where_nothing_is_lost() -> None:
    made = small_replay()
    with made.writer(0) as writer:
        writer.start([1.0, 2.0, 3.0])
        writer.append(np.int32(3), 1, np.array([4.0, 5.0, 6.0]), False, np.bool_(True))
    batch = made.sample(1)
    assert batch.next_obs[0, -1].tolist() == [4, 5, 6]
    assert batch.action.tolist() == [3]


@pytest.mark.parametrize(
    ("dtype", "given", "message"),
    [
        (
            "uint8",
            np.array([1, 513], np.uint16),
            "obs has the value 513, but the replay's uint8 holds 0 to 255; scale it",
        ),
        ("uint8", np.array([1, -1], np.int8), "has the value -1,"),
        ("uint8", [1, 256], "has the value 256,"),
        ("int16", np.array([70_000, 0]), "has the value 70000, but the replay's int16 holds -32768 to 32767"),
        ("int64", np.array([2**63, 0], np.uint64), "has the value 9223372036854775808,"),
        ("uint64", [-1, 0], "has the value -1,"),
        ("float32", np.array([1e300, np.inf]), r"has the value 1e\+300,"),
        ("float32", [-1e300, np.nan], r"has the value -1e\+300,"),
        ("float16", np.array([70_000, 0]), "has the value 70000,"),
        ("bool", [2, 0], "has the value 2,"),
    ],
)
def test_values_that_do_not_fit_are_refused(dtype: str, given: Any, message: str) -> None:
    made = fastrl.Replay(100, 1, (2,), dtype, stack=1)
    with made.writer(0) as writer, pytest.raises(ValueError, match=message):
        writer.start(given)
    assert made.boundary() == [0]


@pytest.mark.parametrize(
    ("dtype", "given"), [("uint8", [1.0, 2.0]), ("int64", np.zeros(2, np.float32)), ("bool", [0.5, 1])]
)
def test_floats_are_not_taken_for_whole_numbers(dtype: str, given: Any) -> None:
    with (
        fastrl.Replay(100, 1, (2,), dtype, stack=1).writer(0) as writer,
        pytest.raises(TypeError, match="obs is float"),
    ):
        writer.start(given)


@pytest.mark.parametrize(
    ("dtype", "given"),
    [
        ("uint8", [1, 255]),
        ("uint8", np.array([0, 255], np.uint64)),
        ("int8", np.array([-128, 127])),
        ("uint64", [0, 2**63 - 1]),
        ("bool", [1, 0]),
        ("float32", np.array([0.5, 2.0**100])),
        ("float32", np.array([1, 2], np.uint8)),
        ("float16", np.array([65_504, -65_504])),
        ("float32", np.asfortranarray(np.ones((4, 2), np.float32))[0]),
    ],
)
def test_values_of_other_types_are_taken_where_they_fit(dtype: str, given: Any) -> None:
    made = fastrl.Replay(100, 1, (2,), dtype, stack=1)
    with made.writer(0) as writer:
        writer.start(given)
    assert made.stacks()[0, 0].tolist() == np.asarray(given).tolist()


def test_values_are_rounded_to_narrower_floats() -> None:
    made = fastrl.Replay(100, 1, (1,), "float32", stack=1)
    with made.writer(0) as writer:
        writer.start([0.1])
    assert made.stacks()[0, 0, 0] == np.float32(0.1)


def test_arrays_of_the_replays_own_type_are_taken_as_they_are() -> None:
    """The writer knows them by numpy's one object of each type; all else is converted."""
    made = fastrl.Replay(100, 1, (2,), "float32", stack=1, action=spaces.Box(-1, 1, (2,)))
    for each in (made, fastrl.Replay.attach(made.handle())):
        assert each.obs_dtype is np.dtype("float32")
        assert each.action_dtype is np.dtype("float32")
    assert fastrl.Replay(100, 1).obs_dtype is np.dtype("uint8")


def test_numbers_of_the_other_byte_order_are_turned_round() -> None:
    other = np.dtype("f4").newbyteorder()
    made = fastrl.Replay(100, 1, (2,), other, stack=1, action=spaces.Box(-1, 1, (2,), other))
    with made.writer(0) as writer:
        writer.start(np.array([1, 2], other))
        writer.append(np.array([0.5, -0.25], other), 0.0, np.array([3, 4], other), False, False)
    drawn = made.sample(1)
    assert drawn.obs.dtype == drawn.action.dtype == np.dtype("f4")
    assert (drawn.obs[0, 0].tolist(), drawn.next_obs[0, 0].tolist()) == ([1, 2], [3, 4])
    assert drawn.action[0].tolist() == [0.5, -0.25]


@pytest.mark.parametrize("attached", [False, True])
@pytest.mark.parametrize(
    ("space", "action", "message"),
    [
        (spaces.Discrete(4), 99, r"action 99 is outside \[0, 3\], the Discrete space"),
        (spaces.Discrete(4), 4, "action 4 is outside"),
        (spaces.Discrete(4), -1, "action -1 is outside"),
        (spaces.Discrete(3, start=5), 4, r"action 4 is outside \[5, 7\]"),
        (spaces.Discrete(3, start=-5), -2, r"action -2 is outside \[-5, -3\]"),
        (spaces.Discrete(4, start=-3), 2**63 - 1, r"action 9223372036854775807 is outside \[-3, 0\]"),
        (spaces.Discrete(4, start=2**63 - 4), -(2**63), "action -9223372036854775808 is outside"),
        (spaces.Box(-1, 1, (2,)), np.array([0, np.nan], np.float32), "not a finite number; did the policy diverge"),
        (spaces.Box(-1, 1, (2,), np.float64), np.array([0, np.inf]), "not a finite number"),
        (spaces.Box(-1, 1, (2,), np.float16), np.array([0, np.inf], np.float16), "not a finite number"),
        (spaces.Box(-1, 1, (2,)), np.array([0, 1e39]), r"action has the value 1e\+39"),
        (spaces.Box(-1, 1, (2,), np.dtype(">f4")), np.array([0, np.nan], ">f4"), "not a finite number"),
    ],
)
def test_actions_that_are_none_are_refused(attached: bool, space: Any, action: Any, message: str) -> None:
    made = fastrl.Replay(100, 1, (1,), "float32", stack=1, action=space)
    seen = fastrl.Replay.attach(made.handle()) if attached else made
    with seen.writer(0) as writer:
        writer.start([0.0])
        with pytest.raises(ValueError, match=message):
            writer.append(action, 0.0, [0.0], False, False)
        for _ in range(20):
            writer.append(space.sample(), 0.0, [0.0], False, False)
    assert made.boundary() == [21]


@pytest.mark.parametrize("reward", [1e39, -1e39, float("inf"), float("nan")])
def test_rewards_that_are_no_finite_floats_are_refused(reward: float) -> None:
    made = small_replay()
    with made.writer(0) as writer:
        writer.start(observation(0, 0))
        with pytest.raises(ValueError, match=r"reward .* is not a finite number of at most 3\.4e38"):
            writer.append(0, reward, observation(0, 1), False, False)
        writer.append(0, 3.4e38, observation(0, 1), False, False)


@pytest.mark.parametrize("available", [135_000_000, 188_456_789])
@pytest.mark.parametrize("lanes", [1, 3, 64])
def test_as_many_transitions_fit_as_is_said(monkeypatch: pytest.MonkeyPatch, available: int, lanes: int) -> None:
    monkeypatch.setattr(replay, "available_memory_bytes", lambda: available)
    with pytest.raises(MemoryError, match=r"at most [0-9,]+ fit") as refused:
        fastrl.Replay(10**9, lanes)
    most = int(str(refused.value).split("at most ")[1].split(" ")[0].replace(",", ""))
    assert fastrl.Replay(most, lanes).capacity == most
    with pytest.raises(MemoryError):
        fastrl.Replay(int(most * 1.011) + lanes, lanes)  # it names a two-hundredth of the memory less than would fit


def test_a_descriptor_that_is_a_pipe_by_now_is_refused_at_once(tmp_path: Any) -> None:
    made = small_replay()
    os.mkfifo(tmp_path / "pipe")
    descriptor = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    script = "import fastrl, pickle, sys; fastrl.Replay.observe(pickle.load(sys.stdin.buffer))"
    handle = pickle.dumps(dataclasses.replace(made.handle(), descriptor=descriptor))
    try:
        result = subprocess.run([sys.executable, "-c", script], input=handle, capture_output=True, timeout=60)
    finally:
        os.close(descriptor)
    assert b"ConnectionError" in result.stderr or b"RegionGone" in result.stderr, result.stderr


def test_no_memory_is_left_behind() -> None:
    def shared_kb() -> int:
        with open("/proc/meminfo") as file:
            return int(next(line for line in file if line.startswith("Shmem:")).split()[1])

    names = set(os.listdir("/dev/shm"))
    # The figure is the whole machine's: what another process takes meanwhile comes once, a leak comes every time.
    grown_kb = []
    for _ in range(3):
        before = shared_kb()
        for _ in range(20):
            made = fastrl.Replay(2000, 2)
            made.writer(0).close()
            del made
        grown_kb.append(shared_kb() - before)
    assert min(grown_kb) < 15_000  # one replay is 14.3 MB
    assert not [name for name in set(os.listdir("/dev/shm")) - names if "fastrl" in name]
