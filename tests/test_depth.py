"""Whole blocks and residual branches as units: found by structure, scored, masked, and taken out for good."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import secateurs as sc
from secateurs.forward import run_example
from secateurs.graph import analyse, branches_of
from secateurs.models import resnet_20
from secateurs.nested import tensors_in
from secateurs.shrink.needed_units import Nonzero
from secateurs.shrink.remembered import steps_of
from secateurs.shrink.replay import replay_
from secateurs.shrink.stacks import idle_entries
from secateurs.shrink.step import Step
from secateurs.types import FileError, PatternError, SecateursError

SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "vocab_size": 40}
TOKENS = torch.arange(12).view(2, 6) % 40
WORDS = {"input_ids": TOKENS, "use_cache": False}


def llama(t, **more):
    return t.LlamaForCausalLM(t.LlamaConfig(**SIZES, num_key_value_heads=1, **more))


def gpt2(t):
    return t.GPT2LMHeadModel(t.GPT2Config(n_embd=16, n_layer=3, n_head=2, vocab_size=40, n_positions=32))


def opt(t):
    more = {"hidden_size": 16, "ffn_dim": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "vocab_size": 40}
    return t.OPTForCausalLM(t.OPTConfig(**more, word_embed_proj_dim=16, max_position_embeddings=32))


def neox(t):
    return t.GPTNeoXForCausalLM(t.GPTNeoXConfig(**SIZES))


def falcon(t):
    return t.FalconForCausalLM(t.FalconConfig(**{key: value for key, value in SIZES.items() if key != "intermediate_size"}))


def qwen2(t):
    return t.Qwen2ForCausalLM(t.Qwen2Config(**SIZES, num_key_value_heads=1))


def mistral(t):
    return t.MistralForCausalLM(t.MistralConfig(**SIZES, num_key_value_heads=1))


def gemma2(t):
    return t.Gemma2ForCausalLM(t.Gemma2Config(**SIZES, num_key_value_heads=1, head_dim=8))


DECODERS = [
    (llama, "model.layers", "self_attn", ".mlp"),
    (qwen2, "model.layers", "self_attn", ".mlp"),
    (mistral, "model.layers", "self_attn", ".mlp"),
    (gpt2, "transformer.h", "attn", ".mlp"),
    (opt, "model.decoder.layers", "self_attn", ":mlp"),
    (neox, "gpt_neox.layers", "attention", ".mlp"),
    (falcon, "transformer.h", "self_attention", ".mlp"),
    (gemma2, "model.layers", "self_attn", ".mlp"),
]


@pytest.fixture
def t():
    transformers = pytest.importorskip("transformers")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.up(self.norm(x)).relu())


class Stack(nn.Module):
    """A plain stack of residual blocks, in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(3, 8), nn.Linear(8, 2)
        self.blocks = nn.ModuleList(Block(8) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def answer(model: nn.Module, example: object) -> Tensor:
    return next(tensors_in(run_example(model, example)))


def prune(model: nn.Module, example: object, pattern: sc.Depth, gone: list[str]) -> sc.Masks:
    """The units named are masked."""
    scores = {site.name: torch.tensor([[float(site.name not in gone)]]) for site in sc.find_sites(model, pattern, example)}
    given = sc.Criterion("by hand", lambda evidence: evidence.weight, lambda values, dims: values.amax(dims))
    keep = 1 - len(gone) / len(scores)
    allocate = sc.global_threshold(keep=keep)
    plan = allocate(sc.find_sites(model, pattern, example), lambda: iter(scores.values()))
    return sc.prune_(model, pattern, sc.TopK(given), lambda sites, _: plan, sc.Task(example))


# ------------------------------------------------------------------------------------------------ found by structure


@pytest.mark.parametrize(("make", "stack", "attention", "mlp"), DECODERS, ids=[make.__name__ for make, *_ in DECODERS])
def test_blocks_and_halves_of_decoders_are_found_in_the_residual_additions(t, make, stack, attention, mlp):
    model = make(t).eval()
    blocks = sc.find_sites(model, sc.Depth(), WORDS)
    assert [site.name for site in blocks] == [f"{stack}.{index}" for index in range(3)] == list(sc.blocks_of(model, WORDS))
    for site in blocks:
        inside = {name for name, _ in model.named_parameters() if name.startswith(f"{site.name}.")}
        assert {member.parameter for member in site.members} == inside
    halves = [site.name for site in sc.find_sites(model, sc.Depth("halves"), WORDS)]
    assert halves == [f"{stack}.{index}{half}" for index in range(3) for half in (f".{attention}", mlp)]
    assert [site.name for site in sc.find_sites(model, sc.Depth("attention"), WORDS)] == halves[::2]
    assert [site.name for site in sc.find_sites(model, sc.Depth("mlp"), WORDS)] == halves[1::2]


def test_an_encoder_decoder_has_both_stacks_but_for_blocks_that_others_read(t):
    config = t.T5Config(d_model=16, d_ff=24, num_layers=2, num_heads=2, d_kv=8, vocab_size=40)
    example = {"input_ids": TOKENS, "decoder_input_ids": TOKENS, "use_cache": False}
    sites = sc.find_sites(t.T5ForConditionalGeneration(config).eval(), sc.Depth(), example)
    assert [site.name for site in sites] == ["encoder.block.1", "decoder.block.1"]
    reasons = {item.name: item.reason for item in sites.skipped}
    assert "relative_attention_bias.weight lies within it and serves other places too" in reasons["encoder.block.0"]


def test_after_a_normalisation_no_block_can_go_which_is_said_but_its_branches_can(t):
    model, example = t.BertModel(t.BertConfig(**SIZES)).eval(), {"input_ids": TOKENS}
    with pytest.raises(
        PatternError, match=r"post-norm: encoder.layer.0.attention.output.LayerNorm normalises what the branch is added to"
    ):
        sc.find_sites(model, sc.Depth(), example)
    names = [site.name for site in sc.find_sites(model, sc.Depth("halves"), example)]
    assert names[:3] == ["encoder.layer.0.attention", "encoder.layer.0:mlp", "encoder.layer.1.attention"]
    masks = prune(model, example, sc.Depth("halves"), ["encoder.layer.1:mlp"])
    before = answer(model, example)
    assert sc.shrink_(model, masks).sites == {"encoder.layer.1.intermediate.dense": (24, 1)}
    assert torch.allclose(answer(model, example), before, atol=1e-6)


def test_of_a_resnet_those_blocks_go_that_pass_their_input_on():
    model, image = resnet_20().eval(), torch.randn(1, 3, 32, 32)
    sites = sc.find_sites(model, sc.Depth(), image)
    assert [site.name for site in sites] == ["layer1.0", "layer1.1", "layer1.2", "layer2.1", "layer2.2", "layer3.1", "layer3.2"]
    reasons = {item.name: item.reason for item in sites.skipped}
    assert "a shortcut that changes the shape" in reasons["layer2.0"] and "layer3.0" in reasons
    with pytest.raises(PatternError, match=r"Depth\(parts='attention'\) finds no site in CifarResNet"):
        sc.find_sites(model, sc.Depth("attention"), image)
    with pytest.raises(
        PatternError, match=r"Depth\(\) finds no site in Sequential; it has no branch that is added to what goes around"
    ):
        sc.find_sites(torch.nn.Sequential(torch.nn.Linear(3, 3)), sc.Depth(), torch.zeros(1, 3))
    masks = prune(model, image, sc.Depth(), ["layer1.1", "layer3.2"])
    before, promised = answer(model, image), masks.plan
    assert sc.shrink_(model, masks).layers == ("layer1.1", "layer3.2")
    assert torch.allclose(answer(model, image), before, atol=1e-5)
    whole = resnet_20()
    assert (sc.params(whole, image, promised), sc.macs(whole, image, promised)) == (sc.params(model), sc.macs(model, image))


def test_weights_that_serve_several_places_are_no_unit():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = Block(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.block(self.block(x)).sum(1)

    with pytest.raises(PatternError, match="its weights serve other places too"):
        sc.find_sites(Twice(), sc.Depth(), torch.randn(2, 4))


def test_activations_that_add_to_what_they_are_given_are_no_branch():
    model = nn.Sequential(nn.Linear(4, 4), nn.GELU(), Block(4), nn.Linear(4, 2))
    model[1].forward = lambda x: x * torch.tanh(0.8 * (x + 0.04 * x**3))
    (branch,) = branches_of(analyse(model, torch.randn(2, 4))).found
    assert branch.parameters[0] == "2.norm.weight" and not branch.attends


def test_what_is_no_part_is_an_error():
    with pytest.raises(PatternError, match="Depth: parts is 'layer', but must be one of 'block', 'attention', 'mlp', 'halves'"):
        sc.Depth("layer")
    with pytest.raises(PatternError, match=r"Depth\(\) removes whole blocks or branches"):
        sc.Depth().cut((1, 4, 4))


# ------------------------------------------------------------------------------------------------ scores


def test_block_influence_is_one_minus_the_mean_cosine_of_before_and_behind():
    model = Stack().double().float().eval()
    batches = [torch.randn(5, 7, 3), torch.randn(2, 7, 3)]
    criterion = sc.block_influence()
    for parts in ("block", "mlp"):
        sites = sc.find_sites(model, sc.Depth(parts), batches[0])
        stats = sc.observe(model, sites, criterion.needs, sc.Task(batches[0], calibration=batches))
        x, expected = model.embed(torch.cat(batches)), []
        for block in model.blocks:
            after = block(x)
            expected.append(1 - nn.functional.cosine_similarity(x, after, dim=-1).mean().item())
            x = after
        found = [stats[site.name][criterion.needs[0]].item() for site in sites]
        assert found == pytest.approx(expected, rel=1e-4)


def test_a_branch_beside_another_is_compared_with_the_stream_that_both_read(t):
    model = neox(t).eval()
    sites = sc.find_sites(model, sc.Depth("halves"), WORDS)
    need = sc.block_influence().needs[0]
    stats = sc.observe(model, sites, [need], sc.Task(WORDS, calibration=[WORDS]))
    layer, seen = model.gpt_neox.layers[0], {}
    layer.register_forward_pre_hook(lambda _, args: seen.update(x=args[0]))
    layer.mlp.register_forward_hook(lambda _, args, out: seen.update(mlp=out))
    layer.attention.register_forward_hook(lambda _, args, out: seen.update(attention=out[0]))
    run_example(model, WORDS)
    for part, name in (("attention", "attention"), ("mlp", "mlp")):
        cosine = nn.functional.cosine_similarity(seen["x"], seen["x"] + seen[part], dim=-1).mean()
        assert stats[f"gpt_neox.layers.0.{name}"][need].item() == pytest.approx(1 - cosine.item(), rel=1e-4)


def test_loss_without_is_the_rise_of_the_loss_where_one_is_left_out_and_leaves_the_model_as_it_was():
    model, data = Stack().eval(), [(torch.randn(4, 3), torch.randn(4, 2)), (torch.randn(2, 3), torch.randn(2, 2))]
    task = sc.Task(data[0][0], calibration=data, loss=nn.functional.mse_loss)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    sites = sc.find_sites(model, sc.Depth(), data[0][0])
    need = sc.loss_without().needs[0]
    stats = sc.observe(model, sites, [need], task)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())

    def loss() -> float:
        return sum(nn.functional.mse_loss(model(x), y).item() * len(x) for x, y in data) / 6

    dense, block = loss(), model.blocks[2]
    model.blocks[2] = nn.Identity()
    assert stats["blocks.2"][need].item() == pytest.approx(loss() - dense, abs=1e-6)
    model.blocks[2] = block


def test_the_greedy_method_looks_again_after_each_block():
    model, x = Stack().eval(), torch.randn(16, 3)
    task = sc.Task(x, calibration=[(x, model(x).detach())], loss=nn.functional.mse_loss)
    masks = sc.methods.depth_(model, task, sparsity=0.5)
    assert sum(masks.plan.values()) == 2
    first = sc.methods.depth_(Stack().eval(), task, sparsity=0.25)
    assert sum(first.plan.values()) == 3


def test_influence_of_what_has_no_stream_is_an_error():
    model, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(3, 4)
    with pytest.raises(SecateursError, match=r"0: stream_change compares the stream before a unit and behind it.*take Depth\(\)"):
        sc.prune_(model, sc.Channel(), sc.TopK(sc.block_influence()), sc.uniform(keep=0.5), sc.Task(x, calibration=[x]))


# ------------------------------------------------------------------------------------------------ gone for good


def test_blocks_leave_their_list_and_masks_and_files_follow(tmp_path):
    model, x = Stack().eval(), torch.randn(5, 3)
    masks = prune(model, x, sc.Depth(), ["blocks.1"])
    more = sc.Masks({"blocks.2.up.weight": torch.rand(16, 8) > 0.5}, model).apply_()
    before, kept = answer(model, x), model.blocks[3]
    shrunk = sc.shrink_(model, masks)
    assert shrunk.layers == ("blocks.1",) and len(model.blocks) == 3 and model.blocks[2] is kept
    assert torch.allclose(answer(model, x), before, atol=1e-6)
    assert list(more) == ["blocks.1.up.weight"]
    model.blocks[1].up.weight.data.fill_(1)
    more.apply_()
    assert not bool(model.blocks[1].up.weight[~more["blocks.1.up.weight"]].any())
    sc.save(model, tmp_path / "small.safetensors")
    again = sc.load(tmp_path / "small.safetensors", Stack)
    assert len(again.blocks) == 3 and torch.equal(answer(again, x), answer(model, x))
    with pytest.raises(SecateursError, match="since shrink_ these masks follow the smaller model"):
        more.bind(Stack())


@pytest.mark.parametrize("parts", ["block", "mlp"])
def test_a_plan_of_blocks_promises_the_bytes_of_the_file_at_most(parts, tmp_path):
    model, x = Stack().eval(), torch.randn(5, 3)
    masks = prune(model, x, sc.Depth(parts), [sc.find_sites(model, sc.Depth(parts), x)[1].name])
    promised = sc.bytes_(model, x, masks.plan)
    sc.shrink_(model, masks)
    sc.save(model, tmp_path / "small.safetensors")
    names = 200 * len(list(Stack().parameters()))  # in the header, of those that go as well
    assert (written := (tmp_path / "small.safetensors").stat().st_size) <= promised < written + names


@pytest.mark.parametrize("kind", ["plain", pytest.param("configured", marks=pytest.mark.slow)])
def test_the_bytes_of_a_plan_hold_for_long_stacks_of_small_blocks_with_their_masks(t, kind, tmp_path):
    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.layer(x).relu()

    def make() -> nn.Module:
        if kind == "plain":
            model = Stack()
            model.blocks = nn.ModuleList(Small() for _ in range(150))
            return model.eval()
        sizes = {**SIZES, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 46}
        return t.Gemma2ForCausalLM(t.Gemma2Config(**sizes, num_key_value_heads=1, head_dim=4)).eval()

    model, example = make(), torch.randn(5, 3) if kind == "plain" else WORDS
    allocate = sc.uniform(keep=149 / 150 if kind == "plain" else 45 / 46)
    masks = sc.prune_(model, sc.Depth(), sc.TopK(sc.magnitude()), allocate, sc.Task(example))
    promised = sc.bytes_(make(), example, masks.plan)
    assert len(sc.shrink_(model, masks).layers) == 1 and not masks
    assert 0.9 * promised < sc.save(model, tmp_path / "small.safetensors", masks, sparse=True) <= promised


def test_where_all_that_is_zero_went_nothing_is_said_to_stay():
    model, x = Stack().eval(), torch.randn(5, 3)
    masks = prune(model, x, sc.Depth(), ["blocks.1"])
    for parameter in model.parameters():  # no zeros but those of the block
        parameter.data += torch.rand_like(parameter) + 0.1
    masks.apply_()
    shrunk = sc.shrink_(model, masks)
    assert shrunk.layers == ("blocks.1",) and not shrunk.skipped


def test_one_block_of_each_list_stays():
    model, x = Stack().eval(), torch.randn(5, 3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("blocks"):
                parameter.zero_()
    before = answer(model, x)
    sc.shrink_(model, example=x)
    assert len(model.blocks) <= 1 and torch.allclose(answer(model, x), before)


@pytest.mark.parametrize("make", [gpt2, opt, gemma2], ids=lambda make: make.__name__)
def test_the_configuration_counts_what_is_left_and_caches_of_keys_are_numbered_anew(t, make, tmp_path):
    model = make(t).eval()
    blocks = [site.name for site in sc.find_sites(model, sc.Depth(), WORDS)]
    masks = prune(model, WORDS, sc.Depth(), [blocks[1]])
    before = answer(model, WORDS)
    assert sc.shrink_(model, masks).layers == (blocks[1],)
    assert torch.allclose(answer(model, WORDS), before, atol=1e-5)
    assert model.config.num_hidden_layers == 2
    ask = {"attention_mask": torch.ones_like(TOKENS), "max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(model.generate(TOKENS, use_cache=True, **ask), model.generate(TOKENS, use_cache=False, **ask))
    sc.save(model, tmp_path / "small", masks)
    again = sc.load(tmp_path / "small", type(model)).eval()
    assert torch.equal(answer(again, WORDS), answer(model, WORDS)) and again.config.num_hidden_layers == 2
    if make is gemma2:
        assert json.loads((tmp_path / "small" / "config.json").read_text())["layer_types"] == model.config.layer_types
        assert len(model.config.layer_types) == 2


def test_a_folder_without_some_blocks_is_an_ordinary_one(t, tmp_path):
    model = llama(t).eval()
    masks = sc.prune_(model, sc.Depth(), sc.TopK(sc.block_influence()), sc.uniform(keep=0.7), sc.Task(WORDS, calibration=[WORDS]))
    sc.shrink_(model, masks)
    sc.save(model, tmp_path / "small", masks)
    ask = {"attention_mask": torch.ones_like(TOKENS), "max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    ours = model.generate(TOKENS, use_cache=True, **ask).tolist()
    code = f"""
        import sys
        sys.modules["secateurs"] = None
        import torch, transformers
        model = transformers.AutoModelForCausalLM.from_pretrained({str(tmp_path / "small")!r}).eval()
        tokens = torch.tensor({TOKENS.tolist()})
        ask = dict(attention_mask=torch.ones_like(tokens), max_new_tokens=5, do_sample=False, pad_token_id=0)
        print([model.generate(tokens, use_cache=cache, **ask).tolist() for cache in (True, False)])
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.strip().splitlines()[-1]) == [ours, ours]


def test_where_other_code_counts_on_a_block_it_stays_and_does_nothing():
    class Counting(Stack):
        def forward(self, x: Tensor) -> Tensor:
            x = self.embed(x)
            for index in range(4):
                x = self.blocks[index](x)
            return self.head(x)

    model, x = Counting().eval(), torch.randn(5, 3)
    masks = prune(model, x, sc.Depth(), ["blocks.2"])
    before = answer(model, x)
    sc.shrink_(model, masks)
    assert len(model.blocks) == 4 and isinstance(model.blocks[2], nn.Identity)
    assert torch.allclose(answer(model, x), before, atol=1e-6)


@pytest.mark.parametrize(
    "document",
    [
        {"entries": {"blocks": [0, 9]}},
        {"entries": {"head": [0]}},
        {"entries": {"blocks": [1, 0]}},
        {"entries": {"blocks": []}},
        {"entries": {"blocks": [0]}, "configs": {"": {"width": [8, 4]}}},
        {"entries": {"blocks": [0]}, "configs": {"": {"width": [8, "four"]}}},
    ],
    ids=str,
)
def test_a_record_of_other_lists_is_refused_and_the_model_stays_whole(document):
    model = Stack()
    before = list(model.state_dict())
    with pytest.raises(FileError):
        replay_(model, [Step.from_document({**Step().to_document(), **document})])
    assert list(model.state_dict()) == before and not steps_of(model)


def test_the_record_of_a_step_reads_back():
    step = Step(
        entries={"layers": [0, 2]}, configs={"": {"num_hidden_layers": [3, 2], "layer_types": [["a", "b", "c"], ["a", "c"]]}}
    )
    assert Step.from_document(json.loads(json.dumps(step.to_document()))) == step
    assert "entries" not in Step().to_document()


def test_a_block_from_which_something_else_is_read_stays():
    class Shown(Block):
        def forward(self, x: Tensor) -> Tensor:
            self.inner = self.up(self.norm(x)).relu()
            return x + self.down(self.inner)

    class Reading(Stack):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(Shown(8) for _ in range(4))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return super().forward(x), self.blocks[-1].inner.sum()

    x = torch.randn(5, 3)
    for model, stay in ((Stack(), {"blocks": [0, 1, 2]}), (Reading(), {})):
        with torch.no_grad():
            model.blocks[3].down.weight.zero_()
            model.blocks[3].down.bias.zero_()
        assert idle_entries(model, analyse(model.eval(), x), Nonzero.of(model)) == stay


def test_of_a_mixture_nothing_is_proven_which_is_said(t):
    more = {"num_key_value_heads": 1, "num_local_experts": 4, "num_experts_per_tok": 2}
    model = t.MixtralForCausalLM(t.MixtralConfig(**SIZES, **more)).eval()
    with pytest.raises(PatternError, match="the model's code decides by numbers, so that of its blocks nothing can be proven"):
        sc.find_sites(model, sc.Depth(), WORDS)
    masks = prune(model, WORDS, sc.Depth("attention"), ["model.layers.1.self_attn"])
    masks.origin = replace(masks.origin, pattern="mine")  # the plan says that it is of whole units
    reasons = {item.name: item.reason for item in sc.shrink_(model, masks).skipped}
    assert "nothing can be proven: it stays, as zeros" in reasons["model.layers.1.self_attn"]
