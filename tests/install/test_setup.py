#!/usr/bin/env python3
"""What ./setup leaves behind where root ran it in somebody else's folder.

usage: test_setup.py
"""
import os
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "lib"))
import exit_status

OWNER = 12345


class Setup(unittest.TestCase):
    def test_root_gives_the_build_to_whom_the_folder_belongs(self):
        if os.geteuid() != 0:
            self.skipTest("needs root")
        with tempfile.TemporaryDirectory() as folder:
            folder = Path(folder)
            shutil.copy(ROOT / "setup", folder)
            shutil.copytree(ROOT / "tests" / "setup", folder / "tests" / "setup")
            os.chown(folder, OWNER, OWNER)
            made = folder / "build" / "demo" / "made"
            made.parent.mkdir(parents=True)
            made.touch()
            done = subprocess.run([folder / "setup"], cwd="/", capture_output=True, text=True, check=False, timeout=60)
            self.assertEqual(done.returncode, 2, done.stderr)
            self.assertIn("./setup demo [FILE]", done.stderr)
            for path in (folder / "build", made.parent, made):
                self.assertEqual((path.stat().st_uid, path.stat().st_gid), (OWNER, OWNER), path)
            self.assertEqual((folder / "setup").stat().st_uid, 0)


if __name__ == "__main__":
    exit_status.main()
