#include "cli/report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>

#include "cli/report_charts.h"
#include "cli/report_data.h"
#include "cli/report_html.h"
#include "tests/support/sample_run.h"

namespace dd2 {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

std::string ReadAll(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  std::stringstream text;
  text << in.rdbuf();
  return text.str();
}

class ReportTest : public ::testing::Test {
 protected:
  void SetUp() override {
    run_ =
        std::filesystem::path(::testing::TempDir()) /
        (std::string("report-") + ::testing::UnitTest::GetInstance()->current_test_info()->name());
    std::filesystem::remove_all(run_);
    WriteSampleRun(run_);
  }
  // DD2_KEEP_REPORT=1 leaves the page there, to look at its design in a browser.
  void TearDown() override {
    if (std::getenv("DD2_KEEP_REPORT") == nullptr) std::filesystem::remove_all(run_);
  }

  void Write(const std::string& name, const std::string& text) {
    std::ofstream(run_ / name, std::ios::binary) << text;
  }
  std::string Report() {
    const Status status = WriteReport(run_);
    EXPECT_TRUE(status) << status.error().message();
    return ReadAll(run_ / "report.html");
  }

  std::filesystem::path run_;
};

TEST_F(ReportTest, ShowsTheFiguresOfTheRun) {
  const std::string html = Report();
  for (const char* text : {"made-up sample run",
                           "seed 7",
                           "43.1",
                           "589",
                           "3.67",
                           "87.4 %",
                           "17.8×",
                           "4.2×",
                           "83.7 ms",
                           "4.69 ms",
                           "566 ms",
                           "10,000",
                           "5,000",
                           "gts",
                           "5 min 12 s",
                           "16,000",
                           "1.2 s",
                           "0.1.0-sample",
                           "dd2 run config.yaml --seed 7",
                           "Ankle boot",
                           "FDr by class",
                           ">202<",
                           ">16.4<",
                           "Regression loss",
                           "name: made-up"}) {
    EXPECT_NE(html.find(text), std::string::npos) << text;  // the page is too long to print
  }
}

TEST_F(ReportTest, IsOneFileThatNeedsNoNetwork) {
  const std::string html = Report();
  EXPECT_THAT(html, Not(HasSubstr("http:")));
  EXPECT_THAT(html, Not(HasSubstr("https:")));
  EXPECT_THAT(html, Not(HasSubstr("<script")));
  EXPECT_THAT(html, Not(HasSubstr("<link")));
  EXPECT_THAT(html, Not(HasSubstr("url(")));
  EXPECT_THAT(html, Not(HasSubstr("@import")));
  // Every picture is inside, byte for byte.
  std::size_t pictures = 0;
  for (std::size_t at = html.find("<img"); at != std::string::npos;
       at = html.find("<img", at + 1)) {
    EXPECT_EQ(html.substr(html.find("src=\"", at) + 5, 22), "data:image/png;base64,");
    ++pictures;
  }
  EXPECT_EQ(pictures, 5U);
  EXPECT_THAT(html, HasSubstr(Base64(ReadAll(run_ / "samples" / "teacher.png"))));
}

TEST_F(ReportTest, ForeignTextIsEscaped) {
  Write("result.json", R"({"name": "<b>&\"x\"</b>", "fdr_end": 12.5, "versions": {"a<b": "1>0"}})");
  Write("config.yaml", "name: </pre><script>alert(1)</script>\n");
  const std::string html = Report();
  EXPECT_THAT(html, HasSubstr("&lt;b&gt;&amp;&quot;x&quot;&lt;/b&gt;"));
  EXPECT_THAT(html, HasSubstr("a&lt;b"));
  EXPECT_THAT(html, Not(HasSubstr("<script")));
}

TEST_F(ReportTest, TellsTheIncidents) {
  EXPECT_THAT(Report(), Not(HasSubstr("Incidents</h2>")));
  Write("incidents.jsonl",
        R"({"unix_ms":1700000000123,"kind":"lost","domain":"local-2","reason":"<lost>","evidence":)"
        R"("its <log>","phase":2,"step":12,"generation":3,"formed_seconds":0.18,)"
        R"("resumed_seconds":null,"steps_lost":4})"
        "\n{torn");
  const std::string html = Report();
  EXPECT_THAT(html, HasSubstr("Incidents</h2>"));
  EXPECT_THAT(html, HasSubstr("&lt;lost&gt;<details><summary>evidence</summary><pre>its &lt;log"));
  EXPECT_THAT(html,
              HasSubstr("<td class=\"n\">180</td><td class=\"n\">–</td><td class=\"n\">4</td>"));
}

