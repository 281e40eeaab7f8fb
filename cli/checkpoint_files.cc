#include "cli/checkpoint_files.h"

#include <algorithm>
#include <charconv>
#include <system_error>
#include <utility>

#include "common/file.h"
#include "storage/checkpoint_store.h"

namespace dd2 {

namespace fs = std::filesystem;

fs::path CheckpointsOf(const fs::path& run) { return run / "checkpoints"; }

Result<std::vector<std::string>> CheckpointIds(const fs::path& run) {
  std::error_code ignored;
  if (!fs::is_directory(run, ignored)) {
    return Error(Code::kNotFound, run.string() + ": no such run folder");
  }
  return ListCheckpoints(RealFileSystem(), CheckpointsOf(run));
}

Result<std::string> ChooseCheckpoint(const fs::path& run, const std::string& id) {
  DD2_TRY_ASSIGN(const auto ids, CheckpointIds(run));
  if (ids.empty()) {
    return Error(Code::kNotFound, run.string() + " has no committed checkpoint yet");
  }
  if (id.empty()) return ids.back();
  if (std::find(ids.begin(), ids.end(), id) != ids.end()) return id;
  return Error(Code::kNotFound, run.string() + " has no checkpoint '" + id +
                                    "'; `dd2 checkpoint ls " + run.string() + "` lists them");
}

Result<std::vector<QuarantinedCheckpoint>> QuarantinedCheckpoints(const fs::path& run) {
  std::vector<QuarantinedCheckpoint> found;
  const auto names = RealFileSystem().List(run / "quarantine");
  if (!names) {
    if (names.error().code() == Code::kNotFound) return found;
    return names.error();
  }
  for (const std::string& name : *names) {
    // "<id>-<time>"
    const std::size_t dash = name.rfind('-');
    QuarantinedCheckpoint one;
    one.folder = run / "quarantine" / name;
    one.id = name.substr(0, dash);
    if (dash != std::string::npos) {
      std::from_chars(name.data() + dash + 1, name.data() + name.size(), one.unix_ms);
    }
    const auto reason = RealFileSystem().Read(one.folder / "reason.txt");
    // The machine may have stopped between the two.
    one.reason = reason ? *reason : "its reason was not written";
    while (!one.reason.empty() && one.reason.back() == '\n') one.reason.pop_back();
    found.push_back(std::move(one));
  }
  return found;
}

}  // namespace dd2
