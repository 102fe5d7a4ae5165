"""Convolutional networks as people write them by hand."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.subject import Subject, floats, positional, subject


class LeNetView(nn.Module):
    """Flattens with the numbers written out."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 5 * 5, 40)
        self.fc2 = nn.Linear(40, 28)
        self.fc3 = nn.Linear(28, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = x.view(-1, 16 * 5 * 5)
        x = F.relu(self.fc1(x))
        x = F.relu(self.fc2(x))
        return F.log_softmax(self.fc3(x), dim=1)


class ViewBatch(nn.Module):
    """Flattens with `x.view(x.size(0), -1)`, after batch normalisation with and without affine parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 12, 3, padding=1, bias=False),
            nn.BatchNorm2d(12),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(12, 20, 3, padding=1),
            nn.BatchNorm2d(20, affine=False),
            nn.LeakyReLU(0.1, inplace=True),
            nn.AvgPool2d(2),
        )
        self.classifier = nn.Linear(20 * 4 * 4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        return self.classifier(x.view(x.size(0), -1))


def alexnet_like() -> nn.Module:
    """Features, adaptive pooling, flatten, dropout and three linear layers."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(16, 24, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(24, 20, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(3),
        nn.Flatten(),
        nn.Dropout(),
        nn.Linear(20 * 9, 64),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(64, 36),
        nn.ReLU(),
        nn.Linear(36, 10),
    )


