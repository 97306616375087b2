// The operations of `torch.ops.sst_d2_cuda`, on the stable ABI of PyTorch (2.10 and newer).
#include "msda_binding.h"
#include "msda_cuda.cuh"
#include "msda_cuda_launch.cuh"

#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <tuple>
#include <vector>

namespace {

using namespace sst_d2::msda;
using sst_d2_binding::check_dimensions;
using sst_d2_binding::check_shape;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Shape = std::vector<int64_t>;
using ThreeTensors = std::tuple<Tensor, Tensor, Tensor>;

using ForwardKernel = void (*)(const char*, const char*, const char*, const char*, char*, Problem);
using BackwardKernel = void (*)(const char*, const char*, const char*, const char*, const char*, float*, char*, char*,
                                Problem);

// ---- arguments -----------------------------------------------------------------------------------------------------

Kind kind_of(const Tensor& tensor, const char* name) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return kFloat32;
    case ScalarType::BFloat16: return kBFloat16;
    case ScalarType::Half: return kFloat16;
    default: break;
  }
  STD_TORCH_CHECK(false, name, " must be float32, bfloat16 or float16 on CUDA");
}

// A tensor that the kernels can read: checked, and copied where a view begins within 16 bytes.
Tensor readable(const Tensor& tensor, const Shape& shape, int device, const char* name) {
  STD_TORCH_CHECK(tensor.is_cuda() && tensor.get_device_index() == device, name, " must be on the GPU of value");
  STD_TORCH_CHECK(tensor.is_contiguous(), name, " must be contiguous");
  check_shape(tensor, shape, name);
  kind_of(tensor, name);
  return reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % 16 ? torch::stable::clone(tensor) : tensor;
}

const char* read(const Tensor& tensor) { return static_cast<const char*>(tensor.const_data_ptr()); }
char* write(const Tensor& tensor) { return static_cast<char*>(tensor.mutable_data_ptr()); }

struct Call {
  Tensor value, positions, weights;
  Tensor references;  // undefined where not fused
  bool fused = false;
  int device = 0;
  Sizes sizes{};

  Launch launch(bool backward) const {
    Launch launch = make_launch(sizes, backward);
    Problem& problem = launch.problem;
    problem.position_kind = kind_of(positions, "positions");
    problem.weight_kind = kind_of(weights, "weights");
    if (fused) {
      problem.reference_kind = kind_of(references, "reference_points");
      problem.reference_images = references.size(0) > 1;
      problem.reference_levels = references.size(2) > 1;
    }
    return launch;
  }

  const char* reference_data() const { return fused ? read(references) : nullptr; }
  bool empty() const { return sizes.images * sizes.queries * sizes.heads == 0; }
};

// Value, positions, and the sizes that follow from them.
Call start(const Tensor& value, const Shape& shapes, const Tensor& positions, const char* positions_name) {
  STD_TORCH_CHECK(value.is_cuda(), "value must be on a GPU");
  check_dimensions(value, 4, "(B, S, M, D)", "value");
  check_dimensions(positions, 6, "(B, Q, M, L, P, 2)", positions_name);
  STD_TORCH_CHECK(shapes.size() % 2 == 0, "spatial_shapes must be height, width of each level");
  Call call;
  call.device = value.get_device_index();
  Sizes& sizes = call.sizes;
  sizes.images = value.size(0), sizes.pixels = value.size(1);
  sizes.heads = value.size(2), sizes.channels = value.size(3);
  sizes.queries = positions.size(1), sizes.points = positions.size(4);
  sizes.levels = static_cast<int64_t>(shapes.size() / 2);
  kind_of(value, "value");
  sizes.value_bytes = static_cast<int>(value.element_size());
  int64_t pixels = 0;
  for (int64_t level = 0; level < std::min<int64_t>(sizes.levels, kMaxLevels); ++level) {
    const int64_t height = shapes[2 * level], width = shapes[2 * level + 1];
    STD_TORCH_CHECK(height > 0 && width > 0 && height < (1 << 24) && width < (1 << 24), "level ", level,
                    ": height and width must be positive and below 2^24");
    sizes.height[level] = height;
    sizes.width[level] = width;
    pixels += height * width;
  }
  const char* reason = unsupported(sizes);
  STD_TORCH_CHECK(!reason, "the CUDA kernels cannot do this: ", reason);
  STD_TORCH_CHECK(pixels == sizes.pixels, "the levels have ", pixels, " pixels, value has ", sizes.pixels);
  call.value = readable(value, {sizes.images, pixels, sizes.heads, sizes.channels}, call.device, "value");
  call.positions = readable(positions, {sizes.images, sizes.queries, sizes.heads, sizes.levels, sizes.points, 2},
                            call.device, positions_name);
  return call;
}

