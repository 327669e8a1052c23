"""rfctl load, cancel and plan."""
import json
import os
import re
import signal
import subprocess
import threading
import time

import pytest
from harness import TIMEOUT, build_folder, names, sparse_model, wait_until
from rfctl_rig import DONE, INTERRUPTED, NO_DAEMON, REFUSED, lines_of_json, program, rfctl, socket_that_answers

# --- Loading ---


def test_load(daemon, small_model):
    result = daemon.rfctl("load", small_model, "--name", "llama")
    lines = result.stdout.splitlines()
    assert re.fullmatch(
        r"loaded llama: \d+(\.\d)? [kM]B on host( from \d+(\.\d)? [kM]B)? in \d+(\.\d+)? m?s \(.* [kMG]B/s\)", lines[0]
    )
    for phase in ("parse", "allocate", "read", "dequantise", "copy"):
        assert phase in lines[1]
    assert "kernel" not in lines[1]  # the CPU does it
    assert len(lines) == 2
    assert daemon.models()[0]["path"] == str(small_model)


def test_options_that_a_joined_model_does_not_take(folder, small_model):
    """Another user's model stays as it is: that is said, and not kept back."""
    model = {"name": "small", "state": "resident", "device": "host", "pinned": False, "ttl": 60, "private": False}
    asked = ["--pin", "--ttl", "5m", "--private", "--name", "mine"]
    with socket_that_answers(folder / "fake", {"model": model}):
        result = rfctl("--socket", folder / "fake", "load", small_model, *asked)
    assert result.returncode == DONE
    assert result.stderr.splitlines() == [
        "rfctl: small was not pinned: another user loaded it",
        "rfctl: small keeps its time to live of 1m: another user loaded it",
    ]
    with socket_that_answers(folder / "fake2", {"model": {**model, "pinned": True, "ttl": 300}}):
        assert rfctl("--socket", folder / "fake2", "load", small_model, *asked).stderr == ""


@pytest.mark.parametrize(
    "phases, lines",
    [
        ({"parse": 40, "copy": 1500000, "kernel": 200}, ["  parse 0.04 ms; over all workers: copy 1.50 s, kernel 0.20 ms"]),
        ({"allocate": 2000}, ["  allocate 2.00 ms"]),
        ({"read": 30000, "dequantise": 0}, ["  over all workers: read 30 ms"]),
        ({}, []),
    ],
)
def test_phases_that_took_no_time_are_left_out(folder, small_model, phases, lines):
    phases = {"total": 2000000, **dict.fromkeys("parse allocate read dequantise copy kernel".split(), 0), **phases}
    reply = {"model": {"name": "small", "state": "resident", "device": "host"}, "phases": phases}
    with socket_that_answers(folder / "fake", reply):
        assert rfctl("--socket", folder / "fake", "load", small_model).stdout.splitlines()[1:] == lines


def test_load_twice(daemon, small_model):
    daemon.rfctl("load", small_model, "--name", "llama")
    again = daemon.rfctl("load", small_model, "--name", "other")
    assert "resident already, as llama" in again.stdout
    assert len(daemon.models()) == 1


def test_load_json(daemon, small_model):
    replies = lines_of_json(daemon.rfctl("--json", "load", small_model).stdout)
    assert replies[-1]["model"]["state"] == "resident"
    assert not replies[-1].get("progress")
    assert replies[-1]["phases"]["total"] > 0
    assert all(reply["progress"] for reply in replies[:-1])


def test_load_no_wait(daemon, small_model):
    result = daemon.rfctl("load", small_model, "--no-wait", "--name", "llama")
    assert "llama" in result.stdout
    wait_until(lambda: daemon.models()[0]["state"] == "resident")


def test_load_of_a_link(daemon, folder, small_model):
    """Caches of downloads keep files under numbers, and links to them under names."""
    link = folder / "a name.gguf"
    link.symlink_to(small_model)
    daemon.rfctl("load", link)
    assert daemon.models()[0]["name"] == "a_name"


def test_load_of_a_split_model_opens_every_part(daemon, split):
    first, second, _ = split()
    second.unlink()
    result = daemon.rfctl("load", first, check=False)
    assert result.returncode == REFUSED
    missing = f"{second}: No such file or directory"
    assert result.stderr == f"rfctl: cannot load {first}: cannot open {missing}\n"


@pytest.mark.parametrize(
    "name, reason",
    [
        ("gone.gguf", "No such file or directory"),
        (".", "it is no regular file"),
        ("fifo", "it is no regular file"),
        ("gone: No.gguf", "No such file or directory"),
    ],
)
def test_what_cannot_be_opened(daemon, folder, name, reason):
    """In the same words, whoever was to open it; and the file is named once."""
    os.mkfifo(folder / "fifo")
    for command in ("load", "plan", "inspect"):
        result = daemon.rfctl(command, folder / name, check=False)
        assert result.returncode == REFUSED
        assert result.stderr == f"rfctl: cannot {command} {folder / name}: {reason}\n"


