"""What systemd's journal gets: lines with fields, in its own protocol, and never a wait for it."""
import os
import re
import socket
import subprocess
import time

import pytest
from harness import ROOT, TIMEOUT, daemon_program, wait_until, wire_error

HEADER = (ROOT / "daemon" / "base" / "messages.h").read_text(encoding="utf-8")
MESSAGES = dict(re.findall(r'#define MESSAGE_(\w+) "([0-9a-f]{32})"', HEADER))

# In a mount namespace of its own this folder is where the journal has its socket; standard error is a stream as the
# journal's.
UNDER_A_JOURNAL = """
mkdir -p /run/systemd/journal && mount --bind "$1" /run/systemd/journal && shift
exec "$@"
"""


class Journal:
    """Takes what is sent to the journal, both ways."""

    def __init__(self, folder):
        self.folder = folder / "journal"
        self.folder.mkdir()
        self.datagrams = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.datagrams.bind(str(self.folder / "socket"))
        self.stream, self.stderr = socket.socketpair(socket.AF_UNIX)

    def entries(self):
        found = []
        self.datagrams.setblocking(False)
        while True:
            try:
                text = self.datagrams.recv(65536).decode()
            except BlockingIOError:
                return found
            assert text.endswith("\n")
            found.append(dict(line.split("=", 1) for line in text.splitlines()))

    def environment(self):
        found = os.fstat(self.stderr.fileno())
        return {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"}


@pytest.fixture
def journal(folder):
    if os.geteuid() != 0:
        pytest.skip("needs root, to put a socket in the place of the journal's")
    journal = Journal(folder)
    yield journal
    for each in (journal.datagrams, journal.stream, journal.stderr):
        each.close()


@pytest.fixture
def start_under(start, folder, journal):
    def start_one(*options, **keywords):
        os.set_inheritable(journal.stderr.fileno(), True)
        # The daemon's standard error is the stream: Daemon gives it a file, so the shell changes it.
        script = f'exec 2>&{journal.stderr.fileno()}; exec unshare --mount sh -ec "$0" sh "$@"'
        program = ["bash", "-c", script, UNDER_A_JOURNAL, str(journal.folder), daemon_program()]
        keywords["env"] = {**journal.environment(), **keywords.get("env", {})}
        return start(*options, program=program, **keywords)

    return start_one


@pytest.fixture
def popen_with_fd(monkeypatch, journal):
    """The harness closes what it does not know of."""
    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen",
                        lambda *a, **k: popen(*a, **{**k, "pass_fds": [journal.stderr.fileno()]}))


def found(entries, name):
    return [entry for entry in entries if entry.get("MESSAGE_ID") == MESSAGES[name]]


def test_fields(popen_with_fd, start_under, journal, small_model, folder):
    daemon = start_under()
    with daemon.client() as client:
        model = client.call("Load", path=str(small_model), name="small")["model"]
        (folder / "text.gguf").write_text("this is no model, but long enough to be one")
        with wire_error("InvalidModel"):
            client.call("Load", path=str(folder / "text.gguf"))
        client.call("Unload", name="small")
    assert daemon.stop() == 0
    entries = journal.entries()
    assert {entry["SYSLOG_IDENTIFIER"] for entry in entries} == {"rocmforged"}
    assert all("\n" not in entry["MESSAGE"] and not entry["MESSAGE"].startswith("<") for entry in entries)
    (resident,) = found(entries, "MODEL_RESIDENT")
    assert resident["MESSAGE"].startswith("model=small id=1 uid=0 resident on host")
    assert resident["PRIORITY"] == "6"
    assert {key: resident[key] for key in ("MODEL", "DEVICE", "BYTES", "CLIENT_UID")} == {
        "MODEL": "small", "DEVICE": "host", "BYTES": str(model["bytes"]), "CLIENT_UID": "0"}
    assert 0 < int(resident["DURATION_USEC"]) < 60000000
    (refused,) = found(entries, "LOAD_FAILED") + found(entries, "LOAD_REFUSED")
    assert refused["CLIENT_UID"] == "0" and refused["PRIORITY"] == "5"
    assert 0 <= int(refused["DURATION_USEC"]) < 60000000
    assert refused["MESSAGE"].endswith(f" bytes of {folder / 'text.gguf'})")
    (unloaded,) = found(entries, "MODEL_UNLOADED")
    assert (unloaded["MODEL"], unloaded["BYTES"]) == ("small", str(model["bytes"]))
    assert len(found(entries, "DAEMON_READY")) == len(found(entries, "DAEMON_STOPPING")) == 1
    journal.stream.setblocking(False)
    with pytest.raises(BlockingIOError):
        journal.stream.recv(1)  # nothing came twice


def test_a_journal_that_does_not_read_is_not_waited_for(popen_with_fd, start_under, journal):
    """Its queue is full, and its stream too: clients are answered all the same."""
    daemon = start_under("--log-level", "debug")
    began = time.monotonic()
    for i in range(300):
        with daemon.client() as client, wire_error("ModelNotFound"):
            client.send_raw(b'{"method":"io.rocmforge.Show","parameters":{"name":"x"}}\0')
            client.reply()
        with daemon.client() as client:
            client.send_raw(b"no message\0")
            client.receive()
    assert time.monotonic() - began < TIMEOUT / 2
    assert daemon.status()["models"] == 0
    assert journal.entries()
    assert daemon.stop() == 0


def test_without_the_journals_socket(popen_with_fd, start_under, journal):
    """Lines go to the stream then, with their priorities."""
    (journal.folder / "socket").unlink()
    daemon = start_under()
    journal.stream.settimeout(TIMEOUT)
    assert journal.stream.recv(65536).startswith(b"<6>")
    wait_until(lambda: daemon.status())


def test_the_manual_page_lists_them():
    page = (ROOT / "docs" / "rocmforged.8.scd").read_text(encoding="utf-8")
    assert len(set(MESSAGES.values())) == len(MESSAGES) > 10
    assert set(re.findall(r"\b[0-9a-f]{32}\b", page)) == set(MESSAGES.values())
    for name, fields in re.findall(r"/\* (.*) \*/\n#define MESSAGE_\w+ \"(\w+)\"", HEADER):
        line = next(text for text in page.split("\n\n") if f"*{fields}*" in text).replace("\\_", "_")
        for field in re.findall(r"\b[A-Z_]{5,}\b", name.partition(":")[2]):
            assert field in line, (name, field)
