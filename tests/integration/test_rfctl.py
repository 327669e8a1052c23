"""The command line as a whole: how it is used, whom it asks, and what becomes of what it says."""
import json
import os
import re
import signal
import socket
import struct
import subprocess

import make_model
import pytest
from harness import TIMEOUT
from rfctl_rig import DONE, INTERRUPTED, NO_DAEMON, REFUSED, USAGE, lines_of_json, program, rfctl, socket_that_answers

# --- Usage ---


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["load", "--help"], ["--help", "ps"], ["ps", "-h"]])
def test_help(arguments):
    result = rfctl(*arguments)
    assert result.returncode == DONE
    assert result.stdout.startswith("Usage: rfctl")
    assert result.stderr == ""
    assert max(map(len, result.stdout.splitlines())) <= 80


def commands():
    return re.findall(r"^  (\w+) ", rfctl("--help").stdout, re.MULTILINE)


def test_help_has_no_space_at_the_end_of_a_line():
    for arguments in ([], *([name] for name in commands())):
        text = rfctl(*arguments, "--help").stdout
        assert text and not re.search(r" $", text, re.MULTILINE), arguments


def test_help_of_ttl_says_what_a_duration_is():
    assert "DURATION is 90 or 90s, 10m, 2h, 1d, or never; 0: as soon as" in rfctl("ttl", "--help").stdout


def test_help_names_every_command():
    text = rfctl("--help").stdout
    for name in "load plan ps show inspect unload pin unpin ttl cancel verify dump watch run devices metrics ping version".split():
        assert re.search(rf"^  {name} ", text, re.MULTILINE)
        assert rfctl(name, "--help").stdout.startswith(f"Usage: rfctl {name}")


@pytest.mark.parametrize("command, option", [("inspect", "--socket"), ("dump", "--json")])
def test_help_offers_what_does_something(command, option):
    """An option that every command takes, but that does nothing with this one."""
    assert option not in rfctl(command, "--help").stdout
    assert option in rfctl("show", "--help").stdout
    assert option in rfctl("--help").stdout


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["no-such-command"],
        ["--no-such-option", "ps"],
        ["ps", "extra"],
        ["load"],
        ["show", "a", "b"],
        ["dump", "model"],
        ["ps", "--name", "x"],
        ["load", "x", "-c", "3"],
        ["load", "x", "--as", "f8"],
        ["load", "x", "--as", ""],
        ["load", "x", "--as", "f16 bf16"],
        ["load", "x", "--dequant", "fpga"],
        ["ping", "-c", "0"],
        ["ping", "-c", "-1"],
        ["ping", "-c", "many"],
        ["ps", "--socket"],
        ["load", "x", "--ttl", "0"],
        ["load", "x", "--ttl", "1w"],
        ["load", "x", "--deadline", "soon"],
        ["load", "x", "--force"],
        ["plan", "x", "--pin"],
        ["ttl", "x"],
        ["pin"],
        ["pin", "x", "--deadline", "1s"],
    ],
)
def test_wrong_usage(arguments):
    result = rfctl(*arguments)
    assert result.returncode == USAGE
    assert result.stdout == ""
    assert result.stderr.startswith("rfctl: ")
    assert "--help'" in result.stderr


@pytest.mark.parametrize(
    "arguments, values, command",
    [
        (["load", "x", "--as", "q4"], "one of auto, native, f32, f16, bf16", "load"),
        (["--dequant", "fpga", "load", "x"], "one of auto, cpu, gpu", "load"),
        (["load", "x", "--ttl", "5x"], "a time from 1s on: 90, 90s, 10m, 2h, 1d", "load"),
        (["load", "x", "--ttl", "0"], "a time from 1s on: 90, 90s, 10m, 2h, 1d", "load"),
        (["--count", "0", "ping"], "a number from 1 on", "ping"),
        (["load", "x", "--no-such-option"], "unrecognized option '--no-such-option'", "load"),
        (["--as", "q4"], "one of auto, native, f32, f16, bf16", None),
        (["--as", "q4", "no-such-command"], "one of auto, native, f32, f16, bf16", None),
    ],
)
def test_wrong_option(arguments, values, command):
    """What it takes is told, and where the rest of that command's options are."""
    wrong, where = rfctl(*arguments).stderr.splitlines()
    assert wrong.endswith(values)
    assert where == (f"Try 'rfctl {command} --help'." if command else "Try 'rfctl --help'.")


