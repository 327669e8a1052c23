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
from ._leases import keep_leases
from ._metadata import MetadataUnavailable
from ._publish import CreateOptions, Creation, PublishOptions
from .client import Client, attach, connect, load, load_attach, publish
from .errors import (
    AmbiguousFiles, Cancelled, Closed, ConnectionLost, CreationNotFound, DeadlineExceeded, DeviceError, DeviceNotFound,
    Error, ExpectedMore, FileChanged, FileError, IncompleteFiles, InterfaceNotFound, InUse, InvalidLayout, InvalidManifest,
    InvalidMessage, InvalidModel, InvalidParameter, LeaseNotFound, LibraryError, LibraryNotFound, LimitExceeded,
    MethodNotFound, MethodNotImplemented, ModelBusy, ModelNotFound, NameInUse, NoDaemon, NoFile, OutOfDeviceMemory,
    PermissionDenied, ProtocolError, ShuttingDown, StillWritable, UnsupportedDtype, UnsupportedType, WireError,
)  # fmt: skip
from .model import Model
from .replies import Group, NewTensor, Published, Tp
from .tensor import Tensor

__version__ = "0.1.0"

__all__ = [
    "AmbiguousFiles", "Cancelled", "Client", "Closed", "ConnectionLost", "CreateOptions", "Creation",
    "CreationNotFound", "DeadlineExceeded", "DeviceError", "DeviceNotFound", "Error", "ExpectedMore", "FileChanged",
    "FileError", "Group", "InUse", "IncompleteFiles", "InterfaceNotFound", "InvalidLayout", "InvalidManifest", "InvalidMessage",
    "InvalidModel", "InvalidParameter", "LeaseNotFound", "LibraryError", "LibraryNotFound", "LimitExceeded",
    "LoadAttachOptions", "LoadOptions", "MetadataUnavailable", "MethodNotFound", "MethodNotImplemented", "Model",
    "ModelBusy", "ModelNotFound", "NameInUse", "NewTensor", "NoDaemon", "NoFile", "OutOfDeviceMemory",
    "PermissionDenied", "PlanOptions", "ProtocolError", "PublishOptions", "Published", "ShuttingDown", "StillWritable",
    "Tensor", "Tp", "UnsupportedDtype", "UnsupportedType", "WireError", "attach", "connect", "keep_leases", "load",
    "load_attach", "publish",
]  # fmt: skip