def test_load_refused(daemon, folder):
    path = folder / "text.gguf"
    path.write_text("this is no model, but long enough to be one")
    result = daemon.rfctl("load", path, check=False)
    assert result.returncode == REFUSED
    assert result.stdout == ""
    assert result.stderr.startswith(f"rfctl: cannot load {path}: ")
    assert daemon.models() == []


def test_load_plain_lines(daemon, model_folder, large_model):
    """Where there is no terminal, a line at most once a second, and not one that moves."""
    began = time.monotonic()
    result = daemon.rfctl("load", large_model, "--name", "large", env={**os.environ, "TERM": "xterm"})
    lines = result.stderr.splitlines()
    assert len(lines) <= time.monotonic() - began
    assert "\r" not in result.stderr and "\x1b" not in result.stderr
    assert all(re.match(r"[a-z]+ +\d+%", line) for line in lines)


def test_interrupt_cancels(held_daemon, gate, gated_model):
    process = subprocess.Popen(
        [program(), "--socket", str(held_daemon.socket), "load", str(gated_model)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    wait_until(lambda: [m for m in held_daemon.models() if m["state"] == "filling"])
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=TIMEOUT)
    assert process.returncode == INTERRUPTED
    assert output == b""
    assert errors.splitlines()[-1] == b"rfctl: interrupted: the load is cancelled, unless others want it too"
    held_daemon.sync()
    gate.open()
    wait_until(lambda: held_daemon.models() == [])


def test_cancel(slow_daemon, large_model):
    loads = []
    thread = threading.Thread(target=lambda: loads.append(slow_daemon.rfctl("load", large_model, check=False)))
    thread.start()
    wait_until(lambda: [m for m in slow_daemon.models() if m["state"] == "filling"])
    assert slow_daemon.rfctl("cancel", "large").stdout == "cancelled large\n"
    thread.join(TIMEOUT)
    assert loads[0].returncode == REFUSED
    assert "cancelled" in loads[0].stderr


def test_cancel_of_what_is_not_being_loaded(daemon, small_model):
    daemon.rfctl("load", small_model)
    result = daemon.rfctl("cancel", "small", check=False)
    assert (result.returncode, result.stderr) == (REFUSED, "rfctl: cannot cancel small: it is not being loaded\n")
    (error,) = lines_of_json(daemon.rfctl("--json", "cancel", "small", check=False).stdout)
    assert error["error"] == "io.rocmforge.ModelBusy" and error["parameters"]["state"] == "resident"


@pytest.mark.parametrize("command", ["load", "plan"])
def test_a_device_that_is_not_there(daemon, small_model, command):
    result = daemon.rfctl(command, small_model, "--device", "host:7", check=False)
    assert result.returncode == REFUSED
    assert result.stderr.endswith(": no such device: 'host:7'; 'rfctl devices' lists them\n")


def test_a_name_of_another_s_model(daemon, models):
    """The advice holds for whoever gets it: only who loaded a model may replace it."""
    a, b = models(2)
    daemon.rfctl("load", a, "--name", "m")
    result = daemon.rfctl("load", b, "--name", "m", check=False)
    assert result.returncode == REFUSED
    assert result.stderr.endswith(
        "take another one with --name; who loaded that model can replace it with load --replace\n"
    )


@pytest.mark.parametrize("command", ["load", "plan"])
def test_no_gpu_to_decode_with(daemon, small_model, command):
    result = daemon.rfctl(command, small_model, "--dequant", "gpu", check=False)
    assert (result.returncode, result.stdout) == (REFUSED, "")
    assert result.stderr.endswith(
        ": no such device: 'gpu', host memory has no GPU to decode with; 'rfctl devices' lists them\n"
    )


def test_daemon_dies_under_way(held_daemon, gated_model):
    daemon = held_daemon
    process = subprocess.Popen(
        [program(), "--socket", str(daemon.socket), "load", str(gated_model)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until(lambda: [m for m in daemon.models() if m["state"] == "filling"])
    daemon.process.kill()
    daemon.process.wait()
    _, errors = process.communicate(timeout=TIMEOUT)
    assert process.returncode == NO_DAEMON
    assert "rfctl: cannot load" in errors


def test_load_options(daemon, small_model):
    daemon.rfctl("load", small_model, "--pin", "--ttl", "10m", "--private", "--deadline", "30s")
    model = daemon.models()[0]
    assert (model["pinned"], model["ttl"], model["private"]) == (True, 600, True)
    lines = daemon.rfctl("show", "small").stdout.splitlines()
    assert {"pinned", "private", "when unpinned: unloaded when idle for 10m"} <= set(lines)
    daemon.rfctl("load", small_model, "--as", "native", "--name", "plain")
    model = next(model for model in daemon.models() if model["name"] == "plain")
    assert (model["pinned"], model["ttl"], model["private"]) == (False, None, False)


@pytest.mark.parametrize("command", ["load", "verify", "unload", "cancel"])
def test_deadline(daemon, small_model, folder, command):
    """The daemon keeps it; tests of the daemon show that."""
    argument = small_model if command == "load" else "small"
    reply = {"model": {"name": "small", "state": "resident"}, "state": "unloaded"}
    with socket_that_answers(folder / "fake", reply) as requests:
        assert rfctl("--socket", folder / "fake", command, argument, "--deadline", "2m").returncode == DONE
    assert [request["parameters"]["deadline"] for request in requests] == [120]
    if command == "load":
        assert daemon.rfctl(command, argument, "--deadline", "1h").returncode == DONE


def test_load_writes_a_trace(daemon, small_model, tmp_path):
    trace = tmp_path / "trace.json"
    daemon.rfctl("load", small_model, "--trace", trace)
    events = json.loads(trace.read_text())["traceEvents"]
    rows = {event["args"]["name"] for event in events if event["ph"] == "M"}
    assert "load" in rows and any(row.startswith("worker ") for row in rows)
    spans = [event for event in events if event["ph"] == "X"]
    assert {"parse", "allocate", "read", "seal"} <= {span["name"] for span in spans}
    assert all(span["ts"] >= 0 and span["dur"] >= 0 for span in spans)


def test_a_trace_that_cannot_be_written_is_told_before_the_load(daemon, small_model, tmp_path):
    result = rfctl("--socket", daemon.socket, "load", small_model, "--trace", tmp_path / "nowhere" / "trace.json")
    assert result.returncode == REFUSED and "cannot write" in result.stderr
    assert daemon.models() == []


def test_a_trace_for_which_the_disk_has_no_room(daemon, small_model):
    """The model is there, and the one thing that failed is told once."""
    result = daemon.rfctl("load", small_model, "--trace", "/dev/full", check=False)
    assert result.returncode == REFUSED
    assert result.stdout.startswith("loaded small: ")
    assert result.stderr == "rfctl: cannot write the trace: No space left on device\n"
    assert daemon.models()[0]["state"] == "resident"
    result = daemon.rfctl("load", small_model, "--json", "--trace", "/dev/full", check=False)
    assert result.returncode == REFUSED
    *_, reply, error = lines_of_json(result.stdout)
    assert reply["model"]["name"] == "small"
    reason = "cannot write the trace: No space left on device"
    assert error == {"error": "rfctl.Failed", "parameters": {"reason": reason}}
    assert result.stderr == f"rfctl: {reason}\n"


# --- Plans ---


def test_plan(daemon, small_model):
    text = daemon.rfctl("plan", small_model, "--as", "native").stdout
    assert re.match(rf"{re.escape(str(small_model))}: \d.* [kM]B on host as native, from 1\.\d MB, 4 tensors\n", text)
    assert re.search(r"^fits: \d.* GB available$", text, re.MULTILINE)
    assert daemon.models() == []
    planned = json.loads(daemon.rfctl("plan", small_model, "--as", "native", "--json").stdout)
    daemon.rfctl("load", small_model, "--as", "native")
    assert daemon.models()[0]["bytes"] == planned["bytes"]
    assert "there already: small is resident\n" in daemon.rfctl("plan", small_model, "--as", "native").stdout
    # Now that there is a rate, a time is told too.
    assert "takes about " in daemon.rfctl("plan", small_model, "--as", "f32", "--name", "other").stdout


def test_plan_tells_what_would_go(start, large_model, small_model, folder):
    daemon = start("--budget", "1000Mi")
    daemon.rfctl("load", small_model)
    daemon.rfctl("load", large_model, "--as", "native", "--pin")
    other = sparse_model(folder / "other.gguf", 512 << 20)
    result = daemon.rfctl("plan", other, "--as", "native", check=False)
    assert result.returncode == REFUSED
    assert re.search(r"^does not fit: \d.* MB available$", result.stdout, re.MULTILINE)
    assert result.stderr == ""
    daemon.rfctl("unpin", "large")
    result = daemon.rfctl("plan", other, "--as", "native")
    assert re.search(r"^fits: \d.* MB available; evicts .*\blarge\b", result.stdout, re.MULTILINE)
    assert len(daemon.models()) == 2


def test_plan_refused(daemon, folder):
    path = folder / "text.gguf"
    path.write_text("this is no model, but long enough to be one")
    for name in (path, folder / "gone"):
        result = daemon.rfctl("plan", name, check=False)
        assert (result.returncode, result.stdout) == (REFUSED, "")
        assert result.stderr.startswith(f"rfctl: cannot plan {name}: ")


@pytest.mark.parametrize("way", ["/proc/self/fd/{}", "/dev/fd/{}", "/dev/stdin"])
def test_a_descriptor_is_no_name(daemon, small_model, folder, way):
    """A link to an open file says nothing of it; nor does what the kernel adds to the path of a file that is gone."""
    path = folder / "gone.gguf"
    path.write_bytes(small_model.read_bytes())
    with open(path, "rb") as file:
        path.unlink()
        fd = file.fileno()
        command = [build_folder() / "client/rfctl/rfctl", "--socket", daemon.socket, "load", way.format(fd)]
        subprocess.run(command, pass_fds=[fd], stdin=file, check=True)
    assert names(daemon) == ["gone"]
