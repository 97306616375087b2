#!/usr/bin/env python
"""Parameters, multiply-adds and activations of the network's parts, for one image.

    python tools/analyze_model.py --config-file configs/single/cihp_R50.yaml [--size 512 512] [--json] [KEY VALUE …]

Nothing is loaded: MODEL.WEIGHTS and the data sets are not looked at, and the CPU is enough. Counted is the way of one
image in evaluation, from its pixels to the logits of all heads at a quarter of its size.

MACs are multiply-adds by fvcore's count, with the sampling of deformable attention, which fvcore underrates, counted
by hand. Activations are the numbers that convolutions and matrix products put out, by fvcore's count.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from typing import Any

import torch
from fvcore.nn import ActivationCountAnalysis, FlopCountAnalysis
from tabulate import tabulate
from torch import nn

# Through sst_d2 alone: it says what is missing where Detectron2 cannot be imported.
from sst_d2 import SST, SSTError
from sst_d2.config import inference_config, load_config
from sst_d2.engine import SSTTrainer
from sst_d2.errors import SSTConfigError
from sst_d2.launch import report_user_error

_PARTS = ("backbone", "encoder", "decoder", "heads")
_STRIDE = 32  # the model pads its images to whole pixels of the coarsest map


class Network(nn.Module):
    """The model from a normalised image to the logits of its heads, without up-sampling them: what is counted.

    Args:
        model: an `SST`.
    """

    def __init__(self, model: SST) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        """(1, 3, H, W) to one (1, K, H/4, W/4) per label domain."""
        features = self.model.decoder(self.model.backbone(image))[4]
        return [self.model.heads(features, domain) for domain in self.model.domains]


def build(config_file: str, opts: Sequence[str] = ()) -> SST:
    """The network of a configuration, with random weights, on the CPU, in evaluation mode.

    Raises:
        SSTConfigError: the configuration is not usable, or describes another kind of model.
    """
    cfg = inference_config(load_config(config_file, [*opts, "MODEL.DEVICE", "cpu"]))
    if cfg.MODEL.META_ARCHITECTURE != "SST":
        raise SSTConfigError(
            f"MODEL.META_ARCHITECTURE: '{cfg.MODEL.META_ARCHITECTURE}'; 'SST' alone can be taken apart here"
        )
    return SSTTrainer.build_model(cfg).eval()


def padded(size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of an image after the model's padding."""
    return tuple(math.ceil(side / _STRIDE) * _STRIDE for side in size)


def sampling_macs(_inputs: list[Any], outputs: list[Any]) -> int:
    """MACs of one level of deformable attention: four corners and one weight for every sampled channel."""
    return 5 * math.prod(outputs[0].type().sizes())


def count(model: SST, size: tuple[int, int]) -> dict[str, dict[str, int]]:
    """Count the parts of a model on the CPU.

    Args:
        model: in evaluation mode.
        size: (height, width) of the image in pixels; it is padded as the model does.

    Returns:
        By part, and for "all": ``parameters``, ``macs`` and ``activations``. Parts are those of `_PARTS` (no "encoder"
        where the decoder has none that is its own module), and others with parameters, which serve training only.
    """
    network, image = Network(model), torch.zeros(1, 3, *padded(size))
    macs, activations = FlopCountAnalysis(network, image), ActivationCountAnalysis(network, image)
    macs.set_op_handle("aten::grid_sampler", sampling_macs)
    for analysis in (macs, activations):
        # Elementwise operations do not count, and modules for training only are not called.
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)

    def _counts(name: str) -> dict[str, int]:
        parameters = sum(parameter.numel() for parameter in network.get_submodule(name).parameters())
        return {"parameters": parameters, "macs": int(macs.total(name)), "activations": int(activations.total(name))}

    table = {part: _counts(f"model.{part}") for part, _ in model.named_children()}
    if hasattr(model.decoder, "pixel_decoder"):
        encoder = table["encoder"] = _counts("model.decoder.pixel_decoder")
        table["decoder"] = {key: value - encoder[key] for key, value in table["decoder"].items()}
    order = [part for part in _PARTS if part in table] + [part for part in table if part not in _PARTS]
    return {**{part: table[part] for part in order if table[part]["parameters"]}, "all": _counts("")}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, metavar="FILE", help="a configuration (.yaml)")
    parser.add_argument(
        "--size", type=int, nargs=2, default=(512, 512), metavar=("H", "W"), help="of the image, in pixels"
    )
    parser.add_argument("--json", action="store_true", help="print JSON, with whole numbers, instead of a table")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs that change the configuration")
    arguments = parser.parse_args()
    if min(arguments.size) < 1:
        parser.error(f"--size {arguments.size[0]} {arguments.size[1]}: height and width in pixels, from 1 on")
    model, size = build(arguments.config_file, arguments.opts), tuple(arguments.size)
    table = count(model, size)
    if arguments.json:
        record = {"config_file": arguments.config_file, "size": size, "padded_size": padded(size)}
        print(json.dumps({**record, "heads": list(model.domains), "parts": table}, indent=1))
        return
    note = "" if padded(size) == size else ", padded to {} x {}".format(*padded(size))
    print(f"{arguments.config_file}: {size[0]} x {size[1]} pixels{note}; heads: {', '.join(model.domains)}")
    rows = [
        [part, values["parameters"] / 1e6, values["macs"] / 1e9, values["activations"] / 1e6]
        for part, values in table.items()
    ]
    print(tabulate(rows, headers=["part", "parameters (M)", "GMACs", "activations (M)"], floatfmt=".2f"))


if __name__ == "__main__":
    try:
        main()
    except SSTError as error:
        report_user_error(error)
        sys.exit(1)
