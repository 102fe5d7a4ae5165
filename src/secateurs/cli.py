"""The command line, made from the signatures and docstrings of the functions below."""

from __future__ import annotations

import ast
import difflib
import importlib
import os
import shlex
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal, TypeVar

import torch
from cyclopts import App, Parameter
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import nn

from secateurs import __version__, allocate, criteria, methods, models, patterns, report, session, tasks
from secateurs.apply import load
from secateurs.costs import trace_macs
from secateurs.patterns import find_weights, misfit
from secateurs.recover import train_
from secateurs.types import Allocator, Pattern, SecateursError, Task

app = App(
    name="secateurs",
    version=__version__,
    help="Prune PyTorch networks, recover the accuracy, and prove what it bought.",
    help_format="markdown",
)

Made = TypeVar("Made")

Names = Annotated[list[str], Parameter(negative=(), consume_multiple=True)]


@app.command
def demo(out: Path = Path("secateurs-demo"), *, seed: int = 0, sparsity: float = 0.96) -> None:
    """Train, prune, save, reload and report a small network on real digits, in about half a minute.

    Parameters
    ----------
    out
        Folder for the models, the record and the report.
    seed
        Seed of the network, the batches and the split.
    sparsity
        Fraction of the weights to remove.
    """
    _finish(session.demo_job(out, seed, sparsity, _command()))


@app.command
def inspect(
    model: str,
    *,
    weights: Path | None = None,
    task: str | None = None,
    input_shape: str | None = None,
    pattern: Names = [],  # noqa: B006 (never written to)
) -> None:
    """Show a row a layer: shape, parameters, nonzeros, MACs, and which patterns fit it, with the reason where not.

    Parameters
    ----------
    model
        A built-in model (lenet_5, resnet_50 …) or package.module:factory.
    weights
        A safetensors file to load.
    task
        A built-in task (digits, mnist, cifar10) or package.module:factory, for its example input.
    input_shape
        Shape of an input of zeros instead of a task's example, such as 1,3,224,224.
    pattern
        Patterns to try, such as "2:4" or "Block(4, 1)"; by default one of each kind.
    """
    network = _loaded(_model_factory(model), weights)
    example = _example(task, input_shape)
    tried = [_pattern(text) for text in pattern] or [
        patterns.NofM(2, 4),
        patterns.Vector("width"),
        patterns.Kernel(),
        patterns.Block(4, 1),
        patterns.Filter(),
    ]
    console = Console()
    console.print(_layer_table(network, example, tried))
    found, skipped = find_weights(network)
    why = [(weight.name, reason) for each in tried for weight in found if (reason := misfit(each, weight.shape))]
    names: dict[str, list[str]] = {}
    for name, reason in [*why, *((item.name, item.reason) for item in skipped)]:
        names.setdefault(reason, []).append(name)
    for reason, alike in names.items():
        console.print(f"{', '.join(alike)}: {reason}", highlight=False, markup=False, soft_wrap=True)


