#!/usr/bin/env python3
"""Debian packages on a booted Debian 12: what an administrator does with them, and what systemd does with the service.

usage: run.py FOLDER PACKAGES --model FILE [TEST...]

FOLDER keeps the Debian and the packages that it downloads for the next time. PACKAGES has those of ./setup packages.
FILE is a model. The tests need one another: `install` comes first, and `purge` last. Exits with 77, and says why, where
there can be no such machine.
"""
import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.dont_write_bytecode = True
from booted import Booted, machine

ROOT = Path(__file__).resolve().parents[2]
MESSAGES = dict(re.findall(r'#define MESSAGE_(\w+) "([0-9a-f]{32})"',
                           (ROOT / "daemon" / "base" / "messages.h").read_text(encoding="utf-8")))
PACKAGES = ["librocmforge0", "librocmforge-dev", "rocmforge", "python3-rocmforge"]
SYSTEM = "/usr /etc /opt /srv /lib/systemd /run/rocmforge"
USER = machine.USER
NO_DAEMON = 3

# Reads a tensor of the model again and again, without the daemon, until a file is there; then says how often.
READER = """
import os, sys, time, rocmforge
with rocmforge.attach(sys.argv[1]) as model:
    tensor = model[sorted(model)[0]]
    memory = memoryview(tensor.buffer()) if callable(tensor.buffer) else memoryview(tensor.buffer)
    first, n = bytes(memory), 0
    print("reads", flush=True)
    while not os.path.exists(sys.argv[2]):
        assert bytes(memory) == first
        n += 1
        time.sleep(0.005)
    print(n, "times the same", flush=True)
    memory.release()
    os._exit(0)
"""


class Failed(Exception):
    pass


def check(condition, text):
    if not condition:
        raise Failed(text)


class Admin:
    """Who types, as root unless told otherwise."""

    def __init__(self, booted):
        self.booted = booted

    def types(self, line, user="root", status=0, give=None):
        """What the line prints. It has to end with this status."""
        began = time.monotonic()
        done = self.booted.run(line, user=user, give=give)
        print(f"  {'#' if user == 'root' else '$'} {line[:150]}  ({time.monotonic() - began:.1f} s)", flush=True)
        check(done.returncode == status, f"status {done.returncode} of: {line}\n{done.stdout[-4000:]}")
        return done.stdout

    def begins(self, name, line):
        """A line that the user runs beside; what it prints is in /tmp/NAME."""
        self.types(f"systemd-run --quiet --uid={USER} --unit={name} --property=StandardOutput=file:/tmp/{name} "
                   f"--property=StandardError=file:/tmp/{name} /bin/bash -c '{line}'")

    def looks(self, line, user="root"):
        return self.booted.run(line, user=user).stdout

    def shows(self, name, unit="rocmforged.service"):
        """A property of the unit."""
        return self.looks(f"systemctl show --value -p {name} {unit}").strip()

    def waits(self, condition, what, seconds=60):
        end = time.monotonic() + seconds
        while not condition():
            check(time.monotonic() < end, f"not in time: {what}\n{self.journal()[-3000:]}")
            time.sleep(0.2)

    def journal(self):
        return self.looks("journalctl -u rocmforged.service -o short-precise --no-pager")

    def entries(self, message):
        text = self.looks(f"journalctl -u rocmforged.service -o json MESSAGE_ID={MESSAGES[message]} --no-pager")
        return [json.loads(line) for line in text.splitlines() if line.startswith("{")]

    def files(self):
        return set(self.looks(f"find {SYSTEM} -xdev 2>/dev/null").splitlines())

    def drop_in(self, unit, text):
        self.types(f"mkdir -p /etc/systemd/system/{unit}.d && cat >/etc/systemd/system/{unit}.d/override.conf && "
                   "systemctl daemon-reload", give=text.encode())

    def no_drop_in(self, unit):
        self.types(f"rm -r /etc/systemd/system/{unit}.d && systemctl daemon-reload")


def debs(folder, packages=PACKAGES):
    return " ".join(str(Path("/packages") / next(folder.glob(f"{name}_*.deb")).name) for name in packages)


