"""Which part of the source knows which: by its includes, and by its symbols."""
import functools
import os
import re
import subprocess
from collections import defaultdict

import pytest
import harness
from harness import ROOT

pytestmark = pytest.mark.sources

INCLUDE = re.compile(r'^\s*#\s*include\s*(["<])([^">]+)[">]', re.MULTILINE)

# The daemon's folders, lowest first: each knows itself and those above it in this list. What is in none is the top.
LAYERS = ["base", "header", "gguf", "safetensors", "format", "device", "device/hip", "model", "wire", "session", "memory", "keep", "load", "api", ""]

# Folders that know less than their place would allow.
NARROW = {
    "hold": set(),  # a program of its own
    "header": {"header"},
    "gguf": {"header", "gguf"},
    "safetensors": {"header", "safetensors"},
    "format": {"header", "gguf", "safetensors", "format"},
    "device": {"base", "device"},
    "device/hip": {"base", "device", "device/hip"},
    "wire": {"base", "wire"},
}

# Files that know each other, and why.
CYCLES = {
    frozenset({"daemon/wire/call", "daemon/wire/conn", "daemon/wire/conn_state", "daemon/wire/conns"}):
        "a connection has one call, and the call is answered on it",
    frozenset({"daemon/load/answer", "daemon/load/begin", "daemon/load/creation", "daemon/load/doubt",
               "daemon/load/feed", "daemon/load/identify", "daemon/load/load", "daemon/load/loads",
               "daemon/load/naming", "daemon/load/reserve", "daemon/load/states"}):
        "one struct load, and each of these moves it on",
    frozenset({"daemon/model/lease", "daemon/model/model", "daemon/model/registry"}):
        "a model has leases and a lease has its model; the registry has both, and a lease ends in it",
}

CYCLES_OF_CLIENTS = {
    frozenset({"client/engines/llama/backend", "client/engines/llama/buffer", "client/engines/llama/gpu"}):
        "backend.h is the header of all three",
}

# Outside the daemon: a pattern of files, and one of what they may include of this project.
PATTERNS = [
    ("proto/*.[ch]", r"proto/.*|io\.rocmforge\.varlink\.inc"),
    ("kernels/*.[ch]", r"kernels/.*|.*\.inc"),
    ("daemon/hold/*.[ch]", r""),
    ("daemon/**/*.[ch]", r"(daemon|proto|kernels)/.*"),
    ("daemon/base/*.[ch]", r"(daemon/base|proto)/.*"),
    ("daemon/wire/*.[ch]", r"(daemon/(base|wire)|proto)/.*"),
    ("client/*.[ch]", r"client/(?!rfctl/).*|proto/.*|kernels/(types|hip|hip_here|hip_share)\.h"),
    ("client/rfctl/*.[ch]", r"client/rfctl/.*|client/(rocmforge|metadata|sealed)\.h|proto/(array|bytes|clock|descriptors|min|utf8|streams|shards|shards_given|module_path|write_all)\.h|daemon/(header/model_header|gguf/gguf|format/format)\.h"),
    ("client/engines/llama/*.[ch]", r"client/engines/llama/.*|client/rocmforge\.h|proto/(clock|model_file|shards)\.h"),
    ("client/rocmforge.h", r""),
]


def includes(path):
    """What a file includes of this project, in whichever way it is written."""
    found = INCLUDE.findall(path.read_text(encoding="utf-8"))
    return [name for mark, name in found if mark == '"' or (ROOT / name).is_file()]


def folder_of(file):
    return os.path.dirname(file.removeprefix("daemon/"))


@pytest.mark.parametrize("files, allowed", PATTERNS, ids=[files for files, _ in PATTERNS])
def test_includes(files, allowed):
    paths = sorted(ROOT.glob(files))
    assert paths
    for path in paths:
        for included in includes(path):
            assert re.fullmatch(allowed, included), f"{path.relative_to(ROOT)} includes {included}"


def may_know(folder, other):
    """The module for GPUs is opened at run time: nobody else knows it."""
    if other == "device/hip":
        return folder == other
    return other in NARROW[folder] if folder in NARROW else LAYERS.index(other) <= LAYERS.index(folder)


def test_every_folder_has_its_place():
    folders = {folder_of(str(path.relative_to(ROOT))) for path in (ROOT / "daemon").rglob("*.c")}
    assert folders == {*LAYERS, *NARROW}


def test_no_include_leads_upward():
    for path in (ROOT / "daemon").rglob("*.[ch]"):
        file = str(path.relative_to(ROOT))
        for included in includes(path):
            if included.startswith("daemon/"):
                assert may_know(folder_of(file), folder_of(included)), f"{file} includes {included}"


