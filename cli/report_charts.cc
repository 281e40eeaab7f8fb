#include "cli/report_charts.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <limits>

#include "cli/report_html.h"

namespace dd2 {
namespace {

using Points = std::vector<std::pair<double, double>>;

constexpr double kHeight = 230;
constexpr double kLeft = 48;
constexpr double kRight = 14;
constexpr double kTop = 14;
constexpr double kBottom = 34;
constexpr std::size_t kMostPoints = 400;

std::string Coordinate(double value) {
  std::array<char, 32> buffer{};
  std::snprintf(buffer.data(), buffer.size(), "%.1f", value);
  return buffer.data();
}

std::string TickText(double value) {
  if (std::fabs(value) >= 1000) return CountText(value);
  std::array<char, 32> buffer{};
  std::snprintf(buffer.data(), buffer.size(), "%.4g", value);
  return buffer.data();
}

// From data to pixels of one chart.
struct Frame {
  double width, x_low, x_high, y_low, y_high;
  bool log_y;

  double Unit(double y) const {
    return log_y ? (std::log(y) - std::log(y_low)) / (std::log(y_high) - std::log(y_low))
                 : (y - y_low) / (y_high - y_low);
  }
  double X(double x) const {
    return kLeft + (x - x_low) / (x_high - x_low) * (width - kLeft - kRight);
  }
  double Y(double y) const { return kHeight - kBottom - Unit(y) * (kHeight - kTop - kBottom); }
};

Points Drawable(const Chart& chart, const Points& points) {
  Points good;
  for (const auto& point : points) {
    if (!std::isfinite(point.first) || !std::isfinite(point.second)) continue;
    if (chart.log_y && point.second <= 0) continue;
    good.push_back(point);
  }
  return good;
}

// The limits of a chart: all lines, with reference levels, and a little air above and below.
Frame FrameOf(const Chart& chart, const std::vector<Points>& lines) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  Frame frame{.width = chart.wide ? 980.0 : 470.0,
              .x_low = kInfinity,
              .x_high = -kInfinity,
              .y_low = kInfinity,
              .y_high = -kInfinity,
              .log_y = chart.log_y};
  for (const Points& points : lines) {
    for (const auto& [x, y] : points) {
      frame.x_low = std::min(frame.x_low, x);
      frame.x_high = std::max(frame.x_high, x);
      frame.y_low = std::min(frame.y_low, y);
      frame.y_high = std::max(frame.y_high, y);
    }
  }
  for (const auto& [level, label] : chart.levels) {
    if (!std::isfinite(level) || (chart.log_y && level <= 0)) continue;
    frame.y_low = std::min(frame.y_low, level);
    frame.y_high = std::max(frame.y_high, level);
  }
  if (frame.x_high <= frame.x_low) frame.x_high = frame.x_low + 1;
  if (chart.log_y) {
    const double air = std::pow(frame.y_high / frame.y_low, 0.07) * 1.05;
    frame.y_low /= air;
    frame.y_high *= air;
  } else {
    const double span = frame.y_high - frame.y_low;
    const double air = span > 0 ? span * 0.07 : std::max(1e-6, std::fabs(frame.y_high) * 0.1);
    // A quantity that is never negative starts at zero when that costs little of the height.
    const bool from_zero = frame.y_low >= 0 && frame.y_low < 0.5 * frame.y_high;
    frame.y_low = from_zero ? 0 : frame.y_low - air;
    frame.y_high += air;
  }
  return frame;
}

std::string Text(double x, double y, const std::string& anchor, const std::string& css,
                 const std::string& text) {
  return "<text x=\"" + Coordinate(x) + "\" y=\"" + Coordinate(y) + "\" text-anchor=\"" + anchor +
         "\" class=\"" + css + "\">" + EscapeHtml(text) + "</text>";
}

std::string Line(double x1, double y1, double x2, double y2, const std::string& css) {
  return "<line x1=\"" + Coordinate(x1) + "\" y1=\"" + Coordinate(y1) + "\" x2=\"" +
         Coordinate(x2) + "\" y2=\"" + Coordinate(y2) + "\" class=\"" + css + "\"/>";
}

std::string Axes(const Chart& chart, const Frame& frame) {
  std::string svg;
  std::vector<double> y_ticks;
  if (chart.log_y) y_ticks = LogTicks(frame.y_low, frame.y_high);
  // Less than a factor of two: round numbers of a logarithmic axis would be too few.
  if (y_ticks.size() < 2) y_ticks = LinearTicks(frame.y_low, frame.y_high, 5);
  for (const double tick : y_ticks) {
    const double y = frame.Y(tick);
    svg += Line(kLeft, y, frame.width - kRight, y, "grid");
    svg += Text(kLeft - 7, y + 3.5, "end", "tick", TickText(tick));
  }
  const double bottom = kHeight - kBottom;
  for (const double tick : LinearTicks(frame.x_low, frame.x_high, chart.wide ? 9 : 5)) {
    if (tick != std::floor(tick)) continue;  // steps are whole
    svg += Text(frame.X(tick), bottom + 15, "middle", "tick", TickText(tick));
  }
  svg += Line(kLeft, bottom, frame.width - kRight, bottom, "axis");
  svg += Text((kLeft + frame.width - kRight) / 2, kHeight - 4, "middle", "tick", chart.x_label);
  return svg;
}

std::string Marks(const Chart& chart, const Frame& frame) {
  constexpr double kLetter = 6;  // about the width of one
  std::string svg;
  std::array<double, 2> ends{};  // where the last label of each row ends
  for (const auto& [x, label] : chart.borders) {
    if (x <= frame.x_low || x >= frame.x_high) continue;
    svg += Line(frame.X(x), kTop, frame.X(x), kHeight - kBottom, "border");
    const double begin = frame.X(x) + 4;
    const std::size_t row = begin >= ends[0] ? 0 : 1;
    if (begin < ends[row]) continue;  // no room: the line alone
    svg += Text(begin, kTop + (row == 0 ? 8 : 20), "start", "tick", label);
    ends[row] = begin + kLetter * static_cast<double>(label.size());
  }
  for (const auto& [level, label] : chart.levels) {
    if (!std::isfinite(level) || (chart.log_y && level <= 0)) continue;
    svg += Line(kLeft, frame.Y(level), frame.width - kRight, frame.Y(level), "level");
    svg += Text(frame.width - kRight - 2, frame.Y(level) - 5, "end", "levelname", label);
  }
  return svg;
}

std::string SeriesPath(const ChartSeries& series, const Points& points, const Frame& frame) {
  if (points.empty()) return {};
  std::string path;
  std::string dots;
  for (const auto& [x, y] : points) {
    path += (path.empty() ? "M" : "L") + Coordinate(frame.X(x)) + " " + Coordinate(frame.Y(y));
    if (series.dots || points.size() == 1) {
      dots += "<circle cx=\"" + Coordinate(frame.X(x)) + "\" cy=\"" + Coordinate(frame.Y(y)) +
              "\" r=\"3\" class=\"" + (series.second ? "seconddot" : "dot") + "\"><title>" +
              EscapeHtml(TickText(x)) + ": " + EscapeHtml(FigureText(y)) + "</title></circle>";
    }
  }
  const std::string style = series.second ? "second" : series.faint ? "faint" : "curve";
  return "<path d=\"" + path + "\" class=\"" + style + "\"/>" + dots;
}

}  // namespace

