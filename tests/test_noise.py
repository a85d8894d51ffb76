"""Exploration noise: its statistics, its shape, its resets, and that each mistake in them is found."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fastrl.learn.noise import Gaussian, Noise, OrnsteinUhlenbeck

THETA, SIGMA = 0.15, 0.2


def drawn(noise: Noise, steps: int, seed: int = 0) -> np.ndarray:
    """(steps, envs, dimensions)."""
    generator = np.random.default_rng(seed)
    return np.stack([noise.draw(generator) for _ in range(steps)])


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


# ---- Ornstein-Uhlenbeck


def test_it_is_the_recurrence_in_float64() -> None:
    found = drawn(OrnsteinUhlenbeck(2, 3, THETA, SIGMA), 50, seed=4)

    normal = np.random.default_rng(4).standard_normal((50, 2, 3))
    at = np.zeros((2, 3))
    for step in range(50):
        at = at - THETA * at + SIGMA * normal[step]
        np.testing.assert_allclose(found[step], at, rtol=1e-14)


def require_stationary(make: Callable[..., Noise]) -> None:
    # After 50 steps it has forgotten where it began: 0.85^50 is 0.0003. 400,000 numbers are worth about 64,000
    # independent ones: 1.6% is more than 5 standard errors of their deviation.
    found = drawn(make(100, 2, THETA, SIGMA), 2_050)[50:]
    assert found.std() == pytest.approx(SIGMA / math.sqrt(1 - (1 - THETA) ** 2), rel=0.016)
    for lag in (1, 2, 5):
        assert correlation(found[:-lag], found[lag:]) == pytest.approx((1 - THETA) ** lag, abs=0.015)


def test_its_deviation_and_its_memory_are_those_of_theory() -> None:
    require_stationary(OrnsteinUhlenbeck)


def more_sigma(envs: int, dimensions: int, theta: float, sigma: float) -> Noise:
    return OrnsteinUhlenbeck(envs, dimensions, theta, sigma * 1.03)


def less_theta(envs: int, dimensions: int, theta: float, sigma: float) -> Noise:
    return OrnsteinUhlenbeck(envs, dimensions, theta * 0.9, sigma)


def no_memory(envs: int, dimensions: int, theta: float, sigma: float) -> Noise:
    return Gaussian(envs, dimensions, sigma / math.sqrt(1 - (1 - theta) ** 2))


@pytest.mark.parametrize("mistake", [more_sigma, less_theta, no_memory])
def test_noise_of_other_statistics_is_found_out(mistake: Callable[..., Noise]) -> None:
    with pytest.raises(AssertionError):
        require_stationary(mistake)


def require_reset(noise: Any) -> None:
    drawn(noise, 30)
    before = np.array(noise.state())
    noise.ended([1])
    after = np.array(noise.state())
    assert (after[1] == 0).all()
    assert np.array_equal(after[[0, 2]], before[[0, 2]])
    # An episode's first noise is that of a new process: one normal number.
    first = noise.draw(np.random.default_rng(7))[1]
    assert first == pytest.approx(SIGMA * np.random.default_rng(7).standard_normal((3, 2))[1], rel=1e-14)


def test_an_episode_that_ends_resets_its_env_alone() -> None:
    require_reset(OrnsteinUhlenbeck(3, 2, THETA, SIGMA))


class NotReset(OrnsteinUhlenbeck):
    def ended(self, envs: list[int]) -> None:
        pass


class AllReset(OrnsteinUhlenbeck):
    def ended(self, envs: list[int]) -> None:
        super().ended([0, 1, 2])


@pytest.mark.parametrize("mistake", [NotReset, AllReset])
def test_noise_that_is_not_reset_is_found_out(mistake: type[OrnsteinUhlenbeck]) -> None:
    with pytest.raises(AssertionError):
        require_reset(mistake(3, 2, THETA, SIGMA))


def test_what_was_drawn_stays_when_an_episode_ends() -> None:
    noise = OrnsteinUhlenbeck(1, 2, THETA, SIGMA)
    found = noise.draw(np.random.default_rng(0))
    kept = found.copy()

    noise.ended([0])
    found *= 2  # nor does who has it reach into the process
    drawn(noise, 1)

    assert np.array_equal(found, kept * 2)
    assert np.array(noise.state()).shape == (1, 2)


def test_it_goes_on_exactly_from_its_state() -> None:
    noise, other = (OrnsteinUhlenbeck(2, 3, THETA, SIGMA) for _ in range(2))
    drawn(noise, 20)
    other.load(noise.state())

    assert np.array_equal(drawn(noise, 5, seed=1), drawn(other, 5, seed=1))
    with pytest.raises(ValueError, match=r"noise: a state of shape \(2, 3\); this has .* \(3, 3\)"):
        OrnsteinUhlenbeck(3, 3, THETA, SIGMA).load(noise.state())


# ---- of each env and dimension its own


@pytest.fixture(params=["ou", "gaussian"])
def make(request: pytest.FixtureRequest) -> Callable[[int, int], Noise]:
    if request.param == "ou":
        return lambda envs, dimensions: OrnsteinUhlenbeck(envs, dimensions, THETA, SIGMA)
    return lambda envs, dimensions: Gaussian(envs, dimensions, SIGMA)


def require_independent(make: Callable[[int, int], Any]) -> None:
    found = drawn(make(3, 4), 20_000)
    assert found.shape == (20_000, 3, 4)
    columns = found.reshape(20_000, 12)
    apart = np.corrcoef(columns.T) - np.eye(12)
    # OU: about 1,600 independent numbers a column; 4 standard errors.
    assert np.abs(apart).max() < 0.1


def test_each_env_and_dimension_has_its_own(make: Callable[[int, int], Noise]) -> None:
    require_independent(make)


class SharedBetween:
    """The planted mistake: one process for all dimensions, or for all envs."""

    def __init__(self, make: Callable[[int, int], Noise], what: str, envs: int, dimensions: int) -> None:
        self._shape = (envs, dimensions)
        self._noise = make(envs, 1) if what == "dimensions" else make(1, dimensions)

    def draw(self, generator: np.random.Generator) -> np.ndarray:
        return np.broadcast_to(self._noise.draw(generator), self._shape)


@pytest.mark.parametrize("what", ["dimensions", "envs"])
def test_noise_shared_between_dimensions_or_envs_is_found_out(make: Callable[[int, int], Noise], what: str) -> None:
    with pytest.raises(AssertionError):
        require_independent(lambda envs, dimensions: SharedBetween(make, what, envs, dimensions))


def test_gaussian_noise_has_its_deviation_and_no_memory() -> None:
    found = drawn(Gaussian(10, 3, 0.1), 10_000)

    assert found.mean() == pytest.approx(0, abs=4 * 0.1 / math.sqrt(found.size))
    assert found.std() == pytest.approx(0.1, rel=0.006)
    assert correlation(found[:-1], found[1:]) == pytest.approx(0, abs=0.008)
    assert Gaussian(1, 1, 0.1).state() == []
