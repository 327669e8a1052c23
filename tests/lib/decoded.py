"""What tensors of a GGUF file decode to, by code that is not this project's: the gguf package, on the CPU; and blocks of
ggml's own, of which tests/vectors has the values that ggml decodes them to."""
import csv
from pathlib import Path

import make_model
import numpy as np

VECTORS = Path(__file__).resolve().parents[1] / "vectors"
PLAIN_FORMS = {"F32": "f32", "F16": "f16", "BF16": "bf16"}


def to_bf16(values):
    """Rounds to nearest even on the upper half of the bits. None of the values is a NaN."""
    bits = values.view(np.uint32)
    return ((bits + (((bits >> 16) & 1) + 0x7FFF)) >> 16).astype(np.uint16)


def in_form(values, form):
    """The bytes of float32 values in a form: f32, f16 or bf16."""
    assert not np.isnan(values).any()
    if form == "f32":
        return values.tobytes()
    with np.errstate(over="ignore"):
        return (values.astype(np.float16) if form == "f16" else to_bf16(values)).tobytes()


def expected(tensor, form):
    """The bytes that a tensor of gguf.GGUFReader has to have in a form. NotImplementedError: gguf cannot decode its type."""
    import gguf

    if form == "native" or PLAIN_FORMS.get(tensor.tensor_type.name) == form:
        return tensor.data.tobytes()
    return in_form(gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32), form)


def write_vectors(path):
    """Writes a file with a tensor for each type of tests/vectors, of its blocks. Returns the float32 values of each."""
    types = make_model.load_types()
    with open(VECTORS / "manifest.csv", newline="", encoding="utf-8") as manifest:
        rows = list(csv.DictReader(manifest))
    tensors = [
        make_model.Tensor(row["name"], types[row["name"]], (256, int(row["blocks"]) * int(row["elements_per_block"]) // 256))
        for row in rows
    ]
    with open(path, "wb") as out:
        make_model.write_header(out, tensors, *make_model.metadata(4, 256, 256, 4, 100))
        for tensor in tensors:
            blocks = (VECTORS / f"{tensor.name}.q").read_bytes()
            assert len(blocks) == tensor.size
            out.write(blocks + bytes(-tensor.size % make_model.ALIGNMENT))
    return {tensor.name: np.fromfile(VECTORS / f"{tensor.name}.f32", np.float32) for tensor in tensors}
