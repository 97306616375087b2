"""Networks for other programs: TorchScript and ONNX files, compared with the model before they count as written.

`tools/export.py` is the command. Importing this package needs none of the extra's packages.
"""

from sst_d2.export.agreement import NEEDED, Agreement, compare, in_sizes
from sst_d2.export.card import Score, metadata, model_card, read_scores, scores_of
from sst_d2.export.network import ExportedNetwork
from sst_d2.export.onnx_file import DEFAULT_OPSET, OPSETS, TYPES, check_packages, open_onnx, write_onnx
from sst_d2.export.torchscript import open_torchscript, read_metadata, write_torchscript

__all__ = [
    "DEFAULT_OPSET",
    "NEEDED",
    "OPSETS",
    "TYPES",
    "Agreement",
    "ExportedNetwork",
    "Score",
    "check_packages",
    "compare",
    "in_sizes",
    "metadata",
    "model_card",
    "open_onnx",
    "open_torchscript",
    "read_metadata",
    "read_scores",
    "scores_of",
    "write_onnx",
    "write_torchscript",
]
