"""Models that leave, on the command line: as ONNX, as a compiled package of torch, or as C for a microcontroller."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from cyclopts import Parameter
from torch import Tensor, nn

from secateurs import export, targets
from secateurs.batch import split
from secateurs.cli.found import example_for, factory_named, task_named, with_weights
from secateurs.cli.terminal import say
from secateurs.nested import tensors_in
from secateurs.types import SecateursError

_CHIPS = ("flash", "sram", "kind", "name", "calibration", "samples")


def export_(
    model: str,
    out: Path,
    *,
    weights: Path | None = None,
    task: str | None = None,
    input_shape: str | None = None,
    dynamic: Annotated[list[int], Parameter(negative=(), consume_multiple=True)] = [],  # noqa: B006
    opset: int | None = None,
    sparse: bool = False,
    target: str | None = None,
    flash: int | None = None,
    sram: int | None = None,
    kind: Literal["int8", "int16", "float32"] | None = None,
    name: str | None = None,
    calibration: Path | None = None,
    samples: int | None = None,
) -> None:
    """Write a model as ONNX (OUT ends in .onnx), as a compiled package of torch (.pt2), or with --target as C for a microcontroller
    (OUT is a folder), and check it there against the model.

    Parameters
    ----------
    model
        A built-in model (lenet_5, resnet_20 …) or package.module:factory.
    out
        The file or folder to write.
    weights
        A safetensors file to load, such as the pruned.safetensors of a run; of channels or heads, the model gets as small.
    task
        A built-in task (digits, mnist, cifar10) or package.module:factory, for its example input, and for C its calibration data.
    input_shape
        Shape of an input instead of a task's example, such as 1,3,224,224.
    dynamic
        Dimensions in which inputs may have other sizes: 0 for the batch.
    opset
        Opset of the ONNX file, by default torch's choice.
    sparse
        Store weights of the ONNX file as their nonzeros where that is smaller.
    target
        The core that C is written for: cortex-m0, cortex-m3, cortex-m4, cortex-m7 or cortex-m55.
    flash
        Bytes of its flash, by default 1,000,000.
    sram
        Bytes of its SRAM, by default 256,000.
    kind
        Numbers of the C code: int8 (the default), int16 for activations, or float32.
    name
        What names in the C code begin with, by default that of the folder.
    calibration
        A .npy file with inputs on which ranges are seen, the first dimension counting samples, instead of the task's data.
    samples
        How many samples are used to calibrate, by default 256.
    """
    given = dict(zip(_CHIPS, (flash, sram, kind, name, calibration, samples), strict=True))
    network, example = with_weights(factory_named(model), weights), example_for(task, input_shape)
    if target is not None:
        if dynamic or opset is not None or sparse:
            raise SecateursError("--dynamic, --opset and --sparse are for ONNX; leave them out with --target")
        _write_c(network, example, out, target, task, given)
        return
    stray = [f"--{each}" for each, value in given.items() if value is not None]
    if stray:
        raise SecateursError(f"{' and '.join(stray)}: for C only; name a core with --target, cortex-m4 for example")
    if example is None:
        raise SecateursError("a model is written down by running it once: give --task or --input-shape")
    match out.suffix:
        case ".onnx":
            made = export.onnx(network, example, out, dynamic=dynamic, opset=opset, sparse=sparse)
        case ".pt2" if opset is None and not sparse:
            made = export.aot(network, example, out, dynamic=dynamic)
        case ".pt2":
            raise SecateursError(f"{out}: --opset and --sparse are for ONNX; leave them out, or name a file that ends in .onnx")
        case _:
            raise SecateursError(
                f"{out}: name a file that ends in .onnx, or in .pt2 for a compiled package of torch; for C give --target and a folder"
            )
    said = f"{out}: {made.bytes:,} bytes, largest difference {made.largest_difference:.1e} of an output's largest number"
    say(said)


def _write_c(network: nn.Module, example: Any, out: Path, target: str, task: str | None, given: dict[str, Any]) -> None:
    """The folder of C, and what it takes on the chip."""
    sizes = {each: given[each] for each in ("flash", "sram") if given[each] is not None}
    chip = targets.microcontroller(**sizes, cpu=target, name=target)
    kind: Literal["int8", "int16", "float32"] = given["kind"] or "int8"
    count = 256 if given["samples"] is None else given["samples"]
    if count < 1:
        raise SecateursError(f"--samples {count}: at least one sample is needed to see ranges")
    batches: list[Any] | None = None
    if given["calibration"] is not None:
        inputs = _inputs_in(given["calibration"])[:count]
        example, batches = inputs[:1] if example is None else example, [inputs]
    elif task is not None:
        batches = _inputs_of(network, task, count)
    elif kind != "float32":
        raise SecateursError(
            f"the ranges of {kind} numbers come from data: give --task, or --calibration with a .npy file of inputs"
        )
    if example is None:
        raise SecateursError("a model is written down by running it once: give --task, --input-shape or --calibration")
    name = out.resolve().name if given["name"] is None else given["name"]
    whole = None if task is None else task_named(task)
    scored = whole is not None and whole.metric is not None and whole.test is not None
    made = export.c(network, example, out, calibration=batches, target=chip, kind=kind, name=name, task=whole if scored else None)
    say(made)


def _inputs_in(path: Path) -> Tensor:
    try:
        numbers = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise SecateursError(f"--calibration {path}: not a .npy file of numbers: {error}") from error
    if not isinstance(numbers, np.ndarray) or not numbers.ndim or not len(numbers):
        raise SecateursError(
            f"--calibration {path}: one array is needed whose first dimension counts samples; write it with numpy.save"
        )
    return torch.from_numpy(numbers.astype(np.float32))


def _inputs_of(network: nn.Module, task: str, count: int) -> list[Any]:
    """The inputs of a task's first batches, until there are as many samples."""
    found = task_named(task)
    loader = found.calibration or found.train or found.validation
    if loader is None:
        raise SecateursError(f"--task {task}: it has neither calibration nor training data to see ranges on; give --calibration")
    batches, samples = [], 0
    for batch in islice(loader, count):
        inputs, _ = split(network, found, batch)
        batches.append(inputs)
        samples += next(len(tensor) for tensor in tensors_in(inputs))
        if samples >= count:
            break
    return batches
