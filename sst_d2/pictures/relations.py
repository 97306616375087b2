"""How categories relate to each other: M_static and M_dynamic between two label domains, cosines within one."""

from __future__ import annotations

import os

import numpy as np

from sst_d2.label_domains import LabelDomain
from sst_d2.label_domains.relations import cross_similarity, similarity_source
from sst_d2.pictures.categories import CategoryRelations
from sst_d2.visualization import matrix_picture


def static_picture(first: LabelDomain, second: LabelDomain, vectors: str | os.PathLike | None = None) -> np.ndarray:
    """M_static (Eq. 8) of the direction from the first to the second, and its source.

    Args:
        first, second: the label domains; the first one's classes stand above the columns.
        vectors: as `cross_similarity`.

    Returns:
        (h, w, 3) uint8.

    Raises:
        LabelDomainError: as `cross_similarity`.
    """
    title = (
        f"M_static: how much the classes of {second.name} (rows) and {first.name} (columns) resemble each other\n"
        f"source: {similarity_source(first, second, vectors)}"
    )
    return matrix_picture(cross_similarity(first, second, vectors), second.classes, first.classes, title)


def dynamic_picture(first: LabelDomain, second: LabelDomain, values: np.ndarray, stride: int) -> np.ndarray:
    """M_dynamic (Eq. 9) of the direction from the first to the second, in units of its largest value.

    Args:
        first, second: the label domains.
        values: (K_second, K_first), one scale of `CategoryRelations.dynamic`.
        stride: of that scale, for the title.

    Returns:
        (h, w, 3) uint8.
    """
    # It has no bound of its own (A6); without a value, or with zeros alone, there is nothing to divide by.
    largest = float(np.nanmax(np.abs(values), initial=0.0)) or 1.0
    title = (
        f"M_dynamic at stride {stride}: {second.name} (rows), {first.name} (columns)\n"
        f"mean over pairs of images that hold both categories, divided by its largest value, {largest:.3g}\n"
        "grey: no such pair of images"
    )
    return matrix_picture(values / largest, second.classes, first.classes, title)


def cosine_picture(domain: LabelDomain, relations: CategoryRelations, last: bool) -> np.ndarray:
    """Cosines of the learnt categories X_0 of a label domain; ``last``: of X_3 of its images.

    Returns:
        (h, w, 3) uint8.
    """
    title = f"Cosines of the learnt categories X_0 of {domain.name}"
    if last:
        count = relations.images[domain.name]
        title = f"Cosines of the categories X_3 of {domain.name}\nmean over {count} images, absent categories included"
    values = (relations.x3 if last else relations.x0)[domain.name]
    return matrix_picture(values, domain.classes, domain.classes, title)
