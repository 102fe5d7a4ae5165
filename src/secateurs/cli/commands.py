"""The command line, made from the signatures and docstrings of the functions below."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from cyclopts import App, CycloptsError, Parameter
from rich.console import Console
from rich.text import Text
from torch import nn

from secateurs import __version__, methods, patterns, report, session, targets
from secateurs.cli.compared import recipes_of, trained_weights
from secateurs.cli.exported import export_
from secateurs.cli.files import compress_, extract, show_compressed
from secateurs.cli.found import (
    NamedModel,
    NamedTask,
    batched,
    example_for,
    factory_named,
    is_new,
    parsed_numbers,
    task_named,
    with_weights,
)
from secateurs.cli.llm import llm
from secateurs.cli.parts import (
    allocator_for,
    amount_removed,
    parsed_allocator,
    parsed_pattern,
    parsed_tiling,
    solver_of,
    usual_allocator,
)
from secateurs.cli.scan import scan
from secateurs.cli.shown import print_reasons, show_sites
from secateurs.cli.smallest import smallest
from secateurs.cli.terminal import command_line, plain, require_at_least, require_seed, require_threads, say, stopping, warn
from secateurs.coding.file import is_compressed
from secateurs.comparing import FailedJobsError, compare
from secateurs.forward import run_example
from secateurs.patterns import find_weights, misfit
from secateurs.progress import waiting
from secateurs.prune import prune_
from secateurs.recover import train_
from secateurs.report.tables import layer_tables
from secateurs.report.words import printable
from secateurs.run.clock.timing import torch_threads
from secateurs.run.forecast import bench
from secateurs.session.folder import CHECKPOINT, DENSE_CHECKPOINT
from secateurs.types import Allocator, Pattern, SecateursError, Solver, Task

app = App(
    name="secateurs",
    version=__version__,
    help="Prune PyTorch networks, recover the accuracy, and prove what it bought.",
    help_format="markdown",
)
app.command(llm)
app.command(scan)
app.command(smallest)
app.command(compress_, name="compress")
app.command(export_, name="export")
app.command(extract)
Names = Annotated[list[str], Parameter(negative=(), consume_multiple=True)]


@app.command
def demo(
    out: Path = Path("secateurs-demo"), *, seed: int = 0, sparsity: float = 0.96, force: bool = False, threads: int | None = None
) -> None:
    """Train, prune, save, reload and report a small network on real digits, in less than a minute.

    Parameters
    ----------
    out
        Folder for the models, the record and the report.
    seed
        Seed of the network, the batches and the split.
    sparsity
        Fraction of the weights to remove.
    force
        Replace the run that the folder holds.
    threads
        Threads of torch, by default as many as a few training steps are quickest with.
    """
    require_seed(seed)
    require_threads(threads)
    with stopping("start again", "--force"):
        result = session.demo_job(out, seed, sparsity, command_line(), force=force, threads=threads)
    _finish(result)


@app.command
def inspect(
    model: str,
    *,
    weights: Path | None = None,
    task: str | None = None,
    input_shape: str | None = None,
    pattern: Names = [],  # noqa: B006 (never written to)
    channels: bool = False,
    heads: bool = False,
) -> None:
    """Show a row a layer: shape, parameters, nonzeros, MACs, and which patterns fit it, with the reason where not.

    With --channels or --heads: what is coupled, a row a site, and what is left alone and why. Of a compressed file: a row a tensor, with
    what it takes there.

    Parameters
    ----------
    model
        A built-in model (lenet_5, resnet_50 …) or package.module:factory; or a compressed file (small.scz).
    weights
        A safetensors file to load.
    task
        A built-in task (digits, mnist, cifar10) or package.module:factory, for its example input.
    input_shape
        Shape of an input of zeros instead of a task's example, such as 1,3,224,224.
    pattern
        Patterns to try, such as "2:4" or "Block(4, 1)"; by default one of each kind.
    channels
        Show the channels, neurons and heads that can be removed, each with all layers that are tied to it.
    heads
        Show the attention heads alone.
    """
    if is_compressed(model):
        show_compressed(Path(model))
        return
    network = with_weights(factory_named(model), weights)
    example = example_for(task, input_shape)
    if channels or heads:
        if pattern:
            raise SecateursError(
                "--pattern tries patterns layer by layer, --channels and --heads show what is coupled: give one of them"
            )
        show_sites(network, patterns.Head() if heads else patterns.Channel(approximate=True), example)
        return
    tried = [parsed_tiling(text) for text in pattern] or [
        patterns.NofM(2, 4),
        patterns.Vector("width"),
        patterns.Kernel(),
        patterns.Block(4, 1),
        patterns.Filter(),
    ]
    for each in layer_tables(network, example, tried, Console().width):
        say(each)
    found, skipped = find_weights(network)
    why = [(weight.name, reason) for kind in tried for weight in found if (reason := misfit(kind, weight.shape))]
    print_reasons([*why, *((item.name, item.reason) for item in skipped)])


@app.command
def recommend(
    model: str,
    *,
    target: Literal["cpu", "microcontroller", "gpu"] = "cpu",
    sparsity: float = 0.5,
    weights: Path | None = None,
    task: str | None = None,
    input_shape: str | None = None,
    threads: int | None = None,
    flash: int | None = None,
    sram: int | None = None,
) -> None:
    """Say which pattern to use on a class of hardware, and why, layer by layer and overall, before anything is trained.

    For this CPU layers are timed, once; the others are reckoned. A pattern that will not pay is named.

    Parameters
    ----------
    model
        A built-in model (lenet_5, resnet_50 …) or package.module:factory.
    target
        This machine's CPU, a microcontroller of the kind of a Cortex-M4, or a GPU like the A100.
    sparsity
        Fraction of the weights to remove.
    weights
        A safetensors file to load.
    task
        A built-in task (digits, mnist, cifar10) or package.module:factory, for its example input.
    input_shape
        Shape of an input of zeros instead of a task's example, such as 1,3,224,224.
    threads
        Threads of the CPU, by default those of torch.
    flash
        Bytes of a microcontroller's flash, by default 1,000,000.
    sram
        Bytes of a microcontroller's SRAM, by default 256,000.
    """
    if target != "microcontroller" and (flash is not None or sram is not None):
        raise SecateursError(f"--flash and --sram are for --target microcontroller, not for {target}")
    if target != "cpu" and threads is not None:
        raise SecateursError(f"--threads is for --target cpu, not for {target}")
    require_threads(threads)
    network, example = with_weights(factory_named(model), weights), example_for(task, input_shape)
    if example is None:
        raise SecateursError("what a pass costs depends on the size of its input: give --task or --input-shape")
    sizes = {name: size for name, size in (("flash", flash), ("sram", sram)) if size is not None}
    hardware: targets.Target = (
        targets.cpu(threads=threads)
        if target == "cpu"
        else targets.microcontroller(**sizes)  # type: ignore[arg-type]
        if target == "microcontroller"
        else targets.gpu()
    )
    say(Text(str(targets.recommend(network, hardware, example, sparsity=sparsity))))


@app.command
def prune(
    model: str,
    *,
    task: str,
    weights: Path | None = None,
    pattern: str = "Element()",
    criterion: str | None = None,
    solver: str = "TopK",
    allocator: str | None = None,
    same_in_every_block: bool = False,
    sparsity: float | None = None,
    keep_macs: float | None = None,
    keep_params: float | None = None,
    rounds: int = 5,
    epochs_per_round: int = 2,
    last_epochs: int = 0,
    dense_epochs: int = 0,
    lr: float = 1e-3,
    only: Names = [],  # noqa: B006
    skip: Names = [],  # noqa: B006
    seed: int = 0,
    threads: int | None = None,
    out: Path = Path("secateurs-out"),
    resume: bool = False,
    force: bool = False,
) -> None:
    """Prune a model in rounds with retraining, then write the pruned model, its record and its report.

    With --pattern channel or head the model gets physically smaller at the end.

    Parameters
    ----------
    model
        A built-in model (lenet_5, resnet_20 …) or package.module:factory.
    task
        A built-in task (digits, mnist, cifar10) or package.module:factory that returns a secateurs.Task.
    weights
        A safetensors file with the trained weights.
    pattern
        What is removed as one: "Element()", "2:4", "Vector('width')", "Kernel()", "Block(4, 1)", "Filter()"; or, with all that is
        coupled to it, "channel", "channel(round_to=8)", "head".
    criterion
        How units are scored, as one writes it in Python: magnitude, "magnitude(p=1)", taylor, fisher, apoz, lamp, fpgm, random …, or a
        product such as "magnitude(p=1) * input_norm()". Magnitude where nothing is said.
    solver
        Which ones, and what the others become, as one writes it in Python: TopK (the highest scores stay, nothing else changes),
        "SparseGPT(block=64)", ALPS, LeastSquares, "LeastSquares(Swaps(TopK(taylor)))", and for channels Lasso, ThiNet … Where a solver
        chooses by a criterion and names none, it is that of --criterion.
    allocator
        How much where: global (one threshold over the model), uniform (the same everywhere, the default for channels), erdos-renyi,
        owl or alpha-pruning, with arguments where it takes some: "global(ceiling=0.9)".
    same_in_every_block
        Equal widths and heads in all blocks, so that a configuration can say them.
    sparsity
        Fraction of the units to remove, 0.9 where nothing is said; a pattern such as 2:4 decides for itself.
    keep_macs
        For channels and heads: fraction of the MACs that may stay.
    keep_params
        For channels and heads: fraction of the parameters that may stay.
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
    seed
        Seed of a new model's weights, and of the batches.
    threads
        Threads of torch, by default as many as a few training steps are quickest with.
    out
        Folder for the models, the checkpoints, the record and the report.
    resume
        Go on from the checkpoint in the output folder, where there is one, with the options of then.
    force
        Replace the run that the output folder holds.
    """
    options = {name: plain(value) for name, value in locals().items() if name not in ("out", "resume", "force")}
    require_at_least(1, rounds=rounds, epochs_per_round=epochs_per_round)
    require_at_least(0, last_epochs=last_epochs, dense_epochs=dense_epochs)
    require_threads(threads)
    require_seed(seed)
    if not (isfinite(lr) and lr > 0):
        raise SecateursError(f"--lr {lr} is no learning rate: give a number above 0")
    begun = session.require_free(out, {"command": "prune", **options}, force=force, resume=resume)

    torch.manual_seed(seed)
    make, work, shape = factory_named(model), task_named(task), parsed_pattern(pattern)
    network = with_weights(make, weights)
    spread = parsed_allocator(allocator or usual_allocator(shape), same_in_every_block)
    sparsity, cost = amount_removed(shape, sparsity, keep_macs, keep_params)
    if shape.kept_of_each is not None:
        rounds, sparsity = 1, 1 - shape.kept_of_each / int(shape.within)
    how: dict[str, Any] = {
        "pattern": shape,
        "solver": solver_of(solver, criterion, seed, coupled=shape.removable),
        "allocate": allocator_for(spread, shape, cost),
        "only": only or None,
        "skip": skip or None,
    }
    run_example(network, work.example)
    session.try_out(network, work)
    _rehearse(network, work, sparsity, **how)
    if not (weights or dense_epochs or begun) and (":" not in model or is_new(make, network)):
        warn(
            f"{model} has new random weights, so what goes is chosen by noise: give --weights, or --dense-epochs to train it first"
        )
    threads = threads or begun.get("threads_used") or session.quickest_threads(network, work)
    if not begun:
        session.begin(out, command_line(), {"command": "prune", **options}, threads_used=threads)
    dense_watch, watch = session.Stopwatch(), session.Stopwatch()

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
            scheduler=torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, epochs_per_round),
            checkpoint=out / CHECKPOINT,
            hooks=[watch.hook()],
            **how,
        )

    with torch_threads(threads), stopping("go on from the last epoch that was finished", "--resume"):
        if dense_epochs:
            _train(network, work, lr, dense_epochs, out / DENSE_CHECKPOINT, dense_watch)
        title = f"{model} on {work.name}: {shape}"
        to_folder = session.shrink_to_folder if shape.removable else session.prune_to_folder
        dense_seconds = dense_watch.seconds if dense_epochs else None
        told: dict[str, Any] = {"title": title, "seed": seed, "command": command_line(), "dense_seconds": dense_seconds}
        result = to_folder(network, make, work, in_rounds, out, watch=watch, **told)
    _finish(result)


@app.command(name="compare")
def compare_(
    model: str,
    *,
    task: str,
    weights: Path | None = None,
    criterion: Names = [],  # noqa: B006
    solver: Names = [],  # noqa: B006
    pattern: Names = ["Element()"],  # noqa: B006
    allocator: Names = [],  # noqa: B006
    schedule: Names = ["geometric"],  # noqa: B006
    keep: Annotated[list[float], Parameter(negative=(), consume_multiple=True)] = [0.5, 0.3, 0.1],  # noqa: B006
    keep_of: Literal["units", "macs", "params"] = "units",
    seeds: int = 1,
    epochs: int = 0,
    rounds: int = 1,
    dense_epochs: int = 0,
    lr: float = 1e-3,
    only: Names = [],  # noqa: B006
    skip: Names = [],  # noqa: B006
    processes: int | None = None,
    out: Path = Path("secateurs-compare"),
    rerun: bool = False,
) -> None:
    """Prune a model by every criterion and solver with every pattern, allocator and schedule, and put what comes of it side by side.

    The folder gets a file a job, so that the same command goes on where it was stopped, and one with more adds to it.

    Parameters
    ----------
    model
        A built-in model (lenet_5, resnet_20 …) or package.module:factory.
    task
        A built-in task (digits, mnist, cifar10) or package.module:factory that returns a secateurs.Task; with an argument seed, the
        seeds give other splits and calibration batches.
    weights
        A safetensors file with the trained weights.
    criterion
        How units are scored, one or more: magnitude, taylor, "magnitude(p=1) * input_norm()", random (drawn anew with each seed) …; by
        default magnitude, where no solver is named.
    solver
        Solvers to try beside the criteria, one or more: "ZipLM()", "LeastSquares(TopK(taylor()))", "SparseGPT(block=64)" …
    pattern
        What is removed as one, one or more: "Element()", "2:4", "Kernel()", "Block(4, 1)", "Filter()", channel, head …
    allocator
        How much where, one or more: global, uniform, erdos-renyi, owl, alpha-pruning, "global(ceiling=0.9)"; by default
        uniform for channels and heads, else global.
    schedule
        How sparsity grows from round to round, one or more: geometric, linear, cubic, one_shot.
    keep
        Fractions kept.
    keep_of
        What they are fractions of; macs and params are for channels and heads.
    seeds
        How many seeds, from 0 on.
    epochs
        Epochs of retraining after each round.
    rounds
        Prunings, each with its epochs.
    dense_epochs
        Epochs of training before everything, for a model without weights; once for all.
    lr
        Learning rate of Adam; it falls along a cosine in each round.
    only
        Layers that take part, by name or glob.
    skip
        Layers that do not.
    processes
        Jobs at a time, each with one thread; by default one a core.
    out
        Folder for the outcomes, the table, the plot, the record and the report.
    rerun
        Measure anew what has changed under its name since it was measured.
    """
    require_at_least(1, seeds=seeds, rounds=rounds, processes=processes)
    require_at_least(0, epochs=epochs, dense_epochs=dense_epochs)
    if not (isfinite(lr) and lr > 0):
        raise SecateursError(f"--lr {lr} is no learning rate: give a number above 0")
    criterion = criterion or ([] if solver else ["magnitude"])
    amount = {"epochs": epochs, "rounds": rounds}
    tried = recipes_of(
        criterion, pattern, allocator, schedule, keep_of, solver=solver, only=only or None, skip=skip or None, **amount
    )
    torch.manual_seed(0)
    work = NamedTask(task)
    network = with_weights(factory_named(model), weights)
    session.try_out(network, work(0))
    with stopping("go on with what is missing"):
        if dense_epochs:
            weights = trained_weights(model, network, work(0), dense_epochs, lr, out)
        elif weights is None and (":" not in model or is_new(factory_named(model), network)):
            warn(
                f"{model} has new random weights, so what goes is chosen by noise: give --weights, or --dense-epochs to train it first"
            )
        try:
            made = compare(
                tried,
                NamedModel(model, weights.absolute() if weights else None),
                work,
                keep=keep,
                seeds=seeds,
                out=out,
                processes=processes,
                optimizer=partial(torch.optim.Adam, lr=lr),
                rerun=rerun,
                title=f"{model} on {task}",
                command=command_line(),
            )
        except FailedJobsError as error:
            say(error.comparison.table())
            raise
    say(made.table())
    for name in ("comparison.md", "comparison.json", "outcomes.csv", "report.html"):
        say(str(out / name))


@app.command(name="bench")
def bench_(
    weights: Path,
    *,
    model: str,
    task: str | None = None,
    input_shape: str | None = None,
    batch: int | None = None,
    threads: str = "1",
    seconds: float = 20,
    sweep: bool = False,
    out: Path = Path("break-even.png"),
) -> None:
    """Time a pruned model here: dense in torch, ONNX Runtime and OpenVINO where installed, and in the sparse runtime, in turns.

    Parameters
    ----------
    weights
        A safetensors file with the model's weights, such as the pruned.safetensors of a run.
    model
        What the weights are of: a built-in model (lenet_5, resnet_50 …) or package.module:factory.
    task
        A built-in task (digits, mnist, cifar10) or package.module:factory, for its example input.
    input_shape
        Shape of an input of random numbers instead of a task's example, such as 1,3,224,224.
    batch
        Samples in the input, where it is to have more or fewer than the example.
    threads
        Numbers of threads, such as 1,2: the whole comparison once for each.
    seconds
        Time for the rounds of each comparison.
    sweep
        Draw the break-even chart too: how many times as fast as dense each shape of layer is, against sparsity, with the first
        number of threads.
    out
        The chart to write.
    """
    numbers = parsed_numbers("--threads", threads)
    require_threads(*numbers)
    network = with_weights(factory_named(model), weights)
    example = batched(example_for(task, input_shape), batch, at_random=input_shape is not None)
    if not (isfinite(seconds) and seconds >= 0):
        raise SecateursError(f"--seconds {seconds} is no time: give the seconds that the rounds may take")
    with waiting("timing the model in each runtime"):
        heats = bench.race(network, example, threads=numbers, seconds=seconds)
    say(bench.table(printable(f"{model}, {weights.name}"), heats))
    for heat in heats:
        if heat.explained is not None:
            say(heat.explained)
    if sweep:
        with waiting("timing its layers at each sparsity"):
            curves = bench.sweep(network, example, threads=numbers[0])
        bench.draw(curves, out, f"Times as fast as the fastest dense runtime, {numbers[0]} thread{'s' * (numbers[0] > 1)}")
        say(bench.gains_table(curves))
        say(f"chart: {out}")


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
    if not path.is_file():
        raise SecateursError(f"{path}: there is no record; name the folder that prune or demo wrote, or the record.json in it")
    read = report.read_record(path)
    page = out or path.with_name("report.html")
    report.write_html(read, page)
    say(report.table(read))
    say(f"report: {page}")


def main() -> None:
    """Run the command line; what a user can put right is one line, not a traceback."""
    try:
        app(sys.argv[1:], exit_on_error=False, print_error=False)
    except (SecateursError, CycloptsError, OSError) as error:
        say(Text.assemble(("error: ", "bold red"), printable(str(error))), stderr=True)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def _finish(result: session.Result) -> None:
    say(report.table(result.record))
    for note in result.record.notes:
        say(note)
    for name in ("pruned.safetensors", "compressed.scz", "record.json", "report.html"):
        if (result.folder / name).exists():
            say(str(result.folder / name))


def _train(network: nn.Module, work: Task, lr: float, epochs: int, checkpoint: Path, watch: session.Stopwatch) -> None:
    """Train a dense model, from the checkpoint on where there is one, and stop the watch."""
    optimizer = torch.optim.Adam(network.parameters(), lr=lr)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    train_(network, work, optimizer, epochs, scheduler=scheduler, checkpoint=checkpoint, hooks=[watch.start().hook()])


def _rehearse(
    network: nn.Module,
    work: Task,
    sparsity: float,
    pattern: Pattern,
    solver: Solver,
    allocate: Callable[..., Allocator],
    **chosen: Any,
) -> None:
    """Prune a copy as far as the last round will, so that what cannot be is said before anything is trained or written."""
    with torch.random.fork_rng():
        prune_(copy.deepcopy(network), pattern, solver, allocate(sparsity=sparsity), work, recalibrate=False, **chosen)


if __name__ == "__main__":
    main()
