"""The consistency of predictions: values against loops, gradients, who learns, and what a configuration builds."""

import sys

import numpy as np
import pytest
import torch
from as_arrays import TOLERANCES, array, make_branch, random_batch, rows_by_domain
from conftest import DOMAINS, tiny_cfg
from detectron2.modeling import build_model
from mapped import hard_loss, mapped, matrix_of, soft_loss, start_of
from test_branch_in_model import CLASSES as SIZES
from test_branch_in_model import batch, build, forward
from test_source import batch as target_batch
from test_source import build as build_target
from test_source import logits_of, save_source

from sst_d2.config import inference_config
from sst_d2.errors import SSTConfigError
from sst_d2.label_domains import cross_similarity, get_label_domain
from sst_d2.modeling.auxiliary.prediction import PredictionMap
from sst_d2.modeling.losses import IGNORE, MappedPrediction, SSTLosses, _summed_mapped_cross_entropy

CLASSES = {"a": 3, "b": 5, "c": 4}
PAIRS = [("a", "b"), ("b", "c")]
DIRECTIONS = [("a", "b"), ("b", "a"), ("b", "c"), ("c", "b")]
BATCHES = {"one of each": "abc", "unequal": "bacbb", "c is absent": "abba", "one domain": "aa"}
ALONE = {"DATASET_LEVEL": 0.0, "IMAGE_LEVEL": 0.0}


class Heads(torch.nn.ModuleDict):
    def forward(self, features, domain):
        return self[domain](features)


def setup(names, dtype=torch.float64, seed=0, **options):
    """A branch whose maps have learnt something, heads, and a batch."""
    branch = make_branch(CLASSES, PAIRS, dtype=dtype, prediction=True, **options)
    heads = Heads({name: torch.nn.Conv2d(6, count, 1) for name, count in CLASSES.items()}).to(dtype)
    with torch.no_grad():
        for weight in branch.prediction.parameters():
            weight += torch.randn_like(weight)
    return branch, heads, *random_batch(CLASSES, list(names), dtype=dtype, seed=seed)


def losses_of(branch, heads, features, labels, names, **options):
    images = torch.zeros(len(names), 3, *labels.shape[1:])
    terms = branch(images, features, labels, list(names), {}, heads)
    own = rows_by_domain(CLASSES, names, labels)
    losses = SSTLosses(**{"seg_weight": 4.0, "prediction_share": 0.5, **options}).auxiliary(terms, own)
    return {name: loss for name, loss in losses.items() if name.startswith("loss_pred/")}


def expected(branch, heads, features, labels, names, weight=2.0):
    result = {}
    for of, to in DIRECTIONS:
        rows = [row for row, name in enumerate(names) if name == to]
        scores = [logits_of(heads[of], array(features[4][row])) for row in rows]
        matrix = matrix_of(array(branch.prediction.maps[f"{of}-{to}"].relation_logits))
        result[f"loss_pred/{of}-{to}"] = weight * hard_loss(scores, matrix, labels.numpy()[rows])
    return result


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("names", BATCHES.values(), ids=BATCHES)
def test_losses_equal_the_loops(names, dtype):
    everything = (*setup(names, dtype)[:4], names)
    losses, wanted = losses_of(*everything), expected(*everything)
    assert list(losses) == list(wanted)
    for name, value in wanted.items():
        assert losses[name].item() == pytest.approx(value, rel=10 * TOLERANCES[dtype], abs=1e-12), name
        assert (value > 0) == (name[-1] in names)


def test_gradients_are_those_of_the_function():
    branch, heads, features, labels, _ = setup("abb")
    names = [name for name, _ in branch.prediction.named_parameters()]
    weights = [weight.detach().clone().requires_grad_() for weight in branch.prediction.parameters()]
    kernels = [head.weight.detach().clone().requires_grad_() for head in heads.values()]
    maps = features[4][:, :, :2, :3].clone().requires_grad_()
    labels = labels[:, :8, :12]

    def all_losses(*values):
        own = dict(zip(CLASSES, values[len(names) : -1]))
        by_name = {name: values[-1][[i for i, other in enumerate("abb") if other == name]] for name in CLASSES}
        arguments = (by_name, {}, lambda f, name: torch.nn.functional.conv2d(f, own[name]), {})
        predictions = torch.func.functional_call(branch.prediction, dict(zip(names, values)), arguments)
        by_name = rows_by_domain(CLASSES, "abb", labels)
        return tuple(SSTLosses(prediction_share=1.0)._predictions(predictions, by_name, None).values())

    assert torch.autograd.gradcheck(all_losses, (*weights, *kernels, maps), fast_mode=True)


