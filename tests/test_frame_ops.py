"""csrc/atari/frame_ops: screens become the bytes that cv2 makes of them, on every CPU path, whatever was loaded before.

cv2 itself is the oracle. It computes in float32, so where the true average of a cell ends in exactly one half, its
byte hangs on the order of its additions and on every single rounding. Planes full of such ties are built here; a
reduction that is exact, or that is fused (multiply and add rounded once), gets other bytes on them.
"""

from __future__ import annotations

import ctypes
import mmap
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from fastrl.engine import native

core = native.core

Bytes = npt.NDArray[np.uint8]
WIDTH, SIDE = 160, 84
PATHS: list[str] = core.available_cpu_paths()
HEIGHTS = [210, 250, 192, 214, 230, 85]
TIE_HEIGHTS = [height for height in HEIGHTS if height >= 2 * SIDE]  # a cell there has a row of its own to tune

every_path = pytest.mark.parametrize("path", PATHS)


def cv2_resize(plane: Bytes) -> Bytes:
    return cv2.resize(plane, (SIDE, SIDE), interpolation=cv2.INTER_AREA)


def grey(rgb: npt.NDArray[np.integer]) -> Bytes:
    """cv2's RGB2GRAY in whole numbers."""
    weighted = rgb.astype(np.int64) @ np.array([9798, 19235, 3735])
    return ((weighted + (1 << 14)) >> 15).astype(np.uint8)


def example_palette() -> Bytes:
    return np.random.default_rng(84).integers(0, 256, (128, 3), dtype=np.uint8)


def example_table() -> tuple[Bytes, Bytes]:
    """Grey of the brighter of two pixels, channel by channel: what most protocols do."""
    palette = example_palette()
    return grey(palette), grey(np.maximum(palette[:, None], palette[None, :]))


def reducer(path: str, height: int = 210) -> Any:
    single, pair = example_table()
    return core.PlaneReducer(single, pair, height, path)


def random_screen(rng: np.random.Generator, height: int = 210) -> Bytes:
    return (2 * rng.integers(0, 128, (height, WIDTH))).astype(np.uint8)


def coverage(source: int, target: int) -> npt.NDArray[np.int64]:
    """How much of source pixel s lies in target cell t, in units that make a pixel ``target`` and a cell ``source``."""
    cell = np.arange(target)[:, None] * source
    pixel = np.arange(source)[None, :] * target
    return np.clip(np.minimum(cell + source, pixel + target) - np.maximum(cell, pixel), 0, None)


def exact_sums(plane: Bytes) -> npt.NDArray[np.int64]:
    """Each cell's average, times (height * 160), in whole numbers."""
    return coverage(plane.shape[0], SIDE) @ plane.astype(np.int64) @ coverage(WIDTH, SIDE).T


def ties(sums: npt.NDArray[np.int64], height: int) -> npt.NDArray[np.bool_]:
    """Whether an average is a whole number and one half exactly: its double is odd."""
    area = height * WIDTH
    return (2 * sums) % (2 * area) == area


@lru_cache
def tie_plane(height: int, seed: int) -> Bytes:
    """A random plane; one pixel that only its cell covers is tuned in each cell to make it a tie, where one can."""
    rng = np.random.default_rng(seed)
    # A narrow range of values gives flat regions, a wide one noise.
    plane = rng.integers(0, [256, 8, 90][seed % 3], (height, WIDTH), dtype=np.uint8)
    own_rows, own_columns = coverage(height, SIDE) == SIDE, coverage(WIDTH, SIDE) == SIDE
    tunable = own_rows.any(axis=1)[:, None] & own_columns.any(axis=1)[None, :]
    pixels = np.ix_(own_rows.argmax(axis=1), own_columns.argmax(axis=1))
    change = np.arange(256) - plane[pixels].astype(np.int64)[..., None]
    tied = ties(exact_sums(plane)[..., None] + change * SIDE * SIDE, height)
    tuned = np.where(tied.any(axis=2) & tunable, tied.argmax(axis=2), plane[pixels])
    # A cell that has no pixel of its own names another's; those of tunable cells are all different.
    rows, columns = np.nonzero(tunable)
    plane[own_rows.argmax(axis=1)[rows], own_columns.argmax(axis=1)[columns]] = tuned[rows, columns]
    plane.flags.writeable = False
    return plane


