"""What measure.py makes of what it sees."""
import measure
import measure_tables


def test_agree():
    text = b"what is said"
    assert measure.agree(text, text) and measure.agree(text, text[:-8]) # the last may be lost
    assert not measure.agree(b"", b"") and not measure.agree(text, b"")
    assert not measure.agree(text, text[:4] + b"?" + text[5:])


def test_p95():
    assert measure_tables.p95([3.0]) == 3.0 and measure_tables.p95([1.0, 9.0, 2.0]) == 9.0
    assert measure_tables.p95(list(range(1, 41))) == 38


def test_what_is_compared_is_measured():
    """Rows that both make the rehearsal, or both leave it out."""
    ways = {way.name: way for way in measure.WAYS}
    for how, way, other in measure_tables.PAIRS:
        rehearses = not ways[way].by_rfctl # as -c is given
        assert rehearses == (ways[other].options == ()) == how.startswith("with the rehearsal")
        assert ways[way].shared and not ways[way].model and ways[other].model and ways[way].prompt == ways[other].prompt


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
