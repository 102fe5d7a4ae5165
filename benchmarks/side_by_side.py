"""Channel pruning beside torch-pruning: what each handles, how fast, what is left, and whether it equals the masked network.

    pip install --no-deps --target build/bench torch-pruning==1.6.1   # only for the benchmarks, never a dependency
    python benchmarks/side_by_side.py                                 # all networks; a name or two restrict it, without writing the page

Both remove half of the channels of whatever they find, by the L2 norm of what is coupled. They get fresh copies of one random
network in turn. The whole job, from the network to the pruned network, is ``prune_`` and ``shrink_`` against the construction of a
pruner with its dependency graph and ``pruner.step()``. Of ours, "analyse" is the time in ``find_sites``, "check" the time in which the
network answers before and after and the answers are compared, which torch-pruning does not do, and "prune" all the rest.

A pruned network equals the masked one when it computes what the original computes with every removed number set to zero.
torch-pruning is told which layer makes the answer, and for transformers also what its own examples tell it and repair afterwards:
the number of heads, and the attributes that hold the head size.
"""

from __future__ import annotations

import copy
import gc
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any, NoReturn

import torch
from resnet56 import torch_pruning
from tables import markdown, write
from torch import Tensor, nn

import secateurs as sc
import secateurs.prune as pruning
from secateurs import models
from secateurs.forward import call
from secateurs.nested import tensors_in
from secateurs.shrink import same_answers

SPARSITY = 0.5
ROUNDS = 7
TOLERANCE = 1e-4
LIMIT = 120
SIZES = {
    "lenet_5": (1, 28, 28),
    "resnet_56": (3, 32, 32),
    "unet": (1, 128, 128),
    "alexnet": (3, 227, 227),
    "vgg_16": (3, 224, 224),
    "squeezenet_1_0": (3, 224, 224),
    "googlenet": (3, 224, 224),
    "resnet_18": (3, 224, 224),
    "resnet_50": (3, 224, 224),
    "resnext_50": (3, 224, 224),
    "densenet_121": (3, 224, 224),
    "mobilenet_v2": (3, 224, 224),
    "mobilenet_v3_large": (3, 224, 224),
    "efficientnet_b0": (3, 224, 224),
    "shufflenet_v2": (3, 224, 224),
    "convnext_t": (3, 224, 224),
    "swin_t": (3, 224, 224),
    "vit": (3, 224, 224),
}
"""Factory in `secateurs.models` → the size of an input."""

WITHOUT_STREAM = ", LayerNorm left alone"

PROJECTIONS = ("query", "key", "value", "q_proj", "k_proj", "v_proj", "qkv")
"""Layers of a transformer whose outputs are heads, as the three families of attention here call them."""


@dataclass(frozen=True)
class Network:
    """A network with an example; torch-pruning may be told to leave alone what LayerNorm runs over, as ours does by itself."""

    make: Callable[[], nn.Module]
    example: Any
    leave_normalised: bool = False


@dataclass
class Outcome:
    """What one package did with one network: seconds of every round, or why not."""

    analyse: list[float] = field(default_factory=list)
    prune: list[float] = field(default_factory=list)
    check: list[float] = field(default_factory=list)
    macs_left: float | None = None
    difference: float | None = None
    put_back: list[str] = field(default_factory=list)
    failure: str = ""


# ---------------------------------------------------------------- the networks


def bert() -> nn.Module:
    """A classifier of the size of BERT base, with random weights."""
    from transformers import BertConfig, BertForSequenceClassification

    make: Any = BertForSequenceClassification  # annotated in some versions only
    return make(BertConfig())


def vit() -> nn.Module:
    """A classifier of the size of ViT base, with random weights."""
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification(ViTConfig())


def networks() -> dict[str, Network]:
    """All networks of the comparison."""
    found = {name: Network(getattr(models, name), torch.randn(1, *size)) for name, size in SIZES.items()}
    found["lstm_language_model"] = Network(models.lstm_language_model, torch.randint(1000, 2000, (1, 35)))
    tokens, images = torch.randint(1000, 2000, (1, 128)), torch.randn(1, 3, 224, 224)
    for name, leave in (("", False), (WITHOUT_STREAM, True)):
        found[f"BERT base{name}"] = Network(bert, {"input_ids": tokens}, leave)
        found[f"ViT base{name}"] = Network(vit, {"pixel_values": images}, leave)
    return found


