// Backward pass of a tile, in three steps: plan the samples (msda_cuda_plan.cuh); per row (a query) and sample add the
// gradient of the pixels and leave four dot products, output gradient times corner, in the plan; turn those into the
// gradients of positions and weights, four threads per row again.
#pragma once

#include "msda_cuda_plan.cuh"

namespace sst_d2::msda {

struct Gradients {
  const char* output;  // (B, Q, M * D), type of the value
  float* value;        // (B, S, M, D), zeros at first
  char* positions;     // as in `Sampling`
  char* weights;
};

// The output gradient of a row as a thread needs it.
template <typename T, int kLanes>
struct OutputGradient {
  static constexpr int kCount = Pack<T>::kCount;
  static constexpr int kQuads = kCount / 4;

  float numbers[kCount];  // its 16 bytes of channels, for dot products
  bool inside;            // false: they lie beyond the last channel
  // Its quads of channels for the additions: quad i of lane l is number i * kLanes + l, so that the lanes together
  // write whole sectors of memory.
  float4 quads[kQuads];

  __device__ __forceinline__ void load(const char* row, int lane, int channels) {
    inside = lane * kCount < channels;
    Pack<T>::unpack(inside ? load16(row + lane * 16) : make_uint4(0, 0, 0, 0), numbers);
#pragma unroll
    for (int i = 0; i < kQuads; ++i) {
      const int channel = 4 * (i * kLanes + lane);
      if (channel < channels) quads[i] = load_four<T>(row + channel * sizeof(T));
    }
  }

  // Add weight times gradient to a pixel; `pixel` points to the thread's first quad.
  __device__ __forceinline__ void add_to(float* pixel, float weight, bool last_quad) const {
#pragma unroll
    for (int i = 0; i < kQuads; ++i)
      if (i == 0 || last_quad)
        add_four(pixel + 4 * i * kLanes, weight * quads[i].x, weight * quads[i].y, weight * quads[i].z,
                 weight * quads[i].w);
  }

