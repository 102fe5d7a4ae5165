"""Which units stay, and what becomes of them."""

from secateurs.solve.alps import ALPS
from secateurs.solve.chosen import Chosen
from secateurs.solve.elimination import ZipLM
from secateurs.solve.gates import GateFisher
from secateurs.solve.merging import Merge
from secateurs.solve.reconstruct import LeastSquares, scales
from secateurs.solve.regression import Lasso, ThiNet
from secateurs.solve.restored import Restored, missed_by
from secateurs.solve.scoring import evidence_of, joined, scores_of
from secateurs.solve.sparsegpt import SparseGPT
from secateurs.solve.surgeon import Surgeon, in_shape, inverse_of, write_
from secateurs.solve.swaps import Swaps
from secateurs.solve.topk import TopK, highest

__all__ = [
    "ALPS",
    "Chosen",
    "GateFisher",
    "Lasso",
    "LeastSquares",
    "Merge",
    "Restored",
    "SparseGPT",
    "Surgeon",
    "Swaps",
    "ThiNet",
    "TopK",
    "ZipLM",
    "evidence_of",
    "highest",
    "in_shape",
    "inverse_of",
    "joined",
    "missed_by",
    "scales",
    "scores_of",
    "write_",
]
