#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>

#include "common/json.h"
#include "common/result.h"
#include "common/timeouts.h"

namespace dd2 {

// An answer of the coordinator, whatever its status: a 4xx or 5xx is not an Error of the client.
struct HttpResponse {
  int status = 0;
  std::string body;
};

// The error that an answer with a status from 400 on carries: {code, message} of its body where it
// has them, else its status and text.
Error ErrorOf(const HttpResponse& response);

// One server-sent event. `type` is "state" (data: the document of /api/v1/run, newest only) or what
// kind of thing happened ("run", "phase", "checkpoint", "member", "desired", "incident"; data:
// {sequence, unix_ms, kind, message}). `id` names the place in the stream: pass it as `after` to go
// on behind it; it grows, is not dense, and a "state" event has the id of the event before it.
struct StreamedEvent {
  std::uint64_t id = 0;
  std::string type;
  std::string data;
};

// Where a coordinator listens and the secret it asks for.
struct HttpTarget {
  std::string host = "127.0.0.1";
  std::uint16_t port = 0;
  std::string token;
};

// Talks to the coordinator of a run over HTTP, blocking, each call on a connection of its own.
//
// A value; use one from one thread at a time. It sets a deadline on every wait and never retries:
// kUnavailable says that a retry may help.
class HttpClient {
 public:
  explicit HttpClient(HttpTarget target,
                      std::chrono::milliseconds deadline = timeouts::kHttpClient);

  // The client for the coordinator that works on `run_folder`, from its coordinator.json and token
  // files. kUnavailable: no coordinator is alive there; kNotFound: no such run folder; kCorruption:
  // a file there is not what a coordinator writes.
  static Result<HttpClient> ForRun(const std::filesystem::path& run_folder);

  // kUnavailable: nobody listens, or the connection broke before the answer was complete;
  // kDeadlineExceeded: no answer in time (a Post may have had its effect).
  Result<HttpResponse> Get(std::string_view path);
  Result<HttpResponse> Post(std::string_view path);
  // The object that Get is answered with; otherwise also ErrorOf, and kCorruption: something else.
  Result<boost::json::object> GetObject(std::string_view path);

  // Calls `on_event` for each event of the run behind the one with id `after` (0: from the oldest
  // one kept), as they happen. Returns success when `stop` says so (asked at least every 250 ms) or
  // when the coordinator ended the stream because the run is over; kUnavailable when the connection
  // broke: call again with the last id seen. Any answer other than 200 is an error that carries its
  // text.
  Status StreamEvents(const std::function<void(const StreamedEvent&)>& on_event,
                      const std::function<bool()>& stop, std::uint64_t after = 0);

  const HttpTarget& target() const { return target_; }

 private:
  Result<HttpResponse> Send(std::string_view method, std::string_view path);

  HttpTarget target_;
  std::chrono::milliseconds deadline_;
};

// GetObject from the coordinator that works on `run_folder`; errors of HttpClient::ForRun too.
Result<boost::json::object> AskRun(const std::filesystem::path& run_folder, std::string_view path);

}  // namespace dd2
