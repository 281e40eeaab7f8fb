#include "worker/distill/score_kernel.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <span>
#include <type_traits>
#include <vector>

#include "common/check.h"
#include "worker/models/simd.h"

// The raw form of the score. Compiled without contraction; every sum runs over kLanes interleaved
// partial sums that are added in a fixed tree, so the bits of a row are the same with any vector
// width and for any number of rows. What is compiled once per instruction set is ScoreRows below;
// all else is part of it. Rows go through the codebook together, a tile of codes at a time: the
// tile then comes from the first-level cache for all but the first of them. Of many codes, those
// that a filter has removed are left out.
namespace dd2 {
namespace {

// A lambda takes the attribute in this form only.
#define DD2_INLINE __attribute__((always_inline))

// Codes of one step of the online softmax.
constexpr std::int64_t kTile = 128;
constexpr std::int64_t kTileVectors = kTile / kLanes;
// Vectors whose sums grow side by side: as many as AVX2 has registers for.
constexpr std::int64_t kAbreast = 4;
constexpr std::int64_t kRowsTogether = 16;
// With so many codes, of which a filter has left at most this share in percent, the others are left
// out. (Below, or above, that costs as much as it saves.)
constexpr std::int64_t kFilteredCodes = 512;
constexpr std::int64_t kFilteredShare = 60;

// kLanes numbers as two vectors, as in simd.h, of either type.
template <class T>
struct HalfOf;
template <>
struct HalfOf<float> {
  typedef float Type __attribute__((vector_size(kLanes / 2 * sizeof(float))));
};
template <>
struct HalfOf<double> {
  typedef double Type __attribute__((vector_size(kLanes / 2 * sizeof(double))));
};
template <class T>
using Half = typename HalfOf<T>::Type;
template <class T>
struct QuarterOf;
template <>
struct QuarterOf<float> {
  typedef float Type __attribute__((vector_size(kLanes / 4 * sizeof(float))));
};
template <>
struct QuarterOf<double> {
  typedef double Type __attribute__((vector_size(kLanes / 4 * sizeof(double))));
};
typedef std::int32_t Int32Half __attribute__((vector_size(kLanes / 2 * sizeof(std::int32_t))));

template <class T>
struct Vector {
  Half<T> low = {}, high = {};

