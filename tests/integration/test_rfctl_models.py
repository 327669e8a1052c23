"""What rfctl tells of models, and does with them by name."""
import json
import os
import pwd
import re
import signal
import subprocess
import threading

import pytest
from harness import TIMEOUT, USER, client_of, load_fd, sparse_model, wait_until, wire_error
from rfctl_rig import DONE, INTERRUPTED, NO_DAEMON, REFUSED, USAGE, lines_of_json, program


def test_ps(daemon, small_model):
    empty = daemon.rfctl("ps")
    assert (empty.stdout, empty.stderr) == ("", "rfctl: no model is loaded\n")
    daemon.rfctl("load", small_model, "--as", "native")
    head, row = daemon.rfctl("ps").stdout.splitlines()
    assert head.split() == ["NAME", "FORM", "DEVICE", "SIZE", "STATE", "LEASES", "PIN", "IDLE", "TTL", "OWNER", "ACCESS"]
    assert row.split()[:3] == ["small", "native", "host"]
    assert row.split()[5:8] == ["resident", "0", "-"]
    with daemon.client() as client:
        client.call("Attach", name="small")
        assert daemon.rfctl("ps").stdout.splitlines()[1].split()[5:] == ["resident", "1", "-", "-", "-", pwd.getpwuid(os.geteuid()).pw_name, "readers"]
    models = json.loads(daemon.rfctl("ps", "--json").stdout)["models"]
    assert [model["name"] for model in models] == ["small"]


def test_show(daemon, small_model):
    daemon.rfctl("load", small_model, "--as", "native")
    with daemon.client() as client:
        client.call("Attach", name="small")
        text = daemon.rfctl("show", "small").stdout
    assert text.startswith("small (id 1): resident, ")
    assert f"from {small_model}, " in text
    assert re.search(rf"\b{os.getpid()} +python", text)
    assert re.search(r"^general.architecture +string +\"llama\"$", text, re.MULTILINE)
    assert re.search(r"^tokenizer.ggml.tokens +string\[100\] +\[\"<unk>\",.*,\.\.\.\]$", text, re.MULTILINE)
    assert re.search(r"^token_embd.weight +q4_0 +native +\[\d+, \d+\] +0 +26\d kB$", text, re.MULTILINE)
    reply = json.loads(daemon.rfctl("show", "small", "--json").stdout)
    assert len(reply["tensors"]) == 4


@pytest.mark.parametrize("command", [["show"], ["unload"], ["cancel"], ["verify"], ["pin"], ["unpin"]])
def test_no_such_model(daemon, command):
    result = daemon.rfctl(*command, "nobody", check=False)
    assert result.returncode == REFUSED
    assert result.stdout == ""
    assert result.stderr.startswith(f"rfctl: cannot {command[0]} nobody: ")


def test_unload(daemon, small_model):
    daemon.rfctl("load", small_model)
    with daemon.client() as client:
        client.call("Attach", name="small")
        busy = daemon.rfctl("unload", "small", check=False)
        assert busy.returncode == REFUSED
        assert busy.stderr.startswith("rfctl: cannot unload small: ")
        assert f"process {os.getpid()}" in busy.stderr
    wait_until(lambda: daemon.models()[0]["leases"] == 0)
    assert daemon.rfctl("unload", "small").stdout == "unloaded small\n"
    assert daemon.models() == []


def test_busy_tells_the_holders(daemon, small_model):
    daemon.rfctl("load", small_model)
    with daemon.client() as client:
        client.call("Attach", name="small")
        busy = daemon.rfctl("unload", "small", check=False)
    holder = rf"held by process {os.getpid()} \(user {os.getuid()}, for \d s\)"
    way_out = r"'rfctl unload --force small' frees it when they have detached"
    assert re.fullmatch(rf"rfctl: cannot unload small: .*'small' is resident, {holder}; {way_out}\n", busy.stderr)


def test_unload_of_a_model_that_is_being_loaded(held_daemon, large_model):
    """It is not in use, and the error names the command that ends the load."""
    held_daemon.rfctl("load", large_model, "--no-wait")
    for command, way_out in (
        ("unload", "'rfctl cancel large' stops the load"),
        ("verify", "'rfctl watch' tells when it is resident"),
    ):
        result = held_daemon.rfctl(command, "large", check=False)
        assert result.returncode == REFUSED
        assert result.stderr == f"rfctl: cannot {command} large: it is still being loaded; {way_out}\n"


