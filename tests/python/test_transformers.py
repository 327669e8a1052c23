"""Models of transformers on resident memory: the same bits as those that the file was made of."""
import gc
import os
import signal
import threading

import pytest
import rocmforge

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import hf_models  # noqa: E402
import rocmforge.transformers as resident  # noqa: E402

IDS = torch.tensor([[1, 7, 8, 9, 20, 21, 33, 40, 41, 3, 5, 60]])


def logits(model):
    with torch.no_grad():
        out = model(input_ids=IDS)
    return out.last_hidden_state if hasattr(out, "last_hidden_state") else out.logits


@pytest.fixture
def made(rf, folder, daemon):
    """made(kind): the model as it was, and the same on resident memory."""

    def make(kind, form="f32", write=None, load=None, **options):
        original = hf_models.make(kind, **(write or {}))
        path = hf_models.write(folder / f"{kind}.gguf", original, hf_models.KINDS.get(kind, "llama"))
        rf.load(path, name=kind, form=form, **(load or {}))
        return original, resident.from_resident(kind, socket=daemon.socket, **options)

    return make


@pytest.mark.parametrize("kind", hf_models.KINDS)
def test_the_same_bits(made, kind):
    original, again = made(kind)
    expected, found = original.config.to_dict(), again.model.config.to_dict()
    differing = {key for key in expected if expected[key] != found.get(key)}
    assert not differing & {"hidden_size", "head_dim", "rope_parameters", "layer_types", "sliding_window"}, differing
    assert torch.equal(logits(again.model), logits(original))
    ours = dict(again.model.named_parameters())
    for name, parameter in original.named_parameters():
        assert torch.equal(ours[name], parameter), name
    if kind != "starcoder2":
        assert again.report.unused == []
    assert len(again.report.views) + len(again.report.made) == len(ours)


def test_a_given_configuration(made):
    """A mistral is a llama to GGUF files."""
    _, again = made("mistral", config=hf_models.tiny("mistral"))
    assert type(again.model).__name__ == "MistralForCausalLM"
    original = hf_models.make("mistral")
    assert torch.equal(logits(again.model), logits(original))


# Eight numbers each, for heads of 16; and half as many where half of a head is rotated.
LONG = {"rope_type": "longrope", "long_factor": [2.0] * 4 + [8.0] * 4, "short_factor": [1.0] * 4 + [1.5] * 4}
HALF = {**LONG, "long_factor": [8.0] * 4, "short_factor": [1.0, 1.25, 1.5, 2.0], "partial_rotary_factor": 0.5}
SCALED = {
    "gemma3_text, linear": dict(rope_parameters={
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    }, num_hidden_layers=6),
    "qwen2, yarn": dict(rope_parameters={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 1e4}),
    "phi3, longrope, short": dict(rope_parameters={**LONG, "rope_theta": 1e4}, original_max_position_embeddings=64),
    "phi3, longrope, long": dict(rope_parameters={**LONG, "rope_theta": 1e4}, original_max_position_embeddings=8),
    "phi3, a part of each head": dict(rope_parameters={**HALF, "rope_theta": 1e4}, original_max_position_embeddings=8),
    "phi3, sliding": dict(sliding_window=4),
}  # fmt: skip


@pytest.mark.parametrize("kind", SCALED)
def test_rotations_that_are_scaled(made, kind):
    """As files say them: by keys, or by tensors of factors."""
    options = SCALED[kind]
    original, again = made(kind.partition(",")[0], write=options)
    assert torch.equal(logits(again.model), logits(original))
    plain = hf_models.make(kind.partition(",")[0], **{key: value for key, value in options.items() if key == "num_hidden_layers"})
    assert not torch.equal(logits(plain), logits(original))


def test_frequencies_of_llama_3(rf, folder, daemon):
    """Of the scaling of Llama 3.1 a file has the factors, as a tensor."""
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 32, "rope_theta": 100.0}
    original = hf_models.make("llama", rope_parameters=scaling)
    unscaled = 100.0 ** -(torch.arange(0, 16, 2).float() / 16)
    factors = unscaled / original.model.rotary_emb.inv_freq
    assert factors.min() == 1 and factors.max() > 7.9
    path = hf_models.write(folder / "l.gguf", original, "llama", more={"rope_freqs.weight": factors.numpy()})
    rf.load(path, name="l", form="f32")
    again = resident.from_resident("l", socket=daemon.socket)
    assert torch.allclose(again.model.model.rotary_emb.inv_freq, original.model.rotary_emb.inv_freq, rtol=1e-6)
    assert torch.allclose(logits(again.model), logits(original), atol=1e-6)
    plain = hf_models.make("llama", rope_parameters={"rope_type": "default", "rope_theta": 100.0})
    assert not torch.allclose(logits(plain), logits(original), atol=1e-5)


