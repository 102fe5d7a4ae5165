"""What is coupled: one trace of the model, one table of rules, one unifier of axes."""

from secateurs.graph.attentions import attention_weights, keys_and_values
from secateurs.graph.axes import Axis, Choice, Dim, View, kept, normal, occurrences, unify
from secateurs.graph.blocks import Blocks, blocks_in, blocks_of
from secateurs.graph.branches import Branch, Branches, Operand, additions, branches_of, serving_alone
from secateurs.graph.calls import ModuleCall, ModulePass, Seen, seen
from secateurs.graph.halves import Half, halves_of
from secateurs.graph.infer import infer
from secateurs.graph.known import Knowing, Known, interpret
from secateurs.graph.mixtures import Routed, mixtures_of
from secateurs.graph.names import axis_names
from secateurs.graph.ops import SAME_NUMBERS, Op, Trace, after, summands
from secateurs.graph.ready import ready
from secateurs.graph.rules import RULES
from secateurs.graph.size_calls import Number, Pieces, SizeCall
from secateurs.graph.size_rules import TABLE
from secateurs.graph.snapshot import Snapshot
from secateurs.graph.structure import Monomial, Place, Structure, analyse, extent
from secateurs.graph.tagged_sizes import Measured, Source, asks_size, is_told, told
from secateurs.graph.trace import trace_of
from secateurs.graph.typing_context import Typing
from secateurs.nested import Value

__all__ = [
    "RULES",
    "SAME_NUMBERS",
    "TABLE",
    "Axis",
    "Blocks",
    "Branch",
    "Branches",
    "Choice",
    "Dim",
    "Half",
    "Knowing",
    "Known",
    "Measured",
    "ModuleCall",
    "ModulePass",
    "Monomial",
    "Number",
    "Op",
    "Operand",
    "Pieces",
    "Place",
    "Routed",
    "Seen",
    "SizeCall",
    "Snapshot",
    "Source",
    "Structure",
    "Trace",
    "Typing",
    "Value",
    "View",
    "additions",
    "after",
    "analyse",
    "asks_size",
    "attention_weights",
    "axis_names",
    "blocks_in",
    "blocks_of",
    "branches_of",
    "extent",
    "halves_of",
    "infer",
    "interpret",
    "is_told",
    "kept",
    "keys_and_values",
    "mixtures_of",
    "normal",
    "occurrences",
    "ready",
    "seen",
    "serving_alone",
    "summands",
    "told",
    "trace_of",
    "unify",
]
