"""Ids: which number of which tensor of the program stands where in a value of the graph.

A value is a tensor of ids, so whatever only moves numbers (views, permutations, slices, concatenation) runs on the ids
themselves and costs nothing until an operation needs the numbers in another order than they lie in. The batch is 2, so
that the ids say which axis it is: those of the second sample are SAMPLE more. Constants have negative ids.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

MIXED = "the samples of a batch are mixed, and the engine takes them one by one"
SAMPLE = 2**40  # more than there are numbers
CONSTANT = -(2**50)  # the id of the first constant


@dataclass(frozen=True)
class Ids:
    """The ids of a value: int64, of its shape with a batch of 2."""

    at: Tensor


class Batch(NamedTuple):
    """Where the batch is: within an axis, which may hold it together with others; inner: how much follows it there."""

    axis: int
    inner: int


FIRST = Batch(0, 1)  # an axis of its own, before all others


def batch_of(*values: Ids) -> Batch:
    """Where the batch is in the first of the values that has one; constants have none.

    Raises:
        ValueError: none has one.
    """
    for value in values:
        for axis in range(value.at.ndim):
            is_second = (value.at >= SAMPLE).movedim(axis, 0).flatten(1).any(1)
            batch = Batch(axis, int(is_second.int().argmax()))
            if batch.inner > 0 and _first_of(value.at, batch) is not None:
                return batch
    raise ValueError(MIXED)


def one_sample(value: Ids, batch: Batch) -> Tensor:
    """The ids of the first sample.

    Raises:
        ValueError: those of the second are not the same for another sample.
    """
    first = _first_of(value.at, batch)
    if first is None:
        raise ValueError(MIXED)
    return first


def both_samples(sample: Tensor, batch: Batch) -> Ids:
    """The inverse of one_sample, of ids that are not of constants."""
    axis, inner = batch
    first = sample.unflatten(axis, (-1, inner))
    return Ids(torch.stack([first, first + SAMPLE], axis + 1).flatten(axis, axis + 2))


def _first_of(ids: Tensor, batch: Batch) -> Tensor | None:
    axis, inner = batch
    if ids.shape[axis] % (2 * inner):
        return None
    first, second = ids.unflatten(axis, (-1, 2, inner)).unbind(axis + 1)
    is_right = torch.equal(second, first + SAMPLE * (first >= 0))
    return first.flatten(axis, axis + 1) if is_right else None


def by_rows(sample: Tensor, axes: Sequence[int]) -> Tensor:
    """sample as a matrix: rows along those axes, places along all others."""
    axes = [axis % sample.ndim for axis in axes]
    others = [axis for axis in range(sample.ndim) if axis not in axes]
    return sample.permute(*axes, *others).reshape(math.prod(sample.shape[axis] for axis in axes), -1)


def in_rows(shape: Sequence[int], axes: Sequence[int]) -> Tensor:
    """Where each number of a tensor of that shape stands in the matrix by_rows makes of it, counted row by row."""
    number = torch.arange(math.prod(shape))
    found = torch.empty_like(number)
    found[by_rows(number.reshape(*shape), axes).flatten()] = number
    return found.reshape(*shape)
