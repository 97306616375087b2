"""`SSTPredictor`: from photos to label maps, in one label domain or in all of them at once."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode

from sst_d2.data.transforms import EvaluationResize
from sst_d2.errors import SSTConfigError, SSTDataError, SSTNumericError
from sst_d2.inference.network import open_network
from sst_d2.inference.photos import as_photo
from sst_d2.inference.prediction import Prediction
from sst_d2.inference.tta import SSTWithTTA

ALL_DOMAINS = "all"
# What the network sees of a phone's photo is many times what it was trained on; a predictor says so once.
_MANY_PIXELS = 4_000_000
# One photo's answer: of one label domain, or by domain name.
Answer = Prediction | dict[str, Prediction]


class SSTPredictor:
    """Predict photos with a trained network. It may be called from several threads at a time.

        predictor = SSTPredictor("output/universal/full_R50/model_inference.pth")
        prediction = predictor("photo.jpg", domain="atr")
        prediction.save("photo_atr.png")

    No state outside of it changes: not torch's modes, not its random numbers, not the registered label domains.

    Args:
        config: a checkpoint or the folder of a bundle (``tools/export.py --format safetensors``), which carry
            configuration and label domains; or path of a YAML file, or a configuration, to go with ``weights``.
        weights: path or URL of the configuration's checkpoint; None: its ``MODEL.WEIGHTS``.
        device: "cpu", "cuda" or "cuda:N"; None: what ``opts`` or a configuration name, where this machine has it;
            else a GPU where torch sees one, else the CPU.
        tta: test-time augmentation (``TEST.SST.SCALES``, ``TEST.AUG.FLIP``): a pass for each scale, plain and mirrored,
            and full logits in memory; None: as ``TEST.AUG.ENABLED`` says.
        opts: KEY VALUE pairs that go before the configuration, e.g. ``("INPUT.MIN_SIZE_TEST", 512)``.
        max_pixels: refuse larger photos; None: ``TEST.SST.MAX_PIXELS``.
        batch_size: most photos of a list that go through the network together. Only photos that are padded to the
            same size do, so the answers are those of one photo at a time, within rounding.

    Attributes:
        domains: the label domains by name, in the order of the heads.
        default_domain: name of the one that counts where none is asked for.
        device: where the network is.
        model: the network, in evaluation mode.

    Raises:
        SSTConfigError: the configuration or a value cannot be used.
        SSTCheckpointError: the weights cannot be read, or do not fit the configuration.
    """

    def __init__(
        self,
        config: str | os.PathLike | CfgNode,
        weights: str | os.PathLike | None = None,
        *,
        device: str | torch.device | None = None,
        tta: bool | None = None,
        opts: Sequence[Any] = (),
        max_pixels: int | None = None,
        batch_size: int = 1,
    ) -> None:
        for name, value in (("max_pixels", max_pixels), ("batch_size", batch_size)):
            if value is not None and not (isinstance(value, int) and value > 0):
                raise SSTConfigError(f"{name}: {value!r}; a whole number from 1 on is expected")
        cfg, self.model = open_network(config, weights, device, opts)
        self.domains = dict(self.model.domains)
        self.default_domain: str = self.model.default_domain
        self.device: torch.device = self.model.device
        self.batch_size = batch_size
        self.max_pixels = max_pixels or cfg.TEST.SST.MAX_PIXELS
        self._tta = SSTWithTTA(cfg, self.model) if (cfg.TEST.AUG.ENABLED if tta is None else tta) else None
        self._channel_order = cfg.INPUT.FORMAT
        self._resize = EvaluationResize(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
        self._warned = False

    def __call__(self, image: Any, domain: str | None = None, *, channel_order: str = "RGB") -> Answer | list[Answer]:
        """Predict one photo or a list of them.

        Args:
            image: a path; a PIL image of 8 bits per channel; an array, (H, W, 3) uint8 in ``channel_order``, or grey,
                (H, W) uint8; or a list of such, of any sizes. Files and PIL images are turned upright by their EXIF
                tag; of transparent ones the stored colours count.
            domain: name of a label domain; None: `default_domain`; "all": every one, from one pass.
            channel_order: of arrays, "RGB", or "BGR" as OpenCV reads; files and PIL images know their own.

        Returns:
            A `Prediction`, of "all" a dict of them by domain name; of a list a list, in its order.

        Raises:
            SSTDataError: an image cannot be read, is none of these, or is too large; the message names it.
            SSTConfigError: the network has no such label domain.
            SSTNumericError: the network answers with numbers that are none.
        """
        domain = self._known(domain)
        if not isinstance(image, (list, tuple)):
            photo = as_photo(image, channel_order, self.max_pixels)
            return self._predict([photo], domain)[0]
        answers: list[Any] = [None] * len(image)
        waiting: dict[tuple[int, int], list[tuple[int, np.ndarray]]] = {}
        for place, item in enumerate(image):
            photo = as_photo(item, channel_order, self.max_pixels, f"image {place} of the list")
            group = waiting.setdefault(self.padded_size(*photo.shape[:2]), [])
            group.append((place, photo))
            if len(group) == self.batch_size:
                self._answer(group, domain, answers)
                group.clear()
        for group in waiting.values():
            self._answer(group, domain, answers)
        return answers

    def _known(self, domain: str | None) -> str:
        name = self.default_domain if domain is None else domain
        if not isinstance(name, str) or (name not in self.domains and name != ALL_DOMAINS):
            raise SSTConfigError(
                f"domain: {name!r}; the network knows {', '.join(self.domains)}, and '{ALL_DOMAINS}' asks for all"
            )
        return name

    def _answer(self, group: Sequence[tuple[int, np.ndarray]], domain: str, answers: list[Any]) -> None:
        """Predict a group of (place, photo), and put what comes into its places."""
        if group:
            places, photos = zip(*group, strict=True)
            for place, answer in zip(places, self._predict(photos, domain), strict=True):
                answers[place] = answer

    def _predict(self, photos: Sequence[np.ndarray], domain: str) -> list[Answer]:
        samples = [self._sample(photo, domain) for photo in photos]
        try:
            with torch.inference_mode():
                if self._tta is None:
                    outputs = self.model([{**sample, "output": "labels"} for sample in samples])
                else:
                    outputs = [_as_labels(output) for output in self._tta(samples)]
                return [self._predictions(*pair, domain) for pair in zip(photos, outputs, strict=True)]
        except RuntimeError as reason:
            if not isinstance(reason, torch.cuda.OutOfMemoryError) and "DefaultCPUAllocator" not in str(reason):
                raise
            sizes = ", ".join(f"{photo.shape[0]} x {photo.shape[1]}" for photo in photos)
            raise SSTDataError(
                f"photos of {sizes} pixels (height x width): the memory of {self.device} does not suffice; let the "
                "network see them smaller (INPUT.MIN_SIZE_TEST 512), or lower batch_size"
            ) from reason

    def _sample(self, photo: np.ndarray, domain: str) -> dict[str, Any]:
        """The model's input: in its size and order of channels, as the mapper makes it for evaluation."""
        height, width = photo.shape[:2]
        size = self._resize.size(height, width)
        if size[0] * size[1] > _MANY_PIXELS and not self._warned:
            self._warned = True
            logging.getLogger(__name__).warning(
                "the network sees %d x %d pixels: slow, much memory, and people larger than those it was trained on; "
                "INPUT.MIN_SIZE_TEST 512 lets it see less, label maps keep the photo's size",
                *size,
            )
        seen = self._resize.get_transform(photo).apply_image(photo)
        seen = seen if self._channel_order == "RGB" else seen[:, :, ::-1]
        image = torch.from_numpy(seen.transpose(2, 0, 1).copy())
        return {"image": image, "height": height, "width": width, "label_domain": domain}

    def padded_size(self, height: int, width: int) -> tuple[int, int]:
        """What the network sees of a photo of that size, in pixels, with its padding.

        Photos that agree in it go through the network together: beside larger ones, more of one would be padding.
        """
        size = self._resize.size(height, width)
        if self._tta is not None:  # every scale pads otherwise
            return size
        step = self.model.size_divisibility
        return -(-size[0] // step) * step, -(-size[1] // step) * step

    def _predictions(self, photo: np.ndarray, output: dict[str, Any], domain: str) -> Answer:
        if domain != ALL_DOMAINS:
            return self._prediction(photo, output, domain, output["labels"], output["logits"])
        both = output["labels_by_domain"], output["logits_by_domain"]
        return {name: self._prediction(photo, output, name, both[0][name], both[1][name]) for name in self.domains}

    def _prediction(
        self, photo: np.ndarray, output: dict[str, Any], domain: str, labels: torch.Tensor, logits: torch.Tensor
    ) -> Prediction:
        logits = logits.float().cpu()
        if not torch.isfinite(logits).all():
            raise SSTNumericError(
                f"label domain '{domain}': the network answers with infinite numbers or NaN; its weights are damaged, "
                "take another checkpoint"
            )
        return Prediction(
            labels.cpu().numpy(), self.domains[domain], photo, logits.numpy(), output["padded"], output["crop"]
        )


def _as_labels(output: dict[str, Any]) -> dict[str, Any]:
    """What test-time augmentation gives, in the form that the model has with "output": "labels"."""
    size = tuple(output["sem_seg"].shape[-2:])
    answer: dict[str, Any] = {"padded": size, "crop": size, "logits": output["sem_seg"]}
    answer["labels"] = output["sem_seg"].argmax(0).to(torch.uint8)
    if "sem_seg_by_domain" in output:
        answer["logits_by_domain"] = output["sem_seg_by_domain"]
        answer["labels_by_domain"] = {
            name: logits.argmax(0).to(torch.uint8) for name, logits in output["sem_seg_by_domain"].items()
        }
    return answer
