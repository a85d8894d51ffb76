"""A network's way forward and back, for update rules that are written as slopes instead of a loss.

Small networks spend as long in autograd's bookkeeping as in half of their products, and large ones write a gradient of
megabytes into new memory at each update. Where a network is nothing but convolutions and linear layers with ReLUs
between them, its way back is written out here; any other goes through autograd.

What acting computed can be learned from: forward goes through a round's observations step by step, and back through
all of them at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from fastrl.learn.flat import FlatNetwork
from fastrl.learn.networks import Actor, ActorCritic, Critic, QNetwork
from fastrl.learn.products import affine, slope_of_given, write_slope_of_weight

_BACK_THROUGH_CONVOLUTION = torch.ops.aten.convolution_backward
_BACK_THROUGH_RELU = torch.ops.aten.threshold_backward
_Known = Actor | ActorCritic | Critic | QNetwork


class Pass(Protocol):
    """Forward, as often as one likes, then back once."""

    def forward(self, obs: Tensor, action: Tensor | None = None, *, further: bool = False) -> Tensor:
        """What the network says, remembering what the way back needs.

        An actor-critic says logits and, in the last column, values.

        Args:
            obs: a batch of observations.
            action: for a network that is told one.
            further: whether the batches before it are remembered too.
        """

    def look(self, obs: Tensor, action: Tensor | None = None) -> Tensor:
        """What the network says, remembering nothing."""

    def backward(self, slope: Tensor) -> None:
        """Write into the network's gradient what ``slope``, of all that is remembered, is for its parameters."""

    def slope_of_action(self, slope: Tensor) -> Tensor:
        """What ``slope`` is for the action that it was given last. No parameter's gradient changes."""

    def weights_changed(self) -> None:
        """To be called when somebody moved the network's numbers."""


def pass_of(flat: FlatNetwork, precision: str = "fp32", *, own: bool = False) -> Pass:
    """The fastest way through a network.

    Args:
        flat: the network.
        precision: fp32 or bf16, of its products; of a network that acts by numbers (DDPG's) only fp32.
        own: whether a user made it, who may have changed one of ours.
    """
    network = flat.network
    if not own and isinstance(network, _Known) and _is_written_out(network):
        convolves = any(isinstance(part, nn.Conv2d) for part in network.modules())
        # A GPU has its own ways for convolutions, and what it captured would not hear that copies are stale.
        if flat.values.device.type == "cpu" or not (convolves or precision == "bf16"):
            return WrittenOut(network, precision)
    return Traced(flat, precision)


def _is_written_out(network: _Known) -> bool:
    """Whether it is a chain of convolutions and linear layers."""
    normed = any(isinstance(part, nn.BatchNorm1d) for part in network.modules())
    return not normed and not (isinstance(network, QNetwork) and network.dueling)


class Traced:
    """By autograd, whatever the network is."""

    def __init__(self, flat: FlatNetwork, precision: str = "fp32") -> None:
        self._flat, self._device, self._reduced = flat, flat.values.device.type, precision == "bf16"
        self._said: list[Tensor] = []

    def forward(self, obs: Tensor, action: Tensor | None = None, *, further: bool = False) -> Tensor:
        """As :class:`Pass` says."""
        if not further:
            self._said = []
        with torch.enable_grad():
            self._action = None if action is None else action.detach().requires_grad_()
            self._said.append(self._say(obs, self._action))
        return self._said[-1].detach()

    @torch.no_grad()
    def look(self, obs: Tensor, action: Tensor | None = None) -> Tensor:
        """As :class:`Pass` says."""
        return self._say(obs, action)

    def _say(self, obs: Tensor, action: Tensor | None) -> Tensor:
        with torch.autocast(self._device, torch.bfloat16, enabled=self._reduced):
            said = self._flat.network(obs) if action is None else self._flat.network(obs, action)
            if isinstance(said, tuple):
                said = torch.cat([said[0], said[1].unsqueeze(1)], 1)
            found: Tensor = said.float()  # still within the graph
            return found

    def backward(self, slope: Tensor) -> None:
        """As :class:`Pass` says."""
        self._flat.gradient.zero_()
        torch.autograd.backward(self._said, torch.split(slope, [len(said) for said in self._said]))

    def slope_of_action(self, slope: Tensor) -> Tensor:
        """As :class:`Pass` says."""
        assert self._action is not None
        found: Tensor = torch.autograd.grad(self._said[-1], [self._action], slope)[0]
        return found

    def weights_changed(self) -> None:
        """As :class:`Pass` says."""


