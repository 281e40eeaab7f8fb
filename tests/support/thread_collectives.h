#pragma once

#include <barrier>
#include <cstring>
#include <functional>
#include <thread>
#include <vector>

#include "worker/parallel/collectives.h"

namespace dd2 {

// The exchanges between threads of one process by copies between barriers. For tests of what is
// built on Collectives.
class ThreadWorld {
 public:
  explicit ThreadWorld(int size) : size_(size), barrier_(size), posts_(size) {}

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
      return status;
    }

    Status AllGather(std::span<const std::byte> mine, std::span<std::byte> all) override {
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
      return status;
    }

    void Abort() override {}  // a barrier cannot be left

   private:
    ThreadWorld& world_;
    const int rank_;
  };

  const int size_;
  std::barrier<> barrier_;
  std::vector<Post> posts_;
};

}  // namespace dd2
