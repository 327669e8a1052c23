"""The command line, against the real daemon: what it prints, what it returns, and what it does on a terminal."""
import contextlib
import fcntl
import json
import os
import pty
import re
import resource
import select
import signal
import socket
import struct
import subprocess
import termios
import threading
import time
import types

import make_model
import pytest
from harness import TIMEOUT, build_folder, sparse_model, wait_until

DONE, REFUSED, USAGE, NO_DAEMON, INTERRUPTED = 0, 1, 2, 3, 130


def program():
    return str(build_folder() / "client" / "rfctl" / "rfctl")


def rfctl(*arguments, env=None, **options):
    """Without a daemon."""
    return subprocess.run(
        [program(), *map(str, arguments)],
        capture_output=True,
        timeout=TIMEOUT,
        env={**os.environ, **(env or {})},
        **{"text": True, **options},
    )


def lines_of_json(text):
    return [json.loads(line) for line in text.splitlines()]


@contextlib.contextmanager
def socket_that_answers(path, parameters, **fields):
    """One client, each of whose requests gets the same reply. They are in the list that this yields."""
    reply = json.dumps({"parameters": parameters, **fields}).encode() + b"\0"
    requests = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve():
            connection, _ = listener.accept()
            with connection:
                waiting = b""
                while data := connection.recv(1 << 16):
                    *complete, waiting = (waiting + data).split(b"\0")
                    for message in complete:
                        requests.append(json.loads(message))
                        connection.sendall(reply)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield requests
        thread.join(TIMEOUT)
        assert not thread.is_alive()


