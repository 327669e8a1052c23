"""Files that change while their models are in memory."""
import io
import os
import shutil
import signal
import time

import make_model
import pytest
from harness import USER, MIB, client_of, load, load_fd, sparse_model, states, tensor_model, wait_until, wire_error
from split_model import write_split


@pytest.fixture
def path(folder):
    return tensor_model(folder / "m.gguf", seed=1)


@pytest.fixture
def watcher(daemon):
    with daemon.client() as watcher:
        yield watcher


def put(path, seed, size=MIB):
    """Other bytes of the same size, or of another, in a new file of this name."""
    new = tensor_model(path.with_suffix(".new"), size, seed)
    os.rename(new, path)


def write(path, seed, size=MIB):
    """The same in the same file."""
    new = tensor_model(path.with_suffix(".new"), size, seed)
    path.write_bytes(new.read_bytes())
    new.unlink()


def touch(path):
    os.utime(path, (1, 1))


def by_id(daemon, id_):
    return next((model for model in daemon.models() if model["id"] == id_), None)


@pytest.mark.parametrize(
    "way", [touch, lambda path: put(path, 1), lambda path: write(path, 1), lambda path: path.chmod(0o640)]
)
def test_what_has_the_same_bytes_stays(daemon, client, path, way):
    first = load(client, path, "m")
    way(path)
    assert client.call("Plan", path=str(path), name="m")["model"]["id"] == first["id"]
    again = load(client, path, "m")
    assert (again["id"], again["changed"]) == (first["id"], False)
    reads = daemon.reads()
    assert load(client, path, "m")["id"] == first["id"]
    assert daemon.reads() - reads < 10, "it was compared once"
    assert client.call("Verify", name="m")["mismatches"] == []


# Tensors whose sizes are no multiples of the alignment, one of them larger than what is compared at once.
TENSORS = {"i8": (2 * MIB + 1,), "q4_0": (96,), "f16": (33,), "f32": (7,)}
PLACES = [f"{where} of {type_}" for type_ in TENSORS for where in ("first", "middle", "last")]
NOTHING = ["padding of the header", "padding of i8", "padding of f16"]