def test_gradients_of_soft_targets_are_those_of_the_function():
    torch.manual_seed(0)
    transfer = PredictionMap(torch.rand(3, 4)).double()
    soft = torch.randn(2, 4, 2, 3, dtype=torch.float64).softmax(1)
    labels = torch.randint(2, (2, 8, 12)) * IGNORE

    def loss(scores, weight):
        q = torch.func.functional_call(transfer, {"relation_logits": weight}, (scores.softmax(1),))
        return _summed_mapped_cross_entropy(MappedPrediction(q, weight, "", soft), labels)

    scores = torch.randn(2, 3, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(loss, (scores, transfer.relation_logits))


@pytest.mark.parametrize("names", ["aa", "b"])
def test_where_a_domain_is_absent_its_losses_are_zero_and_every_parameter_has_a_gradient(names):
    branch, heads, features, labels, _ = setup(names)
    losses = losses_of(branch, heads, features, labels, names)
    absent = [name for name in losses if name[-1] not in names]
    assert absent and all(losses[name] == 0 for name in absent)
    sum(losses[name] for name in absent).backward(retain_graph=True)
    gradients = [weight.grad for weight in (*branch.prediction.parameters(), *heads.parameters())]
    assert not any(torch.count_nonzero(gradient) for gradient in gradients if gradient is not None)
    sum(losses.values()).backward()
    assert [name for name, weight in branch.prediction.named_parameters() if weight.grad is None] == []


def test_ignored_pixels_cost_nothing_and_teach_nothing():
    branch, heads, features, labels, _ = setup("abcb")
    whole = losses_of(branch, heads, features, labels, "abcb")
    labels[3] = IGNORE
    features = {stride: maps.requires_grad_() for stride, maps in features.items()}
    losses = losses_of(branch, heads, features, labels, "abcb")
    fewer = losses_of(branch, heads, {s: f[:3] for s, f in features.items()}, labels[:3], "abc")
    assert {k: v.item() for k, v in losses.items()} == pytest.approx({k: v.item() for k, v in fewer.items()})
    assert losses["loss_pred/a-b"] != whole["loss_pred/a-b"]
    sum(losses.values()).backward()
    assert torch.count_nonzero(features[4].grad[3]) == 0 < torch.count_nonzero(features[4].grad[1])
    nothing = losses_of(branch, heads, features, torch.full_like(labels, IGNORE), "abcb")
    assert all(loss == 0 for loss in nothing.values())


@pytest.mark.parametrize("size", [1.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_compared_in_float32_and_its_gradients_are_finite(dtype, size):
    branch, heads, features, labels, _ = setup("abc", torch.float32)
    half = {stride: (maps * size).to(dtype).requires_grad_() for stride, maps in features.items()}
    cast = lambda maps, name: heads(maps.float(), name).to(dtype)  # noqa: E731
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = losses_of(branch, cast, half, labels, "abc")
    exact = losses_of(branch, lambda maps, name: cast(maps.to(dtype), name).float(), features, labels, "abc")
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    if size == 1:
        for name, loss in losses.items():
            assert loss.item() == pytest.approx(exact[name].item(), rel=2e-2)
    (sum(losses.values()) * 2**10).backward()
    gradients = [half[4].grad, *(weight.grad for weight in branch.prediction.parameters())]
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


def test_a_prediction_that_is_sure_and_wrong_has_a_finite_loss_and_gradient():
    transfer = PredictionMap(torch.eye(2))
    with torch.no_grad():
        transfer.relation_logits.copy_(200 * torch.eye(2))
    scores = torch.tensor([300.0, -300.0]).view(1, 2, 1, 1).expand(1, 2, 4, 4).clone().requires_grad_()
    q = transfer(scores.softmax(1))
    loss = _summed_mapped_cross_entropy(MappedPrediction(q, q, ""), torch.ones(1, 4, 4, dtype=torch.int64))
    (loss * 2**16).backward()
    assert 60 < loss.item() / 16 < 80
    assert torch.isfinite(scores.grad).all() and torch.isfinite(transfer.relation_logits.grad).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_none_reaches_the_losses_of_its_images(value):
    branch, heads, features, labels, _ = setup("abc")
    features[4][1, 0, 0, 0] = value
    losses = losses_of(branch, heads, features, torch.zeros_like(labels), "abc")
    assert {name for name, loss in losses.items() if not loss.isfinite()} == {"loss_pred/a-b", "loss_pred/c-b"}


def test_of_the_size_of_the_labels_a_number_per_pixel_is_kept_and_not_one_per_class():
    kept = []
    probabilities = torch.rand(2, 20, 16, 16, requires_grad=True)
    labels = torch.randint(20, (2, 64, 64))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        loss = _summed_mapped_cross_entropy(MappedPrediction(probabilities * 1, None, ""), labels)
    assert kept and max(tensor.numel() for tensor in kept) < labels.numel() * 20
    loss.backward()
    expected = torch.nn.functional.interpolate(probabilities, size=(64, 64), mode="bilinear", align_corners=False)
    (again,) = torch.autograd.grad(torch.nn.functional.nll_loss(expected.log(), labels, reduction="sum"), probabilities)
    assert torch.allclose(probabilities.grad, again, rtol=1e-4)


# ---- maps


def test_rows_of_a_map_add_up_to_one_and_start_as_the_similarities():
    similarity = torch.tensor([[1.0, 0.5, 0.5], [0.0, 0.0, 0.3], [0.0, 0.0, 0.0], [0.2, 0.2, 0.2]])
    transfer = PredictionMap(similarity)
    assert np.abs(array(transfer.matrix()) - start_of(array(similarity))).max() < 1e-6
    with torch.no_grad():
        transfer.relation_logits += 3 * torch.randn(4, 3)
    assert np.abs(array(transfer.matrix()).sum(1) - 1).max() < 1e-6
    q = transfer(torch.randn(2, 4, 5, 6).softmax(1))
    assert q.shape == (2, 3, 5, 6) and torch.allclose(q.sum(1), torch.ones(2, 5, 6), atol=1e-6)


def test_maps_of_the_model_start_at_m_static_in_either_direction():
    maps = build(PREDICTION=0.5).auxiliary.prediction.maps
    assert len(maps) == 6
    for of, to in [("pascal_person_part", "cihp"), ("cihp", "pascal_person_part"), ("cihp", "atr"), ("atr", "cihp")]:
        # M_static from one to the other has the other's classes in its rows.
        similarity = cross_similarity(get_label_domain(of), get_label_domain(to)).T
        assert similarity.shape == (SIZES[of], SIZES[to])
        assert np.abs(array(maps[f"{of}-{to}"].matrix()) - start_of(similarity)).max() < 1e-6


def test_a_map_learns_what_a_class_is_called_elsewhere():
    torch.manual_seed(0)
    order = torch.tensor([2, 0, 3, 1])
    transfer = PredictionMap(torch.ones(4, 4))
    labels = torch.randint(4, (4, 8, 8))
    optimizer = torch.optim.Adam(transfer.parameters(), lr=0.3)
    for _ in range(30):
        optimizer.zero_grad()
        q = transfer(torch.nn.functional.one_hot(labels).movedim(-1, 1).float())
        _summed_mapped_cross_entropy(MappedPrediction(q, q, ""), order[labels]).backward()
        optimizer.step()
    assert transfer.matrix().argmax(1).tolist() == order.tolist() and transfer.matrix().max(1).values.min() > 0.9


def test_names_of_directions_that_would_be_one_are_refused():
    classes, pairs = {"b-c": 2, "a-b": 3, "a": 2, "c": 3}, [("b-c", "a"), ("a-b", "c")]
    assert make_branch(classes, pairs).pairs == pairs  # without a way back, "b-c-a" and "a-b-c"
    with pytest.raises(SSTConfigError, match="the pairs a and b-c, a-b and c would both be named 'a-b-c'"):
        make_branch(classes, pairs, prediction=True)


# ---- in the model


@pytest.mark.parametrize("names", [DOMAINS, ["cihp", "atr", "atr"]], ids=["one of each", "unequal"])
def test_every_loss_of_the_model_equals_the_loops(names):
    model, samples = build(PREDICTION=0.25), batch(names)
    losses, features = forward(model, samples)
    keys = [name for name in losses if name.startswith("loss_pred/")]
    pairs = [("pascal_person_part", "atr"), ("pascal_person_part", "cihp"), ("atr", "cihp")]
    assert keys == [f"loss_pred/{of}-{to}" for pair in pairs for of, to in (pair, pair[::-1])]
    for key in keys:
        of, to = key.split("/")[1].split("-")
        rows = [row for row, name in enumerate(names) if name == to]
        scores = [logits_of(model.heads[of], array(features[4][row])) for row in rows]
        matrix = array(model.auxiliary.prediction.maps[f"{of}-{to}"].matrix())
        wanted = 2.5 * hard_loss(scores, matrix, [samples[row]["sem_seg"].numpy() for row in rows])
        assert losses[key].item() == pytest.approx(wanted, rel=2e-6)


def test_beside_it_all_other_losses_and_weights_are_the_same_bits():
    plain, model, samples = build(), build(PREDICTION=0.5), batch(DOMAINS)
    weights = model.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in plain.state_dict().items())
    extra = weights.keys() - plain.state_dict().keys()
    assert len(extra) == 6 and all(name.endswith(".relation_logits") for name in extra)
    losses = model(samples)
    assert all(torch.equal(losses[name], loss) for name, loss in plain(samples).items())
    assert {name.split("/")[0] for name in losses.keys() - plain(samples).keys()} == {"loss_pred"}


@pytest.mark.parametrize("names", [["atr"], DOMAINS], ids=["one domain", "all domains"])
@pytest.mark.parametrize("overrides", [{}, ALONE], ids=["beside MST", "alone"])
def test_keys_are_the_same_for_every_batch_and_every_parameter_gets_a_gradient(overrides, names):
    model = build(PREDICTION=0.5, **overrides)
    losses = model(batch(names))
    names = (
        []
        if overrides
        else [f"loss_scr_{k}/{'-'.join(p)}" for k in ("dataset", "image") for p in model.auxiliary.pairs]
    )
    names += [f"loss_pred/{'-'.join(direction)}" for direction in model.auxiliary.prediction.directions]
    assert [name for name in losses if "scr" in name or "pred" in name] == names
    sum(losses.values()).backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None] == []
    if overrides:
        assert not list(model.auxiliary.transfer.parameters())


def test_heads_trunk_and_maps_learn_from_it():
    model = build(PREDICTION=0.5)
    model(batch(["atr"]))["loss_pred/cihp-atr"].backward()
    for part in (model.backbone, model.heads["cihp"], model.auxiliary.prediction.maps["cihp-atr"]):
        assert sum(torch.count_nonzero(w.grad) for w in part.parameters() if w.grad is not None) > 0
    assert all(weight.grad is None for weight in model.heads["atr"].parameters())


def test_parts_of_a_batch_add_up():
    model = build(PREDICTION=0.5)
    parts = [batch(["cihp", "atr", "cihp"]), batch(["atr", "pascal_person_part"], seed=1)]
    totals, whole = model.totals_of(parts), model(parts[0] + parts[1])
    added = [model(part, totals) for part in parts]
    for name in (name for name in whole if name.startswith("loss_pred/")):
        assert sum(part[name].item() for part in added) == pytest.approx(whole[name].item(), rel=1e-5)


def test_given_pairs_alone_are_compared():
    model = build(PREDICTION=0.5, STRATEGY="pairs", PAIRS=[["cihp", "atr"]])
    assert model.auxiliary.prediction.directions == [("atr", "cihp"), ("cihp", "atr")]


@pytest.mark.parametrize("kind", ["lexicon", "identity", "random"])
def test_a_control_stands_in_the_place_of_m_static_everywhere(kind):
    model = build(PREDICTION=0.5, RELATIONS=kind)
    literal = build(PREDICTION=0.5)
    name = "atr-cihp"
    static = model.auxiliary.transfer[name].dataset.static
    assert not torch.equal(static, literal.auxiliary.transfer[name].dataset.static)
    maps = model.auxiliary.prediction.maps
    assert np.abs(array(maps[name].matrix()) - start_of(array(static.T))).max() < 1e-6
    assert np.abs(array(maps["cihp-atr"].matrix()) - start_of(array(static))).max() < 1e-6
    losses = model(batch(DOMAINS))
    sum(losses.values()).backward()
    assert all(torch.isfinite(weight.grad).all() for weight in model.parameters())


def test_random_relations_follow_the_seed():
    def static(seed):
        cfg = tiny_cfg(SEED=seed, MODEL__SST__AUXILIARY__RELATIONS="random")
        return build_model(cfg).auxiliary.transfer["atr-cihp"].dataset.static

    assert torch.equal(static(3), static(3)) and not torch.equal(static(3), static(4))


def test_inference_builds_none_of_it():
    cfg = tiny_cfg(MODEL__SST__AUXILIARY__PREDICTION=0.5)
    model, plain = build_model(inference_config(cfg)), build_model(inference_config(tiny_cfg()))
    assert model.auxiliary is None and list(model.state_dict()) == list(plain.state_dict())
    assert build().auxiliary.prediction is None and "sst_d2.modeling.auxiliary.prediction" in sys.modules


# ---- dedicated training


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return save_source(tmp_path_factory.mktemp("step1"), ["pascal_person_part", "atr"])[1]


def with_prediction(source, **overrides):
    keys = {"PREDICTION": 0.5, **overrides}
    return build_target(source, **{f"MODEL__SST__AUXILIARY__{key}": value for key, value in keys.items()})


@pytest.mark.parametrize("overrides", [{}, ALONE], ids=["beside MST", "alone"])
def test_a_targets_prediction_is_compared_with_its_sources(source, overrides):
    model, samples = with_prediction(source, **overrides), target_batch(2) + target_batch(1, size=(24, 32), seed=1)
    seen = []
    parts = (model.decoder, model.auxiliary.source.decoder)
    hooks = [part.register_forward_hook(lambda m, a, result: seen.append(result[4])) for part in parts]
    losses = model(samples)
    [hook.remove() for hook in hooks]
    labels = np.full((3, 32, 32), IGNORE)
    for row, sample in enumerate(samples):
        labels[row, : sample["sem_seg"].shape[0]] = sample["sem_seg"].numpy()
    assert [n for n in losses if "pred" in n] == ["loss_pred/cihp-pascal_person_part", "loss_pred/cihp-atr"]
    for name in ("pascal_person_part", "atr"):
        transfer = model.auxiliary.prediction.maps[f"cihp-{name}"]
        similarity = cross_similarity(get_label_domain("cihp"), get_label_domain(name)).T
        assert np.abs(array(transfer.matrix()) - start_of(similarity)).max() < 1e-6
        own = [logits_of(model.heads["cihp"], array(maps)) for maps in seen[0]]
        theirs = [logits_of(model.auxiliary.source.heads[name], array(maps)) for maps in seen[1]]
        wanted = 5 * soft_loss(own, array(transfer.matrix()), theirs, labels)
        assert losses[f"loss_pred/cihp-{name}"].item() == pytest.approx(wanted, rel=5e-6)


def test_the_target_learns_from_the_comparison_and_the_source_does_not(source):
    model = with_prediction(source)
    losses = model(target_batch(2))
    losses["loss_pred/cihp-atr"].backward(retain_graph=True)
    learning = {name.split(".")[0] for name, w in model.named_parameters() if w.grad is not None and w.grad.any()}
    assert learning == {"backbone", "decoder", "heads", "auxiliary"}
    assert all(weight.grad is None for weight in model.auxiliary.source.parameters())
    sum(losses.values()).backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None] == []
    ignored = [{**sample, "sem_seg": torch.full_like(sample["sem_seg"], IGNORE)} for sample in target_batch(2)]
    assert all(loss == 0 for name, loss in model(ignored).items() if name.startswith("loss_pred/"))


def test_parts_of_a_targets_batch_add_up(source):
    model, parts = with_prediction(source), [target_batch(3), target_batch(2, seed=1)]
    totals, whole = model.totals_of(parts), model(parts[0] + parts[1])
    added = [model(part, totals) for part in parts]
    for name in (name for name in whole if name.startswith("loss_pred/")):
        assert sum(part[name].item() for part in added) == pytest.approx(whole[name].item(), rel=1e-5)


def test_the_loops_themselves():
    """One pixel by hand: 0.8 · 0.5 + 0.2 · 0.1 = 0.42."""
    scores = np.log([0.8, 0.2]).reshape(2, 1, 1)
    matrix = np.array([[0.5, 0.5], [0.1, 0.9]])
    assert mapped(scores, matrix)[:, 0, 0].tolist() == pytest.approx([0.42, 0.58])
    assert hard_loss([scores], matrix, [np.array([[0]])]) == pytest.approx(-np.log(0.42))
    assert soft_loss([scores], matrix, [np.zeros((2, 1, 1))], [np.array([[0]])]) == pytest.approx(
        -(np.log(0.42) + np.log(0.58)) / 2
    )
