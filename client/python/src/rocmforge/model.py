"""An attached model: its tensors by name, in memory that is shared."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Dict, Iterator, List, Mapping, NoReturn, Optional, Type

from . import _metadata
from ._memory import Attachment, Entry
from .errors import Closed, InUse, NoDaemon
from .replies import ModelInfo, Published, TensorInfo
from .tensor import Tensor

if TYPE_CHECKING:
    from types import TracebackType

    import numpy as _np
    import torch as _torch

# Between two tries to reach a daemon.
_RETRY_SECONDS = 0.01


class Model(Mapping[str, Tensor]):
    """A model that this process is attached to: a mapping of names to Tensors, and a context manager.

        with rocmforge.attach("llama") as model:
            model["output.weight"].numpy()

    The daemon keeps the memory at least until the model is closed and no object refers to the memory any more. Each
    array, tensor or buffer of the model refers to it. At the end of the `with` the model is closed, and such objects
    remain valid; close() raises InUse if there are any. Several threads may use a model.

    Attributes:
        name, id: one daemon never uses an id twice.
        device: where the model is, "host" or "cuda:0", by the daemon's numbers.
        nbytes: bytes of all its memory.
        model_info: the daemon's description of the model when it was attached.
    """

    def __init__(self, attachment: Attachment, info: ModelInfo, path: Optional[str] = None) -> None:
        self._attachment = attachment
        self._path = path
        self._metadata: Optional[Dict[str, Any]] = None
        # Of all tensors, once they were listed. No Tensors: one that counts as a view must go with its last user.
        self._entries: Optional[Dict[str, Entry]] = None
        self.name = attachment.name
        self.id = attachment.id
        self.device = attachment.device
        self.nbytes = attachment.nbytes
        self.model_info = info

    # --- its end ---

    def __enter__(self) -> Model:
        self._attachment.usable()
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        self.close(force=True)

    def close(self, force: bool = False) -> None:
        """Gives the model back to the daemon. A second call does nothing.

        InUse: an object still refers to the model's memory. With `force` the model is closed anyway: no new arrays can
        be made, and the memory and the lease stay until the last such object is deleted.
        """
        if self.closed:
            return
        if not self._attachment.close(force):
            raise InUse(self.name, len(self._attachment.views))

    @property
    def closed(self) -> bool:
        return self._attachment.closing

    @property
    def leased(self) -> bool:
        """Whether the daemon keeps the memory for this process. False after the daemon has ended, until the next one has
        given the lease again; what is mapped can be read all the same."""
        return self._attachment.leased()

    def reconnect(self, seconds: float = 30) -> None:
        """After the daemon has ended: waits at most so long for the next one, and takes the lease again. Arrays and
        tensors stay as they are. Does nothing while the connection stands. A model does this by itself when it is used;
        rocmforge.keep_leases() has it done at once.

        ModelNotFound: the daemon does not have the model any more; what is mapped can still be read, but does not count
        in the daemon's memory. NoDaemon: none was there in that time. Closed.
        """
        if not seconds >= 0:
            raise ValueError(f"not a valid number of seconds: {seconds}")
        if self.closed:
            raise Closed(f"the model '{self.name}' was closed")
        end = time.monotonic() + seconds
        while not self._attachment.try_again():
            if time.monotonic() >= end:
                raise NoDaemon(f"no daemon could be reached for {seconds:g} s")
            time.sleep(_RETRY_SECONDS)

    @property
    def views(self) -> int:
        """How many arrays, tensors and buffers of this package refer to the memory. Slices of an array do not count
        separately.
        """
        return len(self._attachment.views)

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError(
            f"an attached model cannot be pickled: call rocmforge.attach({self.name!r}) in the other process, which "
            "shares the memory"
        )

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{self.nbytes} bytes on {self.device}"
        return f"<Model {self.name!r}, {state}>"

    # --- a mapping ---

    def _all(self) -> Dict[str, Entry]:
        if self._entries is None:
            self._entries = {entry.name: entry for entry in self._attachment.entries()}
        return self._entries

    def __getitem__(self, name: str) -> Tensor:
        self._attachment.usable()
        if self._entries is not None:
            return Tensor(self._attachment, self._entries[name])
        entry = self._attachment.find(name) if isinstance(name, str) else None
        if entry is None:
            raise KeyError(name)
        return Tensor(self._attachment, entry)

    def __iter__(self) -> Iterator[str]:
        self._attachment.usable()
        return iter(self._all())

    def __len__(self) -> int:
        return self._attachment.count()

    def __bool__(self) -> bool:
        return True

    def __contains__(self, name: object) -> bool:
        try:
            self[name]  # type: ignore[index]
        except KeyError:
            return False
        return True

    # Two models are equal only if they are the same object. The default of a mapping would compare all tensors.
    __eq__ = object.__eq__
    __ne__ = object.__ne__
    __hash__ = object.__hash__

    # --- what it says ---

    def info(self, name: str) -> TensorInfo:
        """The daemon's description of a tensor: type, form, shape of its elements, offset, size, view.
        KeyError."""
        tensor = self[name]
        info: TensorInfo = {
            "name": tensor.name,
            "type": tensor.type,
            "form": tensor.form,
            "shape": list(tensor.logical_shape),
            "offset": tensor.offset,
            "size": tensor.nbytes,
        }
        if tensor.is_view:
            info["view"] = True
        if tensor.strides is not None:
            info["strides"] = list(tensor.strides)
        return info

    @property
    def published(self) -> Optional[Published]:
        """Of a model that was published: its key, and what was given to publish() as metadata. None: it is of files."""
        if self.model_info.get("source") != "published":
            return None
        return Published(self.model_info.get("key"), self._published_metadata())

    def _published_metadata(self) -> Any:
        if self.closed:
            raise Closed(f"the model '{self.name}' was closed")
        return _metadata.published(self._attachment, self.model_info)

    @property
    def path(self) -> Optional[str]:
        """The path of the file that the model was loaded from, if it is known. Another file may be there now."""
        return self._path or self.model_info["path"]

    def metadata(self) -> Dict[str, Any]:
        """The complete metadata of the file: a dictionary of keys to a number, bool, str, or a list of these. It is
        read once; do not change it. Of a published model: what was given to publish(), if that was a dictionary; else
        it is under the key "metadata". MetadataUnavailable: the daemon does not provide it, and the file cannot be read
        any more."""
        if self._metadata is None and self.model_info.get("source") == "published":
            value = self._published_metadata()
            self._metadata = value if isinstance(value, dict) else {} if value is None else {"metadata": value}
        if self._metadata is None:
            if self.closed:
                raise Closed(f"the model '{self.name}' was closed")
            self._metadata = _metadata.read(self._attachment, self.model_info, self._path)
        return self._metadata

    # --- arrays ---

    def get_tensor(self, name: str, framework: str = "pt", copy: bool = False) -> Any:
        """A tensor for the framework "pt" (torch.Tensor) or "np" (numpy.ndarray); the names are those of safetensors.
        KeyError.
        """
        if framework in ("pt", "torch"):
            return self.torch(name, copy)
        if framework in ("np", "numpy"):
            return self.numpy(name, copy)
        raise ValueError(f"framework is 'pt' or 'np', and not {framework!r}")

    def get_slice(self, name: str, framework: str = "pt") -> Slice:
        """A tensor to take a part of, by an index: model.get_slice(name)[:10]. As in safetensors, but the part is a view,
        and takes no memory. KeyError."""
        return Slice(self, name, framework)

    def numpy(self, name: str, copy: bool = False) -> _np.ndarray[Any, Any]:
        """Tensor.numpy() of the tensor with this name. KeyError."""
        return self[name].numpy(copy)

    def torch(self, name: str, copy: bool = False) -> _torch.Tensor:
        """Tensor.torch() of the tensor with this name. KeyError."""
        return self[name].torch(copy)

    def state_dict(self, framework: str = "pt", copy: bool = False) -> Dict[str, Any]:
        """A dictionary of all tensors by name; each is the result of get_tensor()."""
        return {name: self.get_tensor(name, framework, copy) for name in self}


class Slice:
    """What get_slice() gives: the methods of safetensors' slices."""

    def __init__(self, model: Model, name: str, framework: str) -> None:
        self._model, self._framework = model, framework
        self._tensor = model[name]

    def get_shape(self) -> List[int]:
        """Of the whole tensor."""
        return list(self._tensor.shape)

    def get_dtype(self) -> str:
        """As safetensors names it: "F32", "BF16", "U8"; of blocks: "U8"."""
        tensor = self._tensor
        if tensor.is_blocks:
            return "U8"
        return (tensor.type if tensor.form == "native" else tensor.form).upper()

    def __getitem__(self, index: Any) -> Any:
        return self._model.get_tensor(self._tensor.name, self._framework)[index]
