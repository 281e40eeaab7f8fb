#pragma once

#include <fstream>
#include <map>
#include <sstream>
#include <string>

#include "worker/models/param_buffer.h"

namespace dd2 {

// Layouts against the lists of released files in golden/tensors.
using Shapes = std::map<std::string, std::string>;  // name -> "160x3x3x3"

inline Shapes ShapesOf(const ParamLayout& layout) {
  Shapes shapes;
  for (const ParamSpec& spec : layout.specs()) {
    std::string& shape = shapes[spec.name];
    for (const std::int64_t size : spec.shape) {
      shape += (shape.empty() ? "" : "x") + std::to_string(size);
    }
  }
  return shapes;
}

// The list of a released file: name, shape, dtype, "param" or "buffer". Buffers are not loaded.
inline Shapes ReadTensorList(const std::string& path) {
  std::ifstream file(path);
  Shapes shapes;
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    std::string tensor, shape, dtype, kind;
    if (words >> tensor >> shape >> dtype >> kind && kind == "param") shapes[tensor] = shape;
  }
  return shapes;
}

inline std::int64_t ElementCount(const ParamLayout& layout) {
  std::int64_t count = 0;
  for (const ParamSpec& spec : layout.specs()) count += spec.numel;
  return count;
}

}  // namespace dd2
