"""Sequences and volumes: LSTM tagger, GRU, CRNN, Conformer block, WaveNet, a 3d network."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(30, 12)
        self.lstm = nn.LSTM(12, 10, num_layers=2, batch_first=True, bidirectional=True, dropout=0.1)
        self.fc1, self.fc2 = nn.Linear(20, 16), nn.Linear(16, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        x, _ = self.lstm(self.embed(tokens))
        return self.fc2(torch.relu(self.fc1(x)))


class GRUClassifier(nn.Module):
    """Reads the last state, gives its first state by hand, and steps a cell in a loop."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.cell, self.fc = nn.GRU(6, 12), nn.LSTMCell(12, 8), nn.Linear(12 + 8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(0, 1)
        out, last = self.gru(x, x.new_zeros(1, x.size(1), 12))
        h, c = torch.zeros(x.size(1), 8, dtype=x.dtype), torch.zeros(x.size(1), 8, dtype=x.dtype)
        for step in out.unbind(0):
            h, c = self.cell(step, (h, c))
        return self.fc(torch.cat([last[-1], h], dim=1))


class CRNN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 12, 3, padding=1)
        self.rnn = nn.GRU(12 * 4, 10, bidirectional=True, batch_first=True)
        self.fc = nn.Linear(20, 11)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        n, c, h, w = x.size()
        x = x.permute(0, 3, 1, 2).contiguous().view(n, w, c * h)
        x, _ = self.rnn(x)
        return F.log_softmax(self.fc(x), dim=-1)


class ConformerBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.ff1, self.ff2 = self.feed_forward(width), self.feed_forward(width)
        self.norm_a, self.attention = nn.LayerNorm(width), nn.MultiheadAttention(width, 4, batch_first=True)
        self.norm_c, self.pointwise1 = nn.LayerNorm(width), nn.Conv1d(width, 2 * width, 1)
        self.depthwise = nn.Conv1d(width, width, 7, padding=3, groups=width)
        self.batch_norm, self.pointwise2 = nn.BatchNorm1d(width), nn.Conv1d(width, width, 1)
        self.norm = nn.LayerNorm(width)

    def feed_forward(self, width: int) -> nn.Sequential:
        return nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 32), nn.SiLU(), nn.Dropout(0.1), nn.Linear(32, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + 0.5 * self.ff1(x)
        y = self.norm_a(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        y = F.glu(self.pointwise1(self.norm_c(x).transpose(1, 2)), dim=1)
        y = self.pointwise2(F.silu(self.batch_norm(self.depthwise(y)))).transpose(1, 2)
        x = x + y
        return self.norm(x + 0.5 * self.ff2(x))


class Conformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.subsample = nn.Sequential(nn.Conv2d(1, 6, 3, 2), nn.ReLU(), nn.Conv2d(6, 6, 3, 2), nn.ReLU())
        self.project, self.block, self.fc = nn.Linear(6 * 4, 16), ConformerBlock(16), nn.Linear(16, 9)

    def forward(self, x: Tensor) -> Tensor:
        x = self.subsample(x.unsqueeze(1))
        n, c, t, f = x.shape
        x = self.project(x.transpose(1, 2).contiguous().view(n, t, c * f))
        return self.fc(self.block(x))


class WaveNet(nn.Module):
    """Gated dilated causal convolutions with weight norm, residual and skip sums."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Conv1d(1, 8, 1)
        self.dilations = (1, 2, 4)
        self.gated = nn.ModuleList([weight_norm(nn.Conv1d(8, 24, 2, dilation=d)) for d in self.dilations])
        self.residual = nn.ModuleList([nn.Conv1d(12, 8, 1) for _ in self.dilations])
        self.skip = nn.ModuleList([nn.Conv1d(12, 10, 1) for _ in self.dilations])
        self.end1, self.end2 = nn.Conv1d(10, 16, 1), nn.Conv1d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x, skips = self.start(x), []
        for dilation, gated, residual, skip in zip(self.dilations, self.gated, self.residual, self.skip, strict=True):
            y = gated(F.pad(x, (dilation, 0)))
            y = torch.tanh(y[:, :12]) * torch.sigmoid(y[:, 12:])
            x = x + residual(y)
            skips.append(skip(y))
        return self.end2(F.relu(self.end1(F.relu(torch.stack(skips).sum(0)))))


class Net3d(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv3d(1, 8, 3, padding=1), nn.BatchNorm3d(8)
        self.conv2 = nn.Conv3d(8, 16, 3, stride=2, padding=1)
        self.up, self.conv3 = nn.ConvTranspose3d(16, 8, 2, stride=2), nn.Conv3d(8, 8, 3, padding=1)
        self.fc = nn.Linear(8 * 2 * 2 * 2, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = x + self.up(F.relu(self.conv2(x)))
        x = F.adaptive_avg_pool3d(F.elu(self.conv3(x)), 2)
        return self.fc(x.view(-1, 64))