def test_views_are_the_memory_itself(rf, made, daemon):
    _, again = made("qwen3")
    assert again.report.share == 1 and again.report.made == {}
    with rf.attach("qwen3") as attached:
        same = resident.from_resident(attached)
        assert same.model.model.norm.weight.data_ptr() == attached["output_norm.weight"].data_ptr
        assert not attached.closed
    with pytest.raises(rocmforge.ModelBusy):
        rf.unload("qwen3")
    again.model.requires_grad_(False)
    del again, same
    gc.collect()
    assert rf.unload("qwen3") == "unloaded"


def test_what_is_made_is_reported(made):
    _, again = made("llama")
    report = again.report
    assert set(report.made.values()) == {"rows of q", "rows of k"} and len(report.made) == 2 * hf_models.LAYERS
    assert 0.5 < report.share < 1 and "parameters" in str(report)


def test_rows_that_the_daemon_reordered(made):
    """With layout="hf" there is nothing left to make, and the bits are the same; so with groups that say it."""
    original, again = made("llama", load={"layout": "hf"})
    assert again.report.made == {} and again.report.share == 1 and again.report.unused == []
    assert torch.equal(logits(again.model), logits(original))


@pytest.mark.parametrize("layout", [None, "hf"])
def test_llama_with_biases(made, layout):
    """Some have them; the file tells by having the tensors. Those of q and k are permuted, too."""
    original, again = made("llama", write={"attention_bias": True, "mlp_bias": True}, load={"layout": layout})
    assert again.report.unused == [] and len(again.report.made) == (0 if layout else 4 * hf_models.LAYERS)
    assert torch.equal(logits(again.model), logits(original))


def test_rows_that_groups_reordered(rf, daemon, folder):
    original = hf_models.make("llama")
    path = hf_models.write(folder / "g.gguf", original, "llama")
    config = original.config
    groups = [
        {"name": name, "members": [name], "heads": heads}
        for layer in range(hf_models.LAYERS)
        for name, heads in (
            (f"blk.{layer}.attn_q.weight", config.num_attention_heads),
            (f"blk.{layer}.attn_k.weight", config.num_key_value_heads),
        )
    ]
    groups.append({"name": "kv", "members": ["blk.0.attn_v.weight", "blk.1.attn_v.weight"]})
    rf.load(path, name="g", form="f32", groups=groups)
    again = resident.from_resident("g", socket=daemon.socket)
    assert again.report.made == {} and again.report.unused == []
    assert torch.equal(logits(again.model), logits(original))
    rf.load(path, name="part", form="f32", groups=[{**groups[-1], "cut": "rows"}], tp=(0, 2))
    with pytest.raises(resident.CannotBuild, match="a part of the model"):
        resident.from_resident("part", socket=daemon.socket)


def test_merged_experts(made):
    _, again = made("qwen3_moe")
    assert set(again.report.made.values()) == {"merged experts"} and len(again.report.made) == hf_models.LAYERS


def test_experts_one_by_one():
    """As other versions of transformers name them: each is a part of the file's tensor."""
    from rocmforge.transformers import _names

    find = _names.recipes("qwen3moe")
    recipe = find("model.layers.11.mlp.experts.3.up_proj.weight")
    assert recipe == _names.Recipe("blk.11.ffn_up_exps.weight", _names.VIEW, "", 3)


def test_bf16(made):
    original, again = made("gemma3_text", form="bf16")
    assert {parameter.dtype for parameter in again.model.parameters()} == {torch.bfloat16}
    weight = again.model.model.layers[0].self_attn.q_proj.weight
    assert torch.equal(weight, original.model.layers[0].self_attn.q_proj.weight.to(torch.bfloat16))
    assert torch.isfinite(logits(again.model)).all()
    with pytest.raises(RuntimeError):
        weight.requires_grad_(True).sum().backward(torch.ones(3))


def test_another_dtype_is_made(made):
    _, again = made("qwen2", dtype=torch.bfloat16)
    assert again.report.share == 0 and "float32 is wanted as bfloat16" in again.report.made.values()


def test_a_dtype_by_its_name(made, daemon):
    _, again = made("qwen2", dtype="bfloat16")
    assert again.report.share == 0
    for name, share in (("torch.float32", 1), ("auto", 1), ("float16", 0)):
        assert resident.from_resident("qwen2", dtype=name, socket=daemon.socket).report.share == share


@pytest.mark.parametrize("dtype", ["float33", "int8", "nn", "", 5, torch.int8, torch.complex64, torch.float8_e4m3fn])
def test_a_wrong_dtype_changes_nothing(made, dtype):
    register = torch.nn.Module.register_parameter
    with pytest.raises(ValueError, match="floating-point"):
        made("qwen2", dtype=dtype)
    assert torch.get_default_dtype() == torch.float32 and torch.nn.Module.register_parameter is register
    assert not torch.nn.Linear(2, 2).weight.is_meta


