#!/usr/bin/env python
"""Write a trained network for other programs, and compare it with the model before it counts as written.

    python tools/export.py output/universal/full_R50/model_inference.pth --format onnx --output parsing.onnx
    python tools/export.py model_inference.pth --format torchscript --domain atr --labels --size 512 512 --output atr.pt
    python tools/export.py model_inference.pth --format safetensors --output parsing

onnx         needs the extra `export`; runs in onnxruntime and others
torchscript  runs in PyTorch alone (torch.jit.load), without sst_d2 and Detectron2
safetensors  a folder with weights, configuration, label domains and model card, which SSTPredictor opens

ONNX and TorchScript files take one upright photo "image" (1, 3, H, W), red, green, blue in 0..255, uint8 or float32
(ONNX: as --input-type says), of any height and width, or of that of --size alone. Normalisation and padding are inside.
They give logits_<domain> (1, K, H, W), or labels_<domain> (1, H, W), in the photo's size.

Compared are photos (--check), else synthetic people, in several sizes: where fewer than 99.9 % of the pixels get the
model's class, or logits differ by more than rounding, nothing is kept and the exit status is 1.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

# Through sst_d2 alone: it says what is missing where Detectron2 cannot be imported.
from sst_d2 import SST, SSTError, __version__, export
from sst_d2.arguments import positive_number
from sst_d2.config import CN
from sst_d2.data.image_io import read_image
from sst_d2.errors import SSTCheckpointError, SSTConfigError
from sst_d2.files import partial_path
from sst_d2.inference.bundle import ORIGIN, WEIGHTS, read_origin, write_bundle
from sst_d2.inference.network import open_network
from sst_d2.label_domains import LabelDomain
from sst_d2.launch import report_user_error

_ALL = "all"
_GENERATOR = Path(__file__).resolve().parents[1] / "datasets"
_USE = {
    "onnx": 'import onnxruntime\nsession = onnxruntime.InferenceSession("{name}")\n'
    'outputs = session.run(["{output}"], {{"image": image}})  # {dtype} (1, 3, H, W), RGB, 0 to 255',
    "torchscript": 'import torch\nnetwork = torch.jit.load("{name}")\n'
    'outputs = network(image)["{output}"]  # uint8 or float32 (1, 3, H, W), RGB, 0 to 255',
    "safetensors": 'from sst_d2 import SSTPredictor\npredictor = SSTPredictor("{name}")\n'
    'labels = predictor("photo.jpg", domain="{domain}").labels',
}


def parse_args() -> argparse.Namespace:
    """The arguments, and a look at whether they go together."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add(
        "network",
        metavar="WEIGHTS_OR_CONFIG",
        help="a checkpoint (.pth), a bundle, or a configuration with its weights",
    )
    add("--format", required=True, choices=sorted(_USE), help="what to write")
    add("--output", required=True, type=Path, metavar="FILE_OR_FOLDER", help="a file; of safetensors a folder")
    add("--domain", default=_ALL, metavar="NAME|all", help="the label domain whose head to write (default: all)")
    sides = parser.add_mutually_exclusive_group()
    sides.add_argument("--size", type=positive_number, nargs=2, metavar=("H", "W"), help="take this size alone")
    sides.add_argument("--dynamic", action="store_true", help="take photos of every size (the default)")
    add("--labels", action="store_true", help="give class ids (uint8) instead of logits")
    add("--input-type", choices=sorted(export.TYPES), help="of ONNX's image (default: uint8)")
    first, last = export.OPSETS
    add(
        "--opset",
        type=int,
        choices=range(first, last + 1),
        metavar="N",
        help=f"of ONNX, {first} to {last} (default: {export.DEFAULT_OPSET})",
    )
    add("--check", nargs="+", metavar="IMAGE", help="photos to compare with (default: synthetic people)")
    add("--overwrite", action="store_true", help="replace what is there")
    add("--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs that change the configuration")
    arguments = parser.parse_args()
    for flag, formats in (
        *(("size", ("onnx", "torchscript")), ("dynamic", ("onnx", "torchscript")), ("labels", ("onnx", "torchscript"))),
        *(("opset", ("onnx",)), ("input_type", ("onnx",))),
    ):
        if getattr(arguments, flag) and arguments.format not in formats:
            parser.error(f"--{flag.replace('_', '-')} is for {' and '.join(formats)}, not for {arguments.format}")
    return arguments


def check_place(output: Path, is_folder: bool, overwrite: bool) -> None:
    """Find what is in the way before the work.

    Raises:
        SSTConfigError: ``output`` exists, or cannot be written.
    """
    if output.is_dir() and not is_folder:
        raise SSTConfigError(f"{output}: is a folder; name a file")
    if os.path.lexists(output) and not overwrite:
        raise SSTConfigError(f"{output}: exists; --overwrite replaces it")
    if not output.parent.is_dir():
        raise SSTConfigError(f"{output}: there is no folder {output.parent}; make it first")
    if not os.access(output.parent, os.W_OK):
        raise SSTConfigError(f"{output}: the folder {output.parent} may not be written to; name another")


