"""Leave Python in every way while a pool lives: `python tests/exits.py --times 300`.

Each way runs in a process of its own, with a pool whose workers are busy, idle or being waited for. It must end by
itself within a few seconds, with the expected exit status, no signal and no word on stderr that was not asked for, and
leave no thread or process behind. pytest takes each way once (test_exits.py).
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

PREAMBLE = """
import os, random, signal, sys, threading, time
import numpy as np, fastrl
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has it ignored in what it starts in the background
def make(**more):
    pool = fastrl.AtariPool("pong", num_envs=4, threads=2, **more)
    pool.reset(seed=0)
    return pool
zeros = np.zeros(4, dtype=np.int64)
def slow():  # workers are busy for seconds
    return make(frame_skip=1000, max_frames=0)
def filled():  # a replay with steps to draw, and its writer
    replay = fastrl.Replay(2000, 1)
    writer = replay.writer(0)
    frame = np.zeros((84, 84), np.uint8)
    writer.start(frame)
    for _ in range(500): writer.append(0, 0.0, frame, False, False)
    return replay, writer
def go_on(call, threads=2, seconds=0.15):  # threads that do nothing else, until Python ends
    def work():
        while True: call()
    for _ in range(threads): threading.Thread(target=work, daemon=True).start()
    time.sleep(seconds)
def after(seconds, action):
    threading.Timer(seconds, action).start()
def handle(number, error):
    def raise_it(*_):
        raise error
    signal.signal(number, raise_it)
