#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>

#include "common/result.h"
#include "worker/parallel/collectives.h"

namespace dd2 {

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
  std::chrono::milliseconds timeout{30000};
};

// c10d's Gloo process group over our own store (build.md 3.3). Blocks until all ranks are there.
// kDeadlineExceeded: somebody did not come; kUnavailable: the store cannot be reached.
Result<std::unique_ptr<Collectives>> ConnectGloo(const GlooOptions& options);

}  // namespace dd2
