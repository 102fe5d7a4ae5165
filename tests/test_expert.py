"""Experts as units: found where tokens are sent to them, scored by what they add, and taken out with the rows of the router."""

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
from secateurs.nested import tensors_in
from secateurs.types import PatternError, PlanError, SecateursError

SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 40}
SIZES |= {"num_key_value_heads": 1, "num_experts_per_tok": 2}
WORDS = {"input_ids": torch.arange(24).view(2, 12) % 40, "use_cache": False}
MANY = {"input_ids": torch.randint(0, 40, (4, 64), generator=torch.Generator().manual_seed(0)), "use_cache": False}


def mixtral(t):
    return t.MixtralForCausalLM(t.MixtralConfig(**SIZES, num_local_experts=4)), 4


def qwen2(t):
    small = {"num_experts": 6, "moe_intermediate_size": 12, "shared_expert_intermediate_size": 12}
    return t.Qwen2MoeForCausalLM(t.Qwen2MoeConfig(**SIZES, **small)), 6


def qwen3(t):
    return t.Qwen3MoeForCausalLM(t.Qwen3MoeConfig(**SIZES, num_experts=6, moe_intermediate_size=12, head_dim=8)), 6


def olmoe(t):
    return t.OlmoeForCausalLM(t.OlmoeConfig(**SIZES, num_experts=6)), 6


def gpt_oss(t):
    return t.GptOssForCausalLM(t.GptOssConfig(**SIZES, num_local_experts=4, head_dim=8)), 4


MODELS = [mixtral, gpt_oss, *(pytest.param(each, marks=pytest.mark.slow) for each in (qwen2, qwen3, olmoe))]


@pytest.fixture
def t():
    transformers = pytest.importorskip("transformers")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    return transformers


class Mixture(nn.Module):
    """Plain experts in a list, two to a token; ``late`` weighs their answers where nobody sees which is whose."""

    def __init__(self, late: bool = False) -> None:
        super().__init__()
        self.router, self.late = nn.Linear(8, 5), late
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 8)) for _ in range(5))

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.router(x).softmax(-1).topk(2)
        weights = weights / weights.sum(-1, keepdim=True)
        if self.late:
            answers = torch.stack([expert(x) for expert in self.experts], 1)
            return (answers.gather(1, chosen[..., None].expand(-1, -1, 8)) * weights[..., None]).sum(1)
        total = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            rows, places = torch.where(chosen == number)
            total.index_add_(0, rows, expert(x[rows]) * weights[rows, places, None])
        return total


class Plain(nn.Module):
    def __init__(self, late: bool = False) -> None:
        super().__init__()
        self.embed, self.mixture, self.head = nn.Linear(3, 8), Mixture(late), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.head(x + self.mixture(x))


def answer(model: nn.Module, example: object) -> Tensor:
    return next(tensors_in(run_example(model, example)))


@pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)
def test_experts_of_transformers_go_with_their_rows_of_the_router_and_the_folder_is_an_ordinary_one(t, make, tmp_path):
    model, count = make(t)
    sites = sc.find_sites(model.eval(), sc.Expert(), WORDS)
    assert [(site.name, site.units) for site in sites] == [(f"model.layers.{layer}.mlp", count) for layer in range(2)]
    masks = sc.prune_(model, sc.Expert(), sc.TopK(sc.magnitude()), sc.uniform(keep=0.5), sc.Task(WORDS))
    promised = sc.params(make(t)[0], WORDS, masks.plan)
    shrunk = sc.shrink_(model, masks)
    assert shrunk.sites == {f"model.layers.{layer}.mlp.experts": (count, count // 2) for layer in range(2)}
    assert not shrunk.skipped and sc.params(model) == promised and shrunk.largest_difference < 1e-6
    sc.save(model, tmp_path / "small")
    ours = answer(model, WORDS)
    assert torch.equal(answer(type(model).from_pretrained(tmp_path / "small").eval(), WORDS), ours)
    assert torch.equal(answer(sc.load(tmp_path / "small", type(model)).eval(), WORDS), ours)


def test_what_is_left_answers_as_a_router_does_that_never_chooses_the_others(t):
    model, _ = mixtral(t)
    masks = sc.prune_(model.eval(), sc.Expert(), sc.TopK(sc.random(seed=1)), sc.uniform(keep=0.5), sc.Task(WORDS))
    kept = [mask.flatten(1).any(1) for name, mask in masks.items() if name.endswith("gate.weight")]
    for layer, stay in zip(model.model.layers, kept, strict=True):
        layer.mlp.gate.forward = _never(layer.mlp.gate, stay)
    expected = answer(model, WORDS)
    for layer in model.model.layers:
        del layer.mlp.gate.forward
    masked = answer(model, WORDS)
    sc.shrink_(model, masks)
    assert torch.allclose(answer(model, WORDS), expected, atol=1e-6)
    assert not torch.allclose(masked, expected, atol=1e-4)  # a masked expert is chosen still, and gives zeros


def _never(router: nn.Module, stay: Tensor):
    def forward(x: Tensor):
        logits = nn.functional.linear(x, router.weight).masked_fill(~stay, -torch.inf)
        values, chosen = logits.softmax(-1).topk(router.top_k)
        return logits, values / values.sum(-1, keepdim=True), chosen

    return forward


@pytest.mark.parametrize("how", ["eager", "batched_mm", "grouped_mm"])
def test_reap_is_the_mean_over_its_tokens_of_weight_times_norm_of_the_answer(t, how):
    model, _ = gpt_oss(t)
    model.eval().set_experts_implementation(how)
    sites = sc.find_sites(model, sc.Expert(), WORDS)
    needs = [*sc.reap().needs, *sc.routed().needs]
    stats = sc.observe(model, sites, needs, sc.Task(WORDS, calibration=[MANY, WORDS]))["model.layers.0.mlp"]
    seen: list[tuple[Tensor, ...]] = []
    experts = model.model.layers[0].mlp.experts
    experts.register_forward_pre_hook(lambda _, args, kwargs: seen.append((*args, *kwargs.values())), with_kwargs=True)
    for batch in (MANY, WORDS):
        run_example(model, batch)
    for expert in range(4):
        found = []
        for x, chosen, weights in seen:
            rows, places = torch.where(chosen == expert)
            up = x[rows] @ experts.gate_up_proj[expert] + experts.gate_up_proj_bias[expert]
            out = experts._apply_gate(up) @ experts.down_proj[expert] + experts.down_proj_bias[expert]
            found.append(weights[rows, places] * out.norm(dim=1))
        assert stats[needs[0]][0, expert].item() == pytest.approx(torch.cat(found).mean().item(), rel=1e-4)
        assert stats[needs[1]][0, expert].item() == sum(map(len, found))


def test_experts_of_a_list_are_units_too_and_scored_alike():
    model, x = Plain().eval(), torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    sites = sc.find_sites(model, sc.Expert(), x)
    assert [site.name for site in sites] == [f"mixture.experts.{index}" for index in range(5)]
    need = sc.reap().needs[0]
    stats = sc.observe(model, sites, [need], sc.Task(x, calibration=[x[:40], x[40:]]))
    hidden = model.embed(x)
    weights, chosen = model.mixture.router(hidden).softmax(-1).topk(2)
    weights = weights / weights.sum(-1, keepdim=True)
    expected = {}
    for number, expert in enumerate(model.mixture.experts):
        rows, places = torch.where(chosen == number)
        expected[f"mixture.experts.{number}"] = (weights[rows, places] * expert(hidden[rows]).norm(dim=1)).mean().item()
    assert {name: stats[name][need].item() for name in expected} == pytest.approx(expected, rel=1e-4)
    shrunk = sc.methods.reap_(model, sc.Task(x, calibration=[x]), sparsity=0.4)
    assert shrunk.sites == {"mixture.experts": (5, 3)} and model.mixture.router.out_features == 3
    assert shrunk.largest_difference < 1e-6


def test_a_smaller_mixture_is_loaded_from_its_file_and_optimizers_follow(tmp_path):
    model, x = Plain().eval(), torch.randn(64, 3)
    optimizer = torch.optim.Adam(model.parameters())
    model(x).sum().backward()
    optimizer.step()
    masks = sc.prune_(model, sc.Expert(), sc.TopK(sc.magnitude()), sc.uniform(keep=0.6), sc.Task(x))
    sc.shrink_(model, masks, optimizer=optimizer)
    assert optimizer.state[model.mixture.router.weight]["exp_avg"].shape == (3, 8)
    sc.save(model, tmp_path / "small.safetensors")
    assert torch.equal(answer(sc.load(tmp_path / "small.safetensors", Plain), x), answer(model, x))


def test_a_plan_of_experts_is_known_by_its_numbers_and_not_by_the_words_of_the_pattern(t, tmp_path):
    x = torch.randn(64, 3)
    for make, example, sites in (
        (lambda: Plain().eval(), x, {"mixture.experts": (5, 2)}),
        (lambda: mixtral(t)[0].eval(), WORDS, {f"model.layers.{layer}.mlp.experts": (4, 2) for layer in range(2)}),
    ):
        model = make()
        masks = sc.prune_(model, sc.Expert(), sc.TopK(sc.magnitude()), sc.uniform(keep=0.5), sc.Task(example))
        masks.origin = replace(masks.origin, pattern="mine")
        sc.save(model, tmp_path / "masked.safetensors", masks, sparse=True)
        again = make()
        loaded = sc.load_masks(tmp_path / "masked.safetensors", sc.load(tmp_path / "masked.safetensors", again))
        assert sc.shrink_(again, loaded, example).sites == sites == sc.shrink_(model, masks).sites
        assert torch.equal(answer(again, example), answer(model, example))


def test_as_many_experts_stay_as_a_token_is_sent_to(t):
    model, _ = mixtral(t)
    task = sc.Task(WORDS, calibration=[MANY])
    with pytest.raises(
        PlanError,
        match=r"uniform\(keep=0\.25\) keeps 2 of .*, but each token is sent to 2 experts, so that 4 stay in 2 mixtures: ask for less",
    ):
        sc.methods.reap_(model, task, sparsity=0.75)
    (site, _) = sc.find_sites(model, sc.Expert(), WORDS)
    with pytest.raises(PlanError, match=r"model.layers.0.mlp: the plan keeps 1 experts, but each token is sent to 2 of them"):
        site.each_of(1)
    plain, x = Plain(), torch.randn(64, 3)
    before = plain.state_dict()["mixture.router.weight"].clone()
    with pytest.raises(SecateursError, match=r"mixture.experts: 1 of 5 experts would be left, but each token is sent to 2 of them"):
        sc.methods.reap_(plain, sc.Task(x, calibration=[x]), sparsity=0.8)
    assert torch.equal(plain.mixture.router.weight, before)


def test_what_is_no_mixture_or_shows_too_little_is_an_error_or_listed(t):
    with pytest.raises(PatternError, match=r"Expert\(\) finds no site in Sequential; it has no router that sends"):
        sc.find_sites(nn.Sequential(nn.Linear(2, 2)), sc.Expert(), torch.zeros(1, 2))
    with pytest.raises(PatternError, match='Expert: within is "isomorphic"'):
        sc.Expert("row")
    with pytest.raises(PatternError, match="removes whole experts"):
        sc.Expert().cut((1, 2, 2))
    more = {
        "n_routed_experts": 8,
        "num_local_experts": 8,
        "moe_intermediate_size": 12,
        "first_k_dense_replace": 1,
        "q_lora_rank": 8,
    }
    more |= {"kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8, "n_group": 2, "topk_group": 1}
    grouped = t.DeepseekV3ForCausalLM(t.DeepseekV3Config(**{**SIZES, "num_key_value_heads": 2}, **more)).eval()
    with pytest.raises(PatternError, match=r"model.layers.1.mlp: its router chooses among groups of experts"):
        sc.find_sites(grouped, sc.Expert(), WORDS)
    x = torch.randn(64, 3)
    with pytest.raises(
        SecateursError, match=r"mixture.experts.\d: what it answers is not multiplied with one weight a token at once"
    ):
        sc.methods.reap_(Plain(late=True), sc.Task(x, calibration=[x]))
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises(SecateursError, match=r"0: expert_saliency looks at tokens that are sent to experts.*take Expert\(\)"):
        sc.prune_(model, sc.Channel(), sc.TopK(sc.reap()), sc.uniform(keep=0.5), sc.Task(x, calibration=[x]))


def test_an_expert_that_no_token_reached_is_named_and_goes_first():
    model, x = Plain().eval(), torch.randn(64, 3)
    with torch.no_grad():
        model.mixture.router.bias[3] = -1e4
    with pytest.warns(UserWarning, match=r"mixture.experts.3: no calibration token was sent to 1 of its 1 experts"):
        masks = sc.prune_(model, sc.Expert(), sc.TopK(sc.reap()), sc.uniform(keep=0.8), sc.Task(x, calibration=[x]))
    assert masks.plan["mixture.experts.3"] == 0


def test_a_folder_with_half_of_the_experts_needs_nothing_of_ours(t, tmp_path):
    model, _ = mixtral(t)
    sc.methods.reap_(model.eval(), sc.Task(WORDS, calibration=[MANY]))
    sc.save(model, tmp_path / "small")
    code = f"""
        import sys
        sys.modules["secateurs"] = None
        import torch, transformers
        model = transformers.AutoModelForCausalLM.from_pretrained({str(tmp_path / "small")!r}).eval()
        print(model.config.num_local_experts, float(model(torch.arange(24).view(2, 12) % 40).logits.double().sum()))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    count, total = done.stdout.strip().splitlines()[-1].split()
    assert (int(count), json.loads(total)) == (2, pytest.approx(float(answer(model, WORDS).double().sum()), rel=1e-5))
