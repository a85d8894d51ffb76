"""What the workers of test_workers.py do, in place of learning."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

from fastrl.runs.workers import Board, Boundary, Line


def work(order: dict[str, Any], board: Board, line: Line) -> None:
    index, task = order["worker"], order["task"]
    early = task == "die early in even lives" and order["life"] % 2 == 0
    if task == "die at once" or early:
        os.kill(os.getpid(), signal.SIGKILL)
    steps = order["state"] or 0
    boundary = Boundary(board, line)

    def state() -> dict[str, Any]:
        return {"steps": steps, "ballast": "x" * order.get("ballast", 0)}

    line.send({"hello": [order["life"], steps]})
    while boundary.go_on(state):
        if task == "fail" and steps == 3:
            raise ValueError("three is too many")
        if task == "hang" and index == 1 and order["life"] == 0 and steps == 3:
            time.sleep(1000)
        if task in ("die early in even lives", "die soon") and steps == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        steps += 1
        board.steps[index] += 1
        board.sums[index] += [1.0, 2.0]
        if "talk" in order:
            line.send({"said": "x" * order["talk"]})
        time.sleep(0.002)
