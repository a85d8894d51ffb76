"""Two threads in one pool, which is refused."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


def refusal_of_two_threads(step: Callable[[], object]) -> str:
    """What is said when two threads call it again and again, until one of them finds the other inside."""
    refused: list[str] = []
    until = time.monotonic() + 60

    def work() -> None:
        while not refused and time.monotonic() < until:
            try:
                step()
            except RuntimeError as error:
                refused.append(str(error))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return refused[0]
