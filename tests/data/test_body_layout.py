"""`BodyLayout`: re-ordered and mirrored labels are told from right ones, and right ones are left in peace."""

import importlib
import json

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from sst_d2.data.body_layout import BodyLayout, Tally
from sst_d2.label_domains import LabelDomain, get_label_domain, load_label_domain

# M2FP's order of PASCAL-Person-Part: what each standard id is called there.
M2FP = np.arange(256)
M2FP[1:7] = [2, 4, 6, 1, 3, 5]
MORE_DOMAINS = ROOT / "tests" / "label_domains"


def layout_of(label_maps, domain):
    layout = BodyLayout(domain)
    for labels in label_maps:
        pixels = np.bincount(labels.ravel(), minlength=256)
        centres = np.full((256, 2), np.nan)
        for identifier in np.flatnonzero(pixels):
            centres[identifier] = np.argwhere(labels == identifier).mean(axis=0) / labels.shape
        layout.add(pixels, centres)
    return layout


def people(count, frontal, domain, seed=0):
    """Stick people of boxes: face, clothes, two arms, pants, two shoes; a share ``frontal`` faces the viewer."""
    generator = np.random.default_rng(seed)
    boxes = {"face": (0, 4, 8, 4), "upper-clothes": (4, 8, 7, 6), "pants": (12, 6, 7, 6)}
    for _ in range(count):
        left, right = (14, 4) if generator.random() < frontal else (4, 14)
        sides = {"left-arm": (5, 5, left, 2), "right-arm": (5, 5, right, 2)}
        sides |= {"left-shoe": (18, 2, left, 2), "right-shoe": (18, 2, right, 2)}
        labels = np.zeros((20, 20), dtype=np.uint8)
        for name, (top, height, x, width) in (boxes | sides).items():
            labels[top : top + height, x : x + width] = domain.index(name)
        yield labels


@pytest.mark.parametrize("name", ["atr", "cihp", "lip"])
def test_frontal_people_raise_no_doubt_and_mirrored_ones_do(name):
    domain = get_label_domain(name)
    assert layout_of(people(60, 0.75, domain), domain).doubts() == []
    layout = layout_of([labels[:, ::-1] for labels in people(60, 0.75, domain)], domain)
    ((kind, sentence),) = layout.doubts()
    against = sum(labels[6, 14] == domain.index("left-arm") for labels in people(60, 0.75, domain))
    assert kind == "left_right" and f"to the left of the right ones in {against} of 60 images" in sentence


def test_mirroring_with_exchanged_sides_changes_nothing():
    domain = get_label_domain("cihp")
    swap = np.arange(256)
    swap[: domain.num_classes] = domain.flip_permutation()
    assert layout_of([swap[labels[:, ::-1]] for labels in people(60, 0.75, domain)], domain).doubts() == []


def test_few_images_and_chance_raise_no_doubt():
    domain = get_label_domain("atr")
    assert layout_of([labels[:, ::-1] for labels in people(19, 1.0, domain)], domain).doubts() == []
    assert layout_of([labels[::-1] for labels in people(9, 1.0, domain)], domain).doubts() == []
    assert len(layout_of([labels[::-1] for labels in people(10, 1.0, domain)], domain).doubts()) == 1
    doubtful = sum(bool(layout_of(people(40, 0.5, domain, seed), domain).doubts()) for seed in range(100))
    assert doubtful <= 8  # one in 45 is meant


def test_parts_that_add_up_say_the_same_as_the_whole():
    domain = get_label_domain("atr")
    maps = [labels[::-1, ::-1] for labels in people(50, 0.8, domain)]
    whole, first = layout_of(maps, domain), layout_of(maps[:13], domain)
    first.merge(layout_of(maps[13:], domain))
    assert first.doubts() == whole.doubts() and len(whole.doubts()) == 2


