#pragma once

#include <chrono>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <utility>

#include "cli/http_client.h"
#include "cli/progress_view.h"
#include "cli/run_view.h"
#include "common/clock.h"
#include "common/json.h"
#include "common/result.h"

namespace dd2 {

// Shows a live run on standard output: follows the coordinator's event stream and prints what
// ProgressView makes of it. Owned by `dd2 run` and `dd2 watch`; main thread only.
class Follower {
 public:
  static constexpr std::chrono::milliseconds no_limit = std::chrono::milliseconds::max();

  // `client` of the coordinator that works on `run`; `live`: standard output is a terminal.
  Follower(std::filesystem::path run, HttpClient client, const Clock& clock, bool live)
      : run_(std::move(run)),
        client_(std::move(client)),
        clock_(clock),
        progress_(live),
        live_(live) {}

  // Follows until the run is over or `stop` says so (asked at least every 250 ms, save while the
  // coordinator takes its time to answer). A coordinator that cannot be asked may come back, or
  // another one take over: for `patience`, then kUnavailable (gone) or kDeadlineExceeded (silent).
  Status Follow(const std::function<bool()>& stop, std::chrono::milliseconds patience);
  // Prints a line of its own.
  void Note(const std::string& text);
  // Ends the live line; call it before printing anything else.
  void Close();
  const RunView& view() const { return view_; }

 private:
  void OnEvent(const StreamedEvent& event);
  void OnState(const std::string& document);
  void Refresh();
  void Print(const std::string& text);
  // Reads the run's document where the coordinator is now.
  Status Ask();

  const std::filesystem::path run_;
  HttpClient client_;
  const Clock& clock_;
  ProgressView progress_;
  bool live_;
  RunView view_;
  TimePoint view_time_;
  std::size_t phases_known_ = 0;  // value of view_.phase when the phases document was last read
  bool has_phases_ = false;
  std::uint64_t last_event_ = 0;
};

// The API's run document with "phases", "checkpoints", "domains", "live" and "folder" added, or the
// same from the folder's files when no coordinator is there (state "interrupted" when it never
// ended the run). kNotFound: no run there; kDeadlineExceeded: a coordinator is there and does not
// answer.
Result<boost::json::object> DescribeRun(const std::filesystem::path& folder);

// Columns of the terminal on standard output; 0: unknown.
int TerminalColumns();

}  // namespace dd2
