// The backward kernels. Included once per instruction set, after msda_cpu_plan.h.
//
// A task is one head of one image, all levels or one, and a band of their rows of pixels. It adds up the gradient of
// that part of value in memory of its own, side by side, query after query, and writes it once: no atomic operations,
// the same bits on any number of threads. A sample belongs to the band of its upper row; where the lower row lies in
// the next band, that task adds it.

namespace sst_d2_cpu {
namespace MSDA_NAME {

template <class R>
struct Band {
  Cut cut;
  int64_t stride;   // numbers of a pixel
  const R* values;  // the band's pixels, see `Table`
  R* grads;
};

template <class R>
struct Pulls {
  alignas(64) R corner[kPlanned][4];  // gradient of the output times value, at the corners
  alignas(64) R of_pairs[2 * kPlanned], of_weight[kPlanned];
};

// The four sums of lanes, one after the other.
template <class R>
MSDA_INLINE void store_sums(const Vec<R> (&sums)[4], R* to) {
  if constexpr (sizeof(R) == 8) {
    for (int k = 0; k < 4; ++k) to[k] = sum_everywhere<R>(sums[k])[0];
  } else {
    using Quad = Vec<float, 4>;
    Quad quads[4];
    for (int k = 0; k < 4; ++k) {
      Quad parts[kLanes<float> / 4];
      std::memcpy(parts, &sums[k], sizeof parts);
      quads[k] = parts[0];
      for (int i = 1; i < kLanes<float> / 4; ++i) quads[k] += parts[i];
    }
    const Quad ab = shuffle<R, 4, 0, 4, 1, 5>(quads[0], quads[1]) + shuffle<R, 4, 2, 6, 3, 7>(quads[0], quads[1]);
    const Quad cd = shuffle<R, 4, 0, 4, 1, 5>(quads[2], quads[3]) + shuffle<R, 4, 2, 6, 3, 7>(quads[2], quads[3]);
    store(to, shuffle<R, 4, 0, 1, 4, 5>(ab, cd) + shuffle<R, 4, 2, 3, 6, 7>(ab, cd));
  }
}

template <class R>
MSDA_INLINE void add_to(R* to, Vec<R> numbers) {
  store_numbers(to, load_numbers(to) + numbers);
}

// Where a sample's corners lie in the band's numbers, and their shares.
template <class R>
struct Corners {
  int64_t above, below, right;
  Vec<R> shares[4];

