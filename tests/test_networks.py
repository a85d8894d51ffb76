"""What networks make of the bytes that they are shown."""

from __future__ import annotations

import pytest
import torch

from fastrl import dqn
from fastrl.learn.networks import Scaled, build, described


@pytest.mark.parametrize("asked", [False, True])
def test_dqn_describes_what_its_option_says(asked: bool) -> None:
    class Envs:
        kind, obs_shape, num_actions = "atari", (84, 84), 4

    config = dqn.Config(env="PongNoFrameskip-v4", centred=asked)
    assert dqn.describe_network(config, Envs()).get("centred", False) is asked  # type: ignore[arg-type]


def some_stacks(least: int, most: int) -> torch.Tensor:
    return torch.randint(least, most, (5, 4, 84, 84), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_centred_numbers_are_those_of_each_stack_less_its_mean(dtype: torch.dtype) -> None:
    obs = some_stacks(0, 256)
    obs[1] //= 7  # a darker one
    plain, centred = Scaled()(obs, dtype), Scaled(centred=True)(obs, dtype)
    assert plain.dtype == centred.dtype == dtype
    assert plain.stride() == centred.stride()
    exact = obs.double() / 255
    less = exact - exact.mean((1, 2, 3), keepdim=True)
    far = 1e-6 if dtype == torch.float32 else 8e-3  # bf16 has three digits
    torch.testing.assert_close(plain.double(), exact, rtol=0, atol=far)
    torch.testing.assert_close(centred.double(), less, rtol=0, atol=far)


def test_centred_or_not_floats_stay_as_they_are() -> None:
    obs = torch.rand(3, 1, 4)
    assert torch.equal(Scaled(centred=True)(obs), obs)


def test_a_centred_network_does_not_see_how_bright_a_game_is() -> None:
    description = described("q", "a3c", (4, 84, 84), (), 6, dueling=False, centred=True)
    obs = some_stacks(0, 100)
    centred = build(description, [1])
    plain = build(description | {"centred": False}, [1])
    with torch.no_grad():
        torch.testing.assert_close(centred(obs + 100), centred(obs), rtol=1e-4, atol=1e-5)
        assert (plain(obs + 100) - plain(obs)).abs().max() > 0.01
