"""How parameters of transformers are called in GGUF files, and what has to be done to the bytes.

One table for each architecture, by the name that the GGUF file gives it. {} is the number of a layer.
"""

from __future__ import annotations

import re
from typing import Callable, Dict, List, NamedTuple, Optional, Tuple

# What is done to a tensor. VIEW: nothing, it is the parameter.
VIEW = "view"
MINUS_ONE = "minus one"  # the file has the norm's weight plus one
ROWS_Q, ROWS_K = "rows of q", "rows of k"  # the file has them in the order of another rotation
PERMUTED = (ROWS_Q, ROWS_K)  # with layout="hf" the daemon has done this
MERGED = "merged experts"  # gate and up of each expert behind one another, which the file has apart


class Recipe(NamedTuple):
    tensor: str  # in the GGUF file
    operation: str = VIEW
    other: str = ""  # what it is merged with
    expert: Optional[int] = None  # it is this one's part of the tensor


_Table = Dict[str, Recipe]


def _both(table: Dict[str, str], operation: Optional[Dict[str, str]] = None) -> _Table:
    """Weight and bias of each module."""
    return {
        f"{theirs}.{kind}": Recipe(f"{ours}.{kind}", (operation or {}).get(theirs, VIEW))
        for theirs, ours in table.items()
        for kind in ("weight", "bias")
    }


_ENDS = _both({"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"})
_ATTENTION = {
    "model.layers.{}.self_attn.q_proj": "blk.{}.attn_q",
    "model.layers.{}.self_attn.k_proj": "blk.{}.attn_k",
    "model.layers.{}.self_attn.v_proj": "blk.{}.attn_v",
    "model.layers.{}.self_attn.o_proj": "blk.{}.attn_output",
}
_MLP = {
    "model.layers.{}.mlp.gate_proj": "blk.{}.ffn_gate",
    "model.layers.{}.mlp.up_proj": "blk.{}.ffn_up",
    "model.layers.{}.mlp.down_proj": "blk.{}.ffn_down",
}
_NORMS = {
    "model.layers.{}.input_layernorm": "blk.{}.attn_norm",
    "model.layers.{}.post_attention_layernorm": "blk.{}.ffn_norm",
}
_QK_NORMS = {
    "model.layers.{}.self_attn.q_norm": "blk.{}.attn_q_norm",
    "model.layers.{}.self_attn.k_norm": "blk.{}.attn_k_norm",
}
_GEMMA_NORMS = {
    "model.norm": "output_norm",
    "model.layers.{}.input_layernorm": "blk.{}.attn_norm",
    "model.layers.{}.post_attention_layernorm": "blk.{}.post_attention_norm",
    "model.layers.{}.pre_feedforward_layernorm": "blk.{}.ffn_norm",
    "model.layers.{}.post_feedforward_layernorm": "blk.{}.post_ffw_norm",
    **_QK_NORMS,
}
_PERMUTED = {"model.layers.{}.self_attn.q_proj": ROWS_Q, "model.layers.{}.self_attn.k_proj": ROWS_K}

_QWEN = {**_ENDS, **_both({**_ATTENTION, **_MLP, **_NORMS})}
_GEMMA = {**_ENDS, **_both({**_ATTENTION, **_MLP}), **_both(_GEMMA_NORMS, dict.fromkeys(_GEMMA_NORMS, MINUS_ONE))}
_LLAMA = {**_ENDS, **_both({**_ATTENTION, **_MLP, **_NORMS}, _PERMUTED)}

_PHI3 = {
    **_ENDS,
    **_both(
        {
            "model.layers.{}.self_attn.qkv_proj": "blk.{}.attn_qkv",
            "model.layers.{}.self_attn.o_proj": "blk.{}.attn_output",
            "model.layers.{}.mlp.gate_up_proj": "blk.{}.ffn_up",
            "model.layers.{}.mlp.down_proj": "blk.{}.ffn_down",
            **_NORMS,
        }
    ),
}
_BERT = {
    "embeddings.word_embeddings.weight": Recipe("token_embd.weight"),
    "embeddings.position_embeddings.weight": Recipe("position_embd.weight"),
    "embeddings.token_type_embeddings.weight": Recipe("token_types.weight"),
    **_both(
        {
            "embeddings.LayerNorm": "token_embd_norm",
            "encoder.layer.{}.attention.self.query": "blk.{}.attn_q",
            "encoder.layer.{}.attention.self.key": "blk.{}.attn_k",
            "encoder.layer.{}.attention.self.value": "blk.{}.attn_v",
            "encoder.layer.{}.attention.output.dense": "blk.{}.attn_output",
            "encoder.layer.{}.attention.output.LayerNorm": "blk.{}.attn_output_norm",
            "encoder.layer.{}.intermediate.dense": "blk.{}.ffn_up",
            "encoder.layer.{}.output.dense": "blk.{}.ffn_down",
            "encoder.layer.{}.output.LayerNorm": "blk.{}.layer_output_norm",
        }
    ),
}

# {} after "experts" is an expert's number, in versions of transformers that have them one by one.
_QWEN3_MOE = {
    **_QWEN,
    **_both({**_QK_NORMS, "model.layers.{}.mlp.gate": "blk.{}.ffn_gate_inp"}),
    "model.layers.{}.mlp.experts.gate_up_proj": Recipe(
        "blk.{}.ffn_gate_exps.weight", MERGED, "blk.{}.ffn_up_exps.weight"
    ),
    "model.layers.{}.mlp.experts.down_proj": Recipe("blk.{}.ffn_down_exps.weight"),
    "model.layers.{}.mlp.experts.{}.gate_proj.weight": Recipe("blk.{}.ffn_gate_exps.weight"),
    "model.layers.{}.mlp.experts.{}.up_proj.weight": Recipe("blk.{}.ffn_up_exps.weight"),
    "model.layers.{}.mlp.experts.{}.down_proj.weight": Recipe("blk.{}.ffn_down_exps.weight"),
}

_TABLES: Dict[str, _Table] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _QWEN,
    "qwen3": {**_QWEN, **_both(_QK_NORMS)},
    "qwen3moe": _QWEN3_MOE,
    "gemma2": _GEMMA,
    "gemma3": _GEMMA,
    "phi3": _PHI3,
    "bert": _BERT,
}

ARCHITECTURES: Tuple[str, ...] = tuple(_TABLES)

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def recipes(architecture: str) -> Optional[Callable[[str], Optional[Recipe]]]:
    """A function that finds the recipe for a parameter's name; None: the architecture has no table here. The function
    returns None if it knows no recipe."""
    table = _TABLES.get(architecture)
    if table is None:
        return None

    def find(name: str) -> Optional[Recipe]:
        numbers = _NUMBER.findall(name)
        recipe = table.get(_NUMBER.sub("{}", name))
        if recipe is None or not numbers:
            return recipe
        expert = int(numbers[1]) if len(numbers) > 1 else None
        return Recipe(recipe.tensor.format(numbers[0]), recipe.operation, recipe.other.format(numbers[0]), expert)

    return find


def unknown(names: List[str]) -> str:
    """A few names, for a message."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} others" if len(names) > 5 else "")
