"""What becomes of a decision: masks that hold, dead neurons, smaller tensors, files."""

from secateurs.apply.dead import Dead, find_dead, zero_dead_
from secateurs.apply.files import Saved, load, load_masks, read_saved, save
from secateurs.apply.mask import Masks
from secateurs.apply.shrink import Shrunk, shrink_
from secateurs.apply.size import bytes_

__all__ = [
    "Dead",
    "Masks",
    "Saved",
    "Shrunk",
    "bytes_",
    "find_dead",
    "load",
    "load_masks",
    "read_saved",
    "save",
    "shrink_",
    "zero_dead_",
]
