"""Ready models of transformers whose parameters are resident memory.

    model, tokenizer, report = rocmforge.transformers.from_resident("gemma")
    print(report)
    ids = tokenizer("The capital of France is", return_tensors="pt").to(model.device)
    print(tokenizer.decode(model.generate(**ids, max_new_tokens=20)[0]))

Needs torch and transformers (pip install rocmforge[transformers]).
"""

from __future__ import annotations

from typing import Any, Dict, Iterable, Iterator, List, Optional, Union

from .._files import Path
from ..client import attach
from ..model import Model
from . import _subset
from ._build import Builder, CannotBuild, Report, parameters_without_memory
from ._names import ARCHITECTURES, recipes

__all__ = ["ARCHITECTURES", "CannotBuild", "Report", "Resident", "from_resident"]


class Resident:
    """What from_resident() gives; it can be taken apart: model, tokenizer, report = ...

    Attributes:
        model: a model of transformers, ready to be called, with no gradients. What it has of resident memory is shared,
            and must not be written to. It keeps the lease for as long as it lives.
        tokenizer: made when it is first asked for, which takes seconds for a large vocabulary; encode() and decode() do
            without it. None: the file has no vocabulary.
        report: which parameters are views, and which were made.
    """

    def __init__(self, model: Any, metadata: Dict[str, Any], report: Report) -> None:
        self.model = model
        self.report = report
        self._metadata: Optional[Dict[str, Any]] = metadata
        self._tokenizer: Any = None
        self._vocabulary: Optional[_subset.Vocabulary] = None

    @property
    def tokenizer(self) -> Any:
        metadata = self._metadata
        if metadata is not None:
            from . import _tokenizer

            self._tokenizer = _tokenizer.make(metadata)
            self._metadata = self._vocabulary = None
        return self._tokenizer

    def encode(self, text: str) -> List[int]:
        """The numbers of a text's tokens: tokenizer(text).input_ids. If the tokenizer was not made yet, and the text is
        short, this does not make it: only the part that the text needs. CannotBuild: the file has no vocabulary."""
        vocabulary = self._short(len(text))
        if vocabulary is not None:
            return vocabulary.encode(text)
        return list(self._whole()(text).input_ids)

    def decode(self, numbers: Iterable[int], skip_special_tokens: bool = True) -> str:
        """The text of tokens: tokenizer.decode(). Like encode(), without the whole tokenizer. CannotBuild."""
        numbers = [int(number) for number in numbers]
        vocabulary = self._short(len(numbers))
        if vocabulary is not None:
            return vocabulary.decode(numbers, skip_special_tokens)
        return str(self._whole().decode(numbers, skip_special_tokens=skip_special_tokens))

    def _short(self, size: int) -> Optional[_subset.Vocabulary]:
        """What makes the part of the tokenizer that a short text needs. None: the whole one is to be taken."""
        metadata = self._metadata
        if metadata is None or size > _subset.TEXT_MAX or not _subset.Vocabulary.usable(metadata):
            return None
        if self._vocabulary is None:
            self._vocabulary = _subset.Vocabulary(metadata)
        return self._vocabulary

    def _whole(self) -> Any:
        if self.tokenizer is None:
            raise CannotBuild("the file has no vocabulary")
        return self.tokenizer

    def __iter__(self) -> Iterator[Any]:
        return iter((self.model, self.tokenizer, self.report))

    def __repr__(self) -> str:
        return f"<Resident {type(self.model).__name__}: {self.report}>"


