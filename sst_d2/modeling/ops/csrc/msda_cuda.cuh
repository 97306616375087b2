// Multi-scale deformable attention on CUDA: the kernels, forward and backward, of the plain and the fused operation.
//
// One block: a tile of queries of one image and one head. First all threads plan the tile's samples in shared memory
// (msda_cuda_plan.cuh). Then `kLanes` neighbouring threads work on a row (a query), 16 bytes of its channels each.
// Arithmetic is fp32. Grid, block, shared memory and arguments: msda_cuda_launch.cuh.
#pragma once

#include "msda_cuda_backward.cuh"
#include "msda_cuda_forward.cuh"

namespace sst_d2::msda {

#define SST_MSDA_FORWARD_ARGUMENTS                                                                                 \
  const char *value, const char *positions, const char *references, const char *weights, char *output,             \
      const __grid_constant__ Problem problem
#define SST_MSDA_BACKWARD_ARGUMENTS                                                                                \
  const char *grad_output, const char *value, const char *positions, const char *references, const char *weights,  \
      float *grad_value, char *grad_positions, char *grad_weights, const __grid_constant__ Problem problem

template <typename T, int kLanes, bool kFused>
__global__ void __launch_bounds__(kMaxThreads, kForwardBlocks) forward(SST_MSDA_FORWARD_ARGUMENTS) {
  forward_tile<T, kLanes, kFused>(value, Sampling{positions, references, weights}, output, problem);
}

template <typename T, int kLanes, bool kFused>
__global__ void __launch_bounds__(kMaxThreads, kBackwardBlocks) backward(SST_MSDA_BACKWARD_ARGUMENTS) {
  backward_tile<T, kLanes, kFused>(value, Sampling{positions, references, weights},
                                   Gradients{grad_output, grad_value, grad_positions, grad_weights}, problem);
}

// For a compiler at run time: kernels of one type and number of lanes, under names that need no look-up.
#ifdef SST_MSDA_VALUE
#define SST_MSDA_ENTRIES(suffix, fused)                                                                            \
  extern "C" __global__ void __launch_bounds__(kMaxThreads, kForwardBlocks)                                        \
      sst_msda_forward##suffix(SST_MSDA_FORWARD_ARGUMENTS) {                                                       \
    forward_tile<SST_MSDA_VALUE, SST_MSDA_LANES, fused>(value, Sampling{positions, references, weights}, output,   \
                                                        problem);                                                  \
  }                                                                                                                \
  extern "C" __global__ void __launch_bounds__(kMaxThreads, kBackwardBlocks)                                       \
      sst_msda_backward##suffix(SST_MSDA_BACKWARD_ARGUMENTS) {                                                     \
    backward_tile<SST_MSDA_VALUE, SST_MSDA_LANES, fused>(                                                          \
        value, Sampling{positions, references, weights},                                                           \
        Gradients{grad_output, grad_value, grad_positions, grad_weights}, problem);                                \
  }
SST_MSDA_ENTRIES(, false)
SST_MSDA_ENTRIES(_fused, true)
#undef SST_MSDA_ENTRIES
#endif

#undef SST_MSDA_FORWARD_ARGUMENTS
#undef SST_MSDA_BACKWARD_ARGUMENTS

}  // namespace sst_d2::msda
