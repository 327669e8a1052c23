#!/usr/bin/env python3
"""A process that attaches to a model and compares each tensor with the file, as the gguf package decodes it.

    reader.py SOCKET NAME FILE

Prints {"tensors": N, "compared": N, "mismatches": [...]}.
"""
import json
import mmap
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))

from rocmforge_wire import Client  # noqa: E402

import gguf  # noqa: E402

TYPES = gguf.GGMLQuantizationType
PLAIN_FORMS = {"f32": TYPES.F32, "f16": TYPES.F16, "bf16": TYPES.BF16}


def to_bf16(values):
    """Round to nearest even on the upper half of the bits. None of the values is a NaN."""
    bits = values.view(np.uint32)
    return ((bits + (((bits >> 16) & 1) + 0x7FFF)) >> 16).astype(np.uint16)


def expected(tensor, form):
    """The bytes that a tensor of the file has to have in a form."""
    if form == "native" or PLAIN_FORMS[form] == tensor.tensor_type:
        return tensor.data.tobytes()
    values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
    assert not np.isnan(values).any()
    if form == "f32":
        return values.tobytes()
    with np.errstate(over="ignore"):
        return (values.astype(np.float16) if form == "f16" else to_bf16(values)).tobytes()


def auto_form(tensor_type):
    if tensor_type in PLAIN_FORMS.values():
        return tensor_type.name.lower()
    return "f16"


def main():
    socket, name, path = sys.argv[1:]
    mismatches, compared = [], 0
    with Client(socket) as client:
        reply = client.call("Attach", name=name)
        asked = reply["model"]["form"]
        arena = mmap.mmap(client.fds[reply["fd"]], reply["model"]["bytes"], mmap.MAP_SHARED, mmap.PROT_READ)
        resident = {tensor["name"]: tensor for tensor in reply["tensors"]}
        tensors = gguf.GGUFReader(path).tensors
        for tensor in tensors:
            entry = resident[tensor.name]
            want_form = auto_form(tensor.tensor_type) if asked == "auto" else asked
            if asked == "native" and tensor.tensor_type in PLAIN_FORMS.values():
                want_form = tensor.tensor_type.name.lower()  # the same bytes by either name
            shape = [int(n) for n in reversed(tensor.shape)]
            data = arena[entry["offset"] : entry["offset"] + entry["size"]]
            good = (
                entry["form"] in (want_form, asked)
                and entry["type"].lower() == tensor.tensor_type.name.lower()
                and entry["shape"] == shape
                and entry["offset"] % 256 == 0
                and data == expected(tensor, entry["form"])
            )
            compared += 1
            if not good:
                mismatches.append(entry)
        client.call("Detach", lease=reply["lease"])
    print(json.dumps({"tensors": len(resident), "compared": compared, "mismatches": mismatches}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