class _Layer:
    """A layer's numbers and their gradients, as plain tensors in the memory that the network has.

    Layers that are given the same are one layer here. In reduced precision, and where there are several, products are
    of copies, made once for as long as the weights stay as they are.
    """

    def __init__(self, layers: list[nn.Linear] | list[nn.Conv2d], kind: torch.dtype) -> None:
        self._own: list[tuple[Tensor, Tensor]] = []
        self._slopes: list[tuple[Tensor, Tensor]] = []
        for layer in layers:
            assert layer.weight.grad is not None
            assert layer.bias is not None
            assert layer.bias.grad is not None
            self._own.append((layer.weight.detach(), layer.bias.detach()))
            self._slopes.append((layer.weight.grad, layer.bias.grad))
        self.weight, self.bias = self._own[0]
        self._copied = len(layers) > 1 or kind is not self.weight.dtype
        if self._copied:
            self.weight, self.bias = (torch.cat(parts).to(kind) for parts in zip(*self._own, strict=True))
        # New memory for a product this large would cost more than the product.
        self._slope = torch.empty_like(self.weight) if self._copied else self._slopes[0][0]
        self.stride = tuple(layers[0].stride) if isinstance(layers[0], nn.Conv2d) else ()

    def refresh(self) -> None:
        """Copy the weights, which have changed."""
        if self._copied:
            rows = [len(bias) for _, bias in self._own]
            copies = zip(torch.split(self.weight, rows), torch.split(self.bias, rows), strict=True)
            for (weight, bias), (to_weight, to_bias) in zip(self._own, copies, strict=True):
                to_weight.copy_(weight)
                to_bias.copy_(bias)

    def back(self, slope: Tensor, given: Tensor) -> None:
        """Of a linear layer: what ``slope``, of what it said, is for its numbers."""
        write_slope_of_weight(slope, given, self._slope)
        if not self._copied:
            torch.sum(slope, 0, out=self._slopes[0][1])
            return
        rows = [len(bias) for _, bias in self._own]
        found = zip(torch.split(self._slope, rows), torch.split(slope.sum(0), rows), strict=True)
        for (weight_slope, bias_slope), (of_weight, of_bias) in zip(self._slopes, found, strict=True):
            weight_slope.copy_(of_weight)
            bias_slope.copy_(of_bias)

    def back_through_convolution(self, slope: Tensor, given: Tensor, *, added: bool, further: bool) -> Tensor:
        """Of a convolution: the same, or ``added`` to what is there; returns what it is for what it was given.

        That only if it is to go ``further`` back.
        """
        before, *found = _BACK_THROUGH_CONVOLUTION(
            slope, given, self.weight, [len(self.weight)], self.stride, (0, 0), (1, 1), False, (0, 0), 1,
            [further, True, True],
        )  # fmt: skip
        for of_mine, of_this in zip(self._slopes[0], found, strict=True):
            if added:
                of_mine.add_(of_this)
            else:
                of_mine.copy_(of_this)
        going_on: Tensor = before
        return going_on


@dataclass
class _Seen:
    """What the way back needs of one batch."""

    maps: list[Tensor]  # what each convolution was given, and what the last one said
    hidden: list[Tensor]  # what the layer before each linear layer said
    inputs: list[Tensor]  # the same with the action, where one enters


