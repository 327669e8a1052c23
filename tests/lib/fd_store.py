"""A service manager with a file descriptor store, as far as the daemon knows it: what sd_pid_notify_with_fds(3) sends,
and what sd_listen_fds_with_names(3) finds."""
import array
import fcntl
import os
import socket

import harness

SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def sealed(data, seal=True):
    """A file in memory with these bytes."""
    fd = os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(fd, data)
    if seal:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
    return fd


def content(fd):
    return os.pread(fd, os.fstat(fd).st_size, 0)


class Store:
    """Listens at a socket. `entries`: name → descriptor."""

    def __init__(self, folder):
        self.path = str(folder / "notify")
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(self.path)
        self.socket.settimeout(0)
        self.entries = {}
        self.removed = set()
        self.said = []  # all lines of messages

    def receive(self):
        """Obeys what was sent so far. Returns whether there was something."""
        any_ = False
        while True:
            try:
                message, parts, _, _ = self.socket.recvmsg(4096, 4096, socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                return any_
            any_ = True
            fds = array.array("i")
            for _, _, data in parts:
                fds.frombytes(data)
            lines = message.decode().split("\n")
            self.said += lines
            name = next((line[7:] for line in lines if line.startswith("FDNAME=")), "stored")
            if "FDSTORE=1" not in lines:
                for fd in fds:  # of sd_notify_barrier(3), which waits for this
                    os.close(fd)
            if "FDSTORE=1" in lines:
                assert len(fds) == 1 and name not in self.entries
                self.entries[name] = fds[0]
            elif "FDSTOREREMOVE=1" in lines:
                self.removed.add(name)
                if name in self.entries:
                    os.close(self.entries.pop(name))

    def wait(self, role, n):
        """Waits until there are so many entries of a role: d, a, h or f."""
        def there():
            self.receive()
            return len(self.of(role)) == n

        harness.wait_until(there)
        return self.of(role)

    def of(self, role):
        return sorted(name for name in self.entries if name.split("-")[2][0] == role)

    def replace(self, name, fd):
        os.close(self.entries[name])
        self.entries[name] = fd

    def start(self, start, *options, socket_too=False, env=None, **keywords):
        """Starts a daemon that gets all entries. socket_too: one of them is the socket to listen at, and --socket is not
        said."""
        self.removed.clear()
        names = list(self.entries)
        # Copies with numbers that no other descriptor has, to be moved to 3, 4, ... by the shell.
        copies = [fcntl.fcntl(self.entries[name], fcntl.F_DUPFD, 200) for name in names]
        script = ["#!/bin/bash"]
        script += [f"exec {3 + i}<&{fd} {fd}<&-" for i, fd in enumerate(copies)]
        if names:
            script += [f"export LISTEN_FDS={len(names)} LISTEN_FDNAMES={':'.join(names)} LISTEN_PID=$$"]
        script += ['exec "$1" "${@:4}"' if socket_too else 'exec "$@"', ""]
        path = self.path + ".sh"
        with open(path, "w", encoding="ascii") as out:
            out.write("\n".join(script))
        for fd in copies:
            os.set_inheritable(fd, True)
        program = ["bash", path, harness.daemon_program()]
        daemon = start(*options, program=program, env={"NOTIFY_SOCKET": self.path, **(env or {})}, pass_fds=copies, **keywords)
        for fd in copies:
            os.close(fd)
        return daemon

    def close(self):
        for fd in self.entries.values():
            os.close(fd)
        self.socket.close()
