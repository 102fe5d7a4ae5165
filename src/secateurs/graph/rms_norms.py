"""Root-mean-square normalisations: the one reduction over a width that stays exact, because its weight can be rescaled.

With ``s`` the sum of squares, ``C`` features and ``C'`` of them left, ``rsqrt(s/C + ε) = √(C/C') · rsqrt(s/C' + ε·C/C')``: a smaller
model gives the masked one's answers once the weight is multiplied with the root and ε with ``C/C'``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from secateurs.graph.ops import Op, Trace
from secateurs.nested import Value


@dataclass(frozen=True)
class RmsNorm:
    """One normalisation: in which module, by which parameter it scales (plus one, where ``offset`` is 1), its ε, over which tensor."""

    module: str
    parameter: str
    offset: float
    eps: float
    source: Value


def rms_norms(trace: Trace) -> dict[int, RmsNorm]:
    """Index of the operation that takes the mean (or does it all) → the normalisation that it belongs to."""
    if not any(op.name in ("mean", "_fused_rms_norm") for op in trace.ops):
        return {}
    names = {value: name for name, value in trace.parameters.items()}
    found = {}
    for place, op in enumerate(trace.ops):
        if op.name == "_fused_rms_norm" and op.args[2] in names:
            found[place] = RmsNorm(op.module, names[op.args[2]], 0.0, op.argument("eps") or 0.0, op.args[0])
        elif op.name == "mean" and (norm := _written_out(trace, op, names)) is not None:
            found[place] = norm
    return found


def _written_out(trace: Trace, mean: Op, names: dict[Value, str]) -> RmsNorm | None:
    """``weight * x * rsqrt(x.pow(2).mean(-1) + eps)``, however it is written."""
    squares = trace.makers.get(mean.args[0])
    last = (len(mean.args[0].shape) - 1, -1)
    if squares is None or not _squares(squares) or mean.argument("dim") not in ([last[0]], [-1], (last[0],), (-1,)):
        return None
    for added in _through(trace, mean.outputs[0]):
        root = (
            next((op for op in trace.readers.get(added.outputs[0], []) if op.name in ("rsqrt", "sqrt")), None)
            if added.name == "add"
            else None
        )
        eps = added.args[1] if len(added.args) > 1 else None
        if root is None or not isinstance(eps, float) or eps not in trace.floats.get(mean.module, ()):
            continue  # a number in the source, which no attribute can change
        for scaled in trace.readers.get(root.outputs[0], []):
            for product in _through(trace, scaled.outputs[0]):
                weight = _weight(trace, product, names) if product.name == "mul" else None
                if weight is not None and scaled.name in ("mul", "div"):
                    return RmsNorm(mean.module, weight[0], weight[1], eps, squares.args[0])
    return None


def _squares(op: Op) -> bool:
    return (op.name == "pow" and op.args[1] == 2) or (op.name in ("mul", "square") and all(arg is op.args[0] for arg in op.args))


def _through(trace: Trace, value: Value) -> Iterator[Op]:
    """Who reads a value, conversions of its dtype left out."""
    for op in trace.readers.get(value, []):
        if op.name == "_to_copy":
            yield from _through(trace, op.outputs[0])
        else:
            yield op


def _weight(trace: Trace, product: Op, names: dict[Value, str]) -> tuple[str, float] | None:
    """The parameter that one operand of a product is, and what was added to it."""
    for operand in product.inputs:
        offset = 0.0
        while operand not in names and (maker := trace.makers.get(operand)) is not None and maker.name in ("_to_copy", "add"):
            if maker.name == "add":
                numbers = [arg for arg in maker.args if not isinstance(arg, Value)]
                values = [arg for arg in maker.args if isinstance(arg, Value)]
                if len(values) != 1 or len(numbers) != 1 or offset:
                    break
                operand, offset = values[0], float(numbers[0])
            else:
                operand = maker.args[0]
        if operand in names and len(operand.shape) == 1:
            return names[operand], offset
    return None
