#include <cstdint>

#include "worker/kernels/kernels.h"
#include "worker/kernels/launch.cuh"
#include "worker/kernels/numbers.cuh"

// A lane owns one (row, draw): it walks over the codes with an online softmax and keeps its sums in
// registers. The 32 lanes of a block are draws of the same few logits rows; its four warps have the
// same 32 lanes and a quarter of every tile of codes each, and are merged in the end, in order.
// Codes and logits of a tile go through shared memory: every logit is read from memory once for up
// to 32 draws, every code once for 32 lanes. So nothing of a lane depends on another lane.
namespace dd2 {
namespace {

constexpr int kLanes = 32;
constexpr int kWarps = 4;
constexpr int kThreads = kLanes * kWarps;
constexpr int kChunk = 8;  // codes whose weights are in registers at a time
// A weight below exp(-40) of the largest one so far is nothing in fp32, also times 16384 codes.
constexpr float kNegligible = 40.0F;

// kC: channels, padded with zeros.
template <int kC>
struct Shape {
  static constexpr int kTile = kC > 32 ? 64 : 128;  // codes
  static constexpr int kLogitStride = kTile + 1;    // lanes of different rows: different banks
  static constexpr int kMerged = 4 + 2 * kC;        // floats of a lane
  static constexpr int kTileFloats = kTile * kC + kLanes * kLogitStride;
  static constexpr int kFloats = kTileFloats > kMerged* kLanes ? kTileFloats : kMerged* kLanes;
};

struct alignas(16) Four {
  float v[4];
};

// Reads shared memory each time it is asked. The compiler would keep the codes of a chunk from one
// use to the next, and they are more than there are registers.
__device__ inline Four ReadShared(const float* from) {
#ifdef __CUDA_ARCH__
  Four four;
  asm volatile("ld.volatile.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(four.v[0]), "=f"(four.v[1]), "=f"(four.v[2]), "=f"(four.v[3])
               : "r"(static_cast<unsigned>(__cvta_generic_to_shared(from)))
               : "memory");
  return four;
#else
  return *reinterpret_cast<const Four*>(from);
#endif
}

template <int kC>
__device__ inline float Dot(const float* code, const float (&u)[kC]) {
  float sum = 0;
#pragma unroll
  for (int c = 0; c < kC; c += 4) {
    const Four four = ReadShared(code + c);
#pragma unroll
    for (int i = 0; i < 4; ++i) sum = fmaf(four.v[i], u[c + i], sum);
  }
  return sum;
}

// |y - k code|^2: not the expanded square, see worker/distill/score_kernel.cc.
template <int kC>
__device__ inline float Distance(const float* code, float k, const float (&y)[kC]) {
  float sum = 0;
#pragma unroll
  for (int c = 0; c < kC; c += 4) {
    const Four four = ReadShared(code + c);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float e = fmaf(-k, four.v[i], y[c + i]);
      sum = fmaf(e, e, sum);
    }
  }
  return sum;
}

// Sums over codes of weights e_j = exp(a_j - maximum). `along` and `moment` are about `origin`, the
// projection on u of the likeliest code so far: what a posterior that sits on that code adds to
// them is exactly nothing, so the covariance does not cancel.
template <int kC>
struct Sums {
  float maximum, weight, origin, along;
  float mean[kC];    // sum e_j c_j
  float moment[kC];  // sum e_j (<c_j, u> - origin) c_j; not used without u
};

template <int kC, bool kWithVjp>
__device__ inline void Rescale(Sums<kC>& s, float maximum, float origin) {
  const float scale = expf(s.maximum - maximum);
  const float shift = origin - s.origin;
  s.weight *= scale;
#pragma unroll
  for (int c = 0; c < kC; ++c) s.mean[c] *= scale;
  if (kWithVjp) {
    s.along = fmaf(-shift, s.weight, s.along * scale);
#pragma unroll
    for (int c = 0; c < kC; ++c) s.moment[c] = fmaf(-shift, s.mean[c], s.moment[c] * scale);
  }
  s.maximum = maximum;
  s.origin = origin;
}

// Adds kChunk codes, `codes` [kChunk, kC] and `logits` in shared memory.
template <int kC, bool kWithVjp>
__device__ inline void AddChunk(const float* codes, const float* logits, float k,
                                const float (&y)[kC], const float (&u)[kC], Sums<kC>& s,
                                bool& is_nan) {
  float e[kChunk];
  float highest = -INFINITY;
#pragma unroll
  for (int q = 0; q < kChunk; ++q) {
    e[q] = logits[q] - 0.5F * Distance<kC>(codes + q * kC, k, y);
    is_nan = is_nan || e[q] != e[q];
    highest = fmaxf(highest, e[q]);
  }
  if (highest == -INFINITY || highest < s.maximum - kNegligible) return;
  if (highest > s.maximum) {
    float origin = 0;
    if (kWithVjp) {
      int likeliest = 0;
#pragma unroll
      for (int q = kChunk - 1; q >= 0; --q) likeliest = e[q] == highest ? q : likeliest;
      origin = Dot<kC>(codes + likeliest * kC, u);
    }
    Rescale<kC, kWithVjp>(s, highest, origin);
  }
  float projected[kWithVjp ? kChunk : 1];
  float weight = 0, along = 0;
#pragma unroll
  for (int q = 0; q < kChunk; ++q) {
    e[q] = expf(e[q] - s.maximum);
    weight += e[q];
    if (kWithVjp) {
      projected[q] = e[q] * (Dot<kC>(codes + q * kC, u) - s.origin);
      along += projected[q];
    }
  }
  s.weight += weight;
  s.along += along;
#pragma unroll
  for (int c = 0; c < kC; c += 4) {
    float mean[4] = {}, moment[4] = {};
#pragma unroll
    for (int q = 0; q < kChunk; ++q) {
      const Four four = ReadShared(codes + q * kC + c);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        mean[i] = fmaf(e[q], four.v[i], mean[i]);
        if (kWithVjp) moment[i] = fmaf(projected[q], four.v[i], moment[i]);
      }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      s.mean[c + i] += mean[i];
      if (kWithVjp) s.moment[c + i] += moment[i];
    }
  }
}

