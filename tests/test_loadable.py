"""Plans that are the same in every block, and folders that transformers read without us."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import secateurs as sc
from secateurs.allocate import bounds, equal_in_blocks, plan_of
from secateurs.patterns import find_sites
from secateurs.types import PlanError


class Block(nn.Module):
    """Two layers and what came in."""

    def __init__(self, width: int = 8, inner: int = 12) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(x)))


class Stack(nn.Module):
    def __init__(self, inner: tuple[int, ...] = (12, 12, 12)) -> None:
        super().__init__()
        self.embed, self.blocks, self.out = nn.Linear(4, 8), nn.ModuleList(Block(inner=each) for each in inner), nn.Linear(8, 3)

    def forward(self, x):
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.out(x)


def sites_of(model, pattern=None, **chosen):
    return find_sites(model, pattern or sc.Channel(), torch.randn(2, 4), **chosen)


def kept_by(sites, counts):
    """What equal blocks keep where an allocator has given so many units to each site."""
    plan = plan_of(sites, dict(zip([site.name for site in sites], counts, strict=True)))
    return dict(equal_in_blocks(sites, plan))


# ------------------------------------------------------------------------------------------------ equal in every block


def test_blocks_keep_together_what_they_did_and_each_the_same():
    sites = sites_of(Stack())
    assert [site.name for site in sites] == ["embed", "blocks.0.up", "blocks.1.up", "blocks.2.up"]
    assert list(kept_by(sites, [8, 2, 3, 10]).values()) == [8, 5, 5, 5]
    assert list(kept_by(sites, [4, 3, 3, 5]).values()) == [4, 3, 3, 3]  # two units that the blocks cannot share are not spent
    assert list(kept_by(sites, [8, 12, 12, 12]).values()) == [8, 12, 12, 12]


def test_blocks_correspond_by_what_they_are_and_not_by_digits_in_names():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer1, self.layer2 = nn.Linear(4, 8), nn.Linear(8, 8)  # no blocks, though numbered
            self.first, self.tail = nn.ModuleDict({"a": Block(), "b": Block()}), Block()

        def forward(self, x):
            x = self.layer2(self.layer1(x).relu()).relu()
            return self.tail(self.first["b"](self.first["a"](x)))

    sites = sites_of(Odd())
    names = [site.name for site in sites]
    assert names == ["layer1", "first.a.up", "first.b.up", "tail.up"], names
    assert list(kept_by(sites, [4, 1, 7, 6]).values()) == [4, 4, 4, 6]


def test_blocks_of_other_widths_are_made_equal_among_their_like():
    sites = sites_of(Stack((12, 6, 12, 6)), only="blocks*")
    assert list(kept_by(sites, [2, 1, 8, 5]).values()) == [5, 3, 5, 3]


def test_what_an_earlier_pruning_took_of_one_block_the_others_lose_too():
    model = Stack()
    task, solver = sc.Task(torch.zeros(1, 4)), sc.TopK(sc.magnitude())
    masks = sc.prune_(model, sc.Channel(), solver, sc.by_layer({"blocks.1.up": 0.75}), task, only="blocks.1")
    sites = sites_of(model, masks=masks)
    assert [site.available for site in sites] == [8, 12, 3, 12]
    plan = sc.uniform(keep=0.6, same_in_every_block=True)(sites, lambda: iter([]))
    assert list(plan.values()) == [6, 3, 3, 3]


def test_multiples_floors_and_ceilings_hold_in_every_block():
    sites = sites_of(Stack((16, 16)), sc.Channel(round_to=4))
    assert list(kept_by(sites, [8, 3, 13]).values()) == [8, 8, 8]
    plan = sc.uniform(sparsity=0.9, ceiling=0.5, same_in_every_block=True)(sites, lambda: iter([]))
    assert all(share.sparsity <= 0.5 for share in plan.shares.values()) and plan["blocks.0.up"] == plan["blocks.1.up"] == 8


@pytest.mark.parametrize("pattern", [sc.Channel("model"), sc.Channel("isomorphic"), sc.Channel()], ids=repr)
def test_a_ranking_of_all_sites_says_how_much_and_each_block_gets_the_same(pattern):
    torch.manual_seed(0)
    model = Stack()
    with torch.no_grad():
        model.blocks[2].up.weight.mul_(10)
    sites = sites_of(model, pattern, only="blocks*")
    scores = sc.TopK(sc.magnitude())
    free = sc.global_threshold(keep=0.5)(sites, lambda: scores.scores(sites, {}))
    same = sc.global_threshold(keep=0.5, same_in_every_block=True)(sites, lambda: scores.scores(sites, {}))
    assert len(set(free.values())) > 1 and list(same.values()) == [6, 6, 6]


@pytest.mark.parametrize("cost", [sc.params, sc.macs], ids=["params", "macs"])
@pytest.mark.parametrize("keep", [0.35, 0.5, 0.72])
@pytest.mark.parametrize("allocator", [sc.uniform, sc.global_threshold], ids=["uniform", "global"])
def test_a_budget_is_met_to_one_unit_in_every_block(cost, keep, allocator):
    torch.manual_seed(0)
    model, solver = Stack((12,) * 5), sc.TopK(sc.magnitude())
    sites = sites_of(model, only="blocks*")
    plan = sc.within_budget(sc.Budget(cost, keep=keep), allocator, same_in_every_block=True)(
        sites, lambda: solver.scores(sites, {})
    )
    assert len(set(plan.values())) == 1
    price = cost.prepare(model, sites.example)
    limit = keep * price(None)
    more = plan_of(sites, {name: kept + 1 for name, kept in plan.items()})
    assert price(plan) <= limit < price(more) and plan.promised == {cost.name: price(plan)}


def test_a_layer_that_takes_part_in_some_blocks_alone_is_an_error_that_says_why():
    task, solver, allocate = sc.Task(torch.zeros(1, 4)), sc.TopK(sc.magnitude()), sc.uniform(keep=0.5, same_in_every_block=True)
    told = r'^blocks.1.up takes no part \(.*\), so same_in_every_block=True .* blocks.0.up: .*only="\*.up\*"'
    with pytest.raises(PlanError, match=told):
        sc.prune_(Stack(), sc.Channel(), solver, allocate, task, skip="blocks.1")


def test_the_bounds_of_one_block_are_those_of_all():
    sites = sites_of(Stack(), only="blocks*")
    assert [bounds(site, 1).high for site in sites] == [12, 12, 12]
    assert list(kept_by(sites, [0, 0, 0]).values()) == [1, 1, 1]


# ------------------------------------------------------------------------------------------------ folders that need nobody

transformers = pytest.importorskip("transformers")
HF: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 64,
}
GROUPED = {**HF, "num_key_value_heads": 2}
OLD = {"n_embd": 32, "n_head": 4, "n_layer": 2, "vocab_size": 64}
OPT = {**HF, "ffn_dim": 48, "word_embed_proj_dim": 32, "max_position_embeddings": 64}
VIT = {**HF, "image_size": 16, "patch_size": 4}

# Which class, of which configuration, what makes its inner units, and whether the configuration can say how many heads there are.
CLASSES = [
    ("LlamaForCausalLM", GROUPED, "*.mlp.*", True),
    ("MistralForCausalLM", GROUPED, "*.mlp.*", True),
    ("Qwen2ForCausalLM", GROUPED, "*.mlp.*", True),  # biases, and no head_dim of its own
    ("Qwen3ForCausalLM", {**GROUPED, "head_dim": 16}, "*.mlp.*", True),  # normalised queries and keys
    ("GemmaForCausalLM", {**GROUPED, "head_dim": 16}, "*.mlp.*", True),
    ("PhiForCausalLM", HF, "*.mlp.*", True),
    ("Phi3ForCausalLM", {**GROUPED, "pad_token_id": 0}, "*.mlp.*", True),  # queries, keys and values in one
    ("ViTForImageClassification", VIT, "*.mlp.*", True),
    ("GPT2LMHeadModel", OLD, "*.mlp.c_fc", False),
    ("OPTForCausalLM", OPT, "*.fc1", False),
    ("GPTNeoXForCausalLM", HF, "*.mlp.*", False),
    ("FalconForCausalLM", HF, "*.mlp.*", False),
    ("BertForMaskedLM", HF, "*.intermediate.dense", False),
]

QUICK = (
    "LlamaForCausalLM",
    "Qwen2ForCausalLM",
    "Phi3ForCausalLM",
    "GPT2LMHeadModel",
    "ViTForImageClassification",
    "BertForMaskedLM",
)
HERE = CLASSES if os.environ.get("SECATEURS_ALL") == "1" else [row for row in CLASSES if row[0] in QUICK]


def made(name, sizes):
    torch.manual_seed(0)
    transformers.utils.logging.set_verbosity_error()
    kind = getattr(transformers, name)
    config = kind.config_class(**sizes)
    config.eos_token_id = config.bos_token_id = None
    return kind(config).eval()


def example_of(name):
    if name.startswith("ViT"):
        return {"pixel_values": torch.randn(1, 3, 16, 16)}
    return {"input_ids": torch.tensor([[3, 1, 4, 1, 5, 9]]), **({} if name.startswith("Bert") else {"use_cache": False})}


def shrunk(name, sizes, *only):
    """Half of the heads and of the inner units, of a ranking of all that would take most from the second block."""
    model, example = made(name, sizes), example_of(name)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            parameter.mul_(0.5 if ".1." in path else 1)
    how = sc.global_threshold(keep=0.5, same_in_every_block=True)
    masks = sc.prune_(model, sc.Channel("isomorphic"), sc.TopK(sc.magnitude()), how, sc.Task(example=example), only=only)
    assert not sc.shrink_(model, masks).skipped
    return model


PARTS = ("gate_proj", "gate_up_proj", "fc1", "c_fc", "dense_h_to_4h")

READER = """
import json, sys
sys.modules["secateurs"] = None
import torch, transformers
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
folder, found = sys.argv[1], {}
for name, example in torch.load(f"{folder}/examples.pt").items():
    model = getattr(transformers, name).from_pretrained(f"{folder}/{name}").eval()
    with torch.no_grad():
        found[name] = {"logits": model(**example).logits.flatten().tolist(), "text": []}
        if model.can_generate():
            text = model.generate(example["input_ids"], do_sample=False, max_new_tokens=6, pad_token_id=0)
            found[name]["text"] = text.tolist()
