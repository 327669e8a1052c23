#!/usr/bin/env python3
"""Finds where slow loads to a GPU spend their time: when nothing was copied, and what stood still meanwhile.

    bench_gaps.py BUILD [--kind cuda] [--out FOLDER] [--models FOLDER] [--loads 40] [--seconds 90] [--bytes SIZE]

Loads the F16 and the Q4_0 model of bench_loads.py in turn, with a trace: what each worker and each stream did, and when.
A *gap* is a time of at least 1 ms between a load's first and last copy in which nothing was copied. Beside the daemon runs
bench_stalls, which notes when a processor stood still. For each gap three things are told:

- how much of it some processor *stood still*: the kernel or the host of a virtual machine kept it from all threads.
- how many reads lasted for at least half of it, of how many workers: one or two are readers that were held up; nearly all
  are a machine whose memory is slow; none means that the daemon was late to hand over what was read.
- how long its longest read was, beside the usual one.

A load's time is that until its last copy or kernel ended, because making the trace takes time as well. With --out,
bench_gaps.json is written there.
"""
import contextlib
import json
import os
import signal
import sys
import time

from bench_gpu import READERS, REST, Daemon
from bench_loads import RECLAIM, RECLAIM_BYTE, Ended, Process, Stalls, end, options, percentile, prepare, signals

GAP = 1e-3  # seconds
SLOW = 1.04  # loads that take so many times the median are told in detail
ROWS = 12
COMBINATIONS = (("f16", "native"), ("q4_0", "auto"))
FIRST = 3  # starts, with a rest and without


def union(spans):
    """Spans that do not overlap, in order."""
    merged = []
    for begin, end_ in sorted(spans):
        if merged and begin <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end_)
        else:
            merged.append([begin, end_])
    return merged


def overlap(spans, begin, end_):
    """How much of the time from begin to end these spans, which do not overlap, cover."""
    return sum(max(0.0, min(e, end_) - max(b, begin)) for b, e in spans)


def describe(answer, began, late):
    """What a load did, in seconds from its beginning. `late`: what bench_stalls noted meanwhile."""
    spans = [(span["row"].split()[0], span["name"], span["begin"] / 1e6, (span["begin"] + span["length"]) / 1e6)
             for span in answer["answer"]["trace"]]
    copies = union((b, e) for row, name, b, e in spans if row == "stream" and name == "copy")
    reads = [(b, e) for row, name, b, e in spans if row == "worker" and name == "read"]
    stood = union((b - began, e - began) for _, b, e in late)
    lengths = sorted(e - b for b, e in reads)
    gaps = []
    for (_, begin), (end_, _) in zip(copies, copies[1:]):
        if end_ - begin >= GAP:
            among = [min(e, end_) - max(b, begin) for b, e in reads if b < end_ and e > begin]
            gaps.append({
                "begin": begin, "length": end_ - begin, "stood": overlap(stood, begin, end_),
                "processors": sorted({cpu for cpu, b, e in late
                                      if min(e - began, end_) - max(b - began, begin) > (end_ - begin) / 2}),
                "long_reads": sum(length >= (end_ - begin) / 2 for length in among),
            })
    return {
        "seconds": max(e for row, _, _, e in spans if row == "stream"), "before": copies[0][0],
        "copying": sum(e - b for b, e in copies), "gaps": gaps, "gap": sum(gap["length"] for gap in gaps),
        "stood": sum(gap["stood"] for gap in gaps), "stalls": len(late),
        "worst_stall": max((e - b for _, b, e in late), default=0.0),
        "read": percentile(lengths, 50), "longest_read": lengths[-1],
    }


def ms(seconds):
    return f"{1000 * seconds:.1f}"


