#!/usr/bin/env python3
"""Measures loads to a GPU, beside what the bus gives, and beside other ways to load with PyTorch.

    bench_gpu.py BUILD [--kind cuda] [--out FOLDER] [--models FOLDER] [--only TABLE]... [--quick]

Files are in the page cache, read from the disk. A load's time is from the request to the answer, in the bytes of its
file; the best of nine and their median. The ceiling is that of plain pinned copies, measured in the same run. A driver
clears memory that was freed, with the engine that copies: a load is begun when that is over, but for the rows that say
otherwise. So do loads get memory that the driver gives anew (--keep-freed 0). Prints tables; with --out writes
bench_gpu.json there.
"""
import argparse
import contextlib
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "lib"))

from page_cache import read_from_disk  # noqa: E402
from rocmforge_wire import Client, WireError  # noqa: E402

REPEAT = 9
READERS = 12  # threads, as many as the daemon has read at a time
REST = 0.3  # seconds after an unload: what the driver does with the memory is over
COLUMNS = "{:<8} {:<7} {:<5} {:>7} {:>7} {:>9} {:>9} {:>8} {:>9}  {}"


class Daemon:
    def __init__(self, build, kind, *options, stderr=None):
        self.bench_load = next(build.rglob("bench_load"))
        self.folder = tempfile.TemporaryDirectory(prefix="rf")
        self.socket = Path(self.folder.name) / "io.rocmforge"
        self.process = subprocess.Popen(
            [build / "daemon" / "rocmforged", "--socket", self.socket, "--device", kind, "--log-level", "warning",
             "--keep-freed", "0", *options],
            env={**os.environ, "ROCMFORGE_MODULE_DIR": str(build / "daemon" / "device" / "hip")},
            stderr=stderr,
        )
        began = time.monotonic()
        while True:
            try:
                self.client = Client(self.socket, timeout=300)
                self.client.call("Status")
                break
            except (OSError, WireError):
                if self.process.poll() is not None or time.monotonic() - began > 60:
                    sys.exit("bench_gpu.py: the daemon did not start")
                time.sleep(0.01)
        self.start = time.monotonic() - began

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.client.close()
        self.process.terminate()
        self.process.wait(60)
        self.folder.cleanup()

    def load(self, path, name, **parameters):
        """Seconds, and where they went."""
        with open(path, "rb") as file:
            began = time.monotonic()
            reply = self.client.call("Load", fds=[file.fileno()], name=name, **parameters)
            return time.monotonic() - began, reply.get("phases")

    def unload(self, name):
        self.client.call("Unload", name=name)

    def loads(self, path, times=REPEAT, rest=REST, **parameters):
        """The same of several, each unloaded again; by a client in C, whose own time hardly counts."""
        command = [self.bench_load, self.socket, path, str(times), str(int(rest * 1000))]
        for name, value in parameters.items():
            command += [name, value]
        loads = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        return [(load["seconds"], load["answer"].get("phases")) for load in loads]


class Report:
    def __init__(self, link):
        self.link = link
        self.rows = []

    def head(self, title):
        print(f"\n{title}")
        print(COLUMNS.format("file", "form", "where", "workers", "streams", "best s", "median s", "GB/s", "of link", ""))

    def add(self, file, path, form, dequant, workers, streams, taken, note=""):
        seconds = [t for t, _ in taken]
        rate = path.stat().st_size / min(seconds)
        self.rows.append({
            "file": file, "bytes": path.stat().st_size, "form": form, "dequant": dequant, "workers": workers,
            "streams": streams, "seconds": seconds, "rate": rate, "of_link": rate / self.link, "note": note,
            "phases": taken[seconds.index(min(seconds))][1],
        })
        print(COLUMNS.format(file, form, dequant, workers or "-", streams or "-", f"{min(seconds):.4f}",
                             f"{statistics.median(seconds):.4f}", f"{rate / 1e9:.1f}", f"{rate / self.link:.3f}", note),
              flush=True)


def make_model(path, *options):
    subprocess.run([sys.executable, ROOT / "tests" / "lib" / "make_model.py", path, *options], check=True,
                   stdout=subprocess.DEVNULL)


def make_models(folder, quick):
    folder.mkdir(parents=True, exist_ok=True)
    models = {}
    for type_ in ("q4_0", "f16"):
        path = folder / f"7b-{type_}{'-quick' if quick else ''}.gguf"
        if not path.exists():
            make_model(path, "--shape-preset", "7b", "--layers", "2" if quick else "32", "--types", type_)
        rate = read_from_disk(path)
        models[type_] = path
        print(f"{path}: {path.stat().st_size / 1e9:.2f} GB, read into the page cache at {rate / 1e9:.1f} GB/s", flush=True)
    return models


