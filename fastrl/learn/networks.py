"""The networks of the papers. Each is built from a description of plain values, which a checkpoint keeps."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fastrl.engine.games import nearest

# Filters, size and stride of each convolution, and the units that follow: Mnih et al. 2015, and 2013 (which A3C uses).
_CONVOLUTIONS: dict[str, tuple[tuple[tuple[int, int, int], ...], int]] = {
    "nature": (((32, 8, 4), (64, 4, 2), (64, 3, 1)), 512),
    "a3c": (((16, 8, 4), (32, 4, 2)), 256),
}
CONVOLUTIONAL = frozenset(_CONVOLUTIONS)  # networks of ours that look at frames


def torso(description: dict[str, Any]) -> tuple[nn.Sequential, int]:
    """Everything before the heads, and how many numbers it gives."""
    name, shape = description["torso"], tuple(description["obs_shape"])
    layers: list[nn.Module] = []
    if name in _CONVOLUTIONS:
        if len(shape) != 3:
            raise ValueError(f"network: '{name}' looks at stacks of frames, observations here have shape {shape}")
        channels, rows, columns = shape
        convolutions, units = _CONVOLUTIONS[name]
        for filters, size, stride in convolutions:
            layers += [nn.Conv2d(channels, filters, size, stride), nn.ReLU()]
            channels = filters
            rows, columns = ((side - size) // stride + 1 for side in (rows, columns))
        layers += [nn.Flatten(), nn.Linear(channels * rows * columns, units), nn.ReLU()]
        return nn.Sequential(*layers), units
    if name == "mlp":
        width = math.prod(shape)
        layers.append(nn.Flatten())
        for units in description["hidden_units"]:
            layers += [nn.Linear(width, units), nn.ReLU()]
            width = units
        return nn.Sequential(*layers), width
    raise ValueError(f"network: '{name}' is unknown{nearest(name, [*_CONVOLUTIONS, 'mlp'])}; known: nature, a3c, mlp")


class Scaled(nn.Module):
    """Bytes become numbers in [0, 1], in the memory format that convolutions like best; floats stay as they are.

    Args:
        centred: less the mean of each stack. All of a game's background is one large positive number, so that one step
            of the optimiser moves all that a filter of the first layer says; a few steps can kill it for good.
    """

    def __init__(self, centred: bool = False) -> None:
        super().__init__()
        self._centred = centred

    def forward(self, obs: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Of a batch of observations; ``dtype`` of the numbers, or by what autocast says."""
        if obs.dtype != torch.uint8:
            return obs if dtype is None else obs.to(dtype)
        kind = obs.device.type
        if dtype is None:
            dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32
        # Bytes are put in order first: torch does both at once at half the speed. (`contiguous` takes twice as long.)
        last = torch.stack(obs.unbind(1), -1)
        numbers = last.to(dtype)
        if self._centred:
            of_each = numbers.flatten(1)
            of_each.sub_(_means(of_each))
        return numbers.mul_(1 / 255).permute(0, 3, 1, 2)


def _means(rows: Tensor) -> Tensor:
    """Of each row, (rows, 1)."""
    if rows.dtype == torch.float32:
        return rows.mean(1, keepdim=True)
    # A product sums up in fp32 as well, and need not copy all numbers for that: a tenth of the time.
    return torch.mm(rows, rows.new_ones(rows.shape[1], 1)).mul_(1 / rows.shape[1])


def in_full(layer: nn.Module, features: Tensor) -> Tensor:
    """What a last layer says, in fp32 whatever autocast does before it.

    bf16 has three digits: of two actions whose values differ by less than a hundredth, as they did in half of the
    states of a run that had learned Pong, it would not say which is the better one. The layer is small; it takes no
    time.
    """
    with torch.autocast(features.device.type, enabled=False):
        said: Tensor = layer(features.float() if features.dtype is torch.bfloat16 else features)
    return said


