#include "coordinator/api.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstring>
#include <system_error>
#include <utility>

#include "common/check.h"
#include "common/json.h"

namespace dd2 {
namespace {

namespace json = boost::json;

constexpr int stream_id_bits = 20;

constexpr auto routes = std::to_array<Route>({
    {"GET", "/api/v1/run", Endpoint::kRun, false},
    {"GET", "/api/v1/phases", Endpoint::kPhases, false},
    {"GET", "/api/v1/members", Endpoint::kMembers, false},
    {"GET", "/api/v1/incidents", Endpoint::kIncidents, false},
    {"GET", "/api/v1/checkpoints", Endpoint::kCheckpoints, false},
    {"GET", "/api/v1/events", Endpoint::kEvents, false},
    {"GET", "/api/v1/openapi.json", Endpoint::kOpenApi, false},
    {"GET", "/metrics", Endpoint::kMetrics, false},
    {"GET", "/healthz", Endpoint::kHealth, true},
    {"GET", "/readyz", Endpoint::kReady, false},
    {"POST", "/api/v1/run:pause", Endpoint::kPause, false},
    {"POST", "/api/v1/run:resume", Endpoint::kResume, false},
    {"POST", "/api/v1/run:checkpoint", Endpoint::kCheckpoint, false},
    {"POST", "/api/v1/run:cancel", Endpoint::kCancel, false},
    {"POST", "/api/v1/run:drain", Endpoint::kDrain, false},
});

// "failed_precondition": the code's name as one word.
std::string ApiCode(Code code) {
  std::string name(CodeName(code));
  std::replace(name.begin(), name.end(), ' ', '_');
  return name;
}

int StatusOf(Code code) {
  switch (code) {
    case Code::kUnavailable: return 503;
    case Code::kAborted: return 409;
    case Code::kFailedPrecondition: return 409;
    case Code::kNotFound: return 404;
    case Code::kInvalidArgument: return 400;
    case Code::kDeadlineExceeded: return 504;
    case Code::kCorruption: return 500;
    case Code::kResourceExhausted: return 507;
    case Code::kInternal: return 500;
  }
  return 500;
}

ApiReply MakeReply(int status, std::string_view content_type, std::string body) {
  ApiReply reply;
  reply.status = status;
  reply.content_type = content_type;
  reply.body = std::move(body);
  return reply;
}

ApiReply JsonReply(int status, std::string body) {
  return MakeReply(status, "application/json", std::move(body));
}

// JSON has neither NaN nor infinity.
json::value Number(double value) {
  return std::isfinite(value) ? json::value(value) : json::value(nullptr);
}

json::value TimeOrNull(std::int64_t unix_ms) {
  return unix_ms > 0 ? json::value(unix_ms) : json::value(nullptr);
}

// A document that a worker made, as part of ours.
json::value Embedded(const std::string& text) {
  if (text.empty()) return nullptr;
  boost::system::error_code error;
  json::value parsed = json::parse(text, error);
  return error ? json::value(nullptr) : parsed;
}

json::object CountersObject(const RunCounters& counters) {
  json::object object;
  object["outer_cycles"] = counters.outer_cycles;
  object["generator_updates"] = counters.generator_updates;
  object["guidance_updates"] = counters.guidance_updates;
  object["skipped_updates"] = counters.skipped_updates;
  object["phase_generator_updates"] = counters.phase_generator_updates;
  object["phase_guidance_updates"] = counters.phase_guidance_updates;
  object["cache_hits"] = counters.cache_hits;
  object["cache_misses"] = counters.cache_misses;
  return object;
}

json::object PhaseObject(const PhaseState& phase, std::size_t index) {
  json::object object;
  object["index"] = index;
  object["name"] = phase.name;
  object["kind"] = PhaseKindName(phase.kind);
  object["state"] = PhaseWordName(phase.word);
  object["step"] = phase.done;
  object["steps"] = phase.steps;
  object["seconds"] = Number(phase.seconds);
  return object;
}

json::value CurrentPhase(const RunState& state) {
  const auto index = static_cast<std::size_t>(state.phase);
  if (state.phase < 0 || index >= state.phases.size()) return nullptr;
  json::object object = PhaseObject(state.phases[index], index);
  object["steps_per_second"] =
      state.steps_per_second > 0 ? Number(state.steps_per_second) : json::value(nullptr);
  object["remaining_seconds"] =
      state.phase_eta_seconds >= 0 ? Number(state.phase_eta_seconds) : json::value(nullptr);
  return object;
}

// JSON text that is put together without an allocation or a check for each piece: a large run has
// thousands of members with a dozen fields each.
class JsonText {
 public:
  explicit JsonText(std::size_t bytes) : text_(bytes, '\0') {}
  // Before pieces that are no longer than this together.
  void Reserve(std::size_t bytes) {
    if (text_.size() - used_ < bytes) text_.resize(2 * text_.size() + bytes);
  }
  void Put(std::string_view piece) {
    std::memcpy(text_.data() + used_, piece.data(), piece.size());
    used_ += piece.size();
  }
  void PutInteger(std::int64_t value) {
    char* const at = text_.data() + used_;
    used_ += static_cast<std::size_t>(std::to_chars(at, at + integer_bytes, value).ptr - at);
  }
  void PutIntegerOrNull(std::int64_t value, bool known) { known ? PutInteger(value) : Put("null"); }
  // At most string_bytes(text) bytes.
  void PutString(std::string_view text) {
    unsigned escapes = 0;  // no way out of the loop: it is done several bytes at a time
    for (const char c : text) {
      const auto byte = static_cast<unsigned char>(c);
      escapes |= unsigned{byte < 0x20} | unsigned{byte == '"'} | unsigned{byte == '\\'};
    }
    if (escapes != 0) return Put(json::serialize(json::string_view(text)));
    Put("\"");
    Put(text);
    Put("\"");
  }
  // In place of the comma behind the last element, if there is one.
  void EndList() {
    if (text_[used_ - 1] == ',') --used_;
    Put("]");
  }
  static std::size_t string_bytes(std::string_view text) { return 6 * text.size() + 2; }
  std::string Take() {
    text_.resize(used_);
    return std::move(text_);
  }

