#!/usr/bin/env python3
"""Writes inputs for fuzz_dequant to begin with: some blocks of each type's vectors, into every form. Needs nothing but
Python.

    make_seeds.py FOLDER
"""
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TYPE = re.compile(r'^TYPE_(?:PLAIN|QUANTISED)_DEF\( *\d+, *\w+, *"(\w+)", .*?(\d+)\)', re.M)
FORMS = 3
BYTES = 1000


def blocks(name, size):
    """The first of the vectors and the last; any bytes for a type that has none."""
    path = ROOT / "tests/vectors" / f"{name}.q"
    data = path.read_bytes() if path.exists() else bytes(range(256)) * 64
    n = min(max(BYTES // size, 1), len(data) // size // 2)
    return data[:n // 2 * size] + data[-(n - n // 2) * size:]


def main(folder):
    folder.mkdir(parents=True, exist_ok=True)
    types = TYPE.findall((ROOT / "kernels/types.def").read_text())
    for index, (name, size) in enumerate(types):
        for form in range(FORMS):
            # Neither end aligned, and a different distance each time.
            header = bytes((index, form, 1 + index % 63, 1 + (index * FORMS + form) * 2 % 63))
            (folder / f"{name}-{form}").write_bytes(header + blocks(name, int(size)))
    print(f"{len(types) * FORMS} seeds in {folder}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
