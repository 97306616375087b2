// The C++ binding of the CUDA kernels, compiled for the CPU: `torch.ops.sst_d2_cuda` on CPU tensors, on the emulator.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "cuda_emulator.h"

namespace {

struct NoGuard {
  explicit NoGuard(int) {}
};

AOTITorchError no_stream(int, void**) { return 0; }

AOTITorchError no_message(int, const char*, const char*, unsigned, bool, char**) { return 0; }
void no_free(char*) {}

}  // namespace

namespace torch::stable::accelerator {
using ::NoGuard;
}

// A CPU tensor takes the place of one on a GPU.
#define CUDA CPU
#define is_cuda is_cpu
#define DeviceGuard NoGuard
#define aoti_torch_get_current_cuda_stream no_stream
#define torch_c10_cuda_check_msg no_message
#define torch_c10_cuda_free_error_msg no_free

#include "msda_cuda.cu"

namespace sst_d2::msda {

uint4 shared[48 * 1024 / sizeof(uint4)];

namespace {

const bool ready = [] {
  emulator::shared_memory = {shared, sizeof(shared)};
  return true;
}();

}  // namespace
}  // namespace sst_d2::msda
