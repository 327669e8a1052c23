"""docs/wire.md tells the truth: its examples are called again, in its order, and answered alike; each method has one.

In an example "-->" is a call and "<--" a reply. Alike means: the same error, and the same fields, with values of the same
kind: the example has every field that the daemon sends, and no other. Numbers and lists may differ, and fields be null.
A token stands for the last one that was told, and so does a creation.
An example of several replies to a call with `more` shows some of them. Its paths stand for files of the tests, and "one
descriptor beside it" for tiny.gguf.
"""
import json
import re
import subprocess
import sys

import pytest
from harness import ROOT

PAGE = (ROOT / "docs" / "wire.md").read_text(encoding="utf-8")
INTERFACE = (ROOT / "proto" / "io.rocmforge.varlink").read_text(encoding="utf-8")

# Calls of somebody else than the one who holds the leases, as the page says there.
OTHERS = {"Unload", "Pin", "Unpin", "SetTtl", "Verify", "Devices"}


def examples():
    """Each: the call, its replies, descriptors beside the call and beside the last reply."""
    words = {"one": 1, "two": 2, "three": 3}
    for block in re.findall(r"^```\n(-->.*?)^```$", PAGE, re.DOTALL | re.MULTILINE):
        parts = re.split(r"^(-->|<--) ", block, flags=re.MULTILINE)[1:]
        messages, fds = [], []
        for text in parts[1::2]:
            text, _, beside = text.partition("    (")
            messages.append(json.loads(text))
            fds.append(words[beside.split()[0]] if beside else 0)
        assert parts[0::2] == ["-->"] + ["<--"] * (len(messages) - 1)
        yield messages[0], messages[1:], fds[0], fds[-1]


def alike(expected, seen):
    if expected is None or seen is None:
        return True
    if isinstance(expected, dict):
        return isinstance(seen, dict) and set(expected) == set(seen) and all(alike(expected[key], seen[key]) for key in seen)
    if isinstance(expected, list):
        return isinstance(seen, list) and all(alike(a, b) for a, b in zip(expected, seen))
    if isinstance(expected, bool) or isinstance(seen, bool):
        return isinstance(expected, bool) and isinstance(seen, bool)
    number = (int, float)
    return isinstance(seen, number) if isinstance(expected, number) else isinstance(seen, type(expected))


def fields_that_differ(expected, seen, where=""):
    """For the message of a failure: those that only one of them has."""
    if isinstance(expected, dict) and isinstance(seen, dict):
        for key in sorted(set(expected) | set(seen)):
            if key not in seen:
                yield f"only the page has {where}{key}"
            elif key not in expected:
                yield f"the page has no {where}{key}"
            else:
                yield from fields_that_differ(expected[key], seen[key], f"{where}{key}.")
    elif isinstance(expected, list) and isinstance(seen, list):
        for a, b in zip(expected, seen):
            yield from fields_that_differ(a, b, where)


def fits(expected, seen):
    """A reply is like the one shown; what an event is called does not vary."""
    return (
        expected.get("error") == seen.get("error")
        and expected.get("parameters", {}).get("event") == seen.get("parameters", {}).get("event")
        and alike(expected, seen)
    )


@pytest.fixture
def files(slow_model, folder):
    """Large enough that there is progress to tell, and time to cancel."""
    broken = folder / "broken.gguf"
    with open(slow_model, "rb") as file:
        broken.write_bytes(file.read(60))
    return {"/models/tiny.gguf": slow_model, "/models/big.gguf": slow_model, "/models/broken.gguf": broken}


def test_examples(slow_daemon, files):
    daemon = slow_daemon
    watched, token, creation, n_calls = None, None, None, 0
    with daemon.client() as user, daemon.client() as other, daemon.client() as watcher:
        watcher.send("Watch", more=True)
        for call, replies, n_fds, n_fds_back in examples():
            method = call["method"].rpartition(".")[2]
            if method == "Watch":
                watched = replies
                continue
            path = call.get("parameters", {}).get("path")
            if path:
                call["parameters"]["path"] = str(files[path])
            if "token" in call.get("parameters", {}):
                call["parameters"]["token"] = token
            if "creation" in call.get("parameters", {}):
                call["parameters"]["creation"] = creation
            client = other if method in OTHERS else user
            with open(files["/models/tiny.gguf"], "rb") as file:
                client.send_raw(json.dumps(call).encode() + b"\0", [file.fileno()] * n_fds)
                seen = [client.receive()]
                while seen[-1].get("continues"):
                    seen.append(client.receive())
            assert fits(replies[-1], seen[-1]), (method, *fields_that_differ(replies[-1], seen[-1]), call, seen[-1])
            assert len(client.fds) == n_fds_back, call
            for reply in replies[:-1]:
                assert call["more"] and reply["continues"] is True
                assert any(fits(reply, one) for one in seen), (call, reply)
            token = seen[-1].get("parameters", {}).get("token", token)
            creation = seen[-1].get("parameters", {}).get("creation", creation)
            n_calls += 1
        events = [watcher.receive()]
        for reply in watched:
            while not fits(reply, events[-1]):
                events.append(watcher.receive())
    assert n_calls > 15


@pytest.mark.parametrize("method", re.findall(r"^method (\w+)", INTERFACE, re.MULTILINE))
def test_each_method_has_one(method):
    assert f'--> {{"method": "io.rocmforge.{method}"' in PAGE


