"""Writes kernels/tables.h from the CSV files in kernels/tables/.

usage: tables.py OUTPUT CSV...

The first line of each CSV names width and radix (uint64_hex, uint32_hex, uint8_hex, int8_dec). Then each line has one
entry.
"""

import pathlib
import sys

HEAD = """/* Made by kernels/tables.py from kernels/tables/; do not edit.
 *
 * BLOCK_TABLE says where a table is: `static const` in C; in HIP and CUDA in device memory, which is read through the
 * usual caches. (Constant memory would be slow: the threads of a warp read different entries, one after another.) */
#pragma once

#include <stdint.h>

#if defined(__CUDACC__) || defined(__HIPCC__)
#define BLOCK_TABLE static __device__ const
#else
#define BLOCK_TABLE __attribute__((unused)) static const
#endif
"""


def table(path):
    kind, *entries = path.read_text().split()
    width, radix = kind.split("_")
    if radix == "hex":
        digits = int(width.removeprefix("uint")) // 4
        if any(len(e) != digits for e in entries):
            raise SystemExit(f"{path}: an entry is not {digits} digits long")
        values = ["0x" + e + ("ULL" if digits == 16 else "") for e in entries]
    elif radix == "dec":
        values = [str(int(e)) for e in entries]
    else:
        raise SystemExit(f"{path}: unknown radix in {kind!r}")
    per_line = {"uint64": 4, "uint32": 8}.get(width, 16)
    lines = [", ".join(values[i : i + per_line]) for i in range(0, len(values), per_line)]
    body = ",\n    ".join(lines)
    return f"\nBLOCK_TABLE {width}_t {path.stem}[{len(values)}] = {{\n    {body},\n}};\n"


def main(output, *sources):
    tables = [table(pathlib.Path(s)) for s in sources]
    pathlib.Path(output).write_text(HEAD + "".join(tables))


if __name__ == "__main__":
    main(*sys.argv[1:])
