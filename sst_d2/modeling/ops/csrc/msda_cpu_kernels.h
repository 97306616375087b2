// All kernels for one instruction set: MSDA_NAME is their namespace, MSDA_BITS the width of a vector. The file that
// includes this one has chosen the instructions (`#pragma GCC target`) after the standard headers, so that no shared
// function is compiled for them.
#include "msda_cpu.h"
#include "msda_cpu_vector.h"
#include "msda_cpu_arrays.h"
#include "msda_cpu_plan.h"
#include "msda_cpu_forward.h"
#include "msda_cpu_backward.h"
#include "msda_cpu_gradients.h"

namespace sst_d2_cpu {
namespace MSDA_NAME {

inline void forward(const Call& call, int64_t task, void* scratch) {
  if (call.packed) return forward_packed<float>(call, task, scratch);
  if (call.value.type == Type::kFloat32) return forward_direct<float, float>(call, task, scratch);
  if (call.value.type == Type::kBFloat16) return forward_direct<float, BFloat16>(call, task, scratch);
  return forward_direct<float, Float16>(call, task, scratch);
}

// For all types of value but float64.
constexpr Kernels kSingle = {
    MSDA_BITS, forward, backward_band<float>, softmax_rows<float>, softmax_backward_rows<float>,
};

}  // namespace MSDA_NAME
}  // namespace sst_d2_cpu
