#!/usr/bin/env python3
"""Does what README.md says, on a small Debian 12 that has nothing installed: the demo, installing, the C programs, the
service, and to be rid of it all again.

usage: run.py FOLDER [--model FILE] [--source FOLDER] [TEST...]

FOLDER keeps the Debian and the packages for the next time. FILE: what the demo loads, so that nothing is fetched from
PyPI. --source: a copy of the project, instead of this one. Exits with 77, and says why, where there can be no such
machine.
"""
import argparse
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.dont_write_bytecode = True
import machine as machines
import readme

ROOT = Path(__file__).resolve().parents[2]
TREE = f"/home/{machines.USER}/rocmforge"
# What a small system has not, and what the README has to name, or to do without.
NOT_THERE = ["cc", "meson", "ninja", "pkg-config", "dpkg-architecture", "/bin/kill"]
# Where something could be left of what was installed.
SYSTEM = "/usr /etc /opt /srv /var/lib/systemd /run/rocmforge"
# What userdel leaves of files that it changed.
BACKUPS = [r"/etc/(passwd|group|shadow|gshadow|subuid|subgid)-$"]


class Failed(Exception):
    pass


class Person:
    """Who types: the user of a machine, in the project's folder."""

    def __init__(self, machine):
        self.machine = machine

    def types(self, line, folder=TREE, user=machines.USER, give=None):
        """What the line prints. It has to succeed."""
        began = time.monotonic()
        done = self.machine.run(line, user=user, folder=folder, give=give)
        print(f"  {'#' if user == 'root' else '$'} {line}  ({time.monotonic() - began:.1f} s)", flush=True)
        if done.returncode != 0:
            raise Failed(f"status {done.returncode} of: {line}\n{done.stdout[-6000:]}")
        return done.stdout

    def looks(self, line, **options):
        """The same, and nothing is said of it, whatever comes of it."""
        return self.machine.run(line, **options).stdout

    def files(self, *folders, but=()):
        """Every file and folder there is."""
        found = self.looks(f"find {' '.join(folders)} -xdev 2>/dev/null", user="root").splitlines()
        return {path for path in found if not any(re.match(pattern, path) for pattern in but)}


def check(condition, text):
    if not condition:
        raise Failed(text)


def check_same(before, after, what):
    check(after - before == set(), f"{what}: there is more: {sorted(after - before)[:20]}")
    check(before - after == set(), f"{what}: there is less: {sorted(before - after)[:20]}")


# With git what it knows and does not ignore; else, as in an unpacked archive, all but what was built.
LIST_SOURCE = r"""
if git -c 'safe.directory=*' rev-parse >/dev/null 2>&1; then
    git -c 'safe.directory=*' ls-files -z --cached --others --exclude-standard
else
    find . \( -path './build*' -o -name __pycache__ \) -prune -o -type f -printf '%P\0'
fi
"""


def copy_source(source, model, person):
    """As a clone has it, with what is not committed yet."""
    with tempfile.TemporaryFile() as archive:
        names = subprocess.run(
            ["sh", "-c", LIST_SOURCE], cwd=source, capture_output=True, check=True,
        ).stdout
        names = b"\0".join(name for name in names.split(b"\0") if name and (source / name.decode()).exists())
        subprocess.run(["tar", "-c", "--null", "-T", "-"], cwd=source, input=names, stdout=archive, check=True)
        archive.seek(0)
        person.machine.run(f"mkdir {TREE}")
        person.types("tar -x", give=archive.read())
    if model:
        person.machine.run("mkdir -p build/models", folder=TREE)
        person.types("cat >build/models/minilm.gguf", give=model.read_bytes())


def tree(person):
    """The project's files, but for what is meant to be made."""
    return person.files(TREE, but=[rf"{TREE}/build(/|$)", rf"{TREE}/(read_tensor|snippet)(\.c)?$"])


def check_bare(person):
    for program in NOT_THERE:
        check(not person.looks(f"command -v {program}").strip(), f"this is no bare machine: it has {program}")


def write_unit_override(person):
    """As the manual page of the daemon says, in an editor."""
    page = (ROOT / "docs" / "rocmforged.8.scd").read_text(encoding="utf-8")
    lines = re.search(r"# systemctl edit rocmforged.service\n(.*?\n)```", page, re.S)[1]
    check("--preload /srv/models" in lines, "the manual page has another example")
    person.types(
        "mkdir -p /etc/systemd/system/rocmforged.service.d /srv/models && "
        "cat >/etc/systemd/system/rocmforged.service.d/override.conf && systemctl daemon-reload",
        user="root", folder="/", give=lines.encode(),
    )


