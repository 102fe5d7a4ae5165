"""What is coupled: one trace of the model, one table of rules, one unifier of axes."""

from secateurs.graph.axes import Axis, Choice, Dim, kept, normal, occurrences, unify
from secateurs.graph.calls import ModuleCall
from secateurs.graph.infer import infer
from secateurs.graph.known import Knowing, Known, interpret
from secateurs.graph.lines import is_users, line_of
from secateurs.graph.ops import Op, Value
from secateurs.graph.rules import RULES
from secateurs.graph.sizes import TABLE, Measured, Number, Pieces, SizeCall, Source, asks_size, is_told, told
from secateurs.graph.structure import Monomial, Place, Structure, analyse, extent
from secateurs.graph.trace import Trace, plain, ready, record, refuse_opaque, untouched
from secateurs.graph.typed import Typing
from secateurs.graph.unchanged import Snapshot

__all__ = [
    "RULES",
    "TABLE",
    "Axis",
    "Choice",
    "Dim",
    "Knowing",
    "Known",
    "Measured",
    "ModuleCall",
    "Monomial",
    "Number",
    "Op",
    "Pieces",
    "Place",
    "SizeCall",
    "Snapshot",
    "Source",
    "Structure",
    "Trace",
    "Typing",
    "Value",
    "analyse",
    "asks_size",
    "extent",
    "infer",
    "interpret",
    "is_told",
    "is_users",
    "kept",
    "line_of",
    "normal",
    "occurrences",
    "plain",
    "ready",
    "record",
    "refuse_opaque",
    "told",
    "unify",
    "untouched",
]
