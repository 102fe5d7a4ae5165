"""Packages of compiled code: ``torch.export`` and AOTInductor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.export.error import ExportError
from secateurs.export.placing import placing
from secateurs.export.program import Exported, capture, first_line, quiet
from secateurs.forward import as_call
from secateurs.nested import tensors_in


def aot(
    model: nn.Module, example: Any, path: str | Path, *, dynamic: Sequence[int] = (), tolerance: float | None = None
) -> Exported:
    """Compile a model in evaluation mode ahead of time, load the package, and tell how far its answers are from the model's.

    The package runs on machines with the same kind of processor and the same torch, in Python
    (``torch._inductor.aoti_load_package(path)``) or C++, without the model's code; its outputs are a flat tuple of tensors. ``example``,
    ``dynamic`` and ``tolerance`` are as in `onnx`. A compiler is needed here, not there; it takes seconds to minutes.

    Nothing is written unless the package's answers are the model's: the old file stays.

    Raises `ExportError` where there is no C++ compiler, the path does not end in ``.pt2``, the model cannot be exported, or an output
    is no tensor or differs; `TaskError` where the model rejects the example; `NonFiniteError` where it answers with NaN;
    `WriteError` where the file cannot be written.

    >>> aot(nn.Linear(3, 2), torch.ones(1, 3), "model.so")
    Traceback (most recent call last):
    secateurs.export.error.ExportError: model.so: torch loads packages by their ending; call it model.pt2
    """
    if Path(path).suffix != ".pt2":
        raise ExportError(f"{path}: torch loads packages by their ending; call it {Path(path).with_suffix('.pt2')}")
    _require_compiler()
    with placing(path) as file:
        captured = capture(model, example, dynamic)
        loaded = _compiled(captured.program, file)

        def run(trial: Any) -> list[Tensor]:
            positional, named = as_call(trial)
            with torch.no_grad():
                return [tensor.cpu() for tensor in tensors_in(loaded(*positional, **named))]

        differences = captured.differences(run, "the package", tolerance)
        size = file.stat().st_size
    inputs = tuple(str(name) for name in captured.program.graph_signature.user_inputs if isinstance(name, str))
    return Exported(Path(path), size, inputs, captured.outputs, differences)


def _require_compiler() -> None:
    from torch._inductor.cpp_builder import get_cpp_compiler  # slow to import

    try:
        get_cpp_compiler()
    except Exception as error:
        raise ExportError(
            f"a package is compiled here, and there is no C++ compiler ({first_line(error)}): install one (apt install g++), or name it "
            "with the environment variable CXX before Python starts"
        ) from error


def _compiled(program: torch.export.ExportedProgram, file: Path) -> Any:
    import torch._inductor  # slow to import

    try:
        with quiet():
            torch._inductor.aoti_compile_and_package(program, package_path=str(file))
            return torch._inductor.aoti_load_package(str(file))
    except Exception as error:
        raise ExportError(f"the model cannot be compiled ahead of time: {first_line(error)}") from error
