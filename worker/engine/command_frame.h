#pragma once

#include <functional>
#include <string>
#include <vector>

#include "common/result.h"
#include "worker/engine/options.h"

namespace dd2 {

// What the commands of commands.h share.

inline constexpr const char* kDeviceOption = "--device";
// Takes what --device names for the whole process, before its first network is made: "cpu", also
// where there is no such option, or "cuda", the first GPU that this process may see, which is named
// on standard error. kInvalidArgument: another word. kFailedPrecondition: no GPU, or LibTorch's
// CUDA part is not there.
Status TakeDevice(const Options& options);

// The exit code of a command that does `action`. --help among the arguments: prints `usage`
// instead. An error, or what LibTorch throws, goes to standard error.
int RunCommand(const std::vector<std::string>& arguments, const char* usage,
               const std::function<Status()>& action);

}  // namespace dd2
