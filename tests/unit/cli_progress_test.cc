#include <gtest/gtest.h>

#include "cli/format.h"
#include "cli/progress.h"
#include "cli/progress_view.h"
#include "cli/run_view.h"

namespace dd2 {
namespace {

// The documents are what coordinator/api.h writes, cut to what is shown.
constexpr const char* run_document = R"({"run_id":"r","name":"tiny","state":"running","message":"",
  "generation":1,"ranks":2,"seed":7,"phase_count":3,
  "phase":{"index":1,"name":"csd","kind":"csd","state":"running","step":30,"steps":120,
           "seconds":15.0,"steps_per_second":2.0,"remaining_seconds":45.0},
  "metrics":{"gts/loss":0.2,"csd/sid":-0.1234567,"csd/fcs":0.5,"csd/bad":null}})";
constexpr const char* phases_document = R"({"phases":[
  {"index":0,"name":"gts","kind":"gts","state":"done","step":300,"steps":300,"seconds":72.0},
  {"index":1,"name":"csd","kind":"csd","state":"running","step":29,"steps":120,"seconds":14.5},
  {"index":2,"name":"eval","kind":"eval","state":"pending","step":0,"steps":1,"seconds":0.0}]})";

RunView ViewOf(const char* run = run_document) {
  RunView view;
  EXPECT_TRUE(ApplyPhasesDocument(phases_document, view));
  EXPECT_TRUE(ApplyRunDocument(run, view));
  return view;
}

TEST(FormatTest, Durations) {
  EXPECT_EQ(FormatDuration(7.4), "0:07");
  EXPECT_EQ(FormatDuration(59.6), "1:00");
  EXPECT_EQ(FormatDuration(725), "12:05");
  EXPECT_EQ(FormatDuration(3723), "1:02:03");
  EXPECT_EQ(FormatDuration(-1), "-");
  EXPECT_EQ(FormatDuration(1.0 / 0.0), "-");
}

TEST(FormatTest, SpeedTurnsOverAtOneASecond) {
  EXPECT_EQ(FormatSpeed(0.1, "step"), "10.0 step/s");
  EXPECT_EQ(FormatSpeed(1.6, "cycle"), "1.6 s/cycle");
  EXPECT_EQ(FormatSpeed(0, "step"), "");
}

TEST(FormatTest, Bytes) {
  EXPECT_EQ(FormatBytes(999), "999 B");
  EXPECT_EQ(FormatBytes(4'600'000), "4.6 MB");
  EXPECT_EQ(ShellLine({"dd2", "run", "a b.yaml", "--set", "x.y=1", "it's", ""}),
            R"(dd2 run 'a b.yaml' --set x.y=1 'it'\''s' '')");
}

TEST(ProgressLineTest, ShowsStepMetricsOfItsKindSpeedAndRemainingTime) {
  const std::string line = FormatProgressLine(ProgressOf(ViewOf(), 1), 0);
  EXPECT_EQ(line,
            "[2/3] csd           [=====>              ]  30/120  sid -0.1235  fcs 0.5"
            "  2.0 cycle/s  0:45 left");
}

TEST(ProgressLineTest, MetricsBelongToTheLastPhaseOfTheirKindThatHasBegun) {
  RunView view = ViewOf();
  view.phases.push_back({.name = "csd-2", .kind = "csd", .state = "pending", .steps = 9});
  EXPECT_EQ(ProgressOf(view, 1).metrics.size(), 2u);
  EXPECT_TRUE(ProgressOf(view, 3).metrics.empty());
  view.phases[3].step = 1;
  EXPECT_TRUE(ProgressOf(view, 1).metrics.empty());
  EXPECT_EQ(ProgressOf(view, 3).metrics.size(), 2u);
}

TEST(ProgressLineTest, NeverWiderThanTheTerminal) {
  const PhaseProgress progress = ProgressOf(ViewOf(), 1);
  for (int columns = 20; columns < 120; ++columns) {
    EXPECT_LE(FormatProgressLine(progress, columns).size(), static_cast<std::size_t>(columns));
  }
  // The bar goes before any figure does.
  EXPECT_NE(FormatProgressLine(progress, 80).find("0:45 left"), std::string::npos);
}

