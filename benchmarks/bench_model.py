#!/usr/bin/env python
"""CPU time of the network's parts, for one image; `tools/analyze_model.py` counts what they compute.

    python benchmarks/bench_model.py [--config single/cihp_R50.yaml] [--size 512] [--repeats 5] [--json]

Measured is the way from a normalised image to the logits of all heads at a quarter of its size; of several passes the
shortest, with random weights.
"""

from __future__ import annotations

import argparse
import json
import math
import time

import torch
from tabulate import tabulate

from sst_d2 import SST
from sst_d2.config import get_config_file, inference_config, load_config
from sst_d2.engine import SSTTrainer


def build(config: str) -> SST:
    """The network of one of the project's configurations, as evaluation builds it, with random weights, on the CPU."""
    cfg = inference_config(load_config(get_config_file(config), ["MODEL.DEVICE", "cpu"]))
    return SSTTrainer.build_model(cfg).eval()


@torch.no_grad()
def seconds(model: SST, size: int, repeats: int) -> dict[str, float]:
    """Time of the backbone, of encoder and decoder together, of all heads, and of the whole pass.

    Args:
        model: on the CPU.
        size: side of the square image in pixels, a multiple of 32.
        repeats: passes, of which the shortest counts.
    """
    image, best = torch.rand(1, 3, size, size), {"all": math.inf}
    for _ in range(repeats):
        start = time.perf_counter()
        features = model.backbone(image)
        decoding = time.perf_counter()
        features = model.decoder(features)[4]
        classifying = time.perf_counter()
        for domain in model.domains:
            model.heads(features, domain)
        end = time.perf_counter()
        if end - start < best["all"]:
            parts = {"backbone": decoding - start, "encoder, decoder": classifying - decoding}
            best = {**parts, "heads": end - classifying, "all": end - start}
    return best


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="single/cihp_R50.yaml", help="a file below configs/")
    parser.add_argument("--size", type=int, default=512, help="side of the image in pixels, a multiple of 32")
    parser.add_argument("--repeats", type=int, default=5, help="passes, of which the shortest counts")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    if arguments.size < 32 or arguments.size % 32:
        parser.error(f"--size {arguments.size}: a positive multiple of 32 is expected")
    if arguments.repeats < 1:
        parser.error(f"--repeats {arguments.repeats}: at least one pass is expected")
    model = build(arguments.config)
    result = seconds(model, arguments.size, arguments.repeats)
    if arguments.json:
        print(json.dumps({"threads": torch.get_num_threads(), "seconds": result}, indent=1))
        return
    print(f"{arguments.config}, heads: {', '.join(model.domains)}, {arguments.size} x {arguments.size}")
    print(tabulate(result.items(), headers=["part", "seconds"], floatfmt=".3f"))
    print(f"on {torch.get_num_threads()} CPU threads")


if __name__ == "__main__":
    main()
