"""What is only processes to wait for is begun when the tests begin, and waited for where it is judged.

Most tests keep one core busy; these keep another one so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

Begun = dict[tuple[str, Any], Future[Any]]
_WORKS: dict[str, Callable[[Any, Path, int], Any]] = {}


def early(name: str, work: Callable[[Any, Path, int], Any], cases: Iterable[Any] = (None,)) -> Any:
    """A fixture ``name``: for each case what ``work`` returned of the case, a folder of its own and the seed."""
    _WORKS[name] = work

    @pytest.fixture(scope="session", name=name, params=list(cases))
    def returned(request: pytest.FixtureRequest, begun: Begun) -> Any:
        return begun[name, request.param].result()

    return returned


@pytest.fixture(scope="session", autouse=True)
def begun(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, session_seed: int
) -> Iterator[Begun]:
    """What the collected tests ask for, one after the other."""
    asked_for = dict.fromkeys(
        (name, value)
        for item in request.session.items
        if isinstance(item, pytest.Function) and hasattr(item, "callspec")
        for name, value in item.callspec.params.items()
        if name in _WORKS
    )
    with ThreadPoolExecutor(1) as thread:
        yield {
            (name, case): thread.submit(_WORKS[name], case, tmp_path_factory.mktemp(name), session_seed)
            for name, case in asked_for
        }
        thread.shutdown(cancel_futures=True)
