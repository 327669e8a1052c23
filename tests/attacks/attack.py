#!/usr/bin/env python3
"""Attacks on a daemon, and how long it answers somebody innocent meanwhile, who calls Status every 10 ms.

    attack.py [--build build/release] [--seconds 8] [NAME...]     `attack.py --list` says which there are

Each is measured three times: with an idle daemon, beside the same attack on another daemon, and with the daemon that is
attacked. The second tells what the processors are to blame for, which the attackers share with the daemon. Limits are the
default ones. On a machine that has other work to do, --first has the daemon's loop and the innocent come before all of it
and before the attackers, by the highest priority that is not a real-time one: what is left is what the loop itself makes of the attack.

--brief leaves the first two measurements out: for a build with sanitizers, whose times say little.

Needs root, to be several users; exits with 77 without. With --most MS, exits with 1 if 99 of 100 answers
took longer than that, and longer than three times what they take beside the attack on another daemon.
"""
import argparse
import json
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))

import make_model  # noqa: E402
from flood import Flood, connect_storm, evict_storm, hoard, hold_leases, hold_storm, late_storm, lease_storm, publish_storm, queue_storm, wait_for_late  # noqa: E402
from harness import MIB, USER, Daemon, daemon_program, load_fd, tensor_model  # noqa: E402
from rocmforge_wire import Client  # noqa: E402

INNOCENT = USER + 100
EVERY = 0.01
MODELS_OF_ONE = 100  # that a user may have by default, also if three others have as many as they may


def message(method, more=False, **parameters):
    call = {"method": f"io.rocmforge.{method}", "parameters": parameters}
    if more:
        call["more"] = True
    return json.dumps(call).encode() + b"\0"


def asks(method, more=False, file=None, times=1, **parameters):
    return message(method, more, **parameters), file, times


class Place:
    """A folder with models, and daemons that have them loaded."""

    def __init__(self, folder):
        self.folder = folder
        types = make_model.load_types()
        vectors = [make_model.Tensor(name, types["f32"], (64,))
                   for name, _, _ in make_model.llama_shapes(32, 64, 64, 64)]
        self.paths = {
            "usual": self.write("usual", vectors, 32000),
            "dear": self.write("dear", [make_model.Tensor(f"t{i}", types["f32"], (8,)) for i in range(65536)], 100),
            "bytes": tensor_model(folder / "bytes.gguf", 64 * MIB),
            "small": tensor_model(folder / "small.gguf", MIB),
            "tiny": tensor_model(folder / "tiny.gguf", 1024),
        }
        for path in self.paths.values():
            os.chmod(path, 0o644)
        self.daemons = []

    def write(self, name, tensors, vocabulary):
        path = self.folder / f"{name}.gguf"
        make_model.write_model(path, tensors, make_model.metadata(32, 4096, 11008, 32, vocabulary), 1)
        return path

    def start(self, *options, program=None):
        folder = self.folder / f"d{len(self.daemons)}"
        folder.mkdir()
        os.chmod(folder, 0o755)
        daemon = Daemon(folder, *options, program=program).wait_ready()
        os.chmod(daemon.socket, 0o666)
        self.daemons.append(daemon)
        with daemon.client() as client:
            for name in ("usual", "dear", "bytes"):
                load_fd(client, self.paths[name], name=name, public=True)
        daemon.settled_fds()
        return daemon

    def close(self):
        for daemon in self.daemons:
            daemon.close()


# --- Processes ---


def comes_first(pid):
    """A thread has a processor nearly whenever it wants one. Not a real-time priority: of each second the kernel keeps back
    50 ms from a thread that has one and is never idle, and answers would wait for that."""
    os.setpriority(os.PRIO_PROCESS, pid, -20)