def objects(folder="daemon"):
    """The objects of a folder as they were compiled: source file → object."""
    build, found = harness.build_folder(), {}
    for path in (build / folder).rglob("*.o"):
        if path.name.endswith(".c.o"):
            name = path.name.removesuffix(".o")
            for candidate in (name, name.replace("_", "/")):
                source = os.path.normpath(path.parent.relative_to(build).parent / candidate)
                if (ROOT / source).is_file():
                    found[source] = path
    return found


@functools.cache
def symbols(folder):
    """source file → what its object defines for others, and what it needs. One call of nm for all of a folder."""
    found = objects(folder)
    table = {file: (set(), set()) for file in found}
    file_of = {str(path): file for file, path in found.items()}
    command = ["nm", "--print-file-name", *file_of]
    for line in subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines():
        path, _, rest = line.partition(":")
        kind, name = rest.split()[-2:]
        defined, needed = table[file_of[path]]
        if kind in "Uwv":
            needed.add(name)
        elif kind.isupper():
            defined.add(name)
    return table


@pytest.fixture(scope="module")
def calls():
    """source file → the other source files whose functions or data it uses."""
    found = objects()
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "daemon").rglob("*.c")}
    missing = {file for file in sources - set(found) if folder_of(file) != "device/hip"}  # which needs a compiler for GPUs
    assert not missing, f"not compiled, or not found: {missing}"
    table = {file: both for file, both in symbols("daemon").items() if file in sources}
    owner = {name: file for file, (defined, _) in table.items() for name in defined}
    return {file: {owner[name] for name in needed if name in owner} - {file} for file, (_, needed) in table.items()}


def test_no_symbol_leads_upward(calls):
    for file, others in calls.items():
        for other in others:
            assert may_know(folder_of(file), folder_of(other)), f"{file} uses what {other} defines"


def cycles(graph):
    """Strongly connected components of more than one node."""
    index, low, on_stack, stack, found = {}, {}, set(), [], []

    def visit(node):
        index[node] = low[node] = len(index)
        stack.append(node)
        on_stack.add(node)
        for other in graph.get(node, ()):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in on_stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            component = set()
            while node not in component:
                component.add(stack.pop())
            on_stack.difference_update(component)
            if len(component) > 1:
                found.append(frozenset(component))

    for node in list(graph):
        if node not in index:
            visit(node)
    return found


def file_graph(folder):
    """Which files of a folder know which, by symbols and by includes; a header and its source count as one."""
    name_of = lambda path: os.path.splitext(path)[0]
    sources = [str(path.relative_to(ROOT)) for path in sorted((ROOT / folder).rglob("*.[ch]"))]
    graph = defaultdict(set)
    for file in sources:
        graph[name_of(file)] |= {name_of(other) for other in includes(ROOT / file) if other in sources} - {name_of(file)}
    table = {file: both for file, both in symbols(folder).items() if file in sources}
    assert len(table) >= 6
    owner = {name: name_of(file) for file, (defined, _) in table.items() for name in defined}
    for file, (_, needed) in table.items():
        graph[name_of(file)] |= {owner[name] for name in needed if name in owner} - {name_of(file)}
    return graph


def test_no_cycle_between_files():
    assert set(cycles(file_graph("daemon"))) == set(CYCLES)


def test_no_cycle_between_files_below():
    assert cycles(file_graph("proto")) == []
    (known,) = cycles(file_graph("kernels"))
    # dequant.c chooses among the instruction sets, and each of them falls back on the reference.
    assert all(file.startswith("kernels/dequant") for file in known)


def test_includes_are_written_out():
    """A macro in their place would hide from these tests what is included."""
    for folder in ("daemon", "client", "proto", "kernels"):
        for path in (ROOT / folder).rglob("*.[ch]"):
            for line in path.read_text(encoding="utf-8").splitlines():
                found = re.match(r"\s*#\s*include\s+(\S)", line)
                assert not found or found[1] in '"<', f"{path}: {line}"


def test_no_cycle_between_files_of_clients():
    assert set(cycles(file_graph("client"))) == set(CYCLES_OF_CLIENTS)


def test_no_cycle_between_folders(calls):
    folders = defaultdict(set)
    for file, others in calls.items():
        folders[folder_of(file)] |= {folder_of(other) for other in others} - {folder_of(file)}
    assert cycles(folders) == []


def test_cycles_are_found():
    assert cycles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [frozenset({"b", "c"})]
    assert cycles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
