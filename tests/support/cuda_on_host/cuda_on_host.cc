#include <setjmp.h>
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

// A stack of its own that runs one thread of a block after another. It is entered once by
// makecontext; from then on it is left and entered by _setjmp and _longjmp, which make no system
// call.
struct Fiber {
  ucontext_t first;
  jmp_buf here;
  bool entered = false;
  std::unique_ptr<char[]> stack = std::make_unique<char[]>(kStackBytes);
  State state = State::kDone;
  unsigned shuffles = 0;  // of the block that runs
  float offered[2] = {};  // to the other lanes: by shuffles in turn
};

struct Block {
  jmp_buf scheduler;
  std::vector<std::unique_ptr<Fiber>> fibers;
  unsigned running = 0;
  const std::function<void()>* thread = nullptr;
};
Block block_state;

void Wait(State where) {
  Fiber& self = *block_state.fibers[block_state.running];
  self.state = where;
  if (_setjmp(self.here) == 0) _longjmp(block_state.scheduler, 1);
}

void RunThreads() {
  for (;;) {
    (*block_state.thread)();
    Wait(State::kDone);
  }
}

void Enter(Fiber& fiber) {
  if (_setjmp(block_state.scheduler) != 0) return;
  if (fiber.entered) _longjmp(fiber.here, 1);
  fiber.entered = true;
  getcontext(&fiber.first);
  fiber.first.uc_stack.ss_sp = fiber.stack.get();
  fiber.first.uc_stack.ss_size = kStackBytes;
  makecontext(&fiber.first, RunThreads, 0);
  setcontext(&fiber.first);
}

using Fibers = std::vector<std::unique_ptr<Fiber>>::iterator;

// Lets those go on of whom everybody in [begin, end) who has not returned is `at` the same place.
bool Release(Fibers begin, Fibers end, State at) {
  const auto done = [](const auto& fiber) { return fiber->state == State::kDone; };
  const auto there = [at](const auto& fiber) {
    return fiber->state == at || fiber->state == State::kDone;
  };
  if (!std::all_of(begin, end, there) || std::all_of(begin, end, done)) return false;
  for (auto fiber = begin; fiber != end; ++fiber) {
    if ((*fiber)->state == at) (*fiber)->state = State::kReady;
  }
  return true;
}

void RunBlock(unsigned threads) {
  Block& block = block_state;
  while (block.fibers.size() < threads) block.fibers.push_back(std::make_unique<Fiber>());
  const auto begin = block.fibers.begin(), end = begin + threads;
  for (auto fiber = begin; fiber != end; ++fiber) {
    (*fiber)->state = State::kReady;
    (*fiber)->shuffles = 0;
  }
  while (std::any_of(begin, end, [](const auto& f) { return f->state != State::kDone; })) {
    bool moved = false;
    for (unsigned i = 0; i < threads; ++i) {
      if (block.fibers[i]->state != State::kReady) continue;
      block.running = i;
      threadIdx = dim3(i, 0, 0);
      Enter(*block.fibers[i]);
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

// Nobody comes to the next but one before all have looked at this one: one wait is enough.
float ShuffleXor(float value, int mask) {
  const unsigned lane = block_state.running;
  const unsigned turn = block_state.fibers[lane]->shuffles++ % 2;
  block_state.fibers[lane]->offered[turn] = value;
  Wait(State::kAtWarp);
  return block_state.fibers[lane ^ static_cast<unsigned>(mask)]->offered[turn];
}

}  // namespace cuda_on_host
