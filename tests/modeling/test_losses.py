"""The losses against loops in NumPy, float64."""

import equations
import numpy as np
import pytest
import torch
from detectron2.utils.events import EventStorage

from sst_d2.errors import SSTConfigError
from sst_d2.modeling.losses import IGNORE, AuxiliaryTerms, BatchTotals, SSTLosses, upsample


def reference(logits, labels):
    """Mean over labelled pixels of -log softmax, pixel by pixel."""
    terms = []
    for image, row, column in np.ndindex(labels.shape):
        if labels[image, row, column] != IGNORE:
            scores = logits[image, :, row, column]
            terms.append(
                np.log(np.exp(scores - scores.max()).sum()) + scores.max() - scores[labels[image, row, column]]
            )
    return sum(terms) / max(len(terms), 1)


def random_pair(images=2, classes=5, size=(4, 6), seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(images, classes, *size, generator=generator, dtype=torch.float64)
    labels = torch.randint(classes, (images, *size), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.3] = IGNORE
    return logits, labels


def test_equals_the_loop_reference_and_is_weighed():
    (one, one_labels), (two, two_labels) = random_pair(), random_pair(images=3, classes=7, seed=1)
    losses = SSTLosses(seg_weight=10.0).segmentation({"a": one, "b": two}, {"a": one_labels, "b": two_labels})
    assert list(losses) == ["loss_seg/a", "loss_seg/b"]
    assert losses["loss_seg/a"].item() == pytest.approx(10 * reference(one.numpy(), one_labels.numpy()), abs=1e-5)
    assert losses["loss_seg/b"].item() == pytest.approx(10 * reference(two.numpy(), two_labels.numpy()), abs=1e-5)


def test_logits_are_brought_to_the_size_of_the_labels():
    coarse = torch.randn(1, 3, 2, 3)
    labels = torch.randint(3, (1, 8, 12))
    loss = SSTLosses(1.0).segmentation({"a": coarse}, {"a": labels})["loss_seg/a"]
    expected = torch.nn.functional.cross_entropy(upsample(coarse, (8, 12)), labels)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)


def test_ignored_pixels_and_absent_domains_give_a_finite_zero_with_zero_gradients():
    logits = torch.randn(1, 4, 2, 2, requires_grad=True)
    none = torch.randn(0, 3, 2, 2, requires_grad=True)
    labels = {"a": torch.full((1, 4, 4), IGNORE), "b": torch.zeros(0, 4, 4, dtype=torch.int64)}
    losses = SSTLosses().segmentation({"a": logits, "b": none}, labels)
    assert losses["loss_seg/a"].item() == losses["loss_seg/b"].item() == 0.0
    sum(losses.values()).backward()
    assert torch.equal(logits.grad, torch.zeros_like(logits)) and none.grad is not None


def test_one_more_image_of_ignored_pixels_changes_nothing():
    logits, labels = random_pair()
    alone = SSTLosses().segmentation({"a": logits}, {"a": labels})["loss_seg/a"]
    more = SSTLosses().segmentation(
        {"a": torch.cat([logits, torch.randn_like(logits)])},
        {"a": torch.cat([labels, torch.full_like(labels, IGNORE)])},
    )["loss_seg/a"]
    assert alone.item() == pytest.approx(more.item(), rel=1e-6)


def test_in_double_precision_the_losses_have_it():
    (one, one_labels), (two, two_labels) = random_pair(), random_pair(images=3, classes=7, seed=1)
    losses = SSTLosses(seg_weight=10.0).segmentation({"a": one, "b": two}, {"a": one_labels, "b": two_labels})
    assert losses["loss_seg/a"].item() == pytest.approx(10 * reference(one.numpy(), one_labels.numpy()), abs=1e-10)
    assert losses["loss_seg/b"].item() == pytest.approx(10 * reference(two.numpy(), two_labels.numpy()), abs=1e-10)


def test_equals_the_equations_where_logits_are_coarser_than_labels():
    logits, _ = random_pair(size=(2, 3))
    _, labels = random_pair(size=(8, 12), seed=1)
    loss = SSTLosses(1.0).segmentation({"a": logits}, {"a": labels})["loss_seg/a"]
    assert loss.item() == pytest.approx(equations.cross_entropy(logits.numpy(), labels.numpy()), rel=1e-6)


CLASSES = {"a": 3, "b": 5, "c": 4}
PAIRS = [("a", "b"), ("b", "c")]
PRESETS = {"paper": {}, "present": {"present_only": True}, "mean": {"mean": True}}
PRESETS["stable"] = {"present_only": True, "mean": True}


