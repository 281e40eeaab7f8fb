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

// Rows of the kernels of modulate.cu. `repeats` of them share a row of modulation: 1 as in the MLP
// head, with affine part and biases, or more as in VAR's blocks, without either.
struct RowCase {
  std::int64_t rows, width, repeats;
  std::int32_t type;
  bool shared() const { return repeats > 1; }
  std::int64_t all() const { return rows * width; }
  std::int64_t modulation_rows() const { return rows / repeats; }
  std::int64_t stride() const { return 3 * width + (shared() ? 4 : 0); }
  Dd2RowShape shape() const { return {rows, width, type}; }
  Dd2ModulationRows modulation() const { return {repeats, stride(), 3 * width}; }
  std::string Name(const char* kernel) const {
    return dd2::Name(kernel, type) + " width=" + std::to_string(width) +
           (shared() ? " repeats=" + std::to_string(repeats) : "");
  }
};

// Row-major, `modulation` rows of 3 widths (shift, scale, gate); gradients of weight and bias are
// added to `before`. `branch` and `d_out` are of the gated residual.
struct RowInput {
  Floats x, dy, residual, branch, modulation, weight, bias, branch_bias, modulation_bias, before;
};
constexpr float kEpsilon = 1e-5F;

RowInput RandomRows(const RowCase& c) {
  std::mt19937_64 source(3);
  RowInput in;
  in.x = Normal(source, c.all(), 2);
  in.dy = Rounded(Normal(source, c.all()), c.type);
  in.residual = Normal(source, c.all());
  in.branch = Rounded(Normal(source, c.all()), c.type);
  in.modulation = Normal(source, c.modulation_rows() * c.stride(), 0.3F);
  in.before = Normal(source, c.width);
  const auto some = [&](std::int64_t count, float without) {
    return c.shared() ? Floats(static_cast<std::size_t>(count), without) : Normal(source, count);
  };
  in.weight = some(c.width, 1);
  in.bias = some(c.width, 0);
  in.branch_bias = some(c.width, 0);
  in.modulation_bias = some(3 * c.width, 0);
  return in;
}

// The rows of the last modulation row alone.
RowInput LastRows(const RowCase& c, RowInput in) {
  for (Floats* rows : {&in.x, &in.dy, &in.residual, &in.branch}) {
    rows->erase(rows->begin(), rows->end() - c.repeats * c.width);
  }
  in.modulation.erase(in.modulation.begin(), in.modulation.end() - c.stride());
  return in;
}

// What the kernels give: of the norm y, dx, and gradients; of the gated residual `y` is its output,
// `dx` the gradient of its branch.
template <class Values>
struct RowOutput {
  Values y, dx, d_modulation, d_weight, d_bias;
  Values Together() const {
    Values all = y;
    for (const Values* more : {&dx, &d_modulation, &d_weight, &d_bias}) {
      all.insert(all.end(), more->begin(), more->end());
    }
    return all;
  }
};
using Got = RowOutput<Floats>;
using Wanted = RowOutput<Doubles>;

