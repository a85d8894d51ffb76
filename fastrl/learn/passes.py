"""A network's way forward and back, for update rules that are written as slopes instead of a loss.

Small networks spend as long in autograd's bookkeeping as in half of their products. Where a network is nothing but
linear layers with ReLUs between them, its way back is written out here; any other goes through autograd.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from fastrl.learn.hogwild import FlatNetwork
from fastrl.learn.networks import Actor, Critic


class Pass(Protocol):
    """Forward once, then back once."""

    def forward(self, obs: Tensor, action: Tensor | None = None) -> Tensor:
        """What the network says, remembering what the way back needs."""

    def backward(self, slope: Tensor) -> None:
        """Write into the network's gradient what ``slope``, of what it said, is for its parameters."""

    def slope_of_action(self, slope: Tensor) -> Tensor:
        """What ``slope`` is for the action that it was given. No parameter's gradient changes."""


def pass_of(flat: FlatNetwork) -> Pass:
    """The fastest way through this network."""
    network = flat.network
    normed = any(isinstance(part, nn.BatchNorm1d) for part in network.modules())
    return WrittenOut(network) if isinstance(network, (Actor, Critic)) and not normed else Traced(flat)


class Traced:
    """By autograd, whatever the network is."""

    def __init__(self, flat: FlatNetwork) -> None:
        self._flat = flat
        self._parameters = list(flat.network.parameters())

    def forward(self, obs: Tensor, action: Tensor | None = None) -> Tensor:
        """As :class:`Pass` says."""
        with torch.enable_grad():
            self._action = None if action is None else action.detach().requires_grad_()
            said: Tensor = self._flat.network(obs) if self._action is None else self._flat.network(obs, self._action)
        self._said = said
        return said.detach()

    def backward(self, slope: Tensor) -> None:
        """As :class:`Pass` says."""
        slopes = torch.autograd.grad(self._said, self._parameters, slope)
        torch.cat([each.reshape(-1) for each in slopes], out=self._flat.gradient)

    def slope_of_action(self, slope: Tensor) -> Tensor:
        """As :class:`Pass` says."""
        assert self._action is not None
        found: Tensor = torch.autograd.grad(self._said, [self._action], slope)[0]
        return found


class _Layer:
    """A linear layer's numbers and their gradients, as plain tensors in the memory that the network has."""

    def __init__(self, linear: nn.Linear) -> None:
        assert linear.weight.grad is not None
        assert linear.bias.grad is not None
        self.weight, self.bias = linear.weight.detach(), linear.bias.detach()
        self.turned = self.weight.t()
        self.weight_slope, self.bias_slope = linear.weight.grad, linear.bias.grad


class WrittenOut:
    """Linear layers, a ReLU after each but the last, which an actor has tanh after; an action may enter at a layer."""

    def __init__(self, network: Actor | Critic) -> None:
        linears = [part for part in network.modules() if isinstance(part, nn.Linear)]
        self._layers = [_Layer(linear) for linear in linears]
        self._is_actor = isinstance(network, Actor)
        self._action_layer = sum(isinstance(p, nn.Linear) for p in network.before) if isinstance(network, Critic) else 0
        # Of each layer but the first: its weights for what the layer before it says, an action beside that left out.
        widths = [0, *(linear.out_features for linear in linears[:-1])]
        self._from_hidden = [layer.weight[:, :width] for layer, width in zip(self._layers, widths, strict=True)]

    @torch.no_grad()
    def forward(self, obs: Tensor, action: Tensor | None = None) -> Tensor:
        """As :class:`Pass` says."""
        self._inputs: list[Tensor] = []
        self._hidden: list[Tensor] = []
        x = obs.flatten(1)
        for place, layer in enumerate(self._layers):
            self._hidden.append(x)
            if action is not None and place == self._action_layer:
                self._action_size = action.shape[1]
                x = torch.cat([x, action], 1)
            self._inputs.append(x)
            x = torch.addmm(layer.bias, x, layer.turned)
            if place + 1 < len(self._layers):
                x.relu_()
        self._said = x.tanh_() if self._is_actor else x.squeeze(1)
        return self._said

    @torch.no_grad()
    def backward(self, slope: Tensor) -> None:
        """As :class:`Pass` says."""
        slope = self._before_the_end(slope)
        for place in reversed(range(len(self._layers))):
            layer = self._layers[place]
            torch.mm(slope.t(), self._inputs[place], out=layer.weight_slope)
            torch.sum(slope, 0, out=layer.bias_slope)
            if place > 0:
                slope = self._back(slope, place)

    @torch.no_grad()
    def slope_of_action(self, slope: Tensor) -> Tensor:
        """As :class:`Pass` says."""
        slope = self._before_the_end(slope)
        for place in reversed(range(self._action_layer + 1, len(self._layers))):
            slope = self._back(slope, place)
        return slope.mm(self._layers[self._action_layer].weight[:, -self._action_size :])

    def _before_the_end(self, slope: Tensor) -> Tensor:
        back: Tensor = torch.ops.aten.tanh_backward(slope, self._said) if self._is_actor else slope.unsqueeze(1)
        return back

    def _back(self, slope: Tensor, place: int) -> Tensor:
        """From what a layer says to what the one before it said."""
        before = slope.mm(self._from_hidden[place])
        through: Tensor = torch.ops.aten.threshold_backward(before, self._hidden[place], 0)
        return through
