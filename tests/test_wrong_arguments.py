"""What has the wrong type or range is named in fastrl's words, with what is allowed; nothing of the binding is seen."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import fastrl

Call = Callable[["Made", Any], object]


class Made:
    """A prioritised replay with steps in it, its writer and its prefetcher."""

    def __init__(self) -> None:
        self.replay = fastrl.Replay(1000, 2, obs_shape=(2,), obs_dtype="float32", stack=1, alpha=0.5)
        self.zeros = np.zeros(2, np.float32)
        self.writer = self.replay.writer(0)
        self.writer.start(self.zeros)
        for _ in range(200):
            self.writer.append(0, 0.0, self.zeros, False, False)
        self.index = self.replay.sample(4).index
        self.prefetcher = self.replay.prefetch(4)


@pytest.fixture(scope="module")
def made() -> Iterator[Made]:
    one = Made()
    yield one
    one.prefetcher.close()
    one.writer.close()


NO_FLAGS = [None, "True", 2, 0.5, [], np.zeros(2, bool)]
NO_SHARES = [None, "1", True, 2, -0.1, float("nan"), [0.5], 10**400]
NO_COUNTS = [None, "4", 4.0, True, 0, -1, 2**70, float("nan"), [4], np.zeros(2)]
NO_BOUNDARIES = ["x", 3, [0.5, 0.5], [-1, 0], [2**70, 0], [None, None], {}, [[1], [2]]]

CALLS: list[tuple[str, Call, list[Any]]] = [
    ("gamma", lambda made, x: made.replay.sample(4, 1, x), NO_SHARES),
    ("beta", lambda made, x: made.replay.sample(4, beta=x), NO_SHARES),
    ("batch", lambda made, x: made.replay.sample(x), NO_COUNTS),
    ("n_step", lambda made, x: made.replay.sample(4, x), NO_COUNTS),
    ("boundary", lambda made, x: made.replay.sample(4, boundary=x), NO_BOUNDARIES),
    ("pin_memory", lambda made, x: made.replay.buffer(4, 1, x), NO_FLAGS),
    ("beta", lambda made, x: made.prefetcher.request(None, x), NO_SHARES[1:]),  # None: its own
    ("boundary", lambda made, x: made.prefetcher.request(x), NO_BOUNDARIES),
    ("priorities", lambda made, x: made.replay.update_priorities(made.index, x), ["x", None, [{}] * 4, [[1], [2, 3]]]),
    ("priority", lambda made, x: made.replay.update_priorities(made.index, x), [[-1.0] * 4, [float("nan")] * 4]),
    ("index", lambda made, x: made.replay.update_priorities(x, np.ones(4)), ["x", None, 3, [0.5], [[1], [2, 3]]]),
    ("lane", lambda made, x: made.replay.writer(x), [None, "0", 0.0, True, -1, 2, 2**70]),
    ("continue_episode", lambda made, x: made.replay.writer(1, x), NO_FLAGS),
    ("reward", lambda made, x: made.writer.append(0, x, made.zeros, False, False), [None, "1", [1.0], 10**400, 1j]),
    ("terminated", lambda made, x: made.writer.append(0, 0.0, made.zeros, x, False), NO_FLAGS),
    ("truncated", lambda made, x: made.writer.append(0, 0.0, made.zeros, False, x), NO_FLAGS),
    ("action", lambda made, x: made.writer.append(x, 0.0, made.zeros, False, False), [None, "1", 0.5, [1]]),
    ("next_obs", lambda made, x: made.writer.append(0, 0.0, x, False, False), [None, "1", 3, [1.0], ["a", "b"]]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "call", "wrong"), CALLS, ids=[f"{i}-{name}" for i, (name, _, _) in enumerate(CALLS)])
def test_what_is_wrong_is_named(made: Made, name: str, call: Call, wrong: list[Any]) -> None:
    for value in wrong:
        published, pending = made.replay.boundary(), made.prefetcher.pending
        with pytest.raises((TypeError, ValueError), match=rf"^\w+: .*{name}|^{name}: ") as refused:
            call(made, value)
        assert not re.search("incompatible function arguments|_core|Unable to cast", str(refused.value)), value
        assert (made.replay.boundary(), made.prefetcher.pending) == (published, pending)


def test_what_is_right_in_another_type_is_taken(made: Made) -> None:
    for flag in (True, 0, 1, np.True_, np.int64(1)):
        for reward in (1, True, np.float32(0.5), np.array(0.5)):
            made.writer.append(np.int32(1), reward, made.zeros, False, flag)
            made.writer.start(made.zeros)
    assert len(made.replay.sample(np.int64(4), np.int64(1), np.float32(0.5), beta=0).reward) == 4
    made.replay.sample(4, 1, 1, boundary=np.array(made.replay.boundary()))


def test_an_event_that_fails_spoils_one_sample(made: Made) -> None:
    class Broken:
        asked = 0

        def query(self) -> Any:
            self.asked += 1
            raise OSError("the device is gone")

    class Odd:
        def query(self) -> Any:
            return "yes"

    for event, error, message in ((Broken(), OSError, "the device is gone"), (Odd(), TypeError, "returned 'yes'")):
        batch = made.replay.sample(16)
        at = batch.obs.__array_interface__["data"][0]
        batch.guard(event)
        del batch
        with pytest.raises(error, match=message):
            made.replay.sample(16)
        kept = [made.replay.sample(16) for _ in range(9)]  # all that is idle is among it
        assert at not in [one.obs.__array_interface__["data"][0] for one in kept]
        assert np.isfinite(kept[0].weight).all()
