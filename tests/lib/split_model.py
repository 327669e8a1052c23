"""The files of a split model, as llama.cpp writes them."""
import struct

import make_model

U16, U32, I32 = 2, 4, 5


def write_shard(path, number, count, total, tensors, seed, keys=("no", "count", "tensors.count"), extra=None):
    values = {"no": ("<H", U16, number), "count": ("<H", U16, count), "tensors.count": ("<i", I32, total)}
    kv = b""
    for key in keys:
        form, type_, value = values[key]
        kv += make_model.string(f"split.{key}") + struct.pack("<I", type_) + struct.pack(form, value)
    texts = {**({"general.architecture": "llama"} if number == 0 else {}), **(extra or {})}
    for key, value in texts.items():
        kv += make_model.string(key) + struct.pack("<I", make_model.STRING) + make_model.string(value)
    make_model.write_model(path, tensors, (len(keys) + len(texts), kv), seed)


def write_sparse_shard(path, number, count, header_bytes):
    """A file without tensors, whose header is as good as this long, and almost nothing on the disk."""
    keys = (("no", number), ("count", count), ("tensors.count", 0))
    kv = b"".join(make_model.string(f"split.{key}") + struct.pack("<IH", U16, value) for key, value in keys)
    kv += make_model.string("general.description") + struct.pack("<IQ", make_model.STRING, header_bytes)
    header = b"GGUF" + struct.pack("<IQQ", 3, 0, len(keys) + 1) + kv
    with open(path, "wb") as out:
        out.write(header)
        out.truncate(len(header) + header_bytes)


def split_tensors(n):
    types = make_model.load_types()
    return [make_model.Tensor(f"blk.{i}.ffn_up.weight", types["f32"], (256, 64 + i)) for i in range(n)]


def write_split(folder, change=lambda number: {}, n=3):
    """Three files of a model with seven tensors. change(number) gives what to write otherwise. Returns their paths."""
    tensors = split_tensors(7)
    shares = [tensors[:0], tensors[:3], tensors[3:]]
    paths = []
    for number in range(n):
        path = folder / f"model-{number + 1:05}-of-{n:05}.gguf"
        fields = {"number": number, "count": n, "total": 7, "tensors": shares[number], "seed": number}
        write_shard(path, **{**fields, **change(number)})
        paths.append(path)
    return paths
