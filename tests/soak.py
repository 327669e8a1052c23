#!/usr/bin/env python3
"""Lets several users' clients do at random what clients do, for some minutes, while clients and the daemon are killed and
model files are replaced. Every byte that a client gets is compared, by its digest, with what the gguf package decodes of
the file.

    soak.py --minutes 10 [--build build/dev] [--gpu] [--clients 8] [--seed 1]

Every few seconds the clients rest: then nothing may be left in the daemon, no memory of a model, no descriptor, and not
more of its own memory than it had. Prints figures at the end. Exit status: 0, all was right; 1, something was wrong; 77,
it cannot run here. Run by root, the clients are those of three users.
"""
import argparse
import json
import os
import random
import select
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent / folder) for folder in ("lib", "integration")]

import make_model  # noqa: E402
from harness import MIB, USER, Daemon, fake_gpu_folder, module_folder, wait_until  # noqa: E402
from rocmforge_wire import WireError  # noqa: E402
from soak_client import DIED_BY_ITSELF, Person, Shared, digest  # noqa: E402

FILES, VERSIONS = 5, 3
TYPES = (("q4_0", "f16"), ("q8_0", "f32"), ("q6_K", "bf16"))
LEG = 6.0  # seconds from one rest, or one end of the daemon, to the next
RESTS = (1, 1, 2, 10)  # in a daemon's life
RSS_MORE = 24 * MIB  # it grows by about half of it, and then no more
REST = 90  # seconds that it may take until all clients rest: a call may last 60


class Version:
    """What a file is at some time: its digest, and those of its tensors in each form."""

    def __init__(self, path, reader):
        from decoded import PLAIN_FORMS  # numpy is there: main() has looked

        self.path = path
        self.digest = digest(path.read_bytes())
        self.tensors = {}
        for tensor in reader.gguf.GGUFReader(path).tensors:
            forms = ("native", *PLAIN_FORMS.values())
            self.tensors[tensor.name] = {form: digest(reader.expected(tensor, form)) for form in forms}


