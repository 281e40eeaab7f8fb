#include "tests/bench/control/load_link.h"

#include <utility>

#include "common/limits.h"
#include "common/timeouts.h"

namespace dd2::load {

namespace {

constexpr std::uint64_t kPrefixBytes = 4;
// A listen queue that is full drops a connection request; the kernel tries again after 1, 3, 7 s.
constexpr std::chrono::milliseconds kConnect = std::chrono::seconds(20);

}  // namespace

std::shared_ptr<Link> Link::Open(LinkContext& context, LinkOwner& owner,
                                 const proto::Envelope& hello) {
  auto link = std::make_shared<Link>(context, owner);
  context.tasks.Spawn("link", Run(link, hello.SerializeAsString()));
  return link;
}

Task<void> Link::Run(std::shared_ptr<Link> link, std::string hello) {
  Result<tcp::socket> connected = co_await ConnectTo("127.0.0.1", link->context_.port, kConnect);
  if (link->owner_ == nullptr) co_return;
  if (!connected) {
    link->Lost();
    co_return;
  }
  link->socket_.emplace(std::move(*connected));
  link->sender_.emplace(*link->socket_);
  link->SendBytes(std::move(hello));
  link->context_.tasks.Spawn("writer", Write(link));
  for (;;) {
    const Result<std::string> frame = co_await ReadFrame(*link->socket_, kFrameBytesMax, kNoLimit);
    if (!frame || link->owner_ == nullptr) break;
    Traffic& traffic = link->context_.traffic;
    traffic.bytes_out += frame->size() + kPrefixBytes;
    ++traffic.messages_out;
    proto::Envelope envelope;
    if (!envelope.ParseFromString(*frame)) break;
    link->owner_->OnEnvelope(envelope);
  }
  link->Lost();
}

Task<void> Link::Write(std::shared_ptr<Link> link) {
  // An error closes the socket: the reader sees it.
  static_cast<void>(co_await link->sender_->Run());
}

void Link::SendBytes(std::string bytes) {
  Traffic& traffic = context_.traffic;
  traffic.bytes_in += bytes.size() + kPrefixBytes;
  ++traffic.messages_in;
  static_cast<void>(sender_->Send(std::move(bytes)));
}

void Link::Send(const proto::Envelope& envelope) {
  if (owner_ != nullptr && sender_) SendBytes(envelope.SerializeAsString());
}

void Link::Close() {
  owner_ = nullptr;
  if (!socket_) return;
  CloseSocket(*socket_);
  sender_->FinishAfterQueue();
}

void Link::Lost() {
  LinkOwner* const owner = owner_;
  Close();
  if (owner != nullptr) owner->OnClosed();
}

}  // namespace dd2::load
