#pragma once

// The only file that includes Boost.Asio, so that the rules for using it have one place:
// * one io_context and one thread for control in each process; blocking work elsewhere;
// * coroutine parameters by value, references only to what outlives the task group;
// * no braces and no capturing lambda in a statement with co_await (g++ 12.2 destroys them twice);
// * errors as codes (`asio::as_tuple(asio::use_awaitable)` or redirect_error), no exceptions.
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/bind_cancellation_slot.hpp>
#include <boost/asio/buffer.hpp>
#include <boost/asio/cancellation_signal.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/connect.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/read.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>
#include <boost/system/error_code.hpp>
#include <boost/system/system_error.hpp>
#include <chrono>
#include <memory>

namespace dd2 {

namespace asio = boost::asio;
using asio::ip::tcp;
using boost::system::error_code;

// A coroutine that runs on the control thread.
template <class T>
using Task = asio::awaitable<T, asio::any_io_executor>;

// Ends everything pending on `socket`, and what is tried on it later, when `limit` passes while
// this object lives: a peer that is late is given up, so reader and writer may both see it (as an
// abort, an end of file or a broken pipe). Control thread only.
class Deadline {
 public:
  Deadline(tcp::socket& socket, std::chrono::milliseconds limit)
      : state_(std::make_shared<State>(&socket)), timer_(socket.get_executor(), limit) {
    timer_.async_wait([state = state_](error_code error) {
      if (error || state->socket == nullptr) return;
      state->fired = true;
      error_code ignored;
      state->socket->cancel(ignored);
      // A composed operation may be between two of its steps: there is nothing to cancel then, and
      // its next step would wait without a limit.
      state->socket->shutdown(tcp::socket::shutdown_both, ignored);
    });
  }
  // A timer handler that runs later finds nothing to cancel.
  ~Deadline() { state_->socket = nullptr; }
  Deadline(const Deadline&) = delete;
  Deadline& operator=(const Deadline&) = delete;
  bool fired() const { return state_->fired; }

 private:
  struct State {
    explicit State(tcp::socket* s) : socket(s) {}
    tcp::socket* socket;
    bool fired = false;
  };
  std::shared_ptr<State> state_;
  asio::steady_timer timer_;
};

}  // namespace dd2
