"""rfctl --json where something goes wrong."""
import os
import subprocess
import threading

import pytest
from harness import TIMEOUT, wait_until
from rfctl_rig import NO_DAEMON, REFUSED, lines_of_json, program, rfctl, socket_that_answers


def refusal(result, status=REFUSED):
    """The error that a run with --json printed: its last line. The sentence is on standard error all the same."""
    assert result.returncode == status
    assert result.stderr.startswith("rfctl: ")
    error = lines_of_json(result.stdout)[-1]
    assert set(error) == {"error", "parameters"}
    return error["error"], error["parameters"]


@pytest.mark.parametrize(
    "arguments",
    [
        *(["show", "nobody"], ["unload", "nobody"], ["cancel", "nobody"], ["verify", "nobody"]),
        *(["pin", "nobody"], ["unpin", "nobody"], ["ttl", "nobody", "1h"]),
    ],
)
def test_refused_in_json(daemon, arguments):
    result = daemon.rfctl("--json", *arguments, check=False)
    assert refusal(result) == ("io.rocmforge.ModelNotFound", {"name": "nobody"})
    assert len(result.stdout.splitlines()) == 1


def test_refused_in_json_with_what_it_carries(daemon, small_model, folder):
    daemon.rfctl("load", small_model)
    with daemon.client() as client:
        lease = client.call("Attach", name="small")["lease"]
        name, parameters = refusal(daemon.rfctl("--json", "unload", "small", check=False))
    assert name == "io.rocmforge.ModelBusy"
    assert parameters["name"] == "small" and parameters["state"] == "resident"
    assert [(holder["lease"], holder["pid"]) for holder in parameters["leases"]] == [(lease, os.getpid())]


def test_refused_file_in_json(daemon, folder):
    """What a daemon says of a broken file, inspect says without one."""
    path = folder / "text.gguf"
    path.write_text("this is no model, but long enough to be one")
    expected = ("io.rocmforge.InvalidModel", {"reason": "not a GGUF file", "offset": 0})
    for command in ("load", "plan", "inspect"):
        assert refusal(daemon.rfctl("--json", command, path, check=False)) == expected


def test_refused_by_rfctl_in_json(daemon, small_model, folder):
    """A file that is not there: the daemon was not asked. Its name may be any bytes, JSON may not."""
    gone = os.fsencode(folder) + b"/\xff.gguf"
    shown = f"{folder}/\\xff.gguf"
    for command in ("load", "plan", "inspect"):
        result = subprocess.run(
            [program(), "--socket", daemon.socket, "--json", command, gone], capture_output=True, timeout=TIMEOUT
        )
        assert result.returncode == REFUSED
        (error,) = lines_of_json(result.stdout.decode())
        assert error["error"] == "rfctl.Failed"
        assert shown in error["parameters"]["reason"] and "No such file" in error["parameters"]["reason"]
    trace = folder / "nowhere" / "trace.json"
    result = daemon.rfctl("--json", "load", small_model, "--trace", trace, check=False)
    assert refusal(result) == ("rfctl.Failed", {"reason": f"cannot write {trace}: No such file or directory"})


@pytest.mark.parametrize("arguments", [["ps"], ["load", "x"], ["plan", "x"], ["ping"], ["watch"], ["ttl", "x", "never"]])
def test_no_daemon_in_json(folder, arguments):
    name, parameters = refusal(rfctl("--socket", folder / "nobody", "--json", *arguments), NO_DAEMON)
    assert name == "rfctl.NoDaemon"
    assert str(folder / "nobody") in parameters["reason"]


def test_daemon_dies_under_way_in_json(held_daemon, gated_model):
    loads = []
    load = lambda: loads.append(held_daemon.rfctl("--json", "load", gated_model, check=False))
    thread = threading.Thread(target=load)
    thread.start()
    wait_until(lambda: [m for m in held_daemon.models() if m["state"] == "filling"])
    held_daemon.process.kill()
    held_daemon.process.wait()
    thread.join(TIMEOUT)
    assert refusal(loads[0], NO_DAEMON)[0] == "rfctl.NoDaemon"


@pytest.mark.parametrize("command", [["ps"], ["ping"], ["version"]])
def test_error_without_parameters_in_json(folder, command):
    with socket_that_answers(folder / "fake", None, error="io.rocmforge.ShuttingDown"):
        result = rfctl("--socket", folder / "fake", "--json", *command)
    assert refusal(result, NO_DAEMON) == ("io.rocmforge.ShuttingDown", {})


def test_dump_prints_bytes_only(daemon):
    """What is in standard output may be in a file, as a tensor."""
    result = daemon.rfctl("--json", "dump", "nobody", "x", check=False)
    assert (result.returncode, result.stdout) == (REFUSED, "")
    assert result.stderr.startswith("rfctl: cannot dump x of nobody: ")
