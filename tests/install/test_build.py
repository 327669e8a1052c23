#!/usr/bin/env python3
"""What a build makes and installs, and what it says where something is missing.

usage: test_build.py BUILD
"""
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "lib"))
import exit_status

BUILD = Path(sys.argv.pop(1)).resolve()


def introspection(name):
    return json.loads((BUILD / "meson-info" / f"intro-{name}.json").read_text(encoding="utf-8"))


def text(*path):
    return ROOT.joinpath(*path).read_text(encoding="utf-8")


def introspection_option(name):
    return next(option["value"] for option in introspection("buildoptions") if option["name"] == name)


class Built(unittest.TestCase):
    """This very build."""

    def test_programs_of_the_gpu_tests(self):
        """tests/gpu/run.sh builds what is built by default, and what it calls has to be among that."""
        built = {target["name"]: target["build_by_default"] for target in introspection("targets")}
        kinds = [kind for kind in ("hip", "cuda") if f"device-{kind}" in built]
        if not kinds or introspection_option("b_sanitize") != "none":
            self.skipTest("this build is not one to measure a GPU with")
        script = text("tests", "gpu", "run.sh")
        called = re.findall(r"\$build/tests/\w+/(\w+(?:\$kind)?)\"", script)
        called += re.findall(r"^ +run_test (\w+)$", script, re.M)
        called += re.findall(r"rglob\(f?\"([^\"]+)\"\)", text("tests", "bench", "bench_gpu.py"))
        called = {name for name in called if name != "$1"}
        self.assertGreater(len(called), 8)
        for name in called:
            for kind in kinds if "kind}" in name or "$kind" in name else kinds[:1]:
                name = re.sub(r"\$kind|\{[\w.]*kind\}", kind, name)
                self.assertTrue(built.get(name), f"{name} is not built by default")

    def test_places_of_modules(self):
        """Scripts that name the folder of the GPU modules name the one that they are built in."""
        places = {
            str(Path(path).parent.relative_to(BUILD))
            for target in introspection("targets")
            for path in target["filename"]
            if Path(path).name.startswith("device-")
        }
        if not places:
            self.skipTest("this build has no GPU module")
        named = re.findall(r"TEST_\w+=\$build/([\w/]+)/\w+-\$kind\.so", text("tests", "gpu", "run.sh"))
        named += re.findall(r"ROCMFORGE_MODULE_DIR=\$build/\w+/([\w/]+)", text("setup"))
        for folder in "bench", "engines", "gpu", "integration", "lib":
            for script in sorted((ROOT / "tests" / folder).glob("*.py")):
                for parts in re.findall(r"MODULE_DIR\W+.*?build\w*(?:\(\))?((?: / \"\w+\")+)", text(script)):
                    named.append("/".join(re.findall(r"\w+", parts)))
        self.assertGreater(len(named), 2)
        self.assertEqual(set(named), places)

    def test_users_find_the_daemon(self):
        """Users run it too, by its name: the folders for administrators' programs are not in their PATH."""
        programs = {Path(path).name for path in introspection("installed").values() if Path(path).parent.name == "bin"}
        self.assertLessEqual({"rocmforged", "rfctl"}, programs)

    def test_unit_needs_no_other_program(self):
        """What a unit runs is there: ours, or the shell, which every system has."""
        service = (BUILD / "systemd" / "rocmforged.service").read_text(encoding="utf-8")
        commands = re.findall(r"^Exec\w+=[-+@:!]*(\S+)(.*)$", service, re.M)
        self.assertGreaterEqual(len(commands), 3)
        for program, _ in commands:
            self.assertTrue(program == "/bin/sh" or program.endswith("/bin/rocmforged"), program)
        (before,) = re.findall(r"^ExecStartPre=[-+]*/bin/sh -c '(.*)'$", service, re.M)
        absent = before.replace("/usr/bin/nvidia-modprobe", "/nonexistent/nvidia-modprobe")
        self.assertNotEqual(absent, before)
        done = subprocess.run(["/bin/sh", "-c", absent], capture_output=True, text=True, check=False)
        self.assertEqual((done.returncode, done.stdout, done.stderr), (0, "", ""))


