// Runs the kernels of msda_cuda.cuh on the CPU: reads calls from one file and writes their results to another.
//
// A third file, if named, gets how each call is launched: the struct Launch.
//
// A call is a `Header`, height and width of each level, all numbers of 64 bits, and then its tensors in the order in
// which a kernel takes them.
#include "cuda_emulator.h"

#include "msda_cuda.cuh"
#include "msda_cuda_launch.cuh"

#include <cstdint>

namespace sst_d2::msda {

uint4 shared[48 * 1024 / sizeof(uint4)];

}  // namespace sst_d2::msda

namespace {

using namespace sst_d2::msda;

[[noreturn]] void refuse(const char* reason) {
  std::fprintf(stderr, "emulate: %s\n", reason);
  std::exit(2);
}

// Exactly as large as it must be, so that AddressSanitizer sees every access beyond. Results start as NaN.
class Tensor {
 public:
  explicit Tensor(std::int64_t bytes) : bytes_(bytes), data_(static_cast<char*>(std::malloc(bytes))) {
    std::memset(data_, 0xff, bytes_);
  }
  Tensor(const Tensor&) = delete;
  ~Tensor() { std::free(data_); }

  void read(std::FILE* file) {
    if (std::fread(data_, 1, bytes_, file) != bytes_) refuse("the file of calls ends early");
  }
  void write(std::FILE* file) const {
    if (std::fwrite(data_, 1, bytes_, file) != bytes_) refuse("cannot write the results");
  }
  void clear() { std::memset(data_, 0, bytes_); }
  char* data() const { return data_; }

 private:
  std::size_t bytes_;
  char* data_;
};

struct Header {
  std::int64_t backward, fused, value_kind, position_kind, reference_kind, weight_kind;
  std::int64_t reference_images, reference_levels;  // of the references' shape
  std::int64_t most_images;                         // of one launch
  std::int64_t images, pixels, heads, channels, queries, levels, points;
};

struct Call {
  Header header;
  Launch launch;
  Tensor value, grad_output, positions, references, weights;  // read
  Tensor output, grad_value, grad_positions, grad_weights;    // written

  Call(const Header& header, const Launch& launch)
      : header(header), launch(launch), value(value_numbers() * bytes_of(header.value_kind)),
        grad_output(header.backward ? output_bytes() : 0), positions(2 * samples() * bytes_of(header.position_kind)),
        references(reference_numbers() * bytes_of(header.reference_kind)),
        weights(samples() * bytes_of(header.weight_kind)), output(header.backward ? 0 : output_bytes()),
        grad_value(header.backward ? 4 * value_numbers() : 0),
        grad_positions(header.backward ? 2 * samples() * bytes_of(header.position_kind) : 0),
        grad_weights(header.backward ? samples() * bytes_of(header.weight_kind) : 0) {}

