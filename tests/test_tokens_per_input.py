"""Tokens and heads that one input does not need are taken out on the way through a transformer."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from secateurs import SecateursError
from secateurs.costs import trace_macs
from secateurs.per_input import drop_tokens_, exit_tokens_, kept_tokens, skip_small_, unpadded, work_per_input

transformers = pytest.importorskip("transformers")
SIZES = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 24, "vocab_size": 40}


def encoder(attention: str = "eager") -> Any:
    torch.manual_seed(0)
    config = transformers.BertConfig(**SIZES, attn_implementation=attention)
    model = transformers.BertModel(config, add_pooling_layer=False).eval()
    for parameter in model.parameters():
        parameter.data.mul_(4)  # so that attention is not the same everywhere
    return model


def decoder(**sizes: Any) -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**{**SIZES, **sizes}, attn_implementation="eager", use_cache=False)
    return transformers.LlamaForCausalLM(config).eval()


def texts(*lengths: int, longest: int = 0, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    longest = max(longest, *lengths)
    there = (torch.arange(longest) < torch.tensor(lengths)[:, None]).long()
    return {"input_ids": torch.randint(1, 40, (len(lengths), longest), generator=generator) * there, "attention_mask": there}


@torch.no_grad()
def states(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    return model(**inputs).last_hidden_state


def real(inputs: dict[str, Tensor], answer: Tensor) -> Tensor:
    return answer[inputs["attention_mask"].bool()]


def by_hand(model: Any, ids: Tensor, keep: list[float], hold: tuple[int, ...] = (0,)) -> tuple[Tensor, list[int]]:
    """One text through the blocks, the tokens that stay taken by a list."""
    hidden, n = model.embeddings(ids), ids.shape[1]
    at, received = list(range(n)), torch.zeros(n)
    last = {}
    for place, layer in enumerate(model.encoder.layer):
        probabilities = layer.attention.self(hidden)[1]
        hidden = layer(hidden)
        received = received + probabilities[0].sum((0, 1))
        last |= dict(zip(at, hidden[0], strict=True))
        if place + 1 < len(keep) and keep[place + 1] < 1:
            k = max(1, -int(-round(keep[place + 1] * n, 9) // 1))
            order = sorted(range(len(at)), key=lambda each: (at[each] not in hold, -float(received[each])))
            chosen = sorted(order[:k])
            at, hidden, received = [at[each] for each in chosen], hidden[:, chosen], received[chosen]
    return torch.stack([last[each] for each in range(n)])[None], at


@torch.no_grad()
def test_tokens_with_little_attention_are_gathered_out_as_written_out_by_hand() -> None:
    model, text, keep = encoder(), texts(11), [1, 0.8, 0.5, 0.3]
    expected, at = by_hand(model, text["input_ids"], keep)
    attached = drop_tokens_(model, text, keep=keep)
    assert torch.allclose(states(model, text), expected, atol=1e-5)
    assert kept_tokens(attached).nonzero()[:, 1].tolist() == at and 0 in at and len(at) == 4
    attached.remove()
    attached = drop_tokens_(model, text, keep=keep, gone="zero")
    assert torch.allclose(states(model, text), expected * kept_tokens(attached)[..., None], atol=1e-5)


@settings(max_examples=4)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    keep=st.floats(0.1, 1),
    heads=st.sampled_from([1.0, 0.5]),
    seed=st.integers(0, 9),
)
def test_laws(lengths: list[int], keep: float, heads: float, seed: int) -> None:
    """Each text is answered as by itself, whatever is beside it, in whatever order, and however much it is padded."""
    model, batch = encoder(), texts(*lengths, seed=seed)
    before = states(model, batch)
    attached = drop_tokens_(model, texts(5, 3), keep=keep, heads=heads)
    together, kept = states(model, batch), kept_tokens(attached)
    for row, length in enumerate(lengths):
        alone = {name: tensor[row : row + 1, :length] for name, tensor in batch.items()}
        assert torch.allclose(states(model, alone)[0], together[row, :length], atol=1e-4)
        assert torch.equal(kept_tokens(attached)[0], kept[row, :length]) and not kept[row, length:].any()
    order = torch.randperm(len(lengths))
    turned = states(model, {name: tensor[order] for name, tensor in batch.items()})
    assert torch.allclose(real(batch, turned[order.argsort()]), real(batch, together), atol=1e-4)
    longer = {name: nn.functional.pad(tensor, (0, 3)) for name, tensor in batch.items()}
    assert torch.allclose(real(longer, states(model, longer)), real(batch, together), atol=1e-4)
    with attached.off():
        assert torch.equal(states(model, batch), before)


@torch.no_grad()
def test_keep_of_one_is_the_model_to_the_bit_and_removing_gives_it_back() -> None:
    model, batch = encoder(), texts(7, 4)
    before, names = states(model, batch), list(model.state_dict())
    attached = drop_tokens_(model, batch, keep=1)
    assert torch.equal(states(model, batch), before)
    copied = copy.deepcopy(attached)
    assert torch.equal(states(copied.model, batch), before) and copied.model is not model
    attached.remove()
    assert torch.equal(states(model, batch), before) and list(model.state_dict()) == names
    assert not any("forward" in module.__dict__ for module in model.modules())
    assert torch.equal(states(copied.remove(), batch), before)


@torch.no_grad()
def test_what_went_has_no_influence_any_more() -> None:
    """A token that went after the first block is changed behind it, and nothing else changes."""
    model, text = encoder(), texts(9)
    attached = drop_tokens_(model, text, keep=[1, 0.5, 0.5, 0.5])
    before, gone = states(model, text), int((~kept_tokens(attached)[0]).nonzero()[0])

    def disturb(module: nn.Module, args: Any, output: Any) -> Tensor:
        output = output.clone()
        output[:, gone] += 100
        return output

    inner = model.encoder.layer[0].output
    handle = inner.register_forward_hook(disturb)
    after = states(model, text)
    handle.remove()
    others = [place for place in range(9) if place != gone]
    assert torch.equal(after[:, others], before[:, others]) and not torch.allclose(after[:, gone], before[:, gone])


def test_work_goes_with_the_tokens_and_the_heads() -> None:
    model, text = encoder(), texts(8)
    width, inner = 16, 24
    attached = drop_tokens_(model, text, keep=[1, 0.5, 0.5, 0.25])
    tokens = [8, 4, 4, 2]
    expected = sum(n * (4 * width**2 + 2 * width * inner) + 2 * n * n * width for n in tokens)
    work = work_per_input(attached, [text])
    assert work.macs == (expected,) and work.dense == (trace_macs(encoder(), text).total,)
    attached.remove()
    attached = drop_tokens_(model, text, keep=1, heads=[1, 0.5, 0.5, 0.25])
    assert not attached.skipped
    expected = sum(8 * (4 * width * part + 2 * width * inner) + 2 * 64 * part for part in (16, 8, 8, 4))
    assert work_per_input(attached, [text]).macs == (expected,)


@torch.no_grad()
def test_heads_with_small_outputs_go_as_written_out_by_hand() -> None:
    model, text = encoder(), texts(6)
    hidden, size = model.embeddings(text["input_ids"]), torch.zeros(4)
    for layer, k in zip(model.encoder.layer, (4, 2, 2, 1), strict=True):
        context = layer.attention.self(hidden)[0]
        stays = size.sort(descending=True, stable=True).indices[:k]
        mask = torch.zeros(4).index_fill(0, stays, 1).repeat_interleave(4)
        size = size + (context * mask).abs()[0].sum(0).view(4, 4).sum(1)
        attended = layer.attention.output(context * mask, hidden)
        hidden = layer.output(layer.intermediate(attended), attended)
    drop_tokens_(model, text, keep=1, heads=[1, 0.5, 0.5, 0.25])
    assert torch.allclose(states(model, text), hidden, atol=1e-5)
    twice = {name: tensor.repeat(2, 1) for name, tensor in text.items()}
    assert torch.allclose(states(model, twice)[1:], hidden, atol=1e-5)


@torch.no_grad()
def test_short_sequences_and_rows_of_padding_alone() -> None:
    model, batch = encoder(), texts(9, 2, 1)
    attached = drop_tokens_(model, batch, keep=[1, 0.2, 0.2, 0.2], least=3)
    states(model, batch)
    assert kept_tokens(attached).sum(1).tolist() == [3, 2, 1]
    first = real(texts(9), states(model, texts(9)))
    batch["attention_mask"][2] = 0
    answer = states(model, batch)
    assert torch.isfinite(answer).all() and torch.allclose(answer[0], first, atol=1e-4)
    assert kept_tokens(attached).sum(1).tolist() == [3, 2, 0]
    nothing = {name: tensor[2:] for name, tensor in batch.items()}
    assert torch.isfinite(states(model, nothing)).all() and not kept_tokens(attached).any()


@torch.no_grad()
def test_first_and_last_tokens_are_held_also_of_texts_padded_on_the_left() -> None:
    model, batch = encoder(), texts(8, 5, seed=3)
    left = {name: tensor.clone() for name, tensor in batch.items()}
    for name in left:
        left[name][1] = batch[name][1].roll(3)
    attached = drop_tokens_(model, batch, keep=[1, 0.2, 0.2, 0.2], hold=(0, -1), least=2)
    states(model, left)
    assert kept_tokens(attached).nonzero().tolist() == [[0, 0], [0, 7], [1, 3], [1, 7]]


@torch.no_grad()
def test_a_decoder_reads_a_text_at_once_with_fewer_tokens() -> None:
    model, text = decoder(), texts(10, 6)
    before = model(**text).logits
    attached = drop_tokens_(model, text, keep=[1, 1, 0.5, 0.5], hold=(0, -1))
    answer = model(**text).logits
    alone = model(input_ids=text["input_ids"][1:, :6]).logits
    assert answer.shape == before.shape and torch.allclose(alone[0], answer[1, :6], atol=1e-4)
    assert work_per_input(attached, [texts(10)]).keep < 1
    with pytest.raises(SecateursError, match=r"keeps keys and values for later tokens .* call it with use_cache=False"):
        model(**text, use_cache=True)
    attached.remove()
    assert torch.equal(model(**text).logits, before)


@torch.no_grad()
def test_heads_that_share_keys_are_set_to_zero_and_it_is_told() -> None:
    model, text = decoder(num_key_value_heads=1), texts(6)
    attached = drop_tokens_(model, text, keep=1, heads=0.5)
    assert (
        len(attached.skipped) == 4 and "multiplied by zero, not skipped: 1 linear layers make heads" in attached.skipped[0].reason
    )
    assert work_per_input(attached, [text]).keep == 1


def test_gradients_pass_and_a_trained_model_learns_with_fewer_tokens() -> None:
    model, batch = encoder(), texts(8, 5)
    drop_tokens_(model, batch, keep=0.5)
    model.train()
    optimizer, losses = torch.optim.SGD(model.parameters(), lr=1e-3), []
    for _ in range(4):
        loss = (model(**batch).last_hidden_state[:, 0] - 0.5).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    copy.deepcopy(model)


def test_bad_input_is_told_and_leaves_the_model_alone() -> None:
    model, text = encoder(), texts(6)
    for keep, told in (
        (0, "keep=0 must be a fraction"),
        ([1, 0.5], "keep has 2 fractions, but the model 4 blocks"),
        ([0.5] * 4, r"keep\[0\]=0.5 must be 1: the first block has nothing to judge by"),
        ([1, 0.5, 0.6, 0.5], r"keep\[2\]=0.6 is more than keep\[1\]=0.5, but what went does not come back"),
    ):
        with pytest.raises(SecateursError, match=f"drop_tokens_: {told}"):
            drop_tokens_(model, text, keep=keep)
    with pytest.raises(SecateursError, match='gone=\'none\' must be "last" or "zero"'):
        drop_tokens_(model, text, keep=1, gone="none")
    with pytest.raises(SecateursError, match="least=0 must be a whole number"):
        drop_tokens_(model, text, keep=1, least=0)
    with pytest.raises(
        SecateursError, match=r"encoder.layer.0 gives no probabilities .*attn_implementation='sdpa'.*: load the model with"
    ):
        drop_tokens_(encoder("sdpa"), text, keep=0.5)
    plain = nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(3)))
    with pytest.raises(SecateursError, match="0 gives no probabilities of its attention: a module in it must return"):
        drop_tokens_(plain, torch.randn(1, 5, 4), keep=0.5)
    with pytest.raises(SecateursError, match="has no stack of blocks"):
        drop_tokens_(nn.Linear(4, 4), torch.randn(1, 5, 4), keep=0.5)
    both = transformers.T5Model(transformers.T5Config(vocab_size=32, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2)).eval()
    with pytest.raises(SecateursError, match=r"T5Model has 2 stacks of blocks, .* give the encoder alone"):
        drop_tokens_(both, {"input_ids": text["input_ids"] % 32, "decoder_input_ids": text["input_ids"] % 32}, keep=0.5)
    with pytest.raises(
        SecateursError, match=r"a block is given position_bias, a tensor of shape \(1, 2, 6, 6\), of which it is not known"
    ):
        exit_tokens_(both.encoder, {"input_ids": text["input_ids"] % 32}, change=1e9, begin=0)
    assert not any("forward" in module.__dict__ for each in (model, both, plain) for module in each.modules())
    with pytest.raises(SecateursError, match="kept_tokens: no pass was made"):
        kept_tokens(skip_small_(nn.Linear(2, 2), {"": 0.1}))
    drop_tokens_(model, text, keep=0.5)
    with pytest.raises(SecateursError, match="called outside of a pass of the whole model"):
        model.encoder.layer[2](torch.randn(1, 4, 16))


# ---------------------------------------------------------------- tokens that do not change any more


@torch.no_grad()
def test_tokens_that_hardly_change_leave_and_stay_what_they_are() -> None:
    model, text = encoder(), texts(7)
    hidden, change = model.embeddings(text["input_ids"]), 0.0
    at, last = list(range(7)), {}
    for place, layer in enumerate(model.encoder.layer):
        after = layer(hidden)
        last |= dict(zip(at, after[0], strict=True))
        moved = (after - hidden)[0].norm(dim=1) / hidden[0].norm(dim=1)
        change = change or (float(moved.median()) if place == 1 else 0.0)
        if 1 <= place < 3:
            stays = [each for each in range(len(at)) if at[each] == 0 or float(moved[each]) > change]
            at, after = [at[each] for each in stays], after[:, stays]
        hidden = after
    attached = exit_tokens_(model, text, change=change)
    answer = states(model, text)
    assert torch.allclose(answer[0], torch.stack([last[each] for each in range(7)]), atol=1e-5)
    assert len(at) < 7 and kept_tokens(attached)[0].nonzero().flatten().tolist() == at
    before = real(texts(7, 4), states(model, texts(7, 4)))
    longer = texts(7, 4, longest=9)
    longer["input_ids"][:, :7] = texts(7, 4)["input_ids"]
    assert torch.allclose(before, real(longer, states(model, longer)), atol=1e-4)
    assert work_per_input(attached, [text]).keep < 1
    attached.remove()
    exit_tokens_(model, text, change=0)
    assert torch.allclose(states(model, text), states(encoder(), text), atol=1e-6)


@torch.no_grad()
def test_one_text_of_a_batch_may_keep_all_while_another_does_not() -> None:
    """Nothing becomes shorter then, and what went is filled up with what does not count."""
    model, batch = encoder(), texts(5, 5, 5)
    before = model.encoder.layer[0](model.embeddings(batch["input_ids"]))
    least = ((model.encoder.layer[1](before) - before).norm(dim=-1) / before.norm(dim=-1))[:, 1:].amin(1)
    attached = exit_tokens_(model, texts(5), change=float((least.min() + least.max()) / 2), begin=1)
    tokens = attached.parts["encoder.layer.0"].tokens
    tokens.rule = lambda stage, *rest, rule=tokens.rule: rule(stage, *rest) if stage.place == 1 else None
    answer, kept = states(model, batch), kept_tokens(attached)
    assert kept.all(1).any() and not kept.all()
    for row in range(3):
        alone = {name: tensor[row : row + 1] for name, tensor in batch.items()}
        assert torch.allclose(states(model, alone)[0], answer[row], atol=1e-4) and torch.equal(kept_tokens(attached)[0], kept[row])


def test_bad_input_of_exits_of_tokens() -> None:
    blocks = nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(3))).eval()
    for change in (-1, float("inf"), "none"):
        with pytest.raises(SecateursError, match=r"exit_tokens_: change=.* must be a number, at least 0"):
            exit_tokens_(blocks, torch.randn(1, 5, 4), change=change)
    with pytest.raises(SecateursError, match="least=0 at least 1"):
        exit_tokens_(blocks, torch.randn(1, 5, 4), change=0.1, least=0)
    exit_tokens_(blocks, torch.randn(1, 5, 4), change=0.7)
    with pytest.raises(SecateursError, match="Sequential takes no attention_mask to tell them apart: give one sequence at a time"):
        blocks(torch.randn(6, 9, 4))
    with pytest.raises(SecateursError, match=r"a block is given \(5, 4\), but takes \(sequences, tokens, width\)"):
        blocks(torch.randn(5, 4))


def test_padding_can_be_left_out_of_a_count() -> None:
    model, batch = encoder(), texts(3, longest=9)
    attached = drop_tokens_(model, batch, keep=1)
    short = unpadded(batch)
    assert short["input_ids"].shape == (1, 3)
    assert work_per_input(attached, [batch]).dense[0] > 2.9 * work_per_input(attached, [short]).dense[0]
