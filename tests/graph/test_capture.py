import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lighten.errors import CaptureError
from lighten.graph.capture import canonical_names, capture, set_tensor_
from lighten.graph.shapes import node_sizes
from tests.graph.networks import NETWORKS, build


@pytest.mark.parametrize("name", NETWORKS)
def test_captured_graph_computes_the_same_at_any_batch_size(name: str) -> None:
    model, inputs = build(name)
    captured = capture(model, inputs)
    more = torch.utils._pytree.tree_map(lambda x: torch.cat([x, x + 0.1, x - 0.1]), inputs)
    torch.testing.assert_close(captured(*more), model(*more), rtol=1e-12, atol=1e-12)
    assert captured.batch_is_dynamic
    assert list(captured.state_dict()) == [k for k in model.state_dict() if k in captured.state_dict()]


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.norm(self.conv(x)).relu_())


def test_training_mode_drops_and_normalizes_like_the_original() -> None:
    model, x = Noisy(), torch.randn(4, 1, 8, 8)
    captured = capture(model, (x,)).train()
    model.train()
    torch.manual_seed(3)
    want = model(x)
    torch.manual_seed(3)
    assert torch.equal(captured(x), want)
    assert torch.equal(captured.norm.running_mean, model.norm.running_mean)
    assert not captured.norm.running_mean.eq(0).any()


class Standardized(nn.Conv2d):
    """A convolution whose weight has mean 0 and variance 1 in each filter, as in NFNets."""

    def forward(self, x: Tensor) -> Tensor:
        rows = self.weight.reshape(1, len(self.weight), -1)
        weight = F.batch_norm(rows, None, None, training=True, momentum=0.0).reshape_as(self.weight)
        return F.conv2d(x, weight, self.bias)


def test_statistics_that_do_not_follow_the_mode_are_taken_in_both() -> None:
    model, x = Standardized(1, 4, 3), torch.randn(2, 1, 8, 8)
    captured = copy.deepcopy(capture(model, (x,)))
    for mode in (False, True, False):
        assert torch.equal(captured.train(mode)(x), model.train(mode)(x))


def test_a_copy_keeps_its_own_mode_and_its_plan() -> None:
    captured = capture(Noisy(), (torch.randn(2, 1, 8, 8),))
    copied = copy.deepcopy(captured).train()
    x = torch.ones(2, 1, 8, 8)
    assert torch.equal(captured(x), captured(x))
    assert not torch.equal(copied(x), copied(x))
    assert copied.plan == captured.plan


def test_capture_leaves_the_model_as_it_was() -> None:
    model = Noisy().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    capture(model, (torch.randn(2, 1, 8, 8),))
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


class Branch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_a_model_that_cannot_be_traced_is_refused_with_its_line() -> None:
    with pytest.raises(CaptureError, match=r"Branch cannot be traced .*test_capture.py:\d+: return x if x.sum"):
        capture(Branch(), (torch.ones(2, 2),))


class FixedBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(2, 3, 4).flatten(1) * 2


def test_a_fixed_batch_is_captured_and_said() -> None:
    captured = capture(FixedBatch(), (torch.ones(2, 12),))
    assert not captured.batch_is_dynamic
    assert captured(torch.ones(2, 12)).shape == (2, 12)


class Regions(nn.Module):
    """A region without gradients and one without autocast, as around rotary embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            scale = self.fc(x).abs().amax(-1, keepdim=True)
        with torch.autocast("cpu", enabled=False):
            y = self.fc(x.float())
        return y / scale


def test_regions_are_inlined_and_keep_their_gradients() -> None:
    model, x = Regions(), torch.randn(3, 4)
    captured = capture(model, (x,))
    assert not any("wrap_with" in str(node.target) for node in captured.graph.nodes)
    assert torch.equal(captured(x), model(x))
    captured(x).sum().backward()
    model(x).sum().backward()
    assert torch.equal(captured.get_parameter("fc.weight").grad, model.fc.weight.grad)


def test_transformer_layers_are_captured_as_plain_operators() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval().requires_grad_(False)
    captured = capture(layer, (torch.randn(2, 3, 8),))
    assert any(node.target == torch.ops.aten.scaled_dot_product_attention.default for node in captured.graph.nodes)
    assert torch.backends.mha.get_fastpath_enabled()


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.embed(x))


def test_tied_weights_are_replaced_under_all_their_names() -> None:
    captured = capture(Tied(), (torch.zeros(2, 3, dtype=torch.int64),))
    read = next(node.target for node in captured.graph.nodes if node.op == "get_attr")
    assert canonical_names(captured) == {"embed.weight": read, "head.weight": read}
    set_tensor_(captured, read, torch.ones(5, 2))
    assert captured.get_parameter("head.weight") is captured.get_parameter("embed.weight")
    assert captured.get_parameter("head.weight").shape == (5, 2)


def test_shapes_are_found_whatever_the_order_of_a_dict() -> None:
    class Unequal(nn.Module):
        def forward(self, x: dict[str, Tensor]) -> Tensor:
            return x["left"].sum(1) + x["right"].mean(1)

    left, right = torch.ones(2, 3), torch.ones(2, 7)
    captured = capture(Unequal(), ({"left": left, "right": right},))
    straight, crossed = (
        [tuple(size.shape) for size in node_sizes(captured, (given,)).values() if isinstance(size, Tensor)]
        for given in ({"left": left, "right": right}, {"right": right, "left": left})
    )
    assert straight == crossed


class Shared(nn.Module):
    """Writes into views of what it reads again later."""

    def __init__(self, view: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.view = view

    def forward(self, x: Tensor) -> Tensor:
        x = x + 1
        seen = self.view(x)
        seen.mul_(2)
        return x + seen.sum()


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.movedim(1, 2),
        lambda x: x.swapaxes(0, 1),
        lambda x: x.mT,
        lambda x: x.unflatten(1, (2, 2)),
        lambda x: x.contiguous(),
        lambda x: x.split(2, 1)[1],
        lambda x: F.dropout(x, 0.5, training=False),
        lambda x: x.clone(),
    ],
)
def test_a_write_into_a_view_reaches_what_it_is_a_view_of(view: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(2, 4, 3)
    model = Shared(view)
    assert torch.equal(capture(model, (x,))(x), model(x))
