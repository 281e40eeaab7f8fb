#pragma once

#include <chrono>

namespace dd2::timeouts {

// Every time-out of the control plane in one place, with the inequalities between them that the
// protocol relies on.
using std::chrono::milliseconds;
using std::chrono::seconds;

// Workers and agents say that they live this often, from a thread that does not compute.
inline constexpr milliseconds kHeartbeatInterval = seconds(2);
// Silence after which a peer counts as lost. A closed connection is noticed at once.
inline constexpr milliseconds kHeartbeatExpiry = seconds(30);
// The coordinator looks at expiry, stop deadlines and store time-outs this often.
inline constexpr milliseconds kTick = milliseconds(200);
// First message (hello) of a new connection.
inline constexpr milliseconds kHello = seconds(10);
// From start of the coordinator to the agent's hello.
inline constexpr milliseconds kAgentJoin = seconds(60);
// From StartDomain to the hello of its last worker (program and LibTorch are loaded in between).
inline constexpr milliseconds kWorkersJoin = seconds(180);
// After a worker's connection broke: how long to wait for a better reason (WorkerFailed,
// DomainExited with its log) before the run is ended with "connection lost".
inline constexpr milliseconds kLossReason = seconds(5);
// A stop was asked for: the current step must end (an evaluation may be one step), the checkpoint
// be written and committed.
inline constexpr milliseconds kStop = seconds(600);
// The run has ended: domain and workers must be gone, else they are left to their agent.
inline constexpr milliseconds kFarewell = seconds(15);
// An agent sends SIGTERM to its domain, and SIGKILL after this.
inline constexpr milliseconds kDomainKill = seconds(5);
// One collective among the ranks: the slowest rank's step lies inside it. A rank that hangs is
// noticed by its missing heart-beats long before.
inline constexpr milliseconds kCollective = seconds(300);
// A rank says that its collective failed and nobody is known to be lost: a loss that explains it
// may still be noticed, then the generation is formed again.
inline constexpr milliseconds kTrouble = seconds(1);
// Survivors have been told to regroup: the computation that they are in must end first (an
// evaluation may take long).
inline constexpr milliseconds kUnwind = seconds(300);
// A restarted coordinator waits this long for the workers of the generation it left.
inline constexpr milliseconds kReattach = seconds(15);
// A domain is started again after this, doubled with each end in a row, up to the second.
inline constexpr milliseconds kRestartFirst = milliseconds(200);
inline constexpr milliseconds kRestartLast = seconds(10);
// Work without a loss after which a domain's earlier ends are forgotten.
inline constexpr milliseconds kRestartForgotten = seconds(60);
// A rank that computes while the others wait for it in a collective counts as hanging after this,
// or after kStallSteps average steps when that is longer.
inline constexpr milliseconds kStall = seconds(60);
inline constexpr int kStallSteps = 20;
// The same for a rank that waits for its disk before it can save again.
inline constexpr milliseconds kDiskStall = seconds(240);
// The ranks of a new generation meet: all of them were told at the same time. Also the longest time
// that a connection to a rank that hangs can hold up the next regrouping.
inline constexpr milliseconds kConnectRanks = seconds(20);
// A rank whose collective failed waits this long to be told to regroup: its peer's loss must have
// been noticed, at the latest by missing heart-beats.
inline constexpr milliseconds kRegroup = seconds(45);
// The coordinator is away: workers and agents go on for this long and try to reach it again.
inline constexpr milliseconds kCoordinatorAway = seconds(120);
// Between two tries to reach it.
inline constexpr milliseconds kReconnect = milliseconds(200);
// A checkpoint that some ranks have reported and others not.
inline constexpr milliseconds kCheckpointParts = seconds(300);
// Default of a rendezvous store request that names none (c10d's own default).
inline constexpr milliseconds kStoreDefault = seconds(300);
// Writing one frame to a peer that does not read.
inline constexpr milliseconds kWrite = seconds(30);
// HTTP API: a whole request, and the idle time of a kept connection; taking one answer or event;
// a comment on a quiet event stream; distance of two state events to one subscriber; what is left
// to read of a connection that is being closed.
inline constexpr milliseconds kHttpRequest = seconds(30);
inline constexpr milliseconds kHttpWrite = seconds(10);
inline constexpr milliseconds kEventHeartbeat = seconds(10);
inline constexpr milliseconds kEventState = milliseconds(250);
inline constexpr milliseconds kHttpLinger = seconds(1);
// What the command line grants the API for one answer, and the longest silence of an event stream.
inline constexpr milliseconds kHttpClient = seconds(10);
inline constexpr milliseconds kEventSilence = seconds(45);

static_assert(kTick * 5 <= kHeartbeatInterval, "expiry must be looked at more often than beats");
static_assert(kHeartbeatInterval * 5 <= kHeartbeatExpiry, "a few lost beats are not a lost peer");
static_assert(kHello < kWorkersJoin);
static_assert(kLossReason < kHeartbeatExpiry);
static_assert(kDomainKill < kFarewell, "a domain is killed before the coordinator stops waiting");
static_assert(kCheckpointParts < kStop, "a stop may have to wait for a whole checkpoint");
static_assert(kHeartbeatExpiry < kCollective, "the coordinator is the first to notice a hang");
static_assert(kHeartbeatExpiry < kRegroup, "a silent peer is noticed before others give up");
static_assert(kConnectRanks < kHeartbeatExpiry, "a rank that hangs in meeting others is not lost");
static_assert(kRegroup < kCoordinatorAway);
static_assert(kTrouble < kRegroup);
static_assert(kReattach < kCoordinatorAway, "workers still try when a coordinator waits for them");
static_assert(kReconnect * 10 < kReattach);
static_assert(kStall < kCollective, "the coordinator removes a hanging rank before others give up");
static_assert(kStall < kDiskStall && kDiskStall < kCollective);
static_assert(kRestartFirst < kRestartLast);
static_assert(kCollective < kStop);
static_assert(kWrite <= kHeartbeatExpiry);
static_assert(kEventHeartbeat * 4 <= kEventSilence, "a few late heartbeats are not a dead stream");

}  // namespace dd2::timeouts