@pytest.mark.parametrize("error", re.findall(r"^error (\w+)", INTERFACE, re.MULTILINE))
def test_each_error_is_told(error):
    assert f"`{error}`" in PAGE


def fields_of_types():
    """Each field of a type that the interface declares, and of what a method replies with."""
    text = re.sub(r"#.*", "", INTERFACE)
    for name, fields in re.findall(r"^type (\w+) \((.*?)^\)", text, re.DOTALL | re.MULTILINE):
        yield from ((name, field) for field in re.findall(r"(\w+):", fields))
    for name, fields in re.findall(r"^method (\w+)\([^)]*\) -> \((.*?)\)", text, re.DOTALL | re.MULTILINE):
        yield from ((name, field) for field in re.findall(r"(\w+):", fields))


@pytest.mark.parametrize("name, field", sorted(set(fields_of_types())))
def test_each_field_is_shown(name, field):
    """In an example, or where the page tells what no example can show."""
    assert f'"{field}":' in PAGE or f"`{field}`" in PAGE, f"docs/wire.md does not have {name}.{field}"


def section_of(method):
    """What stands under the heading of a method, which it may share with others."""
    return re.search(rf"^### (?:\w+, )*{method}(?:, \w+)*$(.*?)^##", PAGE, re.DOTALL | re.MULTILINE)[1]


def fields_of(kind):
    """Each method's parameters, or each error's."""
    text = re.sub(r"#.*", "", INTERFACE)
    for name, fields in re.findall(rf"^{kind} (\w+) ?\((.*?)\)", text, re.DOTALL | re.MULTILINE):
        yield from ((name, field) for field in re.findall(r"(\w+):", fields))


def is_told(field, text):
    """`dequant`, or `dequant: "gpu"`, or in an example."""
    return f'"{field}":' in text or f"`{field}`" in text or f"`{field}: " in text


@pytest.mark.parametrize("method, parameter", list(fields_of("method")))
def test_each_parameter_is_told(method, parameter):
    """In the section of its method."""
    assert is_told(parameter, section_of(method)), f"docs/wire.md does not tell of {method}'s {parameter}"


@pytest.mark.parametrize("error, field", list(fields_of("error")))
def test_each_field_of_an_error_is_told(error, field):
    """Beside the error in the table, or in an example that fails with it."""
    rows = [line for line in PAGE.splitlines() if line.startswith("|") and f"`{error}`" in line]
    examples = re.findall(rf'"error": "io.rocmforge.{error}".*?^```', PAGE, re.DOTALL | re.MULTILINE)
    assert is_told(field, "\n".join(rows + examples)), f"docs/wire.md does not tell of {error}'s {field}"


def constant(header, name):
    """What a header defines: 16, 1024u, (256u << 10)."""
    text = (ROOT / header).read_text(encoding="utf-8")
    number, shift = re.search(rf"^#define {name} +\(?(\d+)u?(?: << (\d+)\))?", text, re.MULTILINE).groups()
    return int(number) << int(shift or 0)


def test_limits():
    connections = constant("daemon/wire/listener.h", "LISTENER_CONNECTIONS_MAX")
    """What the page and the interface tell is what the daemon keeps to."""
    request = constant("daemon/wire/conn.h", "CONN_REQUEST_MAX") >> 10
    queue = constant("daemon/wire/conn.h", "CONN_QUEUE_MAX") >> 20
    watch = constant("daemon/wire/conn.h", "CONN_WATCH_MAX") >> 20
    levels = constant("proto/json_check.h", "JSON_DEPTH_MAX")
    values = constant("proto/json_check.h", "JSON_VALUES_MAX")
    keys = constant("proto/json_check.h", "JSON_KEYS_MAX")
    for row in (
        f"| a request | {request} KiB |",
        f"| levels of objects and arrays in it | {levels} |",
        f"| values in it, keys in one object | {values}, {keys} |",
        f"| a reply, with those before it that the client has not read yet | {queue} MiB | `LimitExceeded` in its place |",
        f"| the tensors in a reply to `Attach` | {queue // 2} MiB | the same;",
        f"| events that wait for a client that watches | {watch} MiB |",
        f"| connections | {connections}, of which {connections - constant('daemon/base/quota.h', 'QUOTA_ALL_CONNECTIONS')} are for",
    ):
        assert row in PAGE
    told = " ".join(re.search(r"^# Limits: .*?(?=^(?!#))", INTERFACE, re.DOTALL | re.MULTILINE)[0].split("\n# "))
    assert f"at most {request} KiB, {levels} levels deep, {values} values, {keys} keys in one object" in told
    assert f"A reply is at most {queue} MiB" in told


def test_snippets(client, daemon, small_model):
    """The Python that the page offers for pasting."""
    client.call("Load", path=str(small_model), name="tiny", form="f16")
    snippets = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    assert len(snippets) == 2
    out = ""
    for snippet in snippets:
        assert "/run/rocmforge/io.rocmforge" in snippet
        path = daemon.folder / "snippet.py"
        path.write_text(snippet.replace("/run/rocmforge/io.rocmforge", str(daemon.socket)))
        out += subprocess.run([sys.executable, path], check=True, stdout=subprocess.PIPE, text=True).stdout
    assert "'name': 'tiny'" in out
    assert "token_embd.weight [[" in out
