"""Tensors of ids: id 0 means "stays", and an axis along which ids merely repeat has stride 0, so it costs nothing."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only


def no_ids(size: Any) -> Any:
    """Ids 0 in the shape of size; what is not a tensor stays as it is."""
    return tree_map_only(Tensor, lambda t: torch.zeros((), dtype=torch.int64).expand(t.shape), size)


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors in a nest of tuples, lists and dicts."""
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def varies(ids: Tensor, axis: int) -> bool:
    """True where different things stand along axis."""
    if ids.shape[axis] <= 1 or ids.stride(axis) == 0 or ids.numel() == 0:
        return False
    compact = without_repeats(ids, keep=axis)[0]
    return bool((compact != compact.narrow(axis, 0, 1)).any())


def varying_axes(ids: Tensor) -> list[int]:
    """The axes along which different things stand."""
    return [axis for axis in range(ids.ndim) if varies(ids, axis)]


def spread(line: Tensor, axis: int, shape: tuple[int, ...] | torch.Size) -> Tensor:
    """line [size of axis] along that axis of a tensor of that shape, repeated along all others."""
    sizes = [1] * len(shape)
    sizes[axis] = -1
    return line.view(sizes).expand(shape)


def by_index(ids: Tensor, axis: int) -> Tensor:
    """[size of axis, all the rest]."""
    moved = ids.movedim(axis, 0)
    return moved.flatten(1) if moved.ndim > 1 else moved.unsqueeze(1)


def without_repeats(*tensors: Tensor, keep: int | None = None) -> tuple[Tensor, ...]:
    """The tensors cut to one index along axes that all of them merely repeat (stride 0)."""
    if len({t.ndim for t in tensors}) > 1:
        return tensors
    for axis in range(tensors[0].ndim):
        if axis != keep and all((t.stride(axis) == 0 and t.shape[axis] > 0) or t.shape[axis] == 1 for t in tensors):
            tensors = tuple(t.narrow(axis, 0, 1) for t in tensors)
    return tensors


def compacted(ids: Tensor) -> Tensor:
    """The same ids, with stride 0 along every axis on which they repeat: real operators write repeats out."""
    small = without_repeats(ids)[0]
    for axis in range(ids.ndim):
        if small.shape[axis] > 1 and bool((small == small.narrow(axis, 0, 1)).all()):
            small = small.narrow(axis, 0, 1)
    return small.expand(ids.shape)