  static constexpr std::size_t integer_bytes = 20;

 private:
  std::string text_;
  std::size_t used_ = 0;
};

constexpr std::size_t member_bytes = 300;  // keys and integers, of a domain as well

void PutMember(const MemberState& member, JsonText& out) {
  out.Reserve(member_bytes + JsonText::string_bytes(member.domain) +
              JsonText::string_bytes(member.host) + JsonText::string_bytes(member.numeric_mode));
  out.Put(member.agent ? R"({"role":"agent","rank":)" : R"({"role":"worker","rank":)");
  out.PutIntegerOrNull(member.rank, member.rank >= 0);
  out.Put(member.connected ? R"(,"connected":true,"domain":)" : R"(,"connected":false,"domain":)");
  out.PutString(member.domain);
  out.Put(R"(,"host":)");
  out.PutString(member.host);
  out.Put(R"(,"pid":)");
  out.PutInteger(member.pid);
  out.Put(R"(,"local_rank":)");
  out.PutInteger(member.local_rank);
  out.Put(R"(,"numeric_mode":)");
  out.PutString(member.numeric_mode);
  out.Put(R"(,"phase":)");
  out.PutIntegerOrNull(member.phase, member.phase >= 0);
  out.Put(R"(,"step":)");
  out.PutInteger(member.step);
  out.Put(R"(,"last_seen_unix_ms":)");
  out.PutIntegerOrNull(member.last_seen_unix_ms, member.last_seen_unix_ms > 0);
  out.Put("},");
}

void PutDomain(const DomainState& domain, JsonText& out) {
  out.Reserve(member_bytes + JsonText::string_bytes(domain.name) +
              JsonText::string_bytes(domain.word));
  out.Put(R"({"name":)");
  out.PutString(domain.name);
  out.Put(R"(,"state":)");
  out.PutString(domain.word);
  out.Put(R"(,"workers":)");
  out.PutInteger(domain.workers);
  out.Put("},");
}

json::object IncidentObject(const IncidentState& incident, bool open) {
  json::object object;
  const auto seconds = [](double value) {
    return value < 0 ? json::value(nullptr) : json::value(value);
  };
  object["unix_ms"] = incident.unix_ms;
  object["kind"] = incident.kind;
  object["domain"] = incident.domain.empty() ? json::value(nullptr) : json::value(incident.domain);
  object["reason"] = incident.reason;
  object["evidence"] = incident.evidence;
  object["phase"] = incident.phase;
  object["step"] = incident.step;
  object["generation"] = incident.generation;
  object["exited_seconds"] = seconds(incident.exited_seconds);
  object["formed_seconds"] = seconds(incident.formed_seconds);
  object["resumed_seconds"] = seconds(incident.resumed_seconds);
  object["steps_lost"] = incident.steps_lost;
  object["open"] = open;
  return object;
}

json::object CheckpointObject(const CheckpointState& checkpoint) {
  json::object object;
  object["id"] = checkpoint.id;
  object["state"] = CheckpointWordName(checkpoint.word);
  object["phase"] = checkpoint.phase;
  object["step"] = checkpoint.step;
  object["bytes"] = checkpoint.bytes;
  object["parts"] = checkpoint.parts;
  object["hold_seconds"] = Number(checkpoint.hold_seconds);
  object["write_seconds"] = Number(checkpoint.write_seconds);
  object["committed_unix_ms"] = TimeOrNull(checkpoint.committed_unix_ms);
  object["reason"] = checkpoint.reason;
  return object;
}

// {"<name>": [one object per element]}
template <class Elements, class ToObject>
std::string ListDocument(std::string_view name, const Elements& elements, ToObject to_object) {
  json::array array;
  for (std::size_t i = 0; i < elements.size(); ++i) array.push_back(to_object(elements[i], i));
  json::object document;
  document[json::string_view(name)] = std::move(array);
  return json::serialize(document);
}

std::string_view WithoutQuery(std::string_view target) {
  return target.substr(0, target.find('?'));
}

// The value of a parameter in the query of `target`, as it stands there: names of domains need no
// escapes.
std::string QueryValue(std::string_view target, std::string_view name) {
  std::string_view rest = target.substr(std::min(target.size(), target.find('?')));
  while (!rest.empty()) {
    rest.remove_prefix(1);
    const std::string_view pair = rest.substr(0, rest.find('&'));
    rest.remove_prefix(pair.size());
    if (pair.substr(0, pair.find('=')) == name && pair.size() > name.size()) {
      return std::string(pair.substr(name.size() + 1));
    }
  }
  return "";
}

bool HasToken(std::string_view authorization, std::string_view token) {
  constexpr std::string_view scheme = "bearer ";
  if (token.empty() || authorization.size() < scheme.size()) return false;
  for (std::size_t i = 0; i < scheme.size(); ++i) {  // scheme names know no case (RFC 9110)
    const char c = authorization[i];
    const char lower = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
    if (lower != scheme[i]) return false;
  }
  return EqualInConstantTime(authorization.substr(scheme.size()), token);
}

Status Carry(Endpoint endpoint, RunControl& run, const std::string& by,
             const std::string& argument) {
  switch (endpoint) {
    case Endpoint::kPause: return run.Pause(by);
    case Endpoint::kResume: return run.Resume(by);
    case Endpoint::kCheckpoint: return run.RequestCheckpoint(by);
    case Endpoint::kCancel: return run.Cancel(by);
    case Endpoint::kDrain:
      if (!argument.empty()) return run.Drain(argument, by);
      return Error(Code::kInvalidArgument, "say which domain: /api/v1/run:drain?domain=NAME");
    default: break;
  }
  DD2_CHECK_MSG(false, "not a command");
  return Error(Code::kInternal, "not a command");
}

ApiReply ReadyReply(const RunState& state) {
  const bool ready = state.word == RunWord::kRunning || state.word == RunWord::kPaused;
  if (ready) return JsonReply(200, R"({"status":"ready"})");
  return ErrorReply(503, "unavailable",
                    std::string("the run is ") + RunWordName(state.word) + ", not training");
}

}  // namespace

std::span<const Route> ApiRoutes() { return routes; }

ApiReply ErrorReply(int status, std::string_view code, std::string_view message) {
  json::object document;
  document["code"] = json::string_view(code);
  document["message"] = json::string_view(message);
  return JsonReply(status, json::serialize(document));
}

ApiReply ErrorReply(const Error& error) {
  return ErrorReply(StatusOf(error.code()), ApiCode(error.code()), error.message());
}

bool EqualInConstantTime(std::string_view a, std::string_view b) {
  if (a.size() != b.size()) return false;
  unsigned difference = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    difference |= static_cast<unsigned char>(a[i]) ^ static_cast<unsigned char>(b[i]);
  }
  return difference == 0;
}

