"""Tensors: what they say, and the bytes that NumPy and DLPack make of them."""
import ctypes
import hashlib
import io
import sys

import gguf
import make_model
import make_safetensors
import numpy as np
import pytest
import rocmforge

QUANTISED = "uint8"


def reference(path):
    return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}


def decoded(tensor):
    return gguf.dequantize(tensor.data, tensor.tensor_type)


def test_native_is_what_the_file_has(rf, every_type):
    by_name = reference(every_type)
    with rf.load_attach(every_type, form="native") as model:
        assert list(model) == list(model.keys()) == list(by_name)
        for name, expected in by_name.items():
            tensor = model[name]
            assert tensor.read() == expected.data.tobytes(), name
            assert tensor.logical_shape == tuple(int(n) for n in reversed(expected.shape))
            assert tensor.type.lower() == expected.tensor_type.name.lower()
            assert tensor.nbytes == expected.n_bytes
            if tensor.dtype != "bfloat16":
                array = tensor.numpy()
                assert array.tobytes() == expected.data.tobytes()
                assert array.shape == tensor.shape == expected.data.shape, name
                assert array.dtype == (np.uint8 if tensor.is_blocks else expected.data.dtype)
        assert model["blk.0.f32.weight"].dtype == "float32" and not model["blk.0.f32.weight"].is_blocks
        assert model["cube"].shape == (5, 3, 34) and model["cube"].dtype == QUANTISED and model["cube"].type == "q8_0"


def test_f32_is_what_gguf_decodes(rf, every_type):
    with rf.load_attach(every_type, form="f32") as model:
        seen = 0
        for name, expected in reference(every_type).items():
            try:
                values = decoded(expected)
            except NotImplementedError:
                continue  # gguf cannot decode it
            tensor = model[name]
            if tensor.form != "f32":
                continue
            array = model.numpy(name)
            assert array.dtype == np.float32 and array.shape == values.shape == tensor.shape
            assert array.tobytes() == values.astype(np.float32).tobytes(), name
            seen += 1
        assert seen > 20


def test_a_real_model(rf, real_model):
    with rf.load_attach(real_model, form="f16") as model:
        for name, expected in reference(real_model).items():
            values = decoded(expected).astype(np.float16 if model[name].form == "f16" else np.float32)
            assert np.array_equal(np.asarray(model[name]), values), name


def test_arrays_are_read_only_views(rf, small):
    with rf.load_attach(small, form="f32") as model:
        tensor = model["blk.0.attn_v.weight"]
        for array in (tensor.numpy(), np.asarray(tensor), model.get_tensor(tensor.name, "np")):
            assert array.ctypes.data == tensor.data_ptr and not array.flags.writeable
            with pytest.raises(ValueError):
                array[0] = 1
            with pytest.raises(ValueError):
                array.flags.writeable = True
        own = tensor.numpy(copy=True)
        own[:] = 0
        assert tensor.numpy().any() and model.views == 2  # array is one, and the last of the loop
        with pytest.raises(TypeError):
            tensor.buffer()[0] = 1
        with pytest.raises(ValueError, match="'pt' or 'np'"):
            model.get_tensor(tensor.name, "tf")


def test_a_mapping(rf, small):
    with rf.load_attach(small, name="m") as model:
        names = list(model.keys())
        assert len(model) == len(names) == 8 and names[0] in model and "nothing" not in model and 3 not in model
        assert [tensor.name for tensor in model.values()] == names
        assert model.get("nothing") is None
        with pytest.raises(KeyError):
            model["nothing"]
        info = model.info(names[0])
        shown = {tensor["name"]: tensor for tensor in rf.show("m")["tensors"]}
        assert info == shown[names[0]]
        assert "small" not in repr(model) and "'m'" in repr(model) and names[0] in repr(model[names[0]])
        assert model[names[0]].device == "cpu" and model.device == "host" and len(model[names[0]]) == info["shape"][0]
        assert model == model and model != {} and {model: 1}[model]
    assert "closed" in repr(model)
    for use in (lambda: list(model), lambda: len(model), lambda: model[names[0]], lambda: model.info(names[0])):
        with pytest.raises(rocmforge.Closed):
            use()