@app.command
def prune(
    model: str,
    *,
    task: str,
    weights: Path | None = None,
    pattern: str = "Element()",
    criterion: Literal["magnitude", "random"] = "magnitude",
    p: float = 2,
    allocator: Literal["global", "uniform", "erdos-renyi"] = "global",
    sparsity: float = 0.9,
    rounds: int = 5,
    epochs_per_round: int = 2,
    last_epochs: int = 0,
    dense_epochs: int = 0,
    lr: float = 1e-3,
    only: Names = [],  # noqa: B006
    skip: Names = [],  # noqa: B006
    resume: bool = False,
    seed: int = 0,
    out: Path = Path("secateurs-out"),
) -> None:
    """Prune a model in rounds with retraining, then write the pruned model, its record and its report.

    Parameters
    ----------
    model
        A built-in model (lenet_5, resnet_20 …) or package.module:factory.
    task
        A built-in task (digits, mnist, cifar10) or package.module:factory that returns a secateurs.Task.
    weights
        A safetensors file with the trained weights.
    pattern
        What is removed as one: "Element()", "2:4", "Vector('width')", "Kernel()", "Block(4, 1)", "Filter()".
    criterion
        How units are scored.
    p
        The norm of the magnitude.
    allocator
        How much where: one threshold over the model, the same everywhere, or Erdős–Rényi densities.
    sparsity
        Fraction of the units to remove; a pattern such as 2:4 decides for itself.
    rounds
        Prunings; each removes the same fraction of what is left.
    epochs_per_round
        Epochs of retraining after each pruning.
    last_epochs
        More epochs after the last round.
    dense_epochs
        Epochs of training before the first pruning, for a model without weights.
    lr
        Learning rate of Adam; it falls along a cosine in each round.
    only
        Layers that take part, by name or glob.
    skip
        Layers that do not.
    resume
        Go on from the checkpoint in the output folder, where there is one.
    seed
        Seed of a new model's weights, and of the batches.
    out
        Folder for the models, the checkpoint, the record and the report.
    """
    torch.manual_seed(seed)
    make, work = _model_factory(model), _task(task)
    network, shape = _loaded(make, weights), _pattern(pattern)
    if shape.kept_of_each is not None:
        rounds, sparsity = 1, 1 - shape.kept_of_each / int(shape.within)
    checkpoint = out / "checkpoint.safetensors"
    if not resume:
        checkpoint.unlink(missing_ok=True)
    if dense_epochs:
        _train(network, work, lr, dense_epochs)

    def in_rounds(network: nn.Module) -> Any:
        optimizer = torch.optim.Adam(network.parameters(), lr=lr)
        return methods.iterative_magnitude_(
            network,
            work,
            optimizer,
            sparsity=sparsity,
            rounds=rounds,
            epochs_per_round=epochs_per_round,
            last_epochs=last_epochs,
            pattern=shape,
            criterion=criteria.magnitude(p) if criterion == "magnitude" else criteria.random(seed),
            allocate=_allocator(allocator, shape),
            only=only or None,
            skip=skip or None,
            scheduler=torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, epochs_per_round),
            checkpoint=checkpoint,
        )

    title = f"{model} on {work.name}: {shape}"
    _finish(session.prune_to_folder(network, make, work, in_rounds, out, title=title, seed=seed, command=_command()))


@app.command(name="report")
def report_(record: Path, *, out: Path | None = None) -> None:
    """Print a record's table and write its report again.

    Parameters
    ----------
    record
        A record.json, or a folder that holds one.
    out
        The page to write; by default report.html beside the record.
    """
    path = record / "record.json" if record.is_dir() else record
    read = report.read_record(path)
    page = out or path.with_name("report.html")
    report.write_html(read, page)
    Console().print(report.table(read))
    Console().print(f"report: {page}", highlight=False)


def main() -> None:
    """Run the command line; what a user can put right is one line, not a traceback."""
    try:
        app(sys.argv[1:])
    except (SecateursError, OSError) as error:
        Console(stderr=True).print(f"[bold red]error:[/] {_escaped(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


# ---------------------------------------------------------------- words of the command line


def _finish(result: session.Result) -> None:
    console = Console()
    console.print(report.table(result.record))
    for name in ("pruned.safetensors", "record.json", "report.html"):
        console.print(f"{result.folder / name}", highlight=False)


def _escaped(text: str) -> str:
    return text.replace("[", "\\[")


def _command() -> str:
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def _loaded(make: Callable[[], nn.Module], weights: Path | None) -> nn.Module:
    model = make()
    return load(weights, model) if weights is not None else model


def _train(network: nn.Module, work: Task, lr: float, epochs: int) -> None:
    optimizer = torch.optim.Adam(network.parameters(), lr=lr)
    train_(network, work, optimizer, epochs, scheduler=torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs))


def _model_factory(name: str) -> Callable[[], nn.Module]:
    factory = _found(name, models, "model")
    return lambda: _made(name, factory, nn.Module)


def _task(name: str) -> Task:
    return _made(name, _found(name, tasks, "task"), Task)


def _made(name: str, factory: Any, kind: type[Made]) -> Made:
    try:
        made = factory()
    except TypeError as error:
        raise SecateursError(f"{name} cannot be called without arguments ({error}); name a function of none") from error
    if not isinstance(made, kind):
        raise SecateursError(f"{name} returned {type(made).__name__}, not a {kind.__module__.split('.')[0]} {kind.__name__}")
    return made