def test_install(person, arguments):
    """Installing, the service, C, and to be rid of it."""
    before_tree = tree(person)
    for line in readme.commands("Installing"):
        if "install" in line and "ninja" in line:
            before = person.files(SYSTEM, but=BACKUPS)
        person.types(line)
    check(person.types("rocmforged --version"), "users cannot run rocmforged")
    check(person.types("man -w rocmforged || ls /usr/share/man/man8/rocmforged.8*"), "there is no manual page")

    for line in readme.commands("As a service"):
        shown = person.types(line)
    check("ms" in shown or "s" in shown, f"rfctl ping printed: {shown}")
    person.types("systemctl is-active rocmforged.service", user="root")

    # Reloading, with a daemon that was told to preload.
    write_unit_override(person)
    person.types("systemctl restart rocmforged.service", user="root")
    person.types(f"cp {TREE}/build/models/minilm.gguf /srv/models/preloaded.gguf", user="root", folder="/")
    person.types("systemctl reload rocmforged", user="root")
    for _ in range(100):
        if "resident" in person.looks("rfctl ps"):
            break
        time.sleep(0.1)
    check("preloaded" in person.types("rfctl ps"), "nothing was loaded after a reload")

    person.types("rfctl load build/models/minilm.gguf --name demo")
    for line in readme.commands("From C"):
        shown = person.types(line)
    check("on host" in shown, f"read_tensor printed: {shown}")
    person.types("cat >snippet.c", give=readme.c_program().encode())
    person.types("cc snippet.c $(pkg-config --cflags --libs rocmforge) -o snippet")
    check(re.match(r"\d+ bytes of \w+ at 0x", person.types("./snippet")), "the C lines print something else")

    person.types("systemctl restart rocmforged.service", user="root")
    journal = person.looks("journalctl -u rocmforged.service -u rocmforged.socket -o cat", user="root")
    check("Started" in journal, f"systemd's own words are not in the journal:\n{journal}")
    check("modprobe" not in journal, f"the journal tells of NVIDIA where there is none:\n{journal}")
    check(not re.search(r"fail|error|unable|unknown", journal, re.I), f"the journal complains:\n{journal}")

    for line in readme.commands("As a service", 1):
        person.types(line)
    person.types("rm -r /etc/systemd/system/rocmforged.service.d /srv/models/preloaded.gguf; rmdir /srv/models",
                 user="root", folder="/")
    check_same(before, person.files(SYSTEM, but=BACKUPS), "uninstalling")
    check(not person.looks("getent passwd rocmforge; getent group rocmforge").strip(), "its user is there still")
    check_same(before_tree, tree(person), "the project's folder after installing")
    person.types("touch daemon/main.c && ninja -C build/release")


def test_demo(person, arguments):
    """The demo, as root and then as the user whom the folder belongs to."""
    before = tree(person)
    (line,) = [line for line in readme.commands_of_first_screen() if "demo" in line]
    for command in f"sudo {line}", line:
        shown = person.types(command)
        check("verified demo" in shown and "Done in" in shown, f"the demo printed:\n{shown[-3000:]}")
        check_same(before, tree(person), f"the project's folder after {command}")
    not_ours = person.looks(f"find {TREE} ! -user {machines.USER}", user="root").splitlines()
    check(not not_ours, f"what root's run made is not given back: {not_ours[:10]}")
    person.types("touch daemon/main.c && ninja -C build/demo")


TESTS = {"install": test_install, "demo": test_demo}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--source", type=Path, default=ROOT)
    parser.add_argument("tests", nargs="*", default=list(TESTS), metavar="TEST", help=" or ".join(TESTS))
    arguments = parser.parse_args()
    failed = 0
    began = time.monotonic()
    for name in arguments.tests:
        print(f"{name}: {TESTS[name].__doc__}", flush=True)
        try:
            with machines.Machine(arguments.folder) as machine:
                person = Person(machine)
                copy_source(arguments.source, arguments.model, person)
                check_bare(person)
                TESTS[name](person, arguments)
        except machines.CannotRun as error:
            print(f"skipped: {error}")
            return 1 if failed else 77
        except Failed as error:
            failed += 1
            print(f"{name} failed: {error}", flush=True)
    print(f"{len(arguments.tests) - failed} passed, {failed} failed in {time.monotonic() - began:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
