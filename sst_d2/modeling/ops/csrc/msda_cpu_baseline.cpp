// The kernels for every processor, and those for float64, which is there for checks of gradients.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#define MSDA_NAME baseline
#define MSDA_BITS 128
#include "msda_cpu_kernels.h"

namespace sst_d2_cpu {
const Kernels kernels_baseline = baseline::kSingle;
const Kernels kernels_double = {
    MSDA_BITS,
    baseline::forward_packed<double>,
    baseline::backward_band<double>,
    baseline::softmax_rows<double>,
    baseline::softmax_backward_rows<double>,
};
}  // namespace sst_d2_cpu
