"""Attention written out computes what attention computes."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lighten.graph.capture import capture
from lighten.quantize import quantize
from lighten.quantize.attention import ATTENTION, write_out_attention_
from lighten.quantize.placement import place

QUERY = torch.randn(2, 4, 5, 8, generator=torch.Generator().manual_seed(0))
OTHER = torch.randn(2, 4, 7, 8, generator=torch.Generator().manual_seed(1))
SHOWN = torch.rand(2, 1, 5, 7, generator=torch.Generator().manual_seed(2)) < 0.7
SHOWN[..., 0] = True  # no row without anything

HOW = {
    "plain": {},
    "causal": {"is_causal": True},
    "scale": {"scale": 0.3},
    "shown": {"attn_mask": SHOWN},
    "added": {"attn_mask": torch.randn(5, 7, generator=torch.Generator().manual_seed(3))},
    "grouped": {"enable_gqa": True},
}


class Attention(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.kv_heads = HOW[how], 2 if how == "grouped" else 4

    def forward(self, query: Tensor, other: Tensor) -> Tensor:
        key = other[:, : self.kv_heads]
        return F.scaled_dot_product_attention(query, key, key * 2, **self.how)


@pytest.mark.parametrize("how", HOW)
def test_written_out_it_is_the_same(how: str) -> None:
    model = Attention(how)
    captured = capture(model, (QUERY, OTHER))
    assert any(node.target is ATTENTION for node in captured.graph.nodes)
    write_out_attention_(captured, (QUERY, OTHER))
    assert not any(node.target is ATTENTION for node in captured.graph.nodes)
    torch.testing.assert_close(captured(QUERY, OTHER), model(QUERY, OTHER), rtol=1e-5, atol=1e-6)
    assert len(place(captured.graph).products) == 2


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(16, 48)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(len(x), -1, 3, 2, 8).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(q, k, 30 * v)


def test_rounding_it_changes_little_and_a_pattern_keeps_it_float() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(Heads()).eval(), torch.randn(32, 6, 16)
    exact = model(x).detach()
    far = {}
    for exclude in ((), ("*.values",), ("*.scores", "*.values")):
        quantized = quantize(model, "w8a8", calibration=[x], exclude=exclude)
        far[len(exclude)] = float((quantized(x).detach() - exact).square().mean().sqrt() / exact.std())
        assert [quantized.plan.skipped.get(f"0.{part}") for part in ("scores", "values")] == [
            "not quantized: excluded" if f"*.{part}" in exclude else None for part in ("scores", "values")
        ]
    # Steps of 1/255 of ranges of about 6 standard deviations: 0.7 % of a standard deviation for each rounding.
    assert far[2] < far[1] < far[0] < 0.03


def test_what_attention_shares_out_keeps_eight_bits() -> None:
    torch.manual_seed(0)
    model, x = Heads().eval(), torch.randn(32, 6, 16)
    for scheme in ("w4a4", "w8a8"):
        quantized = quantize(model, scheme, calibration=[x])
        assert sum(node.name.startswith("limit") for node in quantized.graph.nodes) == (1 if scheme == "w4a4" else 0)
