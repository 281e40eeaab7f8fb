#pragma once

#include <string>
#include <vector>

#include "common/result.h"

namespace dd2 {

// `dd2 eval --images PATH --reference FILE.npz --inception FILE.safetensors [--no-cache] [--device
// cpu|cuda] [--json]`: FID, sFID, Inception Score, precision and recall as ADM's suite defines them
// (adm_metrics.h). The device computes features, the CPU all that follows from them.
// Statistics in the reference file are used as they are; what it lacks is computed from its images.
// Progress and warnings go to standard error, figures to standard output.
Status EvalImages(const std::vector<std::string>& arguments);

// "FID" of the customary 50,000 samples, "FID-5k" or "FID-1234" of others: it falls as they grow.
std::string FidLabel(std::int64_t samples);

}  // namespace dd2