Call start_plain(const Tensor& value, const Shape& shapes, const Tensor& locations, const Tensor& weights) {
  Call call = start(value, shapes, locations, "sampling_locations");
  const Sizes& sizes = call.sizes;
  call.weights = readable(weights, {sizes.images, sizes.queries, sizes.heads, sizes.levels, sizes.points}, call.device,
                          "attention_weights");
  return call;
}

Call start_fused(const Tensor& value, const Shape& shapes, const Tensor& references, const Tensor& offsets,
                 const Tensor& logits) {
  Call call = start(value, shapes, offsets, "sampling_offsets");
  const Sizes& sizes = call.sizes;
  call.weights = readable(logits, {sizes.images, sizes.queries, sizes.heads, sizes.levels * sizes.points}, call.device,
                          "attention_logits");
  check_dimensions(references, 4, "(B or 1, Q, L or 1, 2)", "reference_points");
  const int64_t images = references.size(0) == 1 ? 1 : sizes.images;
  const int64_t levels = references.size(2) == 1 ? 1 : sizes.levels;
  call.references = readable(references, {images, sizes.queries, levels, 2}, call.device, "reference_points");
  call.fused = true;
  return call;
}

// ---- launching -----------------------------------------------------------------------------------------------------

template <typename T, bool kFused>
ForwardKernel forward_kernel(int lanes) {
  switch (lanes) {
    case 2: return &forward<T, 2, kFused>;
    case 4: return &forward<T, 4, kFused>;
    case 8: return &forward<T, 8, kFused>;
    case 16: return &forward<T, 16, kFused>;
    default: break;
  }
  if constexpr (sizeof(T) == 4) return &forward<T, 32, kFused>;
  return nullptr;
}

template <typename T, bool kFused>
BackwardKernel backward_kernel(int lanes) {
  switch (lanes) {
    case 2: return &backward<T, 2, kFused>;
    case 4: return &backward<T, 4, kFused>;
    case 8: return &backward<T, 8, kFused>;
    case 16: return &backward<T, 16, kFused>;
    default: break;
  }
  if constexpr (sizeof(T) == 4) return &backward<T, 32, kFused>;
  return nullptr;
}

ForwardKernel forward_kernel(const Call& call, int lanes) {
  switch (kind_of(call.value, "value")) {
    case kFloat32: return call.fused ? forward_kernel<float, true>(lanes) : forward_kernel<float, false>(lanes);
    case kBFloat16: return call.fused ? forward_kernel<BFloat16, true>(lanes) : forward_kernel<BFloat16, false>(lanes);
    default: return call.fused ? forward_kernel<Float16, true>(lanes) : forward_kernel<Float16, false>(lanes);
  }
}

BackwardKernel backward_kernel(const Call& call, int lanes) {
  switch (kind_of(call.value, "value")) {
    case kFloat32: return call.fused ? backward_kernel<float, true>(lanes) : backward_kernel<float, false>(lanes);
    case kBFloat16:
      return call.fused ? backward_kernel<BFloat16, true>(lanes) : backward_kernel<BFloat16, false>(lanes);
    default: return call.fused ? backward_kernel<Float16, true>(lanes) : backward_kernel<Float16, false>(lanes);
  }
}

// Launch for all images, on torch's current stream of the value's GPU, which is made the current one.
template <typename Kernel, typename... Arguments>
void run(const Call& call, Launch launch, Kernel kernel, Arguments... arguments) {
  const torch::stable::accelerator::DeviceGuard guard(call.device);
  // This library has a CUDA runtime of its own, which is to use the same GPU.
  STD_CUDA_CHECK(cudaSetDevice(call.device));
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(call.device, &stream));
  Problem& problem = launch.problem;
  const int images = static_cast<int>(call.sizes.images);
  for (problem.first_image = 0; problem.first_image < images; problem.first_image += kMaxImages) {
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(launch.tiles, problem.heads, std::min(images - problem.first_image, kMaxImages));
    config.blockDim = dim3(launch.threads);
    config.dynamicSmemBytes = launch.shared_bytes;
    config.stream = static_cast<cudaStream_t>(stream);
    STD_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, arguments..., problem));
  }
}

