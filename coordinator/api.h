#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "common/result.h"
#include "coordinator/run_state.h"

namespace dd2 {

// The HTTP API without HTTP: which request means what, and the documents that answer it. Everything
// here is a function of its arguments: no socket, clock or thread. docs/openapi.json describes it
// to users (a test holds the two together).

enum class Endpoint : std::uint8_t {
  kRun,
  kPhases,
  kMembers,
  kIncidents,
  kCheckpoints,
  kEvents,
  kMetrics,
  kHealth,
  kReady,
  kOpenApi,
  kPause,
  kResume,
  kCheckpoint,
  kCancel,
  kDrain,
};

struct Route {
  std::string_view method;
  std::string_view path;
  Endpoint endpoint;
  bool open;  // answered without a token
};
std::span<const Route> ApiRoutes();

// An answer before it is put into HTTP. `allow` and `authenticate` become headers when not empty.
struct ApiReply {
  int status = 200;
  std::string content_type;
  std::string body;
  std::string allow;
  std::string authenticate;
};

// {"code": ..., "message": ...} with an HTTP status.
ApiReply ErrorReply(int status, std::string_view code, std::string_view message);
// The same for an Error of ours: 404, 409, 503 ... by its code.
ApiReply ErrorReply(const Error& error);

// What a request asks for, or why it is refused (401 before 404 and 405: without the token nobody
// learns which paths exist). What a `target`'s query says and no endpoint asks for is ignored;
// `authorization` is the header's value, empty when absent. An empty `token` admits nobody.
struct Routed {
  std::optional<Endpoint> endpoint;
  std::string argument;  // of kDrain: "domain" of the query; may be empty
  ApiReply refusal;      // when there is no endpoint
};
Routed RouteRequest(std::string_view method, std::string_view target,
                    std::string_view authorization, std::string_view token);

// Equality whose duration does not depend on where two strings of one length differ.
bool EqualInConstantTime(std::string_view a, std::string_view b);

// The answer of every endpoint that only reads; kEvents is a stream and not answered here
// (checked).
ApiReply ReadReply(Endpoint endpoint, const RunState& state);
// Carries out one of the commands for `by`: 202 with the run's document, or the run's error.
ApiReply CommandReply(Endpoint endpoint, RunControl& run, const std::string& by,
                      const std::string& argument = {});
bool IsCommand(Endpoint endpoint);

// JSON documents (see docs/openapi.json). Numbers that are not finite or not known are null.
std::string RunDocument(const RunState& state);
std::string PhasesDocument(const RunState& state);
std::string MembersDocument(const RunState& state);
std::string CheckpointsDocument(const RunState& state);
std::string IncidentsDocument(const RunState& state);
std::string IncidentJson(const IncidentState& incident);  // one that is over, one line
// OpenMetrics 1.0 text, base units, ends with "# EOF".
std::string MetricsText(const RunState& state);

// Server-sent events. An id is unique over coordinators that worked on one run one after the other:
// (started_unix_ms << 20) + sequence.
std::uint64_t StreamId(const RunState& state, std::uint64_t sequence);
// The sequence to go on behind, given the Last-Event-ID header: 0 (from the oldest event kept) when
// it is empty, no number, or of another coordinator's life.
std::uint64_t SequenceBehind(const RunState& state, std::string_view last_event_id);
// "id: ...\nevent: <kind>\ndata: {...}\n\n"
std::string EventText(const RunState& state, const RunEvent& event);
// "event: state" with the run's document; it has no id, so a resumed stream does not lose events.
std::string StateEventText(const RunState& state);
// Nothing can happen any more: finished, stopped or failed.
bool IsOver(const RunState& state);

// The text of docs/openapi.json, built in.
std::string_view OpenApiDocument();

}  // namespace dd2