std::string RenderChart(const Chart& chart) {
  std::vector<Points> lines;
  bool any = false;
  for (const ChartSeries& series : chart.series) {
    lines.push_back(Thinned(Drawable(chart, series.points), kMostPoints));
    any = any || !lines.back().empty();
  }
  if (!any) return {};
  const Frame frame = FrameOf(chart, lines);
  std::string html = chart.wide ? "<figure class=\"chart wide\">" : "<figure class=\"chart\">";
  html += "<figcaption><b>" + EscapeHtml(chart.title) + "</b>";
  if (!chart.note.empty()) html += "<span>" + EscapeHtml(chart.note) + "</span>";
  html += "</figcaption><svg viewBox=\"0 0 " + Coordinate(frame.width) + " " + Coordinate(kHeight) +
          "\" role=\"img\" aria-label=\"" + EscapeHtml(chart.title) + "\">";
  html += Axes(chart, frame);
  for (std::size_t i = 0; i < lines.size(); ++i) {
    html += SeriesPath(chart.series[i], lines[i], frame);
  }
  html += Marks(chart, frame);
  return html + "</svg></figure>\n";
}

std::string RenderBars(const std::vector<Bar>& bars) {
  double most = 0;
  for (const Bar& bar : bars) most = std::max(most, bar.value);
  if (bars.empty() || !(most > 0)) return {};
  std::string html = "<table class=\"bars\">\n";
  for (const Bar& bar : bars) {
    const double percent = std::max(0.4, bar.value / most * 100);
    html += "<tr><th>" + EscapeHtml(bar.name) + "</th><td><i style=\"width:" + Coordinate(percent) +
            "%\"></i></td><td>" + EscapeHtml(bar.text) + "</td></tr>\n";
  }
  return html + "</table>\n";
}

