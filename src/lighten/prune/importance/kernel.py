"""Kernel importance of channels: a filter that the others cover can go, by the text's formula on real distances.

See lighten.prune.importance.density. The distance is the Euclidean one between whole filters, in units of a share of
the median distance.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lighten.errors import ConfigError
from lighten.prune.importance.density import removal_order
from lighten.registry import importance


@dataclass(frozen=True, kw_only=True)
class KernelConfig:
    """bandwidth: of the kernel, in median distances between the filters of a group."""

    bandwidth: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.bandwidth < float("inf"):
            raise ConfigError(f"bandwidth={self.bandwidth} must be above 0, in median distances. Use 0.5.")


@importance("kernel", KernelConfig)
def kernel(rows: Tensor, config: KernelConfig) -> Tensor:
    """rows [n_units, elements]: the weights of each unit. Returns [n_units] in 0..1, higher = keep.

    The score of a unit is the largest share that was left uncovered when it, or one before it, went.
    """
    points = rows.double()
    points = points / points.abs().max().clamp(min=torch.finfo(torch.float64).tiny)
    apart = torch.pdist(points)
    apart = apart[apart > 0]
    scale = float(apart.median()) if len(apart) else 1.0  # all alike: any scale will do
    order, uncovered = removal_order(points / scale, config.bandwidth)
    # Scores must rank as the order does; where the running maximum stands still, a whisper tells the later from the
    # earlier.
    rising = uncovered.cummax(0).values + torch.arange(1, len(order) + 1) * 1e-6 / len(order)
    scores = torch.empty(len(order), dtype=torch.float64)
    scores[order] = rising
    return scores.float()
