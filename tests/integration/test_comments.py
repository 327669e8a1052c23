"""Functions that comments name: they exist."""
import ctypes
import re

import pytest
from harness import ROOT

pytestmark = pytest.mark.sources

FOLDERS = ("client", "daemon", "docs", "kernels", "proto", "tests")
# Strings first, so that what looks like a comment in one is none.
COMMENT_OR_STRING = re.compile(r'"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'|/\*.*?\*/|//[^\n]*', re.DOTALL)
# Functions of a library that need not be installed where the tests run, so they cannot be looked up.
FOREIGN = ("ggml_",)
LIBRARIES = [ctypes.CDLL(name) for name in (None, "libuv.so.1")]


def test_functions_that_comments_name():
    paths = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.suffix in (".c", ".cpp", ".h", ".hip")]
    assert len(paths) > 100
    known, named = set(), []
    for path in paths:
        text = path.read_text(encoding="utf-8")
        known.update(re.findall(r"[A-Za-z_]\w*", COMMENT_OR_STRING.sub(" ", text)))
        for comment in COMMENT_OR_STRING.findall(text):
            if comment.startswith("/"):
                named += [(path, name) for name in re.findall(r"([A-Za-z_]\w*)\(\)", comment)]
    assert len(named) > 100
    missing = {
        f"{path.relative_to(ROOT)}: {name}()"
        for path, name in named
        if name not in known and not name.startswith(FOREIGN) and not any(hasattr(library, name) for library in LIBRARIES)
    }
    assert not missing


def paths_of_contributing():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    folders = "|".join((*FOLDERS, "systemd"))
    return sorted(set(re.findall(rf"`((?:{folders})/[\w./-]+)`", text)))


@pytest.mark.parametrize("path", paths_of_contributing())
def test_what_contributing_names(path):
    """Whoever adds something looks for it there."""
    assert (ROOT / path).exists()


def test_contributing_names_where_kinds_stand():
    """Every file of the daemon and of clients whose code tells kinds of GPUs apart is on the list."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    comments = re.compile(r'/\*.*?\*/|""".*?"""|^ *#(?! *define)[^\n]*', re.DOTALL | re.MULTILINE)
    kinds = re.compile(r'"(?:libggml-)?(?:cuda|hip|CUDA|ROCm)(?:\.so)?"')
    paths = [path for folder in ("client", "daemon", "kernels") for path in (ROOT / folder).rglob("*.*")
             if path.suffix in (".c", ".h", ".py") and "examples" not in path.parts]
    found = {path for path in paths if kinds.search(comments.sub("", path.read_text(encoding="utf-8")))}
    found = {str(path.relative_to(ROOT)) for path in found}
    assert "daemon/device/devices.c" in found
    assert [path for path in sorted(found) if f"`{path}`" not in text] == []
