#pragma once

namespace dd2 {

// SIGINT, SIGTERM and SIGHUP counted instead of ending the process, from construction to
// destruction. One object at a time; Count() from any thread.
class SignalCounter {
 public:
  SignalCounter();
  SignalCounter(const SignalCounter&) = delete;
  SignalCounter& operator=(const SignalCounter&) = delete;
  ~SignalCounter();
  // How many have come so far.
  int Count() const;
};

}  // namespace dd2
