"""What is kept on disk: models, masks and plans, without pickle."""

from secateurs.files.file_size import bytes_
from secateurs.files.model_file import Saved, load, load_masks, read_saved, save

__all__ = ["Saved", "bytes_", "load", "load_masks", "read_saved", "save"]
