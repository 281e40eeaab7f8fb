#include "coordinator/run_record.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <algorithm>
#include <cmath>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "common/json.h"
#include "coordinator/tfrecord.h"
#include "tensorboard.pb.h"

namespace dd2 {
namespace {

namespace fs = std::filesystem;
namespace json = boost::json;
namespace tb = proto::tensorboard;

const std::vector<std::int64_t> phase_steps = {1, 4, 5};

class RunRecordTest : public testing::Test {
 protected:
  RunRecordTest() : folder_(MakeFolder()) {}
  ~RunRecordTest() override { fs::remove_all(folder_); }

  static fs::path MakeFolder() {
    std::string name = (fs::temp_directory_path() / "dd2-record-XXXXXX").string();
    if (::mkdtemp(name.data()) == nullptr) throw std::runtime_error("mkdtemp failed");
    return name;
  }

  const fs::path folder_;
};

std::string ReadAll(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

// The lines of metrics.jsonl without their times.
std::vector<std::string> LinesWithoutTime(const fs::path& folder) {
  std::vector<std::string> lines;
  std::ifstream in(folder / "metrics.jsonl");
  for (std::string line; std::getline(in, line);) {
    json::object object = json::parse(line).as_object();
    EXPECT_TRUE(object.contains("time")) << line;
    object.erase("time");
    EXPECT_TRUE(object.contains("step_seconds")) << line;
    object.erase("step_seconds");
    lines.push_back(json::serialize(object));
  }
  return lines;
}

// CRC-32C bit by bit, after the definition and not after our table.
std::uint32_t SlowMaskedCrc(std::string_view bytes) {
  std::uint32_t crc = ~0U;
  for (const char c : bytes) {
    crc ^= static_cast<unsigned char>(c);
    for (int i = 0; i < 8; ++i) crc = (crc >> 1U) ^ ((crc & 1U) != 0 ? 0x82f63b78U : 0U);
  }
  crc = ~crc;
  return ((crc >> 15U) | (crc << 17U)) + 0xa282ead8U;
}

// Reads the frames with a reader that shares no code with the writer.
std::vector<tb::Event> ReadEvents(const fs::path& path) {
  const std::string content = ReadAll(path);
  std::vector<tb::Event> events;
  std::size_t at = 0;
  while (at < content.size()) {
    std::uint64_t length = 0;
    std::uint32_t length_crc = 0;
    std::uint32_t payload_crc = 0;
    std::memcpy(&length, content.data() + at, 8);
    std::memcpy(&length_crc, content.data() + at + 8, 4);
    EXPECT_EQ(length_crc, SlowMaskedCrc(content.substr(at, 8)));
    if (at + 12 + length + 4 > content.size()) {
      ADD_FAILURE() << "frame at byte " << at << " is longer than the file";
      break;
    }
    const std::string payload = content.substr(at + 12, length);
    std::memcpy(&payload_crc, content.data() + at + 12 + length, 4);
    EXPECT_EQ(payload_crc, SlowMaskedCrc(payload));
    tb::Event event;
    EXPECT_TRUE(event.ParseFromString(payload));
    events.push_back(event);
    at += 12 + length + 4;
  }
  return events;
}

// What TensorBoard shows after all event files of `folder`: files by name, START at s drops the
// points at steps >= s.
std::map<std::string, std::vector<std::pair<std::int64_t, float>>> Series(const fs::path& folder) {
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(folder / "tb")) files.push_back(entry.path());
  std::sort(files.begin(), files.end());
  std::map<std::string, std::vector<std::pair<std::int64_t, float>>> series;
  for (const fs::path& file : files) {
    const std::vector<tb::Event> events = ReadEvents(file);
    EXPECT_FALSE(events.empty());
    if (events.empty()) continue;
    EXPECT_EQ(events.front().file_version(), "brain.Event:2");
    for (const tb::Event& event : events) {
      if (event.session_log().status() == tb::SessionLog::START) {
        for (auto& [tag, points] : series) {
          std::erase_if(points, [&](const auto& point) { return point.first >= event.step(); });
        }
      }
      for (const tb::Summary::Value& value : event.summary().value()) {
        series[value.tag()].emplace_back(event.step(), value.simple_value());
      }
    }
  }
  return series;
}

class FakeClock final : public Clock {
 public:
  TimePoint Now() const override { return TimePoint{}; }
  std::int64_t UnixMs() const override { return unix_ms; }
  std::int64_t unix_ms = 1'000'000;
};

// What a worker would report: a function of the position alone, as bitwise equal runs do.
StepRecord RecordAt(RecordPosition at, std::int64_t unix_ms = 5000) {
  StepRecord record;
  record.phase = at.phase;
  record.kind = PhaseKind::kGts;
  record.step = at.step;
  record.unix_ms = unix_ms;
  record.step_seconds = static_cast<double>(unix_ms) * 1e-9;
  const double x = std::sin(at.phase * 100.0 + static_cast<double>(at.step));
  record.metrics = {{"gts/loss", x}, {"gts/norm", x * 1e-7}};
  if (at.step == 2) record.metrics.push_back({"eval/fdr", 1.0 / 3.0});
  return record;
}

std::unique_ptr<RunRecord> MustOpen(const fs::path& folder, const Clock& clock, RecordPosition at) {
  auto record = RunRecord::Open(folder, phase_steps, clock);
  EXPECT_TRUE(record.has_value()) << (record ? "" : record.error().message());
  EXPECT_TRUE((*record)->Rewind(at));
  return std::move(*record);
}

// Steps from behind `from` up to and with `to`.
void RunSteps(RunRecord& record, FakeClock& clock, RecordPosition from, RecordPosition to) {
  for (std::int32_t phase = std::max(from.phase, 0); phase <= to.phase; ++phase) {
    const auto steps = phase_steps[static_cast<std::size_t>(phase)];
    for (std::int64_t step = phase == from.phase ? from.step + 1 : 0; step <= steps; ++step) {
      const RecordPosition at{.phase = phase, .step = step};
      if (at > to) return;
      clock.unix_ms += 17;
      ASSERT_TRUE(record.Append(RecordAt(at, clock.unix_ms)));
    }
  }
}

TEST(TfRecord, KnownChecksums) {
  EXPECT_EQ(Crc32c("123456789"), 0xe3069283U);
  EXPECT_EQ(Crc32c(std::string(32, '\0')), 0x8a9136aaU);  // RFC 3720, B.4
  EXPECT_EQ(Crc32c(std::string(32, '\xff')), 0x62a8ab43U);
  EXPECT_EQ(MaskedCrc32c("123456789"), SlowMaskedCrc("123456789"));
}

TEST(GlobalStep, GrowsStrictlyWithThePosition) {
  std::int64_t before = GlobalStep(phase_steps, RecordPosition{});
  EXPECT_EQ(before, -1);
  for (std::int32_t phase = 0; phase < 3; ++phase) {
    for (std::int64_t step = 0; step <= phase_steps[static_cast<std::size_t>(phase)]; ++step) {
      const std::int64_t now =
          GlobalStep(phase_steps, RecordPosition{.phase = phase, .step = step});
      EXPECT_EQ(now, before + 1);
      before = now;
    }
  }
}

TEST(RecordLine, IsOneJsonObjectThatKeepsEveryBit) {
  StepRecord record = RecordAt({.phase = 3, .step = 12}, 1700000000250);
  record.kind = PhaseKind::kCsd;
  record.step_seconds = 0.3;
  record.metrics = {{"a\"b\n", 0.1 + 0.2},
                    {"nan", std::nan("")},
                    {"inf", -std::numeric_limits<double>::infinity()},
                    {"big", -1.7976931348623157e308}};
  const std::string line = RecordLine(record);
  ASSERT_TRUE(line.ends_with("}\n"));
  EXPECT_EQ(std::count(line.begin(), line.end(), '\n'), 1);
  const json::object object = json::parse(line).as_object();
  EXPECT_EQ(object.at("phase"), 3);
  EXPECT_EQ(object.at("kind"), "csd");
  EXPECT_EQ(object.at("step"), 12);
  EXPECT_EQ(object.at("time"), 1700000000.25);
  EXPECT_EQ(object.at("step_seconds"), 0.3);
  EXPECT_EQ(object.at("a\"b\n").as_double(), 0.1 + 0.2);
  EXPECT_TRUE(object.at("nan").is_null());
  EXPECT_TRUE(object.at("inf").is_null());
  EXPECT_EQ(object.at("big").as_double(), -1.7976931348623157e308);
}

TEST(KeptRecordBytes, KeepsUpToThePositionAndDropsTornLines) {
  std::string content;
  std::vector<std::size_t> ends;
  const std::vector<RecordPosition> positions = {{0, 0}, {1, 1}, {1, 2}, {1, 2}, {2, 0}};
  for (const RecordPosition& at : positions) {
    content += RecordLine(RecordAt(at));
    ends.push_back(content.size());
  }
  EXPECT_EQ(KeptRecordBytes(content, {}), 0U);
  EXPECT_EQ(KeptRecordBytes(content, {0, 9}), ends[0]);
  EXPECT_EQ(KeptRecordBytes(content, {1, 1}), ends[1]);
  EXPECT_EQ(KeptRecordBytes(content, {1, 2}), ends[3]);  // both lines of that step
  EXPECT_EQ(KeptRecordBytes(content, {2, 0}), ends[4]);
  EXPECT_EQ(KeptRecordBytes(content, {9, 9}), ends[4]);
  EXPECT_EQ(KeptRecordBytes("", {9, 9}), 0U);
  for (std::size_t cut = ends[3]; cut < ends[4]; ++cut) {  // every torn form of the last line
    EXPECT_EQ(KeptRecordBytes(std::string_view(content).substr(0, cut), {9, 9}), ends[3]) << cut;
  }
  content[ends[1] + 3] = '\0';  // a damaged line ends the record
  EXPECT_EQ(KeptRecordBytes(content, {9, 9}), ends[1]);
}

TEST_F(RunRecordTest, RollbacksLeaveTheRecordOfAnUndisturbedRun) {
  const fs::path calm = folder_ / "calm";
  const fs::path stormy = folder_ / "stormy";
  const RecordPosition end{.phase = 2, .step = 5};
  FakeClock clock;
  RunSteps(*MustOpen(calm, clock, {}), clock, {}, end);
  {
    // A rollback in the process's life, over the end of a phase ...
    auto record = MustOpen(stormy, clock, {});
    RunSteps(*record, clock, {}, {.phase = 2, .step = 1});
    ASSERT_TRUE(record->Rewind({.phase = 1, .step = 4}));
    RunSteps(*record, clock, {.phase = 1, .step = 4}, {.phase = 2, .step = 4});
  }
  // ... then the coordinator is killed in the middle of a line, and a new one goes on from an older
  // checkpoint, with a clock that went back.
  std::ofstream(stormy / "metrics.jsonl", std::ios::app) << R"({"phase":2,"kind":"gts","st)";
  clock.unix_ms = 400'000;
  const RecordPosition restored{.phase = 2, .step = 2};
  RunSteps(*MustOpen(stormy, clock, restored), clock, restored, end);

