"""The paper's equations once more, as plain loops in NumPy, float64; written from its text, not from the code.

Linear maps multiply from the right, as the paper writes them: x W. Letters: K categories, D channels, h × w pixels,
L scales. The letters A1, A2 … stand for the readings of the paper in docs/DECISIONS.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

IGNORED = 255


@dataclass(frozen=True)
class Maps:
    """f_Q, f_K and f_V of one layer, (D, D) each."""

    query: np.ndarray
    key: np.ndarray
    value: np.ndarray


@dataclass(frozen=True)
class Domain:
    """What MSA and MSE of one label domain learn: W_s (2D, D), X_0 (K, D), one `Maps` per SP layer; and M_intra."""

    projection: np.ndarray
    embedding: np.ndarray
    propagation: Sequence[Maps]
    adjacency: np.ndarray | None


@dataclass(frozen=True)
class Bridge:
    """What MST of one pair learns, and M_static (K_2, K_1) of the direction from its first domain to its second.

    Layers 0 … L of either direction; W_1 … W_L of either domain.
    """

    static: np.ndarray
    forth: Sequence[Maps]
    back: Sequence[Maps]
    first: Sequence[np.ndarray]
    second: Sequence[np.ndarray]


@dataclass(frozen=True)
class Image:
    """S_1 … S_L and X_1 … X_L of one image, (K, D) each."""

    semantics: Sequence[np.ndarray]
    categories: Sequence[np.ndarray]


def regions(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Label map (H, W) at a smaller size: the nearest pixel, as PyTorch's "nearest" counts it."""
    small = np.empty(size, dtype=labels.dtype)
    for row, column in np.ndindex(size):
        small[row, column] = labels[row * labels.shape[0] // size[0], column * labels.shape[1] // size[1]]
    return small


def pooled(features: np.ndarray, region: np.ndarray, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Eq. (2), (3) of one image: features (D, h, w) and δ (h, w) to S^ave and S^max, (K, D); zero where empty (A7)."""
    average = np.zeros((num_classes, features.shape[0]))
    maximum = np.zeros((num_classes, features.shape[0]))
    for category in range(num_classes):
        pixels = [
            features[:, row, column] for row, column in np.ndindex(region.shape) if region[row, column] == category
        ]
        for channel in range(features.shape[0] if pixels else 0):
            values = [float(pixel[channel]) for pixel in pixels]
            average[category, channel] = math.fsum(values) / len(values)
            maximum[category, channel] = max(values)
    return average, maximum


def aggregated(average: np.ndarray, maximum: np.ndarray, projection: np.ndarray) -> np.ndarray:
    """Eq. (4): S = concat(S^ave, S^max) W_s, row by row."""
    return np.stack([np.concatenate([mean, top]) @ projection for mean, top in zip(average, maximum)])


def attended(target: np.ndarray, source: np.ndarray, maps: Maps, association: np.ndarray | None) -> np.ndarray:
    """(softmax(Q K^T / sqrt(D)) ⊙ M) V; softmax over the source's categories first, not normalised again (A3)."""
    result = np.zeros((len(target), maps.value.shape[1]))
    for here, row in enumerate(target):
        scores = [float((row @ maps.query) @ (other @ maps.key)) / math.sqrt(maps.key.shape[1]) for other in source]
        powers = [math.exp(score - max(scores)) for score in scores]
        for there, other in enumerate(source):
            weight = powers[there] / math.fsum(powers)
            if association is not None:
                weight *= association[here, there]
            result[here] += weight * (other @ maps.value)
    return result


def enhanced(domain: Domain, semantics: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Eq. (5), (6): S_1 … S_L of an image to X_1 … X_L."""
    categories = [domain.embedding]
    for maps, semantic in zip(domain.propagation, semantics, strict=True):
        before = categories[-1]
        categories.append(attended(before, semantic, maps, domain.adjacency) + before)
    return categories[1:]


def auxiliary_logits(features: np.ndarray, categories: np.ndarray) -> np.ndarray:
    """Eq. (7): F (D, h, w) and X_L (K, D) to A_aux (K, h, w)."""
    logits = np.empty((len(categories), *features.shape[1:]))
    for category, row, column in np.ndindex(logits.shape):
        logits[category, row, column] = math.fsum(features[:, row, column] * categories[category])
    return logits


def image_of(features: Sequence[np.ndarray], labels: np.ndarray, domain: Domain) -> Image:
    """MSA and MSE of one image: H_1 … H_L, coarse to fine, and its label map, or other regions of that size."""
    semantics = []
    for feature in features:
        parts = pooled(feature, regions(labels, feature.shape[1:]), len(domain.embedding))
        semantics.append(aggregated(*parts, domain.projection))
    return Image(semantics, enhanced(domain, semantics))


def dynamic(to: np.ndarray, to_map: np.ndarray, of: np.ndarray, of_map: np.ndarray) -> np.ndarray:
    """M_dynamic of Eq. (9): S^(2) W^(2) (S^(1) W^(1))^T, as it stands (A6)."""
    matrix = np.empty((len(to), len(of)))
    for here, there in np.ndindex(matrix.shape):
        matrix[here, there] = (to[here] @ to_map) @ (of[there] @ of_map)
    return matrix


def mismatches(own: np.ndarray, mapped: np.ndarray) -> np.ndarray:
    """The brackets of Eq. (10), (11): 1 - cosine per row; a vector that is zero has no direction, its row is 1 (A7)."""
    rows = np.ones(len(own))
    for category, (x, y) in enumerate(zip(own, mapped)):
        lengths = math.sqrt(x @ x) * math.sqrt(y @ y)
        if lengths > 0:
            rows[category] = 1 - (x @ y) / lengths
    return rows


def dataset_rows(first: np.ndarray, second: np.ndarray, bridge: Bridge) -> tuple[np.ndarray, np.ndarray]:
    """Eq. (8) both ways and the brackets of Eq. (10): X_0 of two domains to (K_1,) and (K_2,)."""
    to_second = attended(second, first, bridge.forth[0], bridge.static)
    to_first = attended(first, second, bridge.back[0], bridge.static.T)
    return mismatches(first, to_first), mismatches(second, to_second)


def image_rows(first: Image, second: Image, bridge: Bridge) -> list[tuple[np.ndarray, np.ndarray]]:
    """Eq. (9) both ways and the brackets of Eq. (11) of two images: per scale (K_1,) and (K_2,)."""
    rows = []
    for layer, (x, y) in enumerate(zip(first.categories, second.categories, strict=True)):
        s, t = first.semantics[layer], second.semantics[layer]
        association = dynamic(t, bridge.second[layer], s, bridge.first[layer])
        to_second = attended(y, x, bridge.forth[layer + 1], association)
        to_first = attended(x, y, bridge.back[layer + 1], association.T)
        rows.append((mismatches(x, to_first), mismatches(y, to_second)))
    return rows


def dataset_loss(first: np.ndarray, second: np.ndarray, bridge: Bridge) -> float:
    """Eq. (10)."""
    return sum(math.fsum(rows) / len(rows) for rows in dataset_rows(first, second, bridge))


def image_loss(first: Sequence[Image], second: Sequence[Image], bridge: Bridge) -> float:
    """Eq. (11), the mean over all pairs of images (A14); 0 where there is none."""
    losses = []
    for one in first:
        for two in second:
            losses.append(sum(math.fsum(r) / len(r) for both in image_rows(one, two, bridge) for r in both))
    return math.fsum(losses) / len(losses) if losses else 0.0


def upsampled(logits: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(K, h, w) to (K, *size), bilinearly; the corners of the pixels agree, not their centres (A9)."""
    result = np.empty((len(logits), *size))
    for row, column in np.ndindex(size):
        top, bottom, down = _neighbours(row, size[0], logits.shape[1])
        left, right, along = _neighbours(column, size[1], logits.shape[2])
        above = (1 - along) * logits[:, top, left] + along * logits[:, top, right]
        below = (1 - along) * logits[:, bottom, left] + along * logits[:, bottom, right]
        result[:, row, column] = (1 - down) * above + down * below
    return result


def _neighbours(place: int, large: int, small: int) -> tuple[int, int, float]:
    """The two pixels of an axis between which a pixel of the larger axis lies, and how far it is along."""
    where = max((place + 0.5) * small / large - 0.5, 0.0)
    before = min(int(where), small - 1)
    return before, min(before + 1, small - 1), where - before


def cross_entropy(logits: Sequence[np.ndarray], labels: Sequence[np.ndarray]) -> float:
    """Eq. (1) of a batch: the mean over its labelled pixels; (K, h, w) and (H, W) per image. 0 without such a pixel."""
    terms = []
    for scores, label in zip(logits, labels, strict=True):
        full = upsampled(scores, label.shape)
        for row, column in np.ndindex(label.shape):
            if label[row, column] != IGNORED:
                values = full[:, row, column]
                terms.append(np.log(np.exp(values - values.max()).sum()) + values.max() - values[label[row, column]])
    return math.fsum(terms) / len(terms) if terms else 0.0


def losses(
    batch: Mapping[str, Sequence[tuple[Sequence[np.ndarray], np.ndarray]]],
    domains: Mapping[str, Domain],
    bridges: Mapping[tuple[str, str], Bridge],
    weights: tuple[float, float] = (1.0, 5.0),
) -> dict[str, float]:
    """The terms of Eq. (12) beside the segmentation losses, weighed by β and λ, for any number of domains (A17).

    Args:
        batch: by domain its images, each with H_1 … H_L (D, h, w), the last of them F, and its label map (H, W).
        domains, bridges: what the branch has learnt.
        weights: β and λ.
    """
    beta, scr = weights
    images = {name: [image_of(*pair, domains[name]) for pair in pairs] for name, pairs in batch.items()}
    result = {}
    for name, pairs in batch.items():
        masks = [auxiliary_logits(f[-1], image.categories[-1]) for (f, _), image in zip(pairs, images[name])]
        result[f"loss_aux/{name}"] = beta * cross_entropy(masks, [label for _, label in pairs])
    for (a, b), bridge in bridges.items():
        embeddings = domains[a].embedding, domains[b].embedding
        result[f"loss_scr_dataset/{a}-{b}"] = scr * dataset_loss(*embeddings, bridge)
        result[f"loss_scr_image/{a}-{b}"] = scr * image_loss(images[a], images[b], bridge)
    return result
