#!/usr/bin/env python3
"""Which ROCm a build takes: one whose compiler, headers and runtime belong together, or none.

usage: test_rocm.py
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


def run(*command):
    return subprocess.run(command, capture_output=True, text=True, check=False)


class Rocm(unittest.TestCase):
    def setUp(self):
        self.folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.folder)

    def make(self, name, headers, soname):
        """A ROCm with headers of one version and a runtime of another, or the same."""
        root, source = self.folder / name, self.folder / "headers"
        (source / "hip").mkdir(parents=True, exist_ok=True)
        (source / "hip" / "hip_version.h").write_text(
            f"#define HIP_VERSION_MAJOR {headers}\n#define HIP_VERSION_MINOR 1\n#define HIP_VERSION_PATCH 0\n"
        )
        (source / "hip" / "hip_runtime_api.h").write_text("hipError_t hipGetDeviceCount(int *count);\n")
        maker = ROOT / "tests" / "install" / "make_rocm.py"
        made = run(sys.executable, maker, source, root, "--soname", str(soname))
        self.assertEqual(made.returncode, 0, made.stderr)
        return root

    def find(self, root):
        return run(sys.executable, ROOT / "kernels" / "gpu" / "rocm.py", root)

    def test_one_rocm(self):
        root = self.make("good", 7, 7)
        found = self.find(root)
        self.assertEqual(found.returncode, 0, found.stderr)
        library = root / "lib" / "libamdhip64.so"
        expected = [root, root / "bin" / "hipcc", root / "include", library, 7, ""]
        self.assertEqual(found.stdout.splitlines(), [str(line) for line in expected])

    def test_device_libraries(self):
        root = self.make("archs", 7, 7)
        bitcode = root / "amdgcn" / "bitcode"
        bitcode.mkdir(parents=True)
        for version in ("90a", "1201", "700"):  # the last one is of no GPU that is asked for
            (bitcode / f"oclc_isa_version_{version}.bc").touch()
        self.assertEqual(self.find(root).stdout.splitlines()[5], "gfx90a gfx1201")

    def test_runtime_of_another_version(self):
        found = self.find(self.make("mixed", 7, 5))
        self.assertEqual(found.returncode, 2)
        self.assertIn("of HIP 7.1", found.stderr)
        self.assertIn("libamdhip64.so.5", found.stderr)

    def test_compiler_of_another_rocm(self):
        root, other = self.make("linked", 7, 7), self.make("other", 7, 7)
        hipcc = root / "bin" / "hipcc"
        hipcc.unlink()
        hipcc.symlink_to(other / "bin" / "hipcc")
        found = self.find(root)
        self.assertEqual(found.returncode, 1)
        self.assertIn("belongs to another ROCm", found.stderr)

    def test_compiler_that_is_a_script_for_another(self):
        root = self.make("script", 7, 7)
        for says, status in ((5, 2), (7, 0)):
            (root / "bin" / "hipcc").write_text(f"#!/bin/sh\necho 'HIP version: {says}.2.21153-0'\n")
            found = self.find(root)
            self.assertEqual(found.returncode, status, found.stderr)
            self.assertEqual("compiles for HIP 5" in found.stderr, says == 5)

    def test_root_that_is_a_link(self):
        link = self.folder / "rocm"
        link.symlink_to(self.make("rocm-7.1.0", 7, 7))
        self.assertEqual(self.find(link).returncode, 0)

    def test_parts_missing(self):
        for part in ("bin/hipcc", "include/hip/hip_version.h", "lib/libamdhip64.so"):
            root = self.make("missing", 7, 7)
            (root / part).unlink()
            found = self.find(root)
            self.assertEqual(found.returncode, 1)
            self.assertIn(part.split("/")[-1], found.stderr)

    def configure(self, *options):
        build = self.folder / "build"
        shutil.rmtree(build, ignore_errors=True)
        options = ["-Dtests=disabled", "-Dcuda=disabled", "-Dman=disabled", *options]
        return run("meson", "setup", build, ROOT, *options)

    def test_configuring(self):
        """A wrong mixture ends it, asked for or not; what was asked for and is not there, too."""
        if not shutil.which("meson"):
            self.skipTest("meson is not in PATH")
        mixed, nothing = self.make("mixed", 7, 5), self.folder / "nothing"
        for options, text in (
            ([f"-Drocm={mixed}"], "headers and runtime have to come from one ROCm"),
            ([f"-Drocm={nothing}", "-Dhip=enabled"], "has no bin/hipcc"),
        ):
            done = self.configure(*options)
            self.assertNotEqual(done.returncode, 0)
            self.assertIn(text, done.stdout)
        self.assertEqual(self.configure(f"-Drocm={mixed}", "-Dhip=disabled").returncode, 0)


if __name__ == "__main__":
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    exit_status.main()
