#include "common/process.h"

#include <fcntl.h>
#include <linux/close_range.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <thread>

#include "common/check.h"
#include "common/clock.h"

extern char** environ;

namespace dd2 {
namespace {

constexpr std::chrono::milliseconds kPoll{5};

Error SystemError(Code code, const std::string& what, int error) {
  return Error(code, what + ": " + std::strerror(error));
}

// Our environment with the additions, as "NAME=value".
std::vector<std::string> MergedEnvironment(
    const std::vector<std::pair<std::string, std::string>>& additions) {
  std::vector<std::string> merged;
  for (char** entry = environ; entry != nullptr && *entry != nullptr; ++entry) {
    const std::string_view text = *entry;
    const std::string_view name = text.substr(0, text.find('='));
    const bool replaced = std::any_of(additions.begin(), additions.end(),
                                      [&](const auto& added) { return added.first == name; });
    if (!replaced) merged.emplace_back(text);
  }
  for (const auto& [name, value] : additions) merged.push_back(name + "=" + value);
  return merged;
}

std::vector<char*> Pointers(std::vector<std::string>& strings) {
  std::vector<char*> pointers;
  for (std::string& text : strings) pointers.push_back(text.data());
  pointers.push_back(nullptr);
  return pointers;
}

// What the child needs, prepared before fork(): after it only async-signal-safe calls are allowed.
struct ChildPlan {
  const char* program;
  char** argv;
  char** environment;
  const char* folder;  // nullptr: stay
  int input;
  int output;  // -1: keep ours
  int report;  // the errno of a failure is written here; closed by a successful exec
  pid_t parent;
  bool dies_with_parent;
  bool blocks_sigterm;
};

[[noreturn]] void RunChild(const ChildPlan& plan) {
  setpgid(0, 0);
  if (plan.dies_with_parent) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != plan.parent) _exit(127);  // it died before the line above
  }
  for (int signal = 1; signal < 32; ++signal) ::signal(signal, SIG_DFL);
  sigset_t blocked;
  sigemptyset(&blocked);
  if (plan.blocks_sigterm) sigaddset(&blocked, SIGTERM);
  sigprocmask(SIG_SETMASK, &blocked, nullptr);
  bool good = dup2(plan.input, STDIN_FILENO) >= 0;
  if (plan.output >= 0) {
    good = good && dup2(plan.output, STDOUT_FILENO) >= 0 && dup2(plan.output, STDERR_FILENO) >= 0;
  }
  good = good && (plan.folder == nullptr || chdir(plan.folder) == 0);
  if (good) {
    syscall(SYS_close_range, 3U, ~0U, CLOSE_RANGE_CLOEXEC);
    execve(plan.program, plan.argv, plan.environment);
  }
  const int error = errno;
  // If even this fails the parent sees an exit status of 127.
  if (write(plan.report, &error, sizeof error) < 0) _exit(127);
  _exit(127);
}

struct Descriptor {
  int value = -1;
  Descriptor() = default;
  explicit Descriptor(int descriptor) : value(descriptor) {}
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() { Close(); }
  void Close() {
    if (value >= 0) close(value);
    value = -1;
  }
};

// The errno that the child reports, 0 when exec succeeded.
int ReadReport(int descriptor) {
  int error = 0;
  while (true) {
    const ssize_t got = read(descriptor, &error, sizeof error);
    if (got == static_cast<ssize_t>(sizeof error)) return error;
    if (got < 0 && errno == EINTR) continue;
    return 0;
  }
}

int StatusOf(const siginfo_t& info) {
  return info.si_code == CLD_EXITED ? info.si_status : 128 + info.si_status;
}

// Parent and state letter of a process; nothing when it is gone. The command name in /proc/N/stat
// may hold spaces and brackets, so the fields are counted from the last ')'.
std::optional<std::pair<pid_t, char>> ParentAndState(pid_t pid) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/stat");
  const std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  const std::size_t end = text.rfind(") ");
  if (end == std::string::npos || end + 4 >= text.size()) return std::nullopt;
  const long parent = std::strtol(text.c_str() + end + 4, nullptr, 10);
  return std::make_pair(static_cast<pid_t>(parent), text[end + 2]);
}

}  // namespace

