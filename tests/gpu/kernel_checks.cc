#include "tests/gpu/kernel_checks.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>

#include "common/rng.h"
#include "tests/gpu/device_array.h"
#include "tests/gpu/random_input.h"
#include "worker/distill/score_kernel.h"
#include "worker/parallel/update_kernels.h"

namespace dd2 {
namespace {

using Floats = std::vector<float>;
using Doubles = std::vector<double>;

Doubles ToDouble(const Floats& values) { return {values.begin(), values.end()}; }

// Largest |difference| of a row over 1 + the row's largest magnitude; a NaN is infinitely wrong,
// unless both have one.
double LargestError(const Floats& got, const Doubles& wanted, std::int64_t width) {
  double worst = 0;
  const auto step = static_cast<std::size_t>(width);
  for (std::size_t row = 0; row < wanted.size(); row += step) {
    double scale = 1, error = 0;
    for (std::size_t i = row; i < row + step; ++i) {
      if (std::isnan(wanted[i]) && std::isnan(got[i])) continue;
      scale = std::max(scale, std::abs(wanted[i]));
      const double difference = std::abs(static_cast<double>(got[i]) - wanted[i]);
      error = std::max(error, std::isfinite(difference) ? difference : 1e300);
    }
    worst = std::max(worst, error / scale);
  }
  return worst;
}

double UnequalBits(const Floats& a, const Floats& b) {
  double unequal = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    unequal += std::bit_cast<std::uint32_t>(a[i]) != std::bit_cast<std::uint32_t>(b[i]) ? 1 : 0;
  }
  return unequal;
}

class Checks {
 public:
  explicit Checks(const Dd2DeviceApi& api) : api_(api) {}
  const Dd2DeviceApi& api() const { return api_; }
  void Add(const std::string& name, double error, double limit) {
    found_.push_back({.name = name, .error = error, .limit = limit});
  }
  // `run` gives all outputs of a kernel, in one row; it is run twice.
  Floats Twice(const std::string& name, const std::function<Floats()>& run) {
    const Floats first = run();
    Floats second = run();
    Add(name + ", same bits twice", UnequalBits(first, second), 0);
    return second;
  }
  std::vector<KernelCheck> found() && { return std::move(found_); }

 private:
  const Dd2DeviceApi& api_;
  std::vector<KernelCheck> found_;
};

// The numbers that a type can hold nearest to these.
Floats Rounded(Floats values, std::int32_t type) {
  if (type != DD2_DEVICE_BF16) return values;
  for (float& value : values) value = FromBf16(ToBf16(value));
  return values;
}

// Activations or logits of one type on the device.
class Typed {
 public:
  Typed(const Dd2DeviceApi& api, const Floats& values, std::int32_t type)
      : is_bf16_(type == DD2_DEVICE_BF16),
        halves_(api, is_bf16_ ? Halves(values) : std::vector<std::uint16_t>{}),
        floats_(api, is_bf16_ ? Floats{} : values) {}
  void* data() const { return is_bf16_ ? static_cast<void*>(halves_.data()) : floats_.data(); }
  Floats Get() const {
    if (!is_bf16_) return floats_.Get();
    Floats values;
    for (const std::uint16_t half : halves_.Get()) values.push_back(FromBf16(half));
    return values;
  }

