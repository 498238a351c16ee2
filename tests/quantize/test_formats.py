"""Every number format: what its codes stand for, that 0 is 0, and that rounding is to the nearest."""

import itertools

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from lighten.quantize.formats import IntegerFormat, format_of
from lighten.quantize.formats.codebook import E2M1, NF4
from lighten.quantize.formats.grid import Grid, by_groups
from lighten.quantize.methods.rtn import RTNConfig, rtn
from lighten.quantize.scheme import parse_scheme

INTEGERS = [f"w{bits}-g8-{kind}" for bits in (2, 3, 4, 8) for kind in ("sym", "asym")]
OTHERS = ["nf4-g8", "fp8-g8", "fp8-e5m2-g8", "mxfp4", "nvfp4"]
finite = st.floats(-(2.0**126), 2.0**126, width=32)
weights = hnp.arrays("float32", (3, 13), elements=finite | st.just(0.0)).map(torch.from_numpy)


def quantized(weight: Tensor, scheme: str):
    parsed = parse_scheme(scheme)
    return rtn(weight, format_of(parsed), parsed.group_size, RTNConfig())


def test_asymmetric_integers_by_hand() -> None:
    q = quantized(torch.tensor([[-6.0, 0.0, 3.4, 9.0]]), "w4-asym")
    assert (q.grid.scale.tolist(), q.grid.zero_point.tolist()) == ([[1.0]], [[6.0]])
    assert q.codes.tolist() == [[0, 6, 9, 15]]
    assert q.dequantize().tolist() == [[-6.0, 0.0, 3.0, 9.0]]


def test_symmetric_integers_by_hand() -> None:
    q = quantized(torch.tensor([[-3.5, 0.0, 3.4, 7.0]]), "w4-sym")
    assert (q.grid.scale.tolist(), q.grid.zero_point) == ([[1.0]], None)
    assert q.codes.tolist() == [[4, 8, 11, 15]]  # -3.5 is a tie, and goes to the even -4


def test_the_last_group_of_a_row_may_be_short() -> None:
    q = quantized(torch.tensor([[1.0, 7.0, 14.0], [2.0, -14.0, 0.0]]), "w4-g2-sym")
    assert q.grid.scale.tolist() == [[1.0, 2.0], [2.0, 1.0]]
    assert q.dequantize().tolist() == [[1.0, 7.0, 14.0], [2.0, -14.0, 0.0]]


def test_nf4_is_the_table_of_the_paper() -> None:
    assert len(set(NF4)) == 16
    assert (NF4[0], NF4[7], NF4[15]) == (-1.0, 0.0, 1.0)
    q = quantized(torch.tensor([NF4]) * 3, "nf4")
    assert q.codes.tolist() == [list(range(16))]
    assert q.grid.scale.tolist() == [[3.0]]


def test_e2m1_is_what_ml_dtypes_says() -> None:
    assert np.arange(16, dtype=np.uint8).view(ml_dtypes.float4_e2m1fn).astype(float).tolist() == list(E2M1)


@pytest.mark.parametrize("scheme", ["mxfp4", "nvfp4"])
def test_e2m1_codes_round_as_ml_dtypes_does(scheme: str) -> None:
    weight = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    q = quantized(weight, scheme)
    unit = q.format.unit
    scaled = weight / (q.grid.scale * unit).repeat_interleave(q.group_size, 1)
    theirs = scaled.numpy().astype(ml_dtypes.float4_e2m1fn).astype(np.float32)
    ours = q.dequantize() / (q.grid.scale * unit).repeat_interleave(q.group_size, 1)
    torch.testing.assert_close(ours, torch.from_numpy(theirs))


def test_mxfp4_scales_are_powers_of_two_that_clip_nothing() -> None:
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    scale = quantized(weight, "mxfp4").grid.scale
    assert torch.equal(scale, scale.to(torch.float8_e8m0fnu).float())
    largest = weight.unflatten(1, (-1, 32)).abs().amax(-1)
    assert torch.all(largest <= 6 * scale)
    assert torch.all(largest > 3 * scale)


def test_nvfp4_scales_are_e4m3_of_which_the_largest_is_the_end() -> None:
    scale = quantized(torch.randn(8, 64, generator=torch.Generator().manual_seed(0)), "nvfp4").grid.scale
    assert torch.equal(scale, scale.to(torch.float8_e4m3fn).float())
    assert scale.max() == 448


@pytest.mark.parametrize(("scheme", "dtype"), [("fp8", torch.float8_e4m3fn), ("fp8-e5m2", torch.float8_e5m2)])
def test_float8_is_torchs_own(scheme: str, dtype: torch.dtype) -> None:
    weight = torch.randn(2, 50, generator=torch.Generator().manual_seed(0))
    q = quantized(weight, scheme)
    assert torch.equal(q.dequantize(), (weight / q.grid.scale).to(dtype).float() * q.grid.scale)
    assert q.dequantize().isfinite().all()


