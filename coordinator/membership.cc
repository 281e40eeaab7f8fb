#include "coordinator/membership.h"

#include <algorithm>
#include <utility>

#include "common/check.h"

namespace dd2 {

namespace {

std::string Name(const proto::WorkerHello& hello) {
  return "worker " + std::to_string(hello.local_rank()) + " of domain '" + hello.domain() +
         "' (pid " + std::to_string(hello.pid()) + ")";
}

// Both can be in one generation: their bits are the same.
Status CheckAgreement(const proto::WorkerHello& hello, const proto::WorkerHello& other) {
  const std::string who = Name(hello);
  if (other.numeric_mode() != hello.numeric_mode()) {
    return Error(Code::kFailedPrecondition,
                 who + " computes with '" + hello.numeric_mode() + "', " + Name(other) + " with '" +
                     other.numeric_mode() +
                     "': their bits would differ. Use the same build, library and thread count "
                     "everywhere");
  }
  if (other.code_version() != hello.code_version()) {
    return Error(Code::kFailedPrecondition,
                 who + " is of version " + hello.code_version() + ", " + Name(other) + " of " +
                     other.code_version() +
                     ": their bits may differ. Use the same build everywhere");
  }
  if (other.teacher_digest() != hello.teacher_digest()) {
    return Error(Code::kFailedPrecondition,
                 who + " has another teacher (" + hello.teacher_digest() + ") than " + Name(other) +
                     " (" + other.teacher_digest() +
                     "): teacher.path must name the same files everywhere");
  }
  return Status();
}

}  // namespace

bool IsFresh(const DomainMember& domain) {
  return std::all_of(domain.workers.begin(), domain.workers.end(), [](const auto& entry) {
    return entry.second.ready && !entry.second.held.has_state();
  });
}

Membership::Membership(std::int32_t ranks, Generation next) : ranks_(ranks), generation_(next) {
  DD2_CHECK(ranks >= 1);
  DD2_CHECK(next.value() >= 1);
}

Status Membership::AddAgent(ConnectionId connection, proto::AgentHello hello, TimePoint now) {
  DomainMember& domain = domains_[hello.domain()];
  domain.name = hello.domain();
  if (domain.agent) {
    return Error(Code::kFailedPrecondition, "domain '" + hello.domain() +
                                                "' has an agent already (pid " +
                                                std::to_string(domain.agent->hello.pid()) + ")");
  }
  hello.clear_secret();
  AgentMember member;
  member.connection = connection;
  member.hello = std::move(hello);
  member.last_seen = now;
  domain.agent = std::move(member);
  agents_[connection.value()] = &domain;
  domain.dismissed = false;
  return Status();
}

Status Membership::CheckNumbers(const proto::WorkerHello& hello) const {
  const std::string who = Name(hello);
  if (hello.local_rank() < 0 || hello.local_rank() >= hello.local_size() ||
      hello.local_size() != ranks_) {
    return Error(Code::kInvalidArgument,
                 who + " says that its domain has " + std::to_string(hello.local_size()) +
                     " workers; each domain of this run has " + std::to_string(ranks_) +
                     " (optimiser state is cut among the ranks of a domain and copied from domain "
                     "to domain: all have the same number)");
  }
  const auto domain = domains_.find(hello.domain());
  if (domain != domains_.end()) {
    const auto same = domain->second.workers.find(hello.local_rank());
    if (same != domain->second.workers.end()) {
      return Error(Code::kInvalidArgument,
                   who + " contradicts " + Name(same->second.hello) + ": same local rank");
    }
  }
  for (const auto& [connection, place] : workers_) {
    const proto::WorkerHello& other = place.worker->hello;
    if (hello.device_id().empty() || hello.device_id() != other.device_id()) continue;
    return Error(Code::kInvalidArgument,
                 who + " computes on the GPU of " + Name(other) +
                     ": each rank needs one of its own. A domain that joins takes those from "
                     "--first-device N on (dd2 agent join)");
  }
  // All that are here agree already: any of them will do.
  return workers_.empty() ? Status()
                          : CheckAgreement(hello, workers_.begin()->second.worker->hello);
}

WorkerMember& Membership::Insert(ConnectionId connection, std::string address,
                                 proto::WorkerHello hello, TimePoint now) {
  hello.clear_secret();
  DomainMember& domain = domains_[hello.domain()];
  domain.name = hello.domain();
  if (!domain.running) domain.started = now;
  domain.running = true;
  WorkerMember member;
  member.connection = connection;
  member.address = std::move(address);
  member.held = hello.held();
  member.last_seen = now;
  member.moved = now;
  member.hello = std::move(hello);
  WorkerMember& place = domain.workers[member.hello.local_rank()];
  place = std::move(member);
  workers_[connection.value()] = Place{.domain = &domain, .worker = &place};
  ++unready_;
  return place;
}

Status Membership::AddWorker(ConnectionId connection, std::string address, proto::WorkerHello hello,
                             Generation said, TimePoint now) {
  // A fresh worker learns its generation from the Assignment; 0 says that it knows none yet.
  if (!hello.resumes() && said != Generation(0) && said != generation_) {
    return CheckGeneration(said);
  }
  DD2_TRY(CheckNumbers(hello));
  const bool ready = !hello.resumes();
  WorkerMember& member = Insert(connection, std::move(address), std::move(hello), now);
  if (ready) SetReady(member, member.held);
  return Status();
}

Status Membership::Reattach(ConnectionId connection, std::string address, proto::WorkerHello hello,
                            Generation said, TimePoint now) {
  DD2_TRY(CheckGeneration(said));
  DD2_TRY(CheckNumbers(hello));
  const Rank rank(hello.rank());
  WorkerMember& member = Insert(connection, std::move(address), std::move(hello), now);
  member.rank = rank;
  DomainOf(connection)->worked = true;
  const auto index = static_cast<std::size_t>(rank.value());
  by_rank_.resize(std::max(by_rank_.size(), index + 1));
  by_rank_[index] = &member;
  return Status();
}

std::vector<ConnectionId> Membership::Break() {
  std::vector<ConnectionId> members;
  generation_ = Generation(generation_.value() + 1);
  formed_ = false;
  by_rank_.clear();
  unready_ = 0;
  for (auto& [name, domain] : domains_) {
    for (auto& [local_rank, member] : domain.workers) {
      // A fresh worker that waits for its first generation is as ready as before.
      if (!member.rank && member.ready && !member.held.has_state()) continue;
      member.rank.reset();
      member.ready = false;
      ++unready_;
      members.push_back(member.connection);
    }
  }
  return members;
}

void Membership::Form(const std::vector<std::string>& domains) {
  by_rank_.clear();
  for (const std::string& name : domains) {
    DomainMember& domain = domains_.at(name);
    DD2_CHECK(Whole(domain));
    domain.worked = true;
    for (auto& [local_rank, member] : domain.workers) {
      member.rank = Rank(static_cast<std::int32_t>(by_rank_.size()));
      by_rank_.push_back(&member);
      if (std::exchange(member.ready, false)) ++unready_;
      member.collectives = 0;
      member.waiting = false;
      member.on_disk = false;
    }
  }
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
  if (const auto found = workers_.find(connection.value()); found != workers_.end()) {
    found->second.worker->last_seen = now;
  } else if (const auto agent = agents_.find(connection.value()); agent != agents_.end()) {
    agent->second->agent->last_seen = now;
  }
}

std::vector<ConnectionId> Membership::Expired(TimePoint now,
                                              std::chrono::milliseconds expiry) const {
  std::vector<ConnectionId> silent;
  for (const auto& [name, domain] : domains_) {
    if (domain.agent && now - domain.agent->last_seen >= expiry) {
      silent.push_back(domain.agent->connection);
    }
    for (const auto& [local_rank, member] : domain.workers) {
      if (now - member.last_seen >= expiry) {
        silent.push_back(member.connection);
      }
    }
  }
  return silent;
}

void Membership::ForgiveSilence(TimePoint now) {
  for (auto& [name, domain] : domains_) {
    if (domain.agent) domain.agent->last_seen = now;
    for (auto& [local_rank, member] : domain.workers) {
      member.last_seen = now;
      member.moved = now;
    }
  }
}

void Membership::SetReady(WorkerMember& member, proto::HeldState held) {
  member.held = std::move(held);
  if (!std::exchange(member.ready, true)) --unready_;
}

void Membership::Forget(const WorkerMember& member) {
  if (!member.ready) --unready_;
  if (member.rank) {
    const auto index = static_cast<std::size_t>(member.rank->value());
    if (index < by_rank_.size() && by_rank_[index] == &member) by_rank_[index] = nullptr;
  }
  workers_.erase(member.connection.value());
}

void Membership::Remove(ConnectionId connection) {
  if (const auto agent = agents_.find(connection.value()); agent != agents_.end()) {
    agent->second->agent.reset();
    agents_.erase(agent);
    return;
  }
  const auto found = workers_.find(connection.value());
  if (found == workers_.end()) return;
  const Place place = found->second;
  const std::int32_t local_rank = place.worker->hello.local_rank();
  Forget(*place.worker);
  place.domain->workers.erase(local_rank);
}

void Membership::RemoveWorkers(DomainMember& domain) {
  for (const auto& [local_rank, member] : domain.workers) Forget(member);
  domain.workers.clear();
}

WorkerMember* Membership::worker(ConnectionId connection) {
  const auto found = workers_.find(connection.value());
  return found == workers_.end() ? nullptr : found->second.worker;
}

DomainMember* Membership::DomainOf(ConnectionId connection) {
  if (const auto found = workers_.find(connection.value()); found != workers_.end()) {
    return found->second.domain;
  }
  const auto agent = agents_.find(connection.value());
  return agent == agents_.end() ? nullptr : agent->second;
}

bool Membership::IsAgent(ConnectionId connection) const {
  return agents_.contains(connection.value());
}

std::vector<const WorkerMember*> Membership::workers() const {
  const std::vector<const WorkerMember*> ranked = ranks();
  if (ranked.size() == workers_.size()) return ranked;
  std::vector<const WorkerMember*> order;
  for (const auto& [name, domain] : domains_) {
    for (const auto& [local_rank, member] : domain.workers) {
      if (!member.rank) order.push_back(&member);
    }
  }
  order.insert(order.end(), ranked.begin(), ranked.end());
  return order;
}

std::vector<const WorkerMember*> Membership::ranks() const {
  std::vector<const WorkerMember*> order(by_rank_.begin(), by_rank_.end());
  std::erase(order, nullptr);
  return order;
}

}  // namespace dd2