  __device__ __forceinline__ float dot(uint4 bits) const {
    float values[kCount], sum = 0.0f;
    Pack<T>::unpack(bits, values);
#pragma unroll
    for (int i = 0; i < kCount; ++i) sum += numbers[i] * values[i];
    // With one quad per thread the lanes beyond have no sample. Zeros would not do: the value may be infinite.
    return kQuads == 1 || inside ? sum : 0.0f;
  }
};

// Sum each of the four numbers over the lanes of a row. Lane l < 4 gets the sum of number l; with two lanes, lane l
// those of numbers 2 * l and 2 * l + 1. Each step halves what a lane carries on, which saves half of the shuffles.
template <int kLanes>
__device__ __forceinline__ float2 sum_over_lanes(const float (&numbers)[4], int lane) {
  const bool low = lane & (kLanes == 2 ? 1 : 2);
  constexpr int kStep = kLanes == 2 ? 1 : 2;
  float first = low ? numbers[2] : numbers[0], second = low ? numbers[3] : numbers[1];
  first += __shfl_xor_sync(kWarp, low ? numbers[0] : numbers[2], kStep);
  second += __shfl_xor_sync(kWarp, low ? numbers[1] : numbers[3], kStep);
  if constexpr (kLanes > 2) {
    const bool odd = lane & 1;
    const float sent = odd ? first : second;
    first = (odd ? second : first) + __shfl_xor_sync(kWarp, sent, 1);
#pragma unroll
    for (int step = 4; step < kLanes; step *= 2) first += __shfl_xor_sync(kWarp, first, step);
  }
  return make_float2(first, second);
}

// What a thread reads and writes of a row: addresses in pixel 0 of its image.
struct Lane {
  const char* value;
  float* gradient;
  unsigned pixel_bytes;  // of the value
  int pixel_numbers;     // M * D
  bool last_quad;        // the thread's last quad lies within the head's channels; the first always does
  int lane;
};

// Add the gradient of all four pixels of a sample inside its level; return the thread's part of the dot products.
template <typename T, int kLanes>
__device__ __forceinline__ void inner_sample(float (&dots)[4], const OutputGradient<T, kLanes>& output,
                                             const Lane& lane, Place place, float4 weights) {
  constexpr unsigned kStepBytes = 4 * Pack<T>::kCount;
  const char *top = advance(lane.value, place.top, 16), *bottom = advance(lane.value, place.bottom, 16);
  const uint4 bits[4] = {load16(top), load16(top + lane.pixel_bytes), load16(bottom),
                         load16(bottom + lane.pixel_bytes)};
  char* gradient = reinterpret_cast<char*>(lane.gradient);
  float* top_gradient = reinterpret_cast<float*>(advance(gradient, place.top, kStepBytes));
  float* bottom_gradient = reinterpret_cast<float*>(advance(gradient, place.bottom, kStepBytes));
  output.add_to(top_gradient, weights.x, lane.last_quad);
  output.add_to(top_gradient + lane.pixel_numbers, weights.y, lane.last_quad);
  output.add_to(bottom_gradient, weights.z, lane.last_quad);
  output.add_to(bottom_gradient + lane.pixel_numbers, weights.w, lane.last_quad);
#pragma unroll
  for (int corner = 0; corner < 4; ++corner) dots[corner] = output.dot(bits[corner]);
}

// The same for a sample that has some corners only.
template <typename T, int kLanes>
__device__ __forceinline__ void border_sample(float (&dots)[4], const OutputGradient<T, kLanes>& output,
                                              const Lane& lane, Place place, const float* weights) {
#pragma unroll 1
  for (int corner = 0; corner < 4; ++corner) {
    float dot = 0.0f;
    if (border_corners(place) >> corner & 1) {
      const unsigned pixel = border_pixel(place, corner);
      char* gradient = advance(reinterpret_cast<char*>(lane.gradient), pixel, 4 * lane.pixel_numbers);
      output.add_to(reinterpret_cast<float*>(gradient), weights[corner], lane.last_quad);
      dot = output.dot(load16(advance(lane.value, pixel, lane.pixel_bytes)));
    }
    // Four turns bring the numbers into order, without an index that only the run knows.
    dots[0] = dots[1];
    dots[1] = dots[2];
    dots[2] = dots[3];
    dots[3] = dot;
  }
}

// All samples of a row. Threads without a row take part in the shuffles.
template <typename T, int kLanes>
__device__ __forceinline__ void row_gradients(const OutputGradient<T, kLanes>& output, const Lane& lane, bool active,
                                              float4* weights, const Place* places, int samples) {
#pragma unroll 1
  for (const Place* end = places + samples; places != end; ++places, ++weights) {
    const Place place = active ? *places : Place{kNowhere, 0};
    float dots[4] = {};
    if (place.top >= 0) {
      inner_sample(dots, output, lane, place, *weights);
    } else if (place.top != kNowhere) {
      border_sample(dots, output, lane, place, reinterpret_cast<const float*>(weights));
    }
    const float2 sums = sum_over_lanes<kLanes>(dots, lane.lane);
    __syncwarp();  // every lane has read the weights
    if (!active) continue;
    if constexpr (kLanes == 2) {
      reinterpret_cast<float2*>(weights)[lane.lane] = sums;
    } else if (lane.lane < 4) {
      reinterpret_cast<float*>(weights)[lane.lane] = sums.x;
    }
  }
}

// Writes the gradients of what a `Reader` reads.
struct Writer {
  char* address;
  unsigned step;
  int kind;

  __device__ __forceinline__ Writer(const Reader& reader, const char* tensor, char* gradients)
      : address(gradients + (reader.address - tensor)), step(reader.step), kind(reader.kind) {}

  __device__ __forceinline__ void next(float number) {
    store(address, kind, number);
    address += step;
  }