def randomised(network: Network) -> nn.Module:
    """A network whose biases and statistics are not the zeros and ones that would hide mistakes."""
    torch.manual_seed(0)
    model = network.make().eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
            elif tensor.ndim == 1 and tensor.is_floating_point():
                tensor.add_(torch.randn_like(tensor), alpha=0.1)
    return model


@torch.no_grad()
def first_answer(model: nn.Module, example: Any) -> Tensor:
    """The first tensor that a model returns."""
    return next(tensors_in(call(model, example)))


def difference(found: Tensor, expected: Tensor) -> float:
    """The largest difference, as a part of the largest number."""
    if found.shape != expected.shape:
        return float("inf")
    return float((found - expected).abs().max() / expected.abs().max())


# ---------------------------------------------------------------- ours


def ours(model: nn.Module, network: Network, outcome: Outcome) -> nn.Module:
    """Prune and shrink; what finding the sites and checking the result take of it is told apart."""
    with (
        timed(pruning, "find_sites") as analyse,
        timed(same_answers.Check, "_answers") as check,
        timed(same_answers, "require_same") as compare,
    ):
        start = time.perf_counter()
        shrunk = sc.shrink_(model, prune_by_ours(model, network))
        whole = time.perf_counter() - start
    outcome.analyse.append(sum(analyse))
    outcome.check.append(sum(check) + sum(compare))
    outcome.prune.append(whole - outcome.analyse[-1] - outcome.check[-1])
    outcome.put_back = [f"{item.name}: {item.reason}" for item in shrunk.skipped]
    return model


