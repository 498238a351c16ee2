"""Networks that branch and concatenate: DenseNet, Inception, U-Net, a feature pyramid."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DenseLayer(nn.Module):
    def __init__(self, n_in: int, growth: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(n_in), nn.Conv2d(n_in, 2 * growth, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(2 * growth), nn.Conv2d(2 * growth, growth, 3, padding=1, bias=False)

    def forward(self, features: list[Tensor]) -> Tensor:
        x = torch.cat(features, 1)
        return self.conv2(F.relu(self.norm2(self.conv1(F.relu(self.norm1(x))))))


class DenseNet(nn.Module):
    def __init__(self, growth: int = 6) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, padding=1, bias=False)
        self.block1 = nn.ModuleList([DenseLayer(8 + growth * i, growth) for i in range(3)])
        n = 8 + 3 * growth
        self.transition = nn.Sequential(nn.BatchNorm2d(n), nn.ReLU(), nn.Conv2d(n, n // 2, 1), nn.AvgPool2d(2))
        self.block2 = nn.ModuleList([DenseLayer(n // 2 + growth * i, growth) for i in range(2)])
        self.norm = nn.BatchNorm2d(n // 2 + 2 * growth)
        self.fc = nn.Linear(n // 2 + 2 * growth, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.run(self.block1, self.stem(x))
        x = self.run(self.block2, self.transition(x))
        return self.fc(F.relu(self.norm(x), inplace=True).mean([2, 3]))

    def run(self, layers: nn.ModuleList, x: Tensor) -> Tensor:
        features = [x]
        for layer in layers:
            features.append(layer(features))
        return torch.cat(features, 1)


class ConvNormRelu(nn.Sequential):
    def __init__(self, n_in: int, n_out: int, kernel: int | tuple[int, int]) -> None:
        pad = kernel // 2 if isinstance(kernel, int) else tuple(k // 2 for k in kernel)
        super().__init__(nn.Conv2d(n_in, n_out, kernel, padding=pad, bias=False), nn.BatchNorm2d(n_out), nn.ReLU())


class InceptionBlock(nn.Module):
    def __init__(self, n_in: int) -> None:
        super().__init__()
        self.one = ConvNormRelu(n_in, 6, 1)
        self.three = nn.Sequential(ConvNormRelu(n_in, 4, 1), ConvNormRelu(4, 8, 3))
        self.five = nn.Sequential(ConvNormRelu(n_in, 4, 1), ConvNormRelu(4, 6, (1, 7)), ConvNormRelu(6, 6, (7, 1)))
        self.pooled = ConvNormRelu(n_in, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.pooled(F.max_pool2d(x, 3, stride=1, padding=1))
        return torch.cat([self.one(x), self.three(x), self.five(x), pooled], dim=1)


class Inception(nn.Module):
    """Two blocks and, as in GoogLeNet, a second head halfway."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvNormRelu(3, 8, 3)
        self.a, self.b = InceptionBlock(8), InceptionBlock(24)
        self.middle = nn.Linear(24 * 16, 10)
        self.fc = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.max_pool2d(self.a(self.stem(x)), 2)
        middle = self.middle(F.adaptive_avg_pool2d(x, 4).reshape(-1, 24 * 16))
        return self.fc(self.b(x).mean((-2, -1))), middle


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = self.twice(3, 8), self.twice(8, 16)
        self.bottom = self.twice(16, 32)
        self.up2, self.conv2 = nn.ConvTranspose2d(32, 16, 2, stride=2), self.twice(32, 16)
        self.up1, self.conv1 = nn.Upsample(scale_factor=2, mode="bilinear"), self.twice(24, 8)
        self.out = nn.Conv2d(8, 2, 1)

    def twice(self, n_in: int, n_out: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(n_in, n_out, 3, padding=1),
            nn.BatchNorm2d(n_out),
            nn.ReLU(inplace=True),
            nn.Conv2d(n_out, n_out, 3, padding=1),
            nn.LeakyReLU(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        one = self.down1(x)
        two = self.down2(F.max_pool2d(one, 2))
        x = self.bottom(F.max_pool2d(two, 2))
        x = self.conv2(torch.cat([two, self.up2(x)], dim=1))
        x = self.conv1(torch.cat([one, self.up1(x)], dim=1))
        return self.out(x)


class FPN(nn.Module):
    """A pyramid over three levels with heads shared by all of them, as in RetinaNet."""

    def __init__(self) -> None:
        super().__init__()
        self.c3 = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.c4 = nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU())
        self.c5 = nn.Sequential(nn.Conv2d(16, 24, 3, 2, 1), nn.BatchNorm2d(24), nn.ReLU())
        self.lateral = nn.ModuleList([nn.Conv2d(n, 12, 1) for n in (8, 16, 24)])
        self.smooth = nn.ModuleList([nn.Conv2d(12, 12, 3, padding=1) for _ in range(3)])
        self.tower = nn.Sequential(nn.Conv2d(12, 12, 3, padding=1), nn.GroupNorm(4, 12), nn.ReLU())
        self.classes, self.boxes = nn.Conv2d(12, 3 * 5, 3, padding=1), nn.Conv2d(12, 3 * 4, 3, padding=1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        c3 = self.c3(x)
        c4 = self.c4(c3)
        c5 = self.c5(c4)
        p5 = self.lateral[2](c5)
        p4 = self.lateral[1](c4) + F.interpolate(p5, size=c4.shape[-2:], mode="nearest")
        p3 = self.lateral[0](c3) + F.interpolate(p4, size=c3.shape[-2:], mode="nearest")
        classes, boxes = [], []
        for level, smooth in zip((p3, p4, p5), self.smooth, strict=True):
            features = self.tower(smooth(level))
            n, _, h, w = features.shape
            classes.append(self.classes(features).view(n, 3, 5, h, w).permute(0, 3, 4, 1, 2).reshape(n, -1, 5))
            boxes.append(self.boxes(features).view(n, 3, 4, h, w).permute(0, 3, 4, 1, 2).reshape(n, -1, 4))
        return {"classes": torch.cat(classes, 1), "boxes": torch.cat(boxes, 1)}
