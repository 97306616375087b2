// The operations of `torch.ops.sst_d2_cpu`, on the stable ABI of PyTorch (2.10 and newer).
#include "msda_binding.h"
#include "msda_cpu.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <atomic>
#include <tuple>
#include <vector>

namespace {

using sst_d2_cpu::Call;
using sst_d2_cpu::Kernels;
using sst_d2_cpu::Source;
using sst_d2_cpu::Target;
using sst_d2_cpu::Type;
using sst_d2_binding::check_dimensions;
using sst_d2_binding::check_shape;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Sizes = std::vector<int64_t>;
using Gradients = std::tuple<Tensor, Tensor, Tensor>;

// ---- the instruction set -------------------------------------------------------------------------------------------

std::atomic<int64_t> bits_limit{512};

const Kernels& kernels_for(int64_t limit) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx2 && avx512 && limit >= 512) return sst_d2_cpu::kernels_avx512;
  if (avx2 && limit >= 256) return sst_d2_cpu::kernels_avx2;
#endif
  return sst_d2_cpu::kernels_baseline;
}

// Sets the widest vectors to use (bits) and tells which are used then.
int64_t vector_bits(int64_t limit) {
  bits_limit = limit;
  return kernels_for(limit).bits;
}

// ---- arguments -----------------------------------------------------------------------------------------------------

Type type_of(const Tensor& tensor, const char* name) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return Type::kFloat32;
    case ScalarType::Double: return Type::kFloat64;
    case ScalarType::BFloat16: return Type::kBFloat16;
    case ScalarType::Half: return Type::kFloat16;
    default: break;
  }
  STD_TORCH_CHECK(false, name, " must be float32, float64, bfloat16 or float16");
}

Source source_of(const Tensor& tensor, const Sizes& sizes, const char* name) {
  STD_TORCH_CHECK(tensor.is_cpu(), name, " must be on the CPU");
  STD_TORCH_CHECK(tensor.is_contiguous(), name, " must be contiguous");
  check_shape(tensor, sizes, name);
  return {tensor.const_data_ptr(), type_of(tensor, name), tensor.numel()};
}

Target target_of(const Tensor& tensor) { return {tensor.mutable_data_ptr(), type_of(tensor, "output")}; }

Tensor empty(const Sizes& sizes, ScalarType type) { return torch::stable::empty(sizes, type); }

// Value, positions (locations or offsets), and the sizes that follow from them.
Call start(const Tensor& value, const Sizes& shapes, const Tensor& positions, const char* positions_name) {
  check_dimensions(value, 4, "(B, S, M, D)", "value");
  check_dimensions(positions, 6, "(B, Q, M, L, P, 2)", positions_name);
  const auto levels = static_cast<int64_t>(shapes.size() / 2);
  STD_TORCH_CHECK(shapes.size() % 2 == 0 && levels >= 1 && levels <= sst_d2_cpu::kMaxLevels,
                  "spatial_shapes must be height, width of 1 to ", sst_d2_cpu::kMaxLevels, " levels");
  Call call = {};
  call.batch = value.size(0), call.pixels = value.size(1), call.heads = value.size(2), call.channels = value.size(3);
  call.queries = positions.size(1);
  call.levels = static_cast<int32_t>(levels), call.points = static_cast<int32_t>(positions.size(4));
  STD_TORCH_CHECK(positions.size(4) >= 1 && positions.size(4) <= sst_d2_cpu::kMaxPoints, "there must be 1 to ",
                  sst_d2_cpu::kMaxPoints, " points, not ", positions.size(4));
  int64_t pixels = 0;
  for (int64_t l = 0; l < levels; ++l) {
    const int64_t height = shapes[2 * l], width = shapes[2 * l + 1];
    STD_TORCH_CHECK(height > 0 && width > 0 && height < (1 << 24) && width < (1 << 24) && height * width < (1LL << 31),
                    "level ", l, ": its size must be positive and below 2^31 pixels");
    call.level[l] = {pixels, static_cast<int32_t>(height), static_cast<int32_t>(width)};
    pixels += height * width;
  }
  STD_TORCH_CHECK(pixels == call.pixels && pixels < (1LL << 31), "the levels have ", pixels, " pixels, value has ",
                  call.pixels);
  call.value = source_of(value, {call.batch, pixels, call.heads, call.channels}, "value");
  const Sizes pairs = {call.batch, call.queries, call.heads, levels, call.points, 2};
  call.places = source_of(positions, pairs, positions_name);
  return call;
}

