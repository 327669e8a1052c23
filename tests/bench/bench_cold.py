#!/usr/bin/env python3
"""Times loads of a file that is not in the page cache, or half of it, or all, beside what the same disk gives alone.

    bench_cold.py BUILD [FILE] [--rounds N] [--form FORM] [--device KIND] [--disk fio|own]

Without FILE, a model of 1 GB is generated in BUILD. In each round all rows are measured one after the other, since disks
drift, virtual ones above all; a ratio is the median of the rounds' ratios. The disk alone: fio, or bench_disk where there
is no fio, reads the whole file with O_DIRECT by io_uring, at each of several depths; the depth with the best median counts.
For loads into host memory, bench_disk also reads the file and writes it to new memory, with one thread: "of both". "keep"
and "auto" are daemons with this --page-cache: "keep" reads as a daemon without io_uring does.
"""
import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))

import page_cache  # noqa: E402
from bench_host import machine, model_file, timed  # noqa: E402
from harness import Daemon, module_folder  # noqa: E402
from rocmforge_wire import Client  # noqa: E402

DEPTHS = (1, 4, 16, 32)
WAYS = ("keep", "auto")
STATES = (0, 50, 100)
STRIPE = 2 << 20  # of a file that is half cached, every other


def own(build, path, depth, *more, size=1 << 20):
    """Bytes per second."""
    page_cache.drop(path)
    command = [build / "tests" / "bench_disk", path, str(depth), str(size), *more]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(done.returncode)
    return float(done.stdout)


def fio(_build, path, depth, size="1M"):
    """Bytes per second."""
    page_cache.drop(path)
    out = subprocess.check_output(
        ["fio", "--name=read", f"--filename={path}", "--rw=read", f"--bs={size}", "--direct=1", "--ioengine=io_uring",
         f"--iodepth={depth}", "--readonly", "--output-format=json"])
    return json.loads(out)["jobs"][0]["read"]["bw_bytes"]


def prepare(path, state):
    size = path.stat().st_size
    page_cache.drop(path)
    if state == 50:
        page_cache.read_into_cache(path, [(at, min(at + STRIPE, size)) for at in range(0, size, 2 * STRIPE)])
    elif state == 100:
        page_cache.read_into_cache(path, [(0, size)])


def load(daemon, path, form, device):
    """Seconds, processor seconds of the daemon, and the part of the file that the page cache has then."""
    with Client(daemon.socket) as client, open(path, "rb") as file:
        before = daemon.cpu_seconds()
        seconds = timed(lambda: client.call("Load", fds=[file.fileno()], name="bench", form=form, device=device))
        cpu = daemon.cpu_seconds() - before
        cached = page_cache.cached(path) / path.stat().st_size
        client.call("Unload", name="bench")
    return seconds, cpu, cached


def p95(values):
    return sorted(values)[min(len(values) - 1, len(values) * 95 // 100)]


def median_ratio(bytes_, seconds, rates):
    """Of the rounds' ratios."""
    return statistics.median(bytes_ / s / rate for s, rate in zip(seconds, rates))


def show(rows, alone, both, size, disk):
    best = max(DEPTHS, key=lambda depth: statistics.median(alone[depth]))
    print(f"{disk}, GB/s, medians: " + ", ".join(f"depth {d}: {statistics.median(alone[d]) / 1e9:.2f}" for d in DEPTHS)
          + f"; lowest and highest of depth {best}: {min(alone[best]) / 1e9:.2f}, {max(alone[best]) / 1e9:.2f}")
    if both:
        print(f"the disk, and to memory, one thread: {statistics.median(both) / 1e9:.2f} GB/s")
    print("\n| cached | way  | median s |  p95 s |  GB/s | of disk | of both | of keep | processor s | cores |"
          " cached after |")
    print("| -----: | ---- | -------: | -----: | ----: | ------: | ------: | ------: | ----------: | ----: | -----------: |")
    for state in STATES:
        for way in WAYS:
            seconds, cpu, cached = map(list, zip(*rows[state, way]))
            keep = [row[0] for row in rows[state, "keep"]]
            median = statistics.median(seconds)
            of_both = f"{median_ratio(size, seconds, both):7.2f}" if both else "      -"
            of_keep = statistics.median(k / s for k, s in zip(keep, seconds))
            print(f"| {state:4} % | {way:4} | {median:8.3f} | {p95(seconds):6.3f} | {size / median / 1e9:5.2f} |"
                  f" {median_ratio(size, seconds, alone[best]):7.2f} | {of_both} | {of_keep:7.2f} |"
                  f" {statistics.median(cpu):11.2f} | {statistics.median(c / s for c, s in zip(cpu, seconds)):5.2f} |"
                  f" {100 * statistics.median(cached):10.1f} % |")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("build", type=lambda path: Path(path).resolve())
    parser.add_argument("file", nargs="?", type=lambda path: Path(path).resolve())
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--form", default="native")
    parser.add_argument("--device", default="host")
    parser.add_argument("--disk", choices=("fio", "own"), default="fio" if shutil.which("fio") else "own")
    arguments = parser.parse_args()
    measure = {"fio": fio, "own": own}[arguments.disk]
    has_own = (arguments.build / "tests" / "bench_disk").exists()
    os.environ["ROCMFORGE_BUILD"] = str(arguments.build)
    path = arguments.file or model_file(arguments.build)
    size = path.stat().st_size
    rows = {(state, way): [] for state in STATES for way in WAYS}
    alone, both = {depth: [] for depth in DEPTHS}, []
    folders = {way: tempfile.mkdtemp() for way in WAYS}
    daemons = {}
    try:
        for way in WAYS:
            daemons[way] = Daemon(folders[way], "--page-cache", way, "--device", arguments.device, "--budget", "80%",
                                  env={"ROCMFORGE_MODULE_DIR": str(module_folder())})
            daemons[way].wait_ready()
        for number in range(arguments.rounds):
            for depth in DEPTHS:
                alone[depth].append(measure(arguments.build, path, depth))
            if arguments.device == "host" and has_own:
                both.append(own(arguments.build, path, 32, "memory", size=256 << 10))
            for state in STATES:
                for way in WAYS if number % 2 else reversed(WAYS):
                    prepare(path, state)
                    rows[state, way].append(load(daemons[way], path, arguments.form, arguments.device))
    finally:
        for daemon in daemons.values():
            daemon.close()
        for folder in folders.values():
            shutil.rmtree(folder)
    print(f"{machine()}; {path.name}, {size / 1e9:.2f} GB, {arguments.form} on {arguments.device}; "
          f"{arguments.rounds} rounds")
    show(rows, alone, both, size, {"fio": "fio", "own": "bench_disk"}[arguments.disk])


if __name__ == "__main__":
    main()
