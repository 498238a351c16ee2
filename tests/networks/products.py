"""Plain products: matmul, einsum, bmm, addmm and baddbmm on parameters, without a layer in sight."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Products(nn.Module):
    """Multi-head attention by einsum with weights [width, heads, dim], then a gated feed-forward by matmul."""

    def __init__(self, width: int = 12, heads: int = 3, dim: int = 5) -> None:
        super().__init__()
        self.wq, self.wk, self.wv = (nn.Parameter(torch.randn(width, heads, dim) * 0.3) for _ in range(3))
        self.wo = nn.Parameter(torch.randn(heads, dim, width) * 0.3)
        self.gate, self.up = nn.Parameter(torch.randn(width, 20) * 0.3), nn.Parameter(torch.randn(width, 20) * 0.3)
        self.down, self.bias = nn.Parameter(torch.randn(6, 20) * 0.3), nn.Parameter(torch.zeros(6))
        self.mix = nn.Parameter(torch.randn(6, 7, 3) * 0.3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (torch.einsum("btw,whd->bhtd", x, w) for w in (self.wq, self.wk, self.wv))
        scores = torch.einsum("bhtd,bhsd->bhts", q, k) * 0.4
        x = torch.einsum("bhts,bhsd,hdw->btw", scores.softmax(-1), v, self.wo)
        hidden = torch.sigmoid(x @ self.gate) * (x @ self.up)
        y = torch.addmm(self.bias, hidden.flatten(0, 1), self.down.t()).tanh().view(*hidden.shape[:2], -1)
        return torch.einsum("bti,ijk->btk", y, self.mix)


class LinearAttention(nn.Module):
    """Attention without softmax; queries and keys are made positive, so a removed one is not a zero one."""

    def __init__(self, width: int = 12, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        q, k, v = (f(x).view(n, length, self.heads, -1).transpose(1, 2) for f in (self.q, self.k, self.v))
        q, k = F.elu(q) + 1, F.elu(k) + 1
        y = q @ (k.transpose(-2, -1) @ v) / (q @ k.sum(-2, keepdim=True).transpose(-2, -1))
        return self.out(y.transpose(1, 2).reshape(n, length, width))


class CosineAttention(nn.Module):
    """Normalized queries and keys, bmm over batch · heads, a bias given to baddbmm."""

    def __init__(self, width: int = 12, heads: int = 3) -> None:
        super().__init__()
        self.heads, self.dim = heads, width // heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        q, k, v = (
            t.contiguous().view(n, length, self.heads, self.dim).transpose(1, 2).reshape(-1, length, self.dim)
            for t in (q, k, v)
        )
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        empty = torch.zeros(n * self.heads, length, length, dtype=x.dtype)
        scores = torch.baddbmm(empty, q, k.transpose(1, 2), beta=0, alpha=4.0).softmax(-1)
        y = torch.bmm(scores, v).view(n, self.heads, length, self.dim).transpose(1, 2)
        return self.out(y.reshape(n, length, width))
