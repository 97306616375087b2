// The tasks of the backward operations. Included once per instruction set, after msda_cpu_backward.h.

namespace sst_d2_cpu {
namespace MSDA_NAME {

template <class R>
MSDA_INLINE void plan_backward_rows(const Call& call, const Table<R>& table, const Rows& rows, Plan<R>& plan) {
  const Source weights = call.shares ? Source{call.shares, kTypeOf<R>, call.weights.size} : call.weights;
  read_weights(weights, rows, call.levels * call.points, table, plan.weight);
  if (call.fused && !call.shares) softmax(plan.weight, rows.count, table.slots, table.count);
  read_places(call, rows, table, plan);
  make_plan<true>(table, rows.count, plan);
}

// The next block's row, as in the forward kernel.
template <class R>
MSDA_INLINE void prefetch_backward_row(const Call& call, const Table<R>& table, int64_t row) {
  const int64_t first = row * call.levels * call.points + table.offset;
  prefetch<0>(call.grad_output.data, call.grad_output.type, row * call.channels, call.channels);
  prefetch<0>(call.places.data, call.places.type, first * 2, table.count * 2);
  prefetch<0>(call.weights.data, call.weights.type, first, table.count);
}

template <int Count, class R>
void work_on_band(const Call& call, const Band<R>& band, R* buffer) {
  Plan<R> plan = {};
  Pulls<R> pulls = {};
  const Table<R> table(call, band.cut, true);
  const int64_t at_once = std::min(kPlanned / table.slots, kRowsAtOnce), step = call.heads * call.channels;
  const bool in_place = call.grad_output.type == kTypeOf<R> && band.stride == call.channels;
  for (int64_t q = 0; q < call.queries; q += at_once) {
    const Rows rows{(band.cut.b * call.queries + q) * call.heads + band.cut.m, call.heads,
                    std::min(at_once, call.queries - q)};
    plan_backward_rows(call, table, rows, plan);
    const int64_t first = rows.first * call.channels;
    if (!in_place) pack(call.grad_output, first, step, rows.count, call.channels, buffer, band.stride);
    for (int64_t r = 0, slot = 0; r < rows.count; ++r, slot += table.slots) {
      prefetch_backward_row(call, table, rows.first + (r + at_once) * rows.step);
      const R* grad = in_place ? static_cast<const R*>(call.grad_output.data) + first + r * step
                               : buffer + r * band.stride;
      work_on_row<Count>(plan, slot, slot + table.count, grad, band, pulls);
    }
    finish_rows(call, table, rows.count, plan, pulls);
    if (call.fused && !call.shares) {
      for (int64_t slot = 0; slot < rows.count * table.slots; slot += table.slots) {
        softmax_backward(plan.weight + slot, table.count, pulls.of_weight + slot);
      }
    }
    write_rows(call, table, rows, plan, pulls);
  }
}

// Numbers of scratch: the rows of grad_output, the values of the band with the rows below, their gradients.
template <class R>
void backward_band(const Call& call, int64_t task, void* scratch) {
  const int64_t part = task % call.parts, groups = call.levels_apart ? call.levels : 1;
  const int group = static_cast<int>(task / call.parts % groups);
  const int64_t m = task / call.parts / groups % call.heads, b = task / call.parts / groups / call.heads;
  const Cut cut{b, m, group, call.levels_apart ? group + 1 : call.levels, part, call.parts};
  const int64_t stride = whole_vectors<R>(call.channels), step = call.heads * call.channels;
  R* buffer = static_cast<R*>(scratch);
  R* values = buffer + kRowsAtOnce * stride;
  int64_t pixels = 0;
  for (int l = cut.first_level; l < cut.last_level; ++l) {
    const Level& level = call.level[l];
    const int64_t first = b * call.pixels + level.start + cut.first_row(level) * level.width;
    const int64_t count = (cut.last_row(level) - cut.first_row(level) + cut.has_next(level)) * level.width;
    pack(call.value, first * step + m * call.channels, step, count, call.channels, values + pixels * stride, stride);
    pixels += count;
  }
  const Band<R> band{cut, stride, values, values + pixels * stride};
  std::memset(band.grads, 0, pixels * stride * sizeof(R));
  switch (stride / kLanes<R>) {
    case 1: work_on_band<1>(call, band, buffer); break;
    case 2: work_on_band<2>(call, band, buffer); break;
    case 4: work_on_band<4>(call, band, buffer); break;
    default: work_on_band<0>(call, band, buffer); break;
  }
  pixels = 0;
  for (int l = cut.first_level; l < cut.last_level; ++l) {
    const Level& level = call.level[l];
    const int64_t first = b * call.pixels + level.start + cut.first_row(level) * level.width;
    const int64_t count = (cut.last_row(level) - cut.first_row(level)) * level.width;
    const R* grads = band.grads + pixels * stride;
    unpack(grads, stride, count, call.channels, call.grad_value, first * step + m * call.channels, step);
    pixels += count + cut.has_next(level) * level.width;
  }
}

// Rows [first, last) of the (b, q, m): logits to shares.
template <class R>
void softmax_rows(const Call& call, int64_t first, int64_t last) {
  const Table<R> table(call, Cut{0, 0, 0, call.levels}, false);
  const int64_t at_once = std::min(kPlanned / table.slots, kRowsAtOnce), samples = call.levels * call.points;
  alignas(64) R shares[kPlanned];
  for (int64_t row = first; row < last; row += at_once) {
    const Rows rows{row, 1, std::min(at_once, last - row)};
    read_weights(call.weights, rows, samples, table, shares);
    softmax(shares, rows.count, table.slots, table.count);
    for (int64_t i = 0; i < rows.count; ++i) {
      write_numbers(shares + i * table.slots, samples, Target{call.shares, kTypeOf<R>}, (row + i) * samples);
    }
  }
}

// Rows [first, last): shares and pulls to the gradients of logits.
template <class R>
void softmax_backward_rows(const Call& call, int64_t first, int64_t last) {
  const int64_t count = call.levels * call.points;
  R pulls[kMaxSamples];
  for (int64_t at = first * count; at < last * count; at += count) {
    std::memcpy(pulls, static_cast<const R*>(call.pulls) + at, count * sizeof(R));
    softmax_backward(static_cast<const R*>(call.shares) + at, count, pulls);
    write_numbers(pulls, count, call.grad_weights, at);
  }
}

}  // namespace MSDA_NAME
}  // namespace sst_d2_cpu