Routed RouteRequest(std::string_view method, std::string_view target,
                    std::string_view authorization, std::string_view token) {
  const std::string_view path = WithoutQuery(target);
  Routed routed;
  std::string allow;
  for (const Route& route : routes) {
    if (route.path != path) continue;
    if (!allow.empty()) allow += ", ";
    allow += route.method;
    if (route.method != method) continue;
    if (route.open || HasToken(authorization, token)) {
      routed.endpoint = route.endpoint;
      if (route.endpoint == Endpoint::kDrain) routed.argument = QueryValue(target, "domain");
      return routed;
    }
  }
  if (!HasToken(authorization, token)) {
    routed.refusal = ErrorReply(401, "unauthenticated",
                                "send 'Authorization: Bearer TOKEN' with the content of the run "
                                "folder's file 'token'");
    routed.refusal.authenticate = R"(Bearer realm="dd2")";
    return routed;
  }
  if (allow.empty()) {
    routed.refusal =
        ErrorReply(404, "not_found", "no such path; /api/v1/openapi.json lists those that exist");
    return routed;
  }
  routed.refusal = ErrorReply(405, "method_not_allowed", "this path takes " + allow);
  routed.refusal.allow = allow;
  return routed;
}

bool IsCommand(Endpoint endpoint) {
  return endpoint == Endpoint::kPause || endpoint == Endpoint::kResume ||
         endpoint == Endpoint::kCheckpoint || endpoint == Endpoint::kCancel ||
         endpoint == Endpoint::kDrain;
}

