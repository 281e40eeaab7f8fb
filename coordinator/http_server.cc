#include "coordinator/http_server.h"

#include <algorithm>
#include <array>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http.hpp>
#include <list>
#include <optional>
#include <utility>

#include "common/check.h"
#include "common/task_group.h"
#include "coordinator/api.h"

namespace dd2 {
namespace {

namespace beast = boost::beast;
namespace http = boost::beast::http;
using std::chrono::milliseconds;

constexpr auto use_tuple = asio::as_tuple(asio::use_awaitable);
// Connections over the limit that are being told so; further ones are just closed.
constexpr std::size_t refusals_max = 32;
// Events are written in pieces of about this size, each with its own time limit: a subscriber that
// has much to catch up with is slow only when it does not get on.
constexpr std::size_t chunk_bytes = std::size_t{64} << 10;

using Request = http::request<http::string_body>;
using Response = http::response<http::string_body>;

std::string_view View(beast::string_view text) { return {text.data(), text.size()}; }

Response MakeResponse(ApiReply reply, unsigned version, bool keep_alive) {
  Response response(static_cast<http::status>(reply.status), version);
  response.set(http::field::content_type, reply.content_type);
  response.set(http::field::cache_control, "no-store");
  response.set("X-Content-Type-Options", "nosniff");
  if (!reply.allow.empty()) response.set(http::field::allow, reply.allow);
  if (!reply.authenticate.empty()) response.set(http::field::www_authenticate, reply.authenticate);
  response.keep_alive(keep_alive);
  response.body() = std::move(reply.body);
  response.prepare_payload();
  return response;
}

// What to answer to bytes that are no request we take; nothing when the peer is simply gone.
std::optional<ApiReply> RefusalOf(error_code error) {
  if (error == http::error::body_limit) {
    return ErrorReply(413, "payload_too_large",
                      "the body is longer than " + std::to_string(kHttpBodyBytesMax) + " bytes");
  }
  if (error == http::error::header_limit || error == http::error::buffer_overflow) {
    return ErrorReply(
        431, "header_too_large",
        "the header is longer than " + std::to_string(kHttpHeaderBytesMax) + " bytes");
  }
  if (error == http::error::end_of_stream || error == http::error::partial_message) return {};
  if (error.category() == http::make_error_code(http::error::bad_method).category()) {
    return ErrorReply(400, "invalid_argument", "not an HTTP/1.1 request: " + error.message());
  }
  return {};
}

Error ListenError(const std::string& where, error_code error) {
  if (error == asio::error::address_in_use) {
    return Error(Code::kUnavailable, "cannot serve the API on " + where +
                                         ": the port is in use by another process; choose another "
                                         "one, or 0 for any free one");
  }
  if (error == asio::error::access_denied) {
    return Error(Code::kFailedPrecondition,
                 "cannot serve the API on " + where + ": permission denied; choose a port >= 1024");
  }
  return Error(Code::kInvalidArgument, "cannot serve the API on " + where + ": " + error.message());
}

Result<tcp::acceptor> Listen(asio::io_context& context, const HttpOptions& options) {
  const std::string where = options.host + ":" + std::to_string(options.port);
  error_code error;
  const auto address = asio::ip::make_address(options.host, error);
  if (error) {
    return Error(Code::kInvalidArgument,
                 "'" + options.host + "' is no numeric address (127.0.0.1 for this machine only)");
  }
  const tcp::endpoint endpoint(address, options.port);
  tcp::acceptor acceptor(context);
  acceptor.open(endpoint.protocol(), error);
  if (error) return ListenError(where, error);
  acceptor.set_option(tcp::acceptor::reuse_address(true), error);
  acceptor.bind(endpoint, error);
  if (error) return ListenError(where, error);
  acceptor.listen(asio::socket_base::max_listen_connections, error);
  if (error) return ListenError(where, error);
  return acceptor;
}

}  // namespace

class HttpServer::Impl {
 public:
  Impl(tcp::acceptor acceptor, HttpOptions options, RunControl& run)
      : acceptor_(std::move(acceptor)),
        endpoint_(acceptor_.local_endpoint()),
        options_(std::move(options)),
        run_(run),
        tasks_(acceptor_.get_executor()) {
    tasks_.Spawn("http accept", Accept());
  }

