#pragma once

#include <cstdint>
#include <memory>
#include <string>

namespace dd2 {

// A rendezvous store for tests of the client: the operations of proto StoreRequest over framed
// Envelopes on a loopback port. Refuses a wrong secret, run or generation. Listens from
// construction on (so that processes can be forked before there are threads); answers after
// Start().
class StoreServer {
 public:
  StoreServer(std::string run_id, std::uint64_t generation, std::string secret);
  ~StoreServer();
  std::uint16_t port() const;
  void Start();
  // Value of a key, "" when it is not there.
  std::string Peek(const std::string& key) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace dd2
