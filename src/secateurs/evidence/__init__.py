"""Evidence: what a criterion needs to know of the data that pass through the layers."""

from secateurs.evidence.norms import input_norm
from secateurs.evidence.observe import observe

__all__ = ["input_norm", "observe"]
