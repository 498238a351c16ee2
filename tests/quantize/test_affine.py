import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from lighten.quantize.affine import (
    MAX_BIAS_CODE,
    least_weight_scale,
    qparams_of_range,
    quantize_bias,
    quantize_weight,
)
from lighten.quantize.ops import dequantize, quantize

TINY = torch.finfo(torch.float32).tiny
# float32 sums of range and zero point overflow above about 2^127; nothing real comes near.
finite = st.floats(-(2.0**126), 2.0**126, width=32)
ordinary = st.floats(-1000, 1000, width=32)


def test_hand_worked_range() -> None:
    scale, zero_point = qparams_of_range(-1.0, 4.1)
    assert (pytest.approx(0.02), 50, torch.uint8) == (float(scale), int(zero_point), zero_point.dtype)
    x = torch.tensor([-1.0, -0.011, 0.0, 0.009, 4.1, 99.0, -99.0])
    assert quantize(x, scale, zero_point).tolist() == [0, 49, 50, 50, 255, 255, 0]


def test_hand_worked_weight() -> None:
    codes, scale = quantize_weight(torch.tensor([[1.0, -3.5, 7.0], [0.0, 0.3, -0.7]]), bits=4)
    assert scale.tolist() == pytest.approx([1.0, 0.1])
    assert codes.tolist() == [[1, -4, 7], [0, 3, -7]]  # -3.5 is a tie, and goes to the even -4
    assert codes.dtype == torch.int8


def test_hand_worked_bias() -> None:
    assert quantize_bias(torch.tensor([1.0, -0.26]), torch.tensor([0.1, 0.1])).tolist() == [10, -3]


@given(low=finite, high=finite)
@example(low=0.0, high=0.0)
@example(low=-1e-45, high=1e-45)
@example(low=2.0, high=2.0)
@example(low=-3.0, high=-3.0)
@example(low=-1e38, high=1e38)
def test_scale_is_positive_and_zero_is_exact_whatever_the_range(low: float, high: float) -> None:
    scale, zero_point = qparams_of_range(min(low, high), max(low, high))
    assert scale > 0
    assert scale.isfinite()
    zero = torch.zeros(1)
    assert torch.equal(dequantize(quantize(zero, scale, zero_point), scale, zero_point), zero)


@given(low=ordinary, high=ordinary, share=st.lists(st.floats(0, 1, width=32), min_size=1, max_size=8))
def test_error_within_the_range_is_at_most_half_a_step(low: float, high: float, share: list[float]) -> None:
    low, high = min(low, high, 0.0), max(low, high, 0.0)
    scale, zero_point = qparams_of_range(low, high)
    x = (low + torch.tensor(share) * (high - low)).clamp(low, high)
    error = (dequantize(quantize(x, scale, zero_point), scale, zero_point) - x).abs()
    # Half a step from rounding x, and at the ends up to another half, because the zero point was rounded too.
    interior = (x - low >= scale / 2) & (high - x >= scale / 2)
    step = torch.where(interior, scale / 2, scale)
    # x / scale has |code| <= 255 and three float32 roundings: 255 · 3 · 2^-24 steps.
    assert torch.all(error <= step + scale * 255 * 3 * 2**-24)


@given(
    weight=hnp.arrays("float32", (3, 2, 4), elements=finite).map(torch.from_numpy),
    bits=st.integers(2, 8),
)
@example(weight=torch.zeros(3, 2, 4), bits=8)
@example(weight=torch.full((3, 2, 4), 1e-45), bits=8)
@example(weight=torch.full((3, 2, 4), 1e38), bits=2)
def test_weight_codes_are_within_half_a_step(weight: Tensor, bits: int) -> None:
    codes, scale = quantize_weight(weight, bits)
    assert codes.abs().max() <= 2 ** (bits - 1) - 1
    assert torch.all(scale > 0)
    restored = codes.double() * scale.double().view(3, 1, 1)
    assert torch.all(codes[weight == 0] == 0)
    # A channel whose scale would fall below TINY is taken for zeros: off by at most what it holds.
    vanishes = weight.abs().amax((1, 2)) / (2 ** (bits - 1) - 1) <= TINY
    assert torch.all(codes[vanishes] == 0)
    # Half a step, and |code| <= 127 times the float32 rounding of scale and quotient.
    step = scale.double().view(3, 1, 1)[~vanishes]
    assert torch.all((restored - weight.double())[~vanishes].abs() <= step * (0.5 + 127 * 2 * 2**-24))


@given(
    weight=hnp.arrays("float32", (4, 3), elements=finite).map(torch.from_numpy),
    bias=hnp.arrays("float32", (4,), elements=finite).map(torch.from_numpy),
    input_scale=st.floats(2.0**-126, 2.0**120, width=32).map(torch.tensor),
)
@example(weight=torch.zeros(4, 3), bias=torch.zeros(4), input_scale=torch.tensor(0.1))
@example(weight=torch.zeros(4, 3), bias=torch.ones(4), input_scale=torch.tensor(0.1))
@example(weight=torch.full((4, 3), 1e-36), bias=torch.full((4,), 1e36), input_scale=torch.tensor(1.0))
@example(weight=torch.full((4, 3), 1e-37), bias=torch.full((4,), 1e-40), input_scale=torch.tensor(2.0**-126))
def test_a_bias_keeps_its_value_in_31_bits_or_its_scale_says_it_cannot(
    weight: Tensor, bias: Tensor, input_scale: Tensor
) -> None:
    codes, scale = quantize_weight(weight, 8, least_weight_scale(bias, input_scale))
    bias_scale = scale * input_scale
    fits = bias_scale.isfinite()  # what does not is refused by name in static.py
    bias_codes = quantize_bias(bias[fits], bias_scale[fits])
    assert torch.all(bias_codes.double().abs() <= MAX_BIAS_CODE * (1 + 2**-22))  # two float32 roundings
    assert torch.all(bias_scale > 0)
    restored = bias_codes.double() * bias_scale[fits].double()
    assert torch.all((restored - bias[fits].double()).abs() <= bias_scale[fits].double() / 2)
    assert torch.all(codes.abs() <= 127)


def test_least_scale_is_heeded_and_only_raises() -> None:
    weight = torch.tensor([[1.27], [1.27]])
    _, scale = quantize_weight(weight, 8, torch.tensor([0.0, 0.5]))
    assert scale.tolist() == pytest.approx([0.01, 0.5])


def test_seven_bit_weights_cannot_saturate_sixteen_bit_pair_sums() -> None:
    """VPMADDUBSW adds two u8 × s8 products in int16; see lighten.runtime.cpu.int8_saturates."""
    largest = {bits: int(quantize_weight(torch.ones(1, 1), bits)[0]) for bits in (7, 8)}
    assert largest == {7: 63, 8: 127}
    assert 2 * 255 * largest[7] <= torch.iinfo(torch.int16).max < 2 * 255 * largest[8]
