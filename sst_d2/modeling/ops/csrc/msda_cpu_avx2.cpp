// The kernels for processors with AVX2.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,bmi2"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c,bmi2")
#endif

#define MSDA_NAME avx2
#define MSDA_BITS 256
#include "msda_cpu_kernels.h"

namespace sst_d2_cpu {
const Kernels kernels_avx2 = avx2::kSingle;
}  // namespace sst_d2_cpu

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif  // __x86_64__
