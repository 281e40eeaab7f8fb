#include "worker/engine/adm_cache.h"

#include <cstdlib>
#include <span>
#include <string>
#include <vector>

#include "common/file.h"
#include "storage/npz.h"
#include "worker/kernels/torch_device.h"
#include "worker/models/inception.h"

namespace dd2 {
namespace {

// Changes when the same images would get other numbers.
constexpr const char* kMethod = "dd2 adm features 1";

std::filesystem::path PathOf(const std::filesystem::path& folder, const Digest128& key) {
  return folder / (key.Hex() + ".npz");
}

// An array of floating numbers as a tensor of `dtype`.
Result<at::Tensor> ReadTensor(const NpzFile& file, const std::string& name,
                              std::vector<std::int64_t> shape, at::ScalarType dtype) {
  DD2_TRY_ASSIGN(const NpyReader header, file.Array(name));
  std::uint64_t most = sizeof(double);
  for (const std::int64_t extent : shape) most *= static_cast<std::uint64_t>(extent);
  DD2_TRY_ASSIGN(std::vector<std::byte> bytes, file.ReadAll(name, shape, most));
  const at::ScalarType stored = header.dtype() == Dtype::kF16   ? at::kHalf
                                : header.dtype() == Dtype::kF32 ? at::kFloat
                                                                : at::kDouble;
  if (stored == at::kDouble && header.dtype() != Dtype::kF64) {
    return Error(Code::kInvalidArgument, "array '" + name + "' does not hold floating numbers");
  }
  return at::from_blob(bytes.data(), shape, at::TensorOptions(stored)).to(dtype, false, true);
}

ArrayToWrite ToWrite(const std::string& name, const at::Tensor& tensor) {
  return {.name = name,
          .dtype = tensor.scalar_type() == at::kDouble ? Dtype::kF64 : Dtype::kF32,
          .shape = tensor.sizes().vec(),
          .bytes = {static_cast<const std::byte*>(tensor.const_data_ptr()), tensor.nbytes()}};
}

}  // namespace

std::filesystem::path AdmCacheFolder() {
  const char* cache = std::getenv("XDG_CACHE_HOME");  // NOLINT(concurrency-mt-unsafe)
  if (cache != nullptr && *cache != '\0') return std::filesystem::path(cache) / "dd2" / "eval";
  const char* home = std::getenv("HOME");  // NOLINT(concurrency-mt-unsafe)
  return std::filesystem::path(home != nullptr ? home : "/tmp") / ".cache" / "dd2" / "eval";
}

Digest128 AdmCacheKey(const Digest128& images, const Digest128& network) {
  Hasher128 hasher;
  hasher.UpdateField(kMethod);
  hasher.UpdateField(images.Hex());
  hasher.UpdateField(network.Hex());
  if (const std::string kind = ComputeKind(); !kind.empty()) hasher.UpdateField(kind);
  return hasher.Finish();
}

Result<FeatureStats> ReadStats(const NpzFile& file, const std::string& mean,
                               const std::string& covariance, std::int64_t width) {
  FeatureStats stats;
  DD2_TRY_ASSIGN(stats.mean, ReadTensor(file, mean, {width}, at::kDouble));
  DD2_TRY_ASSIGN(stats.covariance, ReadTensor(file, covariance, {width, width}, at::kDouble));
  return stats;
}

Result<AdmSet> LoadAdmSet(const std::filesystem::path& folder, const Digest128& key,
                          std::int64_t count) {
  DD2_TRY_ASSIGN(const NpzFile file, NpzFile::Open(PathOf(folder, key)));
  AdmSet set;
  DD2_TRY_ASSIGN(set.pool, ReadTensor(file, "pool", {count, Inception::kPool}, at::kFloat));
  DD2_TRY_ASSIGN(set.pool_stats, ReadStats(file, "mu", "sigma", Inception::kPool));
  DD2_TRY_ASSIGN(set.spatial_stats, ReadStats(file, "mu_s", "sigma_s", Inception::kSpatial));
  set.pool_stats.count = set.spatial_stats.count = count;
  return set;
}

Status StoreAdmSet(const std::filesystem::path& folder, const Digest128& key, const AdmSet& set) {
  const std::vector<ArrayToWrite> arrays = {
      ToWrite("mu", set.pool_stats.mean), ToWrite("sigma", set.pool_stats.covariance),
      ToWrite("mu_s", set.spatial_stats.mean), ToWrite("sigma_s", set.spatial_stats.covariance),
      ToWrite("pool", set.pool)};
  FileSystem& files = RealFileSystem();
  DD2_TRY(files.MakeDirectories(folder));
  return WriteNpz(files, PathOf(folder, key), arrays);
}

}  // namespace dd2
