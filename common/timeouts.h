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
// A checkpoint that some ranks have reported and others not.
inline constexpr milliseconds kCheckpointParts = seconds(300);
// Default of a rendezvous store request that names none (c10d's own default).
inline constexpr milliseconds kStoreDefault = seconds(300);
// Writing one frame to a peer that does not read.
inline constexpr milliseconds kWrite = seconds(30);

static_assert(kTick * 5 <= kHeartbeatInterval, "expiry must be looked at more often than beats");
static_assert(kHeartbeatInterval * 5 <= kHeartbeatExpiry, "a few lost beats are not a lost peer");
static_assert(kHello < kWorkersJoin);
static_assert(kLossReason < kHeartbeatExpiry);
static_assert(kDomainKill < kFarewell, "a domain is killed before the coordinator stops waiting");
static_assert(kCheckpointParts < kStop, "a stop may have to wait for a whole checkpoint");
static_assert(kWrite <= kHeartbeatExpiry);

}  // namespace dd2::timeouts
