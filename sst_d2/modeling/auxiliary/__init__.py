"""TRAINING ONLY: MSA, MSE and MST of the paper; imported by `SST.from_config` alone, where the configuration asks."""

from sst_d2.modeling.auxiliary.branch import AuxiliaryBranch
from sst_d2.modeling.auxiliary.source import FrozenSource, load_source

__all__ = ["AuxiliaryBranch", "FrozenSource", "load_source"]
