#pragma once

#include <filesystem>

#include "common/result.h"

namespace dd2 {

// Weights, inputs, losses and norms of gradients of one small guidance and generator update on the
// CPU in fp32: safetensors files and case.json in `folder`, which is made. By them rival_steps.py
// tells whether it computes the same.
Status WriteRivalCase(const std::filesystem::path& folder);

}  // namespace dd2
