"""Values that change with the steps taken."""

from __future__ import annotations


def linear(step: int, first: float, last: float, over: int, begin: int = 0) -> float:
    """From ``first`` at step ``begin`` straight to ``last``, ``over`` steps later; constant before and after.

    >>> [linear(step, 1.0, 0.1, over=100, begin=50) for step in (0, 50, 100, 150, 1000)]
    [1.0, 1.0, 0.55, 0.1, 0.1]
    """
    if over <= 0:
        return last if step >= begin else first
    part = min(1.0, max(0.0, (step - begin) / over))
    return first * (1 - part) + last * part
