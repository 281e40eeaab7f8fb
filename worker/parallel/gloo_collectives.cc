#include "worker/parallel/gloo_collectives.h"

#include <exception>
#include <string_view>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <utility>
#include <vector>

#include "common/check.h"
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

class GlooCollectives final : public Collectives {
 public:
  explicit GlooCollectives(c10::intrusive_ptr<c10d::ProcessGroupGloo> group)
      : group_(std::move(group)) {}

  int rank() const override { return group_->getRank(); }
  int world_size() const override { return group_->getSize(); }

  Status AllToAll(std::span<const float> send, std::span<const std::int64_t> send_counts,
                  std::span<float> receive, std::span<const std::int64_t> receive_counts) override {
    DD2_CHECK(send_counts.size() == static_cast<std::size_t>(world_size()));
    DD2_CHECK(receive_counts.size() == static_cast<std::size_t>(world_size()));
    std::vector<std::int64_t> in_counts(send_counts.begin(), send_counts.end());
    std::vector<std::int64_t> out_counts(receive_counts.begin(), receive_counts.end());
    try {
      at::Tensor in = Wrap(send, at::kFloat);
      at::Tensor out = Wrap(receive, at::kFloat);
      group_->alltoall_base(out, in, out_counts, in_counts)->wait();
      return {};
    } catch (const std::exception& exception) {
      return CollectiveError("all-to-all", exception);
    }
  }

  Status AllGather(std::span<const std::byte> mine, std::span<std::byte> all) override {
    DD2_CHECK(all.size() == mine.size() * static_cast<std::size_t>(world_size()));
    try {
      at::Tensor in = Wrap(mine, at::kByte);
      at::Tensor out = Wrap(all, at::kByte);
      group_->_allgather_base(out, in)->wait();
      return {};
    } catch (const std::exception& exception) {
      return CollectiveError("all-gather", exception);
    }
  }

 private:
  c10::intrusive_ptr<c10d::ProcessGroupGloo> group_;
};

}  // namespace

Result<std::unique_ptr<Collectives>> ConnectGloo(const GlooOptions& options) {
  DD2_CHECK(options.rank >= 0 && options.rank < options.world_size);
  DD2_TRY_ASSIGN(c10::intrusive_ptr<c10d::Store> store,
                 GlooStore::Connect(options.store, options.timeout));
  try {
    store = c10::make_intrusive<c10d::PrefixStore>(options.prefix, std::move(store));
    auto group_options = c10d::ProcessGroupGloo::Options::create(options.timeout);
    group_options->threads = 1;  // operations come one at a time
    group_options->devices.push_back(
        c10d::ProcessGroupGloo::createDeviceForHostname(options.interface_host));
    auto group = c10::make_intrusive<c10d::ProcessGroupGloo>(
        store, options.rank, options.world_size, std::move(group_options));
    return std::unique_ptr<Collectives>(new GlooCollectives(std::move(group)));
  } catch (const std::exception& exception) {
    return ConnectError(options, exception);
  }
}

}  // namespace dd2
