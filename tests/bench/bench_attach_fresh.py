#!/usr/bin/env python3
"""Measures attaches in fresh processes that have a context of the GPU already.

    bench_attach_fresh.py BUILD [--kind cuda] [--out FOLDER] [--models FOLDER] [--processes 100] [--seconds 45]

Each process attaches to one model, which starts the GPU's runtime in it, and then to ten others that it never had: only
these ten are timed, from the call until the memory is mapped and the table of 291 tensors is there. A process that HIP
or CUDA runs in cannot be forked, so each one starts the runtime by itself, which takes most of the time; ten attaches of
one process share that. By IPC handle and by descriptor in turn. Every fifth process has another build of the module,
which times its calls (timed_calls.h): so a second table tells what of an attach is the runtime's and the driver's, what is
the thread on which they are called, and what is the rest: the daemon's answer, the socket, and the library. Prints tables;
with --out writes bench_attach.json.
"""
import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

from bench_gpu import Daemon, make_model
from bench_loads import Ended, end, percentile

ATTACHES = 10
TIMED = 5  # every so many processes have their calls timed
THREAD = ("thread, created", "thread, waited for")
INSIDE = ("GetDriverEntryPoint",)  # calls inside other ones


def serve(stack, build, kind, export, models):
    daemon = stack.enter_context(Daemon(build, kind, "--export", export))
    for name, path in models.items():
        daemon.load(path, name, form="native")
    return daemon


def measure(build, daemon, names, timed):
    program = next(build.rglob("bench_attach"))
    folder = build / "tests" / "gpu" if timed else build / "daemon" / "device" / "hip"
    environment = {**os.environ, "ROCMFORGE_MODULE_DIR": str(folder)}
    done = subprocess.run([program, "each", daemon.socket, *names], check=True, capture_output=True, text=True,
                          env=environment)
    return json.loads(done.stdout)


def show(results):
    print("\nAttaches in fresh processes that have a context, milliseconds")
    head = "{:<10} {:>9} {:>9} {:>7} {:>7} {:>7} {:>7} {:>7} {:>9}"
    print(head.format("--export", "processes", "attaches", "least", "p50", "p95", "p99", "most", "start"))
    for export, times in results.items():
        each = [microseconds / 1000 for microseconds in times["each"]]
        if each:
            figures = [f"{percentile(each, p):.3f}" for p in (50, 95, 99, 100)]
            print(head.format(export, len(times["first"]), len(each), f"{min(each):.3f}", *figures,
                              f"{percentile(times['first'], 50) / 1000:.0f}"))
    print("start: the first attach of a process, with the runtime's start")


def show_calls(results):
    for export, times in results.items():
        calls = times["calls"]
        if not calls:
            continue
        # Of each attach: the calls, what of the thread is none of them, and what of the attach is not the module's.
        rows = {name: [of.get(name, 0) for of in calls] for name in dict.fromkeys(name for of in calls for name in of)}
        driver = [sum(us for name, us in of.items() if name not in THREAD + INSIDE) for of in calls]
        thread = [max(0, sum(of.get(name, 0) for name in THREAD) - ours) for of, ours in zip(calls, driver)]
        whole = times["timed"]
        rest = [us - of - ours for us, of, ours in zip(whole, thread, driver)]
        for name in THREAD:
            rows.pop(name, None)
        rows |= {"all of these calls": driver, "the thread, and what it does beside": thread,
                 "the rest: daemon, socket, library": rest, "the whole attach": whole}
        print(f"\nWhere the time goes, --export {export}, {len(calls)} attaches, microseconds")
        print(f"{'':<36} {'least':>8} {'p50':>8} {'p95':>8} {'mean':>8}")
        for name, values in rows.items():
            text = f"  of which {name}" if name in INSIDE else name
            print(f"{text:<36} {min(values):8.1f} {percentile(values, 50):8.1f} {percentile(values, 95):8.1f} "
                  f"{statistics.mean(values):8.1f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", type=Path)
    parser.add_argument("--kind", default="cuda")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--models", type=Path, default=Path("/tmp/rocmforge-bench"))
    parser.add_argument("--processes", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=70)
    arguments = parser.parse_args()
    build = arguments.build.resolve()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    ends = time.monotonic() + arguments.seconds

    arguments.models.mkdir(parents=True, exist_ok=True)
    models = {}
    for i in range(ATTACHES + 1):
        path = arguments.models / f"fresh{i}.gguf"
        make_model(path, "--tensors", "291", "--bytes", "16M", "--types", "q4_0", "--seed", str(i))
        models[f"fresh{i}"] = path
    results = {export: {"first": [], "each": [], "timed": [], "calls": []} for export in ("ipc", "fd")}
    with contextlib.suppress(Ended), contextlib.ExitStack() as stack:
        daemons = {export: serve(stack, build, arguments.kind, export, models) for export in results}
        number = 0
        while len(results["fd"]["first"]) < arguments.processes:
            number += 1
            for export, daemon in daemons.items():
                if time.monotonic() > ends:
                    raise Ended
                timed = number % TIMED == 0
                times = measure(build, daemon, list(models), timed)
                if timed:
                    results[export]["timed"] += times["each"]
                    results[export]["calls"] += times["calls"]
                else:
                    results[export]["first"].append(times["first"])
                    results[export]["each"] += times["each"]
    show(results)
    show_calls(results)
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "bench_attach.json").write_text(json.dumps(results, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