  [[gnu::always_inline]] friend inline Vector operator+(const Vector& a, const Vector& b) {
    return {a.low + b.low, a.high + b.high};
  }
  [[gnu::always_inline]] friend inline Vector operator-(const Vector& a, const Vector& b) {
    return {a.low - b.low, a.high - b.high};
  }
  [[gnu::always_inline]] friend inline Vector operator*(const Vector& a, const Vector& b) {
    return {a.low * b.low, a.high * b.high};
  }
  [[gnu::always_inline]] friend inline Vector operator-(const Vector& a, T b) {
    return {a.low - b, a.high - b};
  }
  [[gnu::always_inline]] friend inline Vector operator-(T a, const Vector& b) {
    return {a - b.low, a - b.high};
  }
  [[gnu::always_inline]] friend inline Vector operator*(T a, const Vector& b) {
    return {a * b.low, a * b.high};
  }
};

template <class T>
[[gnu::always_inline]] inline Vector<T> Load(const T* from) {
  Vector<T> value;
  std::memcpy(&value.low, from, sizeof(value.low));
  std::memcpy(&value.high, from + kLanes / 2, sizeof(value.high));
  return value;
}

// The lanes of `vectors` are added in the tree 8, 4, 2, 1, four vectors side by side.
template <class T>
[[gnu::always_inline]] inline void SumLanesOfFour(const Vector<T>* vectors, T* sums) {
  Half<T> e[4];
  for (int i = 0; i < 4; ++i) e[i] = vectors[i].low + vectors[i].high;
  // Lanes 0 to 3 of two vectors, plus lanes 4 to 7 of them.
  const Half<T> ab = __builtin_shufflevector(e[0], e[1], 0, 1, 2, 3, 8, 9, 10, 11) +
                     __builtin_shufflevector(e[0], e[1], 4, 5, 6, 7, 12, 13, 14, 15);
  const Half<T> cd = __builtin_shufflevector(e[2], e[3], 0, 1, 2, 3, 8, 9, 10, 11) +
                     __builtin_shufflevector(e[2], e[3], 4, 5, 6, 7, 12, 13, 14, 15);
  const Half<T> two = __builtin_shufflevector(ab, cd, 0, 1, 4, 5, 8, 9, 12, 13) +
                      __builtin_shufflevector(ab, cd, 2, 3, 6, 7, 10, 11, 14, 15);
  for (int i = 0; i < 4; ++i) sums[i] = two[2 * i] + two[2 * i + 1];
}

template <class T>
[[gnu::always_inline]] inline T SumLanes(const Vector<T>& vector) {
  const Vector<T> four[4] = {vector, {}, {}, {}};
  T sums[4];
  SumLanesOfFour(four, sums);
  return sums[0];
}

// exp of x <= 0. Below the smallest normal result it is 0; NaN stays NaN. fp32: error < 2 ulp
// (reduction by ln 2 in two parts, then Cephes' polynomial).
constexpr float kLowest = -87.3F;
[[gnu::always_inline]] inline Half<float> ExpOfNegative(Half<float> x) {
  constexpr float kLog2E = 1.44269504088896341F;
  constexpr float kRound = 12582912.0F;  // 1.5 * 2^23: adding it rounds to an integer
  const Half<float> zero = {};
  const Half<float> clamped = x < kLowest ? zero + kLowest : x;
  const Half<float> n = (clamped * kLog2E + kRound) - kRound;
  const Half<float> r = (clamped - n * 0.693359375F) - n * -2.12194440e-4F;
  Half<float> p = r * 1.9875691500e-4F + 1.3981999507e-3F;
  p = p * r + 8.3334519073e-3F;
  p = p * r + 4.1665795894e-2F;
  p = p * r + 1.6666665459e-1F;
  p = p * r + 5.0000001201e-1F;
  p = p * (r * r) + r + 1.0F;
  const Int32Half exponent = (__builtin_convertvector(n, Int32Half) + 127) << 23;
  Half<float> power;
  std::memcpy(&power, &exponent, sizeof(power));
  return x < kLowest ? zero : p * power;
}

[[gnu::always_inline]] inline Half<double> ExpOfNegative(Half<double> x) {
  Half<double> result;
  for (std::int64_t i = 0; i < kLanes / 2; ++i) result[i] = std::exp(x[i]);
  return result;
}

template <class T>
[[gnu::always_inline]] inline Vector<T> ExpOfNegative(const Vector<T>& x) {
  return {ExpOfNegative(x.low), ExpOfNegative(x.high)};
}

// Four rows of four channels each of eight codes, `codes` [8] of rows of `from`, to four rows of
// eight.
template <class T>
[[gnu::always_inline]] inline void Transpose(const T* from, std::int64_t stride,
                                             const std::int64_t* codes, T* to) {
  typedef typename QuarterOf<T>::Type Quarter;
  Half<T> h[4];  // codes i and i + 4
  for (int i = 0; i < 4; ++i) {
    Quarter low, high;
    std::memcpy(&low, from + codes[i] * stride, sizeof(low));
    std::memcpy(&high, from + codes[i + 4] * stride, sizeof(high));
    h[i] = __builtin_shufflevector(low, high, 0, 1, 2, 3, 4, 5, 6, 7);
  }
  const Half<T> a = __builtin_shufflevector(h[0], h[1], 0, 8, 1, 9, 4, 12, 5, 13);
  const Half<T> b = __builtin_shufflevector(h[2], h[3], 0, 8, 1, 9, 4, 12, 5, 13);
  const Half<T> c = __builtin_shufflevector(h[0], h[1], 2, 10, 3, 11, 6, 14, 7, 15);
  const Half<T> d = __builtin_shufflevector(h[2], h[3], 2, 10, 3, 11, 6, 14, 7, 15);
  const Half<T> channels[4] = {__builtin_shufflevector(a, b, 0, 1, 8, 9, 4, 5, 12, 13),
                               __builtin_shufflevector(a, b, 2, 3, 10, 11, 6, 7, 14, 15),
                               __builtin_shufflevector(c, d, 0, 1, 8, 9, 4, 5, 12, 13),
                               __builtin_shufflevector(c, d, 2, 3, 10, 11, 6, 7, 14, 15)};
  for (int i = 0; i < 4; ++i) std::memcpy(to + i * kTile, &channels[i], sizeof(channels[i]));
}

// The codes that a filter has left of a row of logits, as tiles of their own.
template <class T>
class KeptCodes {
 public:
  explicit KeptCodes(const ScoreProblem<T>& problem)
      : problem_(problem), channels_((problem.channels + 3) / 4 * 4), tile_(channels_ * kTile) {
    if (problem.codes < kFilteredCodes) return;
    codebook_.resize(problem.codes * channels_);
    for (std::int64_t j = 0; j < problem.codes; ++j) {
      std::copy_n(problem.codebook + j * problem.channels, problem.channels,
                  codebook_.data() + j * channels_);
    }
  }
  // Looks at a row of logits. False: too few are removed for this to be the faster way.
  bool Find(const T* logp) {
    codes_.clear();
    if (problem_.codes < kFilteredCodes) return false;
    codes_.resize(problem_.codes + kLanes);
    std::int64_t count = 0;
    for (std::int64_t j = 0; j < problem_.codes; ++j) {
      codes_[count] = j;
      count += logp[j] == -std::numeric_limits<T>::infinity() ? 0 : 1;
    }
    count_ = count;
    logp_ = logp;
    std::fill_n(codes_.begin() + count, kLanes, 0);  // up to whole vectors: their logits say no
    return count <= problem_.codes * kFilteredShare / 100;
  }
  std::int64_t count() const { return count_; }
  // Makes the tile of the kept codes [begin, begin + kTile); how many vectors it has.
  [[gnu::always_inline]] inline std::int64_t Make(std::int64_t begin) {
    const std::int64_t size = std::min(kTile, count_ - begin);
    const std::int64_t vectors = (size + kLanes - 1) / kLanes;
    std::fill_n(logits_, kTile, -std::numeric_limits<T>::infinity());
    const std::int64_t* codes = codes_.data() + begin;
    for (std::int64_t i = 0; i < size; ++i) logits_[i] = logp_[codes[i]];
    for (std::int64_t i = 0; i < vectors * kLanes; i += 8) {
      for (std::int64_t c = 0; c < channels_; c += 4) {
        Transpose(codebook_.data() + c, channels_, codes + i, tile_.data() + c * kTile + i);
      }
    }
    return vectors;
  }
  const T* tile() const { return tile_.data(); }
  const T* logits() const { return logits_; }

