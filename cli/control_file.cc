#include "cli/control_file.h"

#include "cli/report_data.h"
#include "common/file.h"
#include "common/json.h"

namespace dd2 {
namespace {

namespace json = boost::json;

constexpr const char* kLoopback = "127.0.0.1";

bool IsWildcard(const std::string& host) { return host == "0.0.0.0" || host == "::"; }

}  // namespace

std::string ControlFile::Address() const {
  return (IsWildcard(control_host) ? kLoopback : control_host) + ":" + std::to_string(control_port);
}

bool ControlFile::OnlyForItsMachine() const {
  return IsWildcard(control_host) || control_host.starts_with("127.") || control_host == "::1";
}

Result<ControlFile> ReadControlFile(const std::filesystem::path& run) {
  const std::filesystem::path path = run / "coordinator.json";
  const Result<std::string> text = RealFileSystem().Read(path);
  if (!text && text.error().code() == Code::kNotFound) {
    return Error(Code::kUnavailable, "no coordinator works on " + run.string() + " (there is no " +
                                         path.string() + "): start the run with 'dd2 run'");
  }
  if (!text) return text.error();
  boost::system::error_code failure;
  const json::value value = json::parse(*text, failure);
  const json::object* object = failure ? nullptr : value.if_object();
  const auto pid = object == nullptr ? std::nullopt : FindNumber(*object, "pid");
  const auto port = object == nullptr ? std::nullopt : FindNumber(*object, "control_port");
  if (!pid || !port) {
    return Error(Code::kCorruption, path.string() + " does not hold pid and control_port");
  }
  ControlFile file;
  file.pid = static_cast<std::int64_t>(*pid);
  file.control_port = static_cast<int>(*port);
  file.machine = FindText(*object, "host").value_or("");
  file.control_host = FindText(*object, "control_host").value_or(kLoopback);
  return file;
}

}  // namespace dd2
