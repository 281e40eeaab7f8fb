#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "common/asio.h"
#include "common/limits.h"
#include "common/result.h"
#include "common/timeouts.h"
#include "coordinator/run_state.h"

namespace dd2 {

struct HttpOptions {
  std::string host = "127.0.0.1";  // a numeric address
  std::uint16_t port = 0;          // 0: any free one
  std::string token;               // bearer token, content of RUN/token; must not be empty
  std::size_t connections_max = kHttpConnectionsMax;
  // A request must be complete this long after the connection is ready for it; also the longest
  // idle time of a kept connection.
  std::chrono::milliseconds request_timeout = timeouts::kHttpRequest;
  // A peer that does not take an answer or an event in this time is dropped.
  std::chrono::milliseconds write_timeout = timeouts::kHttpWrite;
  std::chrono::milliseconds heartbeat_interval = timeouts::kEventHeartbeat;
  // At most one event with the run's state to each subscriber in this time.
  std::chrono::milliseconds state_interval = timeouts::kEventState;
};

// Serves the API (coordinator/api.h) over HTTP/1.1 on the control thread.
//
// Owned by the coordinator's main; refers to `run` and the io_context, which must outlive it. Never
// blocks: sockets are asynchronous, documents are made from memory. What a client can take is
// limited: connections, header and body bytes, time of a request, time of a write. A subscriber of
// events holds no queue here, only its place in the run's event ring: one that falls behind the
// ring or does not read is dropped. Stop() must have finished before it is destroyed (checked).
class HttpServer {
 public:
  // Listens and begins to accept. kUnavailable: the port is taken; kInvalidArgument: `host` is no
  // address of this machine, or the token is empty.
  static Result<std::unique_ptr<HttpServer>> Start(asio::io_context& context, HttpOptions options,
                                                   RunControl& run);
  ~HttpServer();
  HttpServer(const HttpServer&) = delete;
  HttpServer& operator=(const HttpServer&) = delete;

  std::uint16_t port() const;
  // "http://127.0.0.1:41234"
  std::string url() const;

  // The run's state or events have changed: wakes the subscribers. Cheap; call it on every change.
  void Notify();

  // Stops accepting, lets subscribers and running answers finish for up to `grace`, then ends them.
  Task<void> Stop(std::chrono::milliseconds grace);

 private:
  class Impl;
  explicit HttpServer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace dd2
