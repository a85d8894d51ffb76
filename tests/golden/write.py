"""Writes golden/<trainer>.json again. To be done only when an update is meant to move weights otherwise than before.

CHANGELOG.md says then why. `python tests/golden/write.py [test_dqn ...]`
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

TESTS = ("test_dqn", "test_a3c", "test_async_q", "test_ddpg")

if __name__ == "__main__":
    for test in map(importlib.import_module, sys.argv[1:] or TESTS):
        found = {
            name: test.movement(test.preset(name, **changes)).tolist() for name, changes in test.GOLDEN_CONFIGS.items()
        }
        test.GOLDEN.write_text(json.dumps(found, indent=1) + "\n")
