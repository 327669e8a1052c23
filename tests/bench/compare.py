#!/usr/bin/env python3
"""Compares two build folders on the host device, in one run: is the second one slower than the first?

    compare.py A B [--model FILE] [--rounds N] [--only loads|attach|decode]... [--fail-above RATIO]

A, B: build folders, before and after a change, each of them with a daemon of its own on a socket of its own. They are
measured in turn, in each round in the other order, because a machine's speed changes from minute to minute. Both need
what `ninja -C FOLDER daemon/rocmforged tests/bench_client tests/bench_decode tests/bench_dequant` builds; where the last
one is missing, its rows are left out. FILE: default a model of 1,000 tensors and 1 GB, which is made in B.

Prints for each row the best, the median and the 95th percentile of each folder's times, and the ratio: B's time divided
by A's, as the median over the rounds; below 1, B is faster. Nothing else should run beside it. --fail-above: the exit
status is 1 if any ratio is larger than this.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))

import bench_host  # noqa: E402
from page_cache import read_from_disk  # noqa: E402
from rocmforge_wire import Client  # noqa: E402

SECTIONS = ["loads", "attach", "decode"]
ROUNDS = 11
FIRST_ATTACHES = 40  # of a process each, in a round
ATTACHES = 2000  # of one process, in a round; their median counts
REST = 0.3  # seconds after an unload, in which the kernel frees the memory
TYPES, FORMS = ["q4_0", "q8_0", "q4_K", "q6_K", "f16", "bf16"], ["f32", "f16", "bf16"]
START_SECONDS = 10


class Side:
    """A build folder and its daemon."""

    def __init__(self, build, socket):
        self.build = build
        self.environment = {**os.environ, "ROCMFORGE_SOCKET": str(socket)}
        command = [build / "daemon" / "rocmforged", "--socket", socket, "--device", "host", "--log-level", "warning"]
        self.daemon = subprocess.Popen(command)
        end = time.monotonic() + START_SECONDS
        while not socket.exists():
            if self.daemon.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"{build}: its daemon does not start")
            time.sleep(0.02)
        self.client = Client(socket)

    def close(self):
        self.client.close()
        self.daemon.terminate()
        self.daemon.wait()

    def run(self, program, *arguments):
        command = [self.build / "tests" / program, *map(str, arguments)]
        return subprocess.run(command, env=self.environment, check=True, capture_output=True, text=True).stdout

    def load(self, path, form):
        """Milliseconds."""
        seconds = bench_host.load(self.client, path, form)
        time.sleep(REST)
        return [seconds * 1e3]

    def attach(self):
        """Milliseconds of the first attaches of processes, and of later attaches and detaches of one: their medians."""
        first = [json.loads(self.run("bench_client", "attach", "bench", 1))["first"] for _ in range(FIRST_ATTACHES)]
        later = json.loads(self.run("bench_client", "attach", "bench", ATTACHES))
        return {
            "first attach of a process": [us / 1e3 for us in first],
            f"later attaches, medians of {ATTACHES}": [later["attach"]["median"] / 1e3],
            f"later attaches, 99th percentiles of {ATTACHES}": [later["attach"]["p99"] / 1e3],
            f"detach, medians of {ATTACHES}": [later["detach"]["median"] / 1e3],
        }

    def dequant(self, kind, form):
        """Milliseconds for a gigabyte of output, on one thread. Nothing where this build has no such decoder."""
        for line in self.run("bench_dequant", "-t", kind, "-f", form, "-r", 3, "-m", 48, "-j", 1).splitlines():
            words = line.split()
            if words[:2] == [kind, form]:
                return [1e3 / float(words[2])]
        return []

    def has(self, program):
        return (self.build / "tests" / program).exists()


class Table:
    """Times of each row and side, a list for each round."""

    def __init__(self):
        self.rows = {}

    def add(self, name, side, times):
        self.rows.setdefault(name, ([], []))[side].append(times)

    def ratios(self):
        """The ratio of each row that both have."""
        for name, (a, b) in self.rows.items():
            pairs = [(statistics.median(x), statistics.median(y)) for x, y in zip(a, b) if x and y]
            if pairs:
                yield name, statistics.median(y / x for x, y in pairs)

    def tell(self):
        width = max(map(len, self.rows))
        columns = ("A best", "median", "p95", "B best", "median", "p95", "B / A")
        print(f"| {'ms':{width}} | " + " | ".join(f"{column:>8}" for column in columns) + " |")
        print(f"| {'-' * width} | " + " | ".join(["-------:"] * len(columns)) + " |")
        for name, ratio in self.ratios():
            cells = []
            for rounds in self.rows[name]:
                times = sorted(time for times in rounds for time in times)
                cells += [times[0], statistics.median(times), times[(len(times) - 1) * 95 // 100]]
            print(f"| {name:{width}} | " + " | ".join(f"{cell:8.3f}" for cell in cells) + f" | {ratio:8.3f} |")


def in_turn(sides, rounds):
    """(side's number, side, round), so that neither is always the first."""
    for number in range(rounds):
        for index in (0, 1) if number % 2 == 0 else (1, 0):
            yield index, sides[index], number


def loads(table, sides, path, rounds):
    for form in ("native", "f32"):
        for index, side, number in in_turn(sides, rounds + 1):
            times = side.load(path, form)
            if number > 0:  # the first round warms up
                table.add(f"load as {form}", index, times)


def attaches(table, sides, path, rounds):
    for side in sides:
        with open(path, "rb") as file:
            side.client.call("Load", fds=[file.fileno()], name="bench", form="native")
    for index, side, _ in in_turn(sides, rounds):
        for name, times in side.attach().items():
            table.add(name, index, times)
    for side in sides:
        side.client.call("Unload", name="bench")


def decodes(table, sides, path, rounds):
    for index, side, _ in in_turn(sides, rounds):
        table.add("read and decode to f32, one thread", index, [float(side.run("bench_decode", path)) * 1e3])
    if not all(side.has("bench_dequant") for side in sides):
        print("bench_dequant is not in both folders: no rows for single types", file=sys.stderr)
        return
    for kind in TYPES:
        for form in FORMS:
            for index, side, _ in in_turn(sides, rounds):
                table.add(f"1 GB of {kind} decoded to {form}", index, side.dequant(kind, form))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("a", type=Path, metavar="A")
    parser.add_argument("b", type=Path, metavar="B")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--only", action="append", choices=SECTIONS, help="default: all")
    parser.add_argument("--fail-above", type=float, metavar="RATIO")
    arguments = parser.parse_args()
    builds = [arguments.a.resolve(), arguments.b.resolve()]
    path = (arguments.model or bench_host.model_file(builds[1])).resolve()
    read_from_disk(path)
    wanted = arguments.only or SECTIONS
    table, sides = Table(), []
    with tempfile.TemporaryDirectory() as folder:
        try:
            for name, build in zip("ab", builds):
                sides.append(Side(build, Path(folder) / name))
            for name, section in (("loads", loads), ("attach", attaches), ("decode", decodes)):
                if name in wanted:
                    section(table, sides, path, arguments.rounds)
        finally:
            for side in sides:
                side.close()
    print(f"{bench_host.machine()}; {time.strftime('%Y-%m-%d')}; {path.name}, {path.stat().st_size / 1e9:.2f} GB, in the "
          f"page cache; {arguments.rounds} rounds\nA: {builds[0]}\nB: {builds[1]}\n")
    table.tell()
    if arguments.fail_above:
        above = [f"{name}: {ratio:.3f}" for name, ratio in table.ratios() if ratio > arguments.fail_above]
        if above:
            print(f"above {arguments.fail_above}: {'; '.join(above)}")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
