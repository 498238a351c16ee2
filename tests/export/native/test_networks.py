"""Networks of many kinds on the native engine against the float module, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

pytest.importorskip("llvmlite")

import lighten
from lighten.errors import CaptureError
from lighten.export.native import to_native
from lighten.export.native.products import stride_apart
from lighten.graph.capture import capture
from tests.networks.language import Bert
from tests.networks.vision_transformers import Mixer, Swin, ViT
from tests.runtime.native.guarded import close, guarded_run, random, written


class Encoder(nn.Module):
    """BERT-style, on embedded tokens: norms after sums, attention written out, a pooler of the first token."""

    def __init__(self, width: int = 24, n_heads: int = 4) -> None:
        super().__init__()
        self.positions, self.norm = nn.Embedding(11, width), nn.LayerNorm(width)
        self.query, self.key, self.value, self.dense = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 48), nn.Linear(48, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.pooler, self.classifier, self.n_heads = nn.Linear(width, width), nn.Linear(width, 3), n_heads

    def heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], self.n_heads, -1).permute(0, 2, 1, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x + self.positions(torch.arange(x.shape[1])))
        q, k, v = self.heads(self.query(x)), self.heads(self.key(x)), self.heads(self.value(x))
        scores = torch.matmul(q, k.transpose(-1, -2)) / q.shape[-1] ** 0.5
        context = torch.matmul(scores.softmax(-1), v).permute(0, 2, 1, 3).contiguous()
        x = self.norm1(x + self.dense(context.view(context.shape[0], context.shape[1], -1)))
        x = self.norm2(x + self.down(F.gelu(self.up(x))))
        return self.classifier(torch.tanh(self.pooler(x[:, 0])))


class Causal(nn.Module):
    """GPT-2's way: a linear layer as addmm over all tokens of the batch, chunks, a causal mask."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.norm, self.weight, self.bias = (
            nn.LayerNorm(width),
            nn.Parameter(random(0, width, 48)),
            nn.Parameter(random(1, 48)),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        qkv = torch.addmm(self.bias, y.view(-1, x.shape[-1]), self.weight).view(*x.shape[:2], -1)
        q, k, v = (each.unflatten(-1, (4, 4)).transpose(1, 2) for each in qkv.chunk(3, -1))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return 1 - (x + y.transpose(1, 2).reshape(x.shape)) * 0.5


