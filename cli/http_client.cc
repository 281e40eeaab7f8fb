#include "cli/http_client.h"

#include <signal.h>

#include <array>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/core/tcp_stream.hpp>
#include <boost/beast/http.hpp>
#include <cerrno>
#include <charconv>
#include <optional>
#include <system_error>
#include <utility>

#include "common/asio.h"
#include "common/file.h"
#include "common/json.h"

namespace dd2 {
namespace {

namespace beast = boost::beast;
namespace fs = std::filesystem;
namespace http = boost::beast::http;
namespace json = boost::json;
using std::chrono::milliseconds;

// How often a quiet stream asks whether it should stop.
constexpr milliseconds stop_poll{250};
constexpr std::size_t response_bytes_max = std::size_t{64} << 20;
constexpr std::size_t read_bytes = std::size_t{64} << 10;  // at once

// One connection and the loop that drives it: each Run starts one operation and waits for its end.
struct Link {
  asio::io_context context;
  beast::tcp_stream stream{context};

  // `start` is given the completion handler.
  template <class Start>
  error_code Run(Start start) {
    error_code outcome;
    start([&outcome](error_code error, auto&&...) { outcome = error; });
    context.restart();
    context.run();
    return outcome;
  }
};

std::string Where(const HttpTarget& target) {
  return target.host + ":" + std::to_string(target.port);
}

Error LinkError(const HttpTarget& target, error_code error) {
  if (error == beast::error::timeout) {
    return Error(Code::kDeadlineExceeded, "the coordinator at " + Where(target) +
                                              " did not answer in time; it may be busy or stopped");
  }
  if (error == asio::error::connection_refused) {
    return Error(Code::kUnavailable, "no coordinator listens at " + Where(target) +
                                         "; it has ended, or the run was never started");
  }
  return Error(Code::kUnavailable, "the connection to the coordinator at " + Where(target) +
                                       " broke: " + error.message());
}

Status Connect(Link& link, const HttpTarget& target) {
  error_code error;
  const auto address = asio::ip::make_address(target.host, error);
  if (error) {
    return Error(Code::kInvalidArgument, "'" + target.host + "' is no numeric address");
  }
  const tcp::endpoint endpoint(address, target.port);
  error = link.Run([&](auto done) { link.stream.async_connect(endpoint, std::move(done)); });
  if (error) return LinkError(target, error);
  return {};
}

http::request<http::empty_body> MakeRequest(const HttpTarget& target, std::string_view method,
                                            std::string_view path) {
  http::request<http::empty_body> request;
  request.version(11);
  request.method_string(beast::string_view(method.data(), method.size()));
  request.target(beast::string_view(path.data(), path.size()));
  request.set(http::field::host, Where(target));
  request.set(http::field::authorization, "Bearer " + target.token);
  request.keep_alive(false);
  request.prepare_payload();
  return request;
}

// Takes an event stream apart (HTML standard, 9.2.6), as far as our server uses it.
class EventParser {
 public:
  explicit EventParser(const std::function<void(const StreamedEvent&)>& on_event)
      : on_event_(on_event) {}

  void Feed(std::string_view bytes) {
    // No line end is in what was pending before.
    std::size_t end = bytes.find('\n');
    end = end == std::string_view::npos ? end : pending_.size() + end;
    pending_ += bytes;
    std::size_t begin = 0;
    for (; end != std::string::npos; end = pending_.find('\n', begin)) {
      TakeLine(std::string_view(pending_).substr(begin, end - begin));
      begin = end + 1;
    }
    pending_.erase(0, begin);
  }

 private:
  void TakeLine(std::string_view line) {
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (line.empty()) {
      if (!event_.data.empty()) on_event_(event_);
      event_.type.clear();
      event_.data.clear();
      return;
    }
    const std::size_t colon = line.find(':');
    const std::string_view field = line.substr(0, colon);
    std::string_view value = colon == std::string_view::npos ? "" : line.substr(colon + 1);
    if (value.starts_with(' ')) value.remove_prefix(1);
    if (field == "event") event_.type = value;
    if (field == "id") std::from_chars(value.data(), value.data() + value.size(), event_.id);
    if (field == "data") {
      if (!event_.data.empty()) event_.data += '\n';
      event_.data += value;
    }
  }

