#include "worker/parallel/gloo_collectives.h"

#include <dirent.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <charconv>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <string_view>
#include <thread>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <utility>
#include <vector>

#include "common/check.h"
#include "worker/parallel/generation_collectives.h"
#include "worker/parallel/gloo_store.h"
#include "worker/torch.h"

namespace dd2 {
namespace {

// First line only: c10 appends a stack trace of its own to some messages.
std::string FirstLine(const std::exception& exception) {
  const std::string_view text = exception.what();
  return std::string(text.substr(0, text.find('\n')));
}

bool Contains(const std::string& text, std::string_view word) {
  return text.find(word) != std::string::npos;
}

bool IsTimeout(const std::string& message) {
  return Contains(message, "imed out") || Contains(message, "imeout") ||
         Contains(message, "deadline exceeded");
}

// Gloo's exceptions are types of the copy inside LibTorch, so only their text can be told apart.
Error CollectiveError(std::string_view operation, const std::exception& exception) {
  const std::string message = FirstLine(exception);
  return Error(IsTimeout(message) ? Code::kDeadlineExceeded : Code::kAborted,
               "gloo " + std::string(operation) + ": " + message);
}

Error ConnectError(const GlooOptions& options, const std::exception& exception) {
  const std::string message = FirstLine(exception);
  Code code = Code::kAborted;
  if (IsTimeout(message)) code = Code::kDeadlineExceeded;
  if (Contains(message, "unavailable: rendezvous store")) code = Code::kUnavailable;
  return Error(code, "gloo: rank " + std::to_string(options.rank) + " of " +
                         std::to_string(options.world_size) + " (prefix '" + options.prefix +
                         "') could not meet the others: " + message);
}

// LibTorch wants mutable memory; none of the operations below writes to an input.
template <class T>
at::Tensor Wrap(std::span<T> span, at::ScalarType type) {
  using Mutable = std::remove_const_t<T>;
  return at::from_blob(const_cast<Mutable*>(span.data()), {static_cast<std::int64_t>(span.size())},
                       at::TensorOptions().dtype(type));
}

// Port of the peer of a connected TCP socket; -1: it is none.
int PeerPort(int descriptor) {
  sockaddr_storage peer{};
  socklen_t size = sizeof peer;
  int type = 0;
  socklen_t type_size = sizeof type;
  if (getsockopt(descriptor, SOL_SOCKET, SO_TYPE, &type, &type_size) != 0 || type != SOCK_STREAM ||
      getpeername(descriptor, reinterpret_cast<sockaddr*>(&peer), &size) != 0) {
    return -1;
  }
  if (peer.ss_family == AF_INET) return ntohs(reinterpret_cast<const sockaddr_in&>(peer).sin_port);
  if (peer.ss_family == AF_INET6) {
    return ntohs(reinterpret_cast<const sockaddr_in6&>(peer).sin6_port);
  }
  return -1;
}

// Descriptors of this process, each with the number of what it stands for: descriptors are given
// again, to another connection, while Gloo still closes those of the group before.
std::map<int, ino_t> OpenDescriptors() {
  std::map<int, ino_t> descriptors;
  const std::unique_ptr<DIR, int (*)(DIR*)> folder(opendir("/proc/self/fd"), closedir);
  while (const dirent* entry = folder ? readdir(folder.get()) : nullptr) {
    const std::string_view name = entry->d_name;
    int descriptor = -1;
    const auto end = std::from_chars(name.data(), name.data() + name.size(), descriptor);
    struct stat about {};
    if (end.ec != std::errc() || fstat(descriptor, &about) != 0) continue;
    descriptors[descriptor] = about.st_ino;
  }
  return descriptors;
}

// Second names of the TCP connections of a group: what can be shut down from outside it, whatever
// Gloo does with its own names. Owns them.
class GroupSockets {
 public:
  // Those that are connected now and were not among `before`; not those to the coordinator.
  GroupSockets(const std::map<int, ino_t>& before, int coordinator_port) {
    for (const auto& [descriptor, number] : OpenDescriptors()) {
      const auto known = before.find(descriptor);
      const bool old = known != before.end() && known->second == number;
      const int port = old ? -1 : PeerPort(descriptor);
      if (port < 0 || port == coordinator_port) continue;
      const int twin = fcntl(descriptor, F_DUPFD_CLOEXEC, 0);
      if (twin >= 0) twins_.push_back(twin);
    }
  }
  ~GroupSockets() {
    for (const int twin : twins_) close(twin);
  }
  GroupSockets(const GroupSockets&) = delete;
  GroupSockets& operator=(const GroupSockets&) = delete;
  void Shutdown() const {
    for (const int twin : twins_) shutdown(twin, SHUT_RDWR);
  }

 private:
  std::vector<int> twins_;
};

// An exchange whose connections are shut down ends within milliseconds, or never: Gloo (to its
// version of 2026) tells the end of a connection to those who wait for a message, but not to one
// that is half sent or half received. By then no thread of Gloo touches its memory any more.
constexpr std::chrono::seconds kAbandon(1);

class GlooCollectives final : public Collectives {
 public:
  GlooCollectives(c10::intrusive_ptr<c10d::ProcessGroupGloo> group,
                  std::unique_ptr<GroupSockets> sockets)
      : sockets_(std::move(sockets)), group_(std::move(group)) {}
  ~GlooCollectives() override {
    // Its thread waits for an exchange that never ends, until the time-out.
    if (abandoned_) std::thread([group = std::move(group_)]() mutable { group.reset(); }).detach();
  }

