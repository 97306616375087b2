// Vectors of numbers: loads and stores of any type, shuffles, sums, exp, for a width of MSDA_BITS. Included once per
// instruction set. With the vector types of GCC and Clang, which work on any processor.

namespace sst_d2_cpu {
namespace MSDA_NAME {

#define MSDA_INLINE inline __attribute__((always_inline))

template <class R>
constexpr int kLanes = MSDA_BITS / 8 / static_cast<int>(sizeof(R));

template <class R, int N = kLanes<R>>
struct Lanes {
  using Whole = std::conditional_t<sizeof(R) == 8, int64_t, int32_t>;
  typedef R Numbers __attribute__((vector_size(N * sizeof(R))));
  typedef Whole Integers __attribute__((vector_size(N * sizeof(R))));
};
template <class R, int N = kLanes<R>>
using Vec = typename Lanes<R, N>::Numbers;
template <class R, int N = kLanes<R>>
using IntVec = typename Lanes<R, N>::Integers;
template <class R>
using Whole = typename Lanes<R>::Whole;

// Numbers of two bytes; arithmetic happens in float.
struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

template <class To, class From>
MSDA_INLINE To as(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "same bits, another type");
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

template <class V, class T>
MSDA_INLINE V load(const T* from) {
  V v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

template <class V, class T>
MSDA_INLINE void store(T* to, V v) {
  std::memcpy(to, &v, sizeof v);
}

template <class R>
constexpr int64_t whole_vectors(int64_t count) {
  return (count + kLanes<R> - 1) / kLanes<R> * kLanes<R>;
}

template <class R>
MSDA_INLINE Vec<R> all(R number) {
  return number - Vec<R>{};  // less 0: exact for -0, too
}

// ---- two-byte numbers ----------------------------------------------------------------------------------------------

typedef uint16_t Shorts __attribute__((vector_size(MSDA_BITS / 16)));
typedef uint32_t Bits __attribute__((vector_size(MSDA_BITS / 8)));
using Floats = Vec<float>;

MSDA_INLINE Floats load_numbers(const float* from) { return load<Floats>(from); }
MSDA_INLINE Vec<double> load_numbers(const double* from) { return load<Vec<double>>(from); }

MSDA_INLINE Floats load_numbers(const BFloat16* from) {
  return as<Floats>(__builtin_convertvector(load<Shorts>(from), Bits) << 16);
}

MSDA_INLINE void store_numbers(float* to, Floats v) { store(to, v); }
MSDA_INLINE void store_numbers(double* to, Vec<double> v) { store(to, v); }

MSDA_INLINE void store_numbers(BFloat16* to, Floats v) {
  const Bits bits = as<Bits>(v);
  const Bits rounded = bits + 0x7fff + ((bits >> 16) & 1);  // to nearest, ties to even
  const Bits kept = v == v ? rounded : (bits | 0x400000);   // rounding must not carry a NaN over to infinity
  store(to, __builtin_convertvector(kept >> 16, Shorts));
}

MSDA_INLINE Floats load_numbers(const Float16* from) {
#if MSDA_BITS == 512
  return as<Floats>(_mm512_cvtph_ps(load<__m256i>(from)));
#elif MSDA_BITS == 256
  return as<Floats>(_mm256_cvtph_ps(load<__m128i>(from)));
#else
  const Bits half = __builtin_convertvector(load<Shorts>(from), Bits);
  // The exponent's bias differs by 112; as a product it is right for subnormal numbers, too.
  const Bits scaled = as<Bits>(as<Floats>((half & 0x7fff) << 13) * 0x1p112f);
  const Bits special = (half & 0x7c00) == 0x7c00 ? (scaled | 0x7f800000) : scaled;
  return as<Floats>(special | ((half & 0x8000) << 16));
#endif
}

MSDA_INLINE void store_numbers(Float16* to, Floats v) {
#if MSDA_BITS == 512
  store(to, _mm512_cvtps_ph(as<__m512>(v), _MM_FROUND_TO_NEAREST_INT));
#elif MSDA_BITS == 256
  store(to, _mm256_cvtps_ph(as<__m256>(v), _MM_FROUND_TO_NEAREST_INT));
#else
  const Bits sign = as<Bits>(v) & 0x80000000;
  const Bits size = as<Bits>(v) & 0x7fffffff;
  // Normal halves: move the bias, round the 13 bits that fall away to nearest, ties to even.
  const Bits normal = (size - (112 << 23) + 0xfff + ((size >> 13) & 1)) >> 13;
  // Below 2^-14: adding 0.5 lets the processor round at 2^-24, the step of subnormal halves.
  const Bits subnormal = as<Bits>(as<Floats>(size) + 0.5f) - 0x3f000000;
  const Bits infinite = size > 0x7f800000 ? (Bits{} + 0x7e00) : (Bits{} + 0x7c00);
  const Bits half = size < 0x38800000 ? subnormal : size >= 0x477ff000 ? infinite : normal;
  store(to, __builtin_convertvector(half | (sign >> 16), Shorts));
#endif
}

// ---- shuffles and sums ---------------------------------------------------------------------------------------------

template <class R, int N, int... From>
MSDA_INLINE Vec<R, N> shuffle(Vec<R, N> a, Vec<R, N> b) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, From...);
#else
  return __builtin_shuffle(a, b, IntVec<R, N>{From...});
#endif
}

template <class R, int... K>
MSDA_INLINE void split_pairs(Vec<R> a, Vec<R> b, Vec<R>& first, Vec<R>& second, std::integer_sequence<int, K...>) {
  first = shuffle<R, kLanes<R>, 2 * K...>(a, b);
  second = shuffle<R, kLanes<R>, 2 * K + 1 ...>(a, b);
}

// Pairs (x0, y0, x1, y1 …) to a vector of the x and one of the y.
template <class R>
MSDA_INLINE void load_pairs(const R* from, Vec<R>& x, Vec<R>& y) {
  split_pairs<R>(load_numbers(from), load_numbers(from + kLanes<R>), x, y,
                 std::make_integer_sequence<int, kLanes<R>>());
}

template <class R, int... K>
MSDA_INLINE void join_pairs(Vec<R> x, Vec<R> y, R* to, std::integer_sequence<int, K...>) {
  store_numbers(to, shuffle<R, kLanes<R>, (K / 2 + K % 2 * kLanes<R>)...>(x, y));
  store_numbers(to + kLanes<R>, shuffle<R, kLanes<R>, ((kLanes<R> + K) / 2 + K % 2 * kLanes<R>)...>(x, y));
}

template <class R>
MSDA_INLINE void store_pairs(R* to, Vec<R> x, Vec<R> y) {
  join_pairs<R>(x, y, to, std::make_integer_sequence<int, kLanes<R>>());
}

// Every lane becomes the sum, or the largest, of all: it meets the one half the lanes away, a quarter, and so on.
template <class R, int Step, int... K>
MSDA_INLINE Vec<R> swapped(Vec<R> v, std::integer_sequence<int, K...>) {
  return shuffle<R, kLanes<R>, (K ^ Step)...>(v, v);
}

template <class R, int Step = kLanes<R> / 2>
MSDA_INLINE Vec<R> sum_everywhere(Vec<R> v) {
  if constexpr (Step == 0) return v;
  else return sum_everywhere<R, Step / 2>(v + swapped<R, Step>(v, std::make_integer_sequence<int, kLanes<R>>()));
}

template <class R, int Step = kLanes<R> / 2>
MSDA_INLINE Vec<R> largest_everywhere(Vec<R> v) {
  if constexpr (Step == 0) return v;
  else {
    const Vec<R> other = swapped<R, Step>(v, std::make_integer_sequence<int, kLanes<R>>());
    return largest_everywhere<R, Step / 2>(v > other ? v : other);
  }
}

// exp for arguments up to 0; below -87 it is 0. Error: 2 units in the last place. The polynomial is a minimax fit of
// (exp(r) - 1 - r) / r^2 for |r| <= log(2) / 2.
MSDA_INLINE Floats exp_negative(Floats x) {
  const Floats safe = x > -87.f ? x : Floats{};
  const Floats shifted = safe * 1.442695041f + 12582912.f;  // adding 1.5 * 2^23 rounds to a whole number
  const Floats whole = shifted - 12582912.f;
  const Floats rest = safe - whole * 0x1.62e4p-1f - whole * 1.428606765e-6f;  // log(2) in two parts
  Floats series = rest * 1.3814539415e-3f + 8.3687454461e-3f;
  series = series * rest + 4.1668388993e-2f;
  series = series * rest + 1.6666521132e-1f;
  series = series * rest + 4.9999994040e-1f;
  const Floats power = series * (rest * rest) + rest + 1.f;
  const Floats scaled = as<Floats>(as<Bits>(power) + (as<Bits>(shifted) << 23));
  return x > -87.f ? scaled : (x == x ? Floats{} : x);
}

MSDA_INLINE Vec<double> exp_negative(Vec<double> x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = std::exp(x[i]);
  return x;
}

}  // namespace MSDA_NAME
}  // namespace sst_d2_cpu
