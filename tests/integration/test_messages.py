"""Bad messages, and too many of them: the connection that sends them ends, others do not notice."""
import json
import os
import socket
import threading
import time

import make_model
import pytest
from harness import sparse_model, wait_until, wire_error
from rocmforge_wire import Closed

LIST = b'{"method":"io.rocmforge.List"}'
REQUEST_MAX = 256 << 10
REPLY_MAX = 32 << 20


def call_of(size):
    """A valid call of so many bytes."""
    head, tail = b'{"method":"io.rocmforge.Show","parameters":{"name":"', b'"}}'
    return head + b"x" * (size - len(head) - len(tail)) + tail


BAD = {
    "empty": b"",
    "not json": b"hello",
    "an array": b"[]",
    "cut short": b'{"method":"io.rocmforge.List"',
    "a tail": LIST + b"{}",
    "a comment": b'{"method":"io.rocmforge.List"}//',
    "no method": b'{"parameters":{}}',
    "a method that is a number": b'{"method":1}',
    "parameters that are an array": b'{"method":"io.rocmforge.List","parameters":[]}',
    "more that is a number": b'{"method":"io.rocmforge.List","more":1}',
    "bad UTF-8": b'{"method":"io.rocmforge.Show","parameters":{"name":"\xff"}}',
    "an overlong form": b'{"method":"io.rocmforge.Show","parameters":{"name":"\xc0\xaf"}}',
    "a lone surrogate": b'{"method":"io.rocmforge.Show","parameters":{"name":"\\ud800"}}',
    "an escaped NUL": b'{"method":"io.rocmforge.Show","parameters":{"name":"a\\u0000b"}}',
    "a control byte": b'{"method":"io.rocmforge.Show","parameters":{"name":"a\nb"}}',
    "a key twice": b'{"method":"io.rocmforge.List","method":"io.rocmforge.Status"}',
    "a key twice, once escaped": b'{"method":"io.rocmforge.List","m\\u0065thod":"io.rocmforge.Status"}',
    "too deep": b'{"method":"io.rocmforge.List","parameters":' + b'{"a":' * 16 + b"1" + b"}" * 17,
    "far too deep": b'{"method":' + b"[" * 100000,
    "too many values": b'{"method":"io.rocmforge.List","parameters":{"a":[' + b"1," * 9000 + b"1]}}",
    "too long": call_of(REQUEST_MAX + 1),
}


@pytest.mark.parametrize("message", BAD.values(), ids=BAD.keys())
def test_bad_message(daemon, message):
    with daemon.client() as other, daemon.client() as client:
        client.send_raw(message + b"\0")
        with wire_error("InvalidMessage") as parameters:
            client.reply()
        assert parameters["reason"]
        with pytest.raises((Closed, ConnectionResetError)):
            client.receive()
        assert other.call("List") == {"models": []}


def test_longest_message(client):
    client.send_raw(call_of(REQUEST_MAX) + b"\0")
    with wire_error("ModelNotFound"):
        client.reply()


def test_message_that_never_ends(daemon):
    with daemon.client() as client:
        with pytest.raises((Closed, ConnectionError)):
            while True:
                client.send_raw(b"x" * 65536)
                client.socket.settimeout(0.001)
                try:
                    client.receive()
                except TimeoutError:
                    pass
                client.socket.settimeout(30)
    assert daemon.models() == []


def test_bytes_one_by_one(client):
    for byte in LIST + b"\0":
        client.send_raw(bytes([byte]))
    assert client.reply() == ({"models": []}, False)


def test_many_messages_in_one_write(client):
    client.send_raw((LIST + b"\0") * 2000)
    for _ in range(2000):
        assert client.reply() == ({"models": []}, False)


def test_good_after_bad_is_not_answered(daemon):
    with daemon.client() as client:
        client.send_raw(b"bad\0" + (LIST + b"\0") * 10)
        with wire_error("InvalidMessage"):
            client.reply()
        with pytest.raises((Closed, ConnectionResetError)):
            client.receive()


def test_descriptors_that_nobody_asked_for(daemon, small_model):
    """They are closed, with the message that they came with."""
    before = daemon.settled_fds()
    with daemon.client() as client:
        with open(small_model, "rb") as file:
            for _ in range(50):
                client.send("List", fds=[file.fileno()] * 100)
                assert client.reply() == ({"models": []}, False)
    wait_until(lambda: daemon.fds() == before)


def test_descriptors_that_nobody_asked_for_do_not_stay(daemon, small_model):
    """Not even as long as the call."""
    before = daemon.settled_fds()
    with daemon.client() as client, open(small_model, "rb") as file:
        client.send("Watch", more=True, fds=[file.fileno()] * 200)
        client.reply()
        wait_until(lambda: len(daemon.fds()) == len(before) + 1)


def test_descriptors_of_a_message_that_never_ends(daemon, small_model):
    before = daemon.settled_fds()
    with daemon.client() as client, open(small_model, "rb") as file:
        client.send_raw(b'{"method":', [file.fileno()] * 200)
        time.sleep(0.1)
    wait_until(lambda: daemon.fds() == before)


