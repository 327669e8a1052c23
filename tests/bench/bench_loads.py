#!/usr/bin/env python3
"""Measures many loads to a GPU, and beside each one what bounds it: reading alone, and copying alone.

    bench_loads.py BUILD [--kind cuda] [--out FOLDER] [--models FOLDER] [--loads 100] [--seconds 300] [--bytes SIZE]
                   [--only PART]... [--prepare]

The files: an F16 model of 13.5 GB as GGUF and, the same tensors, as safetensors; and a Q4_0 model of 3.8 GB. They are made
if they are not there, and read into the page cache; --prepare does no more than that.

Before and after each load, threads read some of the files (`pread` alone) and pinned memory is copied to the GPU (the
link alone), without the daemon. A load's ratio is its time over the longer of two times: what reading its file alone
would take, and what copying it alone would take, at the mean of the rates before and after it.

Parts: `main` loads the files in their forms in turn, each time into memory that the driver gives anew, after a rest.
`again` loads right after an unload of as much, as the daemon does it by default. `first` starts a daemon for each load.
`pinned` brings a model back from host memory, with --host-cache-pinned and without.

Beside all loads runs bench_stalls, which notes when a processor stood still, as those of a virtual machine do whose host has
too much to do. So it is told how many of the slow loads were slow for that.

What was measured is printed after each part, and all of it at the end, also when SIGTERM or SIGINT comes before. With
--out, bench_loads.json is written there, after each part too.
"""
import argparse
import concurrent.futures
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench_gpu import READERS, REST, Daemon, make_model
from make_model import parse_size
from make_safetensors import llama_shapes, write_large
from page_cache import cached, read_from_disk

# File and form; and in every how many rounds it is loaded. F16 is the same work in both forms.
COMBINATIONS = (("f16", "native", 1), ("safetensors", "native", 1), ("q4_0", "auto", 1), ("q4_0", "native", 1),
                ("f16", "auto", 4))
SEVEN_B = (32, 4096, 11008, 32000)  # layers, embedding, feed forward, vocabulary
READ_BYTES = 2 << 30  # of a file, to measure the rate of reading
LINK_BYTES = 1 << 29
# Seconds after an unload until the driver has cleared the memory, and the daemon has had it finish that: some, and more
# for each byte. See daemon/device/hip/reclaim.c.
RECLAIM, RECLAIM_BYTE = 0.12, 8e-9 / 1024
SLOW = 1.10  # loads with a greater ratio are told in detail
SLOW_ROWS = 16
STOOD = (0, 2, 5, 10)  # milliseconds
AGAIN = 12  # loads right after an unload, of each file
ATTACHED = 4  # the same after a client had the memory: each after a rest that lets the daemon give it back
FIRST = 3  # starts for each file
BACK = 8  # loads from host memory
MAIN_SHARE = 0.7  # of --seconds


class Ended(Exception):
    """SIGTERM or SIGINT came, or the time is over."""


def end(_signal, _frame):
    raise Ended


def percentile(values, percent):
    """The smallest value that so many percent of all do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)]


def stolen():
    """Seconds that a virtual machine's host took away from its processors, since the start; in steps of 10 ms."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    return int(fields[8]) / os.sysconf("SC_CLK_TCK")


