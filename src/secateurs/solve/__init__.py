"""Which units stay, and what becomes of them."""

from secateurs.solve.reconstruct import LeastSquares
from secateurs.solve.regression import Lasso, ThiNet
from secateurs.solve.scoring import evidence_of, joined, scores_of
from secateurs.solve.topk import TopK, highest

__all__ = ["Lasso", "LeastSquares", "ThiNet", "TopK", "evidence_of", "highest", "joined", "scores_of"]
