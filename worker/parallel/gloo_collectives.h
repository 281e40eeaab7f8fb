#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>

#include "common/result.h"
#include "common/timeouts.h"
#include "worker/parallel/collectives.h"

namespace dd2 {

class ConnectAbort;

// How a rank reaches the rendezvous store that the coordinator serves: sends one serialised
// proto::Envelope and returns the answer. Blocking; called from Gloo's set-up on the compute
// thread.
struct StoreAddress {
  std::string host = "127.0.0.1";
  std::uint16_t port = 0;
  std::string run_id;
  std::uint64_t generation = 0;
  std::string secret;
};

struct GlooOptions {
  StoreAddress store;
  std::string prefix;  // key prefix of this generation
  int rank = 0;
  int world_size = 1;
  std::string interface_host = "127.0.0.1";  // address the peers reach this process under
  std::chrono::milliseconds timeout{30000};  // of one exchange
  std::chrono::milliseconds connect_timeout = timeouts::kConnectRanks;  // of each step of meeting
};

// c10d's Gloo process group over our own store (build.md 3.3). Blocks until all ranks are there.
// kDeadlineExceeded: somebody did not come; kUnavailable: the store cannot be reached; kAborted:
// `abort` was called, which ends waiting for the others at once, and waiting for the connection to
// one that is known by its time-out. Gloo has no abort of its own: the group's shuts down the TCP
// connections that this process made meanwhile, so only one group is formed at a time.
Result<std::unique_ptr<Collectives>> ConnectGloo(const GlooOptions& options, ConnectAbort& abort);
Result<std::unique_ptr<Collectives>> ConnectGloo(const GlooOptions& options);

}  // namespace dd2
