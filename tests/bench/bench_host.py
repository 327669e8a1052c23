#!/usr/bin/env python3
"""Times the host device beside what users have without the daemon, in one run, and prints a table.

    bench_host.py BUILD [FILE]

Without FILE, a model of 1,000 tensors and 1 GB is generated in BUILD. It is read from the disk before, so that the page
cache has it. Each row is the median of several rounds; in each round all rows are timed one after the other, and a ratio is the
median of the rounds' ratios, for machines drift.
"""
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))

from page_cache import read_from_disk  # noqa: E402
from rocmforge_wire import Client  # noqa: E402

ROUNDS = 7
FIRST_ATTACHES = 50
ATTACHES = 2000
PING_SECONDS = 5
TYPES = "q4_0,q8_0,f16,f32,q4_K,q6_K"


def model_file(build):
    path = build / "bench-1g.gguf"
    if not path.exists():
        make = Path(__file__).resolve().parents[1] / "lib" / "make_model.py"
        subprocess.run([sys.executable, make, path, "--tensors", "1000", "--bytes", "1G", "--types", TYPES], check=True)
    return path


def safetensors_file(build, size):
    """About as large a model in the other format."""
    path = build / "bench-1g.safetensors"
    each = size // 1000 // 2048 * 2048  # of 1,000 tensors
    if not path.exists() or abs(path.stat().st_size - 1000 * each) > 1 << 20:
        header = {
            f"blk.{i}.weight": {"dtype": "BF16", "shape": [each // 2048, 1024], "data_offsets": [i * each, (i + 1) * each]}
            for i in range(1000)
        }
        text = json.dumps(header).encode()
        with open(path, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for _ in range(1000):
                file.write(os.urandom(each))
    return path


def timed(function):
    began = time.monotonic()
    function()
    return time.monotonic() - began


def load(client, path, form):
    with open(path, "rb") as file:
        seconds = timed(lambda: client.call("Load", fds=[file.fileno()], name="bench", form=form))
    client.call("Unload", name="bench")
    return seconds


def copy(path):
    target = Path("/dev/shm") / f"rocmforge-bench-{os.getpid()}"
    try:
        return timed(lambda: subprocess.run(["cp", path, target], check=True))
    finally:
        target.unlink(missing_ok=True)


def ping_while_loading(build, environment, path, socket):
    """The percentiles of a ping while f32 loads run one after the other."""
    stop = threading.Event()

    def loads():
        with Client(socket) as client:
            while not stop.is_set():
                load(client, path, "f32")

    thread = threading.Thread(target=loads)
    thread.start()
    time.sleep(0.2)
    output = subprocess.check_output([build / "tests" / "bench_client", "ping", str(PING_SECONDS)], env=environment)
    stop.set()
    thread.join()
    return json.loads(output)["ping"]


def machine():
    with open("/proc/cpuinfo", encoding="utf-8") as info:
        names = [line.split(":", 1)[1].strip() for line in info if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} processors, Linux {platform.release()}"


def main():
    build = Path(sys.argv[1]).resolve()
    path = Path(sys.argv[2]).resolve() if len(sys.argv) > 2 else model_file(build)
    size = path.stat().st_size
    read_from_disk(path)
    folder = Path(tempfile.mkdtemp())
    socket = folder / "io.rocmforge"
    daemon = subprocess.Popen(
        [build / "daemon" / "rocmforged", "--socket", socket, "--device", "host", "--log-level", "warning"])
    try:
        while not socket.exists():
            time.sleep(0.02)
        run(build, path, size, socket, dict(os.environ, ROCMFORGE_SOCKET=str(socket)))
    finally:
        daemon.terminate()
        daemon.wait()
        shutil.rmtree(folder)


def run(build, path, size, socket, environment):
    bench_client = build / "tests" / "bench_client"
    other = safetensors_file(build, size)
    read_from_disk(other)
    names = ("cp into a tmpfs", "load as native", "load safetensors as native", "read and decode to f32, one thread",
             "load as f32")
    rows = {name: [] for name in names}
    with Client(socket) as client:
        for _ in range(ROUNDS + 1):
            rows["cp into a tmpfs"].append(copy(path))
            rows["load as native"].append(load(client, path, "native"))
            rows["load safetensors as native"].append(load(client, other, "native"))
            rows["read and decode to f32, one thread"].append(
                float(subprocess.check_output([build / "tests" / "bench_decode", path])))
            rows["load as f32"].append(load(client, path, "f32"))
        rows = {name: times[1:] for name, times in rows.items()}  # the first round warms up

        with open(path, "rb") as file:
            client.call("Load", fds=[file.fileno()], name="bench", form="native")
        later = json.loads(subprocess.check_output([bench_client, "attach", "bench", str(ATTACHES)], env=environment))
        first = sorted(
            json.loads(subprocess.check_output([bench_client, "attach", "bench", "1"], env=environment))["first"]
            for _ in range(FIRST_ATTACHES))
        client.call("Unload", name="bench")
    ping = ping_while_loading(build, environment, path, socket)

    print(f"{machine()}; {path.name}, {size / 1e9:.2f} GB, in the page cache; median of {ROUNDS} rounds\n")
    print(f"| {'what':36} | {'seconds':>8} | {'GB/s of the file':>16} | {'beside':>28} |")
    print(f"| {'-' * 36} | {'-' * 7}: | {'-' * 15}: | {'-' * 27}: |")
    beside = {
        "load as native": "cp into a tmpfs",
        "load safetensors as native": "load as native",
        "load as f32": "read and decode to f32, one thread",
    }
    for name, times in rows.items():
        ratio = ""
        if name in beside:
            against = rows[beside[name]]
            value = statistics.median(b / a for a, b in zip(times, against))
            ratio = f"{value:.2f} of the row above's rate"
        median = statistics.median(times)
        print(f"| {name:36} | {median:8.3f} | {size / median / 1e9:16.2f} | {ratio:>28} |")
    print()
    print(f"| {'what':44} | {'median':>10} | {'99th percentile':>15} |")
    print(f"| {'-' * 44} | {'-' * 9}: | {'-' * 14}: |")
    for name, median, p99 in [
        ("first attach of a process", first[len(first) // 2], first[len(first) * 99 // 100]),
        ("later attaches", later["attach"]["median"], later["attach"]["p99"]),
        ("detach", later["detach"]["median"], later["detach"]["p99"]),
        ("ping while a load to f32 keeps all busy", ping["median"], ping["p99"]),
    ]:
        print(f"| {name:44} | {median / 1e3:7.3f} ms | {p99 / 1e3:12.3f} ms |")


if __name__ == "__main__":
    main()