class Process:
    """A program that answers each line with a line."""

    def __init__(self, *command, ready=None):
        self.process = subprocess.Popen([str(word) for word in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        text=True, bufsize=1)
        if ready and self.process.stdout.readline().strip() != ready:
            sys.exit(self.process.wait() or 1)

    def ask(self, line):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer.strip():
            sys.exit(f"bench_loads.py: {self.process.args[0]} gave no answer")
        return answer

    def close(self):
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        self.process.wait(60)


class Stalls(Process):
    """bench_stalls, which notes when processors stood still."""

    def __init__(self, build):
        super().__init__(next(build.rglob("bench_stalls")))
        self.fifo = self.process.stdout.readline().strip() == "ready fifo"

    def since(self):
        """[processor, begin, end] of each time, on CLOCK_MONOTONIC, since this was asked last."""
        return json.loads(self.ask(""))


class Bench:
    def __init__(self, arguments, models):
        self.build, self.kind, self.models = arguments.build.resolve(), arguments.kind, models
        self.names = list(models)
        self.loads = arguments.loads
        self.ends = time.monotonic() + arguments.seconds
        self.main_ends = time.monotonic() + arguments.seconds * MAIN_SHARE
        self.results = {}  # of a row: list of loads
        program = next(self.build.rglob(f"bench_probe_{self.kind}"))
        self.probe = Process(program, READERS, *models.values(), ready="ready")
        self.stalls = Stalls(self.build)
        self.began = time.monotonic()

    def close(self):
        self.probe.close()
        self.stalls.close()

    def rates(self, name):
        """Bytes a second, of reading this file and of the link. Both are measured while nothing else runs."""
        bytes_ = min(READ_BYTES, self.models[name].stat().st_size)
        read = float(self.probe.ask(f"read {self.names.index(name)} {bytes_}"))
        return {"read": read, "link": float(self.probe.ask(f"link {LINK_BYTES}"))}

    def note(self, row, name, answer, before, after):
        size = self.models[name].stat().st_size
        read, link = ((before[what] + after[what]) / 2 for what in ("read", "link"))
        bound = max(size / read, size / link)
        self.results.setdefault(row, []).append({
            "seconds": answer["seconds"], "ratio": answer["seconds"] / bound, "bytes": size,
            "read": [before["read"], after["read"]], "link": [before["link"], after["link"]],
            "bound": "reading" if read < link else "link", "phases": answer["answer"].get("phases"),
            "stood": answer["stood"], "stolen": answer["stolen"], "at": answer["at"],
        })

    def over(self, deadline=None):
        return time.monotonic() > (deadline or self.ends)

    @contextlib.contextmanager
    def daemon(self, *options, stderr=None):
        with Daemon(self.build, self.kind, *options, stderr=stderr) as daemon:
            client = Process(daemon.bench_load, daemon.socket, "lines", *self.models.values())
            try:
                yield daemon, client
            finally:
                client.close()

    def load(self, client, name, form, model="bench"):
        parameters = {"fds": [0], "name": model, "form": form}
        self.stalls.since()
        before = stolen()
        answer = json.loads(client.ask(f"{self.names.index(name)} {json.dumps(parameters)}"))
        answer["stood"] = max((end - begin for _, begin, end in self.stalls.since()), default=0)
        answer["stolen"] = stolen() - before
        answer["at"] = time.monotonic() - self.began
        return answer

    def main(self):
        """All combinations in turn. The rates after one load are those before the next one."""
        with self.daemon() as (_, client):
            for name in self.names:  # the first loads are of another kind
                self.load(client, name, "native")
                client.ask("unload bench")
            time.sleep(REST)
            before = self.rates(self.names[0])
            for round_ in range(self.loads):
                for name, form, every in COMBINATIONS:
                    if round_ % every or name not in self.models:
                        continue
                    if self.over(self.main_ends):
                        return
                    answer = self.load(client, name, form)
                    client.ask("unload bench")
                    time.sleep(RECLAIM + RECLAIM_BYTE * answer["answer"]["model"]["bytes"])
                    after = self.rates(name)
                    self.note(f"{name} {form}", name, answer, before, after)
                    before = after

    def again(self):
        """A load right after an unload of as much, once as the daemon keeps the memory, and once without that."""
        for name, form in (("f16", "native"), ("q4_0", "auto")):
            for keep, note in (("1", ""), ("0", ", --keep-freed 0")):
                if self.over():
                    return
                with self.daemon("--keep-freed", keep) as (daemon, client):
                    before = self.rates(name)
                    self.load(client, name, form)
                    answers = []
                    for _ in range(AGAIN if keep == "1" else AGAIN // 2):
                        client.ask("unload bench")
                        answers.append(self.load(client, name, form))
                    client.ask("unload bench")
                    time.sleep(REST)
                    after = self.rates(name)
                    for answer in answers:
                        self.note(f"{name} {form}: right after an unload{note}", name, answer, before, after)
                    if keep == "1" and name == "f16":
                        self.attached(daemon, client, name, form)

    def attached(self, daemon, client, name, form):
        """The memory that is unloaded was a client's, so it is not used again: it only goes back to the driver later."""
        for _ in range(ATTACHED):
            if self.over():
                return
            time.sleep(1.5)
            before = self.rates(name)
            self.load(client, name, form)
            lease = daemon.client.call("Attach", name="bench")["lease"]
            daemon.client.call("Detach", lease=lease)
            client.ask("unload bench")
            answer = self.load(client, name, form)
            client.ask("unload bench")
            self.note(f"{name} {form}: right after an unload, a client had it", name, answer, before, before)

    def first(self):
        for _ in range(FIRST):
            for name, form in (("f16", "native"), ("safetensors", "native"), ("q4_0", "auto")):
                if self.over():
                    return
                before = self.rates(name)
                with self.daemon() as (_, client):
                    answer = self.load(client, name, form)
                self.note(f"{name} {form}: the first after start", name, answer, before, before)

    def pinned(self):
        """A model that is evicted to host memory and comes back, again and again: it takes turns with another one."""
        name, other = "f16", "q4_0"
        size, room = (self.models[n].stat().st_size for n in (name, other))
        cache = ("--host-cache", str(size + (64 << 20)), "--budget", str(size + room // 2), "--log-level", "notice")
        for options, note in ((("--host-cache-pinned",), "pinned"), ((), "not pinned")):
            with tempfile.NamedTemporaryFile("w+") as journal:
                with self.daemon(*cache, *options, stderr=journal) as (daemon, client):
                    ready = note == "not pinned" or self.wait_for_pool(journal)
                    if ready:
                        self.back(daemon, client, name, other, note)

    @staticmethod
    def wait_for_pool(journal):
        """Until the daemon says that the memory is pinned, or is not; prints what it says."""
        for _ in range(600):
            journal.seek(0)
            lines = [line for line in journal if "host cache: " in line]
            if lines:
                print(lines[0].strip(), flush=True)
                return " are pinned" in lines[0]
            time.sleep(0.1)
        print("The host cache was not pinned within a minute", flush=True)
        return False

    def back(self, daemon, client, name, other, note):
        self.load(client, name, "native", "a")
        for i in range(BACK if note == "pinned" else 1):
            if self.over() and i > 0:
                return
            before = self.rates(name)
            began = time.monotonic()
            daemon.load(self.models[other], f"b{i}", form="native")
            row = f"{other} native, which evicts {name} to host memory, {note}"
            self.results.setdefault(row, []).append({"seconds": time.monotonic() - began})
            daemon.unload(f"b{i}")
            time.sleep(REST)
            answer = self.load(client, name, "native", "a")
            self.note(f"{name} native: back from host memory, {note}", name, answer, before, self.rates(name))


def show(results):
    head = "{:<60} {:>4} {:>7} {:>7} {:>7} {:>7}  {:>5} {:>5} {:>5} {:>5}  {:>6}"
    print("\nLoads: milliseconds; and the ratio of each to the longer of reading alone and the link alone")
    print(head.format("", "n", "p50", "p95", "p99", "worst", "p50", "p95", "p99", "worst", "best"))
    for row, loads in results.items():
        times = [1000 * load["seconds"] for load in loads]
        ratios = [load["ratio"] for load in loads if "ratio" in load]
        figures = [f"{percentile(times, p):.1f}" for p in (50, 95, 99, 100)]
        figures += [f"{percentile(ratios, p):.3f}" if ratios else "-" for p in (50, 95, 99, 100)]
        print(head.format(row, len(loads), *figures, f"{min(times):.1f}"))


def show_formats(results):
    """The two formats beside each other: they are loaded in turn."""
    gguf, other = results.get("f16 native", ()), results.get("safetensors native", ())
    pairs = [(b["seconds"] / b["bytes"]) / (a["seconds"] / a["bytes"]) for a, b in zip(gguf, other)]
    if pairs:
        print("A safetensors file's time for each byte, over that of the GGUF file before it: median "
              f"{percentile(pairs, 50):.3f}, 95th percentile {percentile(pairs, 95):.3f}, of {len(pairs)}")


def write(out, results):
    if out:
        out.mkdir(parents=True, exist_ok=True)
        (out / "bench_loads.json").write_text(json.dumps(results, indent=1) + "\n")


def show_probes(results):
    rates = {what: [rate for loads in results.values() for load in loads for rate in load.get(what, ())]
             for what in ("read", "link")}
    for what, text in (("read", f"Reading alone, {READERS} threads"), ("link", "The link alone, 16 MiB at a time")):
        if rates[what]:
            figures = ", ".join(f"{percentile(rates[what], p) / 1e9:.1f}" for p in (50, 5, 1))
            print(f"{text}: {figures} GB/s (median, 5th, 1st percentile of {len(rates[what])})")
    bounds = [load["bound"] for loads in results.values() for load in loads if "bound" in load]
    if bounds:
        print(f"The processors were the limit in {bounds.count('reading')} of {len(bounds)} loads, the link in the others.")


def show_slow(results):
    """What took longer in slow loads than in the median one of their row."""
    phases = ("parse", "allocate", "read", "dequantise", "copy", "kernel")
    slow = []
    for row, loads in results.items():
        with_phases = [load for load in loads if load.get("phases") and "ratio" in load]
        usual = {phase: percentile([load["phases"][phase] for load in with_phases], 50) for phase in phases} \
            if with_phases else {}
        for number, load in enumerate(loads):
            if load.get("ratio", 0) > SLOW and load.get("phases"):
                slow.append((load["ratio"], row, number, load, usual))
    if not slow:
        return
    print(f"\nLoads with a ratio above {SLOW}: {len(slow)}; the slowest {min(len(slow), SLOW_ROWS)}, in milliseconds. In"
          " brackets: the median of the row.")
    print("`read` is a reader's time; `rest` is neither parsing, allocating nor copying. GB/s: before and after.")
    for ratio, row, number, load, usual in sorted(slow, key=lambda entry: -entry[0])[:SLOW_ROWS]:
        mine = load["phases"]
        parts = []
        for phase in phases:
            share = READERS if phase in ("read", "dequantise") else 1
            if mine[phase] or usual[phase]:
                parts.append(f"{phase} {mine[phase] / share / 1e3:.1f} ({usual[phase] / share / 1e3:.1f})")
        rest = mine["total"] - mine["parse"] - mine["allocate"] - mine["copy"]
        print(f"  {row} no. {number}: {1000 * load['seconds']:.1f}, ratio {ratio:.3f}; {', '.join(parts)}, "
              f"rest {rest / 1e3:.1f}; a processor stood still for {1e3 * load['stood']:.1f}, "
              f"the host took {1e3 * load['stolen']:.0f} from all; reading {load['read'][0] / 1e9:.1f}, {load['read'][1] / 1e9:.1f}; "
              f"link {load['link'][0] / 1e9:.1f}, {load['link'][1] / 1e9:.1f}")


def show_stalls(results):
    """Whether loads are slow when processors stand still; and when slow loads came."""
    loads = sorted((load for some in results.values() for load in some if "ratio" in load), key=lambda load: load["at"])
    if not loads:
        return
    print(f"\nLoads while a processor stood still for so long at a time (bench_stalls), and the share of them above {SLOW}:")
    for low, high in zip(STOOD, (*STOOD[1:], float("inf"))):
        some = [load["ratio"] for load in loads if low <= load["stood"] * 1e3 < high]
        if some:
            print(f"  {f'{low} to {high} ms' if high < float('inf') else f'{low} ms and more':<14} {len(some):>4} loads, "
                  f"{100 * sum(ratio > SLOW for ratio in some) / len(some):.0f} %; ratio p50 {percentile(some, 50):.3f}, "
                  f"p95 {percentile(some, 95):.3f}")
    for text, some in ((f"with a ratio above {SLOW}", [x for x in loads if x["ratio"] > SLOW]),
                       ("others", [x for x in loads if x["ratio"] <= SLOW])):
        if some:
            print(f"Processor time that the host took away during a load, {text}: median "
                  f"{1e3 * percentile([x['stolen'] for x in some], 50):.0f} ms, mean "
                  f"{1e3 * sum(x['stolen'] for x in some) / len(some):.1f} ms")
    tenths = [[] for _ in range(10)]
    for load in loads:
        tenths[min(9, int(10 * load["at"] / loads[-1]["at"]))].append(load)
    print("Share of slow loads in each tenth of the time, and the time taken away in a load, ms: " + ", ".join(
        f"{100 * sum(x['ratio'] > SLOW for x in some) / len(some):.0f} % {1e3 * sum(x['stolen'] for x in some) / len(some):.0f}"
        if some else "-" for some in tenths))


def make_file(path, name, size):
    """size: in bytes, as text; None: a 7B model."""
    if name == "safetensors":
        each = parse_size(size) // 20 // 2048 if size else 0
        write_large(path, {f"t{i}": (each, 1024) for i in range(20)} if size else llama_shapes(*SEVEN_B))
    elif size:
        make_model(path, "--tensors", "20", "--bytes", size, "--types", name)
    else:
        make_model(path, "--shape-preset", "7b", "--layers", "32", "--types", name)


def prepare(folder, size):
    """The files, by name, in the page cache as they were read from the disk; several are made at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"small-{size}-" if size else "7b-"
    models = {"f16": folder / f"{stem}f16.gguf", "q4_0": folder / f"{stem}q4_0.gguf",
              "safetensors": folder / f"{stem}f16.safetensors"}

    def one(name):
        path, began = models[name], time.monotonic()
        made = not path.exists()
        if made:
            make_file(path, name, size)
            print(f"{path}: {path.stat().st_size / 1e9:.2f} GB, made in {time.monotonic() - began:.0f} s", flush=True)
        if made or cached(path) < path.stat().st_size:
            rate = read_from_disk(path)
            print(f"{path}: read into the page cache at {rate / 1e9:.1f} GB/s", flush=True)

    with concurrent.futures.ThreadPoolExecutor(len(models)) as pool:
        list(pool.map(one, models))
    return models


def options(description, loads, seconds):
    """The parser with what all benchmarks of loads have; how many loads and seconds are the default."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", type=Path)
    parser.add_argument("--kind", default="cuda")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--models", type=Path, default=Path("/tmp/rocmforge-bench"))
    parser.add_argument("--loads", type=int, default=loads, help="of each file and form, taken in turn")
    parser.add_argument("--seconds", type=float, default=seconds, help="when the time is over, fewer loads are made")
    parser.add_argument("--bytes", help="make files of this size, to try this script")
    return parser


def signals(handler):
    """What SIGTERM and SIGINT do from now on."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, handler)


PARTS = ("main", "first", "again", "pinned")


def main():
    parser = options(__doc__, 100, 300)
    parser.add_argument("--prepare", action="store_true", help="only make the files")
    parser.add_argument("--only", action="append", choices=PARTS, help="default: all parts")
    arguments = parser.parse_args()
    signals(end)

    models = prepare(arguments.models, arguments.bytes)
    if arguments.prepare:
        return 0
    bench = Bench(arguments, models)
    whole = False
    try:
        for part in arguments.only or PARTS:
            known = set(bench.results)
            getattr(bench, part)()
            show({row: loads for row, loads in bench.results.items() if row not in known})
            write(arguments.out, bench.results)
        whole = True
    except (Exception, SystemExit) as error:  # a signal may have ended the daemon and the probe before
        print(f"Ended before its time ({type(error).__name__}: {error}): this is what was measured until then.")
    finally:
        signals(signal.SIG_IGN)
        sizes = ", ".join(f"{path.name} {path.stat().st_size / 1e9:.2f} GB" for path in models.values())
        print(f"\n{os.cpu_count()} processors; {sizes}; in the page cache")
        for path in models.values():
            missing = path.stat().st_size - cached(path)
            if missing > 0:
                print(f"{path.name}: {missing / 1e6:.0f} MB are not in the page cache any more")
        show_probes(bench.results)
        show(bench.results)
        show_formats(bench.results)
        show_slow(bench.results)
        show_stalls(bench.results)
        sys.stdout.flush()
        write(arguments.out, bench.results)
    if whole:
        bench.close()
    return 0 if whole else 1


if __name__ == "__main__":
    sys.exit(main())
