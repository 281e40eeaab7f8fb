#pragma once

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <string>

#include "proto/control.pb.h"

namespace dd2 {

// The coordinator's side of one control connection, for tests of who speaks to it: blocking, on
// the test's thread.
class ControlConnection {
 public:
  explicit ControlConnection(int descriptor) : descriptor_(descriptor) {}
  ~ControlConnection() { close(descriptor_); }
  ControlConnection(const ControlConnection&) = delete;
  ControlConnection& operator=(const ControlConnection&) = delete;

  void Send(const proto::Envelope& envelope) const {
    const std::string body = envelope.SerializeAsString();
    const auto size = static_cast<std::uint32_t>(body.size());
    std::string frame(sizeof(size), '\0');
    std::memcpy(frame.data(), &size, sizeof(size));
    frame += body;
    EXPECT_EQ(write(descriptor_, frame.data(), frame.size()), static_cast<ssize_t>(frame.size()));
  }

  // The next message but heart-beats; nothing: none came in time, or the connection is closed.
  std::optional<proto::Envelope> Receive(int milliseconds = 5000) {
    for (;;) {
      const std::optional<proto::Envelope> envelope = ReceiveAny(milliseconds);
      if (!envelope || !envelope->has_heartbeat()) return envelope;
    }
  }
  std::optional<proto::Envelope> ReceiveAny(int milliseconds) {
    std::uint32_t size = 0;
    if (!Read(&size, sizeof(size), milliseconds)) return std::nullopt;
    std::string body(size, '\0');
    proto::Envelope envelope;
    if (!Read(body.data(), size, milliseconds) || !envelope.ParseFromString(body)) {
      return std::nullopt;
    }
    return envelope;
  }

 private:
  bool Read(void* to, std::size_t size, int milliseconds) const {
    auto* at = static_cast<char*>(to);
    while (size > 0) {
      pollfd ready{.fd = descriptor_, .events = POLLIN, .revents = 0};
      if (poll(&ready, 1, milliseconds) <= 0) return false;
      const ssize_t count = read(descriptor_, at, size);
      if (count <= 0) return false;
      at += count;
      size -= static_cast<std::size_t>(count);
    }
    return true;
  }

  const int descriptor_;
};

// A loopback port that accepts control connections once Listen() was called.
class ControlServer {
 public:
  ControlServer() : descriptor_(socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof(address);
    auto* generic = reinterpret_cast<sockaddr*>(&address);
    EXPECT_EQ(bind(descriptor_, generic, size), 0);
    EXPECT_EQ(getsockname(descriptor_, generic, &size), 0);
    port_ = ntohs(address.sin_port);
  }
  ~ControlServer() { close(descriptor_); }
  ControlServer(const ControlServer&) = delete;
  ControlServer& operator=(const ControlServer&) = delete;

  void Listen() const { EXPECT_EQ(listen(descriptor_, 4), 0); }
  std::uint16_t port() const { return port_; }

  // Null: nobody came in time.
  std::unique_ptr<ControlConnection> Accept(int milliseconds = 5000) const {
    pollfd ready{.fd = descriptor_, .events = POLLIN, .revents = 0};
    if (poll(&ready, 1, milliseconds) <= 0) return nullptr;
    return std::make_unique<ControlConnection>(accept(descriptor_, nullptr, nullptr));
  }

 private:
  const int descriptor_;
  std::uint16_t port_ = 0;
};

}  // namespace dd2