Result<ChildProcess> ChildProcess::Spawn(const SpawnOptions& options) {
  DD2_CHECK(!options.argv.empty());
  DD2_TRY_ASSIGN(const std::string program, FindProgram(options.argv[0]));
  std::vector<std::string> arguments = options.argv;
  std::vector<std::string> environment = MergedEnvironment(options.environment);
  const std::vector<char*> argv = Pointers(arguments);
  const std::vector<char*> envp = Pointers(environment);

  const Descriptor input(open("/dev/null", O_RDONLY | O_CLOEXEC));
  if (input.value < 0) return SystemError(Code::kUnavailable, "cannot open /dev/null", errno);
  Descriptor output;
  if (!options.output.empty()) {
    output.value = open(options.output.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    if (output.value < 0) {
      return SystemError(Code::kUnavailable, "cannot open " + options.output.string(), errno);
    }
  }
  std::array<int, 2> report{};
  if (pipe2(report.data(), O_CLOEXEC) != 0) {
    return SystemError(Code::kUnavailable, "cannot make a pipe", errno);
  }
  const Descriptor report_read(report[0]);
  Descriptor report_write(report[1]);

  const ChildPlan plan{program.c_str(),
                       const_cast<char**>(argv.data()),
                       const_cast<char**>(envp.data()),
                       options.folder.empty() ? nullptr : options.folder.c_str(),
                       input.value,
                       output.value,
                       report_write.value,
                       getpid(),
                       options.dies_with_parent,
                       options.blocks_sigterm};
  const pid_t pid = fork();
  if (pid < 0) return SystemError(Code::kUnavailable, "cannot start a process", errno);
  if (pid == 0) RunChild(plan);
  setpgid(pid, pid);  // also here: a signal to the group may be sent before the child gets there
  report_write.Close();
  const int error = ReadReport(report_read.value);
  if (error != 0) {
    waitpid(pid, nullptr, 0);
    return SystemError(error == ENOENT ? Code::kNotFound : Code::kFailedPrecondition,
                       "cannot run " + program, error);
  }
  return ChildProcess(pid);
}

ChildProcess::ChildProcess(ChildProcess&& other) noexcept
    : pid_(std::exchange(other.pid_, -1)), status_(other.status_) {}

ChildProcess& ChildProcess::operator=(ChildProcess&& other) noexcept {
  if (this == &other) return *this;
  KillAndReap();
  pid_ = std::exchange(other.pid_, -1);
  status_ = other.status_;
  return *this;
}

ChildProcess::~ChildProcess() { KillAndReap(); }

void ChildProcess::KillAndReap() {
  if (pid_ < 0 || status_) return;
  kill(-pid_, SIGKILL);
  waitpid(pid_, nullptr, 0);
}

std::optional<int> ChildProcess::TryWait() {
  DD2_CHECK(pid_ > 0);
  if (status_) return status_;
  siginfo_t info{};
  const auto id = static_cast<id_t>(pid_);
  if (waitid(P_PID, id, &info, WEXITED | WNOHANG | WNOWAIT) != 0) {
    if (errno == EINTR) return std::nullopt;
    status_ = 127;  // somebody else reaped it: all that is certain is that it has ended
    return status_;
  }
  if (info.si_pid == 0) return std::nullopt;
  // Before it is reaped, while its number cannot be given to anybody else.
  kill(-pid_, SIGKILL);
  waitpid(pid_, nullptr, 0);
  status_ = StatusOf(info);
  return status_;
}

std::optional<int> ChildProcess::Wait(std::chrono::milliseconds limit) {
  const SystemClock clock;
  const TimePoint deadline = clock.Now() + limit;
  while (true) {
    const std::optional<int> status = TryWait();
    if (status || clock.Now() >= deadline) return status;
    std::this_thread::sleep_for(kPoll);
  }
}

Status ChildProcess::Signal(int signal) {
  DD2_CHECK(pid_ > 0);
  if (status_ || kill(-pid_, signal) == 0 || errno == ESRCH) return {};
  return SystemError(
      Code::kFailedPrecondition,
      "cannot send signal " + std::to_string(signal) + " to process " + std::to_string(pid_),
      errno);
}

Result<int> ChildProcess::Terminate(std::chrono::milliseconds grace) {
  DD2_TRY(Signal(SIGTERM));
  if (const std::optional<int> status = Wait(grace)) return *status;
  DD2_TRY(Signal(SIGKILL));
  if (const std::optional<int> status = Wait(std::chrono::seconds(10))) return *status;
  return Error(Code::kDeadlineExceeded,
               "process " + std::to_string(pid_) + " has not ended 10 s after SIGKILL");
}

Status AdoptOrphans() {
  if (prctl(PR_SET_CHILD_SUBREAPER, 1) == 0) return {};
  return SystemError(Code::kFailedPrecondition, "cannot adopt orphaned processes", errno);
}

std::vector<pid_t> DescendantsOf(pid_t root) {
  std::multimap<pid_t, pid_t> children;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator("/proc", error)) {
    const std::string name = entry.path().filename().string();
    pid_t pid = 0;
    const auto parsed = std::from_chars(name.data(), name.data() + name.size(), pid);
    if (parsed.ec != std::errc() || parsed.ptr != name.data() + name.size()) continue;
    const auto found = ParentAndState(pid);
    if (found && found->second != 'Z' && found->second != 'X') children.emplace(found->first, pid);
  }
  std::vector<pid_t> below{root};
  for (std::size_t i = 0; i < below.size(); ++i) {
    const auto [first, last] = children.equal_range(below[i]);
    for (auto it = first; it != last; ++it) below.push_back(it->second);
  }
  below.erase(below.begin());
  return below;
}

