#include "tests/gpu/row_checks.h"

namespace dd2 {
namespace {

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

// Of VAR's attention: tokens of `heads` heads, `width` wide.
struct UnitCase {
  std::int64_t tokens, heads, width;
  std::int32_t type;
  std::int64_t all() const { return tokens * heads * width; }
};

struct UnitInput {
  Floats qkv, temperature, dq, dk;
};

UnitInput RandomUnit(const UnitCase& c) {
  std::mt19937_64 source(7);
  UnitInput in;
  in.qkv = Normal(source, 3 * c.all());
  std::fill_n(in.qkv.begin(), c.width, 0.0F);  // the first query has no length
  in.qkv = Rounded(std::move(in.qkv), c.type);
  in.temperature = Normal(source, c.heads);
  in.dq = Rounded(Normal(source, c.all()), c.type);
  in.dk = Rounded(Normal(source, c.all()), c.type);
  std::fill_n(in.dq.begin(), c.width, 0.0F);
  return in;
}

// Queries, keys, the gradient of all three and of the temperature, one behind the other.
std::vector<Floats> RunUnit(const Dd2DeviceApi& api, const UnitCase& c, const UnitInput& in) {
  const Typed qkv(api, in.qkv, c.type), dq(api, in.dq, c.type), dk(api, in.dk, c.type),
      q = Output(api, c.all(), c.type), k = Output(api, c.all(), c.type),
      d_qkv = Output(api, 3 * c.all(), c.type);
  const DeviceArray<float> temperature(api, in.temperature),
      d_temperature(api, static_cast<std::size_t>(c.tokens * c.heads));
  Dd2UnitLength unit{};
  unit.shape = {c.tokens, c.width, c.type};
  unit.heads = c.heads;
  unit.d_qkv = qkv.data();
  unit.d_temperature = temperature.data();
  unit.d_q = q.data();
  unit.d_k = k.data();
  unit.d_dq = dq.data();
  unit.d_dk = dk.data();
  unit.d_dqkv = d_qkv.data();
  unit.d_dtemperature = d_temperature.data();
  Must(api, api.unit_length(&unit, nullptr));
  Must(api, api.unit_length_backward(&unit, nullptr));
  return {q.Get(), k.Get(), d_qkv.Get(), d_temperature.Get()};
}

// One vector x of length 1 times `factor`: appends it to y, its gradient to dx; returns d factor.
double AddUnit(const float* x, const float* dy, double factor, std::int64_t width, Doubles& y,
               Doubles& dx) {
  double squares = 0, along = 0;
  for (std::int64_t i = 0; i < width; ++i) squares += static_cast<double>(x[i]) * x[i];
  const double inverse = 1 / std::max(std::sqrt(squares), 1e-12);
  for (std::int64_t i = 0; i < width; ++i) along += x[i] * inverse * dy[i];
  for (std::int64_t i = 0; i < width; ++i) {
    y.push_back(x[i] * inverse * factor);
    dx.push_back(factor * inverse * (dy[i] - x[i] * inverse * along));
  }
  return along;
}

std::vector<Doubles> UnitReference(const UnitCase& c, const UnitInput& in) {
  Doubles q, k, d_qkv, d_temperature;
  for (std::int64_t token = 0; token < c.tokens; ++token) {
    const std::int64_t at = token * c.heads * c.width;
    for (std::int64_t head = 0; head < c.heads; ++head) {
      const std::int64_t in_head = head * c.width;
      d_temperature.push_back(AddUnit(in.qkv.data() + 3 * at + in_head, in.dq.data() + at + in_head,
                                      in.temperature[static_cast<std::size_t>(head)], c.width, q,
                                      d_qkv));
    }
    for (std::int64_t head = 0; head < c.heads; ++head) {
      const std::int64_t in_head = head * c.width;
      AddUnit(in.qkv.data() + 3 * at + c.heads * c.width + in_head, in.dk.data() + at + in_head, 1,
              c.width, k, d_qkv);
    }
    // The values' are the caller's.
    d_qkv.insert(d_qkv.end(), static_cast<std::size_t>(c.heads * c.width), std::nan(""));
  }
  return {q, k, d_qkv, d_temperature};
}

void CheckUnitLength(Checks& checks, const UnitCase& c) {
  const UnitInput in = RandomUnit(c);
  const std::string name = Name("unit length", c.type) + " head width=" + std::to_string(c.width);
  std::vector<Floats> got;
  checks.Twice(name, [&] {
    got = RunUnit(checks.api(), c, in);
    Floats all;
    for (const Floats& part : got) Append(all, part);
    return all;
  });
  const std::vector<Doubles> wanted = UnitReference(c, in);
  const double limit = c.type == DD2_DEVICE_BF16 ? 4e-3 : 1e-6;
  const std::int64_t widths[] = {c.width, c.width, 3 * c.heads * c.width, c.heads};
  const double limits[] = {limit, limit, limit, 1e-6};
  const char* const parts[] = {"queries", "keys", "d qkv", "d temperature"};
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    checks.Add(name + ", " + parts[i], LargestError(got[i], wanted[i], widths[i]), limits[i]);
  }
}

}  // namespace

void CheckRowKernels(Checks& checks, bool large) {
  for (const std::int32_t type : {DD2_DEVICE_FP32, DD2_DEVICE_BF16}) {
    for (const std::int64_t width : {large ? 1024 : 96, 21}) {
      CheckRows(checks, {.rows = large ? 3000 : 70, .width = width, .repeats = 1, .type = type});
      CheckRows(
          checks,
          {.rows = large ? 2040 : 105, .width = width, .repeats = large ? 680 : 35, .type = type});
    }
    for (const std::int64_t width : {64, 21}) {
      CheckUnitLength(checks,
                      {.tokens = large ? 2040 : 19, .heads = 3, .width = width, .type = type});
    }
  }
}

}  // namespace dd2
