import pytest
import torch
from torch import nn

from lighten.graph.capture import capture
from lighten.graph.fold import fold_batch_norm_
from tests.graph.networks import build


@pytest.mark.parametrize("name", ["resnet20", "depthwise", "concatenation"])
def test_folding_changes_nothing_in_eval_mode(name: str) -> None:
    model, inputs = build(name)
    captured = capture(model, inputs)
    folded = fold_batch_norm_(captured)
    left = sum(node.target == torch.ops.aten.batch_norm.default for node in captured.graph.nodes)
    assert (len(folded), left) == {"resnet20": (21, 0), "depthwise": (1, 0), "concatenation": (0, 1)}[name]
    torch.testing.assert_close(captured(*inputs), model(*inputs), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_padding_given_in_words_folds_too(n: int, padding: str) -> None:
    torch.manual_seed(0)
    convolution, norm = getattr(nn, f"Conv{n}d"), getattr(nn, f"BatchNorm{n}d")
    model = nn.Sequential(convolution(2, 4, 3, padding=padding), norm(4)).double()
    x = torch.randn(3, 2, *[5] * n, dtype=torch.float64)
    model(x)  # in training mode, for statistics that are not 0 and 1
    captured = capture(model.eval(), (x,))
    assert fold_batch_norm_(captured) == ["0"]
    torch.testing.assert_close(captured(x), model(x), rtol=1e-10, atol=1e-10)
