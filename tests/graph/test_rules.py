"""One operator at a time: what it does to channels, and what it must refuse."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lighten.errors import ConfigError
from lighten.graph.capture import capture
from lighten.graph.groups import find_groups
from lighten.graph.labels import propagate
from lighten.graph.rewrite import remove_units_, zero_units_

PERMUTATION = torch.tensor([3, 1, 4, 0, 5, 2, 7, 6])


class Between(nn.Module):
    """A convolution of 8 channels, something, and a convolution or linear layer that reads them."""

    def __init__(self, something: Callable[[nn.Module, Tensor], Tensor], reads: int) -> None:
        super().__init__()
        self.something = something
        self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(reads, 4, 1)
        self.table = nn.Parameter(torch.randn(6, 8))
        self.slope = nn.Parameter(torch.rand(8))
        self.register_buffer("order", PERMUTATION)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.something(self, self.first(x)))


def with_parameter_as_input(m: Between, x: Tensor) -> Tensor:
    return x * m.table[2:3].mean(0).view(1, -1, 1, 1)


def interleaved(m: Between, x: Tensor) -> Tensor:
    return torch.stack((-x[:, 1::2], x[:, ::2]), dim=2).flatten(1, 2) + x


CASES: dict[str, tuple[Callable[[Between, Tensor], Tensor], int, list[int]]] = {
    # name: what happens, channels that are read after it, units of the group that is found
    "roll": (lambda m, x: x.roll(3, 1), 8, [8]),
    "constant index": (lambda m, x: x[:, m.order], 8, [8]),
    "index_select": (lambda m, x: x.index_select(1, m.order), 8, [8]),
    "select": (lambda m, x: x + x[:, 2:3] * 0, 8, [7]),  # the channel that all others read stays
    "steps": (lambda m, x: x[:, ::2], 4, []),
    "interleaved": (interleaved, 8, [4]),  # pairs go together, so every second channel is still every second
    "stack": (lambda m, x: torch.stack([x, x * 2], 1).flatten(1, 2), 16, [8]),
    "repeat_interleave": (lambda m, x: x.repeat_interleave(2, dim=1), 16, [8]),
    "repeat": (lambda m, x: x.repeat(1, 2, 1, 1), 16, [8]),
    "glu": (lambda m, x: F.glu(x, 1), 4, [4]),
    "prelu": (lambda m, x: F.prelu(x, m.slope), 8, [8]),
    "unfold and fold": (lambda m, x: F.fold(F.unfold(x, 3, padding=1), (6, 6), 3, padding=1), 8, [8]),
    "channel_shuffle": (lambda m, x: F.channel_shuffle(x, 2), 8, [4]),
    "pixel_unshuffle": (lambda m, x: F.pixel_unshuffle(x, 2), 32, [8]),
    "interpolate": (lambda m, x: F.interpolate(x, scale_factor=2.0, mode="bicubic"), 8, [8]),
    "constants": (lambda m, x: x + torch.zeros(1, 8, 1, 1) + torch.full((8, 1, 1), 2.0), 8, [8]),
    "arange": (lambda m, x: x * torch.arange(8.0).view(1, 8, 1, 1), 8, []),
    "cumsum over rows": (lambda m, x: x.cumsum(2), 8, [8]),
    "cumsum over channels": (lambda m, x: x.cumsum(1), 8, []),
    "softmax over channels": (lambda m, x: x.softmax(1), 8, []),
    "softmax over columns": (lambda m, x: x.softmax(-1), 8, [8]),
    "std over pixels": (lambda m, x: x / (x.std((2, 3), keepdim=True) + 1), 8, [8]),
    "norm over channels": (lambda m, x: F.normalize(x, dim=1), 8, [8]),  # zeros add nothing to a norm
    "sum over shifted channels": (lambda m, x: x / (x.exp().sum(1, keepdim=True)), 8, []),  # exp(0) is 1
    "carried parameter": (with_parameter_as_input, 8, [8]),
    "gate": (lambda m, x: x * torch.sigmoid(x[:, :1]), 8, [7]),
    "gram": (lambda m, x: x * (x.flatten(2) @ x.flatten(2).transpose(1, 2)).mean((1, 2))[:, None, None, None], 8, []),
    "layer norm over columns": (lambda m, x: F.layer_norm(x, (6,)), 8, [8]),
    "layer norm over all": (lambda m, x: F.layer_norm(x, (8, 6, 6)), 8, []),
    "group norm": (lambda m, x: F.group_norm(x, 2), 8, [2]),
    "group norm of one": (lambda m, x: F.group_norm(x, 1), 8, []),
    "mT": (lambda m, x: x.mT, 8, [8]),
    "axes by other names": (lambda m, x: x.moveaxis(1, 3).swapdims(2, 3).swapaxes(1, 2), 8, [8]),
    "turned": (lambda m, x: x.rot90(1, (2, 3)).fliplr().flipud(), 8, [8]),
    "ravel": (lambda m, x: x.ravel().view(x.shape), 8, [8]),
    "hstack": (lambda m, x: torch.hstack([x, x * 2]), 16, [8]),
    "dstack": (lambda m, x: torch.dstack([x, x * 2]), 8, [8]),
    "concatenate": (lambda m, x: torch.concatenate([x, x * 2], 1), 16, [8]),
    "tensor_split": (lambda m, x: torch.cat(torch.tensor_split(x, 2, 1)[::-1], 1), 8, [8]),
    "tensor_split at": (lambda m, x: torch.cat(torch.tensor_split(x, (3,), 1)[::-1], 1), 8, [8]),
    "unsafe_chunk": (lambda m, x: torch.mul(*x.unsafe_chunk(2, 1)), 4, [4]),
    "broadcast_to": (lambda m, x: x.mean((2, 3), keepdim=True).broadcast_to(2, 8, 6, 6), 8, [8]),
    "median of columns": (lambda m, x: x - x.median(3, keepdim=True)[0], 8, [8]),
    "cummax over rows": (lambda m, x: x.cummax(2)[0], 8, [8]),
    "in place on a view": (lambda m, x: x.flatten(2).relu_().view(x.shape), 8, [8]),
    "one after the other": (lambda m, x: torch.cat([x[:, i : i + 1] for i in range(8)], 1), 8, []),
}


@pytest.mark.parametrize("name", CASES)
def test_removing_equals_zeroing_around_one_operator(name: str) -> None:
    something, reads, sizes = CASES[name]
    torch.manual_seed(0)
    model = Between(something, reads).double().eval()
    x = (torch.randn(2, 3, 6, 6, dtype=torch.float64),)
    captured = capture(model, x)
    labels = propagate(captured, x)
    groups = find_groups(labels)
    assert [len(group.units) for group in groups] == sizes
    gone = torch.cat([torch.zeros(0, dtype=torch.int64), *(group.units[1::2] for group in groups)])
    zeroed, removed = copy.deepcopy(captured), copy.deepcopy(captured)
    zero_units_(zeroed, labels, gone)
    remove_units_(removed, labels, gone, x)
    torch.testing.assert_close(removed(*x), zeroed(*x), rtol=1e-10, atol=1e-10)


class Pooled(nn.Module):
    """Channels pass a linear layer over pixels, whose bias makes a zeroed channel other than 0, and are then summed."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pixels, self.out = nn.Conv2d(3, 8, 1), nn.Linear(36, 5), nn.Linear(25, 2)
        self.row = nn.Parameter(torch.randn(1, 1, 5))

    def forward(self, x: Tensor) -> Tensor:
        y = self.pixels(self.conv(x).flatten(2))
        z = self.conv(x).flatten(2)[:, :, :5] + self.row
        return self.out((y.transpose(1, 2) @ y + z.transpose(1, 2) @ z).flatten(1))


