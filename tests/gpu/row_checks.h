#pragma once

#include "tests/gpu/check_list.h"

namespace dd2 {

// The kernels over rows of activations: norm, modulation, gate, column sums; queries and keys.
void CheckRowKernels(Checks& checks, bool large);

}  // namespace dd2
