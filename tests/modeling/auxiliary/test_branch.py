"""The branch as a whole against the equations: batches of several domains, levels, regions, precision."""

import equations
import numpy as np
import pytest
import torch
from as_arrays import STRIDES, TOLERANCES, by_domain, learnt, make_branch, random_batch, rows_by_domain
from recorder import Recorder

from sst_d2.errors import SSTConfigError
from sst_d2.modeling.losses import IGNORE, SSTLosses

CLASSES = {"a": 3, "b": 5, "c": 4}
PAIRS = [("a", "b"), ("a", "c"), ("b", "c")]
BATCHES = {"one of each": "abc", "unequal": "bacbb", "c is absent": "abba", "one domain": "aa", "one image": "b"}


def run(branch, features, labels, names, logits=None):
    images = torch.zeros(len(names), 3, *labels.shape[1:])
    return branch(images, features, labels, list(names), logits or {})


def losses_of(branch, features, labels, names, logits=None, **options):
    terms = run(branch, features, labels, names, logits)
    return SSTLosses(**options).auxiliary(terms, rows_by_domain(branch.num_classes, names, labels))


def assert_losses(losses, expected, dtype, allowed=None):
    assert sorted(losses) == sorted(expected)
    for name, value in expected.items():
        # Weights of the losses are float32, whatever the features are: 1e-7 of the value.
        tolerance = allowed or max(TOLERANCES[dtype], 2e-7) * max(1.0, abs(value))
        assert losses[name].item() == pytest.approx(value, abs=tolerance), name


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("names", BATCHES.values(), ids=BATCHES)
def test_all_losses_of_a_batch_equal_the_loops(names, dtype):
    branch = make_branch(CLASSES, PAIRS, dtype=dtype)
    features, labels, _ = random_batch(CLASSES, list(names), dtype=dtype)
    losses = losses_of(branch, features, labels, names, aux_weight=1.0, scr_weight=5.0)
    expected = equations.losses(by_domain(CLASSES, names, features, labels), *learnt(branch))
    assert_losses(losses, expected, dtype)
    assert [losses[f"loss_aux/{name}"].item() > 0 for name in CLASSES] == [name in names for name in CLASSES]


@pytest.mark.parametrize("names", ["abc", "bacbb"])
def test_raw_terms_equal_the_loops(names):
    branch = make_branch(CLASSES, PAIRS)
    features, labels, _ = random_batch(CLASSES, list(names))
    terms = run(branch, features, labels, names)
    domains, bridges = learnt(branch)
    images = {
        name: [equations.image_of(*pair, domains[name]) for pair in pairs]
        for name, pairs in by_domain(CLASSES, names, features, labels).items()
    }
    for name, (_, own) in zip(CLASSES, by_domain(CLASSES, names, features, labels).items()):
        for row, (maps, _) in enumerate(own):
            wanted = equations.auxiliary_logits(maps[-1], images[name][row].categories[-1])
            assert np.abs(terms.logits[name][row].detach().numpy() - wanted).max() < 1e-10
    for pair in PAIRS:
        expected = equations.dataset_rows(*(domains[name].embedding for name in pair), bridges[pair])
        for result, wanted in zip(terms.dataset[pair], expected, strict=True):
            assert np.abs(result.detach().numpy() - wanted).max() < 1e-10
        for i, j in np.ndindex(*(len(images[name]) for name in pair)):
            rows = equations.image_rows(images[pair[0]][i], images[pair[1]][j], bridges[pair])
            for scale, wanted in enumerate(rows):
                for result, other in zip(terms.image[pair][scale], wanted, strict=True):
                    assert np.abs(result[i, j].detach().numpy() - other).max() < 1e-10


def test_presence_is_that_of_the_label_maps_at_each_scale():
    names = "bacbb"
    features, labels, _ = random_batch(CLASSES, list(names))
    terms = run(make_branch(CLASSES, PAIRS), features, labels, names)
    own = rows_by_domain(CLASSES, names, labels)
    for pair in PAIRS:
        for stride, both in zip(STRIDES, terms.present[pair], strict=True):
            for name, present in zip(pair, both, strict=True):
                small = own[name][:, ::stride, ::stride].flatten(1).tolist()
                assert present.tolist() == [[k in row for k in range(CLASSES[name])] for row in small]


