#!/usr/bin/env python3
"""How loads into host memory scale with the cores of a machine: as native, f16 and f32, beside plain reading.

    bench_cores.py BUILD [--folder FOLDER] [--bytes SIZE] [--rounds N]

A model of SIZE is made in FOLDER, /dev/shm by default, and loaded by a daemon with one worker, with two, and so on to one
for each core. First, by bench_cores, what the machine allows. It takes about 40 seconds.
"""
import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))

from bench_host import TYPES, load, machine  # noqa: E402
from harness import Daemon  # noqa: E402
from make_model import parse_size  # noqa: E402
from rocmforge_wire import Client  # noqa: E402

FORMS = ("native", "f16", "f32")
FLOOR_SECONDS = 12


def counts():
    """1, 2, 4, ... and as many as there are cores."""
    cores = os.cpu_count()
    return sorted({1 << i for i in range(cores.bit_length()) if 1 << i <= cores} | {cores})


def measure(workers, path, rounds):
    folder = tempfile.mkdtemp()
    daemon = Daemon(folder, "--workers", str(workers), "--budget", "80%")
    times = {form: [] for form in FORMS}
    try:
        daemon.wait_ready()
        with Client(daemon.socket, timeout=120) as client:
            for number in range(rounds + 1):
                for form in FORMS:
                    seconds = load(client, path, form)
                    if number > 0:  # the first round warms up
                        times[form].append(seconds)
    finally:
        daemon.close()
        shutil.rmtree(folder)
    return {form: statistics.median(seconds) for form, seconds in times.items()}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("build", type=lambda path: Path(path).resolve())
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm"))
    parser.add_argument("--bytes", default="256M")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    os.environ["ROCMFORGE_BUILD"] = str(arguments.build)
    folder = Path(tempfile.mkdtemp(dir=arguments.folder))
    try:
        path = folder / "cores.gguf"
        make = Path(__file__).resolve().parents[1] / "lib" / "make_model.py"
        subprocess.run([sys.executable, make, path, "--tensors", "200", "--bytes", arguments.bytes, "--types", TYPES],
                       check=True, stdout=subprocess.DEVNULL)
        size = path.stat().st_size
        print(f"{machine()}; {parse_size(arguments.bytes) / 1e9:.2f} GB in {arguments.folder}\n", flush=True)
        threads = [str(n) for n in counts()]
        subprocess.run([arguments.build / "tests" / "bench_cores", path, str(FLOOR_SECONDS), *threads], check=True)
        print("\n| workers | " + " | ".join(f"{form}: s, GB/s of the file, times one worker's" for form in FORMS) + " |")
        print("| ------: | " + " | ".join("-" * 43 + ":" for _ in FORMS) + " |")
        one = None
        for workers in counts():
            times = measure(workers, path, arguments.rounds)
            one = one or times
            cells = (f"{times[f]:.3f}, {size / times[f] / 1e9:.2f}, {one[f] / times[f]:.2f}" for f in FORMS)
            print(f"| {workers:7} | " + " | ".join(f"{cell:>44}" for cell in cells) + " |", flush=True)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
