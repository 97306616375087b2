// Compiles CUDA kernels for the CPU (C++20) and runs them: one fiber per CUDA thread, block after block.
//
// To be included before the kernels' own files. What a GPU leaves undefined is an error here, told in words: a thread
// that leaves before a barrier, a shuffle whose mask lacks the thread itself or names one that does not come, shared
// memory beyond the launch. Shared memory starts as NaN. To ThreadSanitizer each fiber is a thread; only barriers order
// their memory accesses, shuffles do not. Blocks come one after the other: races between blocks are not seen.
#pragma once

#include <ucontext.h>

#include <atomic>
#include <bit>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>

// GCC's names for the sanitizers, also under Clang.
#if defined(__has_feature)
#if __has_feature(address_sanitizer) && !defined(__SANITIZE_ADDRESS__)
#define __SANITIZE_ADDRESS__ 1
#endif
#if __has_feature(thread_sanitizer) && !defined(__SANITIZE_THREAD__)
#define __SANITIZE_THREAD__ 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#endif

// The emulator's own records are no part of what ThreadSanitizer is to judge.
#define EMULATOR_INTERNAL __attribute__((no_sanitize("thread")))

struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

namespace emulator {

constexpr unsigned kWarpSize = 32;
constexpr unsigned kMostThreads = 1024;
constexpr std::size_t kStackBytes = 128 * 1024;

[[noreturn]] EMULATOR_INTERNAL inline void fail(const char* format, unsigned a, unsigned b = 0, unsigned c = 0) {
  std::fprintf(stderr, "CUDA emulator: ");
  std::fprintf(stderr, format, a, b, c);
  std::fprintf(stderr, "\n");
  std::_Exit(3);
}

enum class State { kReady, kAtBarrier, kInWarp, kDone };

struct Fiber {
  ucontext_t context;
  char* stack = nullptr;
  State state = State::kDone;
  unsigned mask = 0;           // of the warp operation that it waits in
  unsigned offer = 0;          // what it gives to its warp there,
  unsigned source = 0;         // the lane whose offer it wants,
  unsigned answer = 0;         // and what that was
  unsigned barriers = 0;       // that it has come to
  unsigned warp_barriers = 0;
  void* fake_stack = nullptr;  // AddressSanitizer's
  void* tsan = nullptr;        // ThreadSanitizer's
};

// All there is, once per process.
struct Machine {
  Fiber fibers[kMostThreads];
  Fiber scheduler;
  const void* scheduler_bottom = nullptr;
  std::size_t scheduler_size = 0;
  unsigned current = 0;
  unsigned count = 0;
  dim3 grid_size, block_size, block_index;
  const std::function<void()>* body = nullptr;
  char orders[4 + 2 * kMostThreads / kWarpSize];  // addresses for ThreadSanitizer: start, end, barrier, warps
};

inline Machine machine;

// Every access before `arrive` comes before every access after a `leave` of the same address.
EMULATOR_INTERNAL inline void arrive([[maybe_unused]] char* order) {
#if defined(__SANITIZE_THREAD__)
  __tsan_release(order);
#endif
}

EMULATOR_INTERNAL inline void leave([[maybe_unused]] char* order) {
#if defined(__SANITIZE_THREAD__)
  __tsan_acquire(order);
#endif
}

EMULATOR_INTERNAL inline void switch_to(Fiber& from, Fiber& to, [[maybe_unused]] const void* bottom,
                                        [[maybe_unused]] std::size_t size) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&from.fake_stack, bottom, size);
#endif
#if defined(__SANITIZE_THREAD__)
  __tsan_switch_to_fiber(to.tsan, 1);  // 1: the switch itself orders nothing
#endif
  swapcontext(&from.context, &to.context);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#endif
}

EMULATOR_INTERNAL inline void wait(State state) {
  Fiber& self = machine.fibers[machine.current];
  self.state = state;
  switch_to(self, machine.scheduler, machine.scheduler_bottom, machine.scheduler_size);
}

EMULATOR_INTERNAL inline void fiber_main() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &machine.scheduler_bottom, &machine.scheduler_size);
#endif
  while (true) {
    leave(&machine.orders[0]);
    (*machine.body)();
    arrive(&machine.orders[1]);
    wait(State::kDone);
  }
}

