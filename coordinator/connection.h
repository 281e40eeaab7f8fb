#pragma once

#include <string>
#include <utility>

#include "common/asio.h"
#include "common/framing.h"
#include "coordinator/membership.h"

namespace dd2 {

// One accepted socket of the control port with its queue of outgoing messages. Shared by the
// coroutines that read and write it. Control thread only.
struct Connection {
  Connection(tcp::socket accepted, ConnectionId number, std::string peer)
      : socket(std::move(accepted)),
        sender(socket),
        linger(socket.get_executor()),
        id(number),
        address(std::move(peer)) {}
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  tcp::socket socket;
  FrameSender sender;
  asio::steady_timer linger;  // waits for the peer to close after our last message
  const ConnectionId id;
  const std::string address;  // numeric, of the peer
  bool closing = false;       // we gave it up: what else it sends does not matter
};

}  // namespace dd2
