"""`SSTTrainer` and `setup`: training and evaluation, on a GPU or a CPU, in one process or several."""

from __future__ import annotations

import argparse
import logging
import math
import os
import re
import time
import weakref
from collections import OrderedDict
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.engine import DefaultTrainer, SimpleTrainer, TrainerBase, default_argument_parser, default_setup
from detectron2.evaluation import DatasetEvaluator, verify_results
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, build_model
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from torch.nn.parallel import DistributedDataParallel

from sst_d2.checkpoint import SSTCheckpointer
from sst_d2.config import load_config
from sst_d2.data import SSTDatasetMapper, build_sst_train_loader, register_dataset_cards
from sst_d2.data.cards import count_images, require_data
from sst_d2.data.loader import SSTTrainLoader, dataset_domain
from sst_d2.errors import SSTConfigError, SSTError, SSTNumericError
from sst_d2.evaluation import SSTSemSegEvaluator
from sst_d2.hooks import SaveBest, SeedEveryStep
from sst_d2.label_domains import get_label_domain
from sst_d2.optimizer import build_optimizer, full_model_clip


def setup(args: argparse.Namespace) -> CfgNode:
    """Make the configuration of a run from Detectron2's command-line arguments, and set up logging.

    Returns:
        The frozen configuration, written to ``OUTPUT_DIR/config.yaml`` too.

    Raises:
        SSTConfigError: a file, a key or a value is not usable.
    """
    cfg = load_config(args.config_file, args.opts)
    # Absolute, so that the configuration saved with the run serves from any folder.
    cfg.DATASETS.SST.CARDS = [_absolute(card) for card in cfg.DATASETS.SST.CARDS]
    cfg.MODEL.SST.DOMAINS = [_absolute(d) if d.endswith((".yaml", ".yml")) else d for d in cfg.MODEL.SST.DOMAINS]
    register_dataset_cards(cfg.DATASETS.SST.CARDS)
    check_config(cfg)
    if args.eval_only and not cfg.DATASETS.TEST:
        raise SSTConfigError("DATASETS.TEST is empty; --eval-only needs at least one data set")
    for name in cfg.DATASETS.TEST:
        require_data(name)  # now, not at the first evaluation
    if not args.eval_only:
        epochs_to_iterations(cfg)
    cfg.freeze()
    try:
        default_setup(cfg, args)
    except OSError as reason:
        raise SSTConfigError(
            f"OUTPUT_DIR: '{cfg.OUTPUT_DIR}' cannot be written ({reason}); choose another folder"
        ) from reason
    setup_logger(output=cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="sst_d2")
    logging.getLogger("detectron2.engine.train_loop").addFilter(_sentence_instead_of_traceback)
    if cfg.MODEL.DEVICE == "cpu":
        seen = "a GPU" if torch.cuda.is_available() else "no GPU"
        logging.getLogger(__name__).info("running on the CPU (MODEL.DEVICE cpu); torch sees %s", seen)
    return cfg


def argument_parser() -> argparse.ArgumentParser:
    """Detectron2's command-line arguments; several processes of one machine meet at a free port."""
    parser = default_argument_parser()
    parser.set_defaults(dist_url="auto")
    return parser


def check_config(cfg: CfgNode) -> None:
    """Refuse what does not fit together before anything is built: domains, data sets, names, device, precision.

    Raises:
        SSTConfigError, LabelDomainError: with the key, the value and what is allowed.
    """
    domains = [get_label_domain(reference).name for reference in cfg.MODEL.SST.DOMAINS]
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        dataset_domain(name, domains)
    for key, name, registry in (
        ("MODEL.META_ARCHITECTURE", cfg.MODEL.META_ARCHITECTURE, META_ARCH_REGISTRY),
        ("MODEL.BACKBONE.NAME", cfg.MODEL.BACKBONE.NAME, BACKBONE_REGISTRY),
    ):
        if name not in registry:
            known = ", ".join(sorted(entry for entry, _ in registry))
            raise SSTConfigError(f"{key}: '{name}' is not registered; known: {known}")
    if cfg.SOLVER.AMP.ENABLED and not cfg.MODEL.DEVICE.startswith("cuda"):
        raise SSTConfigError(
            f"SOLVER.AMP.ENABLED needs a GPU, and MODEL.DEVICE is '{cfg.MODEL.DEVICE}'; set it to False"
        )


