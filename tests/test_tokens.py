"""What lies between the linear layers of transformers: recognised whatever it is called, and run by kernels like torch would."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from secateurs.nested import Value
from secateurs.run.compiled import compile
from secateurs.run.kernels.machine import InstructionSet, available
from secateurs.run.lowering.lower import lower
from secateurs.run.network.interpret import interpreter
from secateurs.run.network.nodes import Activation, Add, Attention, Linear, Multiply, Network, Node, Norm, Past, Rotary, Torch
from secateurs.run.planning.homes import Segment
from secateurs.run.planning.plan import plan
from secateurs.run.planning.runner import Runner
from secateurs.run.recording.one_call import network_of

has_kernels = pytest.mark.skipif(not available(), reason="secateurs was installed without its kernels")
each_isa = pytest.mark.parametrize("isa", available(), ids=lambda isa: isa.name)
SHAPES = [(1, 1), (1, 3), (2, 2), (1, 20), (3, 7), (2, 70)]  # batch and tokens: rows, panels, panels with several batches


def linear(x: Value, outputs: int) -> Linear:
    """Brings a value to where kernels leave it."""
    weight = torch.randn(outputs, x.shape[-1]) / x.shape[-1] ** 0.5
    return Linear("before", x, Value((*x.shape[:-1], outputs)), weight, None)


def agree(nodes: list[Node], inputs: dict[Value, Tensor], out: Value, isa: InstructionSet, threads: int = 1) -> None:
    """Kernels give what torch gives."""
    network = Network(tuple(inputs), nodes, out, example=tuple(inputs))
    made = plan(network, isa, threads)
    assert all(isinstance(item, Segment) for item in made.items), made.between
    (found,) = Runner(network, made, threads)(*(tensor.clone() for tensor in inputs.values()))
    wanted = interpreter(network)(tuple(tensor.clone() for tensor in inputs.values()))
    assert torch.allclose(found, wanted, atol=2e-5 * float(wanted.abs().max())), (found - wanted).abs().max()


@has_kernels
@each_isa
@pytest.mark.parametrize("shape", SHAPES)
def test_normalisations(isa: InstructionSet, shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    for size, groups, centred, biased in ((20, 1, True, True), (13, 2, False, False), (8, 3, False, True), (64, 1, True, False)):
        x = Value((*shape, 10))
        before = linear(x, size * groups)
        bias = torch.randn(size) if biased else None
        norm = Norm("norm", before.out, Value(before.out.shape), torch.randn(size), bias, 1e-5, centred, groups)
        agree([before, norm], {x: torch.randn(x.shape)}, norm.out, isa)


@has_kernels
@each_isa
@pytest.mark.parametrize("shape", SHAPES)
def test_products_and_sums(isa: InstructionSet, shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    x = Value((*shape, 10))
    one, other = linear(x, 21), linear(x, 21)
    product = Multiply("product", one.out, other.out, Value(one.out.shape))
    total = Add("sum", product.out, other.out, Value(one.out.shape), Activation("silu"))
    agree([one, other, product, total], {x: torch.randn(x.shape)}, total.out, isa)


@has_kernels
@each_isa
@pytest.mark.parametrize("shape", SHAPES)
def test_rotary_embeddings(isa: InstructionSet, shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    for heads, size, width in ((3, 8, 8), (2, 10, 6), (1, 32, 32)):
        x, cos, sin = Value((*shape, 10)), Value((*shape, width)), Value((*shape, width))
        before = linear(x, heads * size)
        turned = Rotary("rotary", before.out, cos, sin, Value(before.out.shape), heads)
        agree([before, turned], {each: torch.randn(each.shape) for each in (x, cos, sin)}, turned.out, isa)


@has_kernels
@each_isa
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("causal", [False, True])
def test_attention(isa: InstructionSet, shape: tuple[int, int], causal: bool) -> None:
    torch.manual_seed(0)
    for heads, of_keys, size, threads in ((4, 2, 8, 1), (3, 3, 21, 2), (6, 1, 40, 1)):
        x = Value((*shape, 10))
        query, key, value = linear(x, heads * size), linear(x, of_keys * size), linear(x, of_keys * size)
        out = Value(query.out.shape)
        node = Attention("attention", query.out, key.out, value.out, out, heads, of_keys, 0.3, causal)
        agree([query, key, value, node], {x: torch.randn(x.shape)}, node.out, isa, threads)


@has_kernels
@each_isa
@pytest.mark.parametrize("tokens", [1, 3, 20, 70])
def test_attention_adds_to_its_past_and_sees_it(isa: InstructionSet, tokens: int) -> None:
    torch.manual_seed(0)
    heads, of_keys, size, most = 4, 2, 12, 100
    x, position = Value((1, tokens, 10)), Value((1,))
    past = Past(position, Value((most, of_keys * size)), Value((most, of_keys * size)))
    query, key, value = linear(x, heads * size), linear(x, of_keys * size), linear(x, of_keys * size)
    node = Attention("attention", query.out, key.out, value.out, Value(query.out.shape), heads, of_keys, 0.3, True, past)
    inputs = {x: torch.randn(x.shape), position: torch.tensor([9.0])}
    inputs |= {each: torch.randn(each.shape) for each in (past.keys, past.values)}
    agree([query, key, value, node], inputs, node.out, isa)
    network = Network(tuple(inputs), [query, key, value, node], node.out, example=tuple(inputs))
    kept, wanted = ([tensor.clone() for tensor in inputs.values()] for _ in range(2))
    Runner(network, plan(network, isa), 1)(*kept)
    interpreter(network)(tuple(wanted))
    for held, before, expected in zip(kept[2:], (inputs[past.keys], inputs[past.values]), wanted[2:], strict=True):
        assert torch.allclose(held, expected, atol=1e-5) and not torch.equal(held, before)
        assert torch.equal(held[:9], before[:9]) and torch.equal(held[9 + tokens :], before[9 + tokens :])


# ---------------------------------------------------------------- recognised

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    transformers = pytest.importorskip("transformers")

SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 50,
    "max_position_embeddings": 64,
}
NAMES = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
MODELS: dict[str, Callable[[], nn.Module]] = {
    "Llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(num_key_value_heads=2, **SMALL, **NAMES)),
    "Qwen2": lambda: transformers.Qwen2ForCausalLM(transformers.Qwen2Config(num_key_value_heads=2, **SMALL, **NAMES)),
    "Qwen3": lambda: transformers.Qwen3ForCausalLM(transformers.Qwen3Config(num_key_value_heads=2, head_dim=8, **SMALL, **NAMES)),
    "Mistral": lambda: transformers.MistralForCausalLM(transformers.MistralConfig(num_key_value_heads=2, **SMALL, **NAMES)),
    "GPT-2": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=50, n_positions=64, **NAMES)
    ),
    "GPT-NeoX": lambda: transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**SMALL, **NAMES)),
    "Phi": lambda: transformers.PhiForCausalLM(transformers.PhiConfig(**SMALL, **NAMES)),
    "Phi-3": lambda: transformers.Phi3ForCausalLM(transformers.Phi3Config(num_key_value_heads=2, **SMALL, **NAMES)),
    "Gemma": lambda: transformers.GemmaForCausalLM(transformers.GemmaConfig(num_key_value_heads=2, head_dim=8, **SMALL, **NAMES)),
}
EMBEDDING = {"embedding", "add", "mul", "Add"}


def decoder(name: str) -> nn.Module:
    torch.manual_seed(0)
    return MODELS[name]().eval()


QUICK = ("Qwen3", "GPT-2", "GPT-NeoX", "Phi-3")


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in MODELS])
def test_nothing_between_the_embedding_and_the_logits_is_left_to_torch(name: str) -> None:
    model = decoder(name)
    for shape in ((1, 20), (2, 7), (1, 2)):
        example = {"input_ids": torch.randint(0, 50, shape), "use_cache": False}
        network = lower(network_of(model, example))
        left = Counter(str(node.function.overloadpacket.__name__) for node in network.nodes if isinstance(node, Torch))
        assert left.keys() <= EMBEDDING, left
        other = {**example, "input_ids": torch.randint(0, 50, shape)}
        with torch.no_grad():
            wanted = model(**other).logits
        assert torch.allclose(interpreter(network)(other).logits, wanted, atol=1e-5)
        for isa in available():
            made = plan(network, isa)
            assert set(made.between) <= {"embedding", "add", "mul"} and sum(isinstance(each, Segment) for each in made.items) == 1
            (found,) = Runner(network, made, 1)(other["input_ids"])
            assert torch.allclose(found, wanted, atol=1e-5)


@has_kernels
def test_masks_and_caches_are_left_to_torch_and_told() -> None:
    model = decoder("Llama")
    mask = torch.ones(2, 9, dtype=torch.int64)
    mask[0, :3] = 0
    example = {"input_ids": torch.randint(0, 50, (2, 9)), "attention_mask": mask}
    fast = compile(model, example, threads=1, tune=False)
    with torch.no_grad():
        wanted = model(**example)
    found = fast(**example)
    assert torch.allclose(found.logits, wanted.logits, atol=1e-5)
    for mine, theirs in zip(found.past_key_values.layers, wanted.past_key_values.layers, strict=True):
        assert torch.allclose(mine.keys, theirs.keys, atol=1e-5) and torch.allclose(mine.values, theirs.values, atol=1e-5)
    assert "torch runs between the kernels" in str(fast.explain()) and fast.explain().between["embedding"] == 1


class Spelled(nn.Module):
    """Something that is nearly one of the steps."""

    def __init__(self, step: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.one, self.other, self.step = nn.Linear(8, 8), nn.Linear(8, 8), step

    def forward(self, x: Tensor) -> Tensor:
        return self.other(self.step(self.one(x)))


def heads(x: Tensor) -> Tensor:
    return x.view(2, 6, 2, 4).transpose(1, 2)


def joined(x: Tensor) -> Tensor:
    return x.transpose(1, 2).reshape(2, 6, 8)


NEARLY: dict[str, Callable[[Tensor], Tensor]] = {
    "the mean over tokens": lambda x: x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 1e-5),
    "a cube": lambda x: x * torch.rsqrt(x.pow(3).abs().mean(-1, keepdim=True) + 1e-5),
    "of something else": lambda x: x * torch.rsqrt(x.sin().pow(2).mean(-1, keepdim=True) + 1e-5),
    "twice, not squared": lambda x: (lambda y: y * torch.rsqrt((y * 2).mean(-1, keepdim=True) + 1e-5))(x.abs()),
    "repeated queries": lambda x: _summed(functional.scaled_dot_product_attention(*[_repeated(x)] * 3)),
    "repeated and turned": lambda x: _summed(_with_angles(_repeated(x), torch.linspace(0, 1, 24).view(1, 1, 6, 4))),
    "repeated and split": lambda x: _summed(torch.cat(_repeated(x).split(2, -1)[::-1], -1)),
    "a mask": lambda x: joined(functional.scaled_dot_product_attention(*[heads(x)] * 3, attn_mask=torch.eye(6) > 0)),
    "heads not before tokens": lambda x: functional.scaled_dot_product_attention(*[x.view(2, 6, 2, 4)] * 3).flatten(2),
    "angles of each head": lambda x: _turned(x, torch.linspace(0, 1, 48).view(1, 2, 6, 4)),
    "the other half negated": lambda x: _turned(x, torch.linspace(0, 1, 24).view(1, 1, 6, 4), minus=1),
    "tokens among each other": lambda x: joined(
        functional.scaled_dot_product_attention(*[x.view(6, 2, 2, 4).permute(1, 2, 0, 3)] * 3)
    ),
}
EXACTLY: dict[str, Callable[[Tensor], Tensor]] = {
    "root mean square": lambda x: torch.rsqrt((x * x).mean(-1, True) + 1e-5) * x,
    "rotary, scaled attention": lambda x: joined(
        functional.scaled_dot_product_attention(
            heads(_turned(x, torch.linspace(0, 1, 24).view(1, 1, 6, 4))), heads(x), heads(x).clone(), scale=0.7, is_causal=True
        )
    ),
    "products": lambda x: x * x.sigmoid().exp() * x.tanh(),
}


def _repeated(x: Tensor) -> Tensor:
    return heads(x)[:, :, None].expand(2, 2, 2, 6, 4).reshape(2, 4, 6, 4)


def _summed(x: Tensor) -> Tensor:
    return joined(x[:, :2] + x[:, 2:])


def _turned(x: Tensor, angles: Tensor, minus: int = 0) -> Tensor:
    return joined(_with_angles(heads(x), angles, minus))


def _with_angles(each: Tensor, angles: Tensor, minus: int = 0) -> Tensor:
    first, second = each[..., :2], each[..., 2:]
    turned = [second, -first] if minus else [-second, first]
    return each * angles.cos() + torch.cat(turned, -1) * angles.sin()


@pytest.mark.parametrize("what", [*NEARLY, *EXACTLY])
def test_what_is_nearly_a_step_is_not_taken_for_it(what: str) -> None:
    torch.manual_seed(0)
    model = Spelled({**NEARLY, **EXACTLY}[what]).eval()
    network = lower(network_of(model, torch.randn(2, 6, 8)))
    x = torch.randn(2, 6, 8)
    with torch.no_grad():
        wanted = model(x)
    assert torch.allclose(interpreter(network)(x), wanted, atol=1e-5)
    assert any(isinstance(node, (Norm, Rotary, Attention, Multiply)) for node in network.nodes) == (what in EXACTLY)
    for isa in available():
        (found,) = Runner(network, plan(network, isa), 1)(x)
        assert torch.allclose(found, wanted, atol=1e-5)


def test_a_turned_part_is_not_joined_with_a_rest_in_another_order() -> None:
    """As many tokens as heads: the shapes do not tell which come first."""

    def step(x: Tensor) -> Tensor:
        other, angles = x.view(1, 2, 2, 4), torch.linspace(0, 1, 4).view(1, 1, 2, 2)
        each = other.transpose(1, 2)[..., :2]
        turned = each * angles.cos() + torch.cat([-each[..., 1:], each[..., :1]], -1) * angles.sin()
        return torch.cat([turned, other[..., 2:]], -1).transpose(1, 2).reshape(1, 2, 8)

    torch.manual_seed(0)
    model, x = Spelled(step).eval(), torch.randn(1, 2, 8)
    network = lower(network_of(model, torch.randn(1, 2, 8)))
    assert any(isinstance(node, Rotary) for node in network.nodes)
    with torch.no_grad():
        assert torch.allclose(interpreter(network)(x), model(x), atol=1e-5)


def test_a_layer_normalisation_whose_statistics_are_read_stays_torchs() -> None:
    class Told(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            return torch.native_layer_norm(x, (8,), None, None, 1e-5)

    (node,) = lower(network_of(Told(), torch.randn(2, 3, 8))).nodes
    assert isinstance(node, Torch)
