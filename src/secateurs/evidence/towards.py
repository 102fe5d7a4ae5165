"""What layers answered before anything was pruned, beside what they are given since: for fits of the one to the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from secateurs.evidence.gram import input_gram, input_rows
from secateurs.types import Counted, Member, SecateursError, Seen, Statistic


def layer_answers(members: Counted = "consumers") -> Statistic:
    """All that each layer answers to the calibration batches, ``(rows, outputs)`` in the order in which they came; of linear layers.

    >>> layer_answers().watches
    'inputs'
    """
    return Statistic("layer_answers", _Answers, "inputs", members=members)


def products_with(answers: Mapping[str, Tensor], members: Counted = "consumers") -> Statistic:
    """The mean of x·zᵀ over all rows, x what a layer is given now, with a constant 1 behind it, and z what it answered then:
    `layer_answers` of the same batches in the same order. ``(features + 1, outputs)``.

    Raises `SecateursError` where other rows come than those that were answered.

    >>> products_with({}).name
    'products_with(answers)'
    """
    return Statistic("products_with(answers)", _Start(answers), "inputs", members=members)


@dataclass
class _Answers:
    member: Member
    rows: list[Tensor] = field(default_factory=list)

    sums: ClassVar = ()

    def add(self, seen: Seen) -> None:
        answered = seen.output
        if not isinstance(answered, Tensor) or self.member.shape[0] != 1 or answered.shape[-1] != self.member.shape[1]:
            raise SecateursError(
                f"{self.member.parameter}: its answers are not rows of {self.member.shape[1]} numbers, as those of linear layers are; skip "
                "it with skip=[...]"
            )
        self.rows.append(answered.detach().flatten(0, -2).float())

    def result(self) -> Tensor:
        return torch.cat(self.rows) if self.rows else torch.zeros(0, self.member.shape[1])


@dataclass(frozen=True)
class _Start:
    answers: Mapping[str, Tensor] = field(repr=False)

    def __call__(self, member: Member) -> _Products:
        input_gram().start(member)  # raises where its inputs cannot be seen
        return _Products(member, self.answers[member.parameter])


@dataclass
class _Products:
    member: Member
    answers: Tensor
    total: Tensor | None = None
    rows: int = 0

    sums: ClassVar = ("total",)

    def add(self, seen: Seen) -> None:
        given = input_rows(self.member, seen)[0]
        then = self.answers[self.rows : self.rows + len(given)].to(given.device)
        if len(then) != len(given):
            raise SecateursError(
                f"{self.member.parameter}: {self.rows + len(given)} rows came, but {len(self.answers)} were answered: give the same "
                "batches in the same order, for example a list"
            )
        found = torch.cat([given, given.new_ones(len(given), 1)], dim=1).T @ then
        self.total = found if self.total is None else self.total + found
        self.rows += len(given)

    def result(self) -> Tensor:
        if self.total is None or self.rows != len(self.answers):
            raise SecateursError(
                f"{self.member.parameter}: {self.rows} rows came, but {len(self.answers)} were answered: give the same batches in the same "
                "order, for example a list"
            )
        return self.total / self.rows