def show(results, fifo):
    print(f"\nMilliseconds. bench_stalls ran {'with' if fifo else 'without'} real-time priority.")
    for row, loads in results.items():
        if not loads:
            continue
        median = percentile([load["seconds"] for load in loads], 50)
        slow = [load for load in loads if load["seconds"] > SLOW * median]
        print(f"{row}: {len(loads)} loads, p50 {ms(median)}, p95 {ms(percentile([x['seconds'] for x in loads], 95))}, worst "
              f"{ms(max(x['seconds'] for x in loads))}; {len(slow)} above {SLOW} of the median")
        for name, some in (("the others", [x for x in loads if x not in slow]), ("the slow ones", slow)):
            if some:
                figures = {key: percentile([x[key] for x in some], 50)
                           for key in ("before", "copying", "gap", "stood", "worst_stall", "read", "longest_read")}
                print(f"  medians of {name}: first copy after {ms(figures['before'])}, copying {ms(figures['copying'])}, gaps "
                      f"{ms(figures['gap'])} of which a processor stood still {ms(figures['stood'])}; longest stall "
                      f"{ms(figures['worst_stall'])}; a read {ms(figures['read'])}, the longest {ms(figures['longest_read'])}")
        lost, stood = (sum(x[key] for x in slow) for key in ("gap", "stood"))
        if lost:
            print(f"  gaps of the slow ones: {ms(lost)} in all, {100 * stood / lost:.0f} % of it while a processor stood still")
        for load in sorted(slow, key=lambda x: -x["seconds"])[:ROWS]:
            longest = sorted(load["gaps"], key=lambda gap: -gap["length"])[:3]
            print(f"  {ms(load['seconds'])}: copying {ms(load['copying'])}, gaps {ms(load['gap'])} in {len(load['gaps'])}; "
                  + "; ".join(f"at {ms(gap['begin'])} for {ms(gap['length'])}, stood still {ms(gap['stood'])} (processors "
                              f"{gap['processors']}), {gap['long_reads']} of {READERS} reads as long" for gap in longest))
    sys.stdout.flush()


class Gaps:
    def __init__(self, arguments, models):
        self.build, self.kind, self.models = arguments.build.resolve(), arguments.kind, models
        self.names = list(models)
        self.ends = time.monotonic() + arguments.seconds
        self.stalls = Stalls(self.build)
        self.results = {}  # of a row: list of loads

    @contextlib.contextmanager
    def daemon(self):
        with Daemon(self.build, self.kind) as daemon:
            client = Process(daemon.bench_load, daemon.socket, "lines", *self.models.values())
            try:
                yield client
            finally:
                client.close()

    def load(self, client, name, form, row):
        """Loads it and unloads it. No row: it is not kept."""
        parameters = {"fds": [0], "name": "bench", "form": form, "trace": True}
        self.stalls.since()
        began = time.monotonic()
        answer = json.loads(client.ask(f"{self.names.index(name)} {json.dumps(parameters)}"))
        late = self.stalls.since()
        client.ask("unload bench")
        time.sleep(RECLAIM + RECLAIM_BYTE * answer["answer"]["model"]["bytes"])
        if row:
            self.results.setdefault(row, []).append(describe(answer, began, late))

    def in_turn(self, loads):
        with self.daemon() as client:
            for i in range(loads + 1):
                for name, form in COMBINATIONS:
                    self.load(client, name, form, f"{name} {form}" if i > 0 else None)  # the first ones are of another kind
                if time.monotonic() > self.ends:
                    return

    def first(self):
        """The first load after a start, a rest after the end of the last daemon, or without one: then the driver may still
        be clearing its memory."""
        for rest in (REST, 0) * FIRST:
            with self.daemon() as client:  # whose memory is freed by its end
                self.load(client, "f16", "native", None)
            time.sleep(rest)
            with self.daemon() as client:
                self.load(client, "q4_0", "auto", f"q4_0 auto: the first after start{', after a rest' if rest else ''}")


def main():
    arguments = options(__doc__, 40, 90).parse_args()
    signals(end)

    models = prepare(arguments.models, arguments.bytes)
    gaps = Gaps(arguments, models)
    try:
        gaps.in_turn(arguments.loads)
        gaps.first()
    except Ended:
        print("Ended before its time: this is what was measured until then.")
    finally:
        signals(signal.SIG_IGN)
        print(f"{os.cpu_count()} processors; {READERS} readers; files in the page cache")
        show(gaps.results, gaps.stalls.fifo)
        if arguments.out:
            arguments.out.mkdir(parents=True, exist_ok=True)
            (arguments.out / "bench_gaps.json").write_text(json.dumps(gaps.results, indent=1) + "\n")
    gaps.stalls.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
