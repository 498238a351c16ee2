import pytest
import torch

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
