"""Pooling and resizing: what happens inside the plane of a channel."""

from typing import Any

import torch
from torch import Tensor, fx

from lighten.graph.labels import Propagation
from lighten.graph.rules.common import Rule, not_understood, overloads, planes

aten = torch.ops.aten


def over_planes(state: Propagation, node: fx.Node) -> Any:
    """Pooling and resizing: every channel keeps its id, whatever happens inside its plane."""
    size, ids = state.sizes[node], state.ids(node.args[0])
    if not isinstance(size, Tensor) or size.ndim != ids.ndim:
        return not_understood(state, node)
    spatial = int(str(node.target).split(".")[1][-2])  # the operators end in 1d, 2d, 3d
    return planes(state.along(ids, -1 - spatial), size.shape, spatial)


RULES: dict[Any, Rule] = {
    **dict.fromkeys(
        overloads(aten.max_pool1d, aten.max_pool2d, aten.max_pool3d, aten.avg_pool1d, aten.avg_pool2d,
                  aten.avg_pool3d, aten.adaptive_avg_pool1d, aten.adaptive_avg_pool2d, aten.adaptive_avg_pool3d,
                  aten.adaptive_max_pool2d, aten.upsample_nearest1d, aten.upsample_nearest2d,
                  aten.upsample_bilinear2d, aten.upsample_bicubic2d), over_planes),
}  # fmt: skip
