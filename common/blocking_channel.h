#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>

#include "common/result.h"

namespace dd2 {

// A TCP connection that carries frames (little-endian u32 length, then that many bytes) for threads
// that may block: the worker's control and rendezvous connections. One thread may send while
// another receives; Shutdown() may be called from any thread and ends both.
class BlockingChannel {
 public:
  // kUnavailable: refused or unreachable; kDeadlineExceeded: no answer within `timeout`.
  static Result<BlockingChannel> Connect(const std::string& host, std::uint16_t port,
                                         std::chrono::milliseconds timeout);
  BlockingChannel(BlockingChannel&& other) noexcept;
  BlockingChannel& operator=(BlockingChannel&& other) noexcept;
  ~BlockingChannel();

  // kUnavailable: the peer is gone. kInvalidArgument: larger than kFrameBytesMax.
  Status Send(std::string_view frame, std::chrono::milliseconds timeout);
  // kDeadlineExceeded: no whole frame within `timeout` (the connection can be used on when not even
  // its first byte had come). kUnavailable: closed by the peer. kCorruption: an impossible length.
  Result<std::string> Receive(std::chrono::milliseconds timeout);
  void Shutdown();

 private:
  explicit BlockingChannel(int descriptor) : descriptor_(descriptor) {}
  int descriptor_ = -1;
};

}  // namespace dd2
