"""OpenCV's windows, where there are any."""

from __future__ import annotations

import subprocess
import sys

import numpy as np

from sst_d2.errors import SSTConfigError
from sst_d2.inference.videos import load_opencv

_TITLE = "sst_d2"
# Without a display OpenCV ends the whole process, so another one tries. It closes its window at once.
_TRIAL = f"import cv2; cv2.namedWindow({_TITLE!r}, cv2.WINDOW_NORMAL); cv2.waitKey(1); cv2.destroyAllWindows()"
_STOP = (27, ord("q"))


def check_windows() -> None:
    """Open a window in another process.

    Raises:
        SSTConfigError: that cannot be done.
    """
    load_opencv()
    trial = subprocess.run([sys.executable, "-c", _TRIAL], capture_output=True, check=False)
    if trial.returncode:
        raise SSTConfigError(
            "no window can be opened: this machine has no display, or OpenCV was installed without windows "
            "(opencv-python-headless); --output FILE_OR_FOLDER writes the pictures instead"
        )


def show(picture: np.ndarray, wait: bool) -> bool:
    """Show a picture, (H, W, 3) uint8, RGB, in the place of the one before.

    Args:
        picture: what to show.
        wait: for a key; else for a moment, as in a video.

    Returns:
        Whether to go on; not after q, Escape, or when the window was closed.
    """
    cv2 = load_opencv()
    cv2.namedWindow(_TITLE, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO)
    cv2.imshow(_TITLE, picture[:, :, ::-1])
    while True:
        key = cv2.waitKey(50 if wait else 1)
        if key & 0xFF in _STOP and key >= 0:
            return False
        if cv2.getWindowProperty(_TITLE, cv2.WND_PROP_VISIBLE) < 1:
            return False
        if not wait or key >= 0:
            return True