def photos_to_check(paths: Sequence[str] | None) -> list[np.ndarray]:
    """The photos to compare with, (H, W, 3) uint8, RGB."""
    if paths:
        return [read_image(path, "RGB") for path in paths]
    generator = np.random.default_rng(8)
    if not (_GENERATOR / "people_generator").is_dir():  # the package alone is installed
        waves = [generator.integers(0, 256, (6, 5, 3), dtype=np.uint8) for _ in range(3)]
        return list(export.in_sizes(waves, (320, 256)))
    sys.path.insert(0, str(_GENERATOR))
    from people_generator import STYLES, draw_sample

    return [draw_sample(style, (320, 256), generator).image for style in STYLES]


def chosen_domains(model: SST, name: str) -> list[LabelDomain]:
    """The label domain of this name, or of "all" every one.

    Raises:
        SSTConfigError: the network has none of this name.
    """
    if name != _ALL and name not in model.domains:
        raise SSTConfigError(f"--domain: '{name}'; the network has {', '.join(model.domains)}, and '{_ALL}' takes all")
    return list(model.domains.values()) if name == _ALL else [model.domains[name]]


def weights_of(cfg: CN, source: str) -> Path:
    """The checkpoint, or the folder of a bundle, that the weights come from."""
    return Path(cfg.MODEL.WEIGHTS if source.endswith((".yaml", ".yml")) else source)


def origin_of(weights: Path) -> tuple[str, list[export.Score]]:
    """The name of the checkpoint that the weights come from, and its scores; a bundle tells those that it was told."""
    origin = read_origin(weights) if weights.is_dir() else {}
    file = weights / WEIGHTS if weights.is_dir() else weights
    digest = f", SHA-256 {hashlib.sha256(file.read_bytes()).hexdigest()}" if file.is_file() else ""
    if origin:
        return str(origin.get("checkpoint")), export.scores_of(origin.get("scores"), str(weights / ORIGIN))
    return f"{file.name}{digest}", [] if weights.is_dir() else export.read_scores(weights.parent)


def facts_of(cfg: CN, model: SST, checkpoint: str) -> dict[str, str]:
    """What the card tells of the network, its training and how it sees photos in evaluation."""
    backbone = cfg.MODEL.BACKBONE.NAME.removeprefix("build_").removesuffix("_backbone")
    depth = f", {cfg.MODEL.RESNETS.DEPTH} layers" if backbone == "resnet" else ""
    solver = cfg.SOLVER
    return {
        "exported from": checkpoint,
        "backbone": f"{backbone}{depth}",
        "decoder": f"{cfg.MODEL.SST.DECODER.NAME}, {model.decoder.out_channels} channels",
        "parameters": f"{sum(parameter.numel() for parameter in model.parameters()) / 1e6:.2f} M, with all heads",
        "trained on": ", ".join(cfg.DATASETS.TRAIN) or "not known",
        "training": f"{solver.MAX_ITER} iterations of {solver.IMS_PER_BATCH} images, learning rate {solver.BASE_LR}, "
        f"crops of {' x '.join(map(str, cfg.INPUT.SST.CROP_SIZE))}",
        "in evaluation it sees": _seen(cfg),
    }


def _seen(cfg: CN) -> str:
    shorter, longer = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
    if not shorter:
        return "photos in their own size"
    return (
        f"photos scaled to a shorter side of {shorter} pixels, the longer one at most {longer}; ONNX and TorchScript "
        "files do not scale, do so before"
    )


def write_file(
    path: Path, network: export.ExportedNetwork, cfg: CN, card: str, arguments: argparse.Namespace
) -> export.agreement.Run:
    """Write an ONNX or TorchScript file, and open it again."""
    onnx, input_type = arguments.format == "onnx", arguments.input_type or "uint8"
    size = tuple(arguments.size) if arguments.size else None
    metadata = export.metadata(
        [network.model.domains[name] for name in network.domains],
        version=__version__,
        outputs=network.output_names,
        size=size,
        input_type=input_type if onnx else "uint8 or float32",
        normalisation={
            "mean": list(cfg.MODEL.PIXEL_MEAN),
            "std": list(cfg.MODEL.PIXEL_STD),
            "channel_order": cfg.INPUT.FORMAT,
        },
        card=card,
    )
    if not onnx:
        export.write_torchscript(path, network, size, metadata)
        return export.open_torchscript(path)
    opset = arguments.opset or export.DEFAULT_OPSET
    export.write_onnx(path, network, size, metadata, opset=opset, input_type=input_type)
    return export.open_onnx(path)


