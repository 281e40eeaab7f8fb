// LibTorch's side of the far device: its type is PrivateUse1. Each operator runs on the CPU over
// the memory that the far addresses stand for, so that it gives the CPU's bits; an operator that is
// given tensors of both devices fails, as on a GPU.

#include <ATen/EmptyTensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/view_as_complex_native.h>
#include <ATen/ops/view_as_real_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/Allocator.h>
#include <c10/core/DeviceType.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <algorithm>
#include <iterator>
#include <string>
#include <string_view>

#include "tests/support/far_device/memory.h"
#include "worker/torch.h"

namespace dd2::far_device {
namespace {

constexpr at::DeviceType kType = at::kPrivateUse1;
at::Device Here() { return {kType, static_cast<at::DeviceIndex>(DeviceInUse())}; }

struct FarAllocator final : c10::Allocator {
  c10::DataPtr allocate(std::size_t bytes) override {
    void* memory = bytes == 0 ? nullptr : Allocate(bytes);
    TORCH_CHECK_WITH(OutOfMemoryError, bytes == 0 || memory != nullptr,
                     "the far device has no memory left for ", bytes, " bytes");
    return {memory, memory, [](void* at) { at == nullptr ? void() : Release(at); }, Here()};
  }
  void copy_data(void* to, const void* from, std::size_t bytes) const override {
    default_copy_data(Near(to), Near(from), bytes);
  }
};

FarAllocator allocator;
[[maybe_unused]] const int registered = [] {
  c10::SetAllocator(kType, &allocator);
  return 0;
}();

struct Guard final : c10::impl::NoOpDeviceGuardImpl<kType> {
  at::Device exchangeDevice(at::Device) const override { return Here(); }
  at::Device getDevice() const override { return Here(); }
  at::DeviceIndex deviceCount() const noexcept override {
    return static_cast<at::DeviceIndex>(DeviceCount());
  }
  c10::Stream getStream(at::Device) const noexcept override {
    return c10::Stream(c10::Stream::DEFAULT, Here());
  }
  c10::Stream exchangeStream(c10::Stream stream) const noexcept override { return stream; }
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard)

// Autograd asks for it before it runs a backward pass over tensors that are not the CPU's.
struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(at::DeviceIndex) const override { return true; }
};
[[maybe_unused]] const int named = [] {
  c10::register_privateuse1_backend("far");
  at::RegisterPrivateUse1HooksInterface(new Hooks);
  return 0;
}();

bool IsFarTensor(const at::Tensor& tensor) {
  return tensor.defined() && tensor.device().type() == kType;
}

// The same elements as a tensor of the CPU.
at::Tensor NearTensor(const at::Tensor& tensor) {
  if (!IsFarTensor(tensor)) return tensor;
  // A whole tensor without elements has no memory.
  void* data = tensor.numel() == 0 ? nullptr : Near(tensor.data_ptr());
  at::Tensor near = at::from_blob(data, tensor.sizes(), tensor.strides(),
                                  at::TensorOptions(tensor.scalar_type()).device(at::kCPU));
  near._set_conj(tensor.is_conj());
  return near;
}

at::Tensor Empty(at::IntArrayRef size, std::optional<at::ScalarType> type,
                 std::optional<at::Layout>, std::optional<at::Device>, std::optional<bool>,
                 std::optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(size, &allocator,
                                   c10::DispatchKeySet(at::DispatchKey::PrivateUse1),
                                   c10::dtype_or_default(type), format);
}

at::Tensor EmptyStrided(at::IntArrayRef size, at::IntArrayRef stride,
                        std::optional<at::ScalarType> type, std::optional<at::Layout>,
                        std::optional<at::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(size, stride, &allocator,
                                           c10::DispatchKeySet(at::DispatchKey::PrivateUse1),
                                           c10::dtype_or_default(type));
}

at::Tensor CopyFrom(const at::Tensor& from, const at::Tensor& to, bool) {
  NearTensor(to).copy_(NearTensor(from));
  return to;
}

// Convolutions of other devices come here.
at::Tensor Convolution(const at::Tensor& x, const at::Tensor& weight,
                       const std::optional<at::Tensor>& bias, c10::SymIntArrayRef stride,
                       c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation, bool transposed,
                       c10::SymIntArrayRef output_padding, c10::SymInt groups) {
  const std::optional<at::Tensor> near_bias =
      bias ? std::optional(NearTensor(*bias)) : std::nullopt;
  return at::convolution_symint(NearTensor(x), NearTensor(weight), near_bias, stride, padding,
                                dilation, transposed, output_padding, std::move(groups))
      .to(Here());
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, library) {
  library.impl("convolution_overrideable", TORCH_FN(Convolution));
  library.impl("empty.memory_format", TORCH_FN(Empty));
  library.impl("empty_strided", TORCH_FN(EmptyStrided));
  library.impl("_copy_from", TORCH_FN(CopyFrom));
  library.impl("as_strided", TORCH_FN(at::native::as_strided_tensorimpl));
  library.impl("view", TORCH_FN(at::native::view));
  library.impl("view_as_complex", TORCH_FN(at::native::view_as_complex));
  library.impl("view_as_real", TORCH_FN(at::native::view_as_real));
  library.impl("_reshape_alias", TORCH_FN(at::native::_reshape_alias));
}

// A copy resolves a conjugation itself; LibTorch would do it by a copy.
TORCH_LIBRARY_IMPL(aten, Conjugate, library) {
  library.impl("_copy_from", torch::CppFunction::makeFallthrough());
}

// What an operator was given, with the CPU's tensors in the place of the far ones.
class Arguments {
 public:
  void Replace(c10::IValue& value, bool is_out) {
    if (value.isTensor()) {
      // What is only written may be given another shape: it gets a tensor of its own.
      value = is_out
                  ? Given(value.toTensor(), at::empty({0}, NearTensor(value.toTensor()).options()))
                  : NearOf(value.toTensor());
    } else if (value.isTensorList()) {
      c10::List<at::Tensor> near;
      for (const at::Tensor& tensor : value.toTensorVector()) near.push_back(NearOf(tensor));
      value = near;
    } else if (value.isOptionalTensorList()) {
      c10::List<std::optional<at::Tensor>> near;
      for (const std::optional<at::Tensor>& tensor : value.toOptionalTensorVector()) {
        near.push_back(tensor ? std::optional(NearOf(*tensor)) : std::nullopt);
      }
      value = near;
    } else if (value.isDevice()) {
      value = at::Device(at::kCPU);
    }
  }

