// Arrays of any type, read and written as the type that is computed in. Included once per instruction set, after
// msda_cpu_vector.h.

namespace sst_d2_cpu {
namespace MSDA_NAME {

template <class T>
constexpr Type kTypeOf = std::is_same_v<T, double>     ? Type::kFloat64
                         : std::is_same_v<T, float>    ? Type::kFloat32
                         : std::is_same_v<T, BFloat16> ? Type::kBFloat16
                                                       : Type::kFloat16;

MSDA_INLINE float to_number(float number) { return number; }
MSDA_INLINE double to_number(double number) { return number; }
template <class T>
MSDA_INLINE float to_number(T number) {
  T many[kLanes<float>] = {number};
  return load_numbers(many)[0];
}

MSDA_INLINE void put_number(float* to, double number) { *to = static_cast<float>(number); }
MSDA_INLINE void put_number(double* to, double number) { *to = number; }
template <class T>
MSDA_INLINE void put_number(T* to, double number) {
  T many[kLanes<float>];
  store_numbers(many, all(static_cast<float>(number)));
  *to = many[0];
}

// Whether there are vectors to convert one type to the other; else one is float64 and numbers go one by one.
template <class R, class T>
constexpr bool kConvertible = std::is_same_v<R, double> == std::is_same_v<T, double>;

template <class T, class U>
MSDA_INLINE void copy(const T* from, int64_t count, U* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = from[i];
}

// Rows of `channels` numbers, `step` apart, to rows of `stride` numbers, filled up with 0: lays side by side what
// pixels or queries have for one head.
template <class R, class T>
void pack_from(const T* from, int64_t step, int64_t rows, int64_t channels, R* to, int64_t stride) {
  for (int64_t row = 0; row < rows; ++row, from += step, to += stride) {
    int64_t c = 0;
    if constexpr (kConvertible<R, T>) {
      for (; c + kLanes<R> <= channels; c += kLanes<R>) store_numbers(to + c, load_numbers(from + c));
      if (c < channels) {
        T last[kLanes<R>] = {};
        R converted[kLanes<R>];
        copy(from + c, channels - c, last);
        store_numbers(converted, load_numbers(last));
        copy(converted, channels - c, to + c);
      }
    } else {
      for (; c < channels; ++c) to[c] = static_cast<R>(to_number(from[c]));
    }
    for (c = channels; c < stride; ++c) to[c] = 0;
  }
}

template <class R>
void pack(const Source& source, int64_t first, int64_t step, int64_t rows, int64_t channels, R* to, int64_t stride) {
  const auto go = [&](auto* from) { pack_from(from + first, step, rows, channels, to, stride); };
  switch (source.type) {
    case Type::kFloat32: return go(static_cast<const float*>(source.data));
    case Type::kFloat64: return go(static_cast<const double*>(source.data));
    case Type::kBFloat16: return go(static_cast<const BFloat16*>(source.data));
    case Type::kFloat16: return go(static_cast<const Float16*>(source.data));
  }
}

// The way back.
template <class R, class T>
void unpack_to(const R* from, int64_t stride, int64_t rows, int64_t channels, T* to, int64_t step) {
  for (int64_t row = 0; row < rows; ++row, from += stride, to += step) {
    int64_t c = 0;
    if constexpr (kConvertible<R, T>) {
      for (; c + kLanes<R> <= channels; c += kLanes<R>) store_numbers(to + c, load_numbers(from + c));
      if (c < channels) {
        R last[kLanes<R>] = {};
        T converted[kLanes<R>];
        copy(from + c, channels - c, last);
        store_numbers(converted, load_numbers(last));
        copy(converted, channels - c, to + c);
      }
    } else {
      for (; c < channels; ++c) put_number(to + c, from[c]);
    }
  }
}

template <class R>
void unpack(const R* from, int64_t stride, int64_t rows, int64_t channels, const Target& target, int64_t first,
            int64_t step) {
  const auto go = [&](auto* to) { unpack_to(from, stride, rows, channels, to + first, step); };
  switch (target.type) {
    case Type::kFloat32: return go(static_cast<float*>(target.data));
    case Type::kFloat64: return go(static_cast<double*>(target.data));
    case Type::kBFloat16: return go(static_cast<BFloat16*>(target.data));
    case Type::kFloat16: return go(static_cast<Float16*>(target.data));
  }
}

// `count` numbers from `first` on.
template <class R>
MSDA_INLINE void read_numbers(const Source& source, int64_t first, int64_t count, R* to) {
  if (source.type != kTypeOf<R>) return pack(source, first, 0, 1, count, to, count);
  const R* from = static_cast<const R*>(source.data) + first;
  int64_t i = 0;
  for (; i + 4 <= count; i += 4) std::memcpy(to + i, from + i, 4 * sizeof(R));
  copy(from + i, count - i, to + i);
}

template <class R>
MSDA_INLINE void write_numbers(const R* from, int64_t count, const Target& target, int64_t first) {
  if (target.type != kTypeOf<R>) return unpack(from, 0, 1, count, target, first, 0);
  R* to = static_cast<R*>(target.data) + first;
  int64_t i = 0;
  for (; i + 4 <= count; i += 4) std::memcpy(to + i, from + i, 4 * sizeof(R));
  copy(from + i, count - i, to + i);
}

// `count` numbers from `first` on, readable in pairs of whole vectors: in place where the array goes on, else copied.
template <class R>
MSDA_INLINE const R* row_of(const Source& source, int64_t first, int64_t count, R* buffer) {
  const int64_t whole = (count + 2 * kLanes<R> - 1) / (2 * kLanes<R>) * (2 * kLanes<R>);
  if (source.type == kTypeOf<R> && first + whole <= source.size) return static_cast<const R*>(source.data) + first;
  pack(source, first, 0, 1, count, buffer, whole);
  return buffer;
}

template <int Write>
MSDA_INLINE void prefetch(const void* data, Type type, int64_t first, int64_t count) {
  const char* from = static_cast<const char*>(data) + first * size_of(type);
  for (int64_t i = 0; i < count * size_of(type); i += 64) __builtin_prefetch(from + i, Write, 3);
}

}  // namespace MSDA_NAME
}  // namespace sst_d2_cpu
