#include "worker/models/filters.h"

#include <limits>

namespace dd2 {
namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

at::Tensor Temper(const at::Tensor& logits, const TeacherConfig& config) {
  return config.temperature == 1.0 ? logits : logits / config.temperature;
}

bool HasTopK(const TeacherConfig& config, std::int64_t codes) {
  return config.top_k > 0 && config.top_k < codes;
}

bool HasFilter(const TeacherConfig& config, std::int64_t codes) {
  return HasTopK(config, codes) || config.top_p < 1.0;
}

// descending [..., V]; the first k codes are those of top-k.
at::Tensor CutFromTheLargest(const at::Tensor& descending, std::int64_t k, double p) {
  const at::Tensor largest = descending.narrow(-1, 0, k);
  const at::Tensor probabilities = at::softmax(largest, -1);
  // Probability in front of each code: the code that crosses p still has p or less in front of it.
  const at::Tensor before = RunningSums(probabilities) - probabilities;
  // Codes behind that equal the last one are kept as well and raise the total: by a factor of
  // exactly 1 where there are none.
  const at::Tensor equal = descending.narrow(-1, k, descending.size(-1) - k)
                               .eq(largest.narrow(-1, k - 1, 1))
                               .sum(-1, /*keepdim=*/true);
  const at::Tensor total = 1 + equal * probabilities.narrow(-1, k - 1, 1);
  const at::Tensor kept = (before <= total * p).sum(-1, /*keepdim=*/true);
  return largest.gather(-1, kept - 1).squeeze(-1);
}

// descending [..., V]; the first k codes and their equals are those of top-k.
at::Tensor CutFromTheSmallest(const at::Tensor& descending, std::int64_t k, double p) {
  const at::Tensor left =
      descending.masked_fill(descending < descending.narrow(-1, k - 1, 1), kMinusInfinity);
  const at::Tensor ascending = left.flip(-1);
  const at::Tensor up_to = RunningSums(at::softmax(ascending, -1));
  const at::Tensor dropped = (up_to <= 1 - p).sum(-1, /*keepdim=*/true);
  return ascending.gather(-1, dropped.clamp_max(ascending.size(-1) - 1)).squeeze(-1);
}

}  // namespace

at::Tensor RunningSums(const at::Tensor& x) {
  if (x.is_cpu()) return at::cumsum(x, -1);
  at::Tensor sums = x;
  const std::int64_t size = x.size(-1);
  for (std::int64_t reach = 1; reach < size; reach *= 2) {
    const at::Tensor added =
        sums.narrow(-1, reach, size - reach) + sums.narrow(-1, 0, size - reach);
    sums = at::cat({sums.narrow(-1, 0, reach), added}, -1);
  }
  return sums;
}

at::Tensor FilterThreshold(const at::Tensor& logits, const TeacherConfig& config, TopP top_p) {
  const std::int64_t codes = logits.size(-1);
  if (!HasFilter(config, codes)) {
    return at::full(logits.sizes().slice(0, static_cast<std::size_t>(logits.dim() - 1)),
                    kMinusInfinity, logits.options());
  }
  const std::int64_t k = HasTopK(config, codes) ? config.top_k : codes;
  const at::Tensor sorted = std::get<0>(Temper(logits, config).sort(-1, /*descending=*/true));
  if (config.top_p >= 1.0) return sorted.select(-1, k - 1).contiguous();
  return top_p == TopP::kVar ? CutFromTheSmallest(sorted, k, config.top_p)
                             : CutFromTheLargest(sorted, k, config.top_p);
}

at::Tensor FilterLogits(const at::Tensor& logits, const TeacherConfig& config, TopP top_p) {
  const at::Tensor tempered = Temper(logits, config);
  if (!HasFilter(config, logits.size(-1))) return tempered;
  const at::Tensor threshold = FilterThreshold(logits, config, top_p).unsqueeze(-1);
  return tempered.masked_fill(tempered < threshold, kMinusInfinity);
}

}  // namespace dd2
