"""`TrainStep`: one iteration of training, from a batch to changed weights."""

from __future__ import annotations

import contextlib
import math
import time
from typing import Any

import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from torch.nn.parallel import DistributedDataParallel

from sst_d2.data.loader import SSTTrainLoader
from sst_d2.errors import SSTConfigError, SSTNumericError


class TrainStep(SimpleTrainer):
    """Losses, a check that they are finite, gradients, clipping over the whole model, update.

    With ``accumulate`` above 1 the batch goes through the network in so many parts, one after the other, and their
    gradients add up: as much memory as a part needs. The segmentation losses are those of the whole batch, since the
    labelled pixels of all parts are counted first; batch norm sees each part by itself.

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
        if accumulate > 1 and not hasattr(self._network, "count_labelled_pixels"):
            raise SSTConfigError(
                f"SOLVER.SST.ACCUMULATE: {accumulate} parts need a model that counts labelled pixels, as SST does; "
                f"{type(self._network).__name__} does not: set it to 1"
            )
        self._clip_norm = math.inf if clip_norm is None else clip_norm
        self._amp_type = amp_type
        self._accumulate = accumulate
        # Only float16 has so small a range that gradients need scaling; switched off, the scaler does nothing.
        self._scaler = torch.amp.GradScaler("cuda", enabled=amp_type == torch.float16)

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
        # A whole batch is counted by the model itself, so that any meta-architecture can be trained.
        counts = {"labelled_pixels": self._network.count_labelled_pixels(batch)} if parts > 1 else {}
        total: dict[str, torch.Tensor] = {}
        for part in range(parts):
            images = batch[len(batch) * part // parts : len(batch) * (part + 1) // parts]
            # Processes exchange gradients once, behind the last part.
            alone = self._network is self.model or part == parts - 1
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
