"""Pictures in a window, where there is a display."""

from __future__ import annotations

import numpy as np

from fastrl.runs.shown_game import Picture

_HEIGHT = 630  # pixels that a picture is enlarged to, about


class WindowScreen:
    """Shows pictures in a window of its own. ``closed`` tells when somebody has closed it.

    Args:
        title: of the window.
        aspect: width to height as it is to look; None: that of the pictures.
    """

    live = True

    def __init__(self, title: str, aspect: float | None = None) -> None:
        try:
            import tkinter
        except ImportError:
            raise ValueError(
                "--to window: this Python was built without tkinter (Debian: apt install python3-tk); "
                "use --to terminal, or a file"
            ) from None
        try:
            self._root = tkinter.Tk()
        except tkinter.TclError as error:
            raise ValueError(f"--to window: there is no display here ({error}); use --to terminal, or a file") from None
        self._make_picture = tkinter.PhotoImage
        self._root.title(title)
        self._root.protocol("WM_DELETE_WINDOW", self._gone)
        self._picture = tkinter.Label(self._root)
        self._picture.pack()
        self._caption = tkinter.Label(self._root, font="TkFixedFont", anchor="w")
        self._caption.pack(fill="x")
        self._aspect = aspect
        self.closed = False

    def _gone(self) -> None:
        self.closed = True

    def show(self, picture: Picture, caption: str) -> None:
        """Replace what is shown."""
        rows, columns = picture.shape[:2]
        down = max(1, _HEIGHT // rows)
        across = max(1, round(down * (self._aspect or columns / rows) * rows / columns))
        large = np.repeat(np.repeat(picture, down, axis=0), across, axis=1)
        header = f"P6 {large.shape[1]} {large.shape[0]} 255\n".encode()
        image = self._make_picture(data=header + large.tobytes(), format="PPM")
        self._picture.configure(image=image)
        self._shown = image  # tkinter itself does not keep it
        self._caption.configure(text=caption)
        self._root.update()

    def close(self, keep: bool = True) -> None:
        """Close it."""
        self._root.destroy()
