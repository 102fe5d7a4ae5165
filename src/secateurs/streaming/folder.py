"""A language model pruned from a folder of shards to another one, block by block, with one block in memory."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from secateurs.allocate import as_pattern
from secateurs.blockwise import Passage, in_blocks, require_in_blocks
from secateurs.evidence import observe
from secateurs.files.partway import digest
from secateurs.given import COUNT, require
from secateurs.graph import blocks_of, trace_of
from secateurs.nested import changed, tensors_in
from secateurs.patterns import find_sites
from secateurs.predictions import require_window
from secateurs.progress import tell, track
from secateurs.prune import no_scores, prune_part_
from secateurs.streaming.hollow import Hollow
from secateurs.streaming.output import Output
from secateurs.streaming.restoring import Restoring
from secateurs.types import Allocator, Pattern, Plan, SecateursError, Selection, Sites, Skipped, Solver, Stats, Task, TaskError

_SHORT = 16


@dataclass(frozen=True)
class PrunedFolder:
    """What was pruned into a folder: its plan, how many weights of the blocks' layers stayed, what was left alone and what not copied."""

    folder: Path
    plan: Plan
    kept: int
    weights: int
    skipped: tuple[Skipped, ...]
    left_out: tuple[str, ...]

    @property
    def sparsity(self) -> float:
        """Fraction of the weights that took part which are gone."""
        return 1 - self.kept / self.weights


def prune_folder(
    source: str | Path,
    out: str | Path,
    pattern: Pattern,
    solver: Solver,
    allocate: Allocator | None,
    task: Task,
    *,
    blocks: str | None = None,
    only: Selection | None = None,
    skip: Selection | None = None,
    reconstruct: int = 0,
    lr: float = 1e-3,
    show: bool = True,
) -> PrunedFolder:
    """Prune a Hugging Face folder of safetensors into a new one with the same files, names and dtypes, one block in memory.

    As `prune_` with ``walk=in_blocks()``, by default of all layers in the blocks: what stands outside them stays as it is. A block's
    weights are float32 while it is worked on, and rounded to their dtype before it makes the inputs of the next. In memory are one block,
    its inputs and its statistics; on disk, a second copy of the weights.

    ``reconstruct`` is how many steps each part of a block is trained, as soon as it is pruned, to give what the dense one gives (see
    `secateurs.recover.reconstruct_`); then a second stream of inputs, a copy of the block and what Adam keeps of it are in memory too.

    ``out`` comes to be when all is done; until then the work is in ``out`` with ``.partial`` behind its name, and the same call goes on
    after the last block that was finished, with the same result to the bit. ``source`` is only read; the tokenizer's and the
    configuration's files are copied. ``show`` tells the time left: a bar, or a line a block where stderr is no terminal.

    Raises `FileError` where a file is missing, damaged, quantised or not named as in the model, or ``out`` is there already or its
    ``.partial`` belongs to other work; `WriteError` where the disk has too little room; `TaskError` for windows that are longer than the
    model allows; and as `prune_` does.
    """
    require("prune_folder", "reconstruct", reconstruct, COUNT)
    if reconstruct < 0 or not 0 < lr < float("inf"):
        raise SecateursError(f"reconstruct={reconstruct}, lr={lr}: give no step or some, and a learning rate above 0, such as 1e-3")
    require_in_blocks(solver.needs)
    hollow = Hollow(Path(source))
    task = _fitting(hollow, bool(solver.needs) or reconstruct > 0, task)
    walk, sites = _sites(hollow, pattern, task, blocks, only, skip)
    for name in next(iter(walk.stacks.values())).names if reconstruct else ():
        if (shared := hollow.shared(name)) is not None:
            raise SecateursError(
                f"{shared} is part of block {name} too, which therefore cannot be trained by itself: leave reconstruct= away"
            )
    plan = (allocate or as_pattern())(sites, no_scores)
    about = {
        "source": _told(hollow),
        "pattern": repr(pattern),
        "solver": repr(solver),
        "plan": plan.to_json(),
        "batches": digest(dict(enumerate(tensors_in(task.calibration)))),
        **({"reconstruction": f"{reconstruct} steps at {lr}"} if reconstruct else {}),
    }
    with Output.begun(hollow.shards, Path(out), about) as output:
        kept = _pruned(hollow, walk, plan, solver, task, output, show, (reconstruct, lr))
        output.finish()
    there = {name: share.units * each for share in plan.shares.values() for name, each in share.elements.items()}
    return PrunedFolder(Path(out), plan, sum(kept.values()), sum(there.values()), sites.skipped, output.left_out)


def _told(hollow: Hollow) -> str:
    """What the weights are, without reading all of them: where they lie, and when they were written."""
    files = [(file, (hollow.shards.folder / file).stat()) for file in hollow.shards.files]
    return ", ".join(f"{file} {about.st_size} {about.st_mtime_ns}" for file, about in files)


