#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <torch/csrc/distributed/c10d/Store.hpp>
#include <vector>

#include "worker/parallel/gloo_collectives.h"

namespace dd2 {

// c10d's rendezvous store, spoken to our own server over one connection: a StoreHello, which is not
// answered, then one StoreReply (or Refused) per StoreRequest. Every operation, also a wait that
// asks for longer, ends after the store's time-out. Errors are thrown as c10::DistStoreError,
// because that is what c10d expects; ConnectGloo turns them into an Error. Clones share the
// connection; operations are serialised.
class GlooStore final : public c10d::Store {
 public:
  // kUnavailable: nobody listens there.
  static Result<c10::intrusive_ptr<GlooStore>> Connect(const StoreAddress& address,
                                                       std::chrono::milliseconds timeout);
  ~GlooStore() override;

  // Any thread: the operation under way and all later ones fail.
  void Shutdown();

  c10::intrusive_ptr<Store> clone() override;
  using Store::compareSet;
  using Store::set;
  void set(const std::string& key, const std::vector<std::uint8_t>& value) override;
  std::vector<std::uint8_t> compareSet(const std::string& key,
                                       const std::vector<std::uint8_t>& expected,
                                       const std::vector<std::uint8_t>& desired) override;
  std::vector<std::uint8_t> get(const std::string& key) override;
  std::int64_t add(const std::string& key, std::int64_t amount) override;
  bool deleteKey(const std::string& key) override;
  bool check(const std::vector<std::string>& keys) override;
  std::int64_t getNumKeys() override;
  void wait(const std::vector<std::string>& keys) override;
  void wait(const std::vector<std::string>& keys,
            const std::chrono::milliseconds& timeout) override;

  class Connection;  // public for make_intrusive
  GlooStore(std::shared_ptr<Connection> connection, std::chrono::milliseconds timeout);

 private:
  std::shared_ptr<Connection> connection_;
};

}  // namespace dd2
