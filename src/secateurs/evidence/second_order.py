"""Second derivatives of the loss by weights, batch by batch: from one gradient that can itself be differentiated."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from secateurs.nested import tensors_in
from secateurs.types import Curvature, NonFiniteError, SecateursError

_MOST_EXACT, _MOST_ANSWERS = 1 << 14, 1 << 10

Parts = list[tuple[Tensor, Tensor]]
"""Weights, each with the unit in which each of its numbers lies, of the weight's shape; −1 for none."""

Give = Callable[[Tensor, int], None]
"""What becomes of the second derivatives by one weight, of the weight's shape, and of the number of samples."""


@dataclass
class Curvatures:
    """The weights by which second derivatives are wanted, and which. Random vectors go on from batch to batch."""

    wanted: dict[Curvature, list[tuple[Tensor, Give]]] = field(default_factory=dict)
    units: dict[Curvature, list[tuple[Parts, Give]]] = field(default_factory=dict)
    generators: dict[Curvature, torch.Generator] = field(default_factory=dict)

    def add(self, curvature: Curvature, weight: Tensor, give: Give) -> None:
        """From now on tell of this weight's."""
        self.wanted.setdefault(curvature, []).append((weight, give))
        self.generators.setdefault(curvature, torch.Generator().manual_seed(curvature.seed))

    def add_units(self, curvature: Curvature, parts: Parts, give: Give) -> None:
        """From now on tell wᵀHw of each of some units, in the order of their numbers."""
        self.units.setdefault(curvature, []).append((parts, give))
        self.generators.setdefault(curvature, torch.Generator().manual_seed(curvature.seed))

    def __call__(self, loss: Tensor, output: Any, samples: int) -> None:
        """Of the loss of one batch, whose graph stays as it is."""
        for curvature, sites in self.units.items():
            with _told():
                found = of_units(curvature, loss, output, [parts for parts, _ in sites], self.generators[curvature])
            for value, (_, give) in zip(found, sites, strict=True):
                give(value, samples)
        for curvature, asked in self.wanted.items():
            weights = list({id(weight): weight for weight, _ in asked}.values())
            with _told():
                found = self._found(curvature, loss, output, weights)
            by_weight = {id(weight): value for weight, value in zip(weights, found, strict=True)}
            for weight, give in asked:
                give(by_weight[id(weight)], samples)

    def _found(self, curvature: Curvature, loss: Tensor, output: Any, weights: Sequence[Tensor]) -> list[Tensor]:
        generator = self.generators[curvature]
        match curvature.of:
            case "gauss_newton":
                return _gauss_newton(loss, answers_of(loss, output), weights, curvature.probes, generator)
            case "hutchinson":
                return _hutchinson(_Products(loss, weights), weights, curvature.probes, generator)
            case "exact":
                return _exact(_Products(loss, weights), weights)
            case "gradient":
                products = _Products(loss, weights)
                return products([gradient.detach() for gradient in products.gradients])


class _Products:
    """Products of the Hessian with vectors; what the loss does not depend on has zeros."""

    def __init__(self, loss: Tensor, weights: Sequence[Tensor]) -> None:
        self._weights = list(weights)
        found = torch.autograd.grad(loss, self._weights, create_graph=True, allow_unused=True)
        self.gradients = [
            torch.zeros_like(weight) if each is None else each for weight, each in zip(self._weights, found, strict=True)
        ]

    def __call__(self, vectors: Sequence[Tensor]) -> list[Tensor]:
        pairs = [
            (gradient, vector)
            for gradient, vector in zip(self.gradients, vectors, strict=True)
            if gradient.requires_grad and bool(vector.any())
        ]
        if not pairs:
            return [torch.zeros_like(weight, dtype=torch.float32) for weight in self._weights]
        found = torch.autograd.grad(
            [gradient for gradient, _ in pairs],
            self._weights,
            [vector for _, vector in pairs],
            retain_graph=True,
            allow_unused=True,
        )
        return [
            torch.zeros_like(weight, dtype=torch.float32) if each is None else _wide(each)
            for weight, each in zip(self._weights, found, strict=True)
        ]


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _hutchinson(products: _Products, weights: Sequence[Tensor], probes: int, generator: torch.Generator) -> list[Tensor]:
    """The mean of v ⊙ Hv over vectors of random signs: its expectation is the diagonal."""
    sums = [torch.zeros_like(weight, dtype=torch.float32) for weight in weights]
    for _ in range(probes):
        signs = [_signs(weight.shape, generator).to(weight) for weight in weights]
        for place, (sign, product) in enumerate(zip(signs, products(signs), strict=True)):
            sums[place] = sums[place] + sign * product / probes
    return sums


