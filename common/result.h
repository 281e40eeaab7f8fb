#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <tl/expected.hpp>
#include <utility>

namespace dd2 {

// What the caller should do next; never what went wrong inside (the message says that).
enum class Code : std::uint8_t {
  kUnavailable,         // retry this call, with back-off
  kAborted,             // retry the whole round (generation, phase) from its start
  kFailedPrecondition,  // do not retry until an operator or another call changes the state
  kNotFound,            // the thing does not exist; often not an error for the caller
  kInvalidArgument,     // the input is wrong: fix it, do not retry
  kDeadlineExceeded,    // the effect may or may not have happened
  kCorruption,          // stored bytes failed a check; never retried
  kResourceExhausted,   // disk full, quota, too many: free some, then retry
  kInternal,            // our bug or a library's: report it
};

// "unavailable", "corruption", ...: for logs and JSON.
std::string_view CodeName(Code code);

// Why a call failed, in words for a person: what happened, the values, and where possible what to
// do.
class Error {
 public:
  // Bytes of `message` that are no UTF-8 become '?'.
  Error(Code code, std::string message);
  Code code() const { return code_; }
  const std::string& message() const { return message_; }
  // The same error with `context` and ": " in front of its message.
  Error Wrap(std::string_view context) const;

 private:
  Code code_;
  std::string message_;
};

// A value or an Error. No exception crosses a folder: the one file that calls a library turns its
// exceptions and codes into an Error.
template <class T>
class [[nodiscard]] Result : public tl::expected<T, Error> {
 public:
  using tl::expected<T, Error>::expected;
  Result(Error error) : tl::expected<T, Error>(tl::unexpected<Error>(std::move(error))) {}
};
using Status = Result<void>;

}  // namespace dd2

#define DD2_CONCAT_INNER(a, b) a##b
#define DD2_CONCAT(a, b) DD2_CONCAT_INNER(a, b)

// Returns the error of `expression` (a Status or Result) from the enclosing function.
#define DD2_TRY(expression)                                           \
  do {                                                                \
    auto dd2_try_status = (expression);                               \
    if (!dd2_try_status) return ::dd2::Error(dd2_try_status.error()); \
  } while (false)

#define DD2_TRY_ASSIGN_IMPL(temporary, target, expression) \
  auto temporary = (expression);                           \
  if (!temporary) return ::dd2::Error(temporary.error());  \
  target = std::move(*temporary)

// DD2_TRY_ASSIGN(const auto size, file.Size()): declares or assigns `target`, or returns the error.
#define DD2_TRY_ASSIGN(target, expression) \
  DD2_TRY_ASSIGN_IMPL(DD2_CONCAT(dd2_result_, __LINE__), target, expression)

// The twins for coroutines, where `return` is illegal.
#define DD2_CO_TRY(expression)                                           \
  do {                                                                   \
    auto dd2_try_status = (expression);                                  \
    if (!dd2_try_status) co_return ::dd2::Error(dd2_try_status.error()); \
  } while (false)

#define DD2_CO_TRY_ASSIGN_IMPL(temporary, target, expression) \
  auto temporary = (expression);                              \
  if (!temporary) co_return ::dd2::Error(temporary.error());  \
  target = std::move(*temporary)

#define DD2_CO_TRY_ASSIGN(target, expression) \
  DD2_CO_TRY_ASSIGN_IMPL(DD2_CONCAT(dd2_result_, __LINE__), target, expression)
