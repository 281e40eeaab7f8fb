#include <cstdint>

#include "worker/kernels/kernels.h"
#include "worker/kernels/launch.cuh"

namespace dd2 {
namespace {

constexpr int kThreads = 256;
constexpr double kPi = 3.14159265358979323846;

struct Words {
  uint32_t word[4];
};

// Philox4x32-10, as in common/rng.cc.
__device__ inline Words Philox(Words counter, uint64_t seed) {
  uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t{0xD2511F53U} * counter.word[0];
    const uint64_t product1 = uint64_t{0xCD9E8D57U} * counter.word[2];
    counter = {{static_cast<uint32_t>(product1 >> 32) ^ counter.word[1] ^ key0,
                static_cast<uint32_t>(product1),
                static_cast<uint32_t>(product0 >> 32) ^ counter.word[3] ^ key1,
                static_cast<uint32_t>(product0)}};
    key0 += 0x9E3779B9U;
    key1 += 0xBB67AE85U;
  }
  return counter;
}

// Box-Muller in double precision.
__device__ inline void ToNormals(const Words& words, float* numbers) {
#pragma unroll
  for (int pair = 0; pair < 2; ++pair) {
    const double u = (static_cast<double>(words.word[2 * pair]) + 1.0) * 0x1p-32;
    const double angle = 2.0 * kPi * static_cast<double>(words.word[2 * pair + 1]) * 0x1p-32;
    const double radius = sqrt(-2.0 * log(u));
    numbers[2 * pair] = static_cast<float>(radius * cos(angle));
    numbers[2 * pair + 1] = static_cast<float>(radius * sin(angle));
  }
}

// A thread makes the four numbers of a block of Philox.
__global__ void __launch_bounds__(kThreads) RandomKernel(const Dd2RandomField f) {
  const int64_t values = f.draws * f.width, blocks = (values + 3) / 4;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= f.samples * blocks) return;
  const int64_t sample = i / blocks, block = i % blocks;
  const Words words =
      Philox({{static_cast<uint32_t>(block), f.first_sample + static_cast<uint32_t>(sample),
               f.update, f.phase << 16 | f.use}},
             f.seed);
  float numbers[4];
  if (f.normal != 0) {
    ToNormals(words, numbers);
  } else {
#pragma unroll
    for (int j = 0; j < 4; ++j) numbers[j] = static_cast<float>(words.word[j] >> 8) * 0x1p-24F;
  }
  for (int j = 0; j < 4; ++j) {
    const int64_t value = 4 * block + j;
    if (value >= values) return;
    const int64_t draw = value / f.width;
    f.d_out[(draw * f.samples + sample) * f.width + value % f.width] = numbers[j];
  }
}

}  // namespace

cudaError_t LaunchRandom(const Dd2RandomField& field, cudaStream_t stream) {
  const int64_t threads = field.samples * ((field.draws * field.width + 3) / 4);
  return Launch(RandomKernel, dim3(static_cast<unsigned>((threads + kThreads - 1) / kThreads)),
                dim3(kThreads), stream, field);
}

}  // namespace dd2