std::size_t KillDescendants(std::chrono::milliseconds limit) {
  const SystemClock clock;
  const TimePoint deadline = clock.Now() + limit;
  std::vector<pid_t> killed;
  while (true) {
    const std::vector<pid_t> left = DescendantsOf(getpid());
    for (const pid_t pid : left) {
      kill(pid, SIGKILL);
      if (std::find(killed.begin(), killed.end(), pid) == killed.end()) killed.push_back(pid);
    }
    while (waitpid(-1, nullptr, WNOHANG) > 0) continue;
    if (left.empty() || clock.Now() >= deadline) return killed.size();
    std::this_thread::sleep_for(kPoll);
  }
}

std::string HostName() {
  char name[256] = {};
  return gethostname(name, sizeof name - 1) == 0 ? name : "unknown";
}

Result<std::string> FindProgram(const std::string& name) {
  if (name.find('/') != std::string::npos) {
    std::error_code error;
    if (std::filesystem::exists(name, error)) return name;
    return Error(Code::kNotFound, name + ": no such program");
  }
  const char* path = std::getenv("PATH");
  const std::string folders = path != nullptr ? path : "/usr/local/bin:/usr/bin:/bin";
  for (std::size_t begin = 0; begin <= folders.size();) {
    const std::size_t end = std::min(folders.find(':', begin), folders.size());
    const std::string folder = folders.substr(begin, end - begin);
    const std::string program = (folder.empty() ? "." : folder) + "/" + name;
    if (access(program.c_str(), X_OK) == 0 && !std::filesystem::is_directory(program)) {
      return program;
    }
    begin = end + 1;
  }
  return Error(Code::kNotFound, name + ": no such program in PATH (" + folders + ")");
}

std::uint64_t RaiseFileLimit() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return 0;
  const rlim_t before = limit.rlim_cur;
  limit.rlim_cur = limit.rlim_max;
  return ::setrlimit(RLIMIT_NOFILE, &limit) == 0 ? limit.rlim_max : before;
}

Result<std::filesystem::path> OwnBinaryFolder() {
  std::error_code error;
  const std::filesystem::path self = std::filesystem::read_symlink("/proc/self/exe", error);
  if (error) return Error(Code::kInternal, "cannot read /proc/self/exe: " + error.message());
  return self.parent_path();
}

}  // namespace dd2
