"""A Varlink client of a page, for tests: it sends what it is told, also what no real client would, and keeps every
descriptor that comes back.

    with Client(socket) as client:
        models = client.call("List")["models"]
        reply = client.call("Load", fds=[file.fileno()], name="llama")
        for progress in client.more("Load", path="/models/llama.gguf"): ...

A method without a dot belongs to io.rocmforge. `fds` are descriptors; the parameter of that name, their indexes, is
added. An error reply raises WireError.
"""
import json
import os
import socket

INTERFACE = "io.rocmforge"
FDS_MAX = 253


class WireError(Exception):
    def __init__(self, name, parameters):
        super().__init__(f"{name} {json.dumps(parameters)}")
        self.name = name.removeprefix(INTERFACE + ".")
        self.parameters = parameters


class Closed(Exception):
    """The daemon closed the connection."""


class Client:
    def __init__(self, path, timeout=30):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self.socket.settimeout(timeout)
        self.socket.connect(str(path))
        self.buffer = b""
        self.received = []  # descriptors, with the number of bytes that had come when they did
        self.count = 0
        self.fds = []  # of the last message

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.socket.close()
        self.close_fds()
        for _, fd in self.received:
            os.close(fd)
        self.received = []

    def close_fds(self):
        for fd in self.fds:
            if fd is not None:
                os.close(fd)
        self.fds = []

    def take_fd(self, index):
        """A descriptor of the last message, which is the caller's from now on."""
        fd, self.fds[index] = self.fds[index], None
        return fd

    def send_raw(self, data, fds=()):
        if fds:
            sent = socket.send_fds(self.socket, [data], list(fds))
            data = data[sent:]
        if data:
            self.socket.sendall(data)

    def send(self, method, parameters=None, fds=(), **options):
        """options: more, oneway."""
        message = {"method": method if "." in method else f"{INTERFACE}.{method}"}
        if parameters is not None:
            message["parameters"] = parameters
        message.update(options)
        self.send_raw(json.dumps(message).encode() + b"\0", fds)

    def receive(self):
        """The next message as it is; its descriptors are in self.fds until the next one."""
        self.close_fds()
        while b"\0" not in self.buffer:
            data, fds, flags, _ = socket.recv_fds(self.socket, 1 << 16, FDS_MAX, socket.MSG_CMSG_CLOEXEC)
            if flags & socket.MSG_CTRUNC:
                raise AssertionError("descriptors were lost")
            self.received += [(self.count + len(self.buffer), fd) for fd in fds]
            if not data:
                raise Closed
            self.buffer += data
        text, self.buffer = self.buffer.split(b"\0", 1)
        self.count += len(text) + 1
        self.fds = [fd for at, fd in self.received if at < self.count]
        self.received = [(at, fd) for at, fd in self.received if at >= self.count]
        return json.loads(text)

    def reply(self):
        """The next reply: its parameters, and whether more follow."""
        message = self.receive()
        if message.get("error"):
            raise WireError(message["error"], message.get("parameters") or {})
        return message.get("parameters") or {}, bool(message.get("continues"))

    def call(self, method, fds=(), **parameters):
        if fds:
            parameters["fds"] = list(range(len(fds)))
        self.send(method, parameters, fds)
        reply, continues = self.reply()
        assert not continues, "a second reply without `more`"
        return reply

    def more(self, method, fds=(), **parameters):
        """Yields each reply; the last one has continues false."""
        if fds:
            parameters["fds"] = list(range(len(fds)))
        self.send(method, parameters, fds, more=True)
        continues = True
        while continues:
            reply, continues = self.reply()
            yield reply
