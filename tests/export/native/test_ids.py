"""Ids: they say where numbers lie, and numbers that were moved are those that a tensor has."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("llvmlite")

from lighten.export.native.builder import Builder
from lighten.export.native.ids import FIRST, Batch, Ids, batch_of, both_samples, by_rows, in_rows, one_sample
from lighten.runtime.native.program import Elements, Program
from lighten.runtime.native.program import Tensor as Sizes
from lighten.runtime.native.stored import read_stored, to_arrays
from tests.runtime.native.guarded import random, run


@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    data=st.data(),
)
def test_rows_and_places_of_a_sample(shape: list[int], data: st.DataObject) -> None:
    axes = data.draw(st.lists(st.integers(0, len(shape) - 1), unique=True))
    ids = random(0, *shape)
    matrix = by_rows(ids, axes)
    assert matrix.shape[0] == np.prod([shape[axis] for axis in axes])
    assert torch.equal(matrix.flatten()[in_rows(shape, axes)], ids)


@given(axis=st.integers(0, 2), outer=st.integers(1, 3), inner=st.integers(1, 3))
def test_the_batch_is_found_wherever_it_went(axis: int, outer: int, inner: int) -> None:
    sample = torch.arange(outer * inner * 6).reshape(outer * inner, 2, 3).movedim(0, axis)
    value = both_samples(sample, Batch(axis, inner))
    batch = batch_of(value)
    assert batch == Batch(axis, inner)
    assert torch.equal(one_sample(value, batch), sample)


def test_mixed_samples_are_refused() -> None:
    value = Ids(both_samples(torch.arange(6).reshape(1, 6), FIRST).at.flip(0))
    with pytest.raises(ValueError, match="mixed"):
        batch_of(value)


MOVES = {
    "flip": lambda x: x.flip(-1),
    "roll": lambda x: x.roll(1, -1),
    "transposed": lambda x: x.transpose(1, -1),
    "half": lambda x: x[:, : (x.shape[1] + 1) // 2],
    "twice": lambda x: torch.cat([x, x], 1),
    "flat": lambda x: x.flatten(1),
    "split": lambda x: x.unflatten(-1, (1, x.shape[-1])),
    "kept": lambda x: x,
}


@settings(max_examples=60, deadline=None)
@given(
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    moves=st.lists(st.sampled_from(sorted(MOVES)), max_size=4),
    adds=st.booleans(),
    threads=st.sampled_from([2, 3, 8]),
)
def test_moved_numbers_are_those_that_a_tensor_has(
    shape: list[int], moves: list[str], adds: bool, threads: int
) -> None:
    """adds: another tensor, and constants, so that several are moved together."""
    build, x = Builder(), random(0, 2, *shape)
    sizes = Sizes(shape[0], 1, int(np.prod(shape[1:])))
    first = build.add_input(sizes)
    ids = both_samples(torch.arange(x[0].numel()).reshape(1, *shape), FIRST).at
    if adds:
        build.add(Elements(inputs=(first,), act="relu"))
        constant = random(1, 1, *shape).expand(2, *shape)
        x, ids = (
            torch.cat([x, x.relu(), constant], 1),
            torch.cat([ids, ids + build.starts[1], build.ids_of(constant).at], 1),
        )
    for move in moves:
        x, ids = MOVES[move](x), MOVES[move](ids)
    sample = one_sample(Ids(ids), FIRST)[0]
    at = build.lay(sample.reshape(len(sample), -1))
    program = Program.from_json(build.program((at,)).to_json())
    stored = read_stored(program, to_arrays(program, build.stored))
    inputs = random(0, 2, *shape)
    np.testing.assert_array_equal(run(program, stored, inputs, tuple(x.shape[1:]), counts=(1, threads)).numpy(), x)
