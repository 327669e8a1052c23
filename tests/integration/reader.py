#!/usr/bin/env python3
"""A process that attaches to a model through librocmforge and compares every tensor, where it lies in memory, with the
file as the gguf package decodes it.

    reader.py BUILD SOCKET NAME FILE

BUILD is the folder with the library. Prints {"bytes": N, "tensors": [...], "wrong": [...]}: the tensors as the library
tells of them, in its order, and a line for each that is not as the file has it.
"""
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))

import gguf  # noqa: E402
from decoded import expected  # noqa: E402
from librocmforge import Client  # noqa: E402


def faults(model, entry, tensor):
    """What is wrong with a tensor of the library, beside the same one of the file."""
    if entry.name != tensor.name:
        yield f"its name is {entry.name}"
    if entry.type.lower() != tensor.tensor_type.name.lower() or entry.type_id != tensor.tensor_type:
        yield f"its type is {entry.type} ({entry.type_id})"
    if entry.shape != [int(n) for n in reversed(tensor.shape)]:
        yield f"its shape is {entry.shape}"
    if entry.offset % 256 or entry.offset + entry.bytes > model.bytes or entry.data != model.data + entry.offset:
        yield f"it stands at {entry.offset}, {entry.data:#x}"
    found = model.find(tensor.name)
    if bytes(found) != bytes(entry):
        yield "it is another one when it is looked for by its name"
    want = expected(tensor, entry.form)
    if model.view(entry) != want:
        yield f"its bytes differ as {entry.form}"
    if model.read(entry) != want:
        yield f"its bytes differ as {entry.form} when they are copied"


def main():
    build, socket, name, path = sys.argv[1:]
    of_file = gguf.GGUFReader(path).tensors
    with Client(build, socket) as client, client.attach(name) as model:
        entries = list(model)
        wrong = [
            f"{tensor.name}: {fault}"
            for entry, tensor in zip(entries, of_file)
            for fault in faults(model, entry, tensor)
        ]
        if len(entries) != len(of_file):
            wrong.append(f"there are {len(entries)} tensors, and {len(of_file)} in the file")
        told = [
            {"name": e.name, "type": e.type, "form": e.form, "shape": e.shape, "offset": e.offset, "size": e.bytes}
            | ({"padding": e.padding} if e.padding else {})
            for e in entries
        ]
        print(json.dumps({"bytes": model.bytes, "tensors": told, "wrong": wrong}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