ApiReply ReadReply(Endpoint endpoint, const RunState& state) {
  switch (endpoint) {
    case Endpoint::kRun: return JsonReply(200, RunDocument(state));
    case Endpoint::kPhases: return JsonReply(200, PhasesDocument(state));
    case Endpoint::kMembers: return JsonReply(200, MembersDocument(state));
    case Endpoint::kIncidents: return JsonReply(200, IncidentsDocument(state));
    case Endpoint::kCheckpoints: return JsonReply(200, CheckpointsDocument(state));
    case Endpoint::kOpenApi: return JsonReply(200, std::string(OpenApiDocument()));
    case Endpoint::kHealth: return JsonReply(200, R"({"status":"ok"})");
    case Endpoint::kReady: return ReadyReply(state);
    case Endpoint::kMetrics:
      return MakeReply(200, "application/openmetrics-text; version=1.0.0; charset=utf-8",
                       MetricsText(state));
    default: break;
  }
  DD2_CHECK_MSG(false, "a stream or a command is not answered by ReadReply");
  return {};
}

ApiReply CommandReply(Endpoint endpoint, RunControl& run, const std::string& by,
                      const std::string& argument) {
  if (Status done = Carry(endpoint, run, by, argument); !done) return ErrorReply(done.error());
  return JsonReply(202, RunDocument(run.state()));
}

