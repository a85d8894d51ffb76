"""The quiet ways in which training fails, each named once, loudly: always on, and cheap enough to be."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from fastrl.runs.dead_units import dead_unit_shares
from fastrl.runs.norms import norms_of


class NonFiniteLoss(RuntimeError):
    """The loss or a gradient is nan or infinite: the weights are lost, the last checkpoint is not."""


class Traps:
    """Watches one network; put several into an ``nn.ModuleDict``.

    Calling ``after_update`` each update costs well under a microsecond, and real checks come every
    ``check_every_updates``. A GPU is waited for only at checks.

    Args:
        network: its trainable parameters are watched.
        note: is told, in one line.
        check_every_updates: how often gradients are looked at.
        zero_gradient_checks: a parameter is named when its gradient was exactly zero at so many checks in a row.
        dead_unit_share: a layer is named when at least this share of its ReLUs is zero on a whole batch.
        constant_policy_steps: a policy is named when so many greedy decisions in a row, over all envs, were the same.

    Example:
        >>> traps = Traps(network, console.note)
        >>> optimiser.step()
        >>> traps.after_update(updates, loss)
    """

    def __init__(
        self,
        network: nn.Module,
        note: Callable[[str], None],
        *,
        check_every_updates: int = 250,
        zero_gradient_checks: int = 20,
        dead_unit_share: float = 0.9,
        constant_policy_steps: int = 50_000,
    ) -> None:
        if check_every_updates < 1 or zero_gradient_checks < 1 or constant_policy_steps < 1:
            raise ValueError("Traps: check_every_updates, zero_gradient_checks, constant_policy_steps: at least 1 each")
        self._network = network
        self._note = note
        self._every = check_every_updates
        self._zero_checks = zero_gradient_checks
        self._dead_share = dead_unit_share
        self._constant_steps = constant_policy_steps
        self._updates = 0
        self._next_check = check_every_updates
        self._zero: dict[str, list[int]] = {}  # parameter -> [update of the first check with zero, checks]
        self._told: set[str] = set()
        self._action: npt.NDArray[Any] | None = None
        self._same_steps = 0
        self._same_since = 0

    def after_update(self, updates: int, loss: float | torch.Tensor) -> None:
        """To be called after each optimiser step, before gradients are cleared.

        A loss that is at hand (a float, or on the CPU) is looked at each time, one on a GPU at checks.

        Raises:
            NonFiniteLoss: stop, keep the last checkpoint.
        """
        self._updates = updates
        if updates >= self._next_check:
            self.check(updates, loss)
        elif isinstance(loss, torch.Tensor):
            if not loss.is_cuda and not math.isfinite(loss.item()):
                self._stop(updates, "the loss", loss.item())
        elif not math.isfinite(loss):
            self._stop(updates, "the loss", loss)

    def check(self, updates: int, loss: float | torch.Tensor) -> None:
        """Look at the loss and all gradients now. Do so before a checkpoint, so that none is made of lost weights.

        Raises:
            NonFiniteLoss: stop, keep the last checkpoint.
        """
        value = loss.item() if isinstance(loss, torch.Tensor) else loss
        if not math.isfinite(value):
            self._stop(updates, "the loss", value)
        named = [(name, parameter) for name, parameter in self._network.named_parameters() if parameter.requires_grad]
        gradients = {name: parameter.grad for name, parameter in named if parameter.grad is not None}
        sizes = _sizes(gradients)
        for name, size in sizes.items():
            if not math.isfinite(size):
                self._stop(updates, f"the gradient of {name}", size)
        if updates < self._next_check:
            return  # extra checks do not count for how long a gradient has been zero
        self._next_check = (updates // self._every + 1) * self._every
        if named and not gradients:
            self._tell(
                "no gradients",
                f"after update {updates} no parameter has a gradient, so none can be watched; the trainer should call "
                "after_update before it clears gradients",
            )
            return
        for name, _ in named:
            self._count_zero(name, updates, zero=sizes.get(name, 0.0) == 0.0)

    def _count_zero(self, name: str, updates: int, *, zero: bool) -> None:
        if not zero:
            self._zero.pop(name, None)
            return
        seen = self._zero.setdefault(name, [updates, 0])
        seen[1] += 1
        if seen[1] >= self._zero_checks:
            self._tell(
                f"zero gradient {name}",
                f"{name} does not learn: its gradient was exactly zero at all {seen[1]} checks since update {seen[0]}. "
                "Usually it is not connected to the loss (a detach, an unused head), all ReLUs after it are dead, or "
                "an output is saturated",
            )

    def inspect(self, batch_forward: Callable[[], Any]) -> dict[str, float]:
        """Run ``batch_forward``, which applies the network to a batch of 32 or more, and look for dead ReLUs.

        It changes nothing: neither gradients, nor statistics of normalisation, nor random generators. It takes about as
        long as a forward pass.

        Returns:
            The share of each layer's units that are zero on the whole batch.

        Example:
            >>> traps.inspect(lambda: network(batch.observations))
            {'conv1': 0.03, 'conv2': 0.0, 'hidden': 0.41}
        """
        with _unchanged(self._network):
            shares = dead_unit_shares(self._network, batch_forward)
        for layer, share in shares.items():
            if share >= self._dead_share:
                self._tell(
                    f"dead layer {layer}",
                    f"the ReLU after {layer} is dead: at update {self._updates} {share:.0%} of its units are zero on a "
                    "whole batch. Usually the learning rate is too high, or the input is not scaled (0..255 instead of "
                    "0..1) or, of DQN's frames, not --centred",
                )
        return shares

    def saw_actions(self, actions: npt.ArrayLike) -> None:
        """Tell the greedy actions of one step, one for each env, before exploration changes them.

        A network that has not learned yet may well prefer one action everywhere: counting begins with the first update.
        """
        if not self._updates:
            return
        rows = np.asarray(actions)
        if self._action is None or not (rows == self._action).all():
            self._action, self._same_steps, self._same_since = rows[-1].copy(), 0, self._updates
            return
        self._same_steps += len(rows)
        if self._same_steps >= self._constant_steps:
            self._tell(
                "constant policy",
                f"the policy is constant: since update {self._same_since} it prefers action {self._action.tolist()} at "
                f"all of {self._same_steps:,} steps, whatever it sees. Usually the observations do not reach the "
                "network, the rewards are all zero, or the outputs are saturated",
            )

    def state(self) -> dict[str, Any]:
        """For JSON; ``load`` goes on from it."""
        return {
            "updates": self._updates,
            "next_check": self._next_check,
            "zero": self._zero,
            "told": sorted(self._told),
            "action": None if self._action is None else self._action.tolist(),
            "same_steps": self._same_steps,
            "same_since": self._same_since,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``: what was told is not told again."""
        self._updates, self._next_check = state["updates"], state["next_check"]
        self._zero = {name: list(seen) for name, seen in state["zero"].items()}
        self._told = set(state["told"])
        self._action = None if state["action"] is None else np.asarray(state["action"])
        self._same_steps, self._same_since = state["same_steps"], state["same_since"]

    def _tell(self, trap: str, text: str) -> None:
        if trap not in self._told:
            self._told.add(trap)
            self._note(f"TRAP: {text}.")

    def _stop(self, updates: int, what: str, value: float) -> None:
        raise NonFiniteLoss(
            f"train: {what} is {value} at update {updates}, and must be finite; the last checkpoint is from before. "
            "Usually the learning rate is too high, rewards or observations are not scaled, or a log or a quotient has "
            "zero in it. Resume from the checkpoint, or start anew with a smaller learning rate"
        )


def _sizes(gradients: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """A size of each gradient that is zero or not finite only if the gradient is."""
    sizes = dict(zip(gradients, norms_of(list(gradients.values())), strict=True))
    # Squares can vanish or overflow. The largest magnitude cannot, but takes twenty times as long.
    unsure = [name for name, size in sizes.items() if size == 0 or not math.isfinite(size)]
    return sizes | dict(zip(unsure, norms_of([gradients[name] for name in unsure], math.inf), strict=True))


@contextlib.contextmanager
def _unchanged(network: nn.Module) -> Iterator[None]:
    """A look at a network that leaves no trace in it nor in torch's random generators."""
    modes = [(module, module.training) for module in network.modules()]
    devices = sorted({p.device.index for p in network.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        try:
            network.eval()
            yield
        finally:
            for module, training in modes:
                module.training = training