def test_bf16(rf, small, monkeypatch):
    with rf.load_attach(small, form="bf16", name="b") as model:
        tensor = next(tensor for tensor in model.values() if tensor.dtype == "bfloat16")
        monkeypatch.setitem(sys.modules, "ml_dtypes", None)
        with pytest.raises(rocmforge.UnsupportedDtype, match="install ml_dtypes"):
            tensor.numpy()
        with pytest.raises(rocmforge.UnsupportedDtype):
            np.asarray(tensor)
        assert not hasattr(tensor, "__array_interface__") and len(tensor.buffer()) == tensor.nbytes
        monkeypatch.undo()
        ml_dtypes = pytest.importorskip("ml_dtypes")
        assert tensor.numpy().dtype == np.asarray(tensor).dtype == ml_dtypes.bfloat16
        assert tensor.numpy().tobytes() == tensor.numpy(copy=True).tobytes() == tensor.read()


def test_every_type_that_is_no_block_has_a_name_everywhere():
    """Of the types that a file can have: numpy and torch know each that is not made of blocks."""
    from rocmforge import _dtypes

    elements = {name for name, type_ in make_model.load_types().items() if type_.elements == 1}
    elements |= {dtype.lower() for dtype, bits in make_safetensors.BITS.items() if bits >= 8}
    assert elements == set(_dtypes._DTYPES)


def test_array_with_a_type_and_without_a_copy(rf, small):
    with rf.load_attach(small, form="f32") as model:
        tensor = model["blk.0.attn_v.weight"]
        for same in (np.float32, "float32", np.dtype("<f4")):
            assert tensor.__array__(same, copy=False).ctypes.data == tensor.data_ptr
        assert tensor.__array__(np.float32, copy=True).ctypes.data != tensor.data_ptr
        assert tensor.__array__(np.float64).dtype == np.float64
        with pytest.raises(ValueError, match="without a copy"):
            tensor.__array__(np.float16, copy=False)
        if np.lib.NumpyVersion(np.__version__) >= "2.0.0":
            with pytest.raises(ValueError):
                np.array(tensor, np.float16, copy=False)
        assert bytes(tensor) == tensor.read() and model.views == 0


def has_buffers():
    return sys.version_info >= (3, 12) or rocmforge.Tensor.__base__ is not object


@pytest.mark.skipif(not has_buffers(), reason="before 3.12, and without what pip compiles")
def test_the_buffer_protocol(rf, small):
    with rf.load_attach(small, form="f32") as model:
        tensor = model["blk.0.attn_v.weight"]
        buffer = memoryview(tensor)
        assert buffer.readonly and buffer.format == "f" and buffer.shape == tensor.shape and model.views == 1
        assert bytes(tensor) == tensor.read() == buffer.tobytes()
        assert hashlib.sha256(tensor).digest() == hashlib.sha256(tensor.read()).digest()
        with pytest.raises(TypeError):
            buffer[0, 0] = 1
        with pytest.raises(TypeError, match="not writable"):
            (ctypes.c_ubyte * tensor.nbytes).from_buffer(tensor)
        with pytest.raises(TypeError):
            io.BytesIO(bytes(8)).readinto(tensor)
        with pytest.raises(rocmforge.InUse):
            model.close()
        array = np.frombuffer(tensor, np.float32)
        assert array.ctypes.data == tensor.data_ptr and not array.flags.writeable and model.views == 2
        buffer.release()
        assert model.views == 1
        del array
        assert model.views == 0
        again = memoryview(tensor)
        counted = sys.getrefcount(tensor)
        for _ in range(100):
            memoryview(tensor).release()
        assert sys.getrefcount(tensor) == counted and model.views == 1
        array = np.frombuffer(tensor, np.float32)
        expected = tensor.read()
    assert again.tobytes() == array.tobytes() == expected and model.views == 2  # they keep the lease
    with pytest.raises(BufferError, match="closed"):
        memoryview(tensor)
    with rf.load_attach(small, form="f16", name="h") as model:
        tensor = next(tensor for tensor in model.values() if tensor.dtype == "float16")
        assert memoryview(tensor).format == "e"
    with rf.load_attach(small, form="native", name="n") as model:
        assert memoryview(model["blk.0.attn_norm.weight" if "blk.0.attn_norm.weight" in model else next(iter(model))])
        bf16 = next((tensor for tensor in model.values() if tensor.dtype == "bfloat16"), None)
        with pytest.raises(BufferError, match="bytes"):
            memoryview(bf16)


# --- DLPack ---


def capsule_name(capsule):
    name = ctypes.pythonapi.PyCapsule_GetName
    name.restype, name.argtypes = ctypes.c_char_p, [ctypes.py_object]
    return name(capsule)


def pointer(capsule):
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    return get(capsule, capsule_name(capsule))


