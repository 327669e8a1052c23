#!/usr/bin/env python3
"""How soon llama.cpp says something, and how much memory several of it take, with and without resident weights.

    measure.py --engine BIN --build BUILD --model LABEL=FILE... [--small FILE] [--narrow LABEL=FILE]...
        [--kind cuda|hip|host] [--rounds N] [--seconds N] [--out FILE]

BIN: the folder with llama-completion and llama-bench, built with GGML_BACKEND_DL. BUILD: this project's build folder.
Files are in the page cache. All ways to start are taken in each round, in an order by chance, since a start also depends on
what ran before it:

    as people run it   mmap, in the first rounds only
    -ot                resident, with -ot as it is typed
    rfctl run          resident. As -c is given, the engine leaves out its rehearsal of what fits into memory
    narrow             another model, given by --narrow, as people run it: some 50 MB, of the type of this one, with as many
                       layers and tokens in the vocabulary
    small              another model, given by --small, as people run it: some 50 MB
    ..., no rehearsal  the same with --fit off
    ..., 6 tokens      a prompt of so many tokens, with tests/lib/make_llama.py's vocabulary; all others have 21

A start with a large model that is resident should take no longer than one with a small model. Compare rows that both make
the rehearsal, or both leave it out: the ratios that are printed do. Every start of the model says the same tokens, or this
fails.

The start is split by the lines that the engine writes to standard error, each with the time at which it came:

    process    from exec to the first line: the loader, and what the program does before it says anything
    backends   until the file is opened: the engine loads its backends, and each looks for its devices
    fit        until the header is read: the rehearsal
    header     until tensors are made: the vocabulary is built
    weights    until the context is made: buffers, the plug-in's attach, and setting every tensor
    context    until it is ready: the cache, compute buffers, the graph
    first      until the first byte on standard output: the prompt, and the first token

With --seconds all of it ends by then: rounds are fewer, and what has no time left is not begun. What was measured before is
printed and in FILE. MB and GB are 10^6 and 10^9 bytes.
"""
import argparse
import json
import math
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import measure_tables

TOKENS = 32 # that are compared
TRIES = 5 # of a run whose text is lost
SECONDS = 120 # that one run may take
LEAST = 4 # seconds, without which a step is not begun
PEOPLE = 5 # rounds in which the model is started as people run it, which takes long
PROMPT, SHORT, MIDDLE = "one two three", "hi", "one two" # of 21, 6 and 13 tokens: a byte is one, and a space three
USER_PASSES = 4 # of a test of llama-bench on the host, beyond the first
PAIRS, PASSES = 4, 5 # of processes of llama-bench, in turn with and without resident weights; and of tests in each
RUNS_SHARE = 0.6 # of the time, for the starts of all models: the rest is for the other steps


@dataclass(frozen=True)
class Way:
    """A way to start. model: "" is the model itself; else whose place it takes, "narrow" or "small"."""

    name: str
    model: str = ""
    shared: bool = False
    by_rfctl: bool = False
    prompt: str = PROMPT
    options: tuple = ()
    rounds: int = sys.maxsize


FIT_OFF = ("--fit", "off")
WAYS = [
    Way("as people run it", rounds=PEOPLE),
    Way("-ot", shared=True),
    Way("rfctl run", shared=True, by_rfctl=True),
    Way("narrow", "narrow"),
    Way("narrow, no rehearsal", "narrow", options=FIT_OFF),
    Way("small", "small"),
    Way("small, no rehearsal", "small", options=FIT_OFF),
    Way("rfctl run, 6 tokens", shared=True, by_rfctl=True, prompt=SHORT),
    Way("narrow, no rehearsal, 6 tokens", "narrow", prompt=SHORT, options=FIT_OFF),
    Way("rfctl run, 13 tokens", shared=True, by_rfctl=True, prompt=MIDDLE),
    Way("narrow, no rehearsal, 13 tokens", "narrow", prompt=MIDDLE, options=FIT_OFF),
]

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


class Lost(Failed):
    """llama.cpp writes from a thread that it does not wait for when it ends, so the last that it says may be lost."""


def agree(one, other):
    """Whether both say the same, but for the end, which may be lost."""
    n = min(len(one), len(other))
    return n > 0 and one[:n] == other[:n]