def test_a_tally_is_negative_where_its_mean_is_two_standard_errors_below_zero():
    scores = np.random.default_rng(0).choice([-1, -1 / 3, 1 / 3, 1], size=30, p=[0.4, 0.2, 0.2, 0.2])
    tally = Tally()
    for score in scores:
        tally.add(score)
    assert tally.is_negative(30) == (scores.mean() + 2 * scores.std(ddof=1) / 30**0.5 < 0)
    assert tally.against == (scores < 0).sum() and not tally.is_negative(31)


def test_a_level_lies_where_most_of_its_pixels_do():
    domain = get_label_domain("atr")
    labels = np.zeros((20, 20), dtype=np.uint8)
    labels[:6, :8], labels[8:12], labels[19, 3] = domain.index("hair"), domain.index("pants"), domain.index("hat")
    layout = layout_of([labels] * 12, domain)  # by their mean, head would lie below the pants
    assert layout.order["head", "legs"].against == 0 and layout.order["head", "legs"].count == 12


def test_domains_without_known_words_are_not_judged():
    domain = LabelDomain("x", ("a", "b", "c", "d"), ((0, 0, 0),) * 4, flip_pairs=(("c", "d"),))
    layout = layout_of([np.array([[0, 1], [2, 3]] * 2, dtype=np.uint8)] * 30, domain)
    assert layout.order == {} and layout.doubts() == []


def test_sides_are_told_by_their_names_whatever_their_place_in_the_pair():
    classes = ("background", "Right_Hand", "Left_Hand")
    domain = LabelDomain("x", classes, ((0, 0, 0),) * 3, flip_pairs=(("Right_Hand", "Left_Hand"),))
    frontal = np.array([[1, 0, 2]], dtype=np.uint8)
    assert layout_of([frontal] * 20, domain).doubts() == []
    assert layout_of([frontal[:, ::-1]] * 20, domain).doubts()[0][0] == "left_right"


def test_the_synthetic_people_are_right_and_mirrored_are_not():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "datasets"))
        people_generator = importlib.import_module("people_generator")
        item = importlib.import_module("people_generator.folder").Item
    domain, maps = get_label_domain("atr"), []
    for index in range(60):
        sample = people_generator.draw_sample("atr", (64, 64), item("atr", "val", index).generator(0))
        maps.append(people_generator.to_label(sample.atoms, "atr"))
    assert layout_of(maps, domain).doubts() == []
    assert [kind for kind, _ in layout_of([labels[:, ::-1] for labels in maps], domain).doubts()] == ["left_right"]


def real_layout(folder, data_set, domain, change=lambda labels: labels):
    pairs = json.loads((folder / "pairs.json").read_text())
    files = [folder / pair["label"] for pair in pairs if pair["dataset"] == data_set]
    return layout_of([change(np.asarray(Image.open(file))) for file in files], domain), len(files)


def test_real_pascal_labels_are_right_and_in_another_projects_order_they_are_not(real_data):
    domain = get_label_domain("pascal_person_part")
    layout, count = real_layout(real_data, "pascal_person_part", domain)
    assert count >= 18 and layout.doubts() == []
    layout, _ = real_layout(real_data, "pascal_person_part", domain, lambda labels: M2FP[labels])
    ((kind, sentence),) = layout.doubts()
    assert kind == "order" and sentence.startswith("head (head) below torso (torso) in 16 of 16 images")


@pytest.mark.parametrize("name", ["cihp", "atr", "lip"])
def test_real_people_have_their_left_at_the_viewers_right(real_data, name):
    layout, _ = real_layout(real_data, name, get_label_domain(name))
    assert layout.left_right.total >= 0 and layout.doubts() == []


@pytest.mark.slow
@pytest.mark.parametrize(("data_set", "domain"), [("ccp", "ccp59"), ("fashionista7", "fashionista7")])
def test_real_street_photos_give_no_false_alarm(real_data, data_set, domain):
    domain = load_label_domain(MORE_DOMAINS / f"{domain}.yaml")
    layout, count = real_layout(real_data, data_set, domain)
    assert count >= 140 and layout.doubts() == []
    upside_down, _ = real_layout(real_data, data_set, domain, lambda labels: labels[::-1])
    assert [kind for kind, _ in upside_down.doubts()] == ["order"]