 private:
  static std::vector<std::uint16_t> Halves(const Floats& values) {
    std::vector<std::uint16_t> halves;
    for (const float value : values) halves.push_back(ToBf16(value));
    return halves;
  }
  bool is_bf16_;
  DeviceArray<std::uint16_t> halves_;
  DeviceArray<float> floats_;
};

// A kernel's output: NaN everywhere before it runs.
Typed Output(const Dd2DeviceApi& api, std::int64_t count, std::int32_t type) {
  return {api, Floats(static_cast<std::size_t>(count), std::numeric_limits<float>::quiet_NaN()),
          type};
}

void Append(Floats& all, const Floats& more) { all.insert(all.end(), more.begin(), more.end()); }

std::string Name(const char* kernel, std::int32_t type) {
  return std::string(kernel) + (type == DD2_DEVICE_BF16 ? " bf16" : " fp32");
}

void CheckScore(Checks& checks, ScoreInput in, std::int32_t type) {
  const Dd2DeviceApi& api = checks.api();
  // A row without a possible code, and one with a NaN.
  if (in.logp_rows > 4) {
    std::fill_n(in.logp.begin() + in.codes, in.codes, kRemoved);
    in.x[static_cast<std::size_t>(2 * in.channels)] = std::nanf("");
  }
  const DeviceArray<float> codebook(api, in.codebook), t(api, in.t), x(api, in.x), u(api, in.u);
  in.logp = Rounded(std::move(in.logp), type);
  const Typed logp(api, in.logp, type);
  const std::string name = Name("score", type) + " V=" + std::to_string(in.codes) +
                           " C=" + std::to_string(in.channels) +
                           " draws=" + std::to_string(in.draws);
  const auto count = static_cast<std::size_t>(in.rows() * in.channels);
  const auto run = [&](bool with_u) {
    const DeviceArray<float> mu(api, count), jtu(api, count);
    const Dd2ScoreProblem problem{.draws = in.draws,
                                  .logp_rows = in.logp_rows,
                                  .codes = in.codes,
                                  .channels = in.channels,
                                  .d_codebook = codebook.data(),
                                  .d_logp = logp.data(),
                                  .logp_type = type,
                                  .d_t = t.data(),
                                  .d_x = x.data(),
                                  .d_u = with_u ? u.data() : nullptr,
                                  .d_mu = mu.data(),
                                  .d_jtu = with_u ? jtu.data() : nullptr};
    Must(api, api.score(&problem, nullptr));
    Floats out = mu.Get();
    if (with_u) Append(out, jtu.Get());
    return out;
  };
  const Floats both = checks.Twice(name, [&] { return run(true); });

  const Doubles codebook64 = ToDouble(in.codebook), logp64 = ToDouble(in.logp),
                t64 = ToDouble(in.t), x64 = ToDouble(in.x), u64 = ToDouble(in.u);
  Doubles mu64(count), jtu64(count);
  PosteriorMeanAndVjp(ScoreProblem<double>{.rows = in.rows(),
                                           .codes = in.codes,
                                           .channels = in.channels,
                                           .codebook = codebook64.data(),
                                           .logp = logp64.data(),
                                           .logp_rows = in.logp_rows,
                                           .t = t64.data(),
                                           .x = x64.data()},
                      u64.data(), mu64.data(), jtu64.data());
  const auto middle = both.begin() + static_cast<std::ptrdiff_t>(count);
  checks.Add(name + ", mu", LargestError({both.begin(), middle}, mu64, in.channels), 3e-5);
  checks.Add(name + ", J^T u", LargestError({middle, both.end()}, jtu64, in.channels), 3e-4);
  checks.Add(name + ", mu without u", LargestError(run(false), mu64, in.channels), 3e-5);
}

struct NormCase {
  std::int64_t rows, width;
  std::int32_t type;
};

// What modulated norm forwards and backwards are to give.
struct NormReference {
  Doubles y, dx, d_modulation, d_weight, d_bias;
};

// Row-major, `modulation` rows of 3 widths; gradients of weight and bias are added to `before`.
struct NormInput {
  Floats x, dy, residual, modulation, weight, bias, modulation_bias, before;
};
constexpr float kEpsilon = 1e-5F;

void AddNormRow(const NormInput& in, std::size_t row, NormReference& out) {
  const std::size_t width = in.weight.size();
  const auto n = static_cast<double>(width);
  const float* x = in.x.data() + row * width;
  const float* shift = in.modulation.data() + row * 3 * width;
  double mean = 0, variance = 0, g_mean = 0, g_along = 0;
  for (std::size_t i = 0; i < width; ++i) mean += x[i] / n;
  for (std::size_t i = 0; i < width; ++i) variance += (x[i] - mean) * (x[i] - mean) / n;
  const double inverse = 1 / std::sqrt(variance + kEpsilon);
  Doubles g(width), normed(width);
  for (std::size_t i = 0; i < width; ++i) {
    const double d = in.dy[row * width + i];
    const double factor = 1.0 + shift[width + i] + in.modulation_bias[width + i];
    normed[i] = (x[i] - mean) * inverse;
    const double affine = normed[i] * in.weight[i] + in.bias[i];
    out.y.push_back(affine * factor + shift[i] + in.modulation_bias[i]);
    out.d_modulation[row * 3 * width + i] = d;
    out.d_modulation[row * 3 * width + width + i] = d * affine;
    out.d_weight[i] += d * factor * normed[i];
    out.d_bias[i] += d * factor;
    g[i] = d * factor * in.weight[i];
    g_mean += g[i] / n;
    g_along += g[i] * normed[i] / n;
  }
  for (std::size_t i = 0; i < width; ++i) {
    out.dx.push_back(in.residual[row * width + i] +
                     inverse * (g[i] - g_mean - normed[i] * g_along));
  }
}

// All outputs of the two kernels, one behind the other.
Floats RunNorm(const Dd2DeviceApi& api, const NormCase& c, const NormInput& in) {
  const std::int64_t all = c.rows * c.width, stride = 3 * c.width;
  const Typed x(api, in.x, c.type), dy(api, in.dy, c.type), residual(api, in.residual, c.type),
      modulation(api, in.modulation, c.type);
  const DeviceArray<float> weight(api, in.weight), bias(api, in.bias),
      modulation_bias(api, in.modulation_bias), stats(api, static_cast<std::size_t>(2 * c.rows)),
      d_weight(api, in.before), d_bias(api, in.before);
  const Typed y = Output(api, all, c.type), dx = Output(api, all, c.type),
              d_modulation = Output(api, c.rows * stride, c.type);
  Dd2ModulatedNorm norm{};
  norm.shape = {c.rows, c.width, c.type};
  norm.d_x = x.data();
  norm.d_weight = weight.data();
  norm.d_bias = bias.data();
  norm.epsilon = kEpsilon;
  norm.d_modulation = modulation.data();
  norm.d_modulation_bias = modulation_bias.data();
  norm.stride = stride;
  norm.d_stats = stats.data();
  norm.d_y = y.data();
  norm.d_dy = dy.data();
  norm.d_residual = residual.data();
  norm.d_dx = dx.data();
  norm.d_dmodulation = d_modulation.data();
  norm.d_dweight = d_weight.data();
  norm.d_dbias = d_bias.data();
  Must(api, api.modulated_norm(&norm, nullptr));
  Must(api, api.modulated_norm_backward(&norm, nullptr));
  Floats out = y.Get();
  for (const Floats& more : {dx.Get(), d_modulation.Get(), d_weight.Get(), d_bias.Get()}) {
    Append(out, more);
  }
  return out;
}

void CheckModulatedNorm(Checks& checks, const NormCase& c) {
  std::mt19937_64 source(3);
  const std::int64_t all = c.rows * c.width, stride = 3 * c.width;
  NormInput in;
  in.x = Rounded(Normal(source, all, 2), c.type);
  in.dy = Rounded(Normal(source, all), c.type);
  in.residual = Rounded(Normal(source, all), c.type);
  in.modulation = Rounded(Normal(source, c.rows * stride, 0.3F), c.type);
  in.weight = Normal(source, c.width);
  in.bias = Normal(source, c.width);
  in.modulation_bias = Normal(source, stride);
  in.before = Normal(source, c.width);
  const std::string name = Name("modulated norm", c.type) + " width=" + std::to_string(c.width);
  const Floats got = checks.Twice(name, [&] { return RunNorm(checks.api(), c, in); });

  NormReference wanted;
  wanted.d_modulation.assign(in.modulation.size(), std::nan(""));  // the gate's columns stay
  wanted.d_weight = wanted.d_bias = ToDouble(in.before);
  for (std::int64_t row = 0; row < c.rows; ++row) {
    AddNormRow(in, static_cast<std::size_t>(row), wanted);
  }
  const double limit = c.type == DD2_DEVICE_BF16 ? 4e-3 : 1e-5;
  auto from = got.begin();
  const auto compare = [&](const char* what, const Doubles& values, std::int64_t row_width,
                           double allowed) {
    const auto to = from + static_cast<std::ptrdiff_t>(values.size());
    checks.Add(name + ", " + what, LargestError({from, to}, values, row_width), allowed);
    from = to;
  };
  compare("y", wanted.y, c.width, limit);
  compare("dx", wanted.dx, c.width, limit);
  compare("d modulation", wanted.d_modulation, stride, limit);
  compare("d weight", wanted.d_weight, c.width, 1e-5);
  compare("d bias", wanted.d_bias, c.width, 1e-5);
}

void CheckGatedResidual(Checks& checks, const NormCase& c) {
  const Dd2DeviceApi& api = checks.api();
  std::mt19937_64 source(4);
  const std::int64_t all = c.rows * c.width, stride = 3 * c.width;
  const Floats x = Rounded(Normal(source, all), c.type),
               branch = Rounded(Normal(source, all), c.type),
               d_out = Rounded(Normal(source, all), c.type),
               modulation = Rounded(Normal(source, c.rows * stride), c.type),
               branch_bias = Normal(source, c.width), modulation_bias = Normal(source, stride),
               before = Normal(source, c.width);
  const Typed d_x(api, x, c.type), d_branch(api, branch, c.type), d_d_out(api, d_out, c.type),
      d_modulation(api, modulation, c.type);
  const DeviceArray<float> d_branch_bias(api, branch_bias), d_modulation_bias(api, modulation_bias);
  const auto run = [&] {
    const Typed out = Output(api, all, c.type), d_branch_out = Output(api, all, c.type),
                d_gate = Output(api, c.rows * stride, c.type);
    const DeviceArray<float> sums(api, before);
    const Dd2RowShape shape{c.rows, c.width, c.type};
    const Dd2GatedResidual gated{shape,
                                 d_x.data(),
                                 d_branch.data(),
                                 d_branch_bias.data(),
                                 d_modulation.data(),
                                 d_modulation_bias.data(),
                                 stride,
                                 out.data(),
                                 d_d_out.data(),
                                 d_branch_out.data(),
                                 d_gate.data()};
    const Dd2ColumnSums columns{shape, d_branch.data(), c.width, sums.data()};
    Must(api, api.gated_residual(&gated, nullptr));
    Must(api, api.gated_residual_backward(&gated, nullptr));
    Must(api, api.column_sums(&columns, nullptr));
    Floats result = out.Get();
    for (const Floats& more : {d_branch_out.Get(), d_gate.Get(), sums.Get()}) Append(result, more);
    return result;
  };
  const std::string name = Name("gated residual", c.type) + " width=" + std::to_string(c.width);
  const Floats got = checks.Twice(name, run);

  const auto width = static_cast<std::size_t>(c.width);
  Doubles wanted, d_branch64, d_gate64(modulation.size(), std::nan("")), sums64 = ToDouble(before);
  for (std::size_t i = 0; i < x.size(); ++i) {
    const std::size_t column = i % width, at = i / width * 3 * width + 2 * width + column;
    const double gate = static_cast<double>(modulation[at]) + modulation_bias[2 * width + column];
    const double with_bias = static_cast<double>(branch[i]) + branch_bias[column];
    wanted.push_back(x[i] + gate * with_bias);
    d_branch64.push_back(d_out[i] * gate);
    d_gate64[at] = d_out[i] * with_bias;
    sums64[column] += branch[i];
  }
  wanted.insert(wanted.end(), d_branch64.begin(), d_branch64.end());
  wanted.insert(wanted.end(), d_gate64.begin(), d_gate64.end());
  const auto end = got.begin() + static_cast<std::ptrdiff_t>(wanted.size());
  checks.Add(name, LargestError({got.begin(), end}, wanted, c.width),
             c.type == DD2_DEVICE_BF16 ? 4e-3 : 1e-6);
  checks.Add(name + ", column sums", LargestError({end, got.end()}, sums64, c.width), 1e-5);
}

Dd2AdamRange RangeOf(const AdamFactors& f, std::int64_t begin, std::int64_t end) {
  return {begin,
          end,
          f.gradient_scale,
          f.beta1,
          f.beta2,
          f.one_minus_beta1,
          f.one_minus_beta2,
          f.step_size,
          f.root_bias_correction2,
          f.epsilon,
          f.ema_decay,
          f.one_minus_ema_decay};
}

// Bit by bit against the CPU's, in three ranges as an update with a boosted head has them.
void CheckAdam(Checks& checks, std::int64_t count, bool with_ema) {
  const Dd2DeviceApi& api = checks.api();
  std::mt19937_64 source(5);
  const Floats gradient = Normal(source, count, 1e-3F), parameter = Normal(source, count),
               m = Normal(source, count, 1e-3F), ema = Normal(source, count);
  Floats v = Normal(source, count, 1e-3F);
  for (float& value : v) value *= value;
  AdamFactors plain{.gradient_scale = 0.7F,
                    .beta1 = 0.9F,
                    .beta2 = 0.95F,
                    .one_minus_beta1 = 0.1F,
                    .one_minus_beta2 = 0.05F,
                    .step_size = 3e-4F,
                    .root_bias_correction2 = 0.6F,
                    .epsilon = 1e-8F,
                    .ema_decay = 0.999F,
                    .one_minus_ema_decay = 0.001F};
  AdamFactors boosted = plain;
  boosted.step_size *= 10;
  const std::int64_t cut1 = count / 3 + 1, cut2 = count - count / 5;
  const auto run = [&] {
    const DeviceArray<float> d_gradient(api, gradient), d_parameter(api, parameter), d_m(api, m),
        d_v(api, v), d_ema(api, ema);
    Dd2AdamStep step{};
    step.ranges = 3;
    step.range[0] = RangeOf(plain, 0, cut1);
    step.range[1] = RangeOf(boosted, cut1, cut2);
    step.range[2] = RangeOf(plain, cut2, count);
    step.d_gradient = d_gradient.data();
    step.d_parameter = d_parameter.data();
    step.d_m = d_m.data();
    step.d_v = d_v.data();
    step.d_ema = with_ema ? d_ema.data() : nullptr;
    Must(api, api.adam(&step, nullptr));
    Floats out = d_parameter.Get();
    Append(out, d_m.Get());
    Append(out, d_v.Get());
    Append(out, d_ema.Get());
    return out;
  };
  const std::string name = with_ema ? "adam and EMA" : "adam";
  const Floats got = checks.Twice(name, run);

  Floats updated(parameter.size()), m_cpu = m, v_cpu = v, ema_cpu = ema;
  const auto range = [&](const AdamFactors& factors, std::int64_t from, std::int64_t to) {
    AdamAndEma(factors, to - from, gradient.data() + from, parameter.data() + from,
               m_cpu.data() + from, v_cpu.data() + from, with_ema ? ema_cpu.data() + from : nullptr,
               updated.data() + from);
  };
  range(plain, 0, cut1);
  range(boosted, cut1, cut2);
  range(plain, cut2, count);
  Append(updated, m_cpu);
  Append(updated, v_cpu);
  Append(updated, ema_cpu);
  checks.Add(name + ", bits of the CPU", UnequalBits(got, updated), 0);
}

// Bit by bit against the CPU's, in place or not.
void CheckChunkSquares(Checks& checks, std::int64_t chunks, bool in_place) {
  constexpr std::int64_t kChunk = 4096;
  const Dd2DeviceApi& api = checks.api();
  std::mt19937_64 source(6);
  const Floats in = Normal(source, chunks * kChunk);
  const float factor = 0.3F;
  const auto with_squares = [](Floats out, const Doubles& squares) {
    const auto* words = reinterpret_cast<const float*>(squares.data());
    out.insert(out.end(), words, words + 2 * squares.size());
    return out;
  };
  const auto run = [&] {
    const DeviceArray<float> d_in(api, in), d_out(api, in.size());
    const DeviceArray<double> d_squares(api, static_cast<std::size_t>(chunks));
    const Dd2ChunkSquares squares{.chunks = chunks,
                                  .d_in = d_in.data(),
                                  .factor = factor,
                                  .d_out = in_place ? d_in.data() : d_out.data(),
                                  .d_squares = d_squares.data()};
    Must(api, api.chunk_squares(&squares, nullptr));
    return with_squares((in_place ? d_in : d_out).Get(), d_squares.Get());
  };
  const std::string name = in_place ? "chunk squares in place" : "chunk squares";
  const Floats got = checks.Twice(name, run);
  Floats out(in.size());
  Doubles squares;
  for (std::int64_t at = 0; at < chunks * kChunk; at += kChunk) {
    squares.push_back(ScaleAndSquareSum(in.data() + at, factor, kChunk, out.data() + at));
  }
  checks.Add(name + ", bits of the CPU", UnequalBits(got, with_squares(out, squares)), 0);
}

// Against common/rng.cc, sample by sample.
void CheckRandom(Checks& checks, std::int64_t samples, std::int64_t width, bool normal) {
  constexpr std::int64_t kDraws = 3;
  const Dd2DeviceApi& api = checks.api();
  RngKey key{
      .seed = 0x123456789ABCDEF, .phase = 3, .use = RngUse::kForwardNoise, .update = 0xFFFFFFF1};
  constexpr std::uint32_t kFirst = 70'000;
  const std::string name = normal ? "normal numbers" : "uniform numbers";
  const Floats got = checks.Twice(name, [&] {
    const DeviceArray<float> out(api, static_cast<std::size_t>(kDraws * samples * width));
    const Dd2RandomField field{.seed = key.seed,
                               .phase = key.phase,
                               .use = static_cast<std::uint32_t>(key.use),
                               .update = static_cast<std::uint32_t>(key.update),
                               .first_sample = kFirst,
                               .normal = normal ? 1 : 0,
                               .draws = kDraws,
                               .samples = samples,
                               .width = width,
                               .d_out = out.data()};
    Must(api, api.random(&field, nullptr));
    return out.Get();
  });
  Floats wanted(got.size()), of_sample(static_cast<std::size_t>(kDraws * width));
  for (std::int64_t sample = 0; sample < samples; ++sample) {
    key.sample = kFirst + static_cast<std::uint64_t>(sample);
    normal ? FillNormal(key, of_sample) : FillUniform(key, of_sample);
    for (std::int64_t draw = 0; draw < kDraws; ++draw) {
      std::copy_n(of_sample.begin() + draw * width, width,
                  wanted.begin() + (draw * samples + sample) * width);
    }
  }
  // The last bit of a float, and nothing in uniforms.
  if (normal) checks.Add(name, LargestError(got, ToDouble(wanted), width), 2e-7);
  if (!normal) checks.Add(name + ", bits of the CPU", UnequalBits(got, wanted), 0);
}

}  // namespace

