"""A daemon that has few descriptors, and clients that take them: it goes on, tells who cannot be served, does not turn
round for nothing, and serves again when there are some."""
import contextlib
import os
import resource

import pytest
from harness import daemon_program, wait_until, wire_error
from rocmforge_wire import Closed, WireError

LIMIT = 64
REFUSED = {"limit": "descriptors", "value": LIMIT}
GONE = (Closed, ConnectionError)


@pytest.fixture
def poor(start):
    return start(program=["sh", "-c", f'ulimit -n {LIMIT}; exec "$0" "$@"', daemon_program()])


@pytest.fixture
def file(small_model):
    with open(small_model, "rb") as file:
        yield file.fileno()


def is_served(client):
    """Whether the daemon answers, or tells that it cannot."""
    with contextlib.suppress(ConnectionError):
        client.send("Status")
    try:
        client.reply()
    except WireError as error:
        assert (error.name, error.parameters) == ("LimitExceeded", REFUSED)
        with pytest.raises(GONE):
            client.receive()
        return False
    return True


def send_part(client, fds=()):
    """Some of a message, which has no end yet."""
    client.send_raw(b" ", fds)


def take_all(daemon, client, file):
    """Descriptors beside a message that does not end, until the daemon has none left."""
    while (n := len(daemon.fds())) < LIMIT:
        send_part(client, [file])
        wait_until(lambda: len(daemon.fds()) > n, every=0.001)


def test_connections(poor):
    """Who cannot be served is told so, and the others do not notice."""
    before = poor.settled_fds()
    for _ in range(2):
        clients = [poor.client() for _ in range(2 * LIMIT)]
        served = [client for client in clients if is_served(client)]
        assert LIMIT / 2 < len(served) < LIMIT
        wait_until(lambda: len(poor.fds()) == LIMIT)  # the one to refuse with is there again
        assert poor.busy() < 0.5
        assert all(is_served(client) for client in served)
        for client in clients:
            client.close()
        wait_until(lambda: poor.fds() == before)
        assert poor.models() == []
    assert poor.log.count("cannot be accepted") <= 4, "one line is enough"


def test_connections_that_say_nothing(poor):
    """They come and go before the daemon gets round to them."""
    before = poor.settled_fds()
    for _ in range(10):
        for client in [poor.client() for _ in range(2 * LIMIT)]:
            client.close()
    wait_until(lambda: poor.settled_fds() == before)  # for good: in between some are closed, and others wait
    assert poor.models() == []


def test_no_descriptor_even_to_refuse_with(daemon):
    """The one that is kept for that is gone too: whoever waits to be accepted waits, and the daemon sleeps."""
    limits = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)
    with daemon.client() as other:
        other.call("Status")
        resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (5, limits[1]))
        with daemon.client() as client:
            client.send("List")
            wait_until(lambda: "cannot be accepted" in daemon.log)
            assert daemon.busy() < 0.5
            assert other.call("Status")["connections"] == 1
            resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, limits)
            assert client.reply() == ({"models": []}, False)
    assert daemon.log.count("cannot be accepted") == 1


def test_end_with_no_descriptor(daemon):
    """It ends while nobody is accepted."""
    limits = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (5, limits[1]))
    with daemon.client():
        wait_until(lambda: "cannot be accepted" in daemon.log)
        assert daemon.stop() == 0