class Scaled(nn.Module):
    """A batch norm before any convolution, attention with a mask that the input makes."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(5)
        self.norm.running_mean, self.norm.running_var = random(0, 5), random(1, 5) ** 2

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm(x))
        return F.scaled_dot_product_attention(y, x, y, attn_mask=y @ x.transpose(1, 2), scale=2.0)


class UNet(nn.Module):
    """Down and up again: transposed convolutions, with what went past them; nearest numbers, shuffled ones."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.deep = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 16, 3, 2, 1)
        self.up, self.out = nn.ConvTranspose2d(16, 8, 4, 2, 1, groups=2), nn.ConvTranspose2d(16, 4, 2, 2)
        self.line = nn.ConvTranspose1d(4, 3, 3, 2, dilation=2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        first = F.relu(self.down(x))
        deep = F.relu(self.deep(first))
        y = F.relu(self.up(deep) + first)
        z = self.out(torch.cat([y, F.interpolate(deep, scale_factor=2)[:, :8]], 1))
        return z, F.pixel_shuffle(z, 2), self.line(y[:, :4].mean(2))


class ConvNeXt(nn.Module):
    """Channels last between windows, gates, padding, one line of places."""

    def __init__(self) -> None:
        super().__init__()
        self.depth, self.norm, self.scale = (
            nn.Conv2d(8, 8, 3, padding=1, groups=8),
            nn.LayerNorm(8),
            nn.Parameter(random(0, 8)),
        )
        self.up, self.down, self.line = nn.Linear(8, 32), nn.Linear(16, 8), nn.Conv1d(8, 6, 3, stride=2, dilation=2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.up(self.norm(self.depth(x).permute(0, 2, 3, 1)))
        a, b = y.chunk(2, -1)
        x = x + (self.scale * self.down(a * torch.sigmoid(b))).permute(0, 3, 1, 2)
        x = self.depth(F.pad(x, (1, 0, 2, 1), value=0.5))
        return F.max_pool1d(self.line(x.flatten(2)), 2), x.softmax(1)


NETWORKS = {
    "vit": (ViT, (3, 32, 32)),
    "mixer": (Mixer, (3, 32, 32)),
    "swin": (Swin, (3, 32, 32)),
    "encoder": (Encoder, (11, 24)),
    "layer": (lambda: nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), (7, 16)),
    "pre-norm": (lambda: nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True), (7, 16)),
    "causal": (Causal, (9, 16)),
    "scaled": (Scaled, (5, 4)),
    "unet": (UNet, (3, 16, 12)),
    "convnext": (ConvNeXt, (8, 6, 7)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_agree(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    make, shape = NETWORKS[name]
    model, x = make().eval(), torch.randn(3, *shape)
    with torch.no_grad():
        wanted = model(x)
    wanted = wanted if isinstance(wanted, tuple) else (wanted,)
    program, stored = written(model, x, tmp_path)
    shapes = [tuple(each.shape[1:]) for each in wanted]
    first, *others = [guarded_run(program, stored, [x], shapes, 16, count) for count in (1, 2, 3, 8)]
    for got, each in zip(first, wanted, strict=True):
        close(torch.from_numpy(got), each)
    for other in others:
        for got, each in zip(other, first, strict=True):
            np.testing.assert_array_equal(got, each)


@settings(max_examples=40, deadline=None)
@given(
    kernel=st.integers(1, 5),
    stride=st.integers(1, 4),
    padding=st.integers(0, 4),
    dilation=st.integers(1, 3),
    extra=st.integers(0, 3),
    size=st.integers(1, 6),
)
def test_a_transposed_convolution_is_convolutions_a_stride_apart(
    kernel: int, stride: int, padding: int, dilation: int, extra: int, size: int
) -> None:
    out = (size - 1) * stride - 2 * padding + dilation * (kernel - 1) + 1 + extra
    assume(out > 0 and extra < max(stride, dilation))
    x, weight = random(0, 1, 1, size), random(1, 1, 1, kernel)
    wanted = F.conv_transpose1d(x, weight, None, stride, padding, extra, 1, dilation)[0, 0]
    taps, n, width, before = stride_apart(size, out, kernel, stride, padding, dilation)
    parts = torch.zeros(n, 1, width)
    for a, k, at in taps:
        parts[a, 0, at] = weight[0, 0, k]
    torch.testing.assert_close(F.conv1d(x, parts, padding=before)[0].T.flatten()[:out], wanted)


def test_tokens_and_a_mask_come_in_as_integers(tmp_path: Path) -> None:
    tokens, mask = torch.randint(0, 40, (3, 9)), (torch.rand(3, 9) < 0.7).long()
    model = Bert().eval()
    lighten.export(model, (tokens, mask), tmp_path / "out", runtime="native")
    close(lighten.load(tmp_path / "out")(tokens, mask), model(tokens, mask).detach())


def test_queries_keys_and_values_are_read_where_they_lie(tmp_path: Path) -> None:
    """No copy between the layer that makes them and the one that reads what attention makes."""
    program, _ = written(
        nn.TransformerEncoderLayer(16, 4, 32, batch_first=True).eval(), torch.randn(2, 7, 16), tmp_path
    )
    kinds = " ".join(op.kind for op in program.ops if op.kind != "constant")
    assert kinds == "gather conv matmul softmax matmul conv elements norm conv conv norm gather"


def test_a_single_number_a_sample_is_an_output_too(tmp_path: Path) -> None:
    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x)[:, 1]

    model, x = One().eval(), torch.randn(3, 4)
    lighten.export(model, (x,), tmp_path / "out", runtime="native")
    close(lighten.load(tmp_path / "out")(x), model(x).detach())


def test_numbers_that_the_input_chooses_are_refused() -> None:
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.randn(9, 4))

        def forward(self, x: Tensor) -> Tensor:
            return self.table[x]

    x = torch.randint(0, 9, (2, 5))
    with pytest.raises(CaptureError, match=r"aten.index.Tensor"):
        to_native(capture(Table(), (x,)), (x,))


def test_what_attention_lacks_is_refused() -> None:
    class Dropped(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(x, x, x, dropout_p=0.5)

    class Mixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.softmax(0)

    for model, reason in ((Dropped(), "dropout_p=0.5"), (Mixed(), "softmax.*batch")):
        x = torch.randn(2, 5, 4)
        with pytest.raises(CaptureError, match=reason):
            to_native(capture(model, (x,)), (x,))