@pytest.mark.parametrize(
    "arguments",
    [
        *(["ps"], ["show", "x"], ["unload", "x"], ["verify", "x"], ["dump", "x", "y"], ["watch"], ["devices"], ["ping"]),
        *(["load", "x"], ["plan", "x"], ["pin", "x"], ["unpin", "x"], ["ttl", "x", "never"]),
    ],
)
def test_no_daemon(folder, arguments):
    result = rfctl("--socket", folder / "nobody", *arguments)
    assert result.returncode == NO_DAEMON
    assert result.stdout == ""
    assert result.stderr.startswith("rfctl: no daemon: ")
    assert str(folder / "nobody") in result.stderr


def test_socket_of_the_environment(daemon, folder):
    assert rfctl("ping", env={"ROCMFORGE_SOCKET": str(daemon.socket)}).returncode == DONE
    result = rfctl("--socket", folder / "nobody", "ping", env={"ROCMFORGE_SOCKET": str(daemon.socket)})
    assert result.returncode == NO_DAEMON


def test_options_stand_anywhere(daemon, small_model):
    for arguments in (
        ["--name", "one", "load", small_model, "--as", "f32"],
        ["load", "--name", "two", "--as", "f16", small_model],
        ["--as=native", "load", small_model, "--name=three", "--json"],
    ):
        daemon.rfctl(*arguments)
    assert {(m["name"], m["form"]) for m in daemon.models()} == {("one", "f32"), ("two", "f16"), ("three", "native")}


def test_version(daemon, folder):
    lines = daemon.rfctl("version").stdout.splitlines()
    version = daemon.status()["version"]
    assert lines[0] == f"rfctl {version}"
    assert lines[1].startswith(f"rocmforged {version}, process {daemon.pid}, ")
    assert rfctl("--version").stdout == f"rfctl {version}\n"
    alone = rfctl("--socket", folder / "nobody", "version")
    assert (alone.returncode, alone.stdout, alone.stderr) == (DONE, f"rfctl {version}\n", "")
    both = json.loads(daemon.rfctl("version", "--json").stdout)
    assert both["rfctl"] == version and both["daemon"]["pid"] == daemon.pid
    assert json.loads(rfctl("--socket", folder / "nobody", "version", "--json").stdout)["daemon"] is None


# --- The daemon ---


def test_devices(daemon):
    head, row = daemon.rfctl("devices").stdout.splitlines()
    assert head.split()[:7] == ["DEVICE", "NAME", "TOTAL", "BUDGET", "USED", "OTHERS", "AVAILABLE"]
    assert row.startswith("host ")
    assert json.loads(daemon.rfctl("devices", "--json").stdout)["devices"][0]["id"] == "host"


def test_a_size_is_told_in_one_way(start, large_model):
    """As it was typed, wherever it is printed."""
    daemon = start("--budget", "600M")
    assert json.loads(daemon.rfctl("devices", "--json").stdout)["devices"][0]["budget"] == 600_000_000
    assert re.search(r"^host +host memory +\S+ [GT]B +600 MB +0 B +\S+ [MG]B +600 MB", daemon.rfctl("devices").stdout, re.MULTILINE)
    assert re.search(r"device=host host memory: [\d.]+ [GT]B, 600 MB for models", daemon.log)
    error = daemon.rfctl("load", large_model, "--as", "native", check=False).stderr
    assert "not enough device memory: 805 MB needed, 600 MB available" in error
    assert daemon.stop() == 0
    daemon = start("--budget", "600Mi")
    assert re.search(r" 629 MB +0 B +\S+ [MG]B +629 MB", daemon.rfctl("devices").stdout)


