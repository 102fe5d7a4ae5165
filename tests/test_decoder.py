"""Decoders: what a model generates, token by token, in pieces and from what is kept; and what cannot be kept is named."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from secateurs.nested import Value
from secateurs.run import CompileError, Decoder, available, compile_decoder
from secateurs.run.decoding.head import Screen
from secateurs.run.kernels.machine import InstructionSet
from secateurs.run.network.nodes import Linear

pytestmark = pytest.mark.skipif(not available(), reason="secateurs was installed without its kernels")
each_isa = pytest.mark.parametrize("isa", available(), ids=lambda isa: isa.name)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    transformers = pytest.importorskip("transformers")

NAMES = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 50,
    "max_position_embeddings": 160,
    **NAMES,
}
FEWER = {"num_key_value_heads": 2}
MODELS: dict[str, Callable[[], nn.Module]] = {
    "Llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**FEWER, **SMALL)),
    "Qwen2": lambda: transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**FEWER, **SMALL)),
    "Qwen3": lambda: transformers.Qwen3ForCausalLM(transformers.Qwen3Config(head_dim=8, **FEWER, **SMALL)),
    "Mistral": lambda: transformers.MistralForCausalLM(transformers.MistralConfig(**FEWER, **SMALL)),
    "GPT-2": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=50, n_positions=160, **NAMES)
    ),
    "GPT-NeoX": lambda: transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**SMALL)),
    "Phi-3": lambda: transformers.Phi3ForCausalLM(transformers.Phi3Config(**FEWER, **SMALL)),
    "one key head": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(num_key_value_heads=1, **SMALL)),
    "one head, GPT-2": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(n_embd=32, n_layer=2, n_head=1, vocab_size=50, n_positions=160, **NAMES)
    ),
    "one head, GPT-NeoX": lambda: transformers.GPTNeoXForCausalLM(
        transformers.GPTNeoXConfig(**{**SMALL, "num_attention_heads": 1})
    ),
    "Gemma": lambda: transformers.GemmaForCausalLM(transformers.GemmaConfig(head_dim=8, **FEWER, **SMALL)),
}


@pytest.fixture(autouse=True, scope="module")
def one_memory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SECATEURS_CACHE", str(tmp_path_factory.mktemp("measured")))
        yield


def made(name: str, sparsity: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    for module in model.modules():
        if isinstance(module, nn.Linear) and sparsity:
            module.weight.data[torch.rand(module.weight.shape) < sparsity] = 0
    return model


def likely(model: nn.Module, ids: Tensor, count: int) -> Tensor:
    """What transformers generate."""
    return model.generate(ids, max_new_tokens=count, do_sample=False, attention_mask=torch.ones_like(ids), pad_token_id=0)  # type: ignore[operator]


QUICK = ("Llama", "GPT-2", "GPT-NeoX", "Gemma")


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in MODELS])
def test_it_generates_what_the_model_generates(name: str) -> None:
    model = made(name, sparsity=0.6)
    fast = compile_decoder(model, 160, threads=1, tune=False)
    for length in (1, 5, 40, 140):  # token by token, a piece, more than one
        ids = torch.randint(0, 50, (1, length))
        assert torch.equal(fast.generate(ids, 12), likely(model, ids, 12))
        with torch.no_grad():
            wanted = model(input_ids=ids).logits[0, -1]
        assert torch.allclose(fast.prompt(ids), wanted, atol=1e-5)
        assert torch.allclose(fast.prompt(ids[0].tolist()), wanted, atol=1e-5)


@each_isa
def test_a_pruned_model_on_every_instruction_set_and_two_threads(isa: InstructionSet) -> None:
    model = made("Llama", sparsity=0.7)
    ids = torch.randint(0, 50, (1, 30))
    fast = compile_decoder(model, 64, threads=2, isa=isa.name, tune=False)
    assert torch.equal(fast.generate(ids, 20), likely(model, ids, 20))


def test_kernels_are_timed_and_told_for_prompts_and_for_steps() -> None:
    model = made("Llama", sparsity=0.7)
    ids = torch.randint(0, 50, (1, 30))
    fast = compile_decoder(model, 40, threads=1)
    assert torch.equal(fast.generate(ids, 10), likely(model, ids, 10))
    assert {layer.kernel.split(",")[0].split()[0] for layer in fast.explain().layers} == {"vector", "spmm"}


def test_steps_go_on_where_the_prompt_ended() -> None:
    model = made("Llama")
    fast = compile_decoder(model, 64, threads=1, tune=False)
    ids = torch.randint(0, 50, (1, 30))
    fast.prompt(ids[:, :22])
    for place in range(22, 30):
        found = fast.step(int(ids[0, place]))
        assert fast.length == place + 1
        with torch.no_grad():
            assert torch.allclose(found, model(input_ids=ids[:, : place + 1]).logits[0, -1], atol=1e-5)
        fast.length = place  # once more, without all logits
        assert fast.follow(int(ids[0, place])) == int(found.argmax())
    with torch.no_grad():  # nothing is left of what was before
        assert torch.allclose(fast.prompt([3]), model(input_ids=torch.tensor([[3]])).logits[0, -1], atol=1e-5)


def test_it_stops_and_draws() -> None:
    fast = compile_decoder(made("Llama"), 64, threads=1, tune=False)
    ids = torch.randint(0, 50, (1, 9))
    whole = fast.generate(ids, 20)[0].tolist()
    stop = whole[14]
    assert fast.generate(ids, 20, stop=stop)[0].tolist() == whole[: whole.index(stop, 9) + 1]
    assert fast.generate(ids, 0)[0].tolist() == ids[0].tolist()
    drawn = [fast.generate(ids, 20, temperature=2.0, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    nearly = fast.generate(ids, 20, temperature=1e-4, generator=torch.Generator().manual_seed(0))
    assert nearly[0].tolist() == whole


def test_the_model_may_change_afterwards() -> None:
    model = made("Llama")
    ids = torch.randint(0, 50, (1, 9))
    fast = compile_decoder(model, 64, threads=1, tune=False)
    wanted = likely(model, ids, 9)
    for parameter in model.parameters():
        parameter.data.zero_()
    assert torch.equal(fast.generate(ids, 9), wanted)


@each_isa
@pytest.mark.parametrize("biased", [False, True])
def test_the_screen_leaves_out_no_word_that_could_be_the_one(isa: InstructionSet, biased: bool) -> None:
    torch.manual_seed(0)
    for inputs in (1, 7, 64, 100):
        weight = torch.randn(700, inputs).round(decimals=1)  # with many that are equal, or nearly
        weight[::7] = weight[0] * (1 + 1e-4 * torch.randn(100, 1))
        weight[3] = 0
        bias = torch.randn(700).round(decimals=1) if biased else None
        screen = Screen(Linear("head", Value((1, inputs)), Value((1, 700)), weight, bias), isa, 1)
        for scale in (1.0, 1e-20, 1e10):
            x = torch.randn(inputs) * scale
            exact = weight.double() @ x.double() + (0 if bias is None else bias.double())
            found = screen.largest(x)
            assert float(exact.max() - exact[found]) <= 1e-5 * float(weight.norm(dim=1).max() * x.norm() + exact.abs().max())
        assert screen.largest(torch.full((inputs,), float("nan"))) == 0


class Own(nn.Module):
    """A decoder of plain torch, without anything of transformers."""

    def __init__(self, mixes: Callable[[Tensor], Tensor] | None = None, causal: bool = True) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(20, 16), nn.Embedding(40, 16)
        self.qkv, self.out, self.norm = nn.Linear(16, 48), nn.Linear(16, 16), nn.LayerNorm(16)
        self.head, self.mixes, self.causal = nn.Linear(16, 20), mixes, causal

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids) + self.places(torch.arange(ids.shape[1]))
        parts = self.qkv(self.norm(x)).chunk(3, -1)
        query, key, value = (part.unflatten(-1, (2, 8)).transpose(1, 2) for part in parts)
        seen = functional.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        x = x + self.out(seen.transpose(1, 2).flatten(2))
        x = x if self.mixes is None else self.mixes(x)
        return self.head(x).tanh() * 3


def test_a_decoder_of_plain_torch_with_something_after_its_head() -> None:
    model = Own().eval()
    fast = compile_decoder(model, 40, threads=1, tune=False)
    ids = torch.randint(0, 20, (1, 25))
    with torch.no_grad():
        assert torch.allclose(fast.prompt(ids), model(ids)[0, -1], atol=1e-5)
        for _ in range(6):
            ids = torch.cat([ids, model(ids)[:, -1:].argmax(-1)], 1)
    assert torch.equal(fast.generate(ids[:, :25], 6), ids)


MIXES: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "the mean over tokens": (
        lambda: Own(lambda x: x - x.mean(1, keepdim=True)),
        "mean .* so tokens cannot be run one after the other",
    ),
    "a sum over tokens": (lambda: Own(lambda x: x.cumsum(1)), "cumsum is none that is known to treat tokens one by one"),
    "tokens turned around": (lambda: Own(lambda x: x.flip(1)), "flip is none that is known"),
    "tokens in the place of channels": (lambda: Own(lambda x: x @ x.mT @ x), "bmm makes or takes"),
    "eyes for what comes": (lambda: Own(causal=False), "attention lets tokens see those after them"),
    "no head": (lambda: nn.Embedding(20, 8), "no linear layer makes the logits"),
    "no logits": (lambda: nn.Sequential(nn.Embedding(20, 8), nn.Flatten()), "it is no decoder"),
    "a window": (
        lambda: transformers.MistralForCausalLM(transformers.MistralConfig(sliding_window=8, **FEWER, **SMALL)),
        "attention.* has a mask",
    ),
}


@pytest.mark.parametrize("what", MIXES)
def test_what_mixes_tokens_otherwise_is_named(what: str) -> None:
    model, message = MIXES[what]
    with pytest.raises(CompileError, match=message):
        compile_decoder(model().eval(), 40, threads=1, tune=False)


def test_angles_that_change_with_the_length_are_refused() -> None:
    class Longer(Own):
        def forward(self, ids: Tensor) -> Tensor:
            x = self.words(ids) + torch.arange(16) * torch.arange(ids.shape[1])[None, :, None] / ids.shape[1]
            return self.head(self.norm(x))

    with pytest.raises(CompileError, match="changes with the length of the text"):
        compile_decoder(Longer().eval(), 40, threads=1, tune=False)


class OwnOf(Own):
    """The same of other words, or with numbers of them beside its vectors."""

    def __init__(self, words: Callable[[Tensor], Tensor] = lambda ids: ids, beside: Callable[[Tensor], Any] = lambda _: 0) -> None:
        super().__init__()
        self.of_words, self.beside = words, beside

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.norm(self.words(self.of_words(ids)) + self.beside(ids)))


@pytest.mark.parametrize(
    ("model", "length", "message"),
    [
        (lambda: OwnOf(lambda ids: ids * (torch.arange(ids.shape[1]) < 30)), 40, r"mul takes a constant of \(40,\)"),
        (lambda: OwnOf(lambda ids: ids * (torch.arange(ids.shape[1]) < 30)[None]), 40, r"mul takes a constant of \(1, 40\)"),
        (lambda: OwnOf(beside=lambda ids: ids / 20), 16, "numbers of tokens beside vectors"),
    ],
)
def test_where_tokens_are_is_told_by_the_place_of_a_dimension(model: Callable[[], nn.Module], length: int, message: str) -> None:
    """What changes after the first thirty tokens no short text shows; and as many tokens as channels have one size."""
    with pytest.raises(CompileError, match=message):
        compile_decoder(model().eval(), length, threads=1, tune=False)


def test_what_is_asked_for_and_cannot_be() -> None:
    fast = compile_decoder(Own().eval(), 40, threads=1, tune=False)
    for call, message in (
        (lambda: fast.generate([1] * 30, 11), "30 tokens and 11 new ones are more than the 40"),
        (lambda: fast.prompt([1] * 41), "41 tokens are more than the 40"),
        (lambda: fast.prompt([]), "a prompt is"),
        (lambda: fast.prompt(torch.ones(2, 3, dtype=torch.int64)), r"not \(2, 3\)"),
        (lambda: fast.prompt([0.5]), "whole numbers"),
        (lambda: fast.generate([1], 2, temperature=-1), "neither can be negative"),
        (lambda: fast.generate([1], 2, temperature=float("nan")), "nor without end"),
        (lambda: fast.prompt("a text"), "not str: give what the tokenizer makes"),  # type: ignore[arg-type]
        (lambda: fast.prompt([3, 20]), "tokens from 3 to 20: the model's words are 0 to 19"),
        (lambda: fast.step(-1), "tokens from -1 to -1: the model's words are"),
        (lambda: compile_decoder(Own().bfloat16(), 40), r"weights in torch.bfloat16, .* compile_decoder\(model.float\(\)\)"),
        (lambda: compile_decoder(made("GPT-2"), 161), "max_length=161: the model rejects a text of so many tokens"),
        (lambda: compile_decoder(Own(), 1), "at least 2 is needed"),
        (lambda: compile_decoder(Own(), 40, isa="none"), "a decoder needs the kernels"),
    ):
        with pytest.raises(CompileError, match=message):
            call()
    assert fast.generate([1], 3, temperature=1e-45).tolist() == fast.generate([1], 3).tolist()
    assert isinstance(fast, Decoder)