// Warp 0's sums of this lane += another warp's, which lie in shared memory, kLanes apart.
template <int kC, bool kWithVjp>
__device__ inline void Merge(const float* other, Sums<kC>& s) {
  const float maximum = other[0], origin = other[2 * kLanes];
  if (maximum == -INFINITY) return;
  float scale = 1, shift = 0;  // of the other's sums
  if (maximum > s.maximum) {
    Rescale<kC, kWithVjp>(s, maximum, origin);
  } else {
    scale = expf(maximum - s.maximum);
    shift = s.origin - origin;
  }
  const float weight = other[kLanes] * scale;
  s.weight += weight;
  s.along += fmaf(-shift, weight, other[3 * kLanes] * scale);
#pragma unroll
  for (int c = 0; c < kC; ++c) {
    const float mean = other[(4 + c) * kLanes] * scale;
    s.mean[c] += mean;
    if (kWithVjp) s.moment[c] += fmaf(-shift, mean, other[(4 + kC + c) * kLanes] * scale);
  }
}

template <int kC, bool kWithVjp>
__device__ inline void Put(const Sums<kC>& s, float* to) {
  to[0] = s.maximum;
  to[kLanes] = s.weight;
  to[2 * kLanes] = s.origin;
  to[3 * kLanes] = s.along;
#pragma unroll
  for (int c = 0; c < kC; ++c) {
    to[(4 + c) * kLanes] = s.mean[c];
    if (kWithVjp) to[(4 + kC + c) * kLanes] = s.moment[c];
  }
}

// Codes and logits of one tile, from `first` on; behind the last code there is nothing possible.
template <int kC, class Logit>
__device__ inline void LoadTile(const Dd2ScoreProblem& p, int64_t first, int64_t first_row,
                                int rows, float* codes, float* logits) {
  constexpr int kTile = Shape<kC>::kTile;
  for (int i = threadIdx.x; i < kTile * kC; i += kThreads) {
    const int64_t code = first + i / kC;
    const int channel = i % kC;
    const bool inside = code < p.codes && channel < p.channels;
    codes[i] = inside ? p.d_codebook[code * p.channels + channel] : 0.0F;
  }
  const Logit* logp = static_cast<const Logit*>(p.d_logp);
  for (int i = threadIdx.x; i < rows * kTile; i += kThreads) {
    const int64_t row = first_row + i / kTile;
    const int64_t code = first + i % kTile;
    const bool inside = code < p.codes && row < p.logp_rows;
    logits[i / kTile * Shape<kC>::kLogitStride + i % kTile] =
        inside ? ToFloat(logp[row * p.codes + code]) : -INFINITY;
  }
}

