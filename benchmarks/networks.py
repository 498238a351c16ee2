"""The networks that benchmarks run besides the built-in ones: written plainly, with random weights or with real ones.

Sources: those of lighten.tasks.networks; Radford et al., "Language Models are Unsupervised Multitask Learners" (GPT-2);
Shi et al., "An End-to-End Trainable Neural Network for Image-based Sequence Recognition" (CRNN).
All are smaller than the originals, so that a benchmark takes minutes on two cores.
"""

import torch
from torch import Tensor, nn

from lighten.tasks.networks import MobileNetV2, TransformerBlock, ViT

# Expansion, channels, blocks, stride of the first.
STAGES = [(1, 8, 1, 1), (6, 16, 2, 2), (6, 16, 3, 2), (6, 32, 4, 2), (6, 48, 3, 1), (6, 80, 3, 2), (6, 160, 1, 1)]


def mobilenet() -> MobileNetV2:
    """MobileNetV2 at width 0.5: logits [n, 1000] of x [n, 3, 128, 128]."""
    return MobileNetV2(3, 2, STAGES, 1280, 1000)


def vit() -> ViT:
    """Logits [n, 100] of x [n, 3, 64, 64]: 64 patches and a class token, 4 blocks of width 128."""
    return ViT(3, 64, 8, width=128, n_classes=100)


class CRNN(nn.Module):
    """A reader of text lines: characters [n, 32, 80] of images x [n, 1, 32, 128]. Convolutions, then an LSTM along the
    line."""

    def __init__(self) -> None:
        super().__init__()
        windows: list[tuple[int, int, int | tuple[int, int]]] = [
            *((1, 64, 2), (64, 128, 2), (128, 256, (2, 1)), (256, 256, (2, 1)))
        ]
        self.cnn = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(), nn.MaxPool2d(window))
                for a, b, window in windows
            )
        )
        self.rnn, self.fc = nn.LSTM(512, 128, batch_first=True, bidirectional=True), nn.Linear(256, 80)

    def forward(self, x: Tensor) -> Tensor:
        along = self.cnn(x).permute(0, 3, 1, 2).flatten(2)  # [n, 32, 512]
        logits: Tensor = self.fc(self.rnn(along)[0])
        return logits


def stacked(channels: int) -> nn.Sequential:
    """Eight convolutions of 3 x 3 with as many channels on both sides, each normalized and followed by a ReLU."""
    layers = [(nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU()) for _ in range(8)]
    return nn.Sequential(*(module for layer in layers for module in layer))


def mlp() -> nn.Sequential:
    """Logits [n, 10] of x [n, 784]."""
    return nn.Sequential(nn.Linear(784, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 10))


def mobilenetv2_imagenet() -> nn.Module:
    """MobileNetV2 with ImageNet weights: logits [n, 1000] of x [n, 3, 224, 224]; needs what pretrained.py does."""
    from pretrained import mobilenetv2

    return mobilenetv2().model


def minilm() -> nn.Module:
    """all-MiniLM-L6-v2 with its weights: [n, 128, 384] of tokens [n, 128]; needs what weight_only.py does."""
    from weight_only import Hidden, load_encoder

    return Hidden(load_encoder().model).eval()


class GPT(nn.Module):
    """Logits [n, 64, 1000] of tokens [n, 64] int64: 4 causal blocks of width 128."""

    def __init__(self, vocabulary: int = 1000, length: int = 64, width: int = 128, depth: int = 4) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(torch.randn(1, length, width) * 0.02)
        self.blocks = nn.Sequential(*(TransformerBlock(width, 4, is_causal=True) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.tokens(tokens) + self.positions)))


def settle_(model: nn.Module, x: Tensor) -> nn.Module:
    """Give batch norms statistics that are not 0 and 1, so that folding them does something; then eval."""
    model.train()
    with torch.no_grad():
        for _ in range(3):
            model(x)
    return model.eval()
