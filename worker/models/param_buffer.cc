#include "worker/models/param_buffer.h"

#include <utility>

#include "common/check.h"
#include "worker/kernels/torch_device.h"

namespace dd2 {
namespace {

constexpr std::int64_t kAlignElements = 16;  // 64 bytes of fp32

std::int64_t RoundUp(std::int64_t value, std::int64_t unit) {
  return (value + unit - 1) / unit * unit;
}

at::Tensor ViewOf(const at::Tensor& flat, const ParamSpec& spec) {
  return flat.narrow(0, spec.offset, spec.numel).view(spec.shape);
}

}  // namespace

void ParamLayout::Add(std::string name, std::vector<std::int64_t> shape) {
  std::int64_t numel = 1;
  for (const std::int64_t extent : shape) {
    DD2_CHECK(extent > 0);
    numel *= extent;
  }
  const bool inserted = index_.emplace(name, specs_.size()).second;
  DD2_CHECK_MSG(inserted, name);
  specs_.push_back({std::move(name), std::move(shape), end_, numel});
  end_ = RoundUp(end_ + numel, kAlignElements);
}

void ParamLayout::AddLinear(const std::string& name, std::int64_t in, std::int64_t out) {
  Add(name + ".weight", {out, in});
  Add(name + ".bias", {out});
}

void ParamLayout::AddConv(const std::string& name, std::int64_t in, std::int64_t out,
                          std::int64_t kernel) {
  Add(name + ".weight", {out, in, kernel, kernel});
  Add(name + ".bias", {out});
}

void ParamLayout::AddNorm(const std::string& name, std::int64_t width) {
  Add(name + ".weight", {width});
  Add(name + ".bias", {width});
}

const ParamSpec& ParamLayout::Find(std::string_view name) const {
  const auto found = index_.find(name);
  DD2_CHECK_MSG(found != index_.end(), name);
  return specs_[found->second];
}

std::int64_t ParamLayout::size() const { return RoundUp(end_, kParamChunk); }

ParamBuffer::ParamBuffer(const ParamLayout& layout, bool requires_grad, std::int64_t capacity)
    : layout_(layout) {
  if (capacity == 0) capacity = layout.size();
  DD2_CHECK(capacity >= layout.size());
  flat_ = at::zeros({capacity}, OnDevice());
  MakeLeaves(requires_grad);
}

ParamBuffer ParamBuffer::Alias(bool requires_grad) const {
  ParamBuffer alias;
  alias.layout_ = layout_;
  alias.flat_ = flat_;
  alias.MakeLeaves(requires_grad);
  return alias;
}

void ParamBuffer::SetFlat(const at::Tensor& host) const {
  if (!flat_.is_cpu()) flat_.detach().copy_(host);
}

void ParamBuffer::MakeLeaves(bool requires_grad) {
  leaves_.clear();
  leaves_.reserve(layout_.specs().size());
  for (const ParamSpec& spec : layout_.specs()) {
    // detach: the leaf shares the bytes but is no view of flat_ in the eyes of autograd.
    leaves_.push_back(ViewOf(flat_, spec).detach().set_requires_grad(requires_grad));
  }
}

const at::Tensor& ParamBuffer::operator[](std::string_view name) const {
  const ParamSpec& spec = layout_.Find(name);
  return leaves_[static_cast<std::size_t>(&spec - layout_.specs().data())];
}

void ParamBuffer::BindGradient(const at::Tensor& gradient) {
  DD2_CHECK(gradient.dim() == 1 && gradient.numel() >= layout_.size());
  for (std::size_t i = 0; i < leaves_.size(); ++i) {
    // AccumulateGrad adds in place to a defined gradient when it runs without create_graph.
    leaves_[i].mutable_grad() = ViewOf(gradient, layout_.specs()[i]).detach();
  }
}

void ParamBuffer::SetRequiresGrad(bool requires_grad) {
  for (at::Tensor& leaf : leaves_) leaf.set_requires_grad(requires_grad);
}

bool ParamBuffer::requires_grad() const {
  return !leaves_.empty() && leaves_.front().requires_grad();
}

}  // namespace dd2
