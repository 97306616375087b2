"""The optimiser of the paper's recipe: AdamW with parameter groups, gradients clipped over the whole model (A26)."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.solver.build import maybe_add_gradient_clipping
from torch import nn

# Weight decay would pull places together (the first two say where, not what), and make probabilities equal (the last).
_WITHOUT_DECAY = ("relative_position_bias_table", "level_embedding", "relation_logits")
# The logarithms among them have several units to go, whatever the network's learning rate.
_FASTER = {"relation_logits": 10.0}
_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.BatchNorm2d, nn.SyncBatchNorm)


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """AdamW over `parameter_groups`.

    ``SOLVER.CLIP_GRADIENTS.CLIP_TYPE`` "full_model" is left to the trainer's step; Detectron2's own types clip
    inside the optimiser.
    """
    decay = cfg.SOLVER.WEIGHT_DECAY
    groups = parameter_groups(
        model,
        base_lr=cfg.SOLVER.BASE_LR,
        backbone_multiplier=cfg.SOLVER.SST.BACKBONE_MULTIPLIER,
        weight_decay=decay,
        weight_decay_norm=decay if cfg.SOLVER.WEIGHT_DECAY_NORM is None else cfg.SOLVER.WEIGHT_DECAY_NORM,
        weight_decay_bias=decay if cfg.SOLVER.WEIGHT_DECAY_BIAS is None else cfg.SOLVER.WEIGHT_DECAY_BIAS,
    )
    optimizer = torch.optim.AdamW
    if full_model_clip(cfg) is None:
        optimizer = maybe_add_gradient_clipping(cfg, optimizer)
    # One kernel for all parameters; of a small network the loop over parameters takes a tenth of a step.
    return optimizer(groups, cfg.SOLVER.BASE_LR, fused=True)


def full_model_clip(cfg: CfgNode) -> float | None:
    """The largest norm of all gradients together; None: they are not clipped together."""
    clip = cfg.SOLVER.CLIP_GRADIENTS
    return clip.CLIP_VALUE if clip.ENABLED and clip.CLIP_TYPE == "full_model" else None


def parameter_groups(
    model: nn.Module,
    base_lr: float,
    backbone_multiplier: float,
    weight_decay: float,
    weight_decay_norm: float,
    weight_decay_bias: float,
) -> list[dict[str, Any]]:
    """Group the trainable parameters by learning rate and weight decay; each occurs once.

    Args:
        model: parameters below ``backbone.`` learn at ``base_lr * backbone_multiplier``.
        base_lr: of all others; maps between label systems learn ten times as fast.
        backbone_multiplier: see above.
        weight_decay: of weights.
        weight_decay_norm: of the parameters of normalisation layers.
        weight_decay_bias: of other biases. Position tables, level embeddings and maps between label systems have none.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    seen: set[nn.Parameter] = set()
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or parameter in seen:
                continue
            seen.add(parameter)
            lr = base_lr * (backbone_multiplier if module_name.startswith("backbone") else _FASTER.get(name, 1.0))
            if isinstance(module, _NORMS):
                decay = weight_decay_norm
            elif name in _WITHOUT_DECAY:
                decay = 0.0
            else:
                decay = weight_decay_bias if name.endswith("bias") else weight_decay
            groups.setdefault((lr, decay), []).append(parameter)
    return [{"params": params, "lr": lr, "weight_decay": decay} for (lr, decay), params in groups.items()]
