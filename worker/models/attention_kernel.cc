#include "worker/models/attention_kernel.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "worker/models/simd.h"

namespace dd2 {
namespace {

constexpr std::int64_t kRowsAtOnce = 4;

std::int64_t RoundUp(std::int64_t value) { return (value + kLanes - 1) / kLanes * kLanes; }

// A matrix by strides: element (i, k) at data[i * row + k * column]. For what is broadcast.
struct Strided {
  const float* data = nullptr;
  std::int64_t row = 0;
  std::int64_t column = 0;
};

// Rows of whole vectors.
struct Rows {
  float* data = nullptr;
  std::int64_t stride = 0;
};

// out[first .. first + kRowsAtOnce)[lane .. lane + kLanes) = factor * sum over k in [begin, end) of
// a(i, k) b[k].
[[gnu::always_inline]] inline void Tile(const Strided& a, const Rows& b, const Rows& out,
                                        std::int64_t first, std::int64_t lane, std::int64_t begin,
                                        std::int64_t end, float factor) {
  Lanes sums[kRowsAtOnce];
  const float* from = a.data + first * a.row;
  for (std::int64_t k = begin; k < end; ++k) {
    const Lanes vector = LoadLanes(b.data + k * b.stride + lane, kLanes);
    for (std::int64_t i = 0; i < kRowsAtOnce; ++i) {
      sums[i] = sums[i] + vector * from[i * a.row + k * a.column];
    }
  }
  for (std::int64_t i = 0; i < kRowsAtOnce; ++i) {
    StoreLanes(sums[i] * factor, out.data + (first + i) * out.stride + lane);
  }
}

// What one head of one sequence needs: rows padded to kRowsAtOnce, widths to whole vectors, zeros
// in the padding.
class Head {
 public:
  explicit Head(const AttentionShape& shape)
      : tokens(shape.tokens),
        rows((shape.tokens + kRowsAtOnce - 1) / kRowsAtOnce * kRowsAtOnce),
        width(RoundUp(shape.head_width)),
        columns(RoundUp(rows)),
        scale(1.0F / std::sqrt(static_cast<float>(shape.head_width))),
        storage_(
            static_cast<std::size_t>(7 * rows * width + 2 * width * columns + 2 * rows * columns)) {
    float* next = storage_.data();
    const auto take = [&next](std::int64_t height, std::int64_t stride) {
      const Rows taken{next, stride};
      next += height * stride;
      return taken;
    };
    for (Rows* matrix : {&q, &k, &v, &mixed, &dq, &dk, &dv}) *matrix = take(rows, width);
    for (Rows* matrix : {&k_transposed, &v_transposed}) *matrix = take(width, columns);
    for (Rows* matrix : {&weights, &d_weights}) *matrix = take(rows, columns);
  }

  const std::int64_t tokens, rows, width, columns;
  const float scale;
  Rows q, k, v;
  Rows mixed;  // forward: the result; backward: its gradient
  Rows dq, dk, dv;
  Rows k_transposed, v_transposed;  // [width, columns]
  Rows weights, d_weights;          // [rows, columns]