def test_a_bias_on_the_way_makes_a_sum_of_channels_inexact() -> None:
    x = (torch.randn(2, 3, 6, 6, dtype=torch.float64),)
    labels = propagate(capture(Pooled().double(), x), x)
    assert all("conv" not in group.producers for group in find_groups(labels))
    assert "conv" in labels.frozen


class Transposed(nn.Module):
    """Weights that are looked at through views: transposed, cut, shared with an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.pair = nn.Parameter(torch.randn(6, 10)), nn.Parameter(torch.randn(20, 10))
        self.bias, self.out = nn.Parameter(torch.randn(20)), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.pair.chunk(2)
        x = torch.tanh(x @ self.weight)
        return self.out(
            F.linear(x, left, self.bias[:10]) * F.linear(x, right, self.bias[10:]) + x @ self.weight.t() @ self.weight
        )


def test_views_of_weights_are_looked_through() -> None:
    torch.manual_seed(0)
    x = (torch.randn(4, 6, dtype=torch.float64),)
    captured = capture(Transposed().double(), x)
    labels = propagate(captured, x)
    groups = find_groups(labels)
    assert [(len(g.units), g.producers) for g in groups] == [(10, ("weight", "pair"))]
    zeroed, removed = copy.deepcopy(captured), copy.deepcopy(captured)
    zero_units_(zeroed, labels, groups[0].units[:4])
    remove_units_(removed, labels, groups[0].units[:4], x)
    torch.testing.assert_close(removed(*x), zeroed(*x), rtol=1e-10, atol=1e-10)
    assert removed.get_parameter("pair").shape == (12, 6)


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (2, 4)).transpose(1, 2) for f in (self.q, self.k, self.v))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class ComputedWeights(nn.Module):
    """Both layers look at all of a filter before they use it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Conv2d(3, 8, 3), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        w = self.first.weight
        x = F.conv2d(x, (w - w.mean((1, 2, 3), keepdim=True)) / w.std((1, 2, 3), keepdim=True)).mean((2, 3))
        return self.last(F.linear(x, F.normalize(self.middle.weight, dim=1)))


