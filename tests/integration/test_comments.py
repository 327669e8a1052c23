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
