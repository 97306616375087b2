#!/usr/bin/env python
"""Parameters, multiply-adds and CPU time of the network's parts, for one image.

    python benchmarks/bench_model.py [--config single/cihp_R50.yaml] [--size 512] [--time]

Multiply-adds (MACs) are fvcore's count, with the attention operator counted by hand: fvcore knows nothing of it.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from typing import Any

import torch
from fvcore.nn import FlopCountAnalysis
from tabulate import tabulate
from torch import nn

from sst_d2.config import get_config_file, load_config
from sst_d2.engine import SSTTrainer

PARTS = {
    "backbone": ("model.backbone",),
    "encoder (deformable attention)": ("model.decoder.pixel_decoder",),
    "decoder, stride 16": ("model.decoder.stages.16",),
    "decoder, stride 8": ("model.decoder.stages.8",),
    "decoder, stride 4": ("model.decoder.stages.4", "model.decoder.res2_proj"),
    "heads": ("model.heads",),
}


class Network(nn.Module):
    """The model from a normalised image to the logits of its heads, without up-sampling them: what is counted.

    Args:
        model: an `SST`.
        domains: names of the heads that answer.
    """

    def __init__(self, model: nn.Module, domains: Sequence[str]) -> None:
        super().__init__()
        self.model, self.domains = model, domains

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        """(1, 3, H, W) to one (1, K, H/4, W/4) per domain."""
        features = self.model.decoder(self.model.backbone(image))[4]
        return [self.model.heads(features, domain) for domain in self.domains]


def sampling_macs(inputs: list[Any], outputs: list[Any]) -> int:
    """MACs of one level of the attention operator: four corners and one weight for every sampled channel."""
    return 5 * math.prod(outputs[0].type().sizes())


def build(config: str) -> nn.Module:
    """The network of one of the project's configurations, with random weights, on the CPU."""
    return SSTTrainer.build_model(load_config(get_config_file(config), ["MODEL.DEVICE", "cpu"])).eval()


def count(model: nn.Module, size: int, domains: Sequence[str]) -> dict[str, dict[str, float]]:
    """MACs (in 10⁹) and parameters (in 10⁶) of every part, and of all together.

    Args:
        model: an `SST` on the CPU.
        size: side of the square image, in pixels.
        domains: names of the heads that answer.
    """
    analysis = FlopCountAnalysis(Network(model, domains), torch.zeros(1, 3, size, size))
    analysis.set_op_handle("aten::grid_sampler", sampling_macs)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    macs = analysis.by_module()
    parameters = {name: sum(p.numel() for p in part.parameters()) for name, part in Network(model, []).named_modules()}
    table = {
        part: {"gmacs": sum(macs[n] for n in names) / 1e9, "parameters_m": sum(parameters[n] for n in names) / 1e6}
        for part, names in PARTS.items()
    }
    table["all"] = {"gmacs": macs[""] / 1e9, "parameters_m": parameters[""] / 1e6}
    return table


def seconds(model: nn.Module, size: int, domains: Sequence[str], repeats: int) -> float:
    """The shortest of several forward passes, in seconds."""
    network, image, best = Network(model, domains), torch.rand(1, 3, size, size), math.inf
    with torch.no_grad():
        for _ in range(repeats):
            start = time.perf_counter()
            network(image)
            best = min(best, time.perf_counter() - start)
    return best


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="single/cihp_R50.yaml", help="a file below configs/")
    parser.add_argument("--size", type=int, default=512, help="side of the image in pixels, a multiple of 32")
    parser.add_argument("--time", action="store_true", help="measure the forward pass on the CPU as well")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    if arguments.size < 32 or arguments.size % 32:
        parser.error(f"--size {arguments.size}: a positive multiple of 32 is expected")
    model = build(arguments.config)
    domains = list(model.domains)
    result: dict[str, Any] = count(model, arguments.size, domains)
    if arguments.time:
        result["all"]["seconds"] = seconds(model, arguments.size, domains, repeats=5)
    if arguments.json:
        print(json.dumps(result, indent=1))
        return
    print(f"{arguments.config}, heads: {', '.join(domains)}, {arguments.size} x {arguments.size}")
    rows = [[part, values["gmacs"], values["parameters_m"]] for part, values in result.items()]
    print(tabulate(rows, headers=["part", "GMACs", "parameters (M)"], floatfmt=".2f"))
    if arguments.time:
        print(f"forward pass on {torch.get_num_threads()} CPU threads: {result['all']['seconds']:.2f} s")


if __name__ == "__main__":
    main()
