"""librocmforge as it was built, through ctypes: what client/rocmforge.h says, and as little as tests need of it.

    with Client(socket) as client:
        with client.attach("llama") as model:
            for tensor in model:
                tensor.name, tensor.form, model.view(tensor)

What the library refuses raises Failure.
"""
import ctypes
import os
import struct
from ctypes import POINTER, byref, c_char_p, c_double, c_int, c_size_t, c_uint32, c_uint64, c_void_p
from pathlib import Path


class Failure(Exception):
    def __init__(self, error, message, name=None):
        super().__init__(f"{message} ({os.strerror(-error)})")
        self.error = error
        self.name = name


class Tensor(ctypes.Structure):
    """rf_tensor."""

    _fields_ = [
        ("_name", c_char_p),
        ("_type", c_char_p),
        ("type_id", c_uint32),
        ("_form", c_char_p),
        ("n_dims", c_uint32),
        ("_shape", c_uint64 * 8),
        ("offset", c_uint64),
        ("bytes", c_uint64),
        ("data", c_void_p),
        ("padding", c_uint64),
        ("flags", c_uint64),
        ("_strides", POINTER(c_uint64)),
        ("_reserved", c_void_p * 1),
    ]

    name = property(lambda self: self._name.decode())
    type = property(lambda self: self._type.decode())
    form = property(lambda self: self._form.decode())
    shape = property(lambda self: list(self._shape[: self.n_dims]))
    strides = property(lambda self: list(self._strides[: self.n_dims]) if self._strides else None)


class NewTensor(ctypes.Structure):
    """rf_new_tensor."""

    _fields_ = [
        ("name", c_char_p),
        ("type", c_char_p),
        ("n_dims", c_uint32),
        ("shape", c_uint64 * 8),
        ("strides", POINTER(c_uint64)),
        ("offset", c_uint64),
    ]

    @classmethod
    def of(cls, name, type_, shape, strides=None, offset=(1 << 64) - 1):
        steps = (c_uint64 * len(strides))(*strides) if strides is not None else None
        return cls(name.encode(), type_.encode(), len(shape), (c_uint64 * 8)(*shape), steps, offset)


class CreateOptions(ctypes.Structure):
    """rf_create_options."""

    _fields_ = [
        ("size", c_size_t),
        ("key", c_char_p),
        ("device", c_char_p),
        ("bytes", c_uint64),
        ("no_wait", c_int),
        ("any_publisher", c_int),
        ("private_", c_int),
        ("public_", c_int),
        ("replace", c_int),
        ("wait_for_memory_seconds", c_double),
        ("deadline_seconds", c_double),
        ("progress", c_void_p),
        ("context", c_void_p),
    ]


class PublishOptions(ctypes.Structure):
    """rf_publish_options."""

    _fields_ = [
        ("size", c_size_t),
        ("metadata", c_char_p),
        ("tensors", POINTER(NewTensor)),
        ("n_tensors", c_size_t),
        ("pin", c_int),
        ("ttl_seconds", c_uint64),
    ]


class LoadOptions(ctypes.Structure):
    """rf_load_options."""

    _fields_ = [
        ("size", c_size_t),
        ("name", c_char_p),
        ("form", c_char_p),
        ("device", c_char_p),
        ("dequant", c_char_p),
        ("no_wait", c_int),
        ("progress", c_void_p),
        ("context", c_void_p),
        ("pin", c_int),
        ("private_", c_int),
        ("ttl_seconds", c_uint64),
        ("deadline_seconds", c_double),
        ("trace", c_int),
        ("reply", c_void_p),
        ("wait_for_memory_seconds", c_double),
        ("forms", c_void_p),
        ("n_forms", c_size_t),
    ]

class Value(ctypes.Structure):
    """rf_value."""

    _fields_ = [
        ("type", c_uint32),
        ("element_type", c_uint32),
        ("count", c_uint64),
        ("data", c_void_p),
        ("bytes", c_uint64),
        ("_key", c_void_p),
        ("key_size", c_size_t),
    ]

    key = property(lambda self: ctypes.string_at(self._key, self.key_size))
    raw = property(lambda self: ctypes.string_at(self.data, self.bytes))


STRUCT = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9


DRAINING = ctypes.CFUNCTYPE(None, c_void_p, c_char_p)  # rf_draining_fn

