"""The batches of one block after the other: what each is given, where those before it are as they are now."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from typing import Any, NoReturn

from torch import Tensor, nn

from secateurs.batch import run_batch, split
from secateurs.blockwise.arguments import Arguments, BlockCall, OneBlock, Store, stream_in
from secateurs.blockwise.stack import Stack, Stacks
from secateurs.forward import check_fit, evaluating
from secateurs.nested import changed, tensors_in
from secateurs.progress import track
from secateurs.types import SecateursError, Task, TaskError
from secateurs.watch import cut_short, instead


class Passage:
    """Leads a task's calibration batches through a stack, block by block: in memory are the inputs of one block.

    First the model runs up to the stack, and is led past the blocks to learn what each is given beside the stream, which is all that is
    kept of it. Then `at` gives the batches of a block, in order; the blocks before it run once, with the weights that they have by then.

    Raises `TaskError` where there are no batches or the model rejects one.
    """

    def __init__(self, stacks: Stacks, task: Task) -> None:
        model, self.names = stacks.model, stacks.names
        self.blocks = [model.get_submodule(name) for name in self.names]
        self.place = 0
        self.arguments: list[list[Arguments]] = []
        self.streams: list[Tensor] = []
        store = Store()
        for inputs in _inputs(model, task):
            arguments, stream = _Capture(model, stacks.of(inputs), store)(inputs, task.example)
            self.arguments.append(arguments)
            self.streams.append(stream)
        if not self.streams:
            raise TaskError("the calibration loader is empty: it gave no batch to observe")

    def at(self, name: str) -> tuple[OneBlock, list[tuple[BlockCall, None]]]:
        """A block as a model of its own, and its batches; the blocks before it are run."""
        place = self.names.index(name)
        if place < self.place:
            raise SecateursError(f"the inputs of {name} are gone, those of {self.names[self.place]} stand in their place")
        while self.place < place:
            self.advance()
        calls = [BlockCall(arguments[place], stream) for arguments, stream in zip(self.arguments, self.streams, strict=True)]
        return OneBlock(self.blocks[place]), [(call, None) for call in calls]

    def advance(self) -> None:
        """Run the block that is next: what it gives stands in place of what it was given."""
        block = self.blocks[self.place]
        with evaluating(block), closing(track(self.arguments, "running", total=len(self.arguments))) as batches:
            for number, arguments in enumerate(batches):
                args, kwargs = arguments[self.place].with_stream(self.streams[number])
                self.streams[number] = stream_in(block(*args, **kwargs)).detach()
        self.place += 1


def _inputs(model: nn.Module, task: Task) -> Iterator[Any]:
    """What the model is given, batch by batch."""
    batches = task.calibration if task.calibration is not None else task.train
    if batches is None:
        raise TaskError("a model is run block by block on data: give Task(calibration=...) or Task(train=...)")
    for batch in batches:
        inputs, _ = split(model, task, batch)
        check_fit(model, inputs, "a calibration batch")
        yield inputs


class _Capture:
    """One pass of the model that is led past the blocks, and what each of them was given."""

    def __init__(self, model: nn.Module, stack: Stack, store: Store) -> None:
        self.model, self.stack, self.store = model, stack, store
        self.modules = {model.get_submodule(name): name for name in stack.names}
        self.found: dict[str, Arguments] = {}
        self.copies: dict[int, Any] = {}
        self.first: Tensor | None = None
        self.stream: Tensor | None = None
        self.enough: Callable[[], NoReturn]

    def __call__(self, inputs: Any, example: Any) -> tuple[list[Arguments], Tensor]:
        """The arguments of each block for one batch, and the stream that the first is given."""
        with evaluating(self.model), instead(dict.fromkeys(self.modules, self._called)), cut_short() as self.enough:
            run_batch(self.model, inputs, "a calibration batch", example)
        if self.first is None or len(self.found) < len(self.stack.names):
            missing = next(name for name in self.stack.names if name not in self.found)
            raise SecateursError(
                f"block {missing} was called with the example, but not with a calibration batch: prune without blocks (walk=in_order())"
            )
        return [self.found[name] for name in self.stack.names], self.first

    def _called(self, block: nn.Module, run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """In place of a block's call: note its arguments, and give the stream on as it is."""
        name, given = self.modules[block], list(tensors_in((args, kwargs)))
        if self.stream is None:
            self.stream = given[self.stack.stream]
            self.first = self.stream.detach().clone()
        if name in self.found or not any(tensor is self.stream for tensor in given):
            raise SecateursError(
                f"block {name} is called otherwise with a calibration batch than with the example: prune without blocks (walk=in_order())"
            )
        self.found[name] = Arguments(args, kwargs, self.stream, self.store, self.copies)
        if name == self.stack.names[-1]:
            self.enough()
        if name not in self.stack.answers:
            answer = run(block, *args, **kwargs)
            self.stream = stream_in(answer)
            return answer
        template, places = self.stack.answers[name]
        return changed(template, _standing(places, given, self.stream))


def _standing(places: Mapping[Any, int | None], given: list[Tensor], stream: Tensor) -> Callable[[Any], Tensor]:
    def tensor(value: Any) -> Tensor:
        place = places[value]
        return stream if place is None else given[place]

    return tensor
