"""Mixtures of experts: all experts' matrices in one parameter, found, pruned and observed one by one."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from torch import Tensor, nn

import secateurs as sc
from secateurs.methods import wanda_
from secateurs.patterns import find_weights
from secateurs.products import Products

EXPERTS, WIDE, INNER = 4, 8, 16


class Mixture(nn.Module):
    """Each row goes to two experts. ``way`` says how their products are made, ``inputs_first`` how their matrices lie."""

    def __init__(self, way: str, inputs_first: bool) -> None:
        super().__init__()
        self.way, self.inputs_first = way, inputs_first
        self.router = nn.Linear(WIDE, EXPERTS)
        self.up = nn.Parameter(self._lying(torch.randn(EXPERTS, INNER, WIDE)))
        self.up_bias = nn.Parameter(torch.randn(EXPERTS, INNER))
        self.down = nn.Parameter(self._lying(torch.randn(EXPERTS, WIDE, INNER)))
        self.head = nn.Linear(WIDE, 3)

    def _lying(self, weight: Tensor) -> Tensor:
        return weight.mT.contiguous() if self.inputs_first else weight

    def forward(self, x: Tensor) -> Tensor:
        chosen = self.router(x).topk(2).indices
        return self.head(getattr(self, self.way)(x, chosen))

    def loop(self, x: Tensor, chosen: Tensor) -> Tensor:
        total = torch.zeros_like(x)
        for expert in range(EXPERTS):
            rows = (chosen == expert).any(1).nonzero().flatten()
            up, down = (w[expert].mT if self.inputs_first else w[expert] for w in (self.up, self.down))
            inner = nn.functional.linear(x[rows], up, self.up_bias[expert]).relu()
            total = total.index_add(0, rows, nn.functional.linear(inner, down))
        return total

    def batched(self, x: Tensor, chosen: Tensor) -> Tensor:
        up, down = (w if self.inputs_first else w.mT for w in (self.up, self.down))
        gate = torch.stack([(chosen == expert).any(1) for expert in range(EXPERTS)])[..., None].to(x.dtype)
        inner = torch.baddbmm(self.up_bias[:, None], x.expand(EXPERTS, *x.shape) * gate, up).relu() * gate
        return torch.bmm(inner, down).sum(0)

    def gathered(self, x: Tensor, chosen: Tensor) -> Tensor:
        ids = chosen.flatten()
        up, down = (w[ids] if self.inputs_first else w[ids].mT for w in (self.up, self.down))
        inner = (torch.bmm(x.repeat_interleave(2, 0)[:, None], up) + self.up_bias[ids][:, None]).relu()
        return torch.bmm(inner, down).view(len(x), 2, WIDE).sum(1)

    def grouped(self, x: Tensor, chosen: Tensor) -> Tensor:
        ids, order = chosen.flatten().sort()
        ends = torch.bincount(ids, minlength=EXPERTS).cumsum(0).int()
        up, down = (w if self.inputs_first else w.mT for w in (self.up, self.down))
        inner = (nn.functional.grouped_mm(x[order // 2], up, offs=ends) + self.up_bias[ids]).relu()
        return nn.functional.grouped_mm(inner, down, offs=ends)[order.argsort()].view(len(x), 2, WIDE).sum(1)


WAYS = ["loop", "batched", "gathered", "grouped"]


@pytest.mark.parametrize("inputs_first", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_each_expert_is_seen_with_the_rows_that_reach_it(way, inputs_first):
    model, x = Mixture(way, inputs_first), torch.randn(12, WIDE)
    chosen = model.router(x).topk(2).indices
    norm = sc.input_norm()
    sites = sc.find_sites(model, sc.Element(within="row"), x)
    stats = sc.observe(model, sites, [norm], sc.Task(x, calibration=[x[:5], x[5:]]))
    for expert in range(EXPERTS):
        rows = x[(chosen == expert).any(1)]
        up = model.up[expert].T if inputs_first else model.up[expert]
        inner = (rows @ up.T + model.up_bias[expert]).relu()
        assert torch.allclose(stats["up"][norm][expert, 0], rows.norm(dim=0), rtol=1e-5)
        assert torch.allclose(stats["down"][norm][expert, 0], inner.norm(dim=0), rtol=1e-4)


@pytest.mark.parametrize("inputs_first", [False, True])
def test_the_canonical_view_is_expert_by_output_by_input_and_writes_through(inputs_first):
    model, x = Mixture("loop", inputs_first), torch.randn(12, WIDE)
    weights = {weight.name: weight for weight in find_weights(model, x)[0]}
    assert weights["up"].shape == (EXPERTS, INNER, WIDE)
    assert weights["down"].shape == (EXPERTS, WIDE, INNER)
    layout = weights["up"].layout
    assert layout.restore(layout.canonical(model.up)).equal(model.up)
    masks = sc.prune_(model, sc.NofM(2, 4), sc.TopK(sc.magnitude()), None, sc.Task(x), only=["up", "down"])
    inputs = masks["up"].mT if inputs_first else masks["up"]
    assert inputs.unflatten(2, (-1, 4)).sum(3).eq(2).all()


def test_without_an_example_a_stack_is_left_alone_and_says_what_would_show_it():
    weights, skipped = find_weights(Mixture("loop", False))
    assert [weight.name for weight in weights] == ["router", "head"]
    reasons = {item.name: item.reason for item in skipped}
    assert reasons.keys() == {"up", "down"}
    assert "an example may show how it is multiplied, or add one to secateurs.patterns.LAYOUTS" in reasons["up"]


def test_three_dimensions_that_no_product_takes_apart_are_no_stack():
    class Added(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.place, self.fc = nn.Parameter(torch.zeros(2, 5, 4)), nn.Linear(4, 3)

        def forward(self, x):
            return self.fc(x + self.place)

    weights, skipped = find_weights(Added(), torch.zeros(2, 5, 4))
    assert [weight.name for weight in weights] == ["fc"]
    assert [item.name for item in skipped] == ["place"]


def test_an_expert_that_no_row_reached_gets_the_mean_of_the_others_and_a_warning():
    model, x = Mixture("loop", False), torch.randn(12, WIDE)
    with torch.no_grad():
        model.router.weight[3], model.router.bias[3] = 0, -1e6
    sites, norm = sc.find_sites(model, sc.Element(), x, only="up"), sc.input_norm()
    with pytest.warns(UserWarning, match=r"up: no calibration token reached 1 of 4 experts \(3\)"):
        found = sc.observe(model, sites, [norm], sc.Task(x, calibration=[x]))["up"][norm]
    assert found[3].allclose(found[:3].mean(0))


def test_a_stack_that_is_not_seen_at_work_is_an_error_with_the_way_out():
    model, x = Mixture("loop", False), torch.randn(12, WIDE)
    sites = sc.find_sites(model, sc.Element(), x, only="up")
    model.loop = lambda x, chosen: x
    with pytest.raises(sc.SecateursError, match=r"up: none of its 4 matrices was seen at work.*set_experts.*skip=\[\.\.\.\]"):
        sc.observe(model, sites, [sc.input_norm()], sc.Task(x, calibration=[x]))


def test_columns_and_copies_of_other_things_are_not_mistaken_for_a_matrix():
    stack, seen = nn.Parameter(torch.randn(4, 3, 2)), []
    with torch.no_grad(), Products({"w": stack}, seen.append):
        _ = torch.ones(5, 6) @ stack.flatten(1).T  # all matrices as one
        _ = torch.ones(5, 4) @ stack[:, 0]  # a row of each
        _ = torch.ones(5, 1) @ stack[0, 1:2]  # a part of the inputs
    assert not seen


SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 40}
SMALL |= {"num_key_value_heads": 1, "num_local_experts": 4, "num_experts_per_tok": 2}


def _mixtral(t):
    return t.MixtralForCausalLM(t.MixtralConfig(**SMALL))


def _gpt_oss(t):
    return t.GptOssForCausalLM(t.GptOssConfig(**SMALL, head_dim=8))


@pytest.mark.parametrize("make", [_mixtral, _gpt_oss])
def test_experts_of_hugging_face_are_pruned_by_default_and_observed_alike_in_each_implementation(make):
    transformers = pytest.importorskip("transformers")
    dense = make(transformers).eval()
    batch = {"input_ids": torch.randint(0, 40, (2, 16)), "use_cache": False}
    found = []
    for how in ("eager", "batched_mm", "grouped_mm"):
        model = copy.deepcopy(dense)
        model.set_experts_implementation(how)
        masks = wanda_(model, sc.Task(batch, calibration=[batch]), sparsity=0.5)
        assert masks["model.layers.0.mlp.experts.down_proj"].float().mean() == 0.5
        told = re.match(r"\d parameters masked, sparsity 0.5000; of the whole model (0\.\d+)\nleft alone, \d+\.\d % of", str(masks))
        assert float(told[1]) == pytest.approx(sum(int((~mask).sum()) for mask in masks.values()) / sc.params(model), abs=1e-4)
        found.append(masks)
    assert all(first.equal(other) for masks in found[1:] for first, other in zip(found[0].values(), masks.values(), strict=True))
    inputs = found[0]["model.layers.0.mlp.experts.gate_up_proj"].sum(1 if make is _gpt_oss else 2)
    assert inputs.eq(8).all()