def area_taps(source: int, target: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """cv2's weights: first source pixel of each cell, and the weights of it and its neighbours, padded with 0."""
    scale = source / target
    first = np.zeros(target, np.int64)
    weights = np.zeros((target, 5), np.float32)
    for t in range(target):
        begin, end = t * scale, t * scale + scale
        covered = min(scale, source - begin)
        last = min(int(np.floor(end)), source - 1)
        whole = min(int(np.ceil(begin)), last)
        overlaps = [whole - begin] if whole - begin > 1e-3 else []
        first[t] = whole - len(overlaps)
        overlaps += [1.0] * (last - whole)
        overlaps += [min(end - last, 1.0, covered)] if end - last > 1e-3 else []
        weights[t, : len(overlaps)] = np.array(overlaps) / covered
    return first, weights


def modelled_resize(plane: Bytes, *, fused: bool) -> Bytes:
    """cv2's arithmetic spelled out; ``fused`` rounds each multiply-add once, as an FMA instruction does."""
    values = plane.astype(np.float32)
    for _ in range(2):  # columns first, then rows
        first, weights = area_taps(values.shape[1], SIDE)
        values = np.pad(values, ((0, 0), (0, weights.shape[1])))
        total = np.zeros((values.shape[0], SIDE), np.float32)
        for k in range(weights.shape[1]):
            source, weight = values[:, first + k], weights[:, k]
            if fused:
                total = (total.astype(np.float64) + source.astype(np.float64) * weight).astype(np.float32)
            else:
                total = total + source * weight
        values = total.T
    return np.rint(values).astype(np.uint8)


def exact_resize(plane: Bytes) -> Bytes:
    """The true average, ties to even: better than cv2, so not cv2."""
    sums, area = exact_sums(plane), plane.shape[0] * WIDTH
    down, rest = sums // area, sums % area
    return (down + ((2 * rest > area) | ((2 * rest == area) & (down % 2 == 1)))).astype(np.uint8)


def test_paths_of_this_cpu() -> None:
    best_last = ["portable", "avx2", "avx512vbmi"]
    assert PATHS
    assert best_last[: len(PATHS)] == PATHS


def test_the_example_table_is_cv2s_grey() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (512, 512, 3), dtype=np.uint8)
    np.testing.assert_array_equal(grey(rgb), cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY))


@every_path
@pytest.mark.parametrize("height", HEIGHTS)
def test_reduce_equals_cv2(path: str, height: int) -> None:
    rng = np.random.default_rng(height)
    ours = reducer(path, height)
    ours.set_plane(np.full((height, WIDTH), 255, np.uint8))
    assert (ours.reduce() == 255).all()
    for trial in range(20):
        plane = rng.integers(0, 256, (height, WIDTH), dtype=np.uint8)
        if trial % 2:
            plane = np.where(plane < 128, *rng.integers(0, 256, 2, dtype=np.uint8))
        ours.set_plane(plane)
        np.testing.assert_array_equal(ours.reduce(), cv2_resize(plane), err_msg=f"trial {trial}")


@every_path
@pytest.mark.parametrize("height", TIE_HEIGHTS)
def test_reduce_equals_cv2_at_ties(path: str, height: int) -> None:
    ours = reducer(path, height)
    tied_cells = 0
    for seed in range(6):
        plane = tie_plane(height, seed)
        tied_cells += int(ties(exact_sums(plane), height).sum())
        ours.set_plane(plane)
        np.testing.assert_array_equal(ours.reduce(), cv2_resize(plane), err_msg=f"seed {seed}")
    assert tied_cells > 1000  # in whole numbers, so beyond doubt


@pytest.mark.parametrize("height", TIE_HEIGHTS)
def test_ties_tell_other_arithmetic_from_cv2s(height: int) -> None:
    """A control: were the native part fused or exact, the test above would fail."""
    planes = [tie_plane(height, seed) for seed in range(6)]
    expected = [cv2_resize(plane) for plane in planes]
    assert all((modelled_resize(p, fused=False) == e).all() for p, e in zip(planes, expected, strict=True))
    for wrong in (lambda p: modelled_resize(p, fused=True), exact_resize):
        assert sum(int((wrong(p) != e).sum()) for p, e in zip(planes, expected, strict=True)) > 20


