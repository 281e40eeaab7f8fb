#include "worker/distill/score.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "common/check.h"

namespace dd2 {
namespace {

// Codes whose logits are computed together; the running sums of the online softmax are rescaled at
// most once per tile.
constexpr std::int64_t kTile = 64;
constexpr std::int64_t kChannelsMax = 64;

double Exp(double x) { return std::exp(x); }

// exp for x <= 0 in fp32, error below 2 ulp, 0 below the smallest normal result. Branch-free so that
// loops over it vectorise; the same operations for every element, so bits do not depend on position.
float Exp(float x) {
  const float clamped = std::max(x, -87.0F);
  constexpr float kLog2E = 1.44269504088896341F;
  constexpr float kRound = 12582912.0F;  // 1.5 * 2^23: adding it rounds to an integer
  const float shifted = clamped * kLog2E + kRound;
  const float n = shifted - kRound;
  const float r = (clamped - n * 0.693359375F) - n * -2.12194440e-4F;
  float p = 1.9875691500e-4F;
  p = p * r + 1.3981999507e-3F;
  p = p * r + 8.3334519073e-3F;
  p = p * r + 4.1665795894e-2F;
  p = p * r + 1.6666665459e-1F;
  p = p * r + 5.0000001201e-1F;
  const float value = p * r * r + r + 1.0F;
  const float scaled = value * std::bit_cast<float>((static_cast<std::int32_t>(n) + 127) << 23);
  return x < -87.0F ? 0.0F : scaled;
}

// The codebook as the loops want it: channel-major, with squared norms.
template <class T>
struct Codes {
  explicit Codes(const ScoreProblem<T>& problem)
      : by_channel(static_cast<std::size_t>(problem.codes * problem.channels)),
        squared_norm(static_cast<std::size_t>(problem.codes)) {
    for (std::int64_t j = 0; j < problem.codes; ++j) {
      T sum = 0;
      for (std::int64_t c = 0; c < problem.channels; ++c) {
        const T value = problem.codebook[j * problem.channels + c];
        by_channel[static_cast<std::size_t>(c * problem.codes + j)] = value;
        sum += value * value;
      }
      squared_norm[static_cast<std::size_t>(j)] = sum;
    }
  }
  std::vector<T> by_channel;    // [C, V]
  std::vector<T> squared_norm;  // [V]
};

// Running sums of one row, relative to exp(maximum).
template <class T>
struct RowSums {
  T maximum = -std::numeric_limits<T>::infinity();
  T weight = 0;                           // sum_j e_j
  T codes[kChannelsMax] = {};             // sum_j e_j c_j
  T projected[kChannelsMax] = {};         // sum_j e_j <c_j, u> c_j
};

template <class T>
void AddTile(const ScoreProblem<T>& problem, const Codes<T>& codes, std::int64_t row,
             std::int64_t begin, std::int64_t size, const T* u, RowSums<T>& sums) {
  const std::int64_t channels = problem.channels;
  const T t = problem.t[row];
  const T linear = (1 - t) / (t * t);
  const T quadratic = (1 - t) * (1 - t) / (2 * t * t);
  const T* logp = problem.logp + (row % problem.logp_rows) * problem.codes + begin;
  const T* norm = codes.squared_norm.data() + begin;
  T dot[kTile] = {};
  for (std::int64_t c = 0; c < channels; ++c) {
    const T x = problem.x[row * channels + c];
    const T* code = codes.by_channel.data() + c * problem.codes + begin;
    for (std::int64_t j = 0; j < size; ++j) dot[j] += x * code[j];
  }
  T logit[kTile];
  T highest = -std::numeric_limits<T>::infinity();
  for (std::int64_t j = 0; j < size; ++j) {
    logit[j] = logp[j] + linear * dot[j] - quadratic * norm[j];
    highest = std::max(highest, logit[j]);
  }
  if (highest == -std::numeric_limits<T>::infinity()) return;  // every code of it is impossible
  if (highest > sums.maximum) {
    const T scale = sums.weight == 0 ? T{0} : Exp(sums.maximum - highest);
    sums.weight *= scale;
    for (std::int64_t c = 0; c < channels; ++c) {
      sums.codes[c] *= scale;
      sums.projected[c] *= scale;
    }
    sums.maximum = highest;
  }
  T e[kTile];
  for (std::int64_t j = 0; j < size; ++j) e[j] = Exp(logit[j] - sums.maximum);
  T along[kTile] = {};  // e_j <c_j, u>
  if (u != nullptr) {
    for (std::int64_t c = 0; c < channels; ++c) {
      const T* code = codes.by_channel.data() + c * problem.codes + begin;
      for (std::int64_t j = 0; j < size; ++j) along[j] += u[row * channels + c] * code[j];
    }
    for (std::int64_t j = 0; j < size; ++j) along[j] *= e[j];
  }
  for (std::int64_t j = 0; j < size; ++j) sums.weight += e[j];
  for (std::int64_t c = 0; c < channels; ++c) {
    const T* code = codes.by_channel.data() + c * problem.codes + begin;
    T mean = 0;
    T projected = 0;
    for (std::int64_t j = 0; j < size; ++j) {
      mean += e[j] * code[j];
      projected += along[j] * code[j];
    }
    sums.codes[c] += mean;
    sums.projected[c] += projected;
  }
}

template <class T>
void Run(const ScoreProblem<T>& problem, const T* u, T* mu, T* jtu) {
  DD2_CHECK(problem.channels <= kChannelsMax && problem.logp_rows > 0);
  const Codes<T> codes(problem);
  const std::int64_t channels = problem.channels;
  for (std::int64_t row = 0; row < problem.rows; ++row) {
    RowSums<T> sums;
    for (std::int64_t begin = 0; begin < problem.codes; begin += kTile) {
      AddTile(problem, codes, row, begin, std::min(kTile, problem.codes - begin), u, sums);
    }
    T along = 0;  // <mu, u>
    for (std::int64_t c = 0; c < channels; ++c) {
      const T mean = sums.codes[c] / sums.weight;
      mu[row * channels + c] = mean;
      if (u != nullptr) along += mean * u[row * channels + c];
    }
    if (u == nullptr) continue;
    const T t = problem.t[row];
    const T factor = (1 - t) / (t * t);
    for (std::int64_t c = 0; c < channels; ++c) {
      jtu[row * channels + c] =
          factor * (sums.projected[c] / sums.weight - mu[row * channels + c] * along);
    }
  }
}

ScoreProblem<float> ProblemOf(const at::Tensor& x, const at::Tensor& t, const at::Tensor& logp,
                              const at::Tensor& codebook) {
  DD2_CHECK(x.is_contiguous() && t.is_contiguous() && logp.is_contiguous() &&
            codebook.is_contiguous());
  const std::int64_t channels = x.size(-1);
  DD2_CHECK(t.numel() * channels == x.numel() && codebook.size(1) == channels);
  return ScoreProblem<float>{.rows = x.numel() / channels,
                             .codes = codebook.size(0),
                             .channels = channels,
                             .codebook = codebook.const_data_ptr<float>(),
                             .logp = logp.const_data_ptr<float>(),
                             .logp_rows = logp.numel() / codebook.size(0),
                             .t = t.const_data_ptr<float>(),
                             .x = x.const_data_ptr<float>()};
}

class PosteriorMeanFunction : public torch::autograd::Function<PosteriorMeanFunction> {
 public:
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x,
                            const at::Tensor& t, const at::Tensor& logp,
                            const at::Tensor& codebook) {
    context->save_for_backward({x, t, logp, codebook});
    at::Tensor mu = at::empty_like(x);
    PosteriorMean(ProblemOf(x, t, logp, codebook), mu.data_ptr<float>());
    return mu;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list gradients) {
    const torch::autograd::variable_list saved = context->get_saved_variables();
    const at::Tensor u = gradients[0].contiguous();
    at::Tensor jtu = TeacherPosteriorVjp(saved[0], saved[1], saved[2], saved[3], u);
    return {jtu, at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

}  // namespace

template <class T>
void PosteriorMean(const ScoreProblem<T>& problem, T* mu) {
  Run<T>(problem, nullptr, mu, nullptr);
}

template <class T>
void PosteriorMeanAndVjp(const ScoreProblem<T>& problem, const T* u, T* mu, T* jtu) {
  Run<T>(problem, u, mu, jtu);
}

template void PosteriorMean<float>(const ScoreProblem<float>&, float*);
template void PosteriorMean<double>(const ScoreProblem<double>&, double*);
template void PosteriorMeanAndVjp<float>(const ScoreProblem<float>&, const float*, float*, float*);
template void PosteriorMeanAndVjp<double>(const ScoreProblem<double>&, const double*, double*,
                                          double*);

at::Tensor TeacherPosteriorVjp(const at::Tensor& x, const at::Tensor& t, const at::Tensor& logp,
                               const at::Tensor& codebook, const at::Tensor& u) {
  at::Tensor mu = at::empty_like(x);
  at::Tensor jtu = at::empty_like(x);
  PosteriorMeanAndVjp(ProblemOf(x, t, logp, codebook), u.const_data_ptr<float>(),
                      mu.data_ptr<float>(), jtu.data_ptr<float>());
  return jtu;
}

at::Tensor TeacherPosteriorMean(const at::Tensor& x, const at::Tensor& t, const at::Tensor& logp,
                                const at::Tensor& codebook) {
  return PosteriorMeanFunction::apply(x.contiguous(), t.contiguous(), logp.contiguous(),
                                      codebook.contiguous());
}

}  // namespace dd2
