"""Residual networks: ResNet-50's bottlenecks, ResNeXt, RegNet, and one normalized by groups."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SqueezeExcitation(nn.Module):
    def __init__(self, width: int, squeezed: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.reduce = nn.Conv2d(width, squeezed, 1)
        self.expand = nn.Conv2d(squeezed, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.expand(F.relu(self.reduce(self.pool(x)))))


class Bottleneck(nn.Module):
    def __init__(
        self, n_in: int, width: int, n_out: int, stride: int, groups: int, se: bool, norm: Callable[[int], nn.Module]
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, width, 1, bias=False)
        self.bn1 = norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, groups=groups, bias=False)
        self.bn2 = norm(width)
        self.se = SqueezeExcitation(width, 4) if se else nn.Identity()
        self.conv3 = nn.Conv2d(width, n_out, 1, bias=False)
        self.bn3 = norm(n_out)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or n_in != n_out:
            self.downsample = nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride, bias=False), norm(n_out))

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.se(self.relu(self.bn2(self.conv2(out))))
        out = self.bn3(self.conv3(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class ResNet(nn.Module):
    """Bottlenecks as in ResNet-50; with groups as in ResNeXt; with groups and squeeze-excitation as in RegNet."""

    def __init__(
        self, groups: int = 1, se: bool = False, norm: Callable[[int], nn.Module] = nn.BatchNorm2d, expansion: int = 4
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 16, 7, 2, padding=3, bias=False), norm(16), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)
        )
        blocks = []
        n_in = 16
        for width, stride in ((8, 1), (8, 1), (16, 2), (16, 1)):
            blocks.append(Bottleneck(n_in, width, width * expansion, stride, groups, se, norm))
            n_in = width * expansion
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(n_in, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.stem(x))
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(x, (1, 1)), 1))


def resnet50() -> nn.Module:
    return ResNet()


def resnext() -> nn.Module:
    return ResNet(groups=4)


def regnet() -> nn.Module:
    return ResNet(groups=2, se=True, expansion=1)


def group_normalized() -> nn.Module:
    return ResNet(norm=lambda width: nn.GroupNorm(4, width))


def instance_normalized() -> nn.Module:
    return ResNet(norm=lambda width: nn.InstanceNorm2d(width, affine=True))
