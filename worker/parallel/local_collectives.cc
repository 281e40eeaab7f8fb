#include <algorithm>
#include <atomic>
#include <memory>

#include "common/check.h"
#include "worker/parallel/collectives.h"

namespace dd2 {
namespace {

class LocalCollectives final : public Collectives {
 public:
  int rank() const override { return 0; }
  int world_size() const override { return 1; }

  Status AllToAll(std::span<const float> send, std::span<const std::int64_t> send_counts,
                  std::span<float> receive, std::span<const std::int64_t> receive_counts) override {
    DD2_CHECK(send_counts.size() == 1 && receive_counts.size() == 1);
    DD2_CHECK(send.size() == receive.size());
    if (aborted_) return Aborted();
    std::ranges::copy(send, receive.begin());
    return {};
  }

  Status AllGather(std::span<const std::byte> mine, std::span<std::byte> all) override {
    DD2_CHECK(mine.size() == all.size());
    if (aborted_) return Aborted();
    std::ranges::copy(mine, all.begin());
    return {};
  }

  void Abort() override { aborted_ = true; }

 private:
  static Error Aborted() { return Error(Code::kAborted, "the generation is over"); }

  std::atomic<bool> aborted_{false};
};

}  // namespace

std::unique_ptr<Collectives> NewLocalCollectives() { return std::make_unique<LocalCollectives>(); }

}  // namespace dd2
