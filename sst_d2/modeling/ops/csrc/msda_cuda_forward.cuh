// Forward pass: `kLanes` neighbouring threads sum the samples of a row (a query), 16 bytes of its channels each.
#pragma once

#include "msda_cuda_plan.cuh"

namespace sst_d2::msda {

template <typename T>
__device__ __forceinline__ void add_pixel(float (&sums)[Pack<T>::kCount], float weight, uint4 bits) {
  float numbers[Pack<T>::kCount];
  Pack<T>::unpack(bits, numbers);
#pragma unroll
  for (int i = 0; i < Pack<T>::kCount; ++i) sums[i] += weight * numbers[i];
}

// Weighted sum over all samples of a row, of the 16 bytes of channels that `image` points to in pixel 0.
template <typename T>
__device__ __forceinline__ void sum_samples(float (&sums)[Pack<T>::kCount], const char* image, unsigned pixel_bytes,
                                            const float4* weights, const Place* places, int samples) {
#pragma unroll 1
  for (const Place* end = places + samples; places != end; ++places, ++weights) {
    const Place place = *places;
    if (place.top >= 0) {
      // All four loads are under way before the first is used.
      const char *top = advance(image, place.top, 16), *bottom = advance(image, place.bottom, 16);
      const uint4 bits[4] = {load16(top), load16(top + pixel_bytes), load16(bottom), load16(bottom + pixel_bytes)};
      const float4 factors = *weights;
      add_pixel<T>(sums, factors.x, bits[0]);
      add_pixel<T>(sums, factors.y, bits[1]);
      add_pixel<T>(sums, factors.z, bits[2]);
      add_pixel<T>(sums, factors.w, bits[3]);
    } else {
      const float* factors = reinterpret_cast<const float*>(weights);
#pragma unroll 1
      for (int corner = 0; corner < 4; ++corner)
        if (border_corners(place) >> corner & 1)
          add_pixel<T>(sums, factors[corner], load16(advance(image, border_pixel(place, corner), pixel_bytes)));
    }
  }
}

template <typename T, int kLanes, bool kFused>
__device__ __forceinline__ void forward_tile(const char* value, const Sampling& sampling, char* output,
                                             const Problem& problem) {
  extern __shared__ uint4 shared[];
  const Plan plan = make_plan(shared, problem);
  const Tile tile = find_tile(problem);
  const int image = problem.first_image + static_cast<int>(blockIdx.z), head = static_cast<int>(blockIdx.y);
  const unsigned pixel_bytes = problem.pixel_steps * 16;
  make_samples<kFused, false>(sampling, problem, plan, tile, image, head);
  __syncthreads();

  const int channel = static_cast<int>(threadIdx.x) % kLanes * Pack<T>::kCount;
  if (channel >= problem.channels) return;
  const unsigned inner = (head * problem.channels + channel) * static_cast<unsigned>(sizeof(T));
  const char* source = advance(value + inner, image * problem.pixels, pixel_bytes);
  const int rows = 1 << problem.rows_log2;
#pragma unroll 1
  for (int row = static_cast<int>(threadIdx.x) / kLanes; row < rows; row += static_cast<int>(blockDim.x) / kLanes) {
    const int query = tile.query(row), slots = row * plan.stride;
    if (query < 0) continue;
    float sums[Pack<T>::kCount] = {};
    sum_samples<T>(sums, source, pixel_bytes, plan.weights + slots, plan.places + slots, problem.samples);
    char* target = advance(output + inner, image * problem.queries + query, pixel_bytes);
    *reinterpret_cast<uint4*>(target) = Pack<T>::pack(sums);
  }
}

}  // namespace sst_d2::msda