def epochs_to_iterations(cfg: CfgNode) -> None:
    """Turn ``SOLVER.SST.MAX_EPOCHS`` and ``EPOCH_STEPS`` into ``SOLVER.MAX_ITER`` and ``STEPS``, in place.

    One epoch = ⌈number of training images / IMS_PER_BATCH⌉ iterations, whatever the sampler. With MAX_EPOCHS 0
    nothing changes. For a user's own trainer as well.

    Raises:
        SSTConfigError: an epoch step lies outside of training, or there is no training set.
    """
    epochs, steps = cfg.SOLVER.SST.MAX_EPOCHS, cfg.SOLVER.SST.EPOCH_STEPS
    if epochs <= 0:
        return
    if any(not 0 < step < epochs for step in steps):
        raise SSTConfigError(
            f"SOLVER.SST.EPOCH_STEPS: {list(steps)}; epochs between 0 and MAX_EPOCHS ({epochs}) are expected"
        )
    images = sum(count_images(name) for name in cfg.DATASETS.TRAIN)
    if images == 0:
        raise SSTConfigError("DATASETS.TRAIN is empty; name at least one data set")
    per_epoch = math.ceil(images / cfg.SOLVER.IMS_PER_BATCH)
    cfg.SOLVER.MAX_ITER = epochs * per_epoch
    cfg.SOLVER.STEPS = tuple(step * per_epoch for step in steps)


