"""An attacker: one user with many connections, in a process of its own."""
import contextlib
import fcntl
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


def start(one, method, fds=(), **parameters):
    """As ask(), for an answer that comes later."""
    if fds and method in ("Load", "Plan"):
        parameters["fds"] = list(range(len(fds)))
    socket.send_fds(one, [json.dumps({"method": f"io.rocmforge.{method}", "parameters": parameters}).encode() + b"\0"], fds)


def ask(one, method, fds=(), **parameters):
    """Calls, and returns the answer as text."""
    start(one, method, fds, **parameters)
    return receive(one, method)


def receive(one, method):
    answer = b""
    while not answer.endswith(b"\0"):
        data = one.recv(1 << 16)
        if not data:
            raise ConnectionResetError(f"no answer to {method}")
        answer += data
    return answer[:-1].decode()


def connected(path):
    one = socket.socket(socket.AF_UNIX)
    one.settimeout(60)
    one.connect(str(path))
    return one


def load_other(one, model, n, **parameters):
    """Loads a model of the same size. No two files have the same bytes, or lie at the same path: else the daemon would give
    one model many names."""
    name = f"u{os.getuid()}-{n}"
    fd = os.memfd_create(name)
    os.write(fd, model[:-8] + n.to_bytes(8, "little"))
    try:
        return ask(one, "Load", [fd], name=name, **parameters)
    finally:
        os.close(fd)


def hoard(path, model, **parameters):
    """Loads models as far as the daemon lets it. Returns how many, and the refusal."""
    with connected(path) as one:
        n = 0
        while '"error":"' not in (answer := load_other(one, model, n, **parameters))[:200]:
            n += 1
        return n, answer


def evict_storm(path, model, large, models, seconds):
    """Loads models that all may see, and then a large one, which needs their memory, and again."""
    end, n, loads, refused = time.monotonic() + seconds, 0, 0, 0
    with connected(path) as one, open(large, "rb") as file:
        while time.monotonic() < end:
            answers = [load_other(one, model, n + i, public=True) for i in range(models)]
            n += models
            answers.append(ask(one, "Load", [file.fileno()], name="large", private=True))
            ask(one, "Unload", name="large")
            loads += len(answers)
            refused += sum('"error":"' in answer for answer in answers)
    return loads, refused, 1


def sealed(text):
    """A descriptor of a text that nobody can change any more."""
    fd = os.memfd_create("text", os.MFD_ALLOW_SEALING)
    with open(fd, "wb", closefd=False) as file:
        file.write(text)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE)
    return fd


def late_storm(path, model, large, seconds):
    """Has a model wait for memory, while others wait for the model; lets it be loaded, ends it, and again."""
    end, n, refused = time.monotonic() + seconds, 0, 0
    with connected(path) as one, open(model, "rb") as file, open(large, "rb") as blocking:
        while time.monotonic() < end:
            with connected(path) as holder:
                ask(holder, "Load", [blocking.fileno()], name="large", lease=True)
                start(one, "Load", [file.fileno()], name="late", waitForMemory=60)
                time.sleep(0.3)
            refused += receive(one, "Load").count('"error":"')
            ask(one, "Unload", name="late", force=True)
            n += 1
    return n, refused, 1


def wait_for_late(path, connections, seconds):
    """All connections wait for one model with Attach, and close when they have their answers; and again."""
    end, n, refused = time.monotonic() + seconds, 0, 0
    while time.monotonic() < end:
        poll, waiting = select.poll(), {}
        with contextlib.ExitStack() as stack:
            for _ in range(connections):
                one = stack.enter_context(connected(path))
                start(one, "Attach", name="late")
                waiting[one.fileno()] = one
                poll.register(one, select.POLLIN)
            until, some = time.monotonic() + 2, 0
            while waiting and time.monotonic() < until:
                for fd, _ in poll.poll(100):
                    data, fds, _, _ = socket.recv_fds(waiting[fd], 1 << 18, 253)
                    for passed in fds:
                        os.close(passed)
                    if not data or data.endswith(b"\0"):
                        poll.unregister(fd)
                        del waiting[fd]
                        n += 1
                        some += data.startswith(b'{"error":"')
        refused += some
        if some:
            time.sleep(0.05)  # the model is not there
    return n, refused, connections


def hold_storm(path, large, seconds):
    """Keeps the memory of a large model."""
    with connected(path) as one, open(large, "rb") as file:
        refused = ask(one, "Load", [file.fileno()], name="large", lease=True).count('"error":"')
        time.sleep(seconds)
    return 1, refused, 1


def queue_storm(path, model, seconds):
    """As many loads as one user may have under way wait for memory; their clients all go, and again."""
    end, n = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        with contextlib.ExitStack() as stack:
            for i in range(16):
                fd = os.memfd_create(f"q{os.getuid()}-{n + i}")
                stack.callback(os.close, fd)
                os.truncate(fd, os.stat(model).st_size)
                with open(model, "rb") as file:
                    os.write(fd, file.read(1 << 12))
                os.pwrite(fd, (n + i).to_bytes(8, "little"), os.stat(model).st_size - 8)
                one = stack.enter_context(connected(path))
                start(one, "Load", [fd], name=f"q{os.getuid()}-{n + i}", waitForMemory=60, public=True)
            n += 16
            time.sleep(0.1)
    return n, 0, 16


def publish_storm(path, tensors, metadata, seconds):
    """Makes a model, publishes it, and ends it, again and again."""
    end, n, refused = time.monotonic() + seconds, 0, 0
    name = f"p{os.getuid()}-{os.getpid()}"
    with connected(path) as one:
        while time.monotonic() < end:
            fds = [sealed(tensors), sealed(metadata)]
            answers = [ask(one, "Create", fds[:1], name=name, tensorsFile=0, private=True)]
            if '"creation":' in answers[0][:200]:
                creation = json.loads(answers[0])["parameters"]["creation"]
                answers.append(ask(one, "Publish", fds[1:], creation=creation, metadataFile=0, lease=True))
                answers.append(ask(one, "Unload", name=name, force=True))
                answers.append(ask(one, "Detach", lease=json.loads(answers[1])["parameters"].get("lease", 0)))
            for fd in fds:
                os.close(fd)
            n += len(answers)
            refused += sum(answer.startswith('{"error":"') for answer in answers)
    return n, refused, 1


def hold_leases(path, leases, name, seconds, flood):
    """Holds so many leases meanwhile."""
    with connected(path) as one:
        for _ in range(leases):
            reply = ask(one, "Attach", name=name, table=True)
            if reply.startswith('{"error":"'):
                raise RuntimeError(f"no lease: {reply}")
        return flood.run(seconds)


def lease_storm(path, requests, seconds):
    """Holds as many leases as a user may, closes the connection, and again."""
    end, n, refused = time.monotonic() + seconds, 0, 0
    while time.monotonic() < end:
        with connected(path) as one:
            one.sendall(requests)
            asked = requests.count(b"\0")
            while asked > 0:
                answer = one.recv(1 << 18)
                if not answer:
                    raise ConnectionResetError(f"{asked} answers of Attach are missing")
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
