"""`TrainStep`: one iteration of training, from a batch to changed weights."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from torch.nn.parallel import DistributedDataParallel

from sst_d2.data.loader import SSTTrainLoader
from sst_d2.errors import SSTConfigError, SSTNumericError

# Enough for the shares of any sampler to show.
_BATCHES_LOOKED_AT = 1000
_NEARLY_ALWAYS = 0.95


class TrainStep(SimpleTrainer):
    """Losses, a check that they are finite, gradients, clipping over the whole model, update.

    With ``accumulate`` above 1 the batch goes through the network in so many parts, one after the other, and their
    gradients add up: as much memory as a part needs. The losses are those of the whole batch, since the labelled pixels
    of all parts are counted first; but pairs of images form inside a part, so there are fewer, each of which weighs as
    much as any other. Batch norm sees each part by itself.

    Args:
        model, data_loader, optimizer: as Detectron2's ``SimpleTrainer``.
        clip_norm: largest norm of all gradients together; None: no clipping here.
        amp_type: type of the autocast on the GPU; None: full precision.
        accumulate: parts of a batch, as even as they can be.

    Raises:
        SSTConfigError: ``accumulate`` is above 1 and the model cannot count labelled pixels; (in a step) the batch has
            fewer images than parts.
        SSTNumericError: (in a step) a loss or the gradients are not finite; the weights are not changed then.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        data_loader: SSTTrainLoader,
        optimizer: torch.optim.Optimizer,
        clip_norm: float | None,
        amp_type: torch.dtype | None,
        accumulate: int = 1,
    ) -> None:
        super().__init__(model, data_loader, optimizer)
        self._network = model.module if isinstance(model, DistributedDataParallel) else model
        if accumulate > 1 and not hasattr(self._network, "totals_of"):
            raise SSTConfigError(
                f"SOLVER.SST.ACCUMULATE: {accumulate} parts need a model that counts labelled pixels, as SST does; "
                f"{type(self._network).__name__} does not: set it to 1"
            )
        self._clip_norm = math.inf if clip_norm is None else clip_norm
        self._amp_type = amp_type
        self._accumulate = accumulate
        # Only float16 has so small a range that gradients need scaling; switched off, the scaler does nothing.
        self._scaler = torch.amp.GradScaler("cuda", enabled=amp_type == torch.float16)
        if isinstance(data_loader, SSTTrainLoader) and comm.is_main_process():
            _warn_of_pairs_that_seldom_meet(self._network, data_loader, accumulate)

    def run_step(self) -> None:
        """Train on one batch."""
        start = time.perf_counter()
        batch = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        self.optimizer.zero_grad()
        losses = self._gradients(batch)
        # Before any clipping, Detectron2's own inside the optimiser included.
        self._scaler.unscale_(self.optimizer)
        self._clip()
        self._write_metrics(losses, data_time)
        self._scaler.step(self.optimizer)
        self._scaler.update()

    def _gradients(self, batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Leave the batch's gradients in the parameters; returns its losses."""
        parts = self._accumulate
        if len(batch) < parts:
            raise SSTConfigError(
                f"SOLVER.SST.ACCUMULATE: {parts} parts of {len(batch)} images per process; give at most as many"
            )
        split = _split(batch, parts)
        # A whole batch is counted by the model itself, so that any meta-architecture can be trained.
        counts = {"totals": self._network.totals_of(split)} if parts > 1 else {}
        total: dict[str, torch.Tensor] = {}
        for number, images in enumerate(split):
            # Processes exchange gradients once, behind the last part.
            alone = self._network is self.model or number == parts - 1
            with contextlib.nullcontext() if alone else self.model.no_sync():
                with torch.autocast("cuda", dtype=self._amp_type, enabled=self._amp_type is not None):
                    losses = self.model(images, **counts)
                self._check_finite(losses)
                self._scaler.scale(sum(losses.values())).backward()
            for name, loss in losses.items():
                total[name] = total[name] + loss.detach() if name in total else loss.detach()
        return total

    def state_dict(self) -> dict[str, Any]:
        """With the state of the gradient scaler."""
        return {**super().state_dict(), "grad_scaler": self._scaler.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        super().load_state_dict(state_dict)
        if state_dict["grad_scaler"]:
            self._scaler.load_state_dict(state_dict["grad_scaler"])

    def _check_finite(self, losses: dict[str, torch.Tensor]) -> None:
        values = torch.stack([loss.detach().float() for loss in losses.values()])
        if comm.get_world_size() > 1:
            # A sum over the processes is not finite where one value is not: all of them stop together.
            torch.distributed.all_reduce(values)
        if not torch.isfinite(values).all():
            terms = [
                f"{name} is {value:g}"
                for name, value in zip(losses, values.tolist(), strict=True)
                if not math.isfinite(value)
            ]
            raise SSTNumericError(
                f"iteration {self.iter}: {', '.join(terms)}. The weights were not changed by this iteration. "
                "Go on from the last checkpoint with a lower SOLVER.BASE_LR, or with SOLVER.CLIP_GRADIENTS"
            )

    def _clip(self) -> None:
        """Clip, and look whether all gradients are finite, also where nothing is clipped."""
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self._clip_norm)
        if not self._scaler.is_enabled() and not torch.isfinite(norm):
            raise SSTNumericError(
                f"iteration {self.iter}: the gradients are not finite, though every loss is. The weights were not "
                "changed by this iteration. Go on from the last checkpoint with a lower SOLVER.BASE_LR"
            )


def _split(batch: Sequence[Any], parts: int) -> list[Sequence[Any]]:
    """The parts of a batch, as even as they can be."""
    return [batch[len(batch) * part // parts : len(batch) * (part + 1) // parts] for part in range(parts)]


def _warn_of_pairs_that_seldom_meet(network: torch.nn.Module, loader: SSTTrainLoader, parts: int) -> None:
    """Say which label domains MST does not compare in every step: images are few, or the sampler seldom takes them.

    Pairs of images form within a process, and within a part of its batch.
    """
    auxiliary = getattr(network, "auxiliary", None)
    if not getattr(auxiliary, "image_level", False) or not auxiliary.pairs:
        return
    together = len(_split(loader.domains_of_batch(0)[0], parts)[0])
    meetings = torch.zeros(len(auxiliary.pairs))
    for iteration in range(_BATCHES_LOOKED_AT):
        groups = [group for share in loader.domains_of_batch(iteration) for group in _split(share, parts)]
        counts = torch.tensor([auxiliary.count_image_pairs(names) for names in groups])
        meetings += (counts > 0).any(dim=0)
    shares = (meetings / _BATCHES_LOOKED_AT).tolist()
    seldom = [
        f"{'-'.join(pair)} {f'in {share:.0%} of the steps' if share else 'never'}"
        for pair, share in zip(auxiliary.pairs, shares, strict=True)
        if share < _NEARLY_ALWAYS
    ]
    if seldom:
        logging.getLogger(__name__).warning(
            "%d images of %d label domains go through the network together, and pairs of images form among these only. "
            "They meet: %s. For more take a larger SOLVER.IMS_PER_BATCH, fewer processes, fewer parts "
            "(SOLVER.SST.ACCUMULATE), or DATALOADER.SST.SAMPLER balanced",
            *(together, len(network.domains), ", ".join(seldom)),
        )