void AddNormRow(const RowCase& c, const RowInput& in, std::size_t row, Wanted& out) {
  const auto width = static_cast<std::size_t>(c.width);
  const auto n = static_cast<double>(width);
  const std::size_t group = row / static_cast<std::size_t>(c.repeats);
  const float* x = in.x.data() + row * width;
  const float* shift = in.modulation.data() + group * static_cast<std::size_t>(c.stride());
  double* d_shift = out.d_modulation.data() + group * 3 * width;
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
    d_shift[i] += d;
    d_shift[width + i] += d * affine;
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

Got RunNorm(const Dd2DeviceApi& api, const RowCase& c, const RowInput& in) {
  const Typed dy(api, in.dy, c.type), y = Output(api, c.all(), c.type);
  const DeviceArray<float> x(api, in.x), residual(api, in.residual), modulation(api, in.modulation),
      weight(api, in.weight), bias(api, in.bias), modulation_bias(api, in.modulation_bias),
      stats(api, static_cast<std::size_t>(2 * c.rows)), d_weight(api, in.before),
      d_bias(api, in.before);
  const Typed dx = Output(api, c.all(), DD2_DEVICE_FP32),
              d_modulation = Output(api, c.modulation_rows() * 3 * c.width, DD2_DEVICE_FP32);
  Dd2ModulatedNorm norm{};
  norm.shape = c.shape();
  norm.modulation = c.modulation();
  norm.d_x = x.data();
  norm.epsilon = kEpsilon;
  norm.d_shift = modulation.data();
  norm.d_scale = norm.d_shift + c.width;
  norm.d_stats = stats.data();
  norm.d_y = y.data();
  norm.d_dy = dy.data();
  norm.d_residual = residual.data();
  norm.d_dx = static_cast<float*>(dx.data());
  norm.d_dshift = static_cast<float*>(d_modulation.data());
  norm.d_dscale = norm.d_dshift + c.width;
  if (!c.shared()) {
    norm.d_weight = weight.data();
    norm.d_bias = bias.data();
    norm.d_shift_bias = modulation_bias.data();
    norm.d_scale_bias = norm.d_shift_bias + c.width;
    norm.d_dweight = d_weight.data();
    norm.d_dbias = d_bias.data();
  }
  Must(api, api.modulated_norm(&norm, nullptr));
  Must(api, api.modulated_norm_backward(&norm, nullptr));
  Got got{y.Get(), dx.Get(), d_modulation.Get(), {}, {}};
  if (!c.shared()) got.d_weight = d_weight.Get(), got.d_bias = d_bias.Get();
  return got;
}

Got RunGated(const Dd2DeviceApi& api, const RowCase& c, const RowInput& in) {
  const Typed branch(api, in.branch, c.type), d_branch = Output(api, c.all(), c.type);
  const DeviceArray<float> x(api, in.x), d_out(api, in.residual), modulation(api, in.modulation),
      branch_bias(api, in.branch_bias), modulation_bias(api, in.modulation_bias),
      sums(api, in.before);
  const Typed out = Output(api, c.all(), DD2_DEVICE_FP32),
              d_modulation = Output(api, c.modulation_rows() * 3 * c.width, DD2_DEVICE_FP32);
  Dd2GatedResidual gated{};
  gated.shape = c.shape();
  gated.modulation = c.modulation();
  gated.d_x = x.data();
  gated.d_branch = branch.data();
  gated.d_gate = modulation.data() + 2 * c.width;
  gated.d_out = static_cast<float*>(out.data());
  gated.d_dout = d_out.data();
  gated.d_dbranch = d_branch.data();
  gated.d_dgate = static_cast<float*>(d_modulation.data()) + 2 * c.width;
  if (!c.shared()) {
    gated.d_branch_bias = branch_bias.data();
    gated.d_gate_bias = modulation_bias.data() + 2 * c.width;
  }
  const Dd2ColumnSums columns{c.shape(), branch.data(), c.width, sums.data()};
  Must(api, api.gated_residual(&gated, nullptr));
  Must(api, api.gated_residual_backward(&gated, nullptr));
  Must(api, api.column_sums(&columns, nullptr));
  return {out.Get(), d_branch.Get(), d_modulation.Get(), {}, sums.Get()};
}

// In fp64; the modulation's columns that a kernel leaves alone are to stay NaN.
Wanted NormReference(const RowCase& c, const RowInput& in) {
  Wanted wanted;
  wanted.d_weight = wanted.d_bias = ToDouble(in.before);
  const auto width = static_cast<std::size_t>(c.width);
  for (std::int64_t group = 0; group < c.modulation_rows(); ++group) {
    wanted.d_modulation.insert(wanted.d_modulation.end(), 2 * width, 0.0);
    wanted.d_modulation.insert(wanted.d_modulation.end(), width, std::nan(""));
  }
  for (std::int64_t row = 0; row < c.rows; ++row) {
    AddNormRow(c, in, static_cast<std::size_t>(row), wanted);
  }
  if (c.shared()) wanted.d_weight = wanted.d_bias = {};
  return wanted;
}

Wanted GatedReference(const RowCase& c, const RowInput& in) {
  Wanted wanted;
  wanted.d_bias = ToDouble(in.before);
  const auto width = static_cast<std::size_t>(c.width);
  for (std::int64_t group = 0; group < c.modulation_rows(); ++group) {
    wanted.d_modulation.insert(wanted.d_modulation.end(), 2 * width, std::nan(""));
    wanted.d_modulation.insert(wanted.d_modulation.end(), width, 0.0);
  }
  for (std::size_t i = 0; i < in.x.size(); ++i) {
    const std::size_t column = i % width, group = i / width / static_cast<std::size_t>(c.repeats);
    const double gate =
        static_cast<double>(
            in.modulation[group * static_cast<std::size_t>(c.stride()) + 2 * width + column]) +
        in.modulation_bias[2 * width + column];
    const double with_bias = static_cast<double>(in.branch[i]) + in.branch_bias[column];
    wanted.y.push_back(in.x[i] + gate * with_bias);
    wanted.dx.push_back(in.residual[i] * gate);
    wanted.d_modulation[group * 3 * width + 2 * width + column] += in.residual[i] * with_bias;
    wanted.d_bias[column] += in.branch[i];
  }
  return wanted;
}

// Bits of the last modulation row's rows, alone and behind the others.
void CheckAlone(Checks& checks, const std::string& name, const Got& together, const Got& alone) {
  const auto unequal = [](const Floats& all, const Floats& one) {
    return UnequalBits({all.end() - static_cast<std::ptrdiff_t>(one.size()), all.end()}, one);
  };
  checks.Add(name + ", bits of a sequence alone",
             unequal(together.y, alone.y) + unequal(together.dx, alone.dx) +
                 unequal(together.d_modulation, alone.d_modulation),
             0);
}

void CheckRows(Checks& checks, const RowCase& c) {
  const RowInput in = RandomRows(c), last = LastRows(c, in);
  RowCase one = c;
  one.rows = c.repeats;
  const double rounded = c.type == DD2_DEVICE_BF16 ? 4e-3 : 1e-5;
  const auto check = [&](const char* kernel, const auto& run, const Wanted& wanted, double y_limit,
                         double dx_limit) {
    const std::string name = c.Name(kernel);
    Got got;
    checks.Twice(name, [&] {
      got = run(checks.api(), c, in);
      return got.Together();
    });
    const auto add = [&](const char* what, const Floats& found, const Doubles& value,
                         std::int64_t width, double limit) {
      if (value.empty()) return;
      checks.Add(name + ", " + what, LargestError(found, value, width), limit);
    };
    add("y", got.y, wanted.y, c.width, y_limit);
    add("dx", got.dx, wanted.dx, c.width, dx_limit);
    add("d modulation", got.d_modulation, wanted.d_modulation, 3 * c.width, 1e-5);
    add("d weight", got.d_weight, wanted.d_weight, c.width, 1e-5);
    add("d bias", got.d_bias, wanted.d_bias, c.width, 1e-5);
    if (c.shared()) CheckAlone(checks, name, got, run(checks.api(), one, last));
  };
  check("modulated norm", RunNorm, NormReference(c, in), rounded, 1e-5);
  check("gated residual", RunGated, GatedReference(c, in), 1e-6, rounded);
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
  for (const std::int32_t type : {DD2_DEVICE_FP32, DD2_DEVICE_BF16}) {
    for (const std::int64_t width : {large ? 1024 : 96, 21}) {
      CheckRows(checks, {.rows = large ? 3000 : 70, .width = width, .repeats = 1, .type = type});
      CheckRows(
          checks,
          {.rows = large ? 2040 : 105, .width = width, .repeats = large ? 680 : 35, .type = type});
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
