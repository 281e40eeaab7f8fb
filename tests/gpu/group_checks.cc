#include "tests/gpu/group_checks.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "tests/gpu/device_array.h"
#include "worker/kernels/nccl_group.h"

namespace dd2 {
namespace {

using std::chrono::milliseconds;

// What the threads of a generation share.
class Meeting {
 public:
  explicit Meeting(int ranks) : over(static_cast<std::size_t>(ranks)) {}

  GroupStore Store() {
    const auto set = [this](const std::string& key, std::span<const std::uint8_t> value) {
      const std::lock_guard lock(mutex_);
      values_[key].assign(value.begin(), value.end());
      came_.notify_all();
      return Status();
    };
    const auto get = [this](const std::string& key,
                            milliseconds timeout) -> Result<std::vector<std::uint8_t>> {
      std::unique_lock lock(mutex_);
      if (came_.wait_for(lock, timeout, [&] { return values_.contains(key); })) return values_[key];
      return Error(Code::kDeadlineExceeded, "rank 0 put no '" + key + "'");
    };
    return {.set = set, .get = get};
  }

  // Once more is as once.
  static void Tell(std::atomic<bool>& happened) {
    happened = true;
    happened.notify_all();
  }

  std::vector<std::atomic<bool>> over;         // of each rank's generation
  std::atomic<bool> waits{false};              // rank 0 is in the exchange that nobody joins,
  std::atomic<bool> ended{false};              // and behind it
  static constexpr milliseconds kAwhile{100};  // so that it really waits

 private:
  std::mutex mutex_;
  std::condition_variable came_;
  std::map<std::string, std::vector<std::uint8_t>> values_;
};

// What `from` sends to `to`, at `index`.
float Value(int generation, int from, int to, std::int64_t index) {
  return static_cast<float>(1000 * generation + 100 * from + 10 * to) + static_cast<float>(index);
}

class Rank {
 public:
  Rank(const Dd2DeviceApi& api, int rank, int ranks, int generation, Meeting& meeting)
      : api_(api), rank_(rank), ranks_(ranks), generation_(generation), meeting_(meeting) {}

  Status Run() {
    Must(api_, api_.use(rank_));
    NcclOptions options;
    options.store = meeting_.Store();
    options.prefix = "generation-" + std::to_string(generation_);
    options.rank = rank_;
    options.world_size = ranks_;
    std::atomic<bool>& over = meeting_.over[static_cast<std::size_t>(rank_)];
    DD2_TRY_ASSIGN(group_, NcclGroup::Connect(api_, options, over));
    DD2_TRY(AllGather());
    DD2_TRY(AllToAll());
    if (rank_ == 0) return WaitAlone(over);
    meeting_.waits.wait(false);
    std::this_thread::sleep_for(Meeting::kAwhile);
    meeting_.over[0] = true;
    meeting_.ended.wait(false);
    return {};
  }

 private:
  Status Compare(const DeviceArray<float>& received, const std::vector<float>& wanted,
                 const char* what) {
    DD2_TRY(group_->Wait(nullptr));
    if (received.Get() == wanted) return {};
    return Error(Code::kInternal, std::string("NCCL's ") + what + " gave other numbers on rank " +
                                      std::to_string(rank_));
  }

  Status AllGather() {
    constexpr std::int64_t kCount = 8;
    std::vector<float> mine, all;
    for (int from = 0; from < ranks_; ++from) {
      for (std::int64_t i = 0; i < kCount; ++i) {
        all.push_back(Value(generation_, from, 0, i));
        if (from == rank_) mine.push_back(all.back());
      }
    }
    const DeviceArray<float> send(api_, mine), receive(api_, all.size());
    DD2_TRY(group_->AllGather(send.data(), receive.data(), kCount, nullptr));
    return Compare(receive, all, "all-gather");
  }

  // Rank r gets r + 1 numbers of everybody.
  Status AllToAll() {
    std::vector<float> sent, wanted;
    std::vector<std::int64_t> send_counts, receive_counts;
    for (int peer = 0; peer < ranks_; ++peer) {
      send_counts.push_back(peer + 1);
      receive_counts.push_back(rank_ + 1);
      for (int i = 0; i <= peer; ++i) sent.push_back(Value(generation_, rank_, peer, i));
      for (int i = 0; i <= rank_; ++i) wanted.push_back(Value(generation_, peer, rank_, i));
    }
    const DeviceArray<float> send(api_, sent), receive(api_, wanted.size());
    DD2_TRY(group_->AllToAll(send.data(), send_counts, receive.data(), receive_counts, nullptr));
    return Compare(receive, wanted, "all-to-all");
  }

  Status WaitAlone(std::atomic<bool>& over) {
    const DeviceArray<float> send(api_, std::vector<float>{1}),
        receive(api_, static_cast<std::size_t>(ranks_));
    const auto aborted = [](const Status& status) {
      return !status && status.error().code() == Code::kAborted;
    };
    DD2_TRY(group_->AllGather(send.data(), receive.data(), 1, nullptr));
    Meeting::Tell(meeting_.waits);
    if (ranks_ == 1) {
      over = true;
    } else if (const Status waited = group_->Wait(nullptr); !aborted(waited)) {
      return Error(Code::kInternal,
                   "NCCL: a rank whose generation is over waits on, or " +
                       (waited ? "got what nobody sent" : waited.error().message()));
    }
    if (aborted(group_->AllGather(send.data(), receive.data(), 1, nullptr))) return {};
    return Error(Code::kInternal, "NCCL: a group whose generation is over goes on");
  }

  const Dd2DeviceApi& api_;
  const int rank_, ranks_, generation_;
  Meeting& meeting_;
  std::unique_ptr<NcclGroup> group_;
};

}  // namespace

Status CheckGroup(const Dd2DeviceApi& api, int ranks, int generation) {
  Meeting meeting(ranks);
  std::vector<Status> found(static_cast<std::size_t>(ranks));
  const auto run = [&](int rank) {
    found[static_cast<std::size_t>(rank)] = Rank(api, rank, ranks, generation, meeting).Run();
    if (rank != 0) return;
    Meeting::Tell(meeting.waits);  // also when it failed before
    Meeting::Tell(meeting.ended);
  };
  {
    std::vector<std::jthread> threads;
    for (int rank = 0; rank < ranks; ++rank) threads.emplace_back(run, rank);
  }
  const auto bad = std::ranges::find_if(found, [](const Status& status) { return !status; });
  return bad == found.end() ? Status() : *bad;
}

}  // namespace dd2
