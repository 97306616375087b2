// The sampling plan of a tile: what all threads of a block need to know about its samples, worked out once.
//
// A block owns a tile of `rows` queries of one image and one head. Four threads share the planning of a row (a query),
// sample after sample in turns. Shared memory then holds per sample (`Plan`) the weights of its four pixels and where
// they lie. Letters: B images, S pixels of all levels, M heads, D channels per head, Q queries, L levels, P points.
#pragma once

#include "msda_cuda_types.cuh"

namespace sst_d2::msda {

constexpr int kMaxLevels = 8;
constexpr int kPlanners = 4;  // threads that plan a row together
constexpr int kMaxThreads = 256;
// Blocks that should fit on a multiprocessor: as many as need no register to be spilled. Turing holds 1024 threads.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 860
constexpr int kForwardBlocks = __CUDA_ARCH__ < 800 ? 4 : 5, kBackwardBlocks = 3;
#else
constexpr int kForwardBlocks = 5, kBackwardBlocks = 4;
#endif
constexpr unsigned kWarp = 0xffffffffu;
constexpr int kNowhere = -1;  // the place of a sample without any pixel

// Sizes of a call, passed by value; 32-bit numbers only, so that any launcher can pack it. How they are found and what
// they must not exceed: msda_cuda_launch.cuh.
struct Problem {
  int queries;           // Q
  int heads;             // M
  int channels;          // D
  int pixels;            // S
  int levels;            // L
  int points;            // P
  int samples;           // L * P
  int pixel_steps;       // bytes of a pixel of the value, M * D numbers, divided by 16
  int level_factor;      // 65536 / P + 1: sample * level_factor >> 16 is the sample's level
  int position_kind;     // Kind of locations or offsets
  int reference_kind;    // Kind of the reference points (fused)
  int weight_kind;       // Kind of weights or logits
  int reference_images;  // 1: reference points per image, 0: the same for all images
  int reference_levels;  // 1: reference points per level, 0: the same for all levels
  int rows_log2;         // a tile has 1 << rows_log2 queries,
  int tile_width_log2;   // 1 << tile_width_log2 of them side by side: all, if not gridded
  int gridded;           // 1: the queries are the levels' pixels; 0: a tile is a run of consecutive queries
  int first_image;       // image of blockIdx.z == 0
  int height[kMaxLevels];
  int width[kMaxLevels];
  int start[kMaxLevels];       // first pixel of each level
  int first_tile[kMaxLevels];  // first tile of each level, where gridded
};

// Tensors that say where and how strongly to sample; contiguous.
struct Sampling {
  const char* positions;   // (B, Q, M, L, P, 2): locations (1 is the level's size), or fused: offsets in pixels
  const char* references;  // fused: (B or 1, Q, L or 1, 2)
  const char* weights;     // (B, Q, M, L, P): weights, or fused: logits
};

// Where a sample reads, in steps of 16 bytes from the channels of its thread in pixel 0. `top` >= 0: all four corners
// lie inside, the upper left one at `top`, the lower left one at `bottom`. Else see `border_place`.
struct Place {
  int top, bottom;
};

// Shared memory. Slot of a sample: row * stride + sample.
struct Plan {
  float4* weights;   // weights of the four corners; in the backward pass later the four dot products
  Place* places;
  float* attention;  // backward only: weight of the sample
  int stride;        // odd, so that neighbouring rows lie in different banks
};

__device__ __forceinline__ Plan make_plan(uint4* shared, const Problem& problem) {
  Plan plan;
  plan.stride = problem.samples | 1;
  const int slots = plan.stride << problem.rows_log2;
  plan.weights = reinterpret_cast<float4*>(shared);
  plan.places = reinterpret_cast<Place*>(plan.weights + slots);
  plan.attention = reinterpret_cast<float*>(plan.places + slots);
  return plan;
}

// The queries of this block: `columns` times `lines` at most, from `first` on, lines `stride` apart.
struct Tile {
  int first, columns, lines, stride, width_log2;

