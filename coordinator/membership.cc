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
  for (const auto& [name, domain] : domains_) {
    for (const auto& [local_rank, other] : domain.workers) {
      if (name == hello.domain() && local_rank == hello.local_rank()) {
        return Error(Code::kInvalidArgument,
                     who + " contradicts " + Name(other.hello) + ": same local rank");
      }
      if (other.hello.numeric_mode() != hello.numeric_mode()) {
        return Error(Code::kFailedPrecondition,
                     who + " computes with '" + hello.numeric_mode() + "', " + Name(other.hello) +
                         " with '" + other.hello.numeric_mode() +
                         "': their bits would differ. Use the same build, library and thread count "
                         "everywhere");
      }
      if (other.hello.code_version() != hello.code_version()) {
        return Error(Code::kFailedPrecondition,
                     who + " is of version " + hello.code_version() + ", " + Name(other.hello) +
                         " of " + other.hello.code_version() +
                         ": their bits may differ. Use the same build everywhere");
      }
      if (other.hello.teacher_digest() != hello.teacher_digest()) {
        return Error(Code::kFailedPrecondition,
                     who + " has another teacher (" + hello.teacher_digest() + ") than " +
                         Name(other.hello) + " (" + other.hello.teacher_digest() +
                         "): teacher.path must name the same files everywhere");
      }
    }
  }
  return Status();
}

void Membership::Insert(ConnectionId connection, std::string address, proto::WorkerHello hello,
                        TimePoint now) {
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
  domain.workers[member.hello.local_rank()] = std::move(member);
}

Status Membership::AddWorker(ConnectionId connection, std::string address, proto::WorkerHello hello,
                             Generation said, TimePoint now) {
  // A fresh worker learns its generation from the Assignment; 0 says that it knows none yet.
  if (!hello.resumes() && said != Generation(0) && said != generation_) {
    return CheckGeneration(said);
  }
  DD2_TRY(CheckNumbers(hello));
  const std::string name = hello.domain();
  const std::int32_t local_rank = hello.local_rank();
  const bool ready = !hello.resumes();
  Insert(connection, std::move(address), std::move(hello), now);
  domains_[name].workers[local_rank].ready = ready;
  return Status();
}

Status Membership::Reattach(ConnectionId connection, std::string address, proto::WorkerHello hello,
                            Generation said, TimePoint now) {
  DD2_TRY(CheckGeneration(said));
  DD2_TRY(CheckNumbers(hello));
  const std::string name = hello.domain();
  const std::int32_t local_rank = hello.local_rank();
  const Rank rank(hello.rank());
  Insert(connection, std::move(address), std::move(hello), now);
  domains_[name].workers[local_rank].rank = rank;
  domains_[name].worked = true;
  return Status();
}

std::vector<ConnectionId> Membership::Break() {
  std::vector<ConnectionId> members;
  generation_ = Generation(generation_.value() + 1);
  formed_ = false;
  for (auto& [name, domain] : domains_) {
    for (auto& [local_rank, member] : domain.workers) {
      // A fresh worker that waits for its first generation is as ready as before.
      if (!member.rank && member.ready && !member.held.has_state()) continue;
      member.rank.reset();
      member.ready = false;
      members.push_back(member.connection);
    }
  }
  return members;
}

void Membership::Form(const std::vector<std::string>& domains) {
  std::int32_t next = 0;
  for (const std::string& name : domains) {
    DomainMember& domain = domains_.at(name);
    DD2_CHECK(Whole(domain));
    domain.worked = true;
    for (auto& [local_rank, member] : domain.workers) {
      member.rank = Rank(next++);
      member.ready = false;
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
  DomainMember* domain = DomainOf(connection);
  if (domain == nullptr) return;
  if (domain->agent && domain->agent->connection == connection) domain->agent->last_seen = now;
  if (WorkerMember* member = worker(connection)) member->last_seen = now;
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

void Membership::Remove(ConnectionId connection) {
  DomainMember* domain = DomainOf(connection);
  if (domain == nullptr) return;
  if (domain->agent && domain->agent->connection == connection) {
    domain->agent.reset();
    return;
  }
  std::erase_if(domain->workers,
                [connection](const auto& entry) { return entry.second.connection == connection; });
}

WorkerMember* Membership::worker(ConnectionId connection) {
  for (auto& [name, domain] : domains_) {
    for (auto& [local_rank, member] : domain.workers) {
      if (member.connection == connection) return &member;
    }
  }
  return nullptr;
}

DomainMember* Membership::DomainOf(ConnectionId connection) {
  for (auto& [name, domain] : domains_) {
    if (domain.agent && domain.agent->connection == connection) return &domain;
    for (const auto& [local_rank, member] : domain.workers) {
      if (member.connection == connection) return &domain;
    }
  }
  return nullptr;
}

bool Membership::IsAgent(ConnectionId connection) {
  const DomainMember* domain = DomainOf(connection);
  return domain != nullptr && domain->agent && domain->agent->connection == connection;
}

std::vector<const WorkerMember*> Membership::workers() const {
  std::vector<const WorkerMember*> order;
  for (const auto& [name, domain] : domains_) {
    for (const auto& [local_rank, member] : domain.workers) order.push_back(&member);
  }
  std::stable_sort(order.begin(), order.end(), [](const WorkerMember* a, const WorkerMember* b) {
    return a->rank.value_or(Rank(-1)) < b->rank.value_or(Rank(-1));
  });
  return order;
}

std::vector<const WorkerMember*> Membership::ranks() const {
  std::vector<const WorkerMember*> order = workers();
  std::erase_if(order, [](const WorkerMember* member) { return !member->rank; });
  return order;
}

}  // namespace dd2
