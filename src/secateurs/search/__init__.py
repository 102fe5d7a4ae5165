"""Plans that are searched for: by trying them."""

from secateurs.search.evolve import Evolution, evolve

__all__ = ["Evolution", "evolve"]
