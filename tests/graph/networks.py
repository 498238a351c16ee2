"""Small networks, each with one thing that makes channel pruning hard."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lighten.tasks.networks import ResNet20, SeedNet

IMAGE = (3, 12, 12)


class HardCodedView(nn.Module):
    """Permutes before a flattening whose size is written out: channels end up interleaved in the linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.fc = nn.Linear(12 * 12 * 8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.conv(x)).permute(0, 2, 3, 1).contiguous()
        return self.fc(x.view(x.size(0), 12 * 12 * 8))


class Concatenation(nn.Module):
    """A dense block: later layers read all earlier ones, and the image itself."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 6, 3, padding=1)
        self.b = nn.Conv2d(9, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(13)
        self.c = nn.Conv2d(13, 8, 1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([x, torch.relu(self.a(x))], 1)
        x = torch.cat([x, torch.relu(self.b(x))], 1)
        return self.fc(F.adaptive_avg_pool2d(self.c(torch.relu(self.norm(x))), 1).flatten(1))


class ChunkAndSwap(nn.Module):
    """Channels are cut in halves, swapped, joined and added: channel c goes with channel c + 4."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, padding=1)
        self.b = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu_()
        left, right = self.b(x).chunk(2, 1)
        return self.head(torch.cat([right, left], 1) + x)[:, :, 0, 0]


class Depthwise(nn.Module):
    """Inverted residual with a depthwise convolution, squeeze and excitation, and an added constant per channel."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Conv2d(3, 16, 1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.squeeze = nn.Conv2d(16, 4, 1)
        self.excite = nn.Conv2d(4, 16, 1)
        self.scale = nn.Parameter(torch.rand(16, 1, 1))
        self.project = nn.Conv2d(16, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.depthwise(F.relu6(self.norm(self.expand(x)))))
        gate = torch.sigmoid(self.excite(torch.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        return self.project(x * gate * self.scale).mean((2, 3))


class ChannelShuffle(nn.Module):
    """Grouped convolutions with a shuffle between them, written with view and transpose."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 1)
        self.first = nn.Conv2d(12, 16, 3, padding=1, groups=2)
        self.second = nn.Conv2d(16, 12, 3, padding=1, groups=2)
        self.fc = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(torch.relu(self.stem(x))))
        batch, channels, height, width = x.shape
        x = x.view(batch, 2, channels // 2, height, width).transpose(1, 2).reshape(batch, channels, height, width)
        return self.fc(torch.relu(self.second(x)).mean((2, 3)))


class PixelShuffle(nn.Module):
    """Four channels become a 2×2 patch of one; a transposed convolution makes the same size beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.mix = nn.Conv2d(16, 32, 3, padding=1)
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.head = nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.down(x))
        x = F.pixel_shuffle(self.mix(x), 2) + self.up(x)
        return self.head(F.pad(torch.relu(x), (1, 1, 1, 1))).amax((2, 3))


class SplitSlices(nn.Module):
    """Uneven split and slices by constant bounds, rejoined in another order."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 10, 3)
        self.b = nn.Conv2d(10, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.a(x))
        first, second = x.split([3, 7], dim=1)
        return self.b(torch.cat([second[:, 2:], first, second[:, :2]], 1)).flatten(2).mean(-1)


class TwoInputs(nn.Module):
    """A dict of two tensors, a shared linear layer, and an outer product that must stay as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(6, 8)
        self.right = nn.Linear(6, 8)
        self.shared = nn.Linear(8, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: dict[str, Tensor]) -> Tensor:
        left = self.shared(torch.tanh(self.left(x["left"])))
        right = self.shared(torch.tanh(self.right(x["right"])))
        return self.head(left * right)


def image(channels: int = 3, size: int = 12) -> tuple[Tensor, ...]:
    return (torch.randn(1, channels, size, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64),)


def two_inputs() -> tuple[dict[str, Tensor], ...]:
    make = torch.Generator().manual_seed(1)
    return ({name: torch.randn(2, 6, generator=make, dtype=torch.float64) for name in ("left", "right")},)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[object, ...]]] = {
    "seed": (SeedNet, image(1, 32)),
    "resnet20": (ResNet20, image(1, 28)),
    "hard-coded-view": (HardCodedView, image()),
    "concatenation": (Concatenation, image()),
    "chunk-and-swap": (ChunkAndSwap, image()),
    "depthwise": (Depthwise, image()),
    "channel-shuffle": (ChannelShuffle, image()),
    "pixel-shuffle": (PixelShuffle, image()),
    "split-slices": (SplitSlices, image()),
    "two-inputs": (TwoInputs, two_inputs()),
}


def build(name: str) -> tuple[nn.Module, tuple[object, ...]]:
    """The network in float64 and eval mode, with batch statistics as after training, and its example inputs."""
    make, inputs = NETWORKS[name]
    torch.manual_seed(0)
    model = make().double().eval()
    for key, buffer in model.named_buffers():
        if key.endswith("running_mean"):
            buffer.normal_(0, 0.1)
        elif key.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
    return model, inputs