  const tcp::endpoint& endpoint() const { return endpoint_; }

  // Thousands of messages a second change the state, and a subscriber gets it a few times a second:
  // one that waits until the next state is due is woken by events only.
  void Notify() {
    const std::uint64_t newest = run_.state().events.last_sequence();
    const bool over = IsOver(run_.state());
    for (Connection* connection : connections_) {
      if (connection->state_waits && connection->sequence == newest && !over) continue;
      if (connection->wake) connection->wake->cancel();
    }
  }

  Task<void> Stop(milliseconds grace);

 private:
  // What others need to know of a connection while its coroutine lives.
  struct Connection {
    explicit Connection(tcp::socket s) : socket(std::move(s)) {}
    tcp::socket socket;
    bool reading = false;                    // waits for a request: nothing is lost by ending it
    std::optional<asio::steady_timer> wake;  // a subscriber of events: cancelled to wake it
    std::uint64_t sequence = 0;              // of the last event that it has
    bool state_waits = false;                // its timer ends when the next state is due
  };

  Task<void> Accept();
  Task<void> Serve(tcp::socket socket);
  Task<void> Refuse(tcp::socket socket);
  Task<bool> ServeOne(Connection& connection, beast::flat_buffer& buffer);
  Task<bool> Answer(Connection& connection, const Request& request);
  Task<void> Stream(Connection& connection, const Request& request);
  Task<bool> WriteStreamHeader(Connection& connection);
  Task<bool> WriteChunk(Connection& connection, std::string text);
  Task<bool> WriteResponse(Connection& connection, Response response);
  Task<void> Linger(Connection& connection);
  // Appends some events behind `sequence` to `text`; false: some are lost to this subscriber.
  bool TakeEvents(std::uint64_t& sequence, std::string& text) const;

  // Constant after construction.
  tcp::acceptor acceptor_;
  tcp::endpoint endpoint_;
  HttpOptions options_;
  RunControl& run_;

