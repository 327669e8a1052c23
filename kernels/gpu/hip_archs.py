#!/usr/bin/env python3
"""Prints the AMD architectures to build kernels for, one in each line: those that AMD sells GPUs for and that the
installed device libraries support. Prints nothing if there are no device libraries.

usage: hip_archs.py
"""
import glob
import os
import re

# Other architectures can run the code of one of these, or are not used for computing.
KNOWN = """gfx900 gfx906 gfx908 gfx90a gfx942 gfx950 gfx1010 gfx1012 gfx1030 gfx1031 gfx1100 gfx1101 gfx1102 gfx1151
gfx1200 gfx1201""".split()
PLACES = [
    os.environ.get("HIP_DEVICE_LIB_PATH", ""),
    "/usr/lib/*/amdgcn/bitcode",
    "/usr/lib/*/rocm/*/amdgcn/bitcode",
    "/usr/lib/llvm-*/lib/clang/*/amdgcn/bitcode",
    "/usr/lib/llvm-*/lib/clang/*/lib/amdgcn/bitcode",
    "/opt/rocm/amdgcn/bitcode",
    "/opt/rocm/lib/llvm/lib/clang/*/lib/amdgcn/bitcode",
]

for place in PLACES:
    files = place and glob.glob(os.path.join(place, "oclc_isa_version_*.bc"))
    if files:
        found = {"gfx" + re.search(r"_version_(\w+)\.bc$", f)[1] for f in files}
        print("\n".join(arch for arch in KNOWN if arch in found))
        break
