"""SparseGPT: go through the columns once; what a pruned weight did is taken over by the columns still to come.

Source: Frantar & Alistarh, "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot",
arXiv:2301.00774, algorithm 1.
Differs: counts are exact. How many units a block of columns loses is decided by the OBS scores of the whole layer (of
all layers, with scope="global"), not a fixed share a block; which ones, by scores of the weights as updated so far.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lighten.errors import ConfigError
from lighten.prune.methods.inverse import check_damping, inverse, obs_scores
from lighten.prune.methods.layer_data import LayerData, weight_importance, weight_update
from lighten.prune.patterns import Pattern, keep_mask, n_of_m_mask


@dataclass(frozen=True, kw_only=True)
class SparseGPTConfig:
    """block_size: columns whose mask is chosen together. damping: share of the Hessian's mean diagonal.
    sequential: fit each layer to what it reads once those before it are pruned, see lighten.prune.reconstruct."""

    needs: ClassVar[str] = "hessian"
    sequential: bool = True
    block_size: int = 128
    damping: float = 0.01

    def __post_init__(self) -> None:
        check_damping(self.damping)
        if self.block_size < 1:
            raise ConfigError(f"block_size={self.block_size} is below 1. Use 128 columns.")


@weight_importance("sparsegpt", SparseGPTConfig)
def scores(layer: LayerData, config: SparseGPTConfig) -> Tensor:
    """What pruning each weight alone costs, see obs_scores."""
    return obs_scores(layer, config.damping)


@weight_update("sparsegpt", SparseGPTConfig)
def update(layer: LayerData, pattern: Pattern, mask: Tensor, config: SparseGPTConfig) -> tuple[Tensor, Tensor]:
    """The effective weight and mask [out, columns]; see lighten.prune.methods.layer_data.weight_update."""
    assert layer.hessian is not None
    parts = [
        prune_columns(weight, inverse(hessian, config.damping), pattern, chosen, config.block_size)
        for weight, hessian, chosen in zip(
            layer.effective.double().chunk(layer.groups), layer.hessian, mask.chunk(layer.groups), strict=True
        )
    ]
    weight = torch.cat([weight for weight, _ in parts]).to(layer.weight.dtype)
    return weight, torch.cat([mask for _, mask in parts])


def prune_columns(
    weight: Tensor, inverse_hessian: Tensor, pattern: Pattern, mask: Tensor, block_size: int
) -> tuple[Tensor, Tensor]:
    """weight [out, columns] pruned, and its mask, with as many units gone in each block of columns as in mask.

    inverse_hessian: [columns, columns]. Where units are taller than weight, as in a depthwise layer, whose outputs have
    inputs of their own, the mask stays as it is.
    """
    weight, mask = weight.clone(), mask.clone()
    # Row j of this factor is column j of the inverse Hessian of the columns from j on, over the root of its corner.
    factor = torch.linalg.cholesky(inverse_hessian, upper=True)
    diagonal = factor.diagonal()
    step = pattern.of or pattern.columns
    width = max(step, block_size // step * step)
    for start in range(0, weight.shape[1], width):
        stop = min(start + width, weight.shape[1])
        block, errors = weight[:, start:stop], torch.zeros_like(weight[:, start:stop])
        if not pattern.is_n_of_m and not pattern.misfit(weight.shape):
            cost = pattern.units((block / diagonal[start:stop]).square())
            gone = int((~pattern.units(mask[:, start:stop].double()).bool()).sum())
            mask[:, start:stop] = pattern.spread(keep_mask(cost, gone))
        for column in range(start, stop):
            if pattern.is_n_of_m and (column - start) % pattern.of == 0:
                run = slice(column, column + pattern.of)
                mask[:, run] = n_of_m_mask((weight[:, run] / diagonal[run]).square(), pattern.keep, pattern.of)
            error = weight[:, column].masked_fill(mask[:, column], 0) / diagonal[column]
            weight[:, column].masked_fill_(~mask[:, column], 0)
            if column + 1 < stop:
                weight[:, column + 1 : stop] -= error[:, None] * factor[column, column + 1 : stop]
            errors[:, column - start] = error
        weight[:, stop:] -= errors @ factor[start:stop, stop:]
    return weight, mask