Call start_plain(const Tensor& value, const Sizes& shapes, const Tensor& locations, const Tensor& weights) {
  Call call = start(value, shapes, locations, "sampling_locations");
  const Sizes samples = {call.batch, call.queries, call.heads, call.levels, call.points};
  call.weights = source_of(weights, samples, "attention_weights");
  return call;
}

Call start_fused(const Tensor& value, const Sizes& shapes, const Tensor& references, const Tensor& offsets,
                 const Tensor& logits) {
  Call call = start(value, shapes, offsets, "sampling_offsets");
  call.weights =
      source_of(logits, {call.batch, call.queries, call.heads, call.levels * call.points}, "attention_logits");
  check_dimensions(references, 4, "(B or 1, Q, L or 1, 2)", "reference_points");
  call.reference_images = references.size(0) == 1 ? 1 : call.batch;
  call.reference_levels = references.size(2) == 1 ? 1 : call.levels;
  call.references =
      source_of(references, {call.reference_images, call.queries, call.reference_levels, 2}, "reference_points");
  call.fused = true;
  return call;
}

// ---- running -------------------------------------------------------------------------------------------------------

// Calls with few numbers stay on one thread: starting others would take longer.
int64_t threads_for(const Call& call) {
  const int64_t numbers = call.batch * call.queries * call.heads * call.levels * call.points * call.channels;
  return numbers < (1 << 16) ? 1 : std::max<int64_t>(torch::stable::get_num_threads(), 1);
}

const Kernels& kernels_of(const Call& call) {
  return call.value.type == Type::kFloat64 ? sst_d2_cpu::kernels_double : kernels_for(bits_limit);
}

// Threads take the next task when they have done one, so that a slow core does less.
void run_tasks(const Call& call, int64_t threads, void (*task)(const Call&, int64_t, void*)) {
  const int64_t workers = std::min(threads, call.tasks);
  if (workers == 0) return;
  const int64_t scratch = (call.scratch + 63) / 64 * 64;
  const Tensor memory = empty({workers * scratch}, ScalarType::Byte);
  char* data = static_cast<char*>(memory.mutable_data_ptr());
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, workers, 1, [&](int64_t first, int64_t) {
    for (int64_t i = next++; i < call.tasks; i = next++) task(call, i, data + first * scratch);
  });
}

Tensor run_forward(Call& call, const Tensor& value) {
  Tensor output = empty({call.batch, call.queries, call.heads * call.channels}, value.scalar_type());
  if (output.numel() == 0) return output;
  call.output = target_of(output);
  const Kernels& kernels = kernels_of(call);
  const int64_t threads = threads_for(call);
  plan_forward(kernels, threads, call);
  run_tasks(call, threads, kernels.forward);
  return output;
}