json.dump(found, open(f"{folder}/found.json", "w"))
"""


def written(model, example):
    """What a language model writes, always the likeliest word."""
    if not model.can_generate():
        return []
    return model.generate(example["input_ids"], do_sample=False, max_new_tokens=6, pad_token_id=0).tolist()


@pytest.fixture(scope="module")
def read_elsewhere(tmp_path_factory) -> tuple[dict[str, Any], dict[str, Any], Path]:
    """What the small models answer here, and what a process answers that cannot import us, from their folders."""
    folder, here, examples = tmp_path_factory.mktemp("folders"), {}, {}
    transformers.utils.logging.disable_progress_bar()
    for name, sizes, inner, heads in HERE:
        model, example = shrunk(name, sizes, inner, *["*:heads"][: int(heads)]), example_of(name)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            sc.save(model, folder / name)
        with torch.no_grad():
            here[name] = {"logits": model(**example).logits.flatten(), "text": written(model, example)}
        examples[name] = example
    torch.save(examples, folder / "examples.pt")
    subprocess.run([sys.executable, "-c", READER, str(folder)], check=True, timeout=300)
    return here, json.loads((folder / "found.json").read_text()), folder


@pytest.mark.parametrize(("name", "heads"), [(row[0], row[-1]) for row in HERE], ids=[row[0] for row in HERE])
def test_a_process_that_cannot_import_us_loads_the_folder_and_answers_and_writes_the_same(name, heads, read_elsewhere):
    here, there, folder = read_elsewhere
    torch.testing.assert_close(torch.tensor(there[name]["logits"]), here[name]["logits"], rtol=1e-5, atol=1e-6)
    assert there[name]["text"] == here[name]["text"]
    config = json.loads((folder / name / "config.json").read_text())
    inner = next(config[key] for key in ("n_inner", "ffn_hidden_size", "ffn_dim", "intermediate_size") if key in config)
    count = config["n_head" if "n_head" in config else "num_attention_heads"]
    assert (inner, count) == (64 if name[:3] in ("GPT", "Fal") and "NeoX" not in name else 24, 2 if heads else 4)
    if name == "LlamaForCausalLM":
        assert config["num_key_value_heads"] == 1 and (folder / name / "generation_config.json").exists()


UNSAID = [
    ("BertForMaskedLM", HF, "*:heads", "bert.encoder.layer.0.attention.self.query.weight, 16 long in dimension 0, no more 32"),
    ("BloomForCausalLM", {**HF, "n_layer": 2, "n_head": 4}, "*.mlp.*", "transformer.h.0.mlp.dense_h_to_4h.weight, 64 long"),
]


@pytest.mark.parametrize(("name", "sizes", "only", "message"), UNSAID, ids=["heads", "widths"])
def test_what_a_configuration_cannot_say_is_told(name, sizes, only, message, tmp_path):
    with pytest.warns(
        UserWarning, match=rf"^{name}.from_pretrained will not load this folder, .* \(it has no number for {message}.*sc.load"
    ):
        sc.save(shrunk(name, sizes, only), tmp_path / "small")


def test_blocks_that_differ_are_told_with_the_way_to_make_them_alike(tmp_path):
    model, example = made("LlamaForCausalLM", GROUPED), example_of("LlamaForCausalLM")
    task, solver = sc.Task(example=example), sc.TopK(sc.magnitude())
    sc.shrink_(model, sc.prune_(model, sc.Channel(), solver, sc.by_layer({"*": 0.5}), task, only="model.layers.1.mlp"))
    place = "model.layers.{}.mlp.gate_proj.weight is {}"
    told = f"{place.format(1, 24)} long in dimension 0, and {place.format(0, 48)}: allocate with same_in_every_block=True"
    with pytest.warns(UserWarning, match=re.escape(told)):
        sc.save(model, tmp_path / "small")
