"""`SSTTrainer`: training and evaluation, on a GPU or a CPU, in one process or several."""

from __future__ import annotations

import logging
import os
import weakref
from collections import OrderedDict
from typing import Any

import detectron2
import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.engine import DefaultTrainer, TrainerBase
from detectron2.engine.hooks import EvalHook, PeriodicCheckpointer, PeriodicWriter
from detectron2.evaluation import DatasetEvaluator, verify_results
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from detectron2.utils import comm
from torch.nn.parallel import DistributedDataParallel

from sst_d2.branch_log import BranchLog
from sst_d2.checkpoint import SSTCheckpointer
from sst_d2.config import changed_values
from sst_d2.data import SSTDatasetMapper, build_sst_train_loader
from sst_d2.data.loader import SSTTrainLoader, load_datasets
from sst_d2.data.subset import images_by_set, keep_subset
from sst_d2.errors import SSTCheckpointError, SSTConfigError
from sst_d2.evaluation import SSTSemSegEvaluator
from sst_d2.files import expand_path
from sst_d2.hooks import FinishStep, SaveBest, SaveForInference, SeedEveryStep
from sst_d2.inference import SSTWithTTA
from sst_d2.label_domains import get_label_domain
from sst_d2.optimizer import build_optimizer, full_model_clip
from sst_d2.pictures import PredictionPictures
from sst_d2.run_setup import argument_parser, check_config, epochs_to_iterations, setup
from sst_d2.train_step import TrainStep

