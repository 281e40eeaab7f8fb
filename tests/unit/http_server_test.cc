#include "coordinator/http_server.h"

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <future>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "cli/http_client.h"
#include "common/json.h"
#include "coordinator/api.h"
#include "tests/support/fake_run.h"

namespace dd2 {
namespace {

namespace json = boost::json;
using std::chrono::milliseconds;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::StartsWith;

// A bare connection to loopback, for what a well-behaved client does not do.
class RawSocket {
 public:
  explicit RawSocket(std::uint16_t port, int receive_buffer_bytes = 0)
      : descriptor_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    if (receive_buffer_bytes > 0) {
      ::setsockopt(descriptor_, SOL_SOCKET, SO_RCVBUF, &receive_buffer_bytes,
                   sizeof receive_buffer_bytes);
    }
    const timeval patience{.tv_sec = 10, .tv_usec = 0};
    ::setsockopt(descriptor_, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    void* untyped = &address;
    connected_ = ::connect(descriptor_, static_cast<sockaddr*>(untyped), sizeof address) == 0;
  }
  ~RawSocket() { ::close(descriptor_); }
  RawSocket(const RawSocket&) = delete;
  RawSocket& operator=(const RawSocket&) = delete;

  bool connected() const { return connected_; }

  void Send(std::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t n = ::send(descriptor_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (n <= 0) return;
      bytes.remove_prefix(static_cast<std::size_t>(n));
    }
  }

  // Reads until `text` has come, the peer closes, or 10 s have passed; all that was read so far.
  std::string ReadUntil(std::string_view text) {
    std::array<char, 4096> chunk{};
    while (text.empty() || read_.find(text) == std::string::npos) {
      const ssize_t n = ::recv(descriptor_, chunk.data(), chunk.size(), 0);
      closed_ = n == 0;
      if (n <= 0) break;
      read_.append(chunk.data(), static_cast<std::size_t>(n));
    }
    return read_;
  }
  std::string ReadToEnd() { return ReadUntil(""); }
  bool closed() const { return closed_; }

 private:
  int descriptor_;
  bool connected_ = false;
  bool closed_ = false;
  std::string read_;
};

// The server on a thread of its own, as the coordinator's control thread runs it.
class HttpServerTest : public testing::Test {
 protected:
  ~HttpServerTest() override { StopServer(); }

  void StartServer(HttpOptions options = {}) {
    options.token = "secret";
    auto started = HttpServer::Start(context_, options, run_);
    ASSERT_TRUE(started.has_value()) << started.error().message();
    server_ = std::move(*started);
    thread_ = std::thread([this] { context_.run(); });
  }