@contextmanager
def timed(owner: Any, name: str) -> Iterator[list[float]]:
    """Seconds of each call of a function that a module or class holds."""
    seconds: list[float] = []
    function = getattr(owner, name)

    def call_timed(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            seconds.append(time.perf_counter() - start)

    setattr(owner, name, call_timed)
    try:
        yield seconds
    finally:
        setattr(owner, name, function)


def prune_by_ours(model: nn.Module, network: Network) -> sc.Masks:
    """Mask half of the channels."""
    task = sc.Task(example=network.example)
    return sc.prune_(model, sc.Channel(round_to=1), sc.TopK(sc.magnitude(p=2)), sc.uniform(sparsity=SPARSITY), task)


def masked_by_ours(model: nn.Module, network: Network, shrunk: nn.Module) -> nn.Module:
    """The original with the masks."""
    prune_by_ours(model, network)
    return model


# ---------------------------------------------------------------- theirs


def theirs(model: nn.Module, network: Network, outcome: Outcome) -> nn.Module:
    """Build the pruner; step, and repair the attributes of attention layers."""
    start = time.perf_counter()
    pruner = pruner_of(model, network)
    between = time.perf_counter()
    pruner.step()
    repair(model)
    outcome.analyse.append(between - start)
    outcome.prune.append(time.perf_counter() - between)
    model.pruning_history = pruner.pruning_history()
    return model


def pruner_of(model: nn.Module, network: Network) -> Any:
    """torch-pruning's pruner with its group magnitude, layer by layer."""
    tp = torch_pruning()
    weights = [module for module in model.modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    normalisations = [module for module in model.modules() if isinstance(module, nn.LayerNorm) and network.leave_normalised]
    return tp.pruner.MagnitudePruner(
        model,
        network.example,
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        global_pruning=False,
        pruning_ratio=SPARSITY,
        ignored_layers=[weights[-1], *normalisations],
        in_channel_groups={},  # its defaults are one dictionary for all pruners
        out_channel_groups={},
        num_heads={layer: count for _, layer, count in attention(model)},
    )


def attention(model: nn.Module) -> Iterator[tuple[nn.Module, nn.Linear, int]]:
    """Each attention module, with every projection and its number of heads."""
    for module in model.modules():
        heads = getattr(module, "num_attention_heads", getattr(module, "num_heads", None))
        for name, child in module.named_children():
            if name in PROJECTIONS and isinstance(child, nn.Linear) and isinstance(heads, int):
                yield module, child, heads


def repair(model: nn.Module) -> None:
    """Write the new head sizes to the attention layers, as torch-pruning's examples do."""
    for module, layer, heads in attention(model):
        size = "head_dim" if hasattr(module, "head_dim") else "attention_head_size"
        setattr(module, size, layer.out_features // (heads * (3 if hasattr(module, "qkv") else 1)))


def masked_by_theirs(model: nn.Module, network: Network, pruned: nn.Module) -> nn.Module:
    """The original with zeros where torch-pruning removes: its history, done again on numbered weights, tells which numbers stay."""
    numbered = copy.deepcopy(model).double()
    with torch.no_grad():
        for parameter in numbered.parameters():
            parameter.copy_(torch.arange(parameter.numel()).view(parameter.shape))
    example = {"example": network.example} if isinstance(network.example, Tensor) else network.example
    example = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in example.items()}
    pruner = pruner_of(numbered, replace(network, example=example.get("example", example)))
    pruner.load_pruning_history(pruned.pruning_history)
    stay = dict(numbered.named_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            mask = torch.zeros(parameter.numel(), dtype=torch.bool)
            mask[stay[name].long().flatten()] = True
            parameter.mul_(mask.view(parameter.shape))
    return model


# ---------------------------------------------------------------- one network


PACKAGES = {"secateurs": (ours, masked_by_ours), "torch-pruning": (theirs, masked_by_theirs)}


@contextmanager
def noting(outcome: Outcome) -> Iterator[None]:
    """Whatever goes wrong becomes the outcome's failure, its first line; so does what takes too much of the processor's time."""
    signal.signal(signal.SIGVTALRM, give_up)
    signal.setitimer(signal.ITIMER_VIRTUAL, LIMIT)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:
        lines = str(error).strip().splitlines()
        outcome.failure = ": ".join([type(error).__name__, *lines[:1]]).replace("|", "\\|")
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


def give_up(number: int, frame: object) -> NoReturn:
    """End what takes too long."""
    raise TimeoutError(f"not done after {LIMIT} s of processor time")


def compare(network: Network) -> dict[str, Outcome]:
    """Both packages prune copies of one network in turn; then each result is held against the masked network."""
    original, outcomes = randomised(network), {package: Outcome() for package in PACKAGES}
    dense = sc.macs(original, network.example)
    results: dict[str, nn.Module] = {}
    for turn in range(ROUNDS + 1):
        for package in list(PACKAGES)[:: 1 if turn % 2 else -1]:
            if not outcomes[package].failure:
                with noting(outcomes[package]):
                    results[package] = one_run(package, original, network, outcomes[package])
    for package, outcome in outcomes.items():
        if not outcome.failure:
            with noting(outcome):
                outcome.macs_left = sc.macs(results[package], network.example) / dense
                masked = PACKAGES[package][1](copy.deepcopy(original), network, results[package])
                outcome.difference = difference(
                    first_answer(results[package], network.example), first_answer(masked, network.example)
                )
        for seconds in (outcome.analyse, outcome.prune, outcome.check):
            del seconds[:1]  # the first one warms up
    return outcomes


def one_run(package: str, original: nn.Module, network: Network, outcome: Outcome) -> nn.Module:
    """One timed run on a fresh copy."""
    model = copy.deepcopy(original)
    gc.collect()
    return PACKAGES[package][0](model, network, outcome)


# ---------------------------------------------------------------- the page


def quotient(ours: list[float], theirs: list[float]) -> str:
    """Median of the rounds' quotients."""
    return f"{median(a / b for a, b in zip(ours, theirs, strict=True)):.2f}" if ours and theirs else ""


def milliseconds(seconds: list[float]) -> str:
    """The median."""
    return f"{1000 * median(seconds):,.1f}" if seconds else ""


def speed_row(name: str, outcomes: Mapping[str, Outcome]) -> list[str]:
    """Times of one network."""
    a, b = outcomes["secateurs"], outcomes["torch-pruning"]
    cells = [
        cell
        for own, other in ((a.analyse, b.analyse), (a.prune, b.prune))
        for cell in (milliseconds(own), milliseconds(other), quotient(own, other))
    ]
    theirs, ours, checked = added(b.analyse, b.prune), added(a.analyse, a.prune), added(a.analyse, a.prune, a.check)
    return [name, *cells, milliseconds(a.check), quotient(ours, theirs), quotient(checked, theirs)]


def added(*parts: list[float]) -> list[float]:
    """The sums of each round."""
    return [sum(each) for each in zip(*parts, strict=False)]


def result_row(name: str, outcomes: Mapping[str, Outcome]) -> list[str]:
    """What is left of one network, and whether it is right."""
    return [name, *(cell for outcome in outcomes.values() for cell in (left(outcome), equality(outcome)))]


def left(outcome: Outcome) -> str:
    """MACs left, with what could not be removed, or why there are none."""
    if outcome.macs_left is None:
        return f"no: {outcome.failure}"
    back = f"; {len(outcome.put_back)} put back, first {outcome.put_back[0]}".replace("|", "\\|") if outcome.put_back else ""
    return f"{outcome.macs_left:.1%}{back}"


def equality(outcome: Outcome) -> str:
    """Whether the pruned network computes what the masked one does."""
    if outcome.difference is None:
        return "n/a" if outcome.macs_left is None else f"n/a: {outcome.failure}"
    return f"{'yes' if outcome.difference <= TOLERANCE else '**no**'} ({outcome.difference:.0e})"


def page(found: Mapping[str, Mapping[str, Outcome]]) -> list[str]:
    """The two tables."""
    both = ("secateurs", "torch-pruning", "quotient")
    speed = ["network", *(f"{what}: {who}" for what in ("analyse", "prune") for who in both)]
    speed += ["check: secateurs", "whole job without check: quotient", "whole job with check: quotient"]
    result = ["network", *(f"{who}: {what}" for who in PACKAGES for what in ("MACs left", "equals masked"))]
    return [
        "## Milliseconds, and ours as a part of theirs",
        markdown(speed, rows := [speed_row(name, outcomes) for name, outcomes in found.items()]),
        summary(speed, rows),
        "## What is left, and whether it is right",
        markdown(result, [result_row(name, outcomes) for name, outcomes in found.items()]),
    ]


def summary(head: list[str], rows: list[list[str]]) -> str:
    """Median and worst of each quotient."""
    columns = {name: [float(row[place]) for row in rows if row[place]] for place, name in enumerate(head) if "quotient" in name}
    parts = [f"{name} {median(values):.2f}, at most {max(values):.2f}" for name, values in columns.items()]
    return f"Medians over the networks that both handle: {'; '.join(parts)}."


def main() -> None:
    """Compare, and write the page."""
    wanted = sys.argv[1:]
    found = {}
    for name, network in networks().items():
        if not wanted or name in wanted:
            found[name] = compare(network)
            print(speed_row(name, found[name]), result_row(name, found[name]), flush=True)
    about = (
        f"`python benchmarks/side_by_side.py`: channel sparsity {SPARSITY}, L2 magnitude, uniform, batches of one, "
        f"threads: {torch.get_num_threads()}; medians of {ROUNDS} interleaved runs on fresh copies, and medians of their quotients. "
        "The whole job is `prune_` and `shrink_` against the pruner and `pruner.step()`; of ours, the analysis and the check of the "
        "result are told apart. torch-pruning does not check. Equal: the largest difference from the network with "
        f"the removed numbers zeroed is at most {TOLERANCE:.0e} of the largest output. torch-pruning 1.6.1 was told which layer is "
        "the last, and for transformers the number of heads; their attributes were repaired as its examples do. Normalisations over "
        "channels (LayerNorm) are not the same after removal, so no pruning of what they run over can be equal."
    )
    if not wanted:
        write("side_by_side", "# Channel pruning beside torch-pruning", about, *page(found))


if __name__ == "__main__":
    main()