  MSDA_INLINE Corners(const Plan<R>& plan, int64_t i, int64_t stride)
      : above(plan.pixel[i] * stride), below(above + plan.down[i] * stride), right(plan.right[i] * stride),
        shares{all(plan.shares[0][i]), all(plan.shares[1][i]), all(plan.shares[2][i]), all(plan.shares[3][i])} {}
};

// One vector of channels of a sample: its pulls from value, and its share of `g` added to the gradient of value.
template <class R>
MSDA_INLINE void work_on_vector(Vec<R> g, const R* values, R* grads, const Corners<R>& at, Vec<R> (&sums)[4]) {
  sums[0] += g * load_numbers(values + at.above);
  sums[1] += g * load_numbers(values + at.above + at.right);
  sums[2] += g * load_numbers(values + at.below);
  sums[3] += g * load_numbers(values + at.below + at.right);
  add_to(grads + at.above, at.shares[0] * g);
  add_to(grads + at.above + at.right, at.shares[1] * g);
  add_to(grads + at.below, at.shares[2] * g);
  add_to(grads + at.below + at.right, at.shares[3] * g);
}

// A sample between two bands: this task's part of it.
template <class R>
void work_on_part(const Plan<R>& plan, int64_t i, const R* grad, const Band<R>& band, Pulls<R>& pulls) {
  const Corners<R> at(plan, i, band.stride);
  Vec<R> sums[4] = {};
  for (int64_t c = 0; c < band.stride; c += kLanes<R>) {
    const Vec<R> g = load_numbers(grad + c);
    if (plan.part[i] == kUpper) {
      sums[0] += g * load_numbers(band.values + at.above + c);
      sums[1] += g * load_numbers(band.values + at.above + at.right + c);
      sums[2] += g * load_numbers(band.values + at.below + c);
      sums[3] += g * load_numbers(band.values + at.below + at.right + c);
      add_to(band.grads + at.above + c, at.shares[0] * g);
      add_to(band.grads + at.above + at.right + c, at.shares[1] * g);
    } else {
      add_to(band.grads + at.below + c, at.shares[2] * g);
      add_to(band.grads + at.below + at.right + c, at.shares[3] * g);
    }
  }
  store_sums(sums, pulls.corner[i]);
}

// The samples of one row. `grad`: that of its output; `Count` vectors of channels, or 0: as many as there are.
template <int Count, class R>
MSDA_INLINE void work_on_row(const Plan<R>& plan, int64_t first, int64_t last, const R* grad, const Band<R>& band,
                             Pulls<R>& pulls) {
  const R* const values = band.values;
  R* const grads = band.grads;
  const int64_t stride = Count ? Count * kLanes<R> : band.stride;
  Vec<R> kept[Count ? Count : 1];
  for (int k = 0; k < Count; ++k) kept[k] = load_numbers(grad + k * kLanes<R>);
  for (int64_t i = first; i < last; ++i) {
    if (plan.part[i] != kAll) {
      if (plan.part[i] == kUpper || plan.part[i] == kLower) work_on_part(plan, i, grad, band, pulls);
      continue;
    }
    const Corners<R> at(plan, i, stride);
    Vec<R> sums[4] = {};
    for (int64_t k = 0, c = 0; c < stride; ++k, c += kLanes<R>) {
      work_on_vector(Count ? kept[Count ? k : 0] : load_numbers(grad + c), values + c, grads + c, at, sums);
    }
    store_sums(sums, pulls.corner[i]);
  }
}

// The pulls of four samples: from one after the other to one corner after the other.
template <class R>
MSDA_INLINE void transpose(const R (*from)[4], R* to, int64_t step) {
  using Quad = Vec<R, 4>;
  const Quad a = load<Quad>(from[0]), b = load<Quad>(from[1]), c = load<Quad>(from[2]), d = load<Quad>(from[3]);
  const Quad ab01 = shuffle<R, 4, 0, 4, 1, 5>(a, b), ab23 = shuffle<R, 4, 2, 6, 3, 7>(a, b);
  const Quad cd01 = shuffle<R, 4, 0, 4, 1, 5>(c, d), cd23 = shuffle<R, 4, 2, 6, 3, 7>(c, d);
  store(to, shuffle<R, 4, 0, 1, 4, 5>(ab01, cd01));
  store(to + step, shuffle<R, 4, 2, 3, 6, 7>(ab01, cd01));
  store(to + 2 * step, shuffle<R, 4, 0, 1, 4, 5>(ab23, cd23));
  store(to + 3 * step, shuffle<R, 4, 2, 3, 6, 7>(ab23, cd23));
}

// From the corners' pulls to the gradients of positions and weights.
template <class R>
MSDA_INLINE void finish_rows(const Call& call, const Table<R>& table, int64_t rows, const Plan<R>& plan,
                             Pulls<R>& pulls) {
  alignas(64) R corner[4][kPlanned];
  const int64_t slots = rows * table.slots;
  for (int64_t slot = 0; slot < slots; slot += 4) transpose(pulls.corner + slot, corner[0] + slot, kPlanned);
  for (int64_t slot = 0, i = 0; slot < slots; slot += kLanes<R>) {
    const auto at = locate(load_numbers(plan.x + slot), load_numbers(plan.y + slot), table, i);
    const Vec<R> weight = load_numbers(plan.weight + slot), zero = {};
    const Vec<R> p0 = load_numbers(corner[0] + slot), p1 = load_numbers(corner[1] + slot);
    const Vec<R> p2 = load_numbers(corner[2] + slot), p3 = load_numbers(corner[3] + slot);
    const Vec<R> upper = at.left * p0 + at.right * p1, lower = at.left * p2 + at.right * p3;
    // Of slopes, unlike of shares, what lies outside has no part.
    const Vec<R> above = (at.right_on ? p1 : zero) - (at.left_on ? p0 : zero);
    const Vec<R> below = (at.right_on ? p3 : zero) - (at.left_on ? p2 : zero);
    const Vec<R> per_x = call.fused ? weight : weight * load_numbers(table.width + i);
    const Vec<R> per_y = call.fused ? weight : weight * load_numbers(table.height + i);
    const Vec<R> of_x = per_x * (at.above * above + at.below * below);
    const Vec<R> of_y = per_y * ((at.below_on ? lower : zero) - (at.above_on ? upper : zero));
    store_pairs<R>(pulls.of_pairs + 2 * slot, at.counts ? of_x : zero, at.counts ? of_y : zero);
    store_numbers(pulls.of_weight + slot, at.counts ? at.above * upper + at.below * lower : zero);
    i = i + kLanes<R> < table.slots ? i + kLanes<R> : 0;
  }
}

// The gradient of logit i is share i times (pull i less the mean of the pulls, weighed by the shares).
template <class R>
MSDA_INLINE void softmax_backward(const R* shares, int64_t count, R* pulls) {
  R mean = 0;
  for (int64_t i = 0; i < count; ++i) mean += shares[i] * pulls[i];
  for (int64_t i = 0; i < count; ++i) pulls[i] = shares[i] * (pulls[i] - mean);
}

// Writes the gradients of positions and weights; in a band, only those of samples that belong to it.
template <class R>
MSDA_INLINE void write_rows(const Call& call, const Table<R>& table, const Rows& rows, const Plan<R>& plan,
                            const Pulls<R>& pulls) {
  const Target weights = call.pulls ? Target{call.pulls, kTypeOf<R>} : call.grad_weights;
  for (int64_t r = 0, slot = 0; r < rows.count; ++r, slot += table.slots) {
    const int64_t first = (rows.first + r * rows.step) * call.levels * call.points + table.offset;
    if (call.parts == 1) {
      write_numbers(pulls.of_pairs + 2 * slot, 2 * table.count, call.grad_places, 2 * first);
      write_numbers(pulls.of_weight + slot, table.count, weights, first);
      continue;
    }
    for (int64_t i = 0; i < table.count; ++i) {
      if (plan.part[slot + i] == kNone || plan.part[slot + i] == kLower) continue;
      write_numbers(pulls.of_pairs + 2 * (slot + i), 2, call.grad_places, 2 * (first + i));
      write_numbers(pulls.of_weight + slot + i, 1, weights, first + i);
    }
  }
}

}  // namespace MSDA_NAME
}  // namespace sst_d2_cpu
