// How to launch the kernels of msda_cuda.cuh. Host code without CUDA or torch: the C++ binding and the tests include
// it, and a launcher in another language does the same arithmetic. Letters as in msda_cuda_plan.cuh.
//
//   lanes    smallest of 2, 4, 8, 16, 32 with 16 * lanes >= D * bytes of a number of the value
//   rows     queries of a tile: 64 if L * P <= 16, 32 if <= 32, 16 if <= 64, else 8
//   threads  4 * rows
//   shared   rows * (L * P | 1) * 24 bytes forward, * 28 backward; always dynamic, never above 48 KiB
//   grid     (tiles, M, images): tiles = ceil(Q / rows); or, if the queries are the pixels (Q == S, "gridded"), the sum
//            over levels of ceil(height / tile height) * ceil(width / tile width), tiles of 8x8, 8x4, 4x4 or 4x2
//            (width x height) queries. Images: at most 65535, more by launching again with another first_image.
//
//   kernel                      arguments, in this order; the struct Problem comes last, by value
//   forward, forward_fused      value, positions, references, weights, output
//   backward, backward_fused    grad_output, value, positions, references, weights,
//                               grad_value (fp32, zeros), grad_positions, grad_weights
//
// All are addresses of contiguous tensors; value, grad_output, output and grad_value lie at multiples of 16 bytes,
// positions and references, with their gradients, at multiples of their pairs. `references` is null where not fused.
// The types of positions, references and weights are free (`Kind`); output and grad_output have the value's type,
// gradients that of their inputs, grad_value is cast by the caller. Nothing else needs zeros: each element is written.
// With B, Q or M of zero nothing is to be launched.
//
// NVRTC: compile msda_cuda.cuh with --std=c++17, -DSST_MSDA_VALUE=float, BFloat16 or Float16, and
// -DSST_MSDA_LANES=lanes; no headers are needed but those beside it. The kernels are then called sst_msda_forward,
// sst_msda_forward_fused, sst_msda_backward and sst_msda_backward_fused. With nvcc: forward<T, lanes, fused> and
// backward<T, lanes, fused>. Compute capability 7.0 or newer.
#pragma once

#include <cstdint>

#include "msda_cuda_plan.cuh"

namespace sst_d2::msda {

constexpr int kMaxPoints = 16;
constexpr int kMaxChannels = 128;
constexpr int kMaxImages = 65535;  // of one launch: a limit of the grid

struct Sizes {
  std::int64_t images, pixels, heads, channels, queries, levels, points;
  std::int64_t height[kMaxLevels], width[kMaxLevels];
  int value_bytes;  // of a number
};

struct Launch {
  int lanes, threads, tiles;
  int shared_bytes;
  Problem problem;  // without the fields of types, references and first_image
};

// What of these sizes the kernels cannot do, as the end of a sentence; null where they can do it.
inline const char* unsupported(const Sizes& sizes) {
  constexpr std::int64_t kInt = 0x7fffffff;
  if (sizes.levels < 1 || sizes.levels > kMaxLevels) return "between 1 and 8 levels are supported";
  if (sizes.points < 1 || sizes.points > kMaxPoints) return "between 1 and 16 points are supported";
  if (sizes.channels % 8 || sizes.channels < 8 || sizes.channels > kMaxChannels)
    return "channels per head must be a multiple of 8, at most 128";
  if (sizes.heads > kMaxImages) return "at most 65535 heads are supported";
  if (sizes.images * sizes.pixels > kInt) return "batch * pixels must be below 2^31";
  if (sizes.images * sizes.queries > kInt / (sizes.heads ? sizes.heads : 1))
    return "batch * queries * heads must be below 2^31";
  const std::int64_t pixel_bytes = sizes.heads * sizes.channels * sizes.value_bytes;
  std::int64_t widest = 0;
  for (int level = 0; level < sizes.levels; ++level) widest = widest > sizes.width[level] ? widest : sizes.width[level];
  // Places count steps of 16 bytes in 31 bits, those at a border pixels in 27.
  if ((sizes.pixels + widest + 1) * (pixel_bytes / 16) > kInt || sizes.pixels + 2 * widest + 2 > kInt >> 4)
    return "the value of one image must be smaller than 32 GiB and have fewer than 2^27 pixels";
  return nullptr;
}

// Lay tiles over the levels; returns their number.
inline int lay_tiles(Problem& problem) {
  const int rows_log2 = problem.rows_log2;
  if (!problem.gridded) {
    problem.tile_width_log2 = rows_log2;
    return ((problem.queries - 1) >> rows_log2) + 1;
  }
  problem.tile_width_log2 = (rows_log2 + 1) / 2;
  const int tile_width = 1 << problem.tile_width_log2, tile_height = 1 << (rows_log2 - problem.tile_width_log2);
  int tiles = 0;
  for (int level = 0; level < problem.levels; ++level) {
    problem.first_tile[level] = tiles;
    tiles += ((problem.height[level] + tile_height - 1) / tile_height) *
             ((problem.width[level] + tile_width - 1) / tile_width);
  }
  return tiles;
}

// For sizes that are supported.
inline Launch make_launch(const Sizes& sizes, bool backward) {
  Launch launch{};
  launch.lanes = 2;
  while (launch.lanes * 16 < sizes.channels * sizes.value_bytes) launch.lanes *= 2;
  Problem& problem = launch.problem;
  problem.queries = static_cast<int>(sizes.queries);
  problem.heads = static_cast<int>(sizes.heads);
  problem.channels = static_cast<int>(sizes.channels);
  problem.pixels = static_cast<int>(sizes.pixels);
  problem.levels = static_cast<int>(sizes.levels);
  problem.points = static_cast<int>(sizes.points);
  problem.samples = problem.levels * problem.points;
  problem.pixel_steps = static_cast<int>(sizes.heads * sizes.channels * sizes.value_bytes / 16);
  problem.level_factor = 65536 / problem.points + 1;
  problem.rows_log2 = 6;
  while (problem.samples << problem.rows_log2 > 1024 && problem.rows_log2 > 3) --problem.rows_log2;
  for (int level = 0, start = 0; level < problem.levels; ++level) {
    problem.height[level] = static_cast<int>(sizes.height[level]);
    problem.width[level] = static_cast<int>(sizes.width[level]);
    problem.start[level] = start;
    start += problem.height[level] * problem.width[level];
  }
  problem.gridded = sizes.queries == sizes.pixels;
  launch.tiles = lay_tiles(problem);
  launch.threads = kPlanners << problem.rows_log2;
  launch.shared_bytes = ((problem.samples | 1) << problem.rows_log2) * (backward ? 28 : 24);
  return launch;
}

}  // namespace sst_d2::msda
