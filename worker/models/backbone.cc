#include "worker/models/backbone.h"

#include "common/check.h"
#include "worker/models/llamagen_backbone.h"
#include "worker/models/raster_backbone.h"
#include "worker/models/var_backbone.h"

namespace dd2 {

const char* BackboneKindName(BackboneKind kind) {
  switch (kind) {
    case BackboneKind::kRaster: return "raster";
    case BackboneKind::kVar: return "var";
    case BackboneKind::kLlamaGen: return "llamagen";
  }
  return "";
}

std::vector<TokenGroup> GroupsOf(const BackboneSpec& spec) {
  std::vector<TokenGroup> groups;
  if (spec.kind != BackboneKind::kVar) {
    for (std::int64_t i = 0; i < spec.tokens; ++i) groups.push_back({i, 1});
    return groups;
  }
  std::int64_t begin = 0;
  for (const std::int64_t side : spec.sides) {
    groups.push_back({begin, side * side});
    begin += side * side;
  }
  DD2_CHECK(begin == spec.tokens);
  return groups;
}

void KvCache::Reset(std::int64_t layers, at::IntArrayRef shape, const at::TensorOptions& options) {
  keys.clear();
  values.clear();
  for (std::int64_t i = 0; i < layers; ++i) {
    keys.push_back(at::empty(shape, options));
    values.push_back(at::empty(shape, options));
  }
}

std::pair<at::Tensor, at::Tensor> KvCache::Append(std::int64_t layer, std::int64_t position,
                                                  const at::Tensor& new_keys,
                                                  const at::Tensor& new_values) {
  const std::int64_t length = new_keys.size(2);
  const auto store = [&](const at::Tensor& all, const at::Tensor& added) {
    all.narrow(2, position, length).copy_(added);
    return all.narrow(2, 0, position + length);
  };
  const auto index = static_cast<std::size_t>(layer);
  return {store(keys.at(index), new_keys), store(values.at(index), new_values)};
}

void DeclareBackbone(const BackboneSpec& spec, const std::string& prefix, ParamLayout& layout) {
  switch (spec.kind) {
    case BackboneKind::kRaster: return RasterBackbone::Declare(spec, prefix, layout);
    case BackboneKind::kVar: return VarBackbone::Declare(spec, prefix, layout);
    case BackboneKind::kLlamaGen: return LlamaGenBackbone::Declare(spec, prefix, layout);
  }
}

std::shared_ptr<const Backbone> MakeBackbone(const BackboneSpec& spec, const ParamBuffer& params,
                                             const std::string& prefix) {
  switch (spec.kind) {
    case BackboneKind::kRaster: return std::make_shared<const RasterBackbone>(spec, params, prefix);
    case BackboneKind::kVar: return std::make_shared<const VarBackbone>(spec, params, prefix);
    case BackboneKind::kLlamaGen:
      return std::make_shared<const LlamaGenBackbone>(spec, params, prefix);
  }
  return nullptr;
}

}  // namespace dd2
