#!/usr/bin/env python3
"""Measures other ways to load weights to a GPU beside rocmforge: the same safetensors file, in the page cache, in one run.

    peers.py BUILD [--kind cuda] [--out FOLDER] [--models FOLDER] [--bytes 4G] [--times 7] [--wheels FOLDER]

--wheels: a folder of wheels to install, into a temporary folder and without a package index; a machine without one has
them carried along. What is not there is named in its row. Each way has a process of its own, with PyTorch; a load ends
when all tensors are on the device. Prints a table; with --out writes peers.json there.
"""
import argparse
import json
import os
import statistics
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

from bench_gpu import READERS, Daemon
from bench_loads import Process, percentile
from page_cache import read_from_disk

TENSORS = 291
SECONDS = 100  # for each way

# Each defines load(), which returns what it loaded, and `version`.
WAYS = {
    "safetensors": """
import safetensors, safetensors.torch
version = safetensors.__version__
def load():
    return safetensors.torch.load_file(path, device="cuda:0")
""",
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
print(json.dumps({{"seconds": seconds, "version": version}}))
"""


def make_file(path, size):
    """F16 tensors of a believable size, written without other packages."""
    each = size // TENSORS // 4096 * 4096
    header = {f"t{i}": {"dtype": "F16", "shape": [each // 4096, 2048], "data_offsets": [i * each, (i + 1) * each]}
              for i in range(TENSORS)}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    pattern = bytes(b & 0x3b for b in os.urandom(1 << 20))
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        left = each * TENSORS
        while left > 0:
            left -= file.write(pattern[:left])
    return each * TENSORS


def measure(way, path, size, times, packages):
    """Seconds and version; or why there are none."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(packages), os.environ.get("PYTHONPATH", "")])}
    try:
        done = subprocess.run([sys.executable, "-c", MEASURE.format(way=way), str(path), str(size), str(times)],
                              capture_output=True, text=True, env=environment, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return {"why": f"took more than {SECONDS} s"}
    if done.returncode == 0:
        return json.loads(done.stdout.strip().splitlines()[-1])
    last = (done.stderr.strip().splitlines() or ["?"])[-1]
    return {"why": "not installed" if last.startswith("ModuleNotFoundError") else last}


def install(wheels, folder):
    for wheel in sorted(wheels.glob("*.whl")):
        done = subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", folder,
                               wheel], capture_output=True, text=True)
        print(f"{wheel.name}: {'installed' if done.returncode == 0 else done.stderr.strip().splitlines()[-1:]}", flush=True)


def row(name, version, result, size, link):
    if "why" in result:
        print(f"{name:<24} {version:<10} {result['why']}", flush=True)
        return
    seconds = result["seconds"]
    figures = [statistics.median(seconds), percentile(seconds, 95), min(seconds), seconds[0]]
    print(f"{name:<24} {version:<10} " + " ".join(f"{figure:>8.3f}" for figure in figures) +
          f" {size / figures[0] / 1e9:>7.1f} {size / figures[0] / link:>8.3f} {size / figures[1] / link:>8.3f}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", type=Path)
    parser.add_argument("--kind", default="cuda")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--models", type=Path, default=Path("/tmp/rocmforge-bench"))
    parser.add_argument("--bytes", default="4G")
    parser.add_argument("--times", type=int, default=7)
    parser.add_argument("--wheels", type=Path)
    arguments = parser.parse_args()
    build = arguments.build.resolve()
    arguments.models.mkdir(parents=True, exist_ok=True)
    path = arguments.models / "peers.safetensors"
    factor = {"M": 10**6, "G": 10**9}.get(arguments.bytes[-1], 1)
    size = make_file(path, int(float(arguments.bytes.rstrip("MG")) * factor))
    read_from_disk(path)

    probe = Process(next(build.rglob(f"bench_probe_{arguments.kind}")), READERS, path, ready="ready")
    link, reading = float(probe.ask(f"link {4 << 30}")), float(probe.ask(f"read 0 {size}"))
    probe.close()
    results = {"link": link, "reading": reading, "bytes": size, "ways": {}}
    with tempfile.TemporaryDirectory(prefix="rf") as packages:
        if arguments.wheels:
            install(arguments.wheels, packages)
        print(f"\n{size / 1e9:.2f} GB of F16 in {TENSORS} tensors, from the page cache; link {link / 1e9:.1f} GB/s, reading "
              f"alone {reading / 1e9:.1f} GB/s; seconds")
        print(f"{'':<24} {'version':<10} " + " ".join(f"{head:>8}" for head in ("median", "p95", "best", "first")) +
              f" {'GB/s':>7} {'of link':>8} {'p95':>8}")
        with Daemon(build, arguments.kind) as daemon:
            ours = {"seconds": [seconds for seconds, _ in daemon.loads(path, times=arguments.times, form="native")]}
        results["ways"]["rocmforge"] = ours
        row("rocmforge", "", ours, size, link)
        for name, way in WAYS.items():
            result = measure(way, path, size, arguments.times, packages)
            results["ways"][name] = result
            row(name, result.get("version", ""), result, size, link)
    for file in (path, Path(f"{path}.pt")):
        file.unlink(missing_ok=True)
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "peers.json").write_text(json.dumps(results, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
