#!/usr/bin/env python3
"""A process that attaches to a model through librocmforge and tells the metadata of its file.

    tell_metadata.py BUILD SOCKET NAME

Prints {"header": ..., "metadata": {key: value}}: the header in hexadecimal digits, texts as Latin-1.
"""
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))

from librocmforge import Client  # noqa: E402


def plain(value):
    if isinstance(value, bytes):
        return value.decode("latin-1")
    return [plain(element) for element in value] if isinstance(value, list) else value


def main():
    build, socket, name = sys.argv[1:]
    with Client(build, socket) as client, client.attach(name) as model:
        told = {key.decode(): plain(value) for key, value in model.metadata().items()}
        print(json.dumps({"header": model.header().hex(), "metadata": told}))


if __name__ == "__main__":
    main()