EMULATOR_INTERNAL inline void prepare(Fiber& fiber) {
  fiber.state = State::kReady;
  fiber.barriers = fiber.warp_barriers = 0;
  if (fiber.stack) return;
  fiber.stack = static_cast<char*>(std::malloc(kStackBytes));
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack;
  fiber.context.uc_stack.ss_size = kStackBytes;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, &fiber_main, 0);
#if defined(__SANITIZE_THREAD__)
  fiber.tsan = __tsan_create_fiber(0);
#endif
}

// Let those go on whose whole mask has come to the same operation.
EMULATOR_INTERNAL inline bool release_warps() {
  bool released = false;
  for (unsigned i = 0; i < machine.count; ++i) {
    if (machine.fibers[i].state != State::kInWarp) continue;
    const unsigned first = i / kWarpSize * kWarpSize, mask = machine.fibers[i].mask;
    bool complete = true;
    for (unsigned lane = 0; lane < kWarpSize; ++lane) {
      const Fiber& other = machine.fibers[first + lane];
      if (mask >> lane & 1)
        complete &= first + lane < machine.count && other.state == State::kInWarp && other.mask == mask;
    }
    if (!complete) continue;
    for (unsigned lane = 0; lane < kWarpSize; ++lane) {
      Fiber& fiber = machine.fibers[first + lane];
      if (!(mask >> lane & 1)) continue;
      fiber.state = State::kReady;
      fiber.answer = machine.fibers[first + fiber.source].offer;
    }
    released = true;
  }
  return released;
}

// Nobody can move but by a barrier: let all go on, if all are there.
EMULATOR_INTERNAL inline void release_barrier() {
  unsigned waiting = kMostThreads, gone = kMostThreads;
  for (unsigned i = 0; i < machine.count; ++i) {
    const State state = machine.fibers[i].state;
    if (state == State::kInWarp)
      fail("thread %u waits in a warp operation whose mask %08x names threads that do not come", i,
           machine.fibers[i].mask);
    if (state == State::kAtBarrier) waiting = i;
    if (state == State::kDone) gone = i;
  }
  if (gone < kMostThreads) fail("thread %u has left before a barrier that thread %u waits at", gone, waiting);
  for (unsigned i = 0; i < machine.count; ++i) machine.fibers[i].state = State::kReady;
}

// Run `body` once in each thread of a block.
EMULATOR_INTERNAL inline void run_block(unsigned count, const std::function<void()>& body) {
  machine.count = count;
  machine.body = &body;
#if defined(__SANITIZE_THREAD__)
  machine.scheduler.tsan = __tsan_get_current_fiber();
#endif
  arrive(&machine.orders[0]);
  for (unsigned i = 0; i < count; ++i) prepare(machine.fibers[i]);
  while (true) {
    bool moved = false, finished = true;
    for (unsigned i = 0; i < count; ++i) {
      Fiber& fiber = machine.fibers[i];
      if (fiber.state == State::kReady) {
        machine.current = i;
        switch_to(machine.scheduler, fiber, fiber.stack, kStackBytes);
        moved = true;
      }
      finished &= fiber.state == State::kDone;
    }
    if (finished) break;
    if (!moved && !release_warps()) release_barrier();
  }
  leave(&machine.orders[1]);
}

EMULATOR_INTERNAL inline void barrier() {
  // Two orders in turns: whoever runs ahead to the next barrier must not seem to come before those who leave this one.
  char* order = &machine.orders[2 + (machine.fibers[machine.current].barriers++ & 1)];
  arrive(order);
  wait(State::kAtBarrier);
  leave(order);
}

EMULATOR_INTERNAL inline unsigned meet_warp(unsigned mask, unsigned offer, unsigned source) {
  Fiber& self = machine.fibers[machine.current];
  if (!(mask >> machine.current % kWarpSize & 1))
    fail("thread %u takes part in a warp operation whose mask %08x lacks it", machine.current, mask);
  if (source >= kWarpSize || !(mask >> source & 1))
    fail("thread %u reads lane %u, which its mask %08x lacks", machine.current, source, mask);
  self.mask = mask;
  self.offer = offer;
  self.source = source;
  wait(State::kInWarp);
  return self.answer;
}

EMULATOR_INTERNAL inline void warp_barrier(unsigned mask) {
  const unsigned warp = machine.current / kWarpSize;
  char* order = &machine.orders[4 + 2 * warp + (machine.fibers[machine.current].warp_barriers++ & 1)];
  arrive(order);
  meet_warp(mask, 0, machine.current % kWarpSize);
  leave(order);
}

