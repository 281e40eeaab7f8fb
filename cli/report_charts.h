#pragma once

#include <string>
#include <utility>
#include <vector>

namespace dd2 {

// A line of a chart. Points with a non-finite coordinate (or <= 0 on a logarithmic axis) are left
// out.
struct ChartSeries {
  std::vector<std::pair<double, double>> points;  // (x, y), x ascending
  bool dots = false;                              // few measured points: mark each
  bool faint = false;                             // the noisy original behind a smoothed line
  bool second = false;                            // another quantity: a colour of its own
};

// A chart of one quantity over the steps of a run.
struct Chart {
  std::string title;
  std::string note;  // one line below the title; may be empty
  std::string x_label;
  std::vector<ChartSeries> series;
  bool log_y = false;
  bool wide = false;  // the full width of the page instead of half of it
  std::vector<std::pair<double, std::string>> levels;   // horizontal reference lines (y, label)
  std::vector<std::pair<double, std::string>> borders;  // vertical ones (x, label): phase begins
};

// One <figure> with inline SVG, coloured through the page's CSS variables. Empty when no series has
// a point that can be drawn.
std::string RenderChart(const Chart& chart);

// Bars of durations, one row each: name, bar, text.
struct Bar {
  std::string name;
  double value = 0;
  std::string text;
};
std::string RenderBars(const std::vector<Bar>& bars);

// Centred running mean over `reach` points on either side (fewer towards the ends).
std::vector<std::pair<double, double>> Smoothed(
    const std::vector<std::pair<double, double>>& points, std::size_t reach);
// At most `limit` points: means of equal runs.
std::vector<std::pair<double, double>> Thinned(const std::vector<std::pair<double, double>>& points,
                                               std::size_t limit);
// About `wanted` round positions inside [low, high].
std::vector<double> LinearTicks(double low, double high, int wanted);
// 1, 2, 5 times powers of ten inside [low, high], low > 0; only powers when there are many.
std::vector<double> LogTicks(double low, double high);

}  // namespace dd2
