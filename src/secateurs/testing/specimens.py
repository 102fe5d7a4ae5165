"""What the checks run on: one small layer of each kind, and a few small networks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.evidence import observe
from secateurs.nested import tensors_in
from secateurs.patterns import find_sites
from secateurs.prune import masks_of
from secateurs.types import Pattern, PatternError, SecateursError, Site, Sites, Solution, Statistic, Stats, Task


@dataclass(frozen=True)
class Specimen:
    """A model to try a part on, and what it is called with.

    >>> LAYERS[0].name, sum(p.numel() for p in LAYERS[0].model().parameters())
    ('Linear', 136)
    """

    name: str
    build: Callable[[], nn.Module]
    example: Any

    def model(self) -> nn.Module:
        """A fresh model; its parameters are the same each time, and none of them is zero."""
        with torch.random.fork_rng(devices=[]):
            model = self.build()
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in model.parameters():
                signs = torch.randint(0, 2, parameter.shape, generator=generator) * 2 - 1
                parameter.copy_((torch.rand(parameter.shape, generator=generator) + 0.1) * signs)
        return model

    def __repr__(self) -> str:
        return self.name


class Conv1D(nn.Module):
    """Looks like the layer of that name in Hugging Face's transformers: a Linear whose weight is (inputs, outputs)."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf = nf
        self.weight = nn.Parameter(torch.ones(nx, nf))
        self.bias = nn.Parameter(torch.zeros(nf))

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output."""
        return x @ self.weight + self.bias


class _Tied(nn.Module):
    """A language model in small: the classifier's weight is the embedding's."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.hidden, self.classifier = nn.Embedding(12, 8), nn.Linear(8, 8), nn.Linear(8, 12, bias=False)
        self.classifier.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        output: Tensor = self.classifier(self.hidden(self.embedding(tokens)))
        return output


class _Residual(nn.Module):
    """A residual block with normalisations, a grouped and a depthwise convolution, and a classifier of pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 12, 3, padding=1, bias=False), _normalisation(12)
        self.narrow, self.norm1 = nn.Conv2d(12, 8, 1, bias=False), _normalisation(8)
        self.grouped, self.norm2 = nn.Conv2d(8, 16, 3, padding=1, groups=4, bias=False), _normalisation(16)
        self.widen, self.depthwise = nn.Conv2d(16, 12, 1), nn.Conv2d(12, 12, 3, groups=12)
        self.hidden, self.classifier = nn.Linear(12 * 4, 10), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        y = torch.relu(self.norm2(self.grouped(torch.relu(self.norm1(self.narrow(x))))))
        x = torch.relu(self.depthwise(x + self.widen(y)))
        output: Tensor = self.classifier(torch.relu(self.hidden(x.flatten(1))))
        return output


def _normalisation(width: int) -> nn.BatchNorm2d:
    """One that has seen data: no two channels have the same mean or variance."""
    norm = nn.BatchNorm2d(width)
    with torch.no_grad():
        torch.linspace(-0.5, 0.5, width, out=norm.running_mean)
        torch.linspace(0.5, 1.5, width, out=norm.running_var)
    return norm


class _Attention(nn.Module):
    """A transformer block: positions, an RMSNorm on the residual stream, fused attention, a LayerNorm within the perceptron."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.positions = nn.Linear(6, 12), nn.Parameter(torch.zeros(5, 12))
        self.norm, self.qkv, self.out = nn.RMSNorm(12), nn.Linear(12, 3 * 16, bias=False), nn.Linear(16, 12)
        self.up, self.inner, self.down = nn.Linear(12, 10), nn.LayerNorm(10), nn.Linear(10, 12)
        self.classifier = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x) + self.positions
        q, k, v = self.qkv(self.norm(x)).view(len(x), 5, 3, 4, 4).permute(2, 0, 3, 1, 4)
        mixed = torch.softmax(q @ k.transpose(-1, -2) / 2, dim=-1) @ v
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        x = x + self.down(torch.relu(self.inner(self.up(x))))
        output: Tensor = self.classifier(x)
        return output