# rf_client and rf_model are opaque.
FUNCTIONS = {
    "rf_connect": (c_int, c_char_p, POINTER(c_void_p)),
    "rf_close": (None, c_void_p),
    "rf_error_message": (c_char_p, c_void_p),
    "rf_error_name": (c_char_p, c_void_p),
    "rf_reconnect": (c_int, c_void_p, c_double),
    "rf_call": (c_int, c_void_p, c_char_p, c_char_p, ctypes.c_uint, c_void_p, c_size_t, c_void_p, c_void_p),
    "rf_on_draining": (None, c_void_p, DRAINING, c_void_p),
    "rf_attach": (c_int, c_void_p, c_char_p, POINTER(c_void_p)),
    "rf_load_attach": (c_int, c_void_p, c_char_p, POINTER(LoadOptions), POINTER(c_void_p)),
    "rf_detach": (c_int, c_void_p),
    "rf_model_leased": (c_int, c_void_p),
    "rf_model_name": (c_char_p, c_void_p),
    "rf_model_device": (c_char_p, c_void_p),
    "rf_model_data": (c_void_p, c_void_p),
    "rf_model_bytes": (c_uint64, c_void_p),
    "rf_model_read": (c_int, c_void_p, c_uint64, c_void_p, c_size_t),
    "rf_model_tensors": (c_size_t, c_void_p),
    "rf_model_tensor": (c_int, c_void_p, c_size_t, POINTER(Tensor)),
    "rf_model_find": (c_int, c_void_p, c_char_p, POINTER(Tensor)),
    "rf_model_metadata_count": (c_int, c_void_p, POINTER(c_size_t)),
    "rf_model_metadata_at": (c_int, c_void_p, c_size_t, POINTER(Value)),
    "rf_model_metadata_next": (c_int, c_void_p, POINTER(Value), POINTER(c_uint64), POINTER(Value)),
    "rf_model_header": (c_void_p, c_void_p, POINTER(c_size_t)),
    "rf_create": (
        c_int, c_void_p, c_char_p, POINTER(NewTensor), c_size_t, POINTER(CreateOptions), POINTER(c_void_p),
        POINTER(c_void_p),
    ),
    "rf_creation_data": (c_void_p, c_void_p),
    "rf_creation_bytes": (c_uint64, c_void_p),
    "rf_creation_offset": (c_int, c_void_p, c_size_t, POINTER(c_uint64)),
    "rf_creation_unmap": (None, c_void_p),
    "rf_creation_end": (c_int, c_void_p),
    "rf_publish": (c_int, c_void_p, POINTER(PublishOptions), POINTER(c_void_p)),
}


def load(build):
    """The library of a build folder."""
    library = ctypes.CDLL(str(Path(build) / "client" / "librocmforge.so"))
    for name, (result, *arguments) in FUNCTIONS.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


class Client:
    def __init__(self, build, socket):
        self.library = load(build)
        self.handle = c_void_p()
        self.check(self.library.rf_connect(str(socket).encode(), byref(self.handle)))

    def check(self, result):
        if result < 0:
            name = self.library.rf_error_name(self.handle) if self.handle else None
            message = self.library.rf_error_message(self.handle).decode()
            raise Failure(result, message, name and name.decode())
        return result

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.library.rf_close(self.handle)
        self.handle = c_void_p()

    def reconnect(self, seconds):
        self.check(self.library.rf_reconnect(self.handle, seconds))

    def call(self, method):
        self.check(self.library.rf_call(self.handle, method.encode(), None, 0, None, 0, None, None))

    def on_draining(self, function):
        self.draining = DRAINING(lambda _, name: function(name.decode()))  # which the library does not keep alive
        self.library.rf_on_draining(self.handle, self.draining, None)

    def create(self, name, tensors=(), **options):
        """A Creation, or a Model if there is one with this key."""
        array = (NewTensor * len(tensors))(*[NewTensor.of(*tensor) for tensor in tensors]) if tensors else None
        creation, model = c_void_p(), c_void_p()
        told = CreateOptions(ctypes.sizeof(CreateOptions), **options)
        self.check(
            self.library.rf_create(
                self.handle, name.encode(), array, len(tensors), byref(told), byref(creation), byref(model)
            )
        )
        return Creation(self, creation) if creation else Model(self, model)

    def attach(self, name):
        handle = c_void_p()
        self.check(self.library.rf_attach(self.handle, name.encode(), byref(handle)))
        return Model(self, handle)

    def load_attach(self, path, wait_for_memory=0, no_wait=False):
        handle = c_void_p()
        options = LoadOptions(ctypes.sizeof(LoadOptions), no_wait=no_wait, wait_for_memory_seconds=wait_for_memory)
        self.check(self.library.rf_load_attach(self.handle, str(path).encode(), byref(options), byref(handle)))
        return Model(self, handle)