  int rank() const override { return group_->getRank(); }
  int world_size() const override { return group_->getSize(); }

  Status AllToAll(std::span<const float> send, std::span<const std::int64_t> send_counts,
                  std::span<float> receive, std::span<const std::int64_t> receive_counts) override {
    DD2_CHECK(send_counts.size() == static_cast<std::size_t>(world_size()));
    DD2_CHECK(receive_counts.size() == static_cast<std::size_t>(world_size()));
    if (aborted_) return Aborted();
    std::vector<std::int64_t> in_counts(send_counts.begin(), send_counts.end());
    std::vector<std::int64_t> out_counts(receive_counts.begin(), receive_counts.end());
    try {
      at::Tensor in = Wrap(send, at::kFloat);
      at::Tensor out = Wrap(receive, at::kFloat);
      return Finish(group_->alltoall_base(out, in, out_counts, in_counts));
    } catch (const std::exception& exception) {
      return aborted_ ? Aborted() : CollectiveError("all-to-all", exception);
    }
  }

  Status AllGather(std::span<const std::byte> mine, std::span<std::byte> all) override {
    DD2_CHECK(all.size() == mine.size() * static_cast<std::size_t>(world_size()));
    if (aborted_) return Aborted();
    try {
      at::Tensor in = Wrap(mine, at::kByte);
      at::Tensor out = Wrap(all, at::kByte);
      return Finish(group_->_allgather_base(out, in));
    } catch (const std::exception& exception) {
      return aborted_ ? Aborted() : CollectiveError("all-gather", exception);
    }
  }

  void Abort() override {
    {
      const std::lock_guard lock(done_->mutex);
      aborted_ = true;
    }
    sockets_->Shutdown();
    done_->changed.notify_all();
  }

 private:
  // Of the exchange that is waited for; Gloo's thread may outlive us.
  struct Done {
    std::mutex mutex;
    std::condition_variable changed;
    std::uint64_t ended = 0;
  };
  static Error Aborted() { return Error(Code::kAborted, "the generation is over"); }

  // Throws what the exchange ended with.
  Status Finish(const c10::intrusive_ptr<c10d::Work>& work) {
    const std::uint64_t number = ++begun_;
    work->getFuture()->addCallback([done = done_, number](c10::ivalue::Future&) {
      const std::lock_guard lock(done->mutex);
      done->ended = number;
      done->changed.notify_all();
    });
    std::unique_lock lock(done_->mutex);
    const auto ended = [this, number] { return done_->ended == number; };
    done_->changed.wait(lock, [&] { return ended() || aborted_; });
    if (!done_->changed.wait_for(lock, kAbandon, ended)) {
      abandoned_ = true;
      return Aborted();
    }
    lock.unlock();
    work->wait();
    return {};
  }

  std::atomic<bool> aborted_{false};
  bool abandoned_ = false;
  std::uint64_t begun_ = 0;
  const std::shared_ptr<Done> done_ = std::make_shared<Done>();
  const std::unique_ptr<GroupSockets> sockets_;
  c10::intrusive_ptr<c10d::ProcessGroupGloo> group_;
};

Result<std::unique_ptr<Collectives>> ConnectThrough(const GlooOptions& options,
                                                    const c10::intrusive_ptr<GlooStore>& store) {
  try {
    const std::map<int, ino_t> before = OpenDescriptors();
    auto prefixed = c10::make_intrusive<c10d::PrefixStore>(options.prefix, store);
    auto group_options = c10d::ProcessGroupGloo::Options::create(options.connect_timeout);
    group_options->threads = 1;  // operations come one at a time
    group_options->devices.push_back(
        c10d::ProcessGroupGloo::createDeviceForHostname(options.interface_host));
    auto group = c10::make_intrusive<c10d::ProcessGroupGloo>(
        prefixed, options.rank, options.world_size, std::move(group_options));
    group->setTimeout(options.timeout);
    auto sockets = std::make_unique<GroupSockets>(before, options.store.port);
    return std::unique_ptr<Collectives>(new GlooCollectives(std::move(group), std::move(sockets)));
  } catch (const std::exception& exception) {
    return ConnectError(options, exception);
  }
}

}  // namespace

Result<std::unique_ptr<Collectives>> ConnectGloo(const GlooOptions& options, ConnectAbort& abort) {
  DD2_CHECK(options.rank >= 0 && options.rank < options.world_size);
  DD2_TRY_ASSIGN(const c10::intrusive_ptr<GlooStore> store,
                 GlooStore::Connect(options.store, options.connect_timeout));
  abort.OnAbort([&store] { store->Shutdown(); });
  Result<std::unique_ptr<Collectives>> group = ConnectThrough(options, store);
  abort.OnAbort(nullptr);
  if (abort.aborted()) return Error(Code::kAborted, "the generation is over");
  return group;
}

Result<std::unique_ptr<Collectives>> ConnectGloo(const GlooOptions& options) {
  ConnectAbort never;
  return ConnectGloo(options, never);
}

}  // namespace dd2