def bench_defaults(build, kind, models, report):
    report.head("Loads with the default settings")
    for type_, path in models.items():
        for form in ("native", "auto"):
            with Daemon(build, kind) as daemon:
                first = daemon.loads(path, times=1, rest=0, form=form)
                report.add(type_, path, form, "gpu", 0, 0, daemon.loads(path, form=form))
                report.add(type_, path, form, "gpu", 0, 0, first, "the first after start")
                at_once = daemon.loads(path, rest=0, form=form)
                report.add(type_, path, form, "gpu", 0, 0, at_once, "each right after an unload of as much, --keep-freed 0")
            with Daemon(build, kind, "--keep-freed", "1") as daemon:
                at_once = daemon.loads(path, rest=0, form=form)[1:]
                report.add(type_, path, form, "gpu", 0, 0, at_once, "each right after an unload of as much")


def bench_workers(build, kind, models, report):
    report.head("Workers")
    for workers in (1, 2, 4, 8, 12, 13, 14, 16):
        with Daemon(build, kind, "--workers", str(workers)) as daemon:
            for type_, form, dequant in (("f16", "native", "gpu"), ("q4_0", "auto", "gpu"), ("q4_0", "auto", "cpu")):
                taken = daemon.loads(models[type_], times=3, form=form, dequant=dequant)
                report.add(type_, models[type_], form, dequant, workers, 0, taken)


def bench_streams(build, kind, models, report):
    report.head("Streams")
    for streams in (1, 2, 4, 8):
        with Daemon(build, kind, "--streams", str(streams)) as daemon:
            for type_, form in (("f16", "native"), ("q4_0", "auto")):
                report.add(type_, models[type_], form, "gpu", 0, streams, daemon.loads(models[type_], times=3, form=form))


def bench_staging(build, kind, models, report):
    report.head("Staging memory")
    for staging in ("24M", "36M", "48M", "72M", "96M", "288M"):
        with Daemon(build, kind, "--staging", staging) as daemon:
            for type_ in models:
                taken = daemon.loads(models[type_], times=3, form="native")
                report.add(type_, models[type_], "native", "gpu", 0, 0, taken, staging)