def test_install(admin, arguments):
    """The packages install, and the socket listens; nothing runs yet."""
    admin.types("apt-get update -qq")
    # What they depend on first, so that what is different afterwards is theirs alone.
    needed = "libcjson1 libuv1 libsystemd0 python3 bash-completion"
    admin.types(f"DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends {needed}")
    admin.before = admin.files()
    admin.types("DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends " + debs(arguments.packages))
    check(admin.shows("ActiveState", "rocmforged.socket") == "active", "the socket does not listen")
    check(admin.shows("ActiveState") == "inactive", "the daemon runs, and nobody asked for it")
    check(admin.shows("ActiveState", "rocmforge-metrics.socket") == "inactive", "metrics are served unasked")
    check("rocmforge" in admin.looks("getent passwd rocmforge"), "there is no user rocmforge")
    admin.types("mkdir -p /srv/models && cat >/srv/models/demo.gguf", give=arguments.model.read_bytes())


def test_activation(admin, arguments):
    """The first client starts the daemon."""
    admin.types("rfctl ping", user=USER)
    check(admin.shows("ActiveState") == "active", "the daemon does not run")
    check(admin.shows("StatusText") == "0 models resident, 0 loading", admin.shows("StatusText"))
    check("rocmforged 0.1.0 ready" in admin.entries("DAEMON_READY")[0]["MESSAGE"], "the journal does not tell")


def test_sandbox(admin, arguments):
    """It is in force in the process that runs."""
    pid = admin.shows("MainPID")
    status = admin.looks(f"cat /proc/{pid}/status")
    for field, value in {"NoNewPrivs": "1", "Seccomp": "2", "CapBnd": "0000000000000000",
                         "CapEff": "0000000000000000"}.items():
        check(re.search(rf"^{field}:\s*{value}$", status, re.M), f"{field} is not {value}:\n{status}")
    check(admin.looks(f"stat -c %U /proc/{pid}").strip() == "rocmforge", "it runs as somebody else")
    mounts = admin.looks(f"cat /proc/{pid}/mountinfo")
    check(re.search(r" / / ro[, ]", mounts), f"its root can be written to:\n{mounts}")
    admin.types(f"nsenter --target {pid} --mount touch /usr/written", status=1)


def test_journal(admin, arguments):
    """Lines have fields."""
    admin.types("rfctl load /srv/models/demo.gguf --name demo", user=USER)
    (entry,) = admin.entries("MODEL_RESIDENT")
    uid = admin.looks(f"id -u {USER}").strip()
    (model,) = json.loads(admin.looks("rfctl --json ps"))["models"]
    expected = {"MODEL": "demo", "DEVICE": "host", "BYTES": str(model["bytes"]), "CLIENT_UID": uid}
    check({key: entry.get(key) for key in expected} == expected, str(entry))
    check(int(entry["DURATION_USEC"]) > 0 and entry["PRIORITY"] == "6", str(entry))
    check("demo" in admin.looks("journalctl MODEL=demo -o cat --no-pager"), "nothing is found by its model")
    check("1 model resident" in admin.shows("StatusText"), admin.shows("StatusText"))


def test_completion(admin, arguments):
    """Names of models that there are."""
    line = (". /usr/share/bash-completion/completions/rfctl; COMP_WORDS=(rfctl {}); COMP_CWORD={}; _rfctl; "
            'echo "${{COMPREPLY[@]}}"')
    check(admin.types(line.format("show ''", 2), user=USER).split() == ["demo"], "no name of a model")
    check("metrics" in admin.types(line.format("me", 1), user=USER), "no command")
    check("--private" in admin.types(line.format("load --pr", 2), user=USER), "no option")


def scrape(admin):
    program = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:9879/metrics', timeout=30).read().decode())"
    return admin.types(f'python3 -c "{program}"', user=USER)


