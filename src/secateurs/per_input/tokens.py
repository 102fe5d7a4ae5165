"""Tokens and heads that an input does not need are taken out on the way through a transformer (SpAtten, Wang et al., 2012.09852)."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from secateurs.forward import modules_in, run_example
from secateurs.given import MODEL, require, require_values
from secateurs.graph import blocks_of
from secateurs.per_input.attached import PerInput, attaching, kept_of, require_fraction, told
from secateurs.per_input.heads import HeadGate, head_gates
from secateurs.per_input.stream import Stream, for_block
from secateurs.types import SecateursError

Gone = Literal["last", "zero"]

Rule = Callable[["Stage", Stream, Tensor, Tensor], "Tensor | None"]
"""From a block, its stream, what it was given and what it gave: which tokens in work stay ``(n, here)``; ``None`` for all."""


@dataclass
class Stage:
    """One block of the stack, and what it does with the tokens behind it.

    ``keep`` is the fraction of an input's tokens that the next block works on, ``heads`` that of the heads which work in this one.
    """

    place: int
    block: nn.Module
    attention: nn.Module | None
    tokens: Tokens
    keep: float = 1.0
    heads: float = 1.0
    gate: HeadGate | None = None
    probabilities: Tensor | None = None
    inner: list[Any] = field(default_factory=list)

    @property
    def on(self) -> bool:
        """Whether anything is taken out."""
        return self.tokens.on

    @on.setter
    def on(self, value: bool) -> None:
        self.tokens.on = value

    def caught(self, *args: Any, **kwargs: Any) -> Any:
        """In place of the attention: its probabilities ``(n, heads, queries, keys)`` are kept until the block is done."""
        output = self.inner[1](*args, **kwargs)
        if self.on:
            self.probabilities = output[1].detach()
            if self.probabilities.ndim == 3:  # of torch's own attention: the mean over heads
                self.probabilities = self.probabilities[:, None]
        return output

    def run_block(self, *args: Any, **kwargs: Any) -> Any:
        """In place of the block: on the tokens that are left, of which some go afterwards."""
        if not self.on:
            return self.inner[0](*args, **kwargs)
        bound = self.tokens.signature.bind(*args, **kwargs)
        first = next(iter(bound.arguments))
        hidden = bound.arguments[first]
        stream = self.tokens.begun(bound, hidden) if self.place == 0 else self.tokens.stream
        if stream is None:
            raise SecateursError(
                "dropping tokens: a block was called outside of a pass of the whole model, whose first block begins it"
            )
        given = for_block(stream, hidden, {**self.tokens.missing, **bound.arguments}, self.tokens.others)
        self._require_mask(stream, given)
        if self.gate is not None:
            self.gate.begin(stream, self.heads)
        call = inspect.BoundArguments(self.tokens.signature, OrderedDict(given))
        output = self.inner[0](*call.args, **call.kwargs)
        gives = output[0] if isinstance(output, tuple) else output
        stays = self.tokens.rule(self, stream, hidden, gives)
        self.probabilities = None
        if self.place == self.tokens.last:
            gives = stream.whole(gives, self.tokens.gone)
            self.tokens.kept, self.tokens.stream = stream.left, None
        elif stays is not None:
            gives = stream.keep(gives, stays)
        return (gives, *output[1:]) if isinstance(output, tuple) else gives

    def _require_mask(self, stream: Stream, given: dict[str, Any]) -> None:
        masked = "attention_mask" in given or "attention_mask" in given.get(self.tokens.others or "", {})
        if not masked and not bool(stream.counts.all()):
            raise SecateursError(
                f"dropping tokens: sequences of a batch keep different numbers of tokens, and {type(self.block).__name__} takes no "
                "attention_mask to tell them apart: give one sequence at a time"
            )


@dataclass
class Tokens:
    """What the stages of a stack share: the pass in hand, and the tokens that the last one kept to its end ``(n, places)``."""

    signature: inspect.Signature
    last: int
    gone: Gone
    rule: Rule
    hold: tuple[int, ...]
    least: int
    on: bool = True
    stream: Stream | None = None
    kept: Tensor | None = None

    @property
    def others(self) -> str | None:
        """The name of the block's ``**kwargs``."""
        return next((each.name for each in self.signature.parameters.values() if each.kind is each.VAR_KEYWORD), None)

    @property
    def missing(self) -> dict[str, Any]:
        """A mask that may come to be needed."""
        return {"attention_mask": None} if "attention_mask" in self.signature.parameters else {}

    def begun(self, bound: inspect.BoundArguments, hidden: Tensor) -> Stream:
        """A new pass."""
        if hidden.ndim != 3:
            raise SecateursError(f"dropping tokens: a block is given {tuple(hidden.shape)}, but takes (sequences, tokens, width)")
        mask = bound.arguments.get("attention_mask", bound.arguments.get(self.others or "", {}).get("attention_mask"))
        self.stream = Stream(hidden, mask)
        return self.stream


