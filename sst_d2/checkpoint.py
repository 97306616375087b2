"""`SSTCheckpointer`: checkpoints that know their label domains, and loading that never half succeeds.

A checkpoint is Detectron2's own, plus ``label_domains`` (the full records), ``config`` (YAML text) and ``sst_format``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.error import URLError

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils import comm
from tabulate import tabulate

from sst_d2.checkpoint_io import SST_FORMAT, read_checkpoint, strip_auxiliary, write_checkpoint
from sst_d2.errors import SSTCheckpointError

# Parts that a start from other weights may lack or hold in another shape: they belong to label domains, not to people.
_DOMAIN_PARTS = ("heads.", "auxiliary.")
# Classifiers of ImageNet networks, and counters of batch norm that frozen and group norm do not have.
_IGNORED = re.compile(r"(^fc\.|^head\.|\.fc\.|linear\.|num_batches_tracked$)")
_TORCHVISION_RESNET = (
    (re.compile(r"^conv1\."), "stem.conv1."),
    (re.compile(r"^bn1\."), "stem.conv1.norm."),
    (re.compile(r"^layer(\d)\."), lambda match: f"res{int(match.group(1)) + 1}."),
    (re.compile(r"\.bn(\d)\."), r".conv\1.norm."),
    (re.compile(r"\.downsample\.0\."), ".shortcut."),
    (re.compile(r"\.downsample\.1\."), ".shortcut.norm."),
)


class SSTCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer with the rules of docs/DECISIONS.md.

    Args:
        model: the network.
        save_dir: folder of the checkpoints.
        save_to_disk: None: on the main process only.
        config: the configuration as YAML text, kept in every checkpoint.
        checkpointables: objects with ``state_dict`` that are saved along.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        save_dir: str = "",
        *,
        save_to_disk: bool | None = None,
        config: str = "",
        **checkpointables: Any,
    ) -> None:
        super().__init__(model, save_dir, save_to_disk=save_to_disk, **checkpointables)
        self._config = config
        self._strict = True
        self._needed: Sequence[str] = ()

    def save(self, name: str, tag_last: bool = True, **kwargs: Any) -> None:
        """Write ``<save_dir>/<name>.pth``; an interrupted write leaves the old files as they are.

        Args:
            name: of the file, without its ending.
            tag_last: make it the checkpoint that a resumed run goes on from.
            kwargs: further plain data to keep.

        Raises:
            SSTCheckpointError: the file cannot be written; nothing half-written is left.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        data = {"model": self.model.state_dict()}
        data.update({key: checkpointable.state_dict() for key, checkpointable in self.checkpointables.items()})
        data.update(
            label_domains=[domain.to_dict() for domain in self.model.domains.values()],
            config=self._config,
            sst_format=SST_FORMAT,
            **kwargs,
        )
        path = os.path.join(self.save_dir, f"{name}.pth")
        self.logger.info("Saving checkpoint to %s", path)
        write_checkpoint(path, lambda stream: torch.save(data, stream))
        if tag_last:
            self.tag_last_checkpoint(os.path.basename(path))

    def save_for_inference(self, name: str) -> None:
        """Write ``<save_dir>/<name>.pth``: the last checkpoint without what serves training alone.

        Raises:
            SSTCheckpointError: as `save`.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        path = os.path.join(self.save_dir, f"{name}.pth")
        strip_auxiliary(self.get_checkpoint_file(), path)
        self.logger.info("Saving the network for prediction, without the state of training, to %s", path)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Write into ``<save_dir>/last_checkpoint`` which file a resumed run goes on from.

        Raises:
            SSTCheckpointError: as `save`.
        """
        path = os.path.join(self.save_dir, "last_checkpoint")
        write_checkpoint(path, lambda stream: stream.write(last_filename_basename.encode()))

    def get_checkpoint_file(self) -> str:
        """Path of the checkpoint that ``last_checkpoint`` names; "" where there is none.

        Raises:
            SSTCheckpointError: the file ``last_checkpoint`` is empty.
        """
        path = super().get_checkpoint_file()
        if path and os.path.basename(path) == "":
            raise SSTCheckpointError(
                f"{os.path.join(self.save_dir, 'last_checkpoint')}: is empty; write the name of the last whole "
                "checkpoint of that folder into it, e.g. model_0004999.pth"
            )
        return path

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Load a checkpoint of this very network: every key must be there and fit.

        Keys of the training-only branch (``auxiliary.``) are dropped where the model has none.

        Args:
            path: file or URL; "": nothing is loaded.
            checkpointables: names of those to restore; None: all.

        Raises:
            SSTCheckpointError: the file cannot be had or read, or does not fit; the message says what differs.
        """
        return self._load(path, checkpointables, strict=True)

    def load_content(self, content: Mapping[str, Any], path: str) -> None:
        """`load` of the weights in what `read` has given, for files that were read for more than their weights.

        Args:
            content: of the file; not changed.
            path: its name, for messages.

        Raises:
            SSTCheckpointError: it does not fit; the message says what differs.
        """
        self._strict, self._needed = True, ()
        try:
            self._load_model(dict(content))
        except SSTCheckpointError as reason:
            raise SSTCheckpointError(_with_path(path, reason)) from reason

    def load_start(self, path: str) -> dict[str, Any]:
        """Load weights to start a new training from: another network of ours, or a backbone alone.

        Heads and training-only parts may differ; a backbone-only file must fill the whole backbone.

        Raises:
            SSTCheckpointError: as `load`.
        """
        return self._load(path, [], strict=False)

    def load_for_evaluation(self, path: str, resume: bool = False) -> dict[str, Any]:
        """`load` the last checkpoint of ``save_dir`` if ``resume`` and there is one, else ``path``.

        Raises:
            SSTCheckpointError: as `load`, or there is nothing to load: random weights are not worth a score.
        """
        if resume and self.has_checkpoint():
            path = self.get_checkpoint_file()
        if not path:
            raise SSTCheckpointError(
                "MODEL.WEIGHTS is empty; evaluation needs a checkpoint: MODEL.WEIGHTS output/…/model_final.pth"
            )
        return self.load(path, checkpointables=[])

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """`load` the last checkpoint of ``save_dir`` if ``resume`` and there is one, else `load_start` ``path``."""
        if resume and self.has_checkpoint():
            return self._load(self.get_checkpoint_file(), None, strict=True, needed=list(self.checkpointables))
        return self.load_start(path)

    def read(self, path: str) -> dict[str, Any]:
        """The content of a checkpoint file, without loading it into anything.

        Raises:
            SSTCheckpointError: the file cannot be had or read.
        """
        try:
            return self._load_file(self._local_path(path))
        except SSTCheckpointError as reason:
            raise SSTCheckpointError(_with_path(path, reason)) from reason

    def _load(
        self, path: str, checkpointables: list[str] | None, strict: bool, needed: Sequence[str] = ()
    ) -> dict[str, Any]:
        if not path:
            self.logger.info("MODEL.WEIGHTS is empty: the network starts from random weights")
            return {}
        self._strict, self._needed = strict, needed
        try:
            return super().load(self._local_path(path), checkpointables)
        except SSTCheckpointError as reason:
            raise SSTCheckpointError(_with_path(path, reason)) from reason
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError) as reason:
            raise SSTCheckpointError(
                f"{path}: the state of training in it is damaged or does not fit this run ({reason}). Its weights may "
                "serve: start anew with MODEL.WEIGHTS set to it, without --resume"
            ) from reason

    def _local_path(self, path: str) -> str:
        remedy = (
            "check the path; or fetch the file on a machine with access and set MODEL.WEIGHTS to it; or set "
            "MODEL.WEIGHTS '' to start from random weights"
        )
        try:
            local = self.path_manager.get_local_path(path)
        except SSTCheckpointError:
            raise
        except (OSError, URLError, ValueError, KeyError) as reason:
            raise SSTCheckpointError(f"the weights cannot be had ({reason}); {remedy}") from reason
        if not os.path.isfile(local):
            raise SSTCheckpointError(f"there is no such file; {remedy}")
        return local

    def _load_file(self, filename: str) -> dict[str, Any]:
        """Detectron2's own reading is replaced: nothing that the file holds is executed."""
        return read_checkpoint(filename)

    def _load_model(self, checkpoint: dict[str, Any]) -> None:
        lacking = [name for name in self._needed if name not in checkpoint]
        if lacking:
            raise SSTCheckpointError(
                f"holds no state of training ({', '.join(lacking)}): it was stripped for inference, or is of another "
                "program. --resume needs a checkpoint that the training itself has written; last_checkpoint names it"
            )
        weights = _our_names({key: torch.as_tensor(value) for key, value in checkpoint.pop("model").items()})
        own = self.model.state_dict()
        other_classes = self._domains_with_other_classes(checkpoint)
        if self._strict and other_classes:
            raise SSTCheckpointError(
                f"the label domains {other_classes} have other classes in the checkpoint than here; its weights belong "
                "to its own classes. Give your domain another name, or its classes their old order"
            )
        for domain in other_classes:
            self.logger.info("label domain '%s' has other classes in the checkpoint: its head starts anew", domain)
            weights = {key: value for key, value in weights.items() if not key.startswith(f"heads.{domain}.")}
        if not any(key.startswith("auxiliary.") for key in own):
            dropped = [key for key in weights if key.startswith("auxiliary.")]
            if dropped:
                self.logger.info(
                    "the checkpoint's training-only branch (%d tensors) is not needed and left out", len(dropped)
                )
            weights = {key: value for key, value in weights.items() if key not in set(dropped)}
        differences = _compare(weights, own)
        backbone_only = all(key.startswith("backbone.") for key in weights)
        allowed = () if self._strict else _DOMAIN_PARTS
        wrong = [
            row
            for row in differences
            if not row[1].startswith(allowed)
            and not (backbone_only and not self._strict and row[0] == "missing" and not row[1].startswith("backbone."))
        ]
        matched = len(own) - sum(row[0] != "unexpected" for row in differences)
        self._report(differences, matched, len(own))
        if wrong or not matched:
            raise SSTCheckpointError(_explain(wrong, matched, self._strict))
        fitting = {key: value for key, value in weights.items() if key in own and value.shape == own[key].shape}
        self.model.load_state_dict(fitting, strict=False)

    def _report(self, differences: list[tuple[str, str, str]], matched: int, total: int) -> None:
        self.logger.info("%d of %d tensors of the network are in the checkpoint", matched, total)
        if differences and comm.is_main_process():
            table = tabulate(_grouped(differences), headers=["difference", "part", "tensors", "example"])
            self.logger.info("what differs:\n%s", table)

    def _domains_with_other_classes(self, checkpoint: Mapping[str, Any]) -> list[str]:
        records = checkpoint.get("label_domains", [])
        if not isinstance(records, list) or not all(
            isinstance(record, dict) and isinstance(record.get("name"), str) and isinstance(record.get("classes"), list)
            for record in records
        ):
            raise SSTCheckpointError("its label_domains are no records of label domains; the file is damaged")
        theirs = {record["name"]: tuple(record["classes"]) for record in records}
        return [name for name, own in self.model.domains.items() if theirs.get(name, own.classes) != own.classes]