def test_hoard(poor, file):
    """Several want to keep more than half. Those whose descriptors were lost are told, and have none any more."""
    before = poor.settled_fds()
    with poor.client() as other, contextlib.ExitStack() as stack:
        first, *late = [stack.enter_context(poor.client()) for _ in range(4)]
        for hoarder in (first, *late):
            send_part(hoarder, [file] * (LIMIT // 2 + 1))
            other.call("Status")
        for hoarder in late:
            with wire_error("LimitExceeded") as error:
                hoarder.reply()
            assert error == REFUSED
            with pytest.raises(GONE):
                hoarder.receive()
        wait_until(lambda: other.call("Status")["connections"] == 2)
        wait_until(lambda: len(poor.fds()) == len(before) + 2 + LIMIT // 2 + 1)  # a worker closes them
        first.send_raw(b'{"method":"io.rocmforge.List"}\0')
        assert first.reply() == ({"models": []}, False)
        assert len(poor.settled_fds()) == len(before) + 2
    wait_until(lambda: poor.fds() == before)


def test_messages_with_more_than_there_are(poor, file):
    before = poor.settled_fds()
    with poor.client() as other:
        for n in (LIMIT, 253):
            for _ in range(20):
                with poor.client() as client:
                    client.send("List", fds=[file] * n)
                    with wire_error("LimitExceeded") as error:
                        client.reply()
                    assert error == REFUSED
                    with pytest.raises(GONE):
                        client.receive()
        assert other.call("List") == {"models": []}
    wait_until(lambda: poor.fds() == before)


def test_messages_with_many(poor, file):
    """As many as there is room for, again and again."""
    before = poor.settled_fds()
    with poor.client() as client:
        for _ in range(50):
            client.send("List", fds=[file] * 30)
            assert client.reply() == ({"models": []}, False)
    wait_until(lambda: poor.fds() == before)


@pytest.mark.parametrize("method", ["Load", "Plan", "Attach", "Verify", "Unload"])
def test_call_without_a_descriptor(poor, file, small_model, method):
    """A typed error, and nothing that stays. What needs none is done."""
    small = str(small_model)
    with poor.client() as client, poor.client() as other:
        if method not in ("Load", "Plan"):
            other.call("Load", path=small, name="m")
        parameters = {"path": small} if method in ("Load", "Plan") else {"name": "m"}
        before = poor.settled_fds()
        for table in (False, True) if method == "Attach" else (None,):
            if table is not None:
                parameters["table"] = table
            with poor.client() as caller, poor.client() as hoarder:
                caller.call("Status")
                take_all(poor, hoarder, file)
                try:
                    caller.call(method, **parameters)
                    assert method in ("Attach", "Verify", "Unload")
                except WireError as error:
                    assert method != "Attach"  # its reply needs none of the daemon's
                    assert error.name in ("FileError", "DeviceError", "LimitExceeded"), error
                assert caller.call("Status")["leases"] == (method == "Attach")
            if method == "Unload":
                wait_until(lambda: len(poor.fds()) < len(before))
            else:
                wait_until(lambda: poor.fds() == before)
        if method in ("Load", "Plan"):
            assert client.call("List") == {"models": []} and poor.used() == 0
        elif method == "Unload":
            assert client.call("List") == {"models": []}
        reply = client.call("Load", path=small, name="m")
        assert reply["model"]["state"] == "resident"
        assert client.call("Attach", name="m")["lease"]


def test_load_whose_descriptor_is_lost(poor, file, small_model):
    before = poor.settled_fds()
    with poor.client() as client, poor.client() as hoarder:
        client.call("Status")
        take_all(poor, hoarder, file)
        client.send("Load", {"fds": [0], "name": "m"}, [file])
        with wire_error("LimitExceeded") as error:
            client.reply()
        assert error == REFUSED
    wait_until(lambda: poor.fds() == before)
    with poor.client() as client:
        assert client.call("Load", fds=[file], name="m")["model"]["state"] == "resident"


@pytest.mark.skipif(os.geteuid() != 0, reason="Linux lets only root send more descriptors than RLIMIT_NOFILE")
def test_reply_that_waits_without_a_descriptor(poor, file, small_model):
    """A reply that the socket does not accept at once needs duplicates: without room for them the lease is taken back."""
    with poor.client() as client:
        client.call("Load", path=str(small_model), name="m")
        before = poor.settled_fds()
        with poor.client() as caller, poor.client() as hoarder:
            caller.call("Status")
            take_all(poor, hoarder, file)
            for _ in range(600):  # more than the socket takes
                caller.send("Attach", {"name": "m"})
            errors = []
            for _ in range(600):
                try:
                    caller.reply()
                except WireError as error:
                    errors.append((error.name, error.parameters))
            assert ("LimitExceeded", REFUSED) in errors
            assert caller.call("Status")["leases"] == 600 - len(errors)
        wait_until(lambda: poor.fds() == before)
