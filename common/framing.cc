#include "common/framing.h"

#include <array>
#include <cstdint>
#include <optional>
#include <utility>

#include "common/check.h"
#include "common/timeouts.h"

namespace dd2 {

namespace {

constexpr std::size_t kPrefixBytes = 4;

std::array<unsigned char, kPrefixBytes> EncodeLength(std::size_t length) {
  std::array<unsigned char, kPrefixBytes> out{};
  for (std::size_t i = 0; i < kPrefixBytes; ++i) {
    out[i] = static_cast<unsigned char>((length >> (8 * i)) & 0xff);
  }
  return out;
}

std::size_t DecodeLength(const std::array<unsigned char, kPrefixBytes>& bytes) {
  std::size_t length = 0;
  for (std::size_t i = 0; i < kPrefixBytes; ++i) length |= std::size_t{bytes[i]} << (8 * i);
  return length;
}

// The caller's view of a failed socket operation.
Error NetworkError(const char* doing, error_code code, const std::optional<Deadline>& deadline) {
  if (deadline && deadline->fired()) {
    return Error(Code::kDeadlineExceeded, std::string(doing) + ": the peer took too long");
  }
  if (code == asio::error::operation_aborted || code == asio::error::bad_descriptor) {
    return Error(Code::kAborted, std::string(doing) + ": the connection was closed on our side");
  }
  if (code == asio::error::eof) {
    return Error(Code::kUnavailable, std::string(doing) + ": the peer closed the connection");
  }
  return Error(Code::kUnavailable, std::string(doing) + ": " + code.message());
}

}  // namespace

Task<Result<std::string>> ReadFrame(tcp::socket& socket, std::size_t max_bytes,
                                    std::chrono::milliseconds limit) {
  std::optional<Deadline> deadline;
  if (limit != kNoLimit) deadline.emplace(socket, limit);
  error_code code;
  std::array<unsigned char, kPrefixBytes> prefix{};
  co_await asio::async_read(socket, asio::buffer(prefix),
                            asio::redirect_error(asio::use_awaitable, code));
  if (code) co_return NetworkError("reading a message", code, deadline);
  const std::size_t length = DecodeLength(prefix);
  if (length == 0 || length > max_bytes) {
    co_return Error(Code::kInvalidArgument, "a message of " + std::to_string(length) +
                                                " bytes was announced; allowed are 1 to " +
                                                std::to_string(max_bytes) +
                                                " (is the peer a DD2 process of this version?)");
  }
  std::string payload(length, '\0');
  co_await asio::async_read(socket, asio::buffer(payload),
                            asio::redirect_error(asio::use_awaitable, code));
  if (code) co_return NetworkError("reading a message", code, deadline);
  co_return payload;
}

Task<Status> WriteFrame(tcp::socket& socket, std::string payload, std::chrono::milliseconds limit) {
  DD2_CHECK(!payload.empty());
  DD2_CHECK(payload.size() <= kFrameBytesMax);
  std::optional<Deadline> deadline;
  if (limit != kNoLimit) deadline.emplace(socket, limit);
  const std::array<unsigned char, kPrefixBytes> prefix = EncodeLength(payload.size());
  const std::array<asio::const_buffer, 2> buffers = {asio::buffer(prefix), asio::buffer(payload)};
  error_code code;
  co_await asio::async_write(socket, buffers, asio::redirect_error(asio::use_awaitable, code));
  if (code) co_return NetworkError("sending a message", code, deadline);
  co_return Status();
}

Task<Result<tcp::socket>> ConnectTo(std::string host, std::uint16_t port,
                                    std::chrono::milliseconds limit) {
  const std::string where = host + ":" + std::to_string(port);
  const asio::any_io_executor executor = co_await asio::this_coro::executor;
  tcp::socket socket(executor);
  error_code code;
  const auto address = asio::ip::make_address(host, code);
  if (code) {
    co_return Error(Code::kInvalidArgument, "'" + host + "' is no IP address: " + code.message());
  }
  socket.open(address.is_v6() ? tcp::v6() : tcp::v4(), code);
  if (code) co_return Error(Code::kResourceExhausted, "opening a socket: " + code.message());
  std::optional<Deadline> deadline;
  if (limit != kNoLimit) deadline.emplace(socket, limit);
  const tcp::endpoint endpoint(address, port);
  co_await socket.async_connect(endpoint, asio::redirect_error(asio::use_awaitable, code));
  if (code) {
    const std::string doing = "connecting to " + where;
    co_return NetworkError(doing.c_str(), code, deadline);
  }
  deadline.reset();
  socket.set_option(tcp::no_delay(true), code);
  co_return std::move(socket);
}

FrameSender::FrameSender(tcp::socket& socket)
    : socket_(socket), wake_(socket.get_executor(), asio::steady_timer::time_point::max()) {}

bool FrameSender::Send(std::string payload) {
  DD2_CHECK(!payload.empty());
  if (failed_ || finish_ || payload.size() > kFrameBytesMax ||
      queued_bytes_ + payload.size() > kSendQueueBytesMax) {
    return false;
  }
  queued_bytes_ += payload.size();
  queue_.push_back(std::move(payload));
  wake_.cancel();
  return true;
}

void FrameSender::FinishAfterQueue() {
  finish_ = true;
  wake_.cancel();
}

Task<Status> FrameSender::Run() {
  error_code code;
  for (;;) {
    while (!queue_.empty()) {
      std::string payload = std::move(queue_.front());
      queue_.pop_front();
      queued_bytes_ -= payload.size();
      const Status written = co_await WriteFrame(socket_, std::move(payload), timeouts::kWrite);
      if (!written) {
        failed_ = true;
        CloseSocket(socket_);
        co_return written;
      }
    }
    if (finish_) co_return Status();
    co_await wake_.async_wait(asio::redirect_error(asio::use_awaitable, code));
    if ((co_await asio::this_coro::cancellation_state).cancelled() !=
        asio::cancellation_type::none) {
      failed_ = true;
      co_return Error(Code::kAborted, "sending was cancelled");
    }
  }
}

void CloseSocket(tcp::socket& socket) {
  error_code ignored;
  socket.shutdown(tcp::socket::shutdown_both, ignored);
  socket.close(ignored);
}

}  // namespace dd2
