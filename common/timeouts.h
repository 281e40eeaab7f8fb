#pragma once

#include <chrono>
#include <string>
#include <vector>

namespace dd2 {

// Every time-out of the control plane in one place. Those that a user may have a reason to change
// are settings (`timeouts.*`, in seconds) with these defaults; they do not change the result.
struct Timeouts {
  using milliseconds = std::chrono::milliseconds;
  using seconds = std::chrono::seconds;

  // Workers and agents say that they live this often, from a thread that does not compute.
  milliseconds heartbeat_interval = seconds(1);
  // Silence after which a peer counts as lost. A closed connection is noticed at once.
  milliseconds heartbeat_expiry = seconds(10);
  // From start of the coordinator to the agent's hello.
  milliseconds agent_join = seconds(60);
  // From StartDomain to the hello of its last worker (program and LibTorch are loaded in between).
  milliseconds workers_join = seconds(180);
  // One collective among the ranks: the slowest rank's step lies inside it. A rank that hangs is
  // noticed by its missing heart-beats long before.
  milliseconds collective = seconds(300);
  // A rank that computes while the others wait for it in a collective counts as hanging after this,
  // or after kStallSteps average steps when that is longer.
  milliseconds stall = seconds(60);
  // A rank whose collective failed waits this long to be told to regroup: its peer's loss must have
  // been noticed, at the latest by missing heart-beats.
  milliseconds regroup = seconds(45);
  // Survivors have been told to regroup: the computation that they are in must end first (an
  // evaluation may take long).
  milliseconds unwind = seconds(300);
  // The coordinator is away: workers and agents go on for this long and try to reach it again.
  milliseconds coordinator_away = seconds(120);
  // A restarted coordinator waits this long for the workers of the generation it left.
  milliseconds reattach = seconds(15);
  // A domain is started again after this, doubled with each end in a row, up to the second. Work
  // without a loss for the third: its earlier ends are forgotten.
  milliseconds restart_first = milliseconds(200);
  milliseconds restart_last = seconds(10);
  milliseconds restart_forgotten = seconds(60);
  // A checkpoint that some ranks have reported and others not.
  milliseconds checkpoint_parts = seconds(300);
  // A stop was asked for: the current step must end (an evaluation may be one step), the checkpoint
  // be written and committed.
  milliseconds stop = seconds(600);

  bool operator==(const Timeouts&) const = default;
};

// An inequality of the protocol that does not hold.
struct TimeoutConflict {
  std::string setting;  // "heartbeat_expiry", the first of the two; always one of Timeouts
  std::string other;    // the second, if it is a setting too
  std::string problem;  // a sentence with the values
};
// All of them; empty when the time-outs fit together. Pure.
std::vector<TimeoutConflict> CheckTimeouts(const Timeouts& timeouts);

// "2 s", "0.5 s".
std::string FormatSeconds(std::chrono::milliseconds time);

// What nobody needs to change.
namespace timeouts {

using std::chrono::milliseconds;
using std::chrono::seconds;

// The coordinator looks at expiry, stop deadlines and store time-outs this often.
inline constexpr milliseconds kTick = milliseconds(200);
// First message (hello) of a new connection.
inline constexpr milliseconds kHello = seconds(10);
// The run has ended: domain and workers must be gone, else they are left to their agent.
inline constexpr milliseconds kFarewell = seconds(15);
// An agent sends SIGTERM to its domain, and SIGKILL after this.
inline constexpr milliseconds kDomainKill = seconds(5);
// A rank says that its collective failed and nobody is known to be lost: a loss that explains it
// may still be noticed, then the generation is formed again.
inline constexpr milliseconds kTrouble = seconds(1);
inline constexpr int kStallSteps = 20;
// An incident stays open this long for the end of the domain's mpirun with its log.
inline constexpr milliseconds kLastWords = seconds(5);
// What stall is for a rank that waits for its disk before it can save again.
inline constexpr milliseconds kDiskStall = seconds(240);
// The ranks of a new generation meet: all of them were told at the same time. Also the longest time
// that a connection to a rank that hangs can hold up the next regrouping.
inline constexpr milliseconds kConnectRanks = seconds(20);
// Between two tries to reach a coordinator that is away.
inline constexpr milliseconds kReconnect = milliseconds(200);
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

static_assert(kDomainKill < kFarewell, "a domain is killed before the coordinator stops waiting");
static_assert(kEventHeartbeat * 4 <= kEventSilence, "a few late heartbeats are not a dead stream");

}  // namespace timeouts
}  // namespace dd2
