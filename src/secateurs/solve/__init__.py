"""Which units stay, and what becomes of them."""

from secateurs.solve.topk import TopK, highest

__all__ = ["TopK", "highest"]