  void StopServer() {
    if (!server_) return;
    OnControlThread(
        [this] { asio::co_spawn(context_, server_->Stop(milliseconds(30'000)), asio::detached); });
    thread_.join();  // run() returns when nothing is left to do: every connection has ended
    server_.reset();
  }

  // Runs `work` where the coordinator would, and waits for it.
  void OnControlThread(const std::function<void()>& work) {
    std::promise<void> done;
    asio::post(context_, [&] {
      work();
      done.set_value();
    });
    done.get_future().wait();
  }

  void AddEvent(const std::string& kind, const std::string& message) {
    OnControlThread([&] {
      run_.current.events.Add(1000, kind, message);
      ++run_.current.version;
      server_->Notify();
    });
  }

  HttpClient Client(const std::string& token = "secret") const {
    HttpTarget target;
    target.port = server_->port();
    target.token = token;
    return HttpClient(target, milliseconds(5000));
  }

  int StatusOfGet(const std::string& path) {
    auto response = Client().Get(path);
    return response ? response->status : -1;
  }

  FakeRun run_;
  asio::io_context context_{1};
  std::unique_ptr<HttpServer> server_;
  std::thread thread_;
};

// Follows the event stream on a thread of its own and remembers what came.
class Follower {
 public:
  Follower(HttpClient client, std::uint64_t after)
      : thread_([this, client, after]() mutable {
          auto take = [this](const StreamedEvent& event) {
            const std::scoped_lock lock(mutex_);
            events_.push_back(event);
          };
          outcome_ = client.StreamEvents(
              take, [this] { return stop_.load(); }, after);
          ended_ = true;
        }) {}
  ~Follower() { Stop(); }

  void Stop() {
    stop_ = true;
    Join();
  }
  void Join() {
    if (thread_.joinable()) thread_.join();
  }

  // The messages of events with an id, in order (state events have none of their own).
  std::vector<std::string> Messages() {
    const std::scoped_lock lock(mutex_);
    std::vector<std::string> messages;
    for (const StreamedEvent& event : events_) {
      if (event.type == "state") continue;
      messages.emplace_back(json::parse(event.data).at("message").as_string());
    }
    return messages;
  }
  // How many they are, without reading them.
  std::size_t Count() {
    const std::scoped_lock lock(mutex_);
    return static_cast<std::size_t>(
        std::count_if(events_.begin(), events_.end(),
                      [](const StreamedEvent& event) { return event.type != "state"; }));
  }
  std::vector<StreamedEvent> Events() {
    const std::scoped_lock lock(mutex_);
    return events_;
  }
  bool WaitFor(const std::function<bool()>& condition) {
    for (int i = 0; i < 500 && !condition(); ++i) std::this_thread::sleep_for(milliseconds(10));
    return condition();
  }
  bool ended() const { return ended_; }
  const Status& outcome() const { return outcome_; }  // after Join

 private:
  std::mutex mutex_;
  std::vector<StreamedEvent> events_;
  std::atomic<bool> stop_ = false;
  std::atomic<bool> ended_ = false;
  Status outcome_;
  std::thread thread_;
};

std::string Request(const std::string& method, const std::string& target,
                    const std::string& more = "") {
  return method + " " + target + " HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer secret\r\n" + more +
         "\r\n";
}

TEST_F(HttpServerTest, AnswersEveryEndpoint) {
  StartServer();
  for (const Route& route : ApiRoutes()) {
    if (route.endpoint == Endpoint::kEvents) continue;
    std::string path(route.path);
    if (route.endpoint == Endpoint::kDrain) path += "?domain=local-2";
    auto response = route.method == "GET" ? Client().Get(path) : Client().Post(path);
    ASSERT_TRUE(response) << response.error().message();
    EXPECT_EQ(response->status, IsCommand(route.endpoint) ? 202 : 200) << route.path;
  }
  EXPECT_THAT(run_.calls, ElementsAre("pause api", "resume api", "checkpoint api", "cancel api",
                                      "drain local-2 api"));
  const auto run = Client().GetObject("/api/v1/run");
  ASSERT_TRUE(run) << run.error().message();
  EXPECT_EQ(run->at("run_id"), "r-1");
  EXPECT_EQ(Client().GetObject("/nothing").error().code(), Code::kNotFound);
  EXPECT_EQ(Client("wrong").GetObject("/api/v1/run").error().code(), Code::kFailedPrecondition);
  EXPECT_EQ(server_->url(), "http://127.0.0.1:" + std::to_string(server_->port()));
}

TEST_F(HttpServerTest, RefusesWithoutTheToken) {
  StartServer();
  auto refused = Client("wrong").Post("/api/v1/run:cancel");
  ASSERT_TRUE(refused);
  EXPECT_EQ(refused->status, 401);
  EXPECT_TRUE(run_.calls.empty());
  EXPECT_EQ(ErrorOf(*refused).code(), Code::kFailedPrecondition);
  EXPECT_EQ(Client("wrong").Get("/healthz")->status, 200);
  const Status stream =
      Client("wrong").StreamEvents([](const StreamedEvent&) {}, [] { return false; });
  ASSERT_FALSE(stream);
  EXPECT_THAT(stream.error().message(), HasSubstr("token"));
  RawSocket raw(server_->port());
  raw.Send("GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
  const std::string answer = raw.ReadToEnd();
  EXPECT_THAT(answer, StartsWith("HTTP/1.1 401 "));
  EXPECT_THAT(answer, HasSubstr("WWW-Authenticate: Bearer realm=\"dd2\"\r\n"));
}

TEST_F(HttpServerTest, ErrorsOfTheRunBecomeAnswers) {
  run_.answer = Error(Code::kFailedPrecondition, "the run has finished");
  StartServer();
  auto response = Client().Post("/api/v1/run:pause");
  ASSERT_TRUE(response);
  EXPECT_EQ(response->status, 409);
  EXPECT_EQ(ErrorOf(*response).code(), Code::kFailedPrecondition);
  EXPECT_EQ(ErrorOf(*response).message(), "the run has finished");
  EXPECT_EQ(StatusOfGet("/nothing"), 404);
  EXPECT_EQ(StatusOfGet("/api/v1/run:pause"), 405);
}

TEST_F(HttpServerTest, ATakenPortIsAClearError) {
  StartServer();
  HttpOptions options;
  options.token = "t";
  options.port = server_->port();
  const auto second = HttpServer::Start(context_, options, run_);
  ASSERT_FALSE(second);
  EXPECT_EQ(second.error().code(), Code::kUnavailable);
  EXPECT_THAT(second.error().message(), HasSubstr(std::to_string(options.port)));
  EXPECT_THAT(second.error().message(), HasSubstr("in use"));
  options.host = "nonsense";
  EXPECT_EQ(HttpServer::Start(context_, options, run_).error().code(), Code::kInvalidArgument);
  options.host = "127.0.0.1";
  options.token = "";
  EXPECT_EQ(HttpServer::Start(context_, options, run_).error().code(), Code::kInvalidArgument);
}

TEST_F(HttpServerTest, KeepsAConnectionForMoreRequests) {
  StartServer();
  RawSocket raw(server_->port());
  raw.Send(Request("GET", "/healthz"));
  EXPECT_THAT(raw.ReadUntil("ok"), StartsWith("HTTP/1.1 200 "));
  raw.Send(Request("GET", "/nothing") +
           Request("POST", "/api/v1/run:pause", "Connection: close\r\n"));
  const std::string all =
      raw.ReadToEnd();  // two requests at once, the last one ends the connection
  EXPECT_TRUE(raw.closed());
  EXPECT_THAT(all, HasSubstr("HTTP/1.1 404 "));
  EXPECT_THAT(all, HasSubstr("HTTP/1.1 202 "));
}

TEST_F(HttpServerTest, RefusesWhatIsTooLargeOrNoHttp) {
  StartServer();
  RawSocket body(server_->port());
  body.Send(Request("POST", "/api/v1/run:pause", "Content-Length: 1000000\r\n"));
  body.Send(std::string(1000000, 'x'));
  EXPECT_THAT(body.ReadToEnd(), StartsWith("HTTP/1.1 413 "));
  RawSocket chunked(server_->port());
  chunked.Send(Request("POST", "/api/v1/run:pause", "Transfer-Encoding: chunked\r\n"));
  chunked.Send("fffff\r\n" + std::string(0xfffff, 'x'));
  EXPECT_THAT(chunked.ReadToEnd(), StartsWith("HTTP/1.1 413 "));
  RawSocket header(server_->port());
  header.Send(Request("GET", "/healthz", "X: " + std::string(20000, 'x') + "\r\n"));
  EXPECT_THAT(header.ReadToEnd(), StartsWith("HTTP/1.1 431 "));
  RawSocket nonsense(server_->port());
  nonsense.Send("\x16\x03\x01\x02 not http \r\n\r\n");
  EXPECT_THAT(nonsense.ReadToEnd(), StartsWith("HTTP/1.1 400 "));
  EXPECT_TRUE(run_.calls.empty());
  EXPECT_EQ(StatusOfGet("/healthz"), 200);
}

TEST_F(HttpServerTest, EndsARequestThatTakesTooLong) {
  HttpOptions options;
  options.request_timeout = milliseconds(200);
  StartServer(options);
  RawSocket slow(server_->port());
  slow.Send("GET /healthz HT");
  RawSocket idle(server_->port());
  idle.Send(Request("GET", "/healthz"));
  const auto begin = std::chrono::steady_clock::now();
  EXPECT_EQ(slow.ReadToEnd(), "");
  EXPECT_TRUE(slow.closed());
  EXPECT_THAT(idle.ReadToEnd(), StartsWith("HTTP/1.1 200 "));
  EXPECT_TRUE(idle.closed());
  EXPECT_LT(std::chrono::steady_clock::now() - begin, milliseconds(5000));
}

TEST_F(HttpServerTest, LimitsTheNumberOfConnections) {
  HttpOptions options;
  options.connections_max = 2;
  StartServer(options);
  auto first = std::make_unique<RawSocket>(server_->port());
  first->Send(Request("GET", "/healthz"));
  first->ReadUntil("ok");
  RawSocket second(server_->port());
  second.Send(Request("GET", "/healthz"));
  second.ReadUntil("ok");
  EXPECT_EQ(StatusOfGet("/healthz"), 503);
  first.reset();
  int status = 503;
  for (int i = 0; i < 200 && status != 200; ++i) {
    std::this_thread::sleep_for(milliseconds(10));
    status = StatusOfGet("/healthz");
  }
  EXPECT_EQ(status, 200);
}

TEST_F(HttpServerTest, StreamsEventsAndResumesBehindTheLastOne) {
  run_.current.events.Add(1, "run", "one");
  StartServer();
  std::uint64_t last = 0;
  {
    Follower follower(Client(), 0);
    EXPECT_TRUE(follower.WaitFor([&] { return follower.Messages().size() == 1; }));
    AddEvent("phase", "two");
    AddEvent("checkpoint", "three");
    EXPECT_TRUE(follower.WaitFor([&] { return follower.Messages().size() == 3; }));
    follower.Stop();
    EXPECT_TRUE(follower.outcome());
    EXPECT_THAT(follower.Messages(), ElementsAre("one", "two", "three"));
    for (const StreamedEvent& event : follower.Events()) {
      if (event.type == "phase") last = event.id;
    }
  }
  AddEvent("run", "four");
  Follower resumed(Client(), last);
  EXPECT_TRUE(resumed.WaitFor([&] { return resumed.Messages().size() == 2; }));
  resumed.Stop();
  EXPECT_THAT(resumed.Messages(), ElementsAre("three", "four"));
}

TEST_F(HttpServerTest, StreamsTheStateButNotMoreOftenThanAsked) {
  HttpOptions options;
  options.state_interval = milliseconds(300);
  StartServer(options);
  Follower follower(Client(), 0);
  for (int i = 0; i < 50; ++i) {
    OnControlThread([&] {
      ++run_.current.version;
      run_.current.phases[1].done = 1000 + i;
      server_->Notify();
    });
    std::this_thread::sleep_for(milliseconds(5));
  }
  const auto newest_step = [&] {
    const std::vector<StreamedEvent> events = follower.Events();
    if (events.empty()) return std::int64_t{-1};
    EXPECT_EQ(events.back().type, "state");
    return json::parse(events.back().data).at("phase").at("step").as_int64();
  };
  EXPECT_TRUE(follower.WaitFor([&] { return newest_step() == 1049; }));  // the last one is not lost
  follower.Stop();
  EXPECT_LE(follower.Events().size(), 5U);
}

TEST_F(HttpServerTest, TheStreamEndsWhenTheRunIsOver) {
  StartServer();
  Follower follower(Client(), 0);
  EXPECT_TRUE(follower.WaitFor([&] { return follower.Events().size() == 1; }));
  OnControlThread([&] {
    run_.current.word = RunWord::kFinished;
    run_.current.events.Add(2, "run", "finished");
    ++run_.current.version;
    server_->Notify();
  });
  follower.Join();
  EXPECT_TRUE(follower.outcome());
  EXPECT_THAT(follower.Messages(), ElementsAre("finished"));
  EXPECT_EQ(json::parse(follower.Events().back().data).at("state"), "finished");
}

TEST_F(HttpServerTest, AQuietStreamIsKeptAlive) {
  HttpOptions options;
  options.heartbeat_interval = milliseconds(50);
  StartServer(options);
  RawSocket raw(server_->port());
  raw.Send(Request("GET", "/api/v1/events"));
  EXPECT_THAT(raw.ReadUntil(": alive"), HasSubstr("Content-Type: text/event-stream\r\n"));
  EXPECT_FALSE(raw.closed());
}

TEST_F(HttpServerTest, DropsASubscriberThatDoesNotReadAndServesTheOthers) {
  HttpOptions options;
  options.connections_max = 2;
  options.write_timeout = milliseconds(300);
  StartServer(options);
  RawSocket deaf(server_->port(), 4096);
  deaf.Send(Request("GET", "/api/v1/events"));
  deaf.ReadUntil("event: state");
  Follower good(Client(), 0);
  EXPECT_TRUE(good.WaitFor([&] { return !good.Events().empty(); }));
  EXPECT_EQ(StatusOfGet("/healthz"), 503);  // both places are taken
  const std::string large(100'000, 'x');
  for (int i = 0; i < 100; ++i) AddEvent("incident", large);
  EXPECT_TRUE(good.WaitFor([&] { return good.Count() == 100; }));
  EXPECT_TRUE(good.WaitFor([&] { return StatusOfGet("/healthz") == 200; }));
  EXPECT_FALSE(good.ended());
  deaf.ReadToEnd();
  EXPECT_LT(deaf.ReadToEnd().size(), 100U * large.size());
}

TEST_F(HttpServerTest, DropsASubscriberThatFallsBehindTheRing) {
  HttpOptions options;
  options.write_timeout = milliseconds(60'000);
  StartServer(options);
  RawSocket deaf(server_->port(), 4096);
  deaf.Send(Request("GET", "/api/v1/events"));
  deaf.ReadUntil("event: state");
  const std::string large(100'000, 'x');
  for (int i = 0; i < 100; ++i) AddEvent("incident", large);  // more than the sockets hold
  std::this_thread::sleep_for(milliseconds(100));
  for (std::size_t i = 0; i < 2 * kEventRingMax; ++i) AddEvent("run", "small");
  const std::string read = deaf.ReadToEnd();  // takes the rest now, and misses events
  EXPECT_FALSE(read.ends_with("0\r\n\r\n"));  // no orderly end of the stream
  EXPECT_THAT(read, HasSubstr("event: incident"));
}

TEST_F(HttpServerTest, StopEndsStreamsAndConnections) {
  StartServer();
  Follower follower(Client(), 0);
  EXPECT_TRUE(follower.WaitFor([&] { return !follower.Events().empty(); }));
  RawSocket idle(server_->port());
  idle.Send(Request("GET", "/healthz"));
  idle.ReadUntil("ok");
  RawSocket half(server_->port());
  half.Send("GET /hea");
  HttpClient client = Client();
  const auto begin = std::chrono::steady_clock::now();
  StopServer();
  EXPECT_LT(std::chrono::steady_clock::now() - begin, milliseconds(10'000));  // grace is longer
  follower.Join();
  EXPECT_TRUE(follower.outcome()) << follower.outcome().error().message();
  idle.ReadToEnd();
  EXPECT_TRUE(idle.closed());
  const auto late = client.Get("/healthz");
  ASSERT_FALSE(late);
  EXPECT_EQ(late.error().code(), Code::kUnavailable);
}

// A peer that accepts, reads something, answers `answer` and then closes or goes silent.
class FakePeer {
 public:
  FakePeer(std::string answer, bool closes)
      : acceptor_(context_, tcp::endpoint(asio::ip::address_v4::loopback(), 0)),
        thread_([this, answer = std::move(answer), closes] {
          tcp::socket socket(context_);
          error_code ignored;
          acceptor_.accept(socket, ignored);
          std::array<char, 4096> request{};
          socket.read_some(asio::buffer(request), ignored);
          asio::write(socket, asio::buffer(answer), ignored);
          if (closes) socket.shutdown(tcp::socket::shutdown_send, ignored);
          while (!ignored) socket.read_some(asio::buffer(request), ignored);
        }) {}
  ~FakePeer() { thread_.join(); }
  HttpTarget Target() const {
    HttpTarget target;
    target.port = acceptor_.local_endpoint().port();
    return target;
  }

 private:
  asio::io_context context_;
  tcp::acceptor acceptor_;
  std::thread thread_;
};

TEST(HttpClient, SaysWhatWentWrong) {
  const std::string stream = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nevent\r\n";
  const auto ignore = [](const StreamedEvent&) {};
  {
    FakePeer silent("", false);
    const auto late = HttpClient(silent.Target(), milliseconds(200)).Get("/");
    ASSERT_FALSE(late);
    EXPECT_EQ(late.error().code(), Code::kDeadlineExceeded);
  }
  {
    FakePeer broken("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n123", true);
    const auto half = HttpClient(broken.Target()).Get("/");
    ASSERT_FALSE(half);
    EXPECT_EQ(half.error().code(), Code::kUnavailable);
  }
  {
    FakePeer list("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]", true);
    EXPECT_EQ(HttpClient(list.Target()).GetObject("/").error().code(), Code::kCorruption);
  }
  {
    FakePeer broken(stream, true);
    const Status half = HttpClient(broken.Target()).StreamEvents(ignore, [] { return false; });
    ASSERT_FALSE(half);
    EXPECT_EQ(half.error().code(), Code::kUnavailable);
  }
  {
    FakePeer silent(stream, false);
    const auto begin = std::chrono::steady_clock::now();
    const auto soon = [&] { return std::chrono::steady_clock::now() - begin > milliseconds(100); };
    EXPECT_TRUE(HttpClient(silent.Target()).StreamEvents(ignore, soon));
    EXPECT_LT(std::chrono::steady_clock::now() - begin, milliseconds(3000));
  }
}

TEST_F(HttpServerTest, AClientForARunFolder) {
  namespace fs = std::filesystem;
  std::string name = (fs::temp_directory_path() / "dd2-client-XXXXXX").string();
  ASSERT_NE(::mkdtemp(name.data()), nullptr);
  const fs::path folder = name;
  EXPECT_EQ(HttpClient::ForRun(folder / "none").error().code(), Code::kNotFound);
  EXPECT_EQ(HttpClient::ForRun(folder).error().code(), Code::kUnavailable);
  StartServer();
  const auto write = [&](std::int64_t pid) {
    json::object object;
    object["pid"] = pid;
    object["http_port"] = server_->port();
    object["api_url"] = server_->url();
    std::ofstream(folder / "coordinator.json") << json::serialize(object);
  };
  write(::getpid());
  std::ofstream(folder / "token") << "secret\n";
  auto client = HttpClient::ForRun(folder);
  ASSERT_TRUE(client) << client.error().message();
  EXPECT_EQ(client->Get("/api/v1/run")->status, 200);
  write(0x7ffffff0);  // no such process
  const auto dead = HttpClient::ForRun(folder);
  ASSERT_FALSE(dead);
  EXPECT_EQ(dead.error().code(), Code::kUnavailable);
  EXPECT_THAT(dead.error().message(), HasSubstr("has ended"));
  std::ofstream(folder / "coordinator.json") << "{\"pid\": 1, \"http_port\": 99999999}";
  EXPECT_EQ(HttpClient::ForRun(folder).error().code(), Code::kCorruption);
  std::ofstream(folder / "coordinator.json") << "{";
  EXPECT_EQ(HttpClient::ForRun(folder).error().code(), Code::kCorruption);
  fs::remove_all(folder);
}

}  // namespace
}  // namespace dd2
