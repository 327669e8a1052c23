#!/usr/bin/env python3
"""A process that attaches to a model through librocmforge and tells its tensors, with what stands behind each.

    tell_tensors.py BUILD SOCKET NAME

Prints {"bytes": N, "tensors": [...]}, each tensor with all that the library tells of it, its bytes in hexadecimal digits
("held"), and those from its end to the next one's beginning, or to the end of the model's memory ("behind").
"""
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))

from librocmforge import Client  # noqa: E402


def main():
    build, socket, name = sys.argv[1:]
    with Client(build, socket) as client, client.attach(name) as model:
        tensors = list(model)
        ends = [tensor.offset for tensor in tensors[1:]] + [model.bytes]
        told = []
        for tensor, end in zip(tensors, ends):
            begin = tensor.offset + tensor.bytes
            told.append(
                {
                    "name": tensor.name,
                    "type": tensor.type,
                    "type_id": tensor.type_id,
                    "form": tensor.form,
                    "shape": tensor.shape,
                    "offset": tensor.offset,
                    "bytes": tensor.bytes,
                    "padding": tensor.padding,
                    "held": model.read(tensor).hex(),
                    "behind": model.read_at(begin, end - begin).hex(),
                }
            )
        print(json.dumps({"bytes": model.bytes, "tensors": told}))


if __name__ == "__main__":
    main()
