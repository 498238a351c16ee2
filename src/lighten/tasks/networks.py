"""The networks of the built-in tasks, written the way users write theirs: nothing in them is arranged for compression.

Sources: He et al., "Deep Residual Learning for Image Recognition", arXiv:1512.03385, sec. 4.2 (ResNet20); Sandler et
al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", arXiv:1801.04381, table 2; Dosovitskiy et al., "An Image
is Worth 16x16 Words", arXiv:2010.11929 (ViT).
Differs: where its shape changes ResNet20's shortcut is a 1x1 convolution with batch norm (option B), not zero padding;
the other two are made smaller, for images of 28x28.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SeedNet(nn.Module):
    """Two convolutions and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3)
        self.conv2 = nn.Conv2d(32, 64, 3)
        self.fc = nn.Linear(64 * 6 * 6, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [n, 10] of x [n, 1, 32, 32]."""
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        # The constant is the point: a pruner that only edits modules breaks here, and many users' networks have one.
        x = x.view(-1, 64 * 6 * 6)
        out: Tensor = self.fc(x)
        return out


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(n_out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or n_in != n_out:
            self.shortcut = nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out))

    def forward(self, x: Tensor) -> Tensor:
        """[n, n_out, h / stride, w / stride] of x [n, n_in, h, w]."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x))


class ResNet20(nn.Module):
    """Three stages of three basic blocks, nineteen 3x3 convolutions and a linear layer."""

    def __init__(self, in_channels: int = 1, widths: tuple[int, int, int] = (16, 32, 64), n_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.layer1 = _stage(widths[0], widths[0], stride=1)
        self.layer2 = _stage(widths[0], widths[1], stride=2)
        self.layer3 = _stage(widths[1], widths[2], stride=2)
        self.fc = nn.Linear(widths[2], n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [n, n_classes] of x [n, in_channels, h, w]."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)
        out: Tensor = self.fc(x)
        return out


def _stage(n_in: int, n_out: int, stride: int) -> nn.Sequential:
    return nn.Sequential(BasicBlock(n_in, n_out, stride), BasicBlock(n_out, n_out, 1), BasicBlock(n_out, n_out, 1))


class InvertedResidual(nn.Module):
    """Expand, filter each channel on its own, project; added to the input where the shape stays."""

    def __init__(self, n_in: int, n_out: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = n_in * expansion
        self.expand = nn.Conv2d(n_in, hidden, 1, bias=False)
        self.expand_norm = nn.BatchNorm2d(hidden)
        self.depthwise = nn.Conv2d(hidden, hidden, 3, stride, padding=1, groups=hidden, bias=False)
        self.depthwise_norm = nn.BatchNorm2d(hidden)
        self.project = nn.Conv2d(hidden, n_out, 1, bias=False)
        self.project_norm = nn.BatchNorm2d(n_out)
        self.is_residual = stride == 1 and n_in == n_out

    def forward(self, x: Tensor) -> Tensor:
        """[n, n_out, h / stride, w / stride] of x [n, n_in, h, w]."""
        y = F.relu6(self.expand_norm(self.expand(x)))
        y = F.relu6(self.depthwise_norm(self.depthwise(y)))
        y = self.project_norm(self.project(y))
        out: Tensor = x + y if self.is_residual else y
        return out


# Expansion, channels, blocks, stride of the first. Half of the original's channels, and two of its five strides.
SMALL_STAGES = (
    *((1, 8, 1, 1), (6, 16, 2, 2), (6, 16, 3, 1), (6, 32, 4, 2)),
    *((6, 48, 3, 1), (6, 80, 3, 1), (6, 160, 1, 1)),
)


class MobileNetV2(nn.Module):
    """A stem, seventeen inverted residuals and a head. stages: expansion, channels, blocks, stride of the first."""

    def __init__(
        self,
        in_channels: int = 1,
        stem_stride: int = 1,
        stages: Sequence[tuple[int, int, int, int]] = SMALL_STAGES,
        head: int = 640,
        n_classes: int = 10,
    ) -> None:
        super().__init__()
        n_in = 16
        self.stem = nn.Conv2d(in_channels, n_in, 3, stem_stride, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(n_in)
        blocks: list[nn.Module] = []
        for expansion, n_out, repeats, stride in stages:
            for i in range(repeats):
                blocks.append(InvertedResidual(n_in, n_out, stride if i == 0 else 1, expansion))
                n_in = n_out
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Conv2d(n_in, head, 1, bias=False)
        self.head_norm = nn.BatchNorm2d(head)
        self.fc = nn.Linear(head, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [n, n_classes] of x [n, in_channels, h, w]."""
        x = F.relu6(self.stem_norm(self.stem(x)))
        x = F.relu6(self.head_norm(self.head(self.blocks(x))))
        out: Tensor = self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return out


class Attention(nn.Module):
    """Multi-head attention of a sequence to itself, queries, keys and values from one layer."""

    def __init__(self, width: int, heads: int, is_causal: bool) -> None:
        super().__init__()
        self.heads, self.is_causal = heads, is_causal
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[n, length, width] of x of the same shape."""
        n, length, width = x.shape
        q, k, v = self.qkv(x).view(n, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.is_causal)
        out: Tensor = self.out(y.transpose(1, 2).reshape(n, length, width))
        return out


class TransformerBlock(nn.Module):
    """Attention and a perceptron of one hidden layer, each normalized before and added to its input."""

    def __init__(self, width: int, heads: int, is_causal: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads, is_causal)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[n, length, width] of x of the same shape."""
        x = x + self.attention(self.norm1(x))
        out: Tensor = x + self.down(F.gelu(self.up(self.norm2(x))))
        return out


class ViT(nn.Module):
    """Patches and a class token through `depth` transformer blocks."""

    def __init__(
        self,
        in_channels: int = 1,
        size: int = 28,
        patch: int = 4,
        width: int = 96,
        depth: int = 4,
        heads: int = 4,
        n_classes: int = 10,
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(in_channels, width, patch, patch)
        self.token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.positions = nn.Parameter(torch.randn(1, (size // patch) ** 2 + 1, width) * 0.02)
        self.blocks = nn.Sequential(*(TransformerBlock(width, heads, is_causal=False) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [n, n_classes] of x [n, in_channels, size, size]."""
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        out: Tensor = self.head(self.norm(self.blocks(x))[:, 0])
        return out