"""

# How it ends: code, expected exit status, a word that stderr must have.
WAYS: dict[str, tuple[str, int, str]] = {
    "return, idle": ("pool = make(); pool.step(zeros)", 0, ""),
    "return, closed": ("pool = make(); pool.step(zeros); pool.close()", 0, ""),
    "return, deleted": ("pool = make(); pool.step(zeros); del pool", 0, ""),
    "return, workers busy": ("pool = slow(); pool.send(zeros)", 0, ""),
    "return, results unread": ("pool = make(batch_size=2); pool.send(zeros); time.sleep(0.05)", 0, ""),
    "return, in a cycle": ("class A: pass\na = A(); a.self = a; a.pool = make(); a.pool.send(zeros)", 0, ""),
    "return, arrays kept": ("obs = make().step(zeros)[0]\nkeep = [obs]", 0, ""),
    "exception, workers busy": ("pool = slow(); pool.send(zeros); raise ValueError('planned')", 1, "planned"),
    "sys.exit, workers busy": ("pool = slow(); pool.send(zeros); sys.exit(7)", 7, ""),
    "sys.exit inside recv": (
        "handle(signal.SIGUSR1, SystemExit(9))\npool = slow(); pool.send(zeros)\n"
        "after(0.1, lambda: os.kill(os.getpid(), signal.SIGUSR1))\nwhile True: pool.recv(); pool.send(zeros)",
        9,
        "",
    ),
    "Ctrl-C inside recv": (
        "pool = slow(); pool.send(zeros)\nbegan = time.time()\n"
        "try:\n    after(0.1, lambda: os.kill(os.getpid(), signal.SIGINT))\n"
        "    while True: pool.recv(); pool.send(zeros)\n"
        "except KeyboardInterrupt:\n    assert time.time() - began < 1.1, time.time() - began\n    sys.exit(3)",
        3,
        "",
    ),
    "Ctrl-C inside step, then on": (
        "pool = slow()\ntry:\n    after(0.1, lambda: os.kill(os.getpid(), signal.SIGINT))\n"
        "    while True: pool.step(zeros)\n"
        "except KeyboardInterrupt:\n    if pool.in_flight: pool.recv()\n"
        "    pool.step(zeros); pool.reset(seed=1); sys.exit(4)",
        4,
        "",
    ),
    "Ctrl-C, unhandled": (
        "pool = slow()\nafter(0.1, lambda: os.kill(os.getpid(), signal.SIGINT))\nwhile True: pool.step(zeros)",
        -signal.SIGINT,
        "KeyboardInterrupt",
    ),
    "os._exit": ("pool = slow(); pool.send(zeros); os._exit(5)", 5, ""),
    "a daemon thread waits": (
        "pool = slow()\ndef wait():\n    try:\n        while True: pool.step(zeros)\n    except RuntimeError: pass\n"
        "threading.Thread(target=wait, daemon=True).start(); time.sleep(0.05)",
        0,
        "",
    ),
    "a daemon thread samples": ("replay, writer = filled(); go_on(lambda: replay.sample(512))", 0, ""),
    "a daemon thread looks at stacks": ("replay, writer = filled(); go_on(replay.stacks)", 0, ""),
    "a daemon thread observes": (
        "replay, writer = filled(); seen = fastrl.Replay.observe(replay.handle())\n"
        "go_on(lambda: (seen.stacks(), seen.newest(0, 400)))",
        0,
        "",
    ),
    "a daemon thread draws for a mirror": (
        "replay, writer = filled(); mirror = replay.mirror('cpu'); mirror.upload()\ngo_on(lambda: mirror.draw(64))",
        0,
        "",
    ),
    "a daemon thread copies for a mirror": (
        "replay, writer = filled(); frames = np.empty(400 * 84 * 84, np.uint8)\n"
        "go_on(lambda: replay._ring.copy_observations(0, 0, 400, frames))",
        0,
        "",
    ),
    "a daemon thread gives priorities": (
        "by_priority = fastrl.Replay(2000, 1, alpha=0.6)\n"
        "with by_priority.writer(0) as other:\n"
        "    other.start(np.zeros((84, 84), np.uint8))\n"
        "    for _ in range(500): other.append(0, 0.0, np.zeros((84, 84), np.uint8), False, False)\n"
        "index = by_priority.sample(512).index; ones = np.ones(512)\n"
        "go_on(lambda: by_priority.update_priorities(index, ones))",
        0,
        "",
    ),
    "a daemon thread steps": ("pool = make(); go_on(lambda: pool.step(zeros), 1)", 0, ""),
    "a daemon thread makes pools": (
        "def make_and_step():\n    pool = make(); pool.step(zeros)\ngo_on(make_and_step, 1, random.uniform(0.0, 0.6))",
        0,
        "",
    ),
    "a daemon thread makes MuJoCo pools": (
        "go_on(lambda: fastrl.MujocoPool('Hopper-v5').reset(), 1, random.uniform(0.0, 1.5))",
        0,
        "",
    ),
    "a daemon thread saves MuJoCo's states": (
        "pool = fastrl.MujocoPool('Hopper-v5', 8, threads=2); pool.reset(seed=0)\n"
        "go_on(lambda: (pool.step(pool.action_space.sample()), pool.load_state(pool.save_state())), 1)",
        0,
        "",
    ),
    "a worker fails": (
        "pool = make(_fail_at=(2, 3))\nfor _ in range(10): pool.step(zeros)",
        1,
        "env 2 (pong), step 3",
    ),
    "fork, child uses it": (
        "pool = make(); pid = os.fork()\n"
        "if pid == 0:\n    try: pool.step(zeros)\n    except RuntimeError as e: os._exit('forked' not in str(e))\n"
        "    os._exit(2)\nsys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))",
        0,
        "",
    ),
    "fork, child returns": (
        "pool = make(); pool.send(zeros); pid = os.fork()\n"
        "if pid: pool.recv(); sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))",
        0,
        "",
    ),
    "many pools": ("pools = [make() for _ in range(3)]\nfor pool in pools: pool.send(zeros)", 0, ""),
}


def leave(way: str, limit_s: float = 30.0) -> str | None:
    """Run one way; None if all was well, else what was wrong."""
    code, expected, word = WAYS[way]
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-X", "faulthandler", "-c", PREAMBLE + code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd="/",
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        return f"{way}: still alive after {limit_s} s\n{err}"
    if process.returncode != expected:
        return f"{way}: status {process.returncode}, expected {expected}, after {time.monotonic() - began:.1f} s\n{err}"
    if (word and word not in err) or (not word and err.strip()) or out.strip():
        return f"{way}: expected {word or 'nothing'!r} on stderr, got\n{err}\nand on stdout\n{out}"
    left = subprocess.run(["pgrep", "-g", str(process.pid)], capture_output=True, text=True, check=False)
    if left.stdout.strip():
        return f"{way}: processes {left.stdout.split()} were left behind"
    return None


def main() -> None:
    """The script: every way in turn, in random order."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=300, help="how many exits in all")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    order = random.Random(arguments.seed)
    failures = 0
    began = time.monotonic()
    chosen: list[str] = []
    while len(chosen) < arguments.times:
        chosen += order.sample(sorted(WAYS), len(WAYS))
    with ThreadPoolExecutor(2) as two:  # the next process starts while the one before it ends
        for number, problem in enumerate(two.map(leave, chosen[: arguments.times])):
            if problem:
                failures += 1
                print(f"exit {number}: {problem}", flush=True)
    print(f"{arguments.times} exits in {len(WAYS)} ways, {failures} failed, {time.monotonic() - began:.0f} s")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
