// A stand-in of libcuda for Python's launcher: checks what it is asked for and runs the kernels on the emulator, on
// addresses of the CPU's memory. A "module" is the text TYPE,LANES instead of compiled code.
#include "cuda_emulator.h"

#include "msda_cuda.cuh"
#include "msda_cuda_launch.cuh"

#include <cstdint>
#include <string>

namespace sst_d2::msda {

uint4 shared[48 * 1024 / sizeof(uint4)];

}  // namespace sst_d2::msda

namespace {

using namespace sst_d2::msda;

constexpr int kInvalidValue = 1, kInvalidContext = 201, kNotFound = 500, kMisaligned = 716, kLaunchFailed = 719;

struct Module {
  int device;
  std::string type;
  int lanes;
};

struct Kernel {
  Module module;
  bool backward, fused;
};

// What the tests look at and set.
struct Record {
  int launches, modules, contexts, last_device, last_images, failure;
  void* last_stream;
};

Record record{};
int devices[8];  // their addresses are the primary contexts
void* current[8];
int depth = 0;

int current_device() { return depth ? static_cast<int>(static_cast<int*>(current[depth - 1]) - devices) : -1; }

template <typename T>
T argument(void** arguments, int index) {
  return *static_cast<T*>(arguments[index]);
}

template <typename T, int kLanes, bool kFused>
void run(bool back, dim3 grid, dim3 block, unsigned bytes, void** at) {
  using In = const char*;
  using Out = char*;
  if (back) {
    emulator::launch(&backward<T, kLanes, kFused>, grid, block, bytes, argument<In>(at, 0), argument<In>(at, 1),
                     argument<In>(at, 2), argument<In>(at, 3), argument<In>(at, 4), argument<float*>(at, 5),
                     argument<Out>(at, 6), argument<Out>(at, 7), argument<Problem>(at, 8));
  } else {
    emulator::launch(&forward<T, kLanes, kFused>, grid, block, bytes, argument<In>(at, 0), argument<In>(at, 1),
                     argument<In>(at, 2), argument<In>(at, 3), argument<Out>(at, 4), argument<Problem>(at, 5));
  }
}

template <typename T>
int run_type(const Kernel& kernel, dim3 grid, dim3 block, unsigned bytes, void** at) {
  const auto choose = [&](auto lanes) {
    kernel.fused ? run<T, lanes(), true>(kernel.backward, grid, block, bytes, at)
                 : run<T, lanes(), false>(kernel.backward, grid, block, bytes, at);
    return 0;
  };
  switch (kernel.module.lanes) {
    case 2: return choose(std::integral_constant<int, 2>{});
    case 4: return choose(std::integral_constant<int, 4>{});
    case 8: return choose(std::integral_constant<int, 8>{});
    default: return kNotFound;
  }
}

}  // namespace

extern "C" {

Record* stand_in_record() { return &record; }

const char* stand_in_unsupported(const Sizes* sizes) { return unsupported(*sizes); }
void stand_in_launch(const Sizes* sizes, int backward, Launch* launch) { *launch = make_launch(*sizes, backward); }

int cuDeviceGet(int* device, int ordinal) {
  *device = ordinal;
  return ordinal >= 0 && ordinal < 8 ? 0 : kInvalidValue;
}

int cuDevicePrimaryCtxRetain(void** context, int device) {
  ++record.contexts;
  *context = &devices[device];
  return 0;
}

int cuCtxPushCurrent_v2(void* context) {
  if (depth == 8) return kInvalidContext;  // nobody puts them away
  current[depth++] = context;
  return 0;
}

int cuCtxPopCurrent_v2(void** context) {
  if (depth == 0) return kInvalidContext;
  *context = current[--depth];
  return 0;
}

int cuModuleLoadData(void** module, const char* image) {
  if (depth == 0) return kInvalidContext;
  const std::string text = image;
  const auto comma = text.find(',');
  if (comma == std::string::npos) return kInvalidValue;
  ++record.modules;
  *module = new Module{current_device(), text.substr(0, comma), std::stoi(text.substr(comma + 1))};
  return 0;
}

int cuModuleGetFunction(void** function, const Module* module, const char* name) {
  for (const bool backward : {false, true}) {
    for (const bool fused : {false, true}) {
      const std::string known = std::string(backward ? "sst_msda_backward" : "sst_msda_forward");
      if (name != known + (fused ? "_fused" : "")) continue;
      *function = new Kernel{*module, backward, fused};
      return 0;
    }
  }
  return kNotFound;
}

int cuLaunchKernel(const Kernel* kernel, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                   unsigned block_y, unsigned block_z, unsigned bytes, void* stream, void** arguments, void** extra) {
  if (current_device() != kernel->module.device) return kInvalidContext;
  if (record.failure) return record.failure;
  for (int i = 0; i < (kernel->backward ? 8 : 5); ++i)
    if (argument<std::uintptr_t>(arguments, i) % 16) return kMisaligned;
  if (extra || grid_z > 65535 || grid_y > 65535 || bytes > 48 * 1024) return kInvalidValue;
  ++record.launches;
  record.last_device = current_device();
  record.last_images = static_cast<int>(grid_z);
  record.last_stream = stream;
  emulator::shared_memory = {shared, sizeof(shared)};
  const dim3 grid{grid_x, grid_y, grid_z}, block{block_x, block_y, block_z};
  if (kernel->module.type == "float") return run_type<float>(*kernel, grid, block, bytes, arguments);
  if (kernel->module.type == "BFloat16") return run_type<BFloat16>(*kernel, grid, block, bytes, arguments);
  if (kernel->module.type == "Float16") return run_type<Float16>(*kernel, grid, block, bytes, arguments);
  return kNotFound;
}

int cuGetErrorName(int error, const char** text) {
  *text = error == kLaunchFailed ? "CUDA_ERROR_LAUNCH_FAILED" : "CUDA_ERROR";
  return 0;
}

int cuGetErrorString(int error, const char** text) {
  *text = error == kLaunchFailed ? "unspecified launch failure" : "some failure";
  return 0;
}

}  // extern "C"