class QNetwork(nn.Module):
    """Action values: one head, or a value and advantages (duelling, Wang et al. 2016).

    >>> description = {"torso": "mlp", "obs_shape": [1, 4], "hidden_units": [8], "num_actions": 2}
    >>> QNetwork(description)(torch.zeros(3, 1, 4)).shape
    torch.Size([3, 2])
    """

    def __init__(self, description: dict[str, Any]) -> None:
        super().__init__()
        self.scaled = Scaled(bool(description.get("centred", False)))
        self.torso, width = torso(description)
        self.dueling = bool(description.get("dueling", False))
        actions = int(description["num_actions"])
        if self.dueling:
            # The paper gives each stream its own hidden layer; they share all but the torso's last one.
            if len(self.torso) < 3:
                raise ValueError("network: a duelling one needs a hidden layer before its heads; give --hidden-units")
            last = self.torso[-2]
            assert isinstance(last, nn.Linear)
            self.torso = nn.Sequential(*list(self.torso)[:-2])
            self.value = nn.Sequential(nn.Linear(last.in_features, width), nn.ReLU(), nn.Linear(width, 1))
            self.advantage = nn.Sequential(nn.Linear(last.in_features, width), nn.ReLU(), nn.Linear(width, actions))
        else:
            self.head = nn.Linear(width, actions)

    def forward(self, obs: Tensor) -> Tensor:
        """The value of each action, (batch, actions)."""
        features = self.torso(self.scaled(obs))
        if not self.dueling:
            return in_full(self.head, features)
        value, advantage = (in_full(stream[-1], stream[:-1](features)) for stream in (self.value, self.advantage))
        duelled: Tensor = value + advantage - advantage.mean(1, keepdim=True)
        return duelled


class ActorCritic(nn.Module):
    """A policy's logits and a state's value on one torso (Mnih et al. 2016)."""

    def __init__(self, description: dict[str, Any]) -> None:
        super().__init__()
        self.scaled = Scaled()
        self.torso, width = torso(description)
        self.policy = nn.Linear(width, int(description["num_actions"]))
        self.value = nn.Linear(width, 1)

    def begin_orthogonal(self) -> None:
        """Orthogonal first weights (Saxe et al. 2014), of a size that a ReLU keeps.

        The policy's are small, so that all actions are nearly as likely at first.
        """
        for layer in self.torso:
            _orthogonal(layer, math.sqrt(2))
        _orthogonal(self.policy, 0.01)
        _orthogonal(self.value, 1.0)

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (batch, actions), and values (batch,)."""
        return self.heads(self.torso(self.scaled(obs)))

    def heads(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """The same of what the torso gives."""
        return in_full(self.policy, features), in_full(self.value, features).squeeze(1)


class Actor(nn.Module):
    """A deterministic policy (Lillicrap et al. 2016): each dimension of the action in [-1, 1].

    With batch norm the observation and every hidden layer are normalised; the last layer is not, since its small first
    weights are there to keep the first actions near the middle.
    """

    def __init__(self, description: dict[str, Any]) -> None:
        super().__init__()
        width = math.prod(description["obs_shape"])
        normed = bool(description.get("batch_norm", False))
        layers: list[nn.Module] = [nn.Flatten(), *([nn.BatchNorm1d(width, affine=False)] if normed else [])]
        for units in description["hidden_units"]:
            layers += _hidden(width, units, normed)
            width = units
        last = _uniform(nn.Linear(width, int(description["action_size"])), description["final_uniform"])
        self.layers = nn.Sequential(*layers, last, nn.Tanh())

    def forward(self, obs: Tensor) -> Tensor:
        """Actions, (batch, dimensions)."""
        actions: Tensor = self.layers(obs)
        return actions


class Critic(nn.Module):
    """The value of an action in [-1, 1] in a state. The action enters at layer ``action_layer``, 0 being the first.

    With batch norm, what comes before the action is normalised.
    """

    def __init__(self, description: dict[str, Any]) -> None:
        super().__init__()
        width, at = math.prod(description["obs_shape"]), int(description["action_layer"])
        normed = bool(description.get("batch_norm", False))
        before: list[nn.Module] = [nn.Flatten(), *([nn.BatchNorm1d(width, affine=False)] if normed else [])]
        after: list[nn.Module] = []
        for place, units in enumerate(description["hidden_units"]):
            if place < at:
                before += _hidden(width, units, normed)
            else:
                after += _hidden(width + (int(description["action_size"]) if place == at else 0), units, normed=False)
            width = units
        after.append(_uniform(nn.Linear(width, 1), description["final_uniform"]))
        self.before, self.after = nn.Sequential(*before), nn.Sequential(*after)

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        """Values, (batch,)."""
        values: Tensor = self.after(torch.cat([self.before(obs), action], 1))
        return values.squeeze(1)


def _hidden(inputs: int, units: int, normed: bool) -> list[nn.Module]:
    """A layer with weights and biases within 1/sqrt(inputs), as in the paper's supplement.

    Normalisation takes away any bias before it, a shift of normalised observations included: there is none, since
    rounding alone would move it, and Adam would make steps of that.
    """
    linear = _uniform(nn.Linear(inputs, units, bias=not normed), 1 / math.sqrt(inputs))
    return [linear, *([nn.BatchNorm1d(units)] if normed else []), nn.ReLU(inplace=True)]


def _uniform(layer: nn.Linear, most: float) -> nn.Linear:
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, -most, most)
    return layer


def _orthogonal(layer: nn.Module, gain: float) -> None:
    if isinstance(layer, (nn.Linear, nn.Conv2d)):
        nn.init.orthogonal_(layer.weight, gain)
        assert layer.bias is not None
        nn.init.zeros_(layer.bias)


_KINDS: dict[str, Callable[[dict[str, Any]], nn.Module]] = {
    "q": QNetwork,
    "actor_critic": ActorCritic,
    "actor": Actor,
    "critic": Critic,
}


def build(
    description: dict[str, Any],
    seed: Sequence[int] | None = None,
    factory: Callable[[dict[str, Any]], nn.Module] | None = None,
) -> nn.Module:
    """The network that ``description`` describes. Runs no code that it names.

    Args:
        description: ``kind``, ``torso``, ``obs_shape`` and what these need.
        seed: words of entropy for the first weights; None: they are loaded afterwards.
        factory: makes the network from the description, where it is the user's own.
    """
    own = description.get("factory")
    if own and factory is None:
        raise ValueError(f"network: it was made by '{own}', which nothing imports unless the user names it again")
    make = factory or _KINDS[description["kind"]]
    with torch.random.fork_rng(devices=[]):
        words = np.random.SeedSequence(list(seed) if seed is not None else 0).generate_state(2)
        torch.manual_seed(int(words[0]) << 32 | int(words[1]))
        network = make(description)
        if not isinstance(network, nn.Module):
            raise ValueError(f"network: '{own}' gave {type(network).__name__}, and should give a torch.nn.Module")
        if seed is not None and description.get("orthogonal") and isinstance(network, ActorCritic):
            network.begin_orthogonal()
    if len(description["obs_shape"]) == 3:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network


def require_answer(description: Mapping[str, Any], network: nn.Module, obs_dtype: npt.DTypeLike) -> None:
    """Raise unless a user's own network says of two observations what its kind is to say. It learns nothing by it."""
    obs = torch.from_numpy(np.zeros((2, *description["obs_shape"]), obs_dtype)).to(next(network.parameters()).device)
    was_training = network.training
    network.eval()
    with torch.no_grad():
        said = network(obs)
    network.train(was_training)
    number, actions = len(obs), int(description["num_actions"])
    expected: Any = (number, actions)
    meaning = "a value of each action"
    if description["kind"] == "actor_critic":
        expected = ((number, actions), (number,))
        meaning = "each action's logit and, beside it, one value"
    shape = _shape(said)
    if shape != expected:
        raise ValueError(
            f"network: '{description['factory']}' says {shape} of {number} observations of shape "
            f"{tuple(obs.shape[1:])}, and should say {expected}, {meaning}"
        )


