#include "tests/bench/control/load_coordinator.h"

#include <signal.h>
#include <unistd.h>

#include <sstream>
#include <system_error>
#include <thread>
#include <utility>

#include "common/clock.h"
#include "common/file.h"
#include "common/json.h"

namespace dd2::load {

namespace fs = std::filesystem;

namespace {

constexpr std::chrono::seconds kStart{20};
constexpr std::chrono::seconds kEnd{5};

}  // namespace

Result<CoordinatorProcess> CoordinatorProcess::Start(const fs::path& parent,
                                                     const std::string& config) {
  std::string name = (parent / "dd2-load-XXXXXX").string();
  if (::mkdtemp(name.data()) == nullptr) {
    return Error(Code::kUnavailable, "cannot make a folder in " + parent.string());
  }
  const fs::path folder = name;
  DD2_TRY(WriteFileAtomically(RealFileSystem(), folder / "config.yaml", config));
  DD2_TRY_ASSIGN(const fs::path binaries, OwnBinaryFolder());
  SpawnOptions options;
  options.argv = {(binaries / "dd2-coordinator").string(), "--run", folder.string()};
  options.output = folder / "coordinator.out";
  DD2_TRY_ASSIGN(ChildProcess child, ChildProcess::Spawn(options));
  CoordinatorProcess process(folder, std::move(child));
  DD2_TRY(process.WaitUntilUp());
  DD2_TRY_ASSIGN(process.secret_, RealFileSystem().Read(folder / "secret"));
  return process;
}

Status CoordinatorProcess::WaitUntilUp() {
  const SystemClock clock;
  const TimePoint deadline = clock.Now() + kStart;
  while (clock.Now() < deadline && !child_.TryWait()) {
    const Result<std::string> text = RealFileSystem().Read(folder_ / "coordinator.json");
    boost::system::error_code failure;
    const boost::json::value value =
        text ? boost::json::parse(*text, failure) : boost::json::value(nullptr);
    if (!failure && value.is_object()) {
      control_port_ = static_cast<std::uint16_t>(value.as_object().at("control_port").as_int64());
      return {};
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  const Result<std::string> said = RealFileSystem().Read(folder_ / "coordinator.out");
  return Error(Code::kUnavailable, "the coordinator did not start: " + (said ? *said : ""));
}

CoordinatorProcess::~CoordinatorProcess() {
  if (folder_.empty()) return;
  // Its members do not leave one after the other: the run is thrown away.
  static_cast<void>(child_.Signal(SIGKILL));
  child_.Wait(kEnd);
  std::error_code ignored;
  fs::remove_all(folder_, ignored);
}

double CoordinatorProcess::CpuSeconds() const {
  const Result<std::string> text =
      RealFileSystem().Read("/proc/" + std::to_string(child_.pid()) + "/stat");
  if (!text) return 0;
  // Fields 14 and 15, counted from behind the name in parentheses, which is the second.
  std::istringstream words(text->substr(text->rfind(')') + 1));
  std::string skipped;
  for (int field = 3; field < 14; ++field) words >> skipped;
  double user = 0;
  double system = 0;
  words >> user >> system;
  return (user + system) / static_cast<double>(::sysconf(_SC_CLK_TCK));
}

std::int64_t CoordinatorProcess::ResidentBytes() const {
  const Result<std::string> text =
      RealFileSystem().Read("/proc/" + std::to_string(child_.pid()) + "/statm");
  if (!text) return 0;
  std::istringstream words(*text);
  std::int64_t size = 0;
  std::int64_t resident = 0;
  words >> size >> resident;
  return resident * ::sysconf(_SC_PAGESIZE);
}

}  // namespace dd2::load
