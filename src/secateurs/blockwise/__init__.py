"""A model block by block: the inputs of one block after the other, each a small model with batches of its own."""

from secateurs.blockwise.arguments import BlockCall, OneBlock
from secateurs.blockwise.passage import Passage
from secateurs.blockwise.stack import Stack, Stacks, stack_of
from secateurs.blockwise.walk import in_blocks, require_in_blocks

__all__ = ["BlockCall", "OneBlock", "Passage", "Stack", "Stacks", "in_blocks", "require_in_blocks", "stack_of"]