class OptionA(nn.Module):
    """Two residual stages; the shortcut drops every second pixel and pads channels with zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.conv1 = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(16)
        self.conv3 = nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(32)
        self.conv4 = nn.Conv2d(32, 32, 3, padding=1, bias=False)
        self.bn4 = nn.BatchNorm2d(32)
        self.fc = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 8, 8))
        x = F.relu(shortcut + self.bn4(self.conv4(F.relu(self.bn3(self.conv3(x))))))
        return self.fc(x.mean((2, 3)))


class Bottlenecks(nn.Module):
    """1x1, 3x3, 1x1 around which a projection leads, then one with the identity as its shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.block1 = self.block(3, 10, 36)
        self.project = nn.Sequential(nn.Conv2d(3, 36, 1, bias=False), nn.BatchNorm2d(36))
        self.block2 = self.block(36, 14, 36)
        self.fc = nn.Linear(36, 10)

    @staticmethod
    def block(inputs: int, width: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(inputs, width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.block1(x) + self.project(x))
        out = self.block2(x)
        out += x
        x = F.adaptive_avg_pool2d(F.relu(out), (1, 1))
        return self.fc(torch.flatten(x, 1))


class Preactivation(nn.Module):
    """Normalisation and activation come before each convolution, so that the residual stream is bare."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 20, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(size) for size in (20, 12, 20, 14))
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in ((20, 12), (12, 20), (20, 14), (14, 20)))
        self.last = nn.BatchNorm2d(20)
        self.fc = nn.Linear(20, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for i in (0, 2):
            y = self.convs[i](F.relu(self.norms[i](x)))
            x = x + self.convs[i + 1](F.relu(self.norms[i + 1](y)))
        return self.fc(F.relu(self.last(x)).mean(dim=[2, 3]))


class DepthwiseSeparable(nn.Module):
    """MobileNet's pairs, one of them with two outputs for each input channel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.depthwise1 = nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.pointwise1 = nn.Conv2d(16, 24, 1)
        self.depthwise2 = nn.Conv2d(24, 48, 3, padding=1, groups=24)
        self.pointwise2 = nn.Conv2d(48, 28, 1)
        self.fc = nn.Linear(28, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.stem(x))
        x = F.relu6(self.pointwise1(F.relu6(self.bn1(self.depthwise1(x)))))
        x = F.relu6(self.pointwise2(F.relu6(self.depthwise2(x))))
        return self.fc(F.avg_pool2d(x, x.shape[2:]).squeeze(-1).squeeze(-1))


class SqueezeExcite(nn.Module):
    """Scales channels by what a small network makes of their means (arXiv:1709.01507)."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        scale = F.adaptive_avg_pool2d(x, 1)
        return x * torch.sigmoid(self.fc2(F.silu(self.fc1(scale))))


class InvertedResidual(nn.Module):
    """Expand, depthwise, squeeze and excite, project; twice, the second time with a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.block1 = self.block(3, 18, 12, 5)
        self.block2 = self.block(12, 40, 12, 7)
        self.head = nn.Linear(12, 10)

    @staticmethod
    def block(inputs: int, hidden: int, outputs: int, squeezed: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(inputs, hidden, 1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.Hardswish(),
            nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            nn.Hardswish(),
            SqueezeExcite(hidden, squeezed),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.block1(x)
        x = x + self.block2(x)
        return self.head(x.mean([-2, -1]))


class LinearSqueezeExcite(nn.Module):
    """Squeeze and excite with linear layers and `view(b, c, 1, 1)`, the way most repositories have it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 24, 3, padding=1)
        self.fc = nn.Sequential(nn.Linear(24, 6, bias=False), nn.ReLU(), nn.Linear(6, 24, bias=False), nn.Sigmoid())
        self.last = nn.Conv2d(24, 10, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x))
        b, c, _, _ = x.size()
        y = x.mean((2, 3)).view(b, c)
        y = self.fc(y).view(b, c, 1, 1)
        return self.last(x * y.expand_as(x)).amax((2, 3))


class Grouped(nn.Module):
    """ResNeXt's bottleneck: a 3x3 convolution in 4 groups, then one in 2 groups that changes the width."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 24, 1)
        self.conv2 = nn.Conv2d(24, 24, 3, padding=1, groups=4)
        self.bn2 = nn.BatchNorm2d(24)
        self.conv3 = nn.Conv2d(24, 32, 1, groups=2)
        self.conv4 = nn.Conv2d(32, 18, 3, padding=1)
        self.fc = nn.Linear(18, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1(x))
        x = F.relu(x + self.bn2(self.conv2(x)))
        x = F.relu(self.conv4(F.relu(self.conv3(x))))
        return self.fc(x.mean((2, 3)))


class ChannelShuffle(nn.Module):
    """ShuffleNet: half of the channels pass, the rest goes through a branch, then halves are interleaved."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 3, padding=1)
        self.branches = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(12, 12, 1),
                nn.ReLU(),
                nn.Conv2d(12, 12, 3, padding=1, groups=12),
                nn.BatchNorm2d(12),
                nn.Conv2d(12, 12, 1),
                nn.ReLU(),
            )
            for _ in range(2)
        )
        self.last = nn.Conv2d(24, 30, 1)
        self.fc = nn.Linear(30, 10)

    @staticmethod
    def shuffle(x: Tensor, groups: int) -> Tensor:
        n, c, h, w = x.shape
        return x.view(n, groups, c // groups, h, w).transpose(1, 2).contiguous().view(n, c, h, w)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for branch in self.branches:
            left, right = x.chunk(2, dim=1)
            x = self.shuffle(torch.cat((left, branch(right)), dim=1), 2)
        return self.fc(F.relu(self.last(x)).mean((2, 3)))


class GroupedShuffle(nn.Module):
    """ShuffleNet v1: grouped 1x1 convolutions with a shuffle between them, and `nn.ChannelShuffle` after."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 24, 3, padding=1)
        self.conv2 = nn.Conv2d(24, 36, 1, groups=3)
        self.depthwise = nn.Conv2d(36, 36, 3, padding=1, groups=36)
        self.conv3 = nn.Conv2d(36, 24, 1, groups=3)
        self.shuffle = nn.ChannelShuffle(2)
        self.conv4 = nn.Conv2d(24, 10, 1, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1(x))
        y = F.relu(self.conv2(x))
        b, c, h, w = y.shape
        y = y.reshape(b, 3, c // 3, h, w).permute(0, 2, 1, 3, 4).reshape(b, c, h, w)
        x = F.relu(x + self.conv3(self.depthwise(y)))
        return self.conv4(self.shuffle(x)).mean((2, 3))


class Dense(nn.Module):
    """DenseNet: each layer sees everything before it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 14, 3, padding=1)
        sizes = [14 + 6 * i for i in range(3)]
        self.norms = nn.ModuleList(nn.BatchNorm2d(size) for size in sizes)
        self.convs = nn.ModuleList(nn.Conv2d(size, 6, 3, padding=1, bias=False) for size in sizes)
        self.norm = nn.BatchNorm2d(32)
        self.transition = nn.Conv2d(32, 16, 1)
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for norm, conv in zip(self.norms, self.convs, strict=True):
            features.append(conv(F.relu(norm(torch.cat(features, 1)))))
        x = self.transition(F.relu(self.norm(torch.cat(features, 1))))
        return self.fc(F.avg_pool2d(x, 2).flatten(2).mean(2))


class Inception(nn.Module):
    """Four branches of different widths, one of which begins with pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 18, 3, padding=1)
        self.branch1 = nn.Conv2d(18, 8, 1)
        self.branch2 = nn.Sequential(nn.Conv2d(18, 10, 1), nn.ReLU(), nn.Conv2d(10, 14, 3, padding=1))
        self.branch3 = nn.Sequential(nn.Conv2d(18, 4, 1), nn.ReLU(), nn.Conv2d(4, 6, 5, padding=2))
        self.branch4 = nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), nn.Conv2d(18, 5, 1))
        self.bn = nn.BatchNorm2d(33)
        self.fc = nn.Linear(33 * 4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], dim=1)
        x = F.adaptive_max_pool2d(F.relu(self.bn(x)), 2)
        return self.fc(x.flatten(start_dim=1))


