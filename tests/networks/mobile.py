"""Networks for small devices, and those that grew from them: MobileNet, ShuffleNet, EfficientNet, ConvNeXt."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv_norm(n_in: int, n_out: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    return [
        nn.Conv2d(n_in, n_out, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(n_out),
    ]


class MobileNetV1(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layers = [*conv_norm(3, 8, 3, 2), nn.ReLU(inplace=True)]
        for n_in, n_out, stride in ((8, 16, 1), (16, 32, 2), (32, 32, 1)):
            layers += [*conv_norm(n_in, n_in, 3, stride, groups=n_in), nn.ReLU(inplace=True)]
            layers += [*conv_norm(n_in, n_out, 1), nn.ReLU(inplace=True)]
        self.model = nn.Sequential(*layers, nn.AvgPool2d(8))
        self.fc = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.model(x)
        return self.fc(x.view(-1, 32))


class InvertedResidual(nn.Module):
    def __init__(self, n_in: int, n_out: int, stride: int, expand: int, act: type[nn.Module], se: str = "") -> None:
        super().__init__()
        hidden = n_in * expand
        self.skip = stride == 1 and n_in == n_out
        self.expand = nn.Sequential(*conv_norm(n_in, hidden, 1), act())
        self.depthwise = nn.Sequential(*conv_norm(hidden, hidden, 3, stride, groups=hidden), act())
        self.gate = nn.Sequential()
        if se:
            last = nn.Hardsigmoid() if se == "hard" else nn.Sigmoid()
            self.gate = nn.Sequential(
                nn.AdaptiveAvgPool2d(1), nn.Conv2d(hidden, 4, 1), nn.ReLU(), nn.Conv2d(4, hidden, 1), last
            )
        self.project = nn.Sequential(*conv_norm(hidden, n_out, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.depthwise(self.expand(x))
        if len(self.gate):
            y = self.gate(y) * y
        y = self.project(y)
        return x + y if self.skip else y


class InvertedNet(nn.Module):
    def __init__(self, act: type[nn.Module], se: str = "") -> None:
        super().__init__()
        self.stem = nn.Sequential(*conv_norm(3, 8, 3, 2), act())
        self.blocks = nn.Sequential(
            InvertedResidual(8, 8, 1, 2, act, se),
            InvertedResidual(8, 12, 2, 4, act, se),
            InvertedResidual(12, 12, 1, 4, act, se),
        )
        self.head = nn.Sequential(*conv_norm(12, 24, 1), act())
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(24, 10))

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(self.blocks(self.stem(x)))
        return self.classifier(x.mean([2, 3]))


def mobilenet_v2() -> nn.Module:
    return InvertedNet(nn.ReLU6)


def mobilenet_v3() -> nn.Module:
    return InvertedNet(nn.Hardswish, "hard")


def efficientnet() -> nn.Module:
    return InvertedNet(nn.SiLU, "soft")


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    n, c, h, w = x.shape
    x = x.view(n, groups, c // groups, h, w)
    x = torch.transpose(x, 1, 2).contiguous()
    return x.view(n, c, h, w)


class ShuffleUnit(nn.Module):
    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.stride, half = stride, n_out // 2
        n = n_in if stride > 1 else half
        if stride > 1:
            self.branch1 = nn.Sequential(
                *conv_norm(n, n, 3, stride, groups=n), *conv_norm(n, half, 1), nn.ReLU(inplace=True)
            )
        self.branch2 = nn.Sequential(
            *conv_norm(n, half, 1),
            nn.ReLU(inplace=True),
            *conv_norm(half, half, 3, stride, groups=half),
            *conv_norm(half, half, 1),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.stride == 1:
            x1, x2 = x.chunk(2, dim=1)
            out = torch.cat((x1, self.branch2(x2)), dim=1)
        else:
            out = torch.cat((self.branch1(x), self.branch2(x)), dim=1)
        return channel_shuffle(out, 2)


class ShuffleNetV2(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*conv_norm(3, 8, 3, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1))
        self.stages = nn.Sequential(ShuffleUnit(8, 16, 2), ShuffleUnit(16, 16, 1), ShuffleUnit(16, 16, 1))
        self.last = nn.Sequential(*conv_norm(16, 24, 1), nn.ReLU(inplace=True))
        self.fc = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.last(self.stages(self.stem(x))).mean([2, 3]))


class LayerNorm2d(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        x = F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class ConvNeXtBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width)
        self.pwconv1, self.pwconv2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.gamma = nn.Parameter(torch.full((width,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        y = self.dwconv(x).permute(0, 2, 3, 1)
        y = self.gamma * self.pwconv2(F.gelu(self.pwconv1(self.norm(y))))
        return x + y.permute(0, 3, 1, 2)


class ConvNeXt(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 12, 4, 4), LayerNorm2d(12))
        self.stage1 = nn.Sequential(ConvNeXtBlock(12), ConvNeXtBlock(12))
        self.down = nn.Sequential(LayerNorm2d(12), nn.Conv2d(12, 16, 2, 2))
        self.stage2 = ConvNeXtBlock(16)
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage2(self.down(self.stage1(self.stem(x))))
        return self.head(self.norm(x.mean([-2, -1])))