  bool stopping_ = false;
  std::size_t refusals_ = 0;
  std::list<Connection*> connections_;
  TaskGroup tasks_;  // last: its coroutines use everything above
};

Task<void> HttpServer::Impl::Accept() {
  const auto executor = co_await asio::this_coro::executor;
  while (!stopping_) {
    auto [error, socket] = co_await acceptor_.async_accept(use_tuple);
    if (stopping_) break;
    if (error) {
      // Out of descriptors, or the peer left at once: the queue waits a moment.
      asio::steady_timer pause(executor, milliseconds(100));
      co_await pause.async_wait(use_tuple);
      continue;
    }
    error_code ignored;
    socket.set_option(tcp::no_delay(true), ignored);
    if (connections_.size() < options_.connections_max) {
      tasks_.Spawn("http connection", Serve(std::move(socket)));
    } else if (refusals_ < refusals_max) {
      tasks_.Spawn("http refusal", Refuse(std::move(socket)));
    }
  }
}

Task<void> HttpServer::Impl::Serve(tcp::socket socket) {
  Connection connection(std::move(socket));
  const auto place = connections_.insert(connections_.end(), &connection);
  beast::flat_buffer buffer(kHttpHeaderBytesMax + kHttpBodyBytesMax);
  try {
    while (co_await ServeOne(connection, buffer)) {
    }
  } catch (const boost::system::system_error&) {
    // Cancelled by Stop: the connection ends here.
  } catch (...) {
    connections_.erase(place);
    throw;
  }
  connections_.erase(place);
}

Task<void> HttpServer::Impl::Refuse(tcp::socket socket) {
  Connection connection(std::move(socket));
  ++refusals_;
  try {
    const ApiReply reply =
        ErrorReply(503, "unavailable", "too many open connections; close some and try again");
    Response response = MakeResponse(reply, 11, /*keep_alive=*/false);
    if (co_await WriteResponse(connection, std::move(response))) co_await Linger(connection);
  } catch (const boost::system::system_error&) {
    // Cancelled by Stop.
  }
  --refusals_;
}

// Reads and answers one request; false when the connection should end.
Task<bool> HttpServer::Impl::ServeOne(Connection& connection, beast::flat_buffer& buffer) {
  if (stopping_) co_return false;  // Stop has passed over the connections already
  http::request_parser<http::string_body> parser;
  parser.header_limit(kHttpHeaderBytesMax);
  parser.body_limit(kHttpBodyBytesMax);
  error_code failed;
  {
    Deadline deadline(connection.socket, options_.request_timeout);
    connection.reading = true;
    auto [error, count] = co_await http::async_read(connection.socket, buffer, parser, use_tuple);
    connection.reading = false;
    failed = error;
  }
  if (stopping_) co_return false;
  if (failed) {
    const std::optional<ApiReply> refusal = RefusalOf(failed);
    if (!refusal) co_return false;
    Response response = MakeResponse(*refusal, 11, /*keep_alive=*/false);
    if (co_await WriteResponse(connection, std::move(response))) co_await Linger(connection);
    co_return false;
  }
  const Request request = parser.release();
  const bool goes_on = co_await Answer(connection, request);
  co_return goes_on;
}

Task<bool> HttpServer::Impl::Answer(Connection& connection, const Request& request) {
  const Routed routed = RouteRequest(View(request.method_string()), View(request.target()),
                                     View(request[http::field::authorization]), options_.token);
  ApiReply reply = routed.refusal;
  if (routed.endpoint == Endpoint::kEvents) {
    if (request.version() >= 11) {
      co_await Stream(connection, request);
      co_return false;
    }
    reply = ErrorReply(400, "invalid_argument", "an event stream needs HTTP/1.1");
  } else if (routed.endpoint && IsCommand(*routed.endpoint)) {
    reply = CommandReply(*routed.endpoint, run_, "api", routed.argument);
  } else if (routed.endpoint) {
    const bool members = *routed.endpoint == Endpoint::kMembers;
    reply = ReadReply(*routed.endpoint, members ? run_.ListMembers() : run_.state());
  }
  const bool keep_alive = request.keep_alive() && !stopping_;
  Response response = MakeResponse(std::move(reply), request.version(), keep_alive);
  const bool written = co_await WriteResponse(connection, std::move(response));
  co_return written&& keep_alive;
}

Task<bool> HttpServer::Impl::WriteResponse(Connection& connection, Response response) {
  Deadline deadline(connection.socket, options_.write_timeout);
  auto [error, count] = co_await http::async_write(connection.socket, response, use_tuple);
  co_return !error;
}

Task<bool> HttpServer::Impl::WriteStreamHeader(Connection& connection) {
  http::response<http::empty_body> response(http::status::ok, 11);
  response.set(http::field::content_type, "text/event-stream");
  response.set(http::field::cache_control, "no-store");
  response.keep_alive(false);
  response.chunked(true);
  http::response_serializer<http::empty_body> serializer(response);
  Deadline deadline(connection.socket, options_.write_timeout);
  auto [error, count] = co_await http::async_write_header(connection.socket, serializer, use_tuple);
  co_return !error;
}

// One chunk of the stream; the empty text ends the stream.
Task<bool> HttpServer::Impl::WriteChunk(Connection& connection, std::string text) {
  Deadline deadline(connection.socket, options_.write_timeout);
  error_code failed;
  if (text.empty()) {
    auto [error, count] =
        co_await asio::async_write(connection.socket, http::make_chunk_last(), use_tuple);
    failed = error;
  } else {
    auto [error, count] = co_await asio::async_write(
        connection.socket, http::make_chunk(asio::buffer(text)), use_tuple);
    failed = error;
  }
  co_return !failed;
}

bool HttpServer::Impl::TakeEvents(std::uint64_t& sequence, std::string& text) const {
  const RunState& state = run_.state();
  if (state.events.last_sequence() == sequence) return true;
  for (const RunEvent& event : state.events.After(sequence)) {
    if (text.size() >= chunk_bytes) break;  // the rest comes with the next round
    if (sequence != 0 && event.sequence != sequence + 1) return false;
    text += EventText(state, event);
    sequence = event.sequence;
  }
  return true;
}

Task<void> HttpServer::Impl::Stream(Connection& connection, const Request& request) {
  if (!co_await WriteStreamHeader(connection)) co_return;
  const auto executor = co_await asio::this_coro::executor;
  connection.wake.emplace(executor);
  // The first round may skip what the ring has lost; from then on a gap means a slow subscriber.
  std::uint64_t sequence = SequenceBehind(run_.state(), View(request["Last-Event-ID"]));
  if (const auto kept = run_.state().events.After(sequence); !kept.empty()) {
    sequence = kept.front().sequence - 1;
  }
  std::optional<std::uint64_t> sent_version;
  auto state_due = std::chrono::steady_clock::now();
  auto heartbeat_due = state_due + options_.heartbeat_interval;
  for (;;) {
    const auto now = std::chrono::steady_clock::now();
    const bool last = stopping_ || IsOver(run_.state());
    std::string text;
    if (!TakeEvents(sequence, text)) co_return;
    if (sent_version != run_.state().version && (last || now >= state_due)) {
      text += StateEventText(run_.state());
      sent_version = run_.state().version;
      state_due = now + options_.state_interval;
    }
    if (text.empty() && now >= heartbeat_due) text = ": alive\n\n";
    if (!text.empty()) {
      heartbeat_due = now + options_.heartbeat_interval;
      if (!co_await WriteChunk(connection, std::move(text))) co_return;
      continue;  // more may have happened in the meantime
    }
    if (last) break;
    connection.sequence = sequence;
    connection.state_waits = sent_version != run_.state().version;
    connection.wake->expires_at(connection.state_waits ? std::min(state_due, heartbeat_due)
                                                       : heartbeat_due);
    co_await connection.wake->async_wait(use_tuple);
    connection.state_waits = false;
  }
  const bool ended = co_await WriteChunk(connection, std::string());
  if (ended) co_await Linger(connection);
}

// Ends our side and waits for the peer's, so that the kernel does not throw away an answer that is
// still on its way because unread bytes of the request are left.
Task<void> HttpServer::Impl::Linger(Connection& connection) {
  error_code ignored;
  connection.socket.shutdown(tcp::socket::shutdown_send, ignored);
  Deadline deadline(connection.socket, timeouts::kHttpLinger);
  std::array<char, 4096> rest{};
  connection.reading = true;
  for (;;) {
    auto [error, count] = co_await connection.socket.async_read_some(asio::buffer(rest), use_tuple);
    if (error || deadline.fired()) co_return;
  }
}

Task<void> HttpServer::Impl::Stop(milliseconds grace) {
  stopping_ = true;
  error_code ignored;
  acceptor_.close(ignored);
  for (Connection* connection : connections_) {
    // Not cancel(): a read that is between two steps would go on. An answer still gets out.
    if (connection->reading) connection->socket.shutdown(tcp::socket::shutdown_receive, ignored);
    if (connection->wake) connection->wake->cancel();
  }
  // The handler may run after this coroutine is gone: it asks what outlives it.
  const auto waiting = std::make_shared<bool>(true);
  asio::steady_timer patience(acceptor_.get_executor(), grace);
  patience.async_wait([this, waiting](error_code error) {
    if (!error && *waiting) tasks_.Cancel();
  });
  co_await tasks_.Wait();
  *waiting = false;
}

HttpServer::HttpServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

HttpServer::~HttpServer() = default;

Result<std::unique_ptr<HttpServer>> HttpServer::Start(asio::io_context& context,
                                                      HttpOptions options, RunControl& run) {
  if (options.token.empty()) {
    return Error(Code::kInvalidArgument, "the API's token is empty: nobody could use it");
  }
  DD2_TRY_ASSIGN(tcp::acceptor acceptor, Listen(context, options));
  auto impl = std::make_unique<Impl>(std::move(acceptor), std::move(options), run);
  return std::unique_ptr<HttpServer>(new HttpServer(std::move(impl)));
}

std::uint16_t HttpServer::port() const { return impl_->endpoint().port(); }

std::string HttpServer::url() const {
  const auto address = impl_->endpoint().address();
  const std::string host = address.is_v6() ? "[" + address.to_string() + "]" : address.to_string();
  return "http://" + host + ":" + std::to_string(port());
}

void HttpServer::Notify() { impl_->Notify(); }

Task<void> HttpServer::Stop(milliseconds grace) { return impl_->Stop(grace); }

}  // namespace dd2
