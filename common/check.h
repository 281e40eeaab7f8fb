#pragma once

#include <string_view>

namespace dd2 {

// Prints file, line and the failed condition to standard error, then aborts. Never returns.
[[noreturn]] void CheckFailed(const char* file, int line, const char* condition,
                              std::string_view message = {});

}  // namespace dd2

// For our own bugs only, on in every build. What the world can get wrong is an Error instead.
#define DD2_CHECK(condition)                                              \
  do {                                                                    \
    if (!(condition)) ::dd2::CheckFailed(__FILE__, __LINE__, #condition); \
  } while (false)

// The same with a message that is only built when the check fails.
#define DD2_CHECK_MSG(condition, message)                                          \
  do {                                                                             \
    if (!(condition)) ::dd2::CheckFailed(__FILE__, __LINE__, #condition, message); \
  } while (false)
