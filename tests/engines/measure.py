#!/usr/bin/env python3
"""How soon llama.cpp says something, and how much memory several of it take, with and without resident weights.

    measure.py --engine BIN --build BUILD --model LABEL=FILE... [--small FILE] [--narrow LABEL=FILE]...
        [--kind cuda|hip|host] [--out FILE]

BIN: the folder with llama-completion and llama-bench, built with GGML_BACKEND_DL. BUILD: this project's build folder.
Each figure is the best and the median of the rounds, with all ways taken in turn: "resident" with -ot, as it is typed,
and "rfctl run". Every run says the same tokens, or this fails. Files are in the page cache. --small: a model of some 50 MB, which a start should take no longer with than
with a large one that is resident. --narrow: the same, to compare with the model of this label: also some 50 MB, and of
its type, with as many layers and tokens in the vocabulary. Both are run as people run them, in turn with the others, and
also without the rehearsal (--fit off), which "rfctl run" leaves out too: so compare "rfctl run" with these rows.

The start is split by the lines that the engine writes to standard error, each with the time at which it came:

    process    from exec to the first line: the loader, and what the program does before it says anything
    backends   until the file is opened: the engine loads its backends, and each looks for its devices
    fit        until the header is read: a rehearsal without memory, which "--fit off" leaves out
    header     until tensors are made: the vocabulary is built
    weights    until the context is made: buffers, the plug-in's attach, and setting every tensor
    context    until it is ready: the cache, compute buffers, the graph
    first      until the first byte on standard output: the prompt, and the first token

MB and GB are 10^6 and 10^9 bytes.
"""
import argparse
import json
import os
import re
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

TOKENS = 32
SECONDS = 120  # that one run may take
QUICK = ", no rehearsal"  # after the name of a row
PASSES = 4  # of a test of llama-bench, beyond the first

# Where a part of the start ends: at the first line that matches, or the last one.
MARKS = [
    ("process", "first", re.compile(r".")),
    ("backends", "first", re.compile(r"fitting params to device memory|llama_model_loader: loaded meta data")),
    ("fit", "last", re.compile(r"llama_model_loader: loaded meta data")),
    ("header", "last", re.compile(r"load_tensors: loading model tensors")),
    ("weights", "last", re.compile(r"constructing llama_context")),
    ("context", "last", re.compile(r"sched_reserve|graph nodes|graph splits|compute buffer size")),
]


class Failed(Exception):
    pass


def agree(one, other):
    """Whether both say the same, as far as both go. llama.cpp writes from a thread that it does not wait for when it ends:
    the last few tokens may be lost. But each must have said most: a token is at least one byte."""
    n = min(len(one), len(other))
    return n >= TOKENS // 2 and n >= max(len(one), len(other)) // 2 and one[:n] == other[:n]


class Lines(threading.Thread):
    """What a process writes to standard error, and when."""

    def __init__(self, pipe):
        super().__init__(daemon=True)
        self.pipe = pipe
        self.lines = []
        self.start()

    def run(self):
        for line in self.pipe:
            self.lines.append((time.monotonic(), line.decode(errors="replace").rstrip()))

    def text(self):
        self.join(SECONDS)
        return "\n".join(line for _, line in self.lines)


def split(lines, began, first):
    """The parts of a start, in seconds. A part whose end is not said is None, and belongs to the next."""
    parts, last = {}, began
    for name, which, pattern in MARKS:
        times = [at for at, line in lines if last <= at <= first and pattern.search(line)]
        end = (times[0] if which == "first" else times[-1]) if times else None
        parts[name] = end - last if times else None
        last = end or last
    parts["first"] = first - last
    return parts