def test_descriptors_without_end(daemon, small_model):
    before = daemon.settled_fds()
    with daemon.client() as client, open(small_model, "rb") as file:
        with pytest.raises((Closed, ConnectionError)):
            for _ in range(100):
                client.send_raw(b" ", [file.fileno()] * 200)
            client.socket.settimeout(5)
            while True:
                client.receive()
    wait_until(lambda: daemon.fds() == before)
    assert daemon.models() == []


def test_client_that_never_reads(daemon, small_model):
    """It sends requests without end and reads nothing: it is held up, and takes no memory, and no one waits for it."""
    with daemon.client() as other:
        other.call("Load", path=str(small_model), name="small")
        with daemon.client() as client:
            client.socket.settimeout(0.5)
            request = b'{"method":"io.rocmforge.Show","parameters":{"name":"small"}}\0'
            with pytest.raises((TimeoutError, ConnectionError)):
                for _ in range(100000):
                    client.socket.sendall(request * 100)
            assert other.call("List")["models"][0]["name"] == "small"
            assert daemon.rss() < 400 << 20


def test_watcher_that_never_reads(daemon, small_model):
    """What it watches would pile up: it is disconnected, and sees that."""
    with daemon.client() as watcher, daemon.client() as client:
        client.call("Load", path=str(small_model), name="small")
        watcher.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        watcher.send("Watch", {}, more=True)
        for _ in range(6000):
            lease = client.call("Attach", name="small", table=True)["lease"]
            client.call("Detach", lease=lease)
        assert wait_until(lambda: daemon.status()["connections"] <= 2)


def test_many_connections(daemon):
    clients = [daemon.client() for _ in range(200)]
    for client in clients:
        client.send("List")
    for client in clients:
        assert client.reply() == ({"models": []}, False)
    assert daemon.status()["connections"] == 201
    for client in clients:
        client.close()
    wait_until(lambda: daemon.status()["connections"] == 1)


def test_requests_from_many_threads(daemon, small_model):
    with daemon.client() as client:
        client.call("Load", path=str(small_model), name="small")
    failures = []

    def work():
        try:
            with daemon.client() as client:
                for _ in range(100):
                    lease = client.call("Attach", name="small")["lease"]
                    client.call("Detach", lease=lease)
        except Exception as error:  # reported by the thread that started this one
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert daemon.status()["leases"] == 0


def test_interface_is_utf8_where_it_was_cut(client):
    for i in range(2):
        interface = "x" * i + "\u00e9" * 200
        client.send_raw(json.dumps({"method": f"{interface}.Method"}).encode() + b"\0")
        with wire_error("org.varlink.service.InterfaceNotFound") as parameters:
            client.reply()
        assert parameters["interface"][:100] == interface[:100]


def test_event_is_utf8_where_it_was_cut(held_daemon, gate, folder):
    """The sentence has a path in it, which is long, and of characters of two bytes."""
    name = "\u00e9" * 120
    (folder / name / name).mkdir(parents=True)
    with held_daemon.client() as watcher, held_daemon.client() as client:
        events = watcher.more("Watch")
        next(events)
        for i in range(2):
            gate.close()
            path = sparse_model(folder / name / name / f"{'x' * i}{name}.gguf", 4 << 20)
            client.send("Load", {"path": str(path)})
            wait_until(lambda: [model["state"] for model in held_daemon.models()] == ["filling"])
            os.utime(path)
            gate.open()
            with wire_error("FileChanged"):
                client.reply()
            assert next(events)["event"] == "loading"
            assert "\u00e9\u00e9" in next(events)["error"]


def test_reply_is_one_json_object_and_a_nul(client):
    client.send_raw(LIST + b"\0")
    assert json.loads(client.socket.recv(4096).removesuffix(b"\0")) == {"parameters": {"models": []}}


def test_reply_that_is_too_long(client, folder):
    """Names that JSON has to escape make a long table. What is refused is that reply, no more."""
    type_ = make_model.load_types()["i8"]
    tensors = [make_model.Tensor("\1" * 57 + f"{i:06}", type_, (1,)) for i in range(45000)]
    with open(folder / "many.gguf", "wb") as out:
        out.truncate(make_model.write_header(out, tensors, 0, b"") + make_model.ALIGNMENT * len(tensors))
    client.call("Load", path=str(folder / "many.gguf"))
    with wire_error("LimitExceeded") as parameters:
        client.call("Attach", name="many")
    assert parameters == {"limit": "reply", "value": REPLY_MAX}
    assert client.call("List")["models"][0]["leases"] == 0
    assert client.call("Attach", name="many", table=True)["model"]["tensors"] == len(tensors)


def test_more_descriptors_than_a_message_may_have(daemon, small_model):
    """That is the client's doing, whatever the daemon could have."""
    before = daemon.settled_fds()
    with daemon.client() as client, open(small_model, "rb") as file:
        client.send_raw(b" ", [file.fileno()] * 200)
        client.send_raw(b" ", [file.fileno()] * 100)
        with wire_error("InvalidMessage") as parameters:
            client.reply()
        assert parameters == {"reason": "too many descriptors"}
    wait_until(lambda: daemon.fds() == before)
