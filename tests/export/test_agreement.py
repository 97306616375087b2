"""The comparison that an exported file must pass, and the sizes that it is made at."""

import numpy as np
import pytest
import torch
from torch import nn

from sst_d2.errors import SSTCheckpointError
from sst_d2.export import compare, in_sizes
from sst_d2.export.agreement import SIZES


class Constant(nn.Module):
    """A model that answers with given logits, and shows what it was given."""

    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def forward(self, samples):
        self.seen = samples[0]["image"]
        return [{"sem_seg_by_domain": self.logits}]


LOGITS = torch.zeros(2, 20, 50)  # 1,000 pixels of class 1
LOGITS[1] = 0.5
LOGITS[0, -1, -1] = -300.0  # a hundredth of the variation allows for what `changed` does
PHOTO = np.random.default_rng(0).integers(0, 256, (20, 50, 3), dtype=np.uint8)


def changed(pixels):
    """Logits that give another class in so many pixels."""
    logits = LOGITS.clone()
    logits[1].view(-1)[:pixels] = -1.5
    return logits[None]


@pytest.mark.parametrize(("pixels", "holds"), [(0, True), (1, True), (2, False)])
def test_at_most_one_pixel_of_a_thousand_may_differ(pixels, holds):
    model = Constant({"atr": LOGITS, "cihp": LOGITS})
    outputs = {"logits_atr": LOGITS[None], "logits_cihp": changed(pixels)}
    found = compare(model, "RGB", lambda image: outputs, ["atr", "cihp"], PHOTO)
    assert (found.size, found.equal, found.largest, found.holds) == (
        (20, 50),
        pytest.approx(1 - pixels / 1000),
        2.0 if pixels else 0.0,
        holds,
    )
    assert found.classes == 1


def test_logits_may_not_differ_by_more_than_rounding_where_one_class_wins_everywhere():
    wins = torch.stack([torch.zeros(20, 50), 1000 + torch.rand(20, 50)])  # varies by 1
    for difference, holds in ((0.0, True), (0.019, True), (0.03, False), (7.0, False), (float("nan"), False)):
        other = wins.clone()
        other[0, 3, 4] += difference
        found = compare(Constant({"atr": wins}), "RGB", lambda image, o=other: {"logits_atr": o[None]}, ["atr"], PHOTO)
        assert (found.equal >= 0.999 and found.holds) is holds, difference
        assert found.allowed == pytest.approx(0.02, rel=0.01) and found.classes == 1


def test_of_several_label_domains_the_worst_difference_counts():
    model = Constant({"atr": LOGITS, "cihp": LOGITS / 100})
    outputs = {"logits_atr": LOGITS[None] + 2, "logits_cihp": LOGITS[None] / 100 + 1}
    found = compare(model, "RGB", lambda image: outputs, ["atr", "cihp"], PHOTO)
    assert (found.largest, found.allowed) == (pytest.approx(1), pytest.approx(0.03, rel=0.01)) and not found.holds


def test_label_maps_are_compared_without_a_difference_of_logits():
    outputs = {"labels_atr": changed(2).argmax(1).to(torch.uint8)}
    found = compare(Constant({"atr": LOGITS}), "RGB", lambda image: outputs, ["atr"], PHOTO)
    assert found.largest is None and found.equal == pytest.approx(0.998) and not found.holds


@pytest.mark.parametrize("kind", ["logits", "labels"])
def test_a_model_that_answers_no_numbers_is_named(kind):
    bad = LOGITS.clone()
    bad[:, 0, 0] = float("nan")
    outputs = {"logits_atr": bad[None], "labels_atr": bad.argmax(0)[None]}
    with pytest.raises(SSTCheckpointError, match=r"NaN or infinity for 'atr': its weights are damaged"):
        compare(Constant({"atr": bad}), "RGB", lambda image: {f"{kind}_atr": outputs[f"{kind}_atr"]}, ["atr"], PHOTO)


@pytest.mark.parametrize("order", ["RGB", "BGR"])
def test_what_was_exported_gets_red_first_and_the_model_what_it_wants(order):
    model, seen = Constant({"atr": LOGITS}), []
    compare(model, order, lambda image: seen.append(image) or {"logits_atr": LOGITS[None]}, ["atr"], PHOTO)
    assert np.array_equal(seen[0][0].permute(1, 2, 0).numpy(), PHOTO)
    model_saw = model.seen.permute(1, 2, 0).numpy()
    assert np.array_equal(model_saw, PHOTO if order == "RGB" else PHOTO[:, :, ::-1])


def test_photos_come_in_their_own_sizes_up_to_a_limit_and_then_in_others():
    large = np.zeros((1280, 900, 3), np.uint8)
    sizes = [photo.shape[:2] for photo in in_sizes([PHOTO, large], None)]
    assert sizes == [(20, 50), (640, 450), *SIZES]
    assert [photo.shape[:2] for photo in in_sizes([PHOTO, large], (30, 31))] == [(30, 31), (30, 31)]
