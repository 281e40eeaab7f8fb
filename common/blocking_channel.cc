#include "common/blocking_channel.h"

#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <memory>
#include <utility>

#include "common/limits.h"

namespace dd2 {
namespace {

using SteadyTime = std::chrono::steady_clock::time_point;

SteadyTime DeadlineAfter(std::chrono::milliseconds timeout) {
  return std::chrono::steady_clock::now() + timeout;
}

int MillisecondsUntil(SteadyTime deadline) {
  const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
      deadline - std::chrono::steady_clock::now());
  return left.count() < 0 ? 0 : static_cast<int>(left.count()) + 1;
}

Error SystemError(const char* what) {
  return Error(Code::kUnavailable, std::string(what) + ": " + std::strerror(errno));
}

// Waits until `events` is possible.
Status WaitFor(int descriptor, short events, SteadyTime deadline) {
  for (;;) {
    pollfd entry{.fd = descriptor, .events = events, .revents = 0};
    const int ready = poll(&entry, 1, MillisecondsUntil(deadline));
    if (ready > 0) return {};
    if (ready == 0) return Error(Code::kDeadlineExceeded, "no answer from the peer in time");
    if (errno != EINTR) return SystemError("poll");
  }
}

Status SendAll(int descriptor, const char* data, std::size_t size, SteadyTime deadline) {
  while (size > 0) {
    const ssize_t sent = send(descriptor, data, size, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent > 0) {
      data += sent;
      size -= static_cast<std::size_t>(sent);
    } else if (sent < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
      DD2_TRY(WaitFor(descriptor, POLLOUT, deadline));
    } else if (errno != EINTR) {
      return SystemError("send");
    }
  }
  return {};
}

Status ReceiveAll(int descriptor, char* data, std::size_t size, SteadyTime deadline) {
  while (size > 0) {
    const ssize_t got = recv(descriptor, data, size, MSG_DONTWAIT);
    if (got > 0) {
      data += got;
      size -= static_cast<std::size_t>(got);
    } else if (got == 0) {
      return Error(Code::kUnavailable, "the peer closed the connection");
    } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
      DD2_TRY(WaitFor(descriptor, POLLIN, deadline));
    } else if (errno != EINTR) {
      return SystemError("recv");
    }
  }
  return {};
}

Status ConnectWithin(int descriptor, const addrinfo& address, SteadyTime deadline) {
  if (connect(descriptor, address.ai_addr, address.ai_addrlen) == 0) return {};
  if (errno != EINPROGRESS) return SystemError("connect");
  DD2_TRY(WaitFor(descriptor, POLLOUT, deadline));
  int failure = 0;
  socklen_t size = sizeof failure;
  getsockopt(descriptor, SOL_SOCKET, SO_ERROR, &failure, &size);
  errno = failure;
  if (failure != 0) return SystemError("connect");
  return {};
}

}  // namespace

Result<BlockingChannel> BlockingChannel::Connect(const std::string& host, std::uint16_t port,
                                                 std::chrono::milliseconds timeout) {
  const SteadyTime deadline = DeadlineAfter(timeout);
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  const std::string service = std::to_string(port);
  if (const int code = getaddrinfo(host.c_str(), service.c_str(), &hints, &found); code != 0) {
    return Error(Code::kUnavailable, "cannot resolve " + host + ": " + gai_strerror(code));
  }
  const std::unique_ptr<addrinfo, void (*)(addrinfo*)> addresses(found, freeaddrinfo);
  const int descriptor =
      socket(addresses->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, IPPROTO_TCP);
  if (descriptor < 0) return SystemError("socket");
  BlockingChannel channel(descriptor);
  if (const Status status = ConnectWithin(descriptor, *addresses, deadline); !status) {
    return status.error().Wrap("cannot connect to " + host + ":" + service);
  }
  const int on = 1;
  setsockopt(descriptor, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  return channel;
}

BlockingChannel::BlockingChannel(BlockingChannel&& other) noexcept
    : descriptor_(std::exchange(other.descriptor_, -1)) {}

BlockingChannel& BlockingChannel::operator=(BlockingChannel&& other) noexcept {
  std::swap(descriptor_, other.descriptor_);
  return *this;
}

BlockingChannel::~BlockingChannel() {
  if (descriptor_ >= 0) close(descriptor_);
}

Status BlockingChannel::Send(std::string_view frame, std::chrono::milliseconds timeout) {
  if (frame.size() > kFrameBytesMax) {
    return Error(Code::kInvalidArgument, "frame of " + std::to_string(frame.size()) +
                                             " bytes is larger than the limit of " +
                                             std::to_string(kFrameBytesMax));
  }
  const SteadyTime deadline = DeadlineAfter(timeout);
  std::string bytes(4, '\0');
  const auto length = static_cast<std::uint32_t>(frame.size());
  std::memcpy(bytes.data(), &length, sizeof length);
  bytes.append(frame);
  return SendAll(descriptor_, bytes.data(), bytes.size(), deadline);
}

Result<std::string> BlockingChannel::Receive(std::chrono::milliseconds timeout) {
  const SteadyTime deadline = DeadlineAfter(timeout);
  DD2_TRY(WaitFor(descriptor_, POLLIN, deadline));
  std::uint32_t length = 0;
  char header[sizeof length];
  DD2_TRY(ReceiveAll(descriptor_, header, sizeof header, deadline));
  std::memcpy(&length, header, sizeof length);
  if (length > kFrameBytesMax) {
    return Error(Code::kCorruption, "the peer announced a frame of " + std::to_string(length) +
                                        " bytes: not a DD2 connection?");
  }
  std::string frame(length, '\0');
  DD2_TRY(ReceiveAll(descriptor_, frame.data(), frame.size(), deadline));
  return frame;
}

void BlockingChannel::Shutdown() {
  if (descriptor_ >= 0) shutdown(descriptor_, SHUT_RDWR);
}

}  // namespace dd2
