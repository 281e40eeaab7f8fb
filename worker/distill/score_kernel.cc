#include "worker/distill/score_kernel.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "common/check.h"

// The raw form of the score. Compiled without contraction; every sum runs over kLanes interleaved
// partial sums that are added in a fixed tree, so the bits of a row are the same with any vector
// width and for any number of rows.
namespace dd2 {
namespace {

constexpr std::int64_t kLanes = 16;
// Codes of one step of the online softmax: their logits stay in the first-level cache.
constexpr std::int64_t kTile = 128;
constexpr std::int64_t kTileVectors = kTile / kLanes;

template <class T>
struct VectorOf;
template <>
struct VectorOf<float> {
  typedef float Type __attribute__((vector_size(kLanes * sizeof(float))));
};
template <>
struct VectorOf<double> {
  typedef double Type __attribute__((vector_size(kLanes * sizeof(double))));
};
template <class T>
using Vector = typename VectorOf<T>::Type;
typedef std::int32_t Int32Vector __attribute__((vector_size(kLanes * sizeof(std::int32_t))));

template <class T>
[[gnu::always_inline]] inline Vector<T> Load(const T* from) {
  Vector<T> value;
  std::memcpy(&value, from, sizeof(value));
  return value;
}

template <class T>
[[gnu::always_inline]] inline T SumLanes(const Vector<T>& vector) {
  T lanes[kLanes];
  std::memcpy(lanes, &vector, sizeof(lanes));
  for (std::int64_t width = kLanes / 2; width > 0; width /= 2) {
    for (std::int64_t i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  }
  return lanes[0];
}

// exp of x <= 0. Below the smallest normal result it is 0; NaN stays NaN. fp32: error < 2 ulp
// (reduction by ln 2 in two parts, then Cephes' polynomial).
[[gnu::always_inline]] inline Vector<float> ExpOfNegative(Vector<float> x) {
  constexpr float kLowest = -87.3F;
  constexpr float kLog2E = 1.44269504088896341F;
  constexpr float kRound = 12582912.0F;  // 1.5 * 2^23: adding it rounds to an integer
  const Vector<float> zero = {};
  const Vector<float> clamped = x < kLowest ? zero + kLowest : x;
  const Vector<float> n = (clamped * kLog2E + kRound) - kRound;
  const Vector<float> r = (clamped - n * 0.693359375F) - n * -2.12194440e-4F;
  Vector<float> p = r * 1.9875691500e-4F + 1.3981999507e-3F;
  p = p * r + 8.3334519073e-3F;
  p = p * r + 4.1665795894e-2F;
  p = p * r + 1.6666665459e-1F;
  p = p * r + 5.0000001201e-1F;
  p = p * (r * r) + r + 1.0F;
  const Int32Vector exponent = (__builtin_convertvector(n, Int32Vector) + 127) << 23;
  Vector<float> power;
  std::memcpy(&power, &exponent, sizeof(power));
  return x < kLowest ? zero : p * power;
}

[[gnu::always_inline]] inline Vector<double> ExpOfNegative(Vector<double> x) {
  Vector<double> result;
  for (std::int64_t i = 0; i < kLanes; ++i) result[i] = std::exp(x[i]);
  return result;
}

// The codebook channel by channel, padded with zeros to whole vectors.
template <class T>
struct ChannelMajor {
  explicit ChannelMajor(const ScoreProblem<T>& problem)
      : padded((problem.codes + kLanes - 1) / kLanes * kLanes),
        values(static_cast<std::size_t>(padded * problem.channels), T{0}) {
    for (std::int64_t j = 0; j < problem.codes; ++j) {
      for (std::int64_t c = 0; c < problem.channels; ++c) {
        values[static_cast<std::size_t>(c * padded + j)] =
            problem.codebook[j * problem.channels + c];
      }
    }
  }
  const T* Channel(std::int64_t channel, std::int64_t first_code) const {
    return values.data() + channel * padded + first_code;
  }
  std::int64_t padded;
  std::vector<T> values;  // [C, padded]
};

// One row: its scaled inputs and the running sums of the online softmax, whose weights are relative
// to exp(maximum). Mean and moment are merged tile by tile about the mean of each tile, so that the
// covariance of a posterior that sits on one code does not cancel.
template <class T>
struct Row {
  explicit Row(std::int64_t channels)
      : y(channels), u(channels), mean(channels), moment(channels), tile_mean(channels) {}

  const T* logp = nullptr;
  T k = 0;           // (1 - t) / t
  std::vector<T> y;  // x / t
  std::vector<T> u;
  T maximum = 0, weight = 0;
  std::vector<T> mean;       // sum_j e_j c_j / weight
  std::vector<T> moment;     // sum_j e_j <c_j - mean, u> (c_j - mean)
  std::vector<T> tile_mean;  // scratch
};

// a_j + const = log p_j - |x / t - (1 - t) / t c_j|^2 / 2: the squared distance, not the expanded
// square, because at small t the logits of the codes that compete are small differences of terms of
// order 1 / t^2. Returns the largest; NaN when one is NaN.
template <class T>
T TileLogits(const Row<T>& row, const ChannelMajor<T>& codes, std::int64_t begin,
             std::int64_t vectors, const T* logp, Vector<T>* logits) {
  Vector<T> highest = Vector<T>{} - std::numeric_limits<T>::infinity();
  auto is_nan = highest != highest;
  const auto channels = static_cast<std::int64_t>(row.y.size());
  for (std::int64_t v = 0; v < vectors; ++v) {
    Vector<T> distance = {};
    for (std::int64_t c = 0; c < channels; ++c) {
      const Vector<T> e = row.y[c] - row.k * Load(codes.Channel(c, begin + v * kLanes));
      distance += e * e;
    }
    const Vector<T> logit = Load(logp + v * kLanes) - T{0.5} * distance;
    logits[v] = logit;
    highest = logit > highest ? logit : highest;
    is_nan |= logit != logit;
  }
  T result = highest[0];
  for (std::int64_t i = 0; i < kLanes; ++i) {
    if (is_nan[i] != 0) return std::numeric_limits<T>::quiet_NaN();
    if (highest[i] > result) result = highest[i];
  }
  return result;
}

// Adds codes [begin, begin + vectors * kLanes) to the sums of the row.
template <class T, bool kWithVjp>
void AddTile(Row<T>& row, const ChannelMajor<T>& codes, std::int64_t begin, std::int64_t vectors,
             const T* logp) {
  Vector<T> e[kTileVectors];
  const T highest = TileLogits(row, codes, begin, vectors, logp, e);
  const auto channels = static_cast<std::int64_t>(row.y.size());
  if (highest == -std::numeric_limits<T>::infinity()) return;  // every code of it is impossible
  if (!(highest <= row.maximum)) {
    const T scale = row.weight == 0 ? T{0} : std::exp(row.maximum - highest);
    row.weight *= scale;
    for (T& value : row.moment) value *= scale;
    row.maximum = highest;
  }
  Vector<T> sum = {};
  for (std::int64_t v = 0; v < vectors; ++v) {
    e[v] = ExpOfNegative(e[v] - row.maximum);
    sum += e[v];
  }
  const T tile_weight = SumLanes<T>(sum);
  if (tile_weight == 0) return;
  for (std::int64_t c = 0; c < channels; ++c) {
    Vector<T> weighted = {};
    for (std::int64_t v = 0; v < vectors; ++v) {
      weighted += e[v] * Load(codes.Channel(c, begin + v * kLanes));
    }
    row.tile_mean[c] = SumLanes<T>(weighted) / tile_weight;
  }
  const T share = tile_weight / (row.weight + tile_weight);
  if constexpr (kWithVjp) {
    for (std::int64_t v = 0; v < vectors; ++v) {
      Vector<T> along = {};
      for (std::int64_t c = 0; c < channels; ++c) {
        along += (Load(codes.Channel(c, begin + v * kLanes)) - row.tile_mean[c]) * row.u[c];
      }
      e[v] *= along;
    }
    T between = 0;  // <tile mean - mean, u>, times the weight that the two means share
    for (std::int64_t c = 0; c < channels; ++c) {
      between += (row.tile_mean[c] - row.mean[c]) * row.u[c];
    }
    between *= row.weight * share;
    for (std::int64_t c = 0; c < channels; ++c) {
      Vector<T> within = {};
      for (std::int64_t v = 0; v < vectors; ++v) {
        within += e[v] * (Load(codes.Channel(c, begin + v * kLanes)) - row.tile_mean[c]);
      }
      row.moment[c] += SumLanes<T>(within) + between * (row.tile_mean[c] - row.mean[c]);
    }
  }
  for (std::int64_t c = 0; c < channels; ++c) {
    row.mean[c] += (row.tile_mean[c] - row.mean[c]) * share;
  }
  row.weight += tile_weight;
}

template <class T, bool kWithVjp>
void AllTiles(const ScoreProblem<T>& problem, const ChannelMajor<T>& codes, Row<T>& row) {
  row.maximum = -std::numeric_limits<T>::infinity();
  row.weight = 0;
  row.mean.assign(row.mean.size(), T{0});
  row.moment.assign(row.moment.size(), T{0});
  const std::int64_t whole = problem.codes / kLanes * kLanes;
  for (std::int64_t begin = 0; begin < whole; begin += kTile) {
    const std::int64_t size = std::min(kTile, whole - begin);
    AddTile<T, kWithVjp>(row, codes, begin, size / kLanes, row.logp + begin);
  }
  if (whole == problem.codes) return;
  T rest[kLanes];
  std::fill_n(rest, kLanes, -std::numeric_limits<T>::infinity());
  std::copy(row.logp + whole, row.logp + problem.codes, rest);
  AddTile<T, kWithVjp>(row, codes, whole, 1, rest);
}

template <class T, bool kWithVjp>
void Run(const ScoreProblem<T>& problem, const T* u, T* mu, T* jtu) {
  DD2_CHECK(problem.codes > 0 && problem.channels > 0 && problem.logp_rows > 0);
  const ChannelMajor<T> codes(problem);
  const std::int64_t channels = problem.channels;
  Row<T> row(channels);
  for (std::int64_t i = 0; i < problem.rows; ++i) {
    const T t = problem.t[i];
    row.logp = problem.logp + (i % problem.logp_rows) * problem.codes;
    row.k = (1 - t) / t;
    for (std::int64_t c = 0; c < channels; ++c) row.y[c] = problem.x[i * channels + c] / t;
    if constexpr (kWithVjp) std::copy_n(u + i * channels, channels, row.u.begin());
    AllTiles<T, kWithVjp>(problem, codes, row);
    // A row without a possible code has no posterior: NaN.
    const T impossible = row.weight == 0 ? std::numeric_limits<T>::quiet_NaN() : T{0};
    for (std::int64_t c = 0; c < channels; ++c) mu[i * channels + c] = row.mean[c] + impossible;
    if constexpr (kWithVjp) {
      for (std::int64_t c = 0; c < channels; ++c) {
        jtu[i * channels + c] = row.k / t * (row.moment[c] / row.weight);
      }
    }
  }
}

}  // namespace

template <class T>
void PosteriorMean(const ScoreProblem<T>& problem, T* mu) {
  Run<T, false>(problem, nullptr, mu, nullptr);
}

template <class T>
void PosteriorMeanAndVjp(const ScoreProblem<T>& problem, const T* u, T* mu, T* jtu) {
  Run<T, true>(problem, u, mu, jtu);
}

template void PosteriorMean<float>(const ScoreProblem<float>&, float*);
template void PosteriorMean<double>(const ScoreProblem<double>&, double*);
template void PosteriorMeanAndVjp<float>(const ScoreProblem<float>&, const float*, float*, float*);
template void PosteriorMeanAndVjp<double>(const ScoreProblem<double>&, const double*, double*,
                                          double*);

}  // namespace dd2