def random_terms(images, scales=3, seed=0):
    """Terms as the branch gives them, ``images`` per domain: rows of absent categories are 1."""
    generator = torch.Generator().manual_seed(seed)

    def rows(*shape):
        return 2 * torch.rand(*shape, generator=generator, dtype=torch.float64)

    there = {name: [rows(images[name], k) < 1.4 for _ in range(scales)] for name, k in CLASSES.items()}
    for name in CLASSES:
        there[name][0][:1] = False  # an image without labels, in the coarsest scale
    image = {}
    for a, b in PAIRS:
        image[a, b] = []
        for first, second in zip(there[a], there[b]):
            counts = images[a], images[b]
            mine = rows(*counts, CLASSES[a]).masked_fill(~first[:, None], 1.0)
            image[a, b].append((mine, rows(*counts, CLASSES[b]).masked_fill(~second[None], 1.0)))
    return AuxiliaryTerms(
        logits={name: rows(images[name], k, 2, 3) for name, k in CLASSES.items()},
        dataset={(a, b): (rows(CLASSES[a]), rows(CLASSES[b])) for a, b in PAIRS},
        image=image,
        present={(a, b): list(zip(there[a], there[b])) for a, b in PAIRS},
    )


def random_labels(images, seed=1):
    return {name: random_pair(images[name], k, (8, 12), seed)[1] for name, k in CLASSES.items()}


def reference_image_level(terms, pair, present_only=False, mean=False):
    """Sum over the pairs of images of Eq. (11), row by row, and the number of these pairs."""
    total, met = 0.0, set()
    for (mine, theirs), (first, second) in zip(terms.image[pair], terms.present[pair]):
        for i, j in np.ndindex(*mine.shape[:2]):
            met.add((i, j))
            for values, present in ((mine[i, j], first[i]), (theirs[i, j], second[j])):
                counted = [v for v, p in zip(values.tolist(), present.tolist()) if p or not present_only]
                total += sum(counted) / len(counted) if counted else 0.0
    return total / (len(terms.image[pair]) * len(PAIRS) if mean else 1), len(met)


@pytest.mark.parametrize("images", [(2, 3, 1), (1, 1, 1), (2, 0, 1), (0, 0, 2)], ids=str)
@pytest.mark.parametrize("options", PRESETS.values(), ids=PRESETS)
def test_auxiliary_losses_equal_the_loops_and_are_weighed(images, options):
    images = dict(zip(CLASSES, images))
    terms, labels = random_terms(images), random_labels(images)
    losses = SSTLosses(7.0, 2.0, 3.0, dataset_share=0.5, image_share=0.25, **options).auxiliary(terms, labels)
    expected = {
        f"loss_aux/{name}": 2.0 * equations.cross_entropy(terms.logits[name].numpy(), labels[name].numpy())
        for name in CLASSES
    }
    for pair in PAIRS:
        name = "-".join(pair)
        level = sum(sum(rows.tolist()) / len(rows) for rows in terms.dataset[pair])
        expected[f"loss_scr_dataset/{name}"] = 3.0 * 0.5 * level / (len(PAIRS) if options.get("mean") else 1)
        total, count = reference_image_level(terms, pair, **options)
        expected[f"loss_scr_image/{name}"] = 3.0 * 0.25 * total / max(count, 1)
    assert {name: loss.item() for name, loss in losses.items()} == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_absent_categories_cost_one_or_are_left_out():
    terms = random_terms(dict.fromkeys(CLASSES, 1), scales=1)
    none = [torch.zeros_like(entry) for entry in terms.present["a", "b"][0]]
    ones = [torch.ones_like(rows) for rows in terms.image["a", "b"][0]]
    terms = AuxiliaryTerms(terms.logits, {}, {("a", "b"): [tuple(ones)]}, {("a", "b"): [tuple(none)]})
    labels = random_labels(dict.fromkeys(CLASSES, 1))
    assert SSTLosses(scr_weight=5.0).auxiliary(terms, labels)["loss_scr_image/a-b"].item() == 10.0
    assert SSTLosses(present_only=True).auxiliary(terms, labels)["loss_scr_image/a-b"].item() == 0.0


def test_a_share_of_zero_costs_nothing():
    images = dict.fromkeys(CLASSES, 1)
    terms, labels = random_terms(images), random_labels(images)
    without_dataset = SSTLosses(dataset_share=0.0).auxiliary(terms, labels)
    without_image = SSTLosses(image_share=0.0).auxiliary(terms, labels)
    for name in ("a-b", "b-c"):
        assert without_dataset[f"loss_scr_dataset/{name}"] == without_image[f"loss_scr_image/{name}"] == 0
        assert without_dataset[f"loss_scr_image/{name}"] > 0 and without_image[f"loss_scr_dataset/{name}"] > 0


def test_the_weight_of_the_consistency_grows_over_the_ramp():
    images = dict.fromkeys(CLASSES, 1)
    terms, labels = random_terms(images), random_labels(images)
    full = SSTLosses().auxiliary(terms, labels)
    for iteration, share in ((0, 0.0), (75, 0.25), (299, 299 / 300), (300, 1.0), (1000, 1.0)):
        with EventStorage(iteration):
            losses = SSTLosses(ramp=300).auxiliary(terms, labels)
        for name, loss in losses.items():
            factor = share if "scr" in name else 1.0
            assert loss.item() == pytest.approx(factor * full[name].item(), rel=1e-6)
    with pytest.raises(SSTConfigError, match="RAMP: 300 iterations .*EventStorage.* or set RAMP 0"):
        SSTLosses(ramp=300).auxiliary(terms, labels)


