"""Attention of a teacher: probabilities as they are seen against those computed by hand, heads that went, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import secateurs as sc
from secateurs.recover.attention import Attentions
from secateurs.types import SecateursError


class Attention(nn.Module):
    """Several heads; how they come to their probabilities is said by `how`."""

    def __init__(self, how: str = "sdpa", heads: int = 4, width: int = 3) -> None:
        super().__init__()
        self.how, self.heads = how, heads
        self.q, self.k, self.v = (nn.Linear(8, heads * width) for _ in range(3))
        self.out = nn.Linear(heads * width, 8)

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        q, k, v = (each(x).view(*x.shape[:2], self.heads, -1).transpose(1, 2) for each in (self.q, self.k, self.v))
        mask = None if attention_mask is None else attention_mask[:, None, None].bool()
        if self.how == "sdpa":
            mixed = functional.scaled_dot_product_attention(q, k, v, mask)
        elif self.how == "causal":
            mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3)
        else:
            weights = (q @ k.transpose(2, 3) / q.shape[3] ** 0.5).softmax(-1, dtype=torch.float32).to(q.dtype)
            mixed = functional.dropout(weights, 0.1, training=self.training) @ v
        return self.out(mixed.transpose(1, 2).flatten(2))

    def by_hand(self, x: Tensor) -> Tensor:
        q, k = (each(x).view(*x.shape[:2], self.heads, -1).transpose(1, 2) for each in (self.q, self.k))
        scores = q @ k.transpose(2, 3) * (0.3 if self.how == "causal" else q.shape[3] ** -0.5)
        if self.how == "causal":
            scores = scores + torch.full_like(scores, -torch.inf).triu(1)
        return scores.softmax(-1)


def made(how: str = "sdpa", seed: int = 0, **options: Any) -> Attention:
    torch.manual_seed(seed)
    return Attention(how, **options)


def added(model: nn.Module, inputs: Any, hook: sc.Hook) -> float:
    first = inputs["x"] if isinstance(inputs, dict) else inputs
    alone = sc.Task(inputs, train=[(inputs, torch.zeros(len(first)))], loss=lambda output, target: 0 * output.sum())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    return sc.train_(model, alone, optimizer, 1, hooks=[hook]).history[0]["loss"]


X = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("how", ["sdpa", "causal", "eager"])
def test_probabilities_are_compared_head_by_head(how: str) -> None:
    model, teacher = made(how), made(how, seed=1)
    q, p = model.by_hand(X), teacher.by_hand(X)
    divergence = torch.where(p > 0, p * (p / q).log(), 0).sum(-1).mean().item()
    assert added(model, X, sc.distill_attention(teacher, weight=0.5)) == pytest.approx(0.5 * divergence, rel=1e-5)
    assert added(model, X, sc.distill_attention(teacher, loss="mse")) == pytest.approx((p - q).square().mean().item(), rel=1e-5)
    p, q = p.mean(1), q.mean(1)
    apart = torch.where(p > 0, p * (p / q).log(), 0).sum(-1).mean().item()
    assert added(model, X, sc.distill_attention(made(how, seed=1), heads="mean")) == pytest.approx(apart, rel=1e-5)


def test_padded_queries_do_not_count_and_padded_keys_have_no_probability() -> None:
    model, teacher, there = made(), made(seed=1), torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    scores = [
        (each.by_hand(X).log().masked_fill(~there[:, None, None].bool(), -torch.inf)).softmax(-1) for each in (model, teacher)
    ]
    apart = (torch.xlogy(scores[1], scores[1] / scores[0].clamp_min(1e-12))).sum(-1).mean(1)
    expected = (apart * there).sum().item() / 8
    assert added(model, {"x": X, "attention_mask": there}, sc.distill_attention(teacher)) == pytest.approx(expected, rel=1e-4)


def test_torchs_own_layer_is_asked_without_its_dropout() -> None:
    torch.manual_seed(0)
    layer, looks = nn.MultiheadAttention(8, 2, dropout=0.5, batch_first=True), Attentions([""])
    _, expected = layer.eval()(X, X, X, average_attn_weights=False)
    layer.train()
    looks.watch(layer)
    state = torch.get_rng_state()
    out, _ = layer(X, X, X, need_weights=False)
    seen = looks.take()[""]
    looks.close()
    torch.set_rng_state(state)
    assert torch.equal(out, layer(X, X, X, need_weights=False)[0])
    torch.testing.assert_close(seen, [expected])
    assert seen[0].requires_grad


def test_other_softmaxes_are_none() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.gate = made(), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return (self.gate(x).softmax(-1) * 2).sum(-1, keepdim=True) * self.attention(x)

    looks, model = Attentions(["", "attention"]), Gated()
    looks.watch(model)
    model(X)
    seen = looks.take()
    looks.close()
    assert {name: [tuple(each.shape) for each in found] for name, found in seen.items()} == {
        "": [(2, 4, 5, 5)],
        "attention": [(2, 4, 5, 5)],
    }


@pytest.mark.parametrize("how", ["sdpa", "eager"])
def test_heads_that_went_for_good_teach_no_more(how: str) -> None:
    """The model has the teacher's weights but for a head: what is left is as it was."""
    model, teacher = made(how), made(how)
    masks = sc.prune_(model, sc.Head(), sc.TopK(sc.magnitude()), sc.uniform(sparsity=0.5), sc.Task(X))
    sc.shrink_(model, masks)
    assert model.q.out_features == 6
    assert added(model, X, sc.distill_attention(teacher)) == pytest.approx(0, abs=1e-6)
    assert added(model, X, sc.distill_attention(made(how, seed=1))) > 1e-3
    with pytest.raises(SecateursError, match=r'attention 1 of the model is \(2, 2, 5, 5\) .* teacher \(2, 3, 5, 5\): heads="mean"'):
        added(model, X, sc.distill_attention(made(how, heads=3)))


def test_a_model_without_attention_and_settings_that_make_no_sense() -> None:
    with pytest.raises(SecateursError, match=r"the whole of the model gave nothing to compare"):
        added(nn.Linear(8, 8), X, sc.distill_attention(nn.Linear(8, 8)))
    with pytest.raises(SecateursError, match=r'loss "kl" or "mse"'):
        sc.distill_attention(loss="l2")  # type: ignore[arg-type]


def test_a_model_learns_where_to_look() -> None:
    model, teacher = made(), made(seed=1)
    alone = sc.Task(X, train=[(X, torch.zeros(2))] * 10, loss=lambda output, target: 0 * output.sum())
    run = sc.train_(model, alone, torch.optim.Adam(model.parameters(), lr=0.02), 4, hooks=[sc.distill_attention(teacher)])
    assert run.history[-1]["loss"] < 0.2 * run.history[0]["loss"]
