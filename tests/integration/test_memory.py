"""What the daemon says of memory that others have, and what becomes of memory that somebody does not let go of."""
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from harness import GRANULE, MIB, daemon_program, names, sparse_model, states, wait_until, wire_error

CGROUPS = Path("/sys/fs/cgroup")
LIMIT = 700 * MIB
OTHERS = 350 * MIB


@pytest.fixture
def group():
    """A control group with a limit: what makes a process a member of it, and what it takes."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to make control groups")
    path = next((root for root in (CGROUPS / "memory", CGROUPS) if (root / "cgroup.procs").exists()), None)
    if not path:
        pytest.skip("there are no control groups here")
    path /= f"rocmforge-test-{os.getpid()}"
    try:
        path.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made: {error}")
    limit = next((path / name for name in ("memory.limit_in_bytes", "memory.max") if (path / name).exists()), None)
    if limit:
        limit.write_text(str(LIMIT))
        yield path
    wait_until(lambda: not (path / "cgroup.procs").read_text())
    path.rmdir()
    if not limit:
        pytest.skip("control groups do not limit memory here")


def member(group, *command):
    """The command, run in the group."""
    return ["sh", "-c", 'echo $$ > "$0" && exec "$@"', str(group / "cgroup.procs"), *command]


@pytest.fixture
def neighbour(group):
    """Another process of the group, that takes memory when it is told to."""
    code = "import sys; sys.stdin.readline(); b = bytearray(b'x') * %d; print(1, flush=True); sys.stdin.readline()"
    process = subprocess.Popen(
        member(group, sys.executable, "-c", code % OTHERS), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    yield process
    process.kill()
    process.communicate()


def say(process):
    process.stdin.write("\n")
    process.stdin.flush()
    process.stdout.readline()


def test_others_in_the_control_group(group, neighbour, start, folder):
    """What they take is not there for models; what the kernel keeps of files is."""
    daemon = start(program=member(group, daemon_program()))
    with daemon.client() as client:
        before = client.call("Devices")["devices"][0]
        assert before["total"] == before["budget"] == LIMIT
        say(neighbour)
        device = client.call("Devices")["devices"][0]
        assert LIMIT - OTHERS - 150 * MIB < device["available"] <= LIMIT - OTHERS
        assert OTHERS <= device["others"] == device["total"] - device["available"]
        subprocess.run(member(group, "cat", sparse_model(folder / "file.gguf", 300 * MIB)), check=True,
                       stdout=subprocess.DEVNULL)
        assert client.call("Devices")["devices"][0]["available"] > device["available"] - 64 * MIB

        small, large = sparse_model(folder / "s.gguf", 100 * MIB), sparse_model(folder / "l.gguf", 256 * MIB)
        client.call("Load", path=str(small), name="s", pin=True)
        after = client.call("Devices")["devices"][0]
        assert after["used"] >= 100 * MIB
        assert abs(after["others"] - device["others"]) < 64 * MIB, "models are not others"
        plan = client.call("Plan", path=str(large))
        assert (plan["fits"], plan["error"]) == (False, "io.rocmforge.OutOfDeviceMemory")
        with wire_error("OutOfDeviceMemory"):
            client.call("Load", path=str(large), name="l")
        client.call("Unpin", name="s")
        assert client.call("Plan", path=str(large))["evicts"] == ["s"]
        assert client.call("Load", path=str(large), name="l")["model"]["state"] == "resident"
        assert states(daemon) == {"l": "resident"}
    assert neighbour.poll() is None and daemon.process.poll() is None, "nobody was killed"


def test_waits_for_others_too(group, neighbour, start, folder):
    """A load in the queue looks again by itself, for others say nothing when they let go of memory."""
    daemon = start(program=member(group, daemon_program()))
    path = sparse_model(folder / "l.gguf", 384 * MIB)
    say(neighbour)
    with daemon.client() as client:
        client.send("Load", {"path": str(path), "name": "l", "waitForMemory": 60})
        wait_until(lambda: states(daemon) == {"l": "queued"})
        neighbour.kill()
        assert client.reply()[0]["model"]["state"] == "resident"


def test_devices_while_all_workers_read(held_daemon, gate, gated_model):
    """Whoever wants to know why nothing goes on is told."""
    with held_daemon.client() as loader, held_daemon.client() as client:
        loader.send("Load", {"path": str(gated_model), "name": "m"})
        wait_until(lambda: states(held_daemon) == {"m": "filling"})
        for _ in range(20):
            device = client.call("Devices")["devices"][0]
            assert device["used"] == 64 * MIB or device["used"] % GRANULE == 0
            assert device["available"] <= device["budget"] - device["used"]
        gate.open()
        loader.reply()


def test_many_ask_for_devices_at_once(daemon):
    clients = [daemon.client() for _ in range(30)]
    for client in clients:
        client.send("Devices")
    for client in clients[::2]:
        client.close()  # does not wait for the answer
    for client in clients[1::2]:
        assert client.reply()[0]["devices"][0]["id"] == "host"
        client.close()


# --- drains ---


@pytest.fixture
def hung(start, models):
    """A daemon with room for two models, one of which a client has a lease on that does not run."""
    daemon = start("--budget", str(2 * GRANULE))
    (daemon.first, daemon.second, daemon.third) = models(3)
    daemon.rfctl("load", daemon.first, "--name", "m")
    code = """
