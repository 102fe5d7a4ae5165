"""Small models of many families of transformers, with random weights, and a solver that stops, for several tests."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor, nn

_SIZES: dict[str, Any] = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
_GATED = {**_SIZES, "intermediate_size": 24, "num_key_value_heads": 1, "max_position_embeddings": 32}
_WIDE = {**_SIZES, "intermediate_size": 24, "max_position_embeddings": 32}
_GPT2 = {"vocab_size": 32, "n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 32}
_OPT = {**_SIZES, "ffn_dim": 24, "max_position_embeddings": 32, "word_embed_proj_dim": 16}
_T5 = {"vocab_size": 32, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 3, "num_heads": 2}

FAMILIES: dict[str, tuple[str, str, dict[str, Any], list[str]]] = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", _GATED, ["model.layers"]),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", _GATED, ["model.layers"]),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", {**_GATED, "head_dim": 8}, ["model.layers"]),
    "mistral": ("MistralForCausalLM", "MistralConfig", {**_GATED, "sliding_window": 8}, ["model.layers"]),
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", {**_GATED, "num_local_experts": 4}, ["model.layers"]),
    "gemma": ("GemmaForCausalLM", "GemmaConfig", {**_GATED, "head_dim": 8}, ["model.layers"]),
    "gemma2": ("Gemma2ForCausalLM", "Gemma2Config", {**_GATED, "head_dim": 8, "sliding_window": 8}, ["model.layers"]),
    "phi": ("PhiForCausalLM", "PhiConfig", _WIDE, ["model.layers"]),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", _GPT2, ["transformer.h"]),
    "opt": ("OPTForCausalLM", "OPTConfig", _OPT, ["model.decoder.layers"]),
    "gpt_neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", _WIDE, ["gpt_neox.layers"]),
    "falcon": ("FalconForCausalLM", "FalconConfig", _SIZES, ["transformer.h"]),
    "falcon_alibi": ("FalconForCausalLM", "FalconConfig", {**_SIZES, "alibi": True}, ["transformer.h"]),
    "bloom": ("BloomForCausalLM", "BloomConfig", {"vocab_size": 32, "hidden_size": 16, "n_layer": 3, "n_head": 2}, ["transformer.h"]),
    "bert": ("BertModel", "BertConfig", _WIDE, ["encoder.layer"]),
    "t5": ("T5ForConditionalGeneration", "T5Config", _T5, ["encoder.block", "decoder.block"]),
    "vit": ("ViTModel", "ViTConfig", {**_SIZES, "intermediate_size": 24, "image_size": 8, "patch_size": 4}, ["encoder.layer", "layers"]),
}  # fmt: skip


def family(name: str) -> tuple[nn.Module, dict[str, Tensor], list[str]]:
    """A small model of a family, an example, and where its blocks are."""
    model, config, sizes, holders = FAMILIES[name]
    torch.manual_seed(0)
    made = getattr(transformers, model)(getattr(transformers, config)(**sizes)).eval()
    tokens = torch.randint(0, 32, (2, 12))
    if name == "vit":
        return made, {"pixel_values": torch.randn(2, 3, 8, 8)}, holders
    return made, {"input_ids": tokens, **({"decoder_input_ids": tokens[:, :5]} if name == "t5" else {})}, holders


def small_tokenizer() -> Any:
    """A tokenizer of 32 words, ``w0`` to ``w29`` among them."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    words = ["<unk>", "<s>", *(f"w{number}" for number in range(30))]
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    return tokenizer
