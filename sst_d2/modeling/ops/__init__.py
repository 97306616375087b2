"""Multi-scale deformable attention (Deformable DETR): on every machine, as fast as it can be there; see `backends`."""

from sst_d2.modeling.ops.deform_attn import ms_deform_attn, ms_deform_attn_fused

__all__ = ["ms_deform_attn", "ms_deform_attn_fused"]
