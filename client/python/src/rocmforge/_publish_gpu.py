"""Publishing on a GPU: PyTorch copies, into memory that librocmforge has mapped."""

from __future__ import annotations

import ctypes
import json
import os
from ctypes import byref, c_void_p
from typing import TYPE_CHECKING, Any, Dict, List, Mapping

from . import _devices, _library
from ._varlink import Connection
from .errors import DeviceNotFound

if TYPE_CHECKING:
    from ._publish import Creation
    from ._publish_layout import Piece

_STEP = 64 << 20  # bytes that go through the host at once


class Mapped:
    """A creation's memory in this process. On a GPU the address is a device pointer."""

    def __init__(self, socket: str, reply: Mapping[str, Any], fd: int) -> None:
        self._lib = lib = _library.library()
        self._client, self._creation = c_void_p(), c_void_p()
        result = lib.rf_connect(os.fsencode(socket), byref(self._client))
        if result < 0:
            raise _library.failure(None, result)
        text = json.dumps(reply).encode()
        result = lib.rf_creation_of(self._client, text, fd, byref(self._creation))
        if result < 0:
            error = _library.failure(self._client, result)
            self.close()
            raise error
        self.address = int(lib.rf_creation_data(self._creation))
        device = reply["device"]
        self.kind = str(device["kind"])
        self.torch_device = f"cuda:{_devices.ordinal(self.kind, device.get('pci'), self.address)}"

    def close(self) -> None:
        client, creation = self._client, self._creation
        self._client, self._creation = c_void_p(), c_void_p()
        if creation:
            self._lib.rf_creation_forget(creation)
        if client:
            self._lib.rf_close(client)


class _Raw:
    """Bytes of a GPU for torch.as_tensor(), which takes a view of them."""

    def __init__(self, address: int, nbytes: int, owner: Any) -> None:
        self.owner = owner
        self.__cuda_array_interface__: Dict[str, Any] = {
            "version": 3, "shape": (nbytes,), "typestr": "|u1", "data": (address, False), "strides": None,
            "stream": None,
        }  # fmt: skip


def bytes_of(device: str, address: int, nbytes: int, owner: Any) -> Any:
    """A tensor of bytes at an address, wherever that is."""
    import torch

    if device == "cpu":
        return torch.frombuffer((ctypes.c_ubyte * nbytes).from_address(address), dtype=torch.uint8)
    return torch.as_tensor(_Raw(address, nbytes, owner), device=device)


def write(creation: Creation, piece: Piece) -> None:
    """Copies bytes from or to a GPU, or both."""
    if not piece.nbytes:
        return
    source = bytes_of(piece.device, piece.address, piece.nbytes, piece.owners)
    if creation._device["kind"] == "host":
        for at in range(0, piece.nbytes, _STEP):
            part = source[at : at + _STEP].cpu()
            creation._write_bytes(memoryview(part.numpy()).cast("B"), piece.offset + at)
        return
    mapping = creation._gpu()
    target = bytes_of(mapping.torch_device, mapping.address + piece.offset, piece.nbytes, mapping)
    target.copy_(source)


def wait(device: str) -> None:
    """Waits until the GPU has done all that it was told."""
    import torch

    torch.cuda.synchronize(device)


def finish(mapping: Mapped) -> None:
    """Waits until the GPU has written all."""
    wait(mapping.torch_device)


def place(socket: str, device: str) -> str:
    """The daemon's name of the GPU that torch calls so. DeviceNotFound."""
    import torch

    connection = Connection(socket)
    try:
        devices: List[Dict[str, Any]] = connection.call("Devices")["devices"]
    finally:
        connection.close()
    uuid = getattr(torch.cuda.get_device_properties(torch.device(device)), "uuid", None)
    kind = "hip" if torch.version.hip else "cuda"
    same = [d for d in devices if d["kind"] == kind]
    found = [d for d in same if uuid is not None and _plain(str(d.get("uuid"))) == _plain(str(uuid))]
    if not found and len(same) == 1 and uuid is None:
        found = same
    if not found:
        raise DeviceNotFound("io.rocmforge.DeviceNotFound", {"device": device, "reason": "the daemon does not have it"})
    return str(found[0]["id"])


def _plain(uuid: str) -> str:
    return uuid.lower().replace("gpu-", "").replace("-", "")