@pytest.mark.parametrize(
    "command, hint",
    [
        (["show", "nobody"], "'rfctl ps' lists the models"),
        (["unload", "nobody"], "'rfctl ps' lists the models"),
        (["dump", "nobody", "x"], "'rfctl ps' lists the models"),
        (["dump", "small", "x"], "'rfctl show small' lists them"),
    ],
)
def test_errors_name_a_way_out(daemon, small_model, command, hint):
    daemon.rfctl("load", small_model)
    result = daemon.rfctl(*command, check=False)
    assert result.returncode == REFUSED
    assert result.stderr.endswith(f"; {hint}\n")


def test_cancel_of_a_model_that_another_user_has_loaded(start_for_all, models):
    """Nobody loads it any more, so that is what the error says, and not whose it is."""
    daemon = start_for_all()
    with client_of(daemon, USER) as owner, client_of(daemon, USER + 1) as other:
        load_fd(owner, models(1)[0], name="small")
        with wire_error("ModelBusy") as error:
            other.call("Cancel", name="small")
        assert error["state"] == "resident"
    assert daemon.rfctl("cancel", "small", check=False).stderr == "rfctl: cannot cancel small: it is not being loaded\n"


def test_unload_by_force(daemon, small_model):
    daemon.rfctl("load", small_model)
    with daemon.client() as client:
        client.call("Attach", name="small")
        client.call("Attach", name="small")
        assert daemon.rfctl("unload", "small", "--force").stdout == "draining small: 2 leases\n"
        assert daemon.rfctl("ps").stdout.splitlines()[1].split()[5:7] == ["draining", "2"]
        assert lines_of_json(daemon.rfctl("unload", "small", "--force", "--json").stdout) == [{"state": "draining"}]
    wait_until(lambda: daemon.models() == [])
    daemon.rfctl("load", small_model)
    assert daemon.rfctl("unload", "small", "--force").stdout == "unloaded small\n"


def test_pin(daemon, small_model):
    daemon.rfctl("load", small_model)
    assert daemon.rfctl("pin", "small").stdout == "pinned small\n"
    assert daemon.models()[0]["pinned"]
    assert daemon.rfctl("ps").stdout.splitlines()[1].split()[7] == "yes"
    assert daemon.rfctl("unpin", "small").stdout == "unpinned small\n"
    assert not daemon.models()[0]["pinned"]


def test_ttl(daemon, small_model):
    daemon.rfctl("load", small_model)
    for typed, seconds, written in (("90", 90, "90s"), ("10m", 600, "10m"), ("48h", 172800, "2d")):
        assert daemon.rfctl("ttl", "small", typed).stdout == f"small is unloaded when idle for {written}\n"
        assert daemon.models()[0]["ttl"] == seconds
        assert daemon.rfctl("ps").stdout.splitlines()[1].split()[-3] == written
    assert daemon.rfctl("ttl", "small", "never").stdout == "small stays until it is unloaded\n"
    assert daemon.models()[0]["ttl"] is None
    for wrong in ("", "soon", "-1", "1.5h", "5 m"):
        result = daemon.rfctl("ttl", "--", "small", wrong, check=False)
        assert (result.returncode, result.stdout) == (USAGE, "")
        assert "DURATION" in result.stderr
    result = daemon.rfctl("ttl", "nobody", "1h", check=False)
    assert result.returncode == REFUSED
    assert result.stderr.startswith("rfctl: cannot set the time to live of nobody: ")
    assert daemon.rfctl("ttl", "small", "0").stdout == "small is unloaded as soon as nobody uses it\n"
    wait_until(lambda: daemon.models() == [])


def test_ttl_of_a_pinned_model(daemon, small_model):
    """It stays, and nothing says that it went."""
    daemon.rfctl("load", small_model, "--pin")
    stays = "small is pinned, so it stays; when it is unpinned, it is unloaded"
    assert daemon.rfctl("ttl", "small", "0").stdout == f"{stays} as soon as nobody uses it\n"
    assert "as soon as nobody uses it" in daemon.rfctl("show", "small").stdout
    assert daemon.rfctl("ttl", "small", "10m").stdout == f"{stays} when idle for 10m\n"
    shown = daemon.rfctl("show", "small").stdout
    assert "\npinned\n" in shown
    assert "\nwhen unpinned: unloaded when idle for 10m\n" in shown
    assert daemon.models()[0]["state"] == "resident"
    daemon.rfctl("unpin", "small")
    assert "\nunloaded when idle for 10m\n" in daemon.rfctl("show", "small").stdout


# --- Names ---