  __device__ __forceinline__ void next_pair(float x, float y) {
    store_pair(address, kind, x, y);
    address += step;
  }
};

// Gradients of a sample's position and of its weight, from the dot products.
struct SampleGradient {
  float x, y, weight;
};

__device__ __forceinline__ SampleGradient sample_gradient(const Spot& spot, float4 dots, float attention) {
  // Nothing comes from a sample out of range, even if its weight is no number.
  if (!spot.counts) return SampleGradient{0.0f, 0.0f, 0.0f};
  // Sums of shares: `a + share * (b - a)` would be infinity less infinity where a dot product is infinite.
  const float left = 1.0f - spot.dx, above = 1.0f - spot.dy;
  const float upper = left * dots.x + spot.dx * dots.y, lower = left * dots.z + spot.dx * dots.w;
  return SampleGradient{attention * (above * (dots.y - dots.x) + spot.dy * (dots.w - dots.z)),
                        attention * (left * (dots.z - dots.x) + spot.dx * (dots.w - dots.y)),
                        above * upper + spot.dy * lower};
}

template <bool kFused>
__device__ __forceinline__ void finish_samples(const Sampling& sampling, const Gradients& gradients,
                                               const Problem& problem, const Plan& plan, const Tile& tile, int image,
                                               int head) {
  const int line = static_cast<int>(threadIdx.x) / kPlanners, query = tile.query(line);
  const int slots = line * plan.stride, samples = query < 0 ? 0 : problem.samples;
  const Row row(problem, image, query, head);
  Writer positions(position_reader(sampling, problem, row), sampling.positions, gradients.positions);
  Writer weights(weight_reader(sampling, problem, row), sampling.weights, gradients.weights);
  float total = 0.0f;
  if (query >= 0) {
    SpotFinder<kFused> spots(sampling, problem, row, image, query);
#pragma unroll 1
    for (int sample = row.planner; sample < samples; sample += kPlanners) {
      const Spot spot = spots.next(problem, sample);
      const float attention = plan.attention[slots + sample];
      SampleGradient gradient = sample_gradient(spot, plan.weights[slots + sample], attention);
      if constexpr (kFused) {
        plan.weights[slots + sample].x = gradient.weight;
        total += attention * gradient.weight;
      } else {
        gradient.x *= static_cast<float>(problem.width[spot.level]);
        gradient.y *= static_cast<float>(problem.height[spot.level]);
        weights.next(gradient.weight);
      }
      positions.next_pair(gradient.x, gradient.y);
    }
  }
  if constexpr (kFused) {
    total = planners_sum(total);
#pragma unroll 1
    for (int sample = row.planner; sample < samples; sample += kPlanners)
      weights.next(plan.attention[slots + sample] * (plan.weights[slots + sample].x - total));
  }
}

template <typename T, int kLanes, bool kFused>
__device__ __forceinline__ void backward_tile(const char* value, const Sampling& sampling, const Gradients& gradients,
                                              const Problem& problem) {
  extern __shared__ uint4 shared[];
  const Plan plan = make_plan(shared, problem);
  const Tile tile = find_tile(problem);
  const int image = problem.first_image + static_cast<int>(blockIdx.z), head = static_cast<int>(blockIdx.y);
  make_samples<kFused, true>(sampling, problem, plan, tile, image, head);
  __syncthreads();

  Lane lane;
  lane.lane = static_cast<int>(threadIdx.x) % kLanes;
  lane.pixel_numbers = problem.heads * problem.channels;
  lane.pixel_bytes = problem.pixel_steps * 16;
  // Lanes beyond the last channel read channels of lane 0, for nothing.
  const bool inside = lane.lane * Pack<T>::kCount < problem.channels;
  const unsigned inner = head * problem.channels * static_cast<unsigned>(sizeof(T));
  lane.value = advance(value + inner, image * problem.pixels, lane.pixel_bytes) + (inside ? lane.lane * 16 : 0);
  char* first = advance(reinterpret_cast<char*>(gradients.value), image * problem.pixels, 4 * lane.pixel_numbers);
  lane.gradient = reinterpret_cast<float*>(first) + head * problem.channels + 4 * lane.lane;
  lane.last_quad = 4 * (OutputGradient<T, kLanes>::kQuads * kLanes - kLanes + lane.lane) < problem.channels;
  const int rows = 1 << problem.rows_log2, step = static_cast<int>(blockDim.x) / kLanes;
#pragma unroll 1
  for (int start = 0; start < rows; start += step) {
    const int row = start + static_cast<int>(threadIdx.x) / kLanes;
    const int query = row < rows ? tile.query(row) : -1, slots = query >= 0 ? row * plan.stride : 0;
    OutputGradient<T, kLanes> output;
    if (query >= 0)
      output.load(advance(gradients.output + inner, image * problem.queries + query, lane.pixel_bytes), lane.lane,
                  problem.channels);
    // With one quad per thread the lanes beyond the last channel have nothing to add.
    const bool active = query >= 0 && (inside || OutputGradient<T, kLanes>::kQuads > 1);
    row_gradients(output, lane, active, plan.weights + slots, plan.places + slots, problem.samples);
  }
  __syncthreads();
  finish_samples<kFused>(sampling, gradients, problem, plan, tile, image, head);
}

}  // namespace sst_d2::msda
