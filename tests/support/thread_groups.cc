#include "tests/support/thread_groups.h"

#include <algorithm>
#include <atomic>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <string>
#include <vector>

namespace dd2 {
namespace {

using Counts = std::vector<int64_t>;
using Outstanding = std::shared_ptr<std::atomic<int>>;  // exchanges that a thread has begun

struct Exchange {
  const float* send;
  Counts send_counts;  // an all-gather sends the same to everybody
  float* receive;
  Counts receive_counts;
  bool gather;
  Outstanding outstanding;
};

struct Group {
  int joined = 0;
  std::vector<std::deque<Exchange>> of_rank;
};

struct Member {
  std::shared_ptr<Group> group;
  int rank;
};

std::mutex mutex;
std::map<std::string, std::shared_ptr<Group>> groups;
Dd2DeviceCode (*copy)(void*, const void*, size_t, Dd2Stream);
thread_local const Outstanding outstanding = std::make_shared<std::atomic<int>>(0);

int64_t Before(const Counts& counts, std::size_t rank) {
  return std::accumulate(counts.begin(), counts.begin() + static_cast<std::ptrdiff_t>(rank),
                         int64_t{0});
}

void Move(const std::vector<Exchange>& exchanges) {
  for (std::size_t to = 0; to < exchanges.size(); ++to) {
    for (std::size_t from = 0; from < exchanges.size(); ++from) {
      const Exchange &a = exchanges[from], &b = exchanges[to];
      const float* source = a.send + (a.gather ? 0 : Before(a.send_counts, to));
      float* target = b.receive + Before(b.receive_counts, from);
      const auto bytes = static_cast<size_t>(b.receive_counts[from]) * sizeof(float);
      if (bytes > 0 && source != target) copy(target, source, bytes, nullptr);
    }
  }
}

Dd2DeviceCode Begin(Dd2Group handle, Exchange exchange) {
  const std::lock_guard lock(mutex);
  const auto* member = static_cast<const Member*>(handle);
  auto& of_rank = member->group->of_rank;
  ++*exchange.outstanding;
  of_rank[static_cast<std::size_t>(member->rank)].push_back(std::move(exchange));
  while (std::ranges::none_of(of_rank, [](const auto& queue) { return queue.empty(); })) {
    std::vector<Exchange> all;
    for (auto& queue : of_rank) {
      all.push_back(queue.front());
      queue.pop_front();
    }
    Move(all);
    for (const Exchange& one : all) --*one.outstanding;
  }
  return DD2_DEVICE_OK;
}

Dd2DeviceCode BeginGroup(const uint8_t* id, int32_t world_size, int32_t rank, Dd2Group* handle) {
  const std::lock_guard lock(mutex);
  const std::string name(id, id + DD2_DEVICE_GROUP_ID_BYTES);
  std::shared_ptr<Group>& group = groups[name];
  if (!group) group = std::make_shared<Group>();
  group->of_rank.resize(static_cast<std::size_t>(world_size));
  ++group->joined;
  *handle = new Member{group, rank};
  return DD2_DEVICE_BUSY;
}

Dd2DeviceCode GroupState(Dd2Group handle) {
  const std::lock_guard lock(mutex);
  const Group& group = *static_cast<const Member*>(handle)->group;
  return group.joined == static_cast<int>(group.of_rank.size()) ? DD2_DEVICE_OK : DD2_DEVICE_BUSY;
}

Dd2DeviceCode AbortGroup(Dd2Group handle) {
  const std::lock_guard lock(mutex);
  const std::unique_ptr<Member> member(static_cast<Member*>(handle));
  auto& mine = member->group->of_rank[static_cast<std::size_t>(member->rank)];
  for (const Exchange& exchange : mine) --*exchange.outstanding;
  mine.clear();
  return DD2_DEVICE_OK;
}

Dd2DeviceCode AllGather(Dd2Group handle, const float* send, float* receive, int64_t count,
                        Dd2Stream) {
  const std::size_t world = static_cast<const Member*>(handle)->group->of_rank.size();
  return Begin(handle, {send, {}, receive, Counts(world, count), true, outstanding});
}

Dd2DeviceCode AllToAll(Dd2Group handle, int32_t world_size, const float* send,
                       const int64_t* send_counts, float* receive, const int64_t* receive_counts,
                       Dd2Stream) {
  return Begin(handle, {send, Counts(send_counts, send_counts + world_size), receive,
                        Counts(receive_counts, receive_counts + world_size), false, outstanding});
}

}  // namespace

Dd2DeviceApi WithThreadGroups(const Dd2DeviceApi& base) {
  Dd2DeviceApi api = base;
  copy = base.copy;
  api.group_id = [](uint8_t* id) {
    static std::atomic<uint8_t> last{0};
    std::fill_n(id, DD2_DEVICE_GROUP_ID_BYTES, ++last);
    return Dd2DeviceCode{DD2_DEVICE_OK};
  };
  api.begin_group = BeginGroup;
  api.group_state = GroupState;
  api.abort_group = AbortGroup;
  api.all_gather = AllGather;
  api.all_to_all = AllToAll;
  // Of the calling thread: it waits for what itself has begun.
  api.passed = [](Dd2Event) {
    return Dd2DeviceCode{*outstanding == 0 ? DD2_DEVICE_OK : DD2_DEVICE_BUSY};
  };
  return api;
}

}  // namespace dd2