  std::int64_t value_numbers() const { return header.images * header.pixels * header.heads * header.channels; }
  std::int64_t rows() const { return header.images * header.queries * header.heads; }
  std::int64_t output_bytes() const { return rows() * header.channels * bytes_of(header.value_kind); }
  std::int64_t samples() const { return rows() * header.levels * header.points; }
  std::int64_t reference_numbers() const {
    return header.fused ? header.reference_images * header.queries * header.reference_levels * 2 : 0;
  }
};

template <typename T, int kLanes, bool kFused>
void run_slice(Call& call, unsigned images) {
  const dim3 grid{static_cast<unsigned>(call.launch.tiles), static_cast<unsigned>(call.header.heads), images};
  const dim3 block{static_cast<unsigned>(call.launch.threads)};
  const std::size_t memory = call.launch.shared_bytes;
  const char *value = call.value.data(), *positions = call.positions.data(), *weights = call.weights.data();
  const char* references = kFused ? call.references.data() : nullptr;
  if (call.header.backward) {
    emulator::launch(&backward<T, kLanes, kFused>, grid, block, memory, call.grad_output.data(), value, positions,
                     references, weights, reinterpret_cast<float*>(call.grad_value.data()),
                     call.grad_positions.data(), call.grad_weights.data(), call.launch.problem);
  } else {
    emulator::launch(&forward<T, kLanes, kFused>, grid, block, memory, value, positions, references, weights,
                     call.output.data(), call.launch.problem);
  }
}

template <typename T, int kLanes>
void run(Call& call) {
  Problem& problem = call.launch.problem;
  const int images = static_cast<int>(call.header.images), most = static_cast<int>(call.header.most_images);
  for (problem.first_image = 0; problem.first_image < images; problem.first_image += most) {
    const int slice = images - problem.first_image < most ? images - problem.first_image : most;
    call.header.fused ? run_slice<T, kLanes, true>(call, slice) : run_slice<T, kLanes, false>(call, slice);
  }
}

template <typename T>
void run_type(Call& call) {
  switch (call.launch.lanes) {
    case 2: return run<T, 2>(call);
    case 4: return run<T, 4>(call);
    case 8: return run<T, 8>(call);
    case 16: return run<T, 16>(call);
    case 32:
      if constexpr (sizeof(T) == 4) return run<T, 32>(call);
      [[fallthrough]];
    default: refuse("no kernel has this number of lanes");
  }
}

void run_call(Call& call) {
  if (call.header.backward) call.grad_value.clear();
  if (call.rows() == 0) return;
  switch (call.header.value_kind) {
    case kFloat32: return run_type<float>(call);
    case kBFloat16: return run_type<BFloat16>(call);
    case kFloat16: return run_type<Float16>(call);
    default: refuse("no such type");
  }
}

// False at the end of the file.
bool next_call(std::FILE* input, std::FILE* output, std::FILE* launches) {
  Header header;
  if (std::fread(&header, sizeof(header), 1, input) != 1) return false;
  Sizes sizes{header.images, header.pixels, header.heads, header.channels, header.queries, header.levels,
              header.points, {}, {}, static_cast<int>(bytes_of(header.value_kind))};
  for (int level = 0; level < header.levels && level < kMaxLevels; ++level) {
    std::int64_t shape[2];
    if (std::fread(shape, sizeof(shape), 1, input) != 1) refuse("the file of calls ends early");
    sizes.height[level] = shape[0];
    sizes.width[level] = shape[1];
  }
  if (const char* reason = unsupported(sizes)) refuse(reason);
  Call call(header, make_launch(sizes, header.backward));
  Problem& problem = call.launch.problem;
  problem.position_kind = static_cast<int>(header.position_kind);
  problem.reference_kind = static_cast<int>(header.reference_kind);
  problem.weight_kind = static_cast<int>(header.weight_kind);
  problem.reference_images = header.reference_images > 1;
  problem.reference_levels = header.reference_levels > 1;
  if (launches && std::fwrite(&call.launch, sizeof(call.launch), 1, launches) != 1) refuse("cannot write the launches");
  for (Tensor* tensor : {&call.grad_output, &call.value, &call.positions, &call.references, &call.weights})
    tensor->read(input);
  run_call(call);
  for (Tensor* tensor : {&call.output, &call.grad_value, &call.grad_positions, &call.grad_weights})
    tensor->write(output);
  return true;
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 3) refuse("usage: emulate CALLS RESULTS [LAUNCHES]");
  std::FILE* input = std::fopen(arguments[1], "rb");
  std::FILE* output = std::fopen(arguments[2], "wb");
  std::FILE* launches = count > 3 ? std::fopen(arguments[3], "wb") : nullptr;
  if (!input || !output || (count > 3 && !launches)) refuse("cannot open the files");
  emulator::shared_memory = {shared, sizeof(shared)};
  while (next_call(input, output, launches)) {
  }
  std::fclose(input);
  if (launches && std::fclose(launches)) refuse("cannot write the launches");
  return std::fclose(output);
}
