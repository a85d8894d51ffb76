"""A network's way forward and back, for update rules that are written as slopes instead of a loss.

Small networks spend as long in autograd's bookkeeping as in half of their products, and large ones write a gradient of
megabytes into new memory at each update. Where a network is nothing but convolutions and linear layers with ReLUs
between them, its way back is written out here; any other goes through autograd.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from fastrl.learn.flat import FlatNetwork
from fastrl.learn.networks import Actor, Critic, QNetwork

_BACK_THROUGH_CONVOLUTION = torch.ops.aten.convolution_backward
_BACK_THROUGH_RELU = torch.ops.aten.threshold_backward


class Pass(Protocol):
    """Forward once, then back once."""

    def forward(self, obs: Tensor, action: Tensor | None = None) -> Tensor:
        """What the network says, remembering what the way back needs."""

    def backward(self, slope: Tensor) -> None:
        """Write into the network's gradient what ``slope``, of what it said, is for its parameters."""

    def slope_of_action(self, slope: Tensor) -> Tensor:
        """What ``slope`` is for the action that it was given. No parameter's gradient changes."""

    def weights_changed(self) -> None:
        """To be called when somebody moved the network's numbers."""


def pass_of(flat: FlatNetwork, precision: str = "fp32") -> Pass:
    """The fastest way through a network that :func:`fastrl.learn.networks.build` made; a user's own is :class:`Traced`.

    Args:
        flat: the network.
        precision: fp32 or bf16, of its products; of a network that acts by numbers (DDPG's) only fp32.
    """
    network = flat.network
    if isinstance(network, (Actor, Critic, QNetwork)) and _is_written_out(network):
        convolves = any(isinstance(part, nn.Conv2d) for part in network.modules())
        # A GPU has its own ways for convolutions, and what it captured would not hear that copies are stale.
        if flat.values.device.type == "cpu" or not (convolves or precision == "bf16"):
            return WrittenOut(network, precision)
    return Traced(flat, precision)


def _is_written_out(network: Actor | Critic | QNetwork) -> bool:
    """Whether it is a chain of convolutions and linear layers."""
    normed = any(isinstance(part, nn.BatchNorm1d) for part in network.modules())
    return not normed and not (isinstance(network, QNetwork) and network.dueling)


class Traced:
    """By autograd, whatever the network is."""

    def __init__(self, flat: FlatNetwork, precision: str = "fp32") -> None:
        self._flat, self._device, self._reduced = flat, flat.values.device.type, precision == "bf16"

    def forward(self, obs: Tensor, action: Tensor | None = None) -> Tensor:
        """As :class:`Pass` says."""
        with torch.enable_grad(), torch.autocast(self._device, torch.bfloat16, enabled=self._reduced):
            self._action = None if action is None else action.detach().requires_grad_()
            said: Tensor = self._flat.network(obs) if self._action is None else self._flat.network(obs, self._action)
            self._said = said.float()  # still within the graph
        return self._said.detach()

    def backward(self, slope: Tensor) -> None:
        """As :class:`Pass` says."""
        self._flat.gradient.zero_()
        self._said.backward(slope)  # type: ignore[no-untyped-call]

    def slope_of_action(self, slope: Tensor) -> Tensor:
        """As :class:`Pass` says."""
        assert self._action is not None
        found: Tensor = torch.autograd.grad(self._said, [self._action], slope)[0]
        return found

    def weights_changed(self) -> None:
        """As :class:`Pass` says."""


class _Layer:
    """A layer's numbers and their gradients, as plain tensors in the memory that the network has.

    In reduced precision its products are of copies, made once for as long as the weights stay as they are.
    """

    def __init__(self, layer: nn.Linear | nn.Conv2d, kind: torch.dtype) -> None:
        assert layer.weight.grad is not None
        assert layer.bias is not None
        assert layer.bias.grad is not None
        self._weight, self._bias = layer.weight.detach(), layer.bias.detach()
        self.weight, self.bias = self._weight.to(kind), self._bias.to(kind)  # themselves where nothing is reduced
        self.turned = self.weight.t() if isinstance(layer, nn.Linear) else self.weight
        self.weight_slope, self.bias_slope = layer.weight.grad, layer.bias.grad
        # New memory for a product this large would cost more than the product.
        self._reduced_slope = None if kind is self._weight.dtype else torch.empty_like(self.weight)
        self.stride = tuple(layer.stride) if isinstance(layer, nn.Conv2d) else ()

    def refresh(self) -> None:
        if self.weight is not self._weight:
            self.weight.copy_(self._weight)
            self.bias.copy_(self._bias)

    def back(self, slope: Tensor, given: Tensor) -> None:
        """Of a linear layer: what ``slope``, of what it said, is for its numbers."""
        if self._reduced_slope is None:
            torch.mm(slope.t(), given, out=self.weight_slope)
            torch.sum(slope, 0, out=self.bias_slope)
        else:
            self.weight_slope.copy_(torch.mm(slope.t(), given, out=self._reduced_slope))
            self.bias_slope.copy_(slope.sum(0))

    def back_through_convolution(self, slope: Tensor, given: Tensor, *, further: bool) -> Tensor:
        """Of a convolution; returns what ``slope`` is for what it was given, if it is to go ``further`` back."""
        before, weight_slope, bias_slope = _BACK_THROUGH_CONVOLUTION(
            slope, given, self.weight, [len(self.weight)], self.stride, (0, 0), (1, 1), False, (0, 0), 1,
            [further, True, True],
        )  # fmt: skip
        self.weight_slope.copy_(weight_slope)
        self.bias_slope.copy_(bias_slope)
        found: Tensor = before
        return found