template <int kC, bool kWithVjp, class Logit>
__global__ void __launch_bounds__(kThreads) ScoreKernel(const Dd2ScoreProblem p) {
  __shared__ __align__(16) float memory[Shape<kC>::kFloats];
  float* codes = memory;
  float* logits = memory + Shape<kC>::kTile * kC;
  const int lane = threadIdx.x % kLanes;
  const int warp = threadIdx.x / kLanes;
  const int draws = static_cast<int>(p.draws < kLanes ? p.draws : kLanes);
  const int rows = kLanes / draws;
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * rows;
  const int64_t draw = static_cast<int64_t>(blockIdx.y) * kLanes + lane % draws;
  const bool active =
      lane / draws < rows && first_row + lane / draws < p.logp_rows && draw < p.draws;
  const int row = active ? lane / draws : 0;
  const int64_t n = active ? draw * p.logp_rows + first_row + row : 0;

  const float t = p.d_t[n];
  const float k = (1.0F - t) / t;
  float y[kC], u[kC];
  Sums<kC> s = {};
  s.maximum = -INFINITY;
#pragma unroll
  for (int c = 0; c < kC; ++c) {
    y[c] = c < p.channels ? p.d_x[n * p.channels + c] / t : 0.0F;
    u[c] = kWithVjp && c < p.channels ? p.d_u[n * p.channels + c] : 0.0F;
  }
  bool is_nan = false;
  constexpr int kShare = Shape<kC>::kTile / kWarps;
  for (int64_t first = 0; first < p.codes; first += Shape<kC>::kTile) {
    LoadTile<kC, Logit>(p, first, first_row, rows, codes, logits);
    __syncthreads();
#pragma unroll 1
    for (int j = warp * kShare; j < (warp + 1) * kShare; j += kChunk) {
      AddChunk<kC, kWithVjp>(codes + j * kC, logits + row * Shape<kC>::kLogitStride + j, k, y, u, s,
                             is_nan);
    }
    __syncthreads();
  }
  if (is_nan) s.weight = NAN;
  if (is_nan) s.maximum = 0;  // so that it is merged
  for (int other = 1; other < kWarps; ++other) {
    if (warp == other) Put<kC, kWithVjp>(s, memory + lane);
    __syncthreads();
    if (warp == 0) Merge<kC, kWithVjp>(memory + lane, s);
    __syncthreads();
  }
  if (warp != 0 || !active) return;
    // Without a possible code 0 / 0: NaN.
#pragma unroll
  for (int c = 0; c < kC; ++c) {
    if (c >= p.channels) break;
    const float mu = s.mean[c] / s.weight;
    p.d_mu[n * p.channels + c] = mu;
    if (kWithVjp) {
      p.d_jtu[n * p.channels + c] = k / t * (fmaf(-mu, s.along, s.moment[c]) / s.weight);
    }
  }
}

template <int kC, class Logit>
cudaError_t LaunchFor(const Dd2ScoreProblem& p, cudaStream_t stream) {
  const int64_t draws = p.draws < kLanes ? p.draws : kLanes;
  const int64_t rows = kLanes / draws;
  const dim3 grid(static_cast<unsigned>((p.logp_rows + rows - 1) / rows),
                  static_cast<unsigned>((p.draws + kLanes - 1) / kLanes));
  const auto kernel =
      p.d_u != nullptr ? ScoreKernel<kC, true, Logit> : ScoreKernel<kC, false, Logit>;
  return Launch(kernel, grid, dim3(kThreads), stream, p);
}

template <class Logit>
cudaError_t LaunchOf(const Dd2ScoreProblem& p, cudaStream_t stream) {
  if (p.channels <= 8) return LaunchFor<8, Logit>(p, stream);
  if (p.channels <= 32) return LaunchFor<32, Logit>(p, stream);
  return LaunchFor<64, Logit>(p, stream);
}

}  // namespace

cudaError_t LaunchScore(const Dd2ScoreProblem& problem, cudaStream_t stream) {
  return problem.logp_type == DD2_DEVICE_BF16 ? LaunchOf<Bf16>(problem, stream)
                                              : LaunchOf<float>(problem, stream);
}

}  // namespace dd2
