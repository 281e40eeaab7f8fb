#include "cli/follower.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <thread>

#include "cli/report_data.h"
#include "cli/run_files.h"

namespace dd2 {
namespace {

namespace json = boost::json;

Result<json::object> AskCoordinator(const std::filesystem::path& folder) {
  DD2_TRY_ASSIGN(HttpClient client, HttpClient::ForRun(folder));
  DD2_TRY_ASSIGN(json::object document, client.GetObject("/api/v1/run"));
  DD2_TRY_ASSIGN(const json::object phases, client.GetObject("/api/v1/phases"));
  DD2_TRY_ASSIGN(const json::object checkpoints, client.GetObject("/api/v1/checkpoints"));
  if (const json::value* list = phases.if_contains("phases")) document["phases"] = *list;
  if (const json::value* list = checkpoints.if_contains("checkpoints")) {
    document["checkpoints"] = *list;
  }
  DD2_TRY_ASSIGN(const json::object members, client.GetObject("/api/v1/members"));
  if (const json::value* list = members.if_contains("domains")) document["domains"] = *list;
  document["live"] = true;
  return document;
}

}  // namespace

int TerminalColumns() {
  winsize size{};
  if (::ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) != 0) return 0;
  return size.ws_col;
}

Result<json::object> DescribeRun(const std::filesystem::path& folder) {
  auto document = AskCoordinator(folder);
  if (!document) {
    // Without a coordinator the files say what there is to say.
    const Code code = document.error().code();
    if (code != Code::kUnavailable && code != Code::kDeadlineExceeded && code != Code::kNotFound) {
      return document.error();
    }
    DD2_TRY_ASSIGN(const RunFiles files, ReadRunFiles(folder));
    document = FilesDocument(files);
    (*document)["live"] = false;
  }
  (*document)["folder"] = folder.string();
  return document;
}

void Follower::Print(const std::string& text) {
  if (text.empty()) return;
  std::fwrite(text.data(), 1, text.size(), stdout);
  std::fflush(stdout);
}

void Follower::Note(const std::string& text) { Print(progress_.Note(text)); }

void Follower::Close() { Print(progress_.Close()); }

void Follower::Refresh() {
  if (!has_phases_) return;
  const TimePoint now = clock_.Now();
  const double seconds = std::chrono::duration<double>(now.time_since_epoch()).count();
  RunView shown = view_;
  // Between two documents the clock of a long step (an evaluation) goes on.
  if (view_.state == "running" && shown.phase < shown.phases.size()) {
    shown.phases[shown.phase].seconds += SecondsBetween(view_time_, now);
  }
  Print(progress_.Update(shown, seconds, live_ ? TerminalColumns() : 0));
}

void Follower::OnState(const std::string& document) {
  if (!ApplyRunDocument(document, view_)) return;  // a later version's document: keep what we have
  view_time_ = clock_.Now();
  if (!has_phases_ || phases_known_ != view_.phase) {
    if (auto phases = client_.Get("/api/v1/phases"); phases && phases->status == 200) {
      const std::size_t phase = view_.phase;
      has_phases_ = ApplyPhasesDocument(phases->body, view_).has_value();
      view_.phase = phase;
      phases_known_ = phase;
    }
  }
  Refresh();
}

void Follower::OnEvent(const StreamedEvent& event) {
  if (event.id != 0) last_event_ = event.id;
  if (event.type == "state") {
    OnState(event.data);
    return;
  }
  if (event.type != "incident" && event.type != "desired") return;
  boost::system::error_code code;
  const json::value value = json::parse(event.data, code);
  if (code || !value.is_object()) return;
  const auto message = FindText(value.get_object(), "message");
  // The end is told by whoever follows; of a log's end in a message the first line is enough here.
  if (!message || message->starts_with("run ")) return;
  Note(message->substr(0, message->find('\n')));
}

Status Follower::Ask() {
  // Whoever took over wrote where it listens.
  DD2_TRY_ASSIGN(client_, HttpClient::ForRun(run_));
  DD2_TRY_ASSIGN(const HttpResponse document, client_.Get("/api/v1/run"));
  OnState(document.body);
  return {};
}

Status Follower::Follow(const std::function<bool()>& stop, std::chrono::milliseconds patience) {
  const auto on_event = [this](const StreamedEvent& event) { OnEvent(event); };
  const auto tick = [this, &stop] {
    Refresh();
    return stop();
  };
  const auto is_away = [](const Error& error) {
    return error.code() == Code::kUnavailable || error.code() == Code::kDeadlineExceeded;
  };
  TimePoint seen = clock_.Now();
  // The coordinator closes the stream when the run is over; a stream that breaks before is taken up
  // again behind the last event seen.
  while (true) {
    const Status streamed = client_.StreamEvents(on_event, tick, last_event_);
    if (IsOver(view_) || stop()) return {};
    if (!streamed && !is_away(streamed.error())) return streamed;
    if (streamed) seen = clock_.Now();
    const Status asked = Ask();
    if (IsOver(view_)) return {};
    if (asked) seen = clock_.Now();
    const auto away = std::chrono::duration_cast<std::chrono::milliseconds>(clock_.Now() - seen);
    if (!asked && (!is_away(asked.error()) || away >= patience)) return asked;
    Refresh();
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
  }
}

}  // namespace dd2
