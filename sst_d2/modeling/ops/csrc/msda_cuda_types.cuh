// Number types of the CUDA kernels: 16-byte access, conversion to and from fp32, addition to global memory.
//
// Nothing is included, so that NVRTC needs no headers. Every PTX line stands beside plain C++ that does the same:
// older architectures use it, and so do the tests, which compile these files for the CPU.
#pragma once

namespace sst_d2::msda {

// The type of a tensor's numbers, as launchers name it in `Problem`.
enum Kind : int { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

struct BFloat16 {
  unsigned short bits;
};

struct Float16 {
  unsigned short bits;
};

// bfloat16 is the upper half of an fp32 number.
__device__ __forceinline__ float to_float(BFloat16 number) {
  return __uint_as_float(static_cast<unsigned>(number.bits) << 16);
}

__device__ __forceinline__ float to_float(Float16 number) {
#if defined(__CUDA_ARCH__)
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(number.bits));
  return result;
#else
  const unsigned sign = (number.bits & 0x8000u) << 16;
  const unsigned magnitude = number.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return __uint_as_float(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  // Read with fp32's exponent the number is too small by 2^112; multiplying also makes subnormal numbers right.
  const float scaled = __uint_as_float(magnitude << 13) * 5192296858534827628530496329220096.0f;
  return __uint_as_float(sign | __float_as_uint(scaled));
#endif
}

// Round to the nearest number, ties to even.
__device__ __forceinline__ BFloat16 to_bfloat16(float number) {
  BFloat16 result;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(result.bits) : "f"(number));
#else
  const unsigned bits = __float_as_uint(number);
  const unsigned rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
  result.bits = static_cast<unsigned short>(number != number ? 0x7fffu : rounded >> 16);
#endif
  return result;
}

// Round to the nearest number, ties to even; 65520 and more become infinite.
__device__ __forceinline__ Float16 to_float16(float number) {
  Float16 result;
#if defined(__CUDA_ARCH__)
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result.bits) : "f"(number));
#else
  const unsigned sign = (__float_as_uint(number) >> 16) & 0x8000u;
  const unsigned magnitude = __float_as_uint(number) & 0x7fffffffu;
  unsigned half;
  if (magnitude > 0x7f800000u) {
    half = 0x7fffu;
  } else if (magnitude >= 0x477ff000u) {
    half = 0x7c00u;
  } else if (magnitude < 0x38800000u) {
    // Subnormal: adding 0.5 leaves the bits in multiples of 2^-24, rounded by the addition itself.
    half = __float_as_uint(__uint_as_float(magnitude) + 0.5f) - 0x3f000000u;
  } else {
    half = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  }
  result.bits = static_cast<unsigned short>(sign | half);
#endif
  return result;
}

// Sixteen bytes of a value tensor as fp32 numbers.
template <typename T>
struct Pack;

template <>
struct Pack<float> {
  static constexpr int kCount = 4;

  static __device__ __forceinline__ void unpack(uint4 bits, float (&numbers)[4]) {
    numbers[0] = __uint_as_float(bits.x);
    numbers[1] = __uint_as_float(bits.y);
    numbers[2] = __uint_as_float(bits.z);
    numbers[3] = __uint_as_float(bits.w);
  }

  static __device__ __forceinline__ uint4 pack(const float (&numbers)[4]) {
    return make_uint4(__float_as_uint(numbers[0]), __float_as_uint(numbers[1]), __float_as_uint(numbers[2]),
                      __float_as_uint(numbers[3]));
  }
};

__device__ __forceinline__ BFloat16 round_to(float number, BFloat16) { return to_bfloat16(number); }
__device__ __forceinline__ Float16 round_to(float number, Float16) { return to_float16(number); }

// Both 16-bit types. The lower address holds the lower half of a word.
template <typename T>
struct HalfPack {
  static constexpr int kCount = 8;

  static __device__ __forceinline__ void unpack(uint4 bits, float (&numbers)[8]) {
    const unsigned words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      numbers[2 * i] = to_float(T{static_cast<unsigned short>(words[i] & 0xffffu)});
      numbers[2 * i + 1] = to_float(T{static_cast<unsigned short>(words[i] >> 16)});
    }
  }

  static __device__ __forceinline__ uint4 pack(const float (&numbers)[8]) {
    unsigned words[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const unsigned low = round_to(numbers[2 * i], T{}).bits, high = round_to(numbers[2 * i + 1], T{}).bits;
      words[i] = low | high << 16;
    }
    return make_uint4(words[0], words[1], words[2], words[3]);
  }
};

