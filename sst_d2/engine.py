"""`SSTTrainer` and `setup`: training and evaluation, on a GPU or a CPU, in one process or several."""

from __future__ import annotations

import argparse
import logging
import math
import os
import re
import weakref
from collections import OrderedDict
from typing import Any

import detectron2
import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.engine import DefaultTrainer, TrainerBase, default_argument_parser, default_setup
from detectron2.engine.hooks import EvalHook, PeriodicWriter
from detectron2.evaluation import DatasetEvaluator, verify_results
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, build_model
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from torch.nn.parallel import DistributedDataParallel

from sst_d2.checkpoint import SSTCheckpointer
from sst_d2.config import changed_values, load_config
from sst_d2.data import SSTDatasetMapper, build_sst_train_loader, register_dataset_cards
from sst_d2.data.cards import count_images, require_data
from sst_d2.data.loader import SSTTrainLoader, dataset_domain
from sst_d2.errors import SSTCheckpointError, SSTConfigError, SSTError
from sst_d2.evaluation import SSTSemSegEvaluator
from sst_d2.hooks import FinishStep, SaveBest, SeedEveryStep
from sst_d2.inference import SSTWithTTA
from sst_d2.label_domains import get_label_domain
from sst_d2.launch import WORKER_DIED
from sst_d2.optimizer import build_optimizer, full_model_clip
from sst_d2.train_step import TrainStep


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
    share, parts = cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size(), cfg.SOLVER.SST.ACCUMULATE
    if parts > max(share, 1):
        raise SSTConfigError(f"SOLVER.SST.ACCUMULATE: {parts} parts of {share} images per process; at most as many")


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
        amp_type = getattr(torch, cfg.SOLVER.SST.AMP_DTYPE)
        self._trainer = TrainStep(
            model,
            self._loader,
            optimizer,
            clip_norm=full_model_clip(cfg),
            amp_type=amp_type if cfg.SOLVER.AMP.ENABLED else None,
            accumulate=cfg.SOLVER.SST.ACCUMULATE,
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
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str, output_folder: str = "inference") -> DatasetEvaluator:
        """`SSTSemSegEvaluator`, writing below ``OUTPUT_DIR/<output_folder>/<dataset_name>``."""
        return SSTSemSegEvaluator(
            dataset_name,
            output_dir=os.path.join(cfg.OUTPUT_DIR, output_folder, dataset_name),
            save_predictions=cfg.TEST.SST.SAVE_PREDICTIONS,
        )

    @classmethod
    def evaluate(cls, cfg: CfgNode, model: torch.nn.Module) -> dict[str, Any]:
        """Evaluate on every data set of ``DATASETS.TEST``; with ``TEST.AUG.ENABLED`` also as `test_with_TTA`.

        Returns:
            by data set, by task, by metric; empty on other processes than the main one.
        """
        results = _by_data_set(cfg, cls.test(cfg, model))
        augmented = _by_data_set(cfg, cls.test_with_TTA(cfg, model)) if cfg.TEST.AUG.ENABLED else {}
        return {name: {**tasks, **augmented.get(name, {})} for name, tasks in results.items()}

    @classmethod
    def test_with_TTA(cls, cfg: CfgNode, model: torch.nn.Module) -> Any:
        """As `test`, with test-time augmentation: the tasks are named "<task>_TTA", the folder ``inference_TTA``."""
        logger, augmented = logging.getLogger(__name__), SSTWithTTA(cfg, model)
        logger.info(
            "Evaluation with test-time augmentation: %d passes per image, scales %s%s; files go to inference_TTA",
            *(len(augmented.passes), list(cfg.TEST.SST.SCALES), ", each mirrored too" if cfg.TEST.AUG.FLIP else ""),
        )
        evaluators = [cls.build_evaluator(cfg, name, "inference_TTA") for name in cfg.DATASETS.TEST]
        results = _by_data_set(cfg, cls.test(cfg, augmented, evaluators))
        for name, tasks in results.items():
            results[name] = {f"{task}_TTA": metrics for task, metrics in tasks.items()}
            if "sem_seg" in tasks:
                logger.info("'%s' with test-time augmentation: mIoU %.2f", name, tasks["sem_seg"]["mIoU"])
        return next(iter(results.values())) if len(results) == 1 else results

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
        augmented = _by_data_set(self.cfg, getattr(self, "_last_tta_results", None))
        results = _by_data_set(self.cfg, getattr(self, "_last_eval_results", None))
        return {name: {**tasks, **augmented.get(name, {})} for name, tasks in results.items()}

    def build_hooks(self) -> list[Any]:
        """Detectron2's hooks; the best checkpoint behind the evaluation; steps seeded, and finished when resuming."""
        standard = super().build_hooks()
        own: list[Any] = [SeedEveryStep(self.cfg.SEED)] if self.cfg.SEED >= 0 else []
        # The writers come last, so that they write what the other hooks have put into the storage.
        place = len(standard) - comm.is_main_process()
        if self.cfg.DATASETS.TEST and self.cfg.TEST.AUG.ENABLED:
            standard.insert(place, EvalHook(0, self._test_with_TTA))
        if self.cfg.DATASETS.TEST and comm.is_main_process():
            standard.insert(place, SaveBest(self.cfg.TEST.EVAL_PERIOD))
        behind_checkpoint = [hook for hook in standard if isinstance(hook, (EvalHook, SaveBest, PeriodicWriter))]
        return [*own, *standard, FinishStep(behind_checkpoint, self.cfg.OUTPUT_DIR, self.cfg.TEST.EVAL_PERIOD)]

    def _test_with_TTA(self) -> Any:
        self._last_tta_results = self.test_with_TTA(self.cfg, self.model)
        return self._last_tta_results

    def build_writers(self) -> list[Any]:
        """Detectron2's writers: the console, ``metrics.json`` and TensorBoard, in ``OUTPUT_DIR``."""
        os.makedirs(self.cfg.OUTPUT_DIR, exist_ok=True)
        return super().build_writers()

    def resume_or_load(self, resume: bool = True) -> None:
        """Go on from the last checkpoint, the order of images included, or start from ``MODEL.WEIGHTS``."""
        content = self.checkpointer.resume_or_load(self.cfg.MODEL.WEIGHTS, resume=resume)
        logger = logging.getLogger(__name__)
        if resume and self.checkpointer.has_checkpoint():
            self.start_iter = self.iter + 1
            changes = changed_values(content.get("config", ""), self.cfg)
            if changes:
                logger.warning("this is not the run that was interrupted any more: %s", "; ".join(changes))
            if self.start_iter > self.max_iter:
                logger.warning(
                    "the checkpoint has %d iterations behind it, and SOLVER.MAX_ITER is %d: nothing is left to train",
                    *(self.start_iter, self.max_iter),
                )
        elif resume:
            logger.warning("--resume: %s has no last_checkpoint, so this run starts anew", self.cfg.OUTPUT_DIR)
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
        """Iteration, hooks, and the optimiser, which Detectron2 0.5 leaves out; and whose state it is."""
        return {
            **super().state_dict(),
            "_trainer": self._trainer.state_dict(),
            "detectron2": detectron2.__version__,
            "processes": comm.get_world_size(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what `state_dict` gave.

        Raises:
            SSTCheckpointError: another version of Detectron2 wrote it, whose hooks and schedules keep other states.
        """
        written = state_dict.get("detectron2", "of an unknown version")
        if written != detectron2.__version__:
            raise SSTCheckpointError(
                f"its state of training was written with Detectron2 {written}, and this is {detectron2.__version__}. "
                "--resume goes on with the same version only; the weights serve in all: start with MODEL.WEIGHTS"
            )
        super().load_state_dict(state_dict)
        self._trainer.load_state_dict(state_dict["_trainer"])
        if isinstance(self.iter, bool) or not isinstance(self.iter, int) or self.iter < 0:
            raise ValueError(f"its iteration is {self.iter!r}")
        if state_dict.get("processes") != comm.get_world_size():
            logging.getLogger(__name__).warning(
                "the run had %s processes and now has %d: images and losses stay the same, random numbers inside the "
                "network and rounding do not",
                *(state_dict.get("processes"), comm.get_world_size()),
            )


# What Gloo says on the processes that are left when one has ended.
_LOST_PEER = re.compile(r"Connection (closed|reset) by peer|Broken pipe")


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
    elif record.exc_info and WORKER_DIED.search(str(record.exc_info[1])):
        record.msg, record.args = "Training stops: %s", (str(record.exc_info[1]).splitlines()[0],)
        record.exc_info = record.exc_text = None
    elif record.exc_info and comm.get_world_size() > 1 and _LOST_PEER.search(str(record.exc_info[1])):
        record.msg, record.args = "Training stops: another process has ended; its message says why", ()
        record.exc_info = record.exc_text = None
    return True
