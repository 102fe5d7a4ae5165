"""Numbers with units: what a model costs as it is, and what a plan would leave of that."""

from secateurs.costs.counts import bytes_, file_bytes, macs, nonzero_macs, nonzero_params, params
from secateurs.costs.trace import MacsTrace, trace_macs

__all__ = ["MacsTrace", "bytes_", "file_bytes", "macs", "nonzero_macs", "nonzero_params", "params", "trace_macs"]