def _found(name: str, built_in: ModuleType, what: str) -> Any:
    """A function of ours by its name, or anybody's as package.module:function."""
    if ":" not in name:
        own = [each for each in built_in.__all__ if each.islower() and each not in ("accuracy",)]
        if name not in own:
            close = difflib.get_close_matches(name, own, n=3) or own
            raise SecateursError(
                f"there is no built-in {what} {name!r}; did you mean {', '.join(close)}? "
                f"A {what} of your own is given as package.module:factory"
            )
        return getattr(built_in, name)
    module_name, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise SecateursError(f"cannot find the {what} {name!r}: {error}; it is looked for from the current folder") from error


def _example(task: str | None, input_shape: str | None) -> Any:
    if task is not None:
        return _task(task).example
    if input_shape is None:
        return None
    try:
        return torch.zeros([int(size) for size in input_shape.split(",")])
    except (ValueError, RuntimeError) as error:
        raise SecateursError(f"--input-shape {input_shape!r} is no list of sizes such as 1,3,224,224") from error


def _pattern(text: str) -> Pattern:
    """A pattern as one writes it in Python, with literals only; ``2:4`` and bare names (``kernel``) for short."""
    n, colon, m = text.partition(":")
    if colon and n.isdigit() and m.isdigit():
        return patterns.NofM(int(n), int(m))
    shapes = {shape.__name__.lower(): shape for shape in _shapes()}
    try:
        tree = ast.parse(text if "(" in text else f"{text}()", mode="eval").body
        if not isinstance(tree, ast.Call) or not isinstance(tree.func, ast.Name) or tree.func.id.lower() not in shapes:
            raise ValueError(f"the patterns are {', '.join(shape.__name__ for shape in _shapes())}")
        arguments = [ast.literal_eval(argument) for argument in tree.args]
        named = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in tree.keywords}
        return shapes[tree.func.id.lower()](*arguments, **named)
    except (ValueError, SyntaxError, TypeError) as error:
        if isinstance(error, SecateursError):
            raise
        raise SecateursError(f"{text!r} is no pattern ({error}); write one as 2:4, kernel, or Block(4, 1)") from error


def _shapes() -> Iterable[Any]:
    return (patterns.Element, patterns.NofM, patterns.Vector, patterns.Kernel, patterns.Block, patterns.Filter)


def _allocator(name: str, shape: Pattern) -> Callable[..., Allocator]:
    if shape.kept_of_each is not None:
        return lambda sparsity: allocate.as_pattern()
    if name == "global" and shape.within not in ("layer", "model"):
        name = "uniform"
    match name:
        case "uniform":
            return allocate.uniform
        case "erdos-renyi":
            return allocate.erdos_renyi
        case _:
            return allocate.global_threshold


def _layer_table(network: nn.Module, example: Any, tried: list[Pattern]) -> Table:
    made = Table(title=type(network).__name__, title_justify="left", box=SIMPLE_HEAD, padding=0)
    for heading in ("layer", "kind", "shape"):
        made.add_column(heading, no_wrap=True)
    for heading in ("parameters", "nonzero", "MACs"):
        made.add_column(heading, justify="right", no_wrap=True)
    for each in tried:
        kind, _, arguments = str(each).partition("(")
        made.add_column(Text(f"{kind}\n{arguments[:-1]}"), justify="center", overflow="fold")
    macs = trace_macs(network, example).by_parameter if example is not None else {}
    found, _ = find_weights(network)
    for row, weight in zip(report.layers(network), found, strict=True):
        fits = ["no" if misfit(each, weight.shape) else "yes" for each in tried]
        count = f"{macs.get(weight.parameter, 0.0):,.0f}" if macs else "–"
        shape = "x".join(map(str, row.shape))
        made.add_row(row.name, row.kind, shape, f"{row.parameters:,}", f"{row.nonzero:,}", count, *fits)
    made.caption = (
        f"{sum(parameter.numel() for parameter in network.parameters()):,} parameters, biases and normalisations included"
    )
    return made


if __name__ == "__main__":
    main()