def apart(uid, function, first=False):
    """Runs function() as this user in a process of its own. Returns a function that waits for what it returned."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            if first:
                comes_first(0)
            os.setgroups([])
            os.setgid(uid)
            os.setuid(uid)
            os.write(write, json.dumps(function()).encode())
            status = 0
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(status)
    os.close(write)

    def result():
        text = b""
        while data := os.read(read, 1 << 16):
            text += data
        os.close(read)
        os.waitpid(pid, 0)
        if not text:
            raise RuntimeError("a process ended without a result: see above")
        return json.loads(text)

    return result


def innocent(socket, seconds):
    """Milliseconds: the median, the 99th percentile, the most; and how many calls there were."""
    times = []
    end = time.monotonic() + seconds
    with Client(socket, timeout=120) as client:
        while time.monotonic() < end:
            began = time.perf_counter()
            client.call("Status")
            times.append((time.perf_counter() - began) * 1e3)
            time.sleep(EVERY)
    times.sort()
    return times[len(times) // 2], times[len(times) * 99 // 100], times[-1], len(times)


# --- Attacks: each returns, for a daemon, what the attackers do, as (user, function) ---


def floods(users, connections, *requests, processes=1, **options):
    def attackers(daemon, place, seconds):
        filled = [(data, file and str(place.paths[file]), times) for data, file, times in requests]
        for user in range(users):
            for _ in range(processes):
                flood = Flood(daemon.socket, connections // processes, filled, **options)
                yield USER + user, lambda flood=flood: flood.run(seconds)

    return attackers


def watched(connections):
    """Many watch, and one causes events."""

    def attackers(daemon, place, seconds):
        yield from floods(1, connections, asks("Watch", more=True), at_once=1)(daemon, place, seconds)
        yield from floods(1, 4, asks("Attach", name="usual", table=True), asks("Unpin", name="usual"))(daemon, place, seconds)
        yield from floods(1, 1, asks("Load", file="small", fds=[0], name="w", lease=True), asks("Unload", name="w", force=True),
                          at_once=2)(daemon, place, seconds)

    return attackers


def leases_watched(users, connections, leases):
    """All watch, and one has many leases end at once, again and again."""
    watching = floods(users, connections, asks("Watch", more=True), at_once=1)

    def attackers(daemon, place, seconds):
        yield from watching(daemon, place, seconds)
        requests = message("Attach", name="usual", table=True) * leases
        yield USER + users, lambda: lease_storm(daemon.socket, requests, seconds)

    return attackers


def evictions_watched(users, connections, models):
    """All watch, and one has many models evicted at once, again and again."""
    watching = floods(users, connections, asks("Watch", more=True), at_once=1)

    def attackers(daemon, place, seconds):
        large = large_model(place)
        tiny = place.paths["tiny"].read_bytes()
        yield from watching(daemon, place, seconds)
        yield USER + users, lambda: evict_storm(daemon.socket, tiny, large, models, seconds)

    return attackers


def large_model(place):
    """Takes most of a daemon's memory that has the budget of OPTIONS."""
    path = place.folder / "large.gguf"
    if not path.exists():
        os.chmod(tensor_model(path, 512 * MIB), 0o644)
    return path


