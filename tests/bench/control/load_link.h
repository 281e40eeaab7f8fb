#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "common/asio.h"
#include "common/framing.h"
#include "common/task_group.h"
#include "proto/control.pb.h"

namespace dd2::load {

// What went over all control connections, with the length prefixes; seen from the coordinator.
struct Traffic {
  std::uint64_t bytes_in = 0;
  std::uint64_t bytes_out = 0;
  std::uint64_t messages_in = 0;
  std::uint64_t messages_out = 0;
};

// What the links of one load share. Outlives them.
struct LinkContext {
  asio::any_io_executor executor;
  std::uint16_t port = 0;  // of the coordinator, on loopback
  TaskGroup& tasks;
  Traffic traffic;
};

// Who speaks over a link. Called on the generator's thread; not after Link::Close().
class LinkOwner {
 public:
  virtual ~LinkOwner() = default;
  virtual void OnEnvelope(const proto::Envelope& envelope) = 0;
  // The coordinator closed it, or could not be reached.
  virtual void OnClosed() = 0;
};

// One control connection of an agent or a worker: connects, says hello, then frames in both
// directions. Held by its owner and its own coroutines; generator's thread only. It does not
// reconnect.
class Link : public std::enable_shared_from_this<Link> {
 public:
  static std::shared_ptr<Link> Open(LinkContext& context, LinkOwner& owner,
                                    const proto::Envelope& hello);
  Link(LinkContext& context, LinkOwner& owner) : context_(context), owner_(&owner) {}
  Link(const Link&) = delete;
  Link& operator=(const Link&) = delete;

  // Before the connection stands only the hello is kept; the rest is dropped, as heart-beats are.
  void Send(const proto::Envelope& envelope);
  // At once, as the end of a process does it: what waits to be sent is lost.
  void Close();

 private:
  static Task<void> Run(std::shared_ptr<Link> link, std::string hello);
  static Task<void> Write(std::shared_ptr<Link> link);
  void SendBytes(std::string bytes);
  void Lost();

  LinkContext& context_;
  LinkOwner* owner_;  // null: closed
  std::optional<tcp::socket> socket_;
  std::optional<FrameSender> sender_;
};

}  // namespace dd2::load
