#!/usr/bin/env python3
"""Brings files into the page cache as whoever loads a model finds them there: read from the disk.

    page_cache.py FILE...

What was written a moment ago may lie there otherwise, and be read more slowly: tests/bench/bench_pread.c shows it.
"""
import os
import sys
import time


def read_from_disk(path):
    """Returns the bytes per second, which are the disk's unless there is none: a tmpfs lets go of nothing."""
    began = time.monotonic()
    with open(path, "rb", buffering=0) as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while file.read(1 << 24):
            pass
    return os.path.getsize(path) / (time.monotonic() - began)


def main():
    for path in sys.argv[1:]:
        print(f"{path}: read from the disk, {read_from_disk(path) / 1e9:.2f} GB/s")


if __name__ == "__main__":
    main()