SPECIAL = {
    "one class only": lambda features, labels: (features, torch.ones_like(labels)),
    "nothing labelled": lambda features, labels: (features, torch.full_like(labels, IGNORE)),
    "one image without labels": lambda features, labels: (features, labels.index_fill(0, torch.tensor([1]), IGNORE)),
    "negative features": lambda features, labels: ({s: -f.abs() - 1 for s, f in features.items()}, labels),
}


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("change", SPECIAL.values(), ids=SPECIAL)
def test_special_batches_equal_the_loops_and_have_finite_gradients(change, dtype):
    branch = make_branch(CLASSES, PAIRS, dtype=dtype)
    features, labels, _ = random_batch(CLASSES, list("abcb"), dtype=dtype)
    features, labels = change(features, labels)
    features = {stride: feature.requires_grad_() for stride, feature in features.items()}
    losses = losses_of(branch, features, labels, "abcb")
    expected = equations.losses(by_domain(CLASSES, "abcb", features, labels), *learnt(branch))
    assert_losses(losses, expected, dtype)
    sum(losses.values()).backward()
    assert all(torch.isfinite(t.grad).all() for t in (*features.values(), *branch.parameters()))


def test_without_any_label_features_get_exactly_no_gradient():
    branch = make_branch(CLASSES, PAIRS, dtype=torch.float32)
    features, labels, _ = random_batch(CLASSES, list("abc"), dtype=torch.float32)
    features = {stride: feature.requires_grad_() for stride, feature in features.items()}
    sum(losses_of(branch, features, torch.full_like(labels, IGNORE), "abc").values()).backward()
    assert all(torch.count_nonzero(feature.grad) == 0 for feature in features.values())


