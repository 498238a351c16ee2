"""How many outputs share a block, for zeros of every kind."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("llvmlite")

from lighten.export.native.products import PRODUCT_COST, VECTOR_COST, best_block, n_blocks
from lighten.runtime.native.packed import Array, pack
from lighten.runtime.native.program import BLOCKS


def weight_of(n_out: int, n_in: int, density: float, height: int = 1, seed: int = 0) -> Array:
    """Zeros in blocks of that height."""
    make = np.random.default_rng(seed)
    keep = make.random((-(-n_out // height), n_in)) < density
    weight: Array = (make.standard_normal((n_out, n_in)) * keep.repeat(height, 0)[:n_out]).astype(np.float32)
    return weight


@given(
    block=st.sampled_from(BLOCKS),
    groups=st.sampled_from([1, 2, 3]),
    n=st.integers(1, 9),
    density=st.sampled_from([0.0, 0.2, 1.0]),
    seed=st.integers(0, 99),
)
def test_blocks_are_counted_as_they_are_packed(block: int, groups: int, n: int, density: float, seed: int) -> None:
    weight = weight_of(n * groups, 7, density, seed=seed)
    assert n_blocks(weight, block, groups) == len(pack(weight, None, block, groups).index)


CASES = {  # density, height of the blocks of zeros: R with many places, and R with one, by the bits of a value
    (1.0, 1): (8, {32: 16, 16: 16, 8: 16}),
    (0.5, 1): (2, {32: 16, 16: 16, 8: 16}),
    (0.1, 1): (1, {32: 1, 16: 1, 8: 4, 3: 4}),
    (0.1, 4): (4, {32: 4, 16: 4, 8: 4}),
    (0.1, 8): (8, {32: 8, 16: 8, 8: 8}),
    (0.1, 16): (8, {32: 16, 16: 16, 8: 16}),
}


@pytest.mark.parametrize("zeros", CASES)
def test_the_zeros_decide_how_many_outputs_share_a_block(zeros: tuple[float, int]) -> None:
    weight, (many, one) = weight_of(256, 600, *zeros), CASES[zeros]
    assert best_block(weight, 1, 32, is_vector=False) == many
    assert {bits: best_block(weight, 1, bits, is_vector=True) for bits in one} == one


def test_each_channel_by_itself_is_a_block_of_its_own() -> None:
    assert best_block(weight_of(32, 9, 1.0), 32, 32, is_vector=False) == 1


def test_every_block_that_is_chosen_can_be_computed() -> None:
    assert {*PRODUCT_COST, *(r for costs in VECTOR_COST.values() for r in costs)} <= set(BLOCKS)