EMULATOR_INTERNAL inline dim3 thread_index() {
  const unsigned i = machine.current;
  const dim3 size = machine.block_size;
  return {i % size.x, i / size.x % size.y, i / size.x / size.y};
}

EMULATOR_INTERNAL inline dim3 block_index() { return machine.block_index; }
EMULATOR_INTERNAL inline dim3 block_size() { return machine.block_size; }
EMULATOR_INTERNAL inline dim3 grid_size() { return machine.grid_size; }

// What `extern __shared__` names in the kernels; the program that includes them says where it is.
struct Shared {
  void* memory = nullptr;
  std::size_t capacity = 0;
};

inline Shared shared_memory;

inline void check_shared(std::size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(shared_memory.memory, shared_memory.capacity);
#endif
  const unsigned char* memory = static_cast<const unsigned char*>(shared_memory.memory);
  for (std::size_t i = bytes; i < shared_memory.capacity; ++i)
    if (memory[i] != 0xff) fail("shared memory was written at byte %u, beyond the %u of the launch", i, bytes);
}

// kernel<<<grid, block, shared_bytes>>>(arguments...)
template <typename Kernel, typename... Arguments>
void launch(Kernel kernel, dim3 grid, dim3 block, std::size_t shared_bytes, Arguments... arguments) {
  const unsigned count = block.x * block.y * block.z;
  if (count == 0 || count > kMostThreads || grid.x * grid.y * grid.z == 0)
    fail("a launch of %u threads and %u x %u blocks", count, grid.x, grid.y);
  if (shared_bytes > shared_memory.capacity) fail("a launch with %u bytes of shared memory", shared_bytes);
  const std::function<void()> body = [&] { kernel(arguments...); };
  machine.grid_size = grid;
  machine.block_size = block;
  for (unsigned i = 0; i < grid.x * grid.y * grid.z; ++i) {
    machine.block_index = {i % grid.x, i / grid.x % grid.y, i / grid.x / grid.y};
    std::memset(shared_memory.memory, 0xff, shared_memory.capacity);  // NaN
#if defined(__SANITIZE_ADDRESS__)
    __asan_poison_memory_region(static_cast<char*>(shared_memory.memory) + shared_bytes,
                                shared_memory.capacity - shared_bytes);
#endif
    run_block(count, body);
    check_shared(shared_bytes);
  }
}

}  // namespace emulator

#define __global__
#define __device__
#define __forceinline__ inline
#define __shared__
#define __grid_constant__
#define __launch_bounds__(...)

struct Coordinate {
  unsigned (*read)();
  operator unsigned() const { return read(); }
};

struct Coordinates {
  Coordinate x, y, z;
};

#define EMULATOR_COORDINATES(of) \
  { {[] { return emulator::of().x; }}, {[] { return emulator::of().y; }}, {[] { return emulator::of().z; }} }
inline const Coordinates threadIdx EMULATOR_COORDINATES(thread_index);
inline const Coordinates blockIdx EMULATOR_COORDINATES(block_index);
inline const Coordinates blockDim EMULATOR_COORDINATES(block_size);
inline const Coordinates gridDim EMULATOR_COORDINATES(grid_size);
#undef EMULATOR_COORDINATES

inline void __syncthreads() { emulator::barrier(); }
inline void __syncwarp(unsigned mask = 0xffffffffu) { emulator::warp_barrier(mask); }

inline float __uint_as_float(unsigned bits) { return std::bit_cast<float>(bits); }
inline unsigned __float_as_uint(float number) { return std::bit_cast<unsigned>(number); }

inline float __shfl_xor_sync(unsigned mask, float number, int step) {
  const unsigned lane = emulator::machine.current % emulator::kWarpSize ^ static_cast<unsigned>(step);
  return __uint_as_float(emulator::meet_warp(mask, __float_as_uint(number), lane));
}

inline float atomicAdd(float* address, float number) {
  return std::atomic_ref<float>(*address).fetch_add(number, std::memory_order_relaxed);
}

template <typename T>
T __ldg(const T* address) {
  return *address;
}

inline int __float2int_rd(float number) { return static_cast<int>(std::floor(number)); }
inline float __expf(float number) { return std::exp(number); }
inline float __fdividef(float a, float b) { return a / b; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
