#pragma once

#include "common/run_config.h"
#include "worker/torch.h"

namespace dd2 {

// How a teacher's top-p cuts a row of codes. On rows without equal logits the two differ by
// rounding alone: each sums the probabilities from its own end.
enum class TopP {
  kLlamaGen,  // from the largest: keeps the code that crosses p, drops those behind it
  kVar,       // from the smallest: drops codes while their sum is at most 1 - p, never the largest
};

// Temperature, then top-k (codes that equal the k-th largest stay), then top-p over what top-k
// left. logits [..., V] are guided. Removed codes become -inf; the result is unnormalised. Codes
// equal to the smallest kept one stay too, so that a row's set is "logit >= threshold". (models.md
// 1.4 and 2.3.)
at::Tensor FilterLogits(const at::Tensor& logits, const TeacherConfig& config,
                        TopP top_p = TopP::kLlamaGen);
// Lowest kept (already tempered) logit per row [...]: logits below it are the removed ones. -inf
// when no filter is set.
at::Tensor FilterThreshold(const at::Tensor& logits, const TeacherConfig& config,
                           TopP top_p = TopP::kLlamaGen);

// Sums of the first 1, 2, ... V of [..., V]. LibTorch's operator on a GPU adds in an order that
// depends on timing: there the sums of 1, 2, 4, ... elements are added up.
at::Tensor RunningSums(const at::Tensor& x);

}  // namespace dd2