def test_layers_whose_weight_is_computed_stay_and_are_named() -> None:
    x = torch.randn(2, 3, 6, 6)
    frozen = propagate(capture(ComputedWeights(), (x,)), (x,)).frozen
    assert "its weight is computed" in frozen["first"]
    assert "its weight is computed" in frozen["middle"]
    assert "an output of the model" in frozen["last"]


def test_the_scale_of_attention_stays_that_of_the_original_head() -> None:
    x = (torch.randn(2, 5, 8, dtype=torch.float64),)
    captured = capture(Scaled().double(), x)
    labels = propagate(captured, x)
    group = next(g for g in find_groups(labels) if g.producers == ("q", "k"))
    remove_units_(captured, labels, group.units[:2], x)
    node = next(n for n in captured.graph.nodes if n.target == torch.ops.aten.scaled_dot_product_attention.default)
    assert node.kwargs["scale"] == 4**-0.5
    assert captured.get_parameter("q.weight").shape == (4, 8)


def test_an_unknown_policy_is_refused() -> None:
    x = (torch.randn(2, 5, 8),)
    with pytest.raises(ConfigError, match=r"keep='heads' is unknown. Use one of channel, head, head_dim"):
        propagate(capture(Scaled(), x), x, keep="heads")


def test_a_hundred_layers_are_found_in_seconds() -> None:
    import time

    from tests.networks.vision_transformers import ViTBlock

    torch.manual_seed(0)
    model = nn.Sequential(*(ViTBlock(24, 4) for _ in range(25)))  # 100 linear layers
    x = (torch.randn(2, 9, 24),)
    captured = capture(model, x)
    start = time.process_time()
    groups = find_groups(propagate(captured, x))
    assert time.process_time() - start < 10  # processor time: 0.2 s, and a busy machine makes that grow too
    assert len(groups) == 50