Points Smoothed(const Points& points, std::size_t reach) {
  Points good;
  for (const auto& point : points) {
    if (std::isfinite(point.second)) good.push_back(point);
  }
  Points out;
  for (std::size_t i = 0; i < good.size(); ++i) {
    // As far to the left as to the right, so that a trend is not shifted.
    const std::size_t side = std::min({reach, i, good.size() - 1 - i});
    double sum = 0;
    for (std::size_t j = i - side; j <= i + side; ++j) sum += good[j].second;
    out.emplace_back(good[i].first, sum / static_cast<double>(2 * side + 1));
  }
  return out;
}

Points Thinned(const Points& points, std::size_t limit) {
  if (points.size() <= limit || limit == 0) return points;
  Points out;
  for (std::size_t i = 0; i < limit; ++i) {
    const std::size_t begin = i * points.size() / limit;
    const std::size_t end = (i + 1) * points.size() / limit;
    double x = 0;
    double y = 0;
    for (std::size_t j = begin; j < end; ++j) {
      x += points[j].first;
      y += points[j].second;
    }
    out.emplace_back(x / static_cast<double>(end - begin), y / static_cast<double>(end - begin));
  }
  return out;
}

std::vector<double> LinearTicks(double low, double high, int wanted) {
  std::vector<double> ticks;
  if (!(high > low) || wanted < 1) return ticks;
  const double rough = (high - low) / wanted;
  const double decade = std::pow(10, std::floor(std::log10(rough)));
  double step = decade * 10;
  for (const double factor : {1.0, 2.0, 5.0}) {
    if (decade * factor >= rough * 0.999) {
      step = decade * factor;
      break;
    }
  }
  for (double n = std::ceil(low / step - 1e-9); n * step <= high + step * 1e-9; n += 1) {
    ticks.push_back(n == 0 ? 0 : n * step);
  }
  return ticks;
}

std::vector<double> LogTicks(double low, double high) {
  std::vector<double> ticks;
  if (!(low > 0) || !(high > low)) return ticks;
  const bool powers_only = std::log10(high / low) > 3.5;
  for (int exponent = static_cast<int>(std::floor(std::log10(low)));
       exponent <= static_cast<int>(std::ceil(std::log10(high))); ++exponent) {
    for (const double factor : {1.0, 2.0, 5.0}) {
      if (powers_only && factor != 1.0) continue;
      const double tick = factor * std::pow(10, exponent);
      if (tick >= low && tick <= high) ticks.push_back(tick);
    }
  }
  return ticks;
}

}  // namespace dd2
