"""The network and the photo that `bench_inference.py` measures, and the forms in which the network can run."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "datasets"))
from people_generator import DOMAINS, draw_sample, to_label

from sst_d2 import SST, SSTError, SSTPredictor, export
from sst_d2.config import inference_config
from sst_d2.engine import SSTTrainer
from sst_d2.inference.bundle import write_bundle
from sst_d2.modeling.ops import backends, nvrtc

EXPORT = Path(__file__).resolve().parent.parent / "tools/export.py"
NETWORK, PHOTO = "network", "photo.jpg"
ALL = "all"
# New heads give nearly the same number for every class, which tools/export.py, which compares classes, cannot bear.
_HEAD_SCALE = 100
Run = Callable[[], Any]


@dataclass(frozen=True)
class Subject:
    """What is measured, and how.

    Attributes:
        predictor: with random weights.
        folder: holds its bundle, `NETWORK`, and `PHOTO`.
        photo: (H, W, 3) uint8, RGB.
        logits: by label domain (K, H/4, W/4), as of a trained network.
        rounds: how often each candidate runs.
        device: "cpu" or "cuda".
    """

    predictor: SSTPredictor
    folder: Path
    photo: np.ndarray
    logits: Mapping[str, torch.Tensor]
    rounds: int
    device: str

    @property
    def model(self) -> SST:
        """The predictor's."""
        return self.predictor.model

    @property
    def image(self) -> torch.Tensor:
        """(3, H, W) uint8, as the model takes it."""
        return torch.from_numpy(self.photo.transpose(2, 0, 1).copy())

    @property
    def by_classes(self) -> list[str]:
        """Names of the label domains, the one with the fewest classes first."""
        return sorted(self.model.domains, key=lambda name: self.model.domains[name].num_classes)


def make_subject(cfg: CfgNode, folder: Path, size: int, rounds: int) -> Subject:
    """Write the network and the photo, and open them.

    Args:
        cfg: of the network, with its device.
        folder: an empty one.
        size: side of the square photo in pixels.
        rounds: how often each candidate will run.

    Raises:
        SSTConfigError: the configuration cannot be built.
    """
    cfg, device = inference_config(cfg), cfg.MODEL.DEVICE
    torch.manual_seed(0)
    model = SSTTrainer.build_model(cfg)
    with torch.no_grad():
        for head in model.heads.values():
            head.weight *= _HEAD_SCALE
    write_bundle(folder / NETWORK, model.state_dict(), cfg, list(model.domains.values()), "")
    sample = draw_sample("cihp", (size, size), np.random.default_rng(0))
    Image.fromarray(sample.image).save(folder / PHOTO, quality=90)
    predictor = SSTPredictor(folder / NETWORK, device=device)
    logits = {}
    for name, domain in predictor.domains.items():
        labels = to_label(sample.atoms, name if name in DOMAINS else "cihp") % domain.num_classes
        logits[name] = blurred(torch.from_numpy(labels), domain.num_classes).to(device)
    return Subject(predictor, folder, sample.image, logits, rounds, device)


def blurred(labels: torch.Tensor, classes: int) -> torch.Tensor:
    """(H, W) ids to logits (K, H/4, W/4) that rise and fall within a few coarse pixels, as a trained network's do."""
    shares = F.avg_pool2d(F.one_hot(labels.long(), classes).permute(2, 0, 1).float(), 4)
    return 10 * F.avg_pool2d(shares, 5, stride=1, padding=2, count_include_pad=False)


def normalised(subject: Subject) -> torch.Tensor:
    """(1, 3, H, W), from the photo's array."""
    model = subject.model
    return ((subject.image.to(model.device) - model.pixel_mean) / model.pixel_std)[None]


def trunk(model: SST, image: torch.Tensor) -> torch.Tensor:
    """The features that the heads take."""
    return model.decoder(model.backbone(image))[4]


def classified(model: SST, features: torch.Tensor, domains: Sequence[str]) -> list[torch.Tensor]:
    """The logits of some heads."""
    return [model.heads(features, domain) for domain in domains]


def from_image(model: SST, image: torch.Tensor, domains: Sequence[str]) -> list[torch.Tensor]:
    """Trunk and heads."""
    return classified(model, trunk(model, image), domains)


@contextlib.contextmanager
def trained_logits(subject: Subject) -> Iterator[None]:
    """Within, heads compute, and then give the subject's logits."""
    with contextlib.ExitStack() as stack:
        for name, values in subject.logits.items():
            given = values[None]
            handle = subject.model.heads[name].register_forward_hook(lambda *_, given=given: given)
            stack.callback(handle.remove)
        yield


def back_ends(device: str) -> list[str]:
    """The operator's back ends that are here, the first choice first."""
    names = [] if backends.load_extension(device) else ["ext"]
    if device == "cuda" and not nvrtc.why_not():
        names.append("nvrtc")
    return [*names, "torch"]


def computed_by(back_end: str, run: Run) -> Run:
    """The same, with the operator by a back end."""

    def run_so() -> Any:
        chosen = backends.for_call
        backends.for_call = lambda *_: back_end
        try:
            return run()
        finally:
            backends.for_call = chosen

    return run_so


def why_no_onnx(device: str) -> str:
    """Why onnxruntime is left out; "": it is not."""
    if device != "cpu":
        return "onnxruntime runs on the CPU here"
    try:
        export.check_packages()
    except SSTError as reason:
        return str(reason)
    return ""


def exported(subject: Subject, domain: str) -> Path:
    """The network as an ONNX file, with the head of a label domain or, `ALL`, with all; written once."""
    path = subject.folder / f"{domain}.onnx"
    if not path.exists():
        command = [sys.executable, str(EXPORT), str(subject.folder / NETWORK), "--format", "onnx", "--domain", domain]
        done = subprocess.run([*command, "--output", str(path)], capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"tools/export.py ends with exit status {done.returncode}:\n{done.stderr}")
    return path
