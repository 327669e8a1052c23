"""docs/python.md and the examples: what stands there runs."""
import os
import re
import shutil
import subprocess
import sys

import pytest
import rocmforge
from harness import ROOT, TIMEOUT

EXAMPLES = ROOT / "client" / "python" / "examples"
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(encoding="utf-8"), re.S)


def run(daemon, *command, cwd=None, seconds=TIMEOUT):
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        env={**os.environ, "ROCMFORGE_SOCKET": str(daemon.socket)},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=seconds,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def gemma():
    path = os.environ.get("ROCMFORGE_GEMMA")
    if not path:
        pytest.skip("ROCMFORGE_GEMMA names no file of Gemma; ./setup python-test --all fetches it")
    return path


def test_the_twelve_lines(daemon, real_model, folder):
    pytest.importorskip("torch")
    shutil.copy(real_model, folder / "model.gguf")
    out = run(daemon, "-c", BLOCKS[0], cwd=folder)
    assert "101 tensors" in out and "bert" in out and "'q8_0'" in out


def test_asyncio(daemon, real_model, folder):
    shutil.copy(real_model, folder / "model.gguf")
    assert run(daemon, "-c", BLOCKS[1], cwd=folder) == "(30522, 384)\n"


def test_an_error(daemon, real_model, folder):
    before = f"import rocmforge\nrf = rocmforge.connect()\nm = rf.load_attach({str(real_model)!r}, name='m')\n"
    assert re.fullmatch(r"held by \[\d+\]\n", run(daemon, "-c", before + BLOCKS[6]))


def test_publishing(daemon):
    before = "import numpy, rocmforge\nclass model:\n    state_dict = staticmethod(lambda: {'a': numpy.ones(3)})\n"
    out = run(daemon, "-c", before + BLOCKS[4] + "print(m.published, m.numpy('a').sum())\n")
    assert out == "Published(key='Qwen3-8B, vLLM 0.32, fp8', metadata={'any': 'JSON'}) 3.0\n"
    before = "import rocmforge\nrf, key, compute = rocmforge.connect(), 'k', lambda: 2\n"
    again = BLOCKS[5].replace('"weights"', '"w"')
    for _ in range(2):  # the second time it is there
        out = run(daemon, "-c", before + again + "print(made.published, made.numpy('a').max())\n")
        assert out == "Published(key='k', metadata='by compute()') 2.0\n"


def test_every_block_is_tested():
    assert len(BLOCKS) == 7 and "from_resident" in BLOCKS[2] and "encode" in BLOCKS[3]


def test_every_method_is_named():
    text = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    (named,) = re.findall(r"The client has every method of the daemon.*?by its name\.", text, re.S)
    methods = re.findall(r"^method (\w+)", (ROOT / "proto" / "io.rocmforge.varlink").read_text(encoding="utf-8"), re.M)
    assert {re.sub(r"(?<!^)([A-Z])", r"_\1", name).lower() for name in methods} == set(re.findall(r"`(\w+)`", named))


def test_the_table_of_errors_is_whole():
    """Each error of this package stands in it; those of the daemon are WireErrors, of which a few stand for all."""
    text = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    table = text[text.index("## Errors") : text.index("## How fast")]
    errors = {name for name in rocmforge.__all__ if isinstance(getattr(rocmforge, name), type) and issubclass(getattr(rocmforge, name), rocmforge.Error)}
    ours = {name for name in errors if not issubclass(getattr(rocmforge, name), rocmforge.WireError)} | {"WireError"}
    assert {name for name in ours if f"`{name}" not in table} == set()
    assert set(re.findall(r"`([A-Z]\w+Error|[A-Z]\w+)`", table)) - errors <= {"OSError", "KeyError", "ValueError", "TypeError", "BufferError", "ImportError", "Tensor"}


def test_embeddings(daemon, real_model):
    out = run(daemon, EXAMPLES / "embeddings.py", real_model)
    assert "The same numbers: True" in out
    with_daemon, _, without = out.partition("Without it:")
    for line in ("loading it, if it is not there, and attaching", "metadata", "embedding"):
        assert re.search(rf"{line} +\d+\.\d+ s, +\d+\.\d+ s of CPU", with_daemon), out
    for line in ("reading and decoding the file", "embedding"):
        assert re.search(rf"{line} +\d+\.\d+ s, +\d+\.\d+ s of CPU", without), out
    own, others = (re.search(r"PSS\): (\d+) MB, of which (\d+) MB are the model's", part).groups() for part in (with_daemon, without))
    assert int(own[1]) > 20 and others[1] == "0"  # MiniLM has 90 MB in f32, of which half, shared with the daemon, was read
    similar, other = re.search(r"^ +1\.000 +(\S+) +(\S+)  A dog", out, re.M).groups()
    assert float(similar) > 0.5 > 0.2 > float(other)


# --- with torch, transformers and Gemma ---


def test_text_from_gemma(start, gemma, folder):
    pytest.importorskip("transformers")
    os.symlink(gemma, folder / "model.gguf")
    daemon = start("--budget", "4G")
    out = run(daemon, "-c", BLOCKS[2], cwd=folder, seconds=300)
    assert "99.98 % views" in out and "The capital of France is" in out
    assert out.splitlines()[-1] in run(daemon, "-c", BLOCKS[3], cwd=folder, seconds=300)


def test_generate(start, gemma):
    pytest.importorskip("transformers")
    out = run(start("--budget", "4G"), EXAMPLES / "generate.py", gemma, seconds=600)
    assert "The same text: True" in out and "99.98 % views" in out
    with_daemon, _, without = out.partition("Without the daemon:")
    times = r" +\d+\.\d+ s, +\d+\.\d+ s of CPU"
    for line in ("the model, and importing its class", "the tokenizer", "the first token"):
        assert len(re.findall(line + times, with_daemon)) == 2, out
    for line in ("the model", "the tokenizer", "the first token"):
        assert len(re.findall(line + times, without)) == 1, out
    out = with_daemon
    shares = [int(n) for n in re.findall(r"of which (\d+) MB are the model's$", out, re.M)]
    assert len(shares) == 2 and all(share < 1072 for share in shares), out


def test_logits_are_those_of_transformers(start, gemma):
    """All of the same bits as transformers' own loading gives, in float32. Takes a minute and 3.6 GB."""
    for module in ("transformers", "accelerate", "gguf"):
        pytest.importorskip(module)
    daemon = start("--budget", "4G")
    code = """
import sys, os, torch, rocmforge, rocmforge.transformers
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, file = os.path.split(sys.argv[1])
rocmforge.load(sys.argv[1], name="gemma", form="f32")
made = rocmforge.transformers.from_resident("gemma")
texts = ("The capital of France is", " two  spaces\\n\\tand a tab", "Größe, 数字, 🙂", "<start_of_turn>user\\nhi<end_of_turn>")
encoded = [made.encode(text) for text in texts]
decoded = [made.decode(ids) for ids in encoded]
model, tokenizer, report = made
theirs = AutoTokenizer.from_pretrained(folder, gguf_file=file)
for text, ids, again in zip(texts, encoded, decoded):
    assert tokenizer(text).input_ids == theirs(text).input_ids == ids, text
    assert theirs.decode(ids, skip_special_tokens=True) == again, text
ids = tokenizer("The capital of France is", return_tensors="pt")
with torch.no_grad():
    ours = model(**ids).logits
    other = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
    assert torch.equal(ours, other(**ids).logits)
print("equal", report.share > 0.99)
"""
    assert run(daemon, "-c", code, gemma, seconds=1800) == "equal True\n"  # on busy processors
