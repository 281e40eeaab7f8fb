#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
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
  std::optional<Rank> rank;  // once its generation is formed
  std::int32_t phase = -1;
  std::int64_t step = 0;
  TimePoint last_seen;
  bool done = false;  // said WorkerDone
};

struct AgentMember {
  ConnectionId connection;
  proto::AgentHello hello;  // without the secret
  TimePoint last_seen;
};

// Who belongs to the run. A generation is the fence: it is formed once, when all ranks are there,
// and a message of an older (or unknown newer) one is refused (design 2).
//
// Pure; owned by RunCore; control thread. It knows connections by number only and decides nothing
// about what a loss means.
class Membership {
 public:
  // `next`: the generation that is being gathered; all smaller ones are over.
  Membership(std::int32_t ranks, Generation next);

  // kFailedPrecondition: the run has an agent already (this version runs one domain).
  Status AddAgent(ConnectionId connection, proto::AgentHello hello, TimePoint now);
  // kAborted: the generation is over or was formed without it. kInvalidArgument: the numbers of the
  // hello contradict the run or each other. kFailedPrecondition: another numeric mode than the
  // workers that are here.
  Status AddWorker(ConnectionId connection, std::string address, proto::WorkerHello hello,
                   Generation said, TimePoint now);
  // Whether all ranks are here and the generation can be formed.
  bool Complete() const;
  // Gives ranks in the order (domain, local rank). Complete() must hold.
  void Form();

  // kAborted: a message from outside the current generation.
  Status CheckGeneration(Generation said) const;
  void Seen(ConnectionId connection, TimePoint now);
  // Connections that have been silent for kHeartbeatExpiry.
  std::vector<ConnectionId> Expired(TimePoint now) const;
  // We were asleep ourselves (stopped, suspended): nobody's silence before `now` counts.
  void ForgiveSilence(TimePoint now);
  void Remove(ConnectionId connection);

  // Being gathered or, when formed(), current.
  Generation generation() const { return generation_; }
  bool formed() const { return formed_; }
  WorkerMember* worker(ConnectionId connection);
  const std::optional<AgentMember>& agent() const { return agent_; }
  bool IsAgent(ConnectionId connection) const { return agent_ && agent_->connection == connection; }
  // In rank order once formed.
  std::vector<const WorkerMember*> workers() const;
  std::size_t worker_count() const { return workers_.size(); }

 private:
  const std::int32_t ranks_;
  Generation generation_;
  bool formed_ = false;
  std::optional<AgentMember> agent_;
  std::map<ConnectionId, WorkerMember> workers_;
};

}  // namespace dd2
