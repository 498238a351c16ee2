"""Single operators on the native engine against torch, several to a network, NaN and infinity among the numbers."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

pytest.importorskip("llvmlite")

from lighten.errors import CaptureError
from lighten.export.native import to_native
from lighten.graph.capture import capture
from tests.networks import build
from tests.runtime.native.guarded import close, guarded_run, random, written

Function = Callable[[Tensor], Tensor]
MASK = torch.tensor([True, False, True, True, False, True])

ELEMENTS: dict[str, Function] = {
    "leaky_relu": lambda x: F.leaky_relu(x, 0.2),
    "steep": lambda x: F.leaky_relu(x, -1.5),
    "elu": lambda x: F.elu(x, 0.7),
    "selu": F.selu,
    "celu": lambda x: F.celu(x, 0.5),
    "softplus": lambda x: F.softplus(x, 2.0, 15.0),
    "mish": F.mish,
    "prelu": lambda x: F.prelu(x, torch.linspace(-1, 1, x.shape[1])),
    "hardtanh": lambda x: F.hardtanh(x, -0.5, 2.0),
    "clamp": lambda x: x.clamp(max=0.25),
    "between": lambda x: x.clamp(x[:, :1], x[..., :1]),
    "logsigmoid": F.logsigmoid,
    "softsign": F.softsign,
    "hardshrink": F.hardshrink,
    "softshrink": F.softshrink,
    "tanhshrink": F.tanhshrink,
    "threshold": lambda x: F.threshold(x, 0.1, 20.0),
    "glu": lambda x: F.glu(x, -1),
    "abs": torch.abs,
    "exp": torch.exp,
    "log": torch.log,
    "log1p": lambda x: torch.log1p(x.abs()),
    "erf": torch.erf,
    "sqrt": torch.sqrt,
    "rsqrt": torch.rsqrt,
    "square": torch.square,
    "cube": lambda x: x**3,
    "inverse": lambda x: x**-1,
    "inverse square": lambda x: x**-2,
    "root": lambda x: x.abs() ** 0.5,
    "power": lambda x: x.abs() ** 0.75,
    "quotient": lambda x: x / x.flip(1),
    "of a constant": lambda x: 3.0 / x,
    "maximum": lambda x: torch.maximum(x, x.flip(1)),
    "minimum": lambda x: torch.minimum(x, x[:, :1]),
    "by channel": lambda x: x * x[..., :1],
    "by place": lambda x: x - x[:, :1],
    "outer": lambda x: x[:, :, :1] + x[:, :1],
    "where": lambda x: torch.where(x > 0.5, x, -2.0 * x),
    "constant mask": lambda x: torch.where(MASK, x, torch.ones(())),
    "filled": lambda x: x.masked_fill(x.isnan() | (x == 0.5), -1.0),
    "both": lambda x: x.masked_fill((x > -1) & ~(x >= 1), math.inf),
    "equal": lambda x: (x != x.flip(-1)).float() + (x <= 0).float(),
    "as a mask": lambda x: x.bool().float(),
}
REDUCTIONS: dict[str, Function] = {
    "sum of channels": lambda x: x.sum(1),
    "sum of places": lambda x: x.sum((2, 3), keepdim=True),
    "sum of lines": lambda x: x.sum(2),
    "all": lambda x: x.mean((1, 2, 3)),
    "mean of channels": lambda x: x.mean(1, keepdim=True),
    "largest": lambda x: x.amax((-1, -2)),
    "smallest": lambda x: x.amin(1),
    "largest of a line": lambda x: x.max(3).values,
    "variance": lambda x: x.var((2, 3)),
    "deviation": lambda x: x.std(1, correction=0),
    "length": lambda x: F.normalize(x, dim=1),
    "lengths of places": lambda x: torch.linalg.vector_norm(x, 1, (2, 3)),
    "largest size": lambda x: torch.linalg.vector_norm(x, math.inf, 1),
    "log_softmax": lambda x: F.log_softmax(50 * x, 1),
    "softmin": lambda x: F.softmin(x, -1),
    "logsumexp": lambda x: x.logsumexp(1),
    "running sum": lambda x: x.cumsum(-1),
    "of tokens": lambda x: x.flatten(2).transpose(1, 2).sum(-1),
}
NORMS: dict[str, Function] = {
    "group": lambda x: F.group_norm(x, 2, torch.linspace(0.5, 2, x.shape[1]), torch.linspace(-1, 1, x.shape[1])),
    "one group": lambda x: F.group_norm(x, 1),
    "vectors": lambda x: F.group_norm(x[:, :, 0, 0], 2),
    "instance": lambda x: F.instance_norm(x, weight=torch.linspace(0.5, 2, x.shape[1])),
    "line": lambda x: F.instance_norm(x[:, :, 1]),
    "rms": lambda x: F.rms_norm(x, x.shape[-1:], torch.linspace(0.5, 2, x.shape[-1])),
    "rms by hand": lambda x: x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 1e-6),
    "layer by hand": lambda x: (x - x.mean(1, keepdim=True)) / torch.sqrt(x.var(1, keepdim=True) + 1e-6),
    "response": lambda x: F.local_response_norm(x, 3, alpha=0.5),
}
PLANES: dict[str, Function] = {
    "bilinear": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    "corners": lambda x: F.interpolate(x, size=(9, 5), mode="bilinear", align_corners=True),
    "smaller": lambda x: F.interpolate(x, scale_factor=(0.6, 1.3), mode="bilinear"),
    "bicubic": lambda x: F.interpolate(x, scale_factor=1.5, mode="bicubic"),
    "linear": lambda x: F.interpolate(x[:, :, 0], scale_factor=2, mode="linear"),
    "nearest": lambda x: F.interpolate(x, size=(11, 4), mode="nearest-exact"),
    "adaptive": lambda x: F.adaptive_avg_pool2d(x, (3, 4)),
    "one": lambda x: F.adaptive_avg_pool2d(x, 1),
    "ceil": lambda x: F.max_pool2d(x, 3, 2, ceil_mode=True),
    "ceil and padding": lambda x: F.max_pool2d(x, 3, 3, padding=1, ceil_mode=True),
    "line, ceil": lambda x: F.max_pool1d(x[:, :, 0], 2, 2, ceil_mode=True),
    "without padding": lambda x: F.avg_pool2d(x, 3, 2, padding=1, count_include_pad=False),
    "mean, ceil": lambda x: F.avg_pool2d(x, 2, 2, ceil_mode=True),
    "reflected": lambda x: F.pad(x, (1, 2, 2, 0), mode="reflect"),
    "around": lambda x: F.pad(x, (1, 2, 2, 0), mode="circular"),
    "repeated": lambda x: F.pad(x, (1, 2, 2, 0), mode="replicate"),
    "shuffled": lambda x: F.channel_shuffle(x, 2),
}


class All(nn.Module):
    def __init__(self, functions: dict[str, Function]) -> None:
        super().__init__()
        self.functions = functions

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(function(x) for function in self.functions.values())


def agree(functions: dict[str, Function], x: Tensor, folder: Path) -> None:
    wanted = All(functions)(x)
    program, stored = written(All(functions), x, folder)
    found = guarded_run(program, stored, [x], [tuple(each.shape[1:]) for each in wanted], 16, 2)
    for name, got, want in zip(functions, found, wanted, strict=True):
        try:
            close(torch.from_numpy(got), want)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error


@pytest.mark.parametrize(
    "functions", [REDUCTIONS, NORMS, PLANES, ELEMENTS], ids=["reductions", "norms", "planes", "elements"]
)
def test_operators_are_those_of_torch(functions: dict[str, Function], tmp_path: Path) -> None:
    agree(functions, random(0, 3, 4, 5, 6), tmp_path)


def test_elements_keep_nan_and_infinity(tmp_path: Path) -> None:
    x = 3 * random(1, 2, 4, 5, 6)
    x[0, 0, 0] = torch.tensor([math.nan, math.inf, -math.inf, 0.0, -0.0, 100.0])
    x[1, 1, 1] = torch.tensor([1e-30, -1e-30, 1e30, -100.0, 0.5, 1.0])
    single = {name: f for name, f in ELEMENTS.items() if name not in ("glu", "quotient")}  # sigmoid: see test_native
    agree(single, x, tmp_path)


def test_extremes_are_nan_where_a_number_is(tmp_path: Path) -> None:
    x = random(2, 2, 4, 5, 6)
    x[0, 1, 2, 3] = math.nan
    names = ("largest", "smallest", "largest of a line", "largest size", "sum of channels", "log_softmax")
    agree({name: REDUCTIONS[name] for name in names}, x, tmp_path)


class Attention(nn.Module):
    """Every way to say which keys a query may see, and fewer keys than queries."""

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        q, k = x.unflatten(-1, (4, 3)).transpose(1, 2), x[..., :6].unflatten(-1, (2, 3)).transpose(1, 2)
        attend = F.scaled_dot_product_attention
        shared = attend(q, k, k, is_causal=True, enable_gqa=True)
        hidden = attend(q, q, q, attn_mask=mask[:, None, None, :])
        near = (torch.arange(7)[:, None] - torch.arange(7)).abs() < 2
        near[2] = False
        return shared, hidden, attend(q, q, q, attn_mask=near), attend(q, q, q, attn_mask=(q @ q.mT) > 0)


def test_masks_of_attention(tmp_path: Path) -> None:
    x, mask = random(0, 3, 7, 12), random(1, 3, 7) > 0
    mask[1] = False  # sees nothing at all
    wanted = Attention()(x, mask)
    program, stored = written(Attention(), (x, mask), tmp_path)
    found = guarded_run(program, stored, [x, mask], [tuple(each.shape[1:]) for each in wanted], 16, 2)
    for got, want in zip(found, wanted, strict=True):
        close(torch.from_numpy(got), want)


NETWORKS = ["alexnet", "vgg", "instance-norm", "inception", "unet", "fpn", "gpt2", "llama", "conformer"]
NETWORKS += ["wavenet", "products", "linear-attention", "cosine-attention"]


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_other_operators_agree(name: str, tmp_path: Path) -> None:
    model, (x,) = build(name)
    if x.is_floating_point():
        model, x = model.float(), torch.cat([x, x.flip(-1)]).float()
    with torch.no_grad():
        wanted = torch.utils._pytree.tree_leaves(model.float()(x))
    program, stored = written(model, x, tmp_path)
    found = guarded_run(program, stored, [x.float()], [tuple(each.shape[1:]) for each in wanted], 16, 2)
    for got, want in zip(found, wanted, strict=True):
        close(torch.from_numpy(got), want)


REFUSED: dict[str, tuple[Function, str]] = {
    "axis": (lambda x: x.max(1).indices.float(), "aten.max.*place of the max"),
    "batch": (lambda x: x.sum(0, keepdim=True).expand_as(x), "sum.*mixes the samples"),
    "order": (lambda x: x.sort(1).values, "sort"),
    "length": (lambda x: torch.linalg.vector_norm(x, 3.0, 1), "ord=3"),
    "exponent": (lambda x: x**64, "exponent 64"),
    "volume": (lambda x: F.max_pool3d(x[:, None], 2), "max_pool3d"),
    "3d": (lambda x: F.conv3d(x[:, None], torch.ones(1, 1, 2, 2, 2)), "aten.conv3d"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_it_cannot_compute_is_named(name: str) -> None:
    function, reason = REFUSED[name]
    x = random(0, 2, 4, 6, 6)
    with pytest.raises(CaptureError, match=reason):
        to_native(capture(All({name: function}), (x,)), (x,))
