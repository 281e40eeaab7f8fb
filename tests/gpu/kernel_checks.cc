#include "tests/gpu/kernel_checks.h"

#include <algorithm>
#include <cmath>

#include "common/rng.h"
#include "tests/gpu/check_list.h"
#include "tests/gpu/row_checks.h"
#include "worker/distill/score_kernel.h"
#include "worker/parallel/update_kernels.h"

namespace dd2 {
namespace {

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
  CheckRowKernels(checks, large);
  for (const bool with_ema : {true, false}) CheckAdam(checks, large ? 3000001 : 5003, with_ema);
  for (const bool in_place : {true, false}) CheckChunkSquares(checks, large ? 801 : 11, in_place);
  for (const bool normal : {true, false}) {
    CheckRandom(checks, large ? 8 : 3, large ? 680 * 32 : 333, normal);
  }
  return std::move(checks).found();
}

}  // namespace dd2