TEST(ProgressLineTest, FinishedAndPendingPhases) {
  EXPECT_EQ(FormatFinishedLine(ProgressOf(ViewOf(), 0)),
            "[1/3] gts           300 steps in 1:12  loss 0.2");
  EXPECT_EQ(FormatPendingLine(ProgressOf(ViewOf(), 2)), "[3/3] eval          ");
}

TEST(RunViewTest, AllPhasesDoneHasNoCurrentOne) {
  const RunView view = ViewOf(R"({"state":"finished","phase":null,"phase_count":3})");
  EXPECT_EQ(view.phase, 3u);
  EXPECT_TRUE(IsOver(view));
}

TEST(RunViewTest, SomethingElseIsRefusedAndChangesNothing) {
  RunView view = ViewOf();
  for (const char* text : {"", "[]", "{\"phase\":", "{}"}) {
    const Status applied = ApplyRunDocument(text, view);
    ASSERT_FALSE(applied) << text;
    EXPECT_EQ(applied.error().code(), Code::kCorruption);
  }
  EXPECT_EQ(view.state, "running");
  EXPECT_EQ(view.phases.at(1).step, 30);
}

TEST(RunViewTest, StatusNamesTheWayOnOnlyWhenThereIsOne) {
  RunView view = ViewOf();
  EXPECT_EQ(FormatStatus(view, "runs/tiny").find("--resume"), std::string::npos);
  view.state = "stopped";
  EXPECT_NE(FormatStatus(view, "runs/tiny").find("--run runs/tiny --resume"), std::string::npos);
}

TEST(RunViewTest, StatusListsTheDomainsOfALiveRun) {
  RunView view = ViewOf();
  EXPECT_EQ(FormatStatus(view, "runs/tiny").find("domains:"), std::string::npos);
  ASSERT_TRUE(ApplyPhasesDocument(
      R"({"domains":[{"name":"a","state":"leaving"},{"name":"b","state":"working"}]})", view));
  EXPECT_NE(FormatStatus(view, "runs/tiny").find("  domains: a leaving, b working\n"),
            std::string::npos);
}

TEST(ProgressViewTest, LiveLineIsRewrittenAndFinishedPhasesStay) {
  ProgressView progress(true);
  const std::string first = progress.Update(ViewOf(), 0, 200);
  EXPECT_EQ(first.find("[1/3] gts"), 0u);            // finished before we came: its line is there
  EXPECT_EQ(first.back(), 't');                      // no newline: the line is live
  EXPECT_EQ(progress.Update(ViewOf(), 1, 200), "");  // nothing new, nothing written
  RunView later = ViewOf();
  later.phases[1].step = 31;
  const std::string second = progress.Update(later, 2, 200);
  EXPECT_EQ(second.rfind("\r\x1b[K", 0), 0u);
  EXPECT_EQ(second.find('\n'), std::string::npos);
  const std::string note = progress.Note("a worker was lost");
  EXPECT_EQ(note.rfind("\r\x1b[Ka worker was lost\n", 0), 0u);
  EXPECT_NE(note.find("31/120"), std::string::npos);  // the live line is back under it
  later.phase = 2;
  later.phases[1].state = "done";
  later.phases[1].seconds = 60;
  EXPECT_NE(progress.Update(later, 3, 200).find("120 cycles in 1:00"), std::string::npos);
  EXPECT_EQ(progress.Close(), "\n");
  EXPECT_EQ(progress.Close(), "");
}

TEST(ProgressViewTest, PlainLinesComeEveryFewSecondsWithoutControlCharacters) {
  ProgressView progress(false, 5);
  RunView view = ViewOf();
  std::string all = progress.Update(view, 0, 0);
  for (int second = 1; second <= 12; ++second) {
    view.phases[1].step += 1;
    all += progress.Update(view, second, 0);
  }
  EXPECT_EQ(all.find('\r'), std::string::npos);
  EXPECT_EQ(all.find('\x1b'), std::string::npos);
  EXPECT_EQ(std::count(all.begin(), all.end(), '\n'), 4);  // gts, then at 0, 5 and 10 seconds
}

}  // namespace
}  // namespace dd2