def from_resident(
    model: Union[str, Model],
    config: Any = None,
    *,
    model_class: Any = None,
    dtype: Any = None,
    deadline: Optional[float] = None,
    socket: Optional[Path] = None,
) -> Resident:
    """A model of transformers on resident memory, where that is.

    Args:
        model: its name, which is attached to; or one that is attached already, and stays so.
        config: a configuration of transformers; default: made of the file's metadata.
        model_class: AutoModelForCausalLM and the like; default: by the configuration. Of BERT: AutoModel without the
            pooling layer, which the files lack.
        dtype: of the parameters: torch.float32, or its name. Default, or "auto": that of most of the resident bytes, so
            that they are views.
        deadline: seconds that a model which is being loaded is waited for. socket: where the daemon is.

    If a GGUF file of Llama was loaded with layout="hf", its q and k are views, too.

    CannotBuild: transformers has no such model, the file lacks a parameter, or it is resident in quantised blocks.
    ValueError: there is no such dtype, or parameters cannot have it. Besides: what attach() and Model.metadata() raise.

    While the model is constructed, torch.get_default_dtype() is that of its parameters, for all threads of the process.
    """
    dtype = _dtype(dtype)
    if isinstance(model, str):
        with attach(model, deadline=deadline, socket=socket) as resident:
            return _build(resident, config, model_class, dtype)
    return _build(model, config, model_class, dtype)


def _dtype(dtype: Any) -> Any:
    """A torch.dtype, also of its name; None: the default. ValueError."""
    import torch

    if dtype is None or (isinstance(dtype, str) and dtype == "auto"):
        return None
    found = getattr(torch, dtype.replace("torch.", "", 1), None) if isinstance(dtype, str) else dtype
    if found not in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(f"dtype is a floating-point type of torch, as torch.bfloat16 or its name, and not {dtype!r}")
    return found


def _build(resident: Model, config: Any, model_class: Any, dtype: Any) -> Resident:
    if resident.model_info.get("tp"):
        raise CannotBuild("only a part of the model is resident: it was loaded with tp")
    metadata = resident.metadata()
    architecture = str(metadata.get("general.architecture", ""))
    find = recipes(architecture)
    if config is None:
        config = _config_of(resident, metadata)
    dtype = _most(resident) if dtype is None else dtype
    model = _construct(config, model_class, dtype, architecture)
    builder = Builder(resident, model, config, dtype)
    if find is not None:
        builder.fill(find)
    else:
        from . import _theirs

        builder.fill_from(_theirs.tensors(resident, model, config, architecture))
    _scale_frequencies(resident, model)
    model.eval()
    return Resident(model, metadata, builder.report)


def _config_of(resident: Model, metadata: Dict[str, Any]) -> Any:
    from . import _config

    config = _config.make(resident, metadata)
    if config is None:
        from . import _theirs

        config = _theirs.config(resident)
    return config


def _most(resident: Model) -> Any:
    """The type of most of the bytes."""
    import torch

    sizes: Dict[str, int] = {}
    for tensor in resident.values():
        if not tensor.is_blocks and not tensor.is_view and tensor.dtype in ("float32", "float16", "bfloat16"):
            sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.nbytes
    if not sizes:
        raise CannotBuild("the model is resident as quantised blocks: load it with form='f32', 'f16' or 'bf16'")
    return getattr(torch, max(sizes, key=lambda name: sizes[name]))


def _construct(config: Any, model_class: Any, dtype: Any, architecture: str) -> Any:
    import torch
    import transformers

    options: Dict[str, Any] = {}
    if model_class is None and architecture == "bert":
        model_class, options = transformers.AutoModel, {"add_pooling_layer": False}
    elif model_class is None:
        model_class = transformers.AutoModelForCausalLM
    with parameters_without_memory(dtype), torch.no_grad():
        make = getattr(model_class, "from_config", None)
        if make is None:  # a class of its own, and no AutoModel...
            return model_class(config, **options)
        return make(config, **options)


def _scale_frequencies(resident: Model, model: Any) -> None:
    """Files of Llama 3.1 and later have factors of the rotation's frequencies as a tensor."""
    if "rope_freqs.weight" not in resident:
        return
    factors = resident["rope_freqs.weight"].torch().float()
    for module in model.modules():
        frequencies = module._buffers.get("inv_freq")
        if frequencies is not None and frequencies.shape == factors.shape and _is_plain(module):
            module._buffers["inv_freq"] = frequencies / factors.to(frequencies.device)
            if module._buffers.get("original_inv_freq") is not None:
                module._buffers["original_inv_freq"] = module._buffers["inv_freq"]


def _is_plain(module: Any) -> bool:
    """The configuration names no scaling of its own."""
    return getattr(module, "rope_type", "default") == "default"
