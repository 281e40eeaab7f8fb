#pragma once

#include <cstddef>
#include <cstdint>

namespace dd2 {

// Every limit of a buffer, a queue or a message, in one place. Durations are in timeouts.h.

// Longest frame of the control connection. The largest message is a PartReport: one entry per piece
// of a tensor (~100 bytes), a few thousand pieces for the largest network.
inline constexpr std::size_t kFrameBytesMax = std::size_t{16} << 20;
// First frame of a connection whose sender has not shown the secret yet.
inline constexpr std::size_t kHelloBytesMax = std::size_t{16} << 10;
// Bytes waiting to be written to one peer; a peer that does not read is dropped beyond it.
inline constexpr std::size_t kSendQueueBytesMax = std::size_t{64} << 20;
// Control connections (workers, agents, store clients) that may be open at once: 10,000 ranks, each
// with a store client, and the agents of 1,250 machines with 8 of them. The limit of open files
// must allow them as well (RaiseFileLimit).
inline constexpr std::size_t kConnectionsMax = 32768;
// Value of one key of the rendezvous store (addresses and small exchanges), and number of keys.
inline constexpr std::size_t kStoreValueBytesMax = std::size_t{1} << 20;
inline constexpr std::size_t kStoreKeysMax = std::size_t{1} << 20;
// Events kept for readers that connect later.
inline constexpr std::size_t kEventRingMax = 1024;
// Incidents kept for readers; all of them are in RUN/incidents.jsonl.
inline constexpr std::size_t kIncidentsMax = 256;
// Ends of a domain in a row, without work between, after which it is given up; the same failure of
// the run at the same step, after which it ends.
inline constexpr int kDomainFailuresMax = 8;
inline constexpr int kStrikesMax = 3;
// The HTTP API: open connections (a subscriber of events is one), header block and body of a
// request.
inline constexpr std::size_t kHttpConnectionsMax = 128;
inline constexpr std::size_t kHttpHeaderBytesMax = std::size_t{8} << 10;
inline constexpr std::size_t kHttpBodyBytesMax = std::size_t{16} << 10;
// What is kept of a log when a process dies.
inline constexpr std::size_t kLogTailBytesMax = std::size_t{8} << 10;

// Steps of one lease, and how many granted steps may be left when the next lease is handed out:
// enough that no rank ever waits for the coordinator.
inline constexpr std::int64_t kLeaseSteps = 64;
inline constexpr std::int64_t kLeaseLowWater = 32;

static_assert(kHelloBytesMax < kFrameBytesMax);
static_assert(kStoreValueBytesMax < kFrameBytesMax);
static_assert(kFrameBytesMax < kSendQueueBytesMax, "one frame must always fit the queue");
static_assert(kLeaseLowWater < kLeaseSteps);

// Configuration files.
inline constexpr std::size_t kConfigBytesMax = std::size_t{1} << 20;
inline constexpr std::size_t kConfigDepthMax = 16;      // of nesting
inline constexpr std::size_t kConfigNodesMax = 20'000;  // values, aliases expanded
inline constexpr std::size_t kConfigProblemsMax = 100;  // reported at once
inline constexpr std::size_t kPhasesMax = 64;           // of one run

}  // namespace dd2
