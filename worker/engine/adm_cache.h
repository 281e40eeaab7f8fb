#pragma once

#include <filesystem>

#include "common/hash.h"
#include "common/result.h"
#include "worker/engine/adm_metrics.h"

namespace dd2 {

class NpzFile;

// What is known of sets of images: one .npz each in ${XDG_CACHE_HOME:-~/.cache}/dd2/eval, named by
// the digest of images and network, with mu, sigma, mu_s, sigma_s (fp64, as ADM's reference files
// have them) and pool [N, 2048]. Files appear by renaming, so any number of processes may use the
// folder; it may be deleted at any time.
std::filesystem::path AdmCacheFolder();

// The name's digest: images, network, and how we compute (on the CPU, or the kind of this process's
// GPU).
Digest128 AdmCacheKey(const Digest128& images, const Digest128& network);

// kNotFound: not there; kCorruption: damaged; kInvalidArgument: not of `count` images.
Result<AdmSet> LoadAdmSet(const std::filesystem::path& folder, const Digest128& key,
                          std::int64_t count);
// Errors leave nothing behind.
Status StoreAdmSet(const std::filesystem::path& folder, const Digest128& key, const AdmSet& set);

// Mean and covariance of an .npz by their names ("mu", "sigma"), of any floating type: [D], [D, D].
// Their count is 0. kNotFound: not there; otherwise as NpzFile::ReadAll.
Result<FeatureStats> ReadStats(const NpzFile& file, const std::string& mean,
                               const std::string& covariance, std::int64_t width);

}  // namespace dd2