def test_names_that_look_like_options(daemon, small_model, folder):
    """No model is called so, and behind -- nothing is taken for an option."""
    refused = daemon.rfctl("load", small_model, "--name", "-x", check=False)
    assert refused.returncode == REFUSED
    assert "'name'" in refused.stderr and "not beginning with -" in refused.stderr
    path = folder / "-x.gguf"
    path.write_bytes(small_model.read_bytes())
    loaded = subprocess.run(
        [program(), "--socket", daemon.socket, "load", "--", path.name], cwd=folder, stdout=subprocess.PIPE, timeout=TIMEOUT
    )
    assert loaded.returncode == DONE
    assert [model["name"] for model in daemon.models()] == ["_x"]
    for command in ("show", "unload", "pin", "unpin", "cancel", "verify"):
        for words in ([command, "--", "-x"], ["--", command, "-x"]):
            result = daemon.rfctl(*words, check=False)
            assert result.returncode == REFUSED
            assert "no model of this name: '-x'" in result.stderr
    for words in (["dump", "--", "_x", "-t"], ["ttl", "--", "-x", "5m"]):
        assert daemon.rfctl(*words, check=False).returncode == REFUSED


def test_watch(daemon, small_model):
    daemon.rfctl("load", small_model, "--name", "before")
    with open(daemon.folder / "watched", "wb+") as output:
        process = subprocess.Popen([program(), "--socket", str(daemon.socket), "watch"], stdout=output)
        seen = lambda: (daemon.folder / "watched").read_text()
        wait_until(lambda: "before" in seen())
        daemon.rfctl("load", small_model, "--name", "later", "--as", "f32")
        daemon.rfctl("unload", "later")
        wait_until(lambda: "unloaded" in seen())
        process.send_signal(signal.SIGINT)
        assert process.wait(TIMEOUT) == INTERRUPTED
    lines = seen().splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  ", line) for line in lines)
    events = [(line.split()[2], line.split()[3]) for line in lines]
    assert events == [("resident", "before"), ("loading", "later"), ("resident", "later"), ("unloaded", "later")]


def test_watch_of_a_daemon_that_stops(daemon):
    command = [program(), "--socket", str(daemon.socket), "--json", "watch"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert json.loads(process.stdout.readline())["models"] == []
    assert daemon.stop() == 0
    output, errors = process.communicate(timeout=TIMEOUT)
    assert process.returncode == NO_DAEMON
    assert lines_of_json(output) == [{"error": "io.rocmforge.ShuttingDown", "parameters": {}}]
    assert errors == "rfctl: cannot watch: the daemon is going away\n"


# --- Verification and bytes ---


def test_verify(daemon, small_model):
    daemon.rfctl("load", small_model)
    assert re.fullmatch(
        r"verified small: 4 tensors, .* [kM]B, every bit as in the file\n", daemon.rfctl("verify", "small").stdout
    )
    assert lines_of_json(daemon.rfctl("verify", "small", "--json").stdout)[-1]["mismatches"] == []


def test_verify_changed_file(daemon, folder):
    path = sparse_model(folder / "changing.gguf", 1 << 20)
    daemon.rfctl("load", path)
    with open(path, "r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"x")
    result = daemon.rfctl("verify", "changing", check=False)
    assert result.returncode == REFUSED
    assert result.stderr.startswith("rfctl: ")


def test_dump(daemon, small_model):
    daemon.rfctl("load", small_model, "--as", "f32")
    tensors = json.loads(daemon.rfctl("show", "small", "--json").stdout)["tensors"]
    for tensor in tensors:
        assert len(daemon.rfctl("dump", "small", tensor["name"], text=False).stdout) == tensor["size"]
    for name, tensor in (("small", "no-such-tensor"), ("nobody", tensors[0]["name"])):
        result = daemon.rfctl("dump", name, tensor, check=False)
        assert (result.returncode, result.stdout) == (REFUSED, "")
        assert result.stderr.startswith(f"rfctl: cannot dump {tensor} of {name}: ")


def test_dump_waits_for_a_load(held_daemon, gate, gated_model):
    held_daemon.rfctl("load", gated_model, "--as", "native", "--no-wait")
    dumps = []
    command = ["dump", "gated", "blk.0.ffn_up.weight"]
    thread = threading.Thread(target=lambda: dumps.append(held_daemon.rfctl(*command, text=False).stdout))
    thread.start()
    wait_until(lambda: held_daemon.status()["connections"] > 1)
    assert held_daemon.models()[0]["state"] == "filling" and not dumps
    gate.open()
    thread.join(TIMEOUT)
    assert len(dumps[0]) == 64 << 20
