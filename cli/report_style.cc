#include "cli/report_html.h"

namespace dd2 {

namespace {

constexpr std::string_view kStyle = R"css(
:root { color-scheme: light dark; --page: #ffffff; --ink: #1b2130; --soft: #5d6678; --line: #e3e7ee;
  --panel: #f6f8fb; --accent: #2563c9; --faint: #a9c3ef; --level: #b4540a; }
@media (prefers-color-scheme: dark) { :root { --page: #12161d; --ink: #e8ebf1; --soft: #9aa4b5;
  --line: #2a313d; --panel: #191f28; --accent: #7db0ff; --faint: #35507c; --level: #f0a860; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  font-variant-numeric: tabular-nums; }
main { max-width: 1096px; margin: 0 auto; padding: 44px 24px 64px; }
.eyebrow { color: var(--soft); font-size: 12.5px; letter-spacing: .08em; text-transform: uppercase; }
h1 { font-size: 32px; line-height: 1.2; margin: 4px 0 8px; letter-spacing: -.01em; overflow-wrap: anywhere; }
h2 { font-size: 19px; margin: 48px 0 6px; padding-top: 14px; border-top: 1px solid var(--line); }
h3 { font-size: 15px; margin: 26px 0 8px; }
p { margin: 6px 0 14px; max-width: 78ch; }
.soft, .note { color: var(--soft); }
.note { font-size: 13px; max-width: 100ch; }
.state { display: inline-block; padding: 1px 9px; border-radius: 9px; font-size: 13px;
  border: 1px solid var(--line); background: var(--panel); margin-right: 8px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(170px, 1fr)); gap: 12px; margin: 24px 0 0; }
.tile { background: var(--panel); border: 1px solid var(--line); border-radius: 8px; padding: 13px 16px 12px; }
.tile b { display: block; font-size: 27px; line-height: 1.25; font-weight: 650; letter-spacing: -.01em; white-space: nowrap; }
.tile small { display: block; color: var(--soft); font-size: 12.5px; line-height: 1.4; }
.tile small:first-child { color: var(--ink); font-size: 13px; }
.pictures { display: grid; gap: 6px 20px; margin: 16px 0; align-items: end; }
.pictures h4 { margin: 0; font-size: 14px; line-height: 1.35; }
.pictures h4 span { display: block; font-weight: 400; color: var(--soft); font-size: 12.5px; }
.pictures ol { list-style: none; margin: 0; padding: 0; display: grid; align-self: stretch; font-size: 13px; color: var(--soft); }
.pictures li { display: flex; align-items: center; justify-content: flex-end; text-align: right; line-height: 1.1; min-height: 0; }
.pictures img { width: 100%; height: auto; display: block; border-radius: 4px; image-rendering: pixelated; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; margin: 12px 0; }
th, td { text-align: left; padding: 6px 14px 6px 0; border-bottom: 1px solid var(--line); font-weight: 400; vertical-align: baseline; }
thead th { color: var(--soft); font-size: 13px; border-bottom-color: var(--soft); }
td.n, th.n { text-align: right; padding-right: 0; padding-left: 18px; white-space: nowrap; }
tr.main th, tr.main td { font-weight: 650; }
.charts { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 26px 32px; margin-top: 16px; }
figure.chart { margin: 0; }
figure.wide { grid-column: 1 / -1; }
figcaption b { font-weight: 650; font-size: 14px; display: block; }
figcaption span { color: var(--soft); font-size: 12.5px; display: block; min-height: 1.5em; }
svg { width: 100%; height: auto; display: block; overflow: visible; }
svg text { font-size: 11px; fill: var(--soft); font-family: inherit;
  paint-order: stroke; stroke: var(--page); stroke-width: 3px; stroke-linejoin: round; }
svg .levelname { fill: var(--level); }
svg .grid { stroke: var(--line); } svg .axis { stroke: var(--soft); }
svg .border { stroke: var(--soft); stroke-dasharray: 2 3; }
svg .level { stroke: var(--level); stroke-dasharray: 5 4; }
svg .curve { fill: none; stroke: var(--accent); stroke-width: 2; stroke-linejoin: round; }
svg .faint { fill: none; stroke: var(--faint); stroke-width: 1; stroke-linejoin: round; }
svg .second { fill: none; stroke: var(--level); stroke-width: 1.5; stroke-linejoin: round; }
svg .seconddot { fill: var(--level); stroke: var(--page); stroke-width: 1; }
svg .dot { fill: var(--accent); stroke: var(--page); stroke-width: 1; }
.columns { display: grid; grid-template-columns: 1.25fr 1fr; gap: 0 44px; }
table.bars th { width: 8.5em; color: var(--soft); } table.bars td { border-bottom: 0; padding: 4px 0; }
table.bars th { border-bottom: 0; padding: 4px 12px 4px 0; white-space: nowrap; }
table.bars td:last-child { width: 7.5em; text-align: right; white-space: nowrap; }
table.bars i { display: block; height: 14px; border-radius: 3px; background: var(--accent); }
table.facts th { color: var(--soft); } table.facts td { text-align: right; padding-right: 0; overflow-wrap: anywhere; }
pre { background: var(--panel); border: 1px solid var(--line); border-radius: 8px; padding: 12px 16px;
  overflow-x: auto; font: 13px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
summary { cursor: pointer; color: var(--soft); margin-top: 10px; }
footer { margin-top: 44px; color: var(--soft); font-size: 12.5px; }
@media screen and (max-width: 760px) { .charts, .columns { grid-template-columns: 1fr; } main { padding: 24px 16px; } }
@media print { :root { color-scheme: light; --page: #fff; --ink: #000; --soft: #444; --line: #ccc;
    --panel: #fff; --accent: #2563c9; --faint: #a9c3ef; --level: #b4540a; }
  body { font-size: 12px; } main { max-width: none; padding: 0; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  h2 { margin-top: 26px; break-after: avoid; } h3 { break-after: avoid; }
  figure, .tile, .pictures, tr, pre { break-inside: avoid; }
  .tiles { grid-template-columns: repeat(5, 1fr); } .tile { padding: 8px 10px; } .tile b { font-size: 18px; } .charts { gap: 12px 20px; }
  .pictures { gap: 4px 10px; } details { display: none; } @page { margin: 14mm; } }
)css";

}  // namespace

std::string_view ReportStyle() { return kStyle; }

}  // namespace dd2
