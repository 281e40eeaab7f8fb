#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "common/result.h"
#include "worker/kernels/device_api.h"

namespace dd2 {

// The two operations of c10d's store that forming a group needs. `get` waits until the key is there
// or the time is over (kDeadlineExceeded).
struct GroupStore {
  std::function<Status(const std::string& key, std::span<const std::uint8_t> value)> set;
  std::function<Result<std::vector<std::uint8_t>>(const std::string& key,
                                                  std::chrono::milliseconds timeout)>
      get;
};

struct NcclOptions {
  GroupStore store;
  std::string prefix;  // of this generation's keys
  int rank = 0;
  int world_size = 1;
  std::chrono::milliseconds timeout{30000};  // of forming the group, and of one exchange
};

// The ranks' GPUs of one generation, joined by NCCL. Exchanges are only put on a stream; Wait says
// whether they came through. An error (kAborted: a peer or the network has failed, or `over` was
// set; kDeadlineExceeded) ends the group at once, with everything it has on a stream: form a new
// one for the next generation. Compute thread only; counts are of floats.
class NcclGroup {
 public:
  // Blocks until all ranks are there. `over`: set by any thread when the generation is over;
  // whoever waits here then returns kAborted. It and `api` must outlive the group.
  // kFailedPrecondition: NCCL refuses for a reason that no peer's end can give it (there is no id
  // to be had, nothing can be begun, or it is used wrongly: two ranks on one GPU, two versions).
  // Whatever else fails while ranks meet looks like a lost peer: see FormingTries.
  static Result<std::unique_ptr<NcclGroup>> Connect(const Dd2DeviceApi& api,
                                                    const NcclOptions& options,
                                                    const std::atomic<bool>& over);
  ~NcclGroup();
  NcclGroup(const NcclGroup&) = delete;
  NcclGroup& operator=(const NcclGroup&) = delete;

  int rank() const { return rank_; }
  int world_size() const { return world_size_; }

  // d_receive [world_size * count]; may contain d_send at this rank's place.
  Status AllGather(const float* d_send, float* d_receive, std::int64_t count, Dd2Stream stream);
  // As Collectives::AllToAll.
  Status AllToAll(const float* d_send, std::span<const std::int64_t> send_counts, float* d_receive,
                  std::span<const std::int64_t> receive_counts, Dd2Stream stream);
  // Waits for all that `stream` has been given, and for the group's errors meanwhile.
  Status Wait(Dd2Stream stream);

 private:
  NcclGroup(const Dd2DeviceApi& api, const NcclOptions& options, const std::atomic<bool>& over);
  // Asks `state` until it is not busy any more; ends the group when it is not OK then.
  Status Settle(const std::function<Dd2DeviceCode()>& state, const char* what);
  Status Put(Dd2DeviceCode code, const char* what);
  Error End(Error error);

  const Dd2DeviceApi& api_;
  const std::atomic<bool>& over_;
  const int rank_;
  const int world_size_;
  const std::chrono::milliseconds timeout_;
  Dd2Group group_ = nullptr;  // null: ended
  Dd2Event done_ = nullptr;
};

// Whether groups cannot be formed at all. No room in /dev/shm, an interface that leads nowhere, and
// a peer that died meanwhile answer alike, on this rank or as the echo of another's failure. But
// the coordinator soon ends the generation of a dead peer, and the next one is without it; what is
// wrong with a machine is wrong again. So tries in a row are counted that nobody aborted, of worlds
// of one size.
class FormingTries {
 public:
  static constexpr int kMax = 3;
  // What came of a try among `world_size` ranks (of one: a group without anybody): as it is, or
  // kFailedPrecondition with advice in the place of the last kAborted or kDeadlineExceeded of kMax
  // in a row.
  Status After(const Status& formed, int world_size);

 private:
  int world_size_ = 0;  // of the last try
  int failed_ = 0;
};

}  // namespace dd2
