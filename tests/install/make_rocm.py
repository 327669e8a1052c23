#!/usr/bin/env python3
"""Makes a ROCm to compile against where AMD's packages are not to be had: headers from a wheel of triton, a hipcc that
calls clang, and a runtime that has all functions and no device. With tests/fake_hip in the runtime's place the GPU
module is tested against these headers. It serves for nothing else: kernels are compiled, and run nowhere.

usage: make_rocm.py HEADERS OUT [--soname MAJOR]

HEADERS: a folder with hip/hip_runtime_api.h, or a wheel of triton. OUT: the root to make. --soname: what the runtime
claims to be; default: as the headers.
"""
import argparse
import glob
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

IN_WHEEL = "triton/backends/amd/include/"
NO_DEVICE = 100  # hipErrorNoDevice

# clang is the newest there is. Of its device libraries ROCm's headers need one function, which is the same for every
# architecture: where a piece of work stands in the grid.
HIPCC = """#!/bin/sh
for argument; do
    shift
    [ "$argument" = --genco ] && argument=--cuda-device-only
    set -- "$@" "$argument"
done
exec {clang} -x hip -c -nogpulib -Xclang -mlink-builtin-bitcode -Xclang {ockl} \\
    --rocm-path={root} -D__HIP_PLATFORM_AMD__ "$@"
"""


def copy_headers(source, include):
    if source.is_dir():
        shutil.copytree(source / "hip", include / "hip", dirs_exist_ok=True)
        return
    with zipfile.ZipFile(source) as wheel:
        for name in wheel.namelist():
            if name.startswith(IN_WHEEL + "hip/") and not name.endswith("/"):
                path = include / name.removeprefix(IN_WHEEL)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(wheel.read(name))


def versions(include):
    text = (include / "hip" / "hip_version.h").read_text(encoding="utf-8")
    return [re.search(rf"HIP_VERSION_{part} (\d+)", text)[1] for part in ("MAJOR", "MINOR", "PATCH")]


def make_runtime(root, major):
    """Every function that the headers declare. They say that there is no device, as the real ones do."""
    header = (root / "include" / "hip" / "hip_runtime_api.h").read_text(encoding="utf-8")
    names = set(re.findall(r"^hipError_t (hip\w+)\(", header, re.M))
    # Some have another name in the library since their structures changed: hipGetDevicePropertiesR0600.
    names |= set(re.findall(r"^#define hip\w+ (hip\w+R\d+)$", header, re.M))
    lines = [f"int {name}(void) {{ return {NO_DEVICE}; }}" for name in sorted(names)]
    lines.append('const char *hipGetErrorString(int e) { (void)e; return "no ROCm-capable device is detected"; }')
    lines.append('const char *hipGetErrorName(int e) { (void)e; return "hipErrorNoDevice"; }')
    source, library = root / "runtime.c", root / "lib" / f"libamdhip64.so.{major}"
    library.parent.mkdir(parents=True, exist_ok=True)
    source.write_text("\n".join(lines) + "\n", encoding="utf-8")
    command = ["cc", "-w", "-shared", "-fPIC", "-fno-builtin", f"-Wl,-soname,{library.name}", "-o", library, source]
    subprocess.run(command, check=True)
    source.unlink()
    link = library.with_name("libamdhip64.so")
    link.unlink(missing_ok=True)
    link.symlink_to(library.name)


def newest_clang():
    found = glob.glob("/usr/lib/llvm-*/bin/clang++")
    return max(found, key=lambda path: int(re.search(r"llvm-(\d+)", path)[1])) if found else "clang++"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("headers", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--soname", type=int)
    arguments = parser.parse_args()
    root = arguments.out.resolve()
    include = root / "include"
    copy_headers(arguments.headers, include)
    major, minor, patch = versions(include)
    make_runtime(root, arguments.soname or major)

    ockl = glob.glob("/usr/lib/*/amdgcn/bitcode/ockl.bc")
    hipcc = root / "bin" / "hipcc"
    hipcc.parent.mkdir(exist_ok=True)
    ockl = ockl[0] if ockl else "ockl.bc"
    hipcc.write_text(HIPCC.format(clang=newest_clang(), ockl=ockl, root=root), encoding="utf-8")
    os.chmod(hipcc, 0o755)
    # clang reads its version there.
    version = root / "share" / "hip" / "version"
    version.parent.mkdir(parents=True, exist_ok=True)
    version.write_text(f"HIP_VERSION_MAJOR={major}\nHIP_VERSION_MINOR={minor}\nHIP_VERSION_PATCH={patch}\n")
    print(f"HIP {major}.{minor}.{patch} in {root}")


if __name__ == "__main__":
    sys.exit(main())
