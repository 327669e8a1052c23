#!/usr/bin/env python3
"""Measures other ways to load weights to a GPU beside rocmforge: the same safetensors file, in the page cache, in one run.

    peers.py BUILD [--kind cuda] [--out FOLDER] [--models FOLDER] [--bytes SIZE] [--times 5] [--wheels FOLDER]

The file is the F16 model of tests/bench/bench_loads.py, in FOLDER; --bytes makes one of another size. rocmforge also loads
the same tensors as GGUF, in turn with it. --wheels: a folder of wheels to install, into a temporary folder and without a
package index; a machine without one has them carried along. What is not there is named in its row. Each way has a process
of its own, with PyTorch; a load ends when all tensors are on the device. Prints a table; with --out writes peers.json
there, after each way. --only: a part of the ways' names.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from bench_gpu import READERS, Daemon
from bench_loads import Process, percentile, prepare

SECONDS = 45  # for each way
SAVED_MOST = 6 * 10**9  # bytes that torch.save is to write

SAFETENSORS = """
import safetensors, safetensors.torch
version = safetensors.__version__
def load():
    return safetensors.torch.load_file(path, device="cuda:0")
"""
AS_INSTALLED = "safetensors, as installed"  # without the wheels

# Each defines load(), which returns what it loaded, and `version`.
WAYS = {
    AS_INSTALLED: SAFETENSORS,
    "safetensors": SAFETENSORS,
    "safetensors, prefetch": """
import safetensors
version = safetensors.__version__
def load():
    with safetensors.safe_open(path, framework="pt", device="cuda:0") as file, file.prefetch() as loader:
        return dict(loader)
""",
    "InstantTensor, buffered": """
import importlib.metadata, instanttensor
version = importlib.metadata.version("instanttensor")
def load():
    with instanttensor.safe_open(path, framework="pt", device=0, backend=instanttensor.BackendPolicy.BUFFERED) as file:
        return dict(file.tensors())
""",
    "InstantTensor, mmap": """
import importlib.metadata, instanttensor
version = importlib.metadata.version("instanttensor")
def load():
    with instanttensor.safe_open(path, framework="pt", device=0, backend=instanttensor.Backend.MMAP) as file:
        return dict(file.tensors())
""",
    "fastsafetensors": """
import importlib.metadata, fastsafetensors
version = importlib.metadata.version("fastsafetensors")
def load():
    with fastsafetensors.fastsafe_open(path, device="cuda:0", nogds=True) as file:
        return {name: file.get_tensor(name) for name in file.keys()}
""",
    "torch.load, mmap": """