@pytest.mark.parametrize("scheme", INTEGERS)
@settings(max_examples=40)
@given(weight=weights)
@example(weight=torch.zeros(3, 13))
@example(weight=torch.full((3, 13), 1e38))
@example(weight=torch.full((3, 13), -1e-45))
def test_integers_are_within_half_a_step_and_zero_is_exact(scheme: str, weight: Tensor) -> None:
    q = quantized(weight, scheme)
    restored = q.dequantize()
    assert torch.all(q.codes.int() < 2**q.format.bits)
    assert torch.all(restored[weight == 0] == 0)
    step = q.grid.scale.repeat_interleave(q.group_size, 1)[:, :13]
    # Half a step is the theory. Scale, quotient and product round, each by 2^-24 of up to 255 steps. A group whose
    # scale would fall below float32's normal numbers is taken for zeros, off by what it holds: below 255 · 2^-126.
    assert torch.all((restored.double() - weight.double()).abs() <= step * (0.5 + 255 * 4 * 2**-24))


@pytest.mark.parametrize("scheme", INTEGERS + OTHERS)
@settings(max_examples=40)
@given(weight=weights)
@example(weight=torch.zeros(3, 13))
def test_rounding_what_was_rounded_changes_nothing(scheme: str, weight: Tensor) -> None:
    """On its own grid: another one may fit what was rounded as well."""
    q = quantized(weight, scheme)
    full = Grid(*(None if p is None else p.repeat_interleave(q.group_size, 1)[:, :13] for p in q.grid))
    again = q.format.encode(q.dequantize(), full)
    assert torch.equal(q.format.decode(again, full), q.dequantize())


@pytest.mark.parametrize("scheme", OTHERS)
@settings(max_examples=40)
@given(weight=weights)
@example(weight=torch.zeros(3, 13))
@example(weight=torch.full((3, 13), 2.0**126))
def test_floats_and_codebooks_go_to_the_nearest_value_and_keep_zero(scheme: str, weight: Tensor) -> None:
    q = quantized(weight, scheme)
    restored = q.dequantize()
    assert restored.isfinite().all()
    assert torch.all(restored[weight == 0] == 0)
    every = torch.arange(2**q.format.bits, dtype=torch.uint8)
    values = q.format.decode(every, Grid(torch.ones(1), None))
    values = values[values.isfinite()].double()
    scale = q.grid.scale.repeat_interleave(q.group_size, 1)[:, :13].double()
    nearest = (values[:, None, None] * scale - weight.double()).abs().amin(0)
    # Ties and near-ties may go either way: quotient and product round by 2^-24 each.
    assert torch.all((restored.double() - weight.double()).abs() <= nearest + weight.double().abs() * 2**-22 + 1e-37)


@given(weight=hnp.arrays("float32", (2, 16), elements=st.floats(-8, 8, width=32)).map(torch.from_numpy))
@example(weight=torch.full((2, 16), 2.0**-119))
def test_the_bound_on_the_error_halves_with_every_bit(weight: Tensor) -> None:
    """The error itself need not fall for every weight, but its bound does, and on average it does."""
    steps = [quantized(weight, f"w{bits}-asym").grid.scale for bits in range(2, 9)]
    # A step that would fall below float32's normal numbers is 1 instead: the row is taken for zeros.
    width = weight.amax(1, keepdim=True).clamp(min=0).double() - weight.amin(1, keepdim=True).clamp(max=0).double()
    for bits, (coarse, fine) in enumerate(itertools.pairwise(steps), start=3):
        is_normal = width / (2**bits - 1) > torch.finfo(torch.float32).tiny * (1 + 2**-20)
        assert torch.all((fine < coarse) | (~is_normal & (fine == 1)))


def test_the_error_falls_with_every_bit() -> None:
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    for kind in ("sym", "asym"):
        errors = [(quantized(weight, f"w{b}-{kind}").dequantize() - weight).square().mean() for b in range(2, 9)]
        # A step is (2^b - 1) to (2^(b+1) - 1) of the range: at least a factor of 3 in the square, 5 at two bits.
        assert all(fine < coarse / 3 for coarse, fine in itertools.pairwise(errors))


@pytest.mark.parametrize("scheme", INTEGERS + OTHERS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_scales_are_representable_in_the_dtype_of_the_weight(scheme: str, dtype: torch.dtype) -> None:
    weight = torch.randn(3, 13, generator=torch.Generator().manual_seed(0)).to(dtype)
    q = quantized(weight, scheme)
    assert torch.equal(q.grid.scale, q.grid.scale.to(q.format.scale_dtype).float())
    if q.format.scale_dtype == dtype and isinstance(q.format, IntegerFormat):
        step = q.grid.scale.repeat_interleave(q.group_size, 1)[:, :13]
        assert torch.all((q.dequantize() - weight.float()).abs() <= step * (0.5 + 255 * 4 * 2**-24))  # rounded up


def test_rows_are_worked_on_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(9, 20, generator=torch.Generator().manual_seed(0))
    form = IntegerFormat(bits=4, symmetric=False)
    whole = rtn(weight, form, 8, RTNConfig())
    monkeypatch.setattr("lighten.quantize.formats.grid.CHUNK", 40)
    sizes = []

    def work(groups: Tensor):
        sizes.append(len(groups))
        grid = form.fit(groups)
        return grid, form.encode(groups, grid)

    parts = by_groups(weight, form, 8, work)
    assert sizes == [4, 2, 4, 2, 4, 2, 4, 2, 2, 1]
    assert torch.equal(parts.dequantize(), whole.dequantize())
