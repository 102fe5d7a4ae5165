"""Running pruned models fast on a CPU: kernels for sparse weights, chosen layer by layer by timing them on this machine."""

from secateurs.run.compile import Compiled, compile
from secateurs.run.error import CompileError
from secateurs.run.explain import Explanation
from secateurs.run.latency import latency, latency_ms
from secateurs.run.machine import KernelError, available, instruction_set
from secateurs.run.predict import Prediction, predict

__all__ = [
    "CompileError",
    "Compiled",
    "Explanation",
    "KernelError",
    "Prediction",
    "available",
    "compile",
    "instruction_set",
    "latency",
    "latency_ms",
    "predict",
]