def test_torch_is_restored_in_any_case():
    register = torch.nn.Module.register_parameter
    with pytest.raises(TypeError):
        with resident.parameters_without_memory("float32"):
            pass
    with pytest.raises(KeyError):
        with resident.parameters_without_memory(torch.bfloat16):
            {}["no such"]
    assert torch.get_default_dtype() == torch.float32 and torch.nn.Module.register_parameter is register


def test_blocks_are_refused(rf, daemon, every_type):
    rf.load(every_type, name="blocks", form="native")
    with pytest.raises(resident.CannotBuild):
        resident.from_resident("blocks", socket=daemon.socket)


def test_a_parameter_that_is_missing(rf, daemon, folder):
    original = hf_models.make("qwen2")
    path = hf_models.write(folder / "m.gguf", original, "qwen3")  # which has norms of q and k besides
    rf.load(path, name="m", form="f32")
    with pytest.raises(resident.CannotBuild, match="nothing for model.layers.0.self_attn.q_norm.weight"):
        resident.from_resident("m", socket=daemon.socket)


def test_an_unknown_architecture(rf, daemon, small, folder):
    path = folder / "odd.gguf"
    path.write_bytes(small.read_bytes().replace(b"llama", b"lemma"))
    rf.load(path, name="odd", form="f32")
    with pytest.raises(resident.CannotBuild):
        resident.from_resident("odd", socket=daemon.socket)


def test_the_tokenizer(made):
    _, again = made("llama")
    tokenizer = again.tokenizer
    assert tokenizer is again.tokenizer and tokenizer.bos_token == "<s>" and tokenizer.eos_token_id == 2
    ids = tokenizer("ab a").input_ids
    assert ids[0] == 1 and tokenizer.convert_ids_to_tokens(ids[1:]) == ["\u2581ab", "\u2581a"]
    assert tokenizer.decode(ids, skip_special_tokens=True).strip() == "ab a"


TEXTS = ("ab a", "", " ", "a  ab\n\tb", "xyz abab ba", "Gr\u00f6\u00dfe \u6570\u5b57 \U0001f642", "</s>a<s> ab", "aab" * 50)


def test_encode_and_decode_without_the_tokenizer(made):
    """The same as with it, for texts that need bytes, specials and merges."""
    _, again = made("llama")
    encoded = {text: again.encode(text) for text in TEXTS}
    decoded = {text: (again.decode(ids), again.decode(ids, skip_special_tokens=False)) for text, ids in encoded.items()}
    assert again._tokenizer is None
    for text in TEXTS:
        ids = again.tokenizer(text).input_ids
        assert encoded[text] == ids == again.encode(text), text
        whole = tuple(again.tokenizer.decode(ids, skip_special_tokens=skip) for skip in (True, False))
        assert decoded[text] == whole == (again.decode(ids), again.decode(ids, skip_special_tokens=False)), text
    assert len(set(map(tuple, encoded.values()))) > 5


def test_encode_with_bytes_as_letters(made):
    """A vocabulary as GPT-2 has it, with merges in the file."""
    from rocmforge.transformers import _subset, _tokenizer

    letters = _subset._bytes_as_letters()
    assert len(set(letters)) == 256 and letters[ord(" ")] == "\u0120" and letters[ord("a")] == "a"
    tokens = [*letters, "ab", "abc", "\u0120a", "\u0120ab", "bc", "<|end|>"]
    merges = ["a b", "ab c", "\u0120 a", "\u0120a b", "b c"]
    metadata = {
        "general.architecture": "qwen2", "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": [1] * (len(tokens) - 1) + [3],
        "tokenizer.ggml.merges": merges, "tokenizer.ggml.eos_token_id": len(tokens) - 1,
    }
    whole, vocabulary = _tokenizer.make(metadata), _subset.Vocabulary(metadata)
    for text in ("abc ab bc", " ab", "", "a<|end|>b", "Gr\u00f6\u00dfe\n", "e\u0301 \ufb01"):
        ids = whole(text).input_ids
        assert vocabulary.encode(text) == ids, text
        assert vocabulary.decode(ids, False) == whole.decode(ids), text


