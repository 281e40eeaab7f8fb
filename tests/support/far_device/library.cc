// A device library for tests: libdd2_cuda.so's table over the far device (memory.h). Its kernels
// are the GPU's sources, run on the CPU (cuda_on_host). Work is done at once; there are no groups.

#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <mutex>

#include "tests/support/far_device/memory.h"
#include "worker/kernels/device_api.h"
#include "worker/kernels/kernels.h"

namespace dd2::far_device {
namespace {

constexpr Dd2DeviceCode kOk = DD2_DEVICE_OK;
constexpr Dd2DeviceCode kFailed = DD2_DEVICE_FAILED;
constexpr Dd2DeviceCode kNoMemory = DD2_DEVICE_OUT_OF_MEMORY;

std::mutex kernels;  // of all kinds: their threads share one scheduler

template <class Launch>
Dd2DeviceCode Run(const Launch& launch) {
  const std::lock_guard lock(kernels);
  return launch() == cudaSuccess ? kOk : kFailed;
}

template <class... Pointers>
void ToNear(Pointers&... pointers) {
  ((pointers = Near(pointers)), ...);
}

Dd2DeviceCode Score(const Dd2ScoreProblem* problem, Dd2Stream) {
  Dd2ScoreProblem p = *problem;
  ToNear(p.d_codebook, p.d_logp, p.d_t, p.d_x, p.d_u, p.d_mu, p.d_jtu);
  return Run([&] { return LaunchScore(p, nullptr); });
}

Dd2ModulatedNorm NearNorm(Dd2ModulatedNorm n) {
  ToNear(n.d_x, n.d_weight, n.d_bias, n.d_shift, n.d_scale, n.d_shift_bias, n.d_scale_bias,
         n.d_stats, n.d_y, n.d_dy, n.d_residual, n.d_dx, n.d_dshift, n.d_dscale, n.d_dweight,
         n.d_dbias);
  return n;
}

Dd2GatedResidual NearGated(Dd2GatedResidual g) {
  ToNear(g.d_x, g.d_branch, g.d_branch_bias, g.d_gate, g.d_gate_bias, g.d_out, g.d_dout,
         g.d_dbranch, g.d_dgate);
  return g;
}

Dd2UnitLength NearUnit(Dd2UnitLength u) {
  ToNear(u.d_qkv, u.d_temperature, u.d_q, u.d_k, u.d_dq, u.d_dk, u.d_dqkv, u.d_dtemperature);
  return u;
}

Dd2DeviceCode ColumnSums(const Dd2ColumnSums* sums, Dd2Stream) {
  Dd2ColumnSums s = *sums;
  ToNear(s.d_x, s.d_out);
  return Run([&] { return LaunchColumnSums(s, nullptr); });
}

Dd2DeviceCode Adam(const Dd2AdamStep* step, Dd2Stream) {
  Dd2AdamStep a = *step;
  ToNear(a.d_gradient, a.d_parameter, a.d_m, a.d_v, a.d_ema);
  return Run([&] { return LaunchAdam(a, nullptr); });
}

Dd2DeviceCode ChunkSquares(const Dd2ChunkSquares* squares, Dd2Stream) {
  Dd2ChunkSquares c = *squares;
  ToNear(c.d_in, c.d_out, c.d_squares);
  return Run([&] { return LaunchChunkSquares(c, nullptr); });
}

Dd2DeviceCode Random(const Dd2RandomField* field, Dd2Stream) {
  Dd2RandomField f = *field;
  ToNear(f.d_out);
  return Run([&] { return LaunchRandom(f, nullptr); });
}

void AddKernels(Dd2DeviceApi& api) {
  api.score = Score;
  api.modulated_norm = [](const Dd2ModulatedNorm* n, Dd2Stream) {
    return Run([n = NearNorm(*n)] { return LaunchModulatedNorm(n, nullptr); });
  };
  api.modulated_norm_backward = [](const Dd2ModulatedNorm* n, Dd2Stream) {
    return Run([n = NearNorm(*n)] { return LaunchModulatedNormBackward(n, nullptr); });
  };
  api.gated_residual = [](const Dd2GatedResidual* g, Dd2Stream) {
    return Run([g = NearGated(*g)] { return LaunchGatedResidual(g, nullptr); });
  };
  api.gated_residual_backward = [](const Dd2GatedResidual* g, Dd2Stream) {
    return Run([g = NearGated(*g)] { return LaunchGatedResidualBackward(g, nullptr); });
  };
  api.unit_length = [](const Dd2UnitLength* u, Dd2Stream) {
    return Run([u = NearUnit(*u)] { return LaunchUnitLength(u, nullptr); });
  };
  api.unit_length_backward = [](const Dd2UnitLength* u, Dd2Stream) {
    return Run([u = NearUnit(*u)] { return LaunchUnitLengthBackward(u, nullptr); });
  };
  api.column_sums = ColumnSums;
  api.adam = Adam;
  api.chunk_squares = ChunkSquares;
  api.random = Random;
}

void AddMemory(Dd2DeviceApi& api) {
  api.allocate = [](size_t bytes, void** memory) {
    *memory = Allocate(bytes);
    return *memory == nullptr ? kNoMemory : kOk;
  };
  api.release = [](void* memory) {
    Release(memory);
    return kOk;
  };
  api.allocate_pinned = [](size_t bytes, void** memory) {
    *memory = std::malloc(bytes);
    return *memory == nullptr ? kNoMemory : kOk;
  };
  api.release_pinned = [](void* memory) {
    std::free(memory);
    return kOk;
  };
  api.pin = [](void*, size_t) { return kOk; };
  api.unpin = [](void*) { return kOk; };
  api.copy = [](void* to, const void* from, size_t bytes, Dd2Stream) {
    if (std::getenv("DD2_FAR_DEVICE_FAILS") != nullptr) return kFailed;  // a test wants it
    const char* held = std::getenv("DD2_FAR_DEVICE_HELD");  // as long as this file is there
    while (held != nullptr && access(held, F_OK) == 0) usleep(1000);
    std::memcpy(Near(to), Near(from), bytes);
    return kOk;
  };
}

char handle;  // of all streams and events

Dd2DeviceApi MakeApi() {
  Dd2DeviceApi api{};
  api.version = DD2_DEVICE_API_VERSION;
  api.size = sizeof(api);
  api.torch_type = 20;  // c10::DeviceType::PrivateUse1
  api.last_error = [] { return "the far device has failed"; };
  api.count = [](int32_t* devices) {
    *devices = DeviceCount();
    return kOk;
  };
  api.use = [](int32_t device) {
    UseDevice(device);
    return kOk;
  };
  api.facts = [](int32_t device, Dd2DeviceFacts* facts) {
    *facts = Dd2DeviceFacts{};
    std::strcpy(facts->name, "far device of the tests");
    facts->memory_bytes = MemoryBytes();
    facts->id[0] = static_cast<uint8_t>(device);
    return kOk;
  };
  AddMemory(api);
  api.make_stream = [](Dd2Stream* stream) {
    *stream = &handle;
    return kOk;
  };
  api.make_event = [](int32_t, Dd2Event* event) {
    *event = &handle;
    return kOk;
  };
  api.end_stream = api.wait_stream = [](Dd2Stream) { return kOk; };
  api.end_event = api.passed = [](Dd2Event) { return kOk; };
  api.record = [](Dd2Event, Dd2Stream) { return kOk; };
  AddKernels(api);
  return api;
}

}  // namespace
}  // namespace dd2::far_device

extern "C" __attribute__((visibility("default"))) const Dd2DeviceApi* dd2_device_api() {
  static const Dd2DeviceApi api = dd2::far_device::MakeApi();
  return &api;
}
