"""OBS, layer by layer: take out the cheapest weight, move the rest of its row exactly, again and again.

Sources: Hassibi & Stork, "Second Order Derivatives for Network Pruning", NIPS 1992; Frantar & Alistarh, "Optimal Brain
Compression", arXiv:2208.11580, sec. 4, for doing it row by row: rows share nothing but the Hessian, so each gives up
its weights in an order of its own, and the layer takes the cheapest next step of any row.
Exact, and cubic in the columns for every row: for layers of up to about a thousand columns; beyond, sparsegpt.
"""

import heapq
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lighten.errors import ConfigError
from lighten.prune.methods.inverse import check_damping, damped, inverse, obs_scores
from lighten.prune.methods.layer_data import LayerData, weight_importance, weight_update
from lighten.prune.patterns import Pattern

CHUNK_ELEMENTS = 1 << 25  # of inverse Hessians in memory at once: 256 MiB


@dataclass(frozen=True, kw_only=True)
class OBSConfig:
    """damping: share of the Hessian's mean diagonal. max_columns: a wider layer is refused, it would take hours.
    sequential: see lighten.prune.reconstruct."""

    needs: ClassVar[str] = "hessian"
    sequential: bool = True
    damping: float = 0.01
    max_columns: int = 1024

    def __post_init__(self) -> None:
        check_damping(self.damping)


@weight_importance("obs", OBSConfig)
def scores(layer: LayerData, config: OBSConfig) -> Tensor:
    """What pruning each weight alone costs, see obs_scores."""
    if (columns := layer.weight.shape[1]) > config.max_columns:
        raise ConfigError(
            f"importance='obs' takes a time cubic in the columns, and a layer has {columns}, above "
            f"max_columns={config.max_columns}. Use importance='sparsegpt', or exclude the layer."
        )
    return obs_scores(layer, config.damping)


@weight_update("obs", OBSConfig)
def update(layer: LayerData, pattern: Pattern, mask: Tensor, config: OBSConfig) -> tuple[Tensor, Tensor]:
    """The effective weight and mask [out, columns]; see lighten.prune.methods.layer_data.weight_update."""
    assert layer.hessian is not None
    if pattern.columns > 1:
        raise ConfigError(
            f"importance='obs' takes out one column at a time and cannot do {pattern.name}. Use "
            f"block:{pattern.rows}x1, or importance='sparsegpt'."
        )
    weights, kept = [], []
    for weight, hessian, chosen in zip(
        layer.effective.double().chunk(layer.groups), layer.hessian, mask.chunk(layer.groups), strict=True
    ):
        new = chosen
        if not pattern.misfit(weight.shape):  # else units span groups, which have inputs of their own: they stay
            n_gone = int((~chosen).sum()) // pattern.rows
            new = greedy_mask(weight, inverse(hessian, config.damping), pattern, n_gone)
        kept.append(new)
        weights.append(refit(weight, damped(hessian, config.damping), new))
    return torch.cat(weights).to(layer.weight.dtype), torch.cat(kept)


