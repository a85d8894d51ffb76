"""What byte a pixel becomes under a protocol, as tables over the game's 256 colours.

Pooling two frames and turning the result grey depends only on the two colours of a pixel, so any rule is a table of
256 x 256 bytes, computed once; the native part only looks up.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Table = tuple[Bytes, Bytes]  # of one frame: (256,); of two frames pooled: (256, 256)

# cv2's RGB2GRAY: whole numbers over 2**15, rounded.
CV2_WEIGHTS, CV2_SHIFT = (9798, 19235, 3735), 15
# Rec. 601, the usual meaning of the DQN paper's "luminance", in thousandths so that ties are exact.
LUMINANCE_THOUSANDTHS = (299, 587, 114)
# gymnasium.wrappers.GrayscaleObservation; the fraction is dropped.
GYMNASIUM_WEIGHTS = (0.2125, 0.7154, 0.0721)


def _table(values: npt.NDArray[np.generic]) -> Table:
    pair = np.ascontiguousarray(values, dtype=np.uint8)
    return np.ascontiguousarray(np.diagonal(pair)), pair


def cv2_grey(rgb: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
    """cv2.cvtColor(rgb, COLOR_RGB2GRAY) for an array of any shape (..., 3)."""
    weighted: npt.NDArray[np.int64] = rgb.astype(np.int64) @ np.array(CV2_WEIGHTS)
    return (weighted + (1 << (CV2_SHIFT - 1))) >> CV2_SHIFT


def luminance(rgb: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
    """0.299 R + 0.587 G + 0.114 B, rounded, halves to even."""
    weighted: npt.NDArray[np.int64] = rgb.astype(np.int64) @ np.array(LUMINANCE_THOUSANDTHS)
    whole, rest = np.divmod(weighted, 1000)
    up: npt.NDArray[np.bool_] = (rest > 500) | ((rest == 500) & (whole % 2 == 1))
    return np.add(whole, up)


def pixel_tables(grey: str, palette_rgb: Bytes, palette_grey: Bytes) -> tuple[list[Table], tuple[float, ...]]:
    """The tables of each plane, and how resized red, green and blue become grey where there are three planes.

    Args:
        grey: the protocol's field of that name.
        palette_rgb: (256, 3), the game's colours.
        palette_grey: (256,), ALE's own grey of each.
    """
    pooled_rgb = np.maximum(palette_rgb[:, None, :], palette_rgb[None, :, :])
    if grey == "cv2":
        return [_table(cv2_grey(pooled_rgb))], (0.0, 0.0, 0.0, 0.0)
    if grey == "luminance":
        return [_table(luminance(pooled_rgb))], (0.0, 0.0, 0.0, 0.0)
    if grey == "ale":
        return [_table(np.maximum(palette_grey[:, None], palette_grey[None, :]))], (0.0, 0.0, 0.0, 0.0)
    planes = [_table(pooled_rgb[:, :, channel]) for channel in range(3)]
    if grey == "gymnasium_after_resize":
        return planes, (*GYMNASIUM_WEIGHTS, 0.0)
    if grey == "cv2_after_resize":
        # Exact in doubles: whole numbers divided by a power of two.
        scale = float(1 << CV2_SHIFT)
        return planes, (*(weight / scale for weight in CV2_WEIGHTS), 0.5)
    raise ValueError(f"grey: '{grey}' is not one of cv2, luminance, ale, gymnasium_after_resize, cv2_after_resize")
