#include "worker/kernels/kernels.h"
#include "worker/kernels/launch.cuh"

namespace dd2 {
namespace {

constexpr int kChunk = 4096;  // kParamChunk
constexpr int kLanes = 16;    // partial sums of a chunk
constexpr int kChunksPerBlock = 8;
constexpr int kThreads = kLanes * kChunksPerBlock;

// The operations of ScaleAndSquareSum in worker/parallel/update_kernels.cc, in its order: a thread
// is one of its partial sums. The square of a float is exact in double, so that it does not matter
// whether it is fused with the sum. A warp reads 64 bytes of two chunks at a time, loads of several
// rounds are under way at once.
__global__ void __launch_bounds__(kThreads) ChunkSquaresKernel(const Dd2ChunkSquares squares) {
  __shared__ double partial[kThreads];
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const int64_t chunk = static_cast<int64_t>(blockIdx.x) * kChunksPerBlock + threadIdx.x / kLanes;
  double sum = 0;
  if (chunk < squares.chunks) {
    const float* in = squares.d_in + chunk * kChunk + lane;
    float* out = squares.d_out + chunk * kChunk + lane;
#pragma unroll 1
    for (int begin = 0; begin < kChunk; begin += 16 * kLanes) {
      float values[16];
#pragma unroll
      for (int i = 0; i < 16; ++i) values[i] = in[begin + i * kLanes] * squares.factor;
#pragma unroll
      for (int i = 0; i < 16; ++i) {
        out[begin + i * kLanes] = values[i];
        sum += static_cast<double>(values[i]) * static_cast<double>(values[i]);
      }
    }
  }
  partial[threadIdx.x] = sum;
  __syncthreads();
  if (lane != 0 || chunk >= squares.chunks) return;
  double* sums = partial + threadIdx.x;
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) sums[i] += sums[i + width];
  }
  squares.d_squares[chunk] = sums[0];
}

}  // namespace

cudaError_t LaunchChunkSquares(const Dd2ChunkSquares& squares, cudaStream_t stream) {
  const int64_t blocks = (squares.chunks + kChunksPerBlock - 1) / kChunksPerBlock;
  return Launch(ChunkSquaresKernel, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), stream,
                squares);
}

}  // namespace dd2
