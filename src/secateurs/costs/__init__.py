"""Numbers with units: what a model costs as it is, and what a plan would leave of that."""

from secateurs.costs.activations import Moment, activation_memory, activation_moments
from secateurs.costs.busy import activation_density
from secateurs.costs.counts import file_bytes, macs, nonzero_macs, nonzero_params, params, tensor_bytes
from secateurs.costs.dataflow import Accesses, Dataflow, Levels, NoLocalReuse, RowStationary, Shape, shape_of
from secateurs.costs.elements import checked, elements
from secateurs.costs.formats import CSC, CSR, Bitmap, Cheapest, Dense, EntropyCoded, Format, Grouped, Relative, cheapest, fillers
from secateurs.costs.hierarchy import EYERISS, Accelerator, Hierarchy, Technology, energy, energy_on
from secateurs.costs.references import memory_references
from secateurs.costs.sequences import active_params, kv_cache_bytes
from secateurs.costs.storage import stored_bytes
from secateurs.costs.sums import Least, Price, Sum, Tally, effective_macs, layerwise
from secateurs.costs.trace import MacsTrace, trace_macs
from secateurs.costs.workload import Layer, Work, Workload, workload

__all__ = [
    "CSC",
    "CSR",
    "EYERISS",
    "Accelerator",
    "Accesses",
    "Bitmap",
    "Cheapest",
    "Dataflow",
    "Dense",
    "EntropyCoded",
    "Format",
    "Grouped",
    "Hierarchy",
    "Layer",
    "Least",
    "Levels",
    "MacsTrace",
    "Moment",
    "NoLocalReuse",
    "Price",
    "Relative",
    "RowStationary",
    "Shape",
    "Sum",
    "Tally",
    "Technology",
    "Work",
    "Workload",
    "activation_density",
    "activation_memory",
    "activation_moments",
    "active_params",
    "cheapest",
    "checked",
    "effective_macs",
    "elements",
    "energy",
    "energy_on",
    "file_bytes",
    "fillers",
    "kv_cache_bytes",
    "layerwise",
    "macs",
    "memory_references",
    "nonzero_macs",
    "nonzero_params",
    "params",
    "shape_of",
    "stored_bytes",
    "tensor_bytes",
    "trace_macs",
    "workload",
]
