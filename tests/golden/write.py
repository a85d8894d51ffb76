"""Writes golden/<trainer>.json again. To be done only when an update is meant to move weights otherwise than before.

CHANGELOG.md says then why. `python tests/golden/write.py`
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import test_dqn

if __name__ == "__main__":
    found = {
        name: test_dqn.movement(test_dqn.preset(name, **changes)).tolist()
        for name, changes in test_dqn.GOLDEN_CONFIGS.items()
    }
    test_dqn.GOLDEN.write_text(json.dumps(found, indent=1) + "\n")
