import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lighten.checkpoint.describe import describe, rebuild
from lighten.checkpoint.sparse import choose_layout, compress, expand, nonzero_bits, pack_bits, unpack_bits
from lighten.errors import ArtifactError, ConfigError

arrays = hnp.arrays(
    "float32", hnp.array_shapes(max_dims=3, max_side=9), elements=st.sampled_from([0.0, -0.0, 1.5, float("nan")])
)


def test_bits_by_hand() -> None:
    assert pack_bits(torch.tensor([True, False, True, False, False, False, False, False, True])).tolist() == [160, 128]


@given(array=arrays, dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]))
def test_compressing_is_bit_exact(array, dtype: torch.dtype) -> None:
    tensor = torch.from_numpy(array).to(dtype)
    back, mask = expand(*compress(tensor, nonzero_bits(tensor)), tuple(tensor.shape))
    assert back.dtype == tensor.dtype
    assert torch.equal(nonzero_bits(back), mask)
    as_integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    assert torch.equal(back.view(as_integers), tensor.view(as_integers))


@pytest.mark.parametrize(("zeros", "layout"), [(0, "dense"), (2, "dense"), (20, "bitmask"), (100, "bitmask")])
def test_the_smaller_layout_is_chosen(zeros: int, layout: str) -> None:
    tensor = torch.ones(100)
    tensor[:zeros] = 0
    assert choose_layout(tensor) == layout
    assert choose_layout(tensor[:50]) == "dense"


def test_parts_that_do_not_belong_together_are_refused() -> None:
    bits, values = compress(torch.ones(10), torch.ones(10, dtype=torch.bool))
    with pytest.raises(ArtifactError, match="has 10 bits set, but 9 values"):
        expand(bits, values[:9], (10,))
    with pytest.raises(ArtifactError, match="file damaged"):
        unpack_bits(bits, (20,))


def test_inputs_survive_their_description() -> None:
    inputs = ({"a": torch.ones(2, 3), "b": [torch.ones(1, dtype=torch.int64), None]}, 3, True, "x", 0.5)
    back = rebuild(describe(inputs))
    assert torch.utils._pytree.tree_structure(back) == torch.utils._pytree.tree_structure(inputs)
    assert (back[0]["a"].shape, back[0]["b"][0].dtype, back[1:]) == ((2, 3), torch.int64, (3, True, "x", 0.5))
    with pytest.raises(ConfigError, match="takes a set"):
        describe(({1},))
    for damaged in ({"tensor": [2], "dtype": "float33"}, {"nothing": 1}, 7):
        with pytest.raises(ArtifactError, match="description of the inputs is damaged"):
            rebuild(damaged)
