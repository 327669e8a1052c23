"""A tokenizer of transformers, made of what a GGUF file says of its vocabulary."""

from __future__ import annotations

import inspect
from typing import Any, Dict, List, Mapping, Optional, Tuple

_KEYS = {
    "ggml.model": "tokenizer_type",
    "ggml.pre": "pre_tokenizer_type",
    "ggml.tokens": "tokens",
    "ggml.scores": "scores",
    "ggml.token_type": "token_type",
    "ggml.merges": "merges",
    "ggml.precompiled_charsmap": "precompiled_charsmap",
    "ggml.bos_token_id": "bos_token_id",
    "ggml.eos_token_id": "eos_token_id",
    "ggml.unknown_token_id": "unk_token_id",
    "ggml.padding_token_id": "pad_token_id",
    "ggml.add_space_prefix": "add_prefix_space",
}
# Older versions of transformers look for the model by their own name of it.
_OLDER_NAMES = {"qwen2moe": "qwen2_moe", "qwen3moe": "qwen3_moe"}
_GEMMAS = ("gemma", "gemma2", "gemma3")
_CONTROL, _USER_DEFINED = 3, 4  # types of tokens
_SPECIAL = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}


def make(metadata: Mapping[str, Any]) -> Optional[Any]:
    """None: the file has no vocabulary."""
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not tokens:
        return None
    kind = metadata.get("tokenizer.ggml.model")
    if kind == "bert":
        return _wordpiece(metadata, tokens)
    values = {ours: metadata[f"tokenizer.{key}"] for key, ours in _KEYS.items() if f"tokenizer.{key}" in metadata}
    architecture = metadata["general.architecture"]
    if kind == "llama" and "merges" not in values:
        values["merges"] = _merges(values, architecture)
    return _fast(architecture, values, _options(metadata, tokens))


def _options(metadata: Mapping[str, Any], tokens: List[str]) -> Dict[str, Any]:
    options: Dict[str, Any] = {}
    for name, key in _SPECIAL.items():
        number = metadata.get(f"tokenizer.ggml.{key}")
        if number is not None:
            options[name] = tokens[number]
    for key in ("add_bos_token", "add_eos_token"):
        value = metadata.get(f"tokenizer.ggml.{key}")
        if value is None and key == "add_bos_token" and metadata.get("tokenizer.ggml.model") == "llama":
            value = True
        if value is not None:
            options[key] = value
    if "tokenizer.chat_template" in metadata:
        options["chat_template"] = metadata["tokenizer.chat_template"]
    return options


def _fast(architecture: str, values: Dict[str, Any], options: Dict[str, Any]) -> Any:
    from transformers import PreTrainedTokenizerFast

    if architecture in _GEMMAS and values["tokenizer_type"] == "llama":
        return PreTrainedTokenizerFast(tokenizer_object=_Given(_gemma(values)), **options)
    try:
        from transformers.integrations.gguf import convert_gguf_tokenizer
    except ImportError:  # before 5.20
        from transformers.integrations.ggml import convert_gguf_tokenizer

        architecture = _OLDER_NAMES.get(architecture, architecture)
    backend, more = convert_gguf_tokenizer(architecture, values)
    return PreTrainedTokenizerFast(tokenizer_object=_Given(backend), **{**more, **options})


def _gemma(values: Mapping[str, Any]) -> Any:
    """The same as transformers makes from 5.20 on. Before, it cuts texts by the file's scores, which are all alike."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

    tokens: List[str] = values["tokens"]
    vocabulary = {token: number for number, token in enumerate(_spelled(tokens))}
    unknown = tokens[values["unk_token_id"]] if "unk_token_id" in values else None
    merges = [tuple(merge.split(" ")) for merge in values["merges"]]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    typed = list(zip(tokens, values.get("token_type") or ()))
    whole = [token for token, type_ in typed if type_ == _USER_DEFINED and token in vocabulary]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token, type_ in typed if type_ == _CONTROL])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in whole])
    return tokenizer


def _spelled(tokens: List[str]) -> List[str]:
    """The tokens of Gemma's files, in which those of several spaces stand as such."""
    return ["\u2581" * len(token) if " " in token and not token.strip() else token for token in tokens]


class _Given:
    """transformers copies the tokenizer that it is given; of this one, which nobody else has, it need not."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend

    def __deepcopy__(self, memo: Any) -> Any:
        return self._backend


def _merges(values: Mapping[str, Any], architecture: str) -> List[_Merge]:
    """The pairs that a sentencepiece vocabulary implies, best first, as transformers makes them: for each token, all
    ways to cut it into two others."""
    tokens: List[str] = values["tokens"]
    if architecture.startswith("gemma"):
        tokens = _spelled(tokens)  # their order in the file is that of the merges
        scores: List[float] = [-index for index in range(len(tokens))]
    else:
        scores = values["scores"]
    find = {token: index for index, token in enumerate(tokens)}.get
    found: List[Tuple[float, int, int, int, int, str]] = []
    for index, token in enumerate(tokens):
        local = []
        for cut in range(1, len(token)):
            left = find(token[:cut])
            if left is not None:
                right = find(token[cut:])
                if right is not None:
                    local.append((left, right, cut))
        if local:
            local.sort()
            score, length = scores[index], len(token)
            found += [(-score, -cut, cut - length, left, right, token) for left, right, cut in local]
    # As a stable sort from the greatest on: by score, length of the left part, length of the right one.
    found.sort(key=_first_three)
    return [_Merge((token[:-cut], token[-cut:])) for _, cut, _, _, _, token in found]


class _Merge(Tuple[str, str]):
    """A pair that can be split, as transformers does with what a file has: a token may have a space in it."""

    def split(self, separator: str) -> _Merge:
        return self


def _first_three(merge: Tuple[float, int, int, int, int, str]) -> Tuple[float, int, int]:
    return merge[:3]


def _wordpiece(metadata: Mapping[str, Any], tokens: List[str]) -> Any:
    """BERT's: words are marked in the file, and in transformers the rest of words."""
    from transformers import BertTokenizerFast

    marked = any(token.startswith("\u2581") for token in tokens)
    vocabulary: Dict[str, int] = {}
    for index, token in enumerate(tokens):
        if marked and not (token.startswith("[") and token.endswith("]")):
            token = token[1:] if token.startswith("\u2581") else f"##{token}"
        vocabulary.setdefault(token, index)
    options: Dict[str, Any] = {}
    limit = metadata.get(f"{metadata['general.architecture']}.context_length")
    if limit:
        options["model_max_length"] = limit
    if "vocab" in inspect.signature(BertTokenizerFast.__init__).parameters:
        return BertTokenizerFast(vocab=vocabulary, **options)
    from tokenizers import BertWordPieceTokenizer

    return BertTokenizerFast(tokenizer_object=BertWordPieceTokenizer(vocab=vocabulary), **options)
