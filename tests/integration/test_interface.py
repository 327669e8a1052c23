"""The interface is what the .varlink file says: its text is served, each method in it has a handler, and each handler
a method."""
import re

import pytest
from harness import ROOT, wire_error
from rocmforge_wire import WireError

SOURCE = ROOT / "proto" / "io.rocmforge.varlink"
METHODS = re.findall(r"^method (\w+)", SOURCE.read_text(encoding="utf-8"), re.MULTILINE)


def test_info(client):
    info = client.call("org.varlink.service.GetInfo")
    assert sorted(info["interfaces"]) == ["io.rocmforge", "org.varlink.service"]
    assert set(info) == {"vendor", "product", "version", "url", "interfaces"}
    assert info["url"] == ""  # no address that is not ours
    status = client.call("Status")
    assert info["version"] == f"{status['version']} (io.rocmforge {status['interface']})"
    assert f"\n# This is version {status['interface']} of the interface. " in SOURCE.read_text(encoding="utf-8")


def test_description(client):
    text = client.call("org.varlink.service.GetInterfaceDescription", interface="io.rocmforge")["description"]
    assert text == SOURCE.read_text(encoding="utf-8")
    text = client.call("org.varlink.service.GetInterfaceDescription", interface="org.varlink.service")["description"]
    assert "method GetInterfaceDescription(interface: string)" in text
    with wire_error("org.varlink.service.InterfaceNotFound") as parameters:
        client.call("org.varlink.service.GetInterfaceDescription", interface="org.example")
    assert parameters == {"interface": "org.example"}


@pytest.mark.parametrize("method", METHODS)
def test_method_has_a_handler(client, method):
    client.send(method, {"no such parameter": 1}, more=True)
    try:
        client.reply()
    except WireError as error:
        assert error.name == "org.varlink.service.InvalidParameter"


def test_handler_has_a_method():
    """By the daemon's source: there is no other way to learn of a handler that nothing declares."""
    handlers = (ROOT / "daemon" / "api" / "methods_list.h").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^    X\((\w+), ", handlers, re.MULTILINE)) == sorted(METHODS)


def test_states_of_progress_are_told(slow_daemon, slow_model):
    """Those of Model, and what stands beside the field itself."""
    text = SOURCE.read_text(encoding="utf-8")
    of_model = re.search(r"^type Model \(.*?^  state:", text, re.DOTALL | re.MULTILINE)[0]
    of_progress = re.search(r"^type Progress \(.*?^  state:", text, re.DOTALL | re.MULTILINE)[0]
    told = set(re.findall(r'"(\w+)"', of_model + of_progress))
    with slow_daemon.client() as client:
        replies = [*client.more("Load", path=str(slow_model), name="slow"), *client.more("Verify", name="slow")]
    seen = {reply["progress"]["state"] for reply in replies if reply.get("progress")}
    assert {"filling", "verifying"} <= seen <= told


def test_errors_are_declared():
    declared = set(re.findall(r"^error (\w+)", SOURCE.read_text(encoding="utf-8"), re.MULTILINE))
    table = (ROOT / "proto" / "errors.h").read_text(encoding="utf-8").split("VARLINK_ERRORS")[0]
    assert declared == set(re.findall(r"X\((\w+), E", table))


@pytest.mark.parametrize(
    "method, error",
    [
        ("Nothing", "org.varlink.service.MethodNotFound"),
        ("org.varlink.service.Nothing", "org.varlink.service.MethodNotFound"),
        ("org.example.Nothing", "org.varlink.service.InterfaceNotFound"),
    ],
)
def test_unknown_method(client, method, error):
    with wire_error(error):
        client.call(method)
    assert client.call("List") == {"models": []}


@pytest.mark.parametrize(
    "method, parameters, wrong",
    [
        ("Show", {}, "name"),
        ("Show", {"name": 5}, "name"),
        ("Show", {"name": None}, "name"),
        ("Show", {"name": "x", "nmae": 1}, "nmae"),
        ("Detach", {"lease": "1"}, "lease"),
        ("Detach", {"lease": 1.5}, "lease"),
        ("Detach", {"lease": 2**60}, "lease"),
        ("Attach", {"name": "x", "table": 1}, "table"),
        ("Load", {}, None),
        ("Load", {"path": "/a", "fds": [0]}, None),
        ("Load", {"path": "relative"}, "path"),
        ("Load", {"path": "/a", "form": "f64"}, "form"),
        ("Load", {"path": "/a", "dequant": "abacus"}, "dequant"),
        ("Load", {"path": "/a", "ttl": -1}, "ttl"),
        ("SetTtl", {"name": "x", "ttl": 0.5}, "ttl"),
        ("Load", {"path": "/a", "deadline": -1}, "deadline"),
        ("Load", {"path": "/a", "deadline": -0.001}, "deadline"),
        ("Unload", {"name": "x", "deadline": -1}, "deadline"),
        ("Cancel", {"name": "x", "deadline": -1e300}, "deadline"),
        ("Attach", {"name": "x", "deadline": -1}, "deadline"),
        ("Attach", {"name": "x", "deadline": "1"}, "deadline"),
        ("Verify", {"name": "x", "deadline": -1}, "deadline"),
        ("Load", {"path": "/a", "name": ""}, "name"),
        ("Load", {"path": "/a", "name": "a/b"}, "name"),
        ("Load", {"path": "/a", "name": "n" * 128}, "name"),
        ("Load", {"fds": []}, "fds"),
        ("Load", {"fds": [0]}, "fds"),
        ("Load", {"fds": ["0"]}, "fds"),
    ],
)
def test_wrong_parameter(client, method, parameters, wrong):
    client.send(method, parameters)
    with wire_error("org.varlink.service.InvalidParameter") as told:
        client.reply()
    if wrong:
        assert told == {"parameter": wrong}
    assert client.call("List") == {"models": []}


def test_oneway(client, small_model):
    """No reply, also no error; the next call's reply is its own."""
    client.send("Unload", {"name": "nobody"}, oneway=True)
    client.send("Load", {"path": str(small_model), "name": "small"}, oneway=True)
    client.send("List")
    reply, _ = client.reply()
    assert [model["name"] for model in reply["models"]] in (["small"], [])
