"""The segmentation loss against loops in NumPy, float64."""

import numpy as np
import pytest
import torch

from sst_d2.modeling.losses import IGNORE, SSTLosses, upsample


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