def late(users, connections):
    """All wait for one model, which is loaded in the end."""

    def attackers(daemon, place, seconds):
        large, path = large_model(place), place.folder / "late.gguf"
        if not path.exists():
            types = make_model.load_types()
            tensors = [make_model.Tensor(f"t{i}", types["f32"], (8,)) for i in range(4096)]
            tensors.append(make_model.Tensor("many", types["f32"], (128 * MIB // 4,)))
            place.write("late", tensors, 100).chmod(0o644)
        for user in range(users):
            yield USER + user, lambda: wait_for_late(daemon.socket, connections, seconds)
        yield USER + users, lambda: late_storm(daemon.socket, path, large, seconds)

    return attackers


def queues_watched(users, connections):
    """All watch, and four have loads wait for memory, and leave."""
    watching = floods(users, connections, asks("Watch", more=True), at_once=1)

    def attackers(daemon, place, seconds):
        large = large_model(place)
        yield from watching(daemon, place, seconds)
        yield USER + users, lambda: hold_storm(daemon.socket, large, seconds)
        for user in range(users):
            yield USER + users + 1 + user, lambda: queue_storm(daemon.socket, place.paths["bytes"], seconds)

    return attackers


def holders(users, leases, connections, *requests):
    """Each user holds as many leases as it may, and asks."""

    def attackers(daemon, place, seconds):
        for user in range(users):
            flood = Flood(daemon.socket, connections, [(data, file and str(place.paths[file]), times) for data, file, times in requests])
            yield USER + user, lambda flood=flood: hold_leases(daemon.socket, leases, "usual", seconds, flood)

    return attackers


def publishes(users, processes, tensors):
    def attackers(daemon, _, seconds):
        text = json.dumps([{"name": f"t{i}", "type": "u8", "shape": [1]} for i in range(tensors)]).encode()
        for user in range(users):
            for _ in range(processes):
                yield USER + user, lambda: publish_storm(daemon.socket, text, b"m" * 1000000, seconds)

    return attackers


def storms(users, processes):
    def attackers(daemon, _, seconds):
        for user in range(users):
            for _ in range(processes):
                yield USER + user, lambda: connect_storm(daemon.socket, message("Status"), seconds)

    return attackers


def hoards(users, connections, *requests):
    """Each user loads as many models as the limits allow, before anything is measured, and then asks."""
    asking = floods(users, connections, *requests)

    def attackers(daemon, place, seconds):
        tiny = place.paths["tiny"].read_bytes()
        hoarding = [apart(USER + user, lambda: hoard(daemon.socket, tiny)) for user in range(users)]
        had = [result() for result in hoarding]
        if min(n for n, _ in had) < MODELS_OF_ONE or any("user-models" not in refusal for _, refusal in had):
            raise RuntimeError(f"the attackers have not as many models as they may: {had}")
        yield from asking(daemon, place, seconds)

    return attackers


def start_with_unread_log(place):
    path = place.folder / "stderr"
    if not path.exists():
        os.mkfifo(path)
    pipe = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    program = ["sh", "-c", f'exec 2>"{path}"; exec "$0" "$@"', daemon_program()]
    return place.start("--log-level", "debug", program=program), pipe


DEEP = b'{"method":"io.rocmforge.List","parameters":' + b'{"a":' * 10 + b"[" + b"123456789012345678901234567," * 7900 + b"{}]" + b"}" * 10 + b"}\0"
LONG = b'{"method":"io.rocmforge.List","junk":"' + b"z" * 250000
MANY = json.dumps({"method": "io.rocmforge.Watch", "more": True, "junk": ["y" * 20] * 8000}).encode() + b"\0"
RULES = [{"match": f"*{'a*' * 20}{i}", "form": "f32"} for i in range(64)]

ATTACKS = {
    "attach": (floods(1, 255, asks("Attach", name="usual")), "one user, 255 connections: Attach, of 291 tensors"),
    "show": (floods(1, 255, asks("Show", name="usual")), "one user, 255 connections: Show, of 291 tensors"),
    "list": (floods(1, 255, asks("List")), "one user, 255 connections: List"),
    "attach-dear": (floods(1, 200, asks("Attach", name="dear")), "one user, 200 connections: Attach, of 65,536 tensors"),
    "show-dear": (floods(1, 200, asks("Show", name="dear")), "one user, 200 connections: Show, of 65,536 tensors"),
    "attach-4": (floods(4, 250, asks("Attach", name="usual")), "four users, 250 connections each: Attach, of 291 tensors"),
    "show-4": (floods(4, 250, asks("Show", name="dear")), "four users, 250 connections each: Show, of 65,536 tensors"),
    "lease-8": (floods(8, 100, asks("Attach", name="usual", table=True, header=True)),
                "eight users, 100 connections each: Attach, with descriptors"),
    "plan": (floods(4, 60, asks("Plan", file="dear", fds=[0], form="f32", name="p")), "four users: Plan, of 65,536 tensors"),
    "plan-rules": (floods(4, 60, asks("Plan", file="dear", fds=[0], forms=RULES)),
                   "four users: Plan, of 65,536 tensors and 64 rules"),
    "load-rules": (floods(4, 16, asks("Load", file="dear", fds=[0], name="lr", forms=RULES, private=True),
                          asks("Unload", name="lr")), "four users: Load of 65,536 tensors and 64 rules, Unload"),
    "verify": (floods(4, 60, asks("Verify", name="bytes"), asks("Verify", name="dear")), "four users: Verify"),
    "load": (floods(4, 60, asks("Load", file="small", fds=[0], name="s", private=True), asks("Unload", name="s")),
             "four users: Load and Unload of 1 MiB"),
    "busy": (floods(4, 60, asks("Attach", name="dear", table=True), asks("Unload", name="dear")),
             "four users: ModelBusy, which lists leases"),
    "descriptors": (floods(4, 60, asks("List", file="small", times=200)), "four users: 200 descriptors with each call"),
    "json": (floods(4, 60, (DEEP, None, 1), at_once=4), "four users: requests of 220 KB with 7,900 values"),
    "watch": (watched(240), "one user: 240 connections watch, and others cause events"),
    "watch-4": (floods(4, 200, asks("Watch", more=True), asks("Attach", name="usual", table=True), at_once=1),
                "four users: 800 connections begin to watch"),
    "leases": (leases_watched(4, 200, 200), "four users: 800 connections watch, and a client with 200 leases ends"),
    "evict": (evictions_watched(4, 200, 200), "four users: 800 connections watch, and a load evicts 150 models"),
    "late": (late(4, 100), "four users, 100 connections each: Attach, of 4,097 tensors, while the model waits for memory"),
    "holders": (holders(4, 4095, 60, asks("Show", name="usual"), asks("Attach", name="usual", table=True)),
                "four users: 16,380 leases on one model, then Show and Attach"),
    "queue": (queues_watched(4, 200), "four users: 800 connections watch, and 64 loads that wait for memory end"),
    "models": (hoards(1, 200, asks("List")), "one user: as many models as the limits allow, then List"),
    "models-4": (hoards(4, 60, asks("List"), asks("Status"), asks("Show", name="none")), "four users: the same"),
    "metrics": (hoards(4, 240, asks("Metrics"), asks("Devices")), "four users: the same, then Metrics and Devices"),
    "publish": (publishes(4, 2, 65536), "four users, eight processes: Create and Publish, of 65,536 tensors"),
    "connect": (storms(4, 2), "four users, eight processes: connect, Status, close"),
    "memory": (floods(1, 255, (MANY, None, 1), (LONG, None, 1), at_once=2, reads=False),
               "one user, 255 connections: 250 KB kept for each call, half a request behind it"),
    "memory-4": (floods(4, 240, (MANY, None, 1), (LONG, None, 1), at_once=2, reads=False), "four users: the same"),
    "unread": (floods(1, 255, asks("Show", name="dear"), reads=False), "one user, 255 connections: answers are not read"),
    "log": (storms(1, 2), "standard error is a pipe that nobody reads, and everything is logged"),
}

OPTIONS = dict.fromkeys(("evict", "late", "queue"), ("--budget", "600Mi"))


def processor_time(daemon):
    """Seconds that the loop's thread ran, and that it was ready to run and had no processor."""
    with open(f"/proc/{daemon.pid}/schedstat", encoding="ascii") as file:
        return [int(ns) / 1e9 for ns in file.read().split()[:2]]


class Measurement:
    def __init__(self, place, seconds, first, brief):
        self.place, self.seconds, self.first, self.brief = place, seconds, first, brief

    def one(self, name, target, daemon):
        """Attacks the target, if there is one, and measures the daemon."""
        began = []
        if target:
            began = [apart(uid, act) for uid, act in ATTACKS[name][0](target, self.place, self.seconds + 2)]
            time.sleep(1.5)  # until all are connected
        figures = apart(INNOCENT, lambda: innocent(daemon.socket, self.seconds), self.first)
        peak, end = daemon.rss(), time.monotonic() + self.seconds
        while time.monotonic() < end:
            peak = max(peak, daemon.rss())
            time.sleep(0.1)
        return figures(), [result() for result in began], peak

    def attack(self, name):
        pipes = []

        def start():
            if name != "log":
                return self.place.start(*OPTIONS.get(name, ()))
            daemon, pipe = start_with_unread_log(self.place)
            pipes.append(pipe)
            return daemon

        daemon = start()
        running = [daemon]
        if self.first:
            comes_first(daemon.pid)  # not its workers
        before = daemon.rss()
        measured = []
        if not self.brief:
            other = start()
            running.append(other)
            measured.append(("idle", self.one(name, None, daemon)[0]))
            measured.append(("another is attacked", self.one(name, other, daemon)[0]))
        ran = processor_time(daemon)
        attacked, did, peak = self.one(name, daemon, daemon)
        ran = [after - first for first, after in zip(ran, processor_time(daemon))]
        end = time.monotonic() + 10
        while daemon.rss() - before > 16 * MIB and time.monotonic() < end:
            time.sleep(0.1)
        print(f"{name}: {ATTACKS[name][1]}")
        measured.append(("attacked", attacked))
        for what, (median, p99, most, n) in measured:
            print(f"  {what:20} median {median:7.2f} ms, 99 of 100 {p99:7.2f} ms, most {most:7.2f} ms, of {n}")
        answers, errors, connections = (sum(result[i] for result in did) for i in range(3))
        print(f"  answers to attackers {answers}, errors {errors}, connections {connections}; memory {before / MIB:.0f} MiB, "
              f"at most {peak / MIB:.0f}, 10 s later at most {daemon.rss() / MIB:.0f}")
        print(f"  attacked, the loop ran for {ran[0]:.1f} s, and waited for a processor for {ran[1]:.1f} s", flush=True)
        for one in running:
            status = one.stop()
            if status != 0 or "Sanitizer" in one.log:
                print(f"  the daemon ended with {status}: {one.log[-2000:]}")
                return None
        for pipe in pipes:
            os.close(pipe)
        return measured[-2][1][1] if not self.brief else None, attacked[1]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: all")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--build", default=os.environ.get("ROCMFORGE_BUILD", "build/dev"), metavar="FOLDER")
    parser.add_argument("--seconds", type=float, default=8, metavar="N")
    parser.add_argument("--first", action="store_true")
    parser.add_argument("--brief", action="store_true")
    parser.add_argument("--most", type=float, metavar="MS")
    args = parser.parse_args()
    if args.list:
        for name, (_, text) in ATTACKS.items():
            print(f"{name:12} {text}")
        return 0
    for name in args.names:
        if name not in ATTACKS:
            parser.error(f"no attack {name}; see --list")
    if os.geteuid() != 0:
        print("skipped: it needs root, to be several users")
        return 77
    os.environ["ROCMFORGE_BUILD"] = args.build
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 1 << 16), hard))
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    if args.brief and args.most is not None:
        parser.error("--most compares with what --brief leaves out")
    failed = False
    with tempfile.TemporaryDirectory(prefix="rfa") as folder:
        os.chmod(folder, 0o755)
        place = Place(Path(folder))
        try:
            for name in args.names or ATTACKS:
                try:
                    figures = Measurement(place, args.seconds, args.first, args.brief).attack(name)
                except RuntimeError as error:  # the others are measured nevertheless
                    print(f"{name}: {error}", flush=True)
                    figures = None
                    place.close()
                failed |= not figures
                if figures and args.most is not None:
                    failed |= figures[1] > max(args.most, 3 * figures[0])
        finally:
            place.close()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
