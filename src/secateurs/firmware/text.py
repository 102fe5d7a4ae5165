"""C as text: the kernels that come with the package, and arrays of constants."""

from __future__ import annotations

from importlib.resources import files

from secateurs.firmware.call import Constant

KERNELS: tuple[str, ...] = tuple((files("secateurs.firmware") / "c" / "ORDER").read_text("utf-8").split())
"""The files of C, in the order in which they build on each other: a new one gets its line in ``c/ORDER``."""
_WIDE = 118


def kernel(name: str) -> str:
    """A file of C that comes with the package."""
    return (files("secateurs.firmware") / "c" / name).read_text("utf-8")


def declared(constant: Constant) -> str:
    """A constant as C.

    >>> import numpy as np
    >>> print(declared(Constant("a", "int8_t", np.array([1, -2], np.int8))))
    static const int8_t a[2] __attribute__((aligned(4))) = {
        1, -2};
    """
    numbers = [_number(each, constant.ctype) for each in constant.numbers.ravel().tolist()]
    lines, line = [], ""
    for each in numbers:
        if line and len(line) + len(each) + 2 > _WIDE:
            lines.append(line)
            line = ""
        line = f"{line}, {each}" if line else each
    lines.append(line)
    inside = ",\n    ".join(lines)
    return f"static const {constant.ctype} {constant.name}[{len(numbers)}] __attribute__((aligned(4))) = {{\n    {inside}}};"


def _number(number: float, ctype: str) -> str:
    if ctype == "float":
        return f"{number!r}f" if number == number and abs(number) != float("inf") else ("INFINITY" if number > 0 else "-INFINITY")
    if ctype == "int32_t" and number == -(1 << 31):
        return "(-2147483647 - 1)"
    if ctype == "int64_t":
        return "(-INT64_C(9223372036854775807) - 1)" if number == -(1 << 63) else f"INT64_C({number})"
    return f"{number}u" if ctype == "uint32_t" else str(number)
