// From positions and weights to what a sum over samples needs. Included once per instruction set, after
// msda_cpu_arrays.h.

namespace sst_d2_cpu {
namespace MSDA_NAME {

// Which samples a task works on, and of the levels, which rows of pixels: band `part` of `parts`.
struct Cut {
  int64_t b, m;
  int first_level, last_level;
  int64_t part = 0, parts = 1;

  int64_t first_row(const Level& level) const { return level.height * part / parts; }
  int64_t last_row(const Level& level) const { return level.height * (part + 1) / parts; }
  bool has_next(const Level& level) const { return last_row(level) < level.height; }
};

// Constants of the samples of one row, in the order of the weights. `start`: where pixel 0 of the sample's level lies
// among the pixels at hand: all of them, or where `banded` the bands of the levels one after the other, each with the
// row of pixels below.
template <class R>
struct Table {
  alignas(64) R width[kMaxSamples], height[kMaxSamples];
  alignas(64) Whole<R> columns[kMaxSamples], rows[kMaxSamples], start[kMaxSamples];
  alignas(64) Whole<R> first_row[kMaxSamples], last_row[kMaxSamples];
  int count, offset;  // samples of a row, and the first one's place among those of all levels
  int64_t slots;      // the same in whole vectors

  Table(const Call& call, const Cut& cut, bool banded) {
    count = (cut.last_level - cut.first_level) * call.points;
    offset = cut.first_level * call.points;
    slots = whole_vectors<R>(count);
    int64_t pixels = 0;
    for (int i = 0; i < slots; ++i) {
      const int l = cut.first_level + i / call.points;
      const Level level = i < count ? call.level[l] : Level{0, 1, 1};
      width[i] = static_cast<R>(level.width);
      height[i] = static_cast<R>(level.height);
      columns[i] = level.width;
      rows[i] = level.height;
      first_row[i] = static_cast<Whole<R>>(cut.first_row(level));
      last_row[i] = static_cast<Whole<R>>(cut.last_row(level));
      start[i] = static_cast<Whole<R>>(banded ? pixels - cut.first_row(level) * level.width : level.start);
      if ((i + 1) % call.points == 0) pixels += (last_row[i] - first_row[i] + cut.has_next(level)) * level.width;
    }
  }
};

// The share of a column or row outside. The one inside is read in its place, and may be infinite: 0 times infinity
// would be no number. So much more of the one inside is far less than what rounding its position does.
template <class R>
constexpr R kLeast = sizeof(R) == 8 ? R(0x1p-70) : R(0x1p-30);

// Where samples lie: the pixel above and to the left (moved inside the level), the shares of columns and rows, and
// which of them are inside (-1 where true).
template <class R>
struct Located {
  Vec<R> left, right, above, below;
  IntVec<R> column, row, left_on, right_on, above_on, below_on, counts;
};

template <class R>
MSDA_INLINE Located<R> locate(Vec<R> x, Vec<R> y, const Table<R>& table, int64_t i) {
  Located<R> at;
  const Vec<R> width = load_numbers(table.width + i), height = load_numbers(table.height + i);
  at.counts = (x > R(-1)) & (x < width) & (y > R(-1)) & (y < height);  // false where x or y is no number
  x = at.counts ? x : Vec<R>{};
  y = at.counts ? y : Vec<R>{};
  // Conversion rounds to zero; a comparison gives -1 where true.
  const IntVec<R> column = __builtin_convertvector(x, IntVec<R>) + (x < R(0));
  const IntVec<R> row = __builtin_convertvector(y, IntVec<R>) + (y < R(0));
  const Vec<R> along = x - __builtin_convertvector(column, Vec<R>);
  const Vec<R> down = y - __builtin_convertvector(row, Vec<R>);
  at.left_on = column >= 0;
  at.right_on = column + 1 < load<IntVec<R>>(table.columns + i);
  at.above_on = row >= 0;
  at.below_on = row + 1 < load<IntVec<R>>(table.rows + i);
  const Vec<R> least = all(kLeast<R>);
  at.left = at.left_on ? 1 - along : least;
  at.right = at.right_on ? along : least;
  at.above = at.above_on ? 1 - down : least;
  at.below = at.below_on ? down : least;
  at.column = at.left_on & column;
  at.row = at.above_on & row;
  return at;
}

// Parts of a sample that a task does.
constexpr int32_t kNone = 0, kAll = 1, kUpper = 2, kLower = 3, kZero = 4;  // kZero: it does not count, write zeros

// The samples of several rows, `slots` for each. A sample that does not count has pixel -1.
template <class R>
struct Plan {
  alignas(64) R weight[kPlanned], x[kPlanned], y[kPlanned];  // x and y in pixels
  alignas(64) R shares[4][kPlanned];     // weight times share of the corners: above left, right, below left, right
  alignas(64) Whole<R> pixel[kPlanned];  // above left
  alignas(64) Whole<R> right[kPlanned];  // pixels to the corner on the right: 1 or 0
  alignas(64) Whole<R> down[kPlanned];   // pixels to the corner below: the level's width or 0
  alignas(64) Whole<R> part[kPlanned];   // backward only
};

// Rows that are planned together: `first` among the (b, q, m), then every `step`-th.
struct Rows {
  int64_t first, step, count;
};

// Softmax of each row of `slots` numbers in place; those past `count` become 0. In three loops, since each of them is
// short enough for the processor to work on several rows at a time.
template <class R>
MSDA_INLINE void softmax(R* numbers, int64_t rows, int64_t slots, int count) {
  constexpr int kN = kLanes<R>;
  const R lowest = -std::numeric_limits<R>::infinity();
  IntVec<R> lane;
  for (int i = 0; i < kN; ++i) lane[i] = i;
  for (R* row = numbers; row < numbers + rows * slots; row += slots) {
    Vec<R> last = load_numbers(row + slots - kN);
    last = lane < static_cast<Whole<R>>(count - (slots - kN)) ? last : all(lowest);
    store_numbers(row + slots - kN, last);
    Vec<R> largest = last;
    for (int64_t i = 0; i < slots - kN; i += kN) {
      const Vec<R> v = load_numbers(row + i);
      largest = v > largest ? v : largest;
    }
    largest = largest_everywhere<R>(largest);
    for (int64_t i = 0; i < slots; i += kN) store_numbers(row + i, load_numbers(row + i) - largest);
  }
  for (int64_t i = 0; i < rows * slots; i += kN) store_numbers(numbers + i, exp_negative(load_numbers(numbers + i)));
  for (R* row = numbers; row < numbers + rows * slots; row += slots) {
    Vec<R> sum = {};
    for (int64_t i = 0; i < slots; i += kN) sum += load_numbers(row + i);
    const Vec<R> factor = 1 / sum_everywhere<R>(sum);
    for (int64_t i = 0; i < slots; i += kN) store_numbers(row + i, load_numbers(row + i) * factor);
  }
}

// Reads rows of weights into whole vectors.
template <class R>
MSDA_INLINE void read_weights(const Source& source, const Rows& rows, int64_t samples, const Table<R>& table, R* to) {
  alignas(64) R buffer[kMaxSamples + 2 * kLanes<R>];
  for (int64_t i = 0; i < rows.count; ++i, to += table.slots) {
    const R* from = row_of(source, (rows.first + i * rows.step) * samples + table.offset, table.count, buffer);
    for (int64_t k = 0; k < table.slots; k += kLanes<R>) store_numbers(to + k, load_numbers(from + k));
  }
}

// Reads positions, as pixels.
template <class R>
MSDA_INLINE void read_places(const Call& call, const Rows& rows, const Table<R>& table, Plan<R>& plan) {
  alignas(64) R buffer[2 * kMaxSamples + 4 * kLanes<R>], reference[2 * kMaxLevels];
  alignas(64) R at_x[kMaxSamples], at_y[kMaxSamples];
  const int64_t samples = call.levels * call.points, levels = call.reference_levels;
  const int64_t per_image = call.queries * call.heads;
  for (int64_t r = 0; r < rows.count; ++r) {
    const int64_t row = rows.first + r * rows.step, slot = r * table.slots;
    const R* places = row_of(call.places, (row * samples + table.offset) * 2, 2 * table.count, buffer);
    if (call.fused) {
      const int64_t query = row / call.heads - (call.reference_images == 1 ? row / per_image * call.queries : 0);
      read_numbers(call.references, query * levels * 2, levels * 2, reference);
    }
    if (call.fused && levels > 1) {
      for (int i = 0; i < table.count; ++i) {
        at_x[i] = reference[(table.offset + i) / call.points * 2];
        at_y[i] = reference[(table.offset + i) / call.points * 2 + 1];
      }
    }
    for (int64_t i = 0; i < table.slots; i += kLanes<R>) {
      Vec<R> x, y;
      load_pairs<R>(places + 2 * i, x, y);
      const Vec<R> width = load_numbers(table.width + i), height = load_numbers(table.height + i);
      if (!call.fused) {
        x = x * width - R(0.5);
        y = y * height - R(0.5);
      } else {
        x += (levels > 1 ? load_numbers(at_x + i) : all(reference[0])) * width - R(0.5);
        y += (levels > 1 ? load_numbers(at_y + i) : all(reference[1])) * height - R(0.5);
      }
      store_numbers(plan.x + slot + i, x);
      store_numbers(plan.y + slot + i, y);
    }
  }
}

// From places and weights to corners and shares.
template <bool kBanded, class R>
MSDA_INLINE void make_plan(const Table<R>& table, int64_t rows, Plan<R>& plan) {
  const auto every = [](Whole<R> part) __attribute__((always_inline)) { return IntVec<R>{} + part; };
  for (int64_t slot = 0, i = 0; slot < rows * table.slots; slot += kLanes<R>) {
    const auto at = locate(load_numbers(plan.x + slot), load_numbers(plan.y + slot), table, i);
    const Vec<R> weight = load_numbers(plan.weight + slot), above = at.above * weight, below = at.below * weight;
    store_numbers(plan.shares[0] + slot, above * at.left);
    store_numbers(plan.shares[1] + slot, above * at.right);
    store_numbers(plan.shares[2] + slot, below * at.left);
    store_numbers(plan.shares[3] + slot, below * at.right);
    const IntVec<R> columns = load<IntVec<R>>(table.columns + i), both = at.above_on & at.below_on;
    const IntVec<R> pixel = load<IntVec<R>>(table.start + i) + at.row * columns + at.column;
    store(plan.pixel + slot, at.counts ? pixel : every(-1));
    store(plan.right + slot, at.left_on & at.right_on & 1);
    store(plan.down + slot, both & columns);
    if constexpr (kBanded) {
      const IntVec<R> first = load<IntVec<R>>(table.first_row + i), last = load<IntVec<R>>(table.last_row + i);
      const IntVec<R> next = at.row - both;
      const IntVec<R> lower = (next >= first) & (next < last);
      const IntVec<R> upper = (at.row >= first) & (at.row < last);
      const IntVec<R> part = upper ? (lower ? every(kAll) : every(kUpper)) : lower & every(kLower);
      const IntVec<R> at_end = last == load<IntVec<R>>(table.rows + i);  // of the level: true for one band alone
      store(plan.part + slot, at.counts ? part : at_end & every(kZero));
    }
    i = i + kLanes<R> < table.slots ? i + kLanes<R> : 0;
  }
}

}  // namespace MSDA_NAME
}  // namespace sst_d2_cpu