def test_ping(daemon):
    assert re.fullmatch(rf"rocmforged \S+, process {daemon.pid}: \d+\.\d+ ms\n", daemon.rfctl("ping").stdout)
    lines = daemon.rfctl("ping", "-c", "2").stdout.splitlines()
    assert len(lines) == 3
    assert re.fullmatch(r"2 replies: min \S+, average \S+, max \S+ ms", lines[2])
    assert all(reply["ms"] > 0 for reply in lines_of_json(daemon.rfctl("ping", "--json").stdout))


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_ping_of_a_daemon_that_does_not_answer(folder, options):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "stopped"))
        listener.listen()  # the kernel lets clients connect, and nobody takes them
        result = rfctl("--socket", folder / "stopped", "ping", "--deadline", "1s", *options)
    assert result.returncode == NO_DAEMON
    assert result.stderr == "rfctl: cannot ping: the daemon did not answer in time\n"
    reason = {"reason": "the daemon did not answer in time"}
    assert lines_of_json(result.stdout) == ([{"error": "rfctl.NoDaemon", "parameters": reason}] if options else [])


def test_ping_interrupted_while_nothing_answers(folder):
    """At once, and not when it would have given up."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "silent"))
        listener.listen()
        command = [program(), "--socket", folder / "silent", "ping", "-c", "9", "--deadline", "1h"]
        with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
            connection, _ = listener.accept()
            with connection:
                assert connection.recv(4096)
                process.send_signal(signal.SIGINT)
                process.wait(TIMEOUT)
    assert process.returncode in (-signal.SIGINT, 130)


@pytest.mark.parametrize("options, sums", [([], "1 reply: min "), (["--json"], '{"replies":1,"min_ms":')])
def test_ping_interrupted_when_the_daemon_answers_no_more(folder, options, sums):
    """At once, too, and with the sums so far."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "tired"))
        listener.listen()
        command = [program(), "--socket", folder / "tired", "ping", "-c", "9", "--deadline", "1h", *options]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            connection, _ = listener.accept()
            with connection:
                assert connection.recv(4096)
                connection.sendall(b'{"parameters":{"version":"0","pid":1}}\0')
                assert connection.recv(4096)  # the second, a second later
                process.send_signal(signal.SIGINT)
                output, errors = process.communicate(timeout=TIMEOUT)
    assert process.returncode == INTERRUPTED
    assert output.splitlines()[1].startswith(sums) and len(output.splitlines()) == 2
    assert errors == ""


def test_reply_with_too_many_descriptors(folder):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "generous"))
        listener.listen()
        command = [program(), "--socket", folder / "generous", "ps"]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            connection, _ = listener.accept()
            with connection:
                assert connection.recv(4096)
                for _ in range(2):
                    socket.send_fds(connection, [b"{"], [listener.fileno()] * 200)
                _, errors = process.communicate(timeout=TIMEOUT)
    assert errors == "rfctl: cannot list models: the daemon sent more descriptors than a message may have\n"
    assert process.returncode != DONE


def pinging(daemon, *options, **popen):
    """rfctl ping, and its first line, after which a second passes."""
    command = [program(), "--socket", daemon.socket, "ping", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **popen)
    return process, process.stdout.readline()


def test_ping_of_a_daemon_that_goes(daemon):
    """The error is the last line."""
    process, first = pinging(daemon, "-c", "9", "--json")
    assert json.loads(first)["ms"] > 0
    assert daemon.stop() == 0
    rest = lines_of_json(process.communicate()[0])
    assert process.returncode == NO_DAEMON
    assert [line for line in rest if "error" in line] == rest[-1:]


def test_ping_that_was_told_to_ignore_interrupts(daemon):
    process, _ = pinging(daemon, "-c", "2", preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN))
    process.send_signal(signal.SIGINT)
    assert len(process.communicate()[0].splitlines()) == 2  # the second, and how long they took
    assert process.returncode == DONE


