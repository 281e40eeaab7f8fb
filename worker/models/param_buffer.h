#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "common/result.h"
#include "worker/torch.h"

namespace dd2 {

// Where a named parameter lies inside the flat buffer of its network.
struct ParamSpec {
  std::string name;  // "backbone.blocks.0.qkv.weight"
  std::vector<std::int64_t> shape;
  std::int64_t offset = 0;  // elements from the start; a multiple of 16 (64 bytes)
  std::int64_t numel = 0;
};

// Names, shapes and offsets of a network's parameters in one flat fp32 buffer. Parameters start at
// multiples of 64 bytes (MKL may choose another path, and so other bits, for other alignments).
// Padding elements stay zero in parameters, gradients and optimiser state.
class ParamLayout {
 public:
  // Names must be new. Order of calls is the order in the buffer.
  void Add(std::string name, std::vector<std::int64_t> shape);
  // name.weight [out, in] and name.bias [out]; [out, in, kernel, kernel] and [out]; name.weight and
  // name.bias [width].
  void AddLinear(const std::string& name, std::int64_t in, std::int64_t out);
  void AddConv(const std::string& name, std::int64_t in, std::int64_t out, std::int64_t kernel);
  void AddNorm(const std::string& name, std::int64_t width);
  const std::vector<ParamSpec>& specs() const { return specs_; }
  bool Contains(std::string_view name) const { return index_.contains(name); }
  // Aborts when there is no such parameter: names are ours.
  const ParamSpec& Find(std::string_view name) const;
  // Elements of the flat buffer: a whole number of kParamChunk.
  std::int64_t size() const;

 private:
  std::vector<ParamSpec> specs_;
  std::map<std::string, std::size_t, std::less<>> index_;
  std::int64_t end_ = 0;
};

// Gradient norms and slices of optimiser state are cut at multiples of this many elements, whatever
// the world size, so that sums over chunks have one order (design 4, rule 3).
inline constexpr std::int64_t kParamChunk = 4096;

// The parameters of one network, on ComputeDevice(): one flat fp32 tensor and a leaf view per name.
// Copies share storage. `capacity` may exceed layout.size() so that world-size equal slices fit;
// the tail stays zero.
class ParamBuffer {
 public:
  ParamBuffer() = default;
  ParamBuffer(const ParamLayout& layout, bool requires_grad, std::int64_t capacity = 0);

  // New leaves over the same storage: lets another thread run its own backward pass into its own
  // gradient buffer. Copies of a ParamBuffer share the leaves too, an alias does not.
  ParamBuffer Alias(bool requires_grad) const;

  // The parameter as an autograd leaf (a view into flat()).
  const at::Tensor& operator[](std::string_view name) const;
  const ParamLayout& layout() const { return layout_; }
  at::Tensor flat() const { return flat_; }  // [capacity]
  // flat() in host memory: itself on the CPU, a copy on a GPU.
  at::Tensor HostFlat() const { return flat_.detach().cpu(); }
  // Takes the values of what HostFlat() has returned.
  void SetFlat(const at::Tensor& host) const;
  // Makes autograd accumulate into `gradient` ([capacity], zeroed by the caller): every leaf's
  // .grad becomes a view of it.
  void BindGradient(const at::Tensor& gradient);
  void SetRequiresGrad(bool requires_grad);
  bool requires_grad() const;  // of all leaves: they are frozen together

 private:
  void MakeLeaves(bool requires_grad);

  ParamLayout layout_;
  at::Tensor flat_;
  std::vector<at::Tensor> leaves_;
};

}  // namespace dd2
