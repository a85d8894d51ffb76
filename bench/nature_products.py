"""The matrix products of a training with the nature network, and nothing else: what no update on this machine can beat.

A convolution is counted as the product that it is: its filters times as many columns as the batch has places. Gathering
these columns, activations, losses, the norm and the optimiser are left out, and the layers' sizes are what they are; so
a share is of the speed of torch's own multiplication with the same threads.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

# Of each layer: what it makes, what it makes one of these of, and at how many places of a frame.
_LAYERS = ((32, 4 * 8 * 8, 20 * 20), (64, 32 * 4 * 4, 9 * 9), (64, 64 * 3 * 3, 7 * 7), (512, 64 * 7 * 7, 1))
_KINDS = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class _Layer:
    weights: torch.Tensor
    seen: torch.Tensor  # columns, one a place of each frame
    said: torch.Tensor
    slope_of_weights: torch.Tensor  # of its own, so that no number grows beyond all bounds
    slope_of_seen: torch.Tensor


class NatureProducts:
    """Of batches of one size.

    Args:
        batch: frames.
        heads: numbers that the network says of a frame.
        precision: fp32 or bf16.
    """

    def __init__(self, batch: int, heads: int, precision: str) -> None:
        kind = _KINDS[precision]
        self._layers = []
        for made, of, places in (*_LAYERS, (heads, 512, 1)):
            shapes = (made, of), (of, places * batch), (made, places * batch), (made, of), (of, places * batch)
            self._layers.append(_Layer(*(torch.randn(shape).to(kind) for shape in shapes)))

    def forward(self) -> None:
        """What the network says of a batch."""
        for layer in self._layers:
            torch.mm(layer.weights, layer.seen, out=layer.said)

    def backward(self) -> None:
        """The slopes of the weights, and of what each layer but the first has seen."""
        for place, layer in enumerate(self._layers):
            torch.mm(layer.said, layer.seen.t(), out=layer.slope_of_weights)
            if place > 0:
                torch.mm(layer.weights.t(), layer.said, out=layer.slope_of_seen)