def test_told_to_let_go(folder):
    reply = {"models": [], "draining": ["llama", "evil\nname"]}
    with socket_that_answers(folder / "fake", reply):
        result = rfctl("--socket", folder / "fake", "ps", "--json")
    assert result.returncode == DONE
    assert json.loads(result.stdout) == reply
    assert result.stderr.splitlines() == [
        "rfctl: please detach from llama: it is being unloaded, or its device was lost",
        "rfctl: please detach from evil\\nname: it is being unloaded, or its device was lost",
    ]


# --- Output ---


@pytest.mark.parametrize(
    "command", [["ps"], ["show", "small"], ["ps", "--json"], ["dump", "small", "blk.0.attn_q.weight"]]
)
def test_output_that_cannot_be_written(daemon, small_model, command):
    daemon.rfctl("load", small_model)
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [program(), "--socket", str(daemon.socket), *command], stdout=full, stderr=subprocess.PIPE, timeout=TIMEOUT
        )
    assert result.returncode == REFUSED
    assert result.stderr == b"rfctl: cannot write: No space left on device\n"
    reader, writer = os.pipe()
    os.close(reader)
    result = subprocess.run(
        [program(), "--socket", str(daemon.socket), *command], stdout=writer, stderr=subprocess.PIPE, timeout=TIMEOUT
    )
    os.close(writer)
    assert (result.returncode, result.stderr) == (REFUSED, b"")


@pytest.mark.parametrize("closed, status", [("<&-", DONE), ("2>&-", DONE), (">&-", REFUSED), ("<&- >&- 2>&-", REFUSED)])
def test_without_standard_streams(daemon, closed, status):
    """What it says does not go to the daemon, whose socket is the next thing that it opens."""
    command = ["sh", "-c", f'exec "$@" {closed}', "sh", program(), "--socket", str(daemon.socket), "ping", "-c", "2"]
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=TIMEOUT)
    assert result.returncode == status
    assert "ends: " not in daemon.log


def watching(daemon, *options):
    """rfctl watch, after its first line: it waits for what may never happen."""
    command = [program(), "--socket", str(daemon.socket), "watch", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    return process, process.stdout.readline()


def test_watch_ends_with_its_reader(daemon):
    """And not with the first line that nobody reads."""
    process, _ = watching(daemon, "--json")
    process.stdout.close()
    assert process.wait(TIMEOUT) == REFUSED
    assert process.stderr.read() == b""
    process.stderr.close()


def test_watch_counts_leases(daemon, small_model):
    daemon.rfctl("load", small_model)
    with daemon.client() as client:
        for leases in ("1 lease", "2 leases"):
            client.call("Attach", name="small")
            process, first = watching(daemon)
            assert first.decode().endswith(f"on host as auto, {leases}\n")
            process.terminate()
            process.communicate()


EVIL = "\x1b]0;owned\x07\x1b[2J\nrfctl: forged\r\x9b31m\u202egnp.exe\x7f"


@pytest.fixture
def evil_model(folder):
    types = make_model.load_types()
    path = folder / "evil.gguf"
    entry = make_model.string("general.name") + struct.pack("<I", make_model.STRING) + make_model.string(EVIL)
    key = make_model.string("key." + EVIL) + struct.pack("<II", make_model.U32, 1)
    tensors = [make_model.Tensor("evil" + EVIL[:20], types["f32"], (64, 4))]
    make_model.write_model(path, tensors, (2, entry + key), 1)
    return path


def test_names_cannot_steer_a_terminal(daemon, evil_model):
    outputs = [rfctl("inspect", evil_model), rfctl("inspect", evil_model, "--json")]
    if daemon.rfctl("load", evil_model, check=False).returncode == DONE:
        outputs += [daemon.rfctl("show", "evil"), daemon.rfctl("show", "evil", "--json")]
    outputs += [daemon.rfctl("load", f"no-such{EVIL}", check=False), daemon.rfctl("unload", EVIL, check=False)]
    outputs += [rfctl(EVIL), rfctl("load", "x", "--as", EVIL)]
    for result in outputs:
        for text in (result.stdout, result.stderr):
            assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", text), ascii(text)
            assert "\nrfctl: forged" not in text
