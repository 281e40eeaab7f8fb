#include "worker/models/code_path.h"

#include <utility>

namespace dd2 {

CodePath::CodePath(VarQuantizer quantizer, at::Tensor mean, at::Tensor deviation)
    : quantizer_(std::move(quantizer)), mean_(std::move(mean)), deviation_(std::move(deviation)) {}

at::Tensor CodePath::Rows(const at::Tensor& q) const {
  return quantizer_.TransformerInput(q * deviation_ + mean_);
}

at::Tensor CodePath::NextRows(const at::Tensor& q, std::int64_t scale, at::Tensor& sum) const {
  return quantizer_.Step(q * deviation_ + mean_, scale, sum);
}

at::Tensor CodePath::Features(const at::Tensor& q) const {
  return quantizer_.FHat(q * deviation_ + mean_);
}

}  // namespace dd2
