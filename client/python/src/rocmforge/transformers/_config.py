"""A configuration of transformers, made of what a GGUF file says of itself."""

from __future__ import annotations

from typing import Any, Callable, Dict, Mapping, Optional

from ..model import Model
from ._build import CannotBuild

_COMMON = {
    "context_length": "max_position_embeddings",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "embedding_length": "hidden_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "vocab_size": "vocab_size",
}
_IDS = {
    "tokenizer.ggml.bos_token_id": "bos_token_id",
    "tokenizer.ggml.eos_token_id": "eos_token_id",
    "tokenizer.ggml.padding_token_id": "pad_token_id",
}

_Values = Dict[str, Any]


class _Said:
    """What the file says of the architecture, by the key without its first part."""

    def __init__(self, metadata: Mapping[str, Any], architecture: str, model: Model) -> None:
        self._metadata, self._prefix, self.model = metadata, architecture + ".", model

    def get(self, key: str, default: Any = None) -> Any:
        return self._metadata.get(self._prefix + key, default)

    def rename(self, table: Mapping[str, str]) -> _Values:
        found = {ours: self.get(theirs) for theirs, ours in table.items()}
        return {key: value for key, value in found.items() if value is not None}


def _rope(said: _Said, default: float = 10000.0) -> _Values:
    """theta, and a scaling that the file names."""
    values: _Values = {"rope_theta": said.get("rope.freq_base", default)}
    kind, factor = said.get("rope.scaling.type"), said.get("rope.scaling.factor")
    if kind in ("linear", "yarn") and factor:
        scaling = {"rope_type": kind, "factor": factor}
        original = said.get("rope.scaling.original_context_length")
        if original:
            scaling["original_max_position_embeddings"] = original
        values["rope_scaling"] = scaling
    return values


def _head_dim(said: _Said) -> _Values:
    dim = said.get("attention.key_length") or said.get("rope.dimension_count")
    return {"head_dim": dim or said.get("embedding_length") // said.get("attention.head_count")}


def _llama(said: _Said) -> _Values:
    biases = {"attention_bias": "blk.0.attn_q.bias" in said.model, "mlp_bias": "blk.0.ffn_up.bias" in said.model}
    return {"model_type": "llama", **biases, **_rope(said), **_head_dim(said)}


def _mistral(said: _Said) -> _Values:
    return {"model_type": "mistral", "sliding_window": None, **_rope(said), **_head_dim(said)}


def _qwen2(said: _Said) -> _Values:
    return {"model_type": "qwen2", **_rope(said)}


def _qwen3(said: _Said) -> _Values:
    return {"model_type": "qwen3", **_rope(said, 1000000.0), **_head_dim(said)}


def _qwen3_moe(said: _Said) -> _Values:
    table = {
        "expert_count": "num_experts",
        "expert_used_count": "num_experts_per_tok",
        "expert_feed_forward_length": "moe_intermediate_size",
    }
    # The probabilities of the chosen experts add up to one: llama.cpp computes so.
    return {**_qwen3(said), "model_type": "qwen3_moe", "norm_topk_prob": True, **said.rename(table)}


def _scalar(said: _Said, layers: int) -> int:
    """What queries are scaled by: the heads' size, but in the 27B model, which has so many layers."""
    heads: int = said.get("attention.head_count")
    if said.get("block_count") == layers:
        return int(said.get("embedding_length")) // heads
    return int(said.get("attention.key_length", 256))


def _gemma2(said: _Said) -> _Values:
    table = {
        "attention.sliding_window": "sliding_window",
        "attn_logit_softcapping": "attn_logit_softcapping",
        "final_logit_softcapping": "final_logit_softcapping",
    }
    return {
        "model_type": "gemma2",
        "query_pre_attn_scalar": _scalar(said, 46),
        **_rope(said),
        **_head_dim(said),
        **said.rename(table),
    }


def _gemma3(said: _Said) -> _Values:
    return {
        "model_type": "gemma3_text",
        "query_pre_attn_scalar": _scalar(said, 62),
        **_rope(said, 1000000.0),
        **_head_dim(said),
        **said.rename({"attention.sliding_window": "sliding_window"}),
    }


def _phi3(said: _Said) -> _Values:
    values: _Values = {"model_type": "phi3", **_rope(said)}
    values["sliding_window"] = said.get("attention.sliding_window") or None  # 0: it has none
    original = said.get("rope.scaling.original_context_length")
    if original:
        values["original_max_position_embeddings"] = original
    factors = {kind: said.model.get(f"rope_factors_{kind}.weight") for kind in ("short", "long")}
    if all(tensor is not None for tensor in factors.values()):
        values["rope_scaling"] = {
            "rope_type": "longrope",
            **{f"{kind}_factor": tensor.torch().float().tolist() for kind, tensor in factors.items() if tensor},
        }
    dim, heads = said.get("rope.dimension_count"), said.get("attention.head_count")
    if dim and heads and dim != said.get("embedding_length") // heads:
        values["partial_rotary_factor"] = dim / (said.get("embedding_length") // heads)
    return values


def _bert(said: _Said) -> _Values:
    return {"model_type": "bert", **said.rename({"attention.layer_norm_epsilon": "layer_norm_eps"})}


_MAKERS: Dict[str, Callable[[_Said], _Values]] = {
    "llama": _llama,
    "mistral": _mistral,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "qwen3moe": _qwen3_moe,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "phi3": _phi3,
    "bert": _bert,
}


def make(model: Model, metadata: Mapping[str, Any]) -> Optional[Any]:
    """The configuration of an attached model; None: of such a one nothing is known here."""
    architecture = metadata.get("general.architecture", "")
    maker = _MAKERS.get(architecture)
    if maker is None:
        return None
    from transformers import AutoConfig

    said = _Said(metadata, architecture, model)
    if "token_embd.weight" not in model or not said.get("embedding_length") or not said.get("attention.head_count"):
        raise CannotBuild(f"the file does not say what a {architecture} model has to: sizes, heads, embeddings")
    values: _Values = {**said.rename(_COMMON), **maker(said)}
    # What the file does not name is not there, whatever the configuration's class takes for usual.
    values.update({ours: metadata.get(theirs) for theirs, ours in _IDS.items()})
    values.setdefault("vocab_size", model["token_embd.weight"].logical_shape[0])
    values["tie_word_embeddings"] = "output.weight" not in model
    if architecture == "bert":
        values["type_vocab_size"] = model["token_types.weight"].logical_shape[0] if "token_types.weight" in model else 1
        values.pop("tie_word_embeddings")
    return AutoConfig.for_model(values.pop("model_type"), **values)