class Configured(unittest.TestCase):
    """Builds of their own, mostly configured only."""

    def setUp(self):
        if not shutil.which("meson") or not shutil.which("pkg-config"):
            self.skipTest("meson or pkg-config is not in PATH")
        self.folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.folder)
        self.build = self.folder / "build"

    def configure(self, *options, **environment):
        return subprocess.run(
            ["meson", "setup", self.build, ROOT, "-Dhip=disabled", "-Dcuda=disabled", "-Dman=disabled", *options],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, **environment},
        )

    def path_without(self, program):
        """A PATH with all programs but one."""
        folder = self.folder / "bin"
        folder.mkdir()
        for place in os.environ["PATH"].split(":"):
            for path in Path(place).iterdir() if Path(place).is_dir() else ():
                link = folder / path.name
                if path.name != program and not link.is_symlink():
                    link.symlink_to(path)
        return str(folder)

    def test_without_cmocka(self):
        """Tests are built where that is possible, and are an error only where they were asked for."""
        config = self.folder / "pkg-config"
        config.write_text(
            '#!/bin/sh\nfor a; do [ "$a" = cmocka ] && exit 1; done\n' f'exec {shutil.which("pkg-config")} "$@"\n'
        )
        config.chmod(0o755)
        without = {"PKG_CONFIG": str(config), "CMAKE": "/nonexistent/cmake"}
        done = self.configure(**without)
        self.assertEqual(done.returncode, 0, done.stdout)
        self.assertRegex(done.stdout, r"tests +: no \(cmocka\)")
        targets = json.loads((self.build / "meson-info" / "intro-targets.json").read_text(encoding="utf-8"))
        self.assertFalse([target["name"] for target in targets if target["name"].startswith("test_")])
        shutil.rmtree(self.build)
        self.assertNotEqual(self.configure("-Dtests=enabled", **without).returncode, 0)

    def test_without_dpkg_dev(self):
        """Where meson cannot know where Debian's loader looks, it is said what to do."""
        if not shutil.which("dpkg-architecture"):
            self.skipTest("this is no Debian with dpkg-dev")
        path = self.path_without("dpkg-architecture")
        done = self.configure("-Dtests=disabled", PATH=path)
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("install dpkg-dev, or say -Dlibdir=lib/", done.stdout)
        libdir = re.search(r"-Dlibdir=\S+", done.stdout)[0]
        self.assertEqual(self.configure("-Dtests=disabled", libdir, PATH=path).returncode, 0)

    def test_static_library(self):
        """It has all that a program needs from this project; pkg-config --static tells the rest."""
        done = self.configure("-Dtests=disabled", "-Ddefault_library=static", "--prefix=/usr")
        self.assertEqual(done.returncode, 0, done.stdout)
        place = self.folder / "place"
        for command in (
            ["ninja", "-C", self.build, "-j2", "client/librocmforge.a"],
            ["meson", "install", "-C", self.build, "--no-rebuild", "--tags=devel", f"--destdir={place}"],
        ):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertFalse(list(place.rglob("*.so*")))
        (config,) = place.rglob("rocmforge.pc")
        flags = subprocess.run(
            ["pkg-config", "--static", "--cflags", "--libs", "rocmforge"],
            env={**os.environ, "PKG_CONFIG_PATH": str(config.parent), "PKG_CONFIG_SYSROOT_DIR": str(place)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        program = self.folder / "read_tensor"
        source = ROOT / "docs" / "examples" / "read_tensor.c"
        done = subprocess.run(["cc", source, *flags, "-o", program], capture_output=True, text=True, check=False)
        self.assertEqual(done.returncode, 0, done.stderr)
        needed = subprocess.run(["readelf", "-d", program], capture_output=True, text=True, check=True).stdout
        self.assertNotIn("librocmforge", needed)
        socket = str(self.folder / "no-socket")
        environment = {"ROCMFORGE_SOCKET": socket}
        done = subprocess.run([program, "m"], env=environment, capture_output=True, text=True, check=False)
        self.assertEqual(done.returncode, 1)
        self.assertIn(socket, done.stderr)

    def command(self, *command, **environment):
        """What a command printed that ended well."""
        words = [str(word) for word in command]
        env = {**os.environ, **environment}
        done = subprocess.run(words, capture_output=True, text=True, check=False, env=env)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        return done.stdout

    def test_plugin_for_llama_cpp(self):
        """It is installed where docs/llama.cpp.md says, loads there, and the installed rfctl gives it to an engine."""
        prefix = self.folder / "prefix"
        self.command("meson", "setup", self.build, ROOT, "-Dhip=disabled", "-Dcuda=disabled", "-Dman=disabled",
                     "-Dtests=disabled", "-Dggml=enabled", f"--prefix={prefix}")
        self.command("ninja", "-C", self.build, "-j2")
        self.command("meson", "install", "-C", self.build, "--no-rebuild")
        (config,) = prefix.rglob("rocmforge.pc")
        library_folder = self.command("pkg-config", "--variable=libdir", "rocmforge", PKG_CONFIG_PATH=str(config.parent)).strip()
        plugin = Path(library_folder) / "rocmforge" / "libggml-rocmforge.so"
        documented = re.search(r"GGML_BACKEND_PATH=/usr/lib/x86_64-linux-gnu(/\S+)", text("docs", "llama.cpp.md"))[1]
        self.assertEqual(library_folder + documented, str(plugin))
        self.command(sys.executable, "-c", "import ctypes, sys; ctypes.CDLL(sys.argv[1]).ggml_backend_init", plugin)

        engine, model = self.folder / "llama-server", self.folder / "model.gguf"
        engine.write_text("#!/bin/sh\necho \"$GGML_BACKEND_PATH\"\n")
        engine.chmod(0o755)
        sys.path.insert(0, str(ROOT / "tests" / "lib"))
        import make_llama

        make_llama.make(model)
        environment = {"ROCMFORGE_SOCKET": str(self.folder / "socket"), "LD_LIBRARY_PATH": library_folder}
        self.assertNotIn("ROCMFORGE_MODULE_DIR", os.environ)
        daemon = subprocess.Popen(
            [prefix / "bin" / "rocmforged", "--device", "host", "--socket", environment["ROCMFORGE_SOCKET"]],
            stderr=subprocess.DEVNULL,
        )
        try:
            end = time.monotonic() + 60
            while not os.path.exists(environment["ROCMFORGE_SOCKET"]) and time.monotonic() < end:
                time.sleep(0.05)
            rfctl = prefix / "bin" / "rfctl"
            self.assertEqual(self.command(rfctl, "run", engine, "-m", model, **environment), f"{plugin}\n")
            plugin.unlink()
            done = subprocess.run(
                [rfctl, "run", engine, "-m", model], env={**os.environ, **environment}, capture_output=True, text=True, check=False
            )
            self.assertEqual(done.returncode, 1)
            self.assertIn("there is no libggml-rocmforge.so among the modules: it was not installed", done.stderr)
        finally:
            daemon.terminate()
            daemon.wait()

    def test_without_the_plugin(self):
        """-Dggml=disabled: nothing of it is built, and everything else is."""
        done = self.configure("-Dggml=disabled")
        self.assertEqual(done.returncode, 0, done.stdout)
        self.assertRegex(done.stdout, r"plug-in for llama.cpp *: no")
        targets = json.loads((self.build / "meson-info" / "intro-targets.json").read_text(encoding="utf-8"))
        names = [target["name"] for target in targets]
        self.assertFalse([name for name in names if "ggml" in name or "stub_host" in name or "fake_gpu_api" in name])
        self.command("ninja", "-C", self.build, "-j2", "daemon/rocmforged", "client/rfctl/rfctl")


if __name__ == "__main__":
    exit_status.main()
