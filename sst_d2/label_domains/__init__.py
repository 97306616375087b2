"""Label domains: what a data set's label ids mean. Facts about a label system stand here, once, as data.

One YAML file per domain lies beside this file; a user's own domain is one more YAML file, anywhere, and no Python.
"""

from sst_d2.label_domains.domain import LabelDomain
from sst_d2.label_domains.registry import (
    get_label_domain,
    known_label_domains,
    load_label_domain,
    register_label_domain,
)
from sst_d2.label_domains.relations import control_similarity, cross_similarity, intra_adjacency, similarity_source

__all__ = [
    "LabelDomain",
    "control_similarity",
    "cross_similarity",
    "get_label_domain",
    "intra_adjacency",
    "known_label_domains",
    "load_label_domain",
    "register_label_domain",
    "similarity_source",
]
