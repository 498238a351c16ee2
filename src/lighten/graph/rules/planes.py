"""Pooling, resizing and patches: what happens inside the plane of a channel."""

from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_map_only

from lighten.graph.arguments import arguments
from lighten.graph.ids import spread, varying_axes
from lighten.graph.rules.common import Rule, line_of, named, not_understood
from lighten.graph.state import Propagation

aten = torch.ops.aten


def over_planes(state: Propagation, node: fx.Node) -> Any:
    """Pooling and resizing: every channel keeps its id, whatever happens inside its plane."""
    size, source = state.sizes[node], node.args[0]
    assert isinstance(source, fx.Node)
    ids = state.current(state.regular_ids(source))
    spatial = int(next(c for c in str(node.target).split(".")[1] if c.isdigit()))  # their names say 1d, 2d, 3d
    axes = varying_axes(ids)
    if axes and axes[0] >= ids.ndim - spatial:
        return not_understood(state, node)
    if state.is_zero(source):
        state.zeros.add(node)
    if not axes:
        line, axis = line_of(ids, 0), 0  # one unit at most: the same everywhere
        return tree_map_only(Tensor, lambda t: line[:1].view([1] * t.ndim).expand(t.shape), size)
    line, axis = line_of(ids, axes[0]), axes[0]
    return tree_map_only(Tensor, lambda t: spread(line, axis, t.shape), size)


def grid_sample(state: Propagation, node: fx.Node) -> Any:
    """Channels pass; where they are looked up is computed from other tensors, whose ids stay."""
    given = arguments(node)
    state.freeze(state.ids(given["grid"]), "it says where to sample")
    ids = state.current(state.regular_ids(given["input"]))
    axes = varying_axes(ids)
    if axes and axes[0] > 1:
        return not_understood(state, node)
    if state.is_zero(given["input"]):
        state.zeros.add(node)
    axis = axes[0] if axes else 1
    return spread(line_of(ids, axis), axis, state.sizes[node].shape)


def patches(state: Propagation, node: fx.Node) -> Any:
    """im2col: [batch, channels, h, w] becomes [batch, channels · kernel, positions]."""
    ids = state.current(state.regular_ids(arguments(node)["self"]))
    shape = state.sizes[node].shape
    if ids.ndim != 4 or any(axis != 1 for axis in varying_axes(ids)):
        return not_understood(state, node)
    if state.is_zero(node.args[0]):
        state.zeros.add(node)
    line = line_of(ids, 1)
    return spread(line.repeat_interleave(shape[1] // len(line)), 1, shape)


def from_patches(state: Propagation, node: fx.Node) -> Any:
    """col2im: the inverse, so the places of a kernel go together."""
    ids = state.current(state.regular_ids(arguments(node)["self"]))
    shape = state.sizes[node].shape
    if ids.ndim != 3 or any(axis != 1 for axis in varying_axes(ids)):
        return not_understood(state, node)
    if state.is_zero(node.args[0]):
        state.zeros.add(node)
    places = line_of(ids, 1).view(shape[1], -1)
    state.unite(places, places[:, :1])
    return spread(places[:, 0], 1, shape)


RULES: dict[Any, Rule] = {
    **dict.fromkeys(
        named("max_pool1d", "max_pool2d", "max_pool3d", "max_pool1d_with_indices", "max_pool2d_with_indices",
              "max_pool3d_with_indices", "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d",
              "adaptive_avg_pool2d", "adaptive_avg_pool3d", "adaptive_max_pool1d", "adaptive_max_pool2d",
              "adaptive_max_pool3d", "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d",
              "_upsample_nearest_exact1d", "_upsample_nearest_exact2d", "_upsample_nearest_exact3d",
              "upsample_linear1d", "upsample_bilinear2d", "upsample_bicubic2d", "upsample_trilinear3d",
              "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa", "reflection_pad1d", "reflection_pad2d",
              "replication_pad1d", "replication_pad2d"), over_planes),
    **dict.fromkeys(named("grid_sampler", "grid_sampler_2d", "grid_sampler_3d"), grid_sample),
    **dict.fromkeys(named("im2col"), patches),
    **dict.fromkeys(named("col2im"), from_patches),
}  # fmt: skip