@every_path
def test_a_step_equals_cv2_on_rgb(path: str) -> None:
    """Two screens to RGB, their maximum, cv2's grey, cv2's resize."""
    rng = np.random.default_rng(1)
    palette = example_palette()
    ours = reducer(path)
    for _ in range(5):
        a, b = random_screen(rng), random_screen(rng)
        pooled = np.maximum(palette[a // 2], palette[b // 2])
        ours.load_pair(a, b)
        np.testing.assert_array_equal(ours.reduce(), cv2_resize(cv2.cvtColor(pooled, cv2.COLOR_RGB2GRAY)))


@every_path
@pytest.mark.parametrize("symmetric", [True, False])
def test_planes_are_what_the_tables_say(path: str, symmetric: bool) -> None:
    rng = np.random.default_rng(2)
    pair = rng.integers(0, 256, (128, 128), dtype=np.uint8)
    if symmetric:
        pair = np.maximum(pair, pair.T)
    single = np.diagonal(pair).copy()
    ours = core.PlaneReducer(single, pair, 210, path)
    assert not ours.plane().any()
    assert not ours.reduce().any()

    # Every colour beside every colour, and every pair of colours.
    a, b = np.divmod(np.arange(210 * WIDTH) % (128 * 128), 128)
    a, b = (2 * a.reshape(210, WIDTH)).astype(np.uint8), (2 * b.reshape(210, WIDTH)).astype(np.uint8)
    ours.load(b)
    np.testing.assert_array_equal(ours.plane(), single[b // 2])
    ours.join_max(a)
    np.testing.assert_array_equal(ours.plane(), np.maximum(single[a // 2], single[b // 2]))
    ours.load_pair(a, b)
    np.testing.assert_array_equal(ours.plane(), pair[a // 2, b // 2])
    ours.load_pair(b, a)
    np.testing.assert_array_equal(ours.plane(), pair[b // 2, a // 2])
    # ALE has no odd colours; if it had, they would count as the even ones below on every path.
    ours.load(a + 1)
    np.testing.assert_array_equal(ours.plane(), single[a // 2])
    ours.load_pair(a + 1, b)
    np.testing.assert_array_equal(ours.plane(), pair[a // 2, b // 2])


def altered(rng: np.random.Generator, screen: Bytes) -> Bytes:
    """The next screen of a game: a few rows, rectangles or pixels differ, sometimes all or nothing does."""
    screen = screen.copy()
    height = screen.shape[0]
    for _ in range(rng.integers(0, 4)):
        top, left = rng.integers(0, height), rng.integers(0, WIDTH)
        rows, columns = rng.integers(1, 9, 2)
        screen[top : top + rows, left : left + columns] = 2 * rng.integers(0, 128)
    if rng.random() < 0.3:
        screen[rng.integers(0, height, 3), rng.integers(0, WIDTH, 3)] = 2 * rng.integers(0, 128, 3)
    if rng.random() < 0.1:
        screen = np.roll(screen, 1, axis=rng.integers(0, 2))
    if rng.random() < 0.03:
        screen = random_screen(rng, height)
    return screen


@pytest.mark.parametrize("height", [210, 250, 97])
@pytest.mark.parametrize("seed", range(4))
def test_no_sequence_of_calls_confuses_the_memo(height: int, seed: int) -> None:
    rng = np.random.default_rng([height, seed])
    single, pair = example_table()
    ours = {path: core.PlaneReducer(single, pair, height, path) for path in PATHS}
    plane = np.zeros((height, WIDTH), np.uint8)
    screens = [random_screen(rng, height)]  # the newest is last; older ones come back
    planes = [plane]
    actions, probabilities = ["load", "load_pair", "join_max", "set_plane", "reduce"], [0.15, 0.3, 0.1, 0.1, 0.35]
    history: list[str] = []
    for call in range(250):
        screens = [*screens[-3:], altered(rng, screens[-1])]
        a, b = screens[rng.integers(0, len(screens))], screens[-1]
        action = str(rng.choice(actions, p=probabilities))
        history.append(action)
        where = f"height {height}, seed {seed}, call {call}: {' '.join(history[-8:])}, path "
        if action == "reduce":
            expected = cv2_resize(plane)
            for path, each in ours.items():
                np.testing.assert_array_equal(each.reduce(), expected, err_msg=where + path)
            continue
        if action == "load":
            arguments, plane = (b,), single[b // 2]
        elif action == "load_pair":
            arguments, plane = (a, b), pair[a // 2, b // 2]
        elif action == "join_max":
            arguments, plane = (a,), np.maximum(plane, single[a // 2])
        else:  # an older plane comes back, perhaps with a row of its own
            plane = planes[rng.integers(0, len(planes))].copy()
            plane[rng.integers(0, height)] ^= np.uint8(rng.integers(0, 2))
            arguments = (plane,)
        planes = [*planes[-3:], plane]
        for path, each in ours.items():
            getattr(each, action)(*arguments)
            np.testing.assert_array_equal(each.plane(), plane, err_msg=where + path)


def beside_forbidden_memory(screen: Bytes, *, at_end: bool) -> Bytes:
    """A copy of the screen; the bytes after it (before it) can be neither read nor written."""
    page = mmap.PAGESIZE
    inside = -(-screen.size // page) * page
    memory = mmap.mmap(-1, inside + 2 * page)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    libc = ctypes.CDLL(None, use_errno=True)
    for guard in (start, start + page + inside):
        assert libc.mprotect(ctypes.c_void_p(guard), ctypes.c_size_t(page), 0) == 0
    offset = page + inside - screen.size if at_end else page
    copy = np.frombuffer(memory, np.uint8, screen.size, offset).reshape(screen.shape)
    copy[:] = screen
    return copy


@every_path
@pytest.mark.parametrize("at_end", [True, False])
def test_nothing_beyond_a_screen_is_read(path: str, at_end: bool) -> None:
    rng = np.random.default_rng(3)
    a, b = (beside_forbidden_memory(random_screen(rng), at_end=at_end) for _ in range(2))
    _, pair = example_table()
    ours = reducer(path)
    ours.load(a)
    ours.join_max(b)
    ours.load_pair(a, b)  # a read too far ends the process here
    np.testing.assert_array_equal(ours.plane(), pair[a // 2, b // 2])
    ours.set_plane(b)
    np.testing.assert_array_equal(ours.reduce(), cv2_resize(b))


def test_refusals() -> None:
    single, pair = example_table()
    for height in (83, 253):
        with pytest.raises(ValueError, match=rf"height {height} is outside \[84, 252\]"):
            core.PlaneReducer(single, pair, height, "portable")
    with pytest.raises(ValueError, match="avx1024"):
        core.PlaneReducer(single, pair, 210, "avx1024")
    with pytest.raises(ValueError, match="160"):
        reducer("portable").set_plane(np.zeros((209, WIDTH), np.uint8))
    pair[3, 3] ^= 1
    with pytest.raises(ValueError, match="colour 6 pooled with itself"):
        core.PlaneReducer(single, pair, 210, "portable")


@pytest.mark.parametrize("path", PATHS)
def test_rows_with_odd_colours_are_looked_up_among_all_colours(path: str) -> None:
    """A PAL game that loses its colours shows odd ones, in some rows or in all."""
    random = np.random.default_rng(5)
    pair = random.integers(0, 256, (256, 256), dtype=np.uint8)
    single = np.ascontiguousarray(np.diagonal(pair))
    reducer = core.PlaneReducer(single, pair, 210, path)
    for _ in range(40):
        older, newer = (random.integers(0, 128, (210, 160), dtype=np.uint8) * 2 for _ in range(2))
        odd_rows = random.random(210) < random.random()
        newer[odd_rows] += (random.random((int(odd_rows.sum()), 160)) < 0.05).astype(np.uint8)
        reducer.load_pair(older, newer)
        assert np.array_equal(reducer.plane(), pair[older, newer])
        reducer.load(newer)
        assert np.array_equal(reducer.plane(), single[newer])
        reducer.join_max(older)
        assert np.array_equal(reducer.plane(), np.maximum(single[newer], single[older]))
