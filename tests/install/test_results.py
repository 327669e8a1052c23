#!/usr/bin/env python3
"""What did not run is not counted as passed: by programs of unittest, and by what adds up a run of `./setup test`.

usage: test_results.py
"""
import json
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

LIB = Path(__file__).resolve().parents[1] / "lib"
sys.path.insert(0, str(LIB))
import exit_status

PROGRAM = """
import sys, unittest
sys.path.insert(0, {lib!r})
import exit_status
class Some(unittest.TestCase):
{tests}
exit_status.main()
"""
PASSES = "    def test_passes(self): pass"
FAILS = "    def test_fails(self): self.fail()"
SKIPS = "    def test_skips(self): self.skipTest('there is no moon')"

# As a program of cmocka ends.
CMOCKA = """[ RUN      ] one
[  SKIPPED ] one
[ RUN      ] two
[       OK ] two
[==========] 2 test(s) run.
[  PASSED  ] 1 test(s).
[  SKIPPED ] 1 test(s), listed below:
[  SKIPPED ] one

 1 SKIPPED TEST(S)
"""


class ExitStatus(unittest.TestCase):
    def run_program(self, *tests):
        program = PROGRAM.format(lib=str(LIB), tests="\n".join(tests) or "    pass")
        return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)

    def test_statuses(self):
        for tests, status in (
            ((PASSES,), 0),
            ((PASSES, SKIPS), exit_status.SKIPPED),
            ((SKIPS, FAILS), 1),
            ((PASSES, FAILS), 1),
            ((), 1),
        ):
            self.assertEqual(self.run_program(*tests).returncode, status, tests)

    def test_reasons(self):
        self.assertIn("test_skips: there is no moon", self.run_program(SKIPS).stdout)


class Tally(unittest.TestCase):
    def tally(self, *results):
        with tempfile.TemporaryDirectory() as folder:
            lines = "".join(json.dumps(result) + "\n" for result in results)
            Path(folder, "some.meson").write_text(lines, encoding="utf-8")
            command = [sys.executable, LIB / "tally.py", folder]
            return subprocess.run(command, capture_output=True, text=True, check=False)

    def test_programs(self):
        done = self.tally(
            {"name": "a", "result": "OK"}, {"name": "b", "result": "SKIP"}, {"name": "c", "result": "TIMEOUT"}
        )
        self.assertEqual((done.returncode, done.stdout.splitlines()[-1]), (1, "1 passed, 1 failed, 1 skipped"))

    def test_tests_that_cmocka_skipped(self):
        done = self.tally({"name": "a", "result": "OK", "stdout": "", "stderr": CMOCKA})
        self.assertEqual((done.returncode, done.stdout.splitlines()[-1]), (0, "1 passed, 0 failed, 1 skipped"))
        self.assertIn("skipped: some: a: one", done.stdout)


if __name__ == "__main__":
    exit_status.main()