template <>
struct Pack<BFloat16> : HalfPack<BFloat16> {};

template <>
struct Pack<Float16> : HalfPack<Float16> {};

// Products and addresses of 64 bits from 32-bit factors: one instruction each, which the compiler does not find itself.
__device__ __forceinline__ unsigned long long wide(unsigned a, unsigned b) {
  return static_cast<unsigned long long>(a) * b;
}

template <typename T>
__device__ __forceinline__ T* advance(T* base, unsigned count, unsigned bytes) {
#if defined(__CUDA_ARCH__)
  T* result;
  asm("mad.wide.u32 %0, %1, %2, %3;" : "=l"(result) : "r"(count), "r"(bytes), "l"(base));
  return result;
#else
  return base + wide(count, bytes);
#endif
}

// Sixteen bytes that nobody writes while the kernel runs.
__device__ __forceinline__ uint4 load16(const char* address) { return __ldg(reinterpret_cast<const uint4*>(address)); }

// Four consecutive channels as fp32 numbers.
template <typename T>
__device__ __forceinline__ float4 load_four(const char* address) {
  if constexpr (sizeof(T) == 4) {
    return __ldg(reinterpret_cast<const float4*>(address));
  } else {
    const uint2 words = __ldg(reinterpret_cast<const uint2*>(address));
    return make_float4(to_float(T{static_cast<unsigned short>(words.x & 0xffffu)}),
                       to_float(T{static_cast<unsigned short>(words.x >> 16)}),
                       to_float(T{static_cast<unsigned short>(words.y & 0xffffu)}),
                       to_float(T{static_cast<unsigned short>(words.y >> 16)}));
  }
}

// Bytes of a number, and access to numbers, whose type is known at run time only.
__device__ __forceinline__ unsigned bytes_of(int kind) { return kind == kFloat32 ? 4u : 2u; }

__device__ __forceinline__ float load(const char* address, int kind) {
  if (kind == kFloat32) return __ldg(reinterpret_cast<const float*>(address));
  const unsigned short bits = __ldg(reinterpret_cast<const unsigned short*>(address));
  return kind == kBFloat16 ? to_float(BFloat16{bits}) : to_float(Float16{bits});
}

__device__ __forceinline__ float2 load_pair(const char* address, int kind) {
  if (kind == kFloat32) return __ldg(reinterpret_cast<const float2*>(address));
  const unsigned word = __ldg(reinterpret_cast<const unsigned*>(address));
  const unsigned short x = static_cast<unsigned short>(word & 0xffffu), y = static_cast<unsigned short>(word >> 16);
  return kind == kBFloat16 ? make_float2(to_float(BFloat16{x}), to_float(BFloat16{y}))
                           : make_float2(to_float(Float16{x}), to_float(Float16{y}));
}

__device__ __forceinline__ unsigned short round_bits(float number, int kind) {
  return kind == kBFloat16 ? to_bfloat16(number).bits : to_float16(number).bits;
}

__device__ __forceinline__ void store(char* address, int kind, float number) {
  if (kind == kFloat32) {
    *reinterpret_cast<float*>(address) = number;
  } else {
    *reinterpret_cast<unsigned short*>(address) = round_bits(number, kind);
  }
}

__device__ __forceinline__ void store_pair(char* address, int kind, float x, float y) {
  if (kind == kFloat32) {
    *reinterpret_cast<float2*>(address) = make_float2(x, y);
  } else {
    *reinterpret_cast<unsigned*>(address) = round_bits(x, kind) | static_cast<unsigned>(round_bits(y, kind)) << 16;
  }
}

// Add four numbers to global memory at a 16-byte boundary. The order of additions from many threads is left open.
__device__ __forceinline__ void add_four(float* address, float a, float b, float c, float d) {
// The instruction came with Hopper and CUDA 12.1.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900 && __CUDACC_VER_MAJOR__ * 100 + __CUDACC_VER_MINOR__ >= 1201
  asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(address)), "f"(a),
               "f"(b), "f"(c), "f"(d));
#else
  atomicAdd(address, a);
  atomicAdd(address + 1, b);
  atomicAdd(address + 2, c);
  atomicAdd(address + 3, d);
#endif
}

}  // namespace sst_d2::msda
