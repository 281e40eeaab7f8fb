#include "tests/gpu/measurements.h"

#include <algorithm>
#include <chrono>
#include <functional>

#include "tests/gpu/device_array.h"
#include "tests/gpu/random_input.h"

namespace dd2 {
namespace {

constexpr int kWarmUps = 3;
constexpr int kRepeats = 21;

double Median(std::vector<double> values) {
  std::ranges::nth_element(values, values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2));
  return values[values.size() / 2];
}

// Two events around work on a stream.
class Timer {
 public:
  explicit Timer(const Dd2DeviceApi& api) : api_(api) {
    Must(api, api.make_event(1, &begin_));
    Must(api, api.make_event(1, &end_));
  }
  ~Timer() {
    api_.end_event(begin_);
    api_.end_event(end_);
  }
  Timer(const Timer&) = delete;
  Timer& operator=(const Timer&) = delete;
  double Milliseconds(Dd2Stream stream, const std::function<void()>& work) {
    Must(api_, api_.record(begin_, stream));
    work();
    Must(api_, api_.record(end_, stream));
    Must(api_, api_.wait_stream(stream));
    float milliseconds = 0;
    Must(api_, api_.milliseconds(begin_, end_, &milliseconds));
    return milliseconds;
  }

 private:
  const Dd2DeviceApi& api_;
  Dd2Event begin_ = nullptr, end_ = nullptr;
};

double MedianMilliseconds(const Dd2DeviceApi& api, const std::function<void()>& work) {
  Timer timer(api);
  std::vector<double> times;
  for (int i = 0; i < kWarmUps + kRepeats; ++i) {
    const double time = timer.Milliseconds(nullptr, work);
    if (i >= kWarmUps) times.push_back(time);
  }
  return Median(times);
}

class Table {
 public:
  Table(const Dd2DeviceApi& api, double bandwidth) : api_(api), bandwidth_(bandwidth) {}
  const Dd2DeviceApi& api() const { return api_; }
  void Add(boost::json::object what, double bytes, const std::function<void()>& work) {
    const double milliseconds = MedianMilliseconds(api_, work);
    lines_.push_back(boost::json::object{{"case", std::move(what)},
                                         {"ms", milliseconds},
                                         {"gb", bytes * 1e-9},
                                         {"share", bytes * 1e-6 / milliseconds / bandwidth_}});
  }
  boost::json::array lines() && { return std::move(lines_); }

