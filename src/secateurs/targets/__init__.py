"""Classes of hardware, and which patterns pay there."""

from secateurs.targets.hardware import Cpu, Gpu, Microcontroller, Target, cpu, gpu, microcontroller
from secateurs.targets.recommend import PAYS, LayerAdvice, Option, Recommendation, recommend

__all__ = [
    "PAYS",
    "Cpu",
    "Gpu",
    "LayerAdvice",
    "Microcontroller",
    "Option",
    "Recommendation",
    "Target",
    "cpu",
    "gpu",
    "microcontroller",
    "recommend",
]
