"""What measure.py makes of what it sees."""
import measure


def test_agree():
    text = bytes(range(65, 65 + 3 * measure.TOKENS))
    assert measure.agree(text, text) and measure.agree(text, text[:-8])  # the last tokens may be lost
    assert not measure.agree(text, text[:1]) and not measure.agree(text[:1], text[:1])
    assert not measure.agree(b"", b"") and not measure.agree(text, b"")
    assert not measure.agree(text, text[: len(text) // 3])
    assert not measure.agree(text, text[:40] + b"?" + text[41:])


def test_parts_of_a_start():
    lines = [
        (1.0, "load_backend: loaded CPU backend from libggml-cpu.so"),
        (1.25, "llama_model_loader: loaded meta data with 25 key-value pairs and 39 tensors"),
        (1.3, "load_tensors: loading model tensors"),
        (1.35, "llama_context: constructing llama_context"),
        (1.4, "sched_reserve: graph splits = 1"),
        (1.5, "llama_model_loader: loaded meta data with 25 key-value pairs and 39 tensors"),
        (2.5, "load_tensors: loading model tensors"),
        (4.5, "rocmforge: shared with other processes: 39 of 39 tensors"),
        (5.0, "llama_context: constructing llama_context"),
        (6.0, "sched_reserve: graph splits = 1"),
        (6.5, "sched_reserve: reserve took 1 ms"),
        (9.0, "llama_context: after the first token"),
    ]
    parts = measure.split(lines, 0.5, 8.5)
    assert parts == {
        "process": 0.5, "backends": 0.25, "fit": 0.25, "header": 1.0, "weights": 2.5, "context": 1.5, "first": 2.0
    }
    assert sum(parts.values()) == 8.0
    quiet = measure.split([(1.0, "something else")], 0.5, 2.0)
    assert quiet == {"process": 0.5, "backends": None, "fit": None, "header": None, "weights": None, "context": None, "first": 1.0}
