"""Language models: BERT-style, GPT-2-style, Llama-style, encoder–decoder."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VOCABULARY = 40


class BertLayer(nn.Module):
    def __init__(self, width: int, n_heads: int, hidden: int) -> None:
        super().__init__()
        self.n_heads, self.head_dim = n_heads, width // n_heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.dense, self.norm1 = nn.Linear(width, width), nn.LayerNorm(width)
        self.intermediate, self.output = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.norm2, self.dropout = nn.LayerNorm(width), nn.Dropout(0.1)

    def heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], self.n_heads, self.head_dim).permute(0, 2, 1, 3)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = self.heads(self.query(x)), self.heads(self.key(x)), self.heads(self.value(x))
        scores = torch.matmul(q, k.transpose(-1, -2)) / math.sqrt(self.head_dim) + mask
        context = torch.matmul(self.dropout(scores.softmax(-1)), v).permute(0, 2, 1, 3).contiguous()
        context = context.view(context.shape[0], context.shape[1], self.n_heads * self.head_dim)
        x = self.norm1(x + self.dropout(self.dense(context)))
        return self.norm2(x + self.dropout(self.output(F.gelu(self.intermediate(x)))))


class Bert(nn.Module):
    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.words, self.positions, self.types = (
            nn.Embedding(VOCABULARY, width),
            nn.Embedding(16, width),
            nn.Embedding(2, width),
        )
        self.register_buffer("position_ids", torch.arange(16).expand((1, -1)))
        self.norm = nn.LayerNorm(width)
        self.layers = nn.ModuleList([BertLayer(width, 4, 48) for _ in range(2)])
        self.pooler, self.classifier = nn.Linear(width, width), nn.Linear(width, 3)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        positions = self.position_ids[:, : tokens.size(1)]
        x = self.norm(self.words(tokens) + self.positions(positions) + self.types(torch.zeros_like(tokens)))
        bias = (1.0 - mask[:, None, None, :].to(x.dtype)) * -10000.0
        for layer in self.layers:
            x = layer(x, bias)
        return self.classifier(torch.tanh(self.pooler(x[:, 0])))


class Conv1D(nn.Module):
    """GPT-2's linear layer, whose weight is stored [in, out]."""

    def __init__(self, n_out: int, n_in: int) -> None:
        super().__init__()
        self.n_out = n_out
        self.weight, self.bias = nn.Parameter(torch.randn(n_in, n_out) * 0.1), nn.Parameter(torch.zeros(n_out))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view((*x.size()[:-1], self.n_out))


