"""The first screen of the README shows what `./setup demo` prints."""
import os
import pwd
import re
import subprocess

import pytest
from harness import ROOT, TIMEOUT, build_folder

README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.sources
def test_setup_tells_what_it_can_do():
    """./setup without a command lists every command; what documents tell people to type is among them."""
    text = (ROOT / "setup").read_text(encoding="utf-8")
    there = set(re.findall(r"^    ([a-z-]+)\) cmd_", text, re.MULTILINE))
    done = subprocess.run([ROOT / "setup"], capture_output=True, text=True, check=False, timeout=TIMEOUT)
    assert done.returncode == 2
    assert set(re.findall(r"^\./setup ([a-z-]+)", done.stderr, re.MULTILINE)) == there and len(there) > 5
    for document in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        named = set(re.findall(r"\./setup ([a-z][a-z-]*)", document.read_text(encoding="utf-8")))
        assert named <= there, f"{document.name} names {named - there}"


def commands():
    """Each command of the README's first block of output, and what stands below it."""
    block = re.search(r"^The first prints.*?^```\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)[1]
    return re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE)


def without_measures(text):
    """Times, rates and addresses differ from run to run, and the spaces that line them up."""
    text = re.sub(r"[\d.]+ [kMG]?B/s", "RATE", text)
    text = re.sub(r"\b[\d.]+ ?m?s\b", "TIME", text)
    text = re.sub(r"\b0x[0-9a-f]+\b", "ADDRESS", text)
    return [line.split() for line in text.splitlines() if line.strip()]


def test_demo(daemon, real_model):
    if real_model.name != "minilm.gguf":
        pytest.skip("shows another model than this one")
    assert len(commands()) == 4
    for command, shown in commands():
        program, *arguments = command.split()
        program = build_folder() / program.removeprefix("build/demo/")
        arguments = [real_model if argument == "build/models/minilm.gguf" else argument for argument in arguments]
        printed = subprocess.run(
            [program, *arguments],
            env={**os.environ, "ROCMFORGE_SOCKET": str(daemon.socket)},
            check=True,
            stdout=subprocess.PIPE,
            text=True,
            timeout=TIMEOUT,
        ).stdout
        shown = shown.replace("alice", pwd.getpwuid(os.geteuid()).pw_name)
        assert without_measures(printed) == without_measures(shown)
