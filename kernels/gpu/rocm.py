#!/usr/bin/env python3
"""Finds one ROCm: the compiler, the headers and the runtime that belong together.

usage: rocm.py [ROOT]

ROOT: the folder that holds bin/hipcc, include/hip and lib/libamdhip64.so. Default: /opt/rocm, where AMD's own packages
put it, else /usr, where Debian's do.

Prints six lines: the root; hipcc; the folder of the headers, empty where the compiler looks by itself; the runtime's
library; the major version of HIP; the architectures that the device libraries cover, of those that AMD ships GPUs for.
Exits with 1 if there is no such ROCm, and with 2 if its compiler, headers and runtime are not of one version.
"""
import glob
import os
import re
import subprocess
import sys

# Others of a generation run the code of one of these, or nobody computes on them.
KNOWN = """gfx900 gfx906 gfx908 gfx90a gfx942 gfx950 gfx1010 gfx1012 gfx1030 gfx1031 gfx1100 gfx1101 gfx1102 gfx1151
gfx1200 gfx1201""".split()
DEFAULT_ROOTS = ["/opt/rocm", "/usr"]
LIBRARY_PLACES = ["lib", "lib64", "lib/*-linux-gnu*"]
DEVICE_LIBRARY_PLACES = [
    "amdgcn/bitcode",
    "lib/llvm/lib/clang/*/lib/amdgcn/bitcode",
    "lib/*/amdgcn/bitcode",
    "lib/*/rocm/*/amdgcn/bitcode",
    "lib/llvm-*/lib/clang/*/amdgcn/bitcode",
    "lib/llvm-*/lib/clang/*/lib/amdgcn/bitcode",
]


class NotFound(Exception):
    pass


class Mismatch(Exception):
    pass


def first(root, places, what):
    """The first file of this kind in a ROCm."""
    for place in places:
        found = sorted(glob.glob(os.path.join(root, place)))
        if found:
            return found[0]
    raise NotFound(f"{root} has no {what}")


def is_system(root):
    """Whether compilers look for headers there without being told."""
    return os.path.realpath(root) == "/usr"


def find_compiler(root):
    """hipcc of this root. /usr/bin/hipcc may be a link to the one of a ROCm elsewhere, with other headers."""
    path = first(root, ["bin/hipcc"], "bin/hipcc")
    real_root = os.path.realpath(root)
    if os.path.commonpath([os.path.realpath(path), real_root]) != real_root:
        raise NotFound(f"{path} belongs to another ROCm: {os.path.realpath(path)}")
    return path


def header_version(header):
    with open(header, encoding="utf-8") as file:
        text = file.read()
    version = [re.search(rf"^#define HIP_VERSION_{part}\s+(\d+)", text, re.M) for part in ("MAJOR", "MINOR")]
    if None in version:
        raise NotFound(f"{header} does not say which version it is")
    return [int(part[1]) for part in version]


def compiler_version(hipcc):
    """What hipcc says of itself; None: nothing. It may be a script that calls the compiler of a ROCm elsewhere."""
    try:
        shown = subprocess.run([hipcc, "--version"], capture_output=True, text=True, check=False, timeout=60).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    version = re.search(r"HIP version:\s*(\d+)", shown)
    return int(version[1]) if version else None


def library_version(library):
    """The number at the end of the soname: programs that are linked with the library want that one."""
    shown = subprocess.run(["readelf", "-d", library], capture_output=True, text=True, check=False).stdout
    soname = re.search(r"\(SONAME\).*\[libamdhip64\.so\.(\d+)", shown)
    if not soname:
        raise NotFound(f"{library} has no soname with a version")
    return int(soname[1])


def architectures(root):
    own = os.environ.get("HIP_DEVICE_LIB_PATH")
    for place in ([own] if own else []) + [os.path.join(root, place) for place in DEVICE_LIBRARY_PLACES]:
        files = glob.glob(os.path.join(place, "oclc_isa_version_*.bc"))
        if files:
            found = {"gfx" + re.search(r"_version_(\w+)\.bc$", f)[1] for f in files}
            return [arch for arch in KNOWN if arch in found]
    return []


def describe(root):
    hipcc = find_compiler(root)
    first(root, ["include/hip/hip_runtime_api.h"], "include/hip/hip_runtime_api.h")
    header = first(root, ["include/hip/hip_version.h"], "include/hip/hip_version.h")
    library = first(root, [f"{place}/libamdhip64.so" for place in LIBRARY_PLACES], "libamdhip64.so in lib")
    headers, runtime = header_version(header), library_version(library)
    if headers[0] != runtime:
        raise Mismatch(
            f"{header} is of HIP {headers[0]}.{headers[1]}, but {library} is libamdhip64.so.{runtime}: "
            "headers and runtime have to come from one ROCm"
        )
    compiler = compiler_version(hipcc)
    if compiler not in (None, headers[0]):
        raise Mismatch(
            f"{hipcc} compiles for HIP {compiler}, but {header} is of HIP {headers[0]}.{headers[1]}: "
            "compiler, headers and runtime have to come from one ROCm"
        )
    include = "" if is_system(root) else os.path.join(root, "include")
    return [root, hipcc, include, library, str(headers[0]), " ".join(architectures(root))]


def main():
    reasons = []
    for root in sys.argv[1:2] or DEFAULT_ROOTS:
        try:
            print("\n".join(describe(os.path.abspath(root))))
            return 0
        except NotFound as error:
            reasons.append(str(error))
        except Mismatch as error:
            print(error, file=sys.stderr)
            return 2
    print("; ".join(reasons), file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