@pytest.mark.parametrize("architecture", ["llama", "phi3", "gemma3"])
def test_encode_with_spaces_that_are_a_sign(architecture):
    """Phi-3's tokenizer puts the sign after each special token; Gemma's files have tokens of spaces, and a text may have
    the sign."""
    from rocmforge.transformers import _subset, _tokenizer

    spaces = "  " if architecture == "gemma3" else "\u2581\u2581"
    words = ["\u2581", "\u2581a", "ab", "\u2581ab", spaces, *"abcdefghijklmnopqrstuvwxyz"]
    tokens = ["<unk>", "<s>", "</s>", "<|user|>", *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    metadata = {
        "general.architecture": architecture, "tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [2, 3, 3, 3] + [6] * 256 + [1] * len(words),
        "tokenizer.ggml.scores": [0.0] * 260 + [-float(i) for i in range(len(words))],
        "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.unknown_token_id": 0,
    }
    whole, vocabulary = _tokenizer.make(metadata), _subset.Vocabulary(metadata)
    for text in ("ab", "<|user|>ab", "<|user|>\n ab</s>ab a", "\u2581\u2581b", "b\u2581\u2581 ", " \u2581ab", "a  b"):
        assert vocabulary.encode(text) == whole(text).input_ids, text


def test_encode_with_a_vocabulary_of_another_kind(rf, daemon, real_model):
    """BERT's is made as a whole."""
    rf.load(real_model, name="minilm", form="f32")
    made = resident.from_resident("minilm", socket=daemon.socket)
    ids = made.encode("A dog barks.")
    assert ids == made.tokenizer("A dog barks.").input_ids and "dog" in made.decode(ids)


def test_merges_are_those_of_transformers(real_model):
    from rocmforge.transformers import _tokenizer

    base = pytest.importorskip("transformers.tokenization_utils_base")
    if not hasattr(base, "generate_merges"):
        pytest.skip("this transformers makes merges elsewhere")
    tokens = [chr(97 + a) + chr(97 + b) + end for a in range(26) for b in range(26) for end in ("", "a", "ab")]
    tokens += [chr(97 + a) for a in range(26)] + ["  x", " ", "x"]
    tokens = list(dict.fromkeys(tokens))
    scores = [-(7 * i % 100) / 2 for i in range(len(tokens))]
    theirs = base.generate_merges({token: i for i, token in enumerate(tokens)}, dict(zip(tokens, scores)))
    ours = _tokenizer._merges({"tokens": tokens, "scores": scores}, "llama")
    assert [tuple(merge) for merge in ours] == theirs and len(ours) > 1000


def test_minilm(rf, daemon, real_model):
    rf.load(real_model, name="minilm", form="f32")
    model, tokenizer, report = resident.from_resident("minilm", socket=daemon.socket)
    assert report.share == 1
    ids = tokenizer(["A dog barks.", "Ein Hund bellt laut."], return_tensors="pt", padding=True)
    assert ids["input_ids"][0, 0] == tokenizer.cls_token_id
    with torch.no_grad():
        out = model(**ids).last_hidden_state
    assert torch.isfinite(out).all() and out.shape[-1] == 384


def test_generate(made):
    _, again = made("gemma3_text")
    again.model.generation_config.eos_token_id = None
    out = again.model.generate(input_ids=IDS, max_new_tokens=4, do_sample=False)
    assert out.shape == (1, IDS.shape[1] + 4)


def test_two_threads(rf, folder, daemon):
    """What from_resident() changes for all of torch is as before, whichever thread comes last."""
    forms = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
    path = hf_models.write(folder / "m.gguf", hf_models.make("qwen2"), "qwen2")
    for form in forms:
        rf.load(path, name=form, form=form)
    before, register = torch.get_default_dtype(), torch.nn.Module.register_parameter
    failures = []

    def work(form):
        try:
            for _ in range(5):
                made = resident.from_resident(form, socket=daemon.socket)
                assert {p.dtype for p in made.model.parameters() if p.ndim > 1} == {forms[form]}
                assert not any(p.is_meta for p in made.model.parameters())
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(form,)) for form in 2 * list(forms)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert torch.get_default_dtype() == before and torch.nn.Module.register_parameter is register
    assert not torch.nn.Linear(2, 2).weight.is_meta


def test_a_fork_while_a_model_is_made(rf, folder, daemon):
    """A child has torch as it was, and can make models itself."""
    path = hf_models.write(folder / "m.gguf", hf_models.make("qwen2"), "qwen2")
    rf.load(path, name="m", form="bf16")
    stop = threading.Event()

    def work():
        while not stop.is_set():
            resident.from_resident("m", socket=daemon.socket)

    thread = threading.Thread(target=work)
    thread.start()
    statuses = []
    for _ in range(5):
        pid = os.fork()
        if pid == 0:
            signal.alarm(20)
            os._exit(not (torch.get_default_dtype() == torch.float32 and not torch.nn.Parameter(torch.ones(1)).is_meta
                          and not torch.nn.Linear(2, 2).weight.is_meta))
        statuses.append(os.waitpid(pid, 0)[1])
    stop.set()
    thread.join()
    assert statuses == [0] * 5
