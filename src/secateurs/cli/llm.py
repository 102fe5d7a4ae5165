"""Language models on the command line: a Hugging Face folder pruned into another, and its perplexity."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from cyclopts import App, Parameter

from secateurs import criteria, evidence, patterns, solve
from secateurs.allocate import uniform
from secateurs.cli.parts import parsed_solver, parsed_tiling
from secateurs.cli.terminal import require_at_least, require_seed, require_threads, say, stopping
from secateurs.predictions import perplexity as perplexity_of
from secateurs.run.clock.timing import torch_threads
from secateurs.streaming import prune_folder
from secateurs.tasks.language import text as text_task
from secateurs.types import Allocator, FileError, Pattern, SecateursError, Solver, Task

Method = Literal["magnitude", "wanda", "sparsegpt"]

Names = Annotated[list[str], Parameter(negative=(), consume_multiple=True)]
_NO_TEXT = Task(torch.zeros(1, 8, dtype=torch.int64))

llm = App(name="llm", help="Prune language models from folder to folder, and measure how well they tell what comes next.")


@llm.command
def prune(
    model: Path,
    *,
    out: Path,
    text: Path | None = None,
    method: Method | None = None,
    sparsity: float | None = None,
    pattern: str | None = None,
    solver: str | None = None,
    window: int = 512,
    count: int = 64,
    seed: int = 0,
    reconstruct: int = 0,
    blocks: str | None = None,
    skip: Names = [],  # noqa: B006
    threads: int | None = None,
) -> None:
    """Prune a Hugging Face folder of safetensors into a new one, block by block, with one block in memory.

    A run that was stopped goes on where it was when the same command is given again. Nothing is downloaded.

    Parameters
    ----------
    model
        The folder: config.json, safetensors in one file or in shards, and the tokenizer. It is only read.
    out
        The folder to write, which must not be there yet.
    text
        Text to calibrate on (UTF-8); magnitude alone needs none.
    method
        How weights are chosen; by default sparsegpt.
    sparsity
        Fraction of each layer's weights to remove, by default 0.5; of 2:4 the pattern says it.
    pattern
        A pattern on single weights, such as "2:4" or "Element(within='row')", in place of the method's own.
    solver
        Another solver than the method's, as in Python: "Swaps(SparseGPT())", "ALPS".
    window
        Tokens in a window of text.
    count
        Windows to calibrate on, drawn without overlap.
    seed
        Seed by which the windows are drawn.
    reconstruct
        Steps of training of each part of a block, once it is pruned, to give again what it gave before; some hundred.
    blocks
        The module that holds the blocks, such as model.layers, where they are not found by themselves.
    skip
        Layers that stay as they are, by name or glob.
    threads
        Threads of torch.
    """
    require_seed(seed)
    require_threads(threads)
    require_at_least(2, window=window)
    require_at_least(1, count=count)
    require_at_least(0, reconstruct=reconstruct)
    chosen, shape = _chosen(method, solver, pattern)
    allocate = _amount(shape, sparsity)
    if text is None and (chosen.needs or reconstruct):
        who = "--reconstruct" if reconstruct else f"{chosen}"
        raise SecateursError(
            f"{who} looks at what passes the layers: give --text, a file to calibrate on, or take --method magnitude"
        )
    _require_folder(model)
    task = _NO_TEXT if text is None else text_task(text, _tokenizer(model), window, count, seed=seed)
    with stopping("go on"), torch_threads(threads):
        found = prune_folder(model, out, shape, chosen, allocate, task, blocks=blocks, skip=skip or None, reconstruct=reconstruct)
    say(f"{found.kept:,} of {found.weights:,} weights in {len(found.plan)} layers stay (sparsity {found.sparsity:.4f})")
    if found.left_out:
        say(f"not copied: {', '.join(found.left_out)}")
    say(str(out))


@llm.command
def perplexity(model: Path, *, text: Path, window: int = 2048, count: int | None = None, threads: int | None = None) -> None:
    """Tell the perplexity of a Hugging Face folder on a text: lower is better. The whole model is in memory, as float32.

    Parameters
    ----------
    model
        The folder: config.json, safetensors and the tokenizer.
    text
        The text, tokenised as one and cut into windows without overlap.
    window
        Tokens in a window.
    count
        How many windows, the first ones; by default all.
    threads
        Threads of torch.
    """
    require_threads(threads)
    require_at_least(2, window=window)
    require_at_least(1, count=count)
    _require_folder(model)
    task = text_task(text, _tokenizer(model), window, count, seed=None)
    network = _loaded(model)
    with torch_threads(threads):
        value = perplexity_of(network, task)
    windows = len(task.calibration.inputs)  # type: ignore[union-attr]
    say(f"perplexity {value:.4g} on {windows} windows of {window} tokens of {text}")


def _chosen(method: Method | None, solver: str | None, pattern: str | None) -> tuple[Solver, Pattern]:
    """What chooses the weights, and what competes."""
    if method is not None and solver is not None:
        raise SecateursError(f"--method {method} is a solver already: leave it or --solver {solver} away")
    shape: Pattern = patterns.Element(within="row") if method == "wanda" else patterns.Element()
    found: Solver = solve.SparseGPT()
    if method == "magnitude":
        found = solve.TopK(criteria.magnitude())
    elif method == "wanda":
        found = solve.TopK(criteria.magnitude(p=1) * evidence.input_norm())
    elif solver is not None:
        found = parsed_solver(solver, None)
    return found, shape if pattern is None else parsed_tiling(pattern)


def _amount(shape: Pattern, sparsity: float | None) -> Allocator | None:
    """How much of each layer stays, where the pattern does not say it."""
    if shape.kept_of_each is None:
        return uniform(sparsity=0.5 if sparsity is None else sparsity)
    if sparsity is not None:
        raise SecateursError(f"--sparsity {sparsity}: the pattern {shape} says itself how much stays; leave one of them away")
    return None


def _require_folder(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise FileError(f"{folder} is no Hugging Face folder: there is no config.json in it")
    try:
        configuration = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError) as error:
        raise FileError(f"{folder / 'config.json'} is damaged: {error}; load the whole folder again") from error
    if not isinstance(configuration, dict):
        raise FileError(f"{folder / 'config.json'} is damaged: it holds no JSON object; load the whole folder again")


def _transformers() -> Any:
    try:
        return importlib.import_module("transformers")
    except ImportError as error:
        raise SecateursError("language models need transformers: pip install transformers") from error


def _tokenizer(folder: Path) -> Any:
    try:
        return _transformers().AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        first = (str(error).strip().splitlines() or [""])[0]
        raise FileError(
            f"{folder} holds no tokenizer that transformers can read ({first[:200]}): put its files (tokenizer.json) there"
        ) from error


def _loaded(folder: Path) -> Any:
    try:
        kind = _transformers().AutoModelForCausalLM
        return kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False, dtype=torch.float32)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        first = (str(error).strip().splitlines() or [""])[0]
        raise FileError(f"{folder} holds no causal language model that transformers can read: {first[:300]}") from error