 private:
  std::vector<float> storage_;
};

// One of q, k, v out of the product's rows, with its bias.
[[gnu::always_inline]] inline void Take(const Head& head, std::int64_t head_width,
                                        std::int64_t stride, const float* from, const float* bias,
                                        const Rows& to) {
  for (std::int64_t i = 0; i < head.tokens; ++i) {
    float* row = to.data + i * to.stride;
    const float* in = from + i * stride;
#pragma GCC ivdep
    for (std::int64_t c = 0; c < head_width; ++c) row[c] = in[c] + bias[c];
  }
}

[[gnu::always_inline]] inline void Put(const Head& head, std::int64_t head_width,
                                       std::int64_t stride, const Rows& from, float* to) {
  for (std::int64_t i = 0; i < head.tokens; ++i) {
    const float* row = from.data + i * from.stride;
    std::copy_n(row, head_width, to + i * stride);
  }
}

[[gnu::always_inline]] inline void Transpose(const Head& head, const Rows& from, const Rows& to) {
  for (std::int64_t c = 0; c < head.width; ++c) {
    for (std::int64_t i = 0; i < head.tokens; ++i) {
      to.data[c * to.stride + i] = from.data[i * from.stride + c];
    }
  }
}

// out(i, j) = factor <a_i, b_j> for j <= i (and some columns beyond, up to the next whole vector).
[[gnu::always_inline]] inline void LowerProducts(const Head& head, const Rows& a,
                                                 const Rows& b_transposed, const Rows& out,
                                                 float factor) {
  for (std::int64_t first = 0; first < head.rows; first += kRowsAtOnce) {
    const Strided left{a.data, a.stride, 1};
    for (std::int64_t lane = 0; lane < first + kRowsAtOnce; lane += kLanes) {
      Tile(left, b_transposed, out, first, lane, 0, head.width, factor);
    }
  }
}

// out_i = factor sum_{j <= i} weights(i, j) values_j; weights are zero above the diagonal.
[[gnu::always_inline]] inline void LowerTimes(const Head& head, const Rows& weights,
                                              const Rows& values, const Rows& out, float factor) {
  const Strided left{weights.data, weights.stride, 1};
  for (std::int64_t first = 0; first < head.rows; first += kRowsAtOnce) {
    for (std::int64_t lane = 0; lane < head.width; lane += kLanes) {
      Tile(left, values, out, first, lane, 0, first + kRowsAtOnce, factor);
    }
  }
}

// out_j = factor sum_{i >= j} weights(i, j) values_i.
[[gnu::always_inline]] inline void UpperTimes(const Head& head, const Rows& weights,
                                              const Rows& values, const Rows& out, float factor) {
  const Strided left{weights.data, 1, weights.stride};
  for (std::int64_t first = 0; first < head.rows; first += kRowsAtOnce) {
    for (std::int64_t lane = 0; lane < head.width; lane += kLanes) {
      Tile(left, values, out, first, lane, first, head.rows, factor);
    }
  }
}

// Row by row over the first i + 1 columns; what lies beyond becomes zero. In whole vectors: the
// columns up to the next one take part with a value that changes nothing.
[[gnu::always_inline]] inline void CausalSoftmax(const Head& head, const Rows& scores) {
  for (std::int64_t i = 0; i < head.rows; ++i) {
    float* row = scores.data + i * scores.stride;
    const std::int64_t count = std::min(i + 1, head.tokens), padded = RoundUp(count);
    for (std::int64_t j = count; j < padded; ++j) row[j] = row[0];
    Lanes highest = LoadLanes(row, kLanes);
    for (std::int64_t j = kLanes; j < padded; j += kLanes) {
      highest = Larger(LoadLanes(row + j, kLanes), highest);
    }
    const float maximum = MaxOfLanes(highest);
    for (std::int64_t j = 0; j < padded; j += kLanes) {
      for (std::int64_t lane = 0; lane < kLanes; ++lane) {
        row[j + lane] = ExpClamped(row[j + lane] - maximum);
      }
    }
    for (std::int64_t j = count; j < scores.stride; ++j) row[j] = 0;
    Lanes total;
    for (std::int64_t j = 0; j < padded; j += kLanes) total = total + LoadLanes(row + j, kLanes);
    const float inverse = 1.0F / SumLanes(total);
    for (std::int64_t j = 0; j < padded; j += kLanes) {
      StoreLanes(LoadLanes(row + j, kLanes) * inverse, row + j);
    }
  }
}

// d_scores = weights (d_weights - sum_j weights d_weights), over d_weights.
[[gnu::always_inline]] inline void SoftmaxBackward(const Head& head) {
  for (std::int64_t i = 0; i < head.rows; ++i) {
    const float* weights = head.weights.data + i * head.weights.stride;
    float* gradient = head.d_weights.data + i * head.d_weights.stride;
    const std::int64_t count = std::min(i + 1, head.tokens), padded = RoundUp(count);
    // Weights beyond the diagonal are zero, whatever the gradient there.
    Lanes products;
    for (std::int64_t j = 0; j < padded; j += kLanes) {
      products = products + LoadLanes(weights + j, kLanes) * LoadLanes(gradient + j, kLanes);
    }
    const float along = SumLanes(products);
    for (std::int64_t j = 0; j < padded; j += kLanes) {
      StoreLanes(LoadLanes(weights + j, kLanes) * (LoadLanes(gradient + j, kLanes) - along),
                 gradient + j);
    }
    for (std::int64_t j = padded; j < head.d_weights.stride; ++j) gradient[j] = 0;
  }
}

// Loads q, k and v of a head and computes its attention weights.
[[gnu::always_inline]] inline void Weights(const AttentionShape& shape, const Head& head,
                                           const float* qkv, const float* bias) {
  const std::int64_t d = shape.heads * shape.head_width;
  Take(head, shape.head_width, 3 * d, qkv, bias, head.q);
  Take(head, shape.head_width, 3 * d, qkv + d, bias + d, head.k);
  Take(head, shape.head_width, 3 * d, qkv + 2 * d, bias + 2 * d, head.v);
  Transpose(head, head.k, head.k_transposed);
  LowerProducts(head, head.q, head.k_transposed, head.weights, head.scale);
  CausalSoftmax(head, head.weights);
}

}  // namespace

DD2_SIMD_CLONES
void CausalAttention(const AttentionShape& shape, const float* qkv, const float* bias,
                     float* mixed) {
  const Head head(shape);
  const std::int64_t d = shape.heads * shape.head_width;
  for (std::int64_t b = 0; b < shape.batch; ++b) {
    for (std::int64_t h = 0; h < shape.heads; ++h) {
      const std::int64_t row = b * shape.tokens, column = h * shape.head_width;
      Weights(shape, head, qkv + row * 3 * d + column, bias + column);
      LowerTimes(head, head.weights, head.v, head.mixed, 1.0F);
      Put(head, shape.head_width, d, head.mixed, mixed + row * d + column);
    }
  }
}

DD2_SIMD_CLONES
void CausalAttentionBackward(const AttentionShape& shape, const float* qkv, const float* bias,
                             const float* d_mixed, float* d_qkv) {
  const Head head(shape);
  const std::int64_t d = shape.heads * shape.head_width;
  const std::vector<float> no_bias(static_cast<std::size_t>(shape.head_width));
  for (std::int64_t b = 0; b < shape.batch; ++b) {
    for (std::int64_t h = 0; h < shape.heads; ++h) {
      const std::int64_t row = b * shape.tokens, column = h * shape.head_width;
      Weights(shape, head, qkv + row * 3 * d + column, bias + column);
      Take(head, shape.head_width, d, d_mixed + row * d + column, no_bias.data(), head.mixed);
      Transpose(head, head.v, head.v_transposed);
      LowerProducts(head, head.mixed, head.v_transposed, head.d_weights, 1.0F);
      UpperTimes(head, head.weights, head.mixed, head.dv, 1.0F);
      SoftmaxBackward(head);
      LowerTimes(head, head.d_weights, head.k, head.dq, head.scale);
      UpperTimes(head, head.d_weights, head.q, head.dk, head.scale);
      float* out = d_qkv + row * 3 * d + column;
      Put(head, shape.head_width, 3 * d, head.dq, out);
      Put(head, shape.head_width, 3 * d, head.dk, out + d);
      Put(head, shape.head_width, 3 * d, head.dv, out + 2 * d);
    }
  }
}

}  // namespace dd2
