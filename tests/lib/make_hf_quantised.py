"""Quantises the layers of the models of make_hf.py, as the tools do whose files vLLM reads:

    w8a8    compressed-tensors: int8, one scale for each row; activations become int8 while the engine runs. With
            w8a8_asymmetric the activations get a zero point as well
    w4a16   compressed-tensors: 4 bits, one scale for 64 columns
    gptq    4 bits, one scale for 64 columns, without zero points
    awq     4 bits, one scale and one zero point for 64 columns
    fp8     8-bit floats, one scale for 128 x 128 weights

Needs numpy.
"""
import numpy

GROUP = 64
BLOCK = 128
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # which of eight neighbours is at which place in an int32


def _groups(type_, bits, strategy):
    weights = {"num_bits": bits, "type": type_, "symmetric": True, "strategy": strategy, "dynamic": False}
    if strategy == "group":
        weights["group_size"] = GROUP
    return {"targets": ["Linear"], "weights": weights}


def config(kind):
    """The entry quantization_config of config.json."""
    if kind in ("w8a8", "w8a8_asymmetric", "w4a16"):
        group = _groups("int", 4, "group") if kind == "w4a16" else _groups("int", 8, "channel")
        if kind != "w4a16":
            group["input_activations"] = {
                "num_bits": 8, "type": "int", "symmetric": kind == "w8a8", "strategy": "token", "dynamic": True
            }  # fmt: skip
        return {"quant_method": "compressed-tensors", "format": "pack-quantized" if kind == "w4a16" else "int-quantized",
                "config_groups": {"group_0": group}, "ignore": ["lm_head"]}  # fmt: skip
    if kind == "gptq":
        return {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False, "sym": True}
    if kind == "awq":
        return {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"}
    return {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [BLOCK, BLOCK]}


def _pack(numbers, order=range(8)):
    """Eight neighbours of 4 bits in each int32, along the last dimension."""
    numbers = numbers.astype(numpy.uint32).reshape(*numbers.shape[:-1], -1, 8)
    packed = numpy.zeros(numbers.shape[:-1], numpy.uint32)
    for place, which in enumerate(order):
        packed |= numbers[..., which] << numpy.uint32(4 * place)
    return packed


def _scales(array, group, steps):
    """One for each group of columns: (rows, groups)."""
    rows, columns = array.shape
    return numpy.abs(array).reshape(rows, columns // group, group).max(-1) / numpy.float32(steps)


def _told(module, kind, dtype, array):
    return f"{module}.{kind}", dtype, array.shape, numpy.ascontiguousarray(array).tobytes()


def _w8a8(module, array, _):
    scales = numpy.abs(array).max(-1, keepdims=True) / numpy.float32(127)
    yield _told(module, "weight", "I8", numpy.rint(array / scales).astype(numpy.int8))
    yield _told(module, "weight_scale", "F32", scales)


def _four_bits(array):
    """Numbers from 0 to 15, of which 8 is zero, and the scales."""
    scales = _scales(array, GROUP, 7)
    return numpy.rint(array / numpy.repeat(scales, GROUP, 1)) + 8, scales


def _w4a16(module, array, _):
    numbers, scales = _four_bits(array)
    yield _told(module, "weight_packed", "I32", _pack(numbers))
    yield _told(module, "weight_scale", "F16", scales.astype(numpy.float16))
    yield _told(module, "weight_shape", "I64", numpy.array(array.shape, numpy.int64))


def _gptq(module, array, _):
    numbers, scales = _four_bits(array)
    groups = array.shape[1] // GROUP
    yield _told(module, "g_idx", "I32", numpy.repeat(numpy.arange(groups, dtype=numpy.int32), GROUP))
    yield _told(module, "qweight", "I32", _pack(numbers).T)
    yield _told(module, "qzeros", "I32", _pack(numpy.full((groups, array.shape[0]), 7)))  # as the format has it: less one
    yield _told(module, "scales", "F16", scales.T.astype(numpy.float16))


def _awq(module, array, rng):
    _, scales = _four_bits(array)
    scales *= numpy.float32(1.2)  # so that all numbers fit, with zero points from 7 to 9
    zeros = rng.integers(7, 10, scales.shape)
    numbers = numpy.rint(array / numpy.repeat(scales, GROUP, 1)) + numpy.repeat(zeros, GROUP, 1)
    assert 0 <= numbers.min() and numbers.max() <= 15
    yield _told(module, "qweight", "I32", _pack(numbers.T, AWQ_ORDER))
    yield _told(module, "qzeros", "I32", _pack(zeros.T, AWQ_ORDER))
    yield _told(module, "scales", "F16", scales.T.astype(numpy.float16))


def _fp8_values():
    """What the bytes 0 to 126 mean: 4 bits of exponent, 3 of mantissa."""
    exponents, mantissas = numpy.divmod(numpy.arange(127), 8)
    return numpy.where(exponents == 0, mantissas / 512, (1 + mantissas / 8) * 2.0 ** (exponents - 7))


def _fp8(module, array, _):
    rows, columns = array.shape
    blocks = array.reshape(rows // BLOCK, BLOCK, columns // BLOCK, BLOCK)
    scales = numpy.abs(blocks).max((1, 3)) / numpy.float32(448)
    scaled = (blocks / scales[:, None, :, None]).reshape(rows, columns)
    known = _fp8_values()
    nearest = numpy.searchsorted((known[1:] + known[:-1]) / 2, numpy.abs(scaled)).astype(numpy.uint8)
    yield _told(module, "weight", "F8_E4M3", nearest | numpy.where(scaled < 0, 128, 0).astype(numpy.uint8))
    yield _told(module, "weight_scale_inv", "F32", scales)


KINDS = {"w8a8": _w8a8, "w8a8_asymmetric": _w8a8, "w4a16": _w4a16, "gptq": _gptq, "awq": _awq, "fp8": _fp8}


def tensors(kind, name, array, rng):
    """What the file has instead of a layer's weight: name, dtype, shape and bytes of each tensor."""
    return KINDS[kind](name.removesuffix(".weight"), array, rng)
