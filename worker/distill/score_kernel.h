#pragma once

#include <cstdint>

namespace dd2 {

// The teacher's conditional score in closed form (paper Eq. 1; method 1.3, 1.4): attention over the
// codebook. For token row i with x = x_t, time t and log p over the V codes (rows may be
// unnormalised, -inf = impossible):
//   a_j = log p_j + (1-t)/t^2 <x, c_j> - (1-t)^2/(2 t^2) |c_j|^2,   r = softmax(a),   mu = sum_j
//   r_j c_j velocity = (x - mu)/t,   score = -(x - (1-t) mu)/t^2 J^T u = (1-t)/t^2 [ sum_j r_j
//   <c_j, u> c_j - mu <mu, u> ],   J = d mu / d x
// One pass per row: logits are read once (online softmax), nothing V-wide is written. Arithmetic in
// T throughout. Rows are independent: their bits do not depend on N. A row without a possible code,
// or with a NaN, gives NaN.
template <class T>
struct ScoreProblem {
  std::int64_t rows = 0;        // N
  std::int64_t codes = 0;       // V
  std::int64_t channels = 0;    // C
  const T* codebook = nullptr;  // [V, C]
  const T* logp = nullptr;      // [rows of logp, V]; row i uses logp row i % logp_rows
  std::int64_t logp_rows = 0;
  const T* t = nullptr;  // [N], in (0, 1]
  const T* x = nullptr;  // [N, C]
};

// mu [N, C].
template <class T>
void PosteriorMean(const ScoreProblem<T>& problem, T* mu);
// mu [N, C] and jtu = J^T u [N, C] in one pass.
template <class T>
void PosteriorMeanAndVjp(const ScoreProblem<T>& problem, const T* u, T* mu, T* jtu);

}  // namespace dd2
