// How a call is cut into tasks.
#include "msda_cpu.h"

#include <algorithm>

namespace sst_d2_cpu {
namespace {

constexpr int64_t divided_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Split {
  int64_t parts;
  double time;
};

// The number of parts, up to `most`, that ends first when `threads` share `tasks * parts` equal tasks. Every part of a
// task also does work that is not divided, `extra` of the whole.
Split best_split(int64_t tasks, int64_t threads, int64_t most, double extra) {
  Split best{1, static_cast<double>(divided_up(tasks, threads)) * (1 + extra)};
  for (int64_t parts = 2; parts <= most; ++parts) {
    const double time = static_cast<double>(divided_up(tasks * parts, threads)) * (1.0 / parts + extra);
    if (time < best.time * 0.95) best = {parts, time};
  }
  return best;
}

struct Sizes {
  int64_t number, stride;  // bytes of a number; numbers of a pixel in whole vectors
  bool whole;              // pixels of value are whole vectors already
};

Sizes sizes_of(const Kernels& kernels, const Call& call) {
  const int64_t number = call.value.type == Type::kFloat64 ? 8 : 4, lanes = kernels.bits / 8 / number;
  return {number, divided_up(call.channels, lanes) * lanes, call.channels % lanes == 0};
}

}  // namespace

void plan_forward(const Kernels& kernels, int64_t threads, Call& call) {
  const Sizes sizes = sizes_of(kernels, call);
  const int64_t samples = call.queries * call.levels * call.points;
  call.packed = call.value.type == Type::kFloat64 || !sizes.whole || samples >= call.pixels;
  if (call.packed) {
    const double extra = static_cast<double>(call.pixels) / static_cast<double>(4 * (call.queries + samples));
    call.parts = best_split(call.batch * call.heads, threads, std::min<int64_t>(16, call.queries), extra).parts;
    call.tasks = call.batch * call.heads * call.parts;
  } else {
    call.parts = std::min(4 * threads, call.queries);
    call.tasks = call.batch * call.parts;
  }
  call.scratch = (kRowsAtOnce + (call.packed ? call.pixels : 0)) * sizes.stride * sizes.number;
}

void plan_backward(const Kernels& kernels, int64_t threads, Call& call) {
  const Sizes sizes = sizes_of(kernels, call);
  const int64_t tasks = call.batch * call.heads;
  int64_t most = 1;
  for (int l = 0; l < call.levels; ++l) most = std::max<int64_t>(most, std::min(call.level[l].height, 32));
  // Every band looks at the positions of all samples: about a sixth of the work on them. A level alone costs a tenth
  // more than its share of all.
  const Split together = best_split(tasks, threads, most, 1.0 / 6);
  const Split apart = best_split(tasks * call.levels, threads, most, 1.0 / 6);
  call.levels_apart = apart.time * 1.1 / call.levels < together.time;
  call.parts = call.levels_apart ? apart.parts : together.parts;
  call.tasks = tasks * (call.levels_apart ? call.levels : 1) * call.parts;
  int64_t pixels = 0;
  for (int l = 0; l < call.levels; ++l) {
    const int64_t here = (divided_up(call.level[l].height, call.parts) + 1) * call.level[l].width;
    pixels = call.levels_apart ? std::max(pixels, here) : pixels + here;
  }
  call.scratch = (kRowsAtOnce + 2 * pixels) * sizes.stride * sizes.number;
}

}  // namespace sst_d2_cpu