class UNet(nn.Module):
    """Down, up by transposed convolutions, and concatenation with what was there before."""

    def __init__(self, groups: int = 1) -> None:
        super().__init__()
        self.down1 = nn.Conv2d(3, 10, 3, padding=1)
        self.down2 = nn.Conv2d(10, 16, 3, padding=1)
        self.bottom = nn.Conv2d(16, 24, 3, padding=1)
        self.up2 = nn.ConvTranspose2d(24, 16, 2, stride=2, groups=groups)
        self.conv2 = nn.Sequential(nn.Conv2d(32, 14, 3, padding=1), nn.BatchNorm2d(14), nn.ReLU(inplace=True))
        self.up1 = nn.ConvTranspose2d(14, 8, 2, stride=2)
        self.conv1 = nn.Conv2d(18, 12, 3, padding=1)
        self.out = nn.Conv2d(12, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        down1 = F.relu(self.down1(x))
        down2 = F.relu(self.down2(F.max_pool2d(down1, 2)))
        x = F.relu(self.bottom(F.max_pool2d(down2, 2)))
        x = self.conv2(torch.cat([down2, self.up2(x)], dim=1))
        x = F.relu(self.conv1(torch.cat([self.up1(x), down1], dim=1)))
        return self.out(x)


class SuperResolution(nn.Module):
    """ESPCN: channels become pixels (arXiv:1609.05158); once inside the network and once at its end."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 18, 5, padding=2)
        self.conv2 = nn.Conv2d(18, 40, 3, padding=1)
        self.conv3 = nn.Conv2d(10, 12, 3, padding=1)
        self.conv4 = nn.Conv2d(12, 9, 3, padding=1)
        self.shuffle = nn.PixelShuffle(3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.conv2(torch.tanh(self.conv1(x))))
        x = torch.tanh(self.conv3(F.pixel_shuffle(x, 2)))
        return self.shuffle(self.conv4(x))


class SpaceToDepth(nn.Module):
    """Pixels become channels: by `pixel_unshuffle`, and by four strided slices (YOLO's focus)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(12, 14, 3, padding=1)
        self.conv2 = nn.Conv2d(56, 20, 1)
        self.fc = nn.Linear(20, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], 1)
        x = F.silu(self.conv1(x))
        x = F.silu(self.conv2(F.pixel_unshuffle(x, 2)))
        return self.fc(x.mean((2, 3)))


class Cbam(nn.Module):
    """Channel attention from two poolings through one shared network, then spatial attention (arXiv:1807.06521)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 20, 3, padding=1)
        self.mlp = nn.Sequential(nn.Flatten(), nn.Linear(20, 5), nn.ReLU(), nn.Linear(5, 20))
        self.spatial = nn.Conv2d(2, 1, 7, padding=3)
        self.last = nn.Conv2d(20, 14, 3)
        self.fc = nn.Linear(14, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x))
        scale = self.mlp(F.adaptive_avg_pool2d(x, 1)) + self.mlp(F.adaptive_max_pool2d(x, 1))
        x = x * torch.sigmoid(scale).unsqueeze(2).unsqueeze(3)
        pooled = torch.cat((torch.max(x, 1)[0].unsqueeze(1), torch.mean(x, 1).unsqueeze(1)), dim=1)
        x = x * torch.sigmoid(self.spatial(pooled))
        return self.fc(F.relu(self.last(x)).mean((2, 3)))


class Eca(nn.Module):
    """A 1-d convolution along the channels: neighbouring channels mean something (arXiv:1910.03151)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 20, 3, padding=1)
        self.eca = nn.Conv1d(1, 1, 3, padding=1, bias=False)
        self.last = nn.Conv2d(20, 16, 3)
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x))
        y = F.adaptive_avg_pool2d(x, 1)
        y = self.eca(y.squeeze(-1).transpose(-1, -2)).transpose(-1, -2).unsqueeze(-1)
        return self.fc(F.relu(self.last(x * torch.sigmoid(y))).mean((2, 3)))


