"""Small networks in which integer kernels meet what real ones hold, with batch statistics as after training."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lighten.tasks.networks import ResNet20, SeedNet


class InvertedResiduals(nn.Module):
    """The blocks of MobileNetV2: expansion, depthwise convolution, projection without activation; relu6; residuals."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6())
        self.first = _inverted(16, 16, 1)
        self.second = _inverted(16, 24, 2)
        self.third = _inverted(24, 24, 1)
        self.fc = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.second(x + self.first(x))
        x = x + self.third(x)
        return self.fc(x.mean((2, 3)))


def _inverted(n_in: int, n_out: int, stride: int) -> nn.Sequential:
    n = 4 * n_in
    return nn.Sequential(
        *(nn.Conv2d(n_in, n, 1, bias=False), nn.BatchNorm2d(n), nn.ReLU6()),
        *(nn.Conv2d(n, n, 3, stride, 1, groups=n, bias=False), nn.BatchNorm2d(n), nn.ReLU6()),
        *(nn.Conv2d(n, n_out, 1, bias=False), nn.BatchNorm2d(n_out)),
    )


class Dense(nn.Module):
    """Later layers read all earlier ones, and the image itself."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 6, 3, padding=1)
        self.b = nn.Conv2d(9, 4, 3, padding=1)
        self.c = nn.Conv2d(13, 8, 1)
        self.fc = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([x, F.relu(self.a(x))], 1)
        x = torch.cat([x, F.relu(self.b(x))], 1)
        return self.fc(F.adaptive_avg_pool2d(F.relu(self.c(x)), 1).flatten(1))


class MaxPooling(nn.Module):
    """Pooling before the activation and after it, padding="same", and three linear layers in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 16, 3, padding="same")
        self.b = nn.Conv2d(16, 16, 3)
        self.fc1 = nn.Linear(16 * 3 * 3, 64)
        self.fc2 = nn.Linear(64, 32)
        self.fc3 = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.max_pool2d(self.a(x), 2))
        x = F.max_pool2d(F.relu(self.b(x)), 2)
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(torch.flatten(x, 1))))))


class FullyConvolutional(nn.Module):
    """Ends in a convolution, so that what comes out is quantized: every pixel has a step of its own to be off by."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.mid = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16))
        self.head = nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(F.relu(x + self.mid(x)))


NETWORKS: dict[str, tuple[type[nn.Module], tuple[int, ...]]] = {
    "seed": (SeedNet, (1, 32, 32)),
    "resnet20": (ResNet20, (1, 28, 28)),
    "inverted-residuals": (InvertedResiduals, (3, 32, 32)),
    "dense": (Dense, (3, 16, 16)),
    "max-pooling": (MaxPooling, (3, 16, 16)),
    "fully-convolutional": (FullyConvolutional, (3, 16, 16)),
}


def build(name: str) -> nn.Module:
    """The network in eval mode, its running statistics the mean over three batches."""
    make, _ = NETWORKS[name]
    torch.manual_seed(0)
    model = make().train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # cumulative
    with torch.no_grad():
        for seed in range(3):
            model(images(name, 32, seed))
    return model.eval()


def images(name: str, n: int, seed: int) -> Tensor:
    """n smooth pictures of their own brightness and contrast, [n, channels, height, width]; noise alone would give
    every sample the same features."""
    channels, height, width = NETWORKS[name][1]
    random = torch.Generator().manual_seed(seed)
    coarse = torch.randn(n, channels, 4, 4, generator=random)
    smooth = F.interpolate(coarse, size=(height, width), mode="bilinear", align_corners=False)
    contrast = torch.rand(n, 1, 1, 1, generator=random) * 2
    shift = torch.randn(n, 1, 1, 1, generator=random)
    return smooth * contrast + shift + 0.1 * torch.randn(n, channels, height, width, generator=random)
