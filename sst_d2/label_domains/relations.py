"""Relations between classes, as matrices: which classes of one domain touch each other on the body (Eq. 6)."""

from __future__ import annotations

import logging

import numpy as np

from sst_d2.label_domains.domain import LabelDomain


def intra_adjacency(domain: LabelDomain) -> np.ndarray:
    """M_intra of Eq. (6): the binary, symmetric matrix A ∪ Aᵀ ∪ I.

    The diagonal belongs to it: without it no class would receive its own pooled feature.

    Returns:
        (K, K) float32 of zeros and ones. All ones, with a line in the log, where the domain gives no adjacency.
    """
    if domain.adjacency is None:
        logging.getLogger(__name__).info(
            "label domain '%s' (%s) gives no adjacency: every class is taken to touch every class",
            domain.name,
            domain.source,
        )
        return np.ones((domain.num_classes, domain.num_classes), dtype=np.float32)
    matrix = np.eye(domain.num_classes, dtype=np.float32)
    for first, second in domain.adjacency:
        i, j = domain.index(first), domain.index(second)
        matrix[i, j] = matrix[j, i] = 1.0
    return matrix
