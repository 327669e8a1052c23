"""What a load would do, told without doing it."""
from harness import GRANULE, MIB, USER, client_of, load, load_fd, names, wire_error


def test_plan(start, models):
    daemon = start("--budget", "4Mi")
    a, b, c = models(3)
    (huge,) = models(1, 6 * MIB)
    with daemon.client() as client:
        plan = client.call("Plan", path=str(a))
        assert (plan["fits"], plan["evicts"], plan["bytes"], plan["available"]) == (True, [], GRANULE, 4 * MIB)
        assert plan["size"] == a.stat().st_size and plan["tensors"] == 1
        assert plan["seconds"] is None, "no load so far, and no rate"
        assert names(daemon) == []
        load(client, a, "a")
        load(client, b, "b")
        before = daemon.models()
        plan = client.call("Plan", path=str(c))
        assert (plan["fits"], plan["evicts"], plan["available"]) == (True, ["a"], 0)
        assert plan["seconds"] > 0
        plan = client.call("Plan", path=str(b))
        assert (plan["fits"], plan["evicts"], plan["seconds"], plan["model"]["name"]) == (True, [], 0, "b")
        plan = client.call("Plan", path=str(huge))
        assert (plan["fits"], plan["evicts"]) == (False, [])
        after = daemon.models()
        for model in before + after:
            del model["idle"]
        assert after == before
        assert load(client, c, "c") and names(daemon) == ["b", "c"], "it came as it was planned"
        with open(a, "rb") as file:
            plan = client.call("Plan", fds=[file.fileno()], form="f32")
            assert plan["form"] == "f32" and plan["bytes"] == 4 * MIB
    assert not any(link.endswith("m0-1048576.gguf") for link in daemon.settled_fds())


def test_plan_of_no_model(client, folder):
    (folder / "bad.gguf").write_bytes(b"GGUF and no more")
    with wire_error("InvalidModel"):
        client.call("Plan", path=str(folder / "bad.gguf"))
    with wire_error("FileError"):
        client.call("Plan", path=str(folder / "none.gguf"))
    with wire_error("DeviceNotFound"):
        client.call("Plan", path=str(folder / "bad.gguf"), device="hip:7")


def test_plan_tells_nothing_private(start_for_all, models):
    daemon = start_for_all("--budget", "4Mi")
    a, b = models(2)
    (huge,) = models(1, 3 * MIB)
    with client_of(daemon, USER) as user, client_of(daemon, USER + 1) as other:
        load_fd(user, a, name="mine", private=True)
        load_fd(user, b, name="shown")
        with open(huge, "rb") as file:
            assert other.call("Plan", fds=[file.fileno()])["evicts"] == ["shown"]
        with open(huge, "rb") as file:
            assert user.call("Plan", fds=[file.fileno()])["evicts"] == ["mine", "shown"]
        with open(a, "rb") as file:
            assert other.call("Plan", fds=[file.fileno()]).get("model") is None