 private:
  const Dd2DeviceApi& api_;
  const double bandwidth_;
  boost::json::array lines_;
};

struct ScoreCase {
  std::int64_t rows, codes, channels;
  std::int32_t type;
  bool with_u;
};

void MeasureScore(Table& table, const ScoreCase& c) {
  const Dd2DeviceApi& api = table.api();
  constexpr std::int64_t kDraws = 4;
  const ScoreInput in = RandomScore(kDraws, c.rows, c.codes, c.channels, 1000, 0.02F);
  std::vector<std::uint16_t> halves;
  if (c.type == DD2_DEVICE_BF16) {
    for (const float value : in.logp) halves.push_back(ToBf16(value));
  }
  const DeviceArray<float> codebook(api, in.codebook), t(api, in.t), x(api, in.x), u(api, in.u),
      mu(api, in.x.size()), jtu(api, in.x.size()),
      logp(api, halves.empty() ? in.logp : std::vector<float>());
  const DeviceArray<std::uint16_t> half_logp(api, halves);
  Dd2ScoreProblem problem{};
  problem.draws = kDraws;
  problem.logp_rows = c.rows;
  problem.codes = c.codes;
  problem.channels = c.channels;
  problem.d_codebook = codebook.data();
  problem.d_logp = halves.empty() ? static_cast<const void*>(logp.data()) : half_logp.data();
  problem.logp_type = c.type;
  problem.d_t = t.data();
  problem.d_x = x.data();
  problem.d_u = c.with_u ? u.data() : nullptr;
  problem.d_mu = mu.data();
  problem.d_jtu = c.with_u ? jtu.data() : nullptr;
  const auto bytes = static_cast<double>(logp.bytes() + half_logp.bytes() + codebook.bytes() +
                                         t.bytes() + (c.with_u ? 4 : 2) * x.bytes());
  table.Add({{"kernel", "score"},
             {"draws", kDraws},
             {"rows", c.rows},
             {"codes", c.codes},
             {"channels", c.channels},
             {"bf16", c.type == DD2_DEVICE_BF16},
             {"vjp", c.with_u}},
            bytes, [&] { Must(api, api.score(&problem, nullptr)); });
}

// Rows of the MLP head (repeats = 1), or of VAR's blocks, where `repeats` share a modulation row.
void MeasureRows(Table& table, std::int64_t rows, std::int64_t width, std::int64_t repeats,
                 std::int32_t type) {
  const Dd2DeviceApi& api = table.api();
  const bool bf16 = type == DD2_DEVICE_BF16;
  const auto all = static_cast<std::size_t>(rows * width);
  const std::size_t modulations = 3 * all / static_cast<std::size_t>(repeats);
  // Ordinary numbers of either type: 0.5, and of bf16 0.5 and 0.
  const auto floats = [&](std::size_t count) {
    return DeviceArray<float>(api, std::vector<float>(count, 0.5F));
  };
  const auto typed = [&] { return floats(bf16 ? all / 2 : all); };
  const auto x = floats(all), residual = floats(all), dx = floats(all);
  const auto y = typed(), dy = typed();
  const auto modulation = floats(modulations), d_modulation = floats(modulations);
  const auto bias = floats(static_cast<std::size_t>(3 * width)),
             stats = floats(static_cast<std::size_t>(2 * rows));
  const float* added = repeats == 1 ? bias.data() : nullptr;
  Dd2ModulatedNorm norm{};
  norm.shape = {rows, width, type};
  norm.modulation = {repeats, 3 * width, 3 * width};
  norm.d_x = x.data();
  norm.epsilon = 1e-5F;
  norm.d_shift = modulation.data();
  norm.d_scale = modulation.data() + width;
  norm.d_shift_bias = norm.d_scale_bias = added;
  norm.d_stats = stats.data();
  norm.d_y = y.data();
  norm.d_dy = dy.data();
  norm.d_residual = residual.data();
  norm.d_dx = dx.data();
  norm.d_dshift = d_modulation.data();
  norm.d_dscale = d_modulation.data() + width;
  Dd2GatedResidual gated{};
  gated.shape = norm.shape;
  gated.modulation = norm.modulation;
  gated.d_x = x.data();
  gated.d_branch = dy.data();
  gated.d_branch_bias = gated.d_gate_bias = added;
  gated.d_gate = modulation.data() + 2 * width;
  gated.d_out = dx.data();
  gated.d_dout = residual.data();
  gated.d_dbranch = y.data();
  gated.d_dgate = d_modulation.data() + 2 * width;
  const auto what = [&](const char* kernel) {
    return boost::json::object{
        {"kernel", kernel}, {"rows", rows}, {"width", width}, {"repeats", repeats}, {"bf16", bf16}};
  };
  const auto wide = static_cast<double>(x.bytes()), narrow = static_cast<double>(y.bytes()),
             part = static_cast<double>(modulation.bytes()) / 3;
  table.Add(what("modulated_norm"), wide + narrow + 2 * part,
            [&] { Must(api, api.modulated_norm(&norm, nullptr)); });
  table.Add(what("modulated_norm_backward"), 3 * wide + narrow + 3 * part,
            [&] { Must(api, api.modulated_norm_backward(&norm, nullptr)); });
  table.Add(what("gated_residual"), 2 * wide + narrow + part,
            [&] { Must(api, api.gated_residual(&gated, nullptr)); });
  table.Add(what("gated_residual_backward"), wide + 2 * narrow + 2 * part,
            [&] { Must(api, api.gated_residual_backward(&gated, nullptr)); });
}

// Noise of an update: 4 draws for 8 samples of VAR.
void MeasureRandom(Table& table) {
  const Dd2DeviceApi& api = table.api();
  Dd2RandomField field{};
  field.normal = 1;
  field.draws = 4;
  field.samples = 8;
  field.width = std::int64_t{680} * 32;
  const std::int64_t count = field.draws * field.samples * field.width;
  const DeviceArray<float> out(api, static_cast<std::size_t>(count));
  field.d_out = out.data();
  table.Add({{"kernel", "normal"}, {"count", count}}, static_cast<double>(out.bytes()),
            [&] { Must(api, api.random(&field, nullptr)); });
}

// Queries and keys of VAR's blocks.
void MeasureUnitLength(Table& table, std::int64_t rows, std::int64_t heads, std::int64_t width,
                       std::int32_t type) {
  const Dd2DeviceApi& api = table.api();
  const bool bf16 = type == DD2_DEVICE_BF16;
  const auto all = static_cast<std::size_t>(rows * heads * width);
  const auto typed = [&](std::size_t count) {
    return DeviceArray<float>(api, std::vector<float>(bf16 ? count / 2 : count, 0.5F));
  };
  const auto qkv = typed(3 * all), d_qkv = typed(3 * all), q = typed(all), k = typed(all),
             dq = typed(all), dk = typed(all);
  const DeviceArray<float> temperature(api, std::vector<float>(static_cast<std::size_t>(heads), 4)),
      d_temperature(api, static_cast<std::size_t>(rows * heads));
  Dd2UnitLength unit{};
  unit.shape = {rows, width, type};
  unit.heads = heads;
  unit.d_qkv = qkv.data();
  unit.d_temperature = temperature.data();
  unit.d_q = q.data();
  unit.d_k = k.data();
  unit.d_dq = dq.data();
  unit.d_dk = dk.data();
  unit.d_dqkv = d_qkv.data();
  unit.d_dtemperature = d_temperature.data();
  const auto what = [&](const char* kernel) {
    return boost::json::object{
        {"kernel", kernel}, {"rows", rows}, {"heads", heads}, {"width", width}, {"bf16", bf16}};
  };
  const auto one = static_cast<double>(q.bytes());
  table.Add(what("unit_length"), 4 * one, [&] { Must(api, api.unit_length(&unit, nullptr)); });
  table.Add(what("unit_length_backward"), 6 * one,
            [&] { Must(api, api.unit_length_backward(&unit, nullptr)); });
}

// A flat buffer with its optimiser, for one step after the other.
class AdamState {
 public:
  AdamState(const Dd2DeviceApi& api, std::int64_t count)
      : api_(api),
        gradient_(api, Small(count)),
        parameter_(api, Small(count)),
        m_(api, Small(count)),
        v_(api, Small(count)),
        ema_(api, Small(count)) {
    step_.ranges = 1;
    step_.range[0] = {0, count, 1, 0.9F, 0.95F, 0.1F, 0.05F, 1e-4F, 0.9F, 1e-8F, 0.999F, 0.001F};
    step_.d_gradient = gradient_.data();
    step_.d_parameter = parameter_.data();
    step_.d_m = m_.data();
    step_.d_v = v_.data();
    step_.d_ema = ema_.data();
  }
  void Step(Dd2Stream stream) const { Must(api_, api_.adam(&step_, stream)); }
  // What a checkpoint has of it, one behind the other.
  std::size_t saved_bytes() const { return 4 * parameter_.bytes(); }
  void Copy(std::byte* to, Dd2Stream stream) const {
    for (const DeviceArray<float>* array : {&parameter_, &m_, &v_, &ema_}) {
      Must(api_, api_.copy(to, array->data(), array->bytes(), stream));
      to += array->bytes();
    }
  }

