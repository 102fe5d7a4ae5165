"""The two networks for handwritten digits that most pruning papers begin with."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn


def lenet_300_100(classes: int = 10) -> nn.Sequential:
    """Two hidden layers of 300 and 100 units on the pixels of MNIST.

    LeCun et al. 1998, "Gradient-based learning applied to document recognition", section III.C.4; with ReLU, as in Han et al.
    2015, arXiv:1506.02626. Input ``(n, 1, 28, 28)`` or ``(n, 784)``, output ``(n, classes)``; 266,610 parameters with 10
    classes.

    >>> model = lenet_300_100()
    >>> sum(p.numel() for p in model.parameters())
    266610
    """
    return nn.Sequential(
        OrderedDict[str, nn.Module](
            flatten=nn.Flatten(),
            fc1=nn.Linear(28 * 28, 300),
            relu1=nn.ReLU(),
            fc2=nn.Linear(300, 100),
            relu2=nn.ReLU(),
            fc3=nn.Linear(100, classes),
        )
    )


def lenet_5(classes: int = 10, in_channels: int = 1) -> nn.Sequential:
    """Two convolutions and two linear layers: LeNet-5 in the variant of Caffe, which is the one that pruning papers report on.

    LeCun et al. 1998, "Gradient-based learning applied to document recognition", section II.B; with max pooling, and ReLU
    after ``fc1`` only, as in Caffe's example. Input ``(n, in_channels, 28, 28)``, output ``(n, classes)``; 431,080 parameters
    with 10 classes and 1 channel.

    >>> model = lenet_5()
    >>> sum(p.numel() for p in model.parameters())
    431080
    """
    return nn.Sequential(
        OrderedDict[str, nn.Module](
            conv1=nn.Conv2d(in_channels, 20, 5),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(20, 50, 5),
            pool2=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            fc1=nn.Linear(50 * 4 * 4, 500),
            relu1=nn.ReLU(),
            fc2=nn.Linear(500, classes),
        )
    )
