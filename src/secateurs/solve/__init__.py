"""Which units stay, and what becomes of them."""

from secateurs.solve.scoring import evidence_of, joined, scores_of
from secateurs.solve.topk import TopK, highest

__all__ = ["TopK", "evidence_of", "highest", "joined", "scores_of"]