 private:
  const ScoreProblem<T>& problem_;
  const std::int64_t channels_;  // padded
  std::vector<T> codebook_;      // [V, channels_]
  std::vector<T> tile_;
  T logits_[kTile];
  std::vector<std::int64_t> codes_;
  std::int64_t count_ = 0;
  const T* logp_ = nullptr;
};

// The codebook in tiles, each channel by channel, and zeros as channels up to a multiple of four. A
// rest of less than kLanes codes is a tile of its own, one vector, padded with zeros.
template <class T>
struct Tiles {
  explicit Tiles(const ScoreProblem<T>& problem)
      : whole(problem.codes / kLanes * kLanes), channels((problem.channels + 3) / 4 * 4) {
    const std::int64_t tiles = (whole + kTile - 1) / kTile + 1;
    values.resize(static_cast<std::size_t>(tiles * channels * kTile));
    for (std::int64_t j = 0; j < problem.codes; ++j) {
      T* to = j < whole ? Tile(j / kTile) + j % kTile : Tile(tiles - 1) + (j - whole);
      for (std::int64_t c = 0; c < problem.channels; ++c) {
        to[c * kTile] = problem.codebook[j * problem.channels + c];
      }
    }
  }
  T* Tile(std::int64_t number) { return values.data() + number * channels * kTile; }
  const std::int64_t whole;     // codes in whole vectors
  const std::int64_t channels;  // padded
  std::vector<T> values;        // [tiles, C, kTile]
};

// One row: its scaled inputs and the running sums of the online softmax, whose weights are relative
// to exp(maximum). Mean and moment are merged tile by tile about the mean of each tile, so that the
// covariance of a posterior that sits on one code does not cancel. Padded as the tiles are.
template <class T>
struct Row {
  explicit Row(std::int64_t padded)
      : y(padded), u(padded), mean(padded), moment(padded), tile_mean(padded), within(padded) {}

