"""A file system in user space, by the kernel's own protocol, whose answers can be held back: what a file on a network that
is down, or of a hostile user, looks like to whoever reads it. Needs root and /dev/fuse."""
import ctypes
import errno
import os
import stat
import struct
import threading

LOOKUP, FORGET, GETATTR, OPEN, READ, STATFS, RELEASE, FLUSH, INIT = 1, 2, 3, 14, 15, 17, 18, 25, 26
INTERRUPT, DESTROY, BATCH_FORGET = 36, 38, 42
ROOT = 1
DIRECT_IO = 1
MNT_FORCE, MNT_DETACH = 1, 2
HEADER = struct.Struct("=IIQQIIIHH")
REQUEST_MAX = 1 << 18

libc = ctypes.CDLL(None, use_errno=True)


def available():
    return os.geteuid() == 0 and os.path.exists("/dev/fuse") and os.access("/dev/fuse", os.R_OK | os.W_OK)


class FuseFiles:
    """Shows files of other folders in one folder. `hold()` keeps back the answers to requests of these kinds until
    `go_on()`. `valid`: seconds for which the kernel keeps names and attributes. With `direct`, reads go past the page cache
    and cannot be ended by a signal either."""

    def __init__(self, folder, files, valid=0, direct=False):
        self.folder, self.files, self.valid, self.direct = str(folder), [os.open(path, os.O_RDONLY) for path in files], valid, direct
        self.names = [os.path.basename(path).encode() for path in files]
        self.held, self.from_offset, self.waiting = set(), 0, []
        self.lock = threading.Lock()
        self.device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        os.makedirs(self.folder, exist_ok=True)
        options = f"fd={self.device},rootmode=40000,user_id=0,group_id=0,allow_other"
        if libc.mount(b"files", self.folder.encode(), b"fuse", 0, options.encode()) < 0:
            error = ctypes.get_errno()
            os.close(self.device)
            raise OSError(error, os.strerror(error))
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def path(self, number=0):
        return f"{self.folder}/{self.names[number].decode()}"

    def hold(self, *kinds, from_offset=0):
        """Reads are held back only from this offset of the file on."""
        with self.lock:
            self.held, self.from_offset = set(kinds), from_offset

    def n_held(self):
        with self.lock:
            return len(self.waiting)

    def go_on(self):
        with self.lock:
            self.held = set()
            waiting, self.waiting = self.waiting, []
        for request in waiting:
            self.answer(request)

    def close(self):
        """What waits gets an error."""
        libc.umount2(self.folder.encode(), MNT_FORCE)
        libc.umount2(self.folder.encode(), MNT_DETACH)
        with self.lock:
            self.held, self.waiting = set(), []
        self.thread.join(10)
        os.close(self.device)
        for fd in self.files:
            os.close(fd)

    def serve(self):
        while True:
            try:
                request = os.read(self.device, REQUEST_MAX)
            except OSError as error:
                if error.errno in (errno.EINTR, errno.EAGAIN, errno.ENOENT):
                    continue
                return  # unmounted
            with self.lock:
                if self.is_held(request):
                    self.waiting.append(request)
                    continue
            self.answer(request)

    def is_held(self, request):
        kind = HEADER.unpack_from(request)[1]
        if kind not in self.held:
            return False
        if kind != READ:
            return True
        _, offset, size = struct.unpack_from("=QQI", request, HEADER.size)
        return offset + size > self.from_offset

    def attributes(self, node):
        if node == ROOT:
            return struct.pack("=6Q10I", ROOT, 0, 0, 0, 0, 0, 0, 0, 0, stat.S_IFDIR | 0o755, 2, 0, 0, 0, 4096, 0)
        status = os.fstat(self.files[node - 2])
        seconds, rest = divmod(status.st_mtime_ns, 10**9)
        blocks = (status.st_size + 511) // 512
        return struct.pack("=6Q10I", node, status.st_size, blocks, seconds, seconds, seconds, rest, rest, rest,
                           stat.S_IFREG | 0o644, 1, 0, 0, 0, 4096, 0)

    def body(self, kind, node, rest):
        if kind == INIT:
            major, minor, ahead, flags = struct.unpack_from("=4I", rest)
            return struct.pack("=4I2H2I2H2I12H", major, min(minor, 31), ahead, flags & 1, 16, 12, 1 << 17, 1, 32, 0, 0, 0, *[0] * 12)
        if kind == LOOKUP:
            name = rest.rstrip(b"\0")
            if name not in self.names:
                raise OSError(errno.ENOENT, "")
            node = self.names.index(name) + 2
            return struct.pack("=4Q2I", node, 0, self.valid, self.valid, 0, 0) + self.attributes(node)
        if kind == GETATTR:
            return struct.pack("=Q2I", self.valid, 0, 0) + self.attributes(node)
        if kind == OPEN:
            return struct.pack("=Q2I", 0, DIRECT_IO if self.direct else 0, 0)
        if kind == READ:
            _, offset, size = struct.unpack_from("=QQI", rest)
            return os.pread(self.files[node - 2], size, offset)
        if kind == STATFS:
            return struct.pack("=5Q10I", 0, 0, 0, 0, 0, 4096, 255, 0, 0, 0, 0, 0, 0, 0, 0)
        if kind in (FLUSH, RELEASE):
            return b""
        raise OSError(errno.ENOSYS, "")

    def answer(self, request):
        _, kind, unique, node, *_ = HEADER.unpack_from(request)
        if kind in (FORGET, BATCH_FORGET, INTERRUPT, DESTROY):
            return
        error, body = 0, b""
        try:
            body = self.body(kind, node, request[HEADER.size :])
        except OSError as failure:
            error = -failure.errno
        try:
            os.write(self.device, struct.pack("=IiQ", 16 + len(body), error, unique) + body)
        except OSError:
            pass  # whoever asked has gone
