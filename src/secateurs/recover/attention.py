"""Attention of transformers: the pruned network looks where its teacher looks, head by head."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from secateurs.forward import modules_in
from secateurs.given import NUMBER, require
from secateurs.recover.counted import Counted, counted_in, mean_over
from secateurs.recover.inner import inside
from secateurs.recover.teacher import Teacher, teacher_for
from secateurs.recover.within import Modules, Pair, Within
from secateurs.types import Hook, Run, SecateursError

_TINY = 1e-12


def distill_attention(
    teacher: nn.Module | Teacher | None = None,
    modules: Modules = "",
    *,
    weight: float = 1.0,
    loss: Literal["kl", "mse"] = "kl",
    heads: Literal["each", "mean"] = "each",
    counted: Counted | None = None,
    name: str = "distill_attention",
) -> Hook:
    """Adds ``weight`` times the mean over heads and queries of KL(teacher ‖ model) of where each of them looks, summed over attentions.

    The probabilities are those of every attention within the modules (by default all, in the order of their calls; the last layer alone
    is MiniLM's choice, 2002.10957): of `scaled_dot_product_attention`, of `nn.MultiheadAttention`, and of each softmax whose result a
    matrix product takes; dropout is left out where torch does both at once. ``loss="mse"`` takes their mean squared difference instead
    (as TinyBERT does, there of scores: 1909.10351). Heads that `shrink_` took out are left out in the teacher; where the numbers of heads
    differ otherwise, ``heads="mean"`` compares the mean over heads. Padded queries do not count, as in `distill_tokens`.

    Raises `SecateursError` where a model has no attention that can be seen, or they do not fit, and a teacher as in `distill`.

    >>> from secateurs import Task, train_
    >>> layer = lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    >>> model, teacher, x = layer(), layer(), torch.randn(2, 5, 8)
    >>> task = Task(x, train=[(x, x)], loss=nn.functional.mse_loss)
    >>> run = train_(model, task, torch.optim.SGD(model.parameters(), lr=0.1), epochs=1, hooks=[distill_attention(teacher)])
    """
    require(name, "weight", weight, NUMBER)
    if not 0 <= weight < float("inf") or loss not in ("kl", "mse") or heads not in ("each", "mean"):
        given = f"{name}(weight={weight}, loss={loss!r}, heads={heads!r})"
        raise SecateursError(f'{given}: weight must be at least 0, loss "kl" or "mse", and heads "each" or "mean"')
    compare = _Heads(loss, heads == "mean", counted)
    return Within(name, teacher_for(name, teacher), modules, Attentions, compare, weight).hook()


# ---------------------------------------------------------------- seeing them


@dataclass
class Attentions:
    """Looks at the probabilities of each attention within modules, ``(batch, heads, queries, keys)``, as `Outputs` does at outputs.

    >>> looks, model = Attentions([""]), nn.MultiheadAttention(4, 2, batch_first=True)
    >>> looks.watch(model)
    >>> x = torch.randn(1, 3, 4)
    >>> _, seen = model(x, x, x), looks.take()
    >>> looks.close()
    >>> [probabilities.shape for probabilities in seen[""]]
    [torch.Size([1, 2, 3, 3])]
    """

    names: Iterable[str]
    learning: bool = False
    _seen: dict[str, list[Tensor]] = field(default_factory=dict)
    _handles: list[RemovableHandle] = field(default_factory=list)
    _open: list[Any] = field(default_factory=list)

    def watch(self, model: nn.Module) -> None:
        """Look at this model from now on, and at no other."""
        self.close()
        modules = modules_in(inside(model), again=True)
        self._handles = [model.register_forward_pre_hook(self._forget)]
        for name in self.names:
            self._handles.append(modules[name].register_forward_pre_hook(partial(self._enter, name)))
            self._handles.append(modules[name].register_forward_hook(self._leave, always_call=True))

    def _forget(self, *_: Any) -> None:
        if not self.learning or torch.is_grad_enabled():
            self._seen = {}

    def _enter(self, name: str, *_: Any) -> None:
        seeing = _Seeing(self._seen.setdefault(name, []).append if not self.learning or torch.is_grad_enabled() else None)
        self._open.append(seeing)
        seeing.__enter__()  # type: ignore[no-untyped-call]

    def _leave(self, *_: Any) -> None:
        if self._open:
            self._open.pop().__exit__(None, None, None)

    def take(self) -> dict[str, list[Tensor]]:
        """What was seen in the last pass, which is then forgotten."""
        seen, self._seen = self._seen, {}
        return {name: each for name, each in seen.items() if each}

    def close(self) -> None:
        """Look at nothing any more."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._seen = [], {}


class _Seeing(TorchFunctionMode):
    """While it is entered, tells of the probabilities of each attention."""

    def __init__(self, tell: Any) -> None:
        super().__init__()
        self._tell = tell
        self._maybe: list[tuple[Tensor, Tensor]] = []  # what a softmax became on its way, and what it gave

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._tell is None:
            return func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if func is functional.scaled_dot_product_attention:
            self._tell(_probabilities(*args, **kwargs))
        elif func is functional.multi_head_attention_forward:
            self._tell(_of_multi_head(args, kwargs))
        result = func(*args, **kwargs)
        if name == "softmax" and isinstance(result, Tensor) and result.ndim > 2:
            self._maybe.append((result, result))
        elif self._maybe and args and isinstance(args[0], Tensor):
            self._follow(name, args[0], result)
        return result

    def _follow(self, name: str, given: Tensor, result: Any) -> None:
        for place, (now, first) in enumerate(self._maybe):
            if now is not given:
                continue
            if name in ("matmul", "__matmul__", "bmm"):
                del self._maybe[place]
                self._tell(first if first.ndim > 3 else first[None])
            elif isinstance(result, Tensor) and result.shape == now.shape and result is not now:
                self._maybe.append((result, first))
            return


def _probabilities(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """What `scaled_dot_product_attention` multiplies values with, before dropout."""
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    scores = query @ key.mT * factor
    if is_causal:
        scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -torch.inf)
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    nowhere = (scores == -torch.inf).all(-1, keepdim=True)
    found = torch.softmax(scores.masked_fill(nowhere, 0), -1)
    return found if found.ndim > 3 else found[None]


def _of_multi_head(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """As torch's own layer computes them, asked once more, with its dropout (the tenth argument by place) off."""
    asked = {**kwargs, "need_weights": True, "average_attn_weights": False}
    places = ["query", "key", "value", "embed_dim_to_check", "num_heads", "in_proj_weight", "in_proj_bias", "bias_k", "bias_v"]
    places += ["add_zero_attn", "dropout_p", "out_proj_weight", "out_proj_bias", "training", "key_padding_mask"]
    given = {**dict(zip(places, args, strict=False)), **asked, "dropout_p": 0.0}
    _, found = functional.multi_head_attention_forward(**given)
    assert found is not None
    return found if found.ndim > 3 else found[None]


# ---------------------------------------------------------------- comparing them


@dataclass(frozen=True)
class _Heads:
    """How the probabilities of two attentions are compared."""

    loss: str
    mean: bool
    counted: Counted | None

    def __call__(self, run: Run, pair: Pair) -> Tensor:
        found, wanted = (each.to(torch.promote_types(each.dtype, torch.float32)) for each in (pair.found, pair.wanted))
        if self.mean:
            found, wanted = found.mean(1, keepdim=True), wanted.mean(1, keepdim=True)
        elif found.shape[1] != wanted.shape[1]:
            wanted = _stayed(pair, wanted)
        if found.shape != wanted.shape:
            where = f"{pair.who}: attention {pair.call + 1} of {pair.module or 'the model'}"
            raise SecateursError(
                f"{where} is {tuple(found.shape)} (batch, heads, queries, keys), and that of the teacher {tuple(wanted.shape)}: "
                'heads="mean" compares what heads do on the average, and modules= says which belong together'
            )
        there = counted_in(run.inputs, torch.Size((found.shape[0], found.shape[2])), self.counted)
        return mean_over(self._apart(found, wanted).movedim(1, -1), there)

    def _apart(self, found: Tensor, wanted: Tensor) -> Tensor:
        """For each batch, head and query."""
        if self.loss == "mse":
            return (found - wanted).square().mean(-1)
        return (torch.xlogy(wanted, wanted) - wanted * found.clamp_min(_TINY).log()).sum(-1)


def _stayed(pair: Pair, wanted: Tensor) -> Tensor:
    """Only the teacher's heads that stayed where the model was shrunk from it."""
    heads = None if pair.descent.why_not else pair.descent.heads(pair.of_teacher, pair.call, wanted.shape[1])
    return wanted if heads is None else wanted.index_select(1, heads.to(wanted.device))