import socket, sys, time
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
s.sendall(b'{"method": "io.rocmforge.Attach", "parameters": {"name": "m"}}' + bytes(1))
s.recv(65536)
print(1, flush=True)
time.sleep(1000)
"""
    daemon.holder = subprocess.Popen([sys.executable, "-c", code, daemon.socket], stdout=subprocess.PIPE)
    daemon.holder.stdout.readline()
    daemon.holder.send_signal(signal.SIGSTOP)
    yield daemon
    daemon.holder.kill()
    daemon.holder.communicate()


def test_a_drain_ends(hung):
    """The name is free for another model; the memory stays in use, by whom is told, until its holder dies."""
    with hung.client() as client, hung.client() as watcher:
        watcher.send("Watch", more=True)
        (model,) = watcher.reply()[0]["models"]
        assert client.call("Unload", name="m", force=True, deadline=0.5) == {"state": "draining"}
        with wire_error("ModelBusy"):
            client.call("Load", path=str(hung.first), name="m")
        with wire_error("NameInUse"):
            client.call("Load", path=str(hung.second), name="m")
        old = f"m#{model['id']}"
        wait_until(lambda: names(hung) == [old])
        loaded = client.call("Load", path=str(hung.second), name="m")["model"]
        assert loaded["name"] == "m" and loaded["id"] != model["id"]
        assert states(hung) == {old: "draining", "m": "resident"}
        shown = client.call("Show", name=old)
        assert [lease["pid"] for lease in shown["leases"]] == [hung.holder.pid]
        device = client.call("Devices")["devices"][0]
        assert (device["used"], device["available"]) == (2 * GRANULE, 0)
        with wire_error("OutOfDeviceMemory"):
            client.call("Load", path=str(hung.third), name="c", lease=True, form="f32")
        with wire_error("ModelBusy"):
            client.call("Attach", name=old)
        with wire_error("org.varlink.service.InvalidParameter"):
            client.call("Load", path=str(hung.third), name=old)
        hung.holder.kill()
        wait_until(lambda: states(hung) == {"m": "resident"})
        assert hung.used() == GRANULE
        events = []
        while ("unloaded", old) not in events:
            event = watcher.reply()[0]
            events.append((event["event"], event["model"]["name"]))
        assert events.index(("draining", "m")) < events.index(("renamed", old)) < events.index(("resident", "m"))


def test_who_does_not_let_go_is_named(hung):
    with hung.client() as client:
        client.call("Attach", name="m")
        hung.rfctl("unload", "m", "--force", "--deadline", "1s")
        assert client.call("Status")["draining"] == ["m"]
        wait_until(lambda: "its name is free" in hung.log)
        lines = [line for line in hung.log.splitlines() if "drains since" in line]
        assert len(lines) == 2 and all(re.search(r"model=m id=1 .* uid=0 ", line) for line in lines)
        assert sum(f"pid={hung.holder.pid} " in line and "was not told" in line for line in lines) == 1
        assert sum(f"pid={os.getpid()} " in line and "was told and does not let go" in line for line in lines) == 1


def test_told_by_the_name_that_it_knows(hung):
    """A client that asks something only after the name was lost."""
    with hung.client() as client:
        client.call("Attach", name="m")
        other = hung.client()
        other.call("Unload", name="m", force=True, deadline=0.2)
        wait_until(lambda: names(hung) == ["m#1"])
        other.close()
        assert client.call("Status")["draining"] == ["m"]


def test_a_drain_that_ends_in_time(hung):
    with hung.client() as client:
        client.call("Unload", name="m", force=True, deadline=60)
        hung.holder.kill()
        wait_until(lambda: names(hung) == [])
    assert "drains since" not in hung.log and "its name is free" not in hung.log


def test_deadline_of_a_drain_may_be_set_later(hung):
    with hung.client() as client:
        client.call("Unload", name="m", force=True)
        time.sleep(0.3)
        assert states(hung) == {"m": "draining"}
        client.call("Unload", name="m", force=True, deadline=0.1)
        wait_until(lambda: names(hung) == ["m#1"])
        with wire_error("ModelNotFound"):
            client.call("Unload", name="m", force=True)
        assert client.call("Unload", name="m#1", force=True, deadline=0.1) == {"state": "draining"}
        time.sleep(0.3)
        assert names(hung) == ["m#1"]


@pytest.mark.parametrize("later", [{}, {"deadline": 3600}])
def test_the_earlier_end_of_a_drain_holds(hung, later):
    """Who asks again, without a deadline or with a later one, does not take it back."""
    with hung.client() as client:
        client.call("Unload", name="m", force=True, deadline=0.5)
        client.call("Unload", name="m", force=True, **later)
        wait_until(lambda: names(hung) == ["m#1"], 10)


def test_waits_for_a_name_that_drains(hung):
    """A load in the queue for memory gets it when the hung client dies."""
    with hung.client() as client, hung.client() as loader:
        client.call("Unload", name="m", force=True, deadline=0.1)
        client.call("Load", path=str(hung.second), name="b", lease=True)
        loader.send("Load", {"path": str(hung.third), "name": "c", "waitForMemory": 60})
        wait_until(lambda: states(hung).get("c") == "queued")
        hung.holder.kill()
        assert loader.reply()[0]["model"]["state"] == "resident"


# --- the journal ---


def test_lines_of_a_load(daemon, client, small_model, folder):
    """Path, bytes and duration stand in them, whether it succeeds or not."""
    client.call("Load", path=str(small_model), name="m")
    size = os.path.getsize(small_model)
    assert re.search(rf"model=m id=1 .*resident on host: \d+ bytes in \d+\.\d+ s, from {size} bytes of {small_model}",
                     daemon.log)
    bad = folder / "bad.gguf"
    bad.write_bytes(b"GGUF and no more")
    with wire_error("InvalidModel"):
        client.call("Load", path=str(bad), name="bad")
    assert re.search(rf"model=bad id=2 .*not loaded: .*\(after \d+\.\d+ s, from 16 bytes of {bad}\)", daemon.log)