TEST_F(ReportTest, LeavesOutWhatIsMissing) {
  std::filesystem::remove_all(run_ / "samples");
  std::filesystem::remove(run_ / "metrics.jsonl");
  std::filesystem::remove(run_ / "config.yaml");
  Write("result.json",
        R"({"name": "bare", "fdr_end": 31.25, "speedup_batch1": 12.0, "seconds": {}})");
  const std::string html = Report();
  EXPECT_THAT(html, HasSubstr("31.2"));
  EXPECT_THAT(html, HasSubstr("12.0×"));
  for (const char* text : {"<img", "<svg", "Images</h2>", "Training</h2>", "Time and storage</h2>",
                           "by class", "nan"}) {
    EXPECT_THAT(html, Not(HasSubstr(text)));
  }
}

TEST_F(ReportTest, AnUnfinishedRunHasItsCurves) {
  std::filesystem::remove(run_ / "result.json");
  const std::string html = Report();
  EXPECT_THAT(html, HasSubstr("not finished"));
  EXPECT_THAT(html, HasSubstr("<svg"));
  EXPECT_THAT(html, HasSubstr("class 9"));  // names of classes are in result.json
}

TEST_F(ReportTest, PassesOverDamagedMetricLinesAndPictures) {
  Write("metrics.jsonl",
        "{\"phase\":2,\"kind\":\"gts\",\"step\":1,\"gts/loss\":1.5}\nnot json\n[1]\n"
        "{\"phase\":2,\"kind\":\"gts\",\"step\":2,\"gts/loss\":1.25}\n{\"phase\":2,\"ki");
  Write("samples/real.png", "not a picture");
  const Result<ReportData> data = LoadReportData(run_);
  ASSERT_TRUE(data);
  ASSERT_EQ(data->metrics.at("gts/loss").size(), 2U);
  EXPECT_EQ(data->metrics.at("gts/loss")[1].value, 1.25);
  EXPECT_EQ(data->pictures.count("real"), 0U);
  EXPECT_EQ(data->pictures.at("teacher").width, 300);
  EXPECT_EQ(data->pictures.at("teacher").height, 300);
}

TEST_F(ReportTest, CurveCountsCyclesOverBothPhasesAndLeavesTheFinalEvaluationOut) {
  Write("result.json", R"({"name": "curve", "fdr_start": 500, "fdr_end": 31})");
  Write("metrics.jsonl",
        "{\"phase\":3,\"kind\":\"csd\",\"step\":50,\"csd/dmu\":0.1,\"eval/fdr\":90}\n"
        "{\"phase\":3,\"kind\":\"csd\",\"step\":80,\"csd/dmu\":0.1}\n"
        "{\"phase\":5,\"kind\":\"csd\",\"step\":20,\"csd/dmu\":0.09,\"eval/fdr\":40}\n"
        "{\"phase\":6,\"kind\":\"eval\",\"step\":1,\"eval/fdr\":31}\n");
  const std::string html = Report();
  // Points as "cycle: FDr": the second phase goes on after the 80 cycles of the first.
  for (const char* point : {">0: 500<", ">50: 90.0<", ">100: 40.0<"}) {
    EXPECT_NE(html.find(point), std::string::npos) << point;
  }
  EXPECT_EQ(html.find(": 31.0<"), std::string::npos);
}

TEST_F(ReportTest, TheCurveBeginsWithTheRegressionWhereThereIsOne) {
  Write("result.json", R"({"name": "curve", "fdr_start": 500, "fdr_end": 31})");
  Write("metrics.jsonl",
        "{\"phase\":3,\"kind\":\"regress\",\"step\":60,\"regress/loss\":0.2,\"eval/fdr\":70}\n"
        "{\"phase\":4,\"kind\":\"csd\",\"step\":50,\"eval/fdr\":40}\n");
  const std::string html = Report();
  for (const char* point : {">0: 70.0<", ">50: 40.0<"}) {
    EXPECT_NE(html.find(point), std::string::npos) << point;
  }
  EXPECT_EQ(html.find(">0: 500<"), std::string::npos);
}

TEST_F(ReportTest, ShowsTheHeldOutLossBesideTheTuningLoss) {
  EXPECT_THAT(Report(), HasSubstr("class=\"seconddot\"><title>300: 0.141<"));
  Write("metrics.jsonl", "{\"phase\":2,\"kind\":\"gts\",\"step\":1,\"gts/loss\":1.5}\n");
  const std::string without = Report();
  EXPECT_THAT(without, HasSubstr("Tuning loss"));
  EXPECT_THAT(without, Not(HasSubstr("kept out of training")));
}

TEST_F(ReportTest, ShowsWhatCheckpointsAndCacheCost) {
  const std::string html = Report();
  for (const char* row : {"Checkpoints written</th><td>6<", "Bytes of checkpoints</th><td>220 MB<",
                          "Training stood still for them</th><td>1.2 s<",
                          "Sequences found in the score cache</th><td>16,000<"}) {
    EXPECT_NE(html.find(row), std::string::npos) << row;
  }
}

