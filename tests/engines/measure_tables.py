"""What measure.py prints: tables of what it saw."""
import math
import statistics

# Both sides of what is compared: rows of starts(). In each pair both leave out llama.cpp's rehearsal, or both make it.
PAIRS = [
    ("no rehearsal", "rfctl run", "narrow, no rehearsal"),
    ("with the rehearsal", "-ot", "narrow"),
    ("no rehearsal", "rfctl run, 6 tokens", "narrow, no rehearsal, 6 tokens"),
    ("no rehearsal", "rfctl run, 13 tokens", "narrow, no rehearsal, 13 tokens"),
    ("no rehearsal", "rfctl run", "small, no rehearsal"),
    ("with the rehearsal", "-ot", "small"),
]


def p95(values):
    """The nearest rank: of fewer than twenty values the worst."""
    return sorted(values)[math.ceil(0.95 * len(values)) - 1]


def starts(runs, size, names):
    """runs: of each way, what Bench.run() returned. names: the parts of a start, in their order."""
    width = max(map(len, runs), default=0)
    print(f"  {'start to the first token, s':{width}}   runs     best   median      p95    its load, best    GB/s")
    for way, some in runs.items():
        firsts, loads = [run["first"] for run in some], [run["load"] for run in some if run["load"]]
        if firsts:
            load = f"{min(loads):18.3f} {size[way] / min(loads) / 1e9:7.1f}" if loads else ""
            print(f"  {way:{width}} {len(firsts):6} {min(firsts):8.3f} {statistics.median(firsts):8.3f} {p95(firsts):8.3f}{load}")
    print(f"  {'its parts, medians in ms':{width}}" + "".join(f"{name:>10}" for name in [*names, "(attach)"]))
    for way, some in runs.items():
        columns = [[run["parts"][name] for run in some] for name in names] + [[run["attach"] for run in some]]
        cells = [[value for value in column if value is not None] for column in columns]
        if some:
            print(f"  {way:{width}}" + "".join(f"{1000 * statistics.median(c):10.1f}" if c else f"{'-':>10}" for c in cells))
    for how, way, other in PAIRS:
        if runs.get(way) and runs.get(other):
            one, two = ([run["first"] for run in runs[row]] for row in (way, other))
            print(
                f"  {way} / {other.split(',')[0]}, {how}: {statistics.median(one):.3f} s / {statistics.median(two):.3f} s ="
                f" {statistics.median(one) / statistics.median(two):.3f}; p95 {p95(one) / p95(two):.3f};"
                f" best {min(one) / min(two):.3f}"
            )


def memory(result):
    for name, how in (("three", ""), ("three shared", " on resident weights")):
        if name in result:
            sizes = [f"{kind[:3].upper()} {size / 1e6:.0f} MB" for kind, size in result[name].items() if size is not None]
            print(f"  three processes{how}: {', '.join(sizes)}")


def spread(values):
    if len(values) < 2:
        return f"{values[0]:.1f}"
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f} (median {statistics.median(values):.1f}, {len(values)} passes)"


def rates(result):
    """result: test -> "own" and "shared" -> a list for each process of llama-bench, of tokens per second in each pass."""
    for test, rounds in result.items():
        flat = {way: [rate for passes in rounds[way] for rate in passes] for way in rounds}
        if not flat["own"] or not flat["shared"]:
            continue
        for way, how in (("own", ""), ("shared", " on resident weights")):
            print(f"  llama-bench{how}: {test}, tokens/s: {spread(flat[way])}")
        each = [statistics.median(shared) / statistics.median(own) for own, shared in zip(rounds["own"], rounds["shared"])]
        print(
            f"  llama-bench: {test}, resident / own, medians: "
            f"{statistics.median(flat['shared']) / statistics.median(flat['own']):.3f}; of each pair of processes: "
            + ", ".join(f"{ratio:.3f}" for ratio in each)
        )


def user_time(result):
    for name, how in (("user", ""), ("user shared", " on resident weights")):
        if name in result:
            print(f"  llama-bench{how}: " + ", ".join(f"{key}: {value:.2f}" for key, value in result[name].items()))
