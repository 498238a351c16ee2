"""Linear layers on one place, in every type that weights are stored in, against the float module."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("llvmlite")

from lighten.runtime.native.engine import Engine
from lighten.runtime.native.packed import Packed, pack
from lighten.runtime.native.program import BLOCKS, Conv, Program
from lighten.runtime.native.program import Tensor as Sizes
from lighten.runtime.native.stored import Stored, read_stored, to_arrays
from tests.runtime.native.guarded import close, run

BITS = (2, 8, 16, 32)


def stored_in(bits: int, weight: Tensor, bias: Tensor, block: int) -> tuple[Tensor, Packed]:
    """The weight in values of that many bits: as floats, and as it is stored."""
    if bits == 32:
        return weight, pack(weight.numpy(), bias.numpy(), block)
    if bits == 16:
        weight = weight.bfloat16().float()
        return weight, pack(weight.numpy(), bias.numpy(), block).in_bfloat16()
    scale = weight.abs().amax(1) / 2 ** (bits - 1) + (weight == 0).all(1)
    codes = (weight / scale[:, None]).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    weight = codes * scale[:, None]
    return weight, pack(weight.numpy(), bias.numpy(), block).on_grid(scale.numpy())


@settings(max_examples=60, deadline=None)
@given(
    bits=st.sampled_from(BITS),
    block=st.sampled_from(BLOCKS),
    n_out=st.integers(1, 40),
    n_in=st.sampled_from([1, 3, 64, 255, 70_000]),  # the last has columns that no uint16 holds
    density=st.sampled_from([0.0, 0.1, 1.0]),
    residual=st.booleans(),
    threads=st.sampled_from([1, 2, 3]),
    seed=st.integers(0, 99),
)
def test_any_linear_layer_is_the_modules(
    bits: int, block: int, n_out: int, n_in: int, density: float, residual: bool, threads: int, seed: int
) -> None:
    make = torch.Generator().manual_seed(seed)
    weight = torch.randn(n_out, n_in, generator=make)
    weight *= torch.rand(n_out, n_in, generator=make) < (density if n_in < 1000 else 300 * density / n_in)
    x, bias = torch.randn(2, n_in, generator=make), torch.randn(n_out, generator=make)
    weight, packed = stored_in(bits, weight, bias, block)
    wanted = F.linear(x, weight, bias)
    ops = [Conv(inputs=(0,), weight="w", rows=n_out, block=block, bits=bits)]
    if residual:
        ops.append(Conv(inputs=(0, 1), weight="w", rows=n_out, block=block, bits=bits, act="relu"))
        wanted = F.relu(wanted + wanted)
    program = Program((Sizes(n_in, 1, 1),), tuple(ops), (len(ops),))
    stored = read_stored(program, to_arrays(program, Stored({"w": packed})))
    close(run(program, stored, x, (n_out,), counts=(1, threads)), wanted)


@pytest.mark.parametrize("places", [(1, 1), (3, 5)])
@pytest.mark.parametrize("bits", BITS)
def test_one_place_keeps_weights_as_they_are_stored_and_many_make_floats(bits: int, places: tuple[int, int]) -> None:
    _, packed = stored_in(bits, torch.randn(16, 50), torch.zeros(16), 8)
    program = Program((Sizes(50, *places),), (Conv(inputs=(0,), weight="w", rows=16, block=8, bits=bits),), (1,))
    constants = Engine(program, Stored({"w": packed}), [(16, *places)]).blob.memory.tobytes()
    assert (packed.value.tobytes() in constants) == (places == (1, 1) or bits == 32)
    assert (packed.floats.value.tobytes() in constants) == (places != (1, 1) or bits == 32)


def test_values_stay_what_they_are_through_every_type() -> None:
    special = torch.tensor([[0.0, -1.5, float("inf"), float("nan"), 3.4e38, 2.0**-126, -0.0, 1 / 3]]).T
    packed = pack(special.bfloat16().float().numpy(), None, 8)
    np.testing.assert_array_equal(packed.in_bfloat16().floats.value, packed.value)
    assert packed.in_bfloat16().value.nbytes * 2 == packed.value.nbytes
