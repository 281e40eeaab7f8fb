#include "storage/random_teacher.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "common/json.h"
#include "common/rng.h"
#include "storage/safetensors.h"

namespace dd2 {
namespace {

// How the values of a tensor are made.
struct Filling {
  float mean = 0;
  float deviation = 0;
};

Filling FillingOf(const TensorShape& tensor) {
  const std::string_view name = tensor.name;
  const auto& shape = tensor.shape;
  // VAR's logarithm of the temperature, where its own training begins.
  if (name.ends_with("scale_mul_1H11")) return {std::log(4.0F), 0};
  if (name == "quantize.embedding.weight") return {0, 1};
  // Norms are 1, biases 0.
  if (shape.size() < 2) return {name.ends_with("weight") ? 1.0F : 0.0F, 0};
  // Everything else by its inputs: rows of a matrix, a filter of a convolution, a vector of a
  // table.
  const std::size_t first = shape.size() == 3 ? 2 : 1;
  const auto inputs = std::accumulate(shape.begin() + static_cast<std::ptrdiff_t>(first),
                                      shape.end(), std::int64_t{1}, std::multiplies<>());
  return {0, 1 / std::sqrt(static_cast<float>(inputs))};
}

Result<TeacherNetwork> WriteNetwork(FileSystem& files, const std::filesystem::path& path,
                                    const TeacherSizes& sizes, std::uint64_t seed) {
  const std::vector<TensorShape> layout = LayoutOf(sizes);
  // Pieces come in a fixed size, so their beginning is a position like any other.
  const auto read = [&](std::size_t index, std::int64_t begin, std::span<float> out) -> Status {
    const Filling filling = FillingOf(layout[index]);
    RngKey key{.seed = seed, .phase = static_cast<std::uint32_t>(sizes.part)};
    key.use = RngUse::kParameterInit;
    key.update = static_cast<std::uint64_t>(begin);
    key.sample = index;
    if (filling.deviation == 0) {
      std::ranges::fill(out, filling.mean);
      return {};
    }
    FillNormal(key, out);
    for (float& value : out) value = filling.mean + filling.deviation * value;
    return {};
  };
  return WriteTeacherNetwork(files, path, sizes, "random, for a rehearsal", layout, read);
}

}  // namespace

Result<TeacherDescription> WriteRandomTeacher(FileSystem& files,
                                              const std::filesystem::path& folder,
                                              const TeacherSizes& transformer,
                                              const TeacherSizes& tokenizer, std::uint64_t seed) {
  TeacherDescription teacher;
  DD2_TRY(files.MakeDirectories(folder));
  DD2_TRY_ASSIGN(teacher.transformer,
                 WriteNetwork(files, folder / kTransformerFile, transformer, seed));
  DD2_TRY_ASSIGN(teacher.tokenizer, WriteNetwork(files, folder / kTokenizerFile, tokenizer, seed));
  DD2_TRY(files.SyncDirectory(folder));
  DD2_TRY(WriteFileAtomically(files, folder / kTeacherFile,
                              boost::json::serialize(ToJson(teacher)) + "\n"));
  return teacher;
}

}  // namespace dd2
