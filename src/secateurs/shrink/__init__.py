"""What goes for good: smaller tensors in place of masked ones, with the same answers."""

from secateurs.shrink.shrink import Shrunk, shrink_

__all__ = ["Shrunk", "shrink_"]
