"""An attacker: one user with many connections, in a process of its own."""
import contextlib
import json
import os
import select
import socket
import time

AT_ONCE = 100  # requests that a connection sends before it reads


class Flood:
    """requests: what is sent in turn, as (bytes, path of a file that is passed, or None, how many times)."""

    def __init__(self, path, connections, requests, reads=True, at_once=AT_ONCE):
        self.path, self.connections, self.requests = str(path), connections, requests
        self.reads, self.at_once = reads, at_once
        self.files = {}
        self.answers = self.refused = 0
        self.sockets = []
        self.rests = {}

    def connect(self):
        one = socket.socket(socket.AF_UNIX)
        one.settimeout(5)
        one.connect(self.path)
        return one

    def send(self, one, n):
        """Sends what the socket takes; the rest of a request waits until it takes more."""
        rest = self.rests.pop(one, b"")
        try:
            for i in range(n + bool(rest)):
                if rest:
                    data, file = rest, None
                else:
                    data, file, times = self.requests[i % len(self.requests)]
                if not file:
                    rest = data[one.send(data) :]
                    continue
                if file not in self.files:
                    self.files[file] = os.open(file, os.O_RDONLY)
                socket.send_fds(one, [data], [self.files[file]] * times)
        except BlockingIOError:
            pass
        if rest:
            self.rests[one] = rest

    def open_all(self):
        for _ in range(self.connections):
            with contextlib.suppress(OSError):
                one = self.connect()
                one.setblocking(False)
                self.send(one, self.at_once)
                self.sockets.append(one)

    def answered(self, one):
        data, fds, _, _ = socket.recv_fds(one, 1 << 18, 253)
        for fd in fds:
            os.close(fd)
        if not data:
            raise ConnectionResetError
        n = data.count(b"\0")
        self.answers += n
        self.refused += data.count(b'"error":"')
        self.send(one, n)

    def run(self, seconds):
        """Returns how many answers came, how many of them were errors, and how many connections there were."""
        end = time.monotonic() + seconds
        self.open_all()
        most = len(self.sockets)
        poll = select.poll()
        by_fd = {one.fileno(): one for one in self.sockets}
        for fd in by_fd:
            poll.register(fd, select.POLLIN)
        while time.monotonic() < end:
            if not self.reads or not by_fd:
                time.sleep(0.05)
                continue
            for one in list(self.rests):
                with contextlib.suppress(OSError):
                    self.send(one, 0)
            for fd, _ in poll.poll(1 if self.rests else 100):
                try:
                    self.answered(by_fd[fd])
                except OSError:
                    poll.unregister(fd)
                    self.rests.pop(by_fd[fd], None)
                    by_fd.pop(fd).close()
        for one in by_fd.values():
            one.close()
        return self.answers, self.refused, most


def hoard(path, model):
    """Loads the model again and again, each time from another file, as far as the daemon lets it. Returns how often."""
    with socket.socket(socket.AF_UNIX) as one:
        one.settimeout(60)
        one.connect(str(path))
        n = 0
        while True:
            fd = os.memfd_create("model")
            os.write(fd, model)
            load = {"method": "io.rocmforge.Load", "parameters": {"fds": [0], "name": f"u{os.getuid()}-{n}"}}
            socket.send_fds(one, [json.dumps(load).encode() + b"\0"], [fd])
            os.close(fd)
            answer = b""
            while not answer.endswith(b"\0"):
                answer += one.recv(1 << 16)
            if b'"error":"' in answer:
                assert b"user-models" in answer, answer
                return n
            n += 1


def lease_storm(path, requests, seconds):
    """Holds as many leases as a user may, closes the connection, and again."""
    end, n, refused = time.monotonic() + seconds, 0, 0
    while time.monotonic() < end:
        with socket.socket(socket.AF_UNIX) as one:
            one.settimeout(60)
            one.connect(str(path))
            one.sendall(requests)
            asked = requests.count(b"\0")
            while asked > 0:
                answer = one.recv(1 << 18)
                asked -= answer.count(b"\0")
                n += answer.count(b"\0")
                refused += answer.count(b'"error":"')
    return n, refused, 1


def connect_storm(path, request, seconds):
    """Connects, asks, and closes, without an end."""
    end, n, refused = time.monotonic() + seconds, 0, 0
    while time.monotonic() < end:
        try:
            with socket.socket(socket.AF_UNIX) as one:
                one.settimeout(5)
                one.connect(str(path))
                one.sendall(request)
                refused += b'"error":"' in one.recv(1 << 16)
                n += 1
        except OSError:
            refused += 1
    return n, refused, 1
