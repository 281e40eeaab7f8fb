#include "coordinator/run_record.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <optional>
#include <system_error>
#include <utility>

#include "common/check.h"
#include "common/file.h"
#include "common/json.h"
#include "coordinator/tfrecord.h"
#include "tensorboard.pb.h"

namespace dd2 {
namespace {

namespace fs = std::filesystem;
namespace json = boost::json;
namespace tb = proto::tensorboard;

constexpr std::string_view event_file_prefix = "events.out.tfevents.";

Error FileError(std::string_view what, const fs::path& path, int error_number) {
  const bool full = error_number == ENOSPC || error_number == EDQUOT;
  return Error(full ? Code::kResourceExhausted : Code::kUnavailable,
               std::string(what) + " " + path.string() + ": " +
                   std::generic_category().message(error_number));
}

double UnixSeconds(std::int64_t unix_ms) { return static_cast<double>(unix_ms) / 1000; }

void AppendNumber(double value, std::string& out) {
  if (!std::isfinite(value)) {
    out += "null";
    return;
  }
  std::array<char, 32> digits{};
  const auto end = std::to_chars(digits.data(), digits.data() + digits.size(), value);
  out.append(digits.data(), end.ptr);
}

std::optional<RecordPosition> PositionOfLine(std::string_view line) {
  boost::system::error_code error;
  const json::value parsed = json::parse(json::string_view(line), error);
  if (error || !parsed.is_object()) return std::nullopt;
  const json::object& object = parsed.get_object();
  const json::value* phase = object.if_contains("phase");
  const json::value* step = object.if_contains("step");
  if (phase == nullptr || step == nullptr || !phase->is_int64() || !step->is_int64()) {
    return std::nullopt;
  }
  return RecordPosition{.phase = static_cast<std::int32_t>(phase->get_int64()),
                        .step = step->get_int64()};
}

// The seconds in the name of the newest event file of `folder`; TensorBoard reads files by name, so
// a new one must sort after it even when the clock went back.
std::int64_t NewestEventFileSeconds(const fs::path& folder) {
  std::int64_t newest = 0;
  std::error_code ignored;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder, ignored)) {
    const std::string name = entry.path().filename().string();
    if (!name.starts_with(event_file_prefix)) continue;
    std::int64_t seconds = 0;
    std::from_chars(name.data() + event_file_prefix.size(), name.data() + name.size(), seconds);
    newest = std::max(newest, seconds);
  }
  return newest;
}

std::string EventFileName(std::int64_t seconds) {
  std::array<char, 256> host{};
  if (::gethostname(host.data(), host.size() - 1) != 0) host[0] = '-';
  std::array<char, 320> name{};
  std::snprintf(name.data(), name.size(), "%s%010lld.%s.%d", event_file_prefix.data(),
                static_cast<long long>(seconds), host.data(), static_cast<int>(::getpid()));
  return name.data();
}

std::string FramedEvent(const tb::Event& event) { return FrameTfRecord(event.SerializeAsString()); }

}  // namespace

// A file that only ever holds whole appends: what a failed write left behind is cut off again.
class AppendFile {
 public:
  // Opens or creates `path` and keeps its first `keep` bytes.
  static Result<std::unique_ptr<AppendFile>> Open(const fs::path& path, std::size_t keep) {
    const int descriptor = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (descriptor < 0) return FileError("cannot open", path, errno);
    std::unique_ptr<AppendFile> file(new AppendFile(path, descriptor));
    DD2_TRY(file->Cut(keep));
    return file;
  }
  ~AppendFile() { ::close(descriptor_); }
  AppendFile(const AppendFile&) = delete;
  AppendFile& operator=(const AppendFile&) = delete;

  Status Append(std::string_view bytes) {
    std::size_t written = 0;
    while (written < bytes.size()) {
      const ssize_t n = ::pwrite(descriptor_, bytes.data() + written, bytes.size() - written,
                                 static_cast<off_t>(length_ + written));
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) {
        const int reason = n < 0 ? errno : ENOSPC;
        Status cut = Cut(length_);  // the first error is the one worth telling
        return FileError(cut ? "cannot write" : "cannot write, and a torn line is left in", path_,
                         reason);
      }
      written += static_cast<std::size_t>(n);
    }
    length_ += bytes.size();
    return {};
  }

  Status Cut(std::size_t length) {
    if (::ftruncate(descriptor_, static_cast<off_t>(length)) != 0) {
      return FileError("cannot truncate", path_, errno);
    }
    length_ = length;
    return {};
  }

  std::size_t length() const { return length_; }

 private:
  AppendFile(fs::path path, int descriptor) : path_(std::move(path)), descriptor_(descriptor) {}

  fs::path path_;
  int descriptor_;
  std::size_t length_ = 0;
};

std::int64_t GlobalStep(std::span<const std::int64_t> phase_steps, RecordPosition position) {
  if (position.phase < 0) return -1;
  std::int64_t total = position.step;
  const std::size_t earlier =
      std::min(phase_steps.size(), static_cast<std::size_t>(position.phase));
  for (const std::int64_t steps : phase_steps.first(earlier)) total += steps + 1;
  return total;
}