TEST_F(ReportTest, NamesTheCommandThatBeganTheRun) {
  Write("result.json", R"({"name": "x", "seed": 7, "command": "dd2 run 'a b.yaml' --ranks 4"})");
  const std::string html = Report();
  EXPECT_THAT(html, HasSubstr("<pre>dd2 run &#39;a b.yaml&#39; --ranks 4</pre>"));
}

TEST_F(ReportTest, SaysWhatIsWrong) {
  Write("result.json", "{\"fdr_end\": ");
  Status status = WriteReport(run_);
  ASSERT_FALSE(status);
  EXPECT_EQ(status.error().code(), Code::kCorruption);
  EXPECT_THAT(status.error().message(), HasSubstr("result.json"));
  EXPECT_FALSE(std::filesystem::exists(run_ / "report.html"));
  status = WriteReport(run_ / "nowhere");
  ASSERT_FALSE(status);
  EXPECT_EQ(status.error().code(), Code::kNotFound);
}

TEST(ReportText, Numbers) {
  EXPECT_EQ(FigureText(589.04), "589");
  EXPECT_EQ(FigureText(99.96), "100");
  EXPECT_EQ(FigureText(43.14), "43.1");
  EXPECT_EQ(FigureText(3.668), "3.67");
  EXPECT_EQ(FigureText(-0.1434), "-0.143");
  EXPECT_EQ(FigureText(0), "0");
  EXPECT_EQ(FigureText(NAN), "–");
  EXPECT_EQ(PercentText(0.8714), "87.1 %");
  EXPECT_EQ(CountText(1234567), "1,234,567");
  EXPECT_EQ(CountText(999), "999");
  EXPECT_EQ(SecondsText(59.7), "1 min 0 s");
  EXPECT_EQ(SecondsText(4000), "1 h 6 min");
}

TEST(ReportText, Base64KnownAnswers) {  // RFC 4648, section 10
  EXPECT_EQ(Base64(""), "");
  EXPECT_EQ(Base64("f"), "Zg==");
  EXPECT_EQ(Base64("fo"), "Zm8=");
  EXPECT_EQ(Base64("foo"), "Zm9v");
  EXPECT_EQ(Base64("foobar"), "Zm9vYmFy");
  EXPECT_EQ(Base64("\xff\xfe"), "//4=");
}

TEST(ReportCharts, Ticks) {
  EXPECT_THAT(LinearTicks(0, 10, 5), ElementsAre(0, 2, 4, 6, 8, 10));
  EXPECT_THAT(LinearTicks(-0.3, 0.1, 4),
              ElementsAre(::testing::DoubleNear(-0.3, 1e-12), -0.2, -0.1, 0, 0.1));
  EXPECT_THAT(LogTicks(3, 60), ElementsAre(5, 10, 20, 50));
  EXPECT_TRUE(LinearTicks(1, 1, 5).empty());
}

TEST(ReportCharts, SmoothingAndThinningKeepAConstant) {
  std::vector<std::pair<double, double>> points;
  for (int i = 0; i < 1000; ++i) points.emplace_back(i, 2.5);
  for (const auto& [x, y] : Smoothed(points, 12)) EXPECT_NEAR(y, 2.5, 1e-12);
  const auto thin = Thinned(points, 10);
  ASSERT_EQ(thin.size(), 10U);
  EXPECT_NEAR(thin[0].first, 49.5, 1e-12);
  EXPECT_NEAR(thin[9].second, 2.5, 1e-12);
}

TEST(ReportCharts, LabelsOfBordersDoNotOverlap) {
  Chart chart;
  chart.series.push_back({.points = {{0, 1}, {1000, 2}}, .dots = false, .faint = false});
  chart.borders = {{500, "first one"}, {510, "second one"}, {520, "third one"}, {900, "last"}};
  const std::string svg = RenderChart(chart);
  EXPECT_THAT(svg, HasSubstr(">first one<"));
  EXPECT_THAT(svg, HasSubstr(">second one<"));  // a row lower
  EXPECT_THAT(svg, Not(HasSubstr(">third one<")));
  EXPECT_THAT(svg, HasSubstr(">last<"));
}

TEST(ReportCharts, LeavesOutWhatCannotBeDrawn) {
  Chart chart;
  chart.title = "t";
  chart.log_y = true;
  chart.series.push_back({.points = {{1, -1}, {2, NAN}}, .dots = false, .faint = false});
  EXPECT_EQ(RenderChart(chart), "");
  chart.series.push_back({.points = {{5, 10}}, .dots = false, .faint = false});  // one point alone
  const std::string svg = RenderChart(chart);
  EXPECT_THAT(svg, HasSubstr("<circle"));
  EXPECT_THAT(svg, Not(HasSubstr("nan")));
  EXPECT_THAT(svg, Not(HasSubstr("inf")));
}

}  // namespace
}  // namespace dd2
