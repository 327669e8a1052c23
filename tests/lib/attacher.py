#!/usr/bin/env python3
"""A process that attaches to models through librocmforge, and does what it is told on standard input.

    attacher.py BUILD SOCKET

Commands, each answered by a line of JSON: `attach NAME`, `load PATH`, `reconnect SECONDS`, `leased`, `digests` of the
first tensor of each model where it lies in memory, `detach`: the last one, `status`: a call, `told`: of which models it
was told that they drain. A failure is {"error": ERRNO, "message": ...}.
"""
import hashlib
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))

from librocmforge import Client, Failure  # noqa: E402


def obey(client, models, told, command, argument):
    if command == "attach":
        models.append(client.attach(argument))
    elif command == "load":
        models.append(client.load_attach(argument))
    elif command == "reconnect":
        client.reconnect(float(argument))
    elif command == "status":
        client.call("Status")
    elif command == "told":
        return told
    elif command == "leased":
        return [model.leased for model in models]
    elif command == "digests":
        return [hashlib.sha256(model.view(next(iter(model)))).hexdigest() for model in models]
    elif command == "detach":
        with models.pop():
            pass
    return None


def main():
    models, told = [], []
    with Client(*sys.argv[1:]) as client:
        client.on_draining(told.append)
        for line in sys.stdin:
            command, _, argument = line.strip().partition(" ")
            try:
                answer = obey(client, models, told, command, argument)
            except Failure as failure:
                answer = {"error": failure.error, "message": str(failure)}
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