@pytest.mark.parametrize("options", PRESETS.values(), ids=PRESETS)
def test_parts_of_a_batch_add_up(options):
    counts = [dict(zip(CLASSES, (2, 1, 1))), dict(zip(CLASSES, (1, 2, 0)))]
    parts = [(random_terms(images, seed=seed), random_labels(images, seed + 5)) for seed, images in enumerate(counts)]
    pixels = [sum(int((labels[name] != IGNORE).sum()) for _, labels in parts) for name in CLASSES]
    met = [sum(images[a] * images[b] for images in counts) for a, b in PAIRS]
    totals = BatchTotals(torch.tensor(pixels), torch.tensor(met), len(parts))
    losses = SSTLosses(**options)
    added = [losses.auxiliary(terms, labels, totals) for terms, labels in parts]
    for name in CLASSES:
        logits = [scores for terms, _ in parts for scores in terms.logits[name].numpy()]
        expected = equations.cross_entropy(logits, [label for _, labels in parts for label in labels[name].numpy()])
        assert sum(part[f"loss_aux/{name}"].item() for part in added) == pytest.approx(expected, rel=1e-6)
    for pair, count in zip(PAIRS, met):
        name = "-".join(pair)
        sums = [reference_image_level(terms, pair, **options)[0] for terms, _ in parts]
        assert sum(part[f"loss_scr_image/{name}"].item() for part in added) == pytest.approx(5 * sum(sums) / count)
        alone = [losses.auxiliary(terms, labels)[f"loss_scr_dataset/{name}"].item() for terms, labels in parts]
        assert sum(part[f"loss_scr_dataset/{name}"].item() for part in added) == pytest.approx(sum(alone) / 2)


@pytest.mark.parametrize("others", [0, 1])
def test_more_pixels_and_pairs_than_float32_can_count_are_counted(monkeypatch, others):
    images = dict.fromkeys(CLASSES, 2)
    terms, labels = random_terms(images), random_labels(images)
    counts = torch.tensor([2**24 + 1, 2**25 + 1, 2**24 + 3])
    if others:  # another process, with one more of everything: float32 would not see it
        monkeypatch.setattr("sst_d2.modeling.losses.comm.get_world_size", lambda: 2)
        monkeypatch.setattr(torch.distributed, "all_reduce", lambda totals: totals.add_(1))
    losses = SSTLosses(1.0, 1.0, 1.0)
    results = losses.auxiliary(terms, labels, BatchTotals(counts, counts[: len(PAIRS)], parts=1))
    shares = [(1 + others) / (count + others) for count in counts.tolist()]
    for name, share in zip(CLASSES, shares):
        labelled = int((labels[name] != IGNORE).sum())
        total = labelled * equations.cross_entropy(terms.logits[name].numpy(), labels[name].numpy())
        assert results[f"loss_aux/{name}"].item() == pytest.approx(total * share, rel=1e-12, abs=0)
    for pair, share in zip(PAIRS, shares):
        total, _ = reference_image_level(terms, pair)
        assert results[f"loss_scr_image/{'-'.join(pair)}"].item() == pytest.approx(total * share, rel=1e-12, abs=0)
    assert counts.tolist() == [2**24 + 1, 2**25 + 1, 2**24 + 3]  # the caller's own are left as they were


def test_in_double_precision_the_auxiliary_losses_have_it():
    images = dict(zip(CLASSES, (2, 3, 1)))
    terms, labels = random_terms(images), random_labels(images)
    losses = SSTLosses().auxiliary(terms, labels)
    for name in CLASSES:
        expected = equations.cross_entropy(terms.logits[name].numpy(), labels[name].numpy())
        assert losses[f"loss_aux/{name}"].item() == pytest.approx(expected, abs=1e-10)
    for pair in PAIRS:
        total, count = reference_image_level(terms, pair)
        assert losses[f"loss_scr_image/{'-'.join(pair)}"].item() == pytest.approx(5 * total / count, abs=1e-10)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_losses_have_the_type_of_the_logits_float32_at_least(dtype):
    images = dict.fromkeys(CLASSES, 1)
    terms, labels = random_terms(images), random_labels(images)
    precise = torch.promote_types(dtype, torch.float32)
    terms = AuxiliaryTerms(
        {name: logits.to(dtype) for name, logits in terms.logits.items()},
        {pair: tuple(row.to(precise) for row in rows) for pair, rows in terms.dataset.items()},
        {pair: [tuple(row.to(precise) for row in both) for both in rows] for pair, rows in terms.image.items()},
        terms.present,
    )
    results = {**SSTLosses().segmentation(terms.logits, labels), **SSTLosses().auxiliary(terms, labels)}
    assert len(results) == 2 * len(CLASSES) + 2 * len(PAIRS)
    assert {loss.dtype for loss in results.values()} == {precise}
