"""A model made ready to run: the kernels that are fastest here, and never slower than the best dense runtime at hand."""

from __future__ import annotations

import copy
import threading
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.compiler import is_dynamo_compiling
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from secateurs.answers import difference
from secateurs.forward import call, run_example
from secateurs.nested import Value, changed, leaves, tensors_in
from secateurs.run.choosing.limits import limits
from secateurs.run.choosing.race import in_turns, race
from secateurs.run.choosing.ready import Ready, answered, nothing, straight, torch_ready
from secateurs.run.choosing.tune import choices, reckon, tune
from secateurs.run.clock.backends import DENSE, Backend
from secateurs.run.clock.memory import Memory
from secateurs.run.clock.timing import Timing, torch_threads
from secateurs.run.explain import Explanation, explain
from secateurs.run.kernels.gemv import Values
from secateurs.run.kernels.machine import InstructionSet, instruction_set
from secateurs.run.lowering.lower import lower
from secateurs.run.network.error import CompileError
from secateurs.run.network.interpret import interpreter
from secateurs.run.network.nodes import Network
from secateurs.run.network.plain import only_torch, resolved
from secateurs.run.planning.plan import plan
from secateurs.run.planning.runner import Runner
from secateurs.run.recording.one_call import network_of

_TOLERANCE, _ROUNDED = 1e-3, 0.3
"""Differences that no order of sums, or no rounding of weights, explains: kernels that gave such answers would not be used."""
_SHAPES = 16
"""Plans kept for different shapes of input."""


class Compiled:
    """A model that runs as it was when it was compiled: call it like the model.

    Inputs of another shape are planned when they come, and the plans are kept. Several threads may call it at once.
    """

    def __init__(
        self, model: nn.Module, example: Any, threads: int, isa: InstructionSet | None, tuning: bool, dense: Any, values: Values
    ) -> None:
        self.threads, self.isa = threads, isa
        self._model, self._tuning, self._dense, self._values = model, tuning, dense, values
        self._plans: dict[Any, Ready] = {}
        self._planning = threading.Lock()
        self._told: set[str] = set()
        self._memory = Memory()
        self._first = self._plan(example)
        self._straight = self._first.straight or nothing

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if is_dynamo_compiling():  # in the other ways of torch to compile and export it follows operations, which a look will show
            return self._model(*args, **kwargs)
        if len(args) == 1 and not kwargs:
            found = self._straight(args[0])
            if found is not None:
                return found
        if torch.compiler.is_compiling():
            return self._model(*args, **kwargs)
        if args and kwargs:
            raise CompileError(
                "call it as it was compiled: with one input, positional arguments or keyword arguments, not a mixture"
            )
        inputs = kwargs or (args[0] if len(args) == 1 else args)
        return answered(self._first, inputs, self._by_torch, self._for)

    def __copy__(self) -> Compiled:
        return self  # it never changes, and several may use it at once

    def __deepcopy__(self, memo: Any) -> Compiled:
        return self

    def __reduce__(self) -> Any:
        raise CompileError(
            "a compiled model cannot be pickled: its kernels belong to this process and this machine; "
            "save the model that it was made from (secateurs.save), and compile it where it is to run"
        )

    @property
    def raced(self) -> Mapping[str, Timing]:
        """The seconds of all that took part in the race on the example, which took turns."""
        return self._first.race

    def explain(self, inputs: Any = None) -> Explanation:
        """What was chosen for each layer and why, for the example's shape, or for that of other inputs."""
        ready = self._first if inputs is None else self._for(inputs)
        limit = None if self.isa is None else limits(self.isa, self._memory)
        return explain(ready, self.threads, self.isa, limit, self._values)

    def _for(self, inputs: Any) -> Ready:
        key = tuple(
            (path, tuple(leaf.shape), leaf.dtype) if isinstance(leaf, Tensor) else (path, repr(leaf))
            for path, leaf in leaves(inputs)
        )
        with self._planning:
            if key not in self._plans:
                _require_cpu(inputs)
                if len(self._plans) >= _SHAPES:
                    self._plans.pop(next(iter(self._plans)))
                self._plans[key] = self._plan(inputs)
            return self._plans[key]

    def _by_torch(self, inputs: Any, why: str) -> Any:
        """What torch gives for inputs, or at moments, that are none for kernels, gradients included."""
        if why not in self._told:
            self._told.add(why)
            warnings.warn(f"{why}: torch runs the model, in its own time", RuntimeWarning, stacklevel=3)
        try:
            return _with_torch(self._model, inputs)
        except Exception as error:
            line = (str(error).strip().splitlines() or [""])[0]
            raise CompileError(f"{why}; torch cannot run the model so either: {type(error).__name__}: {line}") from error

    def _plan(self, example: Any) -> Ready:
        network = lower(network_of(self._model, example))
        if self.isa is None:
            return torch_ready(network)
        if self._tuning:
            tuned = tune(network, self.isa, self.threads, self._memory, self._values)
        else:
            tuned = reckon(network, self.isa, self.threads, limits(self.isa, self._memory), self._values)
        made = plan(network, self.isa, self.threads, choices(tuned))
        runner = Runner(network, made, self.threads)
        run = _calling(network, runner)
        unlike = _difference(interpreter(network), run, example)
        if unlike > (_TOLERANCE if self._values == "float32" else _ROUNDED):
            warnings.warn(
                f"the kernels' answers differ from torch's by {unlike:.1e} of the largest: torch runs instead; please report this model",
                RuntimeWarning,
                stacklevel=4,
            )
            return replace(torch_ready(network), tuned=tuned)
        run = self._beside_torch(run, runner, example)
        short = runner.straight(network) or straight(network, run)
        ready = Ready(network, run, "kernels", short, tuned, between=made.between)
        if not self._tuning:
            return ready
        found = race(self._model, example, network, self.threads, self._dense, kernels=ready)
        return replace(found.winner, tuned=tuned, race=found.timings, between=made.between)

    def _beside_torch(self, run: Callable[[Any], Any], runner: Runner, example: Any) -> Callable[[Any], Any]:
        """Torch's operations between the kernels with all threads, or with one: when they are done, torch's threads keep cores busy for a
        while, which those of the kernels need."""
        if self.threads == 1 or not runner.shares:
            return run

        def alone(inputs: Any) -> Any:
            with torch_threads(1):
                return run(inputs)

        if not self._tuning:
            return alone
        with torch_threads(self.threads):
            timings = in_turns({"alone": alone, "all": run}, example, self.threads, rounds=9)
        return alone if timings["alone"].speed_over(timings["all"]) > 1 else run