def hold(process):
    """Stops a process at its first token. A small model would soon be at the end of its context, and end."""
    if not process.stdout.read(1):
        raise Failed(f"the engine said nothing: {process.lines.text()[-1000:]}")
    process.send_signal(signal.SIGSTOP)


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
        self.device = "host" if args.kind == "host" else f"{args.kind}:0"
        self.end = time.monotonic() + args.seconds if args.seconds else math.inf
        self.env = {
            **os.environ,
            "ROCMFORGE_SOCKET": str(self.folder / "socket"),
            "ROCMFORGE_MODULE_DIR": f"{self.build}/daemon/device/hip:{self.build}/client/engines/llama",
        }
        self.env.pop("ROCMFORGE_MODEL", None) # which names a file to the tests, and a model to the plug-in
        self.models = {label: str(Path(path).resolve()) for label, path in (text.split("=", 1) for text in args.model)}
        self.narrow = dict(text.split("=", 1) for text in args.narrow)
        self.daemon = None
        self.result = {label: {"bytes": os.path.getsize(path)} for label, path in self.models.items()}
        self.told_own = False

    def left(self):
        return self.end - time.monotonic()

    def limit(self):
        """Seconds that a command may take."""
        return max(1, min(SECONDS, self.left()))

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
        done = subprocess.run(
            [rfctl, *words], env=self.env, capture_output=True, text=True, timeout=self.limit(), check=False
        )
        if check and done.returncode != 0:
            raise Failed(f"rfctl {' '.join(words)}: {done.stderr}")
        return done

    def load(self, path):
        self.rfctl("load", path, "--as", "native", "--device", self.device)

    # --- runs ---

    def command(self, model, shared, *more, by_rfctl=False, prompt=PROMPT):
        words = [self.build / "client" / "rfctl" / "rfctl", "run"] if by_rfctl else []
        words += [self.engine / "llama-completion", "-m", model, "-p", prompt, "--temp", "0", "-no-cnv", "--no-display-prompt"]
        words += ["--no-warmup", "--perf", "-ngl", str(self.args.ngl), "-c", "512", "--ignore-eos", "-lv", "4"]
        words += ["-ot", ".*=ROCmForge"] if shared and not by_rfctl else []
        return [str(word) for word in [*words, *self.args.option, *more]]

    def environment(self, shared):
        if not shared:
            return {name: value for name, value in self.env.items() if name != "GGML_BACKEND_PATH"}
        return {**self.env, "GGML_BACKEND_PATH": str(self.build / "client/engines/llama/libggml-rocmforge.so")}

    def begin(self, command, shared):
        process = subprocess.Popen(
            command, env=self.environment(shared), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL, cwd=self.args.cwd,
        )
        process.lines = Lines(process.stderr)
        process.watch = threading.Timer(self.limit(), process.kill) # so that nothing is waited for without an end
        process.watch.start()
        return process

    def finish(self, process, shared):
        """What it still says, when it has ended by itself; and what it wrote to standard error."""
        said, status = process.stdout.read(), process.wait(SECONDS)
        process.watch.cancel()
        log = process.lines.text()
        if status != 0:
            raise Failed(f"the engine ended with {status}:\n{log[-3000:]}")
        told = re.findall("rocmforge: .*", log) # perhaps behind the dots that the engine writes while it loads
        own = [line for line in told if "not shared" in line]
        if shared and ("shared with other processes" not in log or (own and not self.args.allow_own)):
            raise Failed(f"the weights were not shared: {told}\n{log[-1000:]}")
        for line in own[: shared and not self.told_own]:
            print(f"  note: {line}")
            self.told_own = True
        return said, log

    def run(self, *arguments, **keywords):
        for _ in range(TRIES):
            try:
                return self.run_once(*arguments, **keywords)
            except Lost as lost:
                error = lost
        raise error

    def run_once(self, model, shared, *more, by_rfctl=False, prompt=PROMPT, tokens=TOKENS):
        """Seconds to the first token, the parts of them, the engine's own load time, and what it said. It is asked for
        twice as many tokens. Nearly all are some bytes, so less than two for each means that some of these were lost."""
        command = self.command(model, shared, "-n", str(2 * tokens), *more, by_rfctl=by_rfctl, prompt=prompt)
        began = time.monotonic()
        process = self.begin(command, shared)
        first = process.stdout.read(1)
        end = time.monotonic()
        rest, log = self.finish(process, shared)
        said = first + rest
        if len(said) < 2 * tokens:
            raise Lost(f"the engine said only {said}")
        load = re.search(r"load time\s*=\s*([\d.]+) ms", log)
        attach = re.search(r"attached in ([\d.]+) ms", log)
        return {
            "first": end - began,
            "parts": split(process.lines.lines, began, end),
            "attach": float(attach[1]) / 1000 if attach else None,
            "load": float(load[1]) / 1000 if load else None,
            "said": said.hex(),
        }

    def ways(self, label):
        """The ways to start this model, each with its file."""
        files = {"": self.models[label], "narrow": self.narrow.get(label), "small": self.args.small}
        ways = [way for way in WAYS if files[way.model] and (way.prompt == PROMPT or files["narrow"])]
        return [(way, files[way.model]) for way in ways if re.search(self.args.only, way.name)]

    def rounds(self, label, seconds):
        """As many as there are to be, or fewer: so many seconds. What was measured before a failure is told too."""
        ways = self.ways(label)
        runs = self.result[label]["starts"] = {way.name: [] for way, _ in ways}
        try:
            self.rounds_of(ways, runs, seconds)
        finally:
            size = {way.name: os.path.getsize(path) for way, path in ways}
            measure_tables.starts(runs, size, [*(name for name, _, _ in MARKS), "first"])
        self.same(label, ways, runs)

    def rounds_of(self, ways, runs, seconds):
        began = time.monotonic()
        for n in range(self.args.rounds):
            if n > 0 and (time.monotonic() - began) * (n + 1) / n > seconds:
                print(f"  {n} rounds: there is no time for more")
                break
            for way, path in random.Random(n).sample(ways, len(ways)):
                if n < way.rounds:
                    one = self.run(path, way.shared, *way.options, by_rfctl=way.by_rfctl, prompt=way.prompt)
                    runs[way.name].append(one)

    def same(self, label, ways, runs):
        """Every start of the model says the same tokens. On the host weights that llama.cpp read itself are repacked, and
        numbers rounded otherwise: there it is compared with a run that does not repack."""
        for prompt in {way.prompt for way, _ in ways}:
            mine = [way for way, _ in ways if way.prompt == prompt and not way.model]
            said = [run["said"] for way in mine if way.shared or self.args.kind != "host" for run in runs[way.name]]
            if not said:
                continue
            if self.args.kind == "host":
                said.append(self.run(self.models[label], False, "--no-repack", prompt=prompt)["said"])
            if not all(agree(bytes.fromhex(said[0]), bytes.fromhex(other)) for other in said):
                raise Failed(f"not always the same tokens: {[bytes.fromhex(text)[:100] for text in set(said)]}")

    # --- memory ---

    def used(self):
        """Bytes of the GPU's memory that are in use; None: it cannot be told."""
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
        processes = [self.begin(self.command(model, shared, "-n", "100000"), shared) for _ in range(3)]
        try:
            with ThreadPoolExecutor(3) as pool:
                list(pool.map(hold, processes))
            after = self.used()
            return {"gpu_bytes": after - before if after is not None else None, "pss_bytes": self.pss(processes)}
        finally:
            for process in processes:
                process.watch.cancel()
                process.kill()
                process.wait()
                process.stdout.close()
            time.sleep(1)

    def memory(self, label):
        for shared in (False, True):
            self.result[label]["three shared" if shared else "three"] = self.three(self.models[label], shared)
        measure_tables.memory(self.result[label])

    # --- the daemon dies ---

    def killed(self, label):
        """The daemon is killed after the first token, and the engine goes on to the end. Then there is another daemon."""
        tokens = 128
        whole = bytes.fromhex(self.run(self.models[label], True, tokens=tokens)["said"])
        process = self.begin(self.command(self.models[label], True, "-n", str(2 * tokens)), True)
        said = process.stdout.read(1)
        self.stop(signal.SIGKILL)
        said += self.finish(process, True)[0]
        self.start()
        if not agree(said, whole) or len(said) < tokens:
            raise Failed(f"other tokens after the daemon was killed: {said} {whole}")
        self.result[label]["killed"] = {"bytes": len(said)}
        print(f"  the daemon killed while generating: the same text, {len(said)} bytes")
        self.load(self.models[label])

    # --- speed ---

    def bench(self, model, shared, *more):
        words = [self.engine / "llama-bench", "-m", model, "-ngl", str(self.args.ngl), "-o", "json", *more]
        words += [*self.args.option, *(["-ot", ".*=ROCmForge"] if shared else [])]
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
        run = subprocess.run(
            list(map(str, words)), env=self.environment(shared), capture_output=True, timeout=self.limit(),
            cwd=self.args.cwd, check=False,
        )
        if run.returncode != 0:
            raise Failed(f"llama-bench: {run.stderr.decode(errors='replace')[-3000:]}")
        return json.loads(run.stdout), resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before

    def rates(self, label):
        """Tokens per second: processes in turn with and without resident weights, each with some passes."""
        result = self.result[label].setdefault("rates", {})
        try:
            for n in range(PAIRS):
                for shared in (n % 2 == 1, n % 2 == 0):
                    for test in self.bench(self.models[label], shared, "-p", "512", "-n", "64", "-r", str(PASSES))[0]:
                        name = "a prompt of 512" if test["n_prompt"] else "generating"
                        rounds = result.setdefault(name, {"own": [], "shared": []})
                        rounds["shared" if shared else "own"].append(test["samples_ts"])
        finally:
            measure_tables.rates(result)

    def user_time(self, label):
        """On the host: processor seconds, which other programs do not change much, of one pass. A pass is what USER_PASSES
        more of them take, so the start, the warm-up and repacking do not count. The whole run of llama-bench has a start, a
        warm-up and one pass in it."""
        parts = {"prompt of 512": ["-p", "512", "-n", "0"], "64 tokens": ["-p", "0", "-n", "64"]}
        for shared in (False, True):
            times = {}
            for name, words in parts.items():
                few, many = (self.bench(self.models[label], shared, *words, "-r", str(n))[1] for n in (1, 1 + USER_PASSES))
                times[f"{name}, s of user time"] = (many - few) / USER_PASSES
            times["a whole run with that prompt, s of user time"] = self.bench(
                self.models[label], shared, *parts["prompt of 512"], "-r", "1"
            )[1]
            self.result[label]["user shared" if shared else "user"] = times
        measure_tables.user_time(self.result[label])

    # --- all ---

    def step(self, label, name, function, *arguments):
        """What cannot be had is told, and the rest is had all the same."""
        print(f"\n{label}, {self.result[label]['bytes'] / 1e9:.2f} GB: {name}", flush=True)
        try:
            if self.left() < LEAST:
                raise Failed("not begun: no time is left")
            function(label, *arguments)
        except subprocess.TimeoutExpired as error:
            self.result[label].setdefault("failed", {})[name] = f"ended after {error.timeout:.0f} s"
            print(f"  FAILED: {name}: a command was ended after {error.timeout:.0f} s", flush=True)
        except (Failed, subprocess.SubprocessError, OSError, ValueError) as error:
            self.result[label].setdefault("failed", {})[name] = str(error)
            print(f"  FAILED: {name}: {error}", flush=True)
            if not self.daemon:
                self.start()
        self.write()

    def write(self):
        if self.args.out:
            Path(self.args.out).write_text(json.dumps(self.result, indent=1), encoding="utf-8")

    def all(self):
        """What matters most first, because time may run out: the starts, of the first model most of all."""
        self.start()
        print(self.rfctl("devices").stdout, end="")
        for path in self.models.values():
            subprocess.run(["cat", path], stdout=subprocess.DEVNULL, check=True)
            self.load(path)
        print(self.rfctl("ps").stdout, end="", flush=True)
        parts = [4, 2, *[1] * len(self.models)][: len(self.models)]
        whole = RUNS_SHARE * self.left()
        for label, part in zip(self.models, parts):
            self.step(label, "starts", self.rounds, whole * part / sum(parts))
        for label in [*self.models][:2]:
            self.others(label)
        for label in self.models if "killed" in self.args.steps.split(",") else []:
            self.step(label, "the daemon is killed", self.killed)
        for label in [*self.models][2:]:
            self.others(label)

    def others(self, label):
        if self.left() > LEAST:
            self.load(self.models[label]) # the daemon may be another one
        others = {
            "memory": ("memory", self.memory),
            "speed": ("tokens per second", self.rates) if self.args.kind != "host" else ("user time", self.user_time),
            "rates": ("tokens per second", self.rates),
        }
        for name in [name for name in others if name in self.args.steps.split(",")]:
            self.step(label, *others[name])


