"""Dedicated training: the frozen source, what a model learns from it, and which files are refused."""

import copy
import hashlib
import shutil
from functools import reduce
from pathlib import Path

import equations
import numpy as np
import pytest
import torch
import yaml
from as_arrays import STRIDES, array, domain_of, learnt
from conftest import ROOT, tiny_cfg
from detectron2.modeling import build_model

from sst_d2.checkpoint import SSTCheckpointer, strip_auxiliary
from sst_d2.config import inference_config
from sst_d2.errors import SSTCheckpointError, SSTConfigError, SSTError
from sst_d2.label_domains import get_label_domain
from sst_d2.label_domains.relations import cross_similarity
from sst_d2.modeling.losses import IGNORE, upsample
from sst_d2.optimizer import build_optimizer

SOURCES, TARGET = ["pascal_person_part", "atr"], "cihp"
CCP14 = ROOT / "tests" / "label_domains" / "ccp14.yaml"
STRATEGY = "MODEL__SST__AUXILIARY__STRATEGY"
WEIGHTS, WANTED = "MODEL__SST__SOURCE__WEIGHTS", "MODEL__SST__SOURCE__DOMAINS"


def save_source(folder, domains, name="model_final", **overrides):
    """A network of step one, not trained, and its checkpoint; heads that predict many categories."""
    torch.manual_seed(1)
    single = {STRATEGY: "none"} if len(domains) == 1 else {}
    cfg = tiny_cfg(domains, **{**single, **overrides})
    model = build_model(cfg)
    for head in model.heads.values():
        torch.nn.init.normal_(head.weight)
    SSTCheckpointer(model, str(folder), config=cfg.dump()).save(name)
    return model, str(Path(folder) / f"{name}.pth")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The network of step one, and its file."""
    return save_source(tmp_path_factory.mktemp("step1"), SOURCES)


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    return save_source(tmp_path_factory.mktemp("single"), ["atr"])[1]


def build(path, target=TARGET, **overrides):
    torch.manual_seed(0)
    targets = target if isinstance(target, list) else [target]
    return build_model(tiny_cfg(targets, **{WEIGHTS: str(path), **overrides})).train()


@pytest.fixture(scope="module")
def model(trained):
    return build(trained[1])


def batch(count=2, num_classes=20, size=(32, 32), seed=0, name=TARGET):
    generator = torch.Generator().manual_seed(seed)
    samples = []
    for _ in range(count):
        labels = torch.randint(num_classes, (size[0] // 8, size[1] // 8), generator=generator)
        labels[torch.rand(labels.shape, generator=generator) < 0.2] = IGNORE
        image = torch.randint(256, (3, *size), generator=generator, dtype=torch.uint8)
        labels = labels.repeat_interleave(8, 0).repeat_interleave(8, 1)
        samples.append({"image": image, "sem_seg": labels, "label_domain": name})
    return samples


def forward(model, samples, totals=None):
    """Losses, and what the decoders of the target's network and of the source's gave."""
    seen = []
    hooks = [
        part.decoder.register_forward_hook(lambda module, arguments, result: seen.append(result))
        for part in (model, model.auxiliary.source)
    ]
    losses = model(samples, totals)
    for hook in hooks:
        hook.remove()
    return losses, *seen


def logits_of(head, features):
    return np.tensordot(array(head.weight)[:, :, 0, 0], features, 1) + array(head.bias)[:, None, None]


def expected_losses(model, samples, own, theirs):
    """Eq. (13), second line, in plain loops; the regions of the source are what it predicts itself."""
    (target,), source = model.domains, model.auxiliary.source
    size = [4 * length for length in own[4].shape[2:]]
    labels = np.full((len(samples), *size), IGNORE)
    for row, sample in enumerate(samples):
        height, width = sample["sem_seg"].shape
        labels[row, :height, :width] = sample["sem_seg"]
    domains, bridges = learnt(model.auxiliary)
    domains |= {
        name: domain_of(source.auxiliary.aggregation[name], source.auxiliary.enhancement[name])
        for name in source.domains
    }
    images = {name: [] for name in domains}
    for row, label in enumerate(labels):
        maps, others = ([array(features[stride][row]) for stride in STRIDES] for features in (own, theirs))
        images[target].append(equations.image_of(maps, label, domains[target]))
        for name in source.domains:
            regions = logits_of(source.heads[name], others[-1]).argmax(0)
            regions[equations.regions(label, regions.shape) == IGNORE] = IGNORE
            images[name].append(equations.image_of(others, regions, domains[name]))
    rows = range(len(samples))
    masks = [equations.auxiliary_logits(array(own[4][row]), images[target][row].categories[-1]) for row in rows]
    plain = [logits_of(model.heads[target], array(own[4][row])) for row in rows]
    expected = {
        f"loss_seg/{target}": 10 * equations.cross_entropy(plain, labels),
        f"loss_aux/{target}": equations.cross_entropy(masks, labels),
    }
    for pair, bridge in bridges.items():
        embeddings = [domains[name].embedding for name in pair]
        expected[f"loss_scr_dataset/{'-'.join(pair)}"] = 5 * equations.dataset_loss(*embeddings, bridge)
        expected[f"loss_scr_image/{'-'.join(pair)}"] = 5 * equations.image_loss(*(images[n] for n in pair), bridge)
    return expected


BATCHES = {
    "one image": batch(1),
    "three images": batch(3),
    "several sizes": batch(1) + batch(1, size=(40, 24), seed=1),
    "nothing labelled": [{**sample, "sem_seg": torch.full_like(sample["sem_seg"], IGNORE)} for sample in batch()],
}


@pytest.mark.parametrize("samples", BATCHES.values(), ids=BATCHES)
def test_every_loss_equals_the_equations(model, samples):
    losses, own, theirs = forward(model, samples)
    expected = expected_losses(model, samples, own, theirs)
    pairs = [f"{name}-{TARGET}" for name in SOURCES]
    kinds = ["loss_scr_dataset", "loss_scr_image"]
    assert list(losses) == [f"loss_seg/{TARGET}", f"loss_aux/{TARGET}", *(f"{k}/{p}" for k in kinds for p in pairs)]
    assert {name: loss.item() for name, loss in losses.items()} == pytest.approx(expected, rel=2e-6, abs=1e-6)


def test_the_source_predicts_several_categories(model):
    """Else the test above would not see where the source's regions come from."""
    source, images = model.auxiliary.source, model._normalised_images(batch(3)).tensor
    with torch.no_grad():
        features = source.decoder(source.backbone(images))
    for name in SOURCES:
        assert all(len(labels.unique()) > 2 for labels in source.heads(features[4], name).argmax(1))