def write_places(path):
    """Writes a file of TENSORS. Returns where in it the bytes are that a test changes."""
    types = make_model.load_types()
    tensors = [make_model.Tensor(f"blk.0.{type_}", types[type_], shape) for type_, shape in TENSORS.items()]
    meta = make_model.metadata(1, 256, 256, 4, 100)
    make_model.write_model(path, tensors, meta, 1)
    data = path.read_bytes()
    at = make_model.write_header(io.BytesIO(), tensors, *meta)
    found = {
        "metadata": data.index(b"random blocks"),
        "vocabulary": data.index(b"token99") + len("token99") - 1,
        "name of a tensor": data.index(b"blk.0.f32"),
        "padding of the header": at - 1,
    }
    for type_, tensor in zip(TENSORS, tensors):
        for where, offset in (("first", 0), ("middle", tensor.size // 2), ("last", tensor.size - 1)):
            found[f"{where} of {type_}"] = at + offset
        found[f"padding of {type_}"] = at + tensor.size
        at += tensor.size + -tensor.size % make_model.ALIGNMENT
    assert all(data[found[place]] == 0 for place in NOTHING) and at == len(data)
    return found


@pytest.mark.parametrize("place", ["metadata", "vocabulary", "name of a tensor", *PLACES, *NOTHING])
def test_one_byte(client, folder, place):
    """In a file that was written to, every byte is compared that the model has. What pads is nothing of the model."""
    path = folder / "m.gguf"
    at = write_places(path)[place]
    first = load(client, path, "m", form="native")
    with open(path, "r+b") as file:
        byte = os.pread(file.fileno(), 1, at)[0]
        os.pwrite(file.fileno(), bytes([byte ^ 1]), at)
    again = load(client, path, "m", form="native")
    assert (again["id"] == first["id"]) == (place in NOTHING)
    assert client.call("Verify", name="m")["mismatches"] == []


@pytest.mark.parametrize("method, deadline", [("Plan", None), ("Load", None), ("Load", 0.3)])
def test_a_comparison_that_nobody_waits_for(start, folder, gate, method, deadline):
    """It ends: the rest of the file is not read."""
    daemon = start(env=gate.env)
    path = sparse_model(folder / "m.gguf", 64 * MIB)
    with daemon.client() as client, daemon.client() as leaver:
        first = load(client, path, "m")
        touch(path)
        gate.close()
        before = daemon.reads()
        leaver.send(method, {"path": str(path), "name": "m", **({"deadline": deadline} if deadline else {})})
        if deadline:
            with wire_error("DeadlineExceeded"):
                leaver.reply()
        else:
            time.sleep(0.3)
            leaver.close()
            daemon.sync()
        gate.open()
        wait_until(daemon.is_idle)
        time.sleep(0.1)
        wait_until(daemon.is_idle)
        assert daemon.reads() - before < 30
        assert (by_id(daemon, first["id"])["changed"], daemon.status()["loads"]) == (False, 0)
        assert load(client, path, "m")["id"] == first["id"]
        assert daemon.reads() - before >= 64


def test_end_while_comparing(start, folder, gate):
    """What was not compared to its end has not changed, and no other comparison begins: it would hold up the end."""
    slow = {**gate.env, "SLOW_READ_MS": "200"}
    daemon = start("--workers", "2", env=slow)
    path = tensor_model(folder / "m.gguf", 16 * MIB, seed=1)
    with daemon.client() as client, daemon.client() as verifier, daemon.client() as planner, daemon.client() as watcher:
        load(client, path, "a")
        put(path, 2, 16 * MIB)
        load(client, path, "b")
        put(path, 2, 16 * MIB)
        events = watcher.more("Watch")
        next(events)
        gate.close()
        verifier.send("Verify", {"name": "a"})
        daemon.sync()
        planner.send("Plan", {"path": str(path)})
        time.sleep(0.5)
        began = time.monotonic()
        assert daemon.stop(gate) == 0, daemon.log
        assert time.monotonic() - began < 3, "16 reads of 0.2 s, one at a time, take 3.2 s"
        with wire_error("ShuttingDown"):
            list(events)
        with wire_error("ShuttingDown"):
            planner.reply()


@pytest.mark.parametrize("way", [put, write])
@pytest.mark.parametrize("size", [MIB, 3 * MIB])
def test_changed_and_idle_is_replaced(daemon, client, path, way, size):
    first = load(client, path, "m")
    way(path, 2, size)
    plan = client.call("Plan", path=str(path), name="m")
    assert (plan["error"], "model" in plan) == (None, False)
    assert by_id(daemon, first["id"])["changed"]
    second = load(client, path, "m")
    assert second["id"] != first["id"]
    wait_until(lambda: [(m["id"], m["name"], m["changed"]) for m in daemon.models()] == [(second["id"], "m", False)])
    assert client.call("Verify", name="m")["mismatches"] == []


def test_one_byte_of_the_metadata(daemon, client, path):
    first = load(client, path, "m")
    data = bytearray(path.read_bytes())
    at = data.index(b"llama")
    data[at : at + 5] = b"lluma"
    path.write_bytes(data)
    assert load(client, path, "m")["id"] != first["id"]


def test_changed_and_in_use(daemon, client, path):
    first = load(client, path, "m")
    load(client, path, "also")
    with daemon.client() as user, daemon.client() as watcher:
        events = watcher.more("Watch")
        next(events)
        lease = user.call("Attach", name="also")["lease"]
        put(path, 2)
        with wire_error("NameInUse"):
            load(client, path, "m")
        assert client.call("Plan", path=str(path), name="m")["error"] == "io.rocmforge.NameInUse"
        assert by_id(daemon, first["id"])["changed"]
        assert "file changed" in daemon.rfctl("ps").stdout
        assert "file changed" in daemon.rfctl("show", "m").stdout
        assert client.call("Verify", name="m")["replaced"], "the file that was loaded is still there, without its name"
        assert "every bit as in the file that was loaded; its path leads to another file" in daemon.rfctl("verify", "m").stdout
        assert by_id(daemon, first["id"])["changed"], "the path still has other bytes"
        assert client.call("Plan", path=str(path), name="m", replace=True)["error"] is None
        second = load(client, path, "m", replace=True)
        assert (second["name"], second["aliases"]) == ("m", ["also"])
        old = by_id(daemon, first["id"])
        assert (old["name"], old["aliases"], old["state"]) == (f"m#{first['id']}", [], "draining")
        assert user.call("Status")["draining"] == ["also"]
        assert client.call("Show", name=old["name"])["leases"][0]["lease"] == lease
        assert client.call("Attach", name="also")["model"]["id"] == second["id"]
        user.call("Detach", lease=lease)
        wait_until(lambda: by_id(daemon, first["id"]) is None)
        seen = [event["event"] for event in (next(events) for _ in range(8))]
        assert seen[:2] == ["attached", "changed"] and seen.count("renamed") == 2


def test_the_name_stays_until_the_new_one_is_there(held_daemon, folder, gate):
    old, new = tensor_model(folder / "old.gguf", seed=1), sparse_model(folder / "new.gguf", 96 * MIB)
    gate.open()
    with held_daemon.client() as client, held_daemon.client() as loader:
        first = load(client, old, "m")
        gate.close()
        with open(new, "rb") as file:
            loader.send("Load", {"fds": [0], "name": "m", "replace": True}, [file.fileno()])
        wait_until(lambda: "filling" in states(held_daemon).values())
        assert client.call("Show", name="m")["model"]["id"] == first["id"]
        names = sorted(states(held_daemon))
        assert names[0] == "m" and names[1].startswith("m#")
        gate.open()
        second = loader.reply()[0]["model"]
        assert (second["name"], client.call("Show", name="m")["model"]["id"]) == ("m", second["id"])
        wait_until(lambda: len(held_daemon.models()) == 1)


def test_two_replace_at_once(held_daemon, folder, gate):
    old = tensor_model(folder / "old.gguf", seed=1)
    new = [sparse_model(folder / f"{i}.gguf", (96 + i) * MIB) for i in range(2)]
    gate.open()
    with held_daemon.client() as client, held_daemon.client() as first, held_daemon.client() as second:
        load(client, old, "m")
        gate.close()
        for loader, path in zip((first, second), new):
            with open(path, "rb") as file:
                loader.send("Load", {"fds": [0], "name": "m", "replace": True}, [file.fileno()])
            wait_until(lambda: "filling" in states(held_daemon).values())
        time.sleep(0.3)
        gate.open()
        ids = [loader.reply()[0]["model"]["id"] for loader in (first, second)]
        wait_until(lambda: len(held_daemon.models()) == 1)
        assert [(m["id"], m["name"]) for m in held_daemon.models()] == [(ids[1], "m")]


def test_a_load_that_fails_replaces_nothing(daemon, client, path, folder):
    first = load(client, path, "m")
    broken = folder / "broken.gguf"
    broken.write_bytes(path.read_bytes()[:1000])
    with wire_error("InvalidModel"):
        load(client, broken, "m", replace=True)
    assert client.call("Show", name="m")["model"]["id"] == first["id"]
    assert len(daemon.models()) == 1


def test_half_a_download(daemon, client, path, folder):
    """As large as it will be, but with holes: the finished file is loaded, also if the times say nothing."""
    whole = path.read_bytes()
    half = folder / "half.gguf"
    half.write_bytes(whole[: len(whole) // 2])
    os.truncate(half, len(whole))
    os.utime(half, (1, 1))
    first = load(client, half, "m")
    with open(half, "r+b") as file:
        file.seek(len(whole) // 2)
        file.write(whole[len(whole) // 2 :])
    os.utime(half, (1, 1))
    second = load(client, half, "m")
    assert second["id"] != first["id"]
    assert client.call("Verify", name="m")["mismatches"] == []


def test_hangup_notices(daemon, client, path, folder):
    other = tensor_model(folder / "o.gguf", seed=3)
    gone = tensor_model(folder / "g.gguf", seed=4)
    for file, name in ((path, "m"), (other, "o"), (gone, "g")):
        load(client, file, name)
    put(path, 2)
    touch(other)
    gone.unlink()
    daemon.process.send_signal(signal.SIGHUP)
    wait_until(lambda: {m["name"]: m["changed"] for m in daemon.models()} == {"m": True, "o": False, "g": False})
    write(other, 5)
    daemon.process.send_signal(signal.SIGHUP)
    wait_until(lambda: {m["name"]: m["changed"] for m in daemon.models()} == {"m": True, "o": True, "g": False})
    shutil.copy(tensor_model(folder / "same.gguf", seed=1), path.with_suffix(".new"))
    os.rename(path.with_suffix(".new"), path)
    assert load(client, path, "m")["changed"] is False, "what has the old bytes again is the old model"


def test_what_verify_finds_the_same_has_not_changed(daemon, client, folder):
    """Nothing of the file itself was touched: other bytes stood at its path for a while."""
    (folder / "a").mkdir()
    path = tensor_model(folder / "a" / "m.gguf", seed=1)
    first = load(client, path, "m")
    os.rename(folder / "a", folder / "b")
    (folder / "a").mkdir()
    tensor_model(path, seed=2)
    daemon.process.send_signal(signal.SIGHUP)
    wait_until(lambda: by_id(daemon, first["id"])["changed"])
    client.call("Verify", name="m")
    assert by_id(daemon, first["id"])["changed"], "the path still has other bytes"
    shutil.rmtree(folder / "a")
    os.rename(folder / "b", folder / "a")
    client.call("Verify", name="m")
    assert not by_id(daemon, first["id"])["changed"]


def test_preload_replaces(start, folder):
    preload = folder / "preload"
    preload.mkdir()
    v1, v2 = tensor_model(folder / "v1.gguf", seed=1), tensor_model(folder / "v2.gguf", seed=2)
    link = preload / "llama.gguf"
    link.symlink_to(v1)
    plain = tensor_model(preload / "plain.gguf", seed=3)
    daemon = start("--preload", str(preload))
    wait_until(lambda: states(daemon) == {"llama": "resident", "plain": "resident"})
    ids = {m["name"]: m["id"] for m in daemon.models()}
    with daemon.client() as user:
        lease = user.call("Attach", name="llama")["lease"]
        link.unlink()
        link.symlink_to(v2)
        put(plain, 4)
        daemon.process.send_signal(signal.SIGHUP)
        after = {f"llama#{ids['llama']}": "draining", "llama": "resident", "plain": "resident"}
        wait_until(lambda: by_id(daemon, ids["plain"]) is None and states(daemon) == after)
        now = {m["name"]: m for m in daemon.models()}
        assert now["llama"]["path"] == str(v2) and now["llama"]["pinned"]
        user.call("Detach", lease=lease)
    wait_until(lambda: states(daemon) == {"llama": "resident", "plain": "resident"})
    ids = {m["name"]: m["id"] for m in daemon.models()}
    daemon.process.send_signal(signal.SIGHUP)
    time.sleep(0.3)
    assert {m["name"]: m["id"] for m in daemon.models()} == ids, "what has not changed stays"


@pytest.mark.parametrize("how", ["pinned", "leased"])
@pytest.mark.parametrize("passed", [False, True])
def test_what_show_says_of_a_changed_file(daemon, client, path, how, passed):
    """The new bytes are there already, under another name: with `replace` they get the old one's names."""

    def call(method, **parameters):
        if not passed:
            return client.call(method, path=str(path), **parameters)
        with open(path, "rb") as file:
            return client.call(method, fds=[file.fileno()], **parameters)

    first = call("Load", pin=how == "pinned")["model"]
    call("Load", name="also")
    lease = client.call("Attach", name="m")["lease"] if how == "leased" else None
    put(path, 2)
    second = call("Load", name="m2")["model"]
    assert "'rfctl load FILE --name m --replace' loads them" in daemon.rfctl("show", "m").stdout
    assert call("Load")["model"]["aliases"] == [], "not without `replace`"
    plan = call("Plan", replace=True)
    assert (plan["error"], plan["model"]["id"]) == (None, second["id"])
    assert by_id(daemon, first["id"])["name"] == "m", "a plan moves nothing"
    model = call("Load", replace=True)["model"]
    assert (model["id"], {model["name"], *model["aliases"]}) == (second["id"], {"m", "also", "m2"})
    if lease:
        old = by_id(daemon, first["id"])
        assert (old["name"], old["state"]) == (f"m#{first['id']}", "draining")
        client.call("Detach", lease=lease)
    wait_until(lambda: [model["id"] for model in daemon.models()] == [second["id"]])
    again = call("Load", replace=True)["model"]
    assert (again["id"], len(again["aliases"])) == (second["id"], 2)


def test_rfctl_does_what_show_says(daemon, path):
    daemon.rfctl("load", path, "--pin")
    put(path, 2)
    daemon.rfctl("load", path, "--name", "m2")
    said = daemon.rfctl("plan", path, "--replace").stdout
    assert "there already: m2 is resident" in said
    assert "is resident already, as m2, also m: " in daemon.rfctl("load", path, "--replace").stdout
    assert "file changed" not in daemon.rfctl("show", "m").stdout


def test_no_other_model_loses_its_name_to_what_is_there(daemon, client, folder, models):
    """Without a name, `replace` takes one only from an older version of the same file."""
    (other,) = models(1)
    (folder / "in").mkdir()
    path = tensor_model(folder / "in" / "m.gguf", seed=9)
    holder = load(client, other, "m")
    there = load(client, path, "m2")
    model = client.call("Load", path=str(path), replace=True)["model"]
    assert (model["id"], model["aliases"]) == (there["id"], [])
    assert by_id(daemon, holder["id"])["name"] == "m"


def test_verify_says_when(daemon, client, path):
    load(client, path, "m")
    touch(path)
    reply = client.call("Verify", name="m")
    assert (reply["mismatches"], reply["replaced"]) == ([], False)
    write(path, 2)
    with wire_error("FileChanged") as error:
        client.call("Verify", name="m")
    assert error["when"] == "since-loaded"
    write(path, 2, 2 * MIB)
    with wire_error("FileChanged") as error:
        client.call("Verify", name="m")
    assert error["when"] == "since-loaded"


@pytest.mark.parametrize("size", [MIB, 2 * MIB])
def test_verify_marks_a_model_whose_file_changed(daemon, client, path, size):
    load(client, path, "m")
    with daemon.client() as watcher:
        events = watcher.more("Watch")
        next(events)
        write(path, 2, size)
        refused = daemon.rfctl("verify", "m", check=False)
        assert refused.returncode == 1
        assert "the file changed since the model was loaded: " in refused.stderr
        assert daemon.models()[0]["changed"]
        assert next(events)["event"] == "changed"
        daemon.rfctl("verify", "m", check=False)  # it is told once
        daemon.rfctl("unload", "m")
        assert next(events)["event"] == "unloaded"


def test_only_who_may_unload_replaces(start_for_all, folder):
    daemon = start_for_all()
    paths = [tensor_model(folder / f"{i}.gguf", seed=i) for i in range(2)]
    with client_of(daemon, USER) as user, client_of(daemon, USER + 1) as other:
        first = load_fd(user, paths[0], name="m")
        with wire_error("NameInUse"):
            load_fd(other, paths[1], name="m", replace=True)
        assert load_fd(user, paths[1], name="m", replace=True)["name"] == "m"
        wait_until(lambda: first["id"] not in [m["id"] for m in daemon.models()])


def test_rfctl_replaces(daemon, small_model, path):
    daemon.rfctl("load", path, "--name", "m")
    refused = daemon.rfctl("load", small_model, "--name", "m", check=False)
    assert refused.returncode == 1 and "--replace" in refused.stderr
    assert "loaded m:" in daemon.rfctl("load", small_model, "--name", "m", "--replace").stdout


def look_again(daemon):
    """The daemon has looked at the files of all models when this returns."""
    daemon.process.send_signal(signal.SIGHUP)
    time.sleep(0.2)
    wait_until(daemon.is_idle)


def other_last_bytes(path, to):
    """The same file with other bytes at the end, more than pads a tensor."""
    data = path.read_bytes()
    to.write_bytes(data[:-64] + bytes(byte ^ 1 for byte in data[-64:]))


def test_verify_keeps_the_path(daemon, client, path):
    """The model's path is the one that it was loaded by, wherever its file was moved."""
    first = load(client, path, "m")
    old = path.with_name("old.gguf")
    os.rename(path, old)
    put(path, 2)
    assert client.call("Verify", name="m")["replaced"]
    assert by_id(daemon, first["id"])["path"] == str(path)
    assert by_id(daemon, first["id"])["changed"]
    look_again(daemon)
    assert by_id(daemon, first["id"])["changed"]
    assert client.call("Verify", name="m")["replaced"]
    assert by_id(daemon, first["id"])["changed"]
    assert load(client, path, "m")["id"] != first["id"]


@pytest.mark.parametrize("keeps", [False, True])
@pytest.mark.parametrize("i", [1, 2])
def test_each_file_of_a_split_model_counts(daemon, client, folder, keeps, i):
    """Not only the first one, which has metadata alone."""
    shards = write_split(folder)
    first = load(client, shards[0], "m")
    assert not client.call("Verify", name="m")["replaced"]
    other_last_bytes(shards[i], folder / "new")
    if keeps:
        os.rename(shards[i], folder / "old")
    os.rename(folder / "new", shards[i])
    assert client.call("Verify", name="m")["replaced"]
    look_again(daemon)
    assert by_id(daemon, first["id"])["changed"]
    assert "its path leads to another file" in daemon.rfctl("verify", "m").stdout
    assert by_id(daemon, first["id"])["changed"]
    assert load(client, shards[0], "m")["id"] != first["id"]


def test_changed_ends_when_the_file_is_back(daemon, client, watcher, path):
    first = load(client, path, "m")
    events = watcher.more("Watch")
    next(events)
    old = path.with_name("old.gguf")
    os.rename(path, old)
    put(path, 2)
    look_again(daemon)
    assert by_id(daemon, first["id"])["changed"]
    look_again(daemon)
    assert by_id(daemon, first["id"])["changed"], "nothing has changed since"
    os.rename(old, path)
    look_again(daemon)
    assert not by_id(daemon, first["id"])["changed"]
    write(path, 2)
    look_again(daemon)
    look_again(daemon)
    assert by_id(daemon, first["id"])["changed"]
    write(path, 1)
    look_again(daemon)
    assert not by_id(daemon, first["id"])["changed"]
    assert load(client, path, "m")["id"] == first["id"]
    told = [(event["event"], event["model"]["changed"]) for event in (next(events) for _ in range(4))]
    assert told == [("changed", True), ("restored", False)] * 2


@pytest.mark.parametrize("size", [MIB, 2 * MIB])
@pytest.mark.parametrize("look", ["SIGHUP", "Plan", "Load"])
def test_a_link_that_leads_elsewhere(daemon, client, folder, look, size):
    v1, v2 = tensor_model(folder / "v1.gguf", seed=1), tensor_model(folder / "v2.gguf", size, 2)
    link = folder / "m.gguf"
    link.symlink_to(v1)
    first = load(client, link, "m")
    link.unlink()
    link.symlink_to(v2)
    if look == "SIGHUP":
        look_again(daemon)
        assert by_id(daemon, first["id"])["changed"]
        assert client.call("Verify", name="m")["replaced"]
        assert by_id(daemon, first["id"])["changed"]
    if look != "Load":
        assert client.call("Plan", path=str(link), name="m")["error"] is None
        assert by_id(daemon, first["id"])["changed"]
    second = load(client, link, "m")
    assert (second["path"], second["changed"]) == (str(v2), False)
    assert second["id"] != first["id"]


def test_a_link_that_leads_to_the_same_bytes(daemon, client, folder):
    v1, v2 = (tensor_model(folder / f"v{i}.gguf", seed=1) for i in (1, 2))
    link = folder / "m.gguf"
    link.symlink_to(v1)
    first = load(client, link, "m")
    link.unlink()
    link.symlink_to(v2)
    again = load(client, link, "m")
    assert (again["id"], again["path"], again["changed"]) == (first["id"], str(v2), False)
    look_again(daemon)
    assert not by_id(daemon, first["id"])["changed"]


@pytest.mark.parametrize("gone", ["renamed over", "unlinked", "a further name"])
def test_replaced_while_it_is_read(held_daemon, folder, gate, gone):
    """Whoever takes a file's name changes none of its bytes, only a time of the file."""
    path = tensor_model(folder / "m.gguf", 96 * MIB, seed=1)
    new = tensor_model(folder / "new.gguf", 96 * MIB, seed=2)
    with held_daemon.client() as client, held_daemon.client() as loader:
        with open(path, "rb") as file:
            loader.send("Load", {"fds": [0], "name": "m"}, [file.fileno()])
        wait_until(lambda: "filling" in states(held_daemon).values())
        if gone == "renamed over":
            new.rename(path)
        elif gone == "unlinked":
            path.unlink()
        else:
            os.link(path, folder / "further")
        gate.open()
        first = loader.reply()[0]["model"]
        assert first["state"] == "resident"
        verified = client.call("Verify", name="m")
        assert (verified["mismatches"], verified["replaced"]) == ([], gone == "renamed over")
        if gone == "renamed over":
            assert load(client, path, "m")["id"] != first["id"]


@pytest.mark.parametrize("how", ["written", "mode"])
def test_written_to_while_it_is_read(held_daemon, folder, gate, how):
    """Also if the time of its last modification is set back."""
    path = tensor_model(folder / "m.gguf", 96 * MIB, seed=1)
    before = os.stat(path)
    with held_daemon.client() as loader:
        with open(path, "rb") as file:
            loader.send("Load", {"fds": [0], "name": "m"}, [file.fileno()])
        wait_until(lambda: "filling" in states(held_daemon).values())
        if how == "written":
            with open(path, "r+b") as file:
                file.seek(-1, os.SEEK_END)
                file.write(b"\xaa")
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        else:
            path.chmod(0o640)
        gate.open()
        with wire_error("FileChanged") as error:
            loader.reply()
        assert error["when"] == "while-read"


def half_download(path):
    """The first half of the file's bytes, and a hole as long as the rest. Returns all bytes."""
    whole = tensor_model(path, seed=1).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    os.truncate(path, len(whole))
    path.chmod(0o644)
    return whole


@pytest.mark.parametrize("way", ["in place", "renamed"])
def test_half_a_download_of_another_user(start_for_all, folder, way):
    """Who has loaded half of a file keeps nobody from the whole one: nor from its name."""
    daemon = start_for_all()
    folder.chmod(0o755)
    path = folder / "m.gguf"
    whole = half_download(path)
    with client_of(daemon, USER) as early, client_of(daemon, USER + 1) as late:
        load_fd(early, path)
        early.call("Attach", name="m")
        if way == "in place":
            path.write_bytes(whole)
        else:
            new = folder / "m.part"
            new.write_bytes(whole)
            new.chmod(0o644)
            new.rename(path)
        for lease in [lease["lease"] for lease in late.call("Show", name="m")["leases"]]:
            with wire_error("NameInUse"):
                load_fd(late, path)
            early.call("Detach", lease=lease)
        with open(path, "rb") as file:
            assert late.call("Plan", [file.fileno()], private=True)["error"] == "io.rocmforge.NameInUse"
            assert late.call("Plan", [file.fileno()])["error"] is None
        with wire_error("NameInUse"):
            load_fd(late, path, private=True)
        second = load_fd(late, path)
        assert (second["name"], second["uid"]) == ("m", USER + 1)
        wait_until(lambda: [m["id"] for m in daemon.models()] == [second["id"]])
        assert early.call("Show", name="m")["model"]["id"] == second["id"]
        with wire_error("PermissionDenied"):
            early.call("Unload", name="m")


def test_what_others_see_is_not_taken_from_them(start_for_all, folder):
    """Who owned the file made its model public: a reader's load of the new bytes would hide it."""
    daemon = start_for_all()
    folder.chmod(0o755)
    path = folder / "m.gguf"
    whole = half_download(path)
    os.chown(path, USER, USER)
    with client_of(daemon, USER) as owner, client_of(daemon, USER + 1) as reader:
        load_fd(owner, path, public=True)
        path.write_bytes(whole)
        with wire_error("NameInUse"):
            load_fd(reader, path)
        assert load_fd(owner, path, public=True)["name"] == "m"


def test_what_another_user_has_pinned_keeps_its_name(start_for_all, folder):
    daemon = start_for_all()
    folder.chmod(0o755)
    path = folder / "m.gguf"
    whole = half_download(path)
    with client_of(daemon, USER) as early, client_of(daemon, USER + 1) as late:
        load_fd(early, path, pin=True)
        path.write_bytes(whole)
        with wire_error("NameInUse"):
            load_fd(late, path)
        assert load_fd(late, path, name="whole")["name"] == "whole"
