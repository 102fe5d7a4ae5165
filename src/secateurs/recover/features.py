"""Features: what chosen modules of a pruned network give is drawn towards what those of its teacher give."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.given import NUMBER, require
from secateurs.graph import blocks_of
from secateurs.recover.counted import Counted, counted_in, mean_over
from secateurs.recover.inner import Outputs
from secateurs.recover.projection import Projections
from secateurs.recover.teacher import Teacher, teacher_for
from secateurs.recover.within import Modules, Pair, Within
from secateurs.types import Hook, Run, SecateursError


def distill_features(
    teacher: nn.Module | Teacher | None,
    modules: Modules,
    *,
    weight: float = 1.0,
    project: bool = False,
    lr: float = 1e-3,
    seed: int = 0,
    counted: Counted | None = None,
    name: str = "distill_features",
) -> Hook:
    """Adds ``weight`` times the mean squared difference of what modules give in model and teacher, summed over them (1412.6550, §3.1).

    ``modules`` are names or globs (``"layer*"``) of the model's modules, or a dict of them to other names in the teacher. Of what a module
    gives the first tensor counts. Where the model was shrunk from this very teacher, the teacher's channels are those that stayed: the
    record of `shrink_` and the teacher's graph tell which, and blocks that were taken out are counted. Where widths differ otherwise,
    ``project=True`` trains a linear map from the model's channels to the teacher's beside it (with Adam at rate `lr`, drawn from `seed`,
    kept in the checkpoint). Where the inputs have an ``attention_mask``, or ``counted(inputs)`` says which positions count, padding of
    features ``(batch, positions, channels)`` does not. ``teacher`` may be left to be the model as it begins (`Teacher`).

    Raises `SecateursError` for a name that means nothing, features whose shapes do not fit, and a teacher as in `distill`.

    >>> from secateurs import Task, train_
    >>> model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3))
    >>> teacher = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> task = Task(torch.zeros(1, 2), train=[(torch.randn(8, 2), torch.zeros(8).long())], loss=nn.functional.cross_entropy)
    >>> hooks = [distill_features(teacher, "1", project=True)]
    >>> run = train_(model, task, torch.optim.SGD(model.parameters(), lr=0.1), epochs=2, hooks=hooks)
    """
    _require_weight(name, weight)
    maps = Projections(lr, seed) if project else None
    features = _Features(counted, maps, lambda difference: difference.square().mean(-1))
    return features.within(name, teacher_for(name, teacher), modules, weight).hook()


def distill_tokens(
    teacher: nn.Module | Teacher | None = None,
    modules: Modules | None = None,
    *,
    weight: float = 1.0,
    counted: Counted | None = None,
    name: str = "distill_tokens",
) -> Hook:
    """Adds ``weight`` times the mean over all tokens of ‖h - h'‖², the hidden states of model and teacher, summed over layers (2302.04089).

    By default over the outputs of all blocks that the residual stream passes through (`blocks_of`), and only over positions that are no
    padding: ``attention_mask`` in the inputs, or ``counted(inputs)``, says which. As `distill_features` in all else.

    >>> block = lambda: nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4))
    >>> from secateurs import Task, train_
    >>> model, x = nn.Sequential(block(), block()), torch.randn(2, 5, 4)
    >>> task = Task(x, train=[(x, x)], loss=nn.functional.mse_loss)
    >>> run = train_(model, task, torch.optim.SGD(model.parameters(), lr=0.1), epochs=1, hooks=[distill_tokens()])
    """
    _require_weight(name, weight)
    features = _Features(counted, None, lambda difference: difference.square().sum(-1))
    return features.within(name, teacher_for(name, teacher), _blocks if modules is None else modules, weight).hook()


def attention_transfer(
    teacher: nn.Module | Teacher | None,
    modules: Modules,
    *,
    weight: float = 1.0,
    name: str = "attention_transfer",
) -> Hook:
    """Adds ``weight`` times the mean over samples of ‖Q/‖Q‖ - Q'/‖Q'‖‖², Q being where features are large: Σ over channels of their squares
    (1612.03928, eq. 2 with p = 2, squared; summed over modules).

    For features ``(samples, channels, *places)``. Model and teacher may have any widths, as channels are summed.
    As `distill_features` in all else.

    >>> attention_transfer(None, "layer*").name
    'attention_transfer'
    """
    _require_weight(name, weight)
    return Within(name, teacher_for(name, teacher), modules, Outputs, _maps_apart, weight).hook()


def _require_weight(who: str, weight: float) -> None:
    require(who, "weight", weight, NUMBER)
    if not 0 <= weight < float("inf"):
        raise SecateursError(f"{who}(weight={weight}): weight must be at least 0, and finite")


def _blocks(model: nn.Module, example: Any) -> list[str]:
    return list(blocks_of(model, example))


# ---------------------------------------------------------------- features


@dataclass(frozen=True)
class _Features:
    """How features are compared: ``apart`` makes one number for each position of a difference, whose channels are last."""

    counted: Counted | None
    maps: Projections | None
    apart: Callable[[Tensor], Tensor]

    def within(self, who: str, teacher: Teacher, modules: Any, weight: float) -> Within:
        also: dict[str, Callable[..., Any]] = {}
        if self.maps is not None:
            also = {"stepped": self.maps.step, "state": self.maps.state, "restore": self.maps.restore}
        return Within(who, teacher, modules, Outputs, self, weight, also)

    def __call__(self, run: Run, pair: Pair) -> Tensor:
        pair = as_stayed(pair, project=self.maps is not None)
        found, wanted = _channels_last(pair.found, pair.wanted)
        there = counted_in(run.inputs, found.shape[:2], self.counted) if found.ndim == 3 else None

        def apart(one: Tensor, other: Tensor) -> Tensor:
            return mean_over(self.apart(one - other), there)

        if found.shape == wanted.shape:
            return apart(found, wanted)
        if self.maps is None or found.shape[:-1] != wanted.shape[:-1]:
            raise _unlike(pair, "only one dimension can be mapped, the channels")
        key = f"{pair.module}#{pair.call}"
        mapped = self.maps(key, found, wanted.shape[-1])
        self.maps.learn(key, found, wanted, apart)
        return apart(mapped, wanted)


def _channels_last(found: Tensor, wanted: Tensor) -> list[Tensor]:
    """``(samples, …, channels)``, float32 at least: channels are where widths differ, else second in images and last in all else."""
    differ = [dim for dim in range(1, found.ndim) if found.ndim == wanted.ndim and found.shape[dim] != wanted.shape[dim]]
    channels = differ[0] if len(differ) == 1 else 1 if found.ndim > 3 else -1
    exact = [each.to(torch.promote_types(each.dtype, torch.float32)) for each in (found, wanted)]
    return [each.movedim(channels, -1) if each.ndim > 1 else each for each in exact]


def as_stayed(pair: Pair, project: bool = False) -> Pair:
    """The pair with only those of the teacher's channels that stayed where the model was shrunk from it; raises where shapes do not fit."""
    if pair.found.shape == pair.wanted.shape:
        return pair
    reason, wanted = pair.descent.why_not, pair.wanted
    known = None if reason else pair.descent.of_output(pair.of_teacher, pair.call)
    if known is not None:
        shape, stayed = known
        if len(shape) == wanted.ndim and all(wanted.shape[dim] == shape[dim] for dim in stayed):
            for dim, indices in stayed.items():
                wanted = wanted.index_select(dim, indices.to(wanted.device))
    indexed = replace(pair, wanted=wanted)
    if wanted.shape == pair.found.shape:
        return indexed
    if project:
        return pair
    reason = reason or "the record of the shrinking does not tell which channels stayed there"
    raise _unlike(pair, f"{reason}; with project=True a map between their channels is trained")


def _unlike(pair: Pair, way_out: str) -> SecateursError:
    return SecateursError(f"{pair.who}: {pair.told()}, which do not fit: {way_out}; else choose modules that give the same shape")


# ---------------------------------------------------------------- where they are large


def _maps_apart(run: Run, pair: Pair) -> Tensor:
    found, wanted = pair.found, pair.wanted
    if found.ndim < 3 or found.ndim != wanted.ndim or found.shape[:1] + found.shape[2:] != wanted.shape[:1] + wanted.shape[2:]:
        raise SecateursError(
            f"{pair.who}: {pair.told()}, but it compares at which places features (samples, channels, *places) are large: choose modules "
            "that give as many places in both"
        )
    ours, theirs = (_attention(each) for each in (found, wanted))
    return (ours - theirs).square().sum(1).mean()


def _attention(features: Tensor) -> Tensor:
    """The sum of squares over channels, as a vector of length 1 for each sample; zero where all is zero."""
    exact = features.to(torch.promote_types(features.dtype, torch.float32))
    return nn.functional.normalize(exact.square().sum(1).flatten(1), dim=1)