@pytest.mark.parametrize("names", ["abc", "a"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("scale", [1.0, 3e4])
def test_half_precision_features_give_finite_losses_and_gradients(scale, dtype, names):
    branch = make_branch(CLASSES, PAIRS, dtype=torch.float32, dim=16)
    features, labels, _ = random_batch(CLASSES, list(names), dim=16, dtype=torch.float32)
    labels[-1:] = IGNORE
    half = {s: (f.clamp(-2, 2) * scale).to(dtype).requires_grad_() for s, f in features.items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = run(branch, half, labels, names)
        losses = SSTLosses().auxiliary(terms, rows_by_domain(CLASSES, names, labels))
    exact = losses_of(branch, {s: f.detach().float() for s, f in half.items()}, labels, names)
    for name, loss in losses.items():
        assert loss.dtype == torch.float32 and loss.item() == pytest.approx(exact[name].item(), rel=1e-4, abs=1e-4)
    consistency = [loss for name, loss in losses.items() if "scr" in name]
    (sum(consistency) * 2**10).backward()
    assert all(torch.isfinite(feature.grad).all() for feature in half.values())
    assert all(torch.isfinite(weight.grad).all() for weight in branch.parameters() if weight.grad is not None)


@pytest.mark.parametrize("levels", [(True, False), (False, True), (False, False)], ids=str)
def test_either_level_can_be_left_out(levels):
    options = dict(zip(("dataset_level", "image_level"), levels))
    branch, whole = make_branch(CLASSES, PAIRS, **options), make_branch(CLASSES, PAIRS)
    branch.load_state_dict({key: value for key, value in whole.state_dict().items() if key in branch.state_dict()})
    features, labels, _ = random_batch(CLASSES, list("abc"))
    some, every = losses_of(branch, features, labels, "abc"), losses_of(whole, features, labels, "abc")
    wanted = ["loss_aux", *(f"loss_scr_{name}" for name, on in zip(("dataset", "image"), levels) if on)]
    assert some == {key: value for key, value in every.items() if key.split("/")[0] in wanted}


@pytest.mark.parametrize("pairs", [[], [("b", "c")], [("a", "b"), ("b", "c")], [("a", "c")]], ids=str)
def test_only_the_pairs_given_are_bridged(pairs):
    branch, names = make_branch(CLASSES, pairs), "abcbb"
    features, labels, _ = random_batch(CLASSES, list(names))
    losses = losses_of(branch, features, labels, names)
    expected = equations.losses(by_domain(CLASSES, names, features, labels), *learnt(branch))
    assert_losses(losses, expected, torch.float64)
    assert len(branch.transfer) == len(pairs) and len(losses) == 3 + 2 * len(pairs)


def test_one_domain_alone_has_msa_and_mse():
    branch = make_branch({"a": 3}, [])
    features, labels, _ = random_batch({"a": 3}, list("aa"))
    losses = losses_of(branch, features, labels, "aa")
    expected = equations.losses(by_domain({"a": 3}, "aa", features, labels), *learnt(branch))
    assert_losses(losses, expected, torch.float64)
    assert list(losses) == ["loss_aux/a"]


def test_m_intra_can_be_left_out():
    features, labels, _ = random_batch(CLASSES, list("abc"))
    branch = make_branch(CLASSES, PAIRS, adjacency=dict.fromkeys(CLASSES))
    losses = losses_of(branch, features, labels, "abc")
    expected = equations.losses(by_domain(CLASSES, "abc", features, labels), *learnt(branch))
    assert_losses(losses, expected, torch.float64)
    masked = make_branch(CLASSES, PAIRS)
    masked.load_state_dict(branch.state_dict())
    assert all(losses_of(masked, features, labels, "abc")[key] != losses[key] for key in ("loss_aux/a", "loss_aux/b"))


def test_predicted_regions_equal_the_ground_truths_where_the_logits_are_its_one_hot():
    names = "bacb"
    features, labels, _ = random_batch(CLASSES, list(names))
    own = rows_by_domain(CLASSES, names, labels)
    one_hot = {
        name: torch.nn.functional.one_hot(own[name][:, ::4, ::4] % IGNORE, count).movedim(-1, 1).double()
        for name, count in CLASSES.items()
    }
    predicted = losses_of(make_branch(CLASSES, PAIRS, predicted_regions=True), features, labels, names, one_hot)
    truth = losses_of(make_branch(CLASSES, PAIRS), features, labels, names)
    assert predicted == truth


def test_predicted_regions_are_the_likeliest_categories_but_for_ignored_pixels():
    names = "bacb"
    features, labels, logits = random_batch(CLASSES, list(names))
    logits = {name: scores.requires_grad_() for name, scores in logits.items()}
    branch = make_branch(CLASSES, PAIRS, predicted_regions=True)
    terms = run(branch, features, labels, names, logits)
    seen = torch.zeros(len(names), *logits["a"].shape[2:], dtype=torch.int64)
    for name in CLASSES:
        rows = [row for row, own in enumerate(names) if own == name]
        seen[rows] = logits[name].argmax(1)
    seen[labels[:, ::4, ::4] == IGNORE] = IGNORE
    large = seen.repeat_interleave(4, 1).repeat_interleave(4, 2)
    # The losses of A_aux still take the labels: raw terms alone are those of the other regions.
    expected = run(make_branch(CLASSES, PAIRS), features, large, names)
    for name in CLASSES:
        assert torch.equal(terms.logits[name], expected.logits[name])
    for pair in PAIRS:
        for both, wanted in zip(terms.image[pair], expected.image[pair], strict=True):
            assert all(torch.equal(a, b) for a, b in zip(both, wanted))
    sum(rows.sum() for pair in PAIRS for both in terms.image[pair] for rows in both).backward()
    assert all(scores.grad is None for scores in logits.values())


def test_gradients_of_the_whole_branch_are_those_of_the_function():
    classes = {"a": 2, "b": 3}
    branch = make_branch(classes, [("a", "b")], dim=2)
    features, labels, _ = random_batch(classes, list("ab"), dim=2, size=(32, 16))
    names = [name for name, _ in branch.named_parameters()]
    weights = [weight.detach().clone().requires_grad_() for weight in branch.parameters()]
    maps = [features[stride].requires_grad_() for stride in STRIDES]

    def all_losses(*values):
        arguments = (None, dict(zip(STRIDES, values[len(names) :])), labels, list("ab"), {})
        terms = torch.func.functional_call(branch, dict(zip(names, values)), arguments)
        return tuple(SSTLosses().auxiliary(terms, rows_by_domain(classes, "ab", labels)).values())

    assert torch.autograd.gradcheck(all_losses, (*weights, *maps), fast_mode=True)


@pytest.mark.parametrize("names", ["abc", "a"])
def test_every_parameter_gets_a_gradient_even_where_a_domain_is_absent(names):
    branch = make_branch(CLASSES, PAIRS, dtype=torch.float32)
    features, labels, _ = random_batch(CLASSES, list(names), dtype=torch.float32)
    sum(losses_of(branch, features, labels, names).values()).backward()
    assert [name for name, weight in branch.named_parameters() if weight.grad is None] == []


@pytest.mark.parametrize("level", ["dataset_level", "image_level"])
def test_every_parameter_gets_a_gradient_where_a_level_is_left_out(level):
    branch = make_branch(CLASSES, PAIRS, dtype=torch.float32, **{level: False})
    features, labels, _ = random_batch(CLASSES, list("abc"), dtype=torch.float32)
    sum(losses_of(branch, features, labels, "abc").values()).backward()
    assert [name for name, weight in branch.named_parameters() if weight.grad is None] == []


def test_neither_images_nor_categories_are_gone_through_one_by_one():
    counts = []
    for repeated, classes in ((2, CLASSES), (20, {"a": 90, "b": 7, "c": 12})):
        branch = make_branch(classes, PAIRS, dtype=torch.float32)
        names = "abc" * repeated
        features, labels, _ = random_batch(classes, list(names), dtype=torch.float32, size=(16, 16))
        with Recorder() as recorder:
            run(branch, features, labels, names)
        counts.append(recorder.operations)
    # Some sizes are copied where others are viewed; a loop would add an operation for each of 54 images at least.
    assert abs(counts[1] - counts[0]) < 27


def test_nothing_larger_than_the_features_is_made():
    branch = make_branch(CLASSES, PAIRS, dtype=torch.float32, dim=64)
    features, labels, _ = random_batch(CLASSES, list("abc"), dim=64, dtype=torch.float32, size=(128, 128))
    with Recorder(*features.values(), labels, *branch.parameters()) as recorder:
        run(branch, features, labels, "abc")
    # Something of the size B × K × D × h × w would be five times as large.
    assert recorder.largest <= features[4].numel() * features[4].element_size()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("stride", STRIDES)
def test_a_number_that_is_none_reaches_the_losses_of_its_domain(stride, value):
    branch = make_branch(CLASSES, PAIRS)
    features, labels, _ = random_batch(CLASSES, list("abc"))
    features[stride][1, 0, 0, 0] = value
    losses = losses_of(branch, features, torch.zeros_like(labels), "abc")
    assert {name for name, loss in losses.items() if not loss.isfinite()} == {
        "loss_aux/b",
        "loss_scr_image/a-b",
        "loss_scr_image/b-c",
    }


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_none_reaches_the_losses_of_its_domain(value):
    features, labels, _ = random_batch(CLASSES, list("abc"))
    for spoil, others in (
        (lambda branch: branch.enhancement["b"].embedding, {"loss_scr_dataset/a-b", "loss_scr_dataset/b-c"}),
        (lambda branch: branch.aggregation["b"].projection.weight, set()),
    ):
        branch = make_branch(CLASSES, PAIRS)
        spoil(branch).data[1, 1] = value
        losses = losses_of(branch, features, labels, "abc")
        wanted = {"loss_aux/b", "loss_scr_image/a-b", "loss_scr_image/b-c"} | others
        assert {name for name, loss in losses.items() if not loss.isfinite()} == wanted


@pytest.mark.parametrize("names", ["ab", "abb", "a", "bb"])
def test_the_smallest_domain_equals_the_loops_with_one_of_its_categories(names):
    classes = {"a": 2, "b": 4}
    branch = make_branch(classes, [("a", "b")])
    features, labels, _ = random_batch(classes, list(names))
    labels[[name == "a" for name in names]] = 1
    losses = losses_of(branch, features, labels, names)
    assert_losses(losses, equations.losses(by_domain(classes, names, features, labels), *learnt(branch)), torch.float64)
    sum(losses.values()).backward()
    assert all(torch.isfinite(weight.grad).all() for weight in branch.parameters())


def test_pairs_that_would_have_one_name_are_refused():
    with pytest.raises(SSTConfigError, match="the pairs a-b and c, a and b-c would both be named 'a-b-c'"):
        make_branch({"a-b": 3, "c": 4, "a": 2, "b-c": 3}, [("a-b", "c"), ("a", "b-c")])
