"""A piece of learning that a GPU repeats without asking Python again: captured once, replayed ever after."""

from __future__ import annotations

from collections.abc import Callable

import torch

# Calls that really run before one is captured: libraries choose algorithms and allocate in them.
_CALLS_BEFORE_CAPTURE = 3


class Captured:
    """Calls ``function`` as it is on a CPU; on a GPU its first calls too, and then replays what one of them did.

    The function takes and returns nothing: it reads and writes tensors that stay where they are, asks the device for
    no value, and does the same every time. Every call counts; capturing itself runs nothing.

    Args:
        function: to be called.
        device: where its tensors are.
    """

    def __init__(self, function: Callable[[], None], device: torch.device) -> None:
        self._function = function
        self._on_gpu = device.type == "cuda"
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self) -> None:
        """Do it once."""
        if not self._on_gpu:
            self._function()
            return
        if self._graph is not None:
            self._graph.replay()
            return
        if self._calls < _CALLS_BEFORE_CAPTURE:
            self._calls += 1
            aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                self._function()
            torch.cuda.current_stream().wait_stream(aside)
            return
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._function()
        self._graph = graph
        graph.replay()
