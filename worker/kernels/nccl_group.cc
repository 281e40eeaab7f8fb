#include "worker/kernels/nccl_group.h"

#include <algorithm>
#include <array>
#include <thread>
#include <utility>

#include "common/check.h"
#include "worker/kernels/device.h"

namespace dd2 {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::microseconds kPoll{20};
// A wait for the store is cut into these, so that `over` is seen.
constexpr std::chrono::milliseconds kStorePoll{200};

using GroupId = std::array<std::uint8_t, DD2_DEVICE_GROUP_ID_BYTES>;

Error Over() { return Error(Code::kAborted, "NCCL: the generation is over"); }

Error CannotForm(const Error& error) {
  return Error(Code::kFailedPrecondition,
               "NCCL cannot join the GPUs of the ranks: " + error.message() +
                   ". NCCL_DEBUG=INFO makes it say more. It needs an address under which the ranks "
                   "reach each other (NCCL_SOCKET_IFNAME=INTERFACE), room in /dev/shm, a GPU for "
                   "each rank and the same version everywhere");
}

Result<std::vector<std::uint8_t>> GetFromStore(const NcclOptions& options, const std::string& key,
                                               const std::atomic<bool>& over) {
  const Clock::time_point end = Clock::now() + options.timeout;
  while (true) {
    if (over) return Over();
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(end - Clock::now());
    if (left.count() <= 0) {
      return Error(Code::kDeadlineExceeded,
                   "NCCL: rank 0 did not put '" + key + "' into the store: it did not come");
    }
    auto value = options.store.get(key, std::min(left, kStorePoll));
    if (value || value.error().code() != Code::kDeadlineExceeded) return value;
  }
}

// Rank 0 makes the group's id and puts it into the store, the others take it from there.
Result<GroupId> AgreeOnId(const Dd2DeviceApi& api, const NcclOptions& options,
                          const std::atomic<bool>& over) {
  const std::string key = options.prefix + "/nccl-id";
  GroupId id{};
  if (options.rank == 0) {
    const Status made = DeviceStatus(api, api.group_id(id.data()));
    if (!made) return over ? Over() : CannotForm(made.error());
    DD2_TRY(options.store.set(key, id));
    return id;
  }
  DD2_TRY_ASSIGN(const std::vector<std::uint8_t> bytes, GetFromStore(options, key, over));
  if (bytes.size() != id.size()) {
    return Error(Code::kInternal, "NCCL: '" + key + "' in the store has " +
                                      std::to_string(bytes.size()) + " bytes, an id has " +
                                      std::to_string(id.size()));
  }
  std::ranges::copy(bytes, id.begin());
  return id;
}

}  // namespace

NcclGroup::NcclGroup(const Dd2DeviceApi& api, const NcclOptions& options,
                     const std::atomic<bool>& over)
    : api_(api),
      over_(over),
      rank_(options.rank),
      world_size_(options.world_size),
      timeout_(options.timeout) {}

Result<std::unique_ptr<NcclGroup>> NcclGroup::Connect(const Dd2DeviceApi& api,
                                                      const NcclOptions& options,
                                                      const std::atomic<bool>& over) {
  DD2_CHECK(options.rank >= 0 && options.rank < options.world_size);
  DD2_TRY_ASSIGN(const GroupId id, AgreeOnId(api, options, over));
  std::unique_ptr<NcclGroup> group(new NcclGroup(api, options, over));
  DD2_TRY(DeviceStatus(api, api.make_event(0, &group->done_)));
  const Dd2DeviceCode code =
      api.begin_group(id.data(), options.world_size, options.rank, &group->group_);
  const Status formed = group->Put(code, "forming the group");
  if (formed) return group;
  const bool refused = (code != DD2_DEVICE_OK && code != DD2_DEVICE_BUSY) ||
                       formed.error().code() == Code::kInvalidArgument;
  return refused && !over ? CannotForm(formed.error()) : formed.error();
}

Status FormingTries::After(const Status& formed, int world_size) {
  if (std::exchange(world_size_, world_size) != world_size) failed_ = 0;
  if (formed) {
    failed_ = 0;
    return {};
  }
  const Code code = formed.error().code();
  if (code != Code::kAborted && code != Code::kDeadlineExceeded) return formed;
  if (++failed_ < kMax) return formed;
  return CannotForm(formed.error().Wrap(std::to_string(failed_) + " times in a row"));
}

NcclGroup::~NcclGroup() {
  if (group_ != nullptr) api_.abort_group(group_);  // waits for nobody
  if (done_ != nullptr) api_.end_event(done_);
}

Error NcclGroup::End(Error error) {
  if (group_ != nullptr) api_.abort_group(std::exchange(group_, nullptr));
  return error;
}

Status NcclGroup::Settle(const std::function<Dd2DeviceCode()>& state, const char* what) {
  const Clock::time_point end = Clock::now() + timeout_;
  while (true) {
    const Dd2DeviceCode code = state();
    if (code == DD2_DEVICE_OK) return {};
    if (code != DD2_DEVICE_BUSY) return End(DeviceStatus(api_, code).error().Wrap(what));
    if (over_) return End(Over());
    if (Clock::now() >= end) {
      return End(Error(Code::kDeadlineExceeded, std::string("NCCL: ") + what + " was not done in " +
                                                    std::to_string(timeout_.count()) +
                                                    " ms: a rank is silent"));
    }
    std::this_thread::sleep_for(kPoll);
  }
}

// What a call answered: BUSY means that the group's state will say.
Status NcclGroup::Put(Dd2DeviceCode code, const char* what) {
  if (code == DD2_DEVICE_OK) return {};
  if (code != DD2_DEVICE_BUSY) return End(DeviceStatus(api_, code).error().Wrap(what));
  return Settle([this] { return api_.group_state(group_); }, what);
}

Status NcclGroup::AllGather(const float* d_send, float* d_receive, std::int64_t count,
                            Dd2Stream stream) {
  if (group_ == nullptr || over_) return End(Over());
  return Put(api_.all_gather(group_, d_send, d_receive, count, stream), "all-gather");
}

Status NcclGroup::AllToAll(const float* d_send, std::span<const std::int64_t> send_counts,
                           float* d_receive, std::span<const std::int64_t> receive_counts,
                           Dd2Stream stream) {
  if (group_ == nullptr || over_) return End(Over());
  const auto world = static_cast<std::size_t>(world_size_);
  DD2_CHECK(send_counts.size() == world && receive_counts.size() == world);
  return Put(api_.all_to_all(group_, world_size_, d_send, send_counts.data(), d_receive,
                             receive_counts.data(), stream),
             "all-to-all");
}

Status NcclGroup::Wait(Dd2Stream stream) {
  if (group_ == nullptr) return Over();
  const Dd2DeviceCode recorded = api_.record(done_, stream);
  if (recorded != DD2_DEVICE_OK) return End(DeviceStatus(api_, recorded).error());
  return Settle(
      [this] {
        // A group that has failed may leave its stream waiting for ever.
        const Dd2DeviceCode group = api_.group_state(group_);
        return group == DD2_DEVICE_OK ? api_.passed(done_) : group;
      },
      "waiting for the exchange");
}

}  // namespace dd2