Tensor run_forward(const Call& call) {
  const Sizes& sizes = call.sizes;
  const Shape shape{sizes.images, sizes.queries, sizes.heads * sizes.channels};
  Tensor output = torch::stable::new_empty(call.value, shape);
  if (call.empty()) return output;
  const Launch launch = call.launch(false);
  run(call, launch, forward_kernel(call, launch.lanes), read(call.value), read(call.positions), call.reference_data(),
      read(call.weights), write(output));
  return output;
}

ThreeTensors run_backward(const Call& call, const Tensor& grad_output) {
  const Sizes& sizes = call.sizes;
  const Tensor gradient = readable(grad_output, {sizes.images, sizes.queries, sizes.heads * sizes.channels},
                                   call.device, "grad_output");
  STD_TORCH_CHECK(gradient.scalar_type() == call.value.scalar_type(), "grad_output must have the type of value");
  Tensor grad_value = torch::stable::new_zeros(call.value, call.value.sizes(), ScalarType::Float);
  Tensor grad_positions = torch::stable::new_empty(call.positions, call.positions.sizes());
  Tensor grad_weights = torch::stable::new_empty(call.weights, call.weights.sizes());
  if (!call.empty()) {
    const Launch launch = call.launch(true);
    run(call, launch, backward_kernel(call, launch.lanes), read(gradient), read(call.value), read(call.positions),
        call.reference_data(), read(call.weights), reinterpret_cast<float*>(write(grad_value)), write(grad_positions),
        write(grad_weights));
  }
  if (call.value.scalar_type() != ScalarType::Float)
    grad_value = torch::stable::to(grad_value, call.value.scalar_type());
  return {grad_value, grad_positions, grad_weights};
}

// ---- the operations ------------------------------------------------------------------------------------------------

Tensor ms_deform_attn(const Tensor& value, Shape shapes, const Tensor& locations, const Tensor& weights) {
  return run_forward(start_plain(value, shapes, locations, weights));
}

ThreeTensors ms_deform_attn_backward(const Tensor& grad_output, const Tensor& value, Shape shapes,
                                     const Tensor& locations, const Tensor& weights) {
  return run_backward(start_plain(value, shapes, locations, weights), grad_output);
}

Tensor ms_deform_attn_fused(const Tensor& value, Shape shapes, const Tensor& references, const Tensor& offsets,
                            const Tensor& logits) {
  return run_forward(start_fused(value, shapes, references, offsets, logits));
}

ThreeTensors ms_deform_attn_fused_backward(const Tensor& grad_output, const Tensor& value, Shape shapes,
                                           const Tensor& references, const Tensor& offsets, const Tensor& logits) {
  return run_backward(start_fused(value, shapes, references, offsets, logits), grad_output);
}

}  // namespace

STABLE_TORCH_LIBRARY(sst_d2_cuda, library) {
  library.def(
      "ms_deform_attn(Tensor value, int[] spatial_shapes, Tensor sampling_locations, Tensor attention_weights)"
      " -> Tensor");
  library.def(
      "ms_deform_attn_backward(Tensor grad_output, Tensor value, int[] spatial_shapes, Tensor sampling_locations, "
      "Tensor attention_weights) -> (Tensor, Tensor, Tensor)");
  library.def(
      "ms_deform_attn_fused(Tensor value, int[] spatial_shapes, Tensor reference_points, Tensor sampling_offsets, "
      "Tensor attention_logits) -> Tensor");
  library.def(
      "ms_deform_attn_fused_backward(Tensor grad_output, Tensor value, int[] spatial_shapes, Tensor reference_points, "
      "Tensor sampling_offsets, Tensor attention_logits) "
      "-> (Tensor grad_value, Tensor grad_offsets, Tensor grad_logits)");
  library.def("version() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(sst_d2_cuda, CUDA, library) {
  library.impl("ms_deform_attn", TORCH_BOX(&ms_deform_attn));
  library.impl("ms_deform_attn_backward", TORCH_BOX(&ms_deform_attn_backward));
  library.impl("ms_deform_attn_fused", TORCH_BOX(&ms_deform_attn_fused));
  library.impl("ms_deform_attn_fused_backward", TORCH_BOX(&ms_deform_attn_fused_backward));
}

STABLE_TORCH_LIBRARY_IMPL(sst_d2_cuda, CompositeExplicitAutograd, library) {
  library.impl("version", TORCH_BOX(&sst_d2_binding::version));
}
