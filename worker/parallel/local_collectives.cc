#include <algorithm>
#include <atomic>
#include <memory>
#include <vector>

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

Result<std::int64_t> Smallest(std::int64_t mine, Collectives& collectives) {
  std::vector<std::int64_t> all(static_cast<std::size_t>(collectives.world_size()));
  DD2_TRY(collectives.AllGather(std::as_bytes(std::span(&mine, 1)),
                                std::as_writable_bytes(std::span(all))));
  return *std::ranges::min_element(all);
}

std::unique_ptr<Collectives> NewLocalCollectives() { return std::make_unique<LocalCollectives>(); }

}  // namespace dd2