def ended(*_):
    raise SystemExit("ended from outside")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", required=True)
    parser.add_argument("--build", required=True)
    parser.add_argument("--model", action="append", required=True, metavar="LABEL=FILE")
    parser.add_argument("--small", metavar="FILE")
    parser.add_argument("--narrow", action="append", default=[], metavar="LABEL=FILE")
    parser.add_argument("--kind", choices=["host", "hip", "cuda"], default="host")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, help="that all of it may take")
    parser.add_argument("--only", default="", metavar="REGEX", help="the ways to start that are taken")
    parser.add_argument("--ngl", default="99")
    parser.add_argument(
        "--steps", default="speed,memory,killed",
        help="beside the starts; speed: tokens per second, on the host user time; rates: tokens per second",
    )
    parser.add_argument("--option", action="append", default=[], help="another word for the engine")
    parser.add_argument("--cwd", help="where the engine runs")
    parser.add_argument("--allow-own", action="store_true", help="some tensors may have memory of their own")
    parser.add_argument("--out", metavar="FILE", help="all figures as JSON")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, ended)
    bench = Bench(args)
    try:
        bench.all()
    finally:
        bench.write()
        bench.stop()
        shutil.rmtree(bench.folder, ignore_errors=True)
    return 1 if any("failed" in result for result in bench.result.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
