"""Classic networks, written from their papers: for demos, tests and benchmarks.

Each factory returns a plain `torch.nn.Module` with fresh weights; nothing is downloaded. Layers are named as in the tables of
the pruning papers (``fc1``, ``conv3_2``, ``fire4.expand3x3``). To look at a large one without allocating it, build it under
``with torch.device("meta"):``.
"""

from __future__ import annotations

from secateurs.models.alexnet import alexnet
from secateurs.models.digits import digits_cnn
from secateurs.models.lenet import lenet_5, lenet_300_100
from secateurs.models.resnet import resnet_20, resnet_50, resnet_56
from secateurs.models.squeezenet import squeezenet_1_0
from secateurs.models.vgg import vgg_16

__all__ = [
    "alexnet",
    "digits_cnn",
    "lenet_5",
    "lenet_300_100",
    "resnet_20",
    "resnet_50",
    "resnet_56",
    "squeezenet_1_0",
    "vgg_16",
]