def test_parts_of_a_batch_add_up(model):
    parts = [batch(3), batch(2, seed=1)]
    totals = model.totals_of(parts)
    assert totals.image_pairs.tolist() == [13, 13] and totals.parts == 2  # 3 × 3 + 2 × 2
    added, alone = [model(part, totals) for part in parts], [model(part) for part in parts]
    whole = model(parts[0] + parts[1])
    for name in whole:
        total = sum(part[name].item() for part in added)
        expected = whole[name].item()
        if name.startswith("loss_scr_image"):
            expected = sum(count * part[name].item() for count, part in zip((9, 4), alone)) / 13
        assert total == pytest.approx(expected, rel=1e-5)


def test_the_source_predicts_what_the_network_of_step_one_predicts(tmp_path):
    network, path = save_source(tmp_path, SOURCES, MODEL__RESNETS__NORM="BN")
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # statistics that a single batch would not have
            module.running_mean.uniform_(-1, 1)
            module.running_var.uniform_(0.5, 2)
    SSTCheckpointer(network, str(tmp_path), config=torch.load(path, weights_only=True)["config"]).save("model_final")
    model = build(path)
    source, samples = model.auxiliary.source, batch(1, size=(64, 96))
    with torch.no_grad():
        expected = network.eval()([{**samples[0], "label_domain": "all"}])[0]["sem_seg_by_domain"]
        features = source.decoder(source.backbone(model._normalised_images(samples).tensor))
        for name in SOURCES:
            assert torch.equal(upsample(source.heads(features[4], name), (64, 96))[0], expected[name])


