// Initial values of parameters (networks.h).

#include <algorithm>
#include <cmath>
#include <span>
#include <string_view>

#include "common/check.h"
#include "common/rng.h"
#include "worker/models/networks.h"

namespace dd2 {
namespace {

constexpr float kEmbeddingDeviation = 0.02F;

// Inputs that feed one output: [out, in] or [out, in, kernel, kernel].
double FanIn(const ParamSpec& weight) {
  const std::int64_t inputs = weight.numel / weight.shape[0];
  return static_cast<double>(inputs);
}

bool IsNorm(std::string_view name) {
  return name.find("norm") != std::string_view::npos ||
         name.find("in_ln") != std::string_view::npos;
}

void FillSymmetric(const RngKey& key, double bound, std::span<float> out) {
  FillUniform(key, out);
  for (float& value : out) value = static_cast<float>((2.0 * value - 1.0) * bound);
}

template <class Fill>
void ForEachParam(const ParamBuffer& params, const std::string& prefix, std::uint64_t seed,
                  std::uint32_t phase, const Fill& fill) {
  const std::vector<ParamSpec>& specs = params.layout().specs();
  const at::Tensor host = params.HostFlat();
  for (std::size_t i = 0; i < specs.size(); ++i) {
    if (!specs[i].name.starts_with(prefix)) continue;
    fill(specs[i], RngKey{seed, phase, RngUse::kParameterInit, 0, i},
         std::span(host.data_ptr<float>() + specs[i].offset,
                   static_cast<std::size_t>(specs[i].numel)));
  }
  params.SetFlat(host);
}

}  // namespace

void InitUniformFanIn(const ParamBuffer& params, const std::string& prefix, std::uint64_t seed,
                      std::uint32_t phase) {
  ForEachParam(params, prefix, seed, phase,
               [&](const ParamSpec& spec, const RngKey& key, std::span<float> out) {
                 const std::string_view name = spec.name;
                 if (IsNorm(name)) {
                   std::fill(out.begin(), out.end(), name.ends_with(".weight") ? 1.0F : 0.0F);
                 } else if (name.ends_with("class_embed.weight") || name.ends_with("positions") ||
                            name.ends_with("start")) {
                   FillNormal(key, out);
                   for (float& value : out) value *= kEmbeddingDeviation;
                 } else if (name.ends_with(".weight")) {
                   FillSymmetric(key, 1.0 / std::sqrt(FanIn(spec)), out);
                 } else if (name.ends_with(".bias")) {
                   std::string weight(name.substr(0, name.size() - 4));
                   weight += "weight";
                   FillSymmetric(key, 1.0 / std::sqrt(FanIn(params.layout().Find(weight))), out);
                 }
               });
}

void InitVar(const ParamBuffer& params, const BackboneSpec& spec, std::uint64_t seed,
             std::uint32_t phase) {
  constexpr float kGates = 1e-3F, kModulation = 0.5F, kOutput = 0.02F;
  const auto width = static_cast<double>(spec.width);
  const auto deviation = static_cast<float>(std::sqrt(1.0 / (3.0 * width)));
  const auto residual = static_cast<float>(1.0 / std::sqrt(2.0 * static_cast<double>(spec.layers)));
  ForEachParam(params, "", seed, phase,
               [&](const ParamSpec& param, const RngKey& key, std::span<float> out) -> void {
                 const std::string_view name = param.name;
                 const auto is = [&](std::string_view part) {
                   return name.find(part) != std::string_view::npos;
                 };
                 if (is("scale_mul") || name.ends_with("bias")) {
                   std::ranges::fill(out, is("scale_mul") ? std::log(4.0F) : 0.0F);
                   return;
                 }
                 FillNormal(key, out);
                 float scale = deviation;
                 if (is("head.weight")) scale *= kOutput;
                 if (is("attn.proj") || is("fc2")) scale *= residual;
                 if (is("ada_lin")) scale *= kModulation;
                 for (float& value : out) value *= scale;
                 // The gates are the first two of a block's six vectors.
                 if (!is("blocks.") || !is("ada_lin")) return;
                 for (float& value : out.first(out.size() / 3)) value *= kGates / kModulation;
               });
}

void InitHead(const ParamBuffer& params, const std::string& prefix, std::uint64_t seed,
              std::uint32_t phase) {
  ForEachParam(params, prefix, seed, phase,
               [](const ParamSpec& spec, const RngKey& key, std::span<float> out) {
                 const std::string_view name = spec.name;
                 const bool zero = name.ends_with(".bias") ||
                                   name.find("adaLN_modulation") != std::string_view::npos ||
                                   name.find("final_layer") != std::string_view::npos;
                 if (IsNorm(name)) {
                   std::fill(out.begin(), out.end(), name.ends_with(".weight") ? 1.0F : 0.0F);
                 } else if (zero) {
                   std::fill(out.begin(), out.end(), 0.0F);
                 } else {
                   // Also the time MLP, where MAR takes N(0, 0.02^2): with widths near 100 and a
                   // few hundred steps that starts nearly blind to t.
                   const double fans = static_cast<double>(spec.shape[0] + spec.shape[1]);
                   FillSymmetric(key, std::sqrt(6.0 / fans), out);
                 }
               });
}

void InitNetwork(const ParamBuffer& params, std::uint64_t seed, std::uint32_t phase) {
  InitUniformFanIn(params, "backbone.", seed, phase);
  InitHead(params, "head.", seed, phase);
}

void CopyParams(const ParamBuffer& from, const ParamBuffer& to, const std::string& prefix) {
  for (const ParamSpec& spec : to.layout().specs()) {
    if (!spec.name.starts_with(prefix)) continue;
    const ParamSpec& source = from.layout().Find(spec.name);
    DD2_CHECK_MSG(source.shape == spec.shape, spec.name);
    to.flat()
        .detach()
        .narrow(0, spec.offset, spec.numel)
        .copy_(from.flat().detach().narrow(0, source.offset, source.numel));
  }
}

}  // namespace dd2
