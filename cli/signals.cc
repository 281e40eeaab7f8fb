#include "cli/signals.h"

#include <signal.h>

#include <array>
#include <atomic>

namespace dd2 {
namespace {

constexpr std::array handled = {SIGINT, SIGTERM, SIGHUP};

std::atomic<int> received{0};
static_assert(std::atomic<int>::is_always_lock_free, "only then a handler may touch it");

void OnSignal(int) { received.fetch_add(1, std::memory_order_relaxed); }

void Install(void (*handler)(int)) {
  struct sigaction action {};
  action.sa_handler = handler;
  sigemptyset(&action.sa_mask);
  for (const int number : handled) sigaction(number, &action, nullptr);
}

}  // namespace

SignalCounter::SignalCounter() {
  received.store(0);
  Install(OnSignal);
}

SignalCounter::~SignalCounter() { Install(SIG_DFL); }

int SignalCounter::Count() const { return received.load(std::memory_order_relaxed); }

}  // namespace dd2
