"""Second derivatives of the loss by weights, batch by batch: from one gradient that can itself be differentiated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from secateurs.nested import tensors_in
from secateurs.types import Curvature, NonFiniteError, SecateursError

_MOST_EXACT, _MOST_ANSWERS = 1 << 14, 1 << 10

Give = Callable[[Tensor, int], None]
"""What becomes of the second derivatives by one weight, of the weight's shape, and of the number of samples."""


@dataclass
class Curvatures:
    """The weights by which second derivatives are wanted, and which. Random vectors go on from batch to batch."""

    wanted: dict[Curvature, list[tuple[Tensor, Give]]] = field(default_factory=dict)
    generators: dict[Curvature, torch.Generator] = field(default_factory=dict)

    def add(self, curvature: Curvature, weight: Tensor, give: Give) -> None:
        """From now on tell of this weight's."""
        self.wanted.setdefault(curvature, []).append((weight, give))
        self.generators.setdefault(curvature, torch.Generator().manual_seed(curvature.seed))

    def __call__(self, loss: Tensor, output: Any, samples: int) -> None:
        """Of the loss of one batch, whose graph stays as it is."""
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
    roots = roots_of(loss, answers)
    sums = [torch.zeros_like(weight, dtype=torch.float32) for weight in weights]
    for _ in range(probes):
        signs = _signs(roots.shape[::2], generator).to(roots)
        vector = (roots @ signs.unsqueeze(2)).reshape(answers.shape).to(answers.dtype)
        found = torch.autograd.grad(answers, list(weights), vector, retain_graph=True, allow_unused=True)
        for place, each in enumerate(found):
            if each is not None:
                sums[place] = sums[place] + _wide(each).square() / probes
    return sums


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
