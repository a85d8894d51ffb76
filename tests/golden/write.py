"""Writes golden/<trainer>.json again. To be done only when an update is meant to move weights otherwise than before.

CHANGELOG.md says then why. `python tests/golden/write.py [dqn] [ddpg]`
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import test_ddpg
import test_dqn

if __name__ == "__main__":
    for trainer in (test_dqn, test_ddpg):
        if sys.argv[1:] and trainer.GOLDEN.stem not in sys.argv[1:]:
            continue
        found = {
            name: trainer.movement(trainer.preset(name, **changes)).tolist()
            for name, changes in trainer.GOLDEN_CONFIGS.items()
        }
        trainer.GOLDEN.write_text(json.dumps(found, indent=1) + "\n")
