"""Classic networks, written from their papers: for demos, tests and benchmarks.

Each factory returns a plain `torch.nn.Module` with fresh weights; nothing is downloaded. Layers are named as in the tables of
the pruning papers (``fc1``, ``conv3_2``, ``fire4.expand3x3``). To look at a large one without allocating it, build it under
``with torch.device("meta"):``.
"""

from __future__ import annotations

from secateurs.models.alexnet import alexnet
from secateurs.models.convnext import convnext_t
from secateurs.models.densenet import densenet_121
from secateurs.models.digits import digits_cnn
from secateurs.models.ds_cnn import ds_cnn
from secateurs.models.efficientnet import efficientnet_b0
from secateurs.models.googlenet import googlenet
from secateurs.models.lenet import lenet_5, lenet_300_100
from secateurs.models.lstm import lstm_language_model
from secateurs.models.mobilenet import mobilenet_v2, mobilenet_v3_large, mobilenet_v3_small
from secateurs.models.resnet import resnet_18, resnet_20, resnet_34, resnet_50, resnet_56
from secateurs.models.resnext import resnext_50
from secateurs.models.shufflenet import shufflenet_v2
from secateurs.models.squeezenet import squeezenet_1_0
from secateurs.models.swin import swin_t
from secateurs.models.unet import unet
from secateurs.models.vgg import vgg_16, vgg_16_bn
from secateurs.models.vit import vit

__all__ = [
    "alexnet",
    "convnext_t",
    "densenet_121",
    "digits_cnn",
    "ds_cnn",
    "efficientnet_b0",
    "googlenet",
    "lenet_5",
    "lenet_300_100",
    "lstm_language_model",
    "mobilenet_v2",
    "mobilenet_v3_large",
    "mobilenet_v3_small",
    "resnet_18",
    "resnet_20",
    "resnet_34",
    "resnet_50",
    "resnet_56",
    "resnext_50",
    "shufflenet_v2",
    "squeezenet_1_0",
    "swin_t",
    "unet",
    "vgg_16",
    "vgg_16_bn",
    "vit",
]
