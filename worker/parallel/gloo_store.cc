#include "worker/parallel/gloo_store.h"

#include <algorithm>
#include <mutex>
#include <utility>

#include "common/blocking_channel.h"
#include "proto/control.pb.h"

namespace dd2 {
namespace {

using std::chrono::milliseconds;

// The server ends a wait at the time-out of its request; the answer then needs a moment to arrive.
constexpr milliseconds kAnswerMargin{2000};

std::string ToString(const std::vector<std::uint8_t>& bytes) {
  return {bytes.begin(), bytes.end()};
}

std::vector<std::uint8_t> ToBytes(const std::string& text) { return {text.begin(), text.end()}; }

}  // namespace

class GlooStore::Connection {
 public:
  Connection(BlockingChannel channel, StoreAddress address)
      : channel_(std::move(channel)), address_(std::move(address)) {}

  Status Hello(milliseconds timeout) {
    proto::Envelope envelope = NewEnvelope();
    envelope.mutable_store_hello()->set_secret(address_.secret);
    return channel_.Send(envelope.SerializeAsString(), timeout);
  }

  void Shutdown() { channel_.Shutdown(); }

  // Throws DistStoreError: c10d has no other way to hear of it.
  proto::StoreReply Call(proto::StoreRequest request, milliseconds timeout) {
    request.set_timeout_ms(timeout.count());
    Result<proto::StoreReply> reply = TryCall(std::move(request), timeout);
    if (!reply) {
      C10_THROW_ERROR(DistStoreError, std::string(CodeName(reply.error().code())) +
                                          ": rendezvous store " + address_.host + ":" +
                                          std::to_string(address_.port) + ": " +
                                          reply.error().message());
    }
    return *std::move(reply);
  }

 private:
  proto::Envelope NewEnvelope() const {
    proto::Envelope envelope;
    envelope.set_run_id(address_.run_id);
    envelope.set_generation(address_.generation);
    return envelope;
  }

  Result<proto::StoreReply> TryCall(proto::StoreRequest request, milliseconds timeout) {
    proto::Envelope envelope = NewEnvelope();
    *envelope.mutable_store_request() = std::move(request);
    const std::lock_guard lock(mutex_);
    DD2_TRY(channel_.Send(envelope.SerializeAsString(), timeout));
    DD2_TRY_ASSIGN(const std::string frame, channel_.Receive(timeout + kAnswerMargin));
    proto::Envelope answer;
    if (!answer.ParseFromString(frame)) {
      return Error(Code::kCorruption, "the answer is no Envelope");
    }
    if (answer.has_refused()) {
      return Error(Code::kFailedPrecondition,
                   "refused (" + answer.refused().code() + "): " + answer.refused().message());
    }
    if (!answer.has_store_reply()) {
      return Error(Code::kCorruption, "the answer is no StoreReply");
    }
    const proto::StoreReply& reply = answer.store_reply();
    if (!reply.ok() && !reply.message().empty() && !reply.message().starts_with("timed out")) {
      return Error(Code::kAborted, reply.message());  // the generation is over, most likely
    }
    return std::move(*answer.mutable_store_reply());
  }

  std::mutex mutex_;  // one request at a time
  BlockingChannel channel_;
  const StoreAddress address_;
};

Result<c10::intrusive_ptr<GlooStore>> GlooStore::Connect(const StoreAddress& address,
                                                         milliseconds timeout) {
  DD2_TRY_ASSIGN(BlockingChannel channel,
                 BlockingChannel::Connect(address.host, address.port, timeout));
  auto connection = std::make_shared<Connection>(std::move(channel), address);
  DD2_TRY(connection->Hello(timeout));
  return c10::make_intrusive<GlooStore>(std::move(connection), timeout);
}

GlooStore::GlooStore(std::shared_ptr<Connection> connection, milliseconds timeout)
    : Store(timeout), connection_(std::move(connection)) {}

GlooStore::~GlooStore() = default;

void GlooStore::Shutdown() { connection_->Shutdown(); }

c10::intrusive_ptr<c10d::Store> GlooStore::clone() {
  return c10::make_intrusive<GlooStore>(connection_, timeout_);
}

void GlooStore::set(const std::string& key, const std::vector<std::uint8_t>& value) {
  proto::StoreRequest request;
  request.set_op(proto::StoreRequest::SET);
  request.set_key(key);
  request.set_value(ToString(value));
  connection_->Call(std::move(request), timeout_);
}

std::vector<std::uint8_t> GlooStore::compareSet(const std::string& key,
                                                const std::vector<std::uint8_t>& expected,
                                                const std::vector<std::uint8_t>& desired) {
  proto::StoreRequest request;
  request.set_op(proto::StoreRequest::COMPARE_SET);
  request.set_key(key);
  request.set_expected(ToString(expected));
  request.set_value(ToString(desired));
  return ToBytes(connection_->Call(std::move(request), timeout_).value());
}

std::vector<std::uint8_t> GlooStore::get(const std::string& key) {
  proto::StoreRequest request;
  request.set_op(proto::StoreRequest::GET);
  request.set_key(key);
  const proto::StoreReply reply = connection_->Call(std::move(request), timeout_);
  if (!reply.ok()) {
    C10_THROW_ERROR(DistStoreError, "deadline exceeded: nobody set rendezvous key '" + key +
                                        "' within " + std::to_string(timeout_.count()) + " ms");
  }
  return ToBytes(reply.value());
}

std::int64_t GlooStore::add(const std::string& key, std::int64_t amount) {
  proto::StoreRequest request;
  request.set_op(proto::StoreRequest::ADD);
  request.set_key(key);
  request.set_amount(amount);
  return connection_->Call(std::move(request), timeout_).number();
}

bool GlooStore::deleteKey(const std::string& key) {
  proto::StoreRequest request;
  request.set_op(proto::StoreRequest::DELETE_KEY);
  request.set_key(key);
  return connection_->Call(std::move(request), timeout_).ok();
}

bool GlooStore::check(const std::vector<std::string>& keys) {
  proto::StoreRequest request;
  request.set_op(proto::StoreRequest::CHECK);
  for (const std::string& key : keys) request.add_keys(key);
  return connection_->Call(std::move(request), timeout_).ok();
}

std::int64_t GlooStore::getNumKeys() {
  proto::StoreRequest request;
  request.set_op(proto::StoreRequest::NUM_KEYS);
  return connection_->Call(std::move(request), timeout_).number();
}

void GlooStore::wait(const std::vector<std::string>& keys) { wait(keys, timeout_); }

void GlooStore::wait(const std::vector<std::string>& keys, const milliseconds& timeout) {
  // Gloo's set-up sometimes waits with c10d's own default of five minutes.
  const milliseconds limit = timeout == kNoTimeout ? timeout_ : std::min(timeout, timeout_);
  proto::StoreRequest request;
  request.set_op(proto::StoreRequest::WAIT);
  for (const std::string& key : keys) request.add_keys(key);
  if (connection_->Call(std::move(request), limit).ok()) return;
  std::string names;
  for (const std::string& key : keys) names += (names.empty() ? "" : ", ") + key;
  C10_THROW_ERROR(DistStoreError, "deadline exceeded: nobody set rendezvous key(s) " + names +
                                      " within " + std::to_string(limit.count()) + " ms");
}

}  // namespace dd2