# What a training script of one's own needs.
__all__ = ["SSTTrainer", "argument_parser", "check_config", "epochs_to_iterations", "setup"]


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
        network = self.model.module if isinstance(self.model, DistributedDataParallel) else self.model
        has_branch = isinstance(network, META_ARCH_REGISTRY.get("SST")) and network.auxiliary is not None
        if has_branch and comm.is_main_process():
            gradients = self.cfg.MODEL.SST.AUXILIARY.LOG_GRADIENTS
            own.append(BranchLog(network, self.cfg.TEST.EVAL_PERIOD, gradients))
        savers = [place for place, hook in enumerate(standard) if isinstance(hook, PeriodicCheckpointer)]
        if savers:  # on the main process
            standard.insert(savers[-1] + 1, SaveForInference())
        # The writers come last, so that they write what the other hooks have put into the storage.
        place = len(standard) - comm.is_main_process()
        if self.cfg.DATASETS.TEST and self.cfg.TEST.AUG.ENABLED:
            standard.insert(place, EvalHook(0, self._test_with_TTA))
        if self.cfg.DATASETS.TEST and comm.is_main_process():
            standard.insert(place, SaveBest(self.cfg.TEST.EVAL_PERIOD))
            if self.cfg.TEST.SST.PICTURES:
                mapper = SSTDatasetMapper(self.cfg, is_train=False)
                pictures = PredictionPictures(network, mapper, self._pictured_samples, self.cfg.TEST.EVAL_PERIOD)
                standard.insert(place, pictures)
        behind = (SaveForInference, EvalHook, SaveBest, PredictionPictures, PeriodicWriter)
        behind_checkpoint = [hook for hook in standard if isinstance(hook, behind)]
        return [*own, *standard, FinishStep(behind_checkpoint, self.cfg.OUTPUT_DIR, self.cfg.TEST.EVAL_PERIOD)]

    def _test_with_TTA(self) -> Any:
        self._last_tta_results = self.test_with_TTA(self.cfg, self.model)
        return self._last_tta_results

    def _pictured_samples(self) -> dict[str, list[dict[str, Any]]]:
        """The first ``TEST.SST.PICTURES`` dataset dicts of each test set."""
        domains = [get_label_domain(reference).name for reference in self.cfg.MODEL.SST.DOMAINS]
        return {name: load_datasets([name], domains)[: self.cfg.TEST.SST.PICTURES] for name in self.cfg.DATASETS.TEST}

    def build_writers(self) -> list[Any]:
        """Detectron2's writers: the console, ``metrics.json`` and TensorBoard, in ``OUTPUT_DIR``."""
        os.makedirs(self.cfg.OUTPUT_DIR, exist_ok=True)
        return super().build_writers()

    def resume_or_load(self, resume: bool = True) -> None:
        """Go on from the last checkpoint, the order of images included, or start from ``MODEL.WEIGHTS``.

        Where that is empty, dedicated training starts from the trunk of ``MODEL.SST.SOURCE.WEIGHTS``.

        Raises:
            SSTConfigError: the source lies in ``OUTPUT_DIR``, or is given where the branch is switched off.
            SSTCheckpointError: a checkpoint cannot be read, or does not fit.
        """
        logger = logging.getLogger(__name__)
        start, source = self.cfg.MODEL.WEIGHTS, self.cfg.MODEL.SST.SOURCE.WEIGHTS
        if source and not self.cfg.MODEL.SST.AUXILIARY.ENABLED:
            raise SSTConfigError(
                f"MODEL.SST.SOURCE.WEIGHTS: {source}, and MODEL.SST.AUXILIARY.ENABLED is False: nothing can be learnt "
                "from a source without the branch. To finetune, give the file as MODEL.WEIGHTS and leave SOURCE out"
            )
        if source:
            path = os.path.realpath(expand_path(source, error=SSTConfigError))
            if os.path.dirname(path) == os.path.realpath(self.cfg.OUTPUT_DIR):
                raise SSTConfigError(
                    f"MODEL.SST.SOURCE.WEIGHTS: {path} lies in OUTPUT_DIR; choose another, not to write over it"
                )
            if start and not (resume and self.checkpointer.has_checkpoint()):
                logger.warning(
                    "the network starts from MODEL.WEIGHTS (%s), not from the trunk of its source, as the "
                    'paper has it; for that set MODEL.WEIGHTS to ""',
                    start,
                )
            start = start or path
        content = self.checkpointer.resume_or_load(start, resume=resume)
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

        Raises:
            SSTConfigError: a resumed run would use other images than it began with.
        """
        if isinstance(self._loader, SSTTrainLoader):
            fraction = self.cfg.DATASETS.SST.TRAIN_FRACTION
            images = images_by_set(self._loader.samples, self.cfg.DATASETS.TRAIN, fraction)
            keep_subset(self.cfg.OUTPUT_DIR, fraction, self.cfg.SEED, images, resumed=self.start_iter > 0)
        TrainerBase.train(self, self.start_iter, self.max_iter)
        self.verify(self.cfg, self.evaluation_results)
        return self.evaluation_results

    def state_dict(self) -> dict[str, Any]:
        """Iteration, hooks, and the optimiser, which Detectron2 0.5 leaves out; whose state it is, and its source."""
        return {
            **super().state_dict(),
            "_trainer": self._trainer.state_dict(),
            "detectron2": detectron2.__version__,
            "processes": comm.get_world_size(),
            "source": self._source_digest(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what `state_dict` gave.

        Raises:
            SSTCheckpointError: another version of Detectron2 wrote it, or the run learned from another source.
        """
        written = state_dict.get("detectron2", "of an unknown version")
        if written != detectron2.__version__:
            raise SSTCheckpointError(
                f"its state of training was written with Detectron2 {written}, and this is {detectron2.__version__}. "
                "--resume goes on with the same version only; the weights serve in all: start with MODEL.WEIGHTS"
            )
        before, now = state_dict.get("source", ""), self._source_digest()
        if before != now:
            raise SSTCheckpointError(
                f"the run learned from another source: the SHA-256 of its file was {before or 'none'}, and that of "
                f"MODEL.SST.SOURCE.WEIGHTS ({self.cfg.MODEL.SST.SOURCE.WEIGHTS or 'empty'}) is {now or 'none'}. "
                "--resume goes on with the same file, wherever it lies; with another one start anew"
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

    def _source_digest(self) -> str:
        """SHA-256 of the file that dedicated training learns from; "" in any other training."""
        source = getattr(getattr(self.checkpointer.model, "auxiliary", None), "source", None)
        return "" if source is None else source.digest


def _by_data_set(cfg: CfgNode, results: dict[str, Any] | None) -> dict[str, Any]:
    """Detectron2 leaves the data set's name out where there is only one, and gives nothing on other processes."""
    if not results:
        return {}
    return {cfg.DATASETS.TEST[0]: results} if len(cfg.DATASETS.TEST) == 1 else dict(results)