def by_attention(stage: Stage, stream: Stream, before: Tensor, after: Tensor) -> Tensor | None:
    """The tokens that have received most attention until now, of equal ones the first: as many as the stage keeps of the input's."""
    if stage.probabilities is None:
        return None
    probabilities, queries = stage.probabilities.float(), stream.counts[:, None, :, None]
    if stage.gate is not None and stage.gate.chosen is not None and not stage.gate.is_narrow:
        open_ = stage.gate.chosen.repeat_interleave(probabilities.shape[1] // stage.gate.chosen.shape[1], 1)
        probabilities = probabilities * open_[..., None, None]
    stream.received = stream.received + (probabilities * queries).sum((1, 2))
    if stage.keep == 1:
        return None
    tokens = stage.tokens
    score = stream.received.masked_fill(stream.held(tokens.hold), float("inf")).masked_fill(~stream.counts, -float("inf"))
    number = [max(min(tokens.least, length), kept_of(stage.keep, length)) for length in stream.lengths.tolist()]
    rank = score.sort(dim=1, descending=True, stable=True).indices.argsort(1)
    return rank < torch.tensor(number, device=rank.device)[:, None]


def drop_tokens_(
    model: nn.Module,
    example: Any,
    *,
    keep: float | Sequence[float],
    heads: float | Sequence[float] = 1.0,
    hold: Sequence[int] = (0,),
    least: int = 1,
    gone: Gone = "last",
) -> PerInput:
    """Let an encoder's blocks work on those tokens alone that have received most attention, fewer from block to block (2012.09852, §III).

    A token's importance is the attention that it has received from all queries of all heads in the blocks so far; what falls out is
    gathered out of all later blocks. ``keep[i]`` is the fraction of an input's tokens (padding not counted) on which block i works:
    1 for the first, never rising; a number stands for a straight line from 1 down to it in the last block. ``heads`` are the
    fractions of the heads in the same way: those stay whose outputs were largest in magnitude, added up over blocks; in batches of
    one the others are not computed, in larger ones they are set to zero. ``hold`` are positions that never go, counted from an
    input's first token, or −1 for its last; ``least`` tokens stay in any case. The model answers for all places: those that went
    stand there as they were last, or as zero with ``gone="zero"``, which makes a mean over all of them, normalised, one over those
    that stayed (`kept_tokens` tells which). Progressive quantisation is no part of it.

    The blocks are those of `blocks_of`, of Hugging Face's classes above all, with ``attn_implementation="eager"``: others do not
    give the attention's probabilities. A decoder takes part where a whole text is read at once (``use_cache=False``,
    ``hold=(-1,)``): what comes later decides about what came before, so only the answer for the last token means something, and no
    perplexity. There are no numbers of its own: files are the model's.

    Raises `SecateursError` for fractions outside (0, 1] or rising, a model without a stack of blocks or whose attention gives no
    probabilities, a block's argument of which it is not known what belongs to which token, or a cache; the model is then as it was.

    >>> class Block(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
    ...     def forward(self, x):
    ...         return x + self.attention(x, x, x)[0]
    >>> model, x = nn.Sequential(Block(), Block(), Block()).eval(), torch.randn(1, 6, 4)
    >>> attached = drop_tokens_(model, x, keep=0.5)
    >>> with torch.no_grad():
    ...     model(x).shape, int(kept_tokens(attached).sum())
    (torch.Size([1, 6, 4]), 3)
    """
    who = "drop_tokens_"
    require(who, "model", model, MODEL)
    require_values(who, model)
    if gone not in ("last", "zero"):
        raise SecateursError(f'{who}: gone={gone!r} must be "last" or "zero"')
    if isinstance(least, bool) or not isinstance(least, int) or least < 1:
        raise SecateursError(f"{who}: least={least!r} must be a whole number, at least 1")
    names = _stack(who, model, example)
    kept, working = _line(who, "keep", keep, len(names)), _line(who, "heads", heads, len(names))
    attentions = _attentions(model, example, names)
    with attaching(_attached(model, names, by_attention, tuple(hold), least, gone)) as attached:
        stages: list[Stage] = list(attached.parts.values())
        for place, (stage, name) in enumerate(zip(stages, names, strict=True)):
            stage.keep, stage.heads = kept[min(place + 1, len(names) - 1)], working[place]
            stage.attention = modules_in(model)[attentions[name]]
            stage.inner.append(attached.take_over(stage.attention, stage.caught))
        if min(working) < 1:
            gates, reasons = head_gates(model, example, names, attached)
            attached = PerInput(model, attached.parts, told(reasons), attached.taken, attached.children)
            for stage, gate in zip(stages, gates, strict=True):
                stage.gate = gate
        run_example(model, example)  # what it refuses, it refuses now
    return attached


def exit_tokens_(
    model: nn.Module,
    example: Any,
    *,
    change: float,
    begin: int = 1,
    hold: Sequence[int] = (0,),
    least: int = 1,
    gone: Gone = "last",
) -> PerInput:
    """Let tokens that a block changes little leave: they stay what they are, and later blocks neither change nor see them.

    A token leaves behind block ``begin`` or later where ‖after − before‖ ≤ ``change`` · ‖before‖; ``hold``, ``least`` and ``gone``
    as in `drop_tokens_`. Its keys and values are not kept for the others, so that all of its work goes (in 1910.10073 they are).
    Any stack of blocks will do, whatever its attention. Raises as `drop_tokens_` does.

    >>> block = lambda: nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    >>> model, x = nn.Sequential(block(), block(), block()), torch.randn(1, 5, 4)
    >>> attached = exit_tokens_(model, x, change=1e9, hold=(), least=2)
    >>> with torch.no_grad():
    ...     model(x).shape, int(kept_tokens(attached).sum())
    (torch.Size([1, 5, 4]), 2)
    """
    who = "exit_tokens_"
    require(who, "model", model, MODEL)
    require_values(who, model)
    if isinstance(change, bool) or not isinstance(change, (int, float)) or not 0 <= change < float("inf"):
        raise SecateursError(
            f"{who}: change={change!r} must be a number, at least 0: the fraction of its length by which a token changes"
        )
    if gone not in ("last", "zero") or begin < 0 or least < 1:
        raise SecateursError(
            f'{who}: gone={gone!r} must be "last" or "zero", begin={begin} at least 0 and least={least} at least 1'
        )

    def by_change(stage: Stage, stream: Stream, before: Tensor, after: Tensor) -> Tensor | None:
        if stage.place < begin:
            return None
        moved = (after.detach().float() - before.detach().float()).norm(dim=-1)
        size = before.detach().float().norm(dim=-1)
        urgency = (moved / size.clamp_min(1e-30)).masked_fill(~stream.counts, -float("inf"))
        held = stream.held(stage.tokens.hold)
        rank = urgency.masked_fill(held, float("inf")).sort(dim=1, descending=True, stable=True).indices.argsort(1)
        return (urgency > change) | held | (rank < least)

    names = _stack(who, model, example)
    with attaching(_attached(model, names, by_change, tuple(hold), least, gone)) as attached:
        run_example(model, example)
    return attached


def kept_tokens(attached: PerInput) -> Tensor:
    """Which tokens ``(n, places)`` of the last pass went through all blocks, padding none of them.

    Raises `SecateursError` where there was no pass.
    """
    stage = next(iter(attached.parts.values()), None)
    if not isinstance(stage, Stage) or stage.tokens.kept is None:
        raise SecateursError("kept_tokens: no pass was made with what drop_tokens_ or exit_tokens_ returned")
    return stage.tokens.kept


# ---------------------------------------------------------------- finding out


def _stack(who: str, model: nn.Module, example: Any) -> tuple[str, ...]:
    """The names of the blocks of the one stack of a model."""
    if any(isinstance(getattr(each.__dict__.get("forward"), "__self__", None), Stage) for each in modules_in(model).values()):
        raise SecateursError(
            f"{who}: tokens of this {type(model).__name__} are left out already: take that off first, attached.remove()"
        )
    blocks = blocks_of(model, example)
    if len(blocks.stacks) > 1:
        raise SecateursError(
            f"{who}: {type(model).__name__} has {len(blocks.stacks)} stacks of blocks, which attend to each other; give the encoder alone "
            "(model.get_encoder())"
        )
    return blocks.stacks[0]


def _line(who: str, argument: str, given: float | Sequence[float], blocks: int) -> list[float]:
    """A fraction for each block."""
    if not isinstance(given, Sequence):
        end = require_fraction(who, argument, given)
        return [1 + (end - 1) * place / max(1, blocks - 1) for place in range(blocks)]
    found = [require_fraction(who, argument, each) for each in given]
    if len(found) != blocks:
        raise SecateursError(
            f"{who}: {argument} has {len(found)} fractions, but the model {blocks} blocks: give one for each, or a number"
        )
    if found[0] != 1:
        raise SecateursError(f"{who}: {argument}[0]={found[0]} must be 1: the first block has nothing to judge by")
    for place in range(1, blocks):
        if found[place] > found[place - 1]:
            raise SecateursError(
                f"{who}: {argument}[{place}]={found[place]} is more than {argument}[{place - 1}]={found[place - 1]}, but what went "
                "does not come back"
            )
    return found


def _attached(model: nn.Module, names: Sequence[str], rule: Rule, hold: tuple[int, ...], least: int, gone: Gone) -> PerInput:
    modules, attached = modules_in(model), PerInput(model)
    blocks = [modules[name] for name in names]
    tokens = Tokens(inspect.signature(type(blocks[0]).forward), len(names) - 1, gone, rule, hold, least)
    tokens.signature = inspect.Signature(list(tokens.signature.parameters.values())[1:])  # without self
    for place, (name, block) in enumerate(zip(names, blocks, strict=True)):
        stage = Stage(place, block, None, tokens)
        attached.parts[name] = stage
        stage.inner.append(attached.take_over(block, stage.run_block))
    return attached


def _attentions(model: nn.Module, example: Any, names: Sequence[str]) -> dict[str, str]:
    """Block → the module within it that gives the probabilities of its attention, the innermost one."""
    found: dict[str, str] = {}
    handles = []

    def noting(block: str, name: str) -> Any:
        def note(module: nn.Module, args: Any, output: Any) -> None:
            gives = isinstance(output, tuple) and len(output) > 1 and _are_probabilities(output[1])
            if gives and (block not in found or name.startswith(found[block])):
                found[block] = name

        return note

    for name, module in modules_in(model).items():
        block = next((each for each in names if name.startswith(f"{each}.")), None)
        if block is not None:
            handles.append(module.register_forward_hook(noting(block, name)))
    try:
        run_example(model, example)
    finally:
        for handle in handles:
            handle.remove()
    missing = [name for name in names if name not in found]
    if missing:
        kind = getattr(getattr(model, "config", None), "_attn_implementation", None)
        way = 'load the model with attn_implementation="eager", or call model.set_attn_implementation("eager") first'
        raise SecateursError(
            f"drop_tokens_: {missing[0]} gives no probabilities of its attention"
            + (f" (attn_implementation={kind!r}): {way}" if kind not in (None, "eager") else ": a module in it must return "
               "(output, probabilities), as those of Hugging Face do; exit_tokens_ needs none")
        )  # fmt: skip
    return found


def _are_probabilities(value: Any) -> bool:
    """Whether a tensor is ``(n, heads, queries, keys)``, or without heads, and sums up to one over keys."""
    return (
        isinstance(value, Tensor)
        and value.ndim in (3, 4)
        and value.shape[-2] == value.shape[-1]
        and bool(torch.allclose(value.float().sum(-1), torch.ones((), device=value.device), atol=1e-2))
    )
