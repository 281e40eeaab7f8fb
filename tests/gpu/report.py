"""Writes what dd2-gpu-check, rival.py and dd2-gpu-steps found as one Markdown and one JSON file.

usage: report.py REPORT.json RIVAL.json STEPS.json FOLDER (the second and third may be missing: PyTorch was not there)
"""
import datetime
import json
import pathlib
import re
import sys


def name_of(case):
    words = [case["kernel"]]
    if "codes" in case:
        words += [f"V={case['codes']}", f"C={case['channels']}", f"{case['rows']} rows x {case['draws']} draws"]
    elif "width" in case:
        words += [" x ".join(str(case[size]) for size in ("rows", "heads", "width") if size in case)]
        words += [f"in {case['repeats']}s"] * (case.get("repeats", 1) > 1)
    else:
        words += [f"{case['count'] / 1e6:.0f} M elements"]
    return " ".join(words + ["J^T u"] * case.get("vjp", False) + ["bf16"] * case.get("bf16", False))


def number(value, digits=3):
    return "-" if value is None else f"{value:.{digits}f}"


def ratio(other, ours):
    return number(other and other / ours, 2)


def table(report):
    rival = report.get("pytorch", {}).get("lines", [])
    lines = ["| kernel | dd2, ms | GB/s | share of a copy | PyTorch eager, ms | ratio | torch.compile, ms | ratio |",
             "|---|---|---|---|---|---|---|---|"]
    for at, line in enumerate(report["kernels"]):
        other = rival[at] if at < len(rival) else {}
        eager, compiled = other.get("eager_ms"), other.get("compiled_ms")
        lines.append(f"| {name_of(line['case'])} | {number(line['ms'])} | {line['gb'] / line['ms'] * 1e3:.0f} | "
                     f"{line['share']:.0%} | {number(eager)} | {ratio(eager, line['ms'])} | {number(compiled)} | "
                     f"{ratio(compiled, line['ms'])} |")
    return lines


# Dense matrix products without sparsity, TFLOP/s: NVIDIA's data sheets (SXM).
PEAKS = {"H200": {"bf16": 989, "fp32": 67}, "H100": {"bf16": 989, "fp32": 67}, "A100": {"bf16": 312, "fp32": 19.5}}


def steps_table(report):
    steps = report["steps"]
    peaks = next((peaks for name, peaks in PEAKS.items() if name in report["gpu"]), {})
    lines = ["", f"## Updates at VAR-d16's size, {steps['steps'][0]['batch']} sequences, one rank", "",
             f"{len(steps['checks'])} checks of the trainer, {sum(not check['ok'] for check in steps['checks'])} failed.",
             "", "| update | precision | ms | TFLOP | TFLOP/s | MFU |", "|---|---|---|---|---|---|"]
    for step in steps["steps"]:
        for network in ("guidance", "generator"):
            rate = step[f"{network}_tflops"] / step[f"{network}_ms"] * 1e3
            peak = peaks.get(step["precision"])
            lines.append(f"| {network} | {step['precision']} | {step[f'{network}_ms']:.1f} | {step[f'{network}_tflops']:.2f} | "
                         f"{rate:.1f} | {f'{rate / peak:.1%}' if peak else '-'} |")
    return lines


def markdown(report):
    bad = [check for check in report["checks"] if not check["ok"]]
    copies = report["host_copies"]
    lines = [f"# {report['gpu']}, {report['date']}", "",
             f"{report['description']}. dd2 {report['code_version']}, "
             f"PyTorch {report.get('pytorch', {}).get('torch', 'not there')}. Made by `scripts/gpu-check`.", "",
             f"{len(report['checks'])} checks, {len(bad)} failed.", ""]
    lines += [f"* **{check['name']}**: {check.get('error', 'failed')} (limit {check.get('limit', '-')})"
              for check in bad]
    lines += ["", f"A copy on the device moves {report['copy_gb_s']:.0f} GB/s (read and written). Medians of 21.", ""]
    lines += table(report)
    lines += ["", "| 1 GiB of state into the host's memory, 20 Adam steps | ms |", "|---|---|"]
    lines += [f"| {key.removesuffix('_ms').replace('_', ' ')} | {value:.3f} |"
              for key, value in copies.items() if key.endswith("_ms")]
    lines += ["", f"The copy into pinned memory runs at {copies['copy_gb_s']:.1f} GB/s."]
    if report.get("steps", {}).get("steps"):
        lines += steps_table(report)
    return "\n".join(lines) + "\n"


def main():
    found, rival, steps, folder = (pathlib.Path(name) for name in sys.argv[1:5])
    report = {"date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
              **json.loads(found.read_text())}
    if rival.exists():
        report["pytorch"] = json.loads(rival.read_text())
    if steps.exists():
        report["steps"] = json.loads(steps.read_text())
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{report['date']}-{re.sub(r'[^a-z0-9]+', '-', report['gpu'].lower()).strip('-')}"
    (folder / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n")
    (folder / f"{name}.md").write_text(markdown(report))
    print(f"report: {folder / name}.md")


if __name__ == "__main__":
    main()
