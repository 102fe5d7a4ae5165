"""How fast a model runs here: dense runtimes and ours in turns, and from which sparsity on ours wins."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn

from secateurs.allocate import uniform
from secateurs.answers import differences, in_float64, widened
from secateurs.criteria import random
from secateurs.forward import run_example
from secateurs.nested import tensors_in
from secateurs.patterns import Element, Selection
from secateurs.prune import prune_
from secateurs.run.clock.backends import DENSE, Absent, Backend, Runner
from secateurs.run.clock.timing import Timing, measure, torch_threads
from secateurs.run.compiled import compile
from secateurs.solve import TopK
from secateurs.types import Pattern, SecateursError, Task, TaskError, WriteError

OURS = "secateurs"
SPARSITIES = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98)

_COLOURS = ("#0072b2", "#d55e00", "#00805c", "#b0568c", "#3c434c", "#e69f00")  # after Okabe and Ito
_MARKERS = "os^Dv*"


@dataclass(frozen=True)
class Contender:
    """What one runtime did with a model: its seconds and how far it is from float64, or why it took no part."""

    name: str
    timing: Timing | None = None
    error: float = math.nan
    reason: str = ""


@dataclass(frozen=True)
class Heat:
    """All contenders with one number of threads, measured side by side; ``explained`` is what ours tells of its layers."""

    threads: int
    contenders: tuple[Contender, ...]
    explained: Any = None

    @property
    def fastest_dense(self) -> Contender:
        """The dense contender with the least median."""
        return min((each for each in self.contenders if each.timing and each.name != OURS), key=_median)

    def speed(self, contender: Contender) -> float:
        """How many times as fast as the fastest dense one; NaN for one that took no part."""
        dense = self.fastest_dense.timing
        return contender.timing.speed_over(dense) if contender.timing and dense else math.nan


@dataclass(frozen=True)
class Gains:
    """How many times as fast as the fastest dense runtime one layer is, by sparsity."""

    layer: str
    points: tuple[tuple[float, float], ...]

    def break_even(self, gain: float = 1.05) -> float | None:
        """The sparsity from which on the layer gains at least 5 %, on straight lines between the points; None where it never does.

        >>> Gains("fc", ((0.0, 1.0), (0.5, 1.0), (0.6, 1.5), (0.9, 4.0))).break_even()
        0.51
        """
        above = [speed >= gain for _, speed in self.points]
        first = len(above) - next((back for back, wins in enumerate(reversed(above)) if not wins), len(above))
        if first in (0, len(self.points)):
            return None if first else self.points[0][0]
        (low, slow), (high, fast) = self.points[first - 1 : first + 1]
        return low + (high - low) * (gain - slow) / (fast - slow)


# ---------------------------------------------------------------- a model


def sparse(model: nn.Module, example: Any, threads: int) -> Runner | Absent:
    """Our runtime, as one more back end."""

    return compile(model, example, threads=threads)


def race(
    model: nn.Module,
    example: Any,
    *,
    threads: Sequence[int] = (1,),
    rounds: int = 31,
    seconds: float = 20.0,
    dense: Mapping[str, Backend] = DENSE,
    ours: Backend = sparse,
) -> tuple[Heat, ...]:
    """Run a model in all runtimes that are there, in turns, once for each number of threads.

    ``seconds`` is what the rounds of one number of threads may take. The model is not changed. Raises `TaskError` where it
    rejects the example.

    >>> (heat,) = race(nn.Linear(8, 4), torch.ones(1, 8), rounds=3, dense={"torch": DENSE["torch"]}, ours=DENSE["torch"])
    >>> [each.name for each in heat.contenders], heat.fastest_dense.name, heat.contenders[0].error < 1e-5
    (['torch', 'secateurs'], 'torch', True)
    """
    run_example(model, example)
    model = copy.deepcopy(model).eval()
    exact, heats = exact_answers(model, example), []
    for number in threads:
        with torch_threads(number):
            made = {name: backend(model, example, number) for name, backend in {**dense, OURS: ours}.items()}
            contenders = _compared(made, example, exact, rounds, seconds)
        explain = getattr(made[OURS], "explain", None)
        heats.append(Heat(number, contenders, explain() if explain else None))
    return tuple(heats)


def _compared(
    made: Mapping[str, Runner | Absent], example: Any, exact: Sequence[Tensor], rounds: int, seconds: float
) -> tuple[Contender, ...]:
    running = {name: run for name, run in made.items() if not isinstance(run, Absent)}
    errors = {name: relative_error(run(example), exact) for name, run in running.items()}
    calls = {name: partial(run, example) for name, run in running.items()}
    timings = measure(calls, rounds=rounds, seconds=seconds)
    return tuple(
        Contender(name, reason=run.reason) if isinstance(run, Absent) else Contender(name, timings[name], errors[name])
        for name, run in made.items()
    )


def exact_answers(model: nn.Module, example: Any) -> list[Tensor]:
    """What a model answers in float64, tensor by tensor; nothing where it cannot run so.

    >>> exact_answers(nn.Linear(3, 2), torch.ones(1, 3))[0].dtype
    torch.float64
    """
    try:
        with in_float64(model):
            return list(tensors_in(run_example(model, widened(example))))
    except TaskError:
        return []


def relative_error(output: Any, exact: Sequence[Tensor]) -> float:
    """The largest difference from float64, as a part of the largest number of its tensor; NaN where there is nothing to compare.

    >>> relative_error((torch.tensor([1.0, 2.5]),), [torch.tensor([1.0, 2.0]).double()])
    0.25
    """
    return max(differences(exact, output)) if any(tensor.numel() for tensor in exact) else math.nan


def table(title: str, heats: Iterable[Heat]) -> Table:
    """A row for each contender; what took no part is named below, with the reason.

    >>> from rich import print
    >>> heat = Heat(1, (Contender("torch", Timing((0.002,)), 1e-7), Contender("OpenVINO", reason="it is not installed")))
    >>> print(table("net", [heat]))
    net...
    ...torch...1...2.000...1.00...1e-07...
    OpenVINO: it is not installed...
    """
    made = Table(title=Text(title), title_justify="left", box=SIMPLE_HEAD, padding=0, caption_justify="left")
    made.add_column("runtime", no_wrap=True)
    for heading in ("threads", "ms", "quartiles", "times as fast", "error"):
        made.add_column(heading, justify="right", no_wrap=True)
    notes = {"times as fast": "as the fastest dense runtime", "error": "difference from float64, as a part of the largest number"}
    for heat in heats:
        made.add_section()
        for each in heat.contenders:
            if each.timing is None:
                notes[each.name] = each.reason
                continue
            first, third = (_milliseconds(quartile) for quartile in each.timing.quartiles)
            cells = (_milliseconds(each.timing.median), f"{first} to {third}", f"{heat.speed(each):.2f}", f"{each.error:.0e}")
            made.add_row(each.name, str(heat.threads), *cells, style="bold" if each.name == OURS else "")
    made.caption = Text("\n".join(f"{name}: {note}" for name, note in notes.items()))
    return made


def _median(contender: Contender) -> float:
    return contender.timing.median if contender.timing else math.inf


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.4g}" if seconds < 1e-3 else f"{1e3 * seconds:.3f}" if seconds < 0.1 else f"{1e3 * seconds:.1f}"


# ---------------------------------------------------------------- its layers, by sparsity


def sweep(
    model: nn.Module,
    example: Any,
    *,
    threads: int = 1,
    most: int = 6,
    sparsities: Sequence[float] = SPARSITIES,
    rounds: int = 21,
    seconds: float = 10.0,
    dense: Mapping[str, Backend] = DENSE,
    ours: Backend = sparse,
) -> tuple[Gains, ...]:
    """The break-even of the model's ``most`` costly shapes of layers, each alone, with random weights removed at random.

    Dense runtimes and ours at all sparsities take turns, so that a layer's whole curve saw the same machine.

    Raises `SecateursError` where the model applies no convolution and no linear layer to the example.

    >>> torch_ = DENSE["torch"]
    >>> (gains,) = sweep(nn.Linear(8, 4), torch.ones(1, 8), sparsities=(0.0, 0.5), rounds=3, dense={"torch": torch_}, ours=torch_)
    >>> gains.layer, len(gains.points)
    ('Linear 8→4', 2)
    """
    layers = costly_layers(model, example)[:most]
    if not layers:
        raise SecateursError(f"{type(model).__name__} applies no convolution and no linear layer to its example: nothing to sweep")
    curves = []
    for label, layer, inputs in layers:
        pruned = {sparsity: removed_at_random(layer, inputs, sparsity) for sparsity in sparsities}
        with torch_threads(threads):
            made = {name: backend(layer, inputs, threads) for name, backend in dense.items()}
            made |= {f"{OURS} {sparsity}": ours(each, inputs, threads) for sparsity, each in pruned.items()}
            calls = {name: partial(run, inputs) for name, run in made.items() if not isinstance(run, Absent)}
            timings = measure(calls, rounds=rounds, seconds=seconds)
        best = min((timings[name] for name in dense if name in timings), key=lambda timing: timing.median)
        found = ((sparsity, timings.get(f"{OURS} {sparsity}")) for sparsity in sparsities)
        curves.append(Gains(label, tuple((sparsity, timing.speed_over(best)) for sparsity, timing in found if timing)))
    return tuple(curves)


def gains_table(curves: Iterable[Gains]) -> Table:
    """A row for each layer: how many times as fast it is at each sparsity, and from which one on it gains 5 %.

    >>> from rich import print
    >>> print(gains_table([Gains("Linear 8→4", ((0.5, 1.0), (0.9, 2.0)))]))
    <BLANKLINE>
    ...layer...50 %...90 %...wins from...
    ...Linear 8→4...1.0...2.0...52 %...
    """
    made = Table(box=SIMPLE_HEAD, padding=0)
    made.add_column("layer", overflow="fold")
    curves = list(curves)
    sparsities = sorted({sparsity for curve in curves for sparsity, _ in curve.points})
    for sparsity in sparsities:
        made.add_column(f"{100 * sparsity:g} %", justify="right", no_wrap=True)
    made.add_column("wins from", justify="right", no_wrap=True)
    for curve in curves:
        speeds, start = dict(curve.points), curve.break_even()
        cells = [f"{speeds[sparsity]:.1f}" if sparsity in speeds else "–" for sparsity in sparsities]
        made.add_row(Text(curve.layer), *cells, "never" if start is None else f"{100 * start:.0f} %")
    return made


def costly_layers(model: nn.Module, example: Any) -> list[tuple[str, nn.Module, Tensor]]:
    """Each shape of convolution and linear layer once, as a module of its own with new weights and an input; the costliest first.

    >>> [label for label, _, _ in costly_layers(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), torch.zeros(1, 3, 6, 6))]
    ['Conv2d 3→8, 3x3 on 6x6']
    """
    macs: dict[tuple[str, tuple[int, ...]], float] = {}
    found: dict[tuple[str, tuple[int, ...]], nn.Module] = {}

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        key = str(module), tuple(inputs[0].shape)
        found.setdefault(key, module)
        macs[key] = macs.get(key, 0.0) + output.numel() * module.get_parameter("weight")[0].numel()

    kinds = (nn.Conv1d, nn.Conv2d, nn.Linear)
    hooks = [module.register_forward_hook(note) for module in model.modules() if isinstance(module, kinds)]
    try:
        run_example(model, example)
    finally:
        for hook in hooks:
            hook.remove()
    return [(_label(found[key], key[1]), *_alone(found[key], key[1])) for key in sorted(macs, key=macs.__getitem__, reverse=True)]


def _alone(module: nn.Module, shape: Sequence[int]) -> tuple[nn.Module, Tensor]:
    layer = nn.Sequential(copy.deepcopy(module)).eval().requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        nn.init.kaiming_normal_(layer.get_parameter("0.weight"), nonlinearity="relu")
        return layer, torch.randn(*shape)


def _label(module: nn.Module, shape: Sequence[int]) -> str:
    weight = module.get_parameter("weight")
    groups, stride = getattr(module, "groups", 1), getattr(module, "stride", (1,))
    kernel = "x".join(map(str, weight.shape[2:]))
    where = (
        f", {kernel} on {'x'.join(map(str, shape[2:]))}" if kernel else f" on {math.prod(shape[:-1])}" * (math.prod(shape[:-1]) > 1)
    )
    extra = [f"stride {stride[0]}"] * (stride[0] > 1) + [f"{groups} groups"] * (groups > 1)
    return ", ".join([f"{type(module).__name__} {weight.shape[1] * groups}→{weight.shape[0]}{where}", *extra])


def removed_at_random(
    model: nn.Module, example: Any, sparsity: float, pattern: Pattern | None = None, only: Selection | None = None, seed: int = 0
) -> nn.Module:
    """A copy of a model of which each layer, or each of those named, has lost the same fraction of its units, drawn at random.

    >>> removed_at_random(nn.Linear(8, 4), torch.ones(1, 8), 0.75).weight.count_nonzero().item()
    8
    """
    pruned = copy.deepcopy(model)
    if sparsity:
        prune_(pruned, pattern or Element(), TopK(random(seed)), uniform(sparsity=sparsity), Task(example=example), only=only)
    return pruned


def draw(curves: Sequence[Gains], path: str | Path, title: str) -> None:
    """The curves as a PNG: sparsity to the right, where 90, 95 and 98 % stand well apart, times as fast as dense upwards.

    Raises `WriteError` where the file cannot be written.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(
            {"text.parse_math": False, "font.size": 9.5, "axes.spines.top": False, "axes.spines.right": False}
        )
        figure = Figure(figsize=(8, 4.6), layout="constrained")
        axes = figure.add_subplot()
        for index, curve in enumerate(curves):
            style = {"color": _COLOURS[index % len(_COLOURS)], "marker": _MARKERS[index // len(_COLOURS) % len(_MARKERS)]}
            kept = [1 - sparsity for sparsity, _ in curve.points]
            axes.plot(kept, [speed for _, speed in curve.points], label=curve.layer, linewidth=1.8, markersize=4.5, **style)  # type: ignore[arg-type]
        axes.axhline(1, color="#6b7480", linestyle=(0, (4, 3)), linewidth=1.2, label="fastest dense runtime")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.minorticks_off()
        ticks = sorted({sparsity for curve in curves for sparsity, _ in curve.points})
        axes.set_xticks([1 - tick for tick in ticks], [f"{100 * tick:.12g}" for tick in ticks])
        axes.invert_xaxis()
        low, high = axes.get_ylim()
        axes.set_ylim(min(low, 0.45), max(high, 2.2))
        powers = range(math.ceil(math.log2(min(low, 0.45))), math.floor(math.log2(max(high, 2.2))) + 1)
        axes.set_yticks([2.0**power for power in powers], [f"{2.0**power:g}x" for power in powers])
        axes.grid(True, color="#dfe3e8", linewidth=0.7)
        axes.set_axisbelow(True)
        axes.set_xlabel("weights removed, %")
        axes.set_title(title, loc="left", fontsize="medium")
        figure.legend(loc="outside right upper", frameon=False)
        try:
            figure.savefig(path, dpi=150)
        except OSError as error:
            raise WriteError(f"could not write {path}: {error}") from error
