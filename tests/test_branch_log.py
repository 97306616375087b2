"""`BranchLog`: its figures are those of plain loops, and it warns of what has degenerated."""

import logging
import math
from types import SimpleNamespace

import equations
import numpy as np
import pytest
import torch
from conftest import tiny_cfg
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from sst_d2.branch_log import BranchLog, cosine, degenerated, described, figures_of, gradient_on, mean_cosine
from sst_d2.modeling.losses import AuxiliaryTerms, MappedPrediction

CLASSES = {"pascal_person_part": 7, "atr": 18, "cihp": 20}
PAIRS = [("pascal_person_part", "atr"), ("pascal_person_part", "cihp"), ("atr", "cihp")]


def batch(names, size=(32, 32)):
    """Training inputs with ignored pixels; the last images are smaller, so that they are padded."""
    generator = torch.Generator().manual_seed(3)
    samples = []
    for row, name in enumerate(names):
        height, width = (size[0] - 8 * (row % 2), size[1])
        labels = torch.randint(CLASSES[name], (height // 4, width // 4), generator=generator)
        labels[torch.rand(labels.shape, generator=generator) < 0.2] = 255
        image = torch.randint(256, (3, height, width), generator=generator, dtype=torch.uint8)
        labels = labels.repeat_interleave(4, 0).repeat_interleave(4, 1)
        samples.append({"image": image, "sem_seg": labels, "label_domain": name})
    return samples


def observed(network, samples, gradients=False):
    """What the hook puts into the storage in one iteration."""
    hook = BranchLog(network, 1, gradients)
    with EventStorage() as storage:
        hook.trainer = SimpleNamespace(iter=0, max_iter=9, storage=storage)
        hook.before_step()
        network(samples)
        hook.after_step()
        return {name: value for name, (value, _) in storage.latest().items()}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build_model(tiny_cfg(list(CLASSES))).train()


def spied(model, samples):
    """Terms, labels, and F, as they go through the model."""
    seen = {}
    see = model.auxiliary.register_forward_hook(lambda m, a, k, terms: seen.update(terms=terms, **k), with_kwargs=True)
    losses = model(samples)
    see.remove()
    return seen["terms"], seen["labels"].numpy(), seen["features"][4], losses


def cosine_of_rows(rows):
    """Mean cosine of all ordered pairs of different rows."""
    values = []
    for i, j in np.ndindex(len(rows), len(rows)):
        if i != j:
            values.append(rows[i] @ rows[j] / math.sqrt(rows[i] @ rows[i]) / math.sqrt(rows[j] @ rows[j]))
    return math.fsum(values) / len(values)


def miou_of(predictions, labels, num_classes):
    """In percent, the mean over classes of either side; ignored pixels on neither side."""
    ious = []
    for k in range(num_classes):
        both = either = 0
        for guess, truth in zip(np.ravel(predictions), np.ravel(labels), strict=True):
            if truth != 255:
                both += guess == k == truth
                either += guess == k or truth == k
        if either:
            ious.append(100 * both / either)
    return math.fsum(ious) / len(ious)


def occurs(label, stride, category):
    return category in label[::stride, ::stride]


def expected_figures(model, samples):
    terms, labels, features, _ = spied(model, samples)
    rows = {name: [i for i, s in enumerate(samples) if s["label_domain"] == name] for name in CLASSES}
    figures = {}
    for name, own in rows.items():
        figures[f"sst/cosine_x0/{name}"] = cosine_of_rows(model.auxiliary.enhancement[name].embedding.detach().numpy())
        if own:
            last = terms.categories[name].detach().double().numpy()
            maps = features[own].detach().double().numpy()
            masks = [equations.auxiliary_logits(*both) for both in zip(maps, last, strict=True)]
            # So `categories` is X_3 indeed.
            assert np.abs(np.stack(masks) - terms.logits[name].detach().numpy()).max() < 1e-5
            guesses = [equations.upsampled(mask, labels.shape[1:]).argmax(axis=0) for mask in masks]
            figures[f"sst/miou_aux/{name}"] = miou_of(guesses, labels[own], CLASSES[name])
            figures[f"sst/cosine_x3/{name}"] = np.mean([cosine_of_rows(image) for image in last])
    for pair in PAIRS:
        values = []
        for stride, sides in zip((16, 8, 4), terms.image[pair], strict=True):
            for side in (0, 1):
                for place, value in np.ndenumerate(sides[side].detach().numpy()):
                    image = labels[rows[pair[side]][place[side]]]
                    if occurs(image, stride, place[2]):
                        values.append(value)
        if values:
            figures[f"sst/scr_image_present/{'-'.join(pair)}"] = math.fsum(values) / len(values)
    return figures


BATCHES = {
    "one of each": list(CLASSES),
    "unequal": ["cihp", "atr", "atr", "cihp", "pascal_person_part"],
    "one is absent": ["atr", "cihp", "atr"],
}


@pytest.mark.parametrize("names", BATCHES.values(), ids=BATCHES)
def test_every_figure_is_that_of_plain_loops(model, names):
    samples = batch(names)
    assert observed(model, samples) == pytest.approx(expected_figures(model, samples), rel=1e-5, abs=1e-6)


def test_a_figure_that_the_batch_has_no_image_for_is_left_out(model):
    samples = batch(["atr", "atr"])
    kinds = [f"sst/cosine_x0/{name}" for name in CLASSES]
    assert sorted(observed(model, samples)) == sorted([*kinds, "sst/cosine_x3/atr", "sst/miou_aux/atr"])
    for sample in samples:
        sample["sem_seg"].fill_(255)
    assert sorted(observed(model, samples)) == sorted([*kinds, "sst/cosine_x3/atr"])


def test_figures_of_mapped_predictions_are_those_of_plain_loops():
    torch.manual_seed(0)
    model = build_model(tiny_cfg(list(CLASSES), MODEL__SST__AUXILIARY__PREDICTION=0.5)).train()
    for head in model.heads.values():  # that predict many categories
        torch.nn.init.normal_(head.weight)
    samples = batch(["atr", "cihp", "atr"])
    figures, (terms, labels, _, _) = observed(model, samples), spied(model, samples)
    assert len(terms.predictions) == 6
    for (of, to), mapped in terms.predictions.items():
        certainty = [max(row) for row in mapped.matrix.tolist()]
        assert figures[f"sst/certainty/{of}-{to}"] == pytest.approx(sum(certainty) / len(certainty))
        rows = [row for row, sample in enumerate(samples) if sample["label_domain"] == to]
        assert (f"sst/miou_mapped/{of}-{to}" in figures) == bool(rows)
        if rows:
            full = [equations.upsampled(q, labels.shape[1:]).argmax(0) for q in mapped.probabilities.detach().numpy()]
            wanted = miou_of(full, labels[rows], CLASSES[to])
            assert figures[f"sst/miou_mapped/{of}-{to}"] == pytest.approx(wanted, rel=1e-5) and wanted > 0
    assert "mIoU of mapped predictions: pascal_person_part-atr" in described(figures)


def test_gradients_are_those_of_each_loss_alone(model):
    samples = batch(["cihp", "atr", "atr"])
    figures = observed(model, samples, gradients=True)
    names = list(model(samples))
    assert [key for key in figures if "gradient" in key] == [f"sst/gradient/{name}" for name in names]
    by_kind = {}
    for name in names:
        _, _, features, losses = spied(model, samples)
        features.retain_grad()
        losses[name].backward()
        values = [] if features.grad is None else features.grad.flatten().tolist()
        if values:
            before = by_kind.get(name.split("/")[0], [0.0] * len(values))
            by_kind[name.split("/")[0]] = [one + other for one, other in zip(before, values, strict=True)]
        expected = math.sqrt(math.fsum(value * value for value in values))
        assert figures[f"sst/gradient/{name}"] == pytest.approx(expected, rel=1e-5), name
    model.zero_grad()
    assert figures["sst/gradient/loss_scr_dataset/atr-cihp"] == 0 < figures["sst/gradient/loss_seg/atr"]
    assert figures["sst/gradient/loss_seg/pascal_person_part"] == 0
    task = by_kind.pop("loss_seg")
    assert [key for key in figures if "alignment" in key] == [f"sst/alignment/{kind}" for kind in by_kind]
    assert set(by_kind) == {"loss_aux", "loss_scr_image"}
    for kind, own in by_kind.items():
        wanted = math.fsum(map(math.prod, zip(task, own, strict=True))) / math.hypot(*task) / math.hypot(*own)
        assert figures[f"sst/alignment/{kind}"] == pytest.approx(wanted, rel=1e-4, abs=1e-6), kind
        assert abs(wanted) > 1e-4


@pytest.mark.parametrize("slope", [1e-9, 1e-3, 100.0])
def test_norms_of_half_precision_are_not_lost(slope):
    features = torch.ones(3, 4, dtype=torch.float16, requires_grad=True)
    loss = (features.float() * slope).sum()
    assert float(gradient_on(loss, features).norm()) == pytest.approx(slope * math.sqrt(12), rel=1e-2)
    assert gradient_on(loss.detach(), features) is None
    bad = gradient_on(loss * math.nan, features)
    assert bad.isnan().all() and math.isnan(cosine(bad, bad)) and cosine(torch.zeros(2), torch.ones(2)) == 0


def test_under_autocast_the_figures_stay_the_same(model):
    samples = batch(list(CLASSES))
    plain = observed(model, samples, gradients=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = observed(model, samples, gradients=True)
    for key, value in plain.items():
        if "miou" not in key:
            # Maxima that bfloat16 cannot tell apart share their gradient, which makes its norm smaller.
            allowed = 0.5 if "gradient" in key else 0.1
            assert half[key] == pytest.approx(value, rel=allowed, abs=0.02), key


class Toy(torch.nn.Module):
    """A network of one image per domain whose X_3 is as parallel, and its comparison as good, as it is told."""

    def __init__(self, apart, mismatch):
        super().__init__()
        self.auxiliary, self.decoder = ToyBranch(apart, mismatch), torch.nn.Identity()

    def forward(self, labels):
        self.auxiliary(labels=labels, domains=["a", "b"])
        return {}


class ToyBranch(torch.nn.Module):
    def __init__(self, apart, mismatch):
        super().__init__()
        x = torch.ones(1, 3, 4) + apart * torch.eye(3, 4)
        present = torch.tensor([[True, True, False]])
        # The absent category costs its constant, whatever the others do.
        rows = torch.where(present, mismatch, 1.0)[None]
        image = {("a", "b"): [(rows, rows)] * 3}
        self.terms = AuxiliaryTerms({}, {}, image, {("a", "b"): [(present, present)] * 3}, {}, {"a": x, "b": x})

    def forward(self, labels, domains):
        return self.terms


def warnings_of(hook, network, iterations):
    for iteration in iterations:
        with EventStorage() as storage:
            hook.trainer = SimpleNamespace(iter=iteration, max_iter=99, storage=storage)
            hook.before_step()
            network(torch.zeros(2, 8, 8, dtype=torch.int64))
            hook.after_step()


def test_a_collapsed_branch_is_warned_of_once(caplog):
    network = Toy(apart=0.1, mismatch=0.01)
    hook = BranchLog(network, 2)
    warnings_of(hook, network, range(6))
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(said) == 1 and said[0].startswith("MST does nothing between a and b any more: the rows of X_3 are")
    assert "(mean cosine: a 0.998, b 0.998)" in said[0] and "no mismatch where categories occur (0.0100)" in said[0]
    assert "MODEL.SST.AUXILIARY.PRESET stable" in said[0] and "docs/DECISIONS.md" in said[0]
    caplog.clear()
    resumed = BranchLog(network, 2)
    resumed.load_state_dict(hook.state_dict())
    warnings_of(resumed, network, range(6, 9))
    assert not [record for record in caplog.records if record.levelno == logging.WARNING]


@pytest.mark.parametrize(("apart", "mismatch"), [(3.0, 0.01), (0.1, 0.2), (3.0, 0.9)])
def test_a_sound_branch_is_never_warned_of(apart, mismatch, caplog):
    network = Toy(apart, mismatch)
    hook = BranchLog(network, 2)
    warnings_of(hook, network, range(6))
    assert hook.state_dict() == {}
    assert not [record for record in caplog.records if record.levelno == logging.WARNING]


def test_of_a_source_the_targets_categories_alone_are_asked():
    figures = {"sst/cosine_x3/b": 0.95, "sst/scr_image_present/a-b": 0.001}
    assert "(mean cosine: b 0.950)" in degenerated(figures, ("a", "b"))
    assert degenerated({"sst/scr_image_present/a-b": 0.001}, ("a", "b")) == ""


def test_predictions_for_a_source_are_held_against_its_own_but_where_labels_are_ignored():
    generator = torch.Generator().manual_seed(0)
    mine, theirs = (torch.rand(1, 4, 3, 3, generator=generator) for _ in range(2))
    labels = torch.zeros(1, 12, 12, dtype=torch.int64)
    labels[0, :5] = 255
    predictions = {("t", "s"): MappedPrediction(mine, torch.eye(4), "t", theirs)}
    terms = AuxiliaryTerms({}, {}, {}, {}, predictions=predictions)
    own, other = (equations.upsampled(scores[0].numpy(), (12, 12)).argmax(0) for scores in (mine, theirs))
    other[labels[0].numpy() == 255] = 255
    figures = figures_of(terms, labels, ["t"])
    assert figures == {"sst/certainty/t-s": 1.0, "sst/miou_mapped/t-s": pytest.approx(miou_of(own, other, 4))}
    labels[:] = 255
    assert figures_of(terms, labels, ["t"]) == {"sst/certainty/t-s": 1.0}


def test_rows_of_zeros_have_no_direction():
    assert mean_cosine(torch.zeros(3, 4)) == 0