  // The query of a row, -1 where the tile reaches over an edge.
  __device__ __forceinline__ int query(int row) const {
    const int x = row & ((1 << width_log2) - 1), y = row >> width_log2;
    return x < columns && y < lines ? first + y * stride + x : -1;
  }
};

__device__ __forceinline__ Tile find_tile(const Problem& problem) {
  const int index = static_cast<int>(blockIdx.x), width_log2 = problem.tile_width_log2;
  if (!problem.gridded) {
    const int first = index << width_log2;
    return Tile{first, problem.queries - first, 1, 0, width_log2};
  }
  int level = 0;
  while (level + 1 < problem.levels && index >= problem.first_tile[level + 1]) ++level;
  const unsigned width = problem.width[level];
  const unsigned across = (width + (1u << width_log2) - 1) >> width_log2;
  const unsigned inner = index - problem.first_tile[level];
  const unsigned tile_y = inner / across, tile_x = inner - tile_y * across;
  const int x = tile_x << width_log2, y = tile_y << (problem.rows_log2 - width_log2);
  return Tile{problem.start[level] + y * static_cast<int>(width) + x, static_cast<int>(width) - x,
              problem.height[level] - y, static_cast<int>(width), width_log2};
}

// Where a sample lies: in pixels, from the centre of the first one.
struct Spot {
  int level;
  int x, y;      // whole part
  float dx, dy;  // the rest, in [0, 1]
  bool counts;   // false: out of range, the others are zeros
};

// Positions that are infinite or no number fail the comparisons like those out of range.
__device__ __forceinline__ Spot find_spot(float x, float y, int level, float width, float height) {
  const bool counts = x > -1.0f && x < width && y > -1.0f && y < height;
  if (!counts) x = y = 0.0f;
  const int left = __float2int_rd(x), top = __float2int_rd(y);
  return Spot{level, left, top, x - static_cast<float>(left), y - static_cast<float>(top), counts};
}

// Corners are numbered 0: (x, y), 1: (x + 1, y), 2: (x, y + 1), 3: (x + 1, y + 1). A sample at the border keeps the
// pixel of corner 0, the mask of the corners that lie inside, and the width of its level.
__device__ __forceinline__ Place border_place(const Spot& spot, int start, int width, int height) {
  const int columns = (spot.x >= 0 ? 5 : 0) | (spot.x + 1 < width ? 10 : 0);
  const int lines = (spot.y >= 0 ? 3 : 0) | (spot.y + 1 < height ? 12 : 0);
  const int pixel = start + spot.y * width + spot.x + width + 1;
  return Place{spot.counts ? ~(pixel << 4 | (columns & lines)) : kNowhere, width};
}

__device__ __forceinline__ int border_corners(Place place) { return ~place.top & 15; }

// Pixel of a corner of such a sample; only of one that lies inside.
__device__ __forceinline__ unsigned border_pixel(Place place, int corner) {
  const int pixel = (~place.top >> 4) - place.bottom - 1;
  return pixel + (corner & 1) + (corner & 2 ? place.bottom : 0);
}

__device__ __forceinline__ Place make_place(const Spot& spot, const Problem& problem) {
  const int width = problem.width[spot.level], height = problem.height[spot.level];
  const int start = problem.start[spot.level];
  const bool inside = spot.x >= 0 && spot.x + 1 < width && spot.y >= 0 && spot.y + 1 < height;
  if (!inside || !spot.counts) return border_place(spot, start, width, height);
  const int top = (start + spot.y * width + spot.x) * problem.pixel_steps;
  return Place{top, top + width * problem.pixel_steps};
}

// Reads the numbers or pairs of a planner's samples, one after the other.
struct Reader {
  const char* address;
  unsigned step;  // bytes to its next sample
  int kind;

  __device__ __forceinline__ Reader(const char* tensor, int kind, unsigned numbers, unsigned row, unsigned row_numbers,
                                    int planner)
      : address(advance(tensor, row, row_numbers * bytes_of(kind)) + planner * numbers * bytes_of(kind)),
        step(kPlanners * numbers * bytes_of(kind)), kind(kind) {}

  __device__ __forceinline__ float next() {
    const float number = load(address, kind);
    address += step;
    return number;
  }

  __device__ __forceinline__ float2 next_pair() {
    const float2 pair = load_pair(address, kind);
    address += step;
    return pair;
  }
};

// A query of one head and image, for one of its planners.
struct Row {
  unsigned index;  // (image * Q + query) * M + head
  int planner;

  // Without a query, -1, that of query 0, for nothing to be read.
  __device__ __forceinline__ Row(const Problem& problem, int image, int query, int head)
      : index((image * problem.queries + (query < 0 ? 0 : query)) * problem.heads + head),
        planner(static_cast<int>(threadIdx.x) % kPlanners) {}
};

__device__ __forceinline__ Reader position_reader(const Sampling& sampling, const Problem& problem, const Row& row) {
  return Reader(sampling.positions, problem.position_kind, 2, row.index, 2 * problem.samples, row.planner);
}

__device__ __forceinline__ Reader weight_reader(const Sampling& sampling, const Problem& problem, const Row& row) {
  return Reader(sampling.weights, problem.weight_kind, 1, row.index, problem.samples, row.planner);
}

// Finds the spots of a planner's samples, one after the other.
template <bool kFused>
struct SpotFinder {
  Reader positions;
  const char* references;  // of the query, fused only
  float2 centre;           // the reference point, of the last level if there is one per level

