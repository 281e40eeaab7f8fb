#include "worker/models/var_quantizer.h"

#include <algorithm>
#include <cstdlib>
#include <functional>
#include <utility>

#include "common/check.h"
#include "worker/models/vqgan.h"

namespace dd2 {
namespace {

std::string PhiName(const std::string& prefix, std::int64_t index) {
  return prefix + "quant_resi.qresi_ls." + std::to_string(index);
}

}  // namespace

VarScales VarScales::Released() {
  return {.sides = {1, 2, 3, 4, 5, 6, 8, 10, 13, 16},
          .phi_of_scale = {0, 0, 1, 1, 1, 2, 2, 3, 3, 3}};
}

VarScales VarScales::WithPhis(std::vector<std::int64_t> sides, std::int64_t phis) {
  DD2_CHECK(sides.size() >= 2 && phis >= 1);
  VarScales scales{.sides = std::move(sides), .phi_of_scale = {}};
  const std::int64_t last = scales.count() - 1;
  for (std::int64_t k = 0; k <= last; ++k) {
    std::int64_t nearest = 0, least = -1;
    for (std::int64_t j = 0; j < phis; ++j) {
      // |k / last - place of phi j|, times what makes it whole.
      const std::int64_t distance = phis == 4 ? std::abs(36 * k - (3 + 10 * j) * last)
                                              : std::abs(2 * phis * k - (1 + 2 * j) * last);
      if (least < 0 || distance <= least) {
        nearest = j;
        least = distance;
      }
    }
    scales.phi_of_scale.push_back(nearest);
  }
  return scales;
}

bool VarScales::fits() const {
  if (sides.size() != phi_of_scale.size() || sides.size() == 1) return false;
  for (std::size_t k = 0; k < sides.size(); ++k) {
    const std::int64_t step = phi_of_scale[k] - (k == 0 ? 0 : phi_of_scale[k - 1]);
    if (step < 0 || step > (k == 0 ? 0 : 1) || sides[k] <= (k == 0 ? 0 : sides[k - 1]))
      return false;
  }
  return true;
}

std::int64_t VarScales::phis() const { return *std::ranges::max_element(phi_of_scale) + 1; }

std::int64_t VarScales::Area(std::int64_t scale) const {
  const std::int64_t side = sides[static_cast<std::size_t>(scale)];
  return side * side;
}

std::int64_t VarScales::First(std::int64_t scale) const {
  std::int64_t first = 0;
  for (std::int64_t k = 0; k < scale; ++k) first += Area(k);
  return first;
}

void VarQuantizer::Declare(const VarScales& scales, std::int64_t codes, std::int64_t channels,
                           const std::string& prefix, ParamLayout& layout) {
  for (std::int64_t i = 0; i < scales.phis(); ++i) {
    layout.AddConv(PhiName(prefix, i), channels, channels, 3);
  }
  layout.Add(prefix + "embedding.weight", {codes, channels});
}

VarQuantizer::VarQuantizer(VarScales scales, const ParamBuffer& params, const std::string& prefix)
    : scales_(std::move(scales)), codebook_(params[prefix + "embedding.weight"]) {
  DD2_CHECK(scales_.count() >= 2 && scales_.phi_of_scale.size() == scales_.sides.size());
  DD2_CHECK(std::ranges::is_sorted(scales_.sides, std::less_equal<>()) && scales_.sides[0] >= 1);
  for (std::int64_t i = 0; i < scales_.phis(); ++i) {
    const std::string name = PhiName(prefix, i);
    phis_.push_back({params[name + ".weight"], params[name + ".bias"]});
  }
}

at::Tensor VarQuantizer::Contribution(const at::Tensor& codes, std::int64_t scale) const {
  const auto k = static_cast<std::size_t>(scale);
  const std::int64_t side = scales_.sides[k], full = scales_.sides.back();
  DD2_CHECK(codes.dim() == 3 && codes.size(1) == side * side);
  at::Tensor h = RowsToMap(codes, side, side);
  if (side != full) h = at::upsample_bicubic2d(h, {full, full}, /*align_corners=*/false);
  const Phi& phi = phis_[static_cast<std::size_t>(scales_.phi_of_scale[k])];
  return h * 0.5 +
         at::conv2d(h, phi.weight.to(h.options()), phi.bias.to(h.options()), 1, /*padding=*/1) *
             0.5;
}

at::Tensor VarQuantizer::Step(const at::Tensor& codes, std::int64_t scale,
                              at::Tensor& f_hat) const {
  const at::Tensor added = Contribution(codes, scale);
  f_hat = f_hat.defined() ? f_hat + added : added;
  if (scale + 1 == scales_.count()) return {};
  const std::int64_t next = scales_.sides[static_cast<std::size_t>(scale + 1)];
  return MapToRows(next == scales_.sides.back() ? f_hat
                                                : at::adaptive_avg_pool2d(f_hat, {next, next}));
}

at::Tensor VarQuantizer::TransformerInput(const at::Tensor& codes) const {
  at::Tensor f_hat;
  std::vector<at::Tensor> rows;
  for (std::int64_t k = 0; k + 1 < scales_.count(); ++k) {
    rows.push_back(Step(codes.narrow(1, scales_.First(k), scales_.Area(k)), k, f_hat));
  }
  return at::cat(rows, 1);
}

at::Tensor VarQuantizer::FHat(const at::Tensor& codes) const {
  DD2_CHECK(codes.dim() == 3 && codes.size(1) == scales_.tokens());
  at::Tensor f_hat;
  for (std::int64_t k = 0; k < scales_.count(); ++k) {
    const at::Tensor added = Contribution(codes.narrow(1, scales_.First(k), scales_.Area(k)), k);
    f_hat = f_hat.defined() ? f_hat + added : added;
  }
  return f_hat;
}

at::Tensor VarQuantizer::Codes(const at::Tensor& ids) const { return codebook_.index({ids}); }

at::Tensor VarQuantizer::Encode(const at::Tensor& features) const {
  const at::NoGradGuard no_grad;
  const std::int64_t full = scales_.sides.back(), channels = codebook_.size(1);
  DD2_CHECK(features.dim() == 4 && features.size(1) == channels && features.size(2) == full &&
            features.size(3) == full);
  at::Tensor rest = features;
  std::vector<at::Tensor> ids;
  for (std::int64_t k = 0; k < scales_.count(); ++k) {
    const std::int64_t side = scales_.sides[static_cast<std::size_t>(k)];
    const at::Tensor map = side == full ? rest : at::adaptive_avg_pool2d(rest, {side, side});
    const at::Tensor rows = MapToRows(map).reshape({-1, channels});
    ids.push_back(NearestCodes(rows, codebook_).view({features.size(0), side * side}));
    rest = rest - Contribution(Codes(ids.back()), k);
  }
  return at::cat(ids, 1);
}

}  // namespace dd2
