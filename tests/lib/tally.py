#!/usr/bin/env python3
"""Adds up what ran: prints "N passed, N failed, N skipped" and fails if anything failed, or nothing passed.

    tally.py FOLDER

FOLDER holds *.meson (meson's testlog.json), *.xml (JUnit, as pytest writes it) and *.step (the word "passed" or
"failed"). A program of cmocka counts as one test, and each test in it that was skipped as one more.
"""
import json
import re
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

MESON = {"OK": "passed", "EXPECTEDFAIL": "passed", "SKIP": "skipped"}


def meson(path):
    for line in path.read_text(encoding="utf-8").splitlines():
        test = json.loads(line)
        yield MESON.get(test["result"], "failed"), test["name"]
        # cmocka exits with 0 whatever was skipped. It names each such test twice: where it is, and at the end.
        said = test.get("stdout", "") + test.get("stderr", "")
        for name in sorted(set(re.findall(r"^\[  SKIPPED \] (?!\d+ test\(s\))(\S+)", said, re.M))):
            yield "skipped", f"{test['name']}: {name}"


def junit(path):
    cases = list(ElementTree.parse(path).iter("testcase"))
    if not cases:
        yield "failed", "no test ran"
    for case in cases:
        outcome = "passed"
        if case.find("failure") is not None or case.find("error") is not None:
            outcome = "failed"
        elif case.find("skipped") is not None:
            outcome = "skipped"
        yield outcome, f"{case.get('classname')}.{case.get('name')}"


def step(path):
    yield path.read_text(encoding="utf-8").strip(), path.stem


def main():
    readers = {".meson": meson, ".xml": junit, ".step": step}
    count = Counter()
    for path in sorted(Path(sys.argv[1]).iterdir()):
        for outcome, name in readers[path.suffix](path):
            count[outcome] += 1
            if outcome != "passed":
                print(f"{outcome}: {path.stem if name == path.stem else f'{path.stem}: {name}'}")
    print(f"{count['passed']} passed, {count['failed']} failed, {count['skipped']} skipped")
    return 1 if count["failed"] or not count["passed"] else 0


if __name__ == "__main__":
    sys.exit(main())