std::vector<KernelCheck> CheckKernels(const Dd2DeviceApi& api, bool large) {
  Checks checks(api);
  if (large) {
    for (const std::int32_t type : {DD2_DEVICE_FP32, DD2_DEVICE_BF16}) {
      CheckScore(checks, RandomScore(4, 40, 4096, 32, 220, 0.03F), type);
      CheckScore(checks, RandomScore(4, 20, 16384, 8, 1000, 0.03F), type);
    }
  }
  // Several draws of a row in a block, and more than fit; tails of tiles; channels that are padded.
  CheckScore(checks, RandomScore(5, 9, 300, 8, 700, 0.03F), DD2_DEVICE_FP32);
  CheckScore(checks, RandomScore(33, 6, 129, 3, 700, 0.03F), DD2_DEVICE_FP32);
  CheckScore(checks, RandomScore(1, 40, 260, 20, 500, 0.03F), DD2_DEVICE_BF16);
  CheckScore(checks, RandomScore(2, 7, 200, 64, 1000, 0.03F), DD2_DEVICE_FP32);
  const std::int64_t rows = large ? 3000 : 70;
  for (const std::int32_t type : {DD2_DEVICE_FP32, DD2_DEVICE_BF16}) {
    for (const std::int64_t width : {large ? 1024 : 96, 21}) {
      CheckModulatedNorm(checks, {.rows = rows, .width = width, .type = type});
      CheckGatedResidual(checks, {.rows = rows, .width = width, .type = type});
    }
  }
  for (const bool with_ema : {true, false}) CheckAdam(checks, large ? 3000001 : 5003, with_ema);
  for (const bool in_place : {true, false}) CheckChunkSquares(checks, large ? 801 : 11, in_place);
  for (const bool normal : {true, false}) {
    CheckRandom(checks, large ? 8 : 3, large ? 680 * 32 : 333, normal);
  }
  return std::move(checks).found();
}

}  // namespace dd2