  std::int64_t number = 0;
  const T* logp = nullptr;
  T t = 1, k = 0;    // k = (1 - t) / t
  std::vector<T> y;  // x / t
  std::vector<T> u;
  T maximum = 0, weight = 0;
  std::vector<T> mean;               // sum_j e_j c_j / weight
  std::vector<T> moment;             // sum_j e_j <c_j - mean, u> (c_j - mean)
  std::vector<T> tile_mean, within;  // scratch
};

// a_j + const = log p_j - |x / t - (1 - t) / t c_j|^2 / 2: the squared distance, not the expanded
// square, because at small t the logits of the codes that compete are small differences of terms of
// order 1 / t^2. Returns the largest; NaN when one is NaN.
template <class T>
[[gnu::always_inline]] inline T TileLogits(const Row<T>& row, const T* tile, std::int64_t channels,
                                           std::int64_t vectors, const T* logp, Vector<T>* logits) {
  constexpr T kMost = std::numeric_limits<T>::infinity();
  Half<T> highest = Half<T>{} - kMost;
  auto is_nan = highest != highest;
  const T* y = row.y.data();
  const T k = row.k;
  const auto some = [&]<std::int64_t kCount>(std::integral_constant<std::int64_t, kCount>,
                                             std::int64_t v) DD2_INLINE {
    Vector<T> distance[kCount];
    for (std::int64_t c = 0; c < channels; ++c) {
#pragma GCC unroll 8
      for (std::int64_t i = 0; i < kCount; ++i) {
        const Vector<T> e = y[c] - k * Load(tile + c * kTile + (v + i) * kLanes);
        distance[i] = distance[i] + e * e;
      }
    }
#pragma GCC unroll 8
    for (std::int64_t i = 0; i < kCount; ++i) {
      const Vector<T> logit = Load(logp + (v + i) * kLanes) - T{0.5} * distance[i];
      logits[v + i] = logit;
      for (const Half<T>& half : {logit.low, logit.high}) {
        highest = half > highest ? half : highest;
        is_nan |= half != half;
      }
    }
  };
  std::int64_t done = 0;
  for (; done + kAbreast <= vectors; done += kAbreast) {
    some(std::integral_constant<std::int64_t, kAbreast>(), done);
  }
  for (; done < vectors; ++done) some(std::integral_constant<std::int64_t, 1>(), done);
  T result = highest[0];
  for (std::int64_t i = 0; i < kLanes / 2; ++i) {
    if (is_nan[i] != 0) return std::numeric_limits<T>::quiet_NaN();
    if (highest[i] > result) result = highest[i];
  }
  return result;
}

// sums[c] = sum over the codes of the tile of function(c, v): four channels at a time.
template <class T, class Function>
[[gnu::always_inline]] inline void SumsOfChannels(std::int64_t channels, std::int64_t vectors,
                                                  T* sums, Function function) {
  for (std::int64_t c = 0; c < channels; c += 4) {
    Vector<T> four[4];
    for (std::int64_t v = 0; v < vectors; ++v) {
#pragma GCC unroll 4
      for (std::int64_t i = 0; i < 4; ++i) four[i] = four[i] + function(c + i, v);
    }
    SumLanesOfFour(four, sums + c);
  }
}

// Adds the codes of a tile, `vectors` * kLanes of them, to the sums of the row.
template <class T, bool kWithVjp>
[[gnu::always_inline]] inline void AddTile(Row<T>& row, const T* tile, std::int64_t channels,
                                           std::int64_t vectors, const T* logp) {
  Vector<T> e[kTileVectors];
  const T highest = TileLogits(row, tile, channels, vectors, logp, e);
  if (highest == -std::numeric_limits<T>::infinity()) return;  // every code of it is impossible
  if (!(highest <= row.maximum)) {
    const T scale = row.weight == 0 ? T{0} : std::exp(row.maximum - highest);
    row.weight *= scale;
    for (T& value : row.moment) value *= scale;
    row.maximum = highest;
  }
  Vector<T> sum;
  for (std::int64_t v = 0; v < vectors; ++v) {
    e[v] = ExpOfNegative(e[v] - row.maximum);
    sum = sum + e[v];
  }
  const T tile_weight = SumLanes(sum);
  if (tile_weight == 0) return;
  const auto code = [tile](std::int64_t c, std::int64_t v)
                        DD2_INLINE { return Load(tile + c * kTile + v * kLanes); };
  T* tile_mean = row.tile_mean.data();
  T* mean = row.mean.data();
  SumsOfChannels<T>(channels, vectors, tile_mean,
                    [&](std::int64_t c, std::int64_t v) DD2_INLINE { return e[v] * code(c, v); });
  for (std::int64_t c = 0; c < channels; ++c) tile_mean[c] /= tile_weight;
  const T share = tile_weight / (row.weight + tile_weight);
  if constexpr (kWithVjp) {
    const T* u = row.u.data();
    for (std::int64_t v = 0; v < vectors; v += kAbreast) {
      Vector<T> along[kAbreast];
      for (std::int64_t c = 0; c < channels; ++c) {
#pragma GCC unroll 8
        for (std::int64_t i = 0; i < kAbreast; ++i) {
          along[i] = along[i] + u[c] * (code(c, v + i) - tile_mean[c]);
        }
      }
#pragma GCC unroll 8
      for (std::int64_t i = 0; i < kAbreast; ++i) e[v + i] = e[v + i] * along[i];
    }
    T between = 0;  // <tile mean - mean, u>, times the weight that the two means share
    for (std::int64_t c = 0; c < channels; ++c) between += (tile_mean[c] - mean[c]) * u[c];
    between *= row.weight * share;
    T* within = row.within.data();
    SumsOfChannels<T>(channels, vectors, within, [&](std::int64_t c, std::int64_t v) DD2_INLINE {
      return e[v] * (code(c, v) - tile_mean[c]);
    });
    for (std::int64_t c = 0; c < channels; ++c) {
      row.moment[c] += within[c] + between * (tile_mean[c] - mean[c]);
    }
  }
  for (std::int64_t c = 0; c < channels; ++c) mean[c] += (tile_mean[c] - mean[c]) * share;
  row.weight += tile_weight;
}

template <class T, bool kWithVjp>
[[gnu::always_inline]] inline void AllTiles(const ScoreProblem<T>& problem, Tiles<T>& codes,
                                            Row<T>* rows, std::int64_t count) {
  std::int64_t number = 0;
  for (std::int64_t begin = 0; begin < codes.whole; begin += kTile) {
    const std::int64_t vectors = std::min(kTile, codes.whole - begin) / kLanes;
    const T* tile = codes.Tile(number++);
    for (std::int64_t i = 0; i < count; ++i) {
      AddTile<T, kWithVjp>(rows[i], tile, codes.channels, vectors, rows[i].logp + begin);
    }
  }
  if (codes.whole == problem.codes) return;
  for (std::int64_t i = 0; i < count; ++i) {
    T rest[kLanes];
    std::fill_n(rest, kLanes, -std::numeric_limits<T>::infinity());
    std::copy(rows[i].logp + codes.whole, rows[i].logp + problem.codes, rest);
    AddTile<T, kWithVjp>(rows[i], codes.Tile(number), codes.channels, 1, rest);
  }
}

template <class T, bool kWithVjp>
[[gnu::always_inline]] inline void KeptTiles(KeptCodes<T>& kept, std::int64_t channels,
                                             Row<T>* rows, std::int64_t count) {
  for (std::int64_t begin = 0; begin < kept.count(); begin += kTile) {
    const std::int64_t vectors = kept.Make(begin);
    for (std::int64_t i = 0; i < count; ++i) {
      AddTile<T, kWithVjp>(rows[i], kept.tile(), channels, vectors, kept.logits());
    }
  }
}

template <class T>
void Begin(const ScoreProblem<T>& problem, const T* u, std::int64_t number, Row<T>& row) {
  const std::int64_t channels = problem.channels;
  row.number = number;
  row.logp = problem.logp + number % problem.logp_rows * problem.codes;
  row.t = problem.t[number];
  row.k = (1 - row.t) / row.t;
  for (std::int64_t c = 0; c < channels; ++c) row.y[c] = problem.x[number * channels + c] / row.t;
  if (u != nullptr) std::copy_n(u + number * channels, channels, row.u.begin());
  row.maximum = -std::numeric_limits<T>::infinity();
  row.weight = 0;
  row.mean.assign(row.mean.size(), T{0});
  row.moment.assign(row.moment.size(), T{0});
}

template <class T>
void Finish(const Row<T>& row, std::int64_t channels, T* mu, T* jtu) {
  // A row without a possible code has no posterior: NaN.
  const T impossible = row.weight == 0 ? std::numeric_limits<T>::quiet_NaN() : T{0};
  const std::int64_t at = row.number * channels;
  for (std::int64_t c = 0; c < channels; ++c) mu[at + c] = row.mean[c] + impossible;
  if (jtu == nullptr) return;
  for (std::int64_t c = 0; c < channels; ++c) {
    jtu[at + c] = row.k / row.t * (row.moment[c] / row.weight);
  }
}

// Rows that share logits are computed together.
template <class T, bool kWithVjp>
[[gnu::always_inline]] inline void Run(const ScoreProblem<T>& problem, const T* u, T* mu, T* jtu) {
  DD2_CHECK(problem.codes > 0 && problem.channels > 0 && problem.logp_rows > 0);
  Tiles<T> codes(problem);
  std::vector<Row<T>> rows(kRowsTogether, Row<T>(codes.channels));
  KeptCodes<T> kept(problem);
  const std::int64_t logp_rows = std::min(problem.logp_rows, problem.rows);
  std::vector<std::int64_t> numbers, whole;
  // One row of logits after the other, if a filter has left few codes, and behind them all others.
  for (std::int64_t first = 0; first <= logp_rows; ++first) {
    numbers.clear();
    for (std::int64_t i = first; first < logp_rows && i < problem.rows; i += problem.logp_rows) {
      numbers.push_back(i);
    }
    const bool filtered = first < logp_rows && kept.Find(problem.logp + first * problem.codes);
    if (!filtered) whole.insert(whole.end(), numbers.begin(), numbers.end());
    if (!filtered && first < logp_rows) continue;
    std::span<const std::int64_t> left = filtered ? numbers : whole;
    while (!left.empty()) {
      const auto count = std::min<std::int64_t>(kRowsTogether, left.size());
      for (std::int64_t i = 0; i < count; ++i) Begin(problem, u, left[i], rows[i]);
      if (filtered) {
        KeptTiles<T, kWithVjp>(kept, codes.channels, rows.data(), count);
      } else {
        AllTiles<T, kWithVjp>(problem, codes, rows.data(), count);
      }
      for (std::int64_t i = 0; i < count; ++i) Finish(rows[i], problem.channels, mu, jtu);
      left = left.subspan(count);
    }
  }
}

}  // namespace

// Not in the header: the forms of a function for each instruction set need a name outside this
// file.
void ScoreRows(const ScoreProblem<float>& problem, const float* u, float* mu, float* jtu);

DD2_SIMD_CLONES
void ScoreRows(const ScoreProblem<float>& problem, const float* u, float* mu, float* jtu) {
  if (u == nullptr) {
    Run<float, false>(problem, nullptr, mu, nullptr);
  } else {
    Run<float, true>(problem, u, mu, jtu);
  }
}

template <>
void PosteriorMean<float>(const ScoreProblem<float>& problem, float* mu) {
  ScoreRows(problem, nullptr, mu, nullptr);
}
template <>
void PosteriorMeanAndVjp<float>(const ScoreProblem<float>& problem, const float* u, float* mu,
                                float* jtu) {
  ScoreRows(problem, u, mu, jtu);
}
template <>
void PosteriorMean<double>(const ScoreProblem<double>& problem, double* mu) {
  Run<double, false>(problem, nullptr, mu, nullptr);
}
template <>
void PosteriorMeanAndVjp<double>(const ScoreProblem<double>& problem, const double* u, double* mu,
                                 double* jtu) {
  Run<double, true>(problem, u, mu, jtu);
}

}  // namespace dd2
