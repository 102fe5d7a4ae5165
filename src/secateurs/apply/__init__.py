"""What becomes of a decision: masks that hold, dead neurons, files."""

from secateurs.apply.dead import Dead, find_dead, zero_dead_
from secateurs.apply.files import Saved, load, load_masks, read_saved, save
from secateurs.apply.mask import Masks

__all__ = ["Dead", "Masks", "Saved", "find_dead", "load", "load_masks", "read_saved", "save", "zero_dead_"]
