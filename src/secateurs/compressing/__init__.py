"""Weight sharing: weights of few values, trained as such, which `secateurs.coding` writes in few bytes."""

from secateurs.compressing.quantisers import Quantiser, as_it_is, k_means, powers_of_two, ternary, uniform

__all__ = ["Quantiser", "as_it_is", "k_means", "powers_of_two", "ternary", "uniform"]