class WrittenOut:
    """Convolutions, then linear layers, a ReLU after each but the last, which an actor has tanh after.

    An action may enter at a linear layer. An actor-critic's two heads are one layer. The last layer is in fp32 in any
    precision (:func:`fastrl.learn.networks.in_full` says why).
    """

    def __init__(self, network: _Known, precision: str = "fp32") -> None:
        self._kind = torch.bfloat16 if precision == "bf16" else torch.float32
        linears = [[part] for part in network.modules() if isinstance(part, nn.Linear)]
        if isinstance(network, ActorCritic):
            linears[-2:] = [[network.policy, network.value]]
        *inner, last = linears
        self._layers = [*(_Layer(side_by_side, self._kind) for side_by_side in inner), _Layer(last, torch.float32)]
        self._convolutions = [_Layer([p], self._kind) for p in network.modules() if isinstance(p, nn.Conv2d)]
        self._scaled = network.scaled if isinstance(network, QNetwork | ActorCritic) else None
        self._is_actor, self._is_critic = isinstance(network, Actor), isinstance(network, Critic)
        self._action_layer = sum(isinstance(p, nn.Linear) for p in network.before) if isinstance(network, Critic) else 0
        # Of each layer but the first: its weights for what the layer before it says, an action beside that left out.
        widths = [linears[0][0].in_features, *(layer[0].out_features for layer in linears[:-1])]
        self._from_hidden = [layer.weight[:, :width] for layer, width in zip(self._layers, widths, strict=True)]
        self._seen: list[_Seen] = []
        self._stale = False

    def weights_changed(self) -> None:
        """As :class:`Pass` says."""
        self._stale = True

    @torch.no_grad()
    def forward(self, obs: Tensor, action: Tensor | None = None, *, further: bool = False) -> Tensor:
        """As :class:`Pass` says."""
        if not further:
            self._seen = []
        self._said, seen = self._say(obs, action)
        self._seen.append(seen)
        return self._said

    @torch.no_grad()
    def look(self, obs: Tensor, action: Tensor | None = None) -> Tensor:
        """As :class:`Pass` says."""
        return self._say(obs, action)[0]

    def _say(self, obs: Tensor, action: Tensor | None) -> tuple[Tensor, _Seen]:
        if self._stale:
            for layer in (*self._convolutions, *self._layers):
                layer.refresh()
            self._stale = False
        x = obs if self._scaled is None else self._scaled(obs, self._kind)
        seen = _Seen([x], [], [])
        for layer in self._convolutions:
            x = torch.conv2d(x, layer.weight, layer.bias, layer.stride).relu_()
            seen.maps.append(x)
        x = x.flatten(1)
        for place, layer in enumerate(self._layers):
            seen.hidden.append(x)
            x = x.to(layer.weight.dtype)
            if action is not None and place == self._action_layer:
                self._action_size = action.shape[1]
                x = torch.cat([x, action], 1)
            seen.inputs.append(x)
            x = affine(x, layer.weight, layer.bias)
            if place + 1 < len(self._layers):
                x.relu_()
        return (x.tanh_() if self._is_actor else x.squeeze(1) if self._is_critic else x), seen

    @torch.no_grad()
    def backward(self, slope: Tensor) -> None:
        """As :class:`Pass` says."""
        slope = self._before_the_end(slope)
        for place in reversed(range(len(self._layers))):
            self._layers[place].back(slope, _together([seen.inputs[place] for seen in self._seen]))
            if place > 0:
                slope = self._back(slope, place)
        if self._convolutions:
            self._back_through_convolutions(slope)

    def _back_through_convolutions(self, slope: Tensor) -> None:
        slope = slope_of_given(slope, self._layers[0].weight)
        slope = slope.reshape(-1, *self._seen[0].maps[-1].shape[1:]).contiguous(memory_format=torch.channels_last)
        # Batch by batch: putting maps together takes as long as is won by it.
        parts = torch.split(slope, [len(seen.maps[0]) for seen in self._seen])
        for which, (part, seen) in enumerate(zip(parts, self._seen, strict=True)):
            for place in reversed(range(len(self._convolutions))):
                part = _BACK_THROUGH_RELU(part, seen.maps[place + 1], 0)
                part = self._convolutions[place].back_through_convolution(
                    part, seen.maps[place], added=which > 0, further=place > 0
                )

    @torch.no_grad()
    def slope_of_action(self, slope: Tensor) -> Tensor:
        """As :class:`Pass` says."""
        slope = self._before_the_end(slope)
        for place in reversed(range(self._action_layer + 1, len(self._layers))):
            slope = self._back(slope, place)
        return slope_of_given(slope, self._layers[self._action_layer].weight[:, -self._action_size :])

    def _before_the_end(self, slope: Tensor) -> Tensor:
        if self._is_actor:
            through: Tensor = torch.ops.aten.tanh_backward(slope, self._said)
            return through
        return slope.unsqueeze(1) if self._is_critic else slope

    def _back(self, slope: Tensor, place: int) -> Tensor:
        """From what a layer says to what the one before it said."""
        hidden = _together([seen.hidden[place] for seen in self._seen])
        before = slope_of_given(slope, self._from_hidden[place]).to(hidden.dtype)
        through: Tensor = _BACK_THROUGH_RELU(before, hidden, 0)
        return through


def _together(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