def test_metrics(admin, arguments):
    """Over HTTP, without names that are not for everybody."""
    admin.types(f"install -o {USER} -m 0600 /srv/models/demo.gguf /srv/models/own.gguf")
    admin.types("rfctl load /srv/models/own.gguf --name unreadable --as f32", user=USER)
    admin.types("rfctl load /srv/models/demo.gguf --name secret --private --as native", user=USER)
    admin.types("systemctl enable --now rocmforge-metrics.socket")
    text = scrape(admin)
    check('rocmforge_model_memory_bytes{model="demo"' in text, f"no model that everybody sees:\n{text}")
    check("secret" not in text and "unreadable" not in text, f"names that are not for everybody:\n{text}")
    check('rocmforge_loads_total{outcome="loaded"} 3' in text, text)
    check(re.search(r"LISTEN.* 127\.0\.0\.1:9879 ", admin.looks("ss -ltn")) or
          "127.0.0.1:9879" in admin.shows("Listen", "rocmforge-metrics.socket"), "it listens elsewhere")
    admin.types("rfctl unload secret && rfctl unload unreadable", user=USER)


def test_group(admin, arguments):
    """As the manual page says: only the members of a group may connect."""
    page = (ROOT / "docs" / "rocmforged.8.scd").read_text(encoding="utf-8")
    lines = re.search(r"# systemctl edit rocmforged.socket\+\+\n(.*?)\n\n", page, re.S)[1].replace("++", "")
    check("SocketGroup=models" in lines, "the manual page has another example")
    admin.types("groupadd models && useradd --groups models member && useradd stranger")
    admin.drop_in("rocmforged.socket", lines)
    admin.types("systemctl restart rocmforged.socket")
    admin.types("rfctl ping", user="stranger", status=NO_DAEMON)
    admin.types("rfctl ping", user="member")
    admin.no_drop_in("rocmforged.socket")
    admin.types("systemctl restart rocmforged.socket")
    admin.types("rfctl ping", user="stranger")


def test_stop(admin, arguments):
    """During a load: it is cancelled, and the daemon ends well."""
    for file in "tests/lib/make_model.py", "kernels/types.def":
        admin.types(f"mkdir -p /srv/{Path(file).parent} && cat >/srv/{file}", give=(ROOT / file).read_bytes())
    admin.types("python3 /srv/tests/lib/make_model.py /srv/models/big.gguf --tensors 8 --bytes 512M --types q4_0")
    admin.types("rfctl load /srv/models/big.gguf --name big --as f32 --no-wait", user=USER)
    began = time.monotonic()
    admin.types("systemctl stop rocmforged.service")
    check(time.monotonic() - began < 30, "it did not end in time")
    check(admin.shows("Result") == "success", admin.shows("Result"))
    failed = [entry for entry in admin.entries("LOAD_FAILED") if entry.get("MODEL") == "big"]
    check(failed, f"the load was not cut off:\n{admin.journal()[-2000:]}")
    admin.types("rm -r /srv/models/big.gguf /srv/tests /srv/kernels")
    admin.types("rfctl ping", user=USER)


def test_watchdog(admin, arguments):
    """A daemon that hangs is ended and started again."""
    admin.drop_in("rocmforged.service", "[Service]\nWatchdogSec=2\n")
    admin.types("systemctl restart rocmforged.service")
    pid = admin.shows("MainPID")
    time.sleep(5)
    check(admin.shows("MainPID") == pid, "one that does not hang was ended")
    admin.types(f"kill -STOP {pid}")
    admin.waits(lambda: admin.shows("MainPID") not in (pid, "0") and admin.shows("ActiveState") == "active",
                "the watchdog", 120)
    check("watchdog" in admin.journal().lower(), "the journal does not tell of the watchdog")
    admin.types("rfctl ping", user=USER)
    admin.no_drop_in("rocmforged.service")
    admin.types("systemctl restart rocmforged.service")


def newer(folder, into):
    """The same packages with a later version."""
    for name in PACKAGES:
        package = next(folder.glob(f"{name}_*.deb"))
        tree = into / name
        subprocess.run(["dpkg-deb", "-R", package, tree], check=True)
        control = tree / "DEBIAN" / "control"
        text = control.read_text(encoding="utf-8")
        control.write_text(re.sub(r"^(Version: |Depends: .*librocmforge0 \(.?= )([^)\n]+)", r"\g<1>\g<2>+later", text,
                                  flags=re.M), encoding="utf-8")
        subprocess.run(["dpkg-deb", "--root-owner-group", "-b", tree, into / f"{name}_later.deb"], check=True,
                       stdout=subprocess.DEVNULL)