class Bench:
    def __init__(self, args):
        self.args = args
        self.engine = Path(args.engine).resolve()
        self.build = Path(args.build).resolve()
        self.folder = Path(tempfile.mkdtemp(prefix="rocmforge-engine-"))
        self.env = {
            **os.environ,
            "ROCMFORGE_SOCKET": str(self.folder / "socket"),
            "ROCMFORGE_MODULE_DIR": f"{self.build}/daemon/device/hip:{self.build}/client/engines/llama",
        }
        self.env.pop("ROCMFORGE_MODEL", None) # which names a file to the tests, and a model to the plug-in
        self.narrow = dict(text.split("=", 1) for text in args.narrow)
        self.daemon = None
        self.result = {}
        self.told_own = False

    # --- the daemon ---

    def start(self):
        command = [self.build / "daemon" / "rocmforged", "--socket", self.env["ROCMFORGE_SOCKET"]]
        with open(self.folder / "daemon.log", "ab") as log:
            self.daemon = subprocess.Popen(
                [*command, "--device", self.args.kind], env=self.env, stdout=log, stderr=log
            )
        end = time.monotonic() + 30
        while self.rfctl("ping", check=False).returncode != 0:
            if time.monotonic() > end or self.daemon.poll() is not None:
                raise Failed("the daemon did not start:\n" + (self.folder / "daemon.log").read_text())
            time.sleep(0.05)

    def stop(self, how=signal.SIGTERM):
        if self.daemon and self.daemon.poll() is None:
            self.daemon.send_signal(how)
            self.daemon.wait(30)
        self.daemon = None

    def rfctl(self, *words, check=True):
        rfctl = self.build / "client" / "rfctl" / "rfctl"
        return subprocess.run([rfctl, *words], env=self.env, check=check, capture_output=True, text=True, timeout=SECONDS)

    # --- runs ---

    def command(self, model, shared, *more, by_rfctl=False):
        words = [self.build / "client" / "rfctl" / "rfctl", "run"] if by_rfctl else []
        words += [self.engine / "llama-completion", "-m", model, "-p", "one two three", "-n", str(TOKENS), "--temp", "0"]
        words += ["-no-cnv", "--no-display-prompt", "--no-warmup", "--perf", "-ngl", str(self.args.ngl), "-c", "512"]
        words += ["--ignore-eos", "-lv", "4"]
        words += ["--fit", "off"] if self.args.fit_off else []
        words += ["-ot", ".*=ROCmForge"] if shared and not by_rfctl else []
        return [str(word) for word in [*words, *self.args.option, *more]]

    def environment(self, shared):
        if not shared:
            return {name: value for name, value in self.env.items() if name != "GGML_BACKEND_PATH"}
        return {**self.env, "GGML_BACKEND_PATH": str(self.build / "client/engines/llama/libggml-rocmforge.so")}

    def begin(self, model, shared, *more, by_rfctl=False):
        process = subprocess.Popen(
            self.command(model, shared, *more, by_rfctl=by_rfctl),
            env=self.environment(shared),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            cwd=self.args.cwd,
        )
        process.lines = Lines(process.stderr)
        return process

    def run(self, model, shared, *more, by_rfctl=False):
        """Seconds to the first token, the parts of them, the engine's own load time, and what it said."""
        began = time.monotonic()
        process = self.begin(model, shared, *more, by_rfctl=by_rfctl)
        first = process.stdout.read(1)
        end = time.monotonic()
        said = first + process.stdout.read()
        status = process.wait(SECONDS)
        log = process.lines.text()
        if status != 0:
            raise Failed(f"the engine ended with {status}:\n{log[-3000:]}")
        said_not = [line for line in log.splitlines() if line.startswith("rocmforge:") and "not shared" in line]
        if shared and ("shared with other processes" not in log or (said_not and not self.args.allow_own)):
            told = [line for line in log.splitlines() if line.startswith("rocmforge:")]
            raise Failed(f"the weights were not shared: {told}\n{log[-1000:]}")
        for line in said_not[: shared and not self.told_own]:
            print(f"  note: {line}")
            self.told_own = True
        load = re.search(r"load time\s*=\s*([\d.]+) ms", log)
        attach = re.search(r"attached in ([\d.]+) ms", log)
        return {
            "first": end - began,
            "parts": split(process.lines.lines, began, end),
            "attach": float(attach[1]) / 1000 if attach else None,
            "load": float(load[1]) / 1000 if load else None,
            "said": said.hex(),
        }

    def rounds(self, model, others):
        """others: what the run is called -> a model to compare with."""
        runs = {way: [] for way in ("as people run it", "resident", "rfctl run")}
        runs.update({name + how: [] for name in others for how in ("", QUICK)})
        for _ in range(self.args.rounds):
            runs["as people run it"].append(self.run(model, False))
            runs["resident"].append(self.run(model, True))
            runs["rfctl run"].append(self.run(model, True, by_rfctl=True))
            for name, other in others.items():
                runs[name].append(self.run(other, False))
                runs[name + QUICK].append(self.run(other, False, "--fit", "off"))
        said = [run["said"] for run in runs["resident"] + runs["rfctl run"]]
        if self.args.kind == "host": # where weights that llama.cpp read itself are repacked, and numbers rounded otherwise
            said.append(self.run(model, False, "--no-repack")["said"])
        else:
            said += [run["said"] for run in runs["as people run it"]]
        if not all(agree(bytes.fromhex(said[0]), bytes.fromhex(other)) for other in said):
            raise Failed(f"{model}: not always the same tokens: {said}")
        return runs

    # --- memory ---

    def used(self):
        """Bytes of the GPU's memory that are in use; None on the host."""
        if self.args.kind == "cuda":
            text = subprocess.run(
                ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"],
                capture_output=True, text=True, check=True,
            ).stdout
            return int(text.split()[0]) << 20 # nvidia-smi counts in MiB
        return None

    def pss(self, processes):
        total = 0
        for process in processes:
            text = Path(f"/proc/{process.pid}/smaps_rollup").read_text(encoding="ascii")
            total += int(re.search(r"^Pss:\s+(\d+)", text, re.M)[1]) << 10
        return total

    def three(self, model, shared):
        before = self.used()
        processes = [self.begin(model, shared, "-n", "100000", "--ignore-eos") for _ in range(3)]
        try:
            for process in processes:
                process.stdout.read(1)
            time.sleep(1)
            after = self.used()
            return {"gpu_bytes": after - before if after is not None else None, "pss_bytes": self.pss(processes)}
        finally:
            for process in processes:
                process.kill()
                process.wait()
                process.stdout.close()
            time.sleep(1)

    # --- the daemon dies ---

    def killed(self, model):
        """The daemon is killed after the first token."""
        whole = self.run(model, True, "-n", "256", "--ignore-eos")["said"]
        process = self.begin(model, True, "-n", "256", "--ignore-eos")
        said = process.stdout.read(1)
        self.stop(signal.SIGKILL)
        said += process.stdout.read()
        status = process.wait(SECONDS)
        if status != 0 or not agree(said, bytes.fromhex(whole)):
            raise Failed(f"{model}: after the daemon was killed: status {status}, other tokens")
        self.start()
        return {"bytes": len(said)}

    def bench(self, model, shared, *more):
        words = [self.engine / "llama-bench", "-m", model, "-ngl", str(self.args.ngl), "-o", "json", *more]
        words += [*self.args.option, *(["-ot", ".*=ROCmForge"] if shared else [])]
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
        run = subprocess.run(
            list(map(str, words)), env=self.environment(shared), capture_output=True, timeout=SECONDS,
            cwd=self.args.cwd, check=False,
        )
        if run.returncode != 0:
            raise Failed(f"llama-bench: {run.stderr.decode(errors='replace')[-3000:]}")
        return json.loads(run.stdout), resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before

    def user_time(self, model, shared, *words):
        """User time of one pass: what PASSES more of them take. So the start, the warm-up and repacking do not count."""
        few, many = (self.bench(model, shared, *words, "-r", str(n))[1] for n in (1, 1 + PASSES))
        return (many - few) / PASSES

    def speed(self, model, shared):
        """Tokens per second; on the host processor seconds, which other programs do not change much. The whole run of
        llama-bench has a start, a warm-up and one pass in it."""
        if self.args.kind == "host":
            parts = {"prompt of 512": ["-p", "512", "-n", "0"], "64 tokens": ["-p", "0", "-n", "64"]}
            times = {f"{name}, s of user time": self.user_time(model, shared, *words) for name, words in parts.items()}
            whole = self.bench(model, shared, *parts["prompt of 512"], "-r", "1")[1]
            return {**times, "a whole run of llama-bench with that prompt, s of user time": whole}
        tests = self.bench(model, shared, "-p", "512", "-n", "128", "-r", "3")[0]
        return {("prompt" if test["n_prompt"] else "generating") + ", tokens/s": test["avg_ts"] for test in tests}

    # --- all ---

    def step(self, model, name, function, *arguments):
        """A figure that cannot be had is told, and the others are had all the same."""
        try:
            self.result[model][name] = function(*arguments)
        except (Failed, subprocess.TimeoutExpired, OSError, ValueError) as error:
            self.result[model].setdefault("failed", {})[name] = str(error)
            print(f"  FAILED: {name}: {error}", flush=True)

    def model(self, label, path):
        size = os.path.getsize(path)
        print(f"\n{label}, {size / 1e9:.2f} GB", flush=True)
        self.result[label] = {"bytes": size}
        if not self.daemon:
            self.start()
        subprocess.run(["cat", path], stdout=subprocess.DEVNULL, check=True)
        self.rfctl("load", path, "--as", "native", "--device", "host" if self.args.kind == "host" else f"{self.args.kind}:0")
        others = {"small": self.args.small, "narrow": self.narrow.get(label)}
        self.step(label, "runs", self.rounds, path, {name: other for name, other in others.items() if other})
        tell_runs(self.result[label].get("runs", {}), size)
        if "memory" in self.args.steps:
            for shared in (False, True):
                self.step(label, "three shared" if shared else "three", self.three, path, shared)
            tell_memory(self.result[label])
        if "killed" in self.args.steps:
            self.step(label, "killed", self.killed, path)
            print(f"  the daemon killed while generating: {self.result[label].get('killed', 'FAILED')}", flush=True)
            self.rfctl("load", path, "--as", "native", "--device", "host" if self.args.kind == "host" else f"{self.args.kind}:0")
        if "speed" in self.args.steps:
            for shared in (False, True):
                self.step(label, "speed shared" if shared else "speed", self.speed, path, shared)
            tell_speed(self.result[label])
        for line in self.rfctl("ps").stdout.splitlines()[1:]:
            self.rfctl("unload", line.split()[0], check=False)