class Model:
    """Tensors, and views of them, are void once it is detached, which the end of a `with` does."""

    def __init__(self, client, handle):
        self.client = client
        self.library = client.library
        self.handle = handle

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.client.check(self.library.rf_detach(self.handle))
        self.handle = c_void_p()

    def __len__(self):
        return self.library.rf_model_tensors(self.handle)

    def __iter__(self):
        for index in range(len(self)):
            tensor = Tensor()
            self.client.check(self.library.rf_model_tensor(self.handle, index, byref(tensor)))
            yield tensor

    def find(self, name):
        tensor = Tensor()
        self.client.check(self.library.rf_model_find(self.handle, name.encode(), byref(tensor)))
        return tensor

    leased = property(lambda self: bool(self.library.rf_model_leased(self.handle)))
    name = property(lambda self: self.library.rf_model_name(self.handle).decode())
    device = property(lambda self: self.library.rf_model_device(self.handle).decode())
    data = property(lambda self: self.library.rf_model_data(self.handle))
    bytes = property(lambda self: self.library.rf_model_bytes(self.handle))

    def value(self, value):
        """What it is in Python: a number, bytes, or a list."""
        if value.type == STRING:
            return value.raw
        if value.type != ARRAY:
            return struct.unpack("<" + STRUCT[value.type], value.raw)[0]
        elements, element, position = [], Value(), c_uint64()
        while self.client.check(
            self.library.rf_model_metadata_next(self.handle, byref(value), byref(position), byref(element))
        ):
            elements.append(self.value(element))
        return elements

    def metadata(self):
        """All keys and their values."""
        n, value = c_size_t(), Value()
        self.client.check(self.library.rf_model_metadata_count(self.handle, byref(n)))
        told = {}
        for index in range(n.value):
            self.client.check(self.library.rf_model_metadata_at(self.handle, index, byref(value)))
            told[value.key] = self.value(value)
        return told

    def header(self):
        """The file's header."""
        size = c_size_t()
        data = self.library.rf_model_header(self.handle, byref(size))
        return ctypes.string_at(data, size.value)

    def view(self, tensor):
        """A tensor's bytes where they are, in host memory: nothing is copied."""
        if tensor.bytes == 0:
            return memoryview(b"")
        return memoryview((ctypes.c_ubyte * tensor.bytes).from_address(tensor.data)).cast("B")

    def read(self, tensor):
        """The same, copied by the library, wherever they are."""
        return self.read_at(tensor.offset, tensor.bytes)

    def read_at(self, offset, size):
        """Bytes of the model's memory, wherever it is."""
        copy = ctypes.create_string_buffer(size)
        self.client.check(self.library.rf_model_read(self.handle, offset, copy, size))
        return copy.raw


class Creation:
    """rf_creation."""

    def __init__(self, client, handle):
        self.client, self.handle = client, handle
        self.library = client.library

    @property
    def data(self):
        return self.library.rf_creation_data(self.handle)

    @property
    def bytes(self):
        return self.library.rf_creation_bytes(self.handle)

    def offset(self, index):
        offset = c_uint64()
        self.client.check(self.library.rf_creation_offset(self.handle, index, byref(offset)))
        return offset.value

    def write(self, offset, data):
        """On the host, and on a GPU whose memory is the host's."""
        ctypes.memmove(self.data + offset, data, len(data))

    def publish(self, metadata=None, tensors=(), **options):
        array = (NewTensor * len(tensors))(*[NewTensor.of(*tensor) for tensor in tensors]) if tensors else None
        told = PublishOptions(
            ctypes.sizeof(PublishOptions), metadata.encode() if metadata is not None else None, array, len(tensors), **options
        )
        model = c_void_p()
        self.client.check(self.library.rf_publish(self.handle, byref(told), byref(model)))
        self.handle = None
        return Model(self.client, model)

    def end(self):
        handle, self.handle = self.handle, None
        self.client.check(self.library.rf_creation_end(handle))