def bench_host_cache(build, kind, models, report):
    """A model that is pushed out of the device to host memory, and comes back."""
    report.head("By way of host memory (--host-cache)")
    size = models["f16"].stat().st_size
    options = ("--host-cache", str(2 * size), "--budget", str(size * 5 // 4))
    with Daemon(build, kind, *options) as daemon:
        daemon.load(models["f16"], "a", form="native")
        time.sleep(REST)
        saving = [daemon.load(models["f16"], "b", form="native", private=True)]
        report.add("f16", models["f16"], "native", "gpu", 0, 0, saving, "the load that pushes another one out")
        daemon.unload("b")
        time.sleep(REST)
        back = [daemon.load(models["f16"], "a", form="native")]
        report.add("f16", models["f16"], "native", "gpu", 0, 0, back, "that one, back")


def bench_exports(build, kind, models, report):
    """Memory that clients get by IPC handle, and by descriptor: two daemons, whose loads take turns."""
    report.head("By IPC handle and by descriptor (--export), in turns")
    exports = ("ipc", "fd")
    with contextlib.ExitStack() as stack:
        daemons = {export: stack.enter_context(Daemon(build, kind, "--export", export)) for export in exports}
        for type_, form in (("f16", "native"), ("q4_0", "native"), ("q4_0", "auto")):
            taken = {export: [] for export in exports}
            at_once = {export: [] for export in exports}
            for _ in range(REPEAT):
                for export in exports:
                    taken[export] += daemons[export].loads(models[type_], times=1, form=form)
            for export in exports:
                at_once[export] = daemons[export].loads(models[type_], rest=0, form=form)[1:]
            for export in exports:
                report.add(type_, models[type_], form, "gpu", 0, 0, taken[export], export)
            for export in exports:
                note = f"{export}, each right after an unload of as much"
                report.add(type_, models[type_], form, "gpu", 0, 0, at_once[export], note)


def bench_reading(build, path):
    """GB/s at which the processors read a file: no load is faster than either this or the link."""
    command = [next(build.rglob("bench_pread")), path, str(READERS), "3"]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(re.search(r"first to last ([\d.]+) GB/s", lines)[1])


LOADS = {
    "defaults": bench_defaults,
    "workers": bench_workers,
    "streams": bench_streams,
    "staging": bench_staging,
    "host-cache": bench_host_cache,
    "exports": bench_exports,
}


def bench_attach(build, kind, folder, export):
    names = []
    with Daemon(build, kind, "--export", export) as daemon:
        for i in range(12):
            path = folder / f"attach{i}.gguf"
            make_model(path, "--tensors", "100", "--bytes", "16M", "--types", "q4_0", "--seed", str(i))
            daemon.load(path, f"attach{i}")
            names.append(f"attach{i}")
        program = next(build.rglob("bench_attach"))
        out = subprocess.run([program, daemon.socket, *names], check=True, capture_output=True, text=True,
                             env={**os.environ, "ROCMFORGE_MODULE_DIR": str(build / "daemon" / "device" / "hip")}).stdout
    result = json.loads(out)
    print(f"\nAttaching, through the client library, in microseconds (--export {export})")
    print(f"  the first in a process, which starts the GPU's runtime  {result['first']:.0f}")
    for key, what in (("handle_opened", "a model not attached before"), ("handle_open_already", "one that is attached")):
        r = result[key]
        print(f"  {what:<55} {r['median']:.0f} (from {r['least']:.0f} to {r['most']:.0f})")
    return result


# What users of PyTorch can do: as many bytes of f16, in as many tensors, to the same device.
OTHERS = """
import json, sys, time, torch, safetensors, safetensors.torch
folder, size = sys.argv[1], int(sys.argv[2])
n = 291
tensors = {f"t{i}": torch.full((size // n // 2,), i / 7, dtype=torch.float16) for i in range(n)}
safetensors.torch.save_file(tensors, folder + "/other.safetensors")
torch.save(tensors, folder + "/other.pt")
del tensors
for path in ("/other.safetensors", "/other.pt"):
    with open(folder + path, "rb") as file:
        while file.read(1 << 24):
            pass
torch.zeros(1, device="cuda")
ways = {
    "safetensors": lambda: safetensors.torch.load_file(folder + "/other.safetensors", device="cuda"),
    "torch.load": lambda: torch.load(folder + "/other.pt", map_location="cuda"),
    "torch.load, mmap": lambda: torch.load(folder + "/other.pt", map_location="cuda", mmap=True),
}
seconds = {}
for name, load in ways.items():
    times = []
    for _ in range(5):
        torch.cuda.empty_cache()
        torch.cuda.synchronize()
        began = time.monotonic()
        loaded = load()
        torch.cuda.synchronize()
        times.append(time.monotonic() - began)
        del loaded
    seconds[name] = times
versions = {"torch": torch.__version__, "safetensors": safetensors.__version__}
print(json.dumps({"seconds": seconds, "versions": versions}))
"""


def bench_others(folder, size):
    done = subprocess.run([sys.executable, "-c", OTHERS, str(folder), str(size)], capture_output=True, text=True)
    for name in ("other.safetensors", "other.pt"):
        (folder / name).unlink(missing_ok=True)
    if done.returncode != 0:
        print(f"\nOther ways to load, with PyTorch: cannot be measured here: {done.stderr.strip().splitlines()[-1:]}")
        return None
    result = json.loads(done.stdout.strip().splitlines()[-1])
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    print(f"\nOther ways to load, on {time.strftime('%Y-%m-%d')} ({versions}): {size / 1e9:.2f} GB of f16 from the page "
          "cache to the same GPU")
    for name, times in result["seconds"].items():
        median = statistics.median(times)
        print(f"  {name:<18} best {min(times):.3f} s, {size / min(times) / 1e9:.1f} GB/s; median {median:.3f} s, "
              f"{size / median / 1e9:.1f} GB/s; first {times[0]:.3f} s")
    return {"bytes": size, **result}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", type=Path)
    parser.add_argument("--kind", default="cuda")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--models", type=Path, default=Path("/tmp/rocmforge-bench"))
    parser.add_argument("--only", action="append", choices=[*LOADS, "attach", "others"], help="default: all tables")
    parser.add_argument("--quick", action="store_true", help="small files, to try this script")
    arguments = parser.parse_args()
    build = arguments.build.resolve()
    wanted = arguments.only or [*LOADS, "attach", "others"]

    models = make_models(arguments.models, arguments.quick)
    link = subprocess.run([next(build.rglob(f"bench_link_{arguments.kind}"))], capture_output=True, text=True)
    if link.returncode == 77:
        print(link.stderr, file=sys.stderr)
        return 77
    link = json.loads(link.stdout)
    sizes = ", ".join(f"{int(size) >> 20} MiB {rate / 1e9:.1f}" for size, rate in link["sizes"].items())
    print(f"{link['device']}, {os.cpu_count()} processors. Pinned copies, GB/s: {sizes}")
    reading = bench_reading(build, models["q4_0"])
    print(f"Reading alone, {READERS} threads: {reading:.1f} GB/s")

    report = Report(link["link"])
    for name, bench in LOADS.items():
        if name in wanted:
            bench(build, arguments.kind, models, report)
    result = {"link": link, "processors": os.cpu_count(), "reading": reading * 1e9, "loads": report.rows}
    if "attach" in wanted:
        # "auto" fails nowhere: where there are no descriptors it is the same as "ipc".
        for export in ("ipc", "auto"):
            result[f"attach_{export}"] = bench_attach(build, arguments.kind, arguments.models, export)
    if "others" in wanted:
        result["others"] = bench_others(arguments.models, models["q4_0"].stat().st_size)
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "bench_gpu.json").write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