def _fitting(hollow: Hollow, needed: bool, task: Task) -> Task:
    """The task with its batches in a list, none of them longer than the model allows."""
    given = task.calibration if task.calibration is not None else task.train
    batches = [] if given is None or not needed else list(given)
    if not batches and needed:
        raise TaskError("there is no text to calibrate on: give a task made by secateurs.tasks.text(path, tokenizer)")
    for tensor in tensors_in([batch[0] if isinstance(batch, (tuple, list)) else batch for batch in batches]):
        if not tensor.is_floating_point() and tensor.ndim > 1:
            require_window(hollow.model, tensor.shape[-1])
    return replace(task, calibration=batches, train=None)


def _sites(
    hollow: Hollow, pattern: Pattern, task: Task, blocks: str | None, only: Selection | None, skip: Selection | None
) -> tuple[Any, Sites]:
    """The sites in the blocks, and the walk through them."""
    short = changed(task.example, lambda tensor: tensor[..., :_SHORT] if tensor.ndim > 1 else tensor)
    names = blocks_of(hollow.model, short, blocks)
    if len(names.stacks) > 1:
        raise SecateursError(
            f"the model has {len(names.stacks)} stacks of blocks, which begin with {' and '.join(stack[0] for stack in names.stacks)}: say "
            'which one with blocks="..."'
        )
    sites = find_sites(hollow.model, pattern, short, only=list(names) if only is None else only, skip=skip)
    walk: Any = in_blocks(blocks)(replace(sites, example=task.example, structure=None))
    outside = [part[0].name for part, block in zip(walk, walk.blocks, strict=True) if block is None]
    if outside:
        raise SecateursError(
            f"{', '.join(outside[:3])} lie outside the blocks, of which alone a folder is pruned: leave them out of only="
        )
    return walk, sites


def _pruned(
    hollow: Hollow, walk: Any, plan: Plan, solver: Solver, task: Task, output: Output, show: bool, training: tuple[int, float]
) -> dict[str, int]:
    """All blocks one after the other; gives how many numbers of each weight stay."""
    stacks = next(iter(walk.stacks.values()))
    passage = _passage(hollow, stacks, task) if solver.needs or training[0] else None
    restoring = Restoring(passage, trace_of(hollow.model, task.example), *training) if passage is not None and training[0] else None
    parts: Mapping[str, Sites] = dict(zip(walk.blocks, walk, strict=True))
    begun, left = time.monotonic(), len(stacks.names)
    with closing(track(stacks.names, "blocks", show=show)) as names:
        for name in names:
            inside, done = hollow.inside(name), output.is_done(name)
            hollow.load_(inside, output.partial if done and restoring is None else None)
            if restoring is not None:
                restoring.begin(name, hollow.model.get_submodule(name))
                if done:
                    hollow.load_(inside, output.partial)
            if name in parts and not done:
                written = prune_part_(parts[name], plan, solver, _observed(passage, name, parts[name], solver))
                if restoring is not None:
                    restoring.restore_(name, {each.parameter for site in parts[name] for each in site.members}, hollow.parameters)
                    written = inside
                for parameter in written:
                    hollow.round_(parameter)
                    hollow.shards.write(hollow.keys[parameter], hollow.parameters[parameter], output.partial)
            output.done(name, _left(parts.get(name, ())))
            if passage is not None and name != stacks.names[-1]:
                passage.advance()
                if restoring is not None:
                    restoring.advance(name)
            hollow.free_(inside)
            left -= 1
            passed = (time.monotonic() - begun) / (len(stacks.names) - left)
            tell(f"{name}: {left} of {len(stacks.names)} blocks left, about {left * passed / 60:.0f} min", show and left > 0)
    return output.kept


def _observed(passage: Passage | None, name: str, part: Sites, solver: Solver) -> Stats:
    if passage is None:
        return {}
    alone, batches = passage.at(name)
    return observe(alone, part, solver.needs, Task(batches[0][0], calibration=batches))


def _left(sites: Iterable[Any]) -> dict[str, int]:
    """How much stays of each weight, once where several sites lie in it."""
    return {member.parameter: int(torch.count_nonzero(member.weight)) for site in sites for member in site.members}


def _passage(hollow: Hollow, stacks: Any, task: Task) -> Passage:
    """What the first block is given, for which the model is loaded up to there."""
    trace = trace_of(hollow.model, task.example)
    blocks = [each.ops for each in trace.passes if each.module in stacks.names]
    inside, last = {place for ops in blocks for place in ops}, max(ops.start for ops in blocks)
    read = {value for place, op in enumerate(trace.ops[:last]) if place not in inside for value in op.inputs}
    stack = stacks.of(task.example, trace)
    run = [parameter for name in stacks.names[:-1] if name not in stack.answers for parameter in hollow.inside(name)]
    needed = [name for name, value in trace.parameters.items() if value in read] + run
    hollow.load_(needed)
    try:
        return Passage(stacks, task)
    finally:
        hollow.free_(needed)
