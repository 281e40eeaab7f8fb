#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "tests/support/tensor_list.h"
#include "worker/models/param_buffer.h"

namespace dd2 {

// Layouts of our networks against the lists of released files.
using Shapes = std::map<std::string, std::vector<std::int64_t>>;

inline Shapes ShapesOf(const ParamLayout& layout) {
  Shapes shapes;
  for (const ParamSpec& spec : layout.specs()) shapes[spec.name] = spec.shape;
  return shapes;
}

inline Shapes ListedShapes(const std::string& name) {
  Shapes shapes;
  for (const ListedTensor& listed : ReadTensorList(name)) {
    if (listed.is_parameter) shapes[listed.tensor.name] = listed.tensor.shape;
  }
  return shapes;
}

inline std::int64_t ElementCount(const ParamLayout& layout) {
  std::int64_t count = 0;
  for (const ParamSpec& spec : layout.specs()) count += spec.numel;
  return count;
}

}  // namespace dd2