  // The far tensor that a result of the CPU is to be.
  at::Tensor Result(const at::Tensor& near, const c10::AliasInfo* alias,
                    const std::string& name) const {
    if (!near.defined()) return near;
    for (const auto& [far, given] : given_) {
      if (!given.is_same(near)) continue;
      if (near.data_ptr() == NearTensor(far).data_ptr()) return far;
      if (far.sizes() == near.sizes()) return far.copy_(near);
      const at::Tensor moved = near.contiguous().to(Here());
      far.unsafeGetTensorImpl()->set_storage_keep_dtype(moved.storage());
      far.unsafeGetTensorImpl()->set_sizes_contiguous(moved.sizes());
      return far;
    }
    TORCH_CHECK(alias == nullptr, name, ": a view that the far device does not know");
    return near.to(Here());
  }

 private:
  at::Tensor NearOf(const at::Tensor& tensor) {
    if (!tensor.defined()) return tensor;
    // A number is welcome on every device.
    TORCH_CHECK(IsFarTensor(tensor) || tensor.dim() == 0, "a tensor of the CPU among far ones");
    return Given(tensor, NearTensor(tensor));
  }

  at::Tensor Given(const at::Tensor& tensor, at::Tensor near) {
    given_.emplace_back(tensor, near);
    return near;
  }

  std::vector<std::pair<at::Tensor, at::Tensor>> given_;
};

// What CUDA refuses under "deterministic algorithms": documentation of
// torch.use_deterministic_algorithms, PyTorch 2.11; by name alone, so some of them are refused
// where CUDA takes them (cumsum of integers). Left out: EmbeddingBag, CTC, what is given weights or
// a reduction.
constexpr std::string_view kRefused[] = {
    "_adaptive_avg_pool2d_backward",
    "_adaptive_avg_pool3d_backward",
    "adaptive_max_pool2d_backward",
    "avg_pool3d_backward",
    "cumsum",
    "cumsum_",
    "fractional_max_pool2d_backward",
    "fractional_max_pool3d_backward",
    "grid_sampler_2d_backward",
    "grid_sampler_3d_backward",
    "histc",
    "max_pool3d_with_indices_backward",
    "max_unpool2d",
    "max_unpool3d",
    "median",
    "nanmedian",
    "nll_loss2d_forward",
    "put_",
    "reflection_pad1d_backward",
    "reflection_pad2d_backward",
    "reflection_pad3d_backward",
    "upsample_bicubic2d_backward",
    "upsample_bilinear2d_backward",
    "upsample_linear1d_backward",
    "upsample_trilinear3d_backward",
    "_upsample_bicubic2d_aa_backward",
    "_upsample_bilinear2d_aa_backward",
};

void RefuseAsCudaDoes(const std::string& name) {
  if (!at::globalContext().deterministicAlgorithms()) return;
  const std::string_view word = std::string_view(name).substr(name.find("::") + 2);
  TORCH_CHECK(std::ranges::find(kRefused, word) == std::end(kRefused), name,
              " has no deterministic form on GPUs");
}

void OnTheCpu(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const c10::FunctionSchema& schema = op.schema();
  RefuseAsCudaDoes(schema.name());
  Arguments arguments;
  const std::size_t begin = stack->size() - schema.arguments().size();
  for (std::size_t i = begin; i < stack->size(); ++i) {
    arguments.Replace((*stack)[i], schema.arguments()[i - begin].is_out());
  }
  op.redispatchBoxed(c10::DispatchKeySet(at::DispatchKey::CPU), stack);
  const std::size_t first = stack->size() - schema.returns().size();
  for (std::size_t i = first; i < stack->size(); ++i) {
    c10::IValue& value = (*stack)[i];
    const c10::AliasInfo* alias = schema.returns()[i - first].alias_info();
    if (value.isTensor()) {
      value = arguments.Result(value.toTensor(), alias, schema.name());
    } else if (value.isTensorList()) {
      c10::List<at::Tensor> far;
      for (const at::Tensor& tensor : value.toTensorVector()) {
        far.push_back(arguments.Result(tensor, alias, schema.name()));
      }
      value = far;
    }
  }
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, library) {
  library.fallback(torch::CppFunction::makeFromBoxedFunction<&OnTheCpu>());
}

}  // namespace
}  // namespace dd2::far_device
