"""Small real tasks for demos, tests and benchmarks: data in memory, split once, with loss and metric.

`digits` comes with scikit-learn; `mnist` and `cifar10` read files from the folder that the environment variable
``SECATEURS_DATA`` names; `text` any text file, for language models. Nothing is downloaded.
"""

from __future__ import annotations

from secateurs.tasks.batches import Batches
from secateurs.tasks.cifar10 import cifar10
from secateurs.tasks.digits import digits
from secateurs.tasks.language import next_token_loss, text
from secateurs.tasks.metrics import accuracy
from secateurs.tasks.mnist import mnist

__all__ = ["Batches", "accuracy", "cifar10", "digits", "mnist", "next_token_loss", "text"]
