#include "tests/support/store_server.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <map>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "common/check.h"
#include "proto/control.pb.h"

namespace dd2 {
namespace {

bool ReadAll(int socket, char* data, std::size_t size) {
  for (std::size_t at = 0; at < size;) {
    const ssize_t got = recv(socket, data + at, size - at, 0);
    if (got <= 0) return false;
    at += static_cast<std::size_t>(got);
  }
  return true;
}

std::optional<proto::Envelope> ReadEnvelope(int socket) {
  unsigned char length[4];
  if (!ReadAll(socket, reinterpret_cast<char*>(length), 4)) return std::nullopt;
  std::string frame(length[0] | length[1] << 8 | length[2] << 16, '\0');
  proto::Envelope envelope;
  if (length[3] != 0 || !ReadAll(socket, frame.data(), frame.size())) return std::nullopt;
  if (!envelope.ParseFromString(frame)) return std::nullopt;
  return envelope;
}

void WriteEnvelope(int socket, const proto::Envelope& envelope) {
  const std::string body = envelope.SerializeAsString();
  std::string frame;
  for (int i = 0; i < 4; ++i) frame.push_back(static_cast<char>(body.size() >> (8 * i) & 0xff));
  frame += body;
  for (std::size_t at = 0; at < frame.size();) {
    const ssize_t put = send(socket, frame.data() + at, frame.size() - at, MSG_NOSIGNAL);
    if (put <= 0) return;
    at += static_cast<std::size_t>(put);
  }
}

}  // namespace

struct StoreServer::Impl {
  std::string run_id;
  std::uint64_t generation = 0;
  std::string secret;
  int listener = -1;
  std::uint16_t port = 0;
  mutable std::mutex mutex;
  std::condition_variable changed;
  bool stopping = false;
  std::map<std::string, std::string> values;
  std::vector<int> sockets;
  std::thread acceptor;
  std::vector<std::thread> threads;  // one a connection; the acceptor adds

  void Accept();
  void Serve(int socket);
  proto::StoreReply Answer(const proto::StoreRequest& request);
  bool Wait(std::unique_lock<std::mutex>& lock, const std::vector<std::string>& keys,
            std::int64_t timeout_ms);
  bool AllThere(const std::vector<std::string>& keys) const {
    return std::ranges::all_of(keys, [&](const auto& key) { return values.contains(key); });
  }
};

StoreServer::StoreServer(std::string run_id, std::uint64_t generation, std::string secret)
    : impl_(std::make_unique<Impl>()) {
  impl_->run_id = std::move(run_id);
  impl_->generation = generation;
  impl_->secret = std::move(secret);
  impl_->listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  auto* generic = reinterpret_cast<sockaddr*>(&address);
  DD2_CHECK(bind(impl_->listener, generic, size) == 0);
  DD2_CHECK(listen(impl_->listener, 16) == 0);
  DD2_CHECK(getsockname(impl_->listener, generic, &size) == 0);
  impl_->port = ntohs(address.sin_port);
}

StoreServer::~StoreServer() {
  {
    const std::lock_guard lock(impl_->mutex);
    impl_->stopping = true;
    shutdown(impl_->listener, SHUT_RDWR);
    for (const int socket : impl_->sockets) shutdown(socket, SHUT_RDWR);
    impl_->changed.notify_all();
  }
  if (impl_->acceptor.joinable()) impl_->acceptor.join();
  for (std::thread& thread : impl_->threads) thread.join();
  for (const int socket : impl_->sockets) close(socket);
  close(impl_->listener);
}

std::uint16_t StoreServer::port() const { return impl_->port; }

void StoreServer::Start() {
  impl_->acceptor = std::thread([this] { impl_->Accept(); });
}

std::string StoreServer::Peek(const std::string& key) const {
  const std::lock_guard lock(impl_->mutex);
  const auto found = impl_->values.find(key);
  return found == impl_->values.end() ? "" : found->second;
}

void StoreServer::Impl::Accept() {
  while (true) {
    const int socket = accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
    if (socket < 0) return;
    const std::lock_guard lock(mutex);
    sockets.push_back(socket);
    if (stopping) return;
    threads.emplace_back([this, socket] { Serve(socket); });
  }
}

void StoreServer::Impl::Serve(int socket) {
  bool welcome = false;
  while (const std::optional<proto::Envelope> envelope = ReadEnvelope(socket)) {
    proto::Envelope answer;
    answer.set_run_id(run_id);
    answer.set_generation(generation);
    if (envelope->has_store_hello()) {
      welcome = envelope->run_id() == run_id && envelope->store_hello().secret() == secret;
      if (welcome) continue;
    }
    if (!welcome) {
      answer.mutable_refused()->set_code("failed precondition");
      answer.mutable_refused()->set_message("another run or secret");
    } else if (envelope->generation() != generation) {
      answer.mutable_store_reply()->set_message("that generation is over");
    } else {
      *answer.mutable_store_reply() = Answer(envelope->store_request());
    }
    WriteEnvelope(socket, answer);
  }
}

bool StoreServer::Impl::Wait(std::unique_lock<std::mutex>& lock,
                             const std::vector<std::string>& keys, std::int64_t timeout_ms) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(timeout_ms);
  changed.wait_until(lock, deadline, [&] { return stopping || AllThere(keys); });
  return AllThere(keys);
}

proto::StoreReply StoreServer::Impl::Answer(const proto::StoreRequest& request) {
  std::unique_lock lock(mutex);
  const std::vector<std::string> keys(request.keys().begin(), request.keys().end());
  proto::StoreReply reply;
  reply.set_ok(true);
  std::string& value = *reply.mutable_value();
  switch (request.op()) {
    case proto::StoreRequest::SET: values[request.key()] = request.value(); break;
    case proto::StoreRequest::GET:
      reply.set_ok(Wait(lock, {request.key()}, request.timeout_ms()));
      if (!reply.ok()) reply.set_message("timed out: not all keys were set");
      if (reply.ok()) value = values[request.key()];
      break;
    case proto::StoreRequest::ADD: {
      std::string& stored = values[request.key()];
      reply.set_number((stored.empty() ? 0 : std::stoll(stored)) + request.amount());
      stored = std::to_string(reply.number());
      break;
    }
    case proto::StoreRequest::CHECK: reply.set_ok(AllThere(keys)); break;
    case proto::StoreRequest::WAIT:
      reply.set_ok(Wait(lock, keys, request.timeout_ms()));
      if (!reply.ok()) reply.set_message("timed out: not all keys were set");
      break;
    case proto::StoreRequest::DELETE_KEY: reply.set_ok(values.erase(request.key()) > 0); break;
    case proto::StoreRequest::COMPARE_SET: {
      const auto found = values.find(request.key());
      if (found == values.end() ? request.expected().empty()
                                : found->second == request.expected()) {
        values[request.key()] = request.value();
      }
      value = values.contains(request.key()) ? values[request.key()] : request.expected();
      break;
    }
    case proto::StoreRequest::NUM_KEYS:
      reply.set_number(static_cast<std::int64_t>(values.size()));
      break;
    default: reply.set_ok(false); break;
  }
  changed.notify_all();
  return reply;
}

}  // namespace dd2
