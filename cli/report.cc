#include "cli/report.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "cli/report_charts.h"
#include "cli/report_data.h"
#include "cli/report_html.h"
#include "common/file.h"

namespace dd2 {
namespace {

namespace json = boost::json;

// An optional figure as text: "–" when the run does not have it.
template <class Format>
std::string Cell(const std::optional<double>& value, Format format) {
  return value ? format(*value) : "–";
}

std::string RunName(const ReportData& data) {
  return FindText(data.result, "name").value_or(data.folder_name);
}

std::string Tile(const std::string& label, const std::string& value, const std::string& below) {
  return "<div class=\"tile\"><small>" + EscapeHtml(label) + "</small><b>" + EscapeHtml(value) +
         "</b><small>" + EscapeHtml(below) + "</small></div>\n";
}

double TotalSeconds(const ReportData& data) {
  double total = 0;
  if (const json::object* seconds = FindObject(data.result, "seconds")) {
    for (const auto& entry : *seconds) total += FindNumber(*seconds, entry.key()).value_or(0);
  }
  return total;
}

std::string SpeedTile(const ReportData& data, const std::string& batch, const std::string& label) {
  const auto speedup = FindNumber(data.result, "speedup_" + batch);
  if (!speedup) return {};
  const auto teacher = FindNumber(data.result, "latency." + batch + ".teacher_ms");
  const auto one_step = FindNumber(data.result, "latency." + batch + ".one_step_ms");
  std::string below = "than the teacher, medians";
  if (teacher && one_step) {
    below = MillisecondsText(*teacher) + " → " + MillisecondsText(*one_step);
  }
  return Tile(label, RatioText(*speedup), below);
}

// Where a figure came from and what the teacher has.
std::string Beside(const json::object& result, const std::string& figure) {
  std::string below;
  if (const auto start = FindNumber(result, figure + "_start")) {
    below = "from " + FigureText(*start);
  }
  if (const auto teacher = FindNumber(result, figure + "_teacher")) {
    below += (below.empty() ? "teacher " : "; teacher ") + FigureText(*teacher);
  }
  return below;
}

std::string Tiles(const ReportData& data) {
  const json::object& result = data.result;
  std::string tiles;
  if (const auto end = FindNumber(result, "fdr_end")) {
    tiles += Tile("FDr, one step", FigureText(*end), Beside(result, "fdr"));
  }
  if (const auto end = FindNumber(result, "fid_end")) {
    tiles += Tile("FID, one step", FigureText(*end), Beside(result, "fid"));
  }
  if (const auto accuracy = FindNumber(result, "accuracy")) {
    const auto teacher = FindNumber(result, "accuracy_teacher");
    tiles +=
        Tile("Class accuracy", PercentText(*accuracy),
             teacher ? "teacher " + PercentText(*teacher) : std::string("of one-step samples"));
  }
  tiles += SpeedTile(data, "batch1", "Faster, one image");
  tiles += SpeedTile(data, "batch64", "Faster, batch of 64");
  if (const double total = TotalSeconds(data); total > 0) {
    tiles += Tile("Run time", SecondsText(total), "all phases together");
  }
  return tiles.empty() ? tiles : "<div class=\"tiles\">\n" + tiles + "</div>\n";
}

std::string Header(const ReportData& data) {
  std::string html = "<div class=\"eyebrow\">Distilled Decoding 2 · run report</div>\n<h1>" +
                     EscapeHtml(RunName(data)) + "</h1>\n<p>";
  const std::string outcome =
      FindText(data.result, "outcome").value_or(data.finished ? "finished" : "not finished");
  html += "<span class=\"state\">" + EscapeHtml(outcome) + "</span>";
  if (const auto seed = FindNumber(data.result, "seed")) {
    html +=
        "<span class=\"state\">seed " + EscapeHtml(std::to_string(std::llround(*seed))) + "</span>";
  }
  html +=
      "</p>\n<p>A one-step image generator, distilled from an auto-regressive teacher. The teacher "
      "draws an image token by token; the generator makes all tokens in one network pass.</p>\n";
  return html + Tiles(data);
}

struct PictureColumn {
  std::string file, title, note;
};

// One block of pictures beside each other, class names at the left of the rows.
std::string Pictures(const ReportData& data, const std::vector<PictureColumn>& wanted) {
  std::vector<PictureColumn> columns;
  int rows = 0;
  for (const PictureColumn& column : wanted) {
    const auto found = data.pictures.find(column.file);
    if (found == data.pictures.end()) continue;
    columns.push_back(column);
    rows = std::max(rows, found->second.height / 30);  // 28 pixels and a margin on both sides
  }
  if (columns.empty()) return {};
  std::string html = "<div class=\"pictures\" style=\"grid-template-columns:84px";
  for (const PictureColumn& column : columns) {
    html += " minmax(0," + std::to_string(data.pictures.at(column.file).width) + "px)";
  }
  html += "\">\n<div></div>\n";
  for (const PictureColumn& column : columns) {
    html +=
        "<h4>" + EscapeHtml(column.title) + "<span>" + EscapeHtml(column.note) + "</span></h4>\n";
  }
  const json::value* names = data.result.if_contains("classes");
  const json::array* list = names == nullptr ? nullptr : names->if_array();
  html += "<ol style=\"grid-template-rows:repeat(" + std::to_string(std::max(rows, 1)) + ",1fr)\">";
  for (int row = 0; row < rows; ++row) {
    std::string name = "class " + std::to_string(row);
    const auto at = static_cast<std::size_t>(row);
    if (list != nullptr && at < list->size() && (*list)[at].is_string()) {
      name = std::string((*list)[at].get_string());
    }
    html += "<li>" + EscapeHtml(name) + "</li>";
  }
  html += "</ol>\n";
  for (const PictureColumn& column : columns) {
    const ReportPicture& picture = data.pictures.at(column.file);
    html += "<img alt=\"" + EscapeHtml(column.title) + "\" width=\"" +
            std::to_string(picture.width) + "\" height=\"" + std::to_string(picture.height) +
            "\" src=\"data:image/png;base64," + Base64(picture.bytes) + "\">\n";
  }
  return html + "</div>\n";
}

std::string Images(const ReportData& data) {
  if (data.pictures.empty()) return {};
  std::string html =
      "<h2>Images</h2>\n<p class=\"soft\">Not selected: the first samples of every "
      "class. Rows are classes.</p>\n";
  html += Pictures(data, {{"teacher", "Teacher", "one pass per token, guided"},
                          {"generator", "One step", "this run, a single pass"},
                          {"real", "Real", "test images"}});
  const std::string more = Pictures(
      data,
      {{"start", "One step, before training", "same noise as above"},
       {"reconstruction", "Tokenizer reconstruction", "of the real images above: the ceiling"}});
  if (!more.empty()) html += "<h3>Where it started, and what the tokenizer allows</h3>\n" + more;
  return html;
}

std::string QualityRow(const ReportData& data, const std::string& name, const std::string& suffix,
                       const std::string& accuracy_key, const std::string& samples_key, bool main) {
  const json::object& result = data.result;
  const auto fdr = FindNumber(result, "fdr_" + suffix);
  const auto fd = FindNumber(result, "fd_" + suffix);
  const auto accuracy = FindNumber(result, accuracy_key);
  if (!fdr && !fd && !accuracy) return {};
  const auto samples = FindNumber(result, samples_key);
  return std::string(main ? "<tr class=\"main\">" : "<tr>") + "<th>" + EscapeHtml(name) +
         "</th><td class=\"n\">" + Cell(fdr, FigureText) + "</td><td class=\"n\">" +
         Cell(fd, FigureText) + "</td><td class=\"n\">" + Cell(accuracy, PercentText) +
         "</td><td class=\"n\">" + Cell(samples, CountText) + "</td></tr>\n";
}

// Where a mode was lost: FDr of every class, teacher and end side by side.
std::string QualityByClass(const ReportData& data) {
  const auto find = [&](const char* key) -> const json::array* {
    const json::value* value = data.result.if_contains(key);
    return value == nullptr ? nullptr : value->if_array();
  };
  const json::array* names = find("classes");
  const json::array* end = find("fdr_by_class_end");
  if (names == nullptr || end == nullptr) return {};
  std::string html = "<h3>FDr by class</h3>\n<div class=\"scroll\"><table><thead><tr><th></th>";
  for (const json::value& name : *names) {
    const std::string text = name.is_string() ? std::string(name.get_string()) : std::string();
    html += "<th class=\"n\">" + EscapeHtml(text) + "</th>";
  }
  html += "</tr></thead><tbody>\n";
  for (const auto& [title, values] :
       {std::pair{"Teacher", find("fdr_by_class_teacher")}, std::pair{"One step, end", end}}) {
    if (values == nullptr) continue;
    html += std::string("<tr><th>") + title + "</th>";
    for (const json::value& value : *values) {
      if (!value.is_number()) return {};
      html += "<td class=\"n\">" + FigureText(value.to_number<double>()) + "</td>";
    }
    html += "</tr>\n";
  }
  return html +
         "</tbody></table></div>\n<p class=\"note\">Against the reconstructions of that class "
         "alone, so higher than FDr. A class that stands out from the teacher's has lost "
         "variety or is shifted.</p>\n";
}

std::string AdmRow(const ReportData& data, const std::string& name, const std::string& suffix,
                   const std::string& samples_key, bool main) {
  const json::object& result = data.result;
  if (!FindNumber(result, "fid_" + suffix)) return {};
  std::string row =
      std::string(main ? "<tr class=\"main\">" : "<tr>") + "<th>" + EscapeHtml(name) + "</th>";
  for (const char* figure : {"fid", "sfid", "inception_score", "precision", "recall"}) {
    row += "<td class=\"n\">" +
           Cell(FindNumber(result, std::string(figure) + "_" + suffix), FigureText) + "</td>";
  }
  return row + "<td class=\"n\">" + Cell(FindNumber(result, samples_key), CountText) +
         "</td></tr>\n";
}

// Of a run that was judged by Inception.
std::string AdmQuality(const ReportData& data) {
  const std::string rows =
      AdmRow(data, "Teacher", "teacher", "teacher_samples", false) +
      AdmRow(data, "One step, before training", "start", "samples_start", false) +
      AdmRow(data, "One step, end", "end", "samples", true);
  if (rows.empty()) return {};
  return "<h2>Quality</h2>\n<div class=\"scroll\"><table><thead><tr><th></th><th "
         "class=\"n\">FID</th>"
         "<th class=\"n\">sFID</th><th class=\"n\">Inception Score</th><th "
         "class=\"n\">Precision</th>"
         "<th class=\"n\">Recall</th><th class=\"n\">Samples</th></tr></thead><tbody>\n" +
         rows +
         "</tbody></table></div>\n<p class=\"note\">As ADM’s evaluation suite defines them, "
         "against "
         "eval.reference. FID and sFID: lower is better, and both fall with the number of samples "
         "(50,000 is customary).</p>\n";
}

std::string Quality(const ReportData& data) {
  if (const std::string adm = AdmQuality(data); !adm.empty()) return adm;
  std::string rows =
      QualityRow(data, "Tokenizer reconstructions of the test set", "reconstruction",
                 "accuracy_reconstruction", "test_images", false) +
      QualityRow(data, "Teacher", "teacher", "accuracy_teacher", "teacher_samples", false) +
      QualityRow(data, "One step, before training", "start", "accuracy_start", "samples_start",
                 false) +
      QualityRow(data, "One step, end", "end", "accuracy", "samples", true);
  if (rows.empty()) return {};
  return "<h2>Quality</h2>\n<div class=\"scroll\"><table><thead><tr><th></th><th "
         "class=\"n\">FDr</th>"
         "<th class=\"n\">FD</th><th class=\"n\">Class accuracy</th><th "
         "class=\"n\">Samples</th></tr>"
         "</thead><tbody>\n" +
         rows +
         "</tbody></table></div>\n<p class=\"note\">FD: Fréchet distance to the real test images, "
         "on "
         "64-d features of a small classifier. FDr: the same to the tokenizer’s "
         "reconstructions of them, so without the tokenizer’s blur; the number to watch. Lower is "
         "better; both fall with the number of samples. Class accuracy: share of samples that the "
         "classifier gives the class they were asked for.</p>\n" +
         QualityByClass(data);
}

std::string Speed(const ReportData& data) {
  std::string rows;
  for (const auto& [key, label] : {std::pair<std::string, std::string>{"batch1", "1 image"},
                                   std::pair<std::string, std::string>{"batch64", "64 images"}}) {
    const auto speedup = FindNumber(data.result, "speedup_" + key);
    if (!speedup) continue;
    const std::string at = "latency." + key + ".";
    rows += "<tr><th>" + label + "</th>";
    for (const char* field : {"teacher_ms", "one_step_ms"}) {
      rows += "<td class=\"n\">" + Cell(FindNumber(data.result, at + field), MillisecondsText) +
              "</td>";
    }
    rows += "<td class=\"n\"><b>" + RatioText(*speedup) + "</b></td><td class=\"n\">" +
            Cell(FindNumber(data.result, at + "decode_ms"), MillisecondsText) +
            "</td><td class=\"n\">" +
            Cell(FindNumber(data.result, at + "speedup_with_decode"), RatioText) + "</td></tr>\n";
  }
  if (rows.empty()) return {};
  return "<h2>Sampling speed</h2>\n<div class=\"scroll\"><table><thead><tr><th>Batch</th>"
         "<th class=\"n\">Teacher</th><th class=\"n\">One step</th><th class=\"n\">Speed-up</th>"
         "<th class=\"n\">Decoder, both</th><th class=\"n\">Speed-up with decoder</th></tr></thead>"
         "<tbody>\n" +
         rows +
         "</tbody></table></div>\n<p class=\"note\">Medians, one thread, the two timed "
         "alternately; "
         "the teacher with KV cache and guidance. The gain is largest for single images, where the "
         "teacher waits on many small passes; read it together with the large batch.</p>\n";
}

// The points of a quantity over the phases in which it was recorded, steps counted on from phase to
// phase.
struct Track {
  std::vector<std::pair<double, double>> points;
  std::vector<std::pair<double, double>> smoothed;
  std::vector<std::pair<double, std::string>> borders;
};

// Steps of each phase, as far as they were recorded.
std::map<std::int64_t, std::int64_t> PhaseLengths(const ReportData& data) {
  std::map<std::int64_t, std::int64_t> lengths;
  for (const auto& [name, points] : data.metrics) {
    for (const MetricPoint& point : points) {
      lengths[point.phase] = std::max(lengths[point.phase], point.step);
    }
  }
  return lengths;
}

// `only_kind`: leaves out phases of other kinds; empty: none.
Track TrackOf(const ReportData& data, const std::vector<std::string>& metrics,
              const std::string& only_kind = {}) {
  const auto kind_of = [&](std::int64_t phase) {
    const auto found = data.phase_kinds.find(phase);
    return found == data.phase_kinds.end() ? std::string("next phase") : found->second;
  };
  std::map<std::int64_t, std::vector<MetricPoint>> by_phase;
  for (const std::string& metric : metrics) {
    const auto found = data.metrics.find(metric);
    if (found == data.metrics.end()) continue;
    for (const MetricPoint& point : found->second) {
      if (only_kind.empty() || kind_of(point.phase) == only_kind) {
        by_phase[point.phase].push_back(point);
      }
    }
  }
  std::map<std::int64_t, std::int64_t> lengths = PhaseLengths(data);
  Track track;
  std::set<std::string> kinds;
  std::int64_t offset = 0;
  for (auto& [phase, points] : by_phase) {
    std::ranges::stable_sort(points, {}, &MetricPoint::step);
    std::vector<std::pair<double, double>> part;
    for (const MetricPoint& point : points) {
      part.emplace_back(static_cast<double>(offset + point.step), point.value);
    }
    const std::string kind = kind_of(phase);
    const bool again = !kinds.insert(kind).second;
    if (!track.points.empty()) {
      track.borders.emplace_back(static_cast<double>(offset), again ? kind + " again" : kind);
    }
    // Each phase by itself: an average over a border would hide a jump.
    const auto smoothed = Smoothed(part, std::max<std::size_t>(1, part.size() / 30));
    track.smoothed.insert(track.smoothed.end(), smoothed.begin(), smoothed.end());
    track.points.insert(track.points.end(), part.begin(), part.end());
    offset += lengths[phase];
  }
  return track;
}

std::string LossChart(const ReportData& data, const std::vector<std::string>& metrics,
                      const std::string& title, const std::string& note, const std::string& x_label,
                      bool log_y) {
  const Track track = TrackOf(data, metrics);
  Chart chart{.title = title,
              .note = note,
              .x_label = x_label,
              .series = {},
              .log_y = log_y,
              .wide = false,
              .levels = {},
              .borders = track.borders};
  chart.series.push_back({.points = track.points, .dots = false, .faint = true});
  chart.series.push_back({.points = track.smoothed, .dots = false, .faint = false});
  return RenderChart(chart);
}

// The loss in training, and on the sequences that were kept out of it.
std::string TuningCurve(const ReportData& data) {
  const Track held_out = TrackOf(data, {"gts/validation_loss"});
  std::string note = "match to the teacher’s exact score, on teacher sequences";
  if (!held_out.points.empty()) note += "; dots: sequences kept out of training";
  const Track track = TrackOf(data, {"gts/loss"});
  Chart chart{.title = "Tuning loss (GTS)",
              .note = note,
              .x_label = "update",
              .series = {},
              .log_y = true,
              .wide = false,
              .levels = {},
              .borders = track.borders};
  chart.series.push_back({.points = track.points, .dots = false, .faint = true});
  chart.series.push_back({.points = track.smoothed, .dots = false, .faint = false});
  if (!held_out.points.empty()) {
    chart.series.push_back(
        {.points = held_out.points, .dots = true, .faint = false, .second = true});
  }
  return RenderChart(chart);
}

std::string QualityCurve(const ReportData& data) {
  const bool adm = FindNumber(data.result, "fid_start").has_value();
  const std::string figure = adm ? "fid" : "fdr";
  // The final evaluation takes more samples and stands in the table.
  Track track = TrackOf(data, {"eval/" + figure}, "csd");
  // Distillation starts from the regression, where there is one.
  const Track regressed = TrackOf(data, {"eval/" + figure}, "regress");
  const bool regresses = std::ranges::any_of(
      data.phase_kinds, [](const auto& phase) { return phase.second == "regress"; });
  std::optional<double> start;
  if (!regresses) start = FindNumber(data.result, figure + "_start");
  if (!regressed.points.empty()) start = regressed.points.back().second;
  if (start && !track.points.empty() && track.points.front().first > 0) {
    track.points.insert(track.points.begin(), {0.0, *start});
  }
  Chart chart{
      .title = std::string(adm ? "FID" : "FDr") + " of the one-step generator",
      .note = "measured during distillation with fewer samples than the table: compare the shape",
      .x_label = "distillation cycle",
      .series = {},
      .log_y = true,
      .wide = true,
      .levels = {},
      .borders = track.borders};
  chart.series.push_back({.points = track.points, .dots = true, .faint = false});
  if (const auto teacher = FindNumber(data.result, figure + "_teacher")) {
    chart.levels.emplace_back(*teacher, "teacher " + FigureText(*teacher));
  }
  return RenderChart(chart);
}

std::string Curves(const ReportData& data) {
  const std::string charts =
      QualityCurve(data) + TuningCurve(data) +
      LossChart(data, {"regress/loss"}, "Regression loss",
                "one step against the end of the teacher’s flow from the same noise", "update",
                true) +
      LossChart(data, {"csd/dmu"}, "Distance of generator and teacher",
                "mean |μ_teacher − μ_guidance|²: the progress of distillation", "cycle", true) +
      LossChart(data, {"csd/fcs", "align/fcs"}, "Guidance loss (FCS)",
                "rising over tens of cycles would mean divergence", "cycle", false) +
      LossChart(data, {"csd/sid"}, "Generator loss (CSD, SiD form)",
                "no progress metric: near zero while guidance keeps up", "cycle", false) +
      LossChart(data, {"csd/generator_norm"}, "Gradient norm of the generator",
                "before clipping; above 10 would mean trouble", "cycle", false) +
      LossChart(data, {"csd/guidance_norm", "align/guidance_norm"},
                "Gradient norm of the guidance network", "before clipping", "cycle", false);
  if (charts.empty()) return {};
  return "<h2>Training</h2>\n<p class=\"soft\">Thin lines are the recorded values, thick ones "
         "their "
         "running average.</p>\n<div class=\"charts\">\n" +
         charts + "</div>\n";
}

std::string Fact(const std::string& name, const std::string& value) {
  return "<tr><th>" + EscapeHtml(name) + "</th><td>" + EscapeHtml(value) + "</td></tr>\n";
}

std::string StorageFacts(const json::object& result) {
  std::string facts;
  const auto hits = FindNumber(result, "cache.hits");
  const auto misses = FindNumber(result, "cache.misses");
  if (hits && misses) {
    facts += Fact("Sequences found in the score cache", CountText(*hits));
    facts += Fact("Sequences not found, drawn by the teacher", CountText(*misses));
    if (*hits + *misses > 0) facts += Fact("Found", PercentText(*hits / (*hits + *misses)));
  }
  if (const auto written = FindNumber(result, "cache.written")) {
    facts += Fact("Sequences stored for later runs", CountText(*written));
  }
  if (const auto count = FindNumber(result, "checkpoints.count")) {
    facts += Fact("Checkpoints written", CountText(*count));
  }
  if (const auto bytes = FindNumber(result, "checkpoints.bytes")) {
    facts += Fact("Bytes of checkpoints", FigureText(*bytes / 1e6) + " MB");
  }
  if (const auto stall = FindNumber(result, "checkpoints.stall_seconds")) {
    facts += Fact("Training stood still for them", SecondsText(*stall));
  }
  return facts;
}

std::string TimeAndStorage(const ReportData& data) {
  std::vector<Bar> bars;
  if (const json::object* seconds = FindObject(data.result, "seconds")) {
    for (const auto& entry : *seconds) {
      const auto value = FindNumber(*seconds, entry.key());
      if (value) bars.push_back({std::string(entry.key()), *value, SecondsText(*value)});
    }
  }
  const std::string time = RenderBars(bars);
  const std::string facts = StorageFacts(data.result);
  if (time.empty() && facts.empty()) return {};
  std::string html = "<h2>Time and storage</h2>\n<div class=\"columns\">\n";
  if (!time.empty()) html += "<div><h3>Wall time by phase</h3>\n" + time + "</div>\n";
  if (!facts.empty()) {
    html +=
        "<div><h3>Cache and checkpoints</h3>\n<table class=\"facts\">" + facts + "</table></div>\n";
  }
  return html + "</div>\n";
}

std::string Incidents(const ReportData& data) {
  if (data.incidents.empty()) return {};
  const auto at = [](const std::optional<double>& seconds) {
    return "<td class=\"n\">" + Cell(seconds, [](double s) { return CountText(s * 1000); }) +
           "</td>";
  };
  std::string rows;
  for (const Incident& incident : data.incidents) {
    const auto kind = data.phase_kinds.find(incident.phase);
    std::string what = EscapeHtml(incident.reason);
    if (!incident.evidence.empty()) {
      what += "<details><summary>evidence</summary><pre>" + EscapeHtml(incident.evidence) +
              "</pre></details>";
    }
    rows += "<tr><td>" + FormatMoment(incident.unix_ms) + "</td><td>" + EscapeHtml(incident.kind) +
            "</td><td>" + EscapeHtml(incident.domain.empty() ? "–" : incident.domain) +
            "</td><td>" +
            EscapeHtml(kind == data.phase_kinds.end() ? std::to_string(incident.phase + 1)
                                                      : kind->second) +
            " " + std::to_string(incident.step) + "</td><td>" + what + "</td>" +
            at(incident.formed_seconds) + at(incident.resumed_seconds) + "<td class=\"n\">" +
            std::to_string(incident.steps_lost) + "</td></tr>\n";
  }
  return "<h2>Incidents</h2>\n<div class=\"scroll\"><table><thead><tr><th>Noticed</th><th>Kind</th>"
         "<th>Domain</th><th>Phase, step</th><th>What</th><th class=\"n\">Formed again, ms</th>"
         "<th class=\"n\">Next step, ms</th><th class=\"n\">Steps lost</th></tr></thead><tbody>\n" +
         rows +
         "</tbody></table></div>\n<p class=\"note\">Times since notice. Steps lost were done "
         "again; "
         "the result is that of the undisturbed run.</p>\n";
}

std::string Reproduce(const ReportData& data) {
  std::string command = FindText(data.result, "command").value_or("");
  if (command.empty()) {
    command = "dd2 run config.yaml";
    if (const auto seed = FindNumber(data.result, "seed")) {
      command += " --seed " + std::to_string(std::llround(*seed));
    }
  }
  std::string html =
      "<h2>Reproduce</h2>\n<p>The same settings and seed give the same bits on any "
      "number of ranks of the same kind of machine and the same library versions.</p>\n"
      "<pre>" +
      EscapeHtml(command) + "</pre>\n";
  if (const json::object* versions = FindObject(data.result, "versions")) {
    html += "<table class=\"facts\">";
    for (const auto& entry : *versions) {
      const json::value& value = entry.value();
      html += Fact(std::string(entry.key()),
                   value.is_string() ? std::string(value.get_string()) : json::serialize(value));
    }
    html += "</table>\n";
  }
  if (!data.config_yaml.empty()) {
    html += "<details><summary>Settings as used (config.yaml)</summary>\n<pre>" +
            EscapeHtml(data.config_yaml) + "</pre></details>\n";
  }
  return html;
}

}  // namespace

Status WriteReport(const std::filesystem::path& run) {
  DD2_TRY_ASSIGN(const ReportData data, LoadReportData(run));
  std::string html =
      "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
      "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>";
  html += EscapeHtml(RunName(data)) + " · DD2 run report</title>\n<style>";
  html += ReportStyle();
  html += "</style>\n</head>\n<body>\n<main>\n";
  html += Header(data) + Images(data) + Quality(data) + Speed(data) + Curves(data) +
          TimeAndStorage(data) + Incidents(data) + Reproduce(data);
  html += "</main>\n</body>\n</html>\n";
  return WriteFileAtomically(RealFileSystem(), run / "report.html", html);
}

}  // namespace dd2
