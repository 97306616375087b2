"""Grapy-ML's colour renderings as label maps: every colour, and what is refused."""

import numpy as np
import pytest
from downloads import script
from PIL import Image

from sst_d2.label_domains import get_label_domain

colour_labels = script("preparation.colour_labels")
# Grapy-ML's order: 3 lower arm, 4 upper arm, 5 lower leg, 6 upper leg; the ids are those of the label domain.
COLOURS = {
    (0, 0, 0): 0, (126, 0, 0): 1, (127, 0, 0): 1, (0, 128, 0): 2, (1, 128, 0): 2,
    (126, 126, 1): 4, (0, 0, 128): 3, (126, 1, 128): 6, (0, 128, 128): 5,
}  # fmt: skip


def write_colours(path, colours, mode="RGBA"):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.array([[(*color, 255)[: len(mode)] for color in colours]], np.uint8)
    Image.fromarray(pixels).save(path)
    return str(path)


@pytest.fixture
def domain():
    return get_label_domain("pascal_person_part")


@pytest.mark.parametrize("mode", ["RGBA", "RGB"])
def test_colours_become_ids(tmp_path, domain, mode):
    labels, doubts = colour_labels.read_colour_labels(write_colours(tmp_path / "x.png", COLOURS, mode), None, domain)
    assert labels.tolist() == [list(COLOURS.values())]
    assert doubts == []


@pytest.mark.parametrize(
    ("pixels", "words"),
    [
        ([[(0, 0, 0, 255), (64, 0, 0, 255), (1, 2, 99, 255)]], r"\(1, 2, 99\), \(64, 0, 0\) are in no table"),
        ([[(0, 0, 0, 255), (0, 128, 0, 0)]], "transparent"),
        ([[0, 1]], "mode L"),
    ],
)
def test_other_colours_are_refused_by_value_and_path(tmp_path, domain, pixels, words):
    Image.fromarray(np.array(pixels, np.uint8)).save(tmp_path / "x.png")
    with pytest.raises(colour_labels.FileFault, match=f"x.png: .*{words}"):
        colour_labels.read_colour_labels(str(tmp_path / "x.png"), None, domain)
