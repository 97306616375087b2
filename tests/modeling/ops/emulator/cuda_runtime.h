// What the C++ binding of the CUDA kernels needs of the CUDA runtime, on the emulator.
#pragma once

#include "cuda_emulator.h"

using cudaError_t = int;
using cudaStream_t = void*;

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  std::size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
};

inline cudaError_t cudaSetDevice(int) { return 0; }

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  emulator::launch(kernel, config->gridDim, config->blockDim, config->dynamicSmemBytes, arguments...);
  return 0;
}
