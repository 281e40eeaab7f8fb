#include "worker/parallel/tensor_update.h"

#include <algorithm>

#include "common/check.h"
#include "worker/kernels/torch_device.h"
#include "worker/models/param_buffer.h"

namespace dd2 {
namespace {

std::vector<double> SquareOnDevice(const at::Tensor& in, float factor, const at::Tensor& out) {
  const std::int64_t chunks = in.numel() / kParamChunk;
  const at::Tensor squares = at::empty({chunks}, OnDevice(at::kDouble));
  const Dd2ChunkSquares problem{.chunks = chunks,
                                .d_in = in.const_data_ptr<float>(),
                                .factor = factor,
                                .d_out = out.data_ptr<float>(),
                                .d_squares = squares.data_ptr<double>()};
  CheckKernel(DeviceKernels().chunk_squares(&problem, nullptr));
  const at::Tensor host = squares.cpu();
  const double* values = host.const_data_ptr<double>();
  return {values, values + chunks};
}

void AdamOnDevice(std::span<const AdamRange> ranges, const at::Tensor& gradient,
                  const at::Tensor& parameter, const at::Tensor& m, const at::Tensor& v,
                  const at::Tensor& ema) {
  DD2_CHECK(ranges.size() <= DD2_DEVICE_ADAM_RANGES_MAX);
  Dd2AdamStep step{};
  for (const AdamRange& range : ranges) {
    const AdamFactors& f = range.factors;
    step.range[step.ranges++] = {.begin = range.begin,
                                 .end = range.end,
                                 .gradient_scale = f.gradient_scale,
                                 .beta1 = f.beta1,
                                 .beta2 = f.beta2,
                                 .one_minus_beta1 = f.one_minus_beta1,
                                 .one_minus_beta2 = f.one_minus_beta2,
                                 .step_size = f.step_size,
                                 .root_bias_correction2 = f.root_bias_correction2,
                                 .epsilon = f.epsilon,
                                 .ema_decay = f.ema_decay,
                                 .one_minus_ema_decay = f.one_minus_ema_decay};
  }
  step.d_gradient = gradient.const_data_ptr<float>();
  step.d_parameter = parameter.data_ptr<float>();
  step.d_m = m.data_ptr<float>();
  step.d_v = v.data_ptr<float>();
  step.d_ema = ema.defined() ? ema.data_ptr<float>() : nullptr;
  CheckKernel(DeviceKernels().adam(&step, nullptr));
}

}  // namespace

std::vector<double> ScaleAndSquareChunks(const at::Tensor& in, float factor,
                                         const at::Tensor& out) {
  DD2_CHECK(in.is_contiguous() && out.is_contiguous() && in.numel() == out.numel());
  DD2_CHECK(in.numel() % kParamChunk == 0);
  if (!in.is_cpu()) return SquareOnDevice(in, factor, out);
  std::vector<double> squares;
  const float* from = in.const_data_ptr<float>();
  float* to = out.data_ptr<float>();
  for (std::int64_t offset = 0; offset < in.numel(); offset += kParamChunk) {
    squares.push_back(ScaleAndSquareSum(from + offset, factor, kParamChunk, to + offset));
  }
  return squares;
}

void AdamAndEma(std::span<const AdamRange> ranges, const at::Tensor& gradient,
                const at::Tensor& parameter, const at::Tensor& m, const at::Tensor& v,
                const at::Tensor& ema) {
  if (!parameter.is_cpu()) return AdamOnDevice(ranges, gradient, parameter, m, v, ema);
  const at::Tensor updated = at::empty_like(parameter);
  float* ema_values = ema.defined() ? ema.data_ptr<float>() : nullptr;
  for (const auto& [begin, end, factors] : ranges) {
    AdamAndEma(factors, end - begin, gradient.const_data_ptr<float>() + begin,
               parameter.const_data_ptr<float>() + begin, m.data_ptr<float>() + begin,
               v.data_ptr<float>() + begin, ema_values == nullptr ? nullptr : ema_values + begin,
               updated.data_ptr<float>() + begin);
  }
  parameter.copy_(updated);
}

}  // namespace dd2
