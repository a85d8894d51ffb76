"""What a trial might have measured: 250 steps a second, 300 MB beside a small replay."""

from __future__ import annotations

from fastrl.engine.ring_sizes import ring_bytes
from fastrl.runs.trial import Trial, TriedEvaluation

SHAPE = {"lanes": 8, "slots": 512, "stack": 4, "obs_bytes": 7056, "action_bytes": 8}
SMALL_RING = ring_bytes(SHAPE, 512)
TRIED = Trial(
    start_s=5.0,
    warm_up_steps_per_s=5_000.0,
    steps_per_s=250.0,
    updates_per_s=62.5,
    frames_per_step=4.0,
    shares={"learn": 1.0},
    trainer_bytes=300_000_000 + SMALL_RING,
    replay_bytes=SMALL_RING,
    workers_bytes=0,
    evaluation=TriedEvaluation(snapshot_bytes=18_000_000, memory_bytes=200_000_000, seconds=20.0, game_steps=800.0),
    wanted_cores=2.0,
    usable_cores=4,
    others_cores=0.1,
    replay_shape=SHAPE,
    saved_slot_bytes=7_136,
    checkpoint_bytes=20_000_000,
    networks_bytes=6_000_000,
    optimiser_bytes=12_000_000,
    device=None,
    mirrored=False,
    row_bytes=500.0,
)