class GPT2Block(nn.Module):
    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        self.width, self.n_heads = width, n_heads
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.c_attn, self.c_proj = Conv1D(3 * width, width), Conv1D(width, width)
        self.c_fc, self.c_out = Conv1D(4 * width, width), Conv1D(width, 4 * width)
        self.register_buffer("bias", torch.tril(torch.ones(32, 32, dtype=torch.bool)).view(1, 1, 32, 32))

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        q, k, v = self.c_attn(self.ln_1(x)).split(self.width, dim=2)
        q, k, v = (t.view(n, length, self.n_heads, width // self.n_heads).transpose(1, 2) for t in (q, k, v))
        scores = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
        scores = scores.masked_fill(self.bias[:, :, :length, :length] == 0, float("-inf"))
        y = (F.softmax(scores, dim=-1) @ v).transpose(1, 2).contiguous().view(n, length, width)
        x = x + self.c_proj(y)
        return x + self.c_out(F.gelu(self.c_fc(self.ln_2(x)), approximate="tanh"))


class GPT2(nn.Module):
    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(VOCABULARY, width), nn.Embedding(32, width)
        self.h = nn.ModuleList([GPT2Block(width, 3) for _ in range(2)])
        self.ln_f = nn.LayerNorm(width)
        self.lm_head = nn.Linear(width, VOCABULARY, bias=False)
        self.lm_head.weight = self.wte.weight

    def forward(self, tokens: Tensor) -> Tensor:
        positions = torch.arange(0, tokens.size(1), device=tokens.device)
        x = self.wte(tokens) + self.wpe(positions)
        for block in self.h:
            x = block(x)
        return self.lm_head(self.ln_f(x))


class RMSNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


def rotate_half(x: Tensor) -> Tensor:
    x1, x2 = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    return torch.cat((-x2, x1), dim=-1)


class LlamaLayer(nn.Module):
    def __init__(self, width: int, n_heads: int, n_kv_heads: int) -> None:
        super().__init__()
        self.n_heads, self.n_kv_heads, self.head_dim = n_heads, n_kv_heads, width // n_heads
        self.q_proj = nn.Linear(width, n_heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(width, n_kv_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(width, n_kv_heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(n_heads * self.head_dim, width, bias=False)
        self.gate_proj, self.up_proj = nn.Linear(width, 40, bias=False), nn.Linear(width, 40, bias=False)
        self.down_proj = nn.Linear(40, width, bias=False)
        self.norm1, self.norm2 = RMSNorm(width), RMSNorm(width)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        n, length, _ = x.shape
        y = self.norm1(x)
        q = self.q_proj(y).view(n, length, self.n_heads, self.head_dim).transpose(1, 2)
        k = self.k_proj(y).view(n, length, self.n_kv_heads, self.head_dim).transpose(1, 2)
        v = self.v_proj(y).view(n, length, self.n_kv_heads, self.head_dim).transpose(1, 2)
        q, k = q * cos + rotate_half(q) * sin, k * cos + rotate_half(k) * sin
        repeats = self.n_heads // self.n_kv_heads
        k = (
            k[:, :, None]
            .expand(n, self.n_kv_heads, repeats, length, self.head_dim)
            .reshape(n, self.n_heads, length, -1)
        )
        v = v.repeat_interleave(repeats, dim=1)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o_proj(y.transpose(1, 2).reshape(n, length, self.n_heads * self.head_dim))
        y = self.norm2(x)
        return x + self.down_proj(F.silu(self.gate_proj(y)) * self.up_proj(y))


class Llama(nn.Module):
    """rotary: "buffer" keeps cos and sin as tables, "inverse" computes them from inverse frequencies, "integer" from
    nothing but integers."""

    def __init__(self, rotary: str = "buffer", width: int = 32, n_heads: int = 4) -> None:
        super().__init__()
        self.rotary, self.head_dim = rotary, width // n_heads
        self.embed = nn.Embedding(VOCABULARY, width)
        self.layers = nn.ModuleList([LlamaLayer(width, n_heads, 2) for _ in range(2)])
        self.norm, self.lm_head = RMSNorm(width), nn.Linear(width, VOCABULARY, bias=False)
        inverse = 1.0 / 10000 ** (torch.arange(0, self.head_dim, 2).double() / self.head_dim)
        angles = torch.outer(torch.arange(32).double(), inverse)
        if rotary == "inverse":
            self.register_buffer("inverse", inverse)
        elif rotary == "buffer":
            self.register_buffer("cos", torch.cat([angles, angles], -1).cos())
            self.register_buffer("sin", torch.cat([angles, angles], -1).sin())

    def tables(self, length: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        if self.rotary == "buffer":
            return self.cos[:length], self.sin[:length]
        inverse = self.inverse if self.rotary == "inverse" else 1.0 / 10000 ** (
            torch.arange(0, self.head_dim, 2).to(dtype) / self.head_dim
        )  # fmt: skip
        angles = torch.arange(length).to(dtype)[:, None] * inverse[None, :]
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos(), angles.sin()

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        cos, sin = self.tables(tokens.shape[1], x.dtype)
        for layer in self.layers:
            x = layer(x, cos, sin)
        return self.lm_head(self.norm(x))


class EncoderDecoder(nn.Module):
    """nn.Transformer with its nn.MultiheadAttention: self and cross attention, a causal mask, and output weights."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(VOCABULARY, width), nn.Embedding(VOCABULARY, width)
        self.position = nn.Parameter(torch.randn(16, width) * 0.1)
        self.transformer = nn.Transformer(
            width, 4, num_encoder_layers=1, num_decoder_layers=1, dim_feedforward=32, batch_first=True
        )
        self.generator = nn.Linear(width, VOCABULARY)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(target.size(1), dtype=self.position.dtype)
        x = self.source(source) + self.position[: source.size(1)]
        y = self.target(target) + self.position[: target.size(1)]
        return self.generator(self.transformer(x, y, tgt_mask=mask, tgt_is_causal=True))