def test_upgrade(admin, arguments):
    """While a client reads: it reads on, the new daemon runs, and clients wait meanwhile and are not refused."""
    admin.types("rfctl load /srv/models/demo.gguf --name demo", user=USER)
    admin.types("cat >/srv/reader.py", give=READER.encode())
    admin.begins("reader", "exec python3 /srv/reader.py demo /tmp/over")
    admin.waits(lambda: "reads" in admin.looks("cat /tmp/reader"), "the reader")
    admin.begins("pings", "for i in $(seq 200); do rfctl ping >/dev/null || echo refused $?; sleep 0.05; done; echo end")
    before = admin.shows("MainPID")
    with tempfile.TemporaryDirectory() as folder:
        newer(arguments.packages, Path(folder))
        admin.types("mkdir -p /tmp/later")
        for name in PACKAGES:
            admin.types(f"cat >/tmp/later/{name}.deb", give=(Path(folder) / f"{name}_later.deb").read_bytes())
    admin.types("DEBIAN_FRONTEND=noninteractive dpkg -i /tmp/later/*.deb")
    check("+later" in admin.looks("dpkg-query -W -f '${Version}' rocmforge"), "it was not upgraded")
    check(admin.shows("MainPID") not in ("0", before), "the old daemon runs on")
    admin.waits(lambda: "end" in admin.looks("cat /tmp/pings"), "the pings")
    # One whose connection ends with the old daemon may be told that.
    refused = admin.looks("cat /tmp/pings").count("refused")
    check(refused <= 2, f"{refused} of 200 clients had no daemon:\n" + admin.looks("sort /tmp/pings | uniq -c") + admin.journal()[-2500:] + admin.looks("journalctl -u rocmforged.socket --no-pager | tail -12"))
    print(f"  {refused} of 200 clients had no answer during the upgrade")
    admin.types("touch /tmp/over", user=USER)
    admin.waits(lambda: "times the same" in admin.looks("cat /tmp/reader"), admin.looks("cat /tmp/reader"))
    admin.types("rm -r /tmp/later /srv/reader.py")


def test_purge(admin, arguments):
    """Nothing is left but the user, whom files may belong to."""
    admin.types("rfctl ping", user=USER)
    admin.types("DEBIAN_FRONTEND=noninteractive apt-get purge -qq " + " ".join(PACKAGES))
    check(not admin.looks("pidof rocmforged").strip(), "the daemon runs still")
    admin.types("rm -r /srv/models; userdel member; userdel stranger; groupdel models; true")
    units = [line for line in admin.looks("systemctl list-units --all --plain --no-legend").splitlines()
             if "rocmforge" in line and ".slice" not in line]
    check(not units, f"units are loaded still: {units}")
    left = {path for path in admin.files() - admin.before if not re.search(r"^/etc/.*-$|/__pycache__|\.pyc$", path)}
    check(not left, f"there is more than before: {sorted(left)[:20]}")
    lost = admin.before - admin.files()
    check(not lost, f"there is less than before: {sorted(lost)[:20]}")


TESTS = {name.removeprefix("test_"): function for name, function in globals().items() if name.startswith("test_")}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("packages", type=Path)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("tests", nargs="*", default=list(TESTS), metavar="TEST", help=", ".join(TESTS))
    arguments = parser.parse_args()
    failed, began = [], time.monotonic()
    try:
        with Booted(arguments.folder, arguments.packages) as booted:
            admin = Admin(booted)
            for name in arguments.tests:
                print(f"{name}: {TESTS[name].__doc__}", flush=True)
                try:
                    TESTS[name](admin, arguments)
                except (Failed, subprocess.SubprocessError) as error:
                    failed.append(name)
                    print(f"{name} failed: {error}", flush=True)
                    if name == "install":
                        break
    except machine.CannotRun as error:
        print(f"skipped: {error}")
        return 77
    print(f"{len(arguments.tests) - len(failed)} passed, {len(failed)} failed in {time.monotonic() - began:.0f} s"
          + (f": {' '.join(failed)}" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