def _our_names(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Give the tensors of torchvision's and Detectron2's ResNets the names of our backbone; others keep theirs."""
    weights = {key.removeprefix("module."): value for key, value in weights.items()}
    ours = any(key.startswith(("backbone.", "decoder.", "heads.")) for key in weights)
    renamed = {}
    for key, value in weights.items():
        if not ours:
            if _IGNORED.search(key):
                continue
            if "layer1.0.conv1.weight" in weights:
                for pattern, replacement in _TORCHVISION_RESNET:
                    key = pattern.sub(replacement, key)
            key = f"backbone.{key}"
        renamed[key] = value
    return renamed


def _compare(weights: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]) -> list[tuple[str, str, str]]:
    """Rows (kind of difference, key, shapes)."""
    rows = [("missing", key, str(tuple(value.shape))) for key, value in own.items() if key not in weights]
    rows += [("unexpected", key, str(tuple(value.shape))) for key, value in weights.items() if key not in own]
    rows += [
        ("other shape", key, f"{tuple(value.shape)} instead of {tuple(own[key].shape)}")
        for key, value in weights.items()
        if key in own and value.shape != own[key].shape
    ]
    return rows


def _grouped(differences: list[tuple[str, str, str]]) -> list[tuple[str, str, int, str]]:
    groups: dict[tuple[str, str], list[str]] = {}
    for kind, key, shapes in differences:
        groups.setdefault((kind, ".".join(key.split(".")[:2])), []).append(f"{key} {shapes}")
    return [(kind, part, len(rows), rows[0]) for (kind, part), rows in groups.items()]


def _explain(wrong: list[tuple[str, str, str]], matched: int, strict: bool) -> str:
    lines = [f"{kind}: {example} ({count} of {part})" for kind, part, count, example in _grouped(wrong)]
    shown = "\n  ".join(lines[:6] + ([f"… and {len(lines) - 6} more parts"] if len(lines) > 6 else []))
    if not matched:
        return f"nothing of the checkpoint fits the network; it belongs to another one. Differences:\n  {shown}"
    remedy = (
        "Evaluation, prediction and --resume need the checkpoint of this very configuration"
        if strict
        else "A start from other weights needs the same backbone and decoder, or a file of the backbone alone"
    )
    return f"the checkpoint does not fit the network:\n  {shown}\n{remedy}"


def _with_path(path: str, error: Exception) -> str:
    """The sentence of an error, with the file that it is about."""
    return str(error) if str(error).startswith(path) else f"{path}: {error}"
