#include "coordinator/control_service.h"

#include <chrono>
#include <utility>

#include "common/limits.h"
#include "common/timeouts.h"
#include "coordinator/api.h"

namespace dd2 {

namespace {

// After the last message to a peer: how long it may take to read it before the socket is closed.
constexpr std::chrono::milliseconds kFlush = std::chrono::seconds(2);

const std::string* SecretOf(const proto::Envelope& envelope) {
  switch (envelope.body_case()) {
    case proto::Envelope::kWorkerHello: return &envelope.worker_hello().secret();
    case proto::Envelope::kAgentHello: return &envelope.agent_hello().secret();
    case proto::Envelope::kStoreHello: return &envelope.store_hello().secret();
    default: return nullptr;
  }
}

}  // namespace

ControlService::ControlService(asio::any_io_executor executor, std::string run_id,
                               std::string secret, StoreService& store, ControlHandlers handlers)
    : executor_(executor),
      run_id_(std::move(run_id)),
      secret_(std::move(secret)),
      store_(store),
      handlers_(std::move(handlers)),
      acceptor_(executor),
      tasks_(executor) {}

Result<std::uint16_t> ControlService::Listen(const std::string& host, std::uint16_t port) {
  const std::string where = host + ":" + std::to_string(port);
  error_code code;
  const auto address = asio::ip::make_address(host, code);
  if (code) return Error(Code::kInvalidArgument, "'" + host + "' is no IP address");
  const tcp::endpoint endpoint(address, port);
  acceptor_.open(endpoint.protocol(), code);
  if (!code) acceptor_.set_option(tcp::acceptor::reuse_address(true), code);
  if (!code) acceptor_.bind(endpoint, code);
  if (!code) acceptor_.listen(asio::socket_base::max_listen_connections, code);
  if (code) {
    return Error(Code::kUnavailable, "cannot listen on " + where + ": " + code.message());
  }
  tasks_.Spawn("accept", AcceptLoop());
  return acceptor_.local_endpoint(code).port();
}

Task<void> ControlService::AcceptLoop() {
  while (acceptor_.is_open()) {
    error_code code;
    tcp::socket socket =
        co_await acceptor_.async_accept(asio::redirect_error(asio::use_awaitable, code));
    if (code == asio::error::operation_aborted) co_return;
    if (code) {
      // Out of descriptors, most likely: some will be closed.
      asio::steady_timer pause(executor_, timeouts::kTick);
      co_await pause.async_wait(asio::redirect_error(asio::use_awaitable, code));
      continue;
    }
    const tcp::endpoint peer = socket.remote_endpoint(code);
    if (code || connections_.size() >= kConnectionsMax) continue;
    socket.set_option(tcp::no_delay(true), code);
    const ConnectionId id(next_id_++);
    auto connection =
        std::make_shared<Connection>(std::move(socket), id, peer.address().to_string());
    connections_[id] = connection;
    tasks_.Spawn("session", Session(connection));
    tasks_.Spawn("writer", Writer(connection));
  }
}

std::string ControlService::CheckHello(const proto::Envelope& envelope) const {
  const std::string* secret = SecretOf(envelope);
  if (secret == nullptr) return "the first message must be a hello";
  if (!EqualInConstantTime(*secret, secret_)) return "wrong secret: this is another run's worker";
  // Who does not know the run's id yet learns it from our first answer.
  if (!envelope.run_id().empty() && envelope.run_id() != run_id_) {
    return "this is run " + run_id_ + ", not " + envelope.run_id();
  }
  return "";
}

void ControlService::RefuseHello(Connection& connection, const std::string& why) {
  proto::Envelope envelope;
  envelope.mutable_refused()->set_code(std::string(CodeName(Code::kFailedPrecondition)));
  envelope.mutable_refused()->set_message(why);
  connection.sender.Send(envelope.SerializeAsString());
  connection.sender.FinishAfterQueue();
  connection.closing = true;
}

Task<void> ControlService::Session(std::shared_ptr<Connection> connection) {
  bool announced = false;
  const Result<std::string> hello =
      co_await ReadFrame(connection->socket, kHelloBytesMax, timeouts::kHello);
  if (hello) {
    proto::Envelope envelope;
    const std::string why = envelope.ParseFromString(*hello)
                                ? CheckHello(envelope)
                                : std::string("the first message does not parse");
    if (!why.empty()) {
      RefuseHello(*connection, why);
    } else if (envelope.has_store_hello()) {
      co_await store_.Serve(connection);
    } else {
      announced = true;
      handlers_.on_message(connection->id, connection->address, envelope);
    }
  }
  std::string reason;
  while (announced || connection->closing) {
    const Result<std::string> frame =
        co_await ReadFrame(connection->socket, kFrameBytesMax, kNoLimit);
    if (!frame) {
      reason = frame.error().message();
      break;
    }
    if (connection->closing) continue;  // read on, so that it gets our last message
    proto::Envelope envelope;
    // A fresh worker, known by the secret, hears with its Assignment which run this is.
    if (!envelope.ParseFromString(*frame) ||
        (!envelope.run_id().empty() && envelope.run_id() != run_id_)) {
      reason = "it sent a message that does not parse or belongs to another run";
      break;
    }
    handlers_.on_message(connection->id, connection->address, envelope);
  }
  const bool report = announced && !connection->closing;
  connections_.erase(connection->id);
  CloseSocket(connection->socket);
  connection->sender.FinishAfterQueue();
  connection->linger.cancel();
  if (report) handlers_.on_closed(connection->id, reason);
}

Task<void> ControlService::Writer(std::shared_ptr<Connection> connection) {
  const Status sent = co_await connection->sender.Run();
  if (sent && connections_.contains(connection->id)) {
    // Closing at once could discard what the peer has not read yet.
    error_code code;
    connection->socket.shutdown(tcp::socket::shutdown_send, code);
    connection->linger.expires_after(kFlush);
    co_await connection->linger.async_wait(asio::redirect_error(asio::use_awaitable, code));
  }
  CloseSocket(connection->socket);
}

void ControlService::Send(ConnectionId to, const proto::Envelope& envelope) {
  const auto found = connections_.find(to);
  if (found == connections_.end() || found->second->closing) return;
  if (!found->second->sender.Send(envelope.SerializeAsString())) {
    CloseSocket(found->second->socket);
  }
}

void ControlService::Close(ConnectionId connection) {
  const auto found = connections_.find(connection);
  if (found == connections_.end()) return;
  found->second->closing = true;
  found->second->sender.FinishAfterQueue();
}

Task<void> ControlService::Stop() {
  error_code ignored;
  acceptor_.close(ignored);
  for (const auto& [id, connection] : connections_) {
    connection->closing = true;
    connection->sender.FinishAfterQueue();
  }
  // Writers end when their queue is written; a peer that does not read is cut off.
  asio::steady_timer limit(executor_, 2 * kFlush);
  limit.async_wait([this](error_code code) {
    if (!code) tasks_.Cancel();
  });
  co_await tasks_.Wait();
}

}  // namespace dd2
