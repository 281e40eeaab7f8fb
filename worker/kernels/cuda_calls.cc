#include <cuda_runtime.h>

#include <cstring>
#include <string>

#include "worker/kernels/device_api.h"
#include "worker/kernels/device_error.h"
#include "worker/kernels/kernels.h"

// The table of libdd2_cuda.so over CUDA's runtime.
namespace dd2 {

std::string& LastDeviceError() {
  thread_local std::string text;
  return text;
}

Dd2DeviceCode DeviceFailure(Dd2DeviceCode code, std::string text) {
  LastDeviceError() = std::move(text);
  return code;
}

Dd2DeviceCode FromCuda(cudaError_t error, const char* call) {
  if (error == cudaSuccess) return DD2_DEVICE_OK;
  Dd2DeviceCode code = DD2_DEVICE_FAILED;
  if (error == cudaErrorInsufficientDriver) code = DD2_DEVICE_NO_DRIVER;
  if (error == cudaErrorNoDevice) code = DD2_DEVICE_NO_GPU;
  if (error == cudaErrorMemoryAllocation) code = DD2_DEVICE_OUT_OF_MEMORY;
  if (error == cudaErrorInvalidValue) code = DD2_DEVICE_BAD_ARGUMENT;
  cudaGetLastError();  // a failed launch is not to be found again by a later call
  return DeviceFailure(code, std::string(call) + ": " + cudaGetErrorString(error) + " (error " +
                                 std::to_string(static_cast<int>(error)) + ")");
}

namespace {

cudaStream_t StreamOf(Dd2Stream stream) { return static_cast<cudaStream_t>(stream); }
cudaEvent_t EventOf(Dd2Event event) { return static_cast<cudaEvent_t>(event); }

const char* LastError() { return LastDeviceError().c_str(); }

Dd2DeviceCode Count(int32_t* devices) {
  return FromCuda(cudaGetDeviceCount(devices), "cudaGetDeviceCount");
}

Dd2DeviceCode Use(int32_t device) { return FromCuda(cudaSetDevice(device), "cudaSetDevice"); }

Dd2DeviceCode Facts(int32_t device, Dd2DeviceFacts* facts) {
  cudaDeviceProp properties{};
  int clock = 0;
  cudaError_t error = cudaGetDeviceProperties(&properties, device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&clock, cudaDevAttrClockRate, device);
  if (error == cudaSuccess) error = cudaDriverGetVersion(&facts->driver_version);
  if (error == cudaSuccess) error = cudaRuntimeGetVersion(&facts->runtime_version);
  if (error != cudaSuccess) return FromCuda(error, "cudaGetDeviceProperties");
  std::strncpy(facts->name, properties.name, sizeof(facts->name) - 1);
  facts->name[sizeof(facts->name) - 1] = '\0';
  facts->capability_major = properties.major;
  facts->capability_minor = properties.minor;
  facts->multiprocessors = properties.multiProcessorCount;
  facts->clock_khz = clock;
  facts->memory_bytes = properties.totalGlobalMem;
  facts->nccl_version = NcclVersion();
  static_assert(sizeof(facts->id) == sizeof(properties.uuid));
  std::memcpy(facts->id, &properties.uuid, sizeof(facts->id));
  return DD2_DEVICE_OK;
}

Dd2DeviceCode Allocate(size_t bytes, void** memory) {
  return FromCuda(cudaMalloc(memory, bytes), "cudaMalloc");
}

Dd2DeviceCode Release(void* memory) { return FromCuda(cudaFree(memory), "cudaFree"); }

Dd2DeviceCode AllocatePinned(size_t bytes, void** memory) {
  return FromCuda(cudaMallocHost(memory, bytes), "cudaMallocHost");
}

Dd2DeviceCode ReleasePinned(void* memory) { return FromCuda(cudaFreeHost(memory), "cudaFreeHost"); }

Dd2DeviceCode Pin(void* memory, size_t bytes) {
  return FromCuda(cudaHostRegister(memory, bytes, cudaHostRegisterDefault), "cudaHostRegister");
}

Dd2DeviceCode Unpin(void* memory) {
  return FromCuda(cudaHostUnregister(memory), "cudaHostUnregister");
}

Dd2DeviceCode Copy(void* to, const void* from, size_t bytes, Dd2Stream stream) {
  return FromCuda(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, StreamOf(stream)),
                  "cudaMemcpyAsync");
}

Dd2DeviceCode MakeStream(Dd2Stream* stream) {
  cudaStream_t made = nullptr;
  const cudaError_t error = cudaStreamCreateWithFlags(&made, cudaStreamNonBlocking);
  *stream = made;
  return FromCuda(error, "cudaStreamCreate");
}

Dd2DeviceCode EndStream(Dd2Stream stream) {
  return FromCuda(cudaStreamDestroy(StreamOf(stream)), "cudaStreamDestroy");
}

Dd2DeviceCode WaitStream(Dd2Stream stream) {
  return FromCuda(cudaStreamSynchronize(StreamOf(stream)), "cudaStreamSynchronize");
}

Dd2DeviceCode MakeEvent(int32_t timed, Dd2Event* event) {
  cudaEvent_t made = nullptr;
  const cudaError_t error =
      cudaEventCreateWithFlags(&made, timed != 0 ? cudaEventDefault : cudaEventDisableTiming);
  *event = made;
  return FromCuda(error, "cudaEventCreate");
}

Dd2DeviceCode EndEvent(Dd2Event event) {
  return FromCuda(cudaEventDestroy(EventOf(event)), "cudaEventDestroy");
}

Dd2DeviceCode Record(Dd2Event event, Dd2Stream stream) {
  return FromCuda(cudaEventRecord(EventOf(event), StreamOf(stream)), "cudaEventRecord");
}

Dd2DeviceCode Passed(Dd2Event event) {
  const cudaError_t error = cudaEventQuery(EventOf(event));
  if (error == cudaErrorNotReady) {
    cudaGetLastError();
    return DD2_DEVICE_BUSY;
  }
  return FromCuda(error, "cudaEventQuery");
}

Dd2DeviceCode Milliseconds(Dd2Event from, Dd2Event to, float* milliseconds) {
  return FromCuda(cudaEventElapsedTime(milliseconds, EventOf(from), EventOf(to)),
                  "cudaEventElapsedTime");
}

bool IsType(int32_t type) { return type == DD2_DEVICE_FP32 || type == DD2_DEVICE_BF16; }

// A grid holds 2^31 - 1 blocks; no kernel needs more than one a row or a column.
bool IsShape(const Dd2RowShape& shape) {
  return shape.rows > 0 && shape.rows <= INT32_MAX && shape.width > 0 && shape.width <= INT32_MAX &&
         IsType(shape.type);
}

// The modulation row is a grid's second dimension where several rows share one.
bool IsModulation(const Dd2ModulationRows& modulation, int64_t rows) {
  if (modulation.repeats < 1 || rows % modulation.repeats != 0) return false;
  return modulation.repeats == 1 || rows / modulation.repeats <= UINT16_MAX;
}

Dd2DeviceCode Bad(const char* what) { return DeviceFailure(DD2_DEVICE_BAD_ARGUMENT, what); }

Dd2DeviceCode Score(const Dd2ScoreProblem* p, Dd2Stream stream) {
  if (p->channels < 1 || p->channels > 64) return Bad("score: channels must be 1 to 64");
  if (p->draws < 1 || p->draws > INT32_MAX || p->logp_rows < 1 || p->logp_rows > INT32_MAX ||
      p->codes < 1) {
    return Bad("score: draws, rows and codes must be at least 1");
  }
  if (!IsType(p->logp_type)) return Bad("score: logits must be fp32 or bf16");
  if ((p->d_u == nullptr) != (p->d_jtu == nullptr)) return Bad("score: u and jtu go together");
  return FromCuda(LaunchScore(*p, StreamOf(stream)), "score");
}

Dd2DeviceCode ModulatedNorm(const Dd2ModulatedNorm* n, Dd2Stream stream) {
  if (!IsShape(n->shape)) return Bad("modulated_norm: bad shape");
  if (!IsModulation(n->modulation, n->shape.rows)) return Bad("modulated_norm: bad modulation");
  return FromCuda(LaunchModulatedNorm(*n, StreamOf(stream)), "modulated_norm");
}

Dd2DeviceCode ModulatedNormBackward(const Dd2ModulatedNorm* n, Dd2Stream stream) {
  if (!IsShape(n->shape)) return Bad("modulated_norm_backward: bad shape");
  if (!IsModulation(n->modulation, n->shape.rows)) {
    return Bad("modulated_norm_backward: bad modulation");
  }
  if ((n->d_dshift == nullptr) != (n->d_dscale == nullptr)) {
    return Bad("modulated_norm_backward: d shift and d scale go together");
  }
  return FromCuda(LaunchModulatedNormBackward(*n, StreamOf(stream)), "modulated_norm_backward");
}

Dd2DeviceCode GatedResidual(const Dd2GatedResidual* g, Dd2Stream stream) {
  if (!IsShape(g->shape)) return Bad("gated_residual: bad shape");
  if (!IsModulation(g->modulation, g->shape.rows)) return Bad("gated_residual: bad modulation");
  return FromCuda(LaunchGatedResidual(*g, StreamOf(stream)), "gated_residual");
}

Dd2DeviceCode GatedResidualBackward(const Dd2GatedResidual* g, Dd2Stream stream) {
  if (!IsShape(g->shape)) return Bad("gated_residual_backward: bad shape");
  if (!IsModulation(g->modulation, g->shape.rows)) {
    return Bad("gated_residual_backward: bad modulation");
  }
  return FromCuda(LaunchGatedResidualBackward(*g, StreamOf(stream)), "gated_residual_backward");
}

// A warp for every query and key, four of them a block.
bool IsUnitLength(const Dd2UnitLength& u) {
  return IsShape(u.shape) && u.heads > 0 && u.heads <= INT32_MAX / u.shape.rows;
}

Dd2DeviceCode UnitLength(const Dd2UnitLength* u, Dd2Stream stream) {
  if (!IsUnitLength(*u)) return Bad("unit_length: bad shape");
  return FromCuda(LaunchUnitLength(*u, StreamOf(stream)), "unit_length");
}

Dd2DeviceCode UnitLengthBackward(const Dd2UnitLength* u, Dd2Stream stream) {
  if (!IsUnitLength(*u)) return Bad("unit_length_backward: bad shape");
  return FromCuda(LaunchUnitLengthBackward(*u, StreamOf(stream)), "unit_length_backward");
}

Dd2DeviceCode ColumnSums(const Dd2ColumnSums* s, Dd2Stream stream) {
  if (!IsShape(s->shape)) return Bad("column_sums: bad shape");
  return FromCuda(LaunchColumnSums(*s, StreamOf(stream)), "column_sums");
}

Dd2DeviceCode Adam(const Dd2AdamStep* step, Dd2Stream stream) {
  if (step->ranges < 0 || step->ranges > DD2_DEVICE_ADAM_RANGES_MAX) return Bad("adam: ranges");
  for (int32_t i = 0; i < step->ranges; ++i) {
    const Dd2AdamRange& range = step->range[i];
    if (range.begin < 0 || range.end < range.begin)
      return Bad("adam: a range ends before it begins");
  }
  return FromCuda(LaunchAdam(*step, StreamOf(stream)), "adam");
}

Dd2DeviceCode ChunkSquares(const Dd2ChunkSquares* squares, Dd2Stream stream) {
  if (squares->chunks < 1 || squares->chunks > INT32_MAX) return Bad("chunk_squares: chunks");
  return FromCuda(LaunchChunkSquares(*squares, StreamOf(stream)), "chunk_squares");
}

Dd2DeviceCode Random(const Dd2RandomField* field, Dd2Stream stream) {
  const Dd2RandomField& f = *field;
  constexpr int64_t kValuesMax = int64_t{1} << 34;  // Philox numbers blocks of four with 32 bits
  if (f.draws < 1 || f.samples < 1 || f.width < 1 || f.draws > kValuesMax / f.width) {
    return Bad("random: shape");
  }
  if (f.samples > INT32_MAX / ((f.draws * f.width + 1023) / 1024)) return Bad("random: too many");
  return FromCuda(LaunchRandom(f, StreamOf(stream)), "random");
}

Dd2DeviceApi MakeApi() {
  Dd2DeviceApi api{};
  api.version = DD2_DEVICE_API_VERSION;
  api.size = sizeof(Dd2DeviceApi);
  api.torch_type = 1;  // c10::DeviceType::CUDA, a number that never changes
  api.last_error = LastError;
  api.count = Count;
  api.use = Use;
  api.facts = Facts;
  api.allocate = Allocate;
  api.release = Release;
  api.allocate_pinned = AllocatePinned;
  api.release_pinned = ReleasePinned;
  api.pin = Pin;
  api.unpin = Unpin;
  api.copy = Copy;
  api.make_stream = MakeStream;
  api.end_stream = EndStream;
  api.wait_stream = WaitStream;
  api.make_event = MakeEvent;
  api.end_event = EndEvent;
  api.record = Record;
  api.passed = Passed;
  api.milliseconds = Milliseconds;
  api.score = Score;
  api.modulated_norm = ModulatedNorm;
  api.modulated_norm_backward = ModulatedNormBackward;
  api.gated_residual = GatedResidual;
  api.gated_residual_backward = GatedResidualBackward;
  api.unit_length = UnitLength;
  api.unit_length_backward = UnitLengthBackward;
  api.column_sums = ColumnSums;
  api.adam = Adam;
  api.chunk_squares = ChunkSquares;
  api.random = Random;
  AddGroupCalls(api);
  return api;
}

}  // namespace
}  // namespace dd2

extern "C" __attribute__((visibility("default"))) const Dd2DeviceApi* dd2_device_api() {
  static const Dd2DeviceApi api = dd2::MakeApi();
  return &api;
}