def tell_runs(runs, size):
    print(f"  {'':22} {'start to first token':>24} {'its load':>18} {'GB/s':>6}")
    for way, all_runs in runs.items():
        firsts = [run["first"] for run in all_runs]
        loads = [run["load"] for run in all_runs if run["load"]]
        if firsts and loads:
            print(
                f"  {way:22} {min(firsts):9.3f} s, median {statistics.median(firsts):.3f}"
                f" {min(loads):8.3f}, {statistics.median(loads):.3f} {size / min(loads) / 1e9:6.1f}",
                flush=True,
            )
    tell_parts(runs)
    for name in ("small", "small" + QUICK, "narrow", "narrow" + QUICK):
        for way in ("resident", "rfctl run"):
            if runs.get(name) and runs.get(way):
                ratio = statistics.median(r["first"] for r in runs[way]) / statistics.median(r["first"] for r in runs[name])
                print(f"  {way} to {name}: {ratio:.3f}")


def tell_parts(runs):
    """The parts of the start, medians in milliseconds; and of the part `weights` what the plug-in's attach took."""
    names = [*(name for name, _, _ in MARKS), "first"]
    print("  parts of the start, ms" + "".join(f"{name:>10}" for name in [*names, "(attach)"]))
    for way, all_runs in runs.items():
        columns = [[run["parts"][name] for run in all_runs] for name in names] + [[run["attach"] for run in all_runs]]
        cells = [[value for value in column if value is not None] for column in columns]
        if all_runs:
            print(f"  {way:22}" + "".join(f"{1000 * statistics.median(c):10.1f}" if c else f"{'-':>10}" for c in cells), flush=True)


