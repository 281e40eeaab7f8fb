#pragma once

#include <algorithm>
#include <barrier>
#include <functional>
#include <limits>
#include <memory>
#include <numeric>
#include <thread>
#include <vector>

#include "worker/parallel/collectives.h"

namespace dd2 {

// The exchanges between threads of one process by copies between barriers. For tests of what is
// built on Collectives.
class ThreadWorld {
 public:
  explicit ThreadWorld(int size) : size_(size), barrier_(size), posts_(size), fails_(size) {}

  // Exchange number `exchange` (from 0) succeeds on some ranks and fails on those in `ranks`, where
  // what others sent arrives damaged; all later ones fail everywhere. As when a peer dies in the
  // middle of one.
  void BreakAt(int exchange, const std::vector<int>& ranks) {
    breaks_at_ = exchange;
    for (const int rank : ranks) fails_[static_cast<std::size_t>(rank)] = true;
  }
  // Exchanges that rank 0 has begun.
  int exchanges() const { return exchanges_; }

  // The place of one rank; on that rank's thread.
  std::unique_ptr<Collectives> Join(int rank) { return std::make_unique<Member>(*this, rank); }

  // Runs body(collectives of rank r) on one thread per rank and waits for all.
  void Run(const std::function<void(Collectives&)>& body) {
    std::vector<std::jthread> threads;
    for (int rank = 0; rank < size_; ++rank) {
      threads.emplace_back([this, rank, &body] {
        Member member(*this, rank);
        body(member);
      });
    }
  }

 private:
  struct Post {
    std::span<const float> send;
    std::span<const std::int64_t> send_counts;
    std::span<const std::byte> bytes;
  };

  class Member final : public Collectives {
   public:
    Member(ThreadWorld& world, int rank) : world_(world), rank_(rank) {}
    int rank() const override { return rank_; }
    int world_size() const override { return world_.size_; }

    Status AllToAll(std::span<const float> send, std::span<const std::int64_t> send_counts,
                    std::span<float> receive,
                    std::span<const std::int64_t> receive_counts) override {
      if (Over()) return Broken();
      world_.posts_[rank_] = {.send = send, .send_counts = send_counts, .bytes = {}};
      world_.barrier_.arrive_and_wait();
      Status status;
      std::size_t at = 0;
      for (int from = 0; from < world_.size_; ++from) {
        const Post& post = world_.posts_[from];
        std::size_t begin = 0;
        for (int r = 0; r < rank_; ++r) begin += static_cast<std::size_t>(post.send_counts[r]);
        const auto count = static_cast<std::size_t>(post.send_counts[rank_]);
        if (post.send_counts[rank_] != receive_counts[from] || at + count > receive.size() ||
            begin + count > post.send.size()) {
          status = Error(Code::kInternal, "the counts of sender and receiver differ");
          break;
        }
        std::ranges::copy(post.send.subspan(begin, count), receive.begin() + at);
        at += count;
      }
      world_.barrier_.arrive_and_wait();
      const auto mine = static_cast<std::size_t>(receive_counts[rank_]);
      const auto before = static_cast<std::size_t>(
          std::accumulate(receive_counts.begin(), receive_counts.begin() + rank_, std::int64_t{0}));
      return Ended(status, std::as_writable_bytes(receive.first(before)),
                   std::as_writable_bytes(receive.subspan(before + mine)));
    }

    Status AllGather(std::span<const std::byte> mine, std::span<std::byte> all) override {
      if (Over()) return Broken();
      world_.posts_[rank_] = {.send = {}, .send_counts = {}, .bytes = mine};
      world_.barrier_.arrive_and_wait();
      Status status;
      for (int from = 0; from < world_.size_; ++from) {
        const std::span<const std::byte> bytes = world_.posts_[from].bytes;
        if (bytes.size() != mine.size() || all.size() != mine.size() * world_.posts_.size()) {
          status = Error(Code::kInternal, "ranks give different sizes");
          break;
        }
        std::ranges::copy(bytes, all.begin() + from * mine.size());
      }
      world_.barrier_.arrive_and_wait();
      const std::size_t before = mine.size() * static_cast<std::size_t>(rank_);
      return Ended(status, all.first(before), all.subspan(before + mine.size()));
    }

    void Abort() override {}  // a barrier cannot be left

   private:
    static Error Broken() { return Error(Code::kAborted, "broken by the test"); }
    bool Over() {
      if (rank_ == 0) ++world_.exchanges_;
      return begun_++ > world_.breaks_at_;
    }
    Status Ended(const Status& status, std::span<std::byte> from_lower,
                 std::span<std::byte> from_higher) {
      if (begun_ <= world_.breaks_at_ || !world_.fails_[static_cast<std::size_t>(rank_)]) {
        return status;
      }
      std::ranges::fill(from_lower, std::byte{0x5A});
      std::ranges::fill(from_higher, std::byte{0x5A});
      return Broken();
    }

    ThreadWorld& world_;
    const int rank_;
    int begun_ = 0;  // exchanges
  };

  const int size_;
  std::barrier<> barrier_;
  std::vector<Post> posts_;
  std::vector<bool> fails_;
  int breaks_at_ = std::numeric_limits<int>::max() - 1;
  int exchanges_ = 0;
};

}  // namespace dd2
