#!/usr/bin/env python3
"""Prints the slowest tests of a run of `./setup test`: seconds, which build and step, name.

    slowest.py FOLDER [N]

FOLDER is as tally.py wants it, build/results after `./setup test`; N of them are printed, 15 by default. The seconds are
those on the clock, with setting up and clearing away: a machine that has other things to do makes them longer.
"""
import json
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path


def meson(path):
    for line in path.read_text(encoding="utf-8").splitlines():
        test = json.loads(line)
        yield test["duration"], test["name"]


def junit(path):
    for case in ElementTree.parse(path).iter("testcase"):
        yield float(case.get("time")), f"{case.get('classname')}.{case.get('name')}"


READERS = {".meson": meson, ".xml": junit}


def durations(folder):
    """(seconds, file, test) of each test whose time is known; a step has none."""
    for path in sorted(folder.iterdir()):
        if path.suffix in READERS:
            for seconds, name in READERS[path.suffix](path):
                yield seconds, path.name, name


def main():
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    number = int(sys.argv[2]) if len(sys.argv) == 3 else 15
    for seconds, where, name in sorted(durations(Path(sys.argv[1])), reverse=True)[:number]:
        print(f"{seconds:7.1f} s  {where}: {name}")


if __name__ == "__main__":
    main()
