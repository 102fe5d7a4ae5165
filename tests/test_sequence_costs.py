"""Costs of models that work through sequences, held against what their caches hold and what their tokens meet."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import secateurs as sc
from secateurs.types import KindError, PlanError, SecateursError

SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 40}
WORDS = {"input_ids": torch.arange(15).view(3, 5), "use_cache": False}
COST = sc.kv_cache_bytes(9, 2)


@pytest.fixture
def t():
    transformers = pytest.importorskip("transformers")
    transformers.utils.logging.set_verbosity_error()
    torch.manual_seed(0)
    return transformers


def llama(t):
    return t.LlamaForCausalLM(t.LlamaConfig(**SIZES, num_key_value_heads=2)).eval()


def gpt2(t):
    return t.GPT2LMHeadModel(t.GPT2Config(n_embd=16, n_layer=3, n_head=4, vocab_size=40, n_positions=32)).eval()


def falcon(t):
    return t.FalconForCausalLM(t.FalconConfig(**{key: value for key, value in SIZES.items() if key != "intermediate_size"})).eval()


def opt(t):
    more = {"hidden_size": 16, "ffn_dim": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 40}
    return t.OPTForCausalLM(t.OPTConfig(**more, word_embed_proj_dim=16, max_position_embeddings=32)).eval()


def gpt_oss(t):
    more = {"num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8}
    return t.GptOssForCausalLM(t.GptOssConfig(**SIZES, **more)).eval()


@torch.no_grad()
def held(model: nn.Module) -> int:
    """The bytes that a cache holds of two sequences of nine."""
    layers = model(torch.randint(0, 40, (2, 9)), use_cache=True).past_key_values.layers
    return sum(each.numel() * each.element_size() for layer in layers for each in (layer.keys, layer.values))


@pytest.mark.parametrize("make", [llama, gpt2, falcon, opt, gpt_oss], ids=lambda make: make.__name__)
def test_keys_and_values_take_what_the_cache_holds(t, make):
    model = make(t)
    assert COST(model, WORDS) == held(model)
    assert COST(model.to(torch.bfloat16), WORDS) == held(model)


@pytest.mark.parametrize("pattern", [sc.Depth(), sc.Head(), sc.Channel()], ids=repr)
@pytest.mark.parametrize("make", [llama, gpt2], ids=lambda make: make.__name__)
def test_a_plan_promises_what_the_smaller_models_cache_holds(t, make, pattern):
    model = make(t)
    masks = sc.prune_(model, pattern, sc.TopK(sc.magnitude()), sc.uniform(keep=0.5), sc.Task(WORDS))
    promised = COST(make(t), WORDS, masks.plan)
    sc.shrink_(model, masks)
    assert promised == COST(model, WORDS) == held(model) < held(make(t))


def test_a_budget_of_memory_is_met(t):
    model = llama(t)
    allocate = sc.within_budget(sc.Budget(sc.kv_cache_bytes(2048), keep=0.7), sc.uniform)
    masks = sc.prune_(model, sc.Depth(), sc.TopK(sc.magnitude()), allocate, sc.Task(WORDS))
    assert sum(masks.plan.values()) == 2
    dense = held(model)
    sc.shrink_(model, masks)
    assert held(model) <= 0.7 * dense
    small = sc.within_budget(sc.Budget(sc.kv_cache_bytes(2048), keep=0.1), sc.uniform)
    with pytest.raises(PlanError, match=r"kv_cache_bytes\(2048, 1\) can fall to .* bytes at the least"):
        sc.prune_(llama(t), sc.Depth(), sc.TopK(sc.magnitude()), small, sc.Task(WORDS))


def test_a_token_meets_the_experts_that_it_is_sent_to(t):
    sizes = {**SIZES, "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2}
    model = t.MixtralForCausalLM(t.MixtralConfig(**sizes)).eval()
    experts = sum(value.numel() for name, value in model.named_parameters() if ".experts." in name)
    assert sc.active_params(model, WORDS) == sc.params(model) - experts / 2
    masks = sc.prune_(model, sc.Expert(), sc.TopK(sc.magnitude()), sc.uniform(keep=0.75), sc.Task(WORDS))
    promised = sc.active_params(t.MixtralForCausalLM(t.MixtralConfig(**sizes)), WORDS, masks.plan)
    sc.shrink_(model, masks)
    left = sum(value.numel() for name, value in model.named_parameters() if ".experts." in name)
    assert promised == sc.active_params(model, WORDS) == sc.params(model) - left / 3
    plain = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    assert sc.active_params(plain) == sc.active_params(plain, torch.zeros(1, 3)) == sc.params(plain)


def test_what_keeps_nothing_or_is_no_count_is_an_error():
    with pytest.raises(SecateursError, match="kv_cache_bytes: Sequential has no attention that the example passes"):
        COST(nn.Sequential(nn.Linear(3, 4)), torch.zeros(1, 3))
    with pytest.raises(SecateursError, match="kv_cache_bytes: batch=0, but must be at least 1"):
        sc.kv_cache_bytes(8, 0)
    with pytest.raises(KindError, match="kv_cache_bytes: sequence is"):
        sc.kv_cache_bytes("2048")
