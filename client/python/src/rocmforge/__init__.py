"""A client of rocmforged: gives access to the weights of resident models without copying them.

    import rocmforge

    with rocmforge.connect() as rf:
        rf.load("m.gguf", name="m")
        with rf.attach("m") as m:
            m.numpy("output_norm.weight")          # read-only, nothing is copied
            m.get_tensor("output.weight", "pt")    # torch, on the device where the model is

`rocmforge.aio` is the same client for asyncio. `rocmforge.transformers` makes models of transformers.
"""

from ._calls import LoadAttachOptions, LoadOptions, PlanOptions
from ._metadata import MetadataUnavailable
from .client import Client, attach, connect, load, load_attach
from .errors import (
    Cancelled, Closed, ConnectionLost, DeadlineExceeded, DeviceError, DeviceNotFound, Error, ExpectedMore, FileChanged,
    FileError, InterfaceNotFound, InUse, InvalidLayout, InvalidMessage, InvalidModel, InvalidParameter, LeaseNotFound,
    LibraryError, LibraryNotFound, LimitExceeded, MethodNotFound, MethodNotImplemented, ModelBusy, ModelNotFound, NameInUse, NoDaemon,
    OutOfDeviceMemory, PermissionDenied, ProtocolError, ShuttingDown, UnsupportedDtype, UnsupportedType, WireError,
)  # fmt: skip
from .model import Model
from .replies import Group, Tp
from .tensor import Tensor

__version__ = "0.1.0"

__all__ = [
    "Cancelled", "Client", "Closed", "ConnectionLost", "DeadlineExceeded", "DeviceError", "DeviceNotFound", "Error",
    "ExpectedMore", "FileChanged", "FileError", "Group", "InUse", "InterfaceNotFound", "InvalidLayout", "InvalidMessage",
    "InvalidModel", "InvalidParameter", "LeaseNotFound", "LibraryError", "LibraryNotFound", "LimitExceeded", "LoadAttachOptions",
    "LoadOptions", "MetadataUnavailable", "MethodNotFound", "MethodNotImplemented", "Model", "ModelBusy",
    "ModelNotFound", "NameInUse", "NoDaemon", "OutOfDeviceMemory", "PermissionDenied", "PlanOptions", "ProtocolError",
    "ShuttingDown", "Tensor", "Tp", "UnsupportedDtype", "UnsupportedType", "WireError", "attach", "connect", "load", "load_attach",
]  # fmt: skip
