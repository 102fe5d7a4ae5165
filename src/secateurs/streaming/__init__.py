"""Models pruned from folder to folder, with one block in memory."""

from secateurs.streaming.folder import PrunedFolder, prune_folder
from secateurs.streaming.shards import Shards

__all__ = ["PrunedFolder", "Shards", "prune_folder"]