def greedy_mask(weight: Tensor, inverse_hessian: Tensor, pattern: Pattern, n_gone: int) -> Tensor:
    """bool [out, columns]: n_gone units taken out of weight one by one, the cheapest of the layer each time."""
    bands = weight.unflatten(0, (-1, pattern.rows))  # [bands, rows, columns]: the rows of a band lose the same columns
    size = max(1, CHUNK_ELEMENTS // inverse_hessian.numel())
    found = [elimination(part, inverse_hessian, pattern) for part in bands.split(size)]
    order = torch.cat([o for o, _ in found])
    cost = torch.cat([c for _, c in found])
    taken = _cheapest_steps(cost.tolist(), n_gone)
    mask = torch.ones(len(bands), weight.shape[1], dtype=torch.bool)
    for band, count in enumerate(taken):
        mask[band, order[band, :count]] = False
    return mask.repeat_interleave(pattern.rows, 0)


def elimination(bands: Tensor, inverse_hessian: Tensor, pattern: Pattern) -> tuple[Tensor, Tensor]:
    """Which column each band gives up at each step, and what that costs: both [bands, steps]."""
    n_bands, _, columns = bands.shape
    weight, inv = bands.clone(), inverse_hessian.expand(n_bands, -1, -1).clone()
    place = torch.arange(columns).expand(n_bands, -1).clone()  # which column stands where in what is left
    gone = torch.zeros(n_bands, columns, dtype=torch.bool)
    steps = columns // pattern.of * (pattern.of - pattern.keep) if pattern.is_n_of_m else columns
    rows, orders, costs = torch.arange(n_bands), [], []
    left_in_run = torch.full((n_bands, columns // pattern.of if pattern.is_n_of_m else 0), pattern.of - pattern.keep)
    for step in range(steps):
        price = weight.square().sum(1) / inv.diagonal(dim1=1, dim2=2)
        price = price.masked_fill(gone, torch.inf)
        if pattern.is_n_of_m:
            price = price.masked_fill(left_in_run.gather(1, place // pattern.of) == 0, torch.inf)
        cost, chosen = price.min(1)
        column = inv[rows, chosen]  # [bands, columns left]
        corner = column[rows, chosen]
        weight -= (weight[rows, :, chosen] / corner[:, None])[:, :, None] * column[:, None, :]
        weight[rows, :, chosen] = 0
        inv.baddbmm_(column[:, :, None], (column / corner[:, None])[:, None, :], alpha=-1)
        gone[rows, chosen] = True
        inv[rows, chosen, chosen] = 1  # its row and column are zero up to rounding now, and it is never chosen again
        taken = place[rows, chosen]
        orders.append(taken)
        costs.append(cost)
        if pattern.is_n_of_m:
            left_in_run[rows, taken // pattern.of] -= 1
        if step + 1 < steps and gone.shape[1] >= 32 and int(gone[0].sum()) * 4 >= gone.shape[1]:
            weight, inv, place, gone = _without_gone(weight, inv, place, gone)
    return torch.stack(orders, 1), torch.stack(costs, 1)


def refit(weight: Tensor, hessian: Tensor, mask: Tensor) -> Tensor:
    """The weights [out, columns] on mask that come nearest to weight's output: a least-squares solve a row."""
    result = torch.zeros_like(weight)
    target = weight @ hessian  # [out, columns]
    for row in range(len(weight)):
        kept = mask[row].nonzero()[:, 0]
        if len(kept):
            factor = torch.linalg.cholesky(hessian[kept][:, kept])
            result[row, kept] = torch.cholesky_solve(target[row, kept, None], factor)[:, 0]
    return result


def _without_gone(weight: Tensor, inv: Tensor, place: Tensor, gone: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same state without what is gone: every band has lost as many columns, though not the same ones."""
    n_bands, n_rows, _ = weight.shape
    left = (~gone).nonzero()[:, 1].view(n_bands, -1)
    inv = inv.gather(1, left[:, :, None].expand(-1, -1, inv.shape[2]))
    inv = inv.gather(2, left[:, None, :].expand(-1, left.shape[1], -1))
    weight = weight.gather(2, left[:, None, :].expand(-1, n_rows, -1))
    return weight, inv, place.gather(1, left), torch.zeros_like(left, dtype=torch.bool)


def _cheapest_steps(cost: list[list[float]], n_gone: int) -> list[int]:
    """How many steps each band takes when n_gone are taken in all, the cheapest next one each time."""
    taken = [0] * len(cost)
    heap = [(steps[0], band) for band, steps in enumerate(cost) if steps]
    heapq.heapify(heap)
    for _ in range(n_gone):
        _, band = heapq.heappop(heap)
        taken[band] += 1
        if taken[band] < len(cost[band]):
            heapq.heappush(heap, (cost[band][taken[band]], band))
    return taken
