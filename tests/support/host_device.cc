#include "tests/support/host_device.h"

#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>

#include "tests/support/cuda_on_host/cuda_runtime.h"
#include "worker/kernels/kernels.h"

namespace dd2 {
namespace {

using Stream = std::deque<std::function<void()>>;  // what is to be done, in order
struct Event {
  int recorded = 0;  // how often it was put on a stream
  int passed = 0;    // the newest of those that the stream has come to
};

std::map<Dd2Stream, Stream> queues;
HostDevice host;
std::string last_error;

// Fails as the test wants it.
Dd2DeviceCode Call(const char* name) {
  const auto failure = host.failures.find(name);
  if (failure == host.failures.end()) return DD2_DEVICE_OK;
  const Dd2DeviceCode code = failure->second;
  host.failures.erase(failure);
  last_error = std::string(name) + " was told to fail";
  return code;
}

Dd2DeviceCode Kernel(const char* name, Dd2Stream stream, const std::function<void()>& run) {
  const Dd2DeviceCode code = Call(name);
  if (code != DD2_DEVICE_OK) return code;
  queues[stream].push_back(run);
  if (!host.held) host.Run();
  return DD2_DEVICE_OK;
}

Dd2DeviceCode Allocate(size_t bytes, void** memory) {
  const Dd2DeviceCode code = Call("allocate");
  if (code != DD2_DEVICE_OK) return code;
  *memory = std::malloc(bytes);
  ++host.allocations;
  return DD2_DEVICE_OK;
}

Dd2DeviceCode Release(void* memory) {
  std::free(memory);
  --host.allocations;
  return DD2_DEVICE_OK;
}

Dd2DeviceCode Copy(void* to, const void* from, size_t bytes, Dd2Stream stream) {
  return Kernel("copy", stream, [=] { std::memcpy(to, from, bytes); });
}

Dd2DeviceCode MakeStream(Dd2Stream* stream) {
  static std::uintptr_t last = 0;
  *stream = reinterpret_cast<Dd2Stream>(++last);
  ++host.streams;
  return DD2_DEVICE_OK;
}

Dd2DeviceCode EndStream(Dd2Stream stream) {
  queues.erase(stream);
  --host.streams;
  return DD2_DEVICE_OK;
}

Dd2DeviceCode WaitStream(Dd2Stream) {
  host.Run();
  return Call("wait_stream");
}

Dd2DeviceCode MakeEvent(int32_t, Dd2Event* event) {
  *event = new Event;
  ++host.events;
  return DD2_DEVICE_OK;
}

Dd2DeviceCode EndEvent(Dd2Event event) {
  delete static_cast<Event*>(event);
  --host.events;
  return DD2_DEVICE_OK;
}

Dd2DeviceCode Record(Dd2Event event, Dd2Stream stream) {
  auto* at = static_cast<Event*>(event);
  const int number = ++at->recorded;
  return Kernel("record", stream, [at, number] { at->passed = number; });
}

Dd2DeviceCode Passed(Dd2Event event) {
  const auto* at = static_cast<const Event*>(event);
  if (at->passed < at->recorded) return DD2_DEVICE_BUSY;
  return Call("passed");
}

Dd2DeviceCode Noted(const char* name) {
  host.calls.emplace_back(name);
  return Call(name);
}

// A group of one: what it sends is what it receives.
Dd2DeviceCode CopyFloats(const char* name, const float* send, float* receive, int64_t count,
                         Dd2Stream stream) {
  const Dd2DeviceCode code = Noted(name);
  if (code != DD2_DEVICE_OK) return code;
  return Copy(receive, send, static_cast<size_t>(count) * sizeof(float), stream);
}

Dd2DeviceCode GroupState(Dd2Group) {
  if (host.busy_polls > 0) {
    --host.busy_polls;
    return DD2_DEVICE_BUSY;
  }
  if (host.group_state != DD2_DEVICE_OK) last_error = "the group has failed";
  return host.group_state;
}

void AddKernels(Dd2DeviceApi& api) {
  api.score = [](const Dd2ScoreProblem* p, Dd2Stream s) {
    return Kernel("score", s, [p = *p] { LaunchScore(p, nullptr); });
  };
  api.modulated_norm = [](const Dd2ModulatedNorm* n, Dd2Stream s) {
    return Kernel("modulated_norm", s, [n = *n] { LaunchModulatedNorm(n, nullptr); });
  };
  api.modulated_norm_backward = [](const Dd2ModulatedNorm* n, Dd2Stream s) {
    return Kernel("modulated_norm_backward", s,
                  [n = *n] { LaunchModulatedNormBackward(n, nullptr); });
  };
  api.gated_residual = [](const Dd2GatedResidual* g, Dd2Stream s) {
    return Kernel("gated_residual", s, [g = *g] { LaunchGatedResidual(g, nullptr); });
  };
  api.gated_residual_backward = [](const Dd2GatedResidual* g, Dd2Stream s) {
    return Kernel("gated_residual_backward", s,
                  [g = *g] { LaunchGatedResidualBackward(g, nullptr); });
  };
  api.unit_length = [](const Dd2UnitLength* u, Dd2Stream s) {
    return Kernel("unit_length", s, [u = *u] { LaunchUnitLength(u, nullptr); });
  };
  api.unit_length_backward = [](const Dd2UnitLength* u, Dd2Stream s) {
    return Kernel("unit_length_backward", s, [u = *u] { LaunchUnitLengthBackward(u, nullptr); });
  };
  api.column_sums = [](const Dd2ColumnSums* c, Dd2Stream s) {
    return Kernel("column_sums", s, [c = *c] { LaunchColumnSums(c, nullptr); });
  };
  api.adam = [](const Dd2AdamStep* a, Dd2Stream s) {
    return Kernel("adam", s, [a = *a] { LaunchAdam(a, nullptr); });
  };
  api.chunk_squares = [](const Dd2ChunkSquares* c, Dd2Stream s) {
    return Kernel("chunk_squares", s, [c = *c] { LaunchChunkSquares(c, nullptr); });
  };
  api.random = [](const Dd2RandomField* f, Dd2Stream s) {
    return Kernel("random", s, [f = *f] { LaunchRandom(f, nullptr); });
  };
}

void AddGroups(Dd2DeviceApi& api) {
  api.group_id = [](uint8_t* id) {
    std::memset(id, 7, DD2_DEVICE_GROUP_ID_BYTES);
    return Noted("group_id");
  };
  api.begin_group = [](const uint8_t* id, int32_t, int32_t, Dd2Group* group) {
    *group = reinterpret_cast<Dd2Group>(static_cast<std::uintptr_t>(id[0]));
    ++host.groups;
    return Noted("begin_group");
  };
  api.group_state = GroupState;
  api.abort_group = [](Dd2Group) {
    --host.groups;
    return Noted("abort_group");
  };
  api.all_gather = [](Dd2Group, const float* send, float* receive, int64_t count,
                      Dd2Stream stream) {
    return CopyFloats("all_gather", send, receive, count, stream);
  };
  api.all_to_all = [](Dd2Group, int32_t, const float* send, const int64_t* counts, float* receive,
                      const int64_t*, Dd2Stream stream) {
    return CopyFloats("all_to_all", send, receive, counts[0], stream);
  };
}

Dd2DeviceApi MakeApi() {
  Dd2DeviceApi api{};
  api.version = DD2_DEVICE_API_VERSION;
  api.size = sizeof(api);
  api.last_error = [] { return last_error.c_str(); };
  api.allocate = Allocate;
  api.release = Release;
  api.allocate_pinned = Allocate;
  api.release_pinned = Release;
  api.copy = Copy;
  api.make_stream = MakeStream;
  api.end_stream = EndStream;
  api.wait_stream = WaitStream;
  api.make_event = MakeEvent;
  api.end_event = EndEvent;
  api.record = Record;
  api.passed = Passed;
  AddKernels(api);
  AddGroups(api);
  return api;
}

}  // namespace

void HostDevice::Run() {
  for (auto& [number, stream] : queues) {
    for (; !stream.empty(); stream.pop_front()) stream.front()();
  }
}

HostDevice& TheHostDevice() { return host; }

const Dd2DeviceApi& HostDeviceApi() {
  static const Dd2DeviceApi api = MakeApi();
  return api;
}

void ResetHostDevice() {
  queues.clear();
  host = HostDevice();
}

}  // namespace dd2
