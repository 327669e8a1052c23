"""Create and Publish: a client fills memory itself, and has it sealed."""
import contextlib
import fcntl
import json
import mmap
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from harness import GRANULE, MIB, USER, client_of, names, wait_until, wire_error
from restarts import kill_at_once

WAIT = 30
ONE = {"name": "a", "type": "f32", "shape": [2, 3]}
SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def sealed_text(text, seals=fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK):
    fd = os.memfd_create("text", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    os.write(fd, text if isinstance(text, bytes) else text.encode())
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


def create(client, name="m", tensors=(ONE,), **parameters):
    """The reply, and the memory's descriptor, which is the caller's."""
    reply = client.call("Create", name=name, tensors=list(tensors), device="host", **parameters)
    return reply, client.take_fd(reply["fd"]) if reply.get("creation") else None


def make(client, name="m", data=b"x", tensors=(ONE,), metadata=None, **parameters):
    """Creates, writes `data` over all of it, and publishes. The model."""
    reply, fd = create(client, name, tensors, **parameters)
    size = reply["model"]["bytes"]
    os.pwrite(fd, data * (size // len(data)), 0)
    os.close(fd)
    return client.call("Publish", creation=reply["creation"], metadata=metadata)["model"]


def content(client, name, tensor=0, **parameters):
    """The bytes of a tensor of an attached model, and the reply."""
    reply = client.call("Attach", name=name, **parameters)
    entry = reply["tensors"][tensor]
    return os.pread(client.fds[reply["fd"]], entry["size"], entry["offset"]), reply


# --- Made by one, used by others ---


def test_published(daemon):
    tensors = [
        {"name": "a", "type": "f16", "shape": [4, 8]},
        {"name": "tied", "type": "f16", "shape": [8, 4], "strides": [1, 8], "offset": 0},
        {"name": "b", "type": "u8", "shape": []},
        {"name": "blocks", "type": "q4_0", "shape": [2, 64]},
    ]
    with daemon.client() as client, daemon.client() as other:
        reply, fd = create(client, tensors=tensors, key="k")
        assert reply["offsets"] == [256, 0, 512, 768]
        assert (reply["model"]["state"], reply["model"]["source"], reply["model"]["key"]) == ("filling", "published", "k")
        assert reply["model"]["bytes"] == GRANULE
        with wire_error("ModelBusy"):
            other.call("Show", name="m")
        with wire_error("ModelBusy"):
            other.call("Unload", name="m")
        data = os.urandom(GRANULE)
        os.pwrite(fd, data, 0)
        text = "what I say of it: \N{SNOWMAN} \"\\\n\x01"
        published = client.call("Publish", creation=reply["creation"], metadata=text, lease=True, pin=True, ttl=7)
        assert published["lease"] and published["model"]["state"] == "resident"
        model = published["model"]
        assert (model["pinned"], model["ttl"], model["path"], model["changed"]) == (True, 7, None, False)
        assert model["size"] == 64 + 64 + 1 + 72 and model["tensors"] == 4 and model["form"] == "native"
        with pytest.raises(PermissionError):
            os.pwrite(fd, b"x", 0)
        os.close(fd)
        for number, entry in enumerate(published["tensors"]):
            got, attached = content(other, "m", number, header=True)
            assert got == data[entry["offset"] : entry["offset"] + entry["size"]]
        assert [e["offset"] for e in attached["tensors"]] == reply["offsets"]
        assert [e["size"] for e in attached["tensors"]] == [64, 64, 1, 72]
        assert [e.get("strides") for e in attached["tensors"]] == [None, [1, 8], None, None]
        assert [e.get("view") for e in attached["tensors"]] == [None, None, None, None]
        assert [e["form"] for e in attached["tensors"]] == ["f16", "f16", "native", "native"]
        header = os.pread(other.fds[attached["header"]], 1 << 20, 0)
        assert int.from_bytes(header[:8], "little") == len(header) - 8
        manifest = json.loads(header[8:])
        assert manifest["__metadata__"] == {"key": "k", "metadata": text}
        assert [t["offset"] for t in manifest["tensors"]] == reply["offsets"]
        show = other.call("Show", name="m")
        assert [(m["key"], json.loads(m["value"])) for m in show["metadata"]] == [("key", "k"), ("metadata", text)]
        with wire_error("NoFile") as error:
            other.call("Verify", name="m")
        assert error == {"name": "m"}
        with wire_error("CreationNotFound"):
            client.call("Publish", creation=reply["creation"])
        client.call("Unpin", name="m")
        other.call("Unload", name="m", force=True)


def test_tied_tensors_count_once(daemon):
    tied = [
        {"name": "embed", "type": "f32", "shape": [8, 8], "offset": 0},
        {"name": "head", "type": "f32", "shape": [8, 8], "offset": 0},
        {"name": "row", "type": "f32", "shape": [8], "offset": 32},
        {"name": "column", "type": "f32", "shape": [8], "strides": [8], "offset": 4},
        {"name": "none", "type": "f32", "shape": [0, 8], "offset": 0},
        {"name": "all", "type": "f32", "shape": [4], "strides": [0], "offset": 0},
    ]
    with daemon.client() as client:
        assert make(client, tensors=tied)["size"] == 256
        _, reply = content(client, "m")
        assert [t.get("view", False) for t in reply["tensors"]] == [False, True, True, True, False, True]
        assert [t["size"] for t in reply["tensors"]] == [256, 256, 32, 7 * 32 + 4, 0, 4]


def test_memory_first_and_tensors_later(daemon):
    with daemon.client() as client:
        reply = client.call("Create", name="m", bytes=3 * MIB, device="host")
        fd = client.take_fd(reply["fd"])
        assert reply["offsets"] == [] and reply["model"]["bytes"] == 4 * MIB
        os.pwrite(fd, b"abcd", 1024)
        os.close(fd)
        creation = reply["creation"]
        with wire_error("org.varlink.service.InvalidParameter"):
            client.call("Publish", creation=creation)
        for offset in (4 * MIB - 8, 4 * MIB, (1 << 53) - 8):
            with wire_error("InvalidManifest") as error:
                client.call("Publish", creation=creation, tensors=[{**ONE, "offset": offset}])
            assert error["tensor"] == 0
        tensors = [{"name": "t", "type": "u8", "shape": [4], "offset": 1024}]
        model = client.call("Publish", creation=creation, tensors=tensors)["model"]
        assert (model["tensors"], model["size"]) == (1, 4)
        assert content(client, "m")[0] == b"abcd"


def test_long_lists_and_texts_go_in_files(daemon):
    tensors = [{"name": f"t{i}" * 20, "type": "u8", "shape": [1]} for i in range(20000)]
    metadata = "\N{SNOWMAN}" * ((1 << 20) // 3)
    with daemon.client() as client:
        fds = [sealed_text(json.dumps(tensors))]
        client.send("Create", {"name": "m", "tensorsFile": 0, "device": "host"}, fds)
        reply, _ = client.reply()
        assert len(reply["offsets"]) == 20000 and reply["offsets"][:3] == [0, 256, 512]
        for text, why in (
            (sealed_text(metadata + "xx"), "too long"),
            (sealed_text(b"\xff\xfe"), "UTF-8"),
            (sealed_text(b"a\0b"), "UTF-8"),
            (sealed_text("x", fcntl.F_SEAL_GROW), "sealed"),
            (os.open("/dev/zero", os.O_RDONLY), "sealed"),
        ):
            fds.append(text)
            client.send("Publish", {"creation": reply["creation"], "metadataFile": 0}, [text])
            with wire_error("InvalidManifest") as error:
                client.reply()
            assert why in error["reason"] and error.get("tensor") is None
        fds.append(sealed_text(metadata))
        client.send("Publish", {"creation": reply["creation"], "metadataFile": 0, "lease": True, "header": True}, fds[-1:])
        published, _ = client.reply()
        header = os.pread(client.fds[published["header"]], 1 << 25, 0)
        assert json.loads(header[8:])["__metadata__"] == {"metadata": metadata}
        for fd in fds:
            os.close(fd)


# --- What is refused ---

FAULTS = [
    ([{"name": "a", "type": "f32"}], "shape"),
    ([{"type": "f32", "shape": [1]}], "name"),
    ([{"name": "a", "shape": [1]}], "type"),
    ([{**ONE, "type": "f99"}], "no type"),
    ([{**ONE, "type": "q4_2"}], "no type"),
    ([{**ONE, "name": ""}], "empty"),
    ([{**ONE, "name": "x" * 4096}], "longer"),
    ([ONE, ONE], "two tensors"),
    ([{**ONE, "shape": [1] * 9}], "more than 8"),
    ([{**ONE, "shape": [-1]}], "not valid"),
    ([{**ONE, "shape": [1.5]}], "not valid"),
    ([{**ONE, "shape": ["1"]}], "not valid"),
    ([{**ONE, "shape": [1 << 53, 1 << 53]}], "2^63"),
    ([{**ONE, "shape": [(1 << 53) + 2]}], "2^53"),
    ([{**ONE, "shape": [1 << 52]}], "any memory"),
    ([{**ONE, "type": "q4_0", "shape": [33]}], "whole blocks"),
    ([{**ONE, "type": "f4", "shape": [3]}], "whole blocks"),
    ([{**ONE, "strides": [1]}], "strides"),
    ([{**ONE, "strides": [-3, 1]}], "not valid"),
    ([{**ONE, "strides": [1 << 53, 1 << 53]}], "any memory"),
    ([{**ONE, "type": "q4_0", "shape": [2, 32], "strides": [32, 1]}], "blocks"),
    ([{**ONE, "offset": 2}], "multiple"),
    ([{**ONE, "offset": -4}], "not valid"),
    ([{**ONE, "offset": 1 << 53}], "any memory"),
    ([{**ONE, "more": 1}], "not known"),
    (["a"], "not valid"),
    ([[]], "not valid"),
    ([None], "not valid"),
]


def test_manifest_faults(daemon):
    """Each one is refused, for its reason, and leaves nothing."""
    with daemon.client() as client:
        client.call("Status")  # the connection is accepted
        fds = len(os.listdir(f"/proc/{daemon.process.pid}/fd"))
        for tensors, why in FAULTS:
            fd = sealed_text(json.dumps(tensors))
            client.send("Create", {"name": "m", "tensorsFile": 0, "device": "host"}, [fd])
            os.close(fd)
            with wire_error("InvalidManifest") as error:
                client.reply()
            assert why in error["reason"], (tensors, error)
            with wire_error("InvalidManifest"):
                client.call("Create", name="m", tensors=tensors, device="host")
        with wire_error("InvalidManifest") as error:
            client.call("Create", name="m", tensors=[ONE], bytes=23, device="host")
        assert error["tensor"] == 0
        for text in ("", "[", "{}", "[] x", '[{"name":"a","name":"b","type":"u8","shape":[]}]', "\xff"):
            fd = sealed_text(text.encode("latin-1"))
            client.send("Create", {"name": "m", "tensorsFile": 0, "device": "host"}, [fd])
            with wire_error("InvalidManifest"):
                client.reply()
            os.close(fd)
        assert names(daemon) == [] and daemon.used() == 0
        wait_until(lambda: len(os.listdir(f"/proc/{daemon.process.pid}/fd")) <= fds)


def test_parameters(daemon):
    with daemon.client() as client:
        for wrong, parameters in (
            ("name", {"name": "#"}),
            ("tensors", {"name": "m"}),
            ("bytes", {"name": "m", "bytes": 0}),
            ("bytes", {"name": "m", "bytes": 1 << 53}),
            ("key", {"name": "m", "bytes": 1, "key": ""}),
            ("key", {"name": "m", "bytes": 1, "key": "x" * 1025}),
            ("public", {"name": "m", "bytes": 1, "public": True, "private": True}),
            ("fds", {"name": "m", "tensorsFile": 0}),
        ):
            with wire_error("org.varlink.service.InvalidParameter") as error:
                client.call("Create", **parameters)
            assert error == {"parameter": wrong}
        with wire_error("CreationNotFound") as error:
            client.call("Publish", creation=7)
        assert error == {"creation": 7}
        with wire_error("DeviceNotFound"):
            client.call("Create", name="m", bytes=1, device="cuda:7")
        reply, fd = create(client)
        os.close(fd)
        for wrong, parameters in (
            ("tensors", {"tensors": [ONE]}),
            ("table", {"table": True}),
            ("ttl", {"ttl": -1}),
            ("metadataFile", {"metadata": "", "metadataFile": 0}),
        ):
            with wire_error("org.varlink.service.InvalidParameter") as error:
                client.call("Publish", creation=reply["creation"], **parameters)
            assert error == {"parameter": wrong}
        client.call("Publish", creation=reply["creation"])


def test_a_mapping_keeps_it_from_being_sealed(daemon):
    with daemon.client() as client, daemon.client() as other:
        reply, fd = create(client)
        mapped = mmap.mmap(fd, GRANULE)
        mapped[:4] = b"abcd"
        with wire_error("CreationNotFound"):  # it is another connection's
            other.call("Publish", creation=reply["creation"])
        with wire_error("StillWritable") as error:
            client.call("Publish", creation=reply["creation"])
        assert error["code"] == 16 and error["call"] == "fcntl(F_ADD_SEALS)"
        mapped[:4] = b"efgh"
        mapped.close()
        client.call("Publish", creation=reply["creation"])
        assert content(client, "m")[0][:4] == b"efgh"
        assert fcntl.fcntl(fd, fcntl.F_GET_SEALS) & SEALS == SEALS
        os.close(fd)


def test_the_client_cannot_change_the_size(daemon):
    with daemon.client() as client:
        reply, fd = create(client)
        for size in (0, 1 << 30):
            with pytest.raises(PermissionError):
                os.ftruncate(fd, size)
        # It may seal the memory itself: that is what Publish would do. But not in another way, for good.
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
        client.call("Publish", creation=reply["creation"])
        os.close(fd)
        reply, fd = create(client, "n")
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SEAL)
        with wire_error("DeviceError"):
            client.call("Publish", creation=reply["creation"])
        client.call("Cancel", name="n")
        os.close(fd)
        assert names(daemon) == ["m"]


# --- Creators that go ---


def test_a_creator_that_dies_leaves_nothing(daemon):
    code = f"""
import sys; sys.path.insert(0, {str(Path(__file__).resolve().parents[1] / "lib")!r})
import os, time
from rocmforge_wire import Client
client = Client({str(daemon.socket)!r})
reply = client.call("Create", name="m", bytes={64 * MIB}, device="host")
os.pwrite(client.fds[reply["fd"]], b"x" * {64 * MIB}, 0)
print("created", flush=True)
time.sleep(60)
"""
    fds = len(os.listdir(f"/proc/{daemon.process.pid}/fd"))
    with daemon.client() as client:
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "created\n"
        assert daemon.used() == 64 * MIB
        waiter = daemon.client()
        waiter.send("Attach", {"name": "m"})
        time.sleep(0.1)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        with wire_error("Cancelled"):
            waiter.reply()
        waiter.close()
        wait_until(lambda: daemon.used() == 0)
        assert names(daemon) == []
        make(client, "m")  # the name is free
        client.call("Unload", name="m")
    wait_until(lambda: len(os.listdir(f"/proc/{daemon.process.pid}/fd")) <= fds)


def test_cancelled(daemon):
    with daemon.client() as client, daemon.client() as other:
        reply, fd = create(client)
        other.call("Cancel", name="m")
        with wire_error("CreationNotFound"):
            client.call("Publish", creation=reply["creation"])
        os.pwrite(fd, b"the memory is still this process's", 0)
        os.close(fd)
        assert names(daemon) == [] and daemon.used() == 0


def test_attach_waits_for_the_publisher(daemon):
    with daemon.client() as client, daemon.client() as other:
        reply, fd = create(client)
        other.send("Attach", {"name": "m"}, more=True)
        os.close(fd)
        client.call("Publish", creation=reply["creation"])
        while True:
            attached, continues = other.reply()
            if not continues:
                break
        assert attached["lease"]


# --- One builds, others adopt ---


def test_one_key_one_builder(daemon):
    n = 8
    made, adopted, failed = [], [], []

    def work(i):
        try:
            with daemon.client() as client:
                reply = client.call("Create", name="m", key="k", tensors=[ONE], device="host")
                if reply.get("creation"):
                    made.append(i)
                    time.sleep(0.3)
                    os.pwrite(client.fds[reply["fd"]], bytes([i]) * 24, 0)
                    client.call("Publish", creation=reply["creation"])
                else:
                    adopted.append(os.pread(client.fds[reply["fd"]], 24, 0))
        except Exception as error:  # the thread's error is the test's
            failed.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    assert not failed and len(made) == 1
    assert adopted == [bytes(made * 24)] * (n - 1)
    with daemon.client() as client:
        assert [m["leases"] for m in client.call("List")["models"]] == [0]


def test_the_next_one_builds_if_the_first_dies(daemon):
    with daemon.client() as third:
        first, second = daemon.client(), daemon.client()
        reply, fd = create(first, key="k")
        os.close(fd)
        for client in (second, third):
            client.send("Create", {"name": "m", "key": "k", "tensors": [ONE], "device": "host"})
        with daemon.client() as fourth:
            with wire_error("ModelBusy"):
                create(fourth, key="k", wait=False)
            with wire_error("DeadlineExceeded"):
                create(fourth, key="k", deadline=0.2)
            with wire_error("NameInUse"):
                create(fourth, key="another")
        time.sleep(0.1)
        first.close()
        reply, _ = second.reply()
        assert reply["creation"]
        second.close()
        reply, _ = third.reply()
        assert reply["creation"]
        third.call("Publish", creation=reply["creation"])
        with daemon.client() as fourth:
            again, _ = create(fourth, "other", key="k")
            assert again["lease"] and again["model"]["name"] == "m" and again["model"]["aliases"] == ["other"]
            assert again.get("creation") is None
            with wire_error("NameInUse"):
                create(fourth, "m", key="another")


def test_replaced(daemon):
    with daemon.client() as client:
        make(client, "m", b"old", key="1")
        reply, fd = create(client, "m", key="2", replace=True)
        assert reply["model"]["name"].startswith("m#")
        os.pwrite(fd, b"new" * 8, 0)
        os.close(fd)
        assert content(client, "m")[0][:3] == b"old"
        client.call("Publish", creation=reply["creation"])
        assert content(client, "m")[0][:3] == b"new"


def test_it_goes_when_it_is_idle(daemon):
    with daemon.client() as client:
        reply, fd = create(client)
        os.close(fd)
        lease = client.call("Publish", creation=reply["creation"], ttl=1, lease=True)["lease"]
        time.sleep(1.5)
        assert names(daemon) == ["m"]
        client.call("Detach", lease=lease)
        wait_until(lambda: names(daemon) == [])
        assert daemon.used() == 0


# --- Users, quotas, budgets ---


def test_users(start_for_all):
    daemon = start_for_all("--user-loads", "2", "--user-bytes", "12Mi")
    with contextlib.ExitStack() as stack:
        user, other, own, root = (
            stack.enter_context(client_of(daemon, uid)) for uid in (USER, USER + 1, daemon.uid, 0)
        )
        make(user, "mine", b"u", key="k")
        assert user.call("List")["models"][0]["access"] == "owner" == root.call("Show", name="mine")["model"]["access"]
        assert other.call("List")["models"] == []
        for method in ("Attach", "Show", "Verify", "Unload", "Pin", "Cancel"):
            with wire_error("ModelNotFound"):
                other.call(method, name="mine")
        root.call("Attach", name="mine")
        # A key of another user's is none, whoever may see it; but a trusted user's is.
        make(user, "shown", b"s", key="shown", public=True)
        reply, fd = create(other, "shown2", key="shown")
        assert reply["creation"]
        os.close(fd)
        other.call("Cancel", name="shown2")
        reply, _ = create(other, "shown2", key="shown", anyPublisher=True)
        assert reply["lease"] and reply["model"]["uid"] == USER
        make(root, "theirs", b"r", key="of root", public=True)
        assert create(other, "theirs2", key="of root")[0]["lease"]
        # A private creation neither blocks others nor is seen by them.
        private, fd = create(user, "hidden", key="hidden", private=True)
        os.close(fd)
        assert make(other, "hidden", b"o", key="hidden", anyPublisher=True)["uid"] == USER + 1
        user.call("Publish", creation=private["creation"])
        assert content(user, "hidden")[0] == b"\0" * 24
        # The creator's quota.
        with wire_error("LimitExceeded") as error:
            create(user, "more", [{**ONE, "shape": [3 * MIB]}])
        assert error == {"limit": "user-bytes", "value": 12 * MIB}
        user.call("Unload", name="shown", force=True)
        user.call("Unload", name="mine", force=True)
        creations = [create(user, f"c{i}") for i in range(2)]
        with client_of(daemon, USER) as again:
            with wire_error("LimitExceeded") as error:
                create(again, "c2")
            assert error == {"limit": "user-loads", "value": 2}
        for reply, fd in creations:
            os.close(fd)
            user.call("Publish", creation=reply["creation"])


def test_budget(start, models):
    daemon = start("--budget", "8Mi")
    with daemon.client() as client, daemon.client() as other:
        (path,) = models(1)
        with open(path, "rb") as file:
            client.call("Load", fds=[file.fileno()], name="file", device="host")
        make(client, "old")
        client.call("Pin", name="old")
        client.send("Create", {"name": "m", "bytes": 6 * MIB, "device": "host"})
        reply, _ = client.reply()
        assert names(daemon) == ["old", "m"]  # the file's model was evicted
        with wire_error("OutOfDeviceMemory"):
            create(other, "n")
        other.send("Create", {"name": "n", "tensors": [ONE], "device": "host", "waitForMemory": WAIT})
        client.call("Publish", creation=reply["creation"], tensors=[])
        reply, _ = other.reply()  # what is published may be evicted
        other.call("Publish", creation=reply["creation"])
        assert names(daemon) == ["old", "n"]
        with wire_error("OutOfDeviceMemory"):
            create(client, "huge", [{**ONE, "shape": [16 * MIB]}])


def test_many_creations_end_together(daemon):
    """Connections that close while creations wait, take memory, have it, or are being published."""
    for _ in range(5):
        clients = [daemon.client() for _ in range(12)]
        for i, client in enumerate(clients):
            client.send("Create", {"name": f"m{i % 3}", "key": f"k{i % 3}", "bytes": MIB, "device": "host"})
            if i >= 3:
                continue
            reply, _ = client.reply()
            if reply.get("creation"):  # else it was published in time in the round before
                client.send("Publish", {"creation": reply["creation"], "tensors": []})
        for client in clients:
            client.close()
    wait_until(lambda: daemon.status()["loads"] == 0)
    with daemon.client() as client:
        for model in client.call("List")["models"]:
            client.call("Unload", name=model["name"])
    wait_until(lambda: daemon.used() == 0)


# --- Over a restart ---


def test_restart(held):
    daemon = held("--grace", "1")
    tensors = [ONE, {"name": "t", "type": "f32", "shape": [3, 2], "strides": [1, 3], "offset": 0}]
    with daemon.client() as client:
        make(client, "m", b"abcdefgh", tensors, metadata='{"x": "\N{SNOWMAN}"}', key="k")
        client.call("Pin", name="m")
        creation, fd = create(client, "unfinished")
        before, reply = content(client, "m", 1)
        show = client.call("Show", name="m")
    for _ in range(2):
        kill_at_once(daemon)
        with daemon.client() as client:
            assert names(daemon) == ["m"] and daemon.used() == GRANULE
            after, again = content(client, "m", 1, header=True)
            assert after == before and again["tensors"] == reply["tensors"] and again["token"] == reply["token"]
            model = again["model"]
            assert (model["source"], model["key"], model["pinned"], model["size"]) == ("published", "k", True, 48)
            assert client.call("Show", name="m")["metadata"] == show["metadata"]
            with wire_error("NoFile"):
                client.call("Verify", name="m")
            adopted = client.call("Create", name="m", key="k", bytes=1, device="host")
            assert adopted["lease"]
    os.close(fd)
    with daemon.client() as client:
        client.call("Unpin", name="m")
        wait_until(lambda: client.call("List")["models"][0]["leases"] == 0)
        time.sleep(1.2)  # until nobody holds it after the restart
        client.call("Unload", name="m")
        assert daemon.used() == 0
    kill_at_once(daemon)
    assert names(daemon) == []