version = torch.__version__
torch.save({f"t{i}": torch.full((size // 291 // 2,), 1.0, dtype=torch.float16) for i in range(291)}, path + ".pt")
with open(path + ".pt", "rb") as file:
    while file.read(1 << 24):
        pass
def load():
    return torch.load(path + ".pt", map_location="cuda", mmap=True)
""",
}

MEASURE = """
import json, os, sys, time
path, size, times = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
import torch
torch.zeros(1, device="cuda")
{way}
seconds = []
for _ in range(times):
    torch.cuda.empty_cache()
    torch.cuda.synchronize()
    time.sleep(0.3)
    began = time.monotonic()
    loaded = load()
    torch.cuda.synchronize()
    seconds.append(time.monotonic() - began)
    on_device = sum(tensor.numel() * tensor.element_size() for tensor in loaded.values() if tensor.is_cuda)
    assert on_device >= size * 99 // 100, (on_device, size)
    del loaded
    print(json.dumps({{"seconds": seconds, "version": version}}), flush=True)
"""


def measure(way, path, size, times, packages):
    """Seconds and version; or why there are none."""
    environment = dict(os.environ)
    if packages:
        environment["PYTHONPATH"] = os.pathsep.join([str(packages), os.environ.get("PYTHONPATH", "")])
    try:
        done = subprocess.run([sys.executable, "-c", MEASURE.format(way=way), str(path), str(size), str(times)],
                              capture_output=True, text=True, env=environment, timeout=SECONDS)
    except subprocess.TimeoutExpired as ended:
        lines = (ended.stdout or b"").decode().strip().splitlines()
        known = json.loads(lines[-1])["seconds"] if lines else []
        return {"why": f"took more than {SECONDS} s for {times} loads; it ended {len(known)}: {known}"}
    if done.returncode == 0:
        return json.loads(done.stdout.strip().splitlines()[-1])
    last = (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1]
    return {"why": "not installed" if last.startswith("ModuleNotFoundError") else last}


def install(wheels, folder):
    for wheel in sorted(wheels.glob("*.whl")):
        done = subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target",
                               folder, wheel], capture_output=True, text=True)
        print(f"{wheel.name}: {'installed' if done.returncode == 0 else done.stderr.strip().splitlines()[-1:]}", flush=True)


def row(name, result, size, link):
    if "why" in result:
        print(f"{name:<26} {'':<10} {result['why'][:120]}", flush=True)
        return
    seconds = result["seconds"]
    figures = [statistics.median(seconds), percentile(seconds, 95), min(seconds), seconds[0]]
    print(f"{name:<26} {result.get('version', ''):<10} " + " ".join(f"{figure:>8.3f}" for figure in figures) +
          f" {size / figures[0] / 1e9:>7.1f} {size / figures[0] / link:>8.3f} {size / figures[1] / link:>8.3f}", flush=True)


def ours(build, kind, models, times):
    """Both formats in turn."""
    seconds = {name: [] for name in models}
    with Daemon(build, kind) as daemon:
        for _ in range(times):
            for name, path in models.items():
                seconds[name] += [taken for taken, _ in daemon.loads(path, times=1, form="native")]
    return {f"rocmforge, {name}": {"seconds": of, "bytes": models[name].stat().st_size} for name, of in seconds.items()}


def all_ways(arguments, build, models, packages):
    """Yields names and results, as they come."""
    path = models["safetensors"]
    size = path.stat().st_size
    for name, result in ours(build, arguments.kind, models, arguments.times).items():
        if not arguments.only or arguments.only in name:
            yield name, result
    for name, way in WAYS.items():
        if arguments.only and arguments.only not in name:
            continue
        if name.startswith("torch.load") and size > SAVED_MOST:
            yield name, {"why": f"not measured with more than {SAVED_MOST / 1e9:.0f} GB"}
            continue
        # A header is no part of the tensors, and no tensor is left out.
        yield name, measure(way, path, size - (1 << 20), arguments.times, None if name == AS_INSTALLED else packages)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", type=Path)
    parser.add_argument("--kind", default="cuda")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--models", type=Path, default=Path("/tmp/rocmforge-bench"))
    parser.add_argument("--bytes")
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--wheels", type=Path)
    parser.add_argument("--only")
    arguments = parser.parse_args()
    build = arguments.build.resolve()
    files = prepare(arguments.models, arguments.bytes)
    models = {"safetensors": files["safetensors"], "GGUF": files["f16"]}
    path = models["safetensors"]
    size = path.stat().st_size

    probe = Process(next(build.rglob(f"bench_probe_{arguments.kind}")), READERS, path, ready="ready")
    link, reading = float(probe.ask(f"link {4 << 30}")), float(probe.ask(f"read 0 {size}"))
    probe.close()
    results = {"link": link, "reading": reading, "bytes": size, "ways": {}}
    with tempfile.TemporaryDirectory(prefix="rf") as packages:
        if arguments.wheels:
            install(arguments.wheels, packages)
        print(f"\n{path.name}, {size / 1e9:.2f} GB of F16, from the page cache; link {link / 1e9:.1f} GB/s, reading alone "
              f"{reading / 1e9:.1f} GB/s; seconds of {arguments.times} loads")
        print(f"{'':<26} {'version':<10} " + " ".join(f"{head:>8}" for head in ("median", "p95", "best", "first")) +
              f" {'GB/s':>7} {'of link':>8} {'p95':>8}", flush=True)
        for name, result in all_ways(arguments, build, models, packages):
            results["ways"][name] = result
            row(name, result, result.get("bytes", size), link)
            if arguments.out:
                arguments.out.mkdir(parents=True, exist_ok=True)
                (arguments.out / "peers.json").write_text(json.dumps(results, indent=1) + "\n")
    Path(f"{path}.pt").unlink(missing_ok=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
