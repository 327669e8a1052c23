"""How a program of unittest tells meson that tests in it were skipped."""
import unittest

SKIPPED = 77  # what meson counts as skipped


def main():
    """Runs the tests of the program that calls it, and exits: 0, all ran and passed; 1, one failed; 77, none failed, but
    some were skipped, which are listed with their reasons."""
    program = unittest.main(exit=False)
    for test, reason in program.result.skipped:
        print(f"skipped: {test.id()}: {reason}")
    if not program.result.wasSuccessful() or program.result.testsRun == 0:
        raise SystemExit(1)
    raise SystemExit(SKIPPED if program.result.skipped else 0)
