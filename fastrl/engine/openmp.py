"""How long torch's threads watch for more work before they sleep.

Between two products the threads of torch's OpenMP (libgomp) watch for the next one, by default for milliseconds. Where
games are emulated between products, they watch on cores that the emulating threads want: a batch of 16 games took 30 to
36 instead of 19 to 23 ms on two cores. A tenth of a millisecond or so is enough within an update, whose products
follow each other at once; without any the update itself is slower.
"""

from __future__ import annotations

import os
import sys

_LOOKS = 10_000  # each a pause of the processor; of 0, 1,000, 10,000, 50,000 and the default the fastest in trainings


def let_idle_threads_sleep() -> None:
    """Make torch's threads sleep sooner, unless torch is there already or the user has decided how they wait."""
    if "torch" not in sys.modules and not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = str(_LOOKS)