def _exact(products: _Products, weights: Sequence[Tensor]) -> list[Tensor]:
    """One product for each weight."""
    number = sum(weight.numel() for weight in weights)
    if number > _MOST_EXACT:
        raise SecateursError(
            f'hessian="exact" takes a backward pass for each of {number:,} weights, and is for {_MOST_EXACT:,} at most: take "hutchinson" '
            'or "gauss_newton", or fewer layers with only=[...]'
        )
    found = [torch.zeros_like(weight, dtype=torch.float32) for weight in weights]
    unit = [torch.zeros_like(weight) for weight in weights]
    for layer, weight in enumerate(weights):
        found[layer] = torch.zeros_like(weight, dtype=_wide(weight.detach()).dtype)
        for place in range(weight.numel()):
            unit[layer].view(-1)[place] = 1
            found[layer].view(-1)[place] = products(unit)[layer].reshape(-1)[place]
            unit[layer].view(-1)[place] = 0
    return found


def _gauss_newton(
    loss: Tensor, answers: Tensor, weights: Sequence[Tensor], probes: int, generator: torch.Generator
) -> list[Tensor]:
    """The mean of (JᵀSz)² over vectors of random signs, S Sᵀ being the second derivatives of the loss by the answers."""
    sums = [torch.zeros_like(weight, dtype=torch.float32) for weight in weights]
    for found in _answers_back(loss, answers, weights, probes, generator):
        sums = [total + each.square() / probes for total, each in zip(sums, found, strict=True)]
    return sums


def _answers_back(
    loss: Tensor, answers: Tensor, weights: Sequence[Tensor], probes: int, generator: torch.Generator
) -> Iterator[list[Tensor]]:
    """JᵀSz for vectors z of random signs."""
    roots = roots_of(loss, answers)
    for _ in range(probes):
        signs = _signs(roots.shape[::2], generator).to(roots)
        vector = (roots @ signs.unsqueeze(2)).reshape(answers.shape).to(answers.dtype)
        found = torch.autograd.grad(answers, list(weights), vector, retain_graph=True, allow_unused=True)
        yield [
            torch.zeros_like(weight, dtype=torch.float32) if each is None else _wide(each)
            for weight, each in zip(weights, found, strict=True)
        ]


def of_units(curvature: Curvature, loss: Tensor, output: Any, sites: Sequence[Parts], generator: torch.Generator) -> list[Tensor]:
    """wᵀHw of each unit of each site, all weights of the unit together.

    Each random vector has one sign a unit: the mean of v·w·(H Σ v·w) over them has this expectation, that of other units being zero.
    """
    weights = list({id(weight): weight for parts in sites for weight, _ in parts}.values())
    place = {id(weight): number for number, weight in enumerate(weights)}
    counts = [int(max(unit.max() for _, unit in parts)) + 1 for parts in sites]
    sums = [torch.zeros(count, device=parts[0][0].device) for count, parts in zip(counts, sites, strict=True)]

    def told(signs: Sequence[Tensor], vectors: Sequence[Tensor], square: bool) -> None:
        for number, (sign, parts) in enumerate(zip(signs, sites, strict=True)):
            found = torch.zeros_like(sums[number])
            for weight, unit in parts:
                product = _wide(weight.detach()) * vectors[place[id(weight)]]
                found.index_add_(0, unit[unit >= 0], product[unit >= 0].float())
            sums[number] += found.square() / curvature.probes if square else sign * found / curvature.probes

    if curvature.of == "gauss_newton":
        for gradients in _answers_back(loss, answers_of(loss, output), weights, curvature.probes, generator):
            told(sums, gradients, square=True)
        return sums
    products = _Products(loss, weights)
    if curvature.of == "exact" and sum(counts) > _MOST_EXACT:
        raise SecateursError(
            f'hessian="exact" takes a backward pass for each of {sum(counts):,} units, and is for {_MOST_EXACT:,} at most'
        )
    for signs in _one_by_one(counts) if curvature.of == "exact" else _drawn(counts, curvature.probes, generator):
        signs = [sign.to(total) for sign, total in zip(signs, sums, strict=True)]
        vectors = [torch.zeros_like(weight) for weight in weights]
        for sign, parts in zip(signs, sites, strict=True):
            for weight, unit in parts:
                vectors[place[id(weight)]] += torch.cat([sign, sign.new_zeros(1)])[unit].to(weight.dtype) * weight.detach()
        told(signs, products(vectors), square=False)
    return sums


