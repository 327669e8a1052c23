"""Writes a small LLaVA with random weights as Hugging Face has it: a model of language with a tower for images.

    python3 tests/lib/make_llava.py FOLDER

Needs torch and transformers.
"""
import sys
from pathlib import Path

import make_hf
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

IMAGE_TOKEN = 500


def make(folder):
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=16,
        projection_dim=64,
    )  # fmt: skip
    text = LlamaConfig(
        hidden_size=256, intermediate_size=704, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=64, vocab_size=make_hf.VOCABULARY, max_position_embeddings=256,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=IMAGE_TOKEN, image_token_id=IMAGE_TOKEN
    )
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    # The names that published models have, and that vLLM knows.
    file, old, new = Path(folder) / "model.safetensors", "vision_tower.", "vision_tower.vision_model."
    tensors = {name if new in name else name.replace(old, new): tensor for name, tensor in load_file(file).items()}
    save_file(tensors, file, {"format": "pt"})
    make_hf.write_tokenizer(folder)


if __name__ == "__main__":
    make(Path(sys.argv[1]))
