"""Who administers the booted Debian: types lines, looks at the service and at the journal."""
import json
import re
import time
from pathlib import Path

from booted import machine

ROOT = Path(__file__).resolve().parents[2]
MESSAGES = dict(re.findall(r'#define MESSAGE_(\w+) "([0-9a-f]{32})"',
                           (ROOT / "daemon" / "base" / "messages.h").read_text(encoding="utf-8")))
PAGE = (ROOT / "docs" / "rocmforged.8.scd").read_text(encoding="utf-8")
SYSTEM = "/usr /etc /opt /srv /lib/systemd /run/rocmforge"
USER = machine.USER


class Failed(Exception):
    pass


def check(condition, text):
    if not condition:
        raise Failed(text)


def section(name):
    return re.search(rf"^# {name}\n(.*?)(?=^# [A-Z ]+$)", PAGE, re.M | re.S)[1]


def commands(name):
    """The lines that a section of the manual page tells root to type."""
    return re.findall(r"^# (.*)$", section(name), re.M)


class Admin:
    """Who types, as root unless told otherwise."""

    def __init__(self, booted):
        self.booted = booted

    def types(self, line, user="root", status=0, give=None, folder="/"):
        """What the line prints. It has to end with this status."""
        began = time.monotonic()
        done = self.booted.run(line, user=user, give=give, folder=folder)
        print(f"  {'#' if user == 'root' else '$'} {line[:150]}  ({time.monotonic() - began:.1f} s)", flush=True)
        check(done.returncode == status, f"status {done.returncode} of: {line}\n{done.stdout[-4000:]}")
        return done.stdout

    def begins(self, name, line):
        """A line that the user runs beside; what it prints is in /tmp/NAME."""
        self.types(f"systemctl reset-failed {name} 2>/dev/null; systemd-run --quiet --uid={USER} --unit={name} "
                   f"--property=StandardOutput=truncate:/tmp/{name} --property=StandardError=append:/tmp/{name} "
                   f"/bin/bash -c '{line}'")

    def looks(self, line, user="root"):
        return self.booted.run(line, user=user).stdout

    def shows(self, name, unit="rocmforged.service"):
        """A property of the unit."""
        return self.looks(f"systemctl show --value -p {name} {unit}").strip()

    def waits(self, condition, what, seconds=60):
        end = time.monotonic() + seconds
        while not condition():
            check(time.monotonic() < end, f"not in time: {what}\n{self.journal()[-3000:]}")
            time.sleep(0.1)

    def journal(self):
        return self.looks("journalctl -u rocmforged.service -o short-precise --no-pager")

    def entries(self, message):
        text = self.looks(f"journalctl -u rocmforged.service -o json MESSAGE_ID={MESSAGES[message]} --no-pager")
        return [json.loads(line) for line in text.splitlines() if line.startswith("{")]

    def models(self):
        """Names and states, as root sees them."""
        return {model["name"]: model["state"] for model in json.loads(self.looks("rfctl --json ps"))["models"]}

    def files(self):
        return set(self.looks(f"find {SYSTEM} -xdev 2>/dev/null").splitlines())

    def drop_in(self, unit, text):
        self.types(f"mkdir -p /etc/systemd/system/{unit}.d && cat >/etc/systemd/system/{unit}.d/override.conf && "
                   "systemctl daemon-reload", give=text.encode())

    def no_drop_in(self, unit):
        self.types(f"rm -r /etc/systemd/system/{unit}.d && systemctl daemon-reload")

    def has_another(self, before):
        """Whether another daemon than that process is ready."""
        return self.shows("MainPID") not in (before, "0") and self.shows("ActiveState") == "active"


# Reads every byte of the model again and again, until there is a file /tmp/NAME.over; then says how often.
READER = """
import os, sys, time, rocmforge
rocmforge.keep_leases()
with rocmforge.attach(sys.argv[1]) as model:
    memories = [memoryview(model[name].buffer()) for name in sorted(model)]
    first, n = [bytes(memory) for memory in memories], 0
    print("reads", flush=True)
    while not os.path.exists(sys.argv[2]):
        assert all(bytes(memory) == before for memory, before in zip(memories, first)), "another byte"
        n += 1
        time.sleep(0.02)
    print(n, "times the same", flush=True)
    os._exit(0)
"""


class Reader:
    """with Reader(admin, NAME, MODEL) as reader: a process that is attached reads; at the end it has to have read the
    same bytes all the time, and more often than when `reader.since` was taken."""

    def __init__(self, admin, name, model):
        self.admin, self.name, self.model = admin, name, model

    def __enter__(self):
        self.admin.types("cat >/srv/reader.py", give=READER.encode())
        self.admin.types(f"rm -f /tmp/{self.name}.over")
        self.admin.begins(self.name, f"exec python3 /srv/reader.py {self.model} /tmp/{self.name}.over")
        self.admin.waits(lambda: "reads" in self.says(), "the reader")
        return self

    def says(self):
        return self.admin.looks(f"cat /tmp/{self.name}")

    def __exit__(self, kind, *_):
        self.admin.types(f"touch /tmp/{self.name}.over")
        if kind is None:
            self.admin.waits(lambda: "times the same" in self.says(), self.says())
            print(f"  {self.name}: {self.says().splitlines()[-1]}", flush=True)
