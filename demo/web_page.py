"""What the page of `web.py` shows of a photo: pictures to be drawn again, tables of areas, label maps as files.

Nothing here knows Gradio.
"""

from __future__ import annotations

import html
import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from sst_d2 import LabelDomain, Prediction, SSTError, SSTPredictor
from sst_d2.visualization import background_ids, fitted, overlay

# Longer side of the pictures, in pixels: a smaller photo is enlarged, so that its contours stay thin.
_SIDES = {"min_side": 512, "max_side": 1024}


@dataclass(frozen=True, eq=False)
class ParsedPhoto:
    """A photo and its labels in all label systems, small enough to be kept for as long as somebody looks at it.

    Attributes:
        image: (h, w, 3) uint8, RGB; its longer side is at most 1024 pixels.
        labels: (h, w) uint8 ids, by label domain.
        tables: `areas_table` of every label domain, of the photo's own pixels.
        files: the label maps in the photo's own size, palette PNGs, one for every label domain.
        summary: a line of HTML about the photo.
    """

    image: np.ndarray
    labels: Mapping[LabelDomain, np.ndarray]
    tables: tuple[str, ...]
    files: tuple[Path, ...]
    summary: str


def parse_photo(predictor: SSTPredictor, path: str | os.PathLike, folder: str | os.PathLike) -> ParsedPhoto:
    """Predict a photo in all label domains, in one pass, and write its label maps.

    Args:
        predictor: the network.
        path: the photo.
        folder: where the label maps go, each photo's into a new folder of its own.

    Raises:
        SSTError: as the predictor; a label map cannot be written.
    """
    start = time.perf_counter()
    answer: dict[str, Prediction] = predictor(path, "all")
    seconds = time.perf_counter() - start
    path, place = Path(path), Path(tempfile.mkdtemp(dir=folder))
    files = []
    for name, prediction in answer.items():
        files.append(place / f"{path.stem}_{name}.png")
        prediction.save(files[-1])
    image = next(iter(answer.values())).image
    height, width = image.shape[:2]
    return ParsedPhoto(
        image=fitted(image, **_SIDES),
        labels={prediction.domain: fitted(prediction.labels, **_SIDES) for prediction in answer.values()},
        tables=tuple(areas_table(prediction) for prediction in answer.values()),
        files=tuple(files),
        summary=f"{html.escape(path.name)}: {width} × {height} pixels, {seconds:.1f} s on {predictor.device}",
    )


def draw_overlays(photo: ParsedPhoto, opacity: float, folder: str | os.PathLike) -> list[Path]:
    """Draw the photo under its labels, as JPEG files; nothing is predicted again.

    Args:
        photo: the photo.
        opacity: of the colours, 0 to 100.
        folder: where the files go, those of each call into a new folder of their own.

    Returns:
        One file for every label domain.

    Raises:
        SSTDataError: ``opacity`` is another number.
    """
    place, files = Path(tempfile.mkdtemp(dir=folder)), []
    for domain, labels in photo.labels.items():
        picture = Image.fromarray(overlay(photo.image, labels, domain, opacity / 100))
        files.append(place / f"{domain.name}.jpg")
        picture.save(files[-1], quality=92, subsampling=0)  # coarser colours would spoil the contours
    return files


def areas_table(prediction: Prediction) -> str:
    """The classes that occur, with their colours and shares of the photo, largest first; background last. HTML."""
    areas = [(share, i) for i, share in enumerate(prediction.areas().values()) if share > 0]
    behind = set(background_ids(prediction.domain))
    areas.sort(key=lambda area: (area[1] in behind, -area[0]))
    rows = "".join(_row(prediction, i, share, i in behind) for share, i in areas)
    return (
        f"<table class='areas'><tr><th>{len(areas)} of {len(prediction.classes)} classes</th>"
        f"<th>% of the picture</th></tr>{rows}</table>"
    )


def _row(prediction: Prediction, i: int, share: float, is_background: bool) -> str:
    name, color = html.escape(prediction.classes[i]), "rgb({}, {}, {})".format(*prediction.colors[i])
    # The overlay leaves the background as it is.
    swatch = "" if is_background else f" style='background: {color}'"
    percent = "&lt; 0.1" if share < 0.0005 else f"{100 * share:.1f}"
    return f"<tr><td><span class='swatch'{swatch}></span>{name}</td><td>{percent}</td></tr>"


def sentence_of(error: SSTError, path: str | os.PathLike) -> str:
    """What a person reads of an error: the photo goes by its name, not by where the page has laid it. HTML."""
    text = str(error).replace(os.fspath(path), Path(path).name)
    return f"<span class='mistake' role='alert'>{html.escape(text)}</span>"
