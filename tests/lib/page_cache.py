#!/usr/bin/env python3
"""Brings files into the page cache as whoever loads a model finds them there: read from the disk.

    page_cache.py FILE...

What was written a moment ago may lie there otherwise, and be read more slowly: tests/bench/bench_pread.c shows it.
"""
import ctypes
import mmap
import os
import sys
import time

PAGE = mmap.PAGESIZE
C = ctypes.CDLL(None, use_errno=True)
C.mmap.restype = ctypes.c_void_p
C.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
C.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
C.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]


def read_from_disk(path):
    """Returns the bytes per second, which are the disk's unless there is none: a tmpfs lets go of nothing."""
    began = time.monotonic()
    with open(path, "rb", buffering=0) as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while file.read(1 << 24):
            pass
    return os.path.getsize(path) / (time.monotonic() - began)


def drop(path):
    """Writes the file to the disk, and lets go of all its pages."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_into_cache(path, ranges):
    """Of a file that was dropped: these ranges of bytes, and nothing beside them."""
    with open(path, "rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)  # nothing is read ahead
        for begin, end in ranges:
            for at in range(begin, end, 1 << 20):
                os.pread(file.fileno(), min(1 << 20, end - at), at)


def cached(path):
    """How many bytes of the file the page cache has. To who neither owns the file nor may write to it, the kernel says: all."""
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        memory = C.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, file.fileno(), 0)
    if memory == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), "mmap")
    pages = ctypes.create_string_buffer((size + PAGE - 1) // PAGE)
    if C.mincore(memory, size, pages) < 0:
        raise OSError(ctypes.get_errno(), "mincore")
    C.munmap(memory, size)
    return min(sum(byte & 1 for byte in pages.raw) * PAGE, size)


def main():
    for path in sys.argv[1:]:
        print(f"{path}: read from the disk, {read_from_disk(path) / 1e9:.2f} GB/s")


if __name__ == "__main__":
    main()