def test_the_target_learns_and_the_source_never(trained):
    model = build(trained[1])
    source = model.auxiliary.source
    before = {key: value.clone() for key, value in source.state_dict().items()}
    model.train(), source.train(), model.requires_grad_(True)
    assert not any(module.training for module in source.modules())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    assert len(optimizer.param_groups[0]["params"]) == len(list(model.parameters()))
    totals = []
    for _ in range(6):
        optimizer.zero_grad()
        losses = model(batch(2))
        totals.append(sum(losses.values()))
        totals[-1].backward()
        optimizer.step()
    assert totals[-1] < 0.95 * totals[0]
    assert all(weight.grad is None and not weight.requires_grad for weight in source.parameters())
    assert all(torch.equal(value, before[key]) for key, value in source.state_dict().items())
    stored = {key: value for key, value in trained[0].state_dict().items() if not key.startswith("auxiliary.transfer.")}
    assert before.keys() == stored.keys() and all(torch.equal(before[key], value) for key, value in stored.items())


def test_every_parameter_of_the_target_gets_a_gradient_and_none_is_the_sources(model):
    model.zero_grad()
    sum(model(batch(2)).values()).backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None] == []
    theirs = {id(weight) for weight in model.auxiliary.source.parameters()}
    groups = build_optimizer(tiny_cfg([TARGET]), model).param_groups
    for weights in (model.parameters(), model.buffers(), (weight for group in groups for weight in group["params"])):
        assert theirs.isdisjoint(map(id, weights))
    plain = build("", **{STRATEGY: "none"})
    extra = model.state_dict().keys() - plain.state_dict().keys()
    assert extra and all(key.startswith("auxiliary.transfer.") for key in extra)


def test_the_trunk_learns_from_the_source(model):
    model.zero_grad()
    losses = model(batch(2))
    sum(loss for name, loss in losses.items() if name.startswith("loss_scr_image")).backward()
    assert sum(weight.grad.abs().sum() for weight in model.backbone.parameters() if weight.grad is not None) > 0


def test_the_source_goes_where_the_model_goes(trained):
    model = build(trained[1])
    samples, copied = batch(1), copy.deepcopy(model)
    own, theirs = model.auxiliary.source, copied.auxiliary.source
    assert theirs is not own and theirs.digest == own.digest
    assert all(torch.equal(a, b) and a is not b for a, b in zip(own.parameters(), theirs.parameters(), strict=True))
    assert not any(weight.requires_grad for weight in theirs.parameters())
    assert all(torch.equal(a, b) for a, b in zip(model(samples).values(), copied(samples).values(), strict=True))
    copied.double()
    assert {weight.dtype for weight in theirs.parameters()} == {torch.float64}
    assert {weight.dtype for weight in own.parameters()} == {torch.float32}
    copied.to("meta")
    assert all(weight.is_meta for weight in theirs.state_dict().values())


def test_the_digest_is_the_files(model, trained):
    assert model.auxiliary.source.digest == hashlib.sha256(Path(trained[1]).read_bytes()).hexdigest()


def test_the_record_in_the_checkpoint_counts_not_the_file_of_the_domain(tmp_path):
    own_file = tmp_path / "own.yaml"
    record = yaml.safe_load(CCP14.read_text())
    own_file.write_text(yaml.safe_dump({**record, "name": "own"}))
    path = save_source(tmp_path, [str(own_file)])[1]
    domain = get_label_domain(own_file.as_posix())
    own_file.unlink()
    model = build(path, **{WANTED: ["own"]})
    (source,) = model.auxiliary.source.domains.values()
    assert source == domain and model.auxiliary.pairs == [("own", TARGET)]
    static = model.auxiliary.transfer[f"own-{TARGET}"].dataset.static.numpy()
    assert np.abs(static - cross_similarity(domain, get_label_domain(TARGET))).max() < 1e-7
    assert all(torch.isfinite(loss) for loss in model(batch(1)).values())