Gradients run_backward(Call& call, const Tensor& grad_output, const Tensor& value, const Tensor& positions,
                       const Tensor& weights) {
  call.grad_output = source_of(grad_output, {call.batch, call.queries, call.heads * call.channels}, "grad_output");
  Gradients grads{empty_like(value), empty_like(positions), empty_like(weights)};
  call.grad_value = target_of(std::get<0>(grads));
  call.grad_places = target_of(std::get<1>(grads));
  call.grad_weights = target_of(std::get<2>(grads));
  const Kernels& kernels = kernels_of(call);
  const int64_t threads = threads_for(call), rows = call.batch * call.queries * call.heads;
  plan_backward(kernels, threads, call);
  if (!call.fused || (!call.levels_apart && call.parts == 1)) {
    run_tasks(call, threads, kernels.backward);
    return grads;
  }
  // No task sees all samples of a query: softmax and its gradient are steps of their own.
  const auto computing = call.value.type == Type::kFloat64 ? ScalarType::Double : ScalarType::Float;
  const bool in_place = weights.scalar_type() == computing;
  const Tensor shares = empty({weights.numel()}, computing);
  const Tensor pulls = in_place ? std::get<2>(grads) : empty({weights.numel()}, computing);
  const int64_t grain = (rows + threads - 1) / threads;
  call.shares = shares.mutable_data_ptr();
  call.pulls = pulls.mutable_data_ptr();
  torch::stable::parallel_for(0, rows, grain, [&](int64_t a, int64_t b) { kernels.softmax(call, a, b); });
  run_tasks(call, threads, kernels.backward);
  torch::stable::parallel_for(0, rows, grain, [&](int64_t a, int64_t b) { kernels.softmax_backward(call, a, b); });
  return grads;
}

// ---- the operations ------------------------------------------------------------------------------------------------

Tensor ms_deform_attn(const Tensor& value, Sizes shapes, const Tensor& locations, const Tensor& weights) {
  Call call = start_plain(value, shapes, locations, weights);
  return run_forward(call, value);
}

Gradients ms_deform_attn_backward(const Tensor& grad_output, const Tensor& value, Sizes shapes, const Tensor& locations,
                                  const Tensor& weights) {
  Call call = start_plain(value, shapes, locations, weights);
  return run_backward(call, grad_output, value, locations, weights);
}

Tensor ms_deform_attn_fused(const Tensor& value, Sizes shapes, const Tensor& references, const Tensor& offsets,
                            const Tensor& logits) {
  Call call = start_fused(value, shapes, references, offsets, logits);
  return run_forward(call, value);
}

Gradients ms_deform_attn_fused_backward(const Tensor& grad_output, const Tensor& value, Sizes shapes,
                                        const Tensor& references, const Tensor& offsets, const Tensor& logits) {
  Call call = start_fused(value, shapes, references, offsets, logits);
  return run_backward(call, grad_output, value, offsets, logits);
}

}  // namespace

STABLE_TORCH_LIBRARY(sst_d2_cpu, m) {
  m.def("ms_deform_attn(Tensor value, int[] spatial_shapes, Tensor sampling_locations, Tensor attention_weights)"
        " -> Tensor");
  m.def("ms_deform_attn_backward(Tensor grad_output, Tensor value, int[] spatial_shapes, Tensor sampling_locations,"
        " Tensor attention_weights) -> (Tensor, Tensor, Tensor)");
  m.def("ms_deform_attn_fused(Tensor value, int[] spatial_shapes, Tensor reference_points, Tensor sampling_offsets,"
        " Tensor attention_logits) -> Tensor");
  m.def("ms_deform_attn_fused_backward(Tensor grad_output, Tensor value, int[] spatial_shapes, Tensor reference_points,"
        " Tensor sampling_offsets, Tensor attention_logits) -> (Tensor, Tensor, Tensor)");
  m.def("vector_bits(int limit) -> int");
  m.def("version() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(sst_d2_cpu, CPU, m) {
  m.impl("ms_deform_attn", TORCH_BOX(&ms_deform_attn));
  m.impl("ms_deform_attn_backward", TORCH_BOX(&ms_deform_attn_backward));
  m.impl("ms_deform_attn_fused", TORCH_BOX(&ms_deform_attn_fused));
  m.impl("ms_deform_attn_fused_backward", TORCH_BOX(&ms_deform_attn_fused_backward));
}

STABLE_TORCH_LIBRARY_IMPL(sst_d2_cpu, CompositeExplicitAutograd, m) {
  m.impl("vector_bits", TORCH_BOX(&vector_bits));
  m.impl("version", TORCH_BOX(&sst_d2_binding::version));
}