def compile(
    model: nn.Module,
    example: Any,
    *,
    threads: int | None = None,
    tune: bool = True,
    dense: Mapping[str, Backend] | None = None,
    isa: str | None = None,
    values: Values = "float32",
) -> Compiled:
    """Make a pruned model fast on this CPU: ``fast = compile(model, example)``, then ``fast(x)`` in place of ``model(x)``.

    Weights are packed without their zeros, batch normalisation, bias, activation and residual sums are done in the same pass, and each
    layer gets the kernel that is fastest for it here, which may be torch's dense one. The whole is raced against the dense runtimes
    in ``dense`` (by default torch and, where they are installed, ONNX Runtime and OpenVINO), and where one of those is faster, that
    one runs. Answers agree with the model's to about 1e-5 of the largest, as the order of sums differs.

    The model is copied: it may change or go afterwards. ``threads`` is by default what torch uses. Without ``tune`` nothing is timed:
    choices come from the machine's limits, and there is no race. ``isa`` names an instruction set (by default the best one, or
    ``$SECATEURS_ISA``). Measurements are remembered in ``~/.cache/secateurs``.

    ``values`` may be "bfloat16" or "int8" (one scale a row): linear layers that read single vectors then hold their weights so, which
    halves or quarters what comes from memory, and rounds them (sums stay float32); `explain` says which. All others stay float32.

    A zero weight is skipped, so that an infinite input there gives 0 where torch gives NaN.

    Kernels read plain tensors. Where the input is something else (sparse, a subclass, one that requires gradients), or torch's
    operations are followed (`torch.jit.trace`, `torch.export`, `torch.func`), torch runs the model, and a warning says so.

    Raises `TaskError` where the model rejects the example, `CompileError` where what it does depends on the numbers of its input, for
    ``values`` that are none, and for an example that is no plain tensor.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 2))
    >>> fast = compile(model, torch.zeros(1, 3, 8, 8), threads=1, tune=False)
    >>> x = torch.randn(1, 3, 8, 8)
    >>> torch.allclose(fast(x), model(x), atol=1e-5)
    True
    """
    example = resolved(example)
    why = only_torch(example)
    if why is not None:
        raise CompileError(f"{why}: compile outside of that, with plain tensors for an example")
    run_example(model, example)
    _require_cpu(example)
    count = torch.get_num_threads() if threads is None else threads
    if count < 1:
        raise CompileError(f"threads={threads}: at least one is needed")
    if values not in get_args(Values):
        raise CompileError(f"values={values!r}: weights are held as {', '.join(map(repr, get_args(Values)))}")
    own = copy.deepcopy(model).eval().requires_grad_(False)
    return Compiled(own, example, count, instruction_set(isa), tune, DENSE if dense is None else dense, values)


def _with_torch(model: nn.Module, inputs: Any) -> Any:
    """What the model gives; for fake inputs that nobody records, with fakes of its weights."""
    mode = torch._guards.detect_fake_mode([leaf for _, leaf in leaves(inputs) if isinstance(leaf, Tensor)])
    if mode is None or mode.allow_non_fake_inputs or get_proxy_mode() is not None:
        return call(model, inputs)
    held = (*model.named_parameters(), *model.named_buffers())
    fakes: dict[str, Tensor] = {name: mode.from_tensor(tensor, static_shapes=True) for name, tensor in held}
    return call(partial(torch.func.functional_call, model, fakes), inputs)


def _require_cpu(inputs: Any) -> None:
    for path, leaf in leaves(inputs):
        if isinstance(leaf, Tensor) and leaf.device.type != "cpu":
            raise CompileError(f"the input{path} is on {leaf.device}: the kernels run on the CPU; move it with .cpu()")


def _calling(network: Network, runner: Runner) -> Callable[[Any], Any]:
    """The runner as a function of what the model takes, giving what the model gives."""
    alone = isinstance(network.result, Value)
    if alone and isinstance(network.example, Value):
        return lambda inputs: runner(inputs)[0]

    def run(inputs: Any) -> Any:
        found = runner(*(leaf for _, leaf in leaves(inputs) if isinstance(leaf, Tensor)))
        return found[0] if alone else changed(network.result, dict(zip(runner.gives, found, strict=True)).__getitem__, objects=True)

    return run


def _difference(torchs: Callable[[Any], Any], ours: Callable[[Any], Any], example: Any) -> float:
    """The largest difference of two functions' tensors, as a part of the largest number; 0 where torch itself gives another answer
    each time, or numbers that are not finite."""
    expected, again, found = (list(tensors_in(run(example))) for run in (torchs, torchs, ours))
    parts = [0.0]
    for one, other, mine in zip(expected, again, found, strict=True):
        if one.is_floating_point() and one.numel() and torch.equal(one, other) and bool(one.isfinite().all()):
            parts.append(difference(one, mine, least=1e-6))
    return max(parts)
