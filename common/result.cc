#include "common/result.h"

#include "common/utf8.h"

namespace dd2 {

std::string_view CodeName(Code code) {
  switch (code) {
    case Code::kUnavailable: return "unavailable";
    case Code::kAborted: return "aborted";
    case Code::kFailedPrecondition: return "failed precondition";
    case Code::kNotFound: return "not found";
    case Code::kInvalidArgument: return "invalid argument";
    case Code::kDeadlineExceeded: return "deadline exceeded";
    case Code::kCorruption: return "corruption";
    case Code::kResourceExhausted: return "resource exhausted";
    case Code::kInternal: return "internal";
  }
  return "unknown";
}

Error::Error(Code code, std::string message) : code_(code), message_(ToUtf8(std::move(message))) {}

Error Error::Wrap(std::string_view context) const {
  return Error(code_, std::string(context) + ": " + message_);
}

}  // namespace dd2
