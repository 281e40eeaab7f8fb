#include <nccl.h>

#include <cstring>
#include <string>

#include "worker/kernels/device_api.h"
#include "worker/kernels/device_error.h"

// Groups of the table over NCCL. Communicators are non-blocking: a call that is not through yet
// answers ncclInProgress, so that the host is never stuck inside NCCL and can abort.
namespace dd2 {

int NcclVersion() {
  int version = 0;
  return ncclGetVersion(&version) == ncclSuccess ? version : 0;
}

namespace {

static_assert(sizeof(ncclUniqueId) == DD2_DEVICE_GROUP_ID_BYTES);

ncclComm_t CommOf(Dd2Group group) { return static_cast<ncclComm_t>(group); }

Dd2DeviceCode FromNccl(ncclResult_t result, const char* call, ncclComm_t comm) {
  if (result == ncclSuccess) return DD2_DEVICE_OK;
  if (result == ncclInProgress) return DD2_DEVICE_BUSY;
  std::string text = std::string(call) + ": " + ncclGetErrorString(result);
  const char* details = ncclGetLastError(comm);
  if (details != nullptr && details[0] != '\0') text += std::string(" (") + details + ")";
  const bool ours = result == ncclInvalidArgument || result == ncclInvalidUsage;
  return DeviceFailure(ours ? DD2_DEVICE_BAD_ARGUMENT : DD2_DEVICE_GROUP_FAILED, text);
}

Dd2DeviceCode GroupId(uint8_t id[DD2_DEVICE_GROUP_ID_BYTES]) {
  ncclUniqueId unique{};
  const ncclResult_t result = ncclGetUniqueId(&unique);
  std::memcpy(id, &unique, sizeof(unique));
  return FromNccl(result, "ncclGetUniqueId", nullptr);
}

Dd2DeviceCode BeginGroup(const uint8_t id[DD2_DEVICE_GROUP_ID_BYTES], int32_t world_size,
                         int32_t rank, Dd2Group* group) {
  ncclUniqueId unique;
  std::memcpy(&unique, id, sizeof(unique));
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  ncclComm_t comm = nullptr;
  const ncclResult_t result = ncclCommInitRankConfig(&comm, world_size, unique, rank, &config);
  *group = comm;
  return FromNccl(result, "ncclCommInitRankConfig", comm);
}

Dd2DeviceCode GroupState(Dd2Group group) {
  ncclResult_t state = ncclSuccess;
  const ncclResult_t result = ncclCommGetAsyncError(CommOf(group), &state);
  return FromNccl(result == ncclSuccess ? state : result, "NCCL", CommOf(group));
}

Dd2DeviceCode AbortGroup(Dd2Group group) {
  return FromNccl(ncclCommAbort(CommOf(group)), "ncclCommAbort", nullptr);
}

Dd2DeviceCode AllGather(Dd2Group group, const float* send, float* receive, int64_t count,
                        Dd2Stream stream) {
  return FromNccl(ncclAllGather(send, receive, static_cast<size_t>(count), ncclFloat, CommOf(group),
                                static_cast<cudaStream_t>(stream)),
                  "ncclAllGather", CommOf(group));
}

// NCCL's own all-to-all has equal counts only.
Dd2DeviceCode AllToAll(Dd2Group group, int32_t world_size, const float* send,
                       const int64_t* send_counts, float* receive, const int64_t* receive_counts,
                       Dd2Stream stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  ncclResult_t result = ncclGroupStart();
  if (result != ncclSuccess) return FromNccl(result, "ncclGroupStart", CommOf(group));
  // Inside a group calls are only noted; what they answer is what is wrong with their arguments.
  ncclResult_t noted = ncclSuccess;
  for (int32_t peer = 0; peer < world_size && noted == ncclSuccess; ++peer) {
    const auto out = static_cast<size_t>(send_counts[peer]);
    const auto in = static_cast<size_t>(receive_counts[peer]);
    if (out > 0) noted = ncclSend(send, out, ncclFloat, peer, CommOf(group), on);
    if (in > 0 && noted == ncclSuccess) {
      noted = ncclRecv(receive, in, ncclFloat, peer, CommOf(group), on);
    }
    send += out;
    receive += in;
  }
  result = ncclGroupEnd();
  return FromNccl(noted != ncclSuccess ? noted : result, "all-to-all", CommOf(group));
}

}  // namespace

void AddGroupCalls(Dd2DeviceApi& api) {
  api.group_id = GroupId;
  api.begin_group = BeginGroup;
  api.group_state = GroupState;
  api.abort_group = AbortGroup;
  api.all_gather = AllGather;
  api.all_to_all = AllToAll;
}

}  // namespace dd2
