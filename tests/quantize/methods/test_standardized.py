"""The text's quantizer: what its formula says, what it means, and what its printed sample does."""

import pytest
import torch

from lighten.errors import ConfigError
from lighten.quantize.formats import IntegerFormat
from lighten.quantize.methods.rtn import RTNConfig, rtn
from lighten.quantize.methods.standardized import StandardizedConfig, literal_codes, standardized

NORMAL = torch.randn(64, 64, generator=torch.Generator().manual_seed(0)).clamp(-3.9, 3.9)


@pytest.mark.parametrize(("bits", "codes"), [(8, 1), (4, 1), (2, 3)])
def test_read_literally_everything_collapses_and_more_bits_make_it_worse(bits: int, codes: int) -> None:
    """|x| < 4 of a standardized weight, over 2^bits, is below 1/2 for 4 bits and above: nothing but zeros."""
    assert NORMAL.abs().max() < 4
    assert len(literal_codes(NORMAL, bits).unique()) == codes


def test_read_literally_a_scale_of_2_to_the_b_rounds_to_whole_deviations() -> None:
    assert literal_codes(NORMAL, 8, scale=2**8).unique().tolist() == [-4, -3, -2, -1, 0, 1, 2, 3, 4]


def test_read_as_meant_the_codes_span_mean_plus_minus_k_deviations() -> None:
    form = IntegerFormat(bits=4, symmetric=False)
    q = standardized(NORMAL, form, None, StandardizedConfig(k=1))
    mean, deviation = NORMAL.mean(1), NORMAL.std(1, correction=0)
    lowest, highest = q.dequantize().amin(1), q.dequantize().amax(1)
    step = q.grid.scale[:, 0]
    assert torch.all((lowest - (mean - deviation)).abs() <= step / 2 + 1e-6)
    assert torch.all((highest - (mean + deviation)).abs() <= step / 2 + 1e-6)
    assert len(q.codes.unique()) == 16
    torch.testing.assert_close(step, 2 * deviation / 15)


def test_a_range_wider_than_the_weights_is_that_of_rounding_to_nearest() -> None:
    form = IntegerFormat(bits=4, symmetric=False)
    wide = standardized(NORMAL, form, 16, StandardizedConfig(k=50))
    assert torch.equal(wide.dequantize(), rtn(NORMAL, form, 16, RTNConfig()).dequantize())


def test_clipping_pays_at_few_bits() -> None:
    form = IntegerFormat(bits=2, symmetric=True)
    ours, theirs = (
        (q.dequantize() - NORMAL).square().mean()
        for q in (standardized(NORMAL, form, None, StandardizedConfig(k=1.5)), rtn(NORMAL, form, None, RTNConfig()))
    )
    assert ours < theirs / 2


def test_the_printed_sample_asks_a_tensor_of_many_elements_for_one_number() -> None:
    norm = (NORMAL - NORMAL.mean()) / NORMAL.std()
    with pytest.raises(RuntimeError, match="cannot be converted to Scalar"):
        norm.item()


def test_k_is_checked() -> None:
    with pytest.raises(ConfigError, match="k=0 is not above 0"):
        StandardizedConfig(k=0)
