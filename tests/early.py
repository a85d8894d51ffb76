"""What is only processes to wait for is begun when the tests begin, and waited for where it is judged.

Most tests keep one core busy; these keep another one so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

Work = Callable[[Path, int], Any]
_WORKS: dict[str, Work] = {}


def early(work: Work) -> Any:
    """A fixture: what ``work`` returned, which was given a folder of its own and the seed. A decorator."""
    name = work.__name__
    _WORKS[name] = work

    @pytest.fixture(scope="session", name=name)
    def returned(begun: dict[str, Future[Any]]) -> Any:
        return begun[name].result()

    return returned


@pytest.fixture(scope="session", autouse=True)
def begun(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, session_seed: int
) -> Iterator[dict[str, Future[Any]]]:
    """What the collected tests ask for, one work after the other."""
    asked_for = {name for item in request.session.items for name in getattr(item, "fixturenames", ())}
    with ThreadPoolExecutor(1) as thread:
        yield {
            name: thread.submit(work, tmp_path_factory.mktemp(name), session_seed)
            for name, work in _WORKS.items()
            if name in asked_for
        }
        thread.shutdown(cancel_futures=True)
