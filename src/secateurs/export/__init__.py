"""A model on its way out: ONNX files, compiled packages, C for microcontrollers, and 2:4 weights for sparse tensor cores."""

from secateurs.export.error import ExportError
from secateurs.export.onnx_file import onnx
from secateurs.export.package import aot
from secateurs.export.program import Exported
from secateurs.export.qdq import qdq
from secateurs.export.semi_structured import Converted, semi_structured_
from secateurs.firmware.firmware import Firmware
from secateurs.firmware.write import c

__all__ = ["Converted", "ExportError", "Exported", "Firmware", "aot", "c", "onnx", "qdq", "semi_structured_"]
