#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "common/asio.h"
#include "common/limits.h"
#include "common/result.h"

namespace dd2 {

// Messages over TCP: a little-endian u32 length, then that many bytes. Bytes only; what they mean
// is known by proto/. Control thread only.

// For the `limit` of a read that may wait for ever (heart-beats notice a dead peer).
inline constexpr std::chrono::milliseconds kNoLimit = std::chrono::milliseconds::max();

// One frame. kUnavailable: the peer closed or reset the connection. kInvalidArgument: the length is
// 0 or above `max_bytes` (nothing of it was read; close the connection). kDeadlineExceeded: not
// complete after `limit` (close the connection). kAborted: cancelled by us.
Task<Result<std::string>> ReadFrame(tcp::socket& socket, std::size_t max_bytes,
                                    std::chrono::milliseconds limit);
// Writes one frame; the same codes. `payload` must hold 1 .. kFrameBytesMax bytes (checked). Not to
// be called again before it returned: use FrameSender where messages come from several places.
Task<Status> WriteFrame(tcp::socket& socket, std::string payload, std::chrono::milliseconds limit);

// "127.0.0.1:4711" -> connected socket, with TCP_NODELAY. kUnavailable, kDeadlineExceeded.
Task<Result<tcp::socket>> ConnectTo(std::string host, std::uint16_t port,
                                    std::chrono::milliseconds limit);

// Sends frames in the order of Send(), from anywhere on the control thread, without waiting.
// Owned beside its socket, which must outlive it; Run() must have returned before it is destroyed.
class FrameSender {
 public:
  explicit FrameSender(tcp::socket& socket);
  // Queues a frame. False: more than kSendQueueBytesMax are waiting, or the connection has failed;
  // the frame is dropped and the connection should be closed.
  bool Send(std::string payload);
  // Lets Run() return after what is queued now has been written.
  void FinishAfterQueue();
  bool finishing() const { return finish_; }
  // Writes until FinishAfterQueue, cancellation or an error (closes the socket then). The error.
  Task<Status> Run();

 private:
  tcp::socket& socket_;
  asio::steady_timer wake_;  // cancelled when there is something to do
  std::deque<std::string> queue_;
  std::size_t queued_bytes_ = 0;
  bool finish_ = false;
  bool failed_ = false;
};

// Closes both directions; errors do not matter any more. Pending operations end with kAborted.
void CloseSocket(tcp::socket& socket);

}  // namespace dd2
