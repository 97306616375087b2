"""The branch's weights and random batches, as the equations (tests/equations.py) take them."""

import equations
import numpy as np
import torch

from sst_d2.label_domains import LabelDomain
from sst_d2.modeling.auxiliary.branch import AuxiliaryBranch
from sst_d2.modeling.losses import IGNORE

STRIDES = (16, 8, 4)
# How far float32 and float64 may lie from the loops, of values of about one.
TOLERANCES = {torch.float32: 1e-6, torch.float64: 1e-10}


def array(tensor):
    return tensor.detach().double().cpu().numpy()


def assert_near(result, expected):
    """Within the tolerance of the result's type, of the largest value or of one."""
    result, expected = result.detach(), np.asarray(expected)
    assert tuple(result.shape) == expected.shape
    allowed = TOLERANCES[result.dtype] * max(1.0, np.abs(expected).max(initial=0.0))
    assert np.abs(array(result) - expected).max(initial=0.0) <= allowed


def maps_of(layer):
    return equations.Maps(*(array(getattr(layer, name).weight).T for name in ("query", "key", "value")))


def domain_of(aggregation, enhancement):
    adjacency = None if enhancement.adjacency is None else array(enhancement.adjacency)
    layers = [maps_of(layer) for layer in enhancement.layers]
    return equations.Domain(array(aggregation.projection.weight).T, array(enhancement.embedding), layers, adjacency)


def bridge_of(transfer):
    """Maps of layers 0 … L; those of a level that is left out are left out."""
    levels = [level for level in (transfer.dataset, transfer.image) if level is not None]
    forth, back = (
        [maps_of(layer) for level in levels for layer in as_list(getattr(level, name))]
        for name in ("to_second", "to_first")
    )
    first, second = (
        [array(layer.weight).T for layer in (getattr(transfer.image, name) if transfer.image else ())]
        for name in ("associate_first", "associate_second")
    )
    static = array(transfer.dataset.static) if transfer.dataset else None
    return equations.Bridge(static, forth, back, first, second)


def as_list(layers):
    return list(layers) if isinstance(layers, torch.nn.ModuleList) else [layers]


def learnt(branch):
    """Domains and bridges of a branch, by name and by pair of names."""
    domains = {name: domain_of(branch.aggregation[name], branch.enhancement[name]) for name in branch.enhancement}
    return domains, {pair: bridge_of(branch.transfer["-".join(pair)]) for pair in branch.pairs}


def toy_domain(name, num_classes):
    return LabelDomain(name, tuple(f"{name}{k}" for k in range(num_classes)), ((0, 0, 0),) * num_classes)


def make_branch(classes, pairs, dim=6, dtype=torch.float64, **options):
    """A branch over toy domains, K by name, with values of about one in X_0, M_static and half of M_intra."""
    torch.manual_seed(0)
    domains = [toy_domain(name, count) for name, count in classes.items()]
    adjacency = {name: (torch.rand(k, k) < 0.5).float().fill_diagonal_(1) for name, k in classes.items()}
    relations = {(a, b): torch.rand(classes[b], classes[a]) for a, b in pairs}
    options = {"adjacency": adjacency, "relations": relations, "embedding_std": 1.0, **options}
    return AuxiliaryBranch(domains=domains, dim=dim, **options).to(dtype)


def random_labels(images, num_classes, size, seed=0, ignored=0.2):
    """Blocks of 4 × 4 pixels, so that something is left at stride 4; the last category is absent in the first image."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(num_classes, (images, size[0] // 4, size[1] // 4), generator=generator)
    labels[:1][labels[:1] == num_classes - 1] = 0
    labels[torch.rand(labels.shape, generator=generator) < ignored] = IGNORE
    return labels.repeat_interleave(4, 1).repeat_interleave(4, 2)


def random_batch(classes, names, dim=6, size=(32, 48), dtype=torch.float64, seed=0):
    """Features {16, 8, 4}, label maps and logits by domain of images whose domains are ``names``."""
    generator = torch.Generator().manual_seed(seed)

    def noise(count, channels, stride):
        return torch.randn(count, channels, size[0] // stride, size[1] // stride, generator=generator, dtype=dtype)

    features = {stride: noise(len(names), dim, stride) for stride in STRIDES}
    labels = [random_labels(1, classes[name], size, seed=seed + row) for row, name in enumerate(names)]
    logits = {name: noise(names.count(name), count, 4) for name, count in classes.items()}
    return features, torch.cat(labels), logits


def by_domain(classes, names, features, labels):
    """The batch as `equations.losses` takes it."""
    result = {name: [] for name in classes}
    for row, name in enumerate(names):
        maps = [array(features[stride][row]) for stride in STRIDES]
        result[name].append((maps, labels[row].numpy()))
    return result


def rows_by_domain(classes, names, labels):
    """Label maps by domain, as the losses take them."""
    return {name: labels[[row for row, other in enumerate(names) if other == name]] for name in classes}
