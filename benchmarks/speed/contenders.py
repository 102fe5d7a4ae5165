"""Who is measured beside the dense runtimes and ours: int8, deepsparse, and ours with fewer instructions."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from secateurs.forward import call
from secateurs.nested import tensors_in
from secateurs.run.clock.backends import Absent, Runner, onnx_session, quiet
from secateurs.run.clock.timing import Sampler, settling
from speed.cases import Case, Variant

BENCHMARKS = Path(__file__).parents[1]
BUILD = BENCHMARKS.parent / "build"
DEEPSPARSE = BUILD / "bench-deepsparse"
FORCED = ("avx2", "baseline")


# ---------------------------------------------------------------- in processes of their own


@dataclass(frozen=True)
class Process:
    """A contender elsewhere: how to take a sample, and what it answered."""

    sample: Sampler
    outputs: list[Tensor]


@contextmanager
def process(python: Path | str, request: Mapping[str, Any], environment: Mapping[str, str]) -> Iterator[Process | Absent]:
    """Start a contender as child.py says; it ends with the block."""
    with tempfile.TemporaryDirectory() as folder:
        answers = Path(folder) / "outputs.npz"
        asked = json.dumps({**request, "outputs": str(answers)})
        command = [str(python), "-m", "speed.child", asked]
        settings = {**os.environ, **environment}
        pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
        with subprocess.Popen(command, cwd=BENCHMARKS, env=settings, **pipes) as child:
            first = _line(child)
            if "absent" in first:
                yield Absent(first["absent"])
            else:
                with np.load(answers) as file:
                    outputs = [torch.from_numpy(file[name]) for name in file.files]
                yield Process(partial(_sample, child), outputs)  # the child ends when this block closes its input


def _sample(child: subprocess.Popen[str]) -> float:
    assert child.stdin
    child.stdin.write("\n")
    child.stdin.flush()
    answer = _line(child)
    if isinstance(answer, float):
        return answer
    raise RuntimeError(f"{child.args!r}: {answer['absent']}")


def _line(child: subprocess.Popen[str]) -> Any:
    assert child.stdout
    line = child.stdout.readline()
    return json.loads(line) if line else {"absent": f"its process crashed (status {child.wait()})"}


@contextmanager
def forced(case: Case, variant: Variant, instructions: str, threads: int) -> Iterator[Process | Absent]:
    """Ours, with no more than one set of instructions."""
    request = {
        "kind": "ours",
        "case": case.name,
        "variant": [variant.sparsity, variant.rows],
        "threads": threads,
        "cold": case.cold,
        "settle": settling(threads),
    }
    with process(sys.executable, request, {"SECATEURS_ISA": instructions, "PYTHONPATH": str(BUILD / "bench")}) as found:
        yield found


@contextmanager
def deepsparse(model: nn.Module, inputs: Any, threads: int, cold: bool) -> Iterator[Process | Absent]:
    """deepsparse 1.8.0, from an environment of its own."""
    python = DEEPSPARSE / "bin" / "python"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        reason = None if python.exists() else f"make its environment with --install ({DEEPSPARSE} is missing)"
        reason = reason or write_old_onnx(model, inputs, file)
        if reason:
            yield Absent(reason)
            return
        np.savez(Path(folder) / "inputs.npz", *(tensor.numpy() for tensor in tensors_in(inputs)))
        request = {
            "kind": "deepsparse",
            "onnx": str(file),
            "inputs": str(Path(folder) / "inputs.npz"),
            "batch": len(next(tensors_in(inputs))),
            "threads": threads,
            "cold": cold,
            "settle": settling(threads),
        }
        with process(python, request, {}) as found:
            yield found


def install_deepsparse() -> None:
    """An environment for deepsparse: its wheel with nothing but numpy, since only the engine in it is used."""
    subprocess.run([sys.executable, "-m", "venv", DEEPSPARSE], check=True)
    pip = [str(DEEPSPARSE / "bin" / "python"), "-m", "pip", "install", "-q"]
    subprocess.run([*pip, "numpy<2"], check=True)
    subprocess.run([*pip, "--no-deps", "deepsparse==1.8.0"], check=True)


# ---------------------------------------------------------------- files of ONNX that old runtimes read


class Positional(nn.Module):
    """A model that takes and gives tensors only, one after the other."""

    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        inputs: Any = dict(zip(self.names, tensors, strict=True)) if self.names else tensors
        return tuple(tensors_in(call(self.model, inputs)))


def _positional(model: nn.Module, inputs: Any) -> Positional:
    return Positional(model, tuple(inputs) if isinstance(inputs, Mapping) else ()).eval()


def write_old_onnx(model: nn.Module, inputs: Any, file: Path) -> str | None:
    """Write opset 14 by torch's older exporter, whose files runtimes of 2023 read; tell why where that is impossible."""
    try:
        with quiet():
            torch.onnx.export(_positional(model, inputs), tuple(tensors_in(inputs)), file, dynamo=False, opset_version=14)
    except Exception as error:
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
    return None


# ---------------------------------------------------------------- int8


def torch_int8(model: nn.Module, inputs: Any, threads: int) -> Runner | Absent:
    """torch with int8 weights in linear layers and LSTMs, activations quantised as they come."""
    if not any(isinstance(module, (nn.Linear, nn.LSTM)) for module in model.modules()):
        return Absent("no linear layer")
    with quiet():  # wrapped, because only what is inside another module is replaced
        quantised = torch.ao.quantization.quantize_dynamic(_positional(model, inputs), {nn.Linear, nn.LSTM}, torch.qint8)

    def run(inputs: Any) -> Any:
        with torch.inference_mode():
            return quantised(*tensors_in(inputs))

    return run


def onnx_runtime_int8(model: nn.Module, inputs: Any, threads: int) -> Runner | Absent:
    """ONNX Runtime with int8 weights and activations, calibrated on the example itself, which flatters it."""
    if not any(isinstance(module, nn.Conv2d) for module in model.modules()):
        return Absent("no convolution")
    with tempfile.TemporaryDirectory() as folder:
        file, quantised = Path(folder) / "model.onnx", Path(folder) / "int8.onnx"
        reason = write_old_onnx(model, inputs, file)
        if reason:
            return Absent(reason)
        try:
            tool = importlib.import_module("onnxruntime.quantization")
            runtime = importlib.import_module("onnxruntime")
            names = [each.name for each in runtime.InferenceSession(file, providers=["CPUExecutionProvider"]).get_inputs()]
            feeds = iter([{name: tensor.numpy() for name, tensor in zip(names, tensors_in(inputs), strict=True)}])

            class Once(tool.CalibrationDataReader):  # type: ignore[name-defined, misc]
                def get_next(self) -> Any:
                    return next(feeds, None)

            with quiet():
                tool.quantize_static(file, quantised, Once(), per_channel=True)
            return onnx_session(runtime, str(quantised), threads)
        except Exception as error:
            return Absent(f"{type(error).__name__}: {str(error).strip().splitlines()[0]}")


INT8 = {"int8, torch": torch_int8, "int8, ONNX Runtime": onnx_runtime_int8}
