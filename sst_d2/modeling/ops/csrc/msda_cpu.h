// Multi-scale deformable attention on the CPU: what a call consists of, and the kernels for each instruction set.
// Nothing here or in the kernels needs PyTorch.
// Letters: B images, S pixels of all levels, M heads, D channels per head, Q queries, L levels, P points.
#pragma once

#include <cstdint>

namespace sst_d2_cpu {

constexpr int kMaxLevels = 8;
constexpr int kMaxPoints = 16;
constexpr int kMaxSamples = kMaxLevels * kMaxPoints;  // of one query and head
constexpr int64_t kPlanned = 256;                     // samples that are planned together
constexpr int64_t kRowsAtOnce = 16;                   // of at most so many rows, a row being one query and head

enum class Type : int32_t { kFloat32, kFloat64, kBFloat16, kFloat16 };

constexpr int64_t size_of(Type type) {
  return type == Type::kFloat64 ? 8 : type == Type::kFloat32 ? 4 : 2;
}

// A contiguous array that is read. `size` in elements.
struct Source {
  const void* data = nullptr;
  Type type = Type::kFloat32;
  int64_t size = 0;
};

// A contiguous array that is written.
struct Target {
  void* data = nullptr;
  Type type = Type::kFloat32;
};

struct Level {
  int64_t start;  // first pixel of the level among the S
  int32_t height, width;
};

// One call of an operation. Everything is computed in float32, or in float64 where value has that type.
struct Call {
  int64_t batch, pixels, heads, channels, queries;
  int32_t levels, points;
  Level level[kMaxLevels];

  Source value;        // (B, S, M, D)
  bool fused;
  Source places;       // (B, Q, M, L, P, 2): locations, 0 and 1 at the edges of a level; fused: offsets in pixels
  Source weights;      // (B, Q, M, L, P); fused: (B, Q, M, L * P), before softmax
  Source references;   // fused: (B or 1, Q, L or 1, 2)
  int64_t reference_images, reference_levels;
  Target output;       // (B, Q, M, D)

  Source grad_output;  // (B, Q, M, D)
  Target grad_value, grad_places, grad_weights;
  void* shares;        // (B, Q, M, L * P): softmax of weights, where the fused backward takes several steps; else null
  void* pulls;         // likewise: gradients of the shares

  // How the work is cut: `plan_forward` and `plan_backward` fill these in. Results do not depend on them.
  bool packed;         // forward: lay a head's values side by side first
  bool levels_apart;   // backward: a task for each level
  int64_t parts;       // forward: ranges of queries; backward: bands of rows of the levels' pixels
  int64_t tasks;
  int64_t scratch;     // bytes that each thread needs
};

// The kernels compiled for one instruction set. Tasks of a call touch disjoint memory: any order, any thread.
struct Kernels {
  int32_t bits;  // width of a vector
  void (*forward)(const Call&, int64_t task, void* scratch);
  void (*backward)(const Call&, int64_t task, void* scratch);
  void (*softmax)(const Call&, int64_t first, int64_t last);           // rows of weights to shares
  void (*softmax_backward)(const Call&, int64_t first, int64_t last);  // shares and pulls to grad_weights
};

extern const Kernels kernels_baseline, kernels_double;
#if defined(__x86_64__)
extern const Kernels kernels_avx2, kernels_avx512;
#endif

// Cuts a call into tasks for a number of threads. `kernels`: those that will run it.
void plan_forward(const Kernels& kernels, int64_t threads, Call& call);
void plan_backward(const Kernels& kernels, int64_t threads, Call& call);

}  // namespace sst_d2_cpu
