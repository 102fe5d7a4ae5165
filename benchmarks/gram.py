"""Gathering the products of the inputs of all layers: how much longer than the forward passes alone.

    python benchmarks/gram.py    # some minutes on two cores

What a reconstruction needs (`sc.LeastSquares`, `sc.SparseGPT` and the others) is X·Xᵀ of every layer. Their arithmetic is fixed: a layer of
``features`` inputs wants ``features²`` multiply-adds a row where its forward pass wants ``features * outputs``, so the ratio of the two is
told beside what was measured. Networks have random weights; ResNet-50 sees images of 224, the language model has OPT-125M's shape.
"""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from tables import markdown, write
from torch import Tensor, nn

import secateurs as sc
from secateurs.evidence import input_gram, observe
from secateurs.forward import call
from secateurs.models import resnet_50
from secateurs.patterns import find_sites
from secateurs.types import Sites

ROUNDS = 3


def resnet() -> tuple[nn.Module, list[Tensor]]:
    """ResNet-50 and two batches of eight images."""
    return resnet_50().eval(), [torch.randn(8, 3, 224, 224) for _ in range(2)]


def opt() -> tuple[nn.Module, list[Tensor]]:
    """A decoder of OPT-125M's shape and four sequences of 512 tokens."""
    from transformers import OPTConfig, OPTForCausalLM

    model: Any = OPTForCausalLM
    return model(OPTConfig()).eval(), [torch.randint(5, 50_000, (1, 512)) for _ in range(4)]


NETWORKS: dict[str, Callable[[], tuple[nn.Module, list[Tensor]]]] = {"ResNet-50": resnet, "OPT-125M's shape": opt}


def linear_or_convolution(name: str, module: nn.Module) -> bool:
    """The layers whose inputs are gathered; of a language model not the output head, as pruning methods have it."""
    return isinstance(module, (nn.Linear, nn.Conv2d)) and not name.endswith("lm_head")


def arithmetic(sites: Sites, rows: dict[str, int]) -> tuple[float, float]:
    """Multiply-adds of the layers' forward passes, and of the products."""
    forward = products = 0.0
    for site in sites:
        groups, outputs, *features = site.members[0].shape
        width = torch.Size(features).numel()
        forward += rows[site.name] * groups * outputs * width
        products += rows[site.name] * groups * (width + 1) ** 2
    return forward, products


def rows_of(model: nn.Module, sites: Sites, batches: list[Tensor]) -> dict[str, int]:
    """How many rows of input each layer gets."""
    found: dict[str, int] = {}

    def count(name: str) -> Callable[[Any, Any, Tensor], None]:
        def hook(module: Any, inputs: Any, output: Tensor) -> None:
            channels = 1 if isinstance(module, nn.Conv2d) else -1
            found[name] = found.get(name, 0) + output.numel() // output.shape[channels]

        return hook

    hooks = [site.members[0].module.register_forward_hook(count(site.name)) for site in sites]
    walk(model, batches)
    for hook in hooks:
        hook.remove()
    return found


@torch.no_grad()
def walk(model: nn.Module, batches: list[Tensor]) -> None:
    """The forward passes alone."""
    for batch in batches:
        call(model, (batch,))


def measured(name: str) -> list[str]:
    """A row of the table: interleaved rounds, medians."""
    model, batches = NETWORKS[name]()
    task = sc.Task(batches[0][:1], calibration=[(batch, None) for batch in batches])
    sites = find_sites(model, sc.Element(), task.example, only=linear_or_convolution)
    forward, products = arithmetic(sites, rows_of(model, sites, batches))
    alone, gathering = [], []
    for turn in range(-1, ROUNDS):
        start = time.perf_counter()
        walk(model, batches)
        between = time.perf_counter()
        observe(model, sites, [input_gram()], task)
        end = time.perf_counter()
        if turn >= 0:
            alone.append(between - start)
            gathering.append(end - between)
    times = statistics.median(b / a for a, b in zip(alone, gathering, strict=True))
    memory = sum(each[0] * 4 * (torch.Size(each[2:]).numel() + 1) ** 2 for each in (site.members[0].shape for site in sites))
    return [
        name,
        str(len(sites)),
        f"{statistics.median(alone):.1f}",
        f"{statistics.median(gathering):.1f}",
        f"{times:.2f}",
        f"{1 + products / forward:.2f}",
        f"{memory / 2**20:,.0f}",
    ]


def main() -> None:
    """Measure and write the page."""
    torch.manual_seed(0)
    headings = ["network", "layers", "forward alone, s", "with products, s", "times as long", "by arithmetic", "products, MiB"]
    table = markdown(headings, [measured(name) for name in NETWORKS])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    about = (
        f"`python benchmarks/gram.py`: medians of {ROUNDS} interleaved rounds with {torch.get_num_threads()} threads; peak memory of the "
        f"process {peak:.1f} GiB. `by arithmetic` counts the multiply-adds of forward passes and products together against the forward "
        "passes alone. Query, key and value of a block read the same input, whose products are computed for each."
    )
    write("gram", "# Products of the inputs of all layers", about, table)


if __name__ == "__main__":
    main()
