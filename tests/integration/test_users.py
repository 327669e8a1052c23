"""Several users: what each may have at most, and what others do not get to see or change."""
import contextlib

import pytest
from harness import GRANULE, MIB, USER, client_of, is_filling, load_fd, names, sparse_model, wait_until, wire_error
from rocmforge_wire import Closed

# --- Fair, and bounded ---


def test_limit_of_connections(start_for_all):
    daemon = start_for_all("--user-connections", "3")
    mine = [client_of(daemon, USER) for _ in range(3)]
    for client in mine:
        client.call("Status")
    fourth = client_of(daemon, USER)
    message = fourth.receive()
    assert message == {
        "error": "io.rocmforge.LimitExceeded",
        "parameters": {"limit": "user-connections", "value": 3},
    }
    with pytest.raises((Closed, ConnectionError)):
        fourth.receive()
    other = client_of(daemon, USER + 1)
    other.call("Status")
    for unbounded in (0, daemon.uid):
        clients = [client_of(daemon, unbounded) for _ in range(5)]
        for client in clients:
            client.call("Status")
            client.close()
    mine.pop().close()
    wait_until(lambda: daemon.status()["connections"] == 4)  # two, the other's, and that of who asks
    with client_of(daemon, USER) as again:
        again.call("Status")
    for client in (*mine, fourth, other):
        client.close()


def test_limit_of_loads(start_for_all, gate, folder):
    daemon = start_for_all("--user-loads", "1", env=gate.env)
    gate.close()
    paths = [sparse_model(folder / f"large{i}.gguf", 96 * MIB) for i in range(2)]
    with client_of(daemon, USER) as first, client_of(daemon, USER) as second, client_of(daemon, daemon.uid) as own:
        with open(paths[0], "rb") as file:
            first.send("Load", {"fds": [0], "name": "first"}, [file.fileno()])
        wait_until(lambda: is_filling(daemon, "first"), every=0.001)
        with wire_error("LimitExceeded") as error:
            load_fd(second, paths[1], name="second")
        assert error == {"limit": "user-loads", "value": 1}
        gate.open()
        load_fd(own, paths[1], name="own")
        first.reply()
        assert load_fd(second, paths[1], name="second")["name"] == "own"


def test_limit_of_leases(start_for_all, models):
    daemon = start_for_all("--user-leases", "2")
    a, b = models(2)
    with client_of(daemon, USER) as first, client_of(daemon, USER) as second, client_of(daemon, 0) as root:
        load_fd(root, a, name="a")
        load_fd(root, b, name="b")
        lease = first.call("Attach", name="a")["lease"]
        second.call("Attach", name="b")
        with wire_error("LimitExceeded") as error:
            first.call("Attach", name="b")
        assert error == {"limit": "user-leases", "value": 2}
        for _ in range(4):
            root.call("Attach", name="a")
        first.call("Detach", lease=lease)
        first.call("Attach", name="b")


def test_limit_of_bytes(start_for_all, models):
    daemon = start_for_all("--user-bytes", "4Mi")
    a, b, c = models(3)
    with client_of(daemon, USER) as user, client_of(daemon, USER + 1) as other, client_of(daemon, daemon.uid) as own:
        load_fd(user, a, name="a")
        load_fd(user, b, name="b")
        with wire_error("LimitExceeded") as error:
            load_fd(user, c, name="c")
        assert error == {"limit": "user-bytes", "value": 4 * MIB}
        load_fd(other, c, name="c")
        load_fd(user, c)  # another's, which costs this user nothing
        user.call("Unload", name="a")
        load_fd(user, models(4)[3], name="d")
        (huge,) = models(1, 6 * MIB)
        load_fd(own, huge, name="huge")
        assert sorted(names(daemon)) == ["b", "c", "d", "huge"]
    assert daemon.used() == 3 * GRANULE + 6 * MIB


def test_limit_of_models(start_for_all, models):
    """Also those that Plan foresees, and not those of others that a user joins."""
    daemon = start_for_all("--user-models", "2")
    a, b, c = models(3)
    with client_of(daemon, USER) as user, client_of(daemon, USER + 1) as other, client_of(daemon, daemon.uid) as own:
        load_fd(user, a, name="a")
        load_fd(user, b, name="b")
        with open(c, "rb") as file:
            assert user.call("Plan", fds=[file.fileno()])["error"] == "io.rocmforge.LimitExceeded"
        with wire_error("LimitExceeded") as error:
            load_fd(user, c, name="c")
        assert error == {"limit": "user-models", "value": 2}
        load_fd(other, c, name="c")
        load_fd(user, c)
        user.call("Unload", name="a")
        load_fd(user, models(4)[3], name="d")
        for i in range(3):
            load_fd(own, models(8)[5 + i], name=f"own{i}")


def test_only_the_owner_changes_a_model(start_for_all, models):
    """Neither by name nor by loading what is there already."""
    daemon = start_for_all()
    (path,) = models(1)
    with client_of(daemon, USER) as user, client_of(daemon, USER + 1) as other, client_of(daemon, 0) as root:
        load_fd(user, path, name="m")
        for method, parameters in (
            ("Pin", {}),
            ("Unpin", {}),
            ("SetTtl", {"ttl": 0}),
            ("Unload", {}),
            ("Unload", {"force": True}),
        ):
            with wire_error("PermissionDenied"):
                other.call(method, name="m", **parameters)
        model = load_fd(other, path, pin=True, ttl=0)
        assert (model["name"], model["pinned"], model["ttl"]) == ("m", False, None)
        model = load_fd(user, path, pin=True, ttl=7)
        assert (model["pinned"], model["ttl"]) == (True, 7)
        root.call("Unpin", name="m")
        model = load_fd(root, path, pin=True)
        assert (model["pinned"], model["ttl"]) == (True, 7)


# --- What one user has for itself ---


def test_private(start_for_all, models):
    daemon = start_for_all()
    a, b = models(2)
    with contextlib.ExitStack() as stack:
        user, other, root, own, watcher = (
            stack.enter_context(client_of(daemon, uid)) for uid in (USER, USER + 1, 0, daemon.uid, USER + 1)
        )
        events = watcher.more("Watch")
        assert next(events)["models"] == []
        model = load_fd(user, a, name="mine", private=True)
        assert model["private"] and model["uid"] == USER
        assert other.call("List")["models"] == []
        assert [m["name"] for m in user.call("List")["models"]] == ["mine"]
        for ruler in (root, own):
            assert [m["name"] for m in ruler.call("List")["models"]] == ["mine"]
        for method in ("Attach", "Show", "Verify", "Unload", "Pin", "Cancel"):
            with wire_error("ModelNotFound"):
                other.call(method, name="mine")
        for ruler in (root, own):
            with wire_error("PermissionDenied"):
                ruler.call("Attach", name="mine")
        user.call("Attach", name="mine")
        assert load_fd(user, a, private=True)["id"] == model["id"]
        theirs = load_fd(other, a, name="theirs")
        assert theirs["id"] != model["id"], "a private model is not joined"
        seen = [next(events)["model"]["name"] for _ in range(2)]
        assert seen == ["theirs", "theirs"]
        assert load_fd(user, a)["name"] == "mine", "rather than what is another user's"
