"""`PredictionPictures`: what the network makes of the same few images, at every evaluation, for TensorBoard."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.engine import HookBase
from detectron2.evaluation import inference_context
from torch import nn

from sst_d2.data.image_io import read_image
from sst_d2.data.label_io import read_sample_labels
from sst_d2.label_domains import get_label_domain
from sst_d2.visualization import compared


class PredictionPictures(HookBase):
    """Photo, ground truth and prediction of fixed images, side by side, with a legend.

    They enter the storage under ``predictions/<data set>/<image_id>``; TensorBoard's writer takes them from there. No
    random number is drawn, no weight and no score changes. Put it behind the evaluation, on the main process; others
    wait meanwhile.

    Args:
        network: answers as `SST` does, without a wrapper for several processes.
        mapper: from a dataset dict to what the network takes, as in evaluation.
        samples: gives the dataset dicts by data set, each with ``label_domain`` and a label file; called once.
        period: iterations between evaluations; 0: after training only.
    """

    def __init__(
        self,
        network: nn.Module,
        mapper: Callable[[dict[str, Any]], dict[str, Any]],
        samples: Callable[[], Mapping[str, Sequence[dict[str, Any]]]],
        period: int,
    ) -> None:
        self._network = network
        self._mapper = mapper
        self._load = samples
        self._samples: Mapping[str, Sequence[dict[str, Any]]] | None = None
        self._period = period

    def after_step(self) -> None:
        """Draw after an evaluation."""
        following = self.trainer.iter + 1
        if self._period > 0 and following % self._period == 0 and following != self.trainer.max_iter:
            self._draw()

    def after_train(self) -> None:
        """Draw after the last evaluation."""
        if self.trainer.iter + 1 >= self.trainer.max_iter:
            self._draw()

    def _draw(self) -> None:
        if self._samples is None:
            self._samples = self._load()
        with inference_context(self._network), torch.no_grad():
            for name, samples in self._samples.items():
                for sample in samples:
                    picture = _picture(self._network, self._mapper, sample)
                    identifier = sample.get("image_id", Path(sample["file_name"]).stem)
                    self.trainer.storage.put_image(f"predictions/{name}/{identifier}", picture.transpose(2, 0, 1))


def _picture(
    network: nn.Module, mapper: Callable[[dict[str, Any]], dict[str, Any]], sample: dict[str, Any]
) -> np.ndarray:
    """(h, w, 3) uint8, RGB."""
    domain = get_label_domain(sample["label_domain"])
    logits = network([mapper(sample)])[0]["sem_seg"]
    maps = {
        "ground truth": read_sample_labels(sample, domain),
        "prediction": logits.argmax(dim=0).to(torch.uint8).cpu().numpy(),
    }
    return compared(read_image(sample["file_name"], "RGB"), maps, domain)