  const std::function<void(const StreamedEvent&)>& on_event_;
  std::string pending_;
  StreamedEvent event_;
};

using StreamResponse = http::response_parser<http::buffer_body>;

// Reads body bytes as they come into `chunk`. Nothing: `stop` said so. `error` gets the end.
std::optional<std::size_t> ReadSome(Link& link, beast::flat_buffer& buffer,
                                    StreamResponse& response, std::span<char> chunk,
                                    const std::function<bool()>& stop, error_code& error) {
  response.get().body().data = chunk.data();
  response.get().body().size = chunk.size();
  response.get().body().more = true;
  bool done = false;
  http::async_read_some(link.stream, buffer, response, [&](error_code outcome, std::size_t) {
    error = outcome;
    done = true;
  });
  link.context.restart();
  while (!done) {
    link.context.run_for(stop_poll);
    if (done || !stop()) continue;
    link.stream.cancel();
    link.context.run();
    return std::nullopt;
  }
  if (error == http::error::need_buffer) error = {};
  return chunk.size() - response.get().body().size;
}

Result<json::object> ReadCoordinatorFile(const fs::path& run_folder) {
  const fs::path path = run_folder / "coordinator.json";
  Result<std::string> text = RealFileSystem().Read(path);
  if (!text && text.error().code() == Code::kNotFound) {
    return Error(Code::kUnavailable, "no coordinator works on " + run_folder.string() +
                                         " (there is no " + path.string() +
                                         "); start one with 'dd2 run'");
  }
  if (!text) return text.error();
  error_code error;
  json::value parsed = json::parse(*text, error);
  const json::object* object = error ? nullptr : parsed.if_object();
  const json::value* port = object == nullptr ? nullptr : object->if_contains("http_port");
  const json::value* pid = object == nullptr ? nullptr : object->if_contains("pid");
  if (port == nullptr || pid == nullptr || !port->is_number() || !pid->is_number()) {
    return Error(Code::kCorruption, path.string() + " does not hold http_port and pid");
  }
  return *object;
}

// The host part of "http://HOST:PORT"; loopback when there is no such URL.
std::string HostOf(const json::object& coordinator) {
  constexpr std::string_view scheme = "http://";
  const json::value* url = coordinator.if_contains("api_url");
  if (url == nullptr || !url->is_string()) return "127.0.0.1";
  std::string_view rest(url->get_string().data(), url->get_string().size());
  if (!rest.starts_with(scheme)) return "127.0.0.1";
  rest.remove_prefix(scheme.size());
  rest = rest.substr(0, rest.rfind(':'));
  if (rest.starts_with('[') && rest.ends_with(']')) rest = rest.substr(1, rest.size() - 2);
  return std::string(rest);
}

bool IsAlive(std::int64_t pid) {
  return pid > 0 && (::kill(static_cast<pid_t>(pid), 0) == 0 || errno != ESRCH);
}

}  // namespace

Error ErrorOf(const HttpResponse& response) {
  error_code error;
  const json::value parsed = json::parse(response.body, error);
  std::string text;
  if (!error && parsed.is_object()) {
    const json::value* message = parsed.get_object().if_contains("message");
    if (message != nullptr && message->is_string()) text = message->get_string().c_str();
  }
  if (text.empty()) {
    text = "the coordinator answered " + std::to_string(response.status) + ": " +
           response.body.substr(0, 200);
  }
  switch (response.status) {
    case 401: return Error(Code::kFailedPrecondition, "the coordinator refused the token: " + text);
    case 400:
    case 405:
    case 413: return Error(Code::kInvalidArgument, text);
    case 404: return Error(Code::kNotFound, text);
    case 409: return Error(Code::kFailedPrecondition, text);
    case 503: return Error(Code::kUnavailable, text);
    case 504: return Error(Code::kDeadlineExceeded, text);
    case 507: return Error(Code::kResourceExhausted, text);
    default: return Error(Code::kInternal, text);
  }
}

HttpClient::HttpClient(HttpTarget target, milliseconds deadline)
    : target_(std::move(target)), deadline_(deadline) {}

Result<HttpClient> HttpClient::ForRun(const fs::path& run_folder) {
  std::error_code error;
  if (!fs::is_directory(run_folder, error)) {
    return Error(Code::kNotFound, "there is no run folder " + run_folder.string());
  }
  DD2_TRY_ASSIGN(const json::object coordinator, ReadCoordinatorFile(run_folder));
  HttpTarget target;
  target.host = HostOf(coordinator);
  error_code bad_port;
  error_code bad_pid;
  target.port = coordinator.at("http_port").to_number<std::uint16_t>(bad_port);
  const auto pid = coordinator.at("pid").to_number<std::int64_t>(bad_pid);
  if (bad_port || bad_pid) {
    return Error(Code::kCorruption, "coordinator.json of " + run_folder.string() +
                                        " holds a port or process number out of range");
  }
  if (target.host == "127.0.0.1" && !IsAlive(pid)) {
    return Error(Code::kUnavailable, "the coordinator of " + run_folder.string() + " (process " +
                                         std::to_string(pid) +
                                         ") has ended; continue the run with 'dd2 run --resume'");
  }
  DD2_TRY_ASSIGN(target.token, RealFileSystem().Read(run_folder / "token"));
  while (target.token.ends_with('\n')) target.token.pop_back();
  return HttpClient(std::move(target));
}

Result<HttpResponse> HttpClient::Get(std::string_view path) { return Send("GET", path); }

Result<json::object> HttpClient::GetObject(std::string_view path) {
  DD2_TRY_ASSIGN(const HttpResponse response, Get(path));
  if (response.status >= 300) return ErrorOf(response);
  error_code error;
  json::value document = json::parse(response.body, error);
  if (error || !document.is_object()) {
    return Error(Code::kCorruption, "the coordinator's answer to GET " + std::string(path) +
                                        " is no JSON object: " + response.body.substr(0, 200));
  }
  return std::move(document.get_object());
}

Result<HttpResponse> HttpClient::Post(std::string_view path) { return Send("POST", path); }

Result<HttpResponse> HttpClient::Send(std::string_view method, std::string_view path) {
  Link link;
  link.stream.expires_after(deadline_);
  DD2_TRY(Connect(link, target_));
  const auto request = MakeRequest(target_, method, path);
  error_code error =
      link.Run([&](auto done) { http::async_write(link.stream, request, std::move(done)); });
  if (error) return LinkError(target_, error);
  beast::flat_buffer buffer;
  buffer.reserve(read_bytes);  // else each read takes 512 bytes
  http::response_parser<http::string_body> response;
  response.body_limit(response_bytes_max);
  error = link.Run(
      [&](auto done) { http::async_read(link.stream, buffer, response, std::move(done)); });
  if (error) return LinkError(target_, error);
  return HttpResponse{.status = static_cast<int>(response.get().result_int()),
                      .body = std::move(response.get().body())};
}

Status HttpClient::StreamEvents(const std::function<void(const StreamedEvent&)>& on_event,
                                const std::function<bool()>& stop, std::uint64_t after) {
  Link link;
  link.stream.expires_after(deadline_);
  DD2_TRY(Connect(link, target_));
  auto request = MakeRequest(target_, "GET", "/api/v1/events");
  if (after > 0) request.set("Last-Event-ID", std::to_string(after));
  error_code error =
      link.Run([&](auto done) { http::async_write(link.stream, request, std::move(done)); });
  if (error) return LinkError(target_, error);
  beast::flat_buffer buffer;
  StreamResponse response;
  response.body_limit(boost::none);
  error = link.Run(
      [&](auto done) { http::async_read_header(link.stream, buffer, response, std::move(done)); });
  if (error) return LinkError(target_, error);

  HttpResponse refusal{.status = static_cast<int>(response.get().result_int()), .body = {}};
  EventParser events(on_event);
  std::array<char, 4096> chunk{};
  while (!response.is_done()) {
    link.stream.expires_after(timeouts::kEventSilence);
    const auto size = ReadSome(link, buffer, response, chunk, stop, error);
    if (!size) return {};
    if (error) return LinkError(target_, error);
    const std::string_view bytes(chunk.data(), *size);
    if (refusal.status == 200) {
      events.Feed(bytes);
    } else {
      refusal.body += bytes;
    }
    if (stop()) return {};
  }
  if (refusal.status != 200) return ErrorOf(refusal);
  return {};
}

Result<json::object> AskRun(const fs::path& run_folder, std::string_view path) {
  DD2_TRY_ASSIGN(HttpClient client, HttpClient::ForRun(run_folder));
  return client.GetObject(path);
}

}  // namespace dd2