std::string RecordLine(const StepRecord& record) {
  std::string line = "{\"phase\":";
  line += std::to_string(record.phase);
  line += ",\"kind\":";
  line += json::serialize(json::string_view(PhaseKindName(record.kind)));
  line += ",\"step\":";
  line += std::to_string(record.step);
  line += ",\"time\":";
  // The shortest form of a double would print noise behind the milliseconds.
  std::array<char, 32> time{};
  std::snprintf(time.data(), time.size(), "%.3f", UnixSeconds(record.unix_ms));
  line += time.data();
  line += ",\"step_seconds\":";
  AppendNumber(record.step_seconds, line);
  for (const MetricValue& metric : record.metrics) {
    line += ',';
    line += json::serialize(json::string_view(metric.name));
    line += ':';
    AppendNumber(metric.value, line);
  }
  line += "}\n";
  return line;
}

std::size_t KeptRecordBytes(std::string_view content, RecordPosition position) {
  std::size_t kept = 0;
  while (kept < content.size()) {
    const std::size_t end = content.find('\n', kept);
    if (end == std::string_view::npos) break;  // torn
    const std::optional<RecordPosition> at = PositionOfLine(content.substr(kept, end - kept));
    if (!at || *at > position) break;
    kept = end + 1;
  }
  return kept;
}

Status AppendLine(const fs::path& path, std::string_view line) {
  const Result<std::string> content = RealFileSystem().Read(path);
  if (!content && content.error().code() != Code::kNotFound) return content.error();
  const std::size_t whole = content ? content->rfind('\n') + 1 : 0;
  DD2_TRY_ASSIGN(const std::unique_ptr<AppendFile> file, AppendFile::Open(path, whole));
  return file->Append(std::string(line) + "\n");
}

RecordPosition LastRecorded(std::string_view content) {
  RecordPosition last;
  std::size_t begin = 0;
  for (std::size_t end = 0; (end = content.find('\n', begin)) != std::string_view::npos;
       begin = end + 1) {
    const std::optional<RecordPosition> at = PositionOfLine(content.substr(begin, end - begin));
    if (!at) break;
    last = *at;
  }
  return last;
}

RunRecord::RunRecord(fs::path run_folder, std::vector<std::int64_t> phase_steps, const Clock& clock)
    : run_folder_(std::move(run_folder)), phase_steps_(std::move(phase_steps)), clock_(clock) {}

RunRecord::~RunRecord() = default;

Result<std::unique_ptr<RunRecord>> RunRecord::Open(const fs::path& run_folder,
                                                   std::vector<std::int64_t> phase_steps,
                                                   const Clock& clock) {
  const fs::path folder = run_folder / "tb";
  std::error_code error;
  fs::create_directories(folder, error);
  if (error) return FileError("cannot create", folder, error.value());

  std::unique_ptr<RunRecord> record(new RunRecord(run_folder, std::move(phase_steps), clock));
  const std::int64_t seconds = std::max(clock.UnixMs() / 1000, NewestEventFileSeconds(folder) + 1);
  record->event_path_ = folder / EventFileName(seconds);
  DD2_TRY_ASSIGN(record->events_, AppendFile::Open(record->event_path_, 0));
  tb::Event version;
  version.set_wall_time(UnixSeconds(clock.UnixMs()));
  version.set_file_version("brain.Event:2");
  DD2_TRY(record->events_->Append(FramedEvent(version)));
  return record;
}

Status RunRecord::Append(const StepRecord& record) {
  const RecordPosition position{.phase = record.phase, .step = record.step};
  DD2_CHECK_MSG(lines_ != nullptr, "Rewind comes before the first Append");
  DD2_CHECK_MSG(position >= last_, "the record goes forward only: call Rewind before");
  if (record.metrics.empty()) return {};
  tb::Event event;
  event.set_wall_time(UnixSeconds(record.unix_ms));
  event.set_step(GlobalStep(phase_steps_, position));
  for (const MetricValue& metric : record.metrics) {
    tb::Summary::Value* entry = event.mutable_summary()->add_value();
    entry->set_tag(metric.name);
    entry->set_simple_value(static_cast<float>(metric.value));
  }
  const std::size_t before = lines_->length();
  DD2_TRY(lines_->Append(RecordLine(record)));
  if (Status written = events_->Append(FramedEvent(event)); !written) {
    DD2_TRY(lines_->Cut(before));
    return written;
  }
  last_ = position;
  return {};
}

Status RunRecord::Rewind(RecordPosition position) {
  const fs::path path = run_folder_ / "metrics.jsonl";
  // Read again rather than remembered: rewinding is rare, and after a crash there is no memory.
  const Result<std::string> content = RealFileSystem().Read(path);
  if (!content && content.error().code() != Code::kNotFound) return content.error();
  const std::size_t kept = content ? KeptRecordBytes(*content, position) : 0;
  if (lines_ == nullptr) {
    DD2_TRY_ASSIGN(lines_, AppendFile::Open(path, kept));
  } else {
    DD2_TRY(lines_->Cut(kept));
  }
  last_ = position;
  // Readers drop their points at steps >= START's; the restore point itself stays.
  tb::Event event;
  event.set_wall_time(UnixSeconds(clock_.UnixMs()));
  event.set_step(GlobalStep(phase_steps_, position) + 1);
  event.mutable_session_log()->set_status(tb::SessionLog::START);
  return events_->Append(FramedEvent(event));
}

}  // namespace dd2
