#include "worker/parallel/joined_collectives.h"

#include <atomic>
#include <string>
#include <utility>
#include <vector>

#include "worker/kernels/nccl_group.h"

namespace dd2 {
namespace {

// What forming a group asks of a store, as one exchange in which rank 0 has something to say.
GroupStore StoreOf(Collectives& host) {
  GroupStore store;
  store.set = [&host](const std::string&, std::span<const std::uint8_t> value) {
    std::vector<std::uint8_t> all(value.size() * static_cast<std::size_t>(host.world_size()));
    return host.AllGather(std::as_bytes(value), std::as_writable_bytes(std::span(all)));
  };
  store.get = [&host](const std::string&,
                      std::chrono::milliseconds) -> Result<std::vector<std::uint8_t>> {
    const std::vector<std::uint8_t> mine(DD2_DEVICE_GROUP_ID_BYTES);
    std::vector<std::uint8_t> all(mine.size() * static_cast<std::size_t>(host.world_size()));
    DD2_TRY(host.AllGather(std::as_bytes(std::span(mine)), std::as_writable_bytes(std::span(all))));
    all.resize(mine.size());
    return all;
  };
  return store;
}

// Puts exchanges on the default stream (null), where LibTorch puts its work, and waits for each.
class JoinedCollectives final : public Collectives, private DeviceExchange {
 public:
  explicit JoinedCollectives(std::unique_ptr<Collectives> host) : host_(std::move(host)) {}

  Status Connect(const Dd2DeviceApi& api, std::chrono::milliseconds timeout) {
    NcclOptions options;
    options.store = StoreOf(*host_);
    options.prefix = "group";
    options.rank = host_->rank();
    options.world_size = host_->world_size();
    options.timeout = timeout;
    DD2_TRY_ASSIGN(group_, NcclGroup::Connect(api, options, over_));
    return {};
  }

  int rank() const override { return host_->rank(); }
  int world_size() const override { return host_->world_size(); }
  DeviceExchange* devices() override { return this; }
  Status AllToAll(std::span<const float> send, std::span<const std::int64_t> send_counts,
                  std::span<float> receive, std::span<const std::int64_t> receive_counts) override {
    return Ended(host_->AllToAll(send, send_counts, receive, receive_counts));
  }
  Status AllGather(std::span<const std::byte> mine, std::span<std::byte> all) override {
    return Ended(host_->AllGather(mine, all));
  }
  void Abort() override {
    over_ = true;  // before the host's: who waits there for a peer must not begin another exchange
    host_->Abort();
  }

 private:
  Status AllToAll(const float* d_send, std::span<const std::int64_t> send_counts, float* d_receive,
                  std::span<const std::int64_t> receive_counts) override {
    return Ended(Waited(group_->AllToAll(d_send, send_counts, d_receive, receive_counts, nullptr)));
  }
  Status AllGather(const float* d_mine, float* d_all, std::int64_t count) override {
    return Ended(Waited(group_->AllGather(d_mine, d_all, count, nullptr)));
  }
  Status Waited(const Status& begun) { return begun ? group_->Wait(nullptr) : begun; }
  Status Ended(Status status) {
    if (!status) Abort();
    return status;
  }

  std::atomic<bool> over_{false};
  const std::unique_ptr<Collectives> host_;
  std::unique_ptr<NcclGroup> group_;
};

}  // namespace

Result<std::unique_ptr<Collectives>> JoinDevices(std::unique_ptr<Collectives> host,
                                                 const Dd2DeviceApi& api,
                                                 std::chrono::milliseconds timeout,
                                                 ConnectAbort& abort) {
  auto joined = std::make_unique<JoinedCollectives>(std::move(host));
  abort.OnAbort([&joined] { joined->Abort(); });
  const Status formed = joined->Connect(api, timeout);
  abort.OnAbort(nullptr);
  if (abort.aborted()) return Error(Code::kAborted, "the generation is over");
  DD2_TRY(formed);
  return std::unique_ptr<Collectives>(std::move(joined));
}

}  // namespace dd2