class WrittenOut:
    """Convolutions, then linear layers, a ReLU after each but the last, which an actor has tanh after.

    An action may enter at a linear layer.
    """

    def __init__(self, network: Actor | Critic | QNetwork, precision: str = "fp32") -> None:
        self._kind = torch.bfloat16 if precision == "bf16" else torch.float32
        linears = [part for part in network.modules() if isinstance(part, nn.Linear)]
        self._layers = [_Layer(linear, self._kind) for linear in linears]
        self._convolutions = [_Layer(p, self._kind) for p in network.modules() if isinstance(p, nn.Conv2d)]
        self._scaled = network.scaled if isinstance(network, QNetwork) else None
        self._is_actor, self._is_critic = isinstance(network, Actor), isinstance(network, Critic)
        self._action_layer = sum(isinstance(p, nn.Linear) for p in network.before) if isinstance(network, Critic) else 0
        # Of each layer but the first: its weights for what the layer before it says, an action beside that left out.
        widths = [linears[0].in_features, *(linear.out_features for linear in linears[:-1])]
        self._from_hidden = [layer.weight[:, :width] for layer, width in zip(self._layers, widths, strict=True)]
        self._stale = False

    def weights_changed(self) -> None:
        """As :class:`Pass` says."""
        self._stale = True

    @torch.no_grad()
    def forward(self, obs: Tensor, action: Tensor | None = None) -> Tensor:
        """As :class:`Pass` says."""
        if self._stale:
            for layer in (*self._convolutions, *self._layers):
                layer.refresh()
            self._stale = False
        x = self._features(obs).flatten(1)
        self._inputs: list[Tensor] = []
        self._hidden: list[Tensor] = []
        for place, layer in enumerate(self._layers):
            self._hidden.append(x)
            if action is not None and place == self._action_layer:
                self._action_size = action.shape[1]
                x = torch.cat([x, action], 1)
            self._inputs.append(x)
            x = torch.addmm(layer.bias, x, layer.turned)
            if place + 1 < len(self._layers):
                x.relu_()
        self._said = x.tanh_() if self._is_actor else x.squeeze(1) if self._is_critic else x.float()
        return self._said

    def _features(self, obs: Tensor) -> Tensor:
        """What the convolutions say; the observation itself where there are none."""
        x = obs if self._scaled is None else self._scaled(obs, self._kind)
        self._maps = [x]
        for layer in self._convolutions:
            x = torch.conv2d(x, layer.weight, layer.bias, layer.stride).relu_()
            self._maps.append(x)
        return x

    @torch.no_grad()
    def backward(self, slope: Tensor) -> None:
        """As :class:`Pass` says."""
        slope = self._before_the_end(slope)
        for place in reversed(range(len(self._layers))):
            self._layers[place].back(slope, self._inputs[place])
            if place > 0:
                slope = self._back(slope, place)
        if self._convolutions:
            self._back_through_convolutions(slope)

    def _back_through_convolutions(self, slope: Tensor) -> None:
        # As columns: for a layer this wide it takes two thirds of the time.
        slope = self._layers[0].turned.mm(slope.t()).t()
        slope = slope.reshape(self._maps[-1].shape).contiguous(memory_format=torch.channels_last)
        for place in reversed(range(len(self._convolutions))):
            slope = _BACK_THROUGH_RELU(slope, self._maps[place + 1], 0)
            slope = self._convolutions[place].back_through_convolution(slope, self._maps[place], further=place > 0)

    @torch.no_grad()
    def slope_of_action(self, slope: Tensor) -> Tensor:
        """As :class:`Pass` says."""
        slope = self._before_the_end(slope)
        for place in reversed(range(self._action_layer + 1, len(self._layers))):
            slope = self._back(slope, place)
        return slope.mm(self._layers[self._action_layer].weight[:, -self._action_size :])

    def _before_the_end(self, slope: Tensor) -> Tensor:
        if self._is_actor:
            through: Tensor = torch.ops.aten.tanh_backward(slope, self._said)
            return through
        return slope.unsqueeze(1) if self._is_critic else slope.to(self._kind)

    def _back(self, slope: Tensor, place: int) -> Tensor:
        """From what a layer says to what the one before it said."""
        before = slope.mm(self._from_hidden[place])
        through: Tensor = _BACK_THROUGH_RELU(before, self._hidden[place], 0)
        return through