@pytest.mark.parametrize("masked", [True, False])
def test_m_intra_of_the_source_is_that_of_step_one(tmp_path, masked):
    path = save_source(tmp_path, ["atr"], MODEL__SST__AUXILIARY__ADJACENCY=masked)[1]
    model = build(path, MODEL__SST__AUXILIARY__ADJACENCY=not masked)
    theirs, own = model.auxiliary.source.auxiliary.enhancement["atr"], model.auxiliary.enhancement[TARGET]
    assert ((theirs.adjacency is None), (own.adjacency is None)) == (not masked, masked)


def test_given_pairs_leave_domains_of_the_source_out(trained):
    model = build(trained[1], **{STRATEGY: "pairs", "MODEL__SST__AUXILIARY__PAIRS": [[TARGET, "atr"]]})
    assert model.auxiliary.pairs == [("atr", TARGET)]
    samples = batch(2)
    losses, own, theirs = forward(model, samples)
    expected = expected_losses(model, samples, own, theirs)
    assert {name: loss.item() for name, loss in losses.items()} == pytest.approx(expected, rel=2e-6, abs=1e-6)


def test_paths_may_have_variables_and_a_home(trained, tmp_path, monkeypatch):
    shutil.copy(trained[1], tmp_path / "source.pth")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("STEP_ONE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for path in ("~/source.pth", "${STEP_ONE}/source.pth", "source.pth"):
        assert list(build(path).auxiliary.source.domains) == SOURCES


def test_keys_of_another_detectron2_in_the_sources_configuration_do_no_harm(trained, tmp_path):
    content = torch.load(trained[1], weights_only=True)
    record = yaml.safe_load(content["config"])
    record["MODEL"]["NEW_NETWORK"] = {"DEPTH": 3}
    del record["MODEL"]["RETINANET"]
    torch.save({**content, "config": yaml.safe_dump(record)}, tmp_path / "other.pth")
    assert build(tmp_path / "other.pth").auxiliary.source is not None


def test_a_model_that_predicts_needs_no_source():
    cfg = tiny_cfg([TARGET], **{WEIGHTS: "nowhere.pth", WANTED: ["atr"]})
    assert build_model(inference_config(cfg)).auxiliary is None


REFUSED = {
    "no weights": ({WEIGHTS: "", WANTED: ["atr"]}, "WEIGHTS is empty, and .*SOURCE.DOMAINS asks for atr: .*step one"),
    "no file": ({WEIGHTS: "none.pth"}, "SOURCE.WEIGHTS: none.pth: cannot be read .*train step one first"),
    "a folder": ({WEIGHTS: "."}, r"SOURCE.WEIGHTS: \.: cannot be read \(Is a directory\)"),
    "an address": ({WEIGHTS: "torchvision://resnet50"}, "torchvision://resnet50: a file of this machine"),
    "unset variable": ({WEIGHTS: "${NO_SUCH_VARIABLE}/x.pth"}, "variable NO_SUCH_VARIABLE is not set"),
    "several targets": ({"target": [TARGET, "lip"]}, "MODEL.SST.DOMAINS: cihp, lip; dedicated training .*one target"),
    "target of the source": ({"target": "atr"}, r"target atr is among the source's label domains \(atr\)"),
    "other domains": ({WANTED: ["lip"]}, "its label domains are atr; MODEL.SST.SOURCE.DOMAINS asks for lip"),
    "more domains": ({WANTED: ["atr", "lip"]}, "domains are atr; .*asks for atr, lip"),
    "another deviation": ({"MODEL__PIXEL_STD": [1.0, 2.0, 3.0]}, "MODEL.PIXEL_STD was"),
    "no mst": ({STRATEGY: "none"}, "STRATEGY: 'none', and .*allowed: full, pairs"),
    "no level": (
        {"MODEL__SST__AUXILIARY__DATASET_LEVEL": 0.0, "MODEL__SST__AUXILIARY__IMAGE_LEVEL": 0.0},
        "both 0, so MST has nothing to compare",
    ),
    "channels in another order": ({"INPUT__FORMAT": "BGR"}, "INPUT.FORMAT was RGB in step one and is BGR here"),
    "another mean": ({"MODEL__PIXEL_MEAN": [1.0, 2.0, 3.0]}, r"MODEL.PIXEL_MEAN was \[123.*and is \[1.0, 2.0, 3.0\] h"),
    "another width": ({"MODEL__SST__DECODER__DIM": 64}, "MODEL.SST.DECODER.DIM was 32 in step one and is 64 here"),
}


@pytest.mark.parametrize(("overrides", "message"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_go_with_a_source_is_named(single, overrides, message):
    with pytest.raises(SSTError, match=message):
        build(**{"path": single, **overrides})


def test_one_domain_without_a_source_is_told_of_it():
    with pytest.raises(SSTConfigError, match="only cihp; .*MODEL.SST.SOURCE.WEIGHTS"):
        build("")


def altered(path, target, **changes):
    content = torch.load(path, weights_only=True)
    content.update(changes)
    torch.save({key: value for key, value in content.items() if value is not None}, target)


def reconfigured(path, target, key, value):
    record = yaml.safe_load(torch.load(path, weights_only=True)["config"])
    *nodes, last = key.split(".")
    reduce(dict.__getitem__, nodes, record)[last] = value
    altered(path, target, config=yaml.safe_dump(record))


def without(path, ending):
    weights = torch.load(path, weights_only=True)["model"]
    return {key: value for key, value in weights.items() if not key.endswith(ending)}


DAMAGED = {
    "stripped": (strip_auxiliary, "MSA and MSE were removed; it serves prediction alone"),
    "backbone only": (
        lambda source, target: torch.save({"model": {"backbone.stem.conv1.weight": torch.zeros(1)}}, target),
        "no checkpoint of a training of sst_d2",
    ),
    "of another program": (lambda source, target: Path(target).write_text("weights"), "cannot be read as a checkpoint"),
    "cut off": (
        lambda source, target: Path(target).write_bytes(Path(source).read_bytes()[:-5000]),
        "cannot be read as a checkpoint",
    ),
    "no configuration": (lambda s, t: altered(s, t, config=None), "no checkpoint of a training of sst_d2"),
    "broken configuration": (lambda s, t: altered(s, t, config="MODEL: {SST: ["), "its configuration cannot be read"),
    "a configuration that is none": (lambda s, t: altered(s, t, config="- 5"), "its configuration cannot be read"),
    "a wrong value": (lambda s, t: reconfigured(s, t, "MODEL.SST.DECODER.HEADS", 0), "HEADS: 0; allowed"),
    "an unknown backbone": (
        lambda s, t: reconfigured(s, t, "MODEL.BACKBONE.NAME", "mine"),
        "network of step one cannot be built here: .*mine.*must be registered",
    ),
    "another network": (
        lambda s, t: reconfigured(s, t, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64),
        "its weights do not fit its own configuration and label domains",
    ),
    "records that are none": (lambda s, t: altered(s, t, label_domains=[7]), "label_domains are no records"),
    "a damaged record": (
        lambda s, t: altered(s, t, label_domains=[{"name": "atr", "classes": ["a", "a"]}]),
        "field 'classes': 'a' occurs 2 times",
    ),
    "no record": (lambda s, t: altered(s, t, label_domains=[]), "label_domains are no records"),
    "a tensor is missing": (
        lambda s, t: altered(s, t, model=without(s, "embedding")),
        "its weights do not fit .*Missing key.*embedding",
    ),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGED.values(), ids=DAMAGED)
def test_a_file_that_is_no_source_is_named(single, tmp_path, damage, message):
    path = str(tmp_path / "bad.pth")
    damage(single, path)
    with pytest.raises(SSTError, match=f"(?s)bad.pth.*{message}"):
        build(path)


def test_a_baseline_is_no_source(tmp_path):
    path = save_source(tmp_path, ["atr"], MODEL__SST__AUXILIARY__ENABLED=False)[1]
    with pytest.raises(SSTCheckpointError, match="trained without MSA and MSE .*Finetune.*MODEL.WEIGHTS"):
        build(path)
