#!/usr/bin/env python3
"""Measures attaches in fresh processes that have a context of the GPU already.

    bench_attach_fresh.py BUILD [--kind cuda] [--out FOLDER] [--models FOLDER] [--processes 100] [--seconds 45]

Each process attaches to one model, which starts the GPU's runtime in it, and then to ten others that it never had: only
these ten are timed, from the call until the memory is mapped and the table of 291 tensors is there. A process that HIP
or CUDA runs in cannot be forked, so each one starts the runtime by itself, which takes most of the time; ten attaches of
one process share that. By IPC handle and by descriptor in turn. Prints a table; with --out writes bench_attach.json.
"""
import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from bench_gpu import Daemon, make_model
from bench_loads import Ended, end, percentile

ATTACHES = 10


def serve(stack, build, kind, export, models):
    daemon = stack.enter_context(Daemon(build, kind, "--export", export))
    for name, path in models.items():
        daemon.load(path, name, form="native")
    return daemon


def measure(build, daemon, names):
    program = next(build.rglob("bench_attach"))
    environment = {**os.environ, "ROCMFORGE_MODULE_DIR": str(build / "daemon" / "device" / "hip")}
    done = subprocess.run([program, "each", daemon.socket, *names], check=True, capture_output=True, text=True,
                          env=environment)
    return json.loads(done.stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", type=Path)
    parser.add_argument("--kind", default="cuda")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--models", type=Path, default=Path("/tmp/rocmforge-bench"))
    parser.add_argument("--processes", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=45)
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
    results = {"ipc": {"first": [], "each": []}, "fd": {"first": [], "each": []}}
    with contextlib.suppress(Ended), contextlib.ExitStack() as stack:
        daemons = {export: serve(stack, build, arguments.kind, export, models) for export in results}
        for _ in range(arguments.processes):
            for export, daemon in daemons.items():
                if time.monotonic() > ends:
                    raise Ended
                times = measure(build, daemon, list(models))
                results[export]["first"].append(times["first"])
                results[export]["each"] += times["each"]
    print("\nAttaches in fresh processes that have a context, milliseconds")
    head = "{:<10} {:>9} {:>9} {:>7} {:>7} {:>7} {:>7} {:>7}   {}"
    print(head.format("--export", "processes", "attaches", "least", "p50", "p95", "p99", "most", "the first, with the runtime's start"))
    for export, times in results.items():
        each = [microseconds / 1000 for microseconds in times["each"]]
        if each:
            figures = [f"{percentile(each, p):.3f}" for p in (50, 95, 99, 100)]
            print(head.format(export, len(times["first"]), len(each), f"{min(each):.3f}", *figures,
                              f"{percentile(times['first'], 50) / 1000:.0f}"))
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "bench_attach.json").write_text(json.dumps(results, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
