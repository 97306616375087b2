// The forward kernel. Included once per instruction set, after msda_cpu_plan.h.

namespace sst_d2_cpu {
namespace MSDA_NAME {

// Samples [first, last) of a plan, summed for `Count` vectors of channels. `rows`: pixel 0, `stride` numbers per pixel.
template <int Count, class R, class T>
MSDA_INLINE void sum_vectors(const Plan<R>& plan, int64_t first, int64_t last, const T* rows, int64_t stride, R* to) {
  Vec<R> even[Count] = {}, odd[Count] = {};  // two chains of additions, else each waits for the one before
  for (int64_t i = first; i < last; ++i) {
    if (plan.pixel[i] < 0) continue;
    const T* above = rows + plan.pixel[i] * stride;
    const T* below = above + plan.down[i] * stride;
    const int64_t right = plan.right[i] * stride;
    const Vec<R> share0 = all(plan.shares[0][i]), share1 = all(plan.shares[1][i]);
    const Vec<R> share2 = all(plan.shares[2][i]), share3 = all(plan.shares[3][i]);
    for (int k = 0; k < Count; ++k) {
      const int at = k * kLanes<R>;
      even[k] += share0 * load_numbers(above + at);
      odd[k] += share1 * load_numbers(above + right + at);
      even[k] += share2 * load_numbers(below + at);
      odd[k] += share3 * load_numbers(below + right + at);
    }
  }
  for (int k = 0; k < Count; ++k) store_numbers(to + k * kLanes<R>, even[k] + odd[k]);
}

// One output row of `channels` numbers, a multiple of the lanes, in passes of up to four vectors.
template <class R, class T>
void sum_samples(const Plan<R>& plan, int64_t first, int64_t last, const T* rows, int64_t stride, int64_t channels,
                 R* to) {
  for (int64_t c = 0; c < channels;) {
    const int64_t left = (channels - c) / kLanes<R>;
    if (left >= 4) {
      sum_vectors<4>(plan, first, last, rows + c, stride, to + c);
      c += 4 * kLanes<R>;
    } else if (left >= 2) {
      sum_vectors<2>(plan, first, last, rows + c, stride, to + c);
      c += 2 * kLanes<R>;
    } else {
      sum_vectors<1>(plan, first, last, rows + c, stride, to + c);
      c += kLanes<R>;
    }
  }
}

// The next block's numbers, a row of it at a time: caches learn of them while this block's sums are computed.
template <class R>
MSDA_INLINE void prefetch_row(const Call& call, const Table<R>& table, int64_t row) {
  const int64_t samples = call.levels * call.points;
  prefetch<0>(call.places.data, call.places.type, (row * samples + table.offset) * 2, table.count * 2);
  prefetch<0>(call.weights.data, call.weights.type, row * samples + table.offset, table.count);
}

template <class R>
MSDA_INLINE void plan_forward_rows(const Call& call, const Table<R>& table, const Rows& rows, Plan<R>& plan) {
  read_weights(call.weights, rows, call.levels * call.points, table, plan.weight);
  if (call.fused) softmax(plan.weight, rows.count, table.slots, table.count);
  read_places(call, rows, table, plan);
  make_plan<false>(table, rows.count, plan);
}

// A task: one head of one image and a range of queries. The head's values are first laid side by side, as R: pixels
// of one head lie so far apart in value that they would share few sets of the caches.
template <class R>
void forward_packed(const Call& call, int64_t task, void* scratch) {
  const int64_t part = task % call.parts, m = task / call.parts % call.heads, b = task / call.parts / call.heads;
  const int64_t first = call.queries * part / call.parts, last = call.queries * (part + 1) / call.parts;
  const int64_t stride = whole_vectors<R>(call.channels), step = call.heads * call.channels;
  R* buffer = static_cast<R*>(scratch);
  R* pixels = buffer + kRowsAtOnce * stride;
  pack(call.value, b * call.pixels * step + m * call.channels, step, call.pixels, call.channels, pixels, stride);
  const bool in_place = call.output.type == kTypeOf<R> && stride == call.channels;
  const Table<R> table(call, Cut{b, m, 0, call.levels}, false);
  const int64_t at_once = std::min(kPlanned / table.slots, kRowsAtOnce);
  Plan<R> plan;
  for (int64_t q = first; q < last; q += at_once) {
    const Rows rows{(b * call.queries + q) * call.heads + m, call.heads, std::min(at_once, last - q)};
    plan_forward_rows(call, table, rows, plan);
    for (int64_t i = 0, slot = 0; i < rows.count; ++i, slot += table.slots) {
      const int64_t row = rows.first + i * rows.step, next = row + at_once * rows.step;
      prefetch_row(call, table, next);
      prefetch<1>(call.output.data, call.output.type, next * call.channels, call.channels);
      R* to = in_place ? static_cast<R*>(call.output.data) + row * call.channels : buffer + i * stride;
      sum_samples(plan, slot, slot + table.count, pixels, stride, stride, to);
    }
    if (!in_place) unpack(buffer, stride, rows.count, call.channels, call.output, rows.first * call.channels, step);
  }
}

// A task: a range of queries of one image, all heads, straight from value. For few queries and whole vectors.
template <class R, class T>
void forward_direct(const Call& call, int64_t task, void* scratch) {
  const int64_t part = task % call.parts, b = task / call.parts;
  const int64_t first = call.queries * part / call.parts, last = call.queries * (part + 1) / call.parts;
  const int64_t step = call.heads * call.channels;
  const T* pixels = static_cast<const T*>(call.value.data) + b * call.pixels * step;
  R* buffer = static_cast<R*>(scratch);
  const Table<R> table(call, Cut{b, 0, 0, call.levels}, false);
  const int64_t at_once = std::min(kPlanned / table.slots, kRowsAtOnce);
  const int64_t first_row = (b * call.queries + first) * call.heads, last_row = (b * call.queries + last) * call.heads;
  Plan<R> plan;
  for (int64_t r = first_row; r < last_row; r += at_once) {
    const Rows rows{r, 1, std::min(at_once, last_row - r)};
    plan_forward_rows(call, table, rows, plan);
    for (int64_t i = 0, slot = 0; i < rows.count; ++i, slot += table.slots) {
      const T* of_head = pixels + (r + i) % call.heads * call.channels;
      sum_samples(plan, slot, slot + table.count, of_head, step, call.channels, buffer + i * call.channels);
    }
    unpack(buffer, call.channels, rows.count, call.channels, call.output, r * call.channels, call.channels);
  }
}

}  // namespace MSDA_NAME
}  // namespace sst_d2_cpu