std::string RunDocument(const RunState& state) {
  json::object document;
  document["run_id"] = state.run_id;
  document["name"] = state.name;
  document["state"] = RunWordName(state.word);
  document["message"] = state.message;
  document["version"] = state.version;
  document["generation"] = state.generation;
  document["ranks"] = state.ranks;
  document["seed"] = state.seed;
  document["resumed"] = state.resumed;
  document["started_unix_ms"] = TimeOrNull(state.started_unix_ms);
  document["code_version"] = state.code_version;
  document["config_digest"] = state.config_digest;
  document["phase"] = CurrentPhase(state);
  document["phase_count"] = state.phases.size();
  document["counters"] = CountersObject(state.counters);
  json::object metrics;
  for (const MetricValue& metric : state.metrics) metrics[metric.name] = Number(metric.value);
  document["metrics"] = std::move(metrics);
  document["metrics_unix_ms"] = TimeOrNull(state.metrics_unix_ms);
  json::object desired;
  desired["version"] = state.desired_version;
  desired["paused"] = state.desired_paused;
  desired["stop"] = state.desired_stop;
  desired["checkpoint_requests"] = state.checkpoint_requests;
  document["desired"] = std::move(desired);
  const CheckpointIntervalState& every = state.checkpoint_interval;
  json::object interval;
  interval["setting"] = every.setting;
  interval["seconds"] = every.seconds >= 0 ? Number(every.seconds) : json::value(nullptr);
  interval["stall_seconds"] = Number(every.stall_seconds);
  interval["failure_seconds"] = Number(every.failure_seconds);
  document["checkpoint_interval"] = std::move(interval);
  return json::serialize(document);
}

std::string PhasesDocument(const RunState& state) {
  return ListDocument("phases", state.phases, [](const PhaseState& phase, std::size_t index) {
    json::object object = PhaseObject(phase, index);
    object["result"] = Embedded(phase.result_json);
    return object;
  });
}

std::string MembersDocument(const RunState& state) {
  JsonText out(member_bytes * (state.members.size() + 2));
  out.Put(R"({"members":[)");
  for (const MemberState& member : state.members) PutMember(member, out);
  out.EndList();
  out.Reserve(member_bytes);
  out.Put(R"(,"domains":[)");
  for (const DomainState& domain : state.domains) PutDomain(domain, out);
  out.EndList();
  out.Put("}");
  return out.Take();
}

std::string CheckpointsDocument(const RunState& state) {
  return ListDocument(
      "checkpoints", state.checkpoints,
      [](const CheckpointState& checkpoint, std::size_t) { return CheckpointObject(checkpoint); });
}

std::string IncidentsDocument(const RunState& state) {
  std::vector<IncidentState> all = state.incidents;
  all.insert(all.end(), state.open_incidents.begin(), state.open_incidents.end());
  const std::size_t over = state.incidents.size();
  return ListDocument("incidents", all, [over](const IncidentState& incident, std::size_t i) {
    return IncidentObject(incident, i >= over);
  });
}

std::string IncidentJson(const IncidentState& incident) {
  return json::serialize(IncidentObject(incident, false));
}

std::uint64_t StreamId(const RunState& state, std::uint64_t sequence) {
  return (static_cast<std::uint64_t>(state.started_unix_ms) << stream_id_bits) + sequence;
}

std::uint64_t SequenceBehind(const RunState& state, std::string_view last_event_id) {
  std::uint64_t id = 0;
  const char* end = last_event_id.data() + last_event_id.size();
  const std::from_chars_result parsed = std::from_chars(last_event_id.data(), end, id);
  if (parsed.ec != std::errc() || parsed.ptr != end) return 0;
  const std::uint64_t first = StreamId(state, 0);
  if (id < first || id > StreamId(state, state.events.last_sequence())) return 0;
  return id - first;
}

std::string EventText(const RunState& state, const RunEvent& event) {
  json::object data;
  data["sequence"] = event.sequence;
  data["unix_ms"] = event.unix_ms;
  data["kind"] = event.kind;
  data["message"] = event.message;
  std::string text = "id: ";
  text += std::to_string(StreamId(state, event.sequence));
  text += "\nevent: ";
  text += event.kind;
  text += "\ndata: ";
  text += json::serialize(data);
  text += "\n\n";
  return text;
}

std::string StateEventText(const RunState& state) {
  std::string text = "event: state\ndata: ";
  text += RunDocument(state);
  text += "\n\n";
  return text;
}

bool IsOver(const RunState& state) {
  return state.word == RunWord::kFinished || state.word == RunWord::kStopped ||
         state.word == RunWord::kFailed;
}

}  // namespace dd2
