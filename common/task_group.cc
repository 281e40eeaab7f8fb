#include "common/task_group.h"

#include <exception>
#include <utility>

#include "common/check.h"

namespace dd2 {

namespace {

// What a task threw, or an empty string when it was only cancelled.
std::string Describe(const std::exception_ptr& thrown) {
  try {
    std::rethrow_exception(thrown);
  } catch (const boost::system::system_error& error) {
    return error.code() == asio::error::operation_aborted ? std::string() : error.what();
  } catch (const std::exception& error) {
    return error.what();
  } catch (...) {
    return "an unknown exception";
  }
}

}  // namespace

TaskGroup::TaskGroup(asio::any_io_executor executor)
    : executor_(executor), empty_(executor, asio::steady_timer::time_point::max()) {}

TaskGroup::~TaskGroup() { DD2_CHECK_MSG(running_.empty(), "a TaskGroup was not waited for"); }

void TaskGroup::Spawn(std::string name, Task<void> task) {
  const auto entry = running_.emplace(running_.end());
  entry->name = std::move(name);
  auto ended = [this, entry](std::exception_ptr thrown) {
    const std::string what = thrown ? Describe(thrown) : std::string();
    DD2_CHECK_MSG(what.empty(), "task '" + entry->name + "' threw: " + what);
    running_.erase(entry);
    if (running_.empty()) empty_.cancel();
  };
  asio::co_spawn(executor_, std::move(task),
                 asio::bind_cancellation_slot(entry->cancel.slot(), std::move(ended)));
}

void TaskGroup::Cancel() {
  // A handler may run inside emit() and erase its own entry.
  for (auto entry = running_.begin(); entry != running_.end();) {
    const auto current = entry++;
    current->cancel.emit(asio::cancellation_type::terminal);
  }
}

Task<void> TaskGroup::Wait() {
  error_code ignored;
  while (!running_.empty()) {
    co_await empty_.async_wait(asio::redirect_error(asio::use_awaitable, ignored));
  }
}

}  // namespace dd2
