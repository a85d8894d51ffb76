"""What the multiplications of the nature network take at this machine's rate: what no update on it can beat.

A convolution is counted as the product that it is: its filters times as many columns as the batch has places. So many
multiplications are timed as products of large squares, by what multiplies for us where it is at its fastest
(fastrl/learn/products.py), with the same threads and in the same precision. (The network's own products in the sizes
they have are no limit: those of a first convolution are so long and thin that they wait for memory, which a convolution
does not.) Gathering columns, activations, losses, the norm and the optimiser are left out.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from fastrl.learn.networks import build
from fastrl.learn.products import slope_of_given

# Of each layer: what it makes, what it makes one of these of, and at how many places of a frame.
_LAYERS = ((32, 4 * 8 * 8, 20 * 20), (64, 32 * 4 * 4, 9 * 9), (64, 64 * 3 * 3, 7 * 7), (512, 64 * 7 * 7, 1))
_SIDE = 1024  # of the squares
_KINDS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def forward(frames: int, heads: int) -> int:
    """Multiplications of what the network says of so many frames, ``heads`` numbers each."""
    return frames * sum(made * of * places for made, of, places in (*_LAYERS, (heads, 512, 1)))


def backward(frames: int, heads: int) -> int:
    """Of the slopes of all weights, and of what each layer but the first has seen."""
    made, of, places = _LAYERS[0]
    return 2 * forward(frames, heads) - frames * made * of * places


def check_count() -> None:
    """Torch counts as many, of a real network."""
    network = build({"kind": "q", "torso": "nature", "obs_shape": [4, 84, 84], "num_actions": 6}, [0])
    with FlopCounterMode(display=False) as counter:
        said = network(torch.zeros(3, 4, 84, 84, dtype=torch.uint8))
    assert counter.get_total_flops() == 2 * forward(3, 6)
    with FlopCounterMode(display=False) as counter:
        said.sum().backward()
    assert counter.get_total_flops() == 2 * backward(3, 6)


def multiplying(count: int, precision: str) -> Callable[[], None]:
    """``count`` multiplications and additions in products of large squares, and of a part of one for the rest."""
    left, right = (torch.randn(_SIDE, _SIDE).to(_KINDS[precision]) for _ in range(2))
    whole, rest = divmod(count, _SIDE**3)
    part = left[: round(rest / _SIDE**2)]

    def run() -> None:
        for _ in range(whole):
            slope_of_given(left, right)
        slope_of_given(part, right)

    return run
