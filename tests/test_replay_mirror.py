"""The mirror on a device, with a CPU tensor in the device's role: to the bit what the host path samples."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from replay_oracle import GUARD_STEPS
from written_replay import GAMMA, Written, small_replay

import fastrl
from fastrl.engine import mirror as mirrors


def play(made: Written, turn: int) -> None:
    made.play(0, 9 + turn % 3, seed=turn)
    made.play(1, 4 + turn % 5, seed=100 + turn)


def require_equal(batch: fastrl.Batch, drawn: mirrors.Drawn, obs: Any, next_obs: Any) -> None:
    for name in ("action", "reward", "discount", "index", "weight"):
        np.testing.assert_array_equal(getattr(drawn, name), getattr(batch, name))
    for ours, theirs in ((obs, batch.obs), (next_obs, batch.next_obs)):
        assert tuple(ours.shape) == theirs.shape
        assert ours.cpu().numpy().tobytes() == theirs.tobytes()


@pytest.mark.parametrize("alpha", [None, 0.6])
@pytest.mark.parametrize("padding", ["zeros", "first_frame"])
@pytest.mark.parametrize("n_step", [1, 3])
def test_batches_equal_those_of_the_host(n_step: int, padding: str, alpha: float | None) -> None:
    """Over many rounds of a small ring, with writing between the draw and the gathering."""
    ours, theirs = (Written(padding=padding, alpha=alpha) for _ in range(2))
    mirror = ours.replay.mirror("cpu")
    gatherer = mirror.gatherer(32, n_step)
    for turn in range(25):
        play(ours, turn)
        play(theirs, turn)
        boundary = ours.replay.boundary()
        assert mirror.upload(boundary) == boundary
        for again in range(2):
            batch = theirs.replay.sample(32, n_step, GAMMA, boundary=boundary, beta=0.5)
            drawn = mirror.draw(32, n_step, GAMMA, beta=0.5)
            if again:  # the next steps are under way
                for made in (ours, theirs):
                    made.play(0, GUARD_STEPS - 1, seed=turn)
            obs, next_obs = mirror.gather(drawn)
            require_equal(batch, drawn, obs, next_obs)
            gatherer.load(drawn)
            gatherer.gather()
            require_equal(batch, drawn, gatherer.obs, gatherer.next_obs)
            if alpha is not None:
                new = np.abs(batch.obs[:, -1, 2]) % 7
                assert ours.replay.update_priorities(drawn.index, new) == theirs.replay.update_priorities(
                    batch.index, new
                )
    assert min(ours.replay.boundary()) > 3 * ours.slots
    assert ours.replay.stats()["race_rejects"] == theirs.replay.stats()["race_rejects"]


@pytest.mark.parametrize(
    ("shape", "dtype", "stack"),
    [((84, 84), "uint8", 4), ((17,), "float32", 1), ((3,), "float64", 2), ((5,), "uint8", 3), ((3,), "int16", 1)],
)
def test_observations_of_any_kind(shape: tuple[int, ...], dtype: str, stack: int) -> None:
    rng = np.random.default_rng(0)
    obs = (rng.normal(size=(70, *shape)) * 100).astype(dtype)
    ours, theirs = (fastrl.Replay(60, 1, shape, dtype, stack, _least_spare_steps=GUARD_STEPS) for _ in range(2))
    for made in (ours, theirs):
        with made.writer(0) as writer:
            for step in range(70):
                if step % 9 == 0:
                    writer.start(obs[step])
                else:
                    writer.append(step, 1.0, obs[step], step % 9 == 8, False)
    mirror = ours.mirror("cpu")
    mirror.upload()
    drawn = mirror.draw(64)
    found = mirror.gather(drawn)
    require_equal(theirs.sample(64), drawn, *found)
    assert found[0].dtype == mirror.obs_dtype
    assert found[0].untyped_storage().data_ptr() == found[1].untyped_storage().data_ptr()


def test_each_observation_is_uploaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Written()
    mirror = made.replay.mirror("cpu")
    sent: list[int] = []
    send = mirrors._Stage.send

    def counted(self: Any, table: Any, word: Any, count: int) -> None:
        sent.extend(self.places[:count].tolist())
        send(self, table, word, count)

    monkeypatch.setattr(mirrors._Stage, "send", counted)
    for turn in range(6):
        play(made, turn)
        mirror.upload()
        mirror.upload()
    assert len(sent) == sum(made.replay.boundary())
    kept = made.slots - GUARD_STEPS
    play_all = Written()
    for turn in range(6):
        play(play_all, turn)
    late = play_all.replay.mirror("cpu")
    sent.clear()
    late.upload()
    assert len(sent) == sum(min(end, kept) for end in play_all.replay.boundary())  # no more than can be drawn


def test_a_large_upload_goes_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirrors, "_STAGED_BYTES", 60)  # five observations
    ours, theirs = Written(), Written()
    for turn in range(6):
        play(ours, turn)
        play(theirs, turn)
    mirror = ours.replay.mirror("cpu")
    mirror.upload()
    drawn = mirror.draw(64, 3, GAMMA)
    require_equal(theirs.replay.sample(64, 3, GAMMA), drawn, *mirror.gather(drawn))


def test_what_may_be_gone_is_never_gathered() -> None:
    """A slot that was overwritten between draw and gathering is refused, not shown as something else."""
    made = Written()
    made.play(0, 40, seed=1)
    mirror = made.replay.mirror("cpu")
    mirror.upload()
    drawn = mirror.draw(64, 1, GAMMA)
    expected = [tensor.clone() for tensor in mirror.gather(drawn)]
    for further in range(1, 12):
        made.play(0, 1, seed=further)
        mirror.upload()
        if further <= GUARD_STEPS:
            assert all(torch.equal(*pair) for pair in zip(mirror.gather(drawn), expected, strict=True))
        else:
            with pytest.raises(RuntimeError, match=f"{further} steps of lane 0 were uploaded since this was drawn"):
                mirror.gather(drawn)
            with pytest.raises(RuntimeError, match="gather before the next upload"):
                mirror.gatherer(64).load(drawn)


@pytest.mark.parametrize("further", range(6, 17))
def test_what_is_overwritten_during_the_upload_is_left_out(monkeypatch: pytest.MonkeyPatch, further: int) -> None:
    """A writer that comes round during the upload: nothing that can be drawn is wrong."""
    made = Written(lanes=1, capacity=24)
    made.play(0, 24, seed=1)
    mirror = made.replay.mirror("cpu")
    boundary = made.replay.boundary()
    stage_run, played = mirror._stage_run, iter((further, 0, 0))

    def late(*arguments: Any) -> int:
        made.play(0, next(played), seed=2)
        return int(stage_run(*arguments))

    monkeypatch.setattr(mirror, "_stage_run", late)
    mirror.upload(boundary)
    drawn = mirror.draw(64, 1, GAMMA)
    obs, _ = mirror.gather(drawn)
    np.testing.assert_array_equal(obs[:, -1, 1].numpy(), drawn.index[:, 1])


def test_an_upload_that_failed_shows_nothing_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirrors, "_STAGED_BYTES", 60)  # five observations
    made = Written()
    made.play(0, 30, seed=1)
    mirror = made.replay.mirror("cpu")
    mirror.upload()
    made.play(0, 20, seed=2)
    send, sent = mirrors._Stage.send, iter(range(99))

    def failing(*arguments: Any) -> None:
        if next(sent) == 1:
            raise RuntimeError("CUDA error: out of memory")
        send(*arguments)

    monkeypatch.setattr(mirrors._Stage, "send", failing)
    with pytest.raises(RuntimeError, match="out of memory"):
        mirror.upload()
    assert mirror.boundary == [39, 0]  # the first five of those that count
    drawn = mirror.draw(4, 1, GAMMA)
    with pytest.raises(RuntimeError, match="11 steps of lane 0 were uploaded since this was drawn"):
        mirror.gather(drawn)
    mirror.upload()
    drawn = mirror.draw(64, 1, GAMMA)
    np.testing.assert_array_equal(mirror.gather(drawn)[0][:, -1, 1].numpy(), drawn.index[:, 1])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m, w: m.upload([1]), ValueError, "upload: the boundary is of 1 lanes, the replay has 2"),
        (lambda m, w: m.upload([99, 0]), ValueError, "lane 0 is step 99; 30 were uploaded and 30 are published"),
        (lambda m, w: m.upload([3, 0]), ValueError, "lane 0 is step 3; 30 were uploaded"),
        (lambda m, w: w.replay.mirror("cpu").gather(m.draw(4)), ValueError, "drawn by another mirror"),
        (lambda m, w: m.gatherer(8).load(m.draw(4)), ValueError, "4 transitions of n_step 1 were drawn; this is for 8"),
        (lambda m, w: m.gatherer(4).load(m.draw(4, 3)), ValueError, "of n_step 3 were drawn; this is for 4 of n_step"),
        (lambda m, w: w.replay.mirror("cpu").draw(4), fastrl.NothingToSample, "nothing was written up to"),
        (lambda m, w: m.draw(4, gamma=2), ValueError, "draw: gamma 2 is outside"),
    ],
)
def test_wrong_calls_are_refused(call: Any, error: type[Exception], message: str) -> None:
    made = Written()
    made.play(0, 30, seed=1)
    mirror = made.replay.mirror("cpu")
    mirror.upload()
    with pytest.raises(error, match=message):
        call(mirror, made)


@pytest.mark.parametrize(
    ("wanted", "needed", "free", "chosen"),
    [
        ("auto", 7_056_000_000, 15_000_000_000, "cuda"),
        ("auto", 7_056_000_000, 14_112_000_000, "cuda"),
        ("auto", 7_056_000_000, 14_111_999_999, "cpu"),
        ("auto", 1, 0, "cpu"),
        ("cpu", 1, 10**12, "cpu"),
        ("cuda", 7_056_000_000, 8_000_000_000, "cuda"),
    ],
)
def test_the_policy_takes_half_of_what_is_free(wanted: Any, needed: int, free: int, chosen: str) -> None:
    assert mirrors.replay_device(wanted, needed, free) == chosen


def test_the_policy_refuses_what_cannot_be() -> None:
    with pytest.raises(MemoryError, match=r"a mirror needs 7.06 GB, the device has 5.00 GB free; use 'cpu'"):
        mirrors.replay_device("cuda", 7_056_000_000, 5_000_000_000)
    with pytest.raises(ValueError, match="'gpu' is not one of"):
        mirrors.replay_device("gpu", 1, 1)  # type: ignore[arg-type]
    made = small_replay()
    assert mirrors.mirror_bytes(made) == 49 * 12
