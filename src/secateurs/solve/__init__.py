"""Which units stay, and what becomes of them."""

from secateurs.solve.topk import TopK, evidence_of, highest

__all__ = ["TopK", "evidence_of", "highest"]