 private:
  static std::vector<float> Small(std::int64_t count) {
    std::vector<float> values(static_cast<std::size_t>(count));
    for (std::size_t i = 0; i < values.size(); ++i) {
      values[i] = 1e-4F * static_cast<float>(i % 977 + 1);
    }
    return values;
  }
  const Dd2DeviceApi& api_;
  DeviceArray<float> gradient_, parameter_, m_, v_, ema_;
  Dd2AdamStep step_{};
};

double Now() {
  const auto since = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration<double, std::milli>(since).count();
}

}  // namespace

double CopyBandwidth(const Dd2DeviceApi& api) {
  constexpr std::size_t kBytes = std::size_t{2} << 30;
  void *from = nullptr, *to = nullptr;
  Must(api, api.allocate(kBytes, &from));
  Must(api, api.allocate(kBytes, &to));
  const double milliseconds =
      MedianMilliseconds(api, [&] { Must(api, api.copy(to, from, kBytes, nullptr)); });
  api.release(from);
  api.release(to);
  return 2e-6 * static_cast<double>(kBytes) / milliseconds;
}

boost::json::array MeasureKernels(const Dd2DeviceApi& api, double bandwidth) {
  Table table(api, bandwidth);
  for (const std::int32_t type : {DD2_DEVICE_FP32, DD2_DEVICE_BF16}) {
    for (const bool with_u : {false, true}) {
      // 8 samples: 680 tokens of VAR, 256 of LlamaGen, a row of logits each.
      MeasureScore(table, {8 * 680, 4096, 32, type, with_u});
      MeasureScore(table, {8 * 256, 16384, 8, type, with_u});
    }
    MeasureRows(table, 8 * 680, 1024, 680, type);  // VAR's blocks
    MeasureUnitLength(table, 8 * 680, 16, 64, type);
  }
  MeasureRows(table, 8 * 680, 1024, 1, DD2_DEVICE_FP32);  // the head
  constexpr std::int64_t kParameters = 64 << 20;
  const AdamState adam(api, kParameters);
  table.Add({{"kernel", "adam"}, {"count", kParameters}}, 9.0 * 4 * kParameters,
            [&] { adam.Step(nullptr); });
  MeasureRandom(table);
  return std::move(table).lines();
}

