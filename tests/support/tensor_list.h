#pragma once

#include <gtest/gtest.h>

#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "storage/teacher_catalog.h"

namespace dd2 {

// A tensor of a released file, as a list in golden/tensors has it: name, shape, type, "param" or
// "buffer" (not loaded), a line each.
struct ListedTensor {
  StoredTensor tensor;
  bool is_parameter = false;
};

// `name`: "var_d16". In the order of the list.
inline std::vector<ListedTensor> ReadTensorList(const std::string& name) {
  std::ifstream file(DD2_SOURCE_DIR "/tests/golden/tensors/" + name + ".tsv");
  std::vector<ListedTensor> list;
  std::string line;
  std::getline(file, line);  // names of the columns
  while (std::getline(file, line)) {
    std::istringstream fields(line);
    std::string tensor, shape, dtype, kind;
    fields >> tensor >> shape >> dtype >> kind;
    std::vector<std::int64_t> sizes;
    std::istringstream numbers(shape);
    for (std::string size; std::getline(numbers, size, 'x');) sizes.push_back(std::stoll(size));
    list.push_back(
        {{tensor, sizes, dtype == "int64" ? Dtype::kI64 : Dtype::kF32}, kind == "param"});
  }
  EXPECT_GT(list.size(), 80U) << name;
  return list;
}

}  // namespace dd2
