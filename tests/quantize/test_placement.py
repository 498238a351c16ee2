import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lighten.graph.capture import capture
from lighten.quantize.placement import Placement, place, pool_after_clipping_

IMAGE = (torch.zeros(2, 3, 8, 8),)


class Net(nn.Module):
    """Two convolutions and a linear layer; forward(net, x) is given."""

    def __init__(self, forward) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 4, 3, padding=1)
        self.b = nn.Conv2d(4, 4, 3, padding=1)
        self.fc = nn.Linear(4, 5)
        self.how = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.how(self, x)


def placed(forward, exclude: tuple[str, ...] = ()) -> Placement:
    graph = capture(Net(forward), IMAGE).graph
    pool_after_clipping_(graph)
    graph.lint()
    return place(graph, exclude)


def names(placement: Placement) -> tuple[list[str], dict[str, str]]:
    return [node.name for node in placement.points], {n.name: root.name for n, root in placement.followers.items()}


# The chain: what is quantized with a scale of its own, and which tensor passes whose scale on.
CHAINS = {
    "conv-relu": (lambda m, x: m.b(F.relu(m.a(x))), ["x", "relu", "conv2d_1"], {}),
    "conv-relu6": (lambda m, x: m.b(F.relu6(m.a(x))), ["x", "relu6", "conv2d_1"], {}),
    "conv-hardtanh-from-0": (lambda m, x: m.b(F.hardtanh(m.a(x), 0, 4)), ["x", "hardtanh", "conv2d_1"], {}),
    # Codes cannot begin at exactly -1, so that this clipping is not the rounding's, and the convolution ends before it.
    "conv-hardtanh": (lambda m, x: m.b(F.hardtanh(m.a(x))), ["x", "conv2d", "hardtanh", "conv2d_1"], {}),
    # Zeros are a code of every scale; other numbers need not be.
    "pad-with-zeros": (
        lambda m, x: m.b(F.pad(F.relu(m.a(x)), (0, 1, 0, 1))),
        ["x", "relu", "conv2d_1"],
        {"pad": "relu"},
    ),
    "pad-with-ones": (
        lambda m, x: m.b(F.pad(F.relu(m.a(x)), (0, 1, 0, 1), value=1.0)),
        ["x", "relu", "pad", "conv2d_1"],
        {},
    ),
    "conv-silu": (lambda m, x: m.b(F.silu(m.a(x))), ["x", "conv2d", "silu", "conv2d_1"], {}),
    "relu-read-twice": (lambda m, x: m.b(F.relu(y := m.a(x))) + y, ["x", "conv2d", "relu", "conv2d_1"], {}),
    "residual": (
        lambda m, x: m.b(F.relu(m.b(y := F.relu(m.a(x))) + y)).mean(),
        ["x", "relu"],  # b runs twice and stays float, so that nothing after a is wanted
        {},
    ),
    "residual-of-two": (
        lambda m, x: m.fc(F.relu(m.b(y := F.relu(m.a(x))) + y).mean((2, 3))),
        ["x", "relu", "conv2d_1", "relu_1", "mean"],
        {},
    ),
    "scaled-add": (
        lambda m, x: m.fc(torch.add(m.b(y := F.relu(m.a(x))), y, alpha=2).mean((2, 3))),
        ["x", "relu", "conv2d_1", "add", "mean"],
        {},
    ),
    "concat": (
        lambda m, x: m.b(torch.cat([y := F.relu(m.a(x)), F.max_pool2d(y, 1)], 2)),
        ["x", "relu", "cat", "conv2d_1"],
        {"max_pool2d": "relu"},
    ),
    "maxpool-flatten": (
        lambda m, x: m.fc(F.max_pool2d(F.relu(m.a(x)), 8).flatten(1)),
        ["x", "relu"],
        {"max_pool2d": "relu", "flatten": "relu"},
    ),
    "maxpool-before-relu": (
        lambda m, x: m.b(F.relu(F.max_pool2d(m.a(x), 2))),
        ["x", "relu", "conv2d_1"],
        {"max_pool2d": "relu"},
    ),
    "chunk": (
        lambda m, x: m.fc(torch.cat(m.a(x).chunk(2, 1)[::-1], 1).permute(0, 2, 3, 1)),
        ["x", "conv2d", "cat"],
        {"getitem": "conv2d", "getitem_1": "conv2d", "permute": "cat"},
    ),
    "product": (
        lambda m, x: m.b(m.a(x)).flatten(1, 2) @ x.exp().flatten(1, 2).transpose(1, 2),
        ["x", "conv2d", "conv2d_1", "exp"],
        {"flatten": "conv2d_1", "flatten_1": "exp", "transpose": "exp"},
    ),
    "product-of-parts": (  # each with a scale of its own
        lambda m, x: m.a(x).flatten(2).chunk(2, 1)[0] @ x.exp().flatten(2)[:, :2].transpose(1, 2),
        ["x", "conv2d", "getitem", "exp"],
        {"flatten_1": "exp", "slice_1": "exp", "slice_2": "exp", "transpose": "exp"},
    ),
    "linear-last": (lambda m, x: m.fc(F.avg_pool2d(x[:, 0], 1, 2)), ["avg_pool2d"], {}),
    "floats-joined": (lambda m, x: m.a(x.exp() + x), ["add", "conv2d"], {}),
}


