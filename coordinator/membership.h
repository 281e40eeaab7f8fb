#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "common/clock.h"
#include "common/ids.h"
#include "common/result.h"
#include "proto/control.pb.h"

namespace dd2 {

// One accepted control connection, numbered by the coordinator; never used again in this process.
using ConnectionId = Id<struct ConnectionTag, std::uint64_t>;

// A worker that said hello.
struct WorkerMember {
  ConnectionId connection;
  std::string address;       // as the coordinator sees it
  proto::WorkerHello hello;  // without the secret
  std::optional<Rank> rank;  // in the formed generation; nothing: not part of it
  // What it brings into the generation that is being gathered, once `ready`.
  proto::HeldState held;
  bool ready = false;
  std::int32_t phase = -1;
  std::int64_t step = 0;
  std::uint64_t collectives = 0;  // entered in this generation
  bool waiting = false;           // inside one
  bool on_disk = false;           // waits until its part of a checkpoint is written
  TimePoint moved;                // when phase, step or collectives last changed
  TimePoint last_seen;
  bool done = false;  // said WorkerDone
};

struct AgentMember {
  ConnectionId connection;
  proto::AgentHello hello;  // without the secret
  TimePoint last_seen;
};

// One failure domain: an agent and the workers of its mpirun, which live and die as one.
struct DomainMember {
  std::string name;
  std::optional<AgentMember> agent;              // nothing: away
  std::map<std::int32_t, WorkerMember> workers;  // by local rank
  std::uint64_t attempt = 0;                     // number of its last start; 0: not by this process
  bool running = false;                          // its agent has started it, or is about to
  TimePoint started;                             // when that was asked for
  std::optional<TimePoint> start_at;             // it is to be started again then
  std::int32_t failures = 0;                     // ends in a row without a time of work between
  bool worked = false;       // it had ranks in a generation since its last start
  bool lacks_space = false;  // one of its workers said that the disk is full, which may pass
  bool killed = false;       // its agent, on this connection, was told to kill it
  bool dismissed = false;    // drained: its agent was told to leave
};

// None of its workers, if it has any, was ever in a generation.
bool IsFresh(const DomainMember& domain);

// Who belongs to the run. A generation is the fence: it is formed once, from whole domains, and a
// message of an older (or unknown newer) one is refused (design 2).
//
// Pure; owned by RunCore; control thread. It knows connections by number only and decides nothing
// about what a loss means. Runs have 10,000 ranks: what happens with every message finds its member
// without a search.
class Membership {
 public:
  // `ranks`: workers of each domain. `next`: the generation that is being gathered; all smaller
  // ones are over.
  Membership(std::int32_t ranks, Generation next);

  // kFailedPrecondition: this domain has an agent already.
  Status AddAgent(ConnectionId connection, proto::AgentHello hello, TimePoint now);
  // A fresh worker, which is ready, or one that comes back to be gathered. kAborted:
  // it works in a generation that is over. kInvalidArgument: the numbers of the hello contradict
  // the run or each other. kFailedPrecondition: another numeric mode than the workers that are
  // here.
  Status AddWorker(ConnectionId connection, std::string address, proto::WorkerHello hello,
                   Generation said, TimePoint now);
  // A worker of the formed generation whose connection broke. kAborted: it is not of it.
  Status Reattach(ConnectionId connection, std::string address, proto::WorkerHello hello,
                  Generation said, TimePoint now);

  // The formed generation is over, the next one is being gathered: everybody who had a rank has
  // none and is not ready. Returns their connections.
  std::vector<ConnectionId> Break();
  // Gives ranks, domain by domain in this order. All of them whole.
  void Form(const std::vector<std::string>& domains);
  // The generation was formed in an earlier life of the coordinator; its members reattach.
  void AdoptFormed() { formed_ = true; }

  // kAborted: a message from outside the current generation.
  Status CheckGeneration(Generation said) const;
  void Seen(ConnectionId connection, TimePoint now);
  // Connections that have been silent for `expiry`.
  std::vector<ConnectionId> Expired(TimePoint now, std::chrono::milliseconds expiry) const;
  // We were asleep ourselves (stopped, suspended): nobody's silence before `now` counts.
  void ForgiveSilence(TimePoint now);
  void Remove(ConnectionId connection);
  // All workers of a domain; only in this way, and by Remove.
  void RemoveWorkers(DomainMember& domain);
  // It has said what it brings into the generation that is being gathered.
  void SetReady(WorkerMember& member, proto::HeldState held);
  // Workers that have not.
  std::int32_t unready() const { return unready_; }
  std::size_t agent_count() const { return agents_.size(); }
  std::size_t worker_count() const { return workers_.size(); }

  // Being gathered or, when formed(), current.
  Generation generation() const { return generation_; }
  bool formed() const { return formed_; }
  WorkerMember* worker(ConnectionId connection);
  // The domain whose agent or worker this is; null: a stranger.
  DomainMember* DomainOf(ConnectionId connection);
  bool IsAgent(ConnectionId connection) const;
  std::map<std::string, DomainMember>& domains() { return domains_; }
  const std::map<std::string, DomainMember>& domains() const { return domains_; }
  bool Whole(const DomainMember& domain) const {
    return static_cast<std::int32_t>(domain.workers.size()) == ranks_;
  }
  // In rank order; those without a rank first.
  std::vector<const WorkerMember*> workers() const;
  // Of the formed generation, in rank order.
  std::vector<const WorkerMember*> ranks() const;

 private:
  Status CheckNumbers(const proto::WorkerHello& hello) const;
  WorkerMember& Insert(ConnectionId connection, std::string address, proto::WorkerHello hello,
                       TimePoint now);
  // It is about to be removed from its domain.
  void Forget(const WorkerMember& member);

  const std::int32_t ranks_;
  Generation generation_;
  bool formed_ = false;
  std::map<std::string, DomainMember> domains_;  // none is ever removed
  // Where connections lead to, in domains_.
  struct Place {
    DomainMember* domain = nullptr;
    WorkerMember* worker = nullptr;
  };
  std::unordered_map<std::uint64_t, DomainMember*> agents_;
  std::unordered_map<std::uint64_t, Place> workers_;
  std::vector<WorkerMember*> by_rank_;  // of the formed generation; null: not here
  std::int32_t unready_ = 0;
};

}  // namespace dd2
