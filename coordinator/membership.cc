#include "coordinator/membership.h"

#include <algorithm>
#include <tuple>
#include <utility>

#include "common/check.h"
#include "common/timeouts.h"

namespace dd2 {

namespace {

std::string Name(const proto::WorkerHello& hello) {
  return "worker " + std::to_string(hello.local_rank()) + " of domain '" + hello.domain() +
         "' (pid " + std::to_string(hello.pid()) + ")";
}

}  // namespace

Membership::Membership(std::int32_t ranks, Generation next) : ranks_(ranks), generation_(next) {
  DD2_CHECK(ranks >= 1);
  DD2_CHECK(next.value() >= 1);
}

Status Membership::AddAgent(ConnectionId connection, proto::AgentHello hello, TimePoint now) {
  if (agent_) {
    return Error(Code::kFailedPrecondition, "the run already has the agent of domain '" +
                                                agent_->hello.domain() + "' (pid " +
                                                std::to_string(agent_->hello.pid()) +
                                                "); domain '" + hello.domain() + "' is not needed");
  }
  hello.clear_secret();
  AgentMember member;
  member.connection = connection;
  member.hello = std::move(hello);
  member.last_seen = now;
  agent_ = std::move(member);
  return Status();
}

Status Membership::AddWorker(ConnectionId connection, std::string address, proto::WorkerHello hello,
                             Generation said, TimePoint now) {
  const std::string who = Name(hello);
  // A worker learns its generation from the Assignment; 0 says that it does not know one yet.
  if (said != Generation(0) && said != generation_) return CheckGeneration(said);
  if (formed_) {
    return Error(Code::kAborted, who + ": generation " + std::to_string(generation_.value()) +
                                     " is already formed");
  }
  if (hello.local_rank() < 0 || hello.local_rank() >= hello.local_size() ||
      hello.local_size() > ranks_) {
    return Error(Code::kInvalidArgument,
                 who + " says that its domain has " + std::to_string(hello.local_size()) +
                     " workers; the run has " + std::to_string(ranks_) + " ranks");
  }
  for (const auto& [other_connection, other] : workers_) {
    if (other.hello.domain() == hello.domain() &&
        (other.hello.local_rank() == hello.local_rank() ||
         other.hello.local_size() != hello.local_size())) {
      return Error(Code::kInvalidArgument, who + " contradicts " + Name(other.hello) +
                                               ": same local rank or another domain size");
    }
    if (other.hello.numeric_mode() != hello.numeric_mode()) {
      return Error(Code::kFailedPrecondition,
                   who + " computes with '" + hello.numeric_mode() + "', " + Name(other.hello) +
                       " with '" + other.hello.numeric_mode() +
                       "': their bits would differ. Use the same build, library and thread count "
                       "everywhere");
    }
  }
  hello.clear_secret();
  WorkerMember member;
  member.connection = connection;
  member.address = std::move(address);
  member.hello = std::move(hello);
  member.last_seen = now;
  workers_[connection] = std::move(member);
  return Status();
}

bool Membership::Complete() const {
  return !formed_ && static_cast<std::int32_t>(workers_.size()) == ranks_;
}

void Membership::Form() {
  DD2_CHECK(Complete());
  std::vector<WorkerMember*> order;
  for (auto& [connection, member] : workers_) order.push_back(&member);
  std::sort(order.begin(), order.end(), [](const WorkerMember* a, const WorkerMember* b) {
    return std::forward_as_tuple(a->hello.domain(), a->hello.local_rank()) <
           std::forward_as_tuple(b->hello.domain(), b->hello.local_rank());
  });
  for (std::size_t i = 0; i < order.size(); ++i)
    order[i]->rank = Rank(static_cast<std::int32_t>(i));
  formed_ = true;
}

Status Membership::CheckGeneration(Generation said) const {
  if (formed_ && said == generation_) return Status();
  return Error(Code::kAborted, "a message of generation " + std::to_string(said.value()) +
                                   "; the run is in generation " +
                                   std::to_string(generation_.value()) +
                                   (formed_ ? "" : ", which is not formed yet"));
}

void Membership::Seen(ConnectionId connection, TimePoint now) {
  if (IsAgent(connection)) agent_->last_seen = now;
  if (WorkerMember* member = worker(connection)) member->last_seen = now;
}

std::vector<ConnectionId> Membership::Expired(TimePoint now) const {
  std::vector<ConnectionId> silent;
  if (agent_ && now - agent_->last_seen >= timeouts::kHeartbeatExpiry) {
    silent.push_back(agent_->connection);
  }
  for (const auto& [connection, member] : workers_) {
    if (now - member.last_seen >= timeouts::kHeartbeatExpiry) silent.push_back(connection);
  }
  return silent;
}

void Membership::ForgiveSilence(TimePoint now) {
  if (agent_) agent_->last_seen = now;
  for (auto& [connection, member] : workers_) member.last_seen = now;
}

void Membership::Remove(ConnectionId connection) {
  if (IsAgent(connection)) agent_.reset();
  workers_.erase(connection);
}

WorkerMember* Membership::worker(ConnectionId connection) {
  const auto found = workers_.find(connection);
  return found == workers_.end() ? nullptr : &found->second;
}

std::vector<const WorkerMember*> Membership::workers() const {
  std::vector<const WorkerMember*> order;
  for (const auto& [connection, member] : workers_) order.push_back(&member);
  std::sort(order.begin(), order.end(), [](const WorkerMember* a, const WorkerMember* b) {
    return a->rank.value_or(Rank(-1)) < b->rank.value_or(Rank(-1));
  });
  return order;
}

}  // namespace dd2
