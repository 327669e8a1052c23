"""Which part of the source knows which: what the headers promise of it, and what a linker would not mind."""
import re

import pytest
from harness import ROOT

INCLUDE = re.compile(r'^#include "([^"]+)"', re.MULTILINE)

# A pattern of files, and one of what they may include of this project.
LAYERS = [
    ("proto/*.[ch]", r"proto/.*|io\.rocmforge\.varlink\.inc"),
    ("kernels/*.[ch]", r"kernels/.*|.*\.inc"),
    ("daemon/*.[ch]", r"(daemon|proto|kernels)/.*"),
    ("daemon/gguf*.[ch]", r"daemon/(gguf|header_reader|name_set)\.h|proto/utf8\.h|kernels/types\.h"),
    ("daemon/header_reader.[ch]", r"daemon/(gguf|header_reader)\.h"),
    ("daemon/name_set.[ch]", r"daemon/name_set\.h"),
    ("client/*.[ch]", r"client/(?!rfctl/).*|proto/.*|kernels/(types|hip)\.h"),
    ("client/rfctl/*.[ch]", r"client/rfctl/.*|client/rocmforge\.h|proto/(utf8|streams)\.h|daemon/gguf\.h"),
    ("client/rocmforge.h", r""),
]


@pytest.mark.parametrize("files, allowed", LAYERS, ids=[files for files, _ in LAYERS])
def test_includes(files, allowed):
    paths = sorted(ROOT.glob(files))
    assert paths
    for path in paths:
        for included in INCLUDE.findall(path.read_text(encoding="utf-8")):
            assert re.fullmatch(allowed, included), f"{path.relative_to(ROOT)} includes {included}"
