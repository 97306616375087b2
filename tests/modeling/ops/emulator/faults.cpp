// Kernels with one fault each, that of the first argument, for which the emulator must stop.
#include "cuda_emulator.h"

#include <string>

extern __shared__ float shared[];

namespace {

__global__ void wrong_mask(float* output) { *output = __shfl_xor_sync(0x0000ffffu, 1.0f, 1); }

__global__ void reads_outside_mask(float* output) {
  if (threadIdx.x < 16) *output = __shfl_xor_sync(0x0000ffffu, 1.0f, 16);
}

__global__ void leaves_before_shuffle(float* output) {
  if (threadIdx.x == 5) return;
  *output = __shfl_xor_sync(0xffffffffu, 1.0f, 1);
}

__global__ void leaves_before_barrier(float*) {
  if (threadIdx.x == 5) return;
  __syncthreads();
}

__global__ void too_much_shared(float*) { shared[threadIdx.x + 1] = 1.0f; }

// Sound but for its missing barriers: only ThreadSanitizer sees it.
__global__ void no_barrier(float* output) {
  shared[threadIdx.x] = 1.0f;
  output[threadIdx.x] = shared[threadIdx.x ^ 32];
}

__global__ void shuffle_for_barrier(float* output) {
  shared[threadIdx.x] = 1.0f;
  output[threadIdx.x] = __shfl_xor_sync(0xffffffffu, 1.0f, 1) + shared[threadIdx.x ^ 1];
}

__global__ void plain_addition(float* output) { *output += 1.0f; }

// Nothing is wrong with this one.
__global__ void sound(float* output) {
  shared[threadIdx.x] = static_cast<float>(threadIdx.x);
  __syncthreads();
  const float other = shared[threadIdx.x ^ 32];
  __syncthreads();
  shared[threadIdx.x] = other;
  __syncwarp();
  output[threadIdx.x] = shared[threadIdx.x ^ 1] + __shfl_xor_sync(0xffffffffu, other, 1);
  atomicAdd(output + 64, 1.0f);
}

}  // namespace

alignas(16) float shared[1024];

int main(int, char** arguments) {
  emulator::shared_memory = {shared, sizeof(shared)};
  static float output[65];
  const std::string fault = arguments[1];
  for (auto [name, kernel] : {std::pair{"wrong_mask", &wrong_mask},
                              {"reads_outside_mask", &reads_outside_mask},
                              {"leaves_before_shuffle", &leaves_before_shuffle},
                              {"leaves_before_barrier", &leaves_before_barrier},
                              {"too_much_shared", &too_much_shared},
                              {"no_barrier", &no_barrier},
                              {"shuffle_for_barrier", &shuffle_for_barrier},
                              {"plain_addition", &plain_addition},
                              {"sound", &sound}})
    if (fault == name) emulator::launch(kernel, dim3(2), dim3(64), 64 * sizeof(float), output);
  if (fault != "sound") return 0;
  for (unsigned i = 0; i < 64; ++i)
    if (output[i] != 2.0f * static_cast<float>(i ^ 33)) return 1;
  return output[64] == 128.0f ? 0 : 1;
}
