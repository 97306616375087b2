"""`ExportedNetwork`: the model as one function of one photo, in a form that can be traced for every size."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import nn

from sst_d2.export.windows import traceable_windows

INPUT = "image"
# The photo that a trace is taken of: no multiple of 32, several windows, sides that differ.
TRACED_SIZE = (140, 200)


class ExportedNetwork(nn.Module):
    """What the model makes of a photo, with normalisation and padding inside.

    Args:
        model: an `SST` in evaluation mode; it is not changed.
        domains: names of the label domains whose heads are wanted.
        labels: give label maps instead of logits.
        channel_order: of the model's input, "RGB" or "BGR" (``INPUT.FORMAT``); the photo is RGB.
    """

    def __init__(self, model: nn.Module, domains: Sequence[str], labels: bool, channel_order: str) -> None:
        super().__init__()
        self.model = model
        self.domains, self.labels, self.channel_order = tuple(domains), labels, channel_order
        self.eval()  # PyTorch's exporter gives the mode back that it finds here, to the model too

    @property
    def output_names(self) -> list[str]:
        """``logits_<domain>`` or ``labels_<domain>``, in the order of the outputs."""
        return [f"{'labels' if self.labels else 'logits'}_{domain}" for domain in self.domains]

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Parse.

        Args:
            image: (1, 3, H, W) uint8 or float32, RGB in 0..255.

        Returns:
            By domain logits (1, K, H, W) float32, or label maps (1, H, W) uint8: of equal logits the lowest id.
        """
        model = self.model
        height, width = image.shape[-2], image.shape[-1]
        pixels = image.to(torch.float32)
        pixels = pixels.flip(1) if self.channel_order == "BGR" else pixels
        pixels = (pixels - model.pixel_mean) / model.pixel_std
        stride = model.size_divisibility
        pixels = F.pad(pixels, (0, (stride - width % stride) % stride, 0, (stride - height % stride) % stride))
        features = model.decoder(model.backbone(pixels))[4]
        return tuple(self._output(features, domain, pixels)[..., :height, :width] for domain in self.domains)

    def _output(self, features: torch.Tensor, domain: str, padded: torch.Tensor) -> torch.Tensor:
        size = (padded.shape[-2], padded.shape[-1])
        logits = F.interpolate(self.model.heads(features, domain), size=size, mode="bilinear", align_corners=False)
        return logits.argmax(1).to(torch.uint8) if self.labels else logits


@contextmanager
def tracing(network: ExportedNetwork) -> Iterator[None]:
    """Within, a trace of the network holds for every size, and the tracer's guesses that it may not are not printed."""
    with warnings.catch_warnings(), torch.no_grad(), traceable_windows(network):
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"torch\.")
        warnings.filterwarnings("ignore", message=r"Constant folding")
        yield
