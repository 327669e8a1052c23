"""Small random models of transformers, and GGUF files of them: names by the gguf package, conversions as llama.cpp's
converter does them. So what is read back is held against what neither this project nor transformers' loader wrote."""
import gguf
import numpy as np
import torch
import transformers

VOCABULARY = 96
LAYERS = 2

# Kind of the configuration, and how GGUF files call it. Of mistral they say llama.
KINDS = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
    "phi3": "phi3",
    "bert": "bert",
    "qwen3_moe": "qwen3moe",
    "starcoder2": "starcoder2",  # by what transformers has
}


def tiny(kind, **more):
    """A configuration."""
    common = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=LAYERS, num_attention_heads=4,
                  num_key_value_heads=2, vocab_size=VOCABULARY, max_position_embeddings=128)
    own = {
        "llama": dict(tie_word_embeddings=False, rms_norm_eps=1e-5, head_dim=16, rope_theta=50000.0),
        "mistral": dict(tie_word_embeddings=False, rms_norm_eps=1e-5, head_dim=16, sliding_window=None),
        "qwen2": dict(tie_word_embeddings=True, rms_norm_eps=1e-6),
        "qwen3": dict(tie_word_embeddings=False, rms_norm_eps=1e-6, head_dim=32),
        "gemma2": dict(head_dim=32, query_pre_attn_scalar=32, sliding_window=8, rms_norm_eps=1e-6,
                       attn_logit_softcapping=50.0, final_logit_softcapping=30.0),
        "gemma3_text": dict(head_dim=32, query_pre_attn_scalar=32, sliding_window=8, rms_norm_eps=1e-6),
        "phi3": dict(tie_word_embeddings=False, rms_norm_eps=1e-5, num_key_value_heads=4, pad_token_id=0,
                     sliding_window=None, eos_token_id=2),
        "bert": dict(type_vocab_size=2),
        "qwen3_moe": dict(tie_word_embeddings=False, rms_norm_eps=1e-6, head_dim=32, num_experts=4, num_experts_per_tok=2,
                          moe_intermediate_size=48, norm_topk_prob=True),
        "starcoder2": dict(norm_epsilon=1e-5, use_bias=True, sliding_window=None),
    }[kind]
    return transformers.AutoConfig.for_model(kind, **{**common, **own, **more})


def make(kind, **more):
    """A model with random weights, its norms too."""
    torch.manual_seed(1)
    config = tiny(kind, **more)
    if kind == "bert":
        model = transformers.BertModel(config, add_pooling_layer=False)
    else:
        model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.1)
            parameter.add_(1).sub_(1)  # files of some have norms plus one, which is not to round
    return model.eval()


def permute(weights, heads):
    """The rows of each head from halves to pairs."""
    return weights.reshape(heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:]).swapaxes(1, 2).reshape(weights.shape)


def write(path, model, architecture, name="tiny", more=None):
    """more: further tensors by name."""
    config = model.config
    heads, kv_heads = config.num_attention_heads, getattr(config, "num_key_value_heads", config.num_attention_heads)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name(name)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    if architecture == "bert":
        writer.add_layer_norm_eps(config.layer_norm_eps)
    else:
        writer.add_head_count_kv(kv_heads)
        if hasattr(config, "rms_norm_eps"):
            writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        else:
            writer.add_layer_norm_eps(config.norm_epsilon)
        writer.add_rope_freq_base(theta(config))
        more = {**scaling(writer, config, architecture), **(more or {})}
        if getattr(config, "head_dim", None):
            writer.add_key_length(config.head_dim)
            writer.add_value_length(config.head_dim)
    if getattr(config, "sliding_window", None) or architecture == "phi3":
        writer.add_sliding_window(config.sliding_window or 0)  # a phi3 without one says 0
    if architecture == "qwen3moe":
        writer.add_expert_count(config.num_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    if architecture == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    vocabulary(writer)

    arch = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == architecture)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    written = set()
    for theirs, parameter in model.state_dict().items():
        if theirs == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if theirs.endswith("mlp.experts.gate_up_proj"):  # the file has its halves
            block = theirs.split(".")[2]
            for name, half in zip(("gate", "up"), np.split(parameter.float().numpy(), 2, axis=1)):
                writer.add_tensor(f"blk.{block}.ffn_{name}_exps.weight", np.ascontiguousarray(half))
            continue
        if theirs.endswith("mlp.experts.down_proj"):
            writer.add_tensor(f"blk.{theirs.split('.')[2]}.ffn_down_exps.weight", parameter.float().numpy())
            continue
        ours = names.get_name(theirs, try_suffixes=(".weight", ".bias"))
        assert ours, theirs
        if ours in written:
            continue
        written.add(ours)
        weights = parameter.float().numpy()
        if architecture in ("llama",) and ("q_proj" in theirs or "k_proj" in theirs):
            weights = permute(weights, heads if "q_proj" in theirs else kv_heads)
        if architecture.startswith("gemma") and theirs.endswith("norm.weight"):
            weights = weights + 1
        writer.add_tensor(ours, np.ascontiguousarray(weights))
    for name, weights in (more or {}).items():
        writer.add_tensor(name, weights)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def theta(config):
    parameters = getattr(config, "rope_parameters", None) or {}
    parameters = parameters.get("full_attention", parameters)
    return float(parameters.get("rope_theta") or config.rope_theta)


def scaling(writer, config, architecture):
    """What llama.cpp's converter says of a scaled rotation. Returns the tensors that it has for this."""
    parameters = getattr(config, "rope_parameters", None) or {}
    parameters = parameters.get("full_attention", parameters)
    if architecture == "phi3":
        head = config.hidden_size // config.num_attention_heads
        writer.add_rope_dimension_count(int(head * parameters.get("partial_rotary_factor", 1.0)))
        writer.add_rope_scaling_orig_ctx_len(config.original_max_position_embeddings)
    kind = parameters.get("rope_type", "default")
    if kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(kind))
        writer.add_rope_scaling_factor(parameters["factor"])
    if kind == "yarn":
        writer.add_rope_scaling_orig_ctx_len(parameters["original_max_position_embeddings"])
    if kind == "longrope":
        return {f"rope_factors_{size}.weight": np.array(parameters[f"{size}_factor"], np.float32) for size in ("long", "short")}
    return {}


def vocabulary(writer):
    """A sentencepiece one of letters and a few words, as long as it has to be."""
    tokens = ["<unk>", "<s>", "</s>", "\u2581", "\u2581a", "ab", "\u2581ab"]
    types = [2, 3, 3, 1, 1, 1, 1]
    for code in range(VOCABULARY - len(tokens)):
        tokens.append(chr(ord("a") + code) if code < 26 else f"<0x{code:02X}>")
        types.append(1 if code < 26 else 6)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0, 0.0, 0.0] + [float(-i) for i in range(len(tokens) - 3)])
    writer.add_token_types(types)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(0)
