"""Publishes through librocmforge, as a process of its own: publisher.py BUILD SOCKET DEVICE NAME KEY

Prints "made" when the model is published, or "adopted" if there was one, and the bytes of its tensors as they are then.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))
from librocmforge import Client, Creation, Failure  # noqa: E402

TENSORS = [
    ("a", "f32", [4, 8]),
    ("tied", "f32", [8, 4], [1, 8], 0),
    ("b", "u8", [1 << 20]),
]


def main(build, socket, device, name, key):
    with Client(build, socket) as client:
        made = client.create(name, TENSORS, device=device.encode(), key=key.encode())
        if isinstance(made, Creation):
            assert made.bytes >= (1 << 20) + 128 and [made.offset(i) for i in range(3)] == [256, 0, 512]
            for place in (made.offset(0), made.offset(2) + (1 << 20) - 128):
                made.write(place, bytes(range(128)))
            try:
                made.offset(3)
            except Failure:
                pass
            model = made.publish('{"m": 1}', pin=True)
            print("made")
        else:
            model = made
            print("adopted")
        with model:
            for tensor in model:
                print(tensor.name, tensor.shape, tensor.strides, tensor.flags, model.read(tensor)[:128].hex())
            print(sorted(model.metadata().items()))


main(*sys.argv[1:])
