#pragma once

#include "worker/models/var_quantizer.h"
#include "worker/torch.h"

namespace dd2 {

// What the transformer of a multi-scale teacher sees of codes (models.md 1.2): the running
// reconstruction of all earlier scales, resized to the next one. Codes are standardised, as
// everywhere outside a tokenizer (a released VAR's are raw: mean 0, deviation 1). Frozen; gradients
// reach the codes.
class CodePath {
 public:
  // mean, deviation [C].
  CodePath(VarQuantizer quantizer, at::Tensor mean, at::Tensor deviation);

  // q [B, n, C] -> [B, n - tokens of scale 0, C].
  at::Tensor Rows(const at::Tensor& q) const;
  // The same scale by scale: q [B, side^2, C] of `scale` -> rows of scale + 1. `sum` is f_hat so
  // far; undefined before scale 0.
  at::Tensor NextRows(const at::Tensor& q, std::int64_t scale, at::Tensor& sum) const;
  // The whole reconstruction f_hat: q [B, n, C] -> [B, C, S, S].
  at::Tensor Features(const at::Tensor& q) const;
  const VarQuantizer& quantizer() const { return quantizer_; }

 private:
  VarQuantizer quantizer_;
  at::Tensor mean_, deviation_;
};

}  // namespace dd2
