#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "common/clock.h"
#include "common/result.h"
#include "coordinator/run_state.h"

namespace dd2 {

// A point of a run: `step` steps of phase number `phase` are finished. The default is before
// everything.
struct RecordPosition {
  std::int32_t phase = -1;
  std::int64_t step = 0;
  auto operator<=>(const RecordPosition&) const = default;
};

// Where a position lies on TensorBoard's one axis: `phase_steps[i]`, the length of phase i, plus
// one for each earlier phase, plus its own step; -1 for the position before everything. The one
// more keeps the end of a phase apart from step 0 of the next, so that a rewind to the former is
// exact.
std::int64_t GlobalStep(std::span<const std::int64_t> phase_steps, RecordPosition position);

// One line of metrics.jsonl, with its newline: {"phase":3,"kind":"csd","step":12,
// "time":1700000000.250,"step_seconds":0.31,"csd/sid":0.5}; `time` in seconds since 1970. Values
// that are not finite become null.
std::string RecordLine(const StepRecord& record);

// How many bytes of `content` (a metrics.jsonl) stay when the run goes back to `position`: all
// lines up to the first one that lies after it, is torn (no newline) or is not a line of ours.
std::size_t KeptRecordBytes(std::string_view content, RecordPosition position);

// Appends `line` and its end to a file of lines. Half a line, as a killed process or a full disk
// leaves it, goes first: the new one would be lost with it. Errors as RunRecord's.
Status AppendLine(const std::filesystem::path& path, std::string_view line);

class AppendFile;

// Position of the last whole line of `content`; {-1, 0}: there is none.
RecordPosition LastRecorded(std::string_view content);

// The numbers of a run over time: RUN/metrics.jsonl and a TensorBoard event file in RUN/tb/.
//
// Owned by the coordinator's loop; its thread only. A line reaches the kernel before Append returns
// and is not synced: after a power failure the tail may be missing, and Rewind drops a torn line.
// When the run goes back to a checkpoint, so does the record: later lines are cut off and
// TensorBoard is told to forget (SessionLog START), so that the record of a run with faults equals
// the record of an undisturbed one apart from times.
class RunRecord {
 public:
  // Opens the record in `run_folder` (RunState's phases give `phase_steps`) and starts a new event
  // file whose name sorts after those already there. `clock` stamps events and must outlive this.
  // Rewind must come before the first Append (checked).
  // kResourceExhausted: disk full; kUnavailable: any other file error.
  static Result<std::unique_ptr<RunRecord>> Open(const std::filesystem::path& run_folder,
                                                 std::vector<std::int64_t> phase_steps,
                                                 const Clock& clock);
  ~RunRecord();
  RunRecord(const RunRecord&) = delete;
  RunRecord& operator=(const RunRecord&) = delete;

  // Appends the values of one finished step. A position before the last one is our bug (call Rewind
  // first); the same position again is allowed (an evaluation after a step). No metrics: no line.
  // On an error neither file keeps a part of the line.
  Status Append(const StepRecord& record);

  // The run goes on from `position`: forgets everything after it (a new run: the default, or step 0
  // of phase 0).
  Status Rewind(RecordPosition position);

  const std::filesystem::path& event_file() const { return event_path_; }

 private:
  RunRecord(std::filesystem::path run_folder, std::vector<std::int64_t> phase_steps,
            const Clock& clock);

  // Constant after Open.
  std::filesystem::path run_folder_;
  std::vector<std::int64_t> phase_steps_;
  const Clock& clock_;
  std::filesystem::path event_path_;
  std::unique_ptr<AppendFile> lines_;
  std::unique_ptr<AppendFile> events_;

  RecordPosition last_;
};

}  // namespace dd2
