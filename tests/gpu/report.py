"""Writes what dd2-gpu-check, rival.py, dd2-gpu-steps and rival_steps.py found as one Markdown and one JSON file.

usage: report.py REPORT.json RIVAL.json STEPS.json RIVAL_STEPS.json FOLDER (all but the first may be missing: PyTorch was
not there)
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
    return lines + failures(rival)


def failures(lines):
    """What PyTorch could not do, a line each."""
    found = {f"* {name.removesuffix('_error')}{' in ' + line['precision'] if 'precision' in line else ''}: {text}"
             for line in lines for name, text in line.items() if name.endswith("_error")}
    return ["", *sorted(found)] if found else []


# Dense matrix products without sparsity, TFLOP/s: NVIDIA's data sheets (SXM).
PEAKS = {"H200": {"bf16": 989, "fp32": 67}, "H100": {"bf16": 989, "fp32": 67}, "A100": {"bf16": 312, "fp32": 19.5}}


def steps_table(report):
    steps, rival = report["steps"], report.get("pytorch_steps", {})
    peaks = next((peaks for name, peaks in PEAKS.items() if name in report["gpu"]), {})
    beside = {line["precision"]: line for line in rival.get("lines", [])}
    lines = ["", f"## Updates at VAR-d16's size, {steps['steps'][0]['batch']} sequences, one rank", "",
             f"{len(steps['checks'])} checks of the trainer, {sum(not check['ok'] for check in steps['checks'])} failed.",
             "", "| update | precision | dd2, ms | TFLOP | TFLOP/s | MFU | PyTorch eager, ms | ratio | torch.compile, ms | ratio |",
             "|---|---|---|---|---|---|---|---|---|---|"]
    for step in steps["steps"]:
        line = beside.get(step["precision"], {})
        for network in ("guidance", "generator"):
            key = f"{network}_ms"
            ours = step[key]
            rate = step[f"{network}_tflops"] / ours * 1e3
            peak = peaks.get(step["precision"])
            eager, compiled = (line.get(mode, {}).get(key) for mode in ("eager", "compiled"))
            lines.append(f"| {network} | {step['precision']} | {ours:.1f} | {step[f'{network}_tflops']:.2f} | "
                         f"{rate:.1f} | {f'{rate / peak:.1%}' if peak else '-'} | {number(eager, 1)} | {ratio(eager, ours)} | "
                         f"{number(compiled, 1)} | {ratio(compiled, ours)} |")
    if rival:
        lines += ["", f"PyTorch's losses and gradients of small networks are ours but for {max(rival['apart'].values()):.0e} of "
                  "their size. Its bf16 is autocast, of the teacher the blocks alone on both sides."]
        lines += failures(rival["lines"])
    return lines


def markdown(report):
    bad = [check for check in report["checks"] if not check["ok"]]
    copies = report["host_copies"]
    lines = [f"# {report['gpu']}, {report['date']}", "",
             f"{report['description']}. dd2 {report['code_version']}, "
             f"PyTorch {report.get('pytorch', {}).get('torch', 'not there')}. Made by `scripts/gpu-check`.", "",
             f"{len(report['checks'])} checks, {len(bad)} failed. NCCL's group of two GPUs: {report['nccl_group_of_two']}.", ""]
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
    found, *others, folder = (pathlib.Path(name) for name in sys.argv[1:6])
    report = {"date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
              **json.loads(found.read_text())}
    for name, other in zip(("pytorch", "steps", "pytorch_steps"), others):
        if other.exists():
            report[name] = json.loads(other.read_text())
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{report['date']}-{re.sub(r'[^a-z0-9]+', '-', report['gpu'].lower()).strip('-')}"
    (folder / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n")
    (folder / f"{name}.md").write_text(markdown(report))
    print(f"report: {folder / name}.md")


if __name__ == "__main__":
    main()
