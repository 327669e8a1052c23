#!/usr/bin/env python3
"""Times saving a model in host memory when a GPU has no room for it any more, beside how fast the machine copies memory.

    bench_save.py BUILD [--kind KIND] [--size SIZE] [--rounds N] [--workers N,N...] [--models FOLDER]

KIND is hip, cuda, or fake: the HIP runtime of the tests, whose device is the CPU's memory and whose copies CPUs make. A
model of SIZE fills the budget, so that a small one evicts it; the time is that of the small one's load, less what it takes
where there is room. Then the model is loaded back. In each round bench_copy runs as well, with as many threads, up to
eight, as save; the last column is the median of the rounds' ratios.
"""
import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))

from bench_host import machine, timed  # noqa: E402
from harness import Daemon, fake_gpu_folder, module_folder, tensor_model  # noqa: E402
from make_model import parse_size  # noqa: E402
from page_cache import read_from_disk  # noqa: E402
from rocmforge_wire import Client  # noqa: E402

SMALL = 1 << 20
THREADS_MOST = 8  # that save


def load(client, path, name):
    with open(path, "rb") as file:
        return timed(lambda: client.call("Load", fds=[file.fileno()], name=name, form="native"))


def copy(arguments, size, workers):
    """bench_copy's GB/s: to fresh memory, and to memory that is there."""
    command = [arguments.build / "tests" / "bench_copy", str(size), str(min(workers, THREADS_MOST))]
    result = json.loads(subprocess.check_output(command))
    return result["fresh"], result["warm"]


def measure(arguments, workers, large, small):
    """For each round: seconds of saving and of loading back, and what copy() says."""
    env = {"ROCMFORGE_MODULE_DIR": str(module_folder())}
    kind = arguments.kind
    if kind == "fake":
        env |= {"LD_LIBRARY_PATH": str(fake_gpu_folder()), "FAKE_HIP_MEMORY": str(arguments.size * 2)}
        kind = "hip"
    budget = large.stat().st_size + (1 << 20)
    folder = tempfile.mkdtemp()
    daemon = Daemon(folder, "--device", kind, "--budget", str(budget), "--host-cache", str(2 * budget),
                    "--workers", str(workers), env=env)
    rows = []
    try:
        daemon.wait_ready()
        with Client(daemon.socket, timeout=120) as client:
            load(client, small, "small")  # the first load of a daemon takes longer
            client.call("Unload", name="small")
            alone = load(client, small, "small")
            client.call("Unload", name="small")
            load(client, large, "large")
            for _ in range(arguments.rounds):
                save = load(client, small, "small") - alone
                states = {model["name"]: model["state"] for model in client.call("List")["models"]}
                assert states["large"] == "cached", states
                client.call("Unload", name="small")
                began = time.monotonic()
                lease = client.call("Attach", name="large")["lease"]
                back = time.monotonic() - began
                client.call("Detach", lease=lease)
                rows.append((save, back, *copy(arguments, large.stat().st_size, workers)))
    finally:
        daemon.close()
        shutil.rmtree(folder)
    return zip(*rows)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("build", type=lambda path: Path(path).resolve())
    parser.add_argument("--kind", default="fake")
    parser.add_argument("--size", type=parse_size, default=parse_size("1G"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", default=f"1,{min(os.cpu_count(), 13)}")
    parser.add_argument("--models", type=Path, default=None)
    arguments = parser.parse_args()
    os.environ["ROCMFORGE_BUILD"] = str(arguments.build)
    models = arguments.models or Path(tempfile.mkdtemp())
    large, small = models / "save-large.gguf", models / "save-small.gguf"
    try:
        if not large.exists() or large.stat().st_size < arguments.size:
            tensor_model(large, arguments.size)
            tensor_model(small, SMALL)
        read_from_disk(large)
        size = large.stat().st_size
        print(f"{machine()}; {size / 1e9:.2f} GB from {arguments.kind} memory; {arguments.rounds} rounds\n")
        print("| workers | save: median s, p95 | GB/s | back: median s | GB/s | bench_copy, fresh | warm | of fresh |")
        print("| ------: | ------------------: | ---: | -------------: | ---: | ----------------: | ---: | -------: |")
        for workers in map(int, arguments.workers.split(",")):
            saves, restores, fresh, warm = measure(arguments, workers, large, small)
            save, back = statistics.median(saves), statistics.median(restores)
            of_fresh = statistics.median(size / s / 1e9 / f for s, f in zip(saves, fresh))
            print(f"| {workers:7} | {save:12.3f}, {sorted(saves)[len(saves) * 95 // 100]:5.3f} | {size / save / 1e9:4.1f} |"
                  f" {back:14.3f} | {size / back / 1e9:4.1f} | {statistics.median(fresh):17.1f} |"
                  f" {statistics.median(warm):4.1f} | {of_fresh:8.2f} |", flush=True)
    finally:
        if not arguments.models:
            shutil.rmtree(models)


if __name__ == "__main__":
    main()
