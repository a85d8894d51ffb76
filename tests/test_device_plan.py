"""Plans of a GPU's memory, where there is none: a CPU's tensors and a made-up torch.cuda play its part."""

from __future__ import annotations

import dataclasses
import json
import mmap
from pathlib import Path
from typing import Any

import pytest
import torch
from made_up_trial import SHAPE, TRIED
from tiny_training import TINY, preset

import fastrl
from fastrl import a3c, ddpg, dqn, plan
from fastrl.engine import mirror as mirrors
from fastrl.engine.files import read_json
from fastrl.runs import child_run, device_memory, options, planning
from fastrl.runs.device_memory import DeviceUse, DeviceWatch
from fastrl.runs.run_dir import as_json
from fastrl.runs.session import Session
from fastrl.runs.trial import Trial

GB = 1_000_000_000
SMALL_MIRROR = (8 * 512 + 1) * 7056  # of the made-up trial's replay
USE = DeviceUse(
    name="a made-up GPU",
    free_bytes=16 * GB,
    allocated_bytes=SMALL_MIRROR + 100_000_000,
    reserved_bytes=SMALL_MIRROR + 150_000_000,
    driver_bytes=30_000_000,
    locked_bytes=40_000_000,
    locked_is_counted=True,
)


def on_gpu(mirrored: bool = True, **changes: Any) -> Trial:
    return dataclasses.replace(TRIED, device=dataclasses.replace(USE, **changes), mirrored=mirrored)


def planned(tried: Trial, available: int = 64 * GB, **changes: Any) -> planning.Plan:
    return planning.plan(preset(dqn.TRAINER, "fast", num_envs=8, **changes), tried, available, 64 * GB)


def parts(of: list[planning.Part]) -> dict[str, float]:
    return {part.name: part.amount for part in of}


def test_nothing_is_said_of_a_device_that_is_not_used() -> None:
    found = planned(TRIED)

    assert found.device == []
    assert found.fits_on_device
    assert not [line for line in plan.lines_of(found) if line.startswith("device")]


def test_a_device_has_what_the_trial_had_there_and_the_copy_of_a_larger_replay() -> None:
    found = planned(on_gpu(), replay_capacity=800_000)

    assert parts(found.device) == {
        "replay": 800_001 * 7056,
        "networks": 6_000_000,
        "optimiser": 12_000_000,
        "batches": 82_000_000,
        "torch": 50_000_000,
        "driver": 30_000_000,
    }
    assert found.mirrored
    assert found.fits_on_device
    assert "\ndevice    5.82 GB  of 16.00 GB free on a made-up GPU, beside the driver's own part\n" in "\n".join(
        plan.lines_of(found)
    )


@pytest.mark.parametrize(("wanted", "mirrored"), [("auto", True), ("auto", False), ("cuda", True), ("cpu", False)])
def test_a_copy_is_planned_where_the_trainer_would_make_one(wanted: Any, mirrored: bool) -> None:
    """The trainer asks the same question when its networks, 18 MB here, are on the device."""
    free = 18_000_000 + 2 * 800_001 * 7056 - (0 if mirrored else 1)
    found = planned(on_gpu(free_bytes=free), replay_capacity=800_000, replay_device=wanted)

    assert found.mirrored == mirrored
    assert ("replay" in parts(found.device)) == mirrored
    if wanted != "cpu":
        asked = mirrors.replay_device(wanted, 800_001 * 7056, free - 18_000_000)
        assert asked == ("cuda" if mirrored else "cpu")


def test_a_device_that_is_too_small_is_told_with_what_fits() -> None:
    def asked(capacity: int) -> planning.Plan:
        return planned(on_gpu(), replay_capacity=capacity, replay_device="cuda")

    found = asked(4_000_000)

    assert found.fits
    assert not found.fits_on_device
    assert found.most_mirrored
    assert asked(found.most_mirrored).fits_on_device
    assert not asked(found.most_mirrored + 8).fits_on_device
    assert plan.lines_of(found)[-1] == (
        f"it does not fit on the device: --replay-capacity {found.most_mirrored} does, and --replay-device cpu keeps "
        f"the replay out of it"
    )
    full = planned(on_gpu(mirrored=False, free_bytes=100_000_000), replay_device="cpu")
    assert not full.fits_on_device
    assert "end other programs that use it" in plan.lines_of(full)[-1]


def test_page_locked_memory_is_counted_once() -> None:
    counted, beside = (planned(on_gpu(locked_is_counted=known)) for known in (True, False))

    assert "page-locked" not in parts(counted.memory)
    assert parts(beside.memory)["page-locked"] == 40_000_000
    assert beside.memory_bytes == counted.memory_bytes + 40_000_000


def test_a_larger_copy_of_small_observations_is_uploaded_from_larger_stages() -> None:
    shape = {**SHAPE, "obs_bytes": 16, "stack": 1}
    small = dataclasses.replace(on_gpu(), replay_shape=shape)
    found = planned(small, replay_capacity=2_000_000)

    # Two of a million rows of 16 bytes with a place each, in powers of two, instead of 4097 of either.
    assert parts(found.memory)["stages"] == 2 * (2**24 + 2**23) - 2 * (2**17 + 2**16)
    most = planned(small, available=3 * GB, replay_capacity=500_000_000).most_capacity
    assert most is not None
    assert planned(small, available=3 * GB, replay_capacity=most).fits
    assert not planned(small, available=3 * GB, replay_capacity=most + 8).fits


