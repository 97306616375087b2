// What the bindings on the stable ABI of PyTorch share: checks of shapes, and which sources a library was built from.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <string>
#include <vector>

// Given by setup.py: a string literal.
#ifndef SST_D2_OPS_VERSION
#define SST_D2_OPS_VERSION "unknown"
#endif

namespace sst_d2_binding {

inline std::string version() { return SST_D2_OPS_VERSION; }

// Such as (2, 5376, 256).
template <class Sizes>
std::string text_of(const Sizes& sizes) {
  std::string text;
  for (size_t i = 0; i < sizes.size(); ++i) text += (i ? ", " : "") + std::to_string(sizes[i]);
  return "(" + text + ")";
}

// `letters`: the shape in words.
inline void check_dimensions(const torch::stable::Tensor& tensor, int64_t count, const char* letters,
                             const char* name) {
  STD_TORCH_CHECK(tensor.dim() == count, name, " must have ", count, " dimensions: ", letters, ", not the shape ",
                  text_of(tensor.sizes()));
}

inline void check_shape(const torch::stable::Tensor& tensor, const std::vector<int64_t>& shape, const char* name) {
  const auto found = tensor.sizes();
  bool equal = found.size() == shape.size();
  for (size_t i = 0; equal && i < shape.size(); ++i) equal = found[i] == shape[i];
  STD_TORCH_CHECK(equal, name, " must have the shape ", text_of(shape), ", not ", text_of(found));
}

}  // namespace sst_d2_binding
