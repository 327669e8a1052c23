#!/usr/bin/env python3
"""Measures loads and attachments on this machine, and says so in a table.

    load.py BUILD FILE

The file is read once before, so that the page cache has it: what is measured is the daemon, not the disk. Times are the
median of five. Every form is loaded into host memory, and on whatever GPU the daemon finds.
"""
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))

from rocmforge_wire import Client, WireError  # noqa: E402

REPEAT = 5
FORMS = ["native", "f16", "f32"]
ATTACHMENTS = 1000


def warm(path):
    with open(path, "rb") as file:
        while file.read(1 << 24):
            pass


def start(build, folder):
    path = folder / "io.rocmforge"
    daemon = subprocess.Popen([build / "daemon" / "rocmforged", "--socket", path, "--log-level", "warning"])
    for _ in range(500):
        if path.exists():
            return daemon, path
        time.sleep(0.02)
    sys.exit("load.py: the daemon did not start")


def measure_loads(client, path, device, form):
    times = []
    for _ in range(REPEAT):
        with open(path, "rb") as file:
            began = time.monotonic()
            model = client.call("Load", fds=[file.fileno()], name="bench", form=form, device=device)["model"]
            times.append(time.monotonic() - began)
        client.call("Unload", name="bench")
    return statistics.median(times), model


def measure_attach(client, path, table):
    client.call("Load", path=str(path), name="bench", form="native")
    times = []
    for _ in range(ATTACHMENTS):
        began = time.monotonic()
        lease = client.call("Attach", name="bench", table=table)["lease"]
        times.append(time.monotonic() - began)
        client.call("Detach", lease=lease)
    client.call("Unload", name="bench")
    return statistics.median(times)


def main():
    build, path = Path(sys.argv[1]), Path(sys.argv[2]).resolve()
    size = path.stat().st_size
    warm(path)
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} processors, {path.name}, {size / 1e9:.2f} GB")
    with tempfile.TemporaryDirectory(prefix="rf") as folder:
        daemon, socket = start(build, Path(folder))
        try:
            with Client(socket, timeout=600) as client:
                print(f"{'device':10} {'form':8} {'seconds':>8} {'file GB/s':>10} {'resident GB':>12}")
                for device in client.call("Devices")["devices"]:
                    for form in FORMS:
                        try:
                            seconds, model = measure_loads(client, path, device["id"], form)
                        except WireError as error:
                            print(f"{device['id']:10} {form:8} {error}")
                            continue
                        rate, resident = size / seconds / 1e9, model["bytes"] / 1e9
                        print(f"{device['id']:10} {form:8} {seconds:8.3f} {rate:10.2f} {resident:12.2f}")
                for table in (False, True):
                    median = measure_attach(client, path, table) * 1e6
                    print(f"attach, table in {'binary' if table else 'JSON'}: {median:.0f} us, through Python")
        finally:
            daemon.terminate()
            daemon.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
