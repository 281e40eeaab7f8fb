"""What a benchmark prints and writes."""
import statistics

STEP = {"csd": "cycle", "gts": "step"}


def percentile(values, share):
    """The value that `share` of all are at or below, between neighbours linearly."""
    ordered = sorted(values)
    at = share * (len(ordered) - 1)
    low = int(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (at - low)


def document(options, machine, bench, lines, ratios):
    peak = max(bench.peaks)
    rows = []
    for side in lines:
        seconds, median = side.seconds(), side.median()
        rows.append({"name": side.name, "group": side.group, "median": median,
                     "p10": percentile(seconds, 0.1), "p90": percentile(seconds, 0.9),
                     "round_medians": [statistics.median(values) for values in side.rounds],
                     "flops": side.flops, "gflops": side.flops / median / 1e9,
                     "share_of_peak": side.flops / median / 1e9 / peak, "rounds": side.rounds})
    return {"benchmark": options.benchmark, "machine": machine, "rounds": options.rounds,
            "steps_per_round": options.cycles, "settings": bench.settings, "peak_gflops": peak,
            "peak_rounds": bench.peaks,
            "period_median": statistics.median(bench.periods), "sides": rows, "ratios": ratios}


def table(document):
    machine, step = document["machine"], STEP[document["benchmark"]]
    load = " ".join(f"{value:.2f}" for value in machine["load"])
    text = [f"{document['benchmark']}: seconds a {step}, "
            f"{document['rounds']} rounds of {document['steps_per_round']} {step}s",
            f"machine  {machine['cpu']}, {machine['cores']} cores; load average at start {load}",
            f"versions torch {machine['torch']} ({machine['capability']}), dd2 {machine['commit']}",
            f"peak     {document['peak_gflops']:.0f} GFLOP/s: large fp32 torch.mm, 1 thread in each "
            "of 2 processes at once, summed; best round", "",
            f"{'':44} {'median':>7} {'p10':>7} {'p90':>7} {'GFLOP':>7} {'GFLOP/s':>8} {'peak':>6}"
            "  median of each round"]
    for row in document["sides"]:
        rounds = " ".join(f"{value:.3f}" for value in row["round_medians"])
        text.append(f"{row['name']:44} {row['median']:7.3f} {row['p10']:7.3f} {row['p90']:7.3f} "
                    f"{row['flops'] / 1e9:7.1f} {row['gflops']:8.1f} {row['share_of_peak']:6.1%}"
                    f"  {rounds}")
    text += ["", f"time between two reports of dd2: {document['period_median']:.3f} s (median)", ""]
    for entry in document["ratios"]:
        rounds = " ".join(f"{value:.2f}" for value in entry["rounds"])
        text.append(f"ratio {entry['ratio']:.2f}  ({entry['above']}) / ({entry['below']})"
                    f"; rounds {rounds}")
    return "\n".join(text)