def _drawn(counts: Sequence[int], probes: int, generator: torch.Generator) -> Iterator[list[Tensor]]:
    for _ in range(probes):
        yield [_signs((count,), generator) for count in counts]


def _one_by_one(counts: Sequence[int]) -> Iterator[list[Tensor]]:
    for site, count in enumerate(counts):
        for unit in range(count):
            chosen = [torch.zeros(each) for each in counts]
            chosen[site][unit] = 1
            yield chosen


def _signs(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    return torch.randint(0, 2, tuple(shape), generator=generator) * 2 - 1


def answers_of(loss: Tensor, output: Any) -> Tensor:
    """The one tensor of a model's output, samples first, that the loss is made of; raises `SecateursError` where it is none, or several."""
    tensors = [tensor for tensor in tensors_in(output) if tensor.requires_grad and tensor.ndim and tensor is not loss]
    found = torch.autograd.grad(loss, tensors, retain_graph=True, allow_unused=True) if tensors else ()
    used = [tensor for tensor, gradient in zip(tensors, found, strict=True) if gradient is not None]
    if len(used) != 1:
        raise SecateursError(
            f"Gauss–Newton looks at the loss as a function of one tensor that the model answers, and here it depends on {len(used)}: take "
            'hessian="hutchinson"'
        )
    return used[0]


def roots_of(loss: Tensor, answers: Tensor) -> Tensor:
    """S with S Sᵀ = the second derivatives of the loss by each sample's answers, ``(samples, numbers, numbers)``, float64.

    A loss is taken for a sum over samples. Where it curves downwards it counts as flat, so that all is positive. Raises `SecateursError`
    for more than 1,024 numbers a sample.

    >>> answers = torch.zeros(2, 3, requires_grad=True)
    >>> roots_of((answers ** 2).sum(), answers)[0].square()
    tensor([[2.0000, 0.0000, 0.0000],
            [0.0000, 2.0000, 0.0000],
            [0.0000, 0.0000, 2.0000]], dtype=torch.float64)
    """
    samples, numbers = answers.shape[0], answers[0].numel()
    if numbers > _MOST_ANSWERS:
        raise SecateursError(
            f"Gauss–Newton needs the second derivatives of the loss by the {numbers:,} numbers that the model answers to a sample, and is "
            f'for {_MOST_ANSWERS:,} at most: take hessian="hutchinson"'
        )
    (gradient,) = torch.autograd.grad(loss, answers, create_graph=True)
    rows = []
    for column in gradient.reshape(samples, numbers).unbind(1):
        row = torch.autograd.grad(column.sum(), answers, retain_graph=True, allow_unused=True)[0] if column.requires_grad else None
        rows.append((torch.zeros_like(answers) if row is None else row).reshape(samples, numbers))
    blocks = torch.stack(rows, dim=1).double()
    if not bool(blocks.isfinite().all()):
        raise NonFiniteError(
            "the second derivatives of the loss by the model's answers are NaN or infinite: look at the calibration batches"
        )
    values, vectors = torch.linalg.eigh((blocks + blocks.transpose(1, 2)) / 2)
    return vectors * values.clamp_min(0).sqrt().unsqueeze(1)


@contextmanager
def _told() -> Any:
    """What has no second derivative is told in words."""
    try:
        yield
    except RuntimeError as error:
        first = str(error).strip().partition("\n")[0]
        if isinstance(error, SecateursError) or not any(
            sign in first for sign in ("not implemented", "not differentiable", "double")
        ):
            raise
        raise SecateursError(
            f'an operation of this model has no second derivative ({first}): take hessian="gauss_newton", which needs none of the network, '
            "or a criterion of first order"
        ) from error
