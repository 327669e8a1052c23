"""Completions of shells, in the shells themselves: commands and options of rfctl, and the models that there are."""
import os
import shutil
import subprocess

import pytest
from harness import ROOT, TIMEOUT, build_folder, load

FOLDER = ROOT / "client" / "rfctl" / "completions"

BASH = """
. "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _rfctl
printf '%s\\n' "${COMPREPLY[@]}"
"""

# compadd prints what it would add, of that which begins as the word does.
ZSH = """
fpath=($1 $fpath); shift
words=("$@"); CURRENT=$#words
function compadd() {
    local -a all; local each
    if [[ $1 == -a ]]; then all=(${(P)2}); else all=("$@"); fi
    for each in $all; do [[ $each == ${words[CURRENT]}* ]] && print -r -- $each; done
    return 0
}
autoload -Uz _rfctl; _rfctl
"""


def bash(*words):
    return ["bash", "--norc", "-c", BASH, "bash", FOLDER / "rfctl.bash", *words]


def zsh(*words):
    return ["zsh", "-f", "-c", ZSH, "zsh", FOLDER, *words]


def fish(*words):
    return ["fish", "--no-config", "-c", f"source {FOLDER}/rfctl.fish; complete -C '{' '.join(words)}'"]


@pytest.fixture(params=[bash, zsh, fish], ids=["bash", "zsh", "fish"])
def complete(request, daemon):
    program = request.param.__name__
    if not shutil.which(program):
        pytest.skip(f"{program} is not installed")

    def run(*words):
        path = f"{build_folder()}/client/rfctl:{os.environ['PATH']}"
        # A search for leaks at the end of a program that zsh runs in a pipe never ends now and then.
        sanitizer = f"{os.environ.get('ASAN_OPTIONS', '')}:detect_leaks=0"
        done = subprocess.run(
            request.param(*words), capture_output=True, text=True, timeout=TIMEOUT, check=False,
            stdin=subprocess.DEVNULL,
            env={
                **os.environ, "PATH": path, "ROCMFORGE_SOCKET": str(daemon.socket), "HOME": str(daemon.folder),
                "ASAN_OPTIONS": sanitizer,
            },
        )
        assert done.stderr == ""
        return {line.split("\t")[0] for line in done.stdout.splitlines() if line}

    return run


def test_completions(complete, daemon, small_model):
    assert complete("rfctl", "show", "a") == set()
    with daemon.client() as client:
        load(client, small_model, "alpha")
        load(client, small_model, "beta:1", form="f32")
    assert complete("rfctl", "p") == {"plan", "ps", "pin", "ping"}
    assert complete("rfctl", "show", "a") == {"alpha"}
    assert complete("rfctl", "--json", "unload", "be") == {"beta:1"}
    assert complete("rfctl", "load", "--pr") == {"--private"}
    assert complete("rfctl", "load", "x", "--as", "f") == {"f32", "f16"}
    assert complete("rfctl", "load", "x", "--device", "ho") == {"host"}
