#pragma once

#include <cstdint>

#include "worker/engine/teacher_stage.h"
#include "worker/torch.h"

namespace dd2 {

// The optimiser over the flat buffer of a stage, on ComputeDevice(). On a GPU it has other last
// bits than on the CPU.
class FlatAdam {
 public:
  FlatAdam(const ShardedParams& params, const AdamSettings& settings);

  // Takes the mean of the shards' gradients, which are lost. `step` counts from 0.
  void Step(std::int64_t step, double learning_rate);
  const at::Tensor& m() const { return m_; }
  const at::Tensor& v() const { return v_; }

 private:
  void StepOnHost(std::int64_t step, double learning_rate);
  void StepOnDevice(std::int64_t step, double learning_rate);
  void SumGradients();
  double ClipScale() const;

  const ShardedParams& params_;
  const AdamSettings settings_;
  at::Tensor m_, v_;
  at::Tensor gradient_;  // of the host alone
};

}  // namespace dd2