class Soak:
    def __init__(self, args, folder, versions):
        self.args, self.folder, self.versions = args, folder, versions
        self.rng = random.Random(args.seed)
        self.shared = Shared()
        self.report, self.report_in = os.pipe()
        os.set_blocking(self.report, False)
        self.rest_of_line = b""
        self.people = {}  # index by process
        self.born = 0
        self.counts, self.outcomes, self.wrong = Counter(), Counter(), []
        self.bytes = self.rss_more = self.fds_more = self.memory_files = 0
        self.by_minute = {}  # of a daemon's life: the most bytes more than at its start
        self.daemon = self.rss = self.fds = self.began = None

    # --- The daemon ---

    def options(self):
        if not self.args.gpu:
            return ["--budget", "16Mi", "--workers", "3"], {}
        options = ["--device", "hip", "--budget", "16Mi", "--workers", "3", "--host-cache", "20Mi", "--staging", "2Mi"]
        return options, {"ROCMFORGE_MODULE_DIR": str(module_folder()), "LD_LIBRARY_PATH": str(fake_gpu_folder())}

    def start(self):
        options, env = self.options()
        self.daemon = Daemon(self.folder, *options, env=env).wait_ready()
        os.chmod(self.daemon.socket, 0o666)
        self.fds = self.daemon.settled_fds()
        self.rss, self.began = self.daemon.rss(), time.monotonic()
        self.counts["daemons started"] += 1
        self.shared.generation += 1

    def end(self, number):
        """Ends it while clients are at work."""
        self.shared.generation += 1
        self.counts["daemons killed" if number == signal.SIGKILL else "daemons stopped"] += 1
        self.daemon.process.send_signal(number)
        try:
            status = self.daemon.process.wait(60)
        except Exception:  # pylint: disable=broad-except
            self.daemon.close()
            status = "it did not end within 60 s"
        if status != (-signal.SIGKILL if number == signal.SIGKILL else 0):
            self.wrong.append(f"the daemon ended with {status}: {self.daemon.log[-1500:]}")
        self.look_at_log()

    def look_at_log(self):
        for word in ("Sanitizer", "runtime error", "Assertion"):
            if word in self.daemon.log:
                self.wrong.append(f"the daemon's log: {self.daemon.log[-3000:]}")
        self.daemon.log_path.unlink()

    def ended_by_itself(self):
        self.shared.generation += 1
        self.wrong.append(f"the daemon ended by itself, {self.daemon.process.poll()}: {self.daemon.log[-3000:]}")
        self.look_at_log()
        self.start()

    # --- Clients ---

    def uid(self, index):
        return (0, USER, USER + 1)[index % 3] if os.geteuid() == 0 else os.geteuid()

    def bear(self, index):
        self.born += 1
        seed = f"{self.args.seed} {self.born}"
        self.shared.rests(index, False)
        pid = os.fork()
        if pid:
            self.people[pid] = index
            return
        try:
            os.close(self.report)
            uid = self.uid(index)
            if uid != os.geteuid():
                os.setgroups([])
                os.setgid(uid)
                os.setuid(uid)
            Person(index, uid, seed, self.daemon.socket, self.shared, self.versions, self.report_in).run()
        finally:
            os._exit(1)

    def kill_one(self):
        living = [pid for pid, index in self.people.items() if index >= 0]
        if living:
            pid = self.rng.choice(living)
            self.people[pid] = -self.people[pid] - 1  # we meant it
            os.kill(pid, signal.SIGKILL)
            self.counts["clients killed"] += 1

    def bury(self, replace):
        while self.people:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            if pid not in self.people:
                continue
            index, code = self.people.pop(pid), os.waitstatus_to_exitcode(status)
            killed = index < 0
            index = -index - 1 if killed else index
            if code == DIED_BY_ITSELF:
                self.counts["clients that died in a call"] += 1
            elif not killed:
                self.wrong.append(f"a client ended with {code}")
            if replace:
                self.bear(index)

    def hear(self):
        try:
            text = self.rest_of_line + os.read(self.report, 1 << 20)
        except BlockingIOError:
            return
        *lines, self.rest_of_line = text.split(b"\n")
        for line in lines:
            told = json.loads(line)
            self.counts[told["action"]] += 1
            self.outcomes[told["outcome"]] += 1
            self.bytes += told["bytes"]
            if told["wrong"]:
                self.wrong.append(told["wrong"])

    # --- What happens ---

    def replace_file(self):
        path = self.rng.choice(list(self.versions))
        new = path.with_suffix(".new")
        shutil.copyfile(self.rng.choice(self.versions[path]).path, new)
        os.chmod(new, 0o644)
        os.rename(new, path)
        self.counts["files replaced"] += 1

    def leg(self, end):
        next_kill = next_file = time.monotonic()
        while time.monotonic() < end:
            select.select([self.report], [], [], 0.02)
            self.hear()
            self.bury(replace=True)
            # Not self.daemon.process.poll(): bury() may have been told of its end.
            if not os.path.exists(f"/proc/{self.daemon.pid}/exe") or self.daemon.process.poll() is not None:
                self.ended_by_itself()
            now = time.monotonic()
            if now >= next_kill:
                self.kill_one()
                next_kill = now + self.rng.random()
            if now >= next_file:
                self.replace_file()
                next_file = now + self.rng.random()

    def rest(self):
        """Has all clients rest, and looks at what is left then."""
        self.shared.pause = 1

        def all_rest():
            self.hear()
            self.bury(replace=False)
            return all(index < 0 or self.shared.rests(index) for index in self.people.values())

        try:
            wait_until(all_rest, seconds=REST)
            self.empty()
            self.measure()
        except AssertionError as error:
            with self.daemon.client() as client:
                left = [client.call("Status"), client.call("List"), client.call("Devices")]
            self.wrong.append(f"when all rested: {error}; {left}; descriptors {self.daemon.fds()}, before {self.fds}")
        self.counts["rests"] += 1
        self.shared.pause = 0
        missing = set(range(self.args.clients)) - {i for i in self.people.values() if i >= 0}
        for index in sorted(missing):
            self.bear(index)

    def empty(self):
        def emptied():
            with self.daemon.client() as client:
                for model in client.call("List")["models"]:
                    try:
                        client.call("Unload", name=f"{model['name'].split('#')[0]}#{model['id']}")
                    except WireError as error:
                        if error.name not in ("ModelBusy", "ModelNotFound"):
                            raise
                status = client.call("Status")
                used = sum(device["used"] for device in client.call("Devices")["devices"])
                return not client.call("List")["models"] and not status["loads"] and not status["leases"] and not used

        wait_until(emptied, seconds=30)

    def measure(self):
        wait_until(lambda: len(self.daemon.settled_fds()) <= len(self.fds), seconds=30)
        now = self.daemon.settled_fds()
        self.fds_more = max(self.fds_more, len(now) - len(self.fds))
        files = [link for link in now if link.startswith("/memfd:") and link not in self.fds]
        self.memory_files = max(self.memory_files, len(files))
        more = self.daemon.rss() - self.rss
        self.rss_more = max(self.rss_more, more)
        minute = int((time.monotonic() - self.began) // 60) + 1
        self.by_minute[minute] = max(self.by_minute.get(minute, 0), more)
        if files:
            self.wrong.append(f"memory files are left: {files}")
        if more > RSS_MORE and not self.has_sanitizer():
            self.wrong.append(f"the daemon has {more / MIB:.1f} MiB more than when it began")

    def has_sanitizer(self):
        """It keeps freed memory, so its memory says nothing."""
        maps = Path(f"/proc/{self.daemon.pid}/maps").read_text(encoding="ascii")
        return "libasan" in maps or "libtsan" in maps

    def run(self):
        end = time.monotonic() + self.args.minutes * 60
        self.start()
        for index in range(self.args.clients):
            self.bear(index)
        signals = [signal.SIGKILL, signal.SIGTERM]
        while time.monotonic() < end and self.args.one_daemon:
            self.leg(min(time.monotonic() + LEG, end))
            self.rest()
        while time.monotonic() < end:
            for number in signals:
                for _ in range(self.rng.choice(RESTS)):
                    if time.monotonic() < end:
                        self.leg(min(time.monotonic() + LEG, end))
                        self.rest()
                if time.monotonic() >= end:
                    break
                self.leg(min(time.monotonic() + LEG, end))
                self.end(number)
                self.start()
        self.rest()
        self.kill_all()
        self.end(signal.SIGTERM)

    def kill_all(self):
        for pid in list(self.people):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        self.people = {}

    def figures(self):
        apart = ("rests", "files replaced") + tuple(name for name in self.counts if " " in name)
        actions = {name: n for name, n in sorted(self.counts.items()) if name not in apart}
        errors = {name: n for name, n in sorted(self.outcomes.items()) if name not in ("", "wrong")}
        yield "operations", f"{sum(actions.values())}: " + ", ".join(f"{name} {n}" for name, n in actions.items())
        yield "answered with an error", f"{sum(errors.values())}: " + ", ".join(f"{e} {n}" for e, n in errors.items())
        yield "bytes compared", f"{self.bytes} ({self.bytes / 1e9:.1f} GB)"
        for name in ("clients killed", "clients that died in a call", "daemons killed", "daemons stopped"):
            yield name, self.counts[name]
        yield "files replaced", self.counts["files replaced"]
        yield "times that all clients rested", self.counts["rests"]
        yield "then, at most: memory more than at the start", f"{self.rss_more / MIB:.1f} MiB"
        by_minute = ", ".join(f"{minute}: {more / MIB:.1f}" for minute, more in sorted(self.by_minute.items()))
        yield "  in each minute of a daemon's life, MiB", by_minute
        yield "  descriptors more", self.fds_more
        yield "  memory files", self.memory_files
        yield "wrong", len(self.wrong)


def make_versions(folder, reader):
    types = make_model.load_types()
    versions = {}
    for i in range(FILES):
        path = folder / f"m{i}.gguf"
        versions[path] = []
        for j in range(VERSIONS):
            of = folder / f"m{i}-{j}.gguf"
            tensors = make_model.sized_tensors(4, (1 + (i + j) % 2) * MIB // 2, [types[name] for name in TYPES[i % 3]])
            make_model.write_model(of, tensors, make_model.metadata(4, 256, 256, 4, 100), 10 * i + j)
            os.chmod(of, 0o644)
            versions[path].append(Version(of, reader))
        shutil.copyfile(versions[path][0].path, path)
        os.chmod(path, 0o644)
    return versions


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1, metavar="N")
    parser.add_argument("--build", default=os.environ.get("ROCMFORGE_BUILD", "build/dev"), metavar="FOLDER")
    parser.add_argument("--gpu", action="store_true", help="models are in memory of a stand-in for a GPU")
    parser.add_argument("--one-daemon", action="store_true", help="the daemon is not killed: what grows with time shows")
    parser.add_argument("--clients", type=int, default=8, metavar="N")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1000000, help="what happens depends on time, too")
    args = parser.parse_args()
    if not 1 <= args.clients <= Shared.CLIENTS_MAX:
        parser.error(f"--clients has to be from 1 to {Shared.CLIENTS_MAX}")
    return args


def main():
    args = arguments()
    os.environ["ROCMFORGE_BUILD"] = args.build
    try:
        import reader
    except ImportError as error:
        print(f"skipped: {error}: it needs the packages gguf and numpy")
        return 77
    if args.gpu and not fake_gpu_folder():
        print("skipped: this build has no module for AMD GPUs")
        return 77
    folder = Path(tempfile.mkdtemp(prefix="rfs"))
    os.chmod(folder, 0o755)
    soak = None
    try:
        soak = Soak(args, folder, make_versions(folder, reader))
        soak.run()
    finally:
        if soak:
            soak.kill_all()
            if soak.daemon:
                soak.daemon.close()
        shutil.rmtree(folder)
    print(f"{args.minutes:g} minutes on {'a stand-in for a GPU' if args.gpu else 'the host'}, {args.clients} clients of "
          f"{len({soak.uid(i) for i in range(args.clients)})} users, seed {args.seed}")
    for name, value in soak.figures():
        print(f"{name:46} {value}")
    for wrong in dict.fromkeys(soak.wrong[:20]):
        print(f"wrong: {wrong}")
    return 1 if soak.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