boost::json::object MeasureHostCopies(const Dd2DeviceApi& api) {
  constexpr std::int64_t kCount = 64 << 20;  // four arrays: 1 GiB
  const AdamState saved(api, kCount), trained(api, kCount);
  const std::size_t bytes = saved.saved_bytes();
  void* pinned = nullptr;
  Must(api, api.allocate_pinned(bytes, &pinned));
  std::vector<std::byte> unpinned(bytes);
  Dd2Stream compute = nullptr, side = nullptr;
  Must(api, api.make_stream(&compute));
  Must(api, api.make_stream(&side));
  const auto copy = [&] { saved.Copy(static_cast<std::byte*>(pinned), side); };
  const auto steps = [&] {
    for (int i = 0; i < 20; ++i) trained.Step(compute);
  };
  Timer timer(api);
  std::vector<double> alone, beside, copied, slow, pinned_later;
  const auto copy_unpinned = [&] {
    const double start = Now();
    saved.Copy(unpinned.data(), side);
    Must(api, api.wait_stream(side));
    return Now() - start;
  };
  for (int round = 0; round < 5; ++round) {
    alone.push_back(timer.Milliseconds(compute, steps));
    copy();
    beside.push_back(timer.Milliseconds(compute, steps));
    Must(api, api.wait_stream(side));
    copied.push_back(timer.Milliseconds(side, copy));
    slow.push_back(copy_unpinned());
    Must(api, api.pin(unpinned.data(), bytes));
    pinned_later.push_back(copy_unpinned());
    Must(api, api.unpin(unpinned.data()));
  }
  Must(api, api.end_stream(side));
  Must(api, api.end_stream(compute));
  Must(api, api.release_pinned(pinned));
  return {{"steps_alone_ms", Median(alone)},
          {"steps_beside_a_copy_ms", Median(beside)},
          {"copy_ms", Median(copied)},
          {"copy_gb_s", 1e-6 * static_cast<double>(bytes) / Median(copied)},
          {"copy_to_unpinned_memory_ms", Median(slow)},
          {"copy_to_memory_pinned_later_ms", Median(pinned_later)}};
}

}  // namespace dd2
