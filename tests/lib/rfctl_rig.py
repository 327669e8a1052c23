"""The command line, run as a program: with a daemon, without one, with one that lies, and on a terminal."""
import contextlib
import fcntl
import json
import os
import pty
import re
import resource
import select
import socket
import struct
import subprocess
import termios
import threading
import time

from harness import TIMEOUT, build_folder

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
            env={**os.environ, "TERM": term, "LC_ALL": "C.UTF-8", **(env or {})},
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
