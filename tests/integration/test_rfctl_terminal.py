"""What rfctl does on a terminal: bars, tables, and how it leaves one behind."""
import re
import signal
import subprocess
import types

import pytest
from harness import TIMEOUT, wait_until
from rfctl_rig import DONE, INTERRUPTED, USAGE, Terminal, lines_of_json, program, socket_that_answers


@pytest.mark.parametrize("columns", [132, 80, 50, 30, 10])
def test_progress_bar(slow_daemon, slow_model, columns):
    terminal = Terminal(slow_daemon, "load", slow_model, columns=columns)
    assert terminal.wait() == DONE
    bars = terminal.bars()
    assert len(bars) > 2
    assert max(map(len, bars)) <= columns - len("^C") - 1  # or an interrupt would wrap it, and leave it there
    if columns >= 80:
        assert any(re.fullmatch(r"filling +\[#*\.*\] +\d+%  .* of 268 MB  .*/s  .* left", bar) for bar in bars)
    # Nothing of it is left.
    screen = terminal.screen()
    assert screen[0].startswith("loaded slow: 268 MB on host in ")
    assert screen[-1] == ""
    assert len(screen) == 3


def test_progress_bar_interrupted(held_daemon, gate, gated_model):
    terminal = Terminal(held_daemon, "load", gated_model)
    wait_until(lambda: terminal.read(0.05) and len(terminal.bars()) > 1)
    terminal.press(b"\x03")
    assert terminal.wait() == INTERRUPTED
    screen = [line.replace("^C", "") for line in terminal.screen()]  # where the kernel writes that is left to chance
    assert screen == ["rfctl: interrupted: the load is cancelled, unless others want it too", ""]
    held_daemon.sync()
    gate.open()
    wait_until(lambda: held_daemon.models() == [])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_progress_bar_when_a_signal_ends_it(held_daemon, gated_model, number):
    """Nothing of the bar is left, and whoever started rfctl sees which signal it was."""
    terminal = Terminal(held_daemon, "load", gated_model)
    wait_until(lambda: terminal.read(0.05) and len(terminal.bars()) > 1)
    terminal.process.send_signal(number)
    assert terminal.wait() == (INTERRUPTED if number == signal.SIGINT else -number)
    *told, last = terminal.screen()
    assert last == "" and len(told) == (number == signal.SIGINT)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_ignored_signals_stay_ignored(held_daemon, gate, gated_model, number):
    """As nohup wants it, and a shell for what runs in the background."""
    process = subprocess.Popen(
        [program(), "--socket", str(held_daemon.socket), "load", str(gated_model)],
        stdout=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(number, signal.SIG_IGN),
    )
    wait_until(lambda: [m for m in held_daemon.models() if m["state"] == "filling"])
    process.send_signal(number)
    gate.open()
    process.communicate(timeout=TIMEOUT)
    assert process.returncode == DONE


def test_progress_bar_follows_the_window(held_daemon, gate, gated_model):
    terminal = Terminal(held_daemon, "load", gated_model, columns=100)
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


@pytest.mark.parametrize(
    "locale, ellipsis",
    [
        ({"LC_ALL": "C"}, "..."),
        ({"LC_ALL": "", "LC_CTYPE": "POSIX", "LANG": "C.UTF-8"}, "..."),
        ({"LC_ALL": "", "LC_CTYPE": "C.UTF-8", "LANG": "C"}, "…"),
        ({"LC_ALL": "C.UTF-8"}, "…"),
    ],
)
def test_ellipsis_that_the_terminal_can_show(daemon, small_model, locale, ellipsis):
    long_name = "m" * 127
    daemon.rfctl("load", small_model, "--name", long_name)
    terminal = Terminal(daemon, "ps", env=locale)
    assert terminal.wait() == DONE
    lines = terminal.screen()
    assert re.match(rf"m+{re.escape(ellipsis)}  auto  host ", lines[1])
    assert max(map(len, lines)) <= 80
    assert ("…" in terminal.output) == (ellipsis == "…")


def test_ping_interrupted(daemon):
    terminal = Terminal(daemon, "ping", "-c", "1000")
    wait_until(lambda: terminal.read(0.05) and "ms" in terminal.output)
    terminal.press(b"\x03")
    assert terminal.wait() == INTERRUPTED  # so that a script that runs it ends, too
    assert "replies: min" in terminal.output or "1 reply: min" in terminal.output


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
    assert lines[1].split()[1:] == "native cuda:0 999 GB allocating 4096 yes 59m 3599s".split()
    assert lines[2].split()[2:6] == ["host(cuda:0)", "999", "GB", "cached"]


def test_verify_with_a_bar(daemon, large_model):
    daemon.rfctl("load", large_model)
    terminal = Terminal(daemon, "verify", "large")
    assert terminal.wait() == DONE
    assert terminal.screen()[0].startswith("verified large: ")
    assert any(bar.startswith("verifying") for bar in terminal.bars())
