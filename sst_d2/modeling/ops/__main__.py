"""`python -m sst_d2.modeling.ops`: which code computes multi-scale deformable attention here, why, and what is faster.

Needs Detectron2, as all of sst_d2.
"""

from __future__ import annotations

import argparse
import sys

import torch

from sst_d2.errors import SSTError
from sst_d2.modeling.ops import backends, cubin_cache


def main() -> None:
    """Write it to the standard output; with exit status 1 where ``SST_D2_MSDA`` has a value that it may not have."""
    parser = argparse.ArgumentParser(prog="python -m sst_d2.modeling.ops", description=__doc__.partition("\n")[0])
    parser.parse_args()
    try:
        asked = backends.wanted()
    except SSTError as reason:
        parser.exit(1, f"error: {reason}\n")
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    lines = [
        f"PyTorch {torch.__version__}, CUDA {torch.version.cuda or 'none'}, GPUs: {', '.join(gpus) or 'none'}; "
        f"{backends.VARIABLE}={asked}"
    ]
    for device in ("cpu", "cuda"):
        lines += _describe(device)
    sys.stdout.write("\n".join(lines) + "\n")


def _describe(device: str) -> list[str]:
    try:
        chosen = backends.choice(device)
    except SSTError as reason:
        return [f"{device}: none ({reason})"]
    lines = [f"{device}: {chosen.name} ({chosen.reason})"]
    if chosen.name == "nvrtc":
        lines.append(f"  compiled kernels are kept in {cubin_cache.folder()}")
    if chosen.remedy:
        lines.append(f"  faster: {chosen.remedy}")
    return lines


if __name__ == "__main__":
    main()
