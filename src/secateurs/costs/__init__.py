"""Numbers with units: what a model costs as it is, and what a plan would leave of that."""

from secateurs.costs.counts import file_bytes, macs, nonzero_macs, nonzero_params, params, tensor_bytes
from secateurs.costs.elements import checked, elements
from secateurs.costs.formats import CSC, CSR, Bitmap, Cheapest, Dense, Format, Grouped, Relative, cheapest, fillers
from secateurs.costs.sequences import active_params, kv_cache_bytes
from secateurs.costs.storage import stored_bytes
from secateurs.costs.sums import Least, Price, Sum, Tally, layerwise
from secateurs.costs.trace import MacsTrace, trace_macs
from secateurs.costs.workload import Layer, Work, Workload, workload

__all__ = [
    "CSC",
    "CSR",
    "Bitmap",
    "Cheapest",
    "Dense",
    "Format",
    "Grouped",
    "Layer",
    "Least",
    "MacsTrace",
    "Price",
    "Relative",
    "Sum",
    "Tally",
    "Work",
    "Workload",
    "active_params",
    "cheapest",
    "checked",
    "elements",
    "file_bytes",
    "fillers",
    "kv_cache_bytes",
    "layerwise",
    "macs",
    "nonzero_macs",
    "nonzero_params",
    "params",
    "stored_bytes",
    "tensor_bytes",
    "trace_macs",
    "workload",
]