class DynamicConvolution(nn.Module):
    """Kernels mixed for each image from four experts, in one grouped convolution over the batch (arXiv:1912.03458)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.route = nn.Linear(12, 4)
        self.weight = nn.Parameter(torch.randn(4, 18, 12, 3, 3) / 10)
        self.fc = nn.Linear(18, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        b, c, h, w = x.shape
        mix = F.softmax(self.route(x.mean((2, 3))), dim=1)
        weight = torch.mm(mix, self.weight.view(4, -1)).view(b * 18, c, 3, 3)
        x = F.conv2d(x.view(1, b * c, h, w), weight, padding=1, groups=b).view(b, 18, h, w)
        return self.fc(F.relu(x).mean((2, 3)))


class BilinearPooling(nn.Module):
    """Products of every two channels of two branches, with signed square root and normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 10, 3, padding=1)
        self.b = nn.Conv2d(3, 14, 3, padding=1)
        self.fc = nn.Linear(140, 10)

    def forward(self, x: Tensor) -> Tensor:
        a, b = F.relu(self.a(x)).flatten(2), F.relu(self.b(x)).flatten(2)
        x = torch.bmm(a, b.transpose(1, 2)) / a.shape[2]
        x = x.view(x.size(0), -1)
        return self.fc(F.normalize(torch.sign(x) * torch.sqrt(torch.abs(x) + 1e-5)))


class Pyramid(nn.Module):
    """A feature pyramid with heads at three scales: nested lists of outputs, nearest interpolation, lateral sums."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in ((3, 12), (12, 20), (20, 28)))
        self.lateral = nn.ModuleList(nn.Conv2d(size, 16, 1) for size in (12, 20, 28))
        self.smooth = nn.ModuleList(nn.Conv2d(16, 16, 3, padding=1) for _ in range(3))
        self.tower = nn.Sequential(nn.Conv2d(16, 18, 3, padding=1), nn.ReLU())
        self.classes = nn.Conv2d(18, 3 * 5, 1)
        self.boxes = nn.Conv2d(18, 3 * 4, 1)

    def forward(self, x: Tensor) -> list[list[Tensor]]:
        features = []
        for stage in self.stages:
            x = F.relu(stage(x))
            features.append(x)
        maps = [lateral(feature) for lateral, feature in zip(self.lateral, features, strict=True)]
        for i in (1, 0):
            maps[i] = maps[i] + F.interpolate(maps[i + 1], scale_factor=2, mode="nearest")
        outputs = []
        for smooth, feature in zip(self.smooth, maps, strict=True):
            shared = self.tower(smooth(feature))
            b, _, h, w = shared.shape
            boxes = self.boxes(shared).view(b, 3, 4, h, w).permute(0, 1, 3, 4, 2).reshape(b, -1, 4)
            outputs.append([self.classes(shared), boxes])
        return outputs


class SliceAssignment(nn.Module):
    """Writes two branches into zeros, adds in place to some channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 10, 3, padding=1)
        self.b = nn.Conv2d(3, 14, 3, padding=1)
        self.c = nn.Conv2d(3, 6, 3, padding=1)
        self.last = nn.Conv2d(24, 16, 3)
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        out = torch.zeros(x.shape[0], 24, *x.shape[2:], device=x.device, dtype=x.dtype)
        out[:, :10] = self.a(x)
        out[:, 10:] = self.b(x)
        out[:, 4:10] += self.c(x)
        out.relu_().mul_(0.5)
        return self.fc(F.relu_(self.last(out)).mean((2, 3)))


