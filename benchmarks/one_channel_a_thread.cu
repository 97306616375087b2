// The attention operator as it is widely computed on GPUs: forward a thread per number of the output, backward a block
// per query and head with a thread per channel, whose parts the first thread adds up. Written from that description, to
// be measured against only; see bench_deform_attn.py.
//
// value (B, S, M, D), sides (L, 2) height and width, locations (B, Q, M, L, P, 2), weights (B, Q, M, L, P), output
// (B, Q, M, D); gradients as what they belong to, zeros before.

struct Corner {
  int row;  // of value's pixels, -1 outside
  float share, slope_x, slope_y;
};

__device__ Corner corner_at(int which, float x, float y, int height, int width) {
  const int left = static_cast<int>(floorf(x)), top = static_cast<int>(floorf(y));
  const float right_share = x - left, lower_share = y - top;
  const int column = left + which % 2, line = top + which / 2;
  const float share_x = which % 2 ? right_share : 1 - right_share;
  const float share_y = which / 2 ? lower_share : 1 - lower_share;
  const bool inside = column >= 0 && column < width && line >= 0 && line < height;
  return {inside ? line * width + column : -1, share_x * share_y, which % 2 ? share_y : -share_y,
          which / 2 ? share_x : -share_x};
}

extern "C" __global__ void one_channel_forward(const float* value, const int* sides, const float* locations,
                                               const float* weights, float* output, int batch, int pixels, int heads,
                                               int channels, int levels, int queries, int points) {
  const int index = blockIdx.x * blockDim.x + threadIdx.x;
  if (index >= batch * queries * heads * channels) return;
  const int channel = index % channels, sampling = index / channels;
  const int head = sampling % heads, image = sampling / heads / queries;
  int sample = sampling * levels * points, start = image * pixels;
  float total = 0;
  for (int level = 0; level < levels; ++level) {
    const int height = sides[2 * level], width = sides[2 * level + 1];
    for (int point = 0; point < points; ++point, ++sample) {
      const float x = locations[2 * sample] * width - 0.5f, y = locations[2 * sample + 1] * height - 0.5f;
      if (!(x > -1 && x < width && y > -1 && y < height)) continue;
      float found = 0;
      for (int which = 0; which < 4; ++which) {
        const Corner corner = corner_at(which, x, y, height, width);
        if (corner.row >= 0) found += corner.share * value[((start + corner.row) * heads + head) * channels + channel];
      }
      total += weights[sample] * found;
    }
    start += height * width;
  }
  output[index] = total;
}

extern "C" __global__ void one_channel_backward(const float* grad_output, const float* value, const int* sides,
                                                const float* locations, const float* weights, float* grad_value,
                                                float* grad_locations, float* grad_weights, int pixels, int heads,
                                                int channels, int levels, int queries, int points) {
  extern __shared__ float parts[];  // of x, y and weight, for each channel
  const int sampling = blockIdx.x, channel = threadIdx.x;
  const int head = sampling % heads, image = sampling / heads / queries;
  const float grad = grad_output[sampling * channels + channel];
  int sample = sampling * levels * points, start = image * pixels;
  for (int level = 0; level < levels; ++level) {
    const int height = sides[2 * level], width = sides[2 * level + 1];
    for (int point = 0; point < points; ++point, ++sample) {
      const float x = locations[2 * sample] * width - 0.5f, y = locations[2 * sample + 1] * height - 0.5f;
      const float weight = weights[sample];
      float of_x = 0, of_y = 0, of_weight = 0;
      if (x > -1 && x < width && y > -1 && y < height) {
        for (int which = 0; which < 4; ++which) {
          const Corner corner = corner_at(which, x, y, height, width);
          if (corner.row < 0) continue;
          const int place = ((start + corner.row) * heads + head) * channels + channel;
          atomicAdd(grad_value + place, grad * weight * corner.share);
          of_x += corner.slope_x * value[place];
          of_y += corner.slope_y * value[place];
          of_weight += corner.share * value[place];
        }
      }
      parts[3 * channel] = of_x * grad * weight * width;
      parts[3 * channel + 1] = of_y * grad * weight * height;
      parts[3 * channel + 2] = of_weight * grad;
      __syncthreads();
      if (channel == 0) {
        for (int other = 1; other < channels; ++other) {
          parts[0] += parts[3 * other];
          parts[1] += parts[3 * other + 1];
          parts[2] += parts[3 * other + 2];
        }
        grad_locations[2 * sample] = parts[0];
        grad_locations[2 * sample + 1] = parts[1];
        grad_weights[sample] = parts[2];
      }
      __syncthreads();
    }
    start += height * width;
  }
}
