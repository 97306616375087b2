"""From what a user has, a configuration and weights, a checkpoint alone or a bundle, to a network that predicts."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.error import URLError

import torch
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils.file_io import PathManager

from sst_d2.checkpoint import SSTCheckpointer
from sst_d2.checkpoint_io import read_checkpoint
from sst_d2.config import inference_config, merge_options, parse_config, read_config, resolve_device
from sst_d2.errors import SSTCheckpointError, SSTConfigError, SSTError
from sst_d2.inference.bundle import CONFIG, WEIGHTS, domains_of_records, is_bundle, read_bundle
from sst_d2.label_domains import LabelDomain

# Where weights begin that a training starts from; prediction needs trained heads.
_START_WEIGHTS = ("torchvision://", "detectron2://")


@dataclass(frozen=True)
class _Source:
    """A network as its files say it: ``domains`` are the records that count, None: those that ``cfg`` names."""

    cfg: CfgNode
    weights: Mapping[str, Any]
    path: str
    domains: Sequence[LabelDomain] | None = None


def open_network(
    config: str | os.PathLike | CfgNode,
    weights: str | os.PathLike | None = None,
    device: str | torch.device | None = None,
    opts: Sequence[Any] = (),
) -> tuple[CfgNode, torch.nn.Module]:
    """Build the network without what serves training only, and load its weights.

    Label domains that a checkpoint or a bundle carries are not registered, and no random number is drawn from
    torch's generator.

    Args:
        config: path of a YAML file, or a configuration, to go with ``weights``; or a checkpoint or the folder of a
            bundle, which carry configuration and label domains.
        weights: path or URL of a checkpoint of that configuration; None: its ``MODEL.WEIGHTS``.
        device: "cpu", "cuda" or "cuda:N"; None: as ``opts`` or a configuration say, where this machine has it, else
            a GPU where torch sees one, else the CPU.
        opts: KEY VALUE pairs that go before the configuration.

    Returns:
        The configuration with all that was chosen, and the network in evaluation mode, without gradients.

    Raises:
        SSTConfigError: the configuration cannot be read or built, asks for a device that is not there, or ``opts``
            name label domains or weights where ``config`` or ``weights`` bring them.
        SSTCheckpointError: the weights cannot be read, or do not fit the configuration.
    """
    source = _source(config, weights, opts)
    _refuse_unread(source, weights, opts)
    _choose_device(source.cfg, device, opts)
    cfg = inference_config(source.cfg)
    model = _build(cfg, source.domains, source.path)
    if source.domains is None:
        _check_domains(model, source)
    SSTCheckpointer(model).load_content(source.weights, source.path)
    return cfg, model.eval().requires_grad_(False)


def _source(config: str | os.PathLike | CfgNode, weights: str | os.PathLike | None, opts: Sequence[Any]) -> _Source:
    if isinstance(config, CfgNode):
        return _with_weights(_own_copy(config, opts), weights, "the configuration")
    if not isinstance(config, (str, os.PathLike)):
        raise SSTConfigError(f"config: a {type(config).__name__}; a path or a Detectron2 configuration is expected")
    path = os.fspath(config)
    if path.endswith((".yaml", ".yml")):
        if "://" not in path and not os.path.isfile(path):
            raise SSTConfigError(f"{path}: there is no such file; sst_d2.get_config_file knows the project's own")
        return _with_weights(read_config(path, opts), weights, path)
    if weights is not None:
        raise SSTConfigError(
            f"{path}: brings its own configuration and weights; leave `weights` out, or give a YAML file beside it"
        )
    if os.path.isdir(path):
        return _from_bundle(path, opts)
    return _from_checkpoint(path, opts)


def _refuse_unread(source: _Source, weights: str | os.PathLike | None, opts: Sequence[Any]) -> None:
    """Refuse options that nothing reads: who gives them would take the answers for others than they are."""
    given, carried = dict(zip(opts[::2], opts[1::2], strict=False)), source.domains is not None
    if carried and "MODEL.SST.DOMAINS" in given:
        names = ", ".join(domain.name for domain in source.domains)
        raise SSTConfigError(
            f"MODEL.SST.DOMAINS: {given['MODEL.SST.DOMAINS']!r}; {source.path} brings its own label domains, {names}: "
            "choose one with domain= (--domain), or MODEL.SST.DEFAULT_DOMAIN for where none is asked for"
        )
    if (carried or weights is not None) and "MODEL.WEIGHTS" in given:
        raise SSTConfigError(
            f"MODEL.WEIGHTS: {given['MODEL.WEIGHTS']!r}; the weights are given already, {source.path}: leave this "
            "option out, or give its file in their place"
        )


def _own_copy(config: CfgNode, opts: Sequence[Any]) -> CfgNode:
    if "SST" not in config.MODEL:
        raise SSTConfigError("the configuration has no MODEL.SST; call sst_d2.add_sst_config on it before merging")
    cfg = config.clone()
    cfg.defrost()
    merge_options(cfg, opts)
    return cfg


def _with_weights(cfg: CfgNode, weights: str | os.PathLike | None, name: str) -> _Source:
    path = os.fspath(weights or cfg.MODEL.WEIGHTS)
    if not path or path.startswith(_START_WEIGHTS):
        what = f"MODEL.WEIGHTS is {path!r}, which trains no heads" if path else "MODEL.WEIGHTS is empty"
        raise SSTCheckpointError(
            f"{name}: {what}; prediction needs a trained network: SSTPredictor(config, 'output/…/model_inference.pth')"
        )
    return _Source(cfg, _read(path), path)


def _from_bundle(path: str, opts: Sequence[Any]) -> _Source:
    if not is_bundle(path):
        checkpoints = sorted(name for name in os.listdir(path) if name.endswith(".pth"))
        # The file made for it first, then the end of a training, then the rest.
        best = sorted(checkpoints, key=lambda name: ("inference" not in name, "final" not in name))[:1]
        remedy = f"name the checkpoint: {os.path.join(path, best[0])}" if best else "name a checkpoint (.pth)"
        raise SSTCheckpointError(f"{path}: a folder without {WEIGHTS} is no bundle; {remedy}")
    bundle = read_bundle(path, opts)
    return _Source(bundle.config, {"model": bundle.weights}, path, bundle.domains)


def _from_checkpoint(path: str, opts: Sequence[Any]) -> _Source:
    content = _read(path)
    if not content.get("config") or "label_domains" not in content:
        bundle = f"; or the folder, if a {CONFIG} lies beside it" if path.endswith(".safetensors") else ""
        raise SSTCheckpointError(
            f"{path}: carries no configuration and label domains, so it is no checkpoint of a training of sst_d2; give "
            f"its configuration too: SSTPredictor('config.yaml', '{os.path.basename(path)}'){bundle}"
        )
    try:
        cfg = parse_config(str(content["config"]))
    except SSTConfigError as reason:
        raise SSTCheckpointError(f"{path}: {reason}") from reason
    cfg.MODEL.DEVICE = ""  # of the machine that trained it
    merge_options(cfg, opts)
    return _Source(cfg, content, path, domains_of_records(content["label_domains"], path))


def _read(path: str) -> dict[str, Any]:
    try:
        local = PathManager.get_local_path(path)
    except (OSError, URLError, ValueError, KeyError) as reason:
        raise SSTCheckpointError(
            f"{path}: cannot be had ({reason}); check the address, or fetch the file and give its path"
        ) from reason
    if not os.path.isfile(local):
        raise SSTCheckpointError(f"{path}: there is no such file; give a checkpoint (.pth), a bundle's folder or a URL")
    try:
        return read_checkpoint(local)
    except SSTCheckpointError as reason:
        raise SSTCheckpointError(f"{path}: {reason}") from reason


def _choose_device(cfg: CfgNode, device: str | torch.device | None, opts: Sequence[Any]) -> None:
    if device is not None:
        merge_options(cfg, ["MODEL.DEVICE", str(device)])
    elif "MODEL.DEVICE" not in opts and cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        # What a training on a GPU has written must open on a laptop.
        logging.getLogger(__name__).info(
            "MODEL.DEVICE is '%s', and torch sees no GPU: predicting on the CPU", cfg.MODEL.DEVICE
        )
        cfg.MODEL.DEVICE = "cpu"
    resolve_device(cfg)


def _build(cfg: CfgNode, domains: Sequence[LabelDomain] | None, path: str) -> torch.nn.Module:
    """The network on its device, with random weights; torch's generators are as they were."""
    name, sst = cfg.MODEL.META_ARCHITECTURE, META_ARCH_REGISTRY.get("SST")
    architecture = META_ARCH_REGISTRY.get(name) if name in META_ARCH_REGISTRY else None
    if not isinstance(architecture, type) or not issubclass(architecture, sst):
        raise SSTConfigError(
            f"MODEL.META_ARCHITECTURE: '{name}' is no SST, which SSTPredictor is for; a class of your own must be "
            "derived from sst_d2.SST and registered first"
        )
    try:
        with torch.random.fork_rng(devices=[]):
            model = architecture(cfg) if domains is None else architecture(cfg, domains=domains)
        return model.to(cfg.MODEL.DEVICE)
    except SSTError:
        raise
    except (KeyError, ValueError, TypeError, AttributeError, AssertionError) as reason:
        raise SSTConfigError(
            f"{path}: its network cannot be built here: {reason}. A backbone or decoder of your own must be registered "
            "first"
        ) from reason


def _check_domains(model: torch.nn.Module, source: _Source) -> None:
    """The configuration's label domains must be the checkpoint's, if that says which it has."""
    if "label_domains" not in source.weights:
        return
    theirs = [domain.name for domain in domains_of_records(source.weights["label_domains"], source.path)]
    if sorted(theirs) != sorted(model.domains):
        raise SSTCheckpointError(
            f"{source.path}: its label domains are {', '.join(theirs)}; the configuration asks for "
            f"{', '.join(model.domains)}. Give the configuration of its training, or none: "
            f"SSTPredictor('{source.path}') knows its own"
        )
