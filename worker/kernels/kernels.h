#pragma once

#include <cuda_runtime.h>

#include "worker/kernels/device_api.h"

// The kernels behind the table of device_api.h. They check no argument: the table does. Device code
// is compiled without contraction (-fmad=false): a multiply-add is fused where the source says
// fmaf, and nowhere else, so that the bits of an element depend neither on the compiler's choice
// nor on the architecture. Nothing uses atomics: the same input gives the same bits.
namespace dd2 {

cudaError_t LaunchScore(const Dd2ScoreProblem& problem, cudaStream_t stream);
cudaError_t LaunchModulatedNorm(const Dd2ModulatedNorm& norm, cudaStream_t stream);
cudaError_t LaunchModulatedNormBackward(const Dd2ModulatedNorm& norm, cudaStream_t stream);
cudaError_t LaunchGatedResidual(const Dd2GatedResidual& gated, cudaStream_t stream);
cudaError_t LaunchGatedResidualBackward(const Dd2GatedResidual& gated, cudaStream_t stream);
cudaError_t LaunchUnitLength(const Dd2UnitLength& unit, cudaStream_t stream);
cudaError_t LaunchUnitLengthBackward(const Dd2UnitLength& unit, cudaStream_t stream);
cudaError_t LaunchColumnSums(const Dd2ColumnSums& sums, cudaStream_t stream);
cudaError_t LaunchAdam(const Dd2AdamStep& step, cudaStream_t stream);
cudaError_t LaunchChunkSquares(const Dd2ChunkSquares& squares, cudaStream_t stream);
cudaError_t LaunchRandom(const Dd2RandomField& field, cudaStream_t stream);

}  // namespace dd2
