"""Local reconstruction: each part of each block trained by itself, until it gives again what it gave before the pruning."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path

import torch
from torch import Tensor, nn

from secateurs.blockwise import BlockCall, Passage, Stacks
from secateurs.files.partway import Kept, Partway, digest
from secateurs.forward import buffers_in, evaluating, parameters_in
from secateurs.given import COUNT, MASKS, MODEL, PATH, TASK, require, require_values
from secateurs.graph import Half, Trace, blocks_in, halves_of, trace_of
from secateurs.masks import Masks
from secateurs.nested import changed, tensors_in
from secateurs.progress import tell, track
from secateurs.ranks import count
from secateurs.tried import taken_back_on_error
from secateurs.types import NonFiniteError, SecateursError, Task
from secateurs.watch import until_given

_HELD_OUT = 8  # of so many batches one is not trained on


@dataclass(frozen=True)
class Reconstructed:
    """One part of a block: what was trained, and the relative error of its answers on batches that it was not trained on (where there are
    at least two; else on all), before and after. Where it did not fall, the part was left as it was."""

    block: str
    parameters: tuple[str, ...]
    before: float
    after: float


def reconstruct_(
    model: nn.Module,
    dense: nn.Module,
    task: Task,
    *,
    masks: Masks | None = None,
    steps: int = 200,
    lr: float = 1e-3,
    blocks: str | Iterable[str] | None = None,
    halves: bool = True,
    seed: int = 0,
    checkpoint: str | Path | None = None,
) -> list[Reconstructed]:
    """Train a pruned model block by block to give what the dense one gives, its pruned weights held at zero (2510.14444).

    Each part of a block takes `steps` of Adam at a rate that falls from `lr` to zero, one calibration batch each, in an order drawn from
    `seed`; no labels and no loss are needed. A block is cut at its residual sums (``halves=False``: not), so that attention and what
    follows it are trained apart; `blocks_of` finds the blocks, ``blocks="layer1"`` names what holds them. The inputs are those that the
    pruned model makes, with all parts before reconstructed already, and what is aimed at is the dense model's: so a part also undoes what
    those before it have lost, which with inputs of the dense model would add up. The error is that of each position's vector relative to
    its length (of images' that of each sample), as normalisations come next.

    `dense` is a copy made before the pruning, or loaded anew. All parameters of a part that require gradients learn, in float32 and then
    rounded, those with a mask where it is true. In memory are, beside both models, the inputs and answers of one block for all batches.
    One batch in eight is not trained on, and a part whose error on these does not fall stays as it was. With ``checkpoint=``, a folder
    that gets a file for each block, the same call goes on behind the last one. After an error the model is as it was.

    Raises `SecateursError` where there are no blocks, the dense model is not like the pruned one, or nothing can be trained; `TaskError`
    where there are no batches; `NonFiniteError` where a model's answers are not finite; `FileError` where the folder belongs to another
    call.

    >>> import copy
    >>> from secateurs import Element, TopK, magnitude, prune_, uniform
    >>> _ = torch.manual_seed(0)
    >>> block = lambda: nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 8))
    >>> model, data = nn.Sequential(block(), block()), torch.randn(8, 32, 8)
    >>> task = Task(example=data[0], calibration=[(batch, None) for batch in data])
    >>> dense = copy.deepcopy(model)
    >>> masks = prune_(model, Element(), TopK(magnitude()), uniform(sparsity=0.5), task)
    >>> found = reconstruct_(model, dense, task, masks=masks, steps=50, lr=0.01)
    >>> [(part.block, part.after < part.before / 2) for part in found]
    [('0', True), ('1', True)]
    """
    _require(model, dense, task, masks, steps, lr, checkpoint)
    trace = trace_of(model, task.example)
    stacks = blocks_in(model, trace, blocks).stacks
    held = {} if masks is None else dict(masks.named_as_in(model))
    about = {
        "weights": digest(model.state_dict()),
        "dense": digest(dense.state_dict()),
        "training": repr((steps, lr, halves, seed)),
    }
    partway = None if checkpoint is None else Partway(Path(checkpoint), about)
    parts = {name: _parts_of(trace, name, halves) for names in stacks for name in names}
    with taken_back_on_error(model):
        return [each for names in stacks for each in _Work(model, dense, names, held, steps, lr, seed, task).stack_(parts, partway)]


def _told(found: Sequence[Reconstructed]) -> str:
    return f"relative error {found[-1].before:.3g} → {found[-1].after:.3g}" if found else ""


def _parts_of(trace: Trace, block: str, halves: bool) -> list[Half]:
    found = halves_of(trace, block)
    if halves or len(found) < 2:
        return found
    return [Half(tuple(name for half in found for name in half.parameters), None)]


def _require(
    model: nn.Module, dense: nn.Module, task: object, masks: object, steps: object, lr: object, checkpoint: object
) -> None:
    for name, value, kind in (("model", model, MODEL), ("dense", dense, MODEL), ("task", task, TASK), ("steps", steps, COUNT)):
        require("reconstruct_", name, value, kind)
    for name, value, kind in (("masks", masks, MASKS), ("checkpoint", checkpoint, PATH)):
        if value is not None:
            require("reconstruct_", name, value, kind)
    if not isinstance(lr, float) or not 0 < lr < float("inf") or not isinstance(steps, int) or steps < 1:
        raise SecateursError(
            f"reconstruct_: steps={steps}, lr={lr}: give at least one step, and a learning rate above 0, such as 1e-3"
        )
    if count() > 1:
        raise SecateursError(
            f"reconstruct_ is for one process, and here are {count()}: let the first do it, and load what it saves"
        )
    require_values("reconstruct_", model)
    require_values("reconstruct_", dense)
    ours, theirs = parameters_in(model), parameters_in(dense)
    shared = next((name for name, value in ours.items() if any(value is other for other in theirs.values())), None)
    unlike = next((name for name, value in ours.items() if name not in theirs or theirs[name].shape != value.shape), None)
    if shared is not None or unlike is not None:
        why = (
            f"shares {shared} with the pruned one" if shared is not None else f"has no parameter {unlike} of the pruned one's shape"
        )
        raise SecateursError(f"reconstruct_: the dense model {why}: keep a copy before pruning, dense = copy.deepcopy(model)")


@dataclass
class _Work:
    """One stack of blocks on its way: the batches of the pruned and of the dense model, at the same block."""

    model: nn.Module
    dense: nn.Module
    names: tuple[str, ...]
    masks: Mapping[str, Tensor]
    steps: int
    lr: float
    seed: int
    task: Task
    passages: list[Passage] = field(default_factory=list)

    def stack_(self, parts: Mapping[str, Sequence[Half]], partway: Partway | None) -> list[Reconstructed]:
        """Reconstruct all blocks, in order."""
        found: list[Reconstructed] = []
        with closing(track(self.names, "reconstructing", status=lambda: _told(found))) as names:
            for name in names:
                found += self.block_(name, parts[name], partway)
                tell(f"{name}: {_told(found)}")
        return found

    def block_(self, name: str, parts: Sequence[Half], partway: Partway | None) -> list[Reconstructed]:
        """Reconstruct one block, or give it what it came to in a run that was stopped."""
        parameters = {each: value for each, value in parameters_in(self.model).items() if each.startswith(f"{name}.")}
        number = self.names.index(name)
        kept = None if partway is None else partway.kept(number, [name])
        if kept is not None:
            with torch.no_grad():
                for each, parameter in parameters.items():
                    parameter.copy_(kept.weights[each])
            told = kept.weights["errors"].tolist()
            return [Reconstructed(name, half.parameters, *each) for half, each in zip(parts, told, strict=True)]
        if not self.passages:
            self.passages = [Passage(Stacks(each, self.names, {}, frozenset()), self.task) for each in (self.model, self.dense)]
        (_, ours), (_, theirs) = (passage.at(name) for passage in self.passages)
        calls = [[call for call, _ in batches] for batches in (ours, theirs)]
        block, dense = self.model.get_submodule(name), self.dense.get_submodule(name)
        found: list[Reconstructed] = []
        for half in parts:
            training = BlockTraining(block, dense, name, half, calls[0], calls[1])
            found.append(Reconstructed(name, half.parameters, *training.part_(self.masks, self.steps, self.lr, self.seed)))
        if partway is not None:
            errors = torch.tensor([[each.before, each.after] for each in found], dtype=torch.float64)
            partway.keep(
                number, [name], Kept({**{each: value.detach() for each, value in parameters.items()}, "errors": errors}, {})
            )
        return found


@dataclass
class BlockTraining:
    """One part of a block: the block as it is pruned, and as it was; what each is called with; and how the part is trained."""

    block: nn.Module
    dense: nn.Module
    name: str
    half: Half
    ours: list[BlockCall]
    theirs: list[BlockCall]

    def part_(self, masks: Mapping[str, Tensor], steps: int, lr: float, seed: int) -> tuple[float, float]:
        """Train the part; gives the error on what it is not trained on, before and after."""
        start = len(self.name) + 1
        named = {name[start:]: self.block.get_parameter(name[start:]) for name in self.half.parameters}
        learning = {name: each for name, each in named.items() if each.requires_grad and each.is_floating_point()}
        values = {name: parameter.detach().float().clone().requires_grad_() for name, parameter in learning.items()}
        held = {name: masks[key].to(value.device) for name, value in values.items() if (key := f"{self.name}.{name}") in masks}
        targets = [self._answer(self.dense, {}, call) for call in self.theirs]
        number = len(self.ours) // _HELD_OUT or (1 if len(self.ours) > 1 else 0)
        trained = list(range(len(self.ours) - number))
        apart = list(range(len(trained), len(self.ours))) or trained
        before = self._errors(values, apart, targets)
        if not isfinite(before):
            raise NonFiniteError(
                f"{self.name}: what the pruned or the dense model gives there is NaN or infinite; look at the calibration data"
            )
        if not learning:
            return before, before
        self._train(values, held, trained, targets, steps, lr, seed)
        with torch.no_grad():
            for name, value in values.items():
                value.copy_(value.to(learning[name].dtype))
            after = self._errors(values, apart, targets)
            if not after < before:
                return before, before
            for name, parameter in learning.items():
                parameter.copy_(values[name])
        return before, after

    def _train(
        self,
        values: Mapping[str, Tensor],
        held: Mapping[str, Tensor],
        trained: Sequence[int],
        targets: Sequence[Tensor],
        steps: int,
        lr: float,
        seed: int,
    ) -> None:
        optimizer = torch.optim.Adam(list(values.values()), lr=lr)
        order: list[int] = []
        chance = random.Random(seed)
        for step in range(steps):
            order = order or chance.sample(trained, len(trained))
            optimizer.param_groups[0]["lr"] = lr * (1 - step / steps)
            optimizer.zero_grad()
            with torch.enable_grad():
                place = order.pop()
                relative_error(self._answer(self.block, values, self.ours[place]), targets[place]).backward()
            _step_(optimizer, values, held)

    @torch.no_grad()
    def _errors(self, values: Mapping[str, Tensor], places: Sequence[int], targets: Sequence[Tensor]) -> float:
        found = [relative_error(self._answer(self.block, values, self.ours[place]), targets[place]) for place in places]
        return sum(map(float, found)) / len(found)

    def _answer(self, block: nn.Module, values: Mapping[str, Tensor], call: BlockCall) -> Tensor:
        """What the part gives, float32, with other values of some parameters."""
        all_of_it = {**parameters_in(block), **buffers_in(block)}
        whole = {name: value.detach().float() for name, value in all_of_it.items() if value.is_floating_point()}
        args, kwargs = changed(call.arguments.with_stream(call.stream), _floating)
        result = self.half.result
        with _modes(block):
            if result is None:
                return next(tensors_in(torch.func.functional_call(block, {**whole, **values}, args, kwargs)))
            with until_given(block, result.module.removeprefix(f"{self.name}."), result.number) as seen:
                torch.func.functional_call(block, {**whole, **values}, args, kwargs)
        return seen[0]


def _step_(optimizer: torch.optim.Optimizer, values: Mapping[str, Tensor], held: Mapping[str, Tensor]) -> None:
    """One step that leaves what is pruned at zero."""
    for name, mask in held.items():
        gradient = values[name].grad
        if gradient is not None:
            gradient.masked_fill_(~mask, 0)
    optimizer.step()
    with torch.no_grad():
        for name, mask in held.items():
            values[name].masked_fill_(~mask, 0)


def relative_error(found: Tensor, wanted: Tensor) -> Tensor:
    """The mean over vectors along the last dimension (of images over samples) of ‖found - wanted‖² / ‖wanted‖².

    >>> relative_error(torch.tensor([[1.0, 0.0], [4.0, 0.0]]), torch.tensor([[2.0, 0.0], [2.0, 0.0]]))
    tensor(0.6250)
    """
    dims = (-1,) if wanted.ndim < 4 else tuple(range(1, wanted.ndim))
    size = wanted.square().sum(dims)
    return ((found - wanted).square().sum(dims) / size.clamp_min(1e-12 * float(size.mean()) or 1.0)).mean()


def _floating(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


@contextmanager
def _modes(block: nn.Module) -> Iterator[None]:
    """Evaluation mode, with gradients where there were any."""
    learning = torch.is_grad_enabled()
    with evaluating(block), torch.set_grad_enabled(learning):
        yield
