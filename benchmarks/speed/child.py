"""A contender in a process of its own, for those that need another environment: ``python -m speed.child REQUEST``.

The request is JSON. Each line that comes in asks for a sample, and its seconds go out, so that the parent can let all contenders
take turns whatever process they live in. deepsparse's environment has neither torch nor secateurs, and ours is imported only where
the request is about ours.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from secateurs.nested import tensors_in

Run = Callable[[], Sequence[Any]]

TIMING = Path(__file__).parents[2] / "src" / "secateurs" / "run" / "timing.py"


def deepsparse(request: dict[str, Any]) -> Run:
    """deepsparse on a file of ONNX."""
    engine = _deepsparse_library().deepsparse_engine(
        request["onnx"], request["batch"], request["threads"], 1, "single_stream", None, None
    )
    with np.load(request["inputs"]) as file:
        inputs = [np.ascontiguousarray(file[name]) for name in file.files]
    return lambda: engine.execute_list_out(inputs)


def _deepsparse_library() -> Any:
    """The engine without its package around it, whose imports need a dozen others and which reports to its makers."""
    found = PathFinder.find_spec("deepsparse")
    if found is None:
        raise ModuleNotFoundError("deepsparse is not installed")
    package = ModuleType("deepsparse")
    package.__path__ = list(found.submodule_search_locations or ())
    sys.modules["deepsparse"] = package
    return importlib.import_module("deepsparse.lib").init_deepsparse_lib()


def ours(request: dict[str, Any]) -> Run:
    """Our runtime, forced to an instruction set by the environment that this process was given."""
    import torch

    from secateurs.run import compile
    from speed.cases import CASES, Variant

    torch.set_num_threads(request["threads"])
    case = CASES[request["case"]]
    inputs = case.inputs()
    fast = compile(case.pruned(Variant(*request["variant"])), inputs, threads=request["threads"])
    return lambda: [tensor.numpy() for tensor in tensors_in(fast(inputs))]


def timing() -> ModuleType:
    """The clock of our runtime, from its file alone."""
    spec = importlib.util.spec_from_file_location("timing", TIMING)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["timing"] = module
    spec.loader.exec_module(module)
    return module


def main() -> None:
    """Answer once into a file, then take a sample for each line."""
    request = json.loads(sys.argv[1])
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print must not come between the answers
    try:
        run = {"deepsparse": deepsparse, "ours": ours}[request["kind"]](request)
        np.savez(request["outputs"], *run())
        sample = timing().sampler(run, cold=request["cold"], settle=request["settle"])
    except Exception as error:
        answers.write(json.dumps({"absent": f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"}) + "\n")
        return
    answers.write(json.dumps({}) + "\n")
    for _ in sys.stdin:
        answers.write(json.dumps(sample()) + "\n")


if __name__ == "__main__":
    main()