def compare(
    model: SST, cfg: CN, run: export.agreement.Run, domains: Sequence[str], photos: Sequence[np.ndarray], size: Any
) -> None:
    """Print how what was written agrees with the model.

    Raises:
        SSTCheckpointError: it does not.
    """
    print("compared with the model:")
    most = 0
    for photo in export.in_sizes(photos, size):
        found = export.compare(model, cfg.INPUT.FORMAT, run, domains, photo)
        largest = "" if found.largest is None else f", largest difference of logits {found.largest:.1e}"
        row = f"{found.size[0]} x {found.size[1]}: same class in {100 * found.equal:.3f} % of the pixels{largest}"
        print(f"  {row}")
        if not found.holds:
            raise SSTCheckpointError(
                f"what was written is not what the model says at {row}; {100 * export.NEEDED} % are needed, and a "
                f"difference of at most {found.allowed:.1e}; nothing is kept"
                + ("" if size else ". Where a part of the network has its sizes fixed, --size H W may help")
            )
        most = max(most, found.classes)
    if most < 2:
        print("  note: the network sees one class alone in all of them; --check PHOTO … shows it others")


def export_file(
    model: SST, cfg: CN, names: Sequence[str], card: str, photos: list[np.ndarray], arguments: argparse.Namespace
) -> None:
    """Write an ONNX or TorchScript file beside its place, compare it, then give it its name."""
    beside = partial_path(arguments.output, str(os.getpid()))
    size = tuple(arguments.size) if arguments.size else None
    try:
        # Label maps say little where one class wins everywhere: the same network is compared by its logits before.
        for labels in (False, True) if arguments.labels else (False,):
            network = export.ExportedNetwork(model, names, labels, cfg.INPUT.FORMAT)
            compare(model, cfg, write_file(beside, network, cfg, card, arguments), names, photos, size)
        os.replace(beside, arguments.output)
    finally:
        beside.unlink(missing_ok=True)


def export_bundle(
    model: SST,
    cfg: CN,
    domains: Sequence[LabelDomain],
    card: str,
    origin: Mapping[str, Any],
    photos: list[np.ndarray],
    arguments: argparse.Namespace,
) -> None:
    """Write a bundle elsewhere, open it, compare it, then write it to its place."""
    names = [domain.name for domain in domains]
    others = tuple(f"heads.{name}." for name in model.domains if name not in names)
    state = {key: value for key, value in model.state_dict().items() if not key.startswith(others)}
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.SST.DEFAULT_DOMAIN = model.default_domain if model.default_domain in names else names[0]
    with tempfile.TemporaryDirectory(dir=arguments.output.parent, prefix=".sst_d2_") as folder:
        write_bundle(Path(folder) / "bundle", state, cfg, domains, card, origin=origin)
        _, opened = open_network(Path(folder) / "bundle", device="cpu")
        compare(model, cfg, partial(_run_model, opened, cfg.INPUT.FORMAT), names, photos, None)
    write_bundle(arguments.output, state, cfg, domains, card, arguments.overwrite, origin)


def _run_model(model: SST, channel_order: str, image: torch.Tensor) -> Mapping[str, torch.Tensor]:
    """The model as if it were an exported file."""
    image = image if channel_order == "RGB" else image.flip(1)
    outputs = model([{"image": image[0], "label_domain": _ALL}])[0]["sem_seg_by_domain"]
    return {f"logits_{name}": logits[None] for name, logits in outputs.items()}


def main() -> None:
    """Open, write, compare, keep."""
    arguments = parse_args()
    source, output = arguments.network, arguments.output
    check_place(output, arguments.format == "safetensors", arguments.overwrite)
    if arguments.format == "onnx":
        export.check_packages()
    photos = photos_to_check(arguments.check)
    cfg, model = open_network(source, device="cpu", opts=arguments.opts)
    domains = chosen_domains(model, arguments.domain)
    kind = "labels" if arguments.labels else "logits"
    code = _USE[arguments.format].format(
        name=output.name,
        output=f"{kind}_{domains[0].name}",
        domain=domains[0].name,
        dtype=arguments.input_type or "uint8",
    )
    checkpoint, scores = origin_of(weights_of(cfg, source))
    card = export.model_card(
        domains,
        version=__version__,
        facts=facts_of(cfg, model, checkpoint),
        scores=scores,
        use=f"```python\n{code}\n```",
    )
    try:
        if arguments.format == "safetensors":
            origin = {"checkpoint": checkpoint, "scores": [asdict(score) for score in scores]}
            export_bundle(model, cfg, domains, card, origin, photos, arguments)
        else:
            export_file(model, cfg, [domain.name for domain in domains], card, photos, arguments)
    except OSError as reason:
        raise SSTConfigError(
            f"{output}: cannot be written ({reason}). Make room there, or name another place"
        ) from reason
    size = sum(path.stat().st_size for path in ([output] if output.is_file() else output.iterdir()))
    print(f"{output}: {size / 2**20:.1f} MiB, label domains: {', '.join(domain.name for domain in domains)}")


if __name__ == "__main__":
    try:
        main()
    except SSTError as error:
        report_user_error(error)
        sys.exit(1)