def _shape(said: Any) -> Any:
    """Of a tensor, or of each of several; of anything else the name of its type."""
    if isinstance(said, Tensor):
        return tuple(said.shape)
    return tuple(_shape(one) for one in said) if isinstance(said, tuple) else type(said).__name__


def described(
    kind: str,
    network: str,
    obs_shape: Sequence[int],
    hidden_units: Sequence[int],
    num_actions: int,
    *,
    dueling: bool,
    orthogonal: bool = False,
    centred: bool = False,
) -> dict[str, Any]:
    """The description of ``network``, as a configuration has it, for :func:`build`."""
    own = ":" in network
    description = {
        "kind": kind,
        "torso": "own" if own else network,
        "factory": network if own else None,
        "obs_shape": list(obs_shape),
        "hidden_units": list(hidden_units),
        "num_actions": num_actions,
        "dueling": dueling,
    }
    # Only where they are asked for, since a description is part of what a run can be resumed with.
    return description | {name: True for name, asked in (("orthogonal", orthogonal), ("centred", centred)) if asked}


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those whose names begin with ``prefix``, without it.

    >>> list(under("online.", {"online.bias": torch.zeros(1), "target.bias": torch.zeros(1)}))
    ['bias']
    """
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def named_factory(network: str) -> Callable[[dict[str, Any]], nn.Module] | None:
    """The user's own function if ``network``, as a configuration has it, names one; it is imported."""
    return user_factory(network) if ":" in network else None


def user_factory(name: str) -> Callable[[dict[str, Any]], nn.Module]:
    """The function ``module:function`` of the user's own that makes a network."""
    module, _, function = name.partition(":")
    if not module or not function:
        raise ValueError(f"network: '{name}' is not of the form module:function")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"network: '{name}' cannot be imported ({error}); is its folder on PYTHONPATH?") from None
    if not callable(found):
        raise ValueError(f"network: '{name}' is {type(found).__name__}, not a function that makes a network")
    made: Callable[[dict[str, Any]], nn.Module] = found
    return made
