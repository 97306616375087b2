"""Pictures: label maps in colours, overlays with contours and legends, all domains side by side, matrices over classes.

Pillow and NumPy only; no display is needed.

Letters: H, W height and width, K the classes of a label domain. A label map is (H, W), integers, each in [0, K) or the
domain's ignore label. Pictures are (H, W, 3) uint8, red, green, blue.
"""

from sst_d2.visualization.files import save_image, save_label_png
from sst_d2.visualization.label_maps import (
    BACKGROUND_NAMES,
    CONTOUR_COLOR,
    IGNORE_COLOR,
    background_ids,
    color_map,
    legend,
    overlay,
)
from sst_d2.visualization.matrices import matrix_picture
from sst_d2.visualization.sheets import compared, fitted, sheet, side_by_side

__all__ = [
    "BACKGROUND_NAMES",
    "CONTOUR_COLOR",
    "IGNORE_COLOR",
    "background_ids",
    "color_map",
    "compared",
    "fitted",
    "legend",
    "matrix_picture",
    "overlay",
    "save_image",
    "save_label_png",
    "sheet",
    "side_by_side",
]
