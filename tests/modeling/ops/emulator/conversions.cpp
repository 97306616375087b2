// Conversions between number types, in the plain C++ that stands beside the PTX: reads fp32 numbers from one file, then
// writes them rounded to bfloat16, rounded to fp16, and all 65536 bfloat16 and fp16 numbers as fp32 to another.
#include "cuda_emulator.h"

#include "msda_cuda_types.cuh"

#include <vector>

using namespace sst_d2::msda;

int main(int, char** arguments) {
  std::FILE* input = std::fopen(arguments[1], "rb");
  std::FILE* output = std::fopen(arguments[2], "wb");
  std::vector<BFloat16> brain;
  std::vector<Float16> half;
  for (float number; std::fread(&number, sizeof(number), 1, input) == 1;) {
    brain.push_back(to_bfloat16(number));
    half.push_back(to_float16(number));
  }
  std::vector<float> back;
  for (unsigned bits = 0; bits < 65536; ++bits) back.push_back(to_float(BFloat16{static_cast<unsigned short>(bits)}));
  for (unsigned bits = 0; bits < 65536; ++bits) back.push_back(to_float(Float16{static_cast<unsigned short>(bits)}));
  std::fwrite(brain.data(), sizeof(brain[0]), brain.size(), output);
  std::fwrite(half.data(), sizeof(half[0]), half.size(), output);
  std::fwrite(back.data(), sizeof(back[0]), back.size(), output);
  std::fclose(input);
  return std::fclose(output);
}
