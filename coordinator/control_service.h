#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>

#include "common/asio.h"
#include "common/result.h"
#include "common/task_group.h"
#include "coordinator/connection.h"
#include "coordinator/store_service.h"
#include "proto/control.pb.h"

namespace dd2 {

// What comes in over control connections. Called on the control thread, one call at a time.
struct ControlHandlers {
  // The first message of a connection is its hello, with the right secret.
  std::function<void(ConnectionId from, const std::string& address, const proto::Envelope&)>
      on_message;
  // Once for each connection that had said hello; not after Close() or Stop().
  std::function<void(ConnectionId connection, const std::string& reason)> on_closed;
};

// The control port: accepts, demands the secret and the run's id in the first message, hands
// messages on and sends answers in order. Connections of the rendezvous store go to the
// StoreService.
//
// Owned by CoordinatorLoop. Control thread only; Stop() must have finished before it is destroyed.
class ControlService {
 public:
  ControlService(asio::any_io_executor executor, std::string run_id, std::string secret,
                 StoreService& store, ControlHandlers handlers);

  // Binds and accepts; the port it got. kUnavailable: the address cannot be bound.
  Result<std::uint16_t> Listen(const std::string& host, std::uint16_t port);
  // Queues a message; one to a connection that is gone is dropped. A peer that does not read is
  // closed, and reported by on_closed.
  void Send(ConnectionId to, const proto::Envelope& envelope);
  // Closes after what was sent to it has been written.
  void Close(ConnectionId connection);
  // Closes everything, giving queued messages a few seconds to leave.
  Task<void> Stop();

 private:
  Task<void> AcceptLoop();
  Task<void> Session(std::shared_ptr<Connection> connection);
  Task<void> Writer(std::shared_ptr<Connection> connection);
  // Empty: the hello is good. Otherwise why not.
  std::string CheckHello(const proto::Envelope& envelope) const;
  void RefuseHello(Connection& connection, const std::string& why);

  asio::any_io_executor executor_;
  const std::string run_id_;
  const std::string secret_;
  StoreService& store_;
  const ControlHandlers handlers_;
  tcp::acceptor acceptor_;
  TaskGroup tasks_;
  std::map<ConnectionId, std::shared_ptr<Connection>> connections_;
  std::uint64_t next_id_ = 1;
};

}  // namespace dd2
