"""Clients that ask for all they can get, and the others, who must not notice."""
import contextlib
import json
import resource
import signal
import subprocess
import sys
import threading
import time

import make_model
import pytest
from harness import USER, client_of, wait_until, wire_error
from rocmforge_wire import Closed, WireError
from split_model import write_sparse_shard

MIB = 1 << 20
PATIENCE = 3  # seconds that a client who asks for little waits at most, on any machine
CONNECTIONS_MAX = 1024
USER_CONNECTIONS = 256
USER_VERIFIES = 4
USER_PLANS = 4


def promptly(client, method, **parameters):
    """Calls it, and fails if that takes long."""
    began = time.monotonic()
    reply = client.call(method, **parameters)
    assert time.monotonic() - began < PATIENCE
    return reply


def keep_asking(client, seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        promptly(client, "Status")
        promptly(client, "List")
        time.sleep(0.01)


def refused(client, limit):
    """It was told of the limit, unasked, and the connection closed."""
    with wire_error("LimitExceeded") as error:
        client.reply()
    assert error == limit
    with pytest.raises((Closed, ConnectionError)):
        client.receive()
    client.close()


# --- Connections that say nothing ---


@pytest.mark.alone
def test_silent_connections_of_a_user(start_for_all):
    daemon = start_for_all()
    limit = {"limit": "user-connections", "value": USER_CONNECTIONS}
    before = daemon.settled_fds()
    for _ in range(2):
        with contextlib.ExitStack() as stack:
            mine = [stack.enter_context(client_of(daemon, USER)) for _ in range(USER_CONNECTIONS)]
            with client_of(daemon, USER + 1) as other, daemon.client() as root:
                for client in (other, root):
                    promptly(client, "Status")
                assert root.call("Status")["connections"] == USER_CONNECTIONS + 2
                for _ in range(50):
                    refused(client_of(daemon, USER), limit)
                for client in (mine[0], mine[-1], other, root):
                    promptly(client, "Status")
                assert daemon.busy(0.5) < 0.5
                # Room for one makes room for one.
                mine[0].close()
                wait_until(lambda: root.call("Status")["connections"] == USER_CONNECTIONS + 1)
                with client_of(daemon, USER) as again:
                    promptly(again, "Status")
                    refused(client_of(daemon, USER), limit)
        wait_until(lambda: daemon.fds() == before)


@pytest.mark.alone
def test_silent_connections_of_all(daemon):
    """More than that are not kept, whoever they are."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limits[1] < CONNECTIONS_MAX + 200:
        pytest.skip("needs as many descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(limits[0], CONNECTIONS_MAX + 200), limits[1]))
    before = daemon.settled_fds()
    try:
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(daemon.client()) for _ in range(CONNECTIONS_MAX)]
            assert clients[-1].call("Status")["connections"] == CONNECTIONS_MAX
            for _ in range(20):
                refused(daemon.client(), {"limit": "connections", "value": CONNECTIONS_MAX})
            for client in clients[:: CONNECTIONS_MAX // 16]:
                promptly(client, "Status")
            assert daemon.busy(0.5) < 0.5
        wait_until(lambda: daemon.fds() == before)
        assert daemon.models() == []
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


# --- Calls without end ---

FLOOD = """
import socket, sys
flooder = socket.socket(socket.AF_UNIX)
flooder.connect(sys.argv[1])
data = (sys.argv[2].encode() + b"\\0") * 1000
print("begins", flush=True)
while True:
    flooder.sendall(data)
"""


@contextlib.contextmanager
def flooders(daemon, call, n=4):
    """Processes that send a call for ever, and read nothing."""
    with contextlib.ExitStack() as stack:
        processes = []
        for _ in range(n):
            command = [sys.executable, "-c", FLOOD, str(daemon.socket), json.dumps(call)]
            processes.append(stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE)))
            stack.callback(processes[-1].kill)
        for process in processes:
            assert process.stdout.readline() == b"begins\n"
        yield processes


ONEWAY = {
    "tells": {"method": "io.rocmforge.Status"},
    "does": {"method": "io.rocmforge.Cancel", "parameters": {"name": "nobody"}},
    "fails": {"method": "io.rocmforge.Nothing"},
    "looks": {"method": "io.rocmforge.Verify", "parameters": {"name": "small"}},
}


@pytest.mark.alone
@pytest.mark.parametrize("call", ONEWAY.values(), ids=ONEWAY.keys())
def test_flood_of_oneway_calls(daemon, small_model, call):
    """They are worked off for as long as they come, in turn with what others want."""
    with daemon.client() as client:
        client.call("Load", path=str(small_model), name="small")
        before = daemon.settled_fds()
        memory = daemon.rss()
        with flooders(daemon, {**call, "oneway": True}) as processes:
            keep_asking(client, 2)
            lease = promptly(client, "Attach", name="small")["lease"]
            promptly(client, "Detach", lease=lease)
            assert all(process.poll() is None for process in processes), "it is slowed down, not closed"
            assert daemon.rss() < memory + 64 * MIB
        wait_until(lambda: client.call("Status")["connections"] == 1)
        wait_until(lambda: daemon.fds() == before)
        client.call("Unload", name="small")


UNREAD = {
    "small": {"method": "io.rocmforge.List"},
    "large": {"method": "org.varlink.service.GetInterfaceDescription", "parameters": {"interface": "io.rocmforge"}},
    "errors": {"method": "io.rocmforge.Show", "parameters": {"name": "nobody"}},
    "progress": {"method": "io.rocmforge.Verify", "parameters": {"name": "small"}, "more": True},
}


@pytest.mark.alone
@pytest.mark.parametrize("call", UNREAD.values(), ids=UNREAD.keys())
def test_flood_of_calls_whose_replies_are_not_read(daemon, small_model, call):
    """They come to a stop, and with them the daemon."""
    with daemon.client() as client:
        client.call("Load", path=str(small_model), name="small")
        before = daemon.settled_fds()
        memory = daemon.rss()
        with flooders(daemon, call):
            wait_until(lambda: daemon.busy(0.2) < 0.1)
            keep_asking(client, 0.5)
            assert client.call("Status")["connections"] == 5
            assert daemon.rss() < memory + 64 * MIB
        wait_until(lambda: client.call("Status")["connections"] == 1)
        wait_until(lambda: daemon.fds() == before)


def test_flood_that_is_read_in_the_end(daemon):
    """What was held up goes on as replies are read: each call has its own, in order."""
    with daemon.client() as client:
        client.socket.settimeout(0.3)
        sent = b""
        with pytest.raises(TimeoutError):
            for i in range(1 << 20):
                data = json.dumps({"method": "io.rocmforge.Show", "parameters": {"name": f"m{i}" + "x" * 100}}).encode()
                sent = data + b"\0"
                while sent:
                    sent = sent[client.socket.send(sent) :]
        client.socket.settimeout(30)
        assert i > 100
        done = threading.Thread(target=client.socket.sendall, args=(sent,))
        done.start()
        for j in range(i + 1):
            with wire_error("ModelNotFound") as error:
                client.reply()
            assert error["name"].rstrip("x") == f"m{j}"
        done.join()
        assert client.call("List") == {"models": []}


def test_end_under_a_flood(daemon):
    with flooders(daemon, {**ONEWAY["tells"], "oneway": True}, 2), flooders(daemon, UNREAD["large"], 2):
        assert daemon.stop() == 0


# --- Headers ---


@pytest.mark.parametrize("method", ["Load", "Plan"])
def test_flood_of_headers(daemon, folder, method):
    """Files that cost nothing, each with a header that one may have: together they may not."""
    paths = [folder / f"{i}.gguf" for i in range(8)]
    for i, path in enumerate(paths):
        write_sparse_shard(path, i, len(paths), 120 * MIB)
    memory = daemon.rss()
    with daemon.client() as client, contextlib.ExitStack() as stack:
        files = [stack.enter_context(open(path, "rb")).fileno() for path in paths]
        with wire_error("InvalidModel") as error:
            client.call(method, fds=files)
        assert error["reason"].startswith("file 2: with those of the files before it, the header takes more than")
        assert daemon.peak() < memory + 300 * MIB


def test_limit_of_plans(start_for_all, gate, folder):
    """They keep workers from loads, also those that nobody waits for any more."""
    daemon = start_for_all("--workers", "8", env={**gate.env, "SLOW_READ_LEAST": "65536"})
    path = folder / "large-header.gguf"
    write_sparse_shard(path, 0, 1, 4 * MIB)
    gate.close()
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(open(path, "rb")).fileno()
        clients = [stack.enter_context(client_of(daemon, USER)) for _ in range(USER_PLANS)]
        for client in clients:
            client.send("Plan", {"fds": [0]}, [file])
        daemon.sync()
        clients.pop(0).close()  # its worker reads on
        with client_of(daemon, USER) as fifth, client_of(daemon, USER + 1) as other, daemon.client() as root:
            wait_until(lambda: root.call("Status")["connections"] == USER_PLANS - 1 + 3)
            for _ in range(20):
                with wire_error("LimitExceeded") as error:
                    fifth.call("Plan", fds=[file])
                assert error == {"limit": "user-plans", "value": USER_PLANS}
            promptly(fifth, "List")
            with client_of(daemon, daemon.uid) as own:
                for client in (other, own):
                    client.send("Plan", {"fds": [0]}, [file])
                daemon.sync()
                gate.open()
                for client in (*clients, other, own):
                    assert client.reply()[0]["tensors"] == 0
            assert wait_until(lambda: fifth.call("Plan", fds=[file]))["tensors"] == 0


# --- Verifications ---


@pytest.mark.alone
def test_flood_of_verifications(start, gate, gated_model, small_model):
    """None of them ends, and yet there are workers for the loads of others."""
    daemon = start("--workers", "4", env=gate.env)
    with daemon.client() as client, contextlib.ExitStack() as stack:
        client.call("Load", path=str(gated_model), name="gated")
        gate.close()
        verifiers = [stack.enter_context(daemon.client()) for _ in range(12)]
        for verifier in verifiers:
            for _ in range(200):
                verifier.send("Verify", {"name": "gated"}, more=True)
        daemon.sync()
        memory = daemon.rss()
        for i in range(5):
            assert promptly(client, "List")["models"][0]["name"] == "gated"
            lease = promptly(client, "Attach", name="gated")["lease"]
            promptly(client, "Detach", lease=lease)
            # It would never end if verifications had all of the workers.
            client.call("Load", path=str(small_model), name=f"small{i}")
            client.call("Unload", name=f"small{i}")
        assert daemon.busy(0.5) < 0.5
        assert daemon.rss() < memory + 64 * MIB
        with wire_error("ModelBusy"):
            client.call("Unload", name="gated")
        stack.close()
        daemon.sync()
        gate.open()
        wait_until(lambda: client.call("Status")["connections"] == 1)

        def unloaded():
            with contextlib.suppress(WireError):
                return client.call("Unload", name="gated")

        wait_until(unloaded)
        assert daemon.used() == 0


def test_limit_of_verifications(start_for_all, gate, gated_model):
    daemon = start_for_all("--workers", "4", env=gate.env)
    with client_of(daemon, daemon.uid) as own, contextlib.ExitStack() as stack:
        with open(gated_model, "rb") as file:
            own.call("Load", fds=[file.fileno()], name="gated", public=True)
        gate.close()
        mine = [stack.enter_context(client_of(daemon, USER)) for _ in range(USER_VERIFIES)]
        for client in mine:
            client.send("Verify", {"name": "gated"})
        daemon.sync()
        with client_of(daemon, USER) as fifth, client_of(daemon, USER + 1) as other:
            for _ in range(20):
                with wire_error("LimitExceeded") as error:
                    fifth.call("Verify", name="gated")
                assert error == {"limit": "user-verifies", "value": USER_VERIFIES}
            promptly(fifth, "List")
            other.send("Verify", {"name": "gated"})
            own.send("Verify", {"name": "gated"})
            daemon.sync()
            mine.pop(0).close()
            daemon.sync()
            gate.open()
            for client in (*mine, other, own):
                assert client.reply()[0]["mismatches"] == []
            assert fifth.call("Verify", name="gated")["mismatches"] == []


# --- Those who come and go ---


def test_flood_of_clients_that_go(daemon, small_model):
    """Each takes a lease and dies, or leaves in the middle of a word."""
    with daemon.client() as client:
        client.call("Load", path=str(small_model), name="small")
        client.call("Status")
        before = daemon.settled_fds()
        for i in range(300):
            with daemon.client() as other:
                other.send("Attach", {"name": "small"})
                if i % 3 == 0:
                    other.reply()
                elif i % 3 == 1:
                    other.send_raw(b'{"method":')
            if i % 50 == 0:
                promptly(client, "Status")
        wait_until(lambda: client.call("Status")["connections"] == 1)
        assert client.call("Status")["leases"] == 0
        wait_until(lambda: daemon.fds() == before)


@pytest.mark.alone
def test_flood_that_stops_in_the_middle(daemon):
    """The flooder is stopped, as by a debugger: nobody waits for it."""
    with daemon.client() as client, flooders(daemon, UNREAD["large"], 2) as processes:
        for process in processes:
            process.send_signal(signal.SIGSTOP)
        keep_asking(client, 0.5)
        wait_until(lambda: daemon.busy(0.2) < 0.1)


# --- Replies ---


def test_flood_of_long_replies(start_for_all, folder):
    """Nobody reads them. What waits for one user is bounded, however many clients he has; others get theirs."""
    path = folder / "long.gguf"
    tensors = [make_model.Tensor("\1" * 57 + f"{i:06}", make_model.load_types()["i8"], (1,)) for i in range(25000)]
    with open(path, "wb") as out:
        out.truncate(make_model.write_header(out, tensors, 0, b"") + make_model.ALIGNMENT * len(tensors))
    daemon = start_for_all()
    with contextlib.ExitStack() as stack, open(path, "rb") as file:
        with daemon.client() as root:
            root.call("Load", fds=[file.fileno()], name="long")
        for _ in range(20):
            stack.enter_context(client_of(daemon, USER)).send("Show", {"name": "long"})
        daemon.sync()
        with client_of(daemon, USER) as client:
            for method in "Show", "Attach":
                with wire_error("LimitExceeded") as error:
                    client.call(method, name="long")
                assert error == {"limit": "user-memory", "value": 64 * MIB}
            assert client.call("Attach", name="long", table=True)["lease"] > 0
            promptly(client, "List")
        with client_of(daemon, USER + 1) as other:
            assert len(other.call("Show", name="long")["tensors"]) == len(tensors)


# --- The log ---

LOG_LINES, LOG_SECONDS = 100, 10  # of one kind that clients cause


def test_log_lines_of_mistakes(daemon, small_model):
    """One client makes mistakes as fast as it can. The log has some of them, and all that others have to say."""
    began = time.monotonic()
    with daemon.client() as client:
        for _ in range(3000):
            with contextlib.suppress(WireError):
                client.call("Load", path="/etc/passwd")
        for _ in range(300):
            with daemon.client() as other:
                other.send_raw(b"bad\0")
                with wire_error("InvalidMessage"):
                    other.reply()
        client.call("Load", path=str(small_model), name="small")
    may = LOG_LINES * (2 + (time.monotonic() - began) / LOG_SECONDS)
    assert LOG_LINES <= daemon.log.count("load refused: ") + daemon.log.count("not loaded: ") <= may
    assert LOG_LINES <= daemon.log.count(" ends: ") <= may
    assert "model=small" in daemon.log


def test_log_lines_of_models_that_do_not_stay(daemon, small_model):
    began = time.monotonic()
    with daemon.client() as client:
        for _ in range(400):
            client.call("Load", path=str(small_model), name="small", ttl=0)
        wait_until(lambda: daemon.models() == [])
    may = LOG_LINES * (2 + (time.monotonic() - began) / LOG_SECONDS)
    for words in " resident on ", " was idle for ", " unloaded":
        assert 0 < daemon.log.count(words) <= may


def test_very_many_leases_are_not_all_listed(daemon, small_model):
    """The loop makes the list, and others wait meanwhile."""
    with daemon.client() as client:
        client.call("Load", path=str(small_model), name="m")
        leases = [client.call("Attach", name="m", table=True)["lease"] for _ in range(1001)]
        shown = client.call("Show", name="m")
        assert shown["model"]["leases"] == 1001
        assert sorted(lease["lease"] for lease in shown["leases"]) == leases[1:]
        with wire_error("ModelBusy") as error:
            client.call("Unload", name="m")
        assert len(error["leases"]) == 1000
        client.call("Detach", lease=leases[0])
        assert len(client.call("Show", name="m")["leases"]) == 1000


def test_long_descriptions_are_not_told_to_many(daemon, folder):
    """Of each model List and Watch would have a quarter of a MiB, or more than one reply may have."""
    path = folder / "groups.gguf"
    names = [f"t{i}" for i in range(80)]
    types = make_model.load_types()
    make_model.write_model(path, [make_model.Tensor(name, types["f32"], (8,)) for name in names],
                           make_model.metadata(1, 256, 256, 4, 100), 1)
    few, many = {"name": "few", "members": names[:63]}, {"name": "many", "members": names[:64]}
    rules = [{"match": f"x{i}", "form": "f16"} for i in range(17)]
    with daemon.client() as client, daemon.client() as watcher:
        watcher.send("Watch", more=True)
        watcher.reply()
        client.call("Load", path=str(path), name="short", groups=[few], forms=rules[:16])
        loaded = client.call("Load", path=str(path), name="long", groups=[many], forms=rules)["model"]
        assert len(loaded["groups"]) == 1 and len(loaded["forms"]) == 17 and "groupsLeft" not in loaded
        shown = client.call("Show", name="long")["model"]
        assert (shown["groups"], shown["forms"]) == (loaded["groups"], loaded["forms"])
        short, long = client.call("List")["models"]
        assert len(short["groups"]) == 1 and len(short["forms"]) == 16
        assert not {"groups", "forms"} & set(long) and (long["groupsLeft"], long["formsLeft"]) == (1, 17)
        while (event := watcher.reply()[0])["model"]["name"] != "long":
            assert "groups" in event["model"]
        assert "groups" not in event["model"] and event["model"]["formsLeft"] == 17
    line = next(line for line in daemon.rfctl("ps").stdout.splitlines() if line.startswith("long"))
    assert "17 rules" in line and "groups=1" in line
