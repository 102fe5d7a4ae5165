"""Numbers with units: what a model costs as it is, and what a plan would leave of that."""

from secateurs.costs.counts import checked, file_bytes, macs, nonzero_macs, nonzero_params, params, tensor_bytes
from secateurs.costs.sequences import active_params, kv_cache_bytes
from secateurs.costs.trace import MacsTrace, trace_macs

__all__ = [
    "MacsTrace",
    "active_params",
    "checked",
    "file_bytes",
    "kv_cache_bytes",
    "macs",
    "nonzero_macs",
    "nonzero_params",
    "params",
    "tensor_bytes",
    "trace_macs",
]
