"""Tokens of a short text without the whole tokenizer.

Making the tokenizer of a large vocabulary takes seconds, most of it for merges. But all that the merges of a text can
come by are parts of the text. So the tokenizer is made of those tokens alone that are parts of it, and of the few that
stand for something else; then its numbers are translated. The result is the same.
"""

from __future__ import annotations

import unicodedata
from typing import Any, Dict, Iterable, List, Literal, Mapping, Optional, Sequence, Set, Tuple

from . import _tokenizer

# Of a longer text, almost everything would be needed, and each part be looked up.
TEXT_MAX = 20_000

# The types of tokens that come without being parts of the text: for what is unknown, and for single bytes.
_UNKNOWN, _BYTE = 2, 6
_LISTS = ("tokens", "scores", "token_type")
# Unicode's normal forms: a tokenizer may bring a text to any of them first.
_FORMS: Tuple[Literal["NFC", "NFKC", "NFD", "NFKD"], ...] = ("NFC", "NFKC", "NFD", "NFKD")
_SPACE = "\u2581"  # as sentencepiece writes it
_KINDS = ("llama", "gpt2")  # whose tokens are merged: sentencepiece, and bytes written as letters


def _bytes_as_letters() -> List[str]:
    """How vocabularies of the kind of GPT-2 write each byte: as itself if it is printable, else as a letter from 256
    on."""
    printable = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)}
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def _spellings(text: str, kind: str) -> Set[str]:
    """What the text may become before it is cut into tokens. More than it becomes does no harm."""
    forms = {text} | {unicodedata.normalize(form, text) for form in _FORMS}
    forms |= {" " + form for form in forms}
    if kind == "gpt2":
        letters = _bytes_as_letters()
        return {"".join(letters[byte] for byte in form.encode("utf-8", "surrogatepass")) for form in forms}
    # Some files have their tokens of several spaces with spaces, and a text may have the sign itself.
    spaces = {form.replace(_SPACE, " ") for form in forms}
    return forms | spaces | {form.replace(" ", _SPACE) for form in forms}


class Vocabulary:
    """The vocabulary of a file, for texts. Not for files whose tokenizer works otherwise, see usable()."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self._metadata = metadata
        self._tokens: List[str] = metadata["tokenizer.ggml.tokens"]
        self._kind: str = metadata["tokenizer.ggml.model"]
        self._numbers = dict(zip(self._tokens, range(len(self._tokens))))
        self._longest = max(map(len, self._tokens))
        types: Sequence[int] = metadata["tokenizer.ggml.token_type"]
        self._always = {number for number, type_ in enumerate(types) if type_ in (_UNKNOWN, _BYTE)}
        self._always |= {number for key, number in metadata.items() if _is_number(key) and number < len(self._tokens)}

    @staticmethod
    def usable(metadata: Mapping[str, Any]) -> bool:
        tokens: Sequence[str] = metadata.get("tokenizer.ggml.tokens") or ()
        types: Sequence[int] = metadata.get("tokenizer.ggml.token_type") or ()
        return 0 < len(types) == len(tokens) and metadata.get("tokenizer.ggml.model") in _KINDS

    def encode(self, text: str) -> List[int]:
        """The numbers of the text's tokens, as the whole tokenizer gives them."""
        kept, tokenizer = self._make(self._parts(text))
        return [kept[number] for number in tokenizer(text).input_ids]

    def decode(self, numbers: Iterable[int], skip_special_tokens: bool) -> str:
        """The text of tokens."""
        numbers = list(numbers)
        kept, tokenizer = self._make(set(numbers))
        new = {number: index for index, number in enumerate(kept)}
        return str(tokenizer.decode([new[number] for number in numbers], skip_special_tokens=skip_special_tokens))

    def _parts(self, text: str) -> Set[int]:
        """The tokens that are parts of the text, single letters and special ones among them."""
        found: Set[int] = set()
        for spelling in _spellings(text, self._kind):
            self._find(spelling, "", found)
            if self._kind == "llama" and " " not in spelling:
                self._find(spelling, _SPACE, found)  # which some put after each special token
        return found

    def _find(self, spelling: str, before: str, found: Set[int]) -> None:
        """Adds the tokens that are a part of the spelling with this before it."""
        find, longest = self._numbers.get, self._longest - len(before)
        for begin in range(len(spelling)):
            for end in range(begin + 1, min(begin + longest, len(spelling)) + 1):
                number = find(before + spelling[begin:end])
                if number is not None:
                    found.add(number)

    def _make(self, numbers: Set[int]) -> Tuple[List[int], Any]:
        """A tokenizer of these tokens and of those that are always needed; its numbers are places in the list."""
        kept = sorted(numbers | self._always)  # in the file's order, which some take for the order of merges
        new = {number: index for index, number in enumerate(kept)}
        metadata: Dict[str, Any] = dict(self._metadata)
        for name in _LISTS:
            values: Optional[Sequence[Any]] = metadata.get(f"tokenizer.ggml.{name}")
            if values:
                metadata[f"tokenizer.ggml.{name}"] = [values[number] for number in kept]
        merges: Optional[List[str]] = metadata.get("tokenizer.ggml.merges")
        if merges is not None:
            there = set(metadata["tokenizer.ggml.tokens"])
            metadata["tokenizer.ggml.merges"] = [merge for merge in merges if _are_there(merge, there)]
        for key in [key for key in metadata if _is_number(key)]:
            if metadata[key] in new:
                metadata[key] = new[metadata[key]]
            else:
                del metadata[key]
        return kept, _tokenizer.make(metadata)


def _is_number(key: str) -> bool:
    """Whether the value of this key is a token's number."""
    return key.startswith("tokenizer.ggml.") and key.endswith("_token_id")


def _are_there(merge: str, tokens: Set[str]) -> bool:
    """Whether both parts of a merge, and what it makes, are among the tokens."""
    left, _, right = merge.partition(" ")
    return left + right in tokens and left in tokens and right in tokens