def _numbers(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def _tokens(*shape: int) -> Tensor:
    return torch.randint(0, 12, shape, generator=torch.Generator().manual_seed(1))


# Kernels have another size along each axis, and groups another number of inputs than of outputs: no two can be mixed up.
LAYERS: tuple[Specimen, ...] = (
    Specimen("Linear", lambda: nn.Linear(16, 8), _numbers(3, 16)),
    Specimen("Linear of awkward size", lambda: nn.Linear(7, 5), _numbers(3, 7)),
    Specimen("Conv1d", lambda: nn.Conv1d(8, 4, 3), _numbers(3, 8, 5)),
    Specimen("Conv2d", lambda: nn.Conv2d(4, 8, (2, 3)), _numbers(3, 4, 5, 6)),
    Specimen("Conv2d, grouped", lambda: nn.Conv2d(8, 16, (2, 3), groups=2), _numbers(3, 8, 5, 6)),
    Specimen("Conv2d, depthwise", lambda: nn.Conv2d(4, 8, 3, groups=4), _numbers(3, 4, 5, 6)),
    Specimen("Conv3d", lambda: nn.Conv3d(4, 4, (1, 2, 3)), _numbers(2, 4, 2, 3, 4)),
    Specimen("ConvTranspose1d", lambda: nn.ConvTranspose1d(8, 4, 3), _numbers(3, 8, 5)),
    Specimen("ConvTranspose2d", lambda: nn.ConvTranspose2d(4, 8, (2, 3)), _numbers(3, 4, 3, 4)),
    Specimen("ConvTranspose2d, grouped", lambda: nn.ConvTranspose2d(8, 16, (2, 3), groups=2), _numbers(3, 8, 3, 4)),
    Specimen("Embedding", lambda: nn.Embedding(12, 8), _tokens(3, 5)),
    Specimen("LSTM", lambda: nn.LSTM(8, 4, num_layers=2, bidirectional=True), _numbers(5, 2, 8)),
    # In double precision, because torch warns that oneDNN has no projections for single precision.
    Specimen("LSTM with projection", lambda: nn.LSTM(8, 8, proj_size=4).double(), _numbers(5, 2, 8).double()),
    Specimen("GRU", lambda: nn.GRU(8, 4), _numbers(5, 2, 8)),
    Specimen("RNN", lambda: nn.RNN(8, 4), _numbers(5, 2, 8)),
    Specimen("MultiheadAttention", lambda: nn.MultiheadAttention(8, 2), (_numbers(5, 2, 8),) * 3),
    Specimen("Conv1D (transposed)", lambda: Conv1D(8, 16), _numbers(3, 16)),
)
"""One small layer of each kind that can be pruned."""

NETWORKS: tuple[Specimen, ...] = (
    Specimen("perceptron", lambda: nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 8), nn.Linear(8, 4)), _numbers(3, 16)),
    Specimen(
        "convolutional network",
        lambda: nn.Sequential(
            nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.Flatten(), nn.Linear(32, 4)
        ),
        _numbers(2, 4, 6, 6),
    ),
    Specimen("network with tied weights", _Tied, _tokens(2, 5)),
)
"""Small networks: layers of unequal size, groups, a normalisation, tied weights."""

COUPLED: tuple[Specimen, ...] = (
    *NETWORKS,
    Specimen("residual network", _Residual, _numbers(2, 3, 4, 4)),
    Specimen("transformer block", _Attention, _numbers(2, 5, 6)),
)
"""Small networks with axes that many weights share: residual streams, groups, heads, normalisations of three kinds."""


def energy(output: Any, target: Any) -> Tensor:
    """A loss that every network has: the mean square of what it answers."""
    return torch.stack([tensor.float().square().mean() for tensor in tensors_in(output)]).sum()


def with_evidence(specimen: Specimen, sites: Sites, needs: Sequence[Statistic]) -> Iterator[tuple[Site, Stats]]:
    """The sites whose weights can be observed, each with the statistics of one batch, the specimen's example."""
    task = Task(example=specimen.example, calibration=[(specimen.example, None)], loss=energy)
    try:
        stats = observe(sites.model, sites, needs, task)
        yield from ((site, stats) for site in sites)
        return
    except SecateursError:
        pass  # one of them cannot be observed: each by itself
    for site in sites:
        try:
            stats = observe(sites.model, replace(sites, found=(site,)), needs, task)
        except SecateursError:
            continue
        yield site, stats


def earlier_masks(model: nn.Module, names: Iterable[str]) -> Mapping[str, Tensor]:
    """Masks as an earlier pruning may have left them: of each four elements the second is gone, and of each ten the first."""
    masks = {}
    for name, parameter in model.named_parameters():
        if name in names:
            places = torch.arange(parameter.numel()).view(parameter.shape)
            masks[name] = (places % 4 != 1) & (places % 10 != 0)
    return masks


def sites_of(specimen: Specimen, pattern: Pattern, earlier: bool = False) -> Sites | None:
    """The sites of a pattern on axes in a fresh specimen, or `None` where it has none.

    With ``earlier=True`` as an earlier pruning may have left them: of each four units the second is gone.
    """
    if not any(specimen is each for each in COUPLED):
        return _traced(specimen, pattern, earlier)
    key = specimen.name, pattern, earlier
    if key not in _known:
        _known[key] = _traced(specimen, pattern, earlier)
    return deepcopy(_known[key])


_known: dict[tuple[str, Pattern, bool], Sites | None] = {}
"""Sites of ours that were found: tracing takes ten times as long as copying."""


def _traced(specimen: Specimen, pattern: Pattern, earlier: bool) -> Sites | None:
    model = specimen.model()
    try:
        sites = find_sites(model, pattern, specimen.example)
    except PatternError:
        return None
    if not earlier:
        return sites
    masks: dict[str, Tensor] = {}
    for site in sites:
        left = torch.arange(site.units).view(site.contest_count, -1) % 4 != 1
        for name, mask in masks_of(site, Solution(left)).items():
            masks[name] = mask & masks.get(name, mask)
    return find_sites(model, pattern, specimen.example, masks=masks)


@contextmanager
def unchanged(model: nn.Module, what: str) -> Iterator[None]:
    """Raise `AssertionError` where the block changes a weight, a buffer or the mode of the model."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    yield
    after = model.state_dict()
    assert list(after) == list(before), f"{what} changed the names of weights to {list(after)}; it may only look"
    for name, tensor in after.items():
        assert torch.equal(before[name], tensor), f"{what} changed {name}; it may only look"
    assert modes == [module.training for module in model.modules()], f"{what} changed between training and evaluation mode"