def tell_memory(result):
    for name in ("three", "three shared"):
        if name in result:
            memory = [f"{kind[:3].upper()} {size / 1e6:.0f} MB" for kind, size in result[name].items() if size is not None]
            print(f"  three processes{' on resident weights' if 'shared' in name else ''}: {', '.join(memory)}", flush=True)


def tell_speed(result):
    for name in ("speed", "speed shared"):
        if name in result:
            rates = ", ".join(f"{key}: {rate:.2f}" for key, rate in result[name].items())
            print(f"  llama-bench{' on resident weights' if 'shared' in name else ''}: {rates}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", required=True)
    parser.add_argument("--build", required=True)
    parser.add_argument("--model", action="append", required=True, metavar="LABEL=FILE")
    parser.add_argument("--small", metavar="FILE")
    parser.add_argument("--narrow", action="append", default=[], metavar="LABEL=FILE")
    parser.add_argument("--kind", choices=["host", "hip", "cuda"], default="host")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ngl", default="99")
    parser.add_argument("--steps", default="memory,killed,speed", help="beside the runs")
    parser.add_argument("--option", action="append", default=[], help="another word for the engine")
    parser.add_argument("--cwd", help="where the engine runs")
    parser.add_argument("--allow-own", action="store_true", help="some tensors may have memory of their own")
    parser.add_argument("--fit-off", action="store_true")
    parser.add_argument("--out", metavar="FILE", help="all figures as JSON")
    args = parser.parse_args()
    bench = Bench(args)
    try:
        bench.start()
        for text in args.model:
            label, path = text.split("=", 1)
            bench.model(label, str(Path(path).resolve()))
    finally:
        bench.stop()
        if args.out:
            Path(args.out).write_text(json.dumps(bench.result, indent=1), encoding="utf-8")
        shutil.rmtree(bench.folder, ignore_errors=True)
    return 1 if any("failed" in result for result in bench.result.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