@pytest.mark.parametrize("name", CHAINS)
def test_tensors_that_are_quantized(name: str) -> None:
    forward, points, followers = CHAINS[name]
    got_points, got_followers = names(placed(forward))
    assert got_points == points
    assert got_followers == followers


def test_excluded_layers_stay_float_and_say_so() -> None:
    placement = placed(lambda m, x: m.fc(m.b(F.relu(m.a(x))).mean((2, 3))), exclude=("b",))
    assert placement.skipped == {"b": "not quantized: excluded"}
    assert list(placement.weighted.values()) == ["a", "fc"]
    assert names(placement) == (["x", "relu", "mean"], {})  # what b writes is averaged as it is


def test_a_layer_called_twice_stays_float() -> None:
    placement = placed(lambda m, x: m.b(m.b(m.a(x))))
    assert placement.skipped == {"b": "not quantized: its weight is shared with another layer"}
    assert list(placement.weighted.values()) == ["a"]


def test_tied_weights_stay_float_under_both_names() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    placement = place(capture(model, (torch.zeros(2, 4),)).graph)
    assert list(placement.skipped) == ["0", "2"]
    assert not placement.points


def test_a_computed_weight_stays_float() -> None:
    placement = placed(lambda m, x: m.b(F.conv2d(x, m.a.weight * 2, None, padding=1)))
    assert placement.skipped == {"": "not quantized: its weight is computed, not stored"}


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (nn.ConvTranspose2d(3, 4, 2), torch.zeros(2, 3, 8, 8)),
        (nn.ConvTranspose3d(3, 4, 2), torch.zeros(2, 3, 4, 4, 4)),
        (nn.Embedding(5, 4), torch.zeros(2, 3, dtype=torch.int64)),
        (nn.LSTM(4, 4), torch.zeros(2, 3, 4)),
    ],
)
def test_layers_without_an_integer_kernel_are_named(layer: nn.Module, x: Tensor) -> None:
    placement = place(capture(nn.Sequential(nn.Identity(), layer), (x,)).graph)
    assert list(placement.skipped) == ["1"]
    assert "has no integer kernel" in placement.skipped["1"]


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_what_a_recurrent_layer_returns_has_a_scale_of_its_own(kind: type[nn.Module]) -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.fc = kind(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.cell(x)[0].transpose(0, 1))

    placement = place(capture(Recurrent(), (torch.zeros(5, 3, 4),)).graph)
    assert names(placement) == (["getitem"], {"transpose": "getitem"})


@pytest.mark.parametrize("clip", [F.relu, F.relu6, F.hardtanh])
def test_swapping_pool_and_clipping_changes_nothing(clip) -> None:
    model = Net(lambda m, x: m.b(clip(F.max_pool2d(m.a(x), 3, stride=2, padding=1))))
    captured = capture(model, IMAGE)
    pool_after_clipping_(captured.graph)
    captured.recompile()
    x = torch.randn(2, 3, 9, 9)
    assert torch.equal(captured(x), model(x))