def consume(capsule):
    """As a consumer in C does: renames the capsule, and calls the deleter when it is done, from where it likes."""
    from rocmforge import _dlpack

    kind = _dlpack._ManagedVersioned if capsule_name(capsule) == b"dltensor_versioned" else _dlpack._Managed
    address = pointer(capsule)
    rename = ctypes.pythonapi.PyCapsule_SetName
    rename.argtypes = [ctypes.py_object, ctypes.c_void_p]
    rename(capsule, ctypes.addressof(USED))
    return kind.from_address(address), ctypes.CFUNCTYPE(None, ctypes.c_void_p)(kind.from_address(address).deleter), address


USED = ctypes.create_string_buffer(b"used_dltensor")


def test_dlpack_capsules(rf, small):
    with rf.load_attach(small, form="f32") as model:
        tensor = model["blk.0.attn_v.weight"]
        assert tensor.__dlpack_device__() == (1, 0)
        old, new = tensor.__dlpack__(), tensor.__dlpack__(max_version=(1, 1))
        assert capsule_name(old) == b"dltensor" and capsule_name(new) == b"dltensor_versioned"
        assert model.views == 2
        managed, delete, address = consume(new)
        assert (managed.major, managed.flags) == (1, 1)  # read-only
        assert managed.tensor.data == tensor.data_ptr and managed.tensor.ndim == 2
        assert list(managed.tensor.shape[:2]) == list(tensor.shape)
        assert list(managed.tensor.strides[:2]) == [tensor.shape[1], 1]
        del new
        assert model.views == 2  # its consumer has it
        delete(address)
        assert model.views == 1
        del old  # nobody took it
        assert model.views == 0
        with pytest.raises(BufferError):
            tensor.__dlpack__(dl_device=(2, 0))
        own = tensor.__dlpack__(copy=True, max_version=(1, 0))
        assert model.views == 0
        managed, delete, address = consume(own)
        assert managed.flags == 2 and managed.tensor.data != tensor.data_ptr  # a copy, to be written to
        assert ctypes.string_at(managed.tensor.data, tensor.nbytes) == tensor.read()
        delete(address)


def test_dlpack_deleter_from_a_thread_without_the_lock(rf, small):
    """ctypes calls a C function, which calls the deleter, on a thread of the C library's own."""
    model = rf.load_attach(small, form="f32")
    _, delete, address = consume(model["blk.0.attn_v.weight"].__dlpack__(max_version=(1, 0)))
    thread = ctypes.c_ulong()
    libc = ctypes.CDLL(None)
    assert libc.pthread_create(ctypes.byref(thread), None, ctypes.cast(delete, ctypes.c_void_p), ctypes.c_void_p(address)) == 0
    assert libc.pthread_join(thread, None) == 0
    assert model.views == 0
    model.close()


def test_numpy_from_dlpack(rf, small):
    with rf.load_attach(small, form="f32") as model:
        tensor = model["blk.0.attn_v.weight"]
        array = np.from_dlpack(tensor)
        assert array.ctypes.data == tensor.data_ptr and not array.flags.writeable and model.views == 1
        assert np.array_equal(array, tensor.numpy())
        del array
        assert model.views == 0


def test_scalars_and_tensors_without_bytes(rf, folder):
    writer = gguf.GGUFWriter(folder / "odd.gguf", "llama")
    writer.add_tensor("one", np.array([3.5], np.float32))
    writer.add_tensor("cube", np.arange(24, dtype=np.float32).reshape(2, 3, 4))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with rf.load_attach(folder / "odd.gguf") as model:
        assert model.numpy("one").tolist() == [3.5]
        assert model.numpy("cube").tolist() == np.arange(24).reshape(2, 3, 4).tolist()


def test_metadata(rf, small, real_model):
    for path in (small, real_model):
        with rf.load_attach(path) as model:
            fields = {key: field.contents() for key, field in gguf.GGUFReader(path).fields.items() if not key.startswith("GGUF.")}
            assert model.metadata() == fields
            assert model.metadata() is model.metadata()


def test_metadata_of_a_file_that_is_gone(rf, small, folder):
    from rocmforge import _library

    copy = folder / "gone.gguf"
    copy.write_bytes(small.read_bytes())
    with rf.load_attach(copy) as model:
        copy.write_bytes(b"GGUF")
        if hasattr(_library.library(), "rf_model_header"):
            assert model.metadata()["general.name"] == "random blocks"
        else:
            with pytest.raises(rocmforge.MetadataUnavailable, match="another one now"):
                model.metadata()


@pytest.mark.parametrize("size", [0, 3, 4, 8, 16, 24, 30, 60, 200])
def test_a_header_that_is_cut(small, size):
    from rocmforge import _gguf

    with pytest.raises(_gguf.InvalidGguf):
        _gguf.read_metadata(small.read_bytes()[:size])
