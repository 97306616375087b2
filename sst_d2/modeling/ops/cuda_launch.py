"""The operations on CUDA tensors by kernels that NVRTC has compiled: checks, results, launches.

The counterpart of ``csrc/msda_cuda.cu``, which does the same in the extension.
"""

from __future__ import annotations

import ctypes
import functools

import torch

from sst_d2.modeling.ops import cuda_driver, nvrtc
from sst_d2.modeling.ops.launch_plan import MAX_IMAGES, Launch, Problem, Sizes, make_launch, sizes_of, unsupported

# The kernels' names in the sources.
_KERNELS = {
    "ms_deform_attn": "sst_msda_forward",
    "ms_deform_attn_backward": "sst_msda_backward",
    "ms_deform_attn_fused": "sst_msda_forward_fused",
    "ms_deform_attn_fused_backward": "sst_msda_backward_fused",
}
# What the sources call a type, and its number in their enum Kind.
TYPES = {torch.float32: ("float", 0), torch.bfloat16: ("BFloat16", 1), torch.float16: ("Float16", 2)}
_Layout = tuple[tuple[int, ...], torch.dtype]


def launch(
    name: str, tensors: list[torch.Tensor], flat: tuple[int, ...], grad_output: torch.Tensor | None = None
) -> torch.Tensor | tuple[torch.Tensor, ...]:
    """Compute one of the four operations of `sst_d2.modeling.ops.kernels`, on torch's current stream.

    Args:
        name: the operation.
        tensors: value, reference points where fused, locations or offsets, weights or logits; contiguous.
        flat: height, width of each level.
        grad_output: (B, Q, M * D), contiguous, for the backward operations.

    Returns:
        The output, or the gradients of value, positions and weights.

    Raises:
        ValueError: shapes, types or devices do not go together, or are none that the kernels are made for.
        RuntimeError: the compiler or the driver has failed.
    """
    value, *references, positions, weights = tensors
    before = [] if grad_output is None else [grad_output]
    if any(tensor.device != value.device for tensor in [*before, *tensors]):
        raise ValueError(f"{name}: all tensors must be on the device of value, {value.device}")
    plan = _plan(name, flat, tuple((tuple(tensor.shape), tensor.dtype) for tensor in [*before, *tensors]))
    if before:
        of_value = torch.zeros_like(value, dtype=torch.float32)
        results = [of_value, torch.empty_like(positions), torch.empty_like(weights)]
    else:
        results = [value.new_empty(value.shape[0], positions.shape[1], value.shape[2] * value.shape[3])]
    if plan is not None:
        # Copies live until the launch is queued; torch hands their memory out again in the order of the stream.
        inputs = [_aligned(tensor) for tensor in (*before, value, positions, *references, weights)]
        addresses = [tensor.data_ptr() for tensor in (*inputs, *results)]
        if not references:
            addresses.insert(len(inputs) - 1, 0)
        _run(name, value, plan, addresses)
    return (results[0].to(value.dtype), *results[1:]) if before else results[0]


def _aligned(tensor: torch.Tensor) -> torch.Tensor:
    """The kernels read 16 bytes at once; a view may begin anywhere."""
    return tensor.clone() if tensor.data_ptr() % 16 else tensor


@functools.lru_cache(1024)
def _plan(name: str, flat: tuple[int, ...], layouts: tuple[_Layout, ...]) -> Launch | None:
    """Check shapes and types, and lay out the launch; None: there is nothing to compute.

    Args:
        name: the operation.
        flat: height, width of each level.
        layouts: shape and type of the operation's tensors, in its own order.
    """
    fused, backward = "fused" in name, "backward" in name
    names = ["sampling_locations", "attention_weights"]
    if fused:
        names = ["reference_points", "sampling_offsets", "attention_logits"]
    given = dict(zip((*(["grad_output"] if backward else []), "value", *names), layouts))
    (value, value_type), (positions, position_type), (_, weight_type) = given["value"], *layouts[-2:]
    sizes = sizes_of(value, flat, positions, value_type.itemsize)
    for argument, (shape, dtype) in given.items():
        expected = _expected(argument, sizes, shape)
        if shape != expected:
            raise ValueError(f"{name}: {argument} is {shape}; expected is {expected}")
        if dtype not in ([value_type] if argument == "grad_output" else TYPES):
            allowed = "the type of value" if argument == "grad_output" else "float32, bfloat16, float16"
            raise ValueError(f"{name}: {argument} is {dtype}; the CUDA kernels take {allowed}")
    reason = unsupported(sizes)
    if reason:
        raise ValueError(f"{name}: the CUDA kernels cannot do this: {reason}")
    if not sizes.images * sizes.queries * sizes.heads:
        return None
    plan = make_launch(sizes, backward)
    plan.problem.position_kind, plan.problem.weight_kind = TYPES[position_type][1], TYPES[weight_type][1]
    if fused:
        shape, dtype = given["reference_points"]
        plan.problem.reference_kind = TYPES[dtype][1]
        plan.problem.reference_images, plan.problem.reference_levels = shape[0] > 1, shape[2] > 1
    return plan


def _expected(argument: str, sizes: Sizes, given: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that an argument must have."""
    images, queries, heads, levels = sizes.images, sizes.queries, sizes.heads, len(sizes.shapes)
    if argument == "value":
        return (images, sum(height * width for height, width in sizes.shapes), heads, sizes.channels)
    if argument == "grad_output":
        return (images, queries, heads * sizes.channels)
    if argument == "attention_logits":
        return (images, queries, heads, levels * sizes.points)
    if argument == "attention_weights":
        return (images, queries, heads, levels, sizes.points)
    if argument == "reference_points":
        shared = [len(given) == 4 and given[axis] == 1 for axis in (0, 2)]
        return (1 if shared[0] else images, queries, 1 if shared[1] else levels, 2)
    return (images, queries, heads, levels, sizes.points, 2)


def _run(name: str, value: torch.Tensor, plan: Launch, addresses: list[int]) -> None:
    gpu, stream = _place(value)
    kind, driver = TYPES[value.dtype][0], cuda_driver.driver()
    kernels = driver.kernels(
        gpu, kind, plan.lanes, lambda: nvrtc.image(torch.cuda.get_device_capability(gpu), kind, plan.lanes)
    )
    kernel = kernels[_KERNELS[name]]
    pointers = [ctypes.c_void_p(address) for address in addresses]
    problem = Problem.from_buffer_copy(plan.problem)
    for first in range(0, value.shape[0], MAX_IMAGES):
        problem.first_image = first
        grid = (plan.tiles, problem.heads, min(value.shape[0] - first, MAX_IMAGES))
        driver.launch(gpu, kernel, grid, plan.threads, plan.shared_bytes, stream, [*pointers, problem])


def _place(tensor: torch.Tensor) -> tuple[int, int]:
    """Number of the tensor's GPU, and the address of torch's current stream there."""
    gpu = tensor.get_device()
    return gpu, torch.cuda.current_stream(gpu).cuda_stream