class Hourglass(nn.Module):
    """Down by strides, up by bilinear interpolation to the size of the skip, which is added."""

    def __init__(self) -> None:
        super().__init__()
        self.down1 = nn.Conv2d(3, 14, 3, stride=2, padding=1)
        self.down2 = nn.Conv2d(14, 22, 3, stride=2, padding=1)
        self.up = nn.Conv2d(22, 14, 3, padding=1)
        self.mid = nn.Conv2d(14, 18, 3, padding=1)
        self.out = nn.Conv2d(18, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        down1 = F.elu(self.down1(x))
        y = F.elu(self.up(F.elu(self.down2(down1))))
        y = F.interpolate(y, size=down1.shape[-2:], mode="bilinear", align_corners=False) + down1
        y = F.elu(self.mid(y))
        return self.out(F.interpolate(y, size=x.shape[-2:], mode="bicubic"))


class SpatialPyramid(nn.Module):
    """Poolings to 1x1, 2x2 and 4x4, flattened and concatenated (arXiv:1406.4729)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 14, 3, padding=1)
        self.conv2 = nn.Conv2d(14, 11, 3, padding=1)
        self.pools = nn.ModuleList(nn.AdaptiveMaxPool2d(size) for size in (1, 2, 4))
        self.fc = nn.Linear(11 * 21, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv2(F.relu(self.conv1(x))))
        return self.fc(torch.cat([pool(x).flatten(1) for pool in self.pools], dim=1))


class Atrous(nn.Module):
    """DeepLab's pooling: dilated convolutions and a global mean, blown up again, side by side (arXiv:1706.05587)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 18, 3, padding=1)
        self.rates = nn.ModuleList(nn.Conv2d(18, 8, 3, padding=rate, dilation=rate) for rate in (1, 2, 4))
        self.pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(18, 7, 1), nn.ReLU())
        self.project = nn.Conv2d(31, 13, 1)
        self.out = nn.Conv2d(13, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        parts = [F.relu(conv(x)) for conv in self.rates]
        parts.append(F.interpolate(self.pooled(x), size=x.shape[-2:], mode="bilinear"))
        return self.out(F.relu(self.project(torch.cat(parts, 1))))


class Prelu(nn.Module):
    """One slope for each channel, one for all, and one for each of a linear layer's units."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 14, 3)
        self.act1 = nn.PReLU(14)
        self.conv2 = nn.Conv2d(14, 18, 3)
        self.act2 = nn.PReLU()
        self.fc1 = nn.Linear(18, 22)
        self.act3 = nn.PReLU(22)
        self.fc2 = nn.Linear(22, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act2(self.conv2(self.act1(self.conv1(x))))
        return self.fc2(self.act3(self.fc1(x.mean((2, 3)))))


class Norms(nn.Module):
    """Group, instance and layer normalisation, the last over channels that were moved to the end and back."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 24, 3, padding=1)
        self.group = nn.GroupNorm(4, 24)
        self.conv2 = nn.Conv2d(24, 18, 3, padding=1)
        self.instance = nn.InstanceNorm2d(18, affine=True)
        self.conv3 = nn.Conv2d(18, 20, 3, padding=1)
        self.layer = nn.LayerNorm(20)
        self.conv4 = nn.Conv2d(20, 14, 3, padding=1)
        self.one = nn.GroupNorm(1, 14)
        self.fc = nn.Linear(14, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.group(self.conv1(x)))
        x = F.relu(self.instance(self.conv2(x)))
        x = self.layer(self.conv3(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        x = F.relu(self.one(self.conv4(F.gelu(x))))
        return self.fc(x.mean((2, 3)))


class ChannelsFirstNorm(nn.Module):
    """ConvNeXt's blocks: depthwise 7x7, a hand-written norm over channels, an inverted bottleneck, a layer scale."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 20, 4, stride=4)
        self.depthwise = nn.Conv2d(20, 20, 7, padding=3, groups=20)
        self.weight = nn.Parameter(torch.ones(20))
        self.bias = nn.Parameter(torch.zeros(20))
        self.fc1 = nn.Linear(20, 52)
        self.fc2 = nn.Linear(52, 20)
        self.gamma = nn.Parameter(1e-6 * torch.ones(20))
        self.head = nn.Linear(20, 10)

    def norm(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).pow(2).mean(1, keepdim=True)
        x = (x - mean) / torch.sqrt(variance + 1e-6)
        return self.weight[:, None, None] * x + self.bias[:, None, None]

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.norm(self.depthwise(x)).permute(0, 2, 3, 1)
        y = self.gamma * self.fc2(F.gelu(self.fc1(y)))
        x = x + y.permute(0, 3, 1, 2)
        return self.head(x.mean([-2, -1]))


class WeightStandardised(nn.Conv2d):
    """Each filter has mean 0 and variance 1 (arXiv:1903.10520)."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean(dim=(1, 2, 3), keepdim=True)
        weight = weight / (weight.std(dim=(1, 2, 3), keepdim=True) + 1e-5)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


def weight_standardised() -> nn.Module:
    """Weight standardisation with group normalisation."""
    return nn.Sequential(
        WeightStandardised(3, 16, 3, padding=1),
        nn.GroupNorm(4, 16),
        nn.ReLU(),
        WeightStandardised(16, 22, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(22, 10),
    )


def weight_normed() -> nn.Module:
    """Convolutions parametrised by `torch.nn.utils.parametrizations.weight_norm`."""
    norm = torch.nn.utils.parametrizations.weight_norm
    return nn.Sequential(
        norm(nn.Conv2d(3, 14, 3)), nn.ReLU(), norm(nn.Conv2d(14, 18, 3)), nn.ReLU(), nn.Flatten(), nn.Linear(18 * 16, 10)
    )


class NormalizerFree(nn.Module):
    """NFNet: scaled activations, residual branches with a gain, scaled weights (arXiv:2102.06171)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 20, 3, padding=1)
        self.conv1 = WeightStandardised(20, 14, 3, padding=1)
        self.conv2 = WeightStandardised(14, 20, 3, padding=1)
        self.gain = nn.Parameter(torch.zeros(()))
        self.fc = nn.Linear(20, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = F.gelu(x) * 1.7015 / 1.1
        y = self.conv2(F.gelu(self.conv1(y)) * 1.7015) * self.gain
        x = x + 0.2 * y
        return self.fc(x.mean((2, 3)))


class Maxout(nn.Module):
    """The largest of three pieces, for convolutions and for linear layers (arXiv:1302.4389)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3 * 14, 3)
        self.fc1 = nn.Linear(14, 3 * 18)
        self.fc2 = nn.Linear(18, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        b, c, h, w = x.shape
        x = x.view(b, c // 3, 3, h, w).max(dim=2).values
        x = self.fc1(x.mean((2, 3))).view(b, 18, 3).amax(-1)
        return self.fc2(x)


class MaxFeatureMap(nn.Module):
    """LightCNN: the elementwise larger of two halves of the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 28, 3)
        self.conv2 = nn.Conv2d(14, 36, 3)
        self.fc = nn.Linear(18, 10)

    def forward(self, x: Tensor) -> Tensor:
        for conv in (self.conv1, self.conv2):
            a, b = torch.split(conv(x), conv.out_channels // 2, dim=1)
            x = torch.max(a, b)
        return self.fc(x.mean((2, 3)))


class CrossStagePartial(nn.Module):
    """YOLO's C2f: split by chunk, each block's output is kept, all are concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 3, padding=1)
        self.cv1 = nn.Conv2d(24, 2 * 10, 1)
        self.blocks = nn.ModuleList(nn.Conv2d(10, 10, 3, padding=1) for _ in range(2))
        self.cv2 = nn.Conv2d(4 * 10, 18, 1)
        self.fc = nn.Linear(18, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = list(self.cv1(F.silu(self.stem(x))).chunk(2, 1))
        y.extend(y[-1] + F.silu(block(y[-1])) if i else F.silu(block(y[-1])) for i, block in enumerate(self.blocks))
        return self.fc(F.silu(self.cv2(torch.cat(y, 1))).mean((2, 3)))


class HighResolution(nn.Module):
    """HRNet: two resolutions exchange what they have, each the sum of both."""

    def __init__(self) -> None:
        super().__init__()
        self.high = nn.Conv2d(3, 12, 3, padding=1)
        self.low = nn.Conv2d(12, 20, 3, stride=2, padding=1)
        self.high_to_low = nn.Conv2d(12, 20, 3, stride=2, padding=1)
        self.low_to_high = nn.Conv2d(20, 12, 1)
        self.out = nn.Conv2d(32, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        high = F.relu(self.high(x))
        low = F.relu(self.low(high))
        high, low = high + F.interpolate(self.low_to_high(low), scale_factor=2), low + self.high_to_low(high)
        return self.out(torch.cat([high, F.interpolate(low, scale_factor=2)], 1))


class Conv3d(nn.Module):
    """Video: 3-d convolutions, one of them factored in space and time."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(3, 12, 3, padding=1)
        self.bn1 = nn.BatchNorm3d(12)
        self.pool = nn.MaxPool3d((1, 2, 2))
        self.space = nn.Conv3d(12, 18, (1, 3, 3), padding=(0, 1, 1))
        self.time = nn.Conv3d(18, 14, (3, 1, 1), padding=(1, 0, 0))
        self.up = nn.ConvTranspose3d(14, 10, 2, stride=2)
        self.fc = nn.Linear(10, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.bn1(self.conv1(x))))
        x = F.relu(self.time(F.relu(self.space(x))))
        x = F.relu(self.up(x))
        return self.fc(F.adaptive_avg_pool3d(x, 1).flatten(1))


class StochasticDepth(nn.Module):
    """Residual branches that training drops at random."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(16, size, 3, padding=1), nn.GELU(), nn.Conv2d(size, 16, 3, padding=1)) for size in (12, 20)
        )
        self.dropout = nn.Dropout2d(0.2)
        self.fc = nn.Linear(16, 10)

    def drop_path(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        keep = torch.rand(x.shape[0], 1, 1, 1, device=x.device) < 0.8
        return x * keep / 0.8

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + self.drop_path(block(x))
        return self.fc(self.dropout(x).mean((2, 3)))


class Film(nn.Module):
    """One input scales and shifts the channels of the other (arXiv:1709.07871)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 18, 3, padding=1)
        self.condition = nn.Sequential(nn.Linear(6, 22), nn.ReLU(), nn.Linear(22, 36))
        self.conv2 = nn.Conv2d(18, 12, 3)
        self.fc = nn.Linear(12, 10)

    def forward(self, image: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.condition(condition).chunk(2, dim=1)
        x = self.conv1(image) * (1 + scale[:, :, None, None]) + shift[:, :, None, None]
        return self.fc(F.relu(self.conv2(F.relu(x))).mean((2, 3)))


class StyleGan(nn.Module):
    """A generator: modulated and demodulated kernels, a learned constant, a mapping network (arXiv:1912.04958)."""

    def __init__(self) -> None:
        super().__init__()
        self.mapping = nn.Sequential(nn.Linear(9, 22), nn.LeakyReLU(0.2), nn.Linear(22, 20), nn.LeakyReLU(0.2))
        self.constant = nn.Parameter(torch.randn(1, 16, 4, 4))
        self.style = nn.Linear(20, 16)
        self.weight = nn.Parameter(torch.randn(1, 12, 16, 3, 3))
        self.rgb = nn.Conv2d(12, 3, 1)

    def forward(self, z: Tensor) -> Tensor:
        b = z.shape[0]
        style = self.style(self.mapping(z)).view(b, 1, 16, 1, 1)
        weight = self.weight * style
        weight = weight * torch.rsqrt(weight.pow(2).sum([2, 3, 4]) + 1e-8).view(b, 12, 1, 1, 1)
        x = self.constant.repeat(b, 1, 1, 1).view(1, b * 16, 4, 4)
        x = F.conv2d(x, weight.view(b * 12, 16, 3, 3), padding=1, groups=b).view(b, 12, 4, 4)
        return torch.tanh(self.rgb(F.leaky_relu(x, 0.2)))


class Repvgg(nn.Module):
    """Three parallel branches, one of which is nothing but normalisation (arXiv:2101.03697)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 18, 3, stride=2, padding=1)
        self.conv3 = nn.Sequential(nn.Conv2d(18, 18, 3, padding=1, bias=False), nn.BatchNorm2d(18))
        self.conv1 = nn.Sequential(nn.Conv2d(18, 18, 1, bias=False), nn.BatchNorm2d(18))
        self.identity = nn.BatchNorm2d(18)
        self.last = nn.Conv2d(18, 24, 1)
        self.fc = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu(self.conv3(x) + self.conv1(x) + self.identity(x))
        return self.fc(F.relu(self.last(x)).mean((2, 3)))


class GhostModule(nn.Module):
    """Half of the features are cheap depthwise copies of the other half, and one is cut off (arXiv:1911.11907)."""

    def __init__(self) -> None:
        super().__init__()
        self.primary = nn.Conv2d(3, 13, 3, padding=1)
        self.cheap = nn.Conv2d(13, 13, 3, padding=1, groups=13)
        self.last = nn.Conv2d(25, 16, 1)
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x1 = F.relu(self.primary(x))
        x2 = F.relu(self.cheap(x1))
        out = torch.cat([x1, x2], dim=1)[:, :25, :, :]
        return self.fc(F.relu(self.last(out)).mean((2, 3)))


class Res2Net(nn.Module):
    """Splits that feed each other one after another (arXiv:1904.01169)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 1)
        self.convs = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(3))
        self.conv3 = nn.Conv2d(32, 20, 1)
        self.fc = nn.Linear(20, 10)

    def forward(self, x: Tensor) -> Tensor:
        parts = torch.split(F.relu(self.conv1(x)), 8, 1)
        outputs: list[Tensor] = []
        for i, conv in enumerate(self.convs):
            part = parts[i] if i == 0 else outputs[-1] + parts[i]
            outputs.append(F.relu(conv(part)))
        x = torch.cat((*outputs, parts[3]), 1)
        return self.fc(F.relu(self.conv3(x)).mean((2, 3)))


class SelectiveKernel(nn.Module):
    """Two branches stacked, weighted by a softmax over the branches for each channel (arXiv:1903.06586)."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Conv2d(3, 18, size, padding=size // 2) for size in (3, 5))
        self.squeeze = nn.Linear(18, 7)
        self.excite = nn.ModuleList(nn.Linear(7, 18) for _ in range(2))
        self.last = nn.Conv2d(18, 12, 3)
        self.fc = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        features = torch.stack([F.relu(branch(x)) for branch in self.branches], dim=1)
        z = F.relu(self.squeeze(features.sum(1).mean((2, 3))))
        weights = torch.stack([excite(z) for excite in self.excite], dim=1).softmax(dim=1)
        x = (features * weights[..., None, None]).sum(dim=1)
        return self.fc(F.relu(self.last(x)).mean((2, 3)))


class Detector(nn.Module):
    """Boxes decoded with a grid and an anchor buffer: sigmoid, slices of the last dimension, and a dict output."""

    anchors: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 14, 3, 2, 1), nn.BatchNorm2d(14), nn.SiLU(), nn.Conv2d(14, 20, 3, 2, 1), nn.SiLU()
        )
        self.head = nn.Conv2d(20, 2 * 8, 1)
        self.register_buffer("anchors", torch.tensor([[1.0, 2.0], [3.0, 1.5]]))

    def forward(self, x: Tensor) -> dict[str, Any]:
        out = self.head(self.backbone(x))
        b, _, h, w = out.shape
        out = out.view(b, 2, 8, h, w).permute(0, 1, 3, 4, 2).contiguous()
        ys, xs = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
        grid = torch.stack((xs, ys), -1).to(out)
        centre = out[..., :2].sigmoid() * 2 - 0.5 + grid
        size = (out[..., 2:4].sigmoid() * 2) ** 2 * self.anchors.view(1, 2, 1, 1, 2)
        return {"boxes": torch.cat((centre, size), -1).view(b, -1, 4), "raw": [out[..., 4:5], out[..., 5:]]}


IMAGE = floats(2, 3, 16, 16)

CONVOLUTIONS: list[Subject] = [
    subject("lenet_view", "convolution", LeNetView, floats(2, 3, 32, 32)),
    subject("view_batch", "convolution", ViewBatch, IMAGE),
    subject("alexnet_like", "convolution", alexnet_like, floats(2, 3, 32, 32)),
    subject("option_a", "convolution", OptionA, IMAGE),
    subject("bottlenecks", "convolution", Bottlenecks, IMAGE),
    subject("preactivation", "convolution", Preactivation, IMAGE),
    subject("depthwise_separable", "convolution", DepthwiseSeparable, IMAGE),
    subject("inverted_residual", "convolution", InvertedResidual, IMAGE),
    subject("linear_squeeze_excite", "convolution", LinearSqueezeExcite, IMAGE),
    subject("grouped", "convolution", Grouped, IMAGE),
    subject("channel_shuffle", "convolution", ChannelShuffle, IMAGE),
    subject("grouped_shuffle", "convolution", GroupedShuffle, IMAGE),
    subject("dense", "convolution", Dense, IMAGE),
    subject("inception", "convolution", Inception, IMAGE),
    subject("unet", "convolution", UNet, IMAGE),
    subject("unet_grouped", "convolution", lambda: UNet(groups=4), IMAGE),
    subject("super_resolution", "convolution", SuperResolution, floats(2, 1, 9, 9)),
    subject("space_to_depth", "convolution", SpaceToDepth, IMAGE),
    subject("cbam", "convolution", Cbam, IMAGE),
    subject("eca", "convolution", Eca, IMAGE),
    subject("dynamic_convolution", "convolution", DynamicConvolution, IMAGE),
    subject("bilinear_pooling", "convolution", BilinearPooling, IMAGE),
    subject("pyramid", "convolution", Pyramid, floats(2, 3, 32, 32)),
    subject("slice_assignment", "convolution", SliceAssignment, IMAGE),
    subject("hourglass", "convolution", Hourglass, IMAGE),
    subject("spatial_pyramid", "convolution", SpatialPyramid, IMAGE),
    subject("atrous", "convolution", Atrous, IMAGE),
    subject("prelu", "convolution", Prelu, IMAGE),
    subject("norms", "convolution", Norms, IMAGE),
    subject("channels_first_norm", "convolution", ChannelsFirstNorm, floats(2, 3, 32, 32)),
    subject("weight_standardised", "convolution", weight_standardised, IMAGE),
    subject("weight_normed", "convolution", weight_normed, floats(2, 3, 8, 8)),
    subject("normalizer_free", "convolution", NormalizerFree, IMAGE),
    subject("maxout", "convolution", Maxout, IMAGE),
    subject("max_feature_map", "convolution", MaxFeatureMap, IMAGE),
    subject("cross_stage_partial", "convolution", CrossStagePartial, IMAGE),
    subject("high_resolution", "convolution", HighResolution, IMAGE),
    subject("conv3d", "convolution", Conv3d, floats(2, 3, 4, 8, 8)),
    subject("stochastic_depth", "convolution", StochasticDepth, IMAGE),
    subject("film", "convolution", Film, positional(IMAGE, floats(2, 6))),
    subject("style_gan", "convolution", StyleGan, floats(2, 9)),
    subject("repvgg", "convolution", Repvgg, IMAGE),
    subject("ghost_module", "convolution", GhostModule, IMAGE),
    subject("res2net", "convolution", Res2Net, IMAGE),
    subject("selective_kernel", "convolution", SelectiveKernel, IMAGE),
    subject("detector", "convolution", Detector, IMAGE),
]
