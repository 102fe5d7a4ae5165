"""Weights that share few values, and the hook that trains these values in place of the weights."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, field, replace
from math import ceil, log2
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.coding import Levels
from secateurs.compressing.tied import Tie
from secateurs.forward import parameters_in
from secateurs.patterns import Element
from secateurs.ranks import is_sharded
from secateurs.recover.inner import inside
from secateurs.recover.reparametrised import Beside, Chance, Learner, Reparametrised, Values, Where
from secateurs.recover.strength import Strength
from secateurs.types import FileError, Hook, Run, SecateursError, Sites, Skipped

_SHOWN = 6


@dataclass(frozen=True)
class Size:
    """What levels take: how many numbers there are, how many are not zero, how many values stand for these (of the run with the most),
    the bits that all numbers take at the least where each is coded on its own (the zeroth-order entropy), and the bits of the values."""

    numbers: int
    kept: int
    values: int
    coded: float
    table: int

    @staticmethod
    def of(levels: Levels) -> Size:
        """Of a weight's levels.

        >>> Size.of(Levels(torch.tensor([[0, 1, 1, 0]], dtype=torch.int32), scale=torch.ones(1)))
        Size(numbers=4, kept=2, values=1, coded=4.0, table=32)
        """
        flat = levels.numbers.reshape(-1)
        counts = torch.bincount(flat.long() - int(flat.min())) if flat.numel() else torch.zeros(1, dtype=torch.int64)
        counts, kept = counts[counts > 0].double(), int(torch.count_nonzero(flat))
        coded = float((counts * (flat.numel() / counts).log2()).sum()) if flat.numel() else 0.0
        if levels.table is None:
            values, table = len(counts) - int(kept < flat.numel()), 32 * levels.runs
        else:
            each = (levels.table != 0).sum(1)
            values, table = int(each.max()), int(each.sum()) * 8 * levels.table.element_size()
        return Size(flat.numel(), kept, values, coded, table)

    @property
    def bytes(self) -> int:
        """Both together in whole bytes."""
        return ceil((self.coded + self.table) / 8)

    @property
    def index_bits(self) -> int:
        """The bits of a place in the table."""
        return ceil(log2(self.values)) if self.values > 1 else self.values


@dataclass(frozen=True, eq=False, repr=False)
class Shared(Hook):
    """Weights on few levels. As a hook of `train_` it keeps them so, and trains the values in place of the weights.

    The optimizer that is given trains the values: each weight goes on with what all that share its value have in common, or with their sum
    (see `share_`). Zeros stay zero, and what masks remove while it trains joins them. In a loop of one's own: ``shared.start(run)`` with a
    `Run` of model, task, optimizer and epochs, then train as ever, ``shared.epoch_end(run)`` after each epoch and ``shared.end(run)`` at
    the end. Printed, it is a table: numbers and those that are not zero, values (of the row with the most), the bits a number takes at the
    least where each is coded on its own, the root of the squared error at first as a part of the weights', and bytes with the tables.
    ``skipped`` is what was left alone, and why.

    >>> from secateurs.compressing import share_
    >>> layer = nn.Linear(4, 2)
    >>> shared = share_(layer, bits=1)
    >>> len(layer.weight.unique()), torch.equal(shared.levels["weight"].values(), layer.weight)
    (2, True)
    """

    weights: Weights = field(default_factory=lambda: Weights({}, {}, {}))
    skipped: tuple[Skipped, ...] = ()

    @property
    def levels(self) -> dict[str, Levels]:
        """Parameter name → its levels, on the CPU; their values are the model's weights to the bit.

        Raises `SecateursError` where a weight has been changed by something else, other than an earlier state of it that was loaded.
        """
        return {name: self.weights.tie_now(name).levels() for name in self.weights.ties}

    @property
    def sizes(self) -> dict[str, Size]:
        """Parameter name → what its levels take."""
        return {name: Size.of(levels) for name, levels in self.levels.items()}

    @property
    def bytes(self) -> int:
        """What all levels and tables take at the least where each number is coded on its own: an estimate, not a file."""
        return sum(size.bytes for size in self.sizes.values())

    def __repr__(self) -> str:
        return f"Shared({len(self.weights.ties)} weights)"

    def __str__(self) -> str:
        rows = [("weight", "numbers", "not zero", "values", "bits", "error", "bytes")]
        sizes = self.sizes
        for name, size in sizes.items():
            bits = f"{size.coded / size.numbers if size.numbers else 0:.3f}"
            error = f"{100 * self.weights.errors[name]:.2f} %"
            rows.append((name, f"{size.numbers:,}", f"{size.kept:,}", str(size.values), bits, error, f"{size.bytes:,}"))
        numbers, kept = sum(size.numbers for size in sizes.values()), sum(size.kept for size in sizes.values())
        mean = sum(size.coded for size in sizes.values()) / numbers if numbers else 0
        rows.append(("together", f"{numbers:,}", f"{kept:,}", "", f"{mean:.3f}", "", f"{self.bytes:,}"))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
        left = [f"left alone: {item.name}: {item.reason}" for item in self.skipped[:_SHOWN]]
        more = len(self.skipped) - len(left)
        return "\n".join([line.rstrip() for line in lines] + left + ([f"and {more} more, see .skipped"] if more > 0 else []))


@dataclass(eq=False)
class Weights:
    """The weights that share values, and what each is computed by."""

    parameters: dict[str, nn.Parameter]
    ties: dict[str, Tie]
    errors: dict[str, float]

    def tie_now(self, name: str) -> Tie:
        """What a weight is computed by as it is now: as it was last, or where an earlier state was loaded or masks were applied since."""
        tie, here = self.ties[name], self.parameters[name].detach()
        if is_sharded(here):
            raise SecateursError(
                f"{name} is sharded over processes (fully_shard): train its values, and ask for levels, before it is"
            )
        here = here.cpu()
        if here.shape == tie.shape:
            if torch.equal(tie.levels().values(), here):
                return tie
            tie = copy(tie)
            tie.to_(here.device)
            tie.remove_(here == 0)
            if tie.adopt(here):
                return tie
        raise SecateursError(
            f"{name} is not what it was computed to be: something else has changed it since it was shared (training without this hook, "
            "weights that were loaded, shrinking); share it anew, or train with hooks=[shared]"
        )

    # ------------------------------------------------------------ the hook

    def hook(self, who: str, learner: Learner) -> Hook:
        where = Where(Element(), only=list(self.ties))
        learning = Reparametrised(who, where, self._begin, learner, Strength.of(who, 0.0, None, first=0.0))
        inner = learning.hook()

        def start(run: Run) -> None:
            trained = self._bind(run)
            learning.where = replace(where, only=trained)
            if trained:
                inner.start(run)

        def end(run: Run) -> None:
            for name, whole in learning.whole.items():
                if self.ties[name].latent is not None:
                    self.ties[name].latent = whole.clone()
            inner.end(run)

        return replace(
            inner, start=start, end=end, state=lambda: self._state(inner), restore=lambda state: self._restore(inner, state)
        )

    def _bind(self, run: Run) -> list[str]:
        """Be of the model of a run; the names of the weights that its optimizer trains. The others stay as they are by themselves."""
        parameters = parameters_in(inside(run.model))
        for name, weight in self.parameters.items():
            if name not in parameters or parameters[name].shape != weight.shape:
                raise SecateursError(
                    f"{name}: it has shape {tuple(weight.shape)} in the model that was shared, and this {type(run.model).__name__} has no "
                    "such weight: was it shrunk since? share it anew"
                )
        self.parameters = {name: parameters[name] for name in self.ties}
        known = {id(each) for group in run.optimizer.param_groups for each in group["params"]}
        trained = [name for name, each in self.parameters.items() if each.requires_grad and id(each) in known]
        self.ties = {name: self.tie_now(name) for name in self.ties}
        for name, tie in self.ties.items():
            here = self.parameters[name].detach()
            tie.to_(here.device)
            tie.remove_(here == 0)
        return trained

    def _begin(self, sites: Sites, chance: Chance) -> Beside:
        names = [site.members[0].parameter for site in sites]
        learned = {name: value for name in names if (value := self.ties[name].values()) is not None}
        begun = {name: latent.to(self.parameters[name].device) for name in names if (latent := self.ties[name].latent) is not None}

        def weight(name: str, v: Tensor, values: Values, noise: Values) -> Tensor:
            return self.ties[name].weight(v, values.get(name))

        return Beside(
            learned,
            {name: (name,) if name in learned else () for name in names},
            weight,
            final=lambda values: None,  # zeros of the levels are no masks
            tell=lambda values: {},
            begun=begun,
            removed=lambda name, mask: self.ties[name].remove_(~mask),
        )

    # ------------------------------------------------------------ through a checkpoint

    def _state(self, inner: Hook) -> dict[str, Any]:
        return {"learning": inner.state(), "ties": {name: tie.state() for name, tie in self.ties.items()}}

    def _restore(self, inner: Hook, state: Mapping[str, Any]) -> None:
        ties = state.get("ties")
        if not isinstance(ties, Mapping) or ties.keys() != self.ties.keys() or not isinstance(state.get("learning"), Mapping):
            there = ", ".join(ties) if isinstance(ties, Mapping) else "none"
            raise FileError(
                f"the checkpoint holds shared values of other weights ({there}) than those here ({', '.join(self.ties)})"
            )
        for name, tie in self.ties.items():
            tie.restore(ties[name])
        inner.restore(state["learning"])
