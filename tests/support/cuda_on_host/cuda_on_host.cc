#include <ucontext.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "common/check.h"
#include "tests/support/cuda_on_host/cuda_runtime.h"

namespace cuda_on_host {
namespace {

constexpr unsigned kWarp = 32;
constexpr std::size_t kStackBytes = 64 << 10;

enum class State { kReady, kAtWarp, kAtBlock, kDone };

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack = std::make_unique<char[]>(kStackBytes);
  State state = State::kDone;
  float offered = 0;  // to the other lanes
};

struct Block {
  ucontext_t scheduler;
  std::vector<Fiber> fibers;
  unsigned running = 0;
  const std::function<void()>* thread = nullptr;
};
Block block_state;

void Enter() {
  (*block_state.thread)();
  block_state.fibers[block_state.running].state = State::kDone;
}

void Wait(State where) {
  Fiber& self = block_state.fibers[block_state.running];
  self.state = where;
  swapcontext(&self.context, &block_state.scheduler);
}

// Lets those go on of whom everybody in [begin, end) who has not returned is `at` the same place.
bool Release(std::vector<Fiber>::iterator begin, std::vector<Fiber>::iterator end, State at) {
  const auto done = [](const Fiber& fiber) { return fiber.state == State::kDone; };
  const auto there = [at](const Fiber& fiber) {
    return fiber.state == at || fiber.state == State::kDone;
  };
  if (!std::all_of(begin, end, there) || std::all_of(begin, end, done)) return false;
  for (auto fiber = begin; fiber != end; ++fiber) {
    if (fiber->state == at) fiber->state = State::kReady;
  }
  return true;
}

void RunBlock(unsigned threads) {
  Block& block = block_state;
  block.fibers.resize(std::max<std::size_t>(block.fibers.size(), threads));
  const auto begin = block.fibers.begin(), end = begin + threads;
  for (auto fiber = begin; fiber != end; ++fiber) {
    getcontext(&fiber->context);
    fiber->context.uc_stack.ss_sp = fiber->stack.get();
    fiber->context.uc_stack.ss_size = kStackBytes;
    fiber->context.uc_link = &block.scheduler;
    makecontext(&fiber->context, Enter, 0);
    fiber->state = State::kReady;
  }
  while (std::any_of(begin, end, [](const Fiber& f) { return f.state != State::kDone; })) {
    bool moved = false;
    for (unsigned i = 0; i < threads; ++i) {
      if (block.fibers[i].state != State::kReady) continue;
      block.running = i;
      threadIdx = dim3(i, 0, 0);
      swapcontext(&block.scheduler, &block.fibers[i].context);
      moved = true;
    }
    for (unsigned first = 0; first < threads; first += kWarp) {
      const auto warp = begin + first;
      moved |= Release(warp, begin + std::min(first + kWarp, threads), State::kAtWarp);
    }
    moved |= Release(begin, end, State::kAtBlock);
    DD2_CHECK_MSG(moved, "threads of a block wait at different places");
  }
}

}  // namespace

void RunGrid(dim3 grid, dim3 block, const std::function<void()>& thread) {
  block_state.thread = &thread;
  gridDim = grid;
  blockDim = block;
  for (unsigned y = 0; y < grid.y; ++y) {
    for (unsigned x = 0; x < grid.x; ++x) {
      blockIdx = dim3(x, y, 0);
      RunBlock(block.x);
    }
  }
}

void WaitForBlock() { Wait(State::kAtBlock); }

float ShuffleXor(float value, int mask) {
  const unsigned lane = block_state.running;
  block_state.fibers[lane].offered = value;
  Wait(State::kAtWarp);
  const float other = block_state.fibers[lane ^ static_cast<unsigned>(mask)].offered;
  Wait(State::kAtWarp);  // everybody has looked
  return other;
}

}  // namespace cuda_on_host