  __device__ __forceinline__ SpotFinder(const Sampling& sampling, const Problem& problem, const Row& row, int image,
                                        int query)
      : positions(position_reader(sampling, problem, row)), references(nullptr), centre(make_float2(0.0f, 0.0f)) {
    if constexpr (kFused) {
      const unsigned entry = (problem.reference_images ? image : 0) * problem.queries + query;
      const unsigned levels = problem.reference_levels ? problem.levels : 1;
      references = advance(sampling.references, entry, levels * 2 * bytes_of(problem.reference_kind));
      centre = load_pair(references, problem.reference_kind);
    }
  }

  __device__ __forceinline__ Spot next(const Problem& problem, int sample) {
    const int level = sample * problem.level_factor >> 16;
    const float width = static_cast<float>(problem.width[level]), height = static_cast<float>(problem.height[level]);
    const float2 place = positions.next_pair();
    if constexpr (kFused) {
      if (problem.reference_levels)
        centre = load_pair(advance(references, level, 2 * bytes_of(problem.reference_kind)), problem.reference_kind);
      return find_spot(centre.x * width + (place.x - 0.5f), centre.y * height + (place.y - 0.5f), level, width, height);
    } else {
      return find_spot(place.x * width - 0.5f, place.y * height - 0.5f, level, width, height);
    }
  }
};

// The planners of a row are neighbours in their warp.
__device__ __forceinline__ float planners_max(float number) {
#pragma unroll
  for (int step = 1; step < kPlanners; step *= 2) number = fmaxf(number, __shfl_xor_sync(kWarp, number, step));
  return number;
}

__device__ __forceinline__ float planners_sum(float number) {
#pragma unroll
  for (int step = 1; step < kPlanners; step *= 2) number += __shfl_xor_sync(kWarp, number, step);
  return number;
}

// Leave exp(logit - largest) in the plan, each planner for its own samples, and return 1 / their sum.
__device__ __forceinline__ float softmax_scale(const Sampling& sampling, const Problem& problem, const Row& row,
                                               float4* weights, int samples) {
  float largest = __uint_as_float(0xff800000u);  // minus infinity
  Reader logits = weight_reader(sampling, problem, row);
#pragma unroll 1
  for (int sample = row.planner; sample < samples; sample += kPlanners) largest = fmaxf(largest, logits.next());
  largest = planners_max(largest);
  float sum = 0.0f;
  logits = weight_reader(sampling, problem, row);
#pragma unroll 1
  for (int sample = row.planner; sample < samples; sample += kPlanners) {
    const float score = __expf(logits.next() - largest);
    weights[sample].x = score;
    sum += score;
  }
  return __fdividef(1.0f, planners_sum(sum));
}

// Fill the plan of this block's tile. Rows without a query are left as they are. To be followed by a barrier.
template <bool kFused, bool kBackward>
__device__ __forceinline__ void make_samples(const Sampling& sampling, const Problem& problem, const Plan& plan,
                                             const Tile& tile, int image, int head) {
  const int line = static_cast<int>(threadIdx.x) / kPlanners, query = tile.query(line);
  const Row row(problem, image, query, head);
  const int slots = line * plan.stride;
  float scale = 1.0f;
  if constexpr (kFused)
    scale = softmax_scale(sampling, problem, row, plan.weights + slots, query < 0 ? 0 : problem.samples);
  if (query < 0) return;
  SpotFinder<kFused> spots(sampling, problem, row, image, query);
  Reader weights = weight_reader(sampling, problem, row);
#pragma unroll 1
  for (int sample = row.planner; sample < problem.samples; sample += kPlanners) {
    const Spot spot = spots.next(problem, sample);
    const int slot = slots + sample;
    const float weight = kFused ? plan.weights[slot].x * scale : weights.next();
    const float below = weight * spot.dy, above = weight - below;
    const float below_right = below * spot.dx, above_right = above * spot.dx;
    plan.weights[slot] = make_float4(above - above_right, above_right, below - below_right, below_right);
    plan.places[slot] = make_place(spot, problem);
    if constexpr (kBackward) plan.attention[slot] = weight;
  }
}

}  // namespace sst_d2::msda