class Terminal:
    """Runs rfctl with a terminal as its output and keeps what is written to it."""

    def __init__(self, daemon, *arguments, columns=80, term="xterm", env=None):
        master, slave = pty.openpty()
        self.master = master
        self.resize(columns)
        self.process = subprocess.Popen(
            [program(), "--socket", str(daemon.socket), *map(str, arguments)],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=self.take_over,
            env={**os.environ, "TERM": term, **(env or {})},
        )
        os.close(slave)
        self.output = ""

    @staticmethod
    def take_over():
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    def resize(self, columns):
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    def read(self, seconds):
        """Reads for so long, or until the program ends. False: it ended."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if not select.select([self.master], [], [], left)[0]:
                break
            try:
                data = os.read(self.master, 65536)
            except OSError:  # how Linux says that the other end was closed
                return False
            if not data:
                return False
            self.output += data.decode()
        return True

    def press(self, keys):
        os.write(self.master, keys)

    def wait(self):
        assert not self.read(TIMEOUT)
        os.close(self.master)
        return self.process.wait(TIMEOUT)

    def screen(self):
        """The lines that stand there in the end. Knows as much of a terminal as rfctl uses."""
        lines, column = [""], 0
        for part in re.findall(r"\x1b\[[0-9;]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", self.output):
            if part == "\r":
                column = 0
            elif part == "\n":
                lines.append("")
                column = 0
            elif part == "\x1b[K":
                lines[-1] = lines[-1][:column]
            else:
                assert not part.startswith("\x1b"), part
                lines[-1] = lines[-1][:column] + part + lines[-1][column + len(part) :]
                column += len(part)
        return lines

    def bars(self):
        """Each state that the progress line was drawn in."""
        return [part.split("\x1b")[0] for part in self.output.split("\r") if "\x1b[K" in part and part[0] != "\x1b"]


# --- Usage ---


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["load", "--help"], ["--help", "ps"], ["ps", "-h"]])
def test_help(arguments):
    result = rfctl(*arguments)
    assert result.returncode == DONE
    assert result.stdout.startswith("Usage: rfctl")
    assert result.stderr == ""
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_help_names_every_command():
    text = rfctl("--help").stdout
    for name in "load plan ps show inspect unload pin unpin ttl cancel verify dump watch devices ping version".split():
        assert re.search(rf"^  {name} ", text, re.MULTILINE)
        assert rfctl(name, "--help").stdout.startswith(f"Usage: rfctl {name}")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["no-such-command"],
        ["--no-such-option", "ps"],
        ["ps", "extra"],
        ["load"],
        ["load", "a", "b"],
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


# --- Loading ---


def test_load(daemon, small_model):
    result = daemon.rfctl("load", small_model, "--name", "llama")
    lines = result.stdout.splitlines()
    assert re.fullmatch(
        r"loaded llama: \d+(\.\d)? [kM]B on host( from \d+(\.\d)? [kM]B)? in \d+(\.\d+)? m?s \(.* [kMG]B/s\)", lines[0]
    )
    for phase in ("parse", "allocate", "read", "dequantise", "copy", "kernel"):
        assert phase in lines[1]
    assert len(lines) == 2
    assert daemon.models()[0]["path"] == str(small_model)


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


def test_load_of_a_split_model_opens_every_part(daemon, folder, small_model):
    first = folder / "part-00001-of-00002.gguf"
    first.write_bytes(small_model.read_bytes())
    result = daemon.rfctl("load", first, check=False)
    assert result.returncode == REFUSED
    missing = f"{folder}/part-00002-of-00002.gguf: No such file or directory"
    assert result.stderr == f"rfctl: cannot load {first}: cannot open {missing}\n"


@pytest.mark.parametrize("name", ["gone.gguf", ".", "fifo"])
def test_load_what_cannot_be_opened(daemon, folder, name):
    os.mkfifo(folder / "fifo")
    result = daemon.rfctl("load", folder / name, check=False)
    assert result.returncode == REFUSED
    assert result.stderr.startswith(f"rfctl: cannot load {folder / name}: ")


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


def test_interrupt_cancels(held_daemon, gate, large_model):
    process = subprocess.Popen(
        [program(), "--socket", str(held_daemon.socket), "load", str(large_model)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    wait_until(lambda: [m for m in held_daemon.models() if m["state"] == "filling"])
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=TIMEOUT)
    assert process.returncode == INTERRUPTED
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


def test_daemon_dies_under_way(held_daemon, large_model):
    daemon = held_daemon
    process = subprocess.Popen(
        [program(), "--socket", str(daemon.socket), "load", str(large_model)],
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
    assert {"pinned", "private", "unloaded when idle for 10m"} <= set(lines)
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
    assert "takes about " in daemon.rfctl("plan", small_model, "--as", "f32").stdout


def test_plan_tells_what_would_go(start, large_model, small_model, folder):
    daemon = start("--budget", "1000M")
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


# --- Terminals ---


@pytest.mark.parametrize("columns", [132, 80, 50, 30, 10])
def test_progress_bar(slow_daemon, large_model, columns):
    terminal = Terminal(slow_daemon, "load", large_model, columns=columns)
    assert terminal.wait() == DONE
    bars = terminal.bars()
    assert len(bars) > 2
    assert max(map(len, bars)) < columns
    if columns >= 80:
        assert any(re.fullmatch(r"filling +\[#*\.*\] +\d+%  .* of 805 MB  .*/s  .* left", bar) for bar in bars)
    # Nothing of it is left.
    screen = terminal.screen()
    assert screen[0].startswith("loaded large: 805 MB on host in ")
    assert screen[-1] == ""
    assert len(screen) == 3


def test_progress_bar_interrupted(held_daemon, gate, large_model):
    terminal = Terminal(held_daemon, "load", large_model)
    wait_until(lambda: terminal.read(0.05) and len(terminal.bars()) > 1)
    terminal.press(b"\x03")
    assert terminal.wait() == INTERRUPTED
    assert terminal.screen()[-1] in ("", "^C")
    held_daemon.sync()
    gate.open()
    wait_until(lambda: held_daemon.models() == [])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_progress_bar_when_a_signal_ends_it(held_daemon, large_model, number):
    """Nothing of the bar is left, and whoever started rfctl sees which signal it was."""
    terminal = Terminal(held_daemon, "load", large_model)
    wait_until(lambda: terminal.read(0.05) and len(terminal.bars()) > 1)
    terminal.process.send_signal(number)
    assert terminal.wait() == (INTERRUPTED if number == signal.SIGINT else -number)
    assert terminal.screen() == [""]


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_ignored_signals_stay_ignored(held_daemon, gate, large_model, number):
    """As nohup wants it, and a shell for what runs in the background."""
    process = subprocess.Popen(
        [program(), "--socket", str(held_daemon.socket), "load", str(large_model)],
        stdout=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(number, signal.SIG_IGN),
    )
    wait_until(lambda: [m for m in held_daemon.models() if m["state"] == "filling"])
    process.send_signal(number)
    gate.open()
    process.communicate(timeout=TIMEOUT)
    assert process.returncode == DONE


def test_progress_bar_follows_the_window(held_daemon, gate, large_model):
    terminal = Terminal(held_daemon, "load", large_model, columns=100)
    wait_until(lambda: terminal.read(0.02) and terminal.bars())
    terminal.resize(40)
    before = len(terminal.bars())
    wait_until(lambda: terminal.read(0.02) and len(terminal.bars()) > before + 2)
    gate.open()
    assert terminal.wait() == DONE
    later = terminal.bars()[before + 1 :]  # one may have been on its way
    assert later and max(map(len, later)) < 40


@pytest.mark.parametrize("term", ["dumb", ""])
def test_no_bar_on_a_dumb_terminal(daemon, large_model, term):
    terminal = Terminal(daemon, "load", large_model, term=term)
    assert terminal.wait() == DONE
    assert "\x1b" not in terminal.output
    assert "\r" not in terminal.output.replace("\r\n", "")


def test_json_on_a_terminal_has_no_bar(daemon, small_model):
    terminal = Terminal(daemon, "load", "--json", small_model)
    assert terminal.wait() == DONE
    assert "\x1b" not in terminal.output
    lines_of_json(terminal.output)


def test_dump_refuses_a_terminal(daemon, small_model):
    daemon.rfctl("load", small_model)
    terminal = Terminal(daemon, "dump", "small", "token_embd.weight")
    assert terminal.wait() == USAGE
    assert "terminal" in terminal.output and len(terminal.output) < 200


def test_tables_fit_a_terminal(daemon, small_model):
    long_name = "m" * 127
    daemon.rfctl("load", small_model, "--name", long_name)
    for command in (["ps"], ["devices"], ["show", long_name], ["inspect", small_model]):
        terminal = Terminal(daemon, *command)
        assert terminal.wait() == DONE
        table = [line for line in terminal.screen() if long_name not in line and str(small_model) not in line]
        assert max(map(len, table)) <= 80, command
    terminal = Terminal(daemon, "ps")
    terminal.wait()
    assert "m…" in terminal.screen()[1]
    assert long_name in daemon.rfctl("ps").stdout


# --- What there is ---


def test_ps(daemon, small_model):
    empty = daemon.rfctl("ps")
    assert (empty.stdout, empty.stderr) == ("", "rfctl: no model is loaded\n")
    daemon.rfctl("load", small_model, "--as", "native")
    head, row = daemon.rfctl("ps").stdout.splitlines()
    assert head.split() == ["NAME", "FORM", "DEVICE", "SIZE", "STATE", "LEASES", "PIN", "IDLE", "TTL"]
    assert row.split()[:3] == ["small", "native", "host"]
    assert row.split()[5:8] == ["resident", "0", "-"]
    with daemon.client() as client:
        client.call("Attach", name="small")
        assert daemon.rfctl("ps").stdout.splitlines()[1].split()[5:] == ["resident", "1", "-", "-", "-"]
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


def test_devices(daemon):
    head, row = daemon.rfctl("devices").stdout.splitlines()
    assert head.split()[:6] == ["DEVICE", "NAME", "TOTAL", "BUDGET", "USED", "AVAILABLE"]
    assert row.startswith("host ")
    assert json.loads(daemon.rfctl("devices", "--json").stdout)["devices"][0]["id"] == "host"


def test_ping(daemon):
    assert re.fullmatch(rf"rocmforged \S+, process {daemon.pid}: \d+\.\d+ ms\n", daemon.rfctl("ping").stdout)
    lines = daemon.rfctl("ping", "-c", "2").stdout.splitlines()
    assert len(lines) == 3
    assert re.fullmatch(r"2 replies: min \S+, average \S+, max \S+ ms", lines[2])
    assert all(reply["ms"] > 0 for reply in lines_of_json(daemon.rfctl("ping", "--json").stdout))


def test_ping_interrupted(daemon):
    terminal = Terminal(daemon, "ping", "-c", "1000")
    wait_until(lambda: terminal.read(0.05) and "ms" in terminal.output)
    terminal.press(b"\x03")
    assert terminal.wait() == DONE
    assert "replies: min" in terminal.output or "1 reply: min" in terminal.output


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
    assert re.fullmatch(rf"rfctl: cannot unload small: .*'small' is resident, {holder}\n", busy.stderr)


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
        assert daemon.rfctl("ps").stdout.splitlines()[1].split()[-1] == written
    assert daemon.rfctl("ttl", "small", "never").stdout == "small stays until it is unloaded\n"
    assert daemon.models()[0]["ttl"] is None
    for wrong in ("", "soon", "-1", "1.5h", "5 m"):
        result = daemon.rfctl("ttl", "--", "small", wrong, check=False)
        assert (result.returncode, result.stdout) == (USAGE, "")
        assert "DURATION" in result.stderr
    result = daemon.rfctl("ttl", "nobody", "1h", check=False)
    assert result.returncode == REFUSED
    assert result.stderr.startswith("rfctl: cannot set the time to live of nobody: ")
    daemon.rfctl("ttl", "small", "0")
    wait_until(lambda: daemon.models() == [])


def test_ps_fits_80_columns(daemon, small_model):
    """Whatever stands in it."""
    long = {"name": "m" * 127, "form": "native", "device": "cuda:0", "bytes": 999.4e9, "state": "allocating"}
    long |= {"leases": 4096, "pinned": True, "idle": 3599, "ttl": 3599}
    with socket_that_answers(daemon.folder / "fake", {"models": [long, {**long, "state": "cached", "leases": 0}]}):
        fake = types.SimpleNamespace(socket=daemon.folder / "fake")
        terminal = Terminal(fake, "ps")
        assert terminal.wait() == DONE
    lines = [line for line in terminal.screen() if line]
    assert len(lines) == 3
    assert max(map(len, lines)) <= 80
    assert lines[1].split()[1:] == "native cuda:0 999 GB allocating 4096 yes 59 min 3599s".split()
    assert lines[2].split()[2:6] == ["cuda:0", "999", "GB", "cached"]


def test_told_to_let_go(folder):
    reply = {"models": [], "draining": ["llama", "evil\nname"]}
    with socket_that_answers(folder / "fake", reply):
        result = rfctl("--socket", folder / "fake", "ps", "--json")
    assert result.returncode == DONE
    assert json.loads(result.stdout) == reply
    assert result.stderr.splitlines() == [
        "rfctl: please let go of llama: it is being unloaded",
        "rfctl: please let go of evil\\nname: it is being unloaded",
    ]


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


# --- Refusals in JSON ---


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


def test_daemon_dies_under_way_in_json(held_daemon, large_model):
    loads = []
    load = lambda: loads.append(held_daemon.rfctl("--json", "load", large_model, check=False))
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
    assert refusal(result) == ("io.rocmforge.ShuttingDown", {})


def test_dump_prints_bytes_only(daemon):
    """What is in standard output may be in a file, as a tensor."""
    result = daemon.rfctl("--json", "dump", "nobody", "x", check=False)
    assert (result.returncode, result.stdout) == (REFUSED, "")
    assert result.stderr.startswith("rfctl: cannot dump x of nobody: ")


# --- Files ---


def test_inspect(small_model, folder):
    text = rfctl("inspect", small_model, env={"ROCMFORGE_SOCKET": str(folder / "nobody")}).stdout
    assert text.startswith(f"{small_model}: GGUF version 3, ")
    assert "architecture:    llama" in text
    assert re.search(r"^bits per weight: \d+\.\d\d$", text, re.MULTILINE)
    assert re.search(r"^q4_0 +1 +\d+ +\d+ kB$", text, re.MULTILINE)
    assert re.search(r"^llama.context_length +u32 +4096$", text, re.MULTILINE)
    assert re.search(r"^blk.0.attn_k.weight +f32 +\[\d+, \d+\] ", text, re.MULTILINE)


def test_inspect_says_what_show_says(daemon, small_model):
    daemon.rfctl("load", small_model, "--as", "native")
    shown = json.loads(daemon.rfctl("show", "small", "--json").stdout)
    inspected = json.loads(rfctl("inspect", small_model, "--json").stdout)
    assert inspected["metadata"] == shown["metadata"]
    assert inspected["size"] == shown["model"]["size"]
    assert sum(entry["tensors"] for entry in inspected["types"]) == len(inspected["tensors"]) == 4
    assert sum(entry["bytes"] for entry in inspected["types"]) == inspected["bytes"]
    for key in ("name", "type", "shape", "size"):
        assert [t[key] for t in inspected["tensors"]] == [t[key] for t in shown["tensors"]]
    data = small_model.read_bytes()
    first = inspected["tensors"][0]
    dumped = daemon.rfctl("dump", "small", first["name"], text=False).stdout
    assert dumped == data[first["offset"] : first["offset"] + first["size"]]


def test_inspect_refuses(folder, small_model):
    data = small_model.read_bytes()
    path = folder / "broken.gguf"
    for broken in (b"", b"GGUF", b"no model at all, only text", data[:1000], data[:-1000]):
        path.write_bytes(broken)
        result = rfctl("inspect", path)
        assert result.returncode == REFUSED
        assert result.stdout == ""
        assert re.fullmatch(rf"rfctl: cannot inspect {re.escape(str(path))}: .* \(at byte \d+\)\n", result.stderr)
    assert rfctl("inspect", folder / "gone").returncode == REFUSED
    assert rfctl("inspect", folder).returncode == REFUSED


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


def test_verify_with_a_bar(daemon, large_model):
    daemon.rfctl("load", large_model)
    terminal = Terminal(daemon, "verify", "large")
    assert terminal.wait() == DONE
    assert terminal.screen()[0].startswith("verified large: ")
    assert any(bar.startswith("verifying") for bar in terminal.bars())


def test_dump(daemon, small_model):
    daemon.rfctl("load", small_model, "--as", "f32")
    tensors = json.loads(daemon.rfctl("show", "small", "--json").stdout)["tensors"]
    for tensor in tensors:
        assert len(daemon.rfctl("dump", "small", tensor["name"], text=False).stdout) == tensor["size"]
    for name, tensor in (("small", "no-such-tensor"), ("nobody", tensors[0]["name"])):
        result = daemon.rfctl("dump", name, tensor, check=False)
        assert (result.returncode, result.stdout) == (REFUSED, "")
        assert result.stderr.startswith(f"rfctl: cannot dump {tensor} of {name}: ")


def test_dump_waits_for_a_load(held_daemon, gate, large_model):
    held_daemon.rfctl("load", large_model, "--as", "native", "--no-wait")
    dumps = []
    command = ["dump", "large", "blk.0.ffn_up.weight"]
    thread = threading.Thread(target=lambda: dumps.append(held_daemon.rfctl(*command, text=False).stdout))
    thread.start()
    wait_until(lambda: held_daemon.status()["connections"] > 1)
    assert held_daemon.models()[0]["state"] == "filling" and not dumps
    gate.open()
    thread.join(TIMEOUT)
    assert len(dumps[0]) == 64 << 20


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


def test_watch_ends_with_its_reader(daemon, small_model):
    process = subprocess.Popen([program(), "--socket", str(daemon.socket), "watch"], stdout=subprocess.PIPE)
    wait_until(lambda: daemon.status()["connections"] > 1)
    process.stdout.close()
    daemon.rfctl("load", small_model)
    assert process.wait(TIMEOUT) == REFUSED


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
