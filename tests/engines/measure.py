#!/usr/bin/env python3
"""How soon llama.cpp says something, and how much memory several of it take, with and without resident weights.

    measure.py --engine BIN --build BUILD --model LABEL=FILE... [--small FILE] [--kind cuda|hip|host] [--out FILE]

BIN: the folder with llama-completion and llama-bench, built with GGML_BACKEND_DL. BUILD: this project's build folder.
Each figure is the best and the median of the rounds, with the two ways taken in turn. Every run says the same tokens, or
this fails. Files are in the page cache. --small: a model of some 50 MB, with which a start takes as long as one can take.
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
import time
from pathlib import Path

TOKENS = 32
SECONDS = 120  # that one run may take


class Failed(Exception):
    pass


def agree(one, other):
    """llama.cpp writes from a thread that it does not wait for when it ends: the last few tokens may be lost."""
    n = min(len(one), len(other))
    return n >= 2 and one[:n] == other[:n]


class Bench:
    def __init__(self, args):
        self.args = args
        self.engine = Path(args.engine).resolve()
        self.build = Path(args.build).resolve()
        self.folder = Path(tempfile.mkdtemp(prefix="rocmforge-engine-"))
        self.env = {
            **os.environ,
            "ROCMFORGE_SOCKET": str(self.folder / "socket"),
            "ROCMFORGE_MODULE_DIR": str(self.build / "daemon" / "device" / "hip"),
        }
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

    def command(self, model, shared, *more):
        words = [self.engine / "llama-completion", "-m", model, "-p", "one two three", "-n", str(TOKENS), "--temp", "0"]
        words += ["-no-cnv", "--no-display-prompt", "--no-warmup", "--perf", "-ngl", str(self.args.ngl), "-c", "512"]
        words += ["--fit", "off"] if self.args.fit_off else []
        words += ["-ot", ".*=ROCmForge"] if shared else []
        return [str(word) for word in [*words, *self.args.option, *more]]

    def environment(self, shared):
        if not shared:
            return {name: value for name, value in self.env.items() if name != "GGML_BACKEND_PATH"}
        return {**self.env, "GGML_BACKEND_PATH": str(self.build / "client/engines/llama/libggml-rocmforge.so")}

    def begin(self, model, shared, *more):
        log = open(self.folder / "engine.log", "w+b")
        process = subprocess.Popen(
            self.command(model, shared, *more),
            env=self.environment(shared),
            stdout=subprocess.PIPE,
            stderr=log,
            stdin=subprocess.DEVNULL,
            cwd=self.args.cwd,
        )
        process.log = log
        return process

    def run(self, model, shared, *more):
        """Seconds to the first token, the engine's own load time, and what it said."""
        began = time.monotonic()
        process = self.begin(model, shared, *more)
        first = process.stdout.read(1)
        to_first = time.monotonic() - began
        said = first + process.stdout.read()
        status = process.wait(SECONDS)
        process.log.seek(0)
        log = process.log.read().decode(errors="replace")
        process.log.close()
        if status != 0:
            raise Failed(f"the engine ended with {status}:\n{log[-3000:]}")
        said_not = [line for line in log.splitlines() if line.startswith("rocmforge:") and "not shared" in line]
        if shared and ("shared with other processes" not in log or (said_not and not self.args.allow_own)):
            raise Failed(f"the weights were not shared:\n{log[-3000:]}")
        for line in said_not[: shared and not self.told_own]:
            print(f"  note: {line}")
            self.told_own = True
        load = re.search(r"load time\s*=\s*([\d.]+) ms", log)
        return {"first": to_first, "load": float(load[1]) / 1000 if load else None, "said": said.hex()}

    def rounds(self, model, small):
        runs = {"as people run it": [], "resident": [], "small": []}
        for _ in range(self.args.rounds):
            runs["as people run it"].append(self.run(model, False))
            runs["resident"].append(self.run(model, True))
            if small:
                runs["small"].append(self.run(small, False))
        said = [run["said"] for run in runs["resident"]]
        if self.args.kind == "host": # where weights that llama.cpp read itself are repacked, and numbers rounded otherwise
            said.append(self.run(model, False, "--no-repack")["said"])
        else:
            said += [run["said"] for run in runs["as people run it"]]
        if not all(agree(said[0], other) for other in said):
            raise Failed(f"{model}: not always the same tokens: {said}")
        return runs

    # --- memory ---

    def used(self):
        """MB of the GPU, or of all processes on the host."""
        if self.args.kind == "cuda":
            text = subprocess.run(
                ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"],
                capture_output=True, text=True, check=True,
            ).stdout
            return float(text.split()[0])
        return None

    def pss(self, processes):
        total = 0
        for process in processes:
            text = Path(f"/proc/{process.pid}/smaps_rollup").read_text(encoding="ascii")
            total += int(re.search(r"^Pss:\s+(\d+)", text, re.M)[1])
        return total / 1024

    def three(self, model, shared):
        before = self.used()
        processes = [self.begin(model, shared, "-n", "100000", "--ignore-eos") for _ in range(3)]
        try:
            for process in processes:
                process.stdout.read(1)
            time.sleep(1)
            after = self.used()
            return {"gpu_mb": after - before if after is not None else None, "pss_mb": self.pss(processes)}
        finally:
            for process in processes:
                process.kill()
                process.wait()
                process.stdout.close()
                process.log.close()
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
        process.log.close()
        if status != 0 or not agree(said.hex(), whole):
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

    def speed(self, model, shared):
        """Tokens per second; on the host processor seconds, which other programs do not change."""
        if self.args.kind == "host":
            parts = {"prompt of 512": ["-p", "512", "-n", "0", "-r", "1"], "64 tokens": ["-p", "0", "-n", "64", "-r", "1"]}
            return {f"{name}, s of user time": self.bench(model, shared, *words)[1] for name, words in parts.items()}
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
        self.step(label, "runs", self.rounds, path, self.args.small)
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
    print(f"  {'':18} {'start to first token':>24} {'its load':>18} {'GB/s':>6}")
    for way, all_runs in runs.items():
        firsts = [run["first"] for run in all_runs]
        loads = [run["load"] for run in all_runs if run["load"]]
        if firsts and loads:
            print(
                f"  {way:18} {min(firsts):9.3f} s, median {statistics.median(firsts):.3f}"
                f" {min(loads):8.3f}, {statistics.median(loads):.3f} {size / min(loads) / 1e9:6.1f}",
                flush=True,
            )
    if runs.get("small") and runs.get("resident"):
        ratio = statistics.median(r["first"] for r in runs["resident"]) / statistics.median(r["first"] for r in runs["small"])
        print(f"  resident to small: {ratio:.3f}")


def tell_memory(result):
    for name in ("three", "three shared"):
        if name in result:
            print(f"  three processes{' on resident weights' if 'shared' in name else ''}: {result[name]}", flush=True)


def tell_speed(result):
    for name in ("speed", "speed shared"):
        if name in result:
            rates = ", ".join(f"{key}: {rate:.1f}" for key, rate in result[name].items())
            print(f"  llama-bench{' on resident weights' if 'shared' in name else ''}: {rates}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", required=True)
    parser.add_argument("--build", required=True)
    parser.add_argument("--model", action="append", required=True, metavar="LABEL=FILE")
    parser.add_argument("--small", metavar="FILE")
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
