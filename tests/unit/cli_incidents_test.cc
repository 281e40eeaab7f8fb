#include <gmock/gmock.h>

#include "cli/incidents.h"

namespace dd2 {
namespace {

using testing::HasSubstr;
using testing::SizeIs;

namespace json = boost::json;

constexpr const char* kLost =
    R"({"unix_ms":1700000000123,"kind":"lost","domain":"local-2","reason":"rank 1 is lost: reset",)"
    R"("evidence":"mpirun was killed by signal 9. The end of its log:\nout of memory\n","phase":2,)"
    R"("step":12,"generation":3,"exited_seconds":0.035,"formed_seconds":0.18,)"
    R"("resumed_seconds":0.21,"steps_lost":4,"open":false})";

json::object Parse(std::string_view text) {
  return json::parse(json::string_view(text)).as_object();
}

TEST(Incidents, AreReadFromAFileWithATornEnd) {
  const json::array read =
      ParseIncidentLines(std::string(kLost) + "\n[1]\n\n" + kLost + "\n{\"unix_ms\":17");
  ASSERT_THAT(read, SizeIs(2));
  const Incident incident = IncidentOf(read[0].as_object());
  EXPECT_EQ(incident.domain, "local-2");
  EXPECT_EQ(incident.steps_lost, 4);
  EXPECT_EQ(incident.exited_seconds, 0.035);
}

TEST(Incidents, TheLiveOnesAreAddedOnce) {
  json::array incidents = ParseIncidentLines(kLost);
  json::object document;
  json::object open = Parse(R"({"unix_ms":1700000009000,"kind":"hang","domain":null,"open":true})");
  document["incidents"] = json::array({Parse(kLost), open, 7});
  AddLiveIncidents(document, incidents);
  ASSERT_THAT(incidents, SizeIs(2));
  const Incident live = IncidentOf(incidents[1].as_object());
  EXPECT_TRUE(live.open);
  EXPECT_EQ(live.domain, "");
  EXPECT_FALSE(live.resumed_seconds);
  AddLiveIncidents(Parse("{}"), incidents);
  EXPECT_THAT(incidents, SizeIs(2));
}

TEST(Incidents, SayWhoWhereAndWhen) {
  const std::string text = FormatIncident(IncidentOf(Parse(kLost)), {"sample", "gts", "csd"});
  EXPECT_THAT(text, HasSubstr(".123  lost, domain local-2, phase 3/3 'csd' after step 12\n"
                              "    rank 1 is lost: reset\n"
                              "    | mpirun was killed by signal 9. The end of its log:\n"
                              "    | out of memory\n"
                              "    0 ms noticed, 35 ms mpirun ended, 180 ms generation 3 formed, "
                              "210 ms next step\n"
                              "    steps lost: 4\n"));
}

TEST(Incidents, TimesStandInTheirOrderAndAnEndIsSaid) {
  json::object object = Parse(kLost);
  object["exited_seconds"] = 0.9;
  EXPECT_EQ(FormatTimeline(IncidentOf(object)),
            "0 ms noticed, 180 ms generation 3 formed, 210 ms next step, 900 ms mpirun ended");
  object["formed_seconds"] = nullptr;
  object["resumed_seconds"] = nullptr;
  EXPECT_EQ(FormatTimeline(IncidentOf(object)),
            "0 ms noticed, 900 ms mpirun ended; the run ended before the next step");
  object["open"] = true;
  EXPECT_THAT(FormatTimeline(IncidentOf(object)), HasSubstr("; not over yet"));
  EXPECT_THAT(FormatIncident(IncidentOf(object), {}), HasSubstr("phase 3 after step 12"));
}

}  // namespace
}  // namespace dd2