  EXPECT_EQ(LinesWithoutTime(stormy), LinesWithoutTime(calm));
  EXPECT_EQ(LinesWithoutTime(calm).size(), 2U + 5U + 6U);
  EXPECT_EQ(Series(stormy), Series(calm));
  EXPECT_EQ(Series(calm).at("gts/loss").size(), 2U + 5U + 6U);
}

TEST_F(RunRecordTest, ANewRunEmptiesTheRecordOfTheOneBefore) {
  FakeClock clock;
  RunSteps(*MustOpen(folder_, clock, {}), clock, {}, {.phase = 1, .step = 3});
  RunSteps(*MustOpen(folder_, clock, {}), clock, {}, {.phase = 0, .step = 1});
  EXPECT_EQ(LinesWithoutTime(folder_).size(), 2U);
  EXPECT_EQ(Series(folder_).at("gts/loss").size(), 2U);
}

TEST_F(RunRecordTest, AFailedAppendLeavesNoPartOfItsLine) {
  FakeClock clock;
  auto record = MustOpen(folder_, clock, {});
  RunSteps(*record, clock, {}, {.phase = 1, .step = 1});
  const std::string before = ReadAll(folder_ / "metrics.jsonl");
  // A file size limit stands in for a full disk: the kernel writes what fits, then refuses.
  struct rlimit old {};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &old), 0);
  struct rlimit limit = old;
  limit.rlim_cur = before.size() + 10;
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &limit), 0);
  const StepRecord next = RecordAt({.phase = 1, .step = 2});
  const Status failed = record->Append(next);
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &old), 0);
  std::signal(SIGXFSZ, handler);
  ASSERT_FALSE(failed);
  EXPECT_THAT(failed.error().message(), testing::HasSubstr("metrics.jsonl"));
  EXPECT_EQ(ReadAll(folder_ / "metrics.jsonl"), before);
  ASSERT_TRUE(record->Append(next));
  EXPECT_EQ(LinesWithoutTime(folder_).size(), 5U);
  EXPECT_EQ(Series(folder_).at("gts/loss").size(), 5U);
}

TEST_F(RunRecordTest, AFolderThatCannotBeWrittenIsAnError) {
  FakeClock clock;
  std::ofstream(folder_ / "tb") << "a file where a folder should be";
  const auto record = RunRecord::Open(folder_, phase_steps, clock);
  ASSERT_FALSE(record);
  EXPECT_THAT(record.error().message(), testing::HasSubstr((folder_ / "tb").string()));
}

TEST_F(RunRecordTest, ALineIsNotLostWithATornOneBeforeIt) {
  const fs::path path = folder_ / "lines";
  ASSERT_TRUE(AppendLine(path, "one"));
  ASSERT_TRUE(AppendLine(path, "two"));
  std::ofstream(path, std::ios::app) << "tor";
  ASSERT_TRUE(AppendLine(path, "three"));
  EXPECT_EQ(ReadAll(path), "one\ntwo\nthree\n");
  std::ofstream(path, std::ios::trunc) << "torn at once";
  ASSERT_TRUE(AppendLine(path, "four"));
  EXPECT_EQ(ReadAll(path), "four\n");
}

}  // namespace
}  // namespace dd2