@pytest.mark.parametrize("capacity", [80, 5_000])
def test_a_copy_takes_what_is_planned_for_it(capacity: int) -> None:
    """A CPU tensor in the device's role; a stage has no more than 2267 rows of this size."""
    made = fastrl.Replay(capacity, lanes=1, obs_shape=(84, 84))
    mirror = made.mirror("cpu")
    table, stages = mirror._table, [tensor for stage in mirror._stages for tensor in (stage._frames, stage._rows)]

    assert mirrors.mirror_bytes_of(made.capacity, 7056) == mirrors.mirror_bytes(made) == table.nbytes
    assert mirrors.stages_bytes_of(made.capacity, 7056) == [tensor.nbytes for tensor in stages]


class MadeUpCuda:
    """Counts as torch.cuda would: 16 GB, of which the driver takes 1 and later 0.2 more."""

    def __init__(self) -> None:
        self.free = [15 * GB, 15 * GB - 200_000_000 - 50_000_000]

    def mem_get_info(self) -> tuple[int, int]:
        return self.free.pop(0), 16 * GB

    def synchronize(self) -> None:
        assert len(self.free) == 1

    def memory_reserved(self) -> int:
        return 50_000_000

    def max_memory_allocated(self) -> int:
        return 60_000_000

    def max_memory_reserved(self) -> int:
        return 80_000_000

    def get_device_name(self) -> str:
        return "a made-up GPU"

    def host_memory_stats(self) -> dict[str, int]:
        return {"allocated_bytes.peak": 2**25}


EXPECTED = DeviceUse("a made-up GPU", 15 * GB, 60_000_000, 80_000_000, 200_000_000, 2**25, True)


def fresh_memory(size: int) -> torch.Tensor:
    return torch.frombuffer(mmap.mmap(-1, size), dtype=torch.uint8)


def memory_of_nobody(size: int) -> torch.Tensor:
    """Whose pages a kernel does not count: there are hardly any."""
    return torch.zeros(1, dtype=torch.uint8)


@pytest.mark.parametrize(("lock", "counted"), [(fresh_memory, True), (memory_of_nobody, False)])
def test_what_lies_on_a_device_is_what_torch_and_the_driver_say(lock: Any, counted: bool) -> None:
    assert DeviceWatch(MadeUpCuda(), lock).look() == dataclasses.replace(EXPECTED, locked_is_counted=counted)


@pytest.mark.parametrize("used", [True, False])
def test_a_training_that_is_tried_leaves_what_it_took_of_its_device(
    used: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = DeviceWatch
    monkeypatch.setattr(options, "learns_on_gpu", lambda config: used)
    monkeypatch.setattr(device_memory, "DeviceWatch", lambda: watch(MadeUpCuda(), fresh_memory))
    monkeypatch.setattr(Session, "at_end", None)
    monkeypatch.setattr(Session, "digest_at_end", False)
    tiny = preset(dqn.TRAINER, "classic", **TINY, steps=200, warm_up_steps=50, runs=tmp_path, name="tried")
    with pytest.raises(SystemExit) as ended:
        child_run.train("fastrl.dqn", {"config": as_json(tiny), "resume": None, "digest": False, "device_use": True})

    assert ended.value.code == 0
    left = tmp_path / "tried" / child_run.DEVICE_FILE
    assert left.exists() == used
    if used:
        assert DeviceUse(**read_json(left)) == EXPECTED


@pytest.mark.parametrize(
    ("trainer", "device", "there", "expected"),
    [
        (dqn.TRAINER, "auto", True, True),
        (ddpg.TRAINER, "auto", True, True),
        (ddpg.TRAINER, "auto", False, False),
        (dqn.TRAINER, "cpu", True, False),
        (a3c.TRAINER, "auto", True, False),  # whose workers are processes unless a GPU is asked for
        (a3c.TRAINER, "cuda", True, True),
    ],
)
def test_which_runs_use_a_gpu(
    trainer: Any, device: str, there: bool, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: there)

    assert options.learns_on_gpu(trainer.config_class(device=device)) == expected


def test_a_replay_whose_copy_has_no_room_is_tried_without_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tried_with: list[str] = []

    def tried(trainer: Any, config: Any, seconds: float) -> Trial:
        tried_with.append(config.replay_device)
        return on_gpu(mirrored=config.replay_device != "cpu", free_bytes=GB)

    monkeypatch.setattr(plan, "try_out", tried)
    monkeypatch.chdir(tmp_path)
    asked = ["--algo", "dqn", "--env", "PongNoFrameskip-v4", "--preset", "fast", "--replay-capacity", "200000"]
    with pytest.raises(SystemExit) as ended:
        plan.main([*asked, "--output", "plan.json"])

    assert ended.value.code == 0
    assert tried_with == ["auto", "cpu"]
    assert "trying it without one" in capsys.readouterr().out
    found = json.loads((tmp_path / "plan.json").read_text())
    assert found["fits_on_device"]
    assert not found["mirrored"]
    assert sum(part["amount"] for part in found["device"]) == USE.reserved_bytes + USE.driver_bytes
