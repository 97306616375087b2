"""Multi-scale deformable attention (Deformable DETR), in plain PyTorch: nothing to compile."""

from sst_d2.modeling.ops.deform_attn import ms_deform_attn, ms_deform_attn_fused

__all__ = ["ms_deform_attn", "ms_deform_attn_fused"]
