"""The branch in the whole model, built from a configuration: its losses are the equations' of the model's features."""

import equations
import numpy as np
import pytest
import torch
from as_arrays import array, by_domain, learnt
from conftest import DOMAINS, ROOT, tiny_cfg
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from sst_d2.label_domains import get_label_domain
from sst_d2.label_domains.relations import cross_similarity, intra_adjacency

CLASSES = {"pascal_person_part": 7, "atr": 18, "cihp": 20}
CCP14 = str(ROOT / "tests" / "label_domains" / "ccp14.yaml")
KEY = "MODEL__SST__AUXILIARY__"


def build(domains=DOMAINS, **overrides):
    torch.manual_seed(0)
    return build_model(tiny_cfg(domains, **{KEY + name: value for name, value in overrides.items()})).train()


@pytest.fixture(scope="module")
def model():
    return build()


def batch(names, size=(32, 32), seed=0, classes=CLASSES):
    generator = torch.Generator().manual_seed(seed)
    samples = []
    for name in names:
        labels = torch.randint(classes[name], (size[0] // 8, size[1] // 8), generator=generator)
        labels[torch.rand(labels.shape, generator=generator) < 0.2] = 255
        image = torch.randint(256, (3, *size), generator=generator, dtype=torch.uint8)
        labels = labels.repeat_interleave(8, 0).repeat_interleave(8, 1)
        samples.append({"image": image, "sem_seg": labels, "label_domain": name})
    return samples


def forward(model, samples, totals=None):
    """Losses, and what the decoder gave."""
    seen = []
    hook = model.decoder.register_forward_hook(lambda module, arguments, result: seen.append(result))
    losses = model(samples, totals)
    hook.remove()
    return losses, seen[0]


def expected_losses(model, samples, features):
    names = [sample["label_domain"] for sample in samples]
    size = [4 * length for length in features[4].shape[2:]]
    labels = torch.full((len(samples), *size), 255)
    for row, sample in enumerate(samples):
        height, width = sample["sem_seg"].shape
        labels[row, :height, :width] = sample["sem_seg"]
    classes = dict.fromkeys(model.domains)
    grouped = by_domain(classes, names, features, labels)
    expected = {}
    for name, images in grouped.items():
        head = model.heads[name]
        weight, bias = array(head.weight)[:, :, 0, 0], array(head.bias)
        logits = [np.tensordot(weight, maps[-1], 1) + bias[:, None, None] for maps, _ in images]
        expected[f"loss_seg/{name}"] = 10 * equations.cross_entropy(logits, [label for _, label in images])
    return {**expected, **equations.losses(grouped, *learnt(model.auxiliary), weights=(1.0, 5.0))}


BATCHES = {
    "one of each": batch(DOMAINS),
    "unequal": batch(["cihp", "atr", "atr"]),
    "of several sizes": batch(["cihp"]) + batch(["pascal_person_part"], (40, 24), 1),
}


@pytest.mark.parametrize("samples", BATCHES.values(), ids=BATCHES)
def test_every_loss_equals_the_equations_of_the_models_own_features(model, samples):
    losses, features = forward(model, samples)
    expected = expected_losses(model, samples, features)
    assert {name: loss.item() for name, loss in losses.items()} == pytest.approx(expected, rel=2e-6, abs=1e-6)


def test_keys_are_the_same_for_every_batch(model):
    pairs = ["pascal_person_part-atr", "pascal_person_part-cihp", "atr-cihp"]
    expected = [f"{kind}/{name}" for kind in ("loss_seg", "loss_aux") for name in DOMAINS]
    expected += [f"{kind}/{name}" for kind in ("loss_scr_dataset", "loss_scr_image") for name in pairs]
    for names in (["atr"], ["cihp", "atr"], DOMAINS):
        losses = model(batch(names))
        assert list(losses) == expected and all(torch.isfinite(loss) for loss in losses.values())
        for pair in pairs:
            assert losses[f"loss_scr_dataset/{pair}"] > 0
            assert (losses[f"loss_scr_image/{pair}"] > 0) == (set(pair.split("-")) <= set(names))


@pytest.mark.parametrize("names", [["atr"], DOMAINS], ids=["one domain", "all domains"])
@pytest.mark.parametrize(
    "overrides", [{}, {"REGIONS": "prediction"}, {"STRATEGY": "none"}, {"ADJACENCY": False}], ids=str
)
def test_every_parameter_gets_a_gradient(overrides, names):
    model = build(**overrides)
    sum(model(batch(names)).values()).backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None] == []
    assert all(torch.isfinite(weight.grad).all() for weight in model.parameters())


def test_the_trunk_learns_from_the_branch(model):
    model.zero_grad()
    losses = model(batch(DOMAINS))
    sum(loss for name, loss in losses.items() if name.startswith("loss_scr_image")).backward()
    assert sum(weight.grad.abs().sum() for weight in model.backbone.parameters() if weight.grad is not None) > 0


def test_parts_of_a_batch_add_up(model):
    parts = [batch(["cihp", "atr", "cihp"]), batch(["atr", "cihp", "pascal_person_part"], seed=1)]
    totals = model.totals_of(parts)
    # cihp–atr meet twice in the first part and once in the second, which holds the other two pairs.
    assert totals.image_pairs.tolist() == [1, 1, 3] and totals.parts == 2
    added = [model(part, totals) for part in parts]
    whole, alone = model(parts[0] + parts[1]), [model(part) for part in parts]
    for name in whole:
        total = sum(part[name].item() for part in added)
        if name.startswith("loss_scr_image"):
            met = (2, 1) if name.endswith("/atr-cihp") else (0, 1)
            weighed = sum(count * part[name].item() for count, part in zip(met, alone)) / sum(met)
            assert total == pytest.approx(weighed, rel=1e-5)
        else:
            assert total == pytest.approx(whole[name].item(), rel=1e-5)


def test_predicted_regions_come_from_the_models_own_heads():
    model = build(REGIONS="prediction")
    samples = batch(["atr", "cihp"])
    losses, features = forward(model, samples)
    with torch.no_grad():
        logits = {name: model.heads(features[4][row : row + 1], name) for row, name in enumerate(("atr", "cihp"))}
    domains, bridges = learnt(model.auxiliary)
    seen = {}
    for row, name in enumerate(("atr", "cihp")):
        regions = logits[name][0].argmax(0).numpy()
        regions[samples[row]["sem_seg"][::4, ::4].numpy() == 255] = 255
        seen[name] = equations.image_of([array(features[s][row]) for s in (16, 8, 4)], regions, domains[name])
    for row, (name, image) in enumerate(seen.items()):
        mask = equations.auxiliary_logits(array(features[4][row]), image.categories[-1])
        expected = equations.cross_entropy([mask], [samples[row]["sem_seg"].numpy()])
        assert losses[f"loss_aux/{name}"].item() == pytest.approx(expected, rel=2e-6)
    expected = 5 * equations.image_loss([seen["atr"]], [seen["cihp"]], bridges["atr", "cihp"])
    assert losses["loss_scr_image/atr-cihp"].item() == pytest.approx(expected, rel=2e-6)


def test_a_configuration_gives_the_matrices_of_the_label_domains(model):
    records = {name: get_label_domain(name) for name in DOMAINS}
    domains, bridges = learnt(model.auxiliary)
    for name, record in records.items():
        assert np.array_equal(domains[name].adjacency, intra_adjacency(record))
    assert list(bridges) == [("pascal_person_part", "atr"), ("pascal_person_part", "cihp"), ("atr", "cihp")]
    for (a, b), bridge in bridges.items():
        assert bridge.static.shape == (CLASSES[b], CLASSES[a])
        assert np.abs(bridge.static - cross_similarity(records[a], records[b])).max() < 1e-7
    assert learnt(build(ADJACENCY=False).auxiliary)[0]["atr"].adjacency is None
    # Matrices are facts of the label domains, no weights: a checkpoint of the branch holds none.
    assert not any("adjacency" in key or "static" in key for key in model.state_dict())


@pytest.mark.parametrize(("strategy", "pairs"), [("full", 6), ("progressive", 3)])
def test_a_fourth_domain_joins_by_its_file_alone(strategy, pairs):
    model = build([*DOMAINS, CCP14], STRATEGY=strategy)
    if strategy == "progressive":  # 7, 14, 18, 20 classes
        chain = {frozenset(pair) for pair in model.auxiliary.pairs}
        assert chain == {frozenset(p) for p in (("pascal_person_part", "ccp14"), ("ccp14", "atr"), ("atr", "cihp"))}
    assert len(model.auxiliary.pairs) == len(model.auxiliary.transfer) == pairs
    samples = batch([*DOMAINS, "ccp14"], classes={**CLASSES, "ccp14": 14})
    losses, features = forward(model, samples)
    expected = expected_losses(model, samples, features)
    assert {name: loss.item() for name, loss in losses.items()} == pytest.approx(expected, rel=2e-6, abs=1e-6)
    sum(losses.values()).backward()
    assert all(torch.count_nonzero(weight.grad) for weight in model.auxiliary.parameters())


@pytest.mark.parametrize(("overrides", "std"), [({}, 0.02), ({"EMBEDDING_STD": 0.3}, 0.3)], ids=str)
def test_the_deviation_of_x_0_is_configured(overrides, std):
    for layer in build(**overrides).auxiliary.enhancement.values():
        assert layer.embedding.std().item() == pytest.approx(std, rel=0.2)


def test_given_orders_and_pairs_reach_the_branch():
    chain = build(STRATEGY="progressive", ORDER=["cihp", "pascal_person_part", "atr"]).auxiliary.pairs
    assert set(chain) == {("pascal_person_part", "cihp"), ("pascal_person_part", "atr")}
    assert build(STRATEGY="pairs", PAIRS=[["cihp", "atr"]]).auxiliary.pairs == [("atr", "cihp")]


def test_a_level_without_a_share_is_left_out_and_others_are_shared():
    samples = batch(DOMAINS)
    whole, half = build(), build(DATASET_LEVEL=0.5, IMAGE_LEVEL=0.0)
    half.load_state_dict({key: value for key, value in whole.state_dict().items() if key in half.state_dict()})
    whole, half = whole(samples), half(samples)
    assert not any(name.startswith("loss_scr_image") for name in half)
    for name, loss in half.items():
        factor = 0.5 if "dataset" in name else 1.0
        assert loss.item() == pytest.approx(factor * whole[name].item(), rel=1e-6)
    assert not any("scr_dataset" in name for name in build(DATASET_LEVEL=0.0)(samples))


def assert_finite_gradients(model, losses):
    assert all(torch.isfinite(loss) for loss in losses.values())
    model.zero_grad()
    sum(losses.values()).backward()
    assert all(torch.isfinite(weight.grad).all() for weight in model.parameters())


def test_images_without_a_label_cost_what_absent_categories_do(model):
    samples = batch(DOMAINS)
    for sample in samples:
        sample["sem_seg"].fill_(255)
    losses = model(samples)
    assert all(losses[f"{kind}/{name}"] == 0 for kind in ("loss_seg", "loss_aux") for name in DOMAINS)
    for name, loss in losses.items():
        if name.startswith("loss_scr_image"):  # 1 for each of three scales and two directions, weighed by 5
            assert loss.item() == pytest.approx(30, rel=1e-6)
    assert_finite_gradients(model, losses)
    assert all(torch.count_nonzero(weight.grad) == 0 for weight in model.backbone.parameters())
    whole = model(batch(DOMAINS)[:2])
    ignored = {**batch(["cihp"], seed=3)[0], "sem_seg": torch.full((32, 32), 255)}
    with_one = model([*batch(DOMAINS)[:2], ignored])
    for name, loss in whole.items():
        if "cihp" not in name:
            assert with_one[name].item() == pytest.approx(loss.item(), rel=1e-5)
    assert with_one["loss_aux/cihp"] == 0
    assert_finite_gradients(model, with_one)


def test_images_of_one_class_alone_equal_the_equations(model):
    samples = batch(DOMAINS)
    for sample in samples:
        sample["sem_seg"].fill_(3)
    losses, features = forward(model, samples)
    expected = expected_losses(model, samples, features)
    assert {name: loss.item() for name, loss in losses.items()} == pytest.approx(expected, rel=2e-6, abs=1e-6)
    assert_finite_gradients(model, losses)


def test_the_smallest_label_domain_trains_beside_the_others_with_one_of_its_classes(tmp_path):
    (tmp_path / "lone.yaml").write_text("name: lone\nclasses: [background, dress]\n")
    model = build(["atr", str(tmp_path / "lone.yaml")])
    samples = batch(["atr", "lone", "lone"], classes={**CLASSES, "lone": 1})
    losses, features = forward(model, samples)
    expected = expected_losses(model, samples, features)
    assert {name: loss.item() for name, loss in losses.items()} == pytest.approx(expected, rel=2e-6, abs=1e-6)
    assert_finite_gradients(model, losses)


@pytest.mark.parametrize("names", [DOMAINS, ["atr", "atr"]], ids=str)
@pytest.mark.parametrize("size", [1.0, 1e4])
def test_under_autocast_the_branch_computes_in_full_precision(names, size):
    model = build()
    samples = batch(names)
    samples[0]["sem_seg"].fill_(2)  # all other categories are absent
    given, terms = [], []

    def enlarge(module, arguments, features):
        given.append({stride: maps / maps.detach().abs().max() * size for stride, maps in features.items()})
        return given[-1]

    model.decoder.register_forward_hook(enlarge)
    model.auxiliary.register_forward_hook(lambda module, arguments, result: terms.append(result))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(samples)
    rows = [row for both in terms[0].dataset.values() for row in both]
    rows += [row for scales in terms[0].image.values() for both in scales for row in both]
    assert {tensor.dtype for tensor in (*rows, *terms[0].logits.values())} == {torch.float32}
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    assert_finite_gradients(model, losses)
    # The very features in full precision give the very losses.
    labels = model._padded_labels(samples, list(names), (32, 32))
    logits = {name: torch.zeros(names.count(name), CLASSES[name], 8, 8) for name in DOMAINS}
    maps = {stride: features.detach().float() for stride, features in given[0].items()}
    again = model.auxiliary(torch.zeros(len(names), 3, 32, 32), maps, labels, list(names), logits)
    by_name = {name: labels[[row for row, own in enumerate(names) if own == name]] for name in DOMAINS}
    for name, loss in model.losses.auxiliary(again, by_name).items():
        assert losses[name].item() == pytest.approx(loss.item(), rel=1e-5, abs=1e-6), name


@pytest.mark.parametrize("level", ["DATASET_LEVEL", "IMAGE_LEVEL"])
def test_every_parameter_gets_a_gradient_where_a_level_is_left_out(level):
    model = build(**{level: 0.0})
    sum(model(batch(DOMAINS)).values()).backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None] == []


def test_the_stable_preset_trains():
    model, plain = build(PRESET="stable"), build()
    samples = batch(DOMAINS)
    with EventStorage(150):
        losses = model(samples)
    sum(losses.values()).backward()
    assert all(torch.isfinite(weight.grad).all() for weight in model.auxiliary.parameters())
    expected = plain(samples)
    for name, loss in losses.items():
        if "dataset" in name:  # half of the ramp, mean over three pairs
            assert loss.item() == pytest.approx(expected[name].item() / 2 / 3, rel=1e-6)
        elif "image" not in name:
            assert torch.equal(loss, expected[name])


def test_the_branch_changes_no_prediction(model):
    samples = batch(DOMAINS)
    bare = build_model(tiny_cfg(**{KEY + "ENABLED": False})).eval()
    bare.load_state_dict({key: value for key, value in model.state_dict().items() if not key.startswith("auxiliary.")})
    with torch.no_grad():
        for mine, other in zip(model.eval()(samples), bare(samples)):
            assert torch.equal(mine["sem_seg"], other["sem_seg"])
    model.train()
