"""Pictures into a file, one after the other, whatever their number: GIF by Pillow, MP4 by ffmpeg."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import GifImagePlugin, Image, ImageDraw, ImageFont

from fastrl.runs.shown_game import Picture

_SMALL = 300  # pictures of fewer rows are doubled
_SHORTEST = 2  # hundredths of a second: viewers slow down what is shorter


def with_caption(picture: Picture, caption: str) -> Picture:
    """The picture, doubled if it is small, on a strip with the caption; sides are even, as video wants them."""
    if picture.shape[0] < _SMALL:
        picture = np.repeat(np.repeat(picture, 2, axis=0), 2, axis=1)
    rows, columns = (side + side % 2 for side in picture.shape[:2])
    strip = Image.new("RGB", (columns, 20))
    ImageDraw.Draw(strip).text((4, 4), caption, fill=(255, 255, 255), font=ImageFont.load_default())
    whole = np.zeros((rows + 20, columns, 3), np.uint8)
    whole[: picture.shape[0], : picture.shape[1]] = picture
    whole[rows:] = np.asarray(strip)
    return whole


class _File:
    """A file that gets its name when it is whole."""

    live = False
    closed = False

    def __init__(self, path: Path) -> None:
        if not path.parent.is_dir() or path.is_dir():
            raise ValueError(f"--to: {path} is to be a file in a folder that is there")
        self.path = path
        self.part = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")

    def _end(self, keep: bool) -> None:
        if keep and self.part.exists():
            self.part.replace(self.path)
        self.part.unlink(missing_ok=True)


class GifFile(_File):
    """A GIF, written as the game goes on. Colours are exact up to 256 a picture.

    Args:
        path: of the file.
        pictures_per_s: how fast they are shown. Pictures that are too short to be seen are left out.
    """

    def __init__(self, path: Path, pictures_per_s: float) -> None:
        super().__init__(path)
        self._file: BinaryIO | None = None
        self._seconds = 1 / pictures_per_s
        self._given = 0  # pictures so far
        self._written: Picture | None = None  # what a viewer shows before the waiting one
        self._waiting: tuple[Picture, int] | None = None  # and since when, in hundredths: how long is not yet known

    def show(self, picture: Picture, caption: str) -> None:
        """Add a picture."""
        now = round(100 * self._given * self._seconds)
        self._given += 1
        fresh = with_caption(picture, caption)
        if self._waiting is not None:
            if now - self._waiting[1] < _SHORTEST or np.array_equal(fresh, self._waiting[0]):
                return
            self._write(now)
        self._waiting = (fresh, now)

    def _write(self, now: int) -> None:
        assert self._waiting is not None
        picture, since = self._waiting
        if self._file is None:
            self._file = open(self.part, "wb")  # noqa: SIM115, closed by close()
            rows, columns = picture.shape[:2]
            # No colours shared by all pictures; repeated for ever.
            self._file.write(b"GIF89a" + struct.pack("<HHBBB", columns, rows, 0x70, 0, 0))
            self._file.write(b"!\xff\x0bNETSCAPE2.0\x03\x01\x00\x00\x00")
        top, left, part = difference(picture, self._written)
        hundredths = min(65_535, max(_SHORTEST, now - since))
        for data in GifImagePlugin.getdata(
            indexed(part), (left, top), duration=10 * hundredths, include_color_table=True
        ):
            self._file.write(data)
        self._written = picture

    def close(self, keep: bool = True) -> None:
        """Finish the file, or leave none."""
        if keep and self._waiting is not None:
            self._write(round(100 * self._given * self._seconds))
        if self._file is not None:
            self._file.write(b";")
            self._file.close()
        self._end(keep)


def difference(picture: Picture, before: Picture | None) -> tuple[int, int, Picture]:
    """The smallest rectangle that differs: its first row and column, and what is to be there."""
    if before is None or before.shape != picture.shape:
        return 0, 0, picture
    differs = (picture != before).any(axis=2)
    rows, columns = np.flatnonzero(differs.any(axis=1)), np.flatnonzero(differs.any(axis=0))
    if not len(rows):
        return 0, 0, picture[:1, :1]
    top, left = int(rows[0]), int(columns[0])
    return top, left, picture[top : rows[-1] + 1, left : columns[-1] + 1]


def indexed(picture: Picture) -> Image.Image:
    """The picture by a table of colours, exact if it has at most 256."""
    whole = Image.fromarray(picture)
    counted = whole.getcolors(256)
    if counted is None:
        return whole.quantize(256, dither=Image.Dither.NONE)
    table: npt.NDArray[np.uint8] = np.array([colour for _, colour in counted], np.uint8)
    table = table[np.argsort(_packed(table))]
    # A sorted table is searched, which is ten times as fast as np.unique, whose sort sees every pixel.
    index = np.searchsorted(_packed(table), _packed(picture)).astype(np.uint8)
    found = Image.fromarray(index, "P")
    found.putpalette(table.tobytes())
    return found


def _packed(colours: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint32]:
    return colours.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)


class Mp4File(_File):
    """An MP4 (H.264), written as the game goes on.

    Args:
        path: of the file.
        pictures_per_s: how fast they are shown.
    """

    def __init__(self, path: Path, pictures_per_s: float) -> None:
        super().__init__(path)
        try:
            import imageio.v2
            import imageio_ffmpeg  # noqa: F401, which imageio finds by itself, but misses in other words
        except ImportError as error:
            raise ValueError(
                f"--to: MP4 needs a package that is not installed ({error}); pip install 'fastrl[video]', or write a "
                f"GIF, --to {path.with_suffix('.gif')}"
            ) from None
        self._writer: Any = imageio.v2.get_writer(
            self.part, format="FFMPEG", fps=pictures_per_s, codec="libx264", macro_block_size=2
        )

    def show(self, picture: Picture, caption: str) -> None:
        """Add a picture."""
        self._writer.append_data(with_caption(picture, caption))

    def close(self, keep: bool = True) -> None:
        """Finish the file, or leave none."""
        self._writer.close()
        self._end(keep)
