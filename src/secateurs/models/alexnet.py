"""AlexNet in one column."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn


def alexnet(classes: int = 1000, in_channels: int = 3) -> nn.Sequential:
    """Five convolutions and three linear layers that hold 96 % of the parameters.

    Krizhevsky et al. 2012, "ImageNet classification with deep convolutional neural networks"; in the one-column form of
    Krizhevsky 2014, arXiv:1404.5997, that fits on one GPU, without local response normalisation. Input
    ``(n, in_channels, 224, 224)``, output ``(n, classes)``; 61,100,840 parameters with 1000 classes and 3 channels.

    >>> import torch
    >>> with torch.device("meta"):
    ...     model = alexnet()
    >>> sum(p.numel() for p in model.parameters())
    61100840
    """
    return nn.Sequential(
        OrderedDict[str, nn.Module](
            conv1=nn.Conv2d(in_channels, 64, 11, stride=4, padding=2),
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(3, 2),
            conv2=nn.Conv2d(64, 192, 5, padding=2),
            relu2=nn.ReLU(),
            pool2=nn.MaxPool2d(3, 2),
            conv3=nn.Conv2d(192, 384, 3, padding=1),
            relu3=nn.ReLU(),
            conv4=nn.Conv2d(384, 256, 3, padding=1),
            relu4=nn.ReLU(),
            conv5=nn.Conv2d(256, 256, 3, padding=1),
            relu5=nn.ReLU(),
            pool5=nn.MaxPool2d(3, 2),
            flatten=nn.Flatten(),
            drop5=nn.Dropout(0.5),
            fc6=nn.Linear(256 * 6 * 6, 4096),
            relu6=nn.ReLU(),
            drop6=nn.Dropout(0.5),
            fc7=nn.Linear(4096, 4096),
            relu7=nn.ReLU(),
            fc8=nn.Linear(4096, classes),
        )
    )