class SSTTrainer(DefaultTrainer):
    """Detectron2's default trainer with our loader, optimiser, evaluator and checkpoints; runs on the CPU too."""

    def __init__(self, cfg: CfgNode) -> None:
        TrainerBase.__init__(self)
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        self._loader = self.build_train_loader(cfg)
        if comm.get_world_size() > 1:
            device_ids = [comm.get_local_rank()] if cfg.MODEL.DEVICE.startswith("cuda") else None
            model = DistributedDataParallel(model, device_ids=device_ids, broadcast_buffers=False)
        amp_type = _AMP_TYPES[cfg.SOLVER.SST.AMP_DTYPE]
        self._trainer = _Step(
            model,
            self._loader,
            optimizer,
            clip_norm=full_model_clip(cfg),
            amp_type=amp_type if cfg.SOLVER.AMP.ENABLED else None,
        )
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = SSTCheckpointer(model, cfg.OUTPUT_DIR, config=cfg.dump(), trainer=weakref.proxy(self))
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.register_hooks(self.build_hooks())

    @classmethod
    def build_model(cls, cfg: CfgNode) -> torch.nn.Module:
        """Build the model and log the number of parameters of its parts."""
        model = build_model(cfg)
        parts = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
        described = ", ".join(f"{name} {count / 1e6:.2f} M" for name, count in parts.items())
        logging.getLogger(__name__).info("%s: %s parameters", cfg.MODEL.META_ARCHITECTURE, described)
        return model

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: torch.nn.Module) -> torch.optim.Optimizer:
        """See `sst_d2.optimizer`."""
        return build_optimizer(cfg, model)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> SSTTrainLoader:
        """See `sst_d2.data.build_sst_train_loader`."""
        return build_sst_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> torch.utils.data.DataLoader:
        """Detectron2's loader with our mapper."""
        return build_detection_test_loader(cfg, dataset_name, mapper=SSTDatasetMapper(cfg, is_train=False))

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        """`SSTSemSegEvaluator`, writing below ``OUTPUT_DIR/inference/<dataset_name>``."""
        return SSTSemSegEvaluator(
            dataset_name,
            output_dir=os.path.join(cfg.OUTPUT_DIR, "inference", dataset_name),
            save_predictions=cfg.TEST.SST.SAVE_PREDICTIONS,
        )

    @classmethod
    def evaluate(cls, cfg: CfgNode, model: torch.nn.Module) -> dict[str, Any]:
        """Evaluate on every data set of ``DATASETS.TEST``.

        Returns:
            by data set, by task, by metric; empty on other processes than the main one.
        """
        return _by_data_set(cfg, cls.test(cfg, model))

    @classmethod
    def test(cls, cfg: CfgNode, model: torch.nn.Module, evaluators: list[DatasetEvaluator] | None = None) -> Any:
        """Detectron2's evaluation, of the main process's network: batch norm's statistics differ between processes."""
        if comm.get_world_size() > 1:
            for buffer in model.buffers():
                torch.distributed.broadcast(buffer, 0)
        return super().test(cfg, model, evaluators)

    @classmethod
    def verify(cls, cfg: CfgNode, results: dict[str, Any]) -> None:
        """Detectron2's check of ``TEST.EXPECTED_RESULTS``; with several data sets the task is "<data set>/sem_seg"."""
        if cfg.TEST.EXPECTED_RESULTS and comm.is_main_process():
            by_task = OrderedDict(
                (f"{name}/{task}", metrics) for name, tasks in results.items() for task, metrics in tasks.items()
            )
            if len(results) == 1:
                by_task.update(next(iter(results.values())))
            verify_results(cfg, by_task)

    @property
    def evaluation_results(self) -> dict[str, Any]:
        """Of the last evaluation in training, by data set, task and metric; empty before the first."""
        return _by_data_set(self.cfg, getattr(self, "_last_eval_results", None))

    def build_hooks(self) -> list[Any]:
        """Detectron2's hooks, with the best checkpoint saved behind the evaluation, and every step seeded."""
        standard = super().build_hooks()
        own: list[Any] = [SeedEveryStep(self.cfg.SEED)] if self.cfg.SEED >= 0 else []
        if self.cfg.DATASETS.TEST and comm.is_main_process():
            # The writers come last, so that they write what the other hooks have put into the storage.
            standard.insert(len(standard) - 1, SaveBest(self.cfg.TEST.EVAL_PERIOD))
        return own + standard

    def build_writers(self) -> list[Any]:
        """Detectron2's writers: the console, ``metrics.json`` and TensorBoard, in ``OUTPUT_DIR``."""
        os.makedirs(self.cfg.OUTPUT_DIR, exist_ok=True)
        return super().build_writers()

    def resume_or_load(self, resume: bool = True) -> None:
        """Go on from the last checkpoint, the order of images included, or start from ``MODEL.WEIGHTS``."""
        super().resume_or_load(resume)
        if isinstance(self._loader, SSTTrainLoader):
            self._loader.start_iteration = self.start_iter

    def train(self) -> dict[str, Any]:
        """Train from ``start_iter`` to ``SOLVER.MAX_ITER``.

        Returns:
            `evaluation_results` of the last evaluation.
        """
        TrainerBase.train(self, self.start_iter, self.max_iter)
        self.verify(self.cfg, self.evaluation_results)
        return self.evaluation_results

    def state_dict(self) -> dict[str, Any]:
        """Iteration, hooks, and the optimiser, which Detectron2 0.5 leaves out."""
        return {**super().state_dict(), "_trainer": self._trainer.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        super().load_state_dict(state_dict)
        self._trainer.load_state_dict(state_dict["_trainer"])


class _Step(SimpleTrainer):
    """One iteration: losses, a check that they are finite, gradients, clipping over the whole model, update.

    Args:
        model, data_loader, optimizer: as Detectron2's ``SimpleTrainer``.
        clip_norm: largest norm of all gradients together; None: no clipping here.
        amp_type: type of the autocast on the GPU; None: full precision.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        data_loader: SSTTrainLoader,
        optimizer: torch.optim.Optimizer,
        clip_norm: float | None,
        amp_type: torch.dtype | None,
    ) -> None:
        super().__init__(model, data_loader, optimizer)
        self._clip_norm = clip_norm
        self._amp_type = amp_type
        # Only float16 has so small a range that gradients need scaling; switched off, the scaler does nothing.
        self._scaler = torch.amp.GradScaler("cuda", enabled=amp_type == torch.float16)

    def run_step(self) -> None:
        """Train on one batch."""
        start = time.perf_counter()
        batch = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        with torch.autocast("cuda", dtype=self._amp_type, enabled=self._amp_type is not None):
            losses = self.model(batch)
        self._check_finite(losses)
        self.optimizer.zero_grad()
        self._scaler.scale(sum(losses.values())).backward()
        # Before any clipping, Detectron2's own inside the optimiser included.
        self._scaler.unscale_(self.optimizer)
        if self._clip_norm is not None:
            self._clip()
        self._write_metrics(losses, data_time)
        self._scaler.step(self.optimizer)
        self._scaler.update()

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
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self._clip_norm)
        if not self._scaler.is_enabled() and not torch.isfinite(norm):
            raise SSTNumericError(
                f"iteration {self.iter}: the gradients are not finite, though every loss is. The weights were not "
                "changed by this iteration. Go on from the last checkpoint with a lower SOLVER.BASE_LR"
            )


# What Gloo says on the processes that are left when one has ended.
_LOST_PEER = re.compile(r"Connection (closed|reset) by peer|Broken pipe")
_AMP_TYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def _absolute(path: str) -> str:
    """A path that a user gave relative to the working directory; those that begin with ~ or a variable stay."""
    return path if path.startswith(("~", "${")) else os.path.abspath(path)


def _by_data_set(cfg: CfgNode, results: dict[str, Any] | None) -> dict[str, Any]:
    """Detectron2 leaves the data set's name out where there is only one, and gives nothing on other processes."""
    if not results:
        return {}
    return {cfg.DATASETS.TEST[0]: results} if len(cfg.DATASETS.TEST) == 1 else dict(results)


def _sentence_instead_of_traceback(record: logging.LogRecord) -> bool:
    """Detectron2's loop logs every exception with its traceback; of a user's mistake the sentence says all."""
    if record.exc_info and isinstance(record.exc_info[1], SSTError):
        record.msg, record.args = f"Training stops: {record.exc_info[1]}", ()
        record.exc_info = record.exc_text = None
    elif record.exc_info and comm.get_world_size() > 1 and _LOST_PEER.search(str(record.exc_info[1])):
        record.msg, record.args = "Training stops: another process has ended; its message says why", ()
        record.exc_info = record.exc_text = None
    return True
