#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <map>
#include <regex>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "common/json.h"
#include "coordinator/api.h"
#include "tests/support/fake_run.h"

namespace dd2 {
namespace {

namespace json = boost::json;
using testing::ElementsAre;
using testing::HasSubstr;

const std::string bearer = "Bearer secret";

json::object Parse(const std::string& text) { return json::parse(text).as_object(); }

TEST(RouteRequest, EveryRouteIsReachableAndNeedsTheToken) {
  for (const Route& route : ApiRoutes()) {
    const Routed with = RouteRequest(route.method, route.path, bearer, "secret");
    EXPECT_EQ(with.endpoint, route.endpoint) << route.path;
    const std::string query = std::string(route.path) + "?a=b";
    EXPECT_EQ(RouteRequest(route.method, query, "bEARER secret", "secret").endpoint,
              route.endpoint);
    for (const std::string wrong : {"", "Bearer", "Bearer ", "Bearer secreT", "Bearer secret ",
                                    "Bearer secre", "Basic secret", "secret"}) {
      const Routed without = RouteRequest(route.method, route.path, wrong, "secret");
      EXPECT_EQ(without.endpoint.has_value(), route.path == "/healthz") << route.path << wrong;
      if (without.endpoint) continue;
      EXPECT_EQ(without.refusal.status, 401);
      EXPECT_EQ(without.refusal.authenticate, R"(Bearer realm="dd2")");
      EXPECT_EQ(Parse(without.refusal.body).at("code"), "unauthenticated");
    }
  }
}

TEST(RouteRequest, AnEmptyTokenAdmitsNobody) {
  EXPECT_EQ(RouteRequest("GET", "/api/v1/run", "Bearer ", "").refusal.status, 401);
  EXPECT_EQ(RouteRequest("GET", "/api/v1/run", "", "").refusal.status, 401);
}

TEST(RouteRequest, UnknownPathsAndMethods) {
  const Routed missing = RouteRequest("GET", "/api/v1/nothing", bearer, "secret");
  EXPECT_EQ(missing.refusal.status, 404);
  EXPECT_EQ(Parse(missing.refusal.body).at("code"), "not_found");
  EXPECT_THAT(missing.refusal.body, HasSubstr("/api/v1/openapi.json"));
  const Routed wrong = RouteRequest("GET", "/api/v1/run:pause", bearer, "secret");
  EXPECT_EQ(wrong.refusal.status, 405);
  EXPECT_EQ(wrong.refusal.allow, "POST");
  EXPECT_EQ(RouteRequest("DELETE", "/api/v1/run", bearer, "secret").refusal.allow, "GET");
  // Without the token nobody learns which paths exist.
  EXPECT_EQ(RouteRequest("GET", "/api/v1/nothing", "", "secret").refusal.status, 401);
  EXPECT_EQ(RouteRequest("GET", "/api/v1/run:pause", "", "secret").refusal.status, 401);
  EXPECT_EQ(RouteRequest("GET", "/", bearer, "secret").refusal.status, 404);
}

TEST(EqualInConstantTime, IsEquality) {
  EXPECT_TRUE(EqualInConstantTime("", ""));
  EXPECT_TRUE(EqualInConstantTime("abc", "abc"));
  EXPECT_FALSE(EqualInConstantTime("abc", "abd"));
  EXPECT_FALSE(EqualInConstantTime("abc", "Abc"));
  EXPECT_FALSE(EqualInConstantTime("abc", "ab"));
  EXPECT_FALSE(EqualInConstantTime("abc", "abcd"));
}

TEST(Documents, SayWhatTheStateSays) {
  const RunState state = ExampleRunState();
  const json::object run = Parse(RunDocument(state));
  EXPECT_EQ(run.at("run_id"), "r-1");
  EXPECT_EQ(run.at("state"), "running");
  EXPECT_EQ(run.at("version"), 7);
  EXPECT_EQ(run.at("seed").to_number<std::uint64_t>(), std::numeric_limits<std::uint64_t>::max());
  EXPECT_EQ(run.at("phase_count"), 3);
  EXPECT_EQ(run.at("phase").at("name"), "gts");
  EXPECT_EQ(run.at("phase").at("step"), 120);
  EXPECT_EQ(run.at("phase").at("steps"), 300);
  EXPECT_EQ(run.at("phase").at("steps_per_second"), 9.5);
  EXPECT_TRUE(run.at("phase").at("remaining_seconds").is_null());  // -1: not known
  EXPECT_EQ(run.at("counters").at("guidance_updates"), 120);
  EXPECT_EQ(run.at("metrics").at("gts/loss"), 0.25);
  EXPECT_TRUE(run.at("metrics").at("gts/norm").is_null());  // NaN
  EXPECT_EQ(run.at("desired").at("paused"), false);
  EXPECT_EQ(run.at("checkpoint_interval").at("setting"), "auto");
  EXPECT_EQ(run.at("checkpoint_interval").at("seconds"), 600.5);
  EXPECT_EQ(run.at("checkpoint_interval").at("stall_seconds"), 0.25);
  EXPECT_EQ(run.at("checkpoint_interval").at("failure_seconds"), 28800.0);

  const json::object phases = Parse(PhasesDocument(state));
  ASSERT_EQ(phases.at("phases").as_array().size(), 3U);
  EXPECT_EQ(phases.at("phases").at(0).at("result").at("sequences"), 5000);
  EXPECT_TRUE(phases.at("phases").at(1).at("result").is_null());
  EXPECT_EQ(phases.at("phases").at(2).at("state"), "pending");

  const json::object members = Parse(MembersDocument(state));
  EXPECT_EQ(members.at("members").at(0).at("role"), "agent");
  EXPECT_TRUE(members.at("members").at(0).at("rank").is_null());
  EXPECT_EQ(members.at("members").at(1).at("rank"), 0);

  const json::object checkpoints = Parse(CheckpointsDocument(state));
  EXPECT_EQ(checkpoints.at("checkpoints").at(0).at("id"), "p001-s000000100");
  EXPECT_EQ(checkpoints.at("checkpoints").at(0).at("state"), "committed");
  EXPECT_TRUE(checkpoints.at("checkpoints").at(1).at("committed_unix_ms").is_null());
}

TEST(Documents, ListManyMembersWhateverTheyAreCalled) {
  const std::string awkward(300, '"');
  RunState state;
  EXPECT_TRUE(Parse(MembersDocument(state)).at("members").as_array().empty());
  EXPECT_TRUE(Parse(MembersDocument(state)).at("domains").as_array().empty());
  state.members.resize(1000);
  for (MemberState& member : state.members) {
    member.host = awkward;
    member.numeric_mode = "a\\b\n\x01\xc3\xa4";
    member.pid = std::numeric_limits<std::int64_t>::min();
    member.step = std::numeric_limits<std::int64_t>::max();
  }
  state.domains = {DomainState{awkward, "working", 8}, DomainState{"b", "working", 8}};
  const json::object document = Parse(MembersDocument(state));
  ASSERT_EQ(document.at("members").as_array().size(), 1000u);
  ASSERT_EQ(document.at("domains").as_array().size(), 2u);
  EXPECT_EQ(document.at("domains").as_array()[0].at("name").as_string(), awkward);
  const json::object& last = document.at("members").as_array()[999].as_object();
  EXPECT_EQ(last.at("host").as_string(), awkward);
  EXPECT_EQ(last.at("numeric_mode").as_string(), "a\\b\n\x01\xc3\xa4");
  EXPECT_EQ(last.at("pid").as_int64(), std::numeric_limits<std::int64_t>::min());
  EXPECT_EQ(last.at("step").as_int64(), std::numeric_limits<std::int64_t>::max());
  EXPECT_TRUE(last.at("rank").is_null());
}

TEST(Documents, AFinishedRunHasNoPhase) {
  RunState state = ExampleRunState();
  state.phase = 3;
  EXPECT_TRUE(Parse(RunDocument(state)).at("phase").is_null());
  state.checkpoint_interval.seconds = -1;  // off
  EXPECT_TRUE(Parse(RunDocument(state)).at("checkpoint_interval").at("seconds").is_null());
  EXPECT_TRUE(Parse(RunDocument(RunState())).at("phase").is_null());
}

// Enough of a validator for our own documents: required names, and types where one is given.
void ExpectMatches(const json::value& value, const json::object& schema, const json::object& all) {
  if (const json::value* reference = schema.if_contains("$ref")) {
    const std::string path(reference->as_string());
    const std::string name = path.substr(path.rfind('/') + 1);
    return ExpectMatches(value, all.at("components").at("schemas").at(name).as_object(), all);
  }
  if (!value.is_object()) return;
  if (const json::value* required = schema.if_contains("required")) {
    for (const json::value& name : required->as_array()) {
      EXPECT_TRUE(value.as_object().contains(name.as_string())) << name << " in " << value;
    }
  }
  const json::value* properties = schema.if_contains("properties");
  if (properties == nullptr || schema.contains("additionalProperties")) return;
  for (const auto& [name, member] : value.as_object()) {
    const json::value* described = properties->as_object().if_contains(name);
    ASSERT_NE(described, nullptr) << name << " is not in openapi.json";
    ExpectMatches(member, described->as_object(), all);
    const json::value* items = described->as_object().if_contains("items");
    if (items == nullptr) continue;
    for (const json::value& item : member.as_array()) ExpectMatches(item, items->as_object(), all);
  }
}

TEST(OpenApi, ListsExactlyTheRoutesAndTheirDocuments) {
  const json::object document = Parse(std::string(OpenApiDocument()));
  std::set<std::string> described;
  for (const auto& [path, methods] : document.at("paths").as_object()) {
    for (const auto& [method, operation] : methods.as_object()) {
      std::string upper(method);
      for (char& c : upper) c = static_cast<char>(std::toupper(c));
      described.insert(upper + " " + std::string(path));
      const bool open = operation.as_object().contains("security");
      EXPECT_EQ(open, path == "/healthz") << path;
    }
  }
  std::set<std::string> routed;
  const RunState state = ExampleRunState();
  for (const Route& route : ApiRoutes()) {
    routed.insert(std::string(route.method) + " " + std::string(route.path));
    if (IsCommand(route.endpoint) || route.endpoint == Endpoint::kEvents) continue;
    const ApiReply reply = ReadReply(route.endpoint, state);
    EXPECT_EQ(reply.status, 200) << route.path;
    if (reply.content_type != "application/json") continue;
    const json::value& schema = document.at("paths")
                                    .at(route.path)
                                    .at("get")
                                    .at("responses")
                                    .at("200")
                                    .at("content")
                                    .at("application/json")
                                    .at("schema");
    ExpectMatches(json::parse(reply.body), schema.as_object(), document);
  }
  EXPECT_EQ(described, routed);
}

TEST(CommandReply, CallsTheRunAndReportsItsError) {
  FakeRun run;
  EXPECT_EQ(CommandReply(Endpoint::kPause, run, "me").status, 202);
  EXPECT_EQ(CommandReply(Endpoint::kResume, run, "me").status, 202);
  EXPECT_EQ(CommandReply(Endpoint::kCheckpoint, run, "me").status, 202);
  const ApiReply cancelled = CommandReply(Endpoint::kCancel, run, "me");
  EXPECT_EQ(Parse(cancelled.body).at("run_id"), "r-1");
  EXPECT_THAT(run.calls, ElementsAre("pause me", "resume me", "checkpoint me", "cancel me"));
  run.answer = Error(Code::kFailedPrecondition, "the run has finished");
  const ApiReply refused = CommandReply(Endpoint::kPause, run, "me");
  EXPECT_EQ(refused.status, 409);
  EXPECT_EQ(Parse(refused.body).at("code"), "failed_precondition");
  EXPECT_EQ(Parse(refused.body).at("message"), "the run has finished");
}

TEST(CommandReply, DrainNamesItsDomain) {
  FakeRun run;
  const auto drain = [&run](const std::string& query) {
    const Routed routed = RouteRequest("POST", "/api/v1/run:drain" + query, bearer, "secret");
    return CommandReply(routed.endpoint.value(), run, "me", routed.argument).status;
  };
  EXPECT_EQ(drain("?x=1&domain=local-2"), 202);
  EXPECT_THAT(run.calls, ElementsAre("drain local-2 me"));
  for (const char* query : {"", "?", "?domain", "?domain=", "?domains=a", "?&&"}) {
    EXPECT_EQ(drain(query), 400) << query;
  }
  run.answer = Error(Code::kNotFound, "the run has no domain 'x'");
  EXPECT_EQ(drain("?domain=x"), 404);
}

TEST(Ready, OnlyWhileTheRunTrainsOrPauses) {
  RunState state = ExampleRunState();
  const std::map<RunWord, int> expected = {{RunWord::kWaiting, 503},    {RunWord::kRunning, 200},
                                           {RunWord::kPaused, 200},     {RunWord::kStopping, 503},
                                           {RunWord::kRecovering, 503}, {RunWord::kFinished, 503},
                                           {RunWord::kFailed, 503}};
  for (const auto& [word, status] : expected) {
    state.word = word;
    EXPECT_EQ(ReadReply(Endpoint::kReady, state).status, status) << RunWordName(word);
    EXPECT_EQ(ReadReply(Endpoint::kHealth, state).status, 200);
  }
}

// Families in their order: name -> (type, unit, sample lines).
struct Family {
  std::string type;
  std::string unit;
  std::vector<std::string> samples;
};

// Reads OpenMetrics text strictly enough to find a sample outside of its family, a family twice, a
// wrong suffix or an escaped character that is not.
std::map<std::string, Family> ReadMetrics(const std::string& text) {
  std::map<std::string, Family> families;
  std::string name;
  std::istringstream in(text);
  const std::regex sample(
      R"re(([a-z_0-9]+)(\{[a-z_0-9]+="([^"\\\n]|\\["\\n])*"(,[a-z_0-9]+="([^"\\\n]|\\["\\n])*")*\})? (NaN|[+-]Inf|[-+.e0-9]+))re");
  bool ended = false;
  for (std::string line; std::getline(in, line);) {
    EXPECT_FALSE(ended) << "text after # EOF";
    if (line == "# EOF") {
      ended = true;
    } else if (line.starts_with("# TYPE ")) {
      std::istringstream words(line.substr(7));
      std::string type;
      words >> name >> type;
      EXPECT_FALSE(families.contains(name)) << name << " twice";
      families[name].type = type;
    } else if (line.starts_with("# UNIT ")) {
      families[name].unit = line.substr(line.rfind(' ') + 1);
      EXPECT_TRUE(name.ends_with("_" + families[name].unit)) << line;
    } else if (!line.starts_with("# HELP " + name + " ")) {
      std::smatch match;
      EXPECT_TRUE(std::regex_match(line, match, sample)) << line;
      const std::string type = families[name].type;
      const std::string suffix = type == "counter" ? "_total" : type == "info" ? "_info" : "";
      EXPECT_EQ(match[1].str(), name + suffix) << line;
      families[name].samples.push_back(line);
    }
  }
  EXPECT_TRUE(ended);
  EXPECT_TRUE(text.ends_with("# EOF\n"));
  return families;
}

TEST(Metrics, AreOpenMetrics) {
  auto families = ReadMetrics(MetricsText(ExampleRunState()));
  EXPECT_THAT(families["dd2_build"].samples,
              ElementsAre(R"(dd2_build_info{version="v\"1\\2\n"} 1)"));
  EXPECT_THAT(families["dd2_phase_steps"].samples,
              ElementsAre(R"(dd2_phase_steps_total{phase="sample"} 20)",
                          R"(dd2_phase_steps_total{phase="gts"} 120)",
                          R"(dd2_phase_steps_total{phase="csd"} 0)"));
  EXPECT_EQ(families["dd2_phase_seconds"].unit, "seconds");
  EXPECT_THAT(families["dd2_guidance_updates"].samples,
              ElementsAre("dd2_guidance_updates_total 120"));
  EXPECT_THAT(families["dd2_checkpoint_newest_bytes"].samples,
              ElementsAre("dd2_checkpoint_newest_bytes 4096"));
  EXPECT_THAT(families["dd2_training_value"].samples,
              ElementsAre(R"(dd2_training_value{name="gts/loss"} 0.25)",
                          R"(dd2_training_value{name="gts/norm"} NaN)"));
  EXPECT_THAT(families["dd2_members"].samples,
              ElementsAre(R"(dd2_members{role="agent"} 1)", R"(dd2_members{role="worker"} 1)"));
  EXPECT_FALSE(families.contains("dd2_phase_remaining_seconds"));
  EXPECT_EQ(families["dd2_run_state"].samples.size(), 8U);
  ReadMetrics(MetricsText(RunState()));  // nothing known yet: still well-formed
}

TEST(Events, IdsSurviveARestartOfTheCoordinator) {
  RunState state = ExampleRunState();
  state.events.Add(10, "phase", "gts began");
  state.events.Add(20, "incident", "a \"quoted\"\nline");
  EXPECT_EQ(SequenceBehind(state, ""), 0U);
  EXPECT_EQ(SequenceBehind(state, "x"), 0U);
  EXPECT_EQ(SequenceBehind(state, "1"), 0U);
  EXPECT_EQ(SequenceBehind(state, std::to_string(StreamId(state, 1))), 1U);
  EXPECT_EQ(SequenceBehind(state, std::to_string(StreamId(state, 2))), 2U);
  EXPECT_EQ(SequenceBehind(state, std::to_string(StreamId(state, 3))), 0U);  // not happened yet
  RunState restarted = state;
  restarted.started_unix_ms += 60'000;
  EXPECT_EQ(SequenceBehind(restarted, std::to_string(StreamId(state, 2))), 0U);
  EXPECT_GT(StreamId(restarted, 1), StreamId(state, 1000));

  const std::string text = EventText(state, state.events.After(1).front());
  EXPECT_TRUE(
      text.starts_with("id: " + std::to_string(StreamId(state, 2)) + "\nevent: incident\n"));
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'),
            4);  // the newline of the message is escaped
  const std::size_t data = text.find("data: ") + 6;
  EXPECT_EQ(Parse(text.substr(data, text.size() - data - 2)).at("message"), "a \"quoted\"\nline");
  EXPECT_EQ(StateEventText(state).find("id:"), std::string::npos);
}

}  // namespace
}  // namespace dd2
